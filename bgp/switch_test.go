package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// neighbour is a node as a switch is configured to see it.
type neighbour struct {
	addr     string
	asn      uint32
	password string
	multihop int
	ttlSec   bool
	only4    bool   // no IPv6 unicast
	channel  string // more of BIRD's IPv4 channel, or of FRR's IPv4 address family
	extra    string // more lines of the switch's own syntax
}

// swconf is a switch's configuration.
type swconf struct {
	asn       uint32
	port      int // 0: 179
	hold      int // seconds; 0: 90
	noRestart bool
	// defaultRestart leaves graceful restart to the switch's default.
	defaultRestart bool
	neighbours     []neighbour
	extra          string // more lines of the switch's own syntax, at top level (bird) or in router bgp (frr)
}

// router is a switch: real BIRD, FRR or OpenBGPD on a machine of a LAN.
type router struct {
	*lab.Switch
	t     *testing.T
	kind  string // "bird", "frr" or "openbgpd"
	dir   string
	addr4 netip.Addr
	addr6 netip.Addr
}

// kinds are the switches that write routes to the kernel. Every story runs with both.
var kinds = []string{"bird", "frr"} // read only

// each runs the story with both switches, each in its own LAN.
func each(t *testing.T, story func(t *testing.T, l *lan, sw *router)) { eachOf(t, kinds, story) }

// eachOfThree runs the story with OpenBGPD, too.
func eachOfThree(t *testing.T, story func(t *testing.T, l *lan, sw *router)) {
	eachOf(t, append(kinds[:len(kinds):len(kinds)], "openbgpd"), story)
}

func eachOf(t *testing.T, kinds []string, story func(t *testing.T, l *lan, sw *router)) {
	t.Parallel()
	for i, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			lab.Need(t, lab.Tools(lab.Flavour(kind))...)
			t.Parallel()
			l := newLAN(t)
			story(t, l, l.router(kind, i%2+1))
		})
	}
}

// router makes the LAN's n-th switch one of that kind. It speaks no BGP yet. Its programs end with the test.
func (l *lan) router(kind string, n int) *router {
	l.t.Helper()
	at := l.lab.Machine(fmt.Sprintf("sw%d", n))
	r := &router{t: l.t, kind: kind, dir: at.Dir, addr4: at.Addrs[0], addr6: at.Addrs[1]}
	var err error
	if r.Switch, err = lab.NewSwitch(&lab.Machine{Space: at.Space, Name: kind, Dir: at.Dir}, lab.SwitchSpec{Flavour: lab.Flavour(kind)}); err != nil {
		l.t.Fatal(err)
	}
	return r
}

// start starts BGP with c; a switch that runs is killed first, as a power cut does.
func (r *router) start(c swconf) *router {
	r.t.Helper()
	r.kill()
	if c.port == 0 {
		c.port = DefaultPort
	}
	if c.hold == 0 {
		c.hold = 90
	}
	files := map[string]string{"bird.conf": birdConf(r, c)}
	command := "show status"
	if r.kind == "frr" {
		files, command = map[string]string{"zebra.conf": "hostname zebra\n", "bgpd.conf": frrConf(r, c)}, "show bgp summary"
	}
	if r.kind == "openbgpd" {
		files, command = map[string]string{"bgpd.conf": openbgpdConf(r, c)}, "show"
	}
	r.Spec.Port = c.port
	if err := r.StartWith(r.t.Context(), files); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, func() error { _, err := r.try(command); return err })
	return r
}

// openbgpdConf takes and sends all routes, and writes none to the kernel.
func openbgpdConf(r *router, c swconf) string {
	var b strings.Builder
	fmt.Fprintf(&b, "AS %d\nrouter-id %s\nsocket \"%s/bgpd.sock\"\nfib-update no\nnexthop qualify via default\nholdtime %d\nallow from any\nallow to any\n", c.asn, r.addr4, r.dir, c.hold)
	for _, n := range c.neighbours {
		fmt.Fprintf(&b, "neighbor %s {\n remote-as %d\n announce IPv4 unicast\n", n.addr, n.asn)
		if !n.only4 {
			b.WriteString(" announce IPv6 unicast\n")
		}
		if !c.defaultRestart {
			fmt.Fprintf(&b, " announce restart %s\n", map[bool]string{true: "no", false: "yes"}[c.noRestart])
		}
		if n.password != "" {
			fmt.Fprintf(&b, " tcp md5sig password \"%s\"\n", n.password)
		}
		if n.ttlSec {
			b.WriteString(" ttl-security yes\n")
		}
		b.WriteString(n.extra + "}\n")
	}
	return b.String() + c.extra
}

