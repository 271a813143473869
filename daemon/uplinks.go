package daemon

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/daemon/policy"
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
func uplinksStatus(v *view, held policy.Held) *cluster.UplinksStatus {
	if len(v.Plan.Uplinks.Interfaces) == 0 {
		return nil
	}
	out := &cluster.UplinksStatus{Confirmed: v.Plan.Confirmed, Used: held.Used(v.Plan.Uplinks), Free: held.Free()}
	for _, i := range v.Plan.Uplinks.Interfaces {
		one := cluster.UplinkStatus{MAC: i.MAC, Name: i.Name, State: cluster.InterfaceMissing}
		if link, ok := i.Link(v.World.Host); ok {
			one.Link, one.State = link.Name, cluster.InterfaceDown
			if link.Up {
				one.State = cluster.InterfaceUp
			}
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	return out
}

// uplinks is uplinksStatus with the words of the resource, for operators.
func (d *Daemon) uplinks(v *view) *api.Uplinks {
	held := d.pods.Held()
	s := uplinksStatus(v, held)
	if s == nil {
		return nil
	}
	spec := v.World.Uplinks(v.World.Self)
	if spec == nil {
		spec = &cluster.Uplinks{Egress: cluster.EgressUplink}
		if v.Plan.Uplinks.NodeEgress {
			spec.Egress = cluster.EgressNode
		}
	}
	out := &api.Uplinks{Provider: string(spec.Provider), Egress: string(spec.Egress), Used: s.Used, Free: s.Free}
	for n, i := range v.Plan.Uplinks.Interfaces {
		one := api.Uplink{MAC: i.MAC, Name: i.Name, Link: s.Interfaces[n].Link, Address: i.Address.String(), Gateway: i.Gateway.String(),
			Addresses: len(i.Addresses), Used: held.Used(uplink.Uplinks{Interfaces: []uplink.Interface{i}}), State: string(s.Interfaces[n].State)}
		if at := slices.IndexFunc(spec.Interfaces, func(u cluster.Uplink) bool { return u.MAC == i.MAC && u.Name == i.Name }); at >= 0 {
			one.ID = spec.Interfaces[at].ID
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	for _, c := range s.Confirmed {
		out.Confirmed = append(out.Confirmed, api.Withdrawal{Address: c.Address.String(), Token: c.Token})
	}
	return out
}
