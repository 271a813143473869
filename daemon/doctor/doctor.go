// Package doctor examines one machine for an operator: everything that one node can see alone, and the way of one
// packet, there and back.
//
// It owns the list of checks and the words of the answers. It decides nothing: the problems are those of
// policy.Decide, the firewalls' verdicts those of package routes. It changes nothing, and works without a daemon.
//
//	r, err := doctor.Examine(ctx, config, doctor.Options{Version: "v1.2.0"})
//	for _, c := range r.Checks { fmt.Println(c.State, c.Name, c.Got) } // problem firewall chain ip filter FORWARD ...
package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/pods"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// States of a check.
const (
	OK      = "ok"
	Problem = "problem"
	Advice  = "advice"  // everything works, but one more fault would be worse than it must be
	Unclear = "unclear" // the check could not tell
)

// Check is one thing that was looked at.
type Check struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"` // of a problem that status has too
	Got    string `json:"got,omitempty"`
	Next   string `json:"next,omitempty"`
}

// Report is the result of Examine.
type Report struct {
	Node   string  `json:"node"`
	Checks []Check `json:"checks"`
}

// Problems counts the checks that found a problem.
func (r Report) Problems() (n int) {
	for _, c := range r.Checks {
		if c.State == Problem {
			n++
		}
	}
	return n
}

// Options of an examination.
type Options struct {
	Version string // of this program
	// Plugin returns the version of the plugin in that file; nil: it is not compared.
	Plugin func(ctx context.Context, path string) (string, error)
}

// groups are the groups in order, each with what is right there, and the reasons of the policy's problems that belong
// there. Other reasons belong to the first group.
func groups() []group {
	return []group{
		{"cluster", "the Nodes and resources agree with this machine", nil},
		{"links", "the links of the node's addresses are up, forward, and carry the pods' packets",
			[]cluster.Reason{cluster.LinkDown, cluster.ForwardingOff, cluster.MTUTooLarge, cluster.AddressNotHere, cluster.VXLANTaken}},
		{"routes", "the way to every pod CIDR is free of other routes and policy rules",
			[]cluster.Reason{cluster.NoRouteToLAN, cluster.Shadowed, cluster.ForeignRoute, cluster.OffSubnet, cluster.GatewayOffSubnet, cluster.PeerOffSubnet}},
		{"neighbours", "the gateways answer", []cluster.Reason{cluster.SilentGateway, cluster.SilentNode, cluster.OneMAC}},
		{"firewall", "no rule of this machine drops or translates the pods' packets", []cluster.Reason{cluster.ForwardDropped, cluster.HostDropped, cluster.ForeignNAT}},
		{"pods", "the runtime finds the plugin and our network", []cluster.Reason{cluster.NoPlugin, cluster.CompetingNetwork, cluster.NotInstalled, cluster.DiskFull, cluster.OtherNetwork, cluster.PodsNotServed}},
		{"machine", "the clock, the ports and the daemon are as they should be", []cluster.Reason{cluster.WrongClock}},
	}
}

type group struct {
	name, right string
	reasons     []cluster.Reason
}

// examination is an examination at work.
type examination struct {
	config config.Config
	k      *routes.Kernel
	report Report
}

func (e *examination) add(c Check) { e.report.Checks = append(e.report.Checks, c) }

// look decides for this machine as the daemon does: with the cluster state that can be read, else the last that was
// saved. If neither can be read, it returns an empty World and an error.
func look(ctx context.Context, c config.Config, k *routes.Kernel) (policy.World, policy.Plan, error) {
	last, known, err := c.SavedWorld()
	next, rerr := c.ReadCluster(ctx, last)
	switch {
	case rerr == nil:
	case known:
		next, rerr = last, fmt.Errorf("%w; the cluster state of %s still counts", rerr, last.ReadAt.Format(time.RFC3339))
	default:
		return policy.World{}, policy.Plan{}, errors.Join(rerr, err)
	}
	host, err := k.Host(ctx)
	if err != nil {
		return policy.World{}, policy.Plan{}, err
	}
	next, found := policy.Admit(last, next, host)
	next.Problems = slices.Concat(next.Problems, found)
	w := policy.World{Cluster: next, Self: c.NodeName, Config: c, Host: host}
	if w.Host.Ruled, err = k.Ruled(ctx, w.Asks()); err == nil && w.Grants() {
		w.Host.Foreign, err = k.ForeignRules(ctx)
	}
	if err != nil {
		return w, policy.Plan{}, err
	}
	return w, policy.Decide(w), rerr
}

