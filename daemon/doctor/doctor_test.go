package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// machine is a node in a namespace of its own: node-1 with 192.0.2.11 on eth0. The other end of the cable, lan0 in
// another namespace, has the default gateway 192.0.2.1 and node-2's 192.0.2.12.
type machine struct {
	t      *testing.T
	space  *lab.Space
	lan    *lab.Space
	config config.Config
}

const nodes = `apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.10.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
spec: {podCIDRs: [10.10.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-3}
spec: {podCIDRs: [10.10.3.0/24]}
status: {addresses: [{type: InternalIP, address: 198.51.100.13}]}
`

func newMachine(t *testing.T) *machine {
	t.Helper()
	lab.Need(t, "ip", "nft", "iptables-restore")
	m := &machine{t: t, config: config.Defaults()}
	for _, s := range []**lab.Space{&m.space, &m.lan} {
		made, err := lab.NewSpace("")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { made.Close() })
		if *s = made; made.Loopback() != nil {
			t.Fatal("loopback")
		}
	}
	dir := t.TempDir()
	c := &m.config
	c.NodeName, c.Metrics, c.StateDir, c.Socket = "node-1", "", filepath.Join(dir, "state"), filepath.Join(dir, "sock")
	c.Cluster.Manifests = filepath.Join(dir, "cluster.d")
	c.CNI.ConfDir, c.CNI.BinDir = filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	for _, d := range []string{c.StateDir, c.Cluster.Manifests, c.CNI.ConfDir, c.CNI.BinDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{filepath.Join(c.Cluster.Manifests, "nodes.yaml"): nodes, filepath.Join(c.CNI.BinDir, "edgeway"): "#!/bin/sh\n",
		filepath.Join(c.CNI.ConfDir, "10-edgeway.conflist"): "{}"} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.run(m.space, "ip link add eth0 type veth peer name lan0")
	if err := m.space.Do(func() error {
		return exec.Command("ip", "link", "set", "lan0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.lan.File.Fd())).Run()
	}); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"ip addr add 192.0.2.1/24 dev lan0", "ip addr add 192.0.2.12/24 dev lan0", "ip link set lan0 up"} {
		m.run(m.lan, cmd)
	}
	for _, cmd := range []string{"ip addr add 192.0.2.11/24 dev eth0", "ip link set eth0 up", "ip route add default via 192.0.2.1", "sysctl -qw net.ipv4.ip_forward=1"} {
		m.run(m.space, cmd)
	}
	return m
}

