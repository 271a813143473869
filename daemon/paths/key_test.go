package paths

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const first, second = "the first key of 24 bytes", "the second key of 25 bytes"

// keyOf is the key of a Secret with these texts.
func keyOf(t *testing.T, own, previous string) Key {
	t.Helper()
	data := map[string][]byte{secretKey: []byte(own)}
	if previous != "" {
		data[secretPrevious] = []byte(previous)
	}
	k, got := KeyOf(data)
	if got != "" {
		t.Fatal(got)
	}
	return k
}

func TestKeyOfASecret(t *testing.T) {
	short, long := []byte("fifteen bytes.."), []byte("sixteen bytes...")
	for _, c := range []struct {
		name string
		data map[string][]byte
		got  string // part of it
	}{
		{name: "a key", data: map[string][]byte{"key": long}},
		{name: "two", data: map[string][]byte{"key": long, "previous": long}},
		{name: "an empty previous one", data: map[string][]byte{"key": long, "previous": {}}},
		{name: "none", data: map[string][]byte{"password": long}, got: "without that key"},
		{name: "the previous one alone", data: map[string][]byte{"previous": long}, got: "without that key"},
		{name: "empty", data: map[string][]byte{"key": {}}, got: "0 bytes"},
		{name: "short", data: map[string][]byte{"key": short}, got: "15 bytes"},
		{name: "a short previous one", data: map[string][]byte{"key": long, "previous": short}, got: "15 bytes in the key previous"},
	} {
		k, got := KeyOf(c.data)
		if (got == "") != (c.got == "") || !strings.Contains(got, c.got) || (got == "") != (k.own != nil) {
			t.Errorf("%s: %q, want %q", c.name, got, c.got)
		}
		if c.name == "an empty previous one" && k.previous != nil {
			t.Error("an empty key is accepted")
		}
	}
}

func TestTag(t *testing.T) {
	plain, _ := encode(message{Kind: questionOf, ID: 7}, smallBytes)
	tagged := slices.Clone(plain)
	own, other, both := keyOf(t, first, ""), keyOf(t, second, ""), keyOf(t, second, first)
	own.sign(tagged)
	if m, ok := decode(tagged); !ok || m.ID != 7 || m.Kind != questionOf {
		t.Errorf("a tag changes the message: %+v", m)
	}
	for _, c := range []struct {
		name string
		key  Key
		b    []byte
		want bool
	}{
		{"the same key", own, tagged, true}, {"the previous key", both, tagged, true}, {"another key", other, tagged, false}, {"no tag", own, plain, false},
		{"no key, a tag", Key{}, tagged, true}, {"no key, no tag", Key{}, plain, true},
		{"cut", own, tagged[:len(tagged)-1], false}, {"longer", own, append(slices.Clone(tagged), 0), false}, {"a tag alone", own, tagged[len(tagged)-tagBytes:], false}, {"nothing", own, nil, false},
	} {
		if got := c.key.proves(c.b); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	for i := range tagged {
		b := slices.Clone(tagged)
		b[i] ^= 1
		if own.proves(b) {
			t.Fatalf("another byte %d, and the tag is right", i)
		}
	}
}

// Who does not have the key hears that it is another, in fewer bytes than it sent, and nothing else.
func TestQuestionsWithoutTheKey(t *testing.T) {
	p, at := answerer(t, true, Node{Name: "node-2", Hosts: []netip.Addr{netip.MustParseAddr("127.0.0.2")}})
	own := *p.own.Load()
	own.key = keyOf(t, second, first)
	p.own.Store(&own)
	conn, err := listen(t.Context(), netip.MustParseAddrPort("127.0.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range []struct {
		name string
		key  Key
		size int
		want int // bytes
		kind string
	}{
		{"no key", Key{}, smallBytes, otherBytes, otherKey}, {"another key", keyOf(t, "a key that was never given", ""), 1472, otherBytes, otherKey}, {"a tiny question", Key{}, 62, 62, otherKey},
		{"the key", keyOf(t, second, ""), smallBytes, smallBytes, answerTo}, {"the previous key", keyOf(t, first, ""), smallBytes, smallBytes, answerTo},
	} {
		q, ok := encode(message{Kind: questionOf, ID: 1<<64 - 1}, c.size)
		if !ok {
			t.Fatal(c.name)
		}
		c.key.sign(q)
		if _, err := conn.WriteToUDPAddrPort(q, at); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxDatagram)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(c.name, err)
		}
		m, ok := decode(buf[:n])
		if !ok || m.Kind != c.kind || m.ID != 1<<64-1 || n != c.want || own.key.proves(buf[:n]) != (c.kind == answerTo) {
			t.Errorf("%s: %d bytes, %+v", c.name, n, m)
		}
		if c.kind == otherKey {
			if diff := cmp.Diff(Answer{}, m.Answer, cmpopts.EquateComparable(netip.Addr{})); diff != "" || len(p.heard) > 0 {
				t.Errorf("%s: it says, or notes, more: %s %v", c.name, diff, p.heard)
			}
		}
	}
}