// Examine looks at everything that this machine can see alone. It takes a few seconds: a neighbour that does not
// answer is asked three times.
func Examine(ctx context.Context, c config.Config, o Options) (Report, error) {
	k, err := routes.Open()
	if err != nil {
		return Report{}, err
	}
	defer k.Close()
	e := &examination{config: c, k: k, report: Report{Node: c.NodeName}}
	w, plan, err := look(ctx, c, k)
	if err != nil {
		e.add(Check{Group: "cluster", Name: "cluster state", State: Problem, Reason: string(cluster.ClusterUnreadable), Got: err.Error(), Next: "check cluster in the configuration"})
	}
	if found := pods.Examine(c); w.Self == "" {
		e.problems(found, nil)
		// The cluster state says which packets must pass.
		for _, g := range []string{"links", "routes", "neighbours", "firewall"} {
			e.add(Check{Group: g, Name: "not examined without the cluster state", State: Unclear})
		}
	} else {
		e.neighbours(ctx, &w, plan)
		unclear := e.firewalls(ctx, &w, plan)
		plan = policy.Decide(w)
		e.problems(slices.Concat(plan.Problems, w.Cluster.Problems, found), unclear)
		e.forwarding(plan)
		e.rivals(w, plan)
		e.claimed(ctx, w)
	}
	e.plugin(ctx, o)
	e.machine(ctx)
	e.daemon(ctx)
	e.fine()
	order := groups()
	slices.SortStableFunc(e.report.Checks, func(a, b Check) int { return rank(order, a.Group) - rank(order, b.Group) })
	return e.report, nil
}

func rank(order []group, name string) int {
	return slices.IndexFunc(order, func(g group) bool { return g.name == name })
}

// problems makes a check of each problem.
func (e *examination) problems(all []cluster.Problem, unclear []Check) {
	order := groups()
	for _, p := range policy.Sorted(all) {
		c := Check{Group: order[0].name, Name: p.Object, State: Problem, Reason: string(p.Reason), Got: said(p), Next: p.Next}
		for _, g := range order {
			if slices.Contains(g.reasons, p.Reason) {
				c.Group = g.name
			}
		}
		if p.Reason.IsAdvice() {
			c.State = Advice
		}
		e.add(c)
	}
	for _, c := range unclear {
		e.add(c)
	}
}

// fine adds a check for each group in which nothing is wrong or unclear.
func (e *examination) fine() {
	for _, g := range groups() {
		if !slices.ContainsFunc(e.report.Checks, func(c Check) bool { return c.Group == g.name && (c.State == Problem || c.State == Unclear) }) {
			e.add(Check{Group: g.name, Name: g.right, State: OK})
		}
	}
}

func said(p cluster.Problem) string {
	if p.Want == "" {
		return p.Got
	}
	return fmt.Sprintf("want %s, got %s", p.Want, p.Got)
}

// silenceAfter is when a neighbour has had time for three answers, a second each, on a busy machine.
const silenceAfter = 6 * time.Second

// askMost bounds the neighbours that are asked: each that does not answer takes one of the 1024 entries of the kernel's
// neighbour table (net.ipv4.neigh.default.gc_thresh3).
const askMost = 256

// tunnel returns the VXLAN of a link of the overlay; nil for another link.
func tunnel(plan policy.Plan, link string) *routes.VXLAN {
	for _, l := range plan.Routes.Links {
		if l.Name == link {
			return l.VXLAN
		}
	}
	return nil
}

// neighbours asks the gateways and the machines of this LAN until all have answered, or have had the time.
func (e *examination) neighbours(ctx context.Context, w *policy.World, plan policy.Plan) {
	asked := slices.Concat(plan.Gateways, plan.Neighbours)
	for _, r := range plan.Routes.Routes {
		if n := (routes.Neighbour{Link: r.Link, IP: r.Via}); r.Via.IsValid() && tunnel(plan, r.Link) == nil && !slices.Contains(asked, n) && len(asked) < askMost {
			asked = append(asked, n)
		}
	}
	heard, err := hear(ctx, e.k, asked)
	if err != nil {
		e.add(Check{Group: "neighbours", Name: "ask the neighbours", State: Unclear, Got: err.Error()})
		return
	}
	w.Dead = map[routes.Neighbour]bool{}
	answers := 0
	for _, n := range asked {
		switch h := heard[n]; {
		case h == routes.Answers:
			answers++
		case slices.Contains(plan.Gateways, n):
			w.Dead[n] = h == routes.Silent
		case h == routes.Silent:
			e.add(Check{Group: "neighbours", Name: n.IP.String(), State: Problem, Got: "no answer to ARP or neighbour discovery on " + n.Link,
				Next: "check the machine, its cable, and the VLAN of its port"})
		}
	}
	if answers > 0 {
		e.add(Check{Group: "neighbours", Name: fmt.Sprintf("%d of %d neighbours on the LAN answer", answers, len(asked)), State: OK})
	}
}