func (m *machine) run(s *lab.Space, command string) {
	m.t.Helper()
	if err := s.Do(func() error {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", command, err, out)
		}
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
}

// checks examines the machine.
func (m *machine) checks() []Check {
	m.t.Helper()
	var r Report
	if err := m.space.Do(func() (err error) {
		r, err = Examine(m.t.Context(), m.config, Options{Version: "v1", Plugin: func(context.Context, string) (string, error) { return "v1", nil }})
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	return r.Checks
}

// examine returns the checks that are not ok.
func (m *machine) examine() string {
	m.t.Helper()
	var out []string
	for _, c := range m.checks() {
		if c.State == OK || c.Name == "daemon" || c.Name == "clock" {
			continue
		}
		out = append(out, fmt.Sprintf("%s %s %s: %s", c.State, c.Group, c.Name, c.Got))
	}
	return strings.Join(out, "\n")
}

// Each fault of one machine is named, and a healthy machine has none but that no daemon runs.
func TestExamine(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if got := m.examine(); got != "" {
		t.Fatalf("a healthy machine:\n%s", got)
	}
	for _, cmd := range []string{"sysctl -qw net.ipv4.ip_forward=0", "iptables-restore ../../routes/testdata/firewall/docker.iptables",
		"nft add table ip other", "nft 'add chain ip other post { type nat hook postrouting priority 90; }'", "nft add rule ip other post ip saddr 10.10.0.0/16 masquerade",
		"nft 'add chain ip other way { type filter hook forward priority 90; }'", "nft add rule ip other way limit rate 9/second drop",
		"ip rule add to 10.10.2.0/24 lookup 77", "ip route add default via 192.0.2.1 table 77",
		"ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0", "ip link add edgeway.6 type vxlan id 1 dstport 8472 local fd00::11"} {
		m.run(m.space, cmd)
	}
	m.run(m.lan, "ip addr flush dev lan0")
	m.run(m.lan, "ip addr add 192.0.2.12/24 dev lan0")
	m.run(m.lan, "ip addr add 192.0.2.11/24 dev lan0")
	m.config.Mode, m.config.CNI.MTU = "overlay", 1500
	for _, err := range []error{os.Chmod(filepath.Join(m.config.CNI.BinDir, "edgeway"), 0o644), os.WriteFile(filepath.Join(m.config.CNI.ConfDir, "05-other.conflist"), nil, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := m.examine()
	for _, want := range []string{
		"problem links pods: want an MTU of at most 1450",
		"problem links net.ipv4.ip_forward: want 1, got 0",
		"problem links link flannel.1: it has VNI 1 and UDP port 8472, which edgeway.1 needs",
		"problem routes route 10.10.2.0/24: want ",
		"problem neighbours gateway 192.0.2.1: want the default route's gateway to answer on eth0",
		"problem neighbours address 192.0.2.11: the machine with MAC ",
		"problem firewall firewall: want pods' packets from 10.10.1.128 to 10.10.1.129 to pass, got forward: chain ip filter FORWARD of nftables, policy drop",
		"unclear firewall forward: chain ip other way of nftables, rule with handle ",
		"got postrouting: chain ip other post of nftables, rule with handle ",
		"problem pods file ", "problem pods plugin edgeway: want an executable ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if strings.Contains(got, "link edgeway.6") {
		t.Error("our own link of the other family is a rival")
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Without manifests doctor said that links, routes, gateways and firewalls were right, and that no Node had an empty name.
func TestExamineWithoutClusterStateDoesNotSayThatAllIsRight(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.config.Cluster.Manifests += ".none"
	var got []string
	for _, c := range m.checks() {
		if c.Group != "pods" && c.Group != "machine" {
			got = append(got, c.State+" "+c.Group+" "+c.Name)
		}
	}
	const not = "not examined without the cluster state"
	want := []string{"problem cluster cluster state", "unclear links " + not, "unclear routes " + not, "unclear neighbours " + not, "unclear firewall " + not}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// kube-network-policies is ready and enforces nothing where the kernel cannot queue packets: only doctor says so.
func TestKubeNetworkPoliciesWithoutItsKernelSupport(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	err := m.space.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		// linux/netfilter/nfnetlink_queue.h: NFQNL_MSG_CONFIG of queue 98 with NFQA_CFG_CMD, bind.
		bind := []byte{28, 0, 0, 0, 2, unix.NFNL_SUBSYS_QUEUE, unix.NLM_F_REQUEST, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 98, 8, 0, 1, 0, 1, 0, 0, 0}
		if err := unix.Sendto(fd, bind, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		listeners, err := routes.Listeners()
		if err == nil && (len(listeners) != 1 || listeners[0].Queue != 98) {
			err = fmt.Errorf("programs that wait for queued packets: %v, want one on queue 98", listeners)
		}
		if err != nil {
			return err
		}
		for _, c := range []struct {
			err       error
			listeners []routes.Listener
			state     string
			says      string
		}{
			{nil, listeners, OK, "has nft_queue"},
			{unix.ENOENT, nil, OK, "and it does not run"},
			{unix.ENOENT, listeners, Problem, "a program waits for packets in queue 98: kube-network-policies enforces no NetworkPolicy"},
		} {
			var e examination
			e.queue([]routes.Feature{{Name: routes.QueueFeature, Err: c.err, Beside: true}}, c.listeners)
			if got := e.report.Checks; len(got) != 1 || got[0].State != c.state || !strings.Contains(got[0].Name+got[0].Got, c.says) {
				t.Errorf("%+v, want %s and %q", got, c.state, c.says)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
