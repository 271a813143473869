package policy

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

var update = flag.Bool("update", false, "write what Decide says into the stories instead of comparing")

// TestDesired reads each story in testdata/desired: a configuration, a machine and manifests in;
// routes, BGP tables and problems out, as an operator knows them.
func TestDesired(t *testing.T) {
	files, err := filepath.Glob("../../testdata/desired/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("stories: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range a.Files {
				node, ok := strings.CutPrefix(f.Name, "want ")
				if !ok {
					continue
				}
				got := tell(t, worldOf(t, a, node))
				if *update {
					a.Files[i].Data = []byte(got)
				} else if diff := cmp.Diff(got, string(f.Data)); diff != "" {
					t.Errorf("%s (-got +want):\n%s", node, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// worldOf makes the World that the node sees: the story's manifests, its config.yaml, and the
// machine in the file "host NODE".
func worldOf(t *testing.T, a *txtar.Archive, node string) World {
	t.Helper()
	dir := t.TempDir()
	w, left := World{Self: node, Config: config.Defaults()}, ""
	for _, f := range a.Files {
		var err error
		switch {
		case f.Name == "config.yaml":
			w.Config, err = config.Parse(f.Data)
		case f.Name == "host "+node:
			left = readHost(t, string(f.Data), &w)
		case strings.HasSuffix(f.Name, ".yaml"):
			err = os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644)
		}
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	var err error
	if w.Cluster, err = cluster.Manifests(dir).World(t.Context(), cluster.World{}); err != nil {
		t.Fatal(err)
	}
	w.Cluster.Left = left
	if len(w.Cluster.Problems) > 0 {
		t.Fatalf("manifests: %v", w.Cluster.Problems)
	}
	return w
}

// readHost parses lines such as "addr 10.0.10.11/24 dev eth0", "link eth0 mtu 1500" or "link eth0 down", "vxlan
// flannel.1 id 1 dstport 8472 local 10.0.10.11", "route
// 0.0.0.0/0 via 10.0.10.1 dev eth0", "blackhole 10.0.0.0/8", "rule 100 10.10.4.0 via 10.0.10.9 dev eth1" or "rule
// 100 10.10.4.0 prohibit", and "unforwarded eth0". A neighbour that answered is "mac 10.0.10.12 02:00:00:00:00:12",
// and one that answers no more is "silent 10.0.10.12". A path that a switch announces is "learned 192.168.5.0/24
// via 10.0.10.1 from 10.0.10.1", with "kept" after it when that session is down.
func readHost(t *testing.T, text string, w *World) (left string) {
	t.Helper()
	w.Silent, w.MACs = map[netip.Addr]bool{}, map[netip.Addr]string{}
	h := &w.Host
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 4 && f[0] == "addr":
			h.Addrs = append(h.Addrs, routes.Addr{Link: f[3], Prefix: netip.MustParsePrefix(f[1])})
		case len(f) == 8 && f[0] == "vxlan":
			l := routes.Link{Name: f[1], Kind: "vxlan", MTU: 1450, Up: true, VXLAN: &routes.VXLAN{Local: netip.MustParseAddr(f[7])}}
			if _, err := fmt.Sscan(f[3]+" "+f[5], &l.VXLAN.VNI, &l.VXLAN.Port); err != nil {
				t.Fatal(err)
			}
			h.Links = append(h.Links, l)
		case len(f) == 3 && f[0] == "link":
			h.Links = append(h.Links, routes.Link{Name: f[1], MTU: 1500})
		case len(f) == 6 && f[0] == "link":
			h.Links = append(h.Links, routes.Link{Name: f[1], MTU: 1500, MAC: f[5], Up: true})
		case len(f) >= 2 && f[0] == "granted": // "granted eth1 10.0.0.31 10.0.0.32": what the node wrote earlier, by the name of the interface
			old := uplink.Interface{Name: f[1], Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254")}
			if parent, id, vlan := strings.Cut(f[1], "."); vlan {
				old.Parent, old.ID = parent, number(t, id)
			}
			for _, a := range f[2:] {
				old.Addresses = append(old.Addresses, netip.MustParseAddr(a))
			}
			w.Held = Held{Granted: uplink.Uplinks{Interfaces: []uplink.Interface{old}}, Known: true, Pods: map[netip.Addr]string{}}
		case len(f) == 6 && f[0] == "rule": // "rule 512 to 10.0.0.31/32 lookup 254": of another program
			r := routes.ForeignRule{To: netip.MustParsePrefix(f[3]), Text: f[1] + ": from all " + strings.Join(f[2:], " ")}
			if f[2] == "from" {
				r.From, r.To, r.Text = r.To, netip.Prefix{}, f[1]+": "+strings.Join(f[2:], " ")
			}
			r.V6 = max(r.From.Addr().BitLen(), r.To.Addr().BitLen()) > 32
			if _, err := fmt.Sscan(f[1], &r.Priority); err != nil {
				t.Fatal(err)
			}
			h.Foreign = append(h.Foreign, r)
		case len(f) == 3 && f[0] == "lease":
			w.Held.Pods[netip.MustParseAddr(f[1])] = f[2]
		case len(f) == 4 && f[0] == "link":
			mtu, err := strconv.Atoi(f[3])
			if err != nil {
				t.Fatal(err)
			}
			h.Links = append(h.Links, routes.Link{Name: f[1], MTU: mtu, Up: true})
		case len(f) >= 6 && f[0] == "vlan": // "vlan eth0.100 id 100 dev eth0", made by edgeway; with "foreign" at the end not
			h.Links = append(h.Links, routes.Link{Name: f[1], Kind: "vlan", MTU: 1500, VLAN: &routes.VLAN{Parent: f[5], ID: number(t, f[3]), Foreign: len(f) == 7}})
		case len(f) == 8 && f[0] == "route" && f[6] == "metric":
			metric, err := strconv.Atoi(f[7])
			if err != nil {
				t.Fatal(err)
			}
			h.Routes = append(h.Routes, routes.Route{Dst: netip.MustParsePrefix(f[1]), Via: netip.MustParseAddr(f[3]), Link: f[5], Protocol: 12, Metric: metric})
		case len(f) == 6 && f[0] == "route":
			h.Routes = append(h.Routes, routes.Route{Dst: netip.MustParsePrefix(f[1]), Via: netip.MustParseAddr(f[3]), Link: f[5], Protocol: 4})
		case len(f) >= 6 && f[0] == "learned":
			path := bgp.Path{Prefix: netip.MustParsePrefix(f[1]), NextHop: netip.MustParseAddr(f[3])}
			w.Learned = append(w.Learned, bgp.LearnedPath{Path: path, From: netip.MustParseAddr(f[5]), Kept: len(f) == 7})
		case len(f) == 2 && (f[0] == "blackhole" || f[0] == "unreachable"):
			h.Routes = append(h.Routes, routes.Route{Dst: netip.MustParsePrefix(f[1]), Type: f[0], Protocol: 12})
		case len(f) >= 4 && f[0] == "rule":
			priority, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			way := routes.Way{Priority: priority, Rule: f[1] + ": from all lookup 7"}
			if way.Route.Type = f[3]; len(f) == 7 {
				way.Route = routes.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr(f[4]), Link: f[6], Protocol: 4, Table: 7}
			}
			if h.Ruled == nil {
				h.Ruled = map[netip.Addr]routes.Way{}
			}
			h.Ruled[netip.MustParseAddr(f[2])] = way
		case len(f) == 2 && f[0] == "unforwarded":
			h.Unforwarded = append(h.Unforwarded, f[1])
		case len(f) == 2 && f[0] == "kernel":
			h.Kernel = f[1]
		case len(f) == 2 && f[0] == "silent":
			w.Silent[netip.MustParseAddr(f[1])] = true
		case len(f) == 2 && f[0] == "announced": // "announced all": the switches have announced everything
			w.LearnedAll = true
		case len(f) == 2 && f[0] == "left": // "left BGPPeer/peer-a": this resource selected the node, and was deleted
			left = f[1]
		case len(f) == 3 && f[0] == "mac":
			w.MACs[netip.MustParseAddr(f[1])] = f[2]
		case len(f) > 0:
			t.Fatalf("host: %q", line)
		}
	}
	slices.SortFunc(w.Learned, bgp.LearnedPath.Compare)
	return left
}

func number(t *testing.T, text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// When the Secret goes, the switch is not told that the resource is gone.
func TestMissingPasswordIsToldToTheSwitch(t *testing.T) {
	w := World{Self: "n1"}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24")}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.10.11")}}}
	w.Cluster.Peerings = []cluster.Peering{{Kind: "BGPPeer", Name: "peer-a", LocalASN: 65010, Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{{
		Address: netip.MustParseAddr("10.0.10.1"), ASN: 65002, Password: &cluster.SecretKey{Name: "bgp", Key: "password"}}}}}}}
	state := Decide(w).BGP
	want := []bgp.Held{{Key: bgp.Key{Address: netip.MustParseAddr("10.0.10.1"), Port: bgp.DefaultPort, LocalASN: 65010}, Why: "BGPPeer/peer-a: the password is missing"}}
	if len(state.Sessions) != 0 || !slices.Equal(state.Held, want) {
		t.Errorf("got %v %v, want %v", state.Sessions, state.Held, want)
	}
}