// hear asks the neighbours, and waits until all have answered or have had the time. The first result of Listen is that
// of an earlier question.
func hear(ctx context.Context, k *routes.Kernel, asked []routes.Neighbour) (map[routes.Neighbour]routes.Hearing, error) {
	heard := map[routes.Neighbour]routes.Hearing{}
	left := slices.Clone(asked)
	_, err := k.Listen(ctx, left)
	for end := time.Now().Add(silenceAfter); len(left) > 0 && err == nil; {
		late := time.Now().After(end) // on a busy machine, look once more
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		var now map[routes.Neighbour]routes.Heard
		now, err = k.Listen(ctx, left)
		left = slices.DeleteFunc(left, func(n routes.Neighbour) bool {
			heard[n] = now[n].Hearing
			return heard[n] != routes.Unsure
		})
		if late {
			break
		}
	}
	return heard, err
}

// firewalls judges the packets that must pass. It returns what cannot be told.
func (e *examination) firewalls(ctx context.Context, w *policy.World, plan policy.Plan) (unclear []Check) {
	all, err := e.k.Judge(ctx, plan.Guarded...)
	if err != nil {
		return []Check{{Group: "firewall", Name: "read the firewalls", State: Unclear, Got: err.Error(), Next: "run it as root"}}
	}
	w.Barriers = policy.Barriers(plan.Guarded, all)
	for i, findings := range all {
		for _, f := range findings {
			if f.Packets, f.Counted = 0, false; f.Outcome != routes.Unclear {
				continue
			}
			c := Check{Group: "firewall", Name: f.Hook.String(), State: Unclear, Got: fmt.Sprintf("%v, for packets such as %v to %v", f, plan.Guarded[i].Src, plan.Guarded[i].Dst),
				Next: "look at the chain: " + f.Place.Show()}
			if !slices.ContainsFunc(unclear, func(o Check) bool { return strings.HasPrefix(o.Got, f.String()) }) {
				unclear = append(unclear, c)
			}
		}
	}
	return unclear
}

// forwarding reads the settings that the daemon keeps: without a daemon, nobody does.
func (e *examination) forwarding(plan policy.Plan) {
	for _, s := range plan.Routes.Sysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", s.Key))
		if got := strings.TrimSpace(string(value)); err == nil && got != s.Value {
			e.add(Check{Group: "links", Name: strings.ReplaceAll(s.Key, "/", "."), State: Problem, Got: fmt.Sprintf("want %s, got %s", s.Value, got),
				Next: "start edgewayd, which sets it; and take the other value out of /etc/sysctl.d"})
		}
	}
}

// rivals finds links of other programs that are down, and that keep the kernel from making a link of the tunnel all
// the same (drivers/net/vxlan/vxlan_core.c: vxlan_vni_in_use). Beside a link that is up, the policy plans no tunnel.
func (e *examination) rivals(w policy.World, plan policy.Plan) {
	for _, want := range plan.Routes.Links {
		if want.VXLAN == nil {
			continue
		}
		for _, l := range w.Host.Links {
			if l.VXLAN != nil && l.VXLAN.VNI == want.VXLAN.VNI && l.VXLAN.Port == want.VXLAN.Port && l.VXLAN.Local.Is6() == want.VXLAN.Local.Is6() {
				e.add(Check{Group: "links", Name: "link " + l.Name, State: Problem, Got: fmt.Sprintf("it has VNI %d and UDP port %d, which %s needs", l.VXLAN.VNI, l.VXLAN.Port, want.Name),
					Next: "stop the program that made it and run: ip link del " + l.Name + "; or give the NetworkPool another vxlan.vni"})
			}
		}
	}
}

// claimed asks the LAN who else has this node's addresses.
func (e *examination) claimed(ctx context.Context, w policy.World) {
	self, _ := w.Cluster.Node(w.Self)
	for _, a := range w.Host.Addrs {
		ip := a.Prefix.Addr()
		if !slices.Contains(self.Addresses, ip) || !ip.Is4() || a.Link == "lo" {
			continue
		}
		name := "address " + ip.String()
		switch mac, err := e.k.Claimed(ctx, a.Link, ip); {
		case err != nil:
			e.add(Check{Group: "neighbours", Name: name, State: Unclear, Got: err.Error(), Next: "run it as root, with CAP_NET_RAW"})
		case mac != "":
			e.add(Check{Group: "neighbours", Name: name, State: Problem, Got: "the machine with MAC " + mac + " has it too",
				Next: "find the MAC in the switch's table (show mac address-table), and give that machine another address"})
		default:
			e.add(Check{Group: "neighbours", Name: "nobody else on " + a.Link + " has " + ip.String(), State: OK})
		}
	}
}

