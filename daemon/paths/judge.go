package paths

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Verdict says what the last questions of one kind to one node say.
type Verdict int

// Answers: the last question was answered. Silent: none of the last three was (see after). OtherKey: none of them was,
// and the other end, or somebody on the way, says that its key is another. Unsure: something else, and nothing follows
// from it.
const (
	Unsure Verdict = iota
	Answers
	Silent
	OtherKey
)

func (v Verdict) String() string { return [...]string{"unsure", "answers", "silent", "other key"}[v] }

// Finding is what the questions to one node in one family say, with what this node knows about the way there.
type Finding struct {
	Node   Node
	Family string     // "IPv4" or "IPv6"
	Addr   netip.Addr // of its canary; invalid: not known
	From   bool       // this node's canary is at an uplink
	To     bool       // the other canary is at an uplink
	Canary Verdict    // of small questions to its canary
	Full   Verdict    // of full-size questions to its canary; they are asked while the small ones are answered
	Host   Verdict    // of small questions to the node itself
	Size   int        // of the full-size questions, in bytes with all headers
	RTT    time.Duration
	Sent   int // questions to its canary, since it is asked
	Lost   int // those of them that were not answered
	// Said is the last answer of the node or its canary. Its Heard and HeardYou count when Host is Answers.
	Said Answer
	// Translated is another source address than the canary's that the other canary saw lately.
	Translated netip.Addr
	Way        Way
}

// Self is what this node knows of itself.
type Self struct {
	Name  string
	Group string
	Terms Terms
	CIDRs []netip.Prefix
	// Uplink are the addresses of its canary at uplinks, with the link: "10.0.0.33 on eth1".
	Uplink []string
	// Known are the reasons of this node's problems that its own tables and links show. What follows from them is not
	// named again.
	Known map[cluster.Reason]bool
}

// Judge returns the problems that the findings prove, each with one place and one next step. What follows from a cause
// is folded into it. A node that is away as a whole, a node without a canary, and a path that is not known well enough
// are no reason for a problem.
func Judge(self Self, found []Finding) []cluster.Problem {
	j := &judge{self: self, all: found}
	var cut, narrow, keyed []Finding
	for _, f := range found {
		if f.Canary == OtherKey || f.Host == OtherKey {
			keyed = append(keyed, f)
			continue
		}
		if f.Host == Answers && f.Said.Name != "" && f.Said.Name != f.Node.Name {
			j.another(f)
			continue
		}
		if f.Translated.IsValid() {
			j.translated(f)
		}
		switch {
		case f.Canary == Silent:
			cut = append(cut, f)
		case f.Canary == Answers && f.Full == Silent:
			narrow = append(narrow, f)
		}
	}
	if self.Known[cluster.SilentGateway] {
		cut = slices.DeleteFunc(cut, func(f Finding) bool { return !f.near() })
	}
	// A node that does not answer either is away, or its daemon is, or an earlier version runs there.
	cut = slices.DeleteFunc(cut, func(f Finding) bool { return f.Host != Answers || !f.Said.HasCanary() })
	j.keys(keyed)
	cut = j.terms(cut)
	cut = j.here(cut)
	cut = j.lans(cut)
	j.there(cut)
	j.narrow(narrow)
	return j.out
}

type judge struct {
	self Self
	all  []Finding
	out  []cluster.Problem
}

func (j *judge) problem(object string, reason cluster.Reason, want, got, next string) {
	p := cluster.Problem{Object: object, Reason: reason, Want: want, Got: got, Next: next}
	if !slices.Contains(j.out, p) {
		j.out = append(j.out, p)
	}
}

// names lists the nodes of findings: "Node-3, Node-4 and 7 more".
func names(found []Finding) string {
	set := map[string]bool{}
	for _, f := range found {
		set[f.Node.Name] = true
	}
	all := slices.Sorted(maps.Keys(set))
	const few = 3
	if len(all) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:few], ", "), len(all)-few)
	}
	return strings.Join(all, ", ")
}

// keys names the nodes whose key is another, or this node where all are.
func (j *judge) keys(differ []Finding) {
	const want = "the same key for questions between nodes on all nodes"
	const next = "give all nodes the same Secret: paths.secret in edgewayd.yaml; whether packets arrive is not known until then"
	agrees := slices.ContainsFunc(j.all, func(f Finding) bool { return f.Canary == Answers || f.Host == Answers })
	if len(differ) > 0 && differ[0].Node.Name != differ[len(differ)-1].Node.Name && !agrees { // findings are sorted by node
		j.problem("Node/"+j.self.Name, cluster.PathsKeyDiffers, want, names(differ)+" have another key, or none", next)
		return
	}
	for _, f := range differ {
		j.problem("Node/"+f.Node.Name, cluster.PathsKeyDiffers, want, "it has another key, or none; or this node has none", next)
	}
}

