package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const patience = 30 * time.Second

// migrationNode is a machine whose pods another plugin wires first, then edgeway. Its runtime is libcni, as
// in containerd and CRI-O.
type migrationNode struct {
	netns, dir, bin string
	ends            []string // namespaces to take down
	daemon          *exec.Cmd
	log             bytes.Buffer
}

func kernelTest(t *testing.T) {
	t.Helper()
	lab.Need(t, "ip", "ping")
}

func newMigrationNode(t *testing.T) *migrationNode {
	t.Helper()
	n := &migrationNode{dir: t.TempDir()}
	n.bin = filepath.Join(n.dir, "bin")
	build := exec.Command("go", "build", "-o", n.bin+"/", "github.com/edgeway-cni/edgeway/plugin/edgeway", "github.com/edgeway-cni/edgeway/daemon/edgewayd",
		"github.com/containernetworking/plugins/plugins/main/ptp", "github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/ipam/host-local")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		for _, path := range n.ends {
			n.end(path)
		}
	})
	n.netns = n.space(t, "host")
	n.sh(t, n.netns, `ip link set lo up; ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up
		ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.254; sysctl -qw net.ipv4.ip_forward=1`)
	writeFiles(t, n.dir, map[string]string{
		"edgewayd.yaml": fmt.Sprintf("nodeName: n1\ncluster: {manifests: %[1]s/cluster.d}\nstateDir: %[1]s/state\nsocket: %[1]s/sock\nmetrics: \"\"\ncni: {confDir: %[1]s/net.d, binDir: %[1]s/bin}\n", n.dir),
		"cluster.d/node.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.88.1.0/28]}\n" +
			"status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n",
	})
	return n
}

// space makes a network namespace with a path, as runtimes do. The path alone holds it.
func (n *migrationNode) space(t *testing.T, name string) string {
	t.Helper()
	s, err := lab.NewSpace(filepath.Join(n.dir, "netns", name))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	n.ends = append(n.ends, s.Path)
	return s.Path
}

func (n *migrationNode) end(path string) { (&lab.Space{Path: path}).Remove() }

func inside(t *testing.T, netns string, do func() error) {
	t.Helper()
	if err := (&lab.Space{Path: netns}).Do(do); err != nil {
		t.Fatal(err)
	}
}

func (n *migrationNode) try(t *testing.T, netns, line string) (out string, err error) {
	t.Helper()
	inside(t, netns, func() error {
		var b []byte
		b, err = exec.Command("sh", "-ec", line).CombinedOutput()
		out = string(b)
		return nil
	})
	return out, err
}

func (n *migrationNode) sh(t *testing.T, netns, line string) string {
	t.Helper()
	out, err := n.try(t, netns, line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (n *migrationNode) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited %v: %s\n%s", patience, what, n.log.String())
		}
	}
}

// edgewayd runs a command of the operator's.
func (n *migrationNode) edgewayd(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errOut bytes.Buffer
	inside(t, n.netns, func() error {
		cmd := exec.Command(filepath.Join(n.bin, "edgewayd"), append(args, "--config", filepath.Join(n.dir, "edgewayd.yaml"))...)
		cmd.Stdout, cmd.Stderr = &out, &errOut
		_ = cmd.Run() // the status says it
		status = cmd.ProcessState.ExitCode()
		return nil
	})
	return out.String(), errOut.String(), status
}

func (n *migrationNode) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, status := n.edgewayd(t, args...)
	if status != 0 {
		t.Fatalf("edgewayd %s: status %d\n%s%s", strings.Join(args, " "), status, out, errOut)
	}
	return out
}

func (n *migrationNode) refused(t *testing.T, why string, args ...string) {
	t.Helper()
	out, errOut, status := n.edgewayd(t, args...)
	if status != 1 || !strings.Contains(errOut, why) {
		t.Errorf("edgewayd %s: status %d, want %q\n%s%s", strings.Join(args, " "), status, why, out, errOut)
	}
}