// A machine of the LAN that uses a node's addresses has seen all packets of the nodes, and does not have the key.
func TestAMachineWithoutTheKeyMakesNoPathWork(t *testing.T) {
	from := netip.MustParseAddrPort("10.0.0.2:9476")
	key := keyOf(t, first, second)
	datagram := func(k Key, kind string, id uint64, name string) []byte {
		b, _ := encode(message{Kind: kind, ID: id, Answer: Answer{Name: name}}, smallBytes)
		k.sign(b)
		return b
	}
	for _, c := range []struct {
		name               string
		kind               kind
		b                  []byte
		answered, otherKey bool
	}{
		{"the node itself", small, datagram(key, answerTo, 7, "node-2"), true, false},
		{"the node itself, with the key that is accepted too", small, datagram(keyOf(t, second, ""), answerTo, 7, "node-2"), true, false},
		{"no tag", small, datagram(Key{}, answerTo, 7, "node-2"), false, true},
		{"a guessed key", small, datagram(keyOf(t, "a key that was never given", ""), answerTo, 7, "node-2"), false, true},
		{"other key", host, datagram(Key{}, otherKey, 7, ""), false, true},
		{"an earlier answer", small, datagram(key, answerTo, 6, "node-2"), false, false},
		{"the question itself", small, datagram(key, questionOf, 7, ""), false, false},
		{"an answer of another node's canary, which was led the question", full, datagram(key, answerTo, 7, "node-3"), false, false},
		{"another node at the node's own address", host, datagram(key, answerTo, 7, "node-3"), true, false}, // the problem sharedAddress
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p := New(Options{Every: time.Hour})
			q := &question{key: pathKey{"node-2", ipv4}, kind: c.kind}
			p.waiting, p.left, p.all = map[uint64]*question{7: q}, 2, make(chan struct{})
			own := &station{key: key, senders: newSenders([]Node{{Name: "node-2", Hosts: []netip.Addr{from.Addr()}}})}
			p.take(own, conn, c.b, from, false)
			if (q.answer != nil) != c.answered || q.otherKey != c.otherKey {
				t.Errorf("answered %v, other key %v", q.answer != nil, q.otherKey)
			}
			p.take(own, conn, datagram(key, answerTo, 7, "node-2"), from, false)
			if q.answer == nil {
				t.Error("the node's own answer does not count any more")
			}
		})
	}
}

// pair are two nodes that ask each other over loopback addresses.
type pair [2]struct {
	*Prober
	cluster *Cluster
}

func newPair(t *testing.T, every time.Duration) *pair {
	t.Helper()
	var nodes []Node
	for n, name := range []string{"node-1", "node-2"} {
		addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, byte(n + 1), last}) }
		nodes = append(nodes, Node{Name: name, Hosts: []netip.Addr{addr(1)}, CIDRs: []netip.Prefix{netip.PrefixFrom(addr(128), 25)}, Canary: []netip.Addr{addr(254)}})
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		some, err := net.ListenUDP("udp4", &net.UDPAddr{IP: nodes[0].Hosts[0].AsSlice()})
		if err != nil {
			t.Fatal(err)
		}
		port := some.LocalAddr().(*net.UDPAddr).Port
		some.Close()
		both := &pair{}
		all := 0
		for i := range both {
			me := &both[i]
			me.cluster = &Cluster{Self: nodes[i], Nodes: nodes, Choice: Choose(nodes, nodes[i].Name)}
			me.Prober = New(Options{Port: uint16(port), Every: every, Log: slog.New(slog.DiscardHandler), Changed: func() {}, Cluster: func() *Cluster { return me.cluster },
				Canary: func() (Canary, bool) {
					return Canary{ID: i, Addrs: nodes[i].Canary, MTU: 1500, Inside: func(do func() error) error { return do() }}, true
				}})
			me.open(t.Context())
			for _, c := range me.sockets {
				if c != nil {
					all++
				}
			}
		}
		if all == 4 { // else another program took the port on one of the addresses
			t.Cleanup(both[0].close)
			t.Cleanup(both[1].close)
			return both
		}
		both[0].close()
		both[1].close()
		if time.Now().After(deadline) {
			t.Fatal("no port that is free on four addresses")
		}
	}
}