// terms names the nodes that take the terms to be others than this node does, or this node where all others do.
func (j *judge) terms(cut []Finding) (rest []Finding) {
	differ := map[string][]Finding{} // by what they say
	for _, f := range cut {
		if what := f.otherTerms(); what != "" && !f.From && !f.To { // at an uplink, neither mode nor tunnel matters
			differ[what] = append(differ[what], f)
		} else {
			rest = append(rest, f)
		}
	}
	agrees := slices.ContainsFunc(j.all, func(f Finding) bool { return f.Host == Answers && f.otherTerms() == "" })
	const want = "the same mode, VNI and port on all nodes"
	const next = "set them in a NetworkPool, or alike in edgewayd.yaml of all nodes; the pods do not reach each other until then"
	for _, what := range slices.Sorted(maps.Keys(differ)) {
		all := differ[what]
		if all[len(all)-1].Node.Name != all[0].Node.Name && !agrees { // findings are sorted by node
			j.problem("Node/"+j.self.Name, cluster.TermsDiffer, want, names(all)+" say: "+what, next)
			continue
		}
		for _, f := range all {
			j.problem("Node/"+f.Node.Name, cluster.TermsDiffer, want, "it says: "+what, next)
		}
	}
	return rest
}

// otherTerms says in which terms the node differs from what this node takes them to be. VNI and port matter to a tunnel.
func (f Finding) otherTerms() string {
	ours, theirs := f.Node.Terms, f.Said.Terms
	var what []string
	if ours.Mode != theirs.Mode {
		what = append(what, fmt.Sprintf("mode %s, where this node takes it to be %s", theirs.Mode, ours.Mode))
	}
	if f.Way.Tunnel && ours.VNI != theirs.VNI {
		what = append(what, fmt.Sprintf("VNI %d, where this node sends to VNI %d", theirs.VNI, ours.VNI))
	}
	if f.Way.Tunnel && ours.Port != theirs.Port {
		what = append(what, fmt.Sprintf("UDP port %d, where this node sends to port %d", theirs.Port, ours.Port))
	}
	return strings.Join(what, "; ")
}

// here finds causes on this node: then all nodes are cut off in the same way, in both families or in one.
func (j *judge) here(cut []Finding) (rest []Finding) {
	if rest = j.hereOf(j.all, cut); len(rest) < len(cut) {
		return rest
	}
	rest = nil
	for f := range families {
		other := func(o Finding) bool { return o.Family != f.String() }
		rest = append(rest, j.hereOf(slices.DeleteFunc(slices.Clone(j.all), other), slices.DeleteFunc(slices.Clone(cut), other))...)
	}
	return rest
}

// hereOf is here for a part of the findings.
func (j *judge) hereOf(found, cut []Finding) []Finding {
	if len(cut) == 0 {
		return nil
	}
	whole := func(f Finding) bool { return f.Host == Answers && f.Said.HasCanary() && f.Canary != Unsure }
	all := slices.DeleteFunc(slices.Clone(found), func(f Finding) bool { return !whole(f) })
	// Several nodes are cut off in the same way, and they are in different LANs or beside this node: the place is here.
	nodes, groups, near, tunnels, heard := map[string]bool{}, map[string]bool{}, false, 0, 0
	from, to := true, true // all of them from, or to, an uplink
	for _, f := range all {
		switch {
		case f.Said.Cause != "":
			continue // that node is cut off from all
		case f.Canary != Silent:
			return cut
		case f.Way.Tunnel:
			tunnels++
		}
		if f.Said.HeardYou {
			heard++
		}
		nodes[f.Node.Name], groups[f.Node.Group], near = true, true, near || f.near()
		from, to = from && f.From, to && f.To
	}
	count := len(slices.DeleteFunc(all, func(f Finding) bool { return f.Said.Cause != "" }))
	got := fmt.Sprintf("%d nodes answer at their own addresses, and none of them hears a pod of this node", len(nodes))
	switch {
	case heard > 0 && len(nodes) == 1:
		got = "one node hears this node's pods, and its answers do not come back"
	case heard > 0:
		got = fmt.Sprintf("%d nodes hear this node's pods, and their answers do not come back", len(nodes))
	case len(nodes) == 1:
		got = "one node answers at its own address, and hears no pod of this node"
	}
	switch {
	case j.self.Known[cluster.ForwardDropped] || j.self.Known[cluster.HostDropped] && tunnels == count:
	case count == 0 || heard > 0 && heard < count || len(nodes) < 2 && (!from || to):
		return cut
	case from:
		j.problem("Node/"+j.self.Name, cluster.UplinkFiltered, "answers to the canary at "+strings.Join(j.self.Uplink, ", "), got, nextOfUplink)
	case tunnels == count:
		j.problem("Node/"+j.self.Name, cluster.TunnelFiltered, fmt.Sprintf("packets to and from UDP port %d", j.self.Terms.Port), got,
			fmt.Sprintf("open UDP port %d in this node's firewall, and between the nodes", j.self.Terms.Port))
	case heard == 0 && (near || len(groups) > 1) || near:
		j.problem("Node/"+j.self.Name, cluster.ForwardDropped, "a firewall that lets packets of pods pass", got,
			"look for rules that drop forwarded packets: nft list ruleset; iptables -S FORWARD; then allow the pod CIDRs there")
	default:
		return cut
	}
	return slices.DeleteFunc(cut, func(f Finding) bool { return f.Said.Cause == "" })
}