// start runs the daemon until the test ends or stop is called.
func (n *migrationNode) start(t *testing.T) {
	t.Helper()
	inside(t, n.netns, func() error {
		n.daemon = exec.Command(filepath.Join(n.bin, "edgewayd"), "run", "--config", filepath.Join(n.dir, "edgewayd.yaml"))
		n.daemon.Stderr = &n.log
		return n.daemon.Start()
	})
	t.Cleanup(func() { n.stop(t) })
	n.until(t, "network configuration", func() bool {
		_, err := os.Stat(filepath.Join(n.dir, "net.d/10-edgeway.conflist"))
		_, serr := os.Stat(filepath.Join(n.dir, "sock"))
		return err == nil && serr == nil
	})
}

func (n *migrationNode) stop(t *testing.T) {
	if n.daemon == nil {
		return
	}
	if err := n.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := n.daemon.Wait(); err != nil {
		t.Errorf("daemon: %v\n%s", err, n.log.String())
	}
	n.daemon = nil
}

// box is one pod's sandbox.
type box struct{ pod, id, netns, addr string }

// cni calls the plugins of a network configuration as a runtime does.
func (n *migrationNode) cni(t *testing.T, conflist string, do func(*libcni.CNIConfig, *libcni.NetworkConfigList) error) (err error) {
	t.Helper()
	list, err := libcni.ConfListFromFile(filepath.Join(n.dir, conflist))
	if err != nil {
		t.Fatal(err)
	}
	inside(t, n.netns, func() error {
		err = do(libcni.NewCNIConfigWithCacheDir([]string{n.bin}, filepath.Join(n.dir, "cni"), nil), list)
		return nil
	})
	return err
}

func (b box) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: b.id, NetNS: b.netns, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", b.pod}, {"K8S_POD_INFRA_CONTAINER_ID", b.id}, {"K8S_POD_UID", "u-" + b.id}}}
}

func (n *migrationNode) add(t *testing.T, conflist, pod, id string) (box, error) {
	t.Helper()
	b := box{pod: pod, id: id, netns: n.space(t, id)}
	err := n.cni(t, conflist, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		r, err := c.AddNetworkList(context.Background(), list, b.runtimeConf())
		if err != nil {
			return err
		}
		result, err := types.NewResultFromResult(r)
		if err == nil {
			b.addr = result.IPs[0].Address.IP.String()
		}
		return err
	})
	return b, err
}

func (n *migrationNode) mustAdd(t *testing.T, conflist, pod, id string) box {
	t.Helper()
	b, err := n.add(t, conflist, pod, id)
	if err != nil {
		t.Fatalf("ADD %s: %v\n%s", pod, err, n.log.String())
	}
	return b
}

func (n *migrationNode) del(t *testing.T, conflist string, b box) {
	t.Helper()
	err := n.cni(t, conflist, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.DelNetworkList(context.Background(), list, b.runtimeConf())
	})
	if err != nil {
		t.Fatalf("DEL %s: %v", b.pod, err)
	}
}

func (n *migrationNode) answers(t *testing.T, from string, b box) {
	t.Helper()
	if out, err := n.try(t, from, "ping -c1 -W3 "+b.addr); err != nil {
		t.Errorf("%s (%s) does not answer %s: %s", b.pod, b.addr, filepath.Base(from), out)
	}
}

