package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// theLAN is the LAN of docs/getting-started.md: three nodes, their switch, and another machine.
const theLAN = `
hosts:
- {name: switch, forward: true, links: [{lan: shop, addrs: [10.0.10.1/24]}]}
- {name: pc, links: [{lan: shop, addrs: [10.0.10.99/24]}], routes: [{to: 0.0.0.0/0, via: 10.0.10.1}]}
nodes:
- {name: node-1, links: [{lan: shop, addrs: [10.0.10.11/24]}], routes: [{to: 0.0.0.0/0, via: 10.0.10.1}]}
- {name: node-2, links: [{lan: shop, addrs: [10.0.10.12/24]}], routes: [{to: 0.0.0.0/0, via: 10.0.10.1}]}
- {name: node-3, links: [{lan: shop, addrs: [10.0.10.13/24]}], routes: [{to: 0.0.0.0/0, via: 10.0.10.1}]}
`

// machineScript gives a node directories of its own where its programs look by default. The directories exist in /etc
// because all of /etc is the node's.
const machineScript = `hostname NAME
mkdir -p DIR/etc/edgeway/cluster.d DIR/etc/cni/net.d DIR/opt/cni/bin DIR/var-lib/edgeway
cp /etc/ld.so.cache DIR/etc/ 2>/dev/null || true
cp BIN/edgeway DIR/opt/cni/bin/
cp EXAMPLE DIR/etc/edgeway/edgewayd.yaml
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/edgeway /run/netns
mount --bind DIR/var-lib /var/lib
mount --bind DIR/opt /opt
mount --bind DIR/etc /etc`

// The blocks of "Without Kubernetes" in docs/getting-started.md, typed in their order on three machines with a BIRD
// switch, lead to a pod that the LAN reaches.
func TestGettingStarted(t *testing.T) {
	need(t)
	needPrograms(t)
	t.Parallel()
	text, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, _ := strings.Cut(string(text), "\n## Without Kubernetes\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	found := regexp.MustCompile("(?s)\n```(?:sh|bash)\n(.*?)```\n").FindAllStringSubmatch(chapter, -1)
	const blocks = 7
	if len(found) != blocks {
		t.Fatalf("the chapter has %d blocks of commands, want %d: teach this test where the new one is typed", len(found), blocks)
	}
	block := func(i int) string { return found[i][1] }

	programs, err := filepath.Abs(bin())
	if err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + programs + ":" + os.Getenv("PATH")
	l, err := lab.New(lab.Options{Bin: programs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	topology, err := lab.ParseTopology([]byte(theLAN))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := l.Build(ctx, topology); err != nil {
		t.Fatal(err)
	}
	example, err := filepath.Abs("../../deploy/example")
	if err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("BIN", programs, "EXAMPLE", filepath.Join(example, "edgewayd.yaml")).Replace(machineScript)
	nodes := map[string]*lab.Box{}
	for _, spec := range topology.Nodes {
		b := l.NewBox(spec.Name)
		nodes[spec.Name], b.Env = b, append(os.Environ(), path)
		t.Cleanup(func() {
			if err := b.PowerOff(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
		if err := b.Boot(ctx, script); err != nil {
			t.Fatal(err)
		}
	}
	on := func(name, commands string) string {
		t.Helper()
		out, err := nodes[name].RunInside(ctx, "sh", "-ec", "cd "+nodes[name].Dir+"\n"+commands)
		if err != nil {
			t.Fatalf("on %s: %s%v\n%s", name, commands, err, lab.Tail(filepath.Join(nodes[name].Dir, "edgewayd.log"), 20))
		}
		return out
	}

	// Where the operator sits: the example's manifests, and an rsync that reaches the nodes.
	desk := t.TempDir()
	rsync := fmt.Sprintf("#!/bin/sh\nto=${4#root@}\ncp -r \"$3.\" \"%s/${to%%%%:*}/${to#*:}\"\n", l.Dir)
	if err := errors.Join(os.CopyFS(filepath.Join(desk, "cluster.d"), os.DirFS(filepath.Join(example, "cluster.d"))),
		os.WriteFile(filepath.Join(desk, "rsync"), []byte(rsync), 0o755)); err != nil {
		t.Fatal(err)
	}
	operator := func(commands string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, "sh", "-ec", commands)
		cmd.Dir, cmd.Env = desk, append(os.Environ(), "PATH="+desk+":"+programs+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s%v\n%s", commands, err, out)
		}
		return string(out)
	}

	planned := operator(block(0))
	planned, config, ok := strings.Cut(planned, "Problems: none\n")
	if !ok || !strings.Contains(planned, "Switch 10.0.10.1   AS 65002   sessions 2") {
		t.Fatalf("plan and switch-config print\n%s%s", planned, config)
	}
	beside := ""
	for _, m := range regexp.MustCompile("`((?:router id|protocol) [^`]+)`").FindAllStringSubmatch(chapter, -1) {
		beside += m[1] + "\n"
	}
	sw, err := lab.NewSwitch(l.Machine("switch"), lab.SwitchSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.StartWith(ctx, map[string]string{"bird.conf": "log stderr all;\n" + beside + config}); err != nil {
		t.Fatal(err)
	}
	// block(1) installs the package: its files are there.
	operator(block(2))
	before, after, ok := strings.Cut(block(3), "systemctl enable --now edgewayd\n")
	if !ok {
		t.Fatalf("no start of the service in\n%s", block(3))
	}
	for name, b := range nodes {
		on(name, before)
		if err := b.StartProgram(ctx, []string{filepath.Join(programs, "edgewayd"), "run"}, func() error {
			_, err := b.RunInside(ctx, "edgewayd", "status")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		on(name, after)
	}
	if err := lab.Wait(ctx, waitLimit, func() error {
		learned, err := sw.Learned(ctx)
		if err == nil && len(learned) != len(nodes) {
			err = fmt.Errorf("the switch has the routes %v", learned)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	conflist := filepath.Join(nodes["node-1"].Dir, "etc/cni/net.d/10-edgeway.conflist") // what a runtime waits for
	if err := lab.Wait(ctx, waitLimit, func() error {
		_, err := os.Stat(conflist)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	answer := on("node-1", block(4))
	if !strings.Contains(answer, `"address": "10.10.1.1/32"`) || !regexp.MustCompile(`(?m)^10\.10\.1\.1 .* web `).MatchString(answer) {
		t.Errorf("ADD and ipam list print\n%s", answer)
	}
	to, ok := strings.CutPrefix(strings.TrimSpace(block(5)), "ping -c 3 ")
	if !ok {
		t.Fatalf("not a ping: %s", block(5))
	}
	if _, err := l.Machine("pc").Ping(ctx, netip.MustParseAddr(to)); err != nil {
		t.Error(err)
	}
	environment := regexp.MustCompile(`(?m)^export .*\n`).FindString(block(4))
	if out := on("node-1", environment+block(6)+"edgewayd ipam list\n"); strings.Contains(out, " web ") || !strings.Contains(out, "edgeway/canary") {
		t.Errorf("after DEL:\n%s", out)
	}
	for name := range nodes {
		if err := lab.Wait(ctx, waitLimit, func() error {
			out, err := nodes[name].RunInside(ctx, "edgewayd", "status", "--exit-code")
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}