func birdConf(r *router, c swconf) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device { scan time 1; }\nprotocol direct { ipv4; ipv6; }\n", r.addr4)
	for _, f := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, "protocol kernel k%s { %s { import none; export where source = RTS_BGP; }; }\n", f, f)
	}
	for i, n := range c.neighbours {
		self := r.addr4
		if strings.Contains(n.addr, ":") {
			self = r.addr6
		}
		fmt.Fprintf(&b, "protocol bgp n%d {\n local %s port %d as %d;\n neighbor %s as %d;\n hold time %d;\n connect retry time 5;\n connect delay time 1;\n debug { events, packets };\n error wait time 1, 2;\n",
			i, self, c.port, c.asn, n.addr, n.asn, c.hold)
		if c.noRestart {
			b.WriteString(" graceful restart off;\n long lived graceful restart off;\n")
		} else if !c.defaultRestart {
			b.WriteString(" graceful restart on;\n")
		}
		if n.password != "" {
			fmt.Fprintf(&b, " password \"%s\";\n", n.password)
		}
		if n.multihop > 0 {
			fmt.Fprintf(&b, " multihop %d;\n", n.multihop)
		}
		if n.ttlSec {
			b.WriteString(" ttl security on;\n")
		}
		fmt.Fprintf(&b, " ipv4 { import all; export all; %s };\n", n.channel)
		if !n.only4 {
			b.WriteString(" ipv6 { import all; export all; };\n")
		}
		b.WriteString(n.extra + "}\n")
	}
	return b.String() + c.extra
}

func frrConf(r *router, c swconf) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hostname bgpd\nrouter bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n timers bgp %d %d\n", c.asn, r.addr4, max(1, c.hold/3), c.hold)
	if c.noRestart {
		b.WriteString(" bgp graceful-restart-disable\n")
	} else if !c.defaultRestart {
		b.WriteString(" bgp graceful-restart\n bgp graceful-restart stalepath-time 600\n")
	}
	b.WriteString(c.extra)
	for _, n := range c.neighbours {
		fmt.Fprintf(&b, " neighbor %s remote-as %d\n neighbor %s timers connect 1\n", n.addr, n.asn, n.addr)
		if n.password != "" {
			fmt.Fprintf(&b, " neighbor %s password %s\n", n.addr, n.password)
		}
		if n.multihop > 0 {
			fmt.Fprintf(&b, " neighbor %s ebgp-multihop %d\n", n.addr, n.multihop)
		}
		if n.ttlSec {
			fmt.Fprintf(&b, " neighbor %s ttl-security hops 1\n", n.addr)
		}
		b.WriteString(n.extra)
	}
	for _, f := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n", f)
		for _, n := range c.neighbours {
			if f == "ipv4" || !n.only4 {
				fmt.Fprintf(&b, "  neighbor %s activate\n", n.addr)
			}
			if f == "ipv4" {
				b.WriteString(n.channel)
			}
		}
		b.WriteString(" exit-address-family\n")
	}
	return b.String()
}

func (r *router) file(name string) string { return filepath.Join(r.dir, name) }

// kill ends the switch's programs, as a power cut does.
func (r *router) kill() {
	r.t.Helper()
	if err := r.Kill(); err != nil {
		r.t.Error(err)
	}
}

// try asks the switch's own console.
func (r *router) try(command string) (string, error) {
	words := []string{command}
	if r.kind != "frr" {
		words = strings.Fields(command)
	}
	return r.Console(context.Background(), words...) // also when the test has ended
}

