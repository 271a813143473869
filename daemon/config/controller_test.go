package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestController(t *testing.T) {
	c, err := Parse([]byte(`
controller:
  podCIDRs: [10.10.0.0/16, "fd00:10::/48"]
  nodeMask: {ipv4: 26, ipv6: 80}
  nodeSelector: pool=hybrid
  exclude: [10.10.255.0/24]
  listen: :9476
`))
	if err != nil {
		t.Fatal(err)
	}
	p := c.Controller
	if got := fmt.Sprintln(p.PodCIDRs, p.NodeMask, p.NodeSelector, p.Exclude, p.Listen); got != "[10.10.0.0/16 fd00:10::/48] {26 80} pool=hybrid [10.10.255.0/24] :9476\n" {
		t.Errorf("got %s", got)
	}
	c, err = Parse([]byte("controller: {pools: [{nodeSelector: a=b, podCIDRs: [10.1.0.0/16]}, {nodeSelector: all(), podCIDRs: [10.2.0.0/16], nodeMask: {ipv4: 25}}]}\n"))
	if err != nil || len(c.Controller.Pools) != 2 || c.Controller.Pools[1].NodeMask.IPv4 != 25 {
		t.Errorf("got %+v, %v", c.Controller, err)
	}
	for text, want := range map[string]string{
		"controller: {podCIDR: [10.0.0.0/8]}":                   "line 1: unknown key podCIDR",
		"controller: {podCIDRs: [10.0.0.1/8]}":                  `line 1: want a CIDR such as 10.0.0.0/8, got "10.0.0.1/8"`,
		"controller: {nodeMask: 24}":                            `line 1: want a mapping, got "24"`,
		"controller: {nodeMask: {ipv4: 33}}":                    `line 1: want a prefix length from 1 to 32, got "33"`,
		"controller: {nodeMask: {v4: 24}}":                      "line 1: unknown key v4",
		"controller:\n  pools:\n  - {nodeSelector: 'a=('}":      "line 3",
		"controller:\n  pools:\n  - {nodeSelectr: a}":           "line 3: unknown key nodeSelectr",
		"controller: {pools: {nodeSelector: a, podCIDRs: [a]}}": "line 1",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "config.") {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
