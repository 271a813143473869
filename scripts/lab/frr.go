package lab

import (
	"context"
	"encoding/json"
	"fmt"
)

// frr plays a switch with FRR's zebra and bgpd (Debian package frr).
type frr struct{}

// frrDir is where Debian installs FRR's daemons.
const frrDir = "/usr/lib/frr"

// frrConfig has the same effect as birdConfig. The stale-path time is FRR's own limit for keeping the
// routes of a restarting neighbor. Its default of 360 s is shorter than the neighbor's 600 s. GLOBAL makes
// the next hops between switches readable; without it FRR takes the link-local addresses.
const frrConfig = `hostname {{.Spec.Name}}
router bgp {{.Spec.ASN}}
 bgp router-id {{.RouterID}}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp graceful-restart stalepath-time 600
 bgp graceful-restart
{{- range .Spec.Neighbors}}
 neighbor {{.Address}} remote-as {{.ASN}}
 neighbor {{.Address}} description {{.Name}}
 neighbor {{.Address}} timers connect 5
{{- if .Password}}
 neighbor {{.Address}} password {{.Password}}
{{- end}}
{{- end}}
{{- range $family := .Families}}
 address-family {{$family}} unicast
  redistribute connected
  redistribute kernel
{{- range $.Spec.Neighbors}}
  neighbor {{.Address}} activate
{{- if .Announce}}
  neighbor {{.Address}} route-map GLOBAL in
{{- else}}
  neighbor {{.Address}} route-map NOTHING out
{{- end}}
{{- end}}
 exit-address-family
{{- end}}
exit
route-map GLOBAL permit 10
 set ipv6 next-hop prefer-global
exit
route-map NOTHING deny 10
exit
`

func (frr) files(s *Switch) (map[string]string, error) {
	text, err := s.config(frrConfig)
	return map[string]string{"bgpd.conf": text, "zebra.conf": "hostname " + s.Name + "\n"}, err
}

func (frr) user() string { return "frr" }

func (frr) programs(s *Switch) []program {
	daemon := func(name, socket string) program {
		return program{
			name: name,
			argv: []string{frrDir + "/" + name, "--log", "stdout",
				"--config_file", s.file(name + ".conf"), "--pid_file", s.file(name + ".pid"),
				"--socket", s.file("zserv.api"), "--vty_socket", s.Dir, "--vty_port", "0"},
			socket: s.file(socket),
		}
	}
	bgpd := daemon("bgpd", "bgpd.vty")
	if s.Spec.Port != 0 {
		bgpd.argv = append(bgpd.argv, "--bgp_port", fmt.Sprint(s.Spec.Port))
	}
	return []program{daemon("zebra", "zserv.api"), bgpd}
}

func (frr) proto() string { return "bgp" }

func (frr) learned(context.Context, *Switch) ([]Route, error) { panic("its routes are in the kernel") }

func (frr) console(s *Switch, words []string) []string {
	argv := []string{"vtysh", "--vty_socket", s.Dir, "-d", "bgpd"}
	for _, w := range words {
		argv = append(argv, "-c", w)
	}
	return argv
}

func (f frr) tables(s *Switch) (sessions, routes []string) {
	return f.console(s, []string{"show bgp ipv4 unicast summary"}), f.console(s, []string{"show bgp ipv4"})
}

func (frr) sessions(ctx context.Context, s *Switch) ([]Session, error) {
	out, err := s.Console(ctx, "show bgp ipv4 unicast summary json")
	if err != nil {
		return nil, err
	}
	var summary struct {
		Peers map[string]struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := json.Unmarshal([]byte(out), &summary); err != nil {
		return nil, fmt.Errorf("%s: vtysh's answer is not JSON: %w: %.200s", s.Name, err, out)
	}
	return s.sessionsOf(func(n NeighborSpec) string { return summary.Peers[n.Address.String()].State })
}
