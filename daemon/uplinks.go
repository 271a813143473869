package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
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

// removedFor is how long the problem stays after the last deletion: long enough to be read, and a rule that somebody
// deleted once by hand is not held against the node for ever.
const removedFor = 10 * time.Minute

// removals notices that another program deletes policy rules of uplinks. A rule depends on no link, so a rule that the
// last Sync left in the kernel, and that the next Sync has to add, was deleted by somebody else. Routes and proxy
// entries prove nothing: they go with a link that is set down.
type removals struct {
	standing map[string]bool // rules after the last Sync
	times    int             // deletions since the problem appeared
	last     time.Time
	got      string
}

// note takes the rules that a Sync made true, and its changes. A Sync that could not read the kernel proves nothing.
func (r *removals) note(want []routes.Rule, changes []routes.Change, now time.Time) {
	var gone []string
	refused := map[string]bool{}
	for _, c := range changes {
		if rule, ok := c.Object.(routes.Rule); ok && c.Op == routes.Add {
			refused[rule.String()] = c.Err != nil
			if r.standing[rule.String()] {
				gone = append(gone, rule.String())
			}
		}
	}
	r.standing = map[string]bool{}
	for _, rule := range want {
		r.standing[rule.String()] = !refused[rule.String()]
	}
	if len(gone) == 0 {
		return
	}
	if now.Sub(r.last) >= removedFor {
		r.times = 0
	}
	r.times, r.last = r.times+1, now
	r.got = fmt.Sprintf("%d of them deleted by another program and put back, such as %s; deletions so far: %d", len(gone), gone[0], r.times)
}

// problems returns the problem of the node while the last deletion is recent.
func (r *removals) problems(node string, now time.Time) []cluster.Problem {
	if r.times == 0 || now.Sub(r.last) >= removedFor {
		return nil
	}
	return []cluster.Problem{{Object: cluster.EdgeNode{Name: node}.Ref(), Reason: cluster.RulesRemoved, Want: "the policy rules of uplinks to stay", Got: r.got,
		Next: "edgewayd unmanage, and restart the program that it names: /etc/systemd/networkd.conf.d/05-edgeway.conf keeps systemd-networkd from deleting them; else look for the program with ip monitor rule"}}
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

// ensAddresses is how many addresses an interface of an ENS instance can have for pods.
const ensAddresses = 25

// mostPods is the largest maxPods of the kubelet for which the addresses are enough; 0: not known. More addresses may come
// to an instance of a cloud, and only the controller knows how many an ECS instance can have.
func mostPods(spec *cluster.Uplinks, u uplink.Uplinks) int {
	of := map[bool]int{} // by family: a pod needs an address of each
	for _, i := range u.Interfaces {
		of[i.V6()] += len(i.Addresses)
	}
	granted := max(of[false], of[true])
	if of[false] > 0 && of[true] > 0 {
		granted = min(of[false], of[true])
	}
	switch spec.Provider {
	case cluster.ProviderStatic:
		return granted + cluster.HostPods
	case cluster.ProviderENS:
		return max(granted, ensAddresses*len(u.Interfaces)) + cluster.HostPods
	}
	return 0
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
	out := &api.Uplinks{MostPods: mostPods(spec, v.Plan.Uplinks), Provider: string(spec.Provider), Egress: string(spec.Egress), Used: s.Used, Free: s.Free}
	if d.loop.reporter != nil {
		out.MaxPods = d.loop.reporter.MaxPods()
	}
	for n, i := range v.Plan.Uplinks.Interfaces {
		one := api.Uplink{MAC: i.MAC, Name: i.Name, Link: s.Interfaces[n].Link, Address: i.Address.String(), Gateway: i.Gateway.String(),
			Addresses: len(i.Addresses), Used: held.Used(uplink.Uplinks{Interfaces: []uplink.Interface{i}}), State: string(s.Interfaces[n].State)}
		if at := slices.IndexFunc(spec.Interfaces, func(u cluster.Uplink) bool { return u.MAC == i.MAC && u.LinkName() == i.Name && u.V6() == i.V6() }); at >= 0 {
			one.ID = spec.Interfaces[at].ID
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	for _, c := range s.Confirmed {
		out.Confirmed = append(out.Confirmed, api.Withdrawal{Address: c.Address.String(), Token: c.Token})
	}
	return out
}
