package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// manifests writes the manifests of a golden LAN into a directory.
func manifests(t *testing.T, story string) string {
	t.Helper()
	a, err := txtar.ParseFile("../../testdata/desired/" + story + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range a.Files {
		if strings.HasSuffix(f.Name, ".yaml") && f.Name != "config.yaml" {
			if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// The exit statuses that the CI of a repository relies on.
func TestPlanExitStatus(t *testing.T) {
	good, mistakes, secretless, empty := manifests(t, "two-lans"), manifests(t, "mistakes"), manifests(t, "no-secret"), t.TempDir()
	changed := manifests(t, "two-lans")
	if err := os.Remove(filepath.Join(changed, "peer-b.yaml")); err != nil {
		t.Fatal(err)
	}
	peers := t.TempDir()
	text, err := os.ReadFile(filepath.Join(good, "peer-a.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(peers, "peer-a.yaml"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	w, err := cluster.ReadManifests(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range w.Nodes { // as a daemon knows them
		w.Nodes[i].Since = time.Now()
	}
	at := serve(t, map[string]any{"known": daemon.Known{Self: "Node-9", Cluster: w.Masked()}})
	for _, c := range []struct {
		args []string
		want int
		says string
	}{
		{[]string{"-f", good}, 0, "Problems: none\nAdvice: 2\n"}, // advice is no problem
		{[]string{"-f", good, "--against", good}, 0, "Changes against"},
		{[]string{"-f", good, "-o", "svg"}, 0, "<svg"},
		{[]string{"-f", good, "-o", "json", "--against", changed}, 2, `"object": "Switch 10.0.20.1"`},
		{[]string{"-f", filepath.Join(good, "nodes.yaml"), "--against", good}, 2, "- to 10.0.10.1: 10.10.1.0/24 via 10.0.10.11"},
		{[]string{"-f", peers, "--against", changed}, 0, "0 objects"}, // with the Nodes of the other side
		{[]string{"-f", good, "--against", "live"}, 0, "0 objects"},
		{[]string{"-f", changed, "--against", "live"}, 2, "- peer 10.0.20.1 as 65003"},
		{[]string{"-f", mistakes}, 3, "noSuchSpeaker"},
		{[]string{"-f", secretless}, 3, "noPassword"},
		{[]string{"-f", secretless, "--assume-secrets"}, 0, "md5"},
		{[]string{"-f", good, "--subnet", "10.0.10.8/29"}, 3, "peerOffSubnet"},
		{[]string{"-f", peers}, 1, ""},
		{[]string{"-f", empty}, 1, ""},
		{[]string{"-f", filepath.Join(empty, "none")}, 1, ""},
		{[]string{"-f", good, "--subnet", "10.0.10.1/24"}, 1, ""},
		{[]string{}, 1, ""},
	} {
		args := append([]string{"plan"}, c.args...)
		if strings.Contains(fmt.Sprint(args), "live") {
			args = append(args, at...)
		}
		out, status, err := command(t, args...)
		if status != c.want || !strings.Contains(out, c.says) || (status == 1) != (err != nil) {
			t.Errorf("%v: exit %d, want %d (%v), and %q:\n%s", args, status, c.want, err, c.says, out)
		}
	}
}

func TestSwitchConfigCommand(t *testing.T) {
	dir := manifests(t, "bgpclusterconfig")
	for _, c := range []struct {
		args string
		want int
		says []string
	}{
		{"--vendor frr", 0, []string{"neighbor 10.10.0.12 password PASSWORD", "the key password of Secret kube-system/bgp-secret", "stalepath-time 600", "permit 10.244.3.0/24"}},
		{"--vendor bird --allow 10.244.0.0/16", 0, []string{"10.244.0.0/16{24,24}"}},
		{"--vendor frr --switch 10.10.0.1", 0, []string{"router bgp 65001"}},
		{"--vendor frr --switch 10.10.0.2", 1, nil},
		{"--vendor cisco", 1, nil},
	} {
		out, status, err := command(t, append([]string{"switch-config", "-f", dir}, strings.Fields(c.args)...)...)
		if status != c.want {
			t.Errorf("%s: exit %d: %v", c.args, status, err)
		}
		for _, want := range c.says {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, out)
			}
		}
		if strings.Contains(out, "bXlT") || strings.Contains(out, "mySecret") {
			t.Errorf("%s prints a password", c.args)
		}
	}
}