func (n *migrationNode) list(t *testing.T) (a api.LeaseList) {
	t.Helper()
	if err := json.Unmarshal([]byte(n.must(t, "ipam", "list", "-o", "json")), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// A node of flannel (bridge) or of ptp becomes one of edgeway while its pods run: they keep their
// addresses, a recreated pod gets the address that it had, and no address is given twice.
func TestMigration(t *testing.T) {
	kernelTest(t)
	const ours = "net.d/10-edgeway.conflist"
	for old, main := range map[string]string{"ptp": `"type":"ptp"`, "bridge": `"type":"bridge","bridge":"cni0","isGateway":true`} {
		t.Run(old, func(t *testing.T) {
			n := newMigrationNode(t)
			writeFiles(t, n.dir, map[string]string{"old.conflist": fmt.Sprintf(
				`{"cniVersion":"1.0.0","name":"cbr0","plugins":[{%s,"ipam":{"type":"host-local","dataDir":"%s/networks","ranges":[[{"subnet":"10.88.1.0/28"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, main, n.dir)})
			var boxes []box
			for i := range 5 {
				boxes = append(boxes, n.mustAdd(t, "old.conflist", fmt.Sprintf("web-%d", i), fmt.Sprintf("old%d", i)))
			}
			web4 := boxes[4]
			n.end(web4.netns) // as after a reboot: nobody called DEL
			live := boxes[:4]
			dir := filepath.Join(n.dir, "networks/cbr0")
			writeFiles(t, dir, map[string]string{"10.88.1.14": "", "10.88.7.7": "stray\r\neth0"})

			// Before the daemon starts for the first time.
			importing := []string{"ipam", "import", dir, "--results", filepath.Join(n.dir, "cni/results")}
			n.refused(t, "add --yes", importing...)
			n.refused(t, "does not exist", "ipam", "list")
			out := n.must(t, append(importing, "--yes")...)
			for _, want := range []string{"shop/web-0", "hold", "remember", "Imported 6."} {
				if !strings.Contains(out, want) {
					t.Errorf("import says no %q:\n%s", want, out)
				}
			}
			if out := n.must(t, importing...); !strings.Contains(out, "Nothing is left to import") {
				t.Errorf("a second import:\n%s", out)
			}
			if out := n.must(t, "ipam", "release", "10.88.7.7", "--yes", "--force"); !strings.Contains(out, "released 10.88.7.7") {
				t.Errorf("release of a lease without a namespace: %s", out)
			}

			if err := os.Remove(filepath.Join(dir, "10.88.7.7")); err != nil {
				t.Fatal(err)
			}

			n.start(t)
			n.foreign(t, live)
			if old == "bridge" {
				n.sh(t, n.netns, "sysctl -qw net.ipv4.conf.cni0.proxy_arp=1 net.ipv4.neigh.cni0.proxy_delay=0")
			}
			fresh := n.mustAdd(t, ours, "fresh", "new-fresh")
			for _, b := range live {
				n.answers(t, n.netns, b)
				n.answers(t, fresh.netns, b)
				n.answers(t, b.netns, fresh)
			}

			// One pod is deleted and recreated, one after its sandbox died, one that died long ago.
			n.del(t, ours, live[0])
			n.end(live[0].netns)
			n.end(live[1].netns)
			n.until(t, "the kernel takes the old link down", func() bool {
				links := n.sh(t, n.netns, "ip -br link show type veth")
				return strings.Count(links, "veth") == 2 && !strings.Contains(n.sh(t, n.netns, "ip route show"), live[1].addr+" ")
			})
			given := map[string]string{fresh.addr: "fresh"}
			for _, b := range live[2:] {
				given[b.addr] = b.pod
			}
			for _, was := range []box{live[0], live[1], web4} {
				now := n.mustAdd(t, ours, was.pod, "new-"+was.pod)
				if now.addr != was.addr {
					t.Errorf("%s came back as %s, it was %s", was.pod, now.addr, was.addr)
				}
				given[now.addr] = now.pod
				n.answers(t, n.netns, now)
				n.answers(t, live[2].netns, now)
			}
			if out := n.must(t, importing...); !strings.Contains(out, "Nothing is left to import") {
				t.Errorf("an import after the pods came back:\n%s", out)
			}
			n.fill(t, ours, given)
			for _, b := range live[2:] {
				n.answers(t, n.netns, b)
			}
			n.asked(t, live[2], fresh)
		})
	}
}

// foreign: the daemon's sweep left the pods of the old plugin alone.
func (n *migrationNode) foreign(t *testing.T, live []box) {
	t.Helper()
	var got, want []string
	for _, l := range n.list(t).Leases {
		if l.Pod == "edgeway/canary" { // it is made about now, and gives way when the pool is full
			continue
		}
		got = append(got, l.Pod+" "+strings.Join(l.Addrs, ",")+" "+l.State)
	}
	for _, b := range live {
		want = append(want, "shop/"+b.pod+" "+b.addr+" foreign")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("leases when the daemon started (-want +got):\n%s", diff)
	}
}

// fill starts pods until no address is left: each address is one pod's, and the host's is nobody's.
func (n *migrationNode) fill(t *testing.T, conflist string, given map[string]string) {
	t.Helper()
	for i := 0; ; i++ {
		b, err := n.add(t, conflist, fmt.Sprintf("more-%d", i), fmt.Sprintf("more%d", i))
		if err != nil {
			if !strings.Contains(err.Error(), "no address left") {
				t.Errorf("the last pod: %v", err)
			}
			break
		}
		if by, dup := given[b.addr]; dup || b.addr == "10.88.1.1" {
			t.Fatalf("%s was given to %s, and %q has it", b.addr, b.pod, by)
		}
		given[b.addr] = b.pod
	}
	if len(given) != 13 { // 14 addresses of a /28, one is the host's
		t.Errorf("%d pods fit: %v", len(given), given)
	}
}

// asked: the commands answer the same through the daemon and without it.
func (n *migrationNode) asked(t *testing.T, old, fresh box) {
	t.Helper()
	through := n.list(t)
	n.refused(t, "its pod is running", "ipam", "release", "shop/"+old.pod, "--yes")
	n.refused(t, "no lease of a pod", "ipam", "show", "nobody")
	link := ""
	for _, l := range through.Leases {
		if l.ContainerID == fresh.id {
			link = l.Link
		}
	}
	shown := n.must(t, "ipam", "show", "shop/fresh")
	for _, want := range []string{fresh.addr, link, "default via 169.254.1.1", fresh.addr + " dev " + link, fresh.netns, "alive"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show says no %q:\n%s", want, shown)
		}
	}
	if shown := n.must(t, "ipam", "show", old.addr); !strings.Contains(shown, "another plugin made the interface") || !strings.Contains(shown, "default via 10.88.1.1") {
		t.Errorf("show of an imported lease:\n%s", shown)
	}
	if out := n.must(t, "ipam", "check"); !strings.Contains(out, "agree") {
		t.Errorf("check: %s", out)
	}

	n.stop(t)
	direct := n.list(t)
	if diff := cmp.Diff(through, direct, cmpopts.IgnoreFields(api.LeaseList{}, "Now")); diff != "" {
		t.Errorf("list (-through the daemon +without):\n%s", diff)
	}
	for _, word := range []string{fresh.addr, fresh.id[:6], link, "fresh"} {
		if got := n.must(t, "ipam", "show", word); !strings.Contains(got, fresh.netns) {
			t.Errorf("show %s:\n%s", word, got)
		}
	}
	n.sh(t, n.netns, "ip route del "+fresh.addr+" dev "+link)
	n.refused(t, "1 disagreement", "ipam", "check")
	if out := n.must(t, "ipam", "check", "--repair"); !strings.Contains(out, "repaired: add") {
		t.Errorf("repair: %s", out)
	}
	n.answers(t, n.netns, fresh)
	n.must(t, "ipam", "check")

	n.must(t, "ipam", "release", "shop/fresh", old.addr, "--force", "--yes")
	if out := n.sh(t, n.netns, "ip -br link show"); strings.Contains(out, link) {
		t.Errorf("release left the link: %s", out)
	}
	if out := n.sh(t, old.netns, "ip -br link show"); strings.Contains(out, "eth0") {
		t.Errorf("release left the old pod its interface: %s", out)
	}
	remembered := n.list(t).Remembered
	if !slices.ContainsFunc(remembered, func(m api.Remembered) bool {
		return m.Addr == old.addr && m.Pod == "shop/"+old.pod && m.Network == "edgeway"
	}) {
		t.Errorf("remembered %v", remembered)
	}
	n.must(t, "ipam", "release", "--remembered", old.addr, "--yes")
	n.refused(t, "not kept for a pod", "ipam", "release", "--remembered", old.addr, "--yes")
	if _, err := netip.ParseAddr(old.addr); err != nil {
		t.Error(err)
	}
}
