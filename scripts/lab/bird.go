package lab

import (
	"context"
	"strings"
)

// bird plays a switch with BIRD 2 (Debian package bird2).
type bird struct{}

// birdConfig is a typical operator's configuration. A session keeps its routes while the neighbor restarts,
// and every learned route goes into the kernel. Connected and fixed routes are advertised only to neighbors
// with Announce. The two timers shorten the default waits of 5 s and 120 s between switches.
const birdConfig = `router id {{.RouterID}};
log stderr { info, remote, warning, error, auth, fatal, bug };
protocol device {}
protocol direct { ipv4; ipv6; }
protocol kernel kernel4 { learn; ipv4 { import all; export where source = RTS_BGP; }; }
protocol kernel kernel6 { learn; ipv6 { import all; export where source = RTS_BGP; }; }
{{- $asn := .Spec.ASN}}
{{- range .Spec.Neighbors}}
protocol bgp '{{.Name}}' {
	local as {{$asn}};
	neighbor {{.Address}} as {{.ASN}};
	graceful restart on;
	connect delay time 1;
	connect retry time 5;
{{- if .Password}}
	password "{{.Password}}";
{{- end}}
	ipv4 { import all; export {{if .Announce}}all{{else}}none{{end}}; };
	ipv6 { import all; export {{if .Announce}}all{{else}}none{{end}}; };
}
{{- end}}
`

func (bird) files(s *Switch) (map[string]string, error) {
	text, err := s.config(birdConfig)
	return map[string]string{"bird.conf": text}, err
}

func (bird) programs(s *Switch) []program {
	return []program{{
		name:   "bird",
		argv:   []string{"bird", "-f", "-c", s.file("bird.conf"), "-s", s.file("bird.ctl"), "-P", s.file("bird.pid")},
		socket: s.file("bird.ctl"),
	}}
}

func (bird) proto() string { return "bird" }

func (bird) learned(context.Context, *Switch) ([]Route, error) { panic("its routes are in the kernel") }

func (bird) user() string { return "" }

func (bird) console(s *Switch, words []string) []string {
	return append([]string{"birdc", "-s", s.file("bird.ctl")}, words...)
}

func (bird) tables(s *Switch) (sessions, routes []string) {
	show := []string{"birdc", "-r", "-s", s.file("bird.ctl"), "show"}
	return append(show[:5:5], "protocols"), append(show[:5:5], "route", "where", "source", "=", "RTS_BGP")
}

// sessions reads `show protocols`: name, protocol, table, state, since, and the protocol's own information.
// For BGP that information is the state of RFC 4271, sometimes followed by the last error.
func (bird) sessions(ctx context.Context, s *Switch) ([]Session, error) {
	out, err := s.Console(ctx, "show", "protocols")
	if err != nil {
		return nil, err
	}
	states := map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "BGP" {
			states[f[0]] = strings.Join(f[5:], " ")
		} else if len(f) > 3 && f[1] == "BGP" {
			states[f[0]] = f[3]
		}
	}
	return s.sessionsOf(func(n NeighborSpec) string { return states[n.Name] })
}
