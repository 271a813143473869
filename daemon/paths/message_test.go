package paths

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMessage(t *testing.T) {
	m := message{Kind: answerTo, ID: 1 << 63, Answer: Answer{Name: strings.Repeat("n", 253), Version: "v1.2.3-4-gabcdef0", Terms: Terms{"underlay", 1<<24 - 1, 65535}, MTU: 9000,
		Canary: []netip.Addr{netip.MustParseAddr("255.255.255.254"), netip.MustParseAddr("fd00:1111:2222:3333:ffff:ffff:ffff:ff7f")}, Saw: netip.MustParseAddr("fd00:1111:2222:3333:ffff:ffff:ffff:ff7f"),
		Uplink: []netip.Addr{netip.MustParseAddr("255.255.255.253"), netip.MustParseAddr("fd00:4444:2222:3333:ffff:ffff:ffff:ff7f")}, Pass: 1<<64 - 1, Heard: 1000, HeardYou: true, Cause: "forwardDropped"}}
	b, ok := encode(m, smallBytes)
	if !ok || len(b) != smallBytes {
		t.Fatalf("the longest answer does not fit into a small question: %v, %d bytes", ok, len(b))
	}
	got, ok := decode(b)
	if diff := cmp.Diff(m, got, cmpopts.EquateComparable(netip.Addr{})); !ok || diff != "" {
		t.Errorf("%v (-sent +read):\n%s", ok, diff)
	}
	if _, ok := encode(m, 100); ok {
		t.Error("an answer is cut to fit into its question")
	}
}

// A pod at the address of another node's canary could write to the terminal of who calls edgewayd paths.
func TestAnswersOfOddText(t *testing.T) {
	for name, a := range map[string]Answer{
		"escape": {Version: "v1\x1b[2J"}, "line": {Name: "node-1\nnode-2"}, "word": {Cause: "all is well"}, "long": {Name: strings.Repeat("n", mostText+1)}, "mode": {Terms: Terms{Mode: "\x07"}},
	} {
		b, ok := encode(message{Kind: answerTo, Answer: a}, 1472)
		if m, read := decode(b); !ok || read {
			t.Errorf("%s: read as %+v", name, m)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := encode(message{Kind: questionOf, ID: 7}, 64)
	f.Add(b)
	f.Add([]byte("EWP1"))
	f.Add([]byte("EWP1\xff\xff{}"))
	f.Add([]byte("EWP2\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := decode(b); ok && (len(m.Canary) > mostAddrs || len(m.Uplink) > mostAddrs) {
			t.Errorf("%+v", m)
		}
		if (Key{own: []byte("a key that nobody guesses")}).proves(b) {
			t.Errorf("%x has a right tag", b)
		}
	})
}

// answerer answers on a loopback address as a node does.
func answerer(t *testing.T, atCanary bool, known ...Node) (p *Prober, at netip.AddrPort) {
	t.Helper()
	conn, err := listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	p = New(Options{Every: time.Hour})
	p.own.Store(&station{senders: newSenders(known), answer: Answer{Name: "node-1", Terms: Terms{"underlay", 1, 8472}}})
	p.read(conn, atCanary)
	t.Cleanup(p.close)
	return p, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestAnswersAreAsLongAsQuestions(t *testing.T) {
	p, at := answerer(t, true, Node{Name: "node-2", CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}}, Node{Name: "node-3", Hosts: []netip.Addr{netip.MustParseAddr("127.0.0.9")}})
	p.mu.Lock()
	p.heard[pathKey{"node-3", ipv4}] = time.Now()
	p.mu.Unlock()
	conn, err := listen(t.Context(), netip.MustParseAddrPort("127.0.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, size := range []int{smallBytes, 1472} {
		question, _ := encode(message{Kind: questionOf, ID: 7}, size)
		if _, err := conn.WriteToUDPAddrPort(question, at); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxDatagram)
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		m, ok := decode(buf[:n])
		want := message{Kind: answerTo, ID: 7, Answer: Answer{Name: "node-1", Terms: Terms{"underlay", 1, 8472}, Saw: netip.MustParseAddr("127.0.0.2"), Heard: 1, HeardYou: true}}
		if diff := cmp.Diff(want, m, cmpopts.EquateComparable(netip.Addr{})); !ok || n != size || diff != "" {
			t.Errorf("%d bytes for a question of %d (-want +got):\n%s", n, size, diff)
		}
	}
}

// The question of a node is sent after the stranger's. When it is answered, an answer to the stranger is there too.
func TestStrangersGetNoAnswer(t *testing.T) {
	_, at := answerer(t, false, Node{Name: "node-2", Hosts: []netip.Addr{netip.MustParseAddr("127.0.0.2")}})
	var conns []*net.UDPConn
	for _, from := range []string{"127.0.0.3", "127.0.0.2"} {
		conn, err := listen(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		question, _ := encode(message{Kind: questionOf, ID: 7}, smallBytes)
		for _, b := range [][]byte{[]byte("EWP"), question[:10], question} { // the first two are no questions
			if _, err := conn.WriteToUDPAddrPort(b, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	buf := make([]byte, maxDatagram)
	if n, err := conns[1].Read(buf); err != nil || n != smallBytes {
		t.Fatalf("the node got %d bytes, %v", n, err)
	}
	const last = "of the stranger to itself"
	if _, err := conns[0].WriteTo([]byte(last), conns[0].LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if n, err := conns[0].Read(buf); err != nil || string(buf[:n]) != last {
		t.Errorf("the stranger got %q, %v", buf[:n], err)
	}
}

func TestSenders(t *testing.T) {
	s := newSenders([]Node{
		{Name: "a", Hosts: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}},
		{Name: "b", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/25")}},
	})
	for addr, want := range map[string]string{"10.0.0.1": "a", "10.1.0.254": "a", "fd00:1::7": "a", "10.1.1.1": "b", "10.1.1.129": "", "10.0.0.2": "", "fd00:2::1": ""} {
		if got, ok := s.owner(netip.MustParseAddr(addr)); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", addr, got, ok)
		}
	}
}
