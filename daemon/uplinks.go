package daemon

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
)

// saveUplinks writes the file that a plugin without a daemon reads. Without uplinks there is no file.
func saveUplinks(path string, u uplink.Uplinks) error {
	if len(u.Interfaces) == 0 {
		return durable.Remove(path)
	}
	text, err := json.MarshalIndent(u, "", " ")
	if err == nil {
		err = durable.Replace(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write uplinks: %w", err)
	}
	return nil
}

// uplinksStatus says how the uplinks are; nil if the node has none.
func (d *Daemon) uplinksStatus(v *view, leases api.Leases) *api.Uplinks {
	if len(v.Plan.Uplinks.Interfaces) == 0 {
		return nil
	}
	spec := v.World.Uplinks(v.World.Self)
	if spec == nil {
		spec = &cluster.Uplinks{Egress: cluster.EgressUplink}
		if v.Plan.Uplinks.NodeEgress {
			spec.Egress = cluster.EgressNode
		}
	}
	out := &api.Uplinks{Provider: string(spec.Provider), Egress: string(spec.Egress), Free: int(leases.Free)}
	pods := d.pods.Held().Pods
	for _, i := range v.Plan.Uplinks.Interfaces {
		one := api.Uplink{MAC: i.MAC, Name: i.Name, Address: i.Address.String(), Gateway: i.Gateway.String(), Addresses: len(i.Addresses), State: api.UplinkMissing}
		if at := slices.IndexFunc(spec.Interfaces, func(u cluster.Uplink) bool { return u.MAC == i.MAC && u.Name == i.Name }); at >= 0 {
			one.ID = spec.Interfaces[at].ID
		}
		if link, ok := i.Link(v.World.Host); ok {
			one.Link, one.State = link.Name, api.UplinkDown
			if link.Up {
				one.State = api.UplinkUp
			}
		}
		for _, a := range i.Addresses {
			if _, used := pods[a]; used {
				one.Used++
			}
		}
		out.Used += one.Used
		out.Interfaces = append(out.Interfaces, one)
	}
	for _, c := range v.Plan.Confirmed {
		out.Confirmed = append(out.Confirmed, api.Withdrawal{Address: c.Address.String(), Token: c.Token})
	}
	return out
}
