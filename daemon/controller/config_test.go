package controller

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestControllerConfig(t *testing.T) {
	c, err := parseConfig([]byte(`
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
	p := c.Pools[0]
	if got := fmt.Sprintln(p.CIDRs, p.Mask, p.Selector, p.Exclude, c.Listen); got != "[10.10.0.0/16 fd00:10::/48] {26 80} pool=hybrid [10.10.255.0/24] :9476\n" {
		t.Errorf("got %s", got)
	}
	c, err = parseConfig([]byte("controller: {pools: [{nodeSelector: a=b, podCIDRs: [10.1.0.0/16]}, {nodeSelector: all(), podCIDRs: [10.2.0.0/16], nodeMask: {ipv4: 25}}]}\n"))
	if err != nil || len(c.Pools) != 2 || c.Pools[1].Mask != (Mask{25, 64}) {
		t.Errorf("got %+v, %v", c, err)
	}
	c, err = parseConfig([]byte("controller: {ens: {region: cn-hangzhou, credentials: env, fill: 5, switch: noRelease}}\n"))
	if err != nil || len(c.Uplinks) != 1 || fmt.Sprintf("%+v", c.Uplinks[0]) != "{Service:ens Endpoint: Region:cn-hangzhou Credentials: Terms:{Fill:{Free:5} PerInterface:25 Release:noRelease Oldest:0s Token: Issued:map[] Provider: Batch:0 Interfaces:0 Instance: VSwitches:[]} TaintWhenFull:false}" {
		t.Errorf("got %+v, %v", c.Uplinks, err)
	}
	c, err = parseConfig([]byte("controller: {ens: {}}\n"))
	if err != nil || len(c.Uplinks) != 1 || c.Uplinks[0].Credentials != "ens.json" || c.Uplinks[0].Region != "ap-southeast-1" || c.Uplinks[0].Terms.Fill.Free != 0 || c.Uplinks[0].Terms.Release != "on" {
		t.Errorf("got %+v, %v", c.Uplinks, err)
	}
	for text, want := range map[string]string{
		"controller: {ens: {switch: none}}":                     `line 1: want on, noRelease or off, got "none"`,
		"controller: {ens: {fill: 0}}":                          `line 1: want all, or how many`,
		"controller: {ens: {addressesPerInterface: 26}}":        `line 1: want a number from 1 to 25, got "26"`,
		"controller: {ens: {accessKey: x}}":                     "line 1: unknown key accessKey",
		"controller: {podCIDR: [10.0.0.0/8]}":                   "line 1: unknown key podCIDR",
		"controller: {podCIDRs: [10.0.0.1/8]}":                  `line 1: want a CIDR such as 10.0.0.0/8, got "10.0.0.1/8"`,
		"controller: {nodeMask: 24}":                            `line 1: want a mapping, got "24"`,
		"controller: {nodeMask: {ipv4: 33}}":                    `line 1: want a prefix length from 1 to 32, got "33"`,
		"controller: {nodeMask: {v4: 24}}":                      `line 1: unknown key v4`,
		"controller:\n  pools:\n  - {nodeSelector: 'a=('}":      "line 3",
		"controller:\n  pools:\n  - {nodeSelectr: a}":           "line 3: unknown key nodeSelectr",
		"controller: {pools: {nodeSelector: a, podCIDRs: [a]}}": "line 1: want a list of pools, got a mapping",
		"controller: {listen: [a]}":                             "line 1: want a text, got a list",
		"controller: {}\n---\ncontroller: {}":                   "a second document; keep one",
	} {
		if _, err := parseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "controller.") || strings.Contains(err.Error(), " into ") {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// One file can serve both programs: edgewayd's keys are not the controller's to judge.
func TestConfigOfEdgewayd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edgewayd.yaml")
	text := "nodeName: n1\ncluster: {kubeconfig: admin.conf, manifests: ''}\nbgp: {port: 1179}\ncontroller: {podCIDRs: [10.10.0.0/16], nodeSelector: all()}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(path)
	if err != nil || len(c.Pools) != 1 || c.Kubeconfig != filepath.Join(filepath.Dir(path), "admin.conf") {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := ReadConfig(path + "x"); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("a file that is missing: %v; want the flag that names another", err)
	}
}