// configure changes FRR's running configuration.
func (r *router) configure(words ...string) {
	r.t.Helper()
	if out, err := r.Console(r.t.Context(), append([]string{"conf t"}, words...)...); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

func (r *router) ask(command string) string {
	r.t.Helper()
	out, err := r.try(command)
	if err != nil {
		r.t.Fatalf("%s: %s: %v\n%s", r.kind, command, err, out)
	}
	return out
}

// says waits until the console's answer matches all of the patterns.
func (r *router) says(command string, patterns ...string) {
	r.t.Helper()
	eventually(r.t, func() error { return matches(r.ask(command), patterns) })
}

// logged waits until the switch's log matches the patterns.
func (r *router) logged(patterns ...string) {
	r.t.Helper()
	eventually(r.t, func() error {
		text, err := os.ReadFile(r.file(map[string]string{"bird": "bird.log", "frr": "bgpd.log"}[r.kind]))
		return errors.Join(err, matches(string(text), patterns))
	})
}

func matches(text string, patterns []string) error {
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(text) {
			return fmt.Errorf("no %q in: %s", p, text)
		}
	}
	return nil
}

// settled waits until the switch has had the End-of-RIB of both families in its newest sessions:
// what a restart was going to flush is flushed then.
func (r *router) settled() {
	r.t.Helper()
	eventually(r.t, func() error {
		if r.kind == "bird" {
			log, err := os.ReadFile(r.file("bird.log"))
			if err != nil {
				return err
			}
			ends := map[string]int{} // End-of-RIB in the newest session with each neighbour
			for line := range strings.Lines(string(log)) {
				_, line, _ = strings.Cut(line, "> ")
				switch neighbour, what, _ := strings.Cut(line, ": "); strings.TrimSpace(what) {
				case "BGP session established":
					ends[neighbour] = 0
				case "Got END-OF-RIB":
					ends[neighbour]++
				}
			}
			for neighbour, n := range ends {
				if n < 2 {
					return fmt.Errorf("bird had %d End-of-RIB from %s", n, neighbour)
				}
			}
			return nil
		}
		out := r.ask("show bgp ipv4 neighbors graceful-restart")
		if !strings.Contains(out, "End-of-RIB received: Yes") || strings.Contains(out, "End-of-RIB received: No") {
			return fmt.Errorf("frr had no End-of-RIB: %s", out)
		}
		return nil
	})
}

// sawRestart fails the test unless the newest OPEN said that we restarted and kept forwarding.
func (r *router) sawRestart() {
	r.t.Helper()
	command, marks := "show protocols all", []string{"Restart recovery", "AF preserved: ipv4 ipv6"}
	if r.kind == "frr" {
		command, marks = "show bgp ipv4 neighbors graceful-restart", []string{"R bit: True", "F bit: True"}
	}
	out := r.ask(command)
	for _, mark := range marks {
		if !strings.Contains(out, mark) || strings.Contains(out, "bit: False") {
			r.t.Errorf("%s: the OPEN lacks %q: %s", r.kind, mark, out)
		}
	}
}

// routes returns what BGP put into the switch's kernel.
func (r *router) routes() map[netip.Prefix]netip.Addr {
	r.t.Helper()
	out := make(map[netip.Prefix]netip.Addr)
	routes, err := r.Learned(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, route := range routes {
		var hop netip.Addr
		if len(route.Via) > 0 {
			hop = route.Via[len(route.Via)-1]
		}
		if !route.Dst.IsSingleIP() {
			out[route.Dst] = hop
		}
	}
	return out
}

// hears waits until the switch's kernel has exactly these paths.
func (r *router) hears(want []Path) {
	r.t.Helper()
	eventually(r.t, func() error { return r.compare(want) })
}

func (r *router) compare(want []Path) error {
	got := r.routes()
	var wrong []string
	for _, p := range want {
		if got[p.Prefix] != p.NextHop {
			wrong = append(wrong, fmt.Sprintf("%s via %v, want %v", p.Prefix, got[p.Prefix], p.NextHop))
		}
		delete(got, p.Prefix)
	}
	for p, hop := range got {
		wrong = append(wrong, fmt.Sprintf("%s via %v, want none", p, hop))
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d of %d routes wrong: %s", r.kind, len(wrong), len(want), strings.Join(wrong[:min(5, len(wrong))], "; "))
}
