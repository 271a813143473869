package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// openbgpd plays a switch with OpenBGPD (Debian package openbgpd).
type openbgpd struct{}

// openbgpdDir is where Debian installs bgpd. FRR has a program of the same name elsewhere.
const openbgpdDir = "/usr/sbin"

// openbgpdConfig has the same effect as birdConfig. OpenBGPD does not read the kernel's table on Linux, so
// the configuration names the connected and fixed routes to advertise. It advertises only routes of the
// session's own family, because OpenBGPD would give the other family the next hop ::1. OpenBGPD keeps the
// routes of a neighbor that restarts. For itself it only announces that it sends the End-of-RIB marker:
// bgpd.conf(5), "announce restart".
const openbgpdConfig = `AS {{.Spec.ASN}}
router-id {{.RouterID}}
socket "{{.Socket}}"
fib-update no
nexthop qualify via default
{{- range .Networks}}
network {{.}}
{{- end}}
{{- range .Spec.Neighbors}}
neighbor {{.Address}} {
	remote-as {{.ASN}}
	descr "{{.Name}}"
	announce IPv4 unicast
	announce IPv6 unicast
	announce restart yes
{{- if .Password}}
	tcp md5sig password "{{.Password}}"
{{- end}}
}
allow from {{.Address}}
{{- if .Announce}}
allow to {{.Address}} {{if .Address.Is4}}inet{{else}}inet6{{end}}
{{- end}}
{{- end}}
`

func (o openbgpd) files(s *Switch) (map[string]string, error) {
	text, err := s.config(openbgpdConfig)
	return map[string]string{"bgpd.conf": text}, err
}

func (o openbgpd) socket(s *Switch) string { return s.file("bgpd.sock") }

// programs starts bgpd in a mount namespace with its own /run, so that the machine's /run is not touched.
// bgpd confines itself (chroot(2)) to its user's home, /run/openbgpd, which must exist.
func (o openbgpd) programs(s *Switch) []program {
	script := fmt.Sprintf("mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/openbgpd && chmod 600 %[1]s && exec %[2]s/bgpd -d -f %[1]s", s.file("bgpd.conf"), openbgpdDir)
	return []program{{
		name:   "bgpd",
		argv:   []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script},
		socket: o.socket(s),
	}}
}

func (openbgpd) proto() string { return "" }

func (openbgpd) user() string { return "" }

func (o openbgpd) console(s *Switch, words []string) []string {
	return append([]string{"bgpctl", "-s", o.socket(s)}, words...)
}

func (o openbgpd) tables(s *Switch) (sessions, routes []string) {
	return o.console(s, []string{"show"}), o.console(s, []string{"show", "rib", "in"})
}

func (o openbgpd) bgpctl(ctx context.Context, s *Switch, into any, words ...string) error {
	out, err := s.Console(ctx, append([]string{"-j", "show"}, words...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: bgpctl's answer is not JSON: %w: %.200s", s.Name, err, out)
	}
	return nil
}

func (o openbgpd) sessions(ctx context.Context, s *Switch) ([]Session, error) {
	var reply struct {
		Neighbors []struct {
			Addr  netip.Addr `json:"remote_addr"`
			State string     `json:"state"`
		} `json:"neighbors"`
	}
	if err := o.bgpctl(ctx, s, &reply, "neighbor"); err != nil {
		return nil, err
	}
	states := map[netip.Addr]string{}
	for _, n := range reply.Neighbors {
		states[n.Addr] = n.State
	}
	return s.sessionsOf(func(n NeighborSpec) string { return states[n.Address] })
}

// learned reads the best route of each prefix from the routing table, without the switch's own routes.
func (o openbgpd) learned(ctx context.Context, s *Switch) ([]Route, error) {
	var reply struct {
		RIB []struct {
			Prefix  netip.Prefix `json:"prefix"`
			Nexthop netip.Addr   `json:"exit_nexthop"`
			Best    bool         `json:"best"`
		} `json:"rib"`
	}
	if err := o.bgpctl(ctx, s, &reply, "rib"); err != nil {
		return nil, err
	}
	var routes []Route
	for _, r := range reply.RIB {
		if r.Best && !r.Nexthop.IsUnspecified() {
			routes = append(routes, Route{Dst: r.Prefix, Via: []netip.Addr{r.Nexthop}})
		}
	}
	slices.SortFunc(routes, func(a, b Route) int { return strings.Compare(sortKey(a.Dst), sortKey(b.Dst)) })
	return routes, nil
}