// nextOfUplink is the next step where the packets of a node's uplink are lost.
const nextOfUplink = "check that the switch port of the uplink, or the cloud, lets packets from and to the addresses of pods pass: source check, port security, anti-spoofing, " +
	"the list of assigned addresses; then the uplink's gateway, and the node's firewall for forwarded packets"

// near reports that the packets go to the node itself, without a router or a tunnel.
func (f Finding) near() bool { return !f.Way.Tunnel && slices.Contains(f.Node.Hosts, f.Way.Via) }

// cidr is the pod CIDR that the finding is about.
func (f Finding) cidr() string {
	for _, c := range f.Node.CIDRs {
		if c.Contains(f.Addr) {
			return c.String()
		}
	}
	return f.Addr.String()
}

// lans names the other groups of nodes of which no pod is reached, each in one line.
func (j *judge) lans(cut []Finding) []Finding {
	type state struct {
		nodes          map[string]bool
		reached, heard bool
		lost           []Finding
	}
	groups := map[string]*state{}
	for _, f := range j.all {
		if f.Host != Answers || !f.Said.HasCanary() || f.near() || f.Node.Group == j.self.Group {
			continue
		}
		g := groups[f.Node.Group]
		if g == nil {
			g = &state{nodes: map[string]bool{}}
			groups[f.Node.Group] = g
		}
		g.nodes[f.Node.Name] = true
		g.reached = g.reached || f.Canary != Silent || f.Said.Cause != ""
		g.heard = g.heard || f.Said.HeardYou
		g.lost = append(g.lost, f)
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		if len(g.nodes) < 2 || g.reached || g.heard || !slices.ContainsFunc(cut, func(f Finding) bool { return f.Node.Group == name }) {
			continue
		}
		cut = slices.DeleteFunc(cut, func(f Finding) bool { return f.Node.Group == name })
		got := fmt.Sprintf("none from %d nodes, which answer at their own addresses", len(g.nodes))
		if f := g.lost[0]; f.To {
			j.problem("LAN of "+names(g.lost), cluster.UplinkFiltered, "answers of their canaries at their uplinks", got, nextOfUplink)
		} else if f.Way.Tunnel {
			j.problem("LAN of "+names(g.lost), cluster.TunnelFiltered, "answers of their canaries through the tunnel", got, fmt.Sprintf("open UDP port %d between the two LANs, and in the firewalls of their nodes", f.Node.Terms.Port))
		} else {
			j.problem("LAN of "+names(g.lost), cluster.PodCIDRNotRouted, "answers of their canaries", got, "check that the switches of the two LANs exchange the pod CIDRs: edgewayd peers on a speaker of each LAN shows what is advertised")
		}
	}
	return cut
}

