package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
nodeName: Node-1
mode: auto
modes:
- {nodeSelector: pool=warehouse, mode: overlay}
sourceNAT: {enabled: true, exclude: [10.0.0.0/8]}
bgp: {port: 1790, restartTime: 300s, holdTime: 9s, learn: [192.168.0.0/16, 0.0.0.0/0, 192.168.0.0/16, "fd99::/32"], learnMost: 7, longLivedTime: 24h}
metrics: ""
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeName != "Node-1" || c.Mode != cluster.Auto || c.Modes[0].Mode != cluster.Overlay || !c.Modes[0].NodeSelector.Selects(map[string]string{"pool": "warehouse"}) ||
		c.SourceNAT.Exclude[0].String() != "10.0.0.0/8" || c.BGP.Port != 1790 || c.BGP.RestartTime != 5*time.Minute || c.Metrics != "" {
		t.Errorf("got %+v", c)
	}
	if got := fmt.Sprint(c.BGP.Learn); got != "[192.168.0.0/16 0.0.0.0/0 fd99::/32]" || c.BGP.LearnMost != 7 {
		t.Errorf("learn %s, at most %d", got, c.BGP.LearnMost)
	}
	if c, err := Parse(nil); err != nil || len(c.BGP.Learn) != 0 || c.BGP.LearnMost != 100 {
		t.Errorf("defaults: learn %v, at most %d, %v", c.BGP.Learn, c.BGP.LearnMost, err)
	}
	if got := c.BGP.LongLivedTime; got != 24*time.Hour {
		t.Errorf("long-lived time %v", got)
	}
	if c.StateDir != "/var/lib/edgeway" || c.VXLAN.Port != 8472 {
		t.Errorf("defaults: %+v", c)
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "mode: underlay\nmodee: overlay\n", "line 2: unknown key modee"},
		{"unknown key inside", "bgp:\n  restart: 600s\n", "line 2: unknown key restart"},
		{"wrong type", "sourceNAT: {enabled: perhaps}\n", "line 1"},
		{"list for a text", "stateDir: [a]\n", "line 1"},
		{"mode", "\nmode: tunnel\n", `line 2: want underlay, overlay or auto, got "tunnel"`},
		{"restart time over 12 bits", "bgp: {restartTime: 5000s}\n", `line 1: want a restart time from 0s (off) to 4095s (RFC 4724), whole seconds, got "5000s"`},
		{"long-lived time over 24 bits", "bgp: {longLivedTime: 16777216s}\n", `want a time from 0s (off) to 16777215s (RFC 9494), whole seconds, got "16777216s"`},
		{"long-lived time alone", "bgp: {restartTime: 0s, longLivedTime: 24h}\n", "bgp.longLivedTime: it begins when bgp.restartTime is over"},
		{"hold time", "bgp: {holdTime: 2s}\n", "want a hold time from 3s"},
		{"port", "bgp: {port: 70000}\n", "want a port from 1 to 65535"},
		{"port of canaries", "paths: {port: 0}\n", "want a port from 1 to 65535"},
		{"Secret of canaries", "paths: {secret: Kube/Key}\n", `want the name of a Secret in kube-system, got "Kube/Key"`},
		{"rounds", "paths: {every: 500ms}\n", "want a time from 1s to 10m"},
		{"VNI", "vxlan: {vni: 16777216}\n", "want a VNI"},
		{"MTU", "cni: {mtu: 100}\n", "want an MTU"},
		{"CIDR", "sourceNAT: {exclude: [10.0.0.1/8]}\n", `want a CIDR such as 10.0.0.0/8, got "10.0.0.1/8"`},
		{"learn with host bits", "bgp: {learn: [192.168.0.1/16]}\n", `want a CIDR such as 10.0.0.0/8, got "192.168.0.1/16"`},
		{"learn one", "bgp: {learn: 0.0.0.0/0}\n", "line 1"},
		{"learn nothing at most", "bgp: {learnMost: 0}\n", "want a number of routes from 1 to 10000"},
		{"selector", "modes: [{nodeSelector: 'a=(', mode: overlay}]\n", "line 1"},
		{"half a pool mode", "modes: [{nodeSelector: a=b}]\n", "modes[0]: want both"},
		{"two documents", "mode: auto\n---\nmode: auto\n", "a second document"},
		{"no YAML", "mode: [", "line 1"},
		{"two sources", "cluster: {kubeconfig: /x, manifests: /y}\n", "both manifests and kubeconfig"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "config.") {
				t.Errorf("speaks of Go types: %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("mode: auto\nbgp: {port: 1}\n"))
	f.Add([]byte("modes:\n- nodeSelector: all()\n  mode: overlay\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := Parse(text); err == nil && c.NodeName == "" {
			t.Error("accepted, but without a node name")
		}
	})
}

// A file of an earlier version, or one that edgeway-controller reads too, has a key controller: the
// node starts with it.
func TestConfigWithController(t *testing.T) {
	if _, err := Parse([]byte("controller: {podCIDRs: [10.10.0.0/16], nodeSelector: all()}\n")); err != nil {
		t.Error(err)
	}
}
