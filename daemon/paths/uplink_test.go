package paths

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// world is a machine whose loopback interface has the addresses of two nodes: u has an uplink, and c a pod CIDR.
type world struct {
	*lab.Space
	nodes []Node
	of    [2]*Prober // of c, and of u
	asks  [2]*Cluster
}

const cNode, uNode = 0, 1

func newWorld(t *testing.T, uplink string) *world {
	t.Helper()
	lab.Need(t, "ip")
	space, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(space.Close)
	script := "link set lo up\n"
	for _, a := range []string{"10.0.0.1", "10.1.0.254", "10.0.0.2", uplink, "192.0.2.7"} {
		script += "addr add " + a + "/32 dev lo\n"
	}
	if err := space.IP(t.Context(), script); err != nil {
		t.Fatal(err)
	}
	w := &world{Space: space, nodes: []Node{
		{Name: "c", Group: "c", Hosts: []netip.Addr{addr("10.0.0.1")}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Canary: []netip.Addr{addr("10.1.0.254")}, Ways: []Way{{Via: addr("10.0.0.1")}}},
		{Name: "u", Group: "u", Hosts: []netip.Addr{addr("10.0.0.2")}},
	}}
	for i, canary := range []string{"10.1.0.254", uplink} {
		w.asks[i] = &Cluster{Self: w.nodes[i], Nodes: w.nodes, Choice: Choose(w.nodes, w.nodes[i].Name), LAN: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Near: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
			Link: func(netip.Addr) string { return "eth1" }}
		w.of[i] = New(Options{Port: 9476, Every: 300 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Changed: func() {}, Cluster: func() *Cluster { return w.asks[i] },
			Canary: func() (Canary, bool) {
				return Canary{ID: canary, Addrs: []netip.Addr{addr(canary)}, MTU: 1500, Inside: func(do func() error) error { return do() }}, true
			}})
		t.Cleanup(w.of[i].close)
		w.open(t, i)
	}
	return w
}

func (w *world) open(t *testing.T, i int) {
	t.Helper()
	if err := w.Do(func() error { w.of[i].open(t.Context()); return nil }); err != nil {
		t.Fatal(err)
	}
}

// round has a node ask once, and returns what it found.
func (w *world) round(t *testing.T, i int) []Finding {
	t.Helper()
	w.open(t, i)
	w.of[i].ask(t.Context())
	return w.of[i].Report().Findings
}

func (w *world) until(t *testing.T, i int, what string, good func([]Finding) bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		found := w.round(t, i)
		if good(found) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("node %s: want %s, got %+v", w.nodes[i].Name, what, found)
		}
	}
}

func reached(found []Finding) bool {
	return len(found) == 1 && found[0].Canary == Answers && found[0].Full == Answers && found[0].Host == Answers
}

// Nobody but the node with the uplink knows its canary's address, and its questions come from an address of no node.
func TestUplinkAndPodCIDRReachEachOther(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]Key{"without a key": {}, "with a key": keyOf(t, first, "")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "10.0.0.33")
			for i := range w.asks {
				c := *w.asks[i]
				c.Key = key
				w.asks[i] = &c
				w.open(t, i)
			}
			w.until(t, cNode, "the uplink's canary", func(found []Finding) bool {
				return reached(found) && found[0].Addr == addr("10.0.0.33") && found[0].To && !found[0].From
			})
			w.until(t, uNode, "the canary in the pod CIDR", func(found []Finding) bool { return reached(found) && found[0].From && !found[0].To })
			for i := range w.of {
				w.until(t, i, "to be heard", func(found []Finding) bool { return found[0].Said.HeardYou && found[0].Translated == netip.Addr{} })
			}
			// The other node starts anew: its old passes count no more, and one question is lost.
			w.of[cNode].secret = newSecret()
			w.until(t, uNode, "another pass", reached)
			// The canary gives way to a pod, and its node says so.
			w.of[uNode].o.Canary = func() (Canary, bool) { return Canary{}, false }
			w.open(t, uNode)
			w.until(t, cNode, "nobody to ask", func(found []Finding) bool { return len(found) == 0 })
		})
	}
}