// No pod gets the address of the bridge that served before.
func TestNoPodGetsAnAddressOfTheHost(t *testing.T) {
	w := World{Self: "n", Cluster: cluster.World{Nodes: []cluster.Node{{Name: "n", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24")}}}}}
	for _, a := range []string{"10.10.1.1/32", "192.0.2.1/24", "10.10.1.9/24", "10.10.1.1/32"} {
		w.Host.Addrs = append(w.Host.Addrs, routes.Addr{Link: "x", Prefix: netip.MustParsePrefix(a)})
	}
	pool := Decide(w).Pool
	want := []netip.Prefix{netip.MustParsePrefix("10.10.1.1/32"), netip.MustParsePrefix("10.10.1.9/32")}
	if diff := cmp.Diff(want, pool.Reserved, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("reserved (-want +got):\n%s", diff)
	}
}

func tell(t *testing.T, w World) string {
	t.Helper()
	plan := Decide(w)
	var b strings.Builder
	b.WriteString(plan.String())
	if len(plan.Uplinks.Interfaces) > 0 {
		fmt.Fprintf(&b, "pool %v reserved %v\n", plan.Pool.Sets, plan.Pool.Reserved)
	}
	for _, c := range plan.Confirmed {
		fmt.Fprintf(&b, "confirmed %v %s\n", c.Address, c.Token)
	}
	for _, key := range slices.Sorted(maps.Keys(plan.Annotations)) {
		fmt.Fprintf(&b, "annotation %s: %s\n", key, plan.Annotations[key])
	}
	for _, p := range Sorted(plan.Problems) {
		kind := "problem"
		if p.Reason.IsAdvice() {
			kind = "advice"
		}
		fmt.Fprintf(&b, "%s: %s\n", kind, p)
	}
	return b.String()
}

// Pods' packets fit the link that carries them, also inside the tunnel.
func TestMTUOfPods(t *testing.T) {
	w := World{Self: "a", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{testNode("a", 1), testNode("b", 2)}
	w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}}
	w.Host.Links = []routes.Link{{Name: "eth0", MTU: 9000, Up: true}}
	for _, c := range []struct {
		name string
		mode cluster.Mode
		set  int
		want int
	}{
		{"underlay", cluster.Underlay, 0, 9000},
		{"VXLAN over IPv4", cluster.Overlay, 0, 8950},
		{"set by the operator", cluster.Overlay, 1400, 1400},
	} {
		w.Config.Mode, w.Config.CNI.MTU = c.mode, c.set
		if got := Decide(w).MTU; got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// The pods' MTU was that of the first link in order, or that of the loopback.
func TestMTUComesFromTheLinkThatCarriesThePodsPackets(t *testing.T) {
	addr := func(link, prefix string) routes.Addr {
		return routes.Addr{Link: link, Prefix: netip.MustParsePrefix(prefix)}
	}
	for _, c := range []struct {
		name  string
		addrs []routes.Addr
		want  int
	}{
		{"no default route", []routes.Addr{addr("eth0", "192.0.2.1/24")}, 1400},
		{"two links, one for each family", []routes.Addr{addr("vpn0", "fd00::1/64"), addr("eth0", "192.0.2.1/24")}, 1300},
		{"address on the loopback", []routes.Addr{addr("lo", "192.0.2.1/32"), addr("eth0", "198.51.100.1/24")}, 1400},
		{"address lost", []routes.Addr{addr("eth0", "198.51.100.1/24")}, 1400},
		{"address lost, two links", []routes.Addr{addr("eth0", "198.51.100.1/24"), addr("vpn0", "203.0.113.1/24")}, 1500},
		{"nothing known", nil, 1500},
	} {
		w := World{Self: "a", Config: config.Defaults()}
		w.Cluster.Nodes = []cluster.Node{testNode("a", 1)}
		w.Cluster.Nodes[0].Addresses = append(w.Cluster.Nodes[0].Addresses, netip.MustParseAddr("fd00::1"))
		w.Host.Links = []routes.Link{{Name: "lo", MTU: 65536, Up: true}, {Name: "eth0", MTU: 1400, Up: true}, {Name: "vpn0", MTU: 1300, Up: true}}
		w.Host.Addrs = c.addrs
		w.Host.Routes = []routes.Route{{Dst: netip.MustParsePrefix("0.0.0.0/1"), Link: "vpn0"}, {Dst: netip.MustParsePrefix("128.0.0.0/1"), Link: "vpn0"}}
		if got := Decide(w).MTU; got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// The Node's address was away for a moment while a virtual address with the same mask was on the link: the
// session ended, because its source address changed.
func TestAddressAwayForAMomentKeepsItsSession(t *testing.T) {
	w := World{Self: "a", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{testNode("a", 1)}
	w.Cluster.Peerings = []cluster.Peering{{Kind: "BGPPeer", Name: "p", LocalASN: 65010, Speakers: []cluster.Speaker{{Node: "a",
		Peers: []cluster.Peer{{Address: netip.MustParseAddr("192.0.2.254"), ASN: 65002}}}}}}
	for _, addr := range []string{"192.0.2.1/24", "192.0.2.250/24"} {
		w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix(addr)}}
		if got := Decide(w).BGP.Sessions; len(got) != 1 || got[0].Peer.LocalAddress != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("with %s on the link: %v", addr, got)
		}
	}
}

// Only the LAN's one session can take a path that comes back for its own.
func TestSoleSession(t *testing.T) {
	to := func(addrs ...string) (out []cluster.Peer) {
		for _, a := range addrs {
			out = append(out, cluster.Peer{Address: netip.MustParseAddr(a), ASN: 65002})
		}
		return out
	}
	a := cluster.Peering{Kind: "BGPPeer", Name: "p", LocalASN: 65010, Speakers: []cluster.Speaker{{Node: "a", Peers: to("192.0.2.254")}}}
	twice, second, other := a, a, a
	twice.Speakers = []cluster.Speaker{{Node: "a", Peers: to("192.0.2.254", "192.0.2.253")}}
	second.Name, second.Speakers = "q", []cluster.Speaker{{Node: "b", Peers: to("192.0.2.254")}}
	other.Name, other.LocalASN, other.Speakers = "other LAN", 65020, second.Speakers
	for _, c := range []struct {
		name string
		all  []cluster.Peering
		want bool
	}{
		{"one session", []cluster.Peering{a}, true},
		{"two switches", []cluster.Peering{twice}, false},
		{"two speakers", []cluster.Peering{a, second}, false},
		{"another LAN", []cluster.Peering{a, other}, true},
	} {
		w := World{Self: "a", Config: config.Defaults()}
		w.Cluster.Nodes = []cluster.Node{testNode("a", 1)}
		w.Cluster.Peerings = c.all
		w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}}
		for _, s := range Decide(w).BGP.Sessions {
			if s.Sole != c.want {
				t.Errorf("%s: %v to %v", c.name, s.Sole, s.Peer.Address)
			}
		}
	}
}

// The check of source addresses waits for no cluster state: pods run on a node that was deleted from it.
func TestSourceCheckOfAnUnknownNode(t *testing.T) {
	w := World{Self: "node-1", Config: config.Defaults()}
	if Decide(w).Routes.SourceCheck == nil {
		t.Error("no check by default")
	}
	w.Config.CNI.SourceCheck = false
	if Decide(w).Routes.SourceCheck != nil {
		t.Error("a check although sourceCheck is false")
	}
}