// plugin compares the plugin's version with this program's.
func (e *examination) plugin(ctx context.Context, o Options) {
	path := filepath.Join(e.config.CNI.BinDir, "edgeway")
	if _, err := os.Stat(path); err != nil || o.Plugin == nil {
		return // pods.Examine says so
	}
	switch version, err := o.Plugin(ctx, path); {
	case err != nil:
		e.add(Check{Group: "pods", Name: path, State: Problem, Got: err.Error(), Next: "install it again: edgewayd install"})
	case version != o.Version:
		e.add(Check{Group: "pods", Name: path, State: Problem, Got: fmt.Sprintf("version %s, and edgewayd is %s", version, o.Version), Next: "install both from one package, or run edgewayd install"})
	default:
		e.add(Check{Group: "pods", Name: path + " has version " + version, State: OK})
	}
}

// machine looks at the capabilities, the kernel and the clock.
func (e *examination) machine(ctx context.Context) {
	for _, c := range []struct { // the daemon needs them (deploy/systemd/edgewayd.service)
		name string
		n    uint
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}} {
		if !capable(c.n) {
			e.add(Check{Group: "machine", Name: c.name, State: Problem, Got: "this process lacks it", Next: "run it as root; a container needs it in securityContext.capabilities"})
		}
	}
	features, err := routes.Features(ctx)
	if err != nil {
		e.add(Check{Group: "machine", Name: "kernel", State: Unclear, Got: err.Error(), Next: "run it as root"})
	}
	missing, needed := 0, 0
	for _, f := range features {
		if f.Beside {
			continue
		}
		needed++
		if f.Err != nil {
			missing++
			e.add(Check{Group: "machine", Name: "kernel: " + f.Name, State: Problem, Got: f.Err.Error(), Next: "load the module, or take a kernel that has it"})
		}
	}
	if err == nil && missing == 0 {
		e.add(Check{Group: "machine", Name: fmt.Sprintf("the kernel has all %d features that edgeway needs", needed), State: OK})
	}
	listeners, err := routes.Listeners()
	if err != nil {
		e.add(Check{Group: "machine", Name: "kernel: queues", State: Unclear, Got: err.Error(), Next: "run it as root"})
	}
	e.queue(features, listeners)
	const unsynchronised = 0x40 // STA_UNSYNC (linux/timex.h)
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err == nil && t.Status&unsynchronised != 0 {
		e.add(Check{Group: "machine", Name: "clock", State: Advice, Got: "no time service keeps it right", Next: "run a time service (NTP): with two speakers, the newer path wins at the switch"})
	}
}

// queue looks whether the kernel can queue packets for kube-network-policies. That program is ready and silent without it.
func (e *examination) queue(features []routes.Feature, listeners []routes.Listener) {
	i := slices.IndexFunc(features, func(f routes.Feature) bool { return f.Name == routes.QueueFeature })
	switch {
	case i < 0:
	case features[i].Err == nil:
		e.add(Check{Group: "machine", Name: "the kernel has nft_queue, for kube-network-policies", State: OK})
	case len(listeners) == 0:
		e.add(Check{Group: "machine", Name: "the kernel lacks nft_queue: only kube-network-policies would need it, and it does not run", State: OK})
	default:
		e.add(Check{Group: "machine", Name: "kernel: " + routes.QueueFeature, State: Problem,
			Got:  fmt.Sprintf("%v, and a program waits for packets in queue %d: kube-network-policies enforces no NetworkPolicy", features[i].Err, listeners[0].Queue),
			Next: "modprobe nft_queue, or take a kernel with CONFIG_NFT_QUEUE; then restart kube-network-policies"})
	}
}

// capable reports whether this process has the capability.
func capable(n uint) bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, rest, _ := bytes.Cut(text, []byte("\nCapEff:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	have, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
	return err != nil || have&(1<<n) != 0
}

// daemon asks whether a daemon answers; without one, whether its ports are free.
func (e *examination) daemon(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := api.Call(ask, e.config.Socket, api.Request{Op: "ping"}, nil)
	switch {
	case err == nil:
		e.add(Check{Group: "machine", Name: "a daemon answers on " + e.config.Socket, State: OK})
	case errors.Is(err, api.ErrNoDaemon):
		e.add(Check{Group: "machine", Name: "daemon", State: Problem, Got: "no daemon answers on " + e.config.Socket, Next: "systemctl start edgewayd; pods start and stop without it, and routes stay as they are"})
		if e.config.Metrics == "" {
			return
		}
		if l, err := net.Listen("tcp", e.config.Metrics); err != nil {
			e.add(Check{Group: "machine", Name: "port of the metrics", State: Problem, Got: err.Error(), Next: "stop the program that has it, or set metrics"})
		} else {
			_ = l.Close()
		}
	case errors.Is(err, fs.ErrPermission):
		e.add(Check{Group: "machine", Name: "daemon", State: Unclear, Got: err.Error(), Next: "run it as root"})
	default:
		e.add(Check{Group: "machine", Name: "daemon", State: Problem, Got: err.Error(), Next: "look at its log; systemctl restart edgewayd loses no packet"})
	}
}