// give gives a node a key. It counts from the node's next round.
func (p *pair) give(i int, k Key) {
	c := *p[i].cluster
	c.Key = k
	p[i].cluster = &c
	p[i].open(context.Background())
}

// round has a node ask, and returns what it found out about the other.
func (p *pair) round(t *testing.T, i int) Finding {
	t.Helper()
	p[i].open(t.Context())
	p[i].ask(t.Context())
	found := p[i].Report().Findings
	if len(found) != 1 {
		t.Fatalf("%+v", found)
	}
	return found[0]
}

// refused reports whether something with another key came back in a node's last round.
func (p *pair) refused(i int) bool {
	for _, at := range p[i].paths {
		if slices.ContainsFunc(at.verdict[:], func(v tally) bool { return v.otherKey }) {
			return true
		}
	}
	return false
}

// Each step is in force on one node before the other, as after an edit of the Secret. A question that a busy machine loses
// is asked again.
func TestChangeOfTheKeyLosesNothing(t *testing.T) {
	t.Parallel()
	p := newPair(t, time.Hour)
	old, announced, turned, new := keyOf(t, first, ""), keyOf(t, first, second), keyOf(t, second, first), keyOf(t, second, "")
	p.give(0, old)
	p.give(1, old)
	for step, k := range []Key{announced, turned, new} {
		for i := range p {
			p.give(i, k)
			for j := range p {
				for deadline := time.Now().Add(60 * time.Second); ; {
					f := p.round(t, j)
					if p.refused(j) || time.Now().After(deadline) {
						t.Fatalf("step %d on node %d: node %d finds %+v", step, i+1, j+1, f)
					}
					if f.Canary == Answers && f.Host == Answers {
						break
					}
				}
			}
		}
	}
}

func TestNodesWithDifferentKeys(t *testing.T) {
	for name, keys := range map[string][2]Key{"one has none": {keyOf(t, first, ""), {}}, "each has another": {keyOf(t, first, ""), keyOf(t, second, "")}} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, 300*time.Millisecond)
			until := func(i int, want string, good func(Finding) bool) {
				t.Helper()
				for deadline := time.Now().Add(60 * time.Second); ; {
					f := p.round(t, i)
					var said []string
					for _, x := range p[i].Report().Problems {
						said = append(said, x.Object+": "+string(x.Reason))
					}
					if good(f) && strings.Join(said, ", ") == want {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("node-%d finds %+v, %q; want %q", i+1, f, said, want)
					}
				}
			}
			for i, k := range keys {
				p.give(i, k)
			}
			for i, other := range []string{"Node/node-2", "Node/node-1"} {
				until(i, other+": "+string(cluster.PathsKeyDiffers), func(f Finding) bool {
					if f.Canary == Answers || f.Host == Answers {
						t.Fatalf("node-%d believes a node with another key: %+v", i+1, f)
					}
					return f.Canary == OtherKey && f.Host == OtherKey
				})
			}
			p.give(0, keyOf(t, second, ""))
			p.give(1, keyOf(t, second, ""))
			for i := range p {
				until(i, "", func(f Finding) bool { return f.Canary == Answers && f.Host == Answers })
			}
		})
	}
}

// A node that must have a key and has none neither asks nor answers, and says why.
func TestAMissingKeyClosesTheSockets(t *testing.T) {
	p := newPair(t, time.Hour)
	c := *p[0].cluster
	c.NoKey = cluster.Problem{Object: "Secret/key", Reason: cluster.NoPathsKey}
	p[0].cluster = &c
	if p[0].open(t.Context()) || len(p[0].sockets) > 0 || p[0].own.Load() != nil {
		t.Errorf("%d sockets are open", len(p[0].sockets))
	}
	if diff := cmp.Diff(&Report{Problems: []cluster.Problem{c.NoKey}}, p[0].unable()); diff != "" {
		t.Error(diff)
	}
}