// A node may lie about the address of its canary, or be of an earlier version: then nobody asks, and nobody judges.
func TestCanariesThatAreNotAsked(t *testing.T) {
	t.Parallel()
	for name, said := range map[string]Answer{
		"an address of a node":                    {Uplink: []netip.Addr{addr("10.0.0.1")}},
		"an address in another node's pod CIDR":   {Uplink: []netip.Addr{addr("10.1.0.9")}},
		"another address outside its pod CIDRs":   {Canary: []netip.Addr{addr("192.0.2.7")}},
		"loopback":                                {Uplink: []netip.Addr{addr("127.0.0.1")}},
		"multicast":                               {Uplink: []netip.Addr{addr("224.0.0.1")}},
		"broadcast":                               {Uplink: []netip.Addr{addr("255.255.255.255")}},
		"nothing, as an earlier version says":     {},
		"an address of the other family":          {Uplink: []netip.Addr{addr("fd00::7")}},
		"the address of another node's own claim": {Name: "c", Uplink: []netip.Addr{addr("192.0.2.7")}},
	} {
		n := Node{Name: "u"}
		if said.Name == "" {
			said.Name = "u"
		}
		known := newSenders([]Node{{Name: "c", Hosts: []netip.Addr{addr("10.0.0.1")}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}, n})
		if a, ok := n.canary(ipv4, &path{said: said}, known); ok {
			t.Errorf("%s: asked at %v", name, a)
		}
	}
}