// there finds causes at the other node, or between the two.
func (j *judge) there(cut []Finding) {
	var back []Finding // the other node hears us, and its answers do not come back
	routed := map[string]bool{}
	for _, f := range cut {
		object := "Node/" + f.Node.Name
		switch {
		case f.To && (f.Said.Cause == "" || f.Said.Cause == string(cluster.UplinkFiltered)):
			got := "no answer, while the node answers at its own address"
			if f.Said.HeardYou {
				got = "it hears this node's pods, and its answers do not arrive"
			}
			j.problem(object, cluster.UplinkFiltered, "answers of its canary at its uplink, "+f.Addr.String(), got, nextOfUplink)
		case f.Said.Cause != "":
			j.problem(object, cluster.PathBlocked, "answers of its canary", "it says of itself: "+f.Said.Cause, "edgewayd status on that node")
		case f.From && f.Said.HeardYou:
			j.problem(object, cluster.PathBlocked, "answers of its canary", "it hears this node's pods, and its answers do not arrive", "check that node's route to "+strings.Join(j.self.Uplink, ", ")+" of this node, and the firewalls of both nodes")
		case f.Said.HeardYou && !f.near() && !f.Way.Tunnel:
			back = append(back, f)
		case f.Way.Tunnel:
			j.problem(object, cluster.TunnelFiltered, fmt.Sprintf("answers of its canary through the tunnel, UDP port %d", f.Node.Terms.Port), "answers at its own address only",
				fmt.Sprintf("open UDP port %d in the firewalls of both nodes, and between them", f.Node.Terms.Port))
		case f.near() && f.Said.HeardYou:
			j.problem(object, cluster.PathBlocked, "answers of its canary", "it hears this node's pods, and its answers do not arrive", "check the firewalls of both nodes, and that node's route to this node's pod CIDR")
		case f.near():
			j.problem(object, cluster.PathBlocked, "answers of its canary", "answers at its own address only: packets for its pods are dropped there", "check that node's firewall for forwarded packets: nft list ruleset; iptables -S FORWARD")
		case !routed[f.Node.Name]: // one line for both families
			routed[f.Node.Name] = true
			got := "no answer, while the node answers at its own address"
			next := "check the switch's route to " + f.cidr() + ": a filter, or another route, may keep it out; edgewayd status on a speaker of that LAN shows what is advertised"
			if f.Said.Heard > 0 {
				got += fmt.Sprintf(" and %d other nodes reach its pods", f.Said.Heard)
			} else {
				next += "; or that node's firewall drops forwarded packets"
			}
			j.problem(object, cluster.PodCIDRNotRouted, "answers of its canary, "+f.Addr.String(), got, next)
		}
	}
	if len(back) > 0 {
		var ours []string
		for _, c := range j.self.CIDRs {
			if slices.ContainsFunc(back, func(f Finding) bool { return f.Addr.Is4() == c.Addr().Is4() }) {
				ours = append(ours, c.String())
			}
		}
		j.problem("Node/"+j.self.Name, cluster.PodCIDRNotRouted, "answers from "+names(back), "they hear this node's pods, and their answers do not come back",
			"check the switch's route to "+strings.Join(ours, ", ")+": a filter, or another route, may keep it out")
	}
}

// narrow names the place where full-size packets are lost.
func (j *judge) narrow(narrow []Finding) {
	wide := map[string]bool{} // groups with a node that full-size packets reach
	lost := map[string][]Finding{}
	anyWide := false
	for _, f := range j.all {
		if f.Full == Answers {
			wide[f.Node.Group], anyWide = true, true
		}
	}
	for _, f := range narrow {
		lost[f.Node.Group] = append(lost[f.Node.Group], f)
	}
	all := slices.Concat(slices.Collect(maps.Values(lost))...)
	const next = "let the switch carry the MTU of the nodes; or set a smaller mtu in the NetworkPool or cni.mtu, and recreate the pods"
	if len(all) == 0 {
		return
	}
	nodes := map[string]bool{}
	size, uplinks := 0, true // uplinks: all of them are at uplinks, and this node is not
	for _, f := range all {
		nodes[f.Node.Name], size, uplinks = true, max(size, f.Size), uplinks && f.To && !f.From
	}
	want := fmt.Sprintf("packets of %d bytes", size)
	if len(nodes) > 1 && !anyWide && !(uplinks && len(lost) == 1) {
		j.problem("Node/"+j.self.Name, cluster.MTUHole, want+" between this node and others", "small packets only, to "+names(all), "check the MTU of this node's switch port; "+next)
		return
	}
	for _, g := range slices.SortedFunc(maps.Keys(lost), cmp.Compare) {
		if !wide[g] && len(lost[g]) > 1 && g != j.self.Group {
			j.problem("LAN of "+names(lost[g]), cluster.MTUHole, want, "small packets only", "check the MTU between the two LANs; "+next)
			continue
		}
		for _, f := range lost[g] {
			j.problem("Node/"+f.Node.Name, cluster.MTUHole, want+" between this node and that node", "small packets only", "check the MTU of that node's switch port; "+next)
		}
	}
}

// another names a node at whose address another node answers.
func (j *judge) another(f Finding) {
	if j.self.Known[cluster.SharedAddress] {
		return
	}
	j.problem("Node/"+f.Node.Name, cluster.SharedAddress, "an InternalIP of its own", fmt.Sprintf("Node %s answers at %v", f.Said.Name, f.Node.Hosts), "correct the Node's InternalIP, or the address of one of the two machines")
}

// translated names a source NAT that is not edgeway's: edgeway never translates packets between pods. A translation on
// this node is known already.
func (j *judge) translated(f Finding) {
	if j.self.Known[cluster.ForeignNAT] {
		return
	}
	j.problem("Node/"+j.self.Name, cluster.ForeignNAT, "packets between pods with the pods' own addresses", names([]Finding{f})+" sees "+f.Translated.String()+" as their source",
		"no rule of this node does that: look for the machine on the way that has this address")
}
