package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/controller"
	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// The pools that the controller would serve, by configuration and by flags; and what it says of mistakes.
func TestPools(t *testing.T) {
	tests := []struct{ name, config, args, want string }{
		{"flags", "", "--pod-cidr 10.10.0.0/16,fd00:10::/48 --node-selector pool=hybrid", "pool=hybrid [10.10.0.0/16 fd00:10::/48] {24 64} []"},
		{"flags over the configuration", "controller: {podCIDRs: [10.9.0.0/16], nodeSelector: all()}", "--pod-cidr 10.10.0.0/16 --node-selector all() --node-mask-ipv4 26 --exclude 10.10.0.0/20",
			"all() [10.10.0.0/16] {26 64} [10.10.0.0/20]"},
		{"one pool", "controller: {podCIDRs: [10.9.0.0/16], nodeMask: {ipv4: 25}, nodeSelector: all()}", "", "all() [10.9.0.0/16] {25 64} []"},
		{"several", "controller: {pools: [{podCIDRs: [10.9.0.0/16], nodeSelector: a=b}, {podCIDRs: [10.8.0.0/16], nodeSelector: all()}]}", "",
			"a=b [10.9.0.0/16] {24 64} [] all() [10.8.0.0/16] {24 64} []"},
		{"no selector", "controller: {podCIDRs: [10.9.0.0/16]}", "", "pool 10.9.0.0/16: no nodeSelector; write all() to select every node"},
		{"no selector by flag", "", "--pod-cidr 10.10.0.0/16", "--node-selector: selector: empty; write all() to select every node"},
		{"flags without --pod-cidr", "", "--node-selector all()", "set --pod-cidr too"},
		{"both kinds", "controller: {podCIDRs: [10.9.0.0/16], pools: [{podCIDRs: [10.8.0.0/16], nodeSelector: all()}]}", "", "either pools, or podCIDRs"},
		{"host bits", "", "--pod-cidr 10.10.0.1/16 --node-selector all()", `--pod-cidr "10.10.0.1/16": want a CIDR such as 10.10.0.0/16`},
		{"no room", "controller: {podCIDRs: [10.9.0.0/25], nodeSelector: all()}", "", "podCIDRs 10.9.0.0/25: no block of /24 fits in; set nodeMask from /25 to /32"},
		{"overlap", "controller: {pools: [{podCIDRs: [10.0.0.0/8], nodeSelector: a=b}, {podCIDRs: [10.8.0.0/16], nodeSelector: all()}]}", "", "podCIDRs 10.8.0.0/16: overlaps 10.0.0.0/8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "edgeway-controller.yaml")
			if err := os.WriteFile(file, []byte(test.config), 0o600); err != nil {
				t.Fatal(err)
			}
			var f flags
			cmd := &cobra.Command{}
			f.addTo(cmd)
			if err := cmd.ParseFlags(append(strings.Fields(test.args), "--config", file)); err != nil {
				t.Fatal(err)
			}
			c, err := f.read()
			var pools []controller.Pool
			if err == nil {
				pools, err = f.pools(c)
			}
			var got []string
			for _, p := range pools {
				got = append(got, fmt.Sprint(p.Selector, " ", p.CIDRs, " ", p.Mask, " ", p.Exclude))
			}
			if err != nil {
				got = []string{err.Error()}
			}
			if text := strings.Join(got, " "); !strings.Contains(text, test.want) {
				t.Errorf("got %s, want %s", text, test.want)
			}
		})
	}
}

// The controller starts with the configuration that is shipped for its pod.
func TestShippedPools(t *testing.T) {
	c, err := controller.ReadConfig("../../../deploy/kubernetes/controller/edgeway-controller.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pools, err := flags{}.pools(c)
	if err != nil || len(pools) != 1 {
		t.Errorf("got %v, %v; want a pool", pools, err)
	}
}

// The command as an operator types it, with the account that is shipped.
func TestAPIServerCommand(t *testing.T) {
	server := kube.Start(t, kube.Options{})
	if _, err := server.Kubectl("apply", "-k", "../../../deploy/kubernetes/rbac/controller"); err != nil {
		t.Fatal(err)
	}
	account, err := server.ServiceAccount("kube-system", "edgeway-controller")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "edgeway-controller.yaml")
	config := "cluster: {kubeconfig: " + account + "}\ncontroller: {podCIDRs: [10.10.0.0/16, \"fd00:10::/48\"], nodeMask: {ipv4: 26}, nodeSelector: pool=hybrid, listen: 127.0.0.1:0}\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.ApplyText(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge", "labels": {"pool": "hybrid"}}}
---
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cloud"}}`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		cmd := command()
		cmd.SetArgs([]string{"--config", file})
		done <- cmd.ExecuteContext(ctx)
	}()
	podCIDRs := func() string {
		out, err := server.Kubectl("get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{.spec.podCIDRs}{"\n"}{end}`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := "cloud\nedge[\"10.10.0.0/26\",\"fd00:10::/64\"]\n"
	for deadline := time.Now().Add(time.Minute); podCIDRs() != want && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := podCIDRs(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