// A stranger that a node names gets small questions, and no more than the node itself answers. When neither answers, it gets
// none.
func TestAStrangerIsNotFlooded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "10.0.0.33")
	u := w.of[uNode]
	u.close()
	var stranger, liar *net.UDPConn
	if err := w.Do(func() (err error) {
		if stranger, err = listen(t.Context(), netip.MustParseAddrPort("192.0.2.7:9476")); err == nil {
			liar, err = listen(t.Context(), netip.MustParseAddrPort("10.0.0.2:9476"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	defer liar.Close()
	answered := 0
	answer := func() { // what came to the liar so far
		buf := make([]byte, maxDatagram)
		n, from, err := liar.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Error(err)
			return
		}
		m, ok := decode(buf[:n])
		if !ok || m.Kind != questionOf {
			t.Errorf("%+v", m)
			return
		}
		answered++
		out, _ := encode(message{Kind: answerTo, ID: m.ID, Answer: Answer{Name: "u", MTU: 9000, Uplink: []netip.Addr{addr("192.0.2.7")}}}, n)
		if _, err := liar.WriteToUDPAddrPort(out, from); err != nil {
			t.Error(err)
		}
	}
	for range 4 {
		done := make(chan struct{})
		go func() { answer(); close(done) }()
		w.round(t, cNode)
		<-done
	}
	for range 12 { // the liar is silent
		w.round(t, cNode)
	}
	sizes := []int{}
	buf := make([]byte, maxDatagram)
	const last = "of the stranger to itself"
	if _, err := stranger.WriteTo([]byte(last), stranger.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := stranger.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == last {
			break
		}
		sizes = append(sizes, n)
	}
	if len(sizes) == 0 || len(sizes) > answered+after || slices.Max(sizes) > smallBytes {
		t.Errorf("the node answered %d times, and the stranger got %d questions of at most %d bytes", answered, len(sizes), slices.Max(sizes))
	}
}

// A pass counts for one node and one address. Who writes another's address into a packet gets none.
func TestPass(t *testing.T) {
	p := New(Options{})
	own := &station{senders: newSenders([]Node{{Name: "c", Hosts: []netip.Addr{addr("10.0.0.1")}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}, {Name: "u", Hosts: []netip.Addr{addr("10.0.0.2")}}})}
	ask := func(a string) message { return message{Answer: Answer{Uplink: []netip.Addr{addr(a)}}} }
	pass := p.grant(own, "u", addr("10.0.0.2"), ask("10.0.0.33"))
	for name, c := range map[string]struct {
		from string
		m    message
		want bool
	}{
		"the canary":                {"10.0.0.33", message{Answer: Answer{Name: "u", Pass: pass}}, true},
		"no pass":                   {"10.0.0.33", message{Answer: Answer{Name: "u"}}, false},
		"a guess":                   {"10.0.0.33", message{Answer: Answer{Name: "u", Pass: pass + 1}}, false},
		"from another address":      {"10.0.0.34", message{Answer: Answer{Name: "u", Pass: pass}}, false},
		"in another name":           {"10.0.0.33", message{Answer: Answer{Name: "c", Pass: pass}}, false},
		"of a node that left":       {"10.0.0.33", message{Answer: Answer{Name: "gone", Pass: p.pass("gone", addr("10.0.0.33"))}}, false},
		"at a node's address":       {"10.0.0.1", message{Answer: Answer{Name: "u", Pass: p.pass("u", addr("10.0.0.1"))}}, false},
		"in another node's CIDR":    {"10.1.0.7", message{Answer: Answer{Name: "u", Pass: p.pass("u", addr("10.1.0.7"))}}, false},
		"of a daemon that is ended": {"10.0.0.33", message{Answer: Answer{Name: "u", Pass: New(Options{}).pass("u", addr("10.0.0.33"))}}, false},
	} {
		if _, got := p.admitted(own, addr(c.from), c.m); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	for name, got := range map[string]uint64{
		"of a pod": p.grant(own, "c", addr("10.1.0.7"), ask("10.0.0.33")), "for a node's address": p.grant(own, "u", addr("10.0.0.2"), ask("10.0.0.1")),
		"for a pod CIDR": p.grant(own, "u", addr("10.0.0.2"), ask("10.1.0.7")), "for nobody": p.grant(own, "u", addr("10.0.0.2"), message{}), "for the other family": p.grant(own, "u", addr("10.0.0.2"), ask("fd00::7")),
	} {
		if got != 0 {
			t.Errorf("%s: a pass", name)
		}
	}
}

func TestHope(t *testing.T) {
	c := &Cluster{Self: Node{Terms: Terms{Mode: "underlay"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}, LAN: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}, Near: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}
	inCIDR := func(mode string, via Way) Node {
		return Node{Terms: Terms{Mode: mode}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Ways: []Way{via}}
	}
	near := Way{Via: addr("10.0.0.1")}
	outside := Node{Terms: Terms{Mode: "overlay"}, Hosts: []netip.Addr{addr("10.3.0.7")}}
	far := Node{Terms: Terms{Mode: "overlay"}, Hosts: []netip.Addr{addr("10.4.0.7")}}
	for _, c := range []struct {
		name    string
		of      *Cluster
		n       Node
		to      string
		mine    bool
		overlay bool
		hidden  bool
		want    hope
	}{
		{"pod CIDRs", c, inCIDR("overlay", Way{}), "10.1.0.254", true, true, false, sure},
		{"uplinks of one subnet", c, outside, "10.0.0.33", false, true, false, sure},
		{"uplinks of two sites that have the same subnet", c, far, "10.0.0.33", false, false, false, maybe},
		{"uplinks of two subnets", c, outside, "10.0.7.33", false, false, false, maybe},
		{"to an uplink of the node's own LAN", c, outside, "10.0.0.33", true, false, false, sure},
		{"to an uplink behind routers", c, outside, "10.0.7.33", true, false, false, maybe},
		{"from a tunnel's node to an uplink", c, outside, "10.0.0.33", true, true, false, none},
		{"from a tunnel's node that hides the pod", c, outside, "10.0.0.33", true, true, true, maybe},
		{"from an uplink to a node beside it", c, inCIDR("underlay", near), "10.1.0.254", false, false, false, sure},
		{"from an uplink by its gateway", c, inCIDR("underlay", Way{}), "10.1.0.254", false, false, false, maybe},
		{"from an uplink to a tunnel's node", c, inCIDR("overlay", Way{}), "10.1.0.254", false, false, false, none},
		{"from an uplink, hidden", c, inCIDR("overlay", Way{}), "10.1.0.254", false, false, true, maybe},
	} {
		of := *c.of
		of.Hides = func(netip.Addr) bool { return c.hidden }
		if c.overlay {
			of.Self.Terms.Mode = "overlay"
		}
		if got := of.hope(c.n, addr(c.to), c.mine); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
