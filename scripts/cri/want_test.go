package cri

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// wantOwnAddrs checks that the pod has one address of each of the node's pod CIDRs.
func wantOwnAddrs(t *testing.T, p *pod) {
	t.Helper()
	status, err := p.on.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, addr := range p.addrs {
		for _, cidr := range status.PodCIDRs {
			if netip.MustParsePrefix(cidr).Contains(addr) {
				got = append(got, cidr)
			}
		}
	}
	if diff := cmp.Diff(status.PodCIDRs, got); diff != "" || len(p.addrs) != 2 {
		t.Errorf("%s on %s has addresses %v; pod CIDRs (-of the node +of the pod):\n%s", p.Name, p.on.Name, p.addrs, diff)
	}
}

// wantSameAddrs checks that the new sandbox of a pod has the addresses of the old one.
func wantSameAddrs(t *testing.T, before, after *pod) {
	t.Helper()
	if !slices.Equal(before.addrs, after.addrs) {
		t.Errorf("%s on %s: had %v, has %v", after.Name, after.on.Name, before.addrs, after.addrs)
	}
}

// wantUsed checks that the daemon counts this many leases and that the node has as many links of pods.
func wantUsed(t *testing.T, n *Node, want uint64) {
	t.Helper()
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.Leases.Used != want {
		t.Errorf("%s: %d leases used, want %d", n.Name, status.Leases.Used, want)
	}
	out, err := n.RunInside(t.Context(), "ip", "-o", "link", "show", "type", "veth")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out, ": ew"); uint64(got) != want {
		t.Errorf("%s: %d links of pods, want %d:\n%s", n.Name, got, want, out)
	}
	if len(status.Problems) > 0 {
		t.Errorf("%s: problems: %+v", n.Name, status.Problems)
	}
}

// wantCalls compares the calls that containerd made for a sandbox.
func wantCalls(t *testing.T, p *pod, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, p.on.calls(t, p.id)); diff != "" {
		t.Errorf("%s on %s: calls of the plugin (-want +got):\n%s", p.Name, p.on.Name, diff)
	}
}

// wantClean checks that no link, route, address, namespace, lease or rule of a pod is left on the node.
func wantClean(t *testing.T, n *Node) {
	t.Helper()
	for what, argv := range map[string][]string{
		"link":          {"ip", "-o", "link", "show", "type", "veth"},
		"ifb":           {"ip", "-o", "link", "show", "type", "ifb"},
		"IPv4 route":    {"ip", "-4", "route", "show", "table", "all", "proto", "101"},
		"IPv6 route":    {"ip", "-6", "route", "show", "table", "all", "proto", "101"},
		"neighbour":     {"ip", "neigh", "show", "nud", "permanent"},
		"namespace":     {"find", "/run/netns", "-name", "cni-*"},
		"port":          {"nft", "list", "ruleset"},
		"cgroup of pod": {"find", "/sys/fs/cgroup", "-path", "*" + string(n.Cgroup) + "/*", "-type", "d"},
	} {
		out, err := n.RunInside(t.Context(), argv...)
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		for line := range strings.Lines(out) {
			uplink := what == "link" && strings.Contains(line, " eth0@")
			rule := what == "port" && !strings.Contains(line, fmt.Sprint(hostPort))
			if !uplink && !rule {
				t.Errorf("%s: %s left: %s", n.Name, what, line)
			}
		}
	}
	wantUsed(t, n, 0)
}

// wantNothingLeft checks that nothing of the laboratory is left.
func wantNothingLeft(t *testing.T, l *lab.Lab) {
	t.Helper()
	var left []string
	for _, pattern := range []string{"/run/netns/" + l.Prefix + "*", "/sys/fs/cgroup/" + l.Prefix + "*", "/sys/fs/cgroup/*/" + l.Prefix + "*", l.Dir} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), l.Prefix) {
		left = append(left, "a mount")
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// hostLink returns the host's end of a pod's veth pair, to which the route to its address leads.
func (n *Node) hostLink(ctx context.Context, addr netip.Addr) (string, error) {
	out, err := n.RunInside(ctx, "ip", "-o", "route", "get", addr.String())
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	_, rest, _ := strings.Cut(out, " dev ")
	link, _, _ := strings.Cut(rest, " ")
	return link, nil
}
