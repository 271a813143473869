package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestInstallScript upgrades a node with install.sh and removes edgeway with uninstall.sh. It watches
// traffic and the switch's routes.
func TestInstallScript(t *testing.T) {
	lab.Need(t, "ip", "nft", "bird", "birdc")
	l, bin := newLab(t)
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "cluster.yaml"), []byte(manifests), 0o644); err != nil {
		t.Fatal(err)
	}
	old, new := sourceTree(t, "v0.0.1"), sourceTree(t, "v0.0.2")
	root := t.TempDir()
	for name, path := range map[string]string{"edgeway": "opt/cni/bin/edgeway", "edgewayd": "usr/bin/edgewayd"} {
		if err := os.Symlink(filepath.Join(root, path), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	n := l.Node("packaged")
	script(t, old, root, "install.sh")
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitSession(t.Context(), waitLimit); err != nil {
		t.Fatal(err)
	}
	web, err := n.AddPod(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	s := &story{lab: l}
	s.reach(t, web.Addrs)

	flow, err := l.Machine("host").StartFlow(web.Addrs[0], 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := l.Machine("switch").Monitor(t.Context(), "bird")
	if err != nil {
		t.Fatal(err)
	}
	script(t, new, root, "install.sh")
	if err := n.Terminate(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitSession(t.Context(), waitLimit); err != nil {
		t.Fatal(err)
	}
	if status, err := n.Status(t.Context()); err != nil || status.Version != "v0.0.2" {
		t.Errorf("edgewayd %s runs, %v; want v0.0.2", status.Version, err)
	}
	lost := flow.Stop()
	t.Logf("host to web: %s", lost)
	if lost.Lost > 0 {
		t.Errorf("host to web: %s", lost)
	}
	if events, err := monitor.Stop(t.Context()); err != nil || len(events) > 0 {
		t.Errorf("routes of the switch changed: %v, %v", events, err)
	}
	out := script(t, new, root, "install.sh")
	if strings.Contains(out, "installed") || !strings.Contains(out, "kept") {
		t.Errorf("installed once more:\n%s\nwant all kept", out)
	}
	uninstallsAll(t, n, web, new, root)
}

// uninstallsAll checks that nothing is left except the files that the command names.
func uninstallsAll(t *testing.T, n *lab.Node, web *lab.Pod, source, root string) {
	t.Helper()
	if err := n.Terminate(); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Command(t.Context(), "uninstall", "--purge"); err == nil || !strings.Contains(err.Error(), "default/web") {
		t.Errorf("while a pod runs: %v: %s; want an error that names it", err, out)
	}
	// The command notices a pod even if the store is lost.
	store := filepath.Join(n.Dir, "state", "ipam.db")
	if err := os.Rename(store, store+".away"); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Command(t.Context(), "uninstall", "--purge"); err == nil || !strings.Contains(err.Error(), "(link ew") {
		t.Errorf("while a pod runs that no lease knows: %v: %s; want an error that names its link", err, out)
	}
	if err := os.Rename(store+".away", store); err != nil {
		t.Fatal(err)
	}
	if err := web.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := n.Command(t.Context(), "uninstall", "--purge")
	if err != nil || !strings.Contains(out, "delete route 10.10.2.0/24") {
		t.Errorf("%v: %s", err, out)
	}
	out = script(t, source, root, "uninstall.sh")
	for path := range list(t, root) {
		if !strings.Contains(out, path) && path != filepath.Join(root, "etc/edgeway/edgewayd.yaml") {
			t.Errorf("left without a word: %s\n%s", path, out)
		}
	}
	left, err := n.Run(t.Context(), "sh", "-c", "ip route show proto 119; ip route show proto 101; ip -o link | grep ': ew'; nft list ruleset; ls "+filepath.Join(n.Dir, "state"))
	if left != "" {
		t.Errorf("left: %s (%v)", left, err)
	}
}

// sourceTree has the files that the scripts read, and the built programs of a version.
func sourceTree(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-r", "../../scripts", "../../deploy", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(buildPrograms(t, version), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// script runs a script of the source tree below root.
func script(t *testing.T, source, root, name string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(source, "scripts", name))
	cmd.Env = append(os.Environ(), "DESTDIR="+root, "PREFIX=/usr")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

// list returns every file below dir.
func list(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	out, err := exec.Command("find", dir, "!", "-type", "d").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		files[path] = true
	}
	return files
}

// systemd-networkd deleted the daemon's policy rules and next hop objects, and with them its routes, on each of its
// restarts: the drop-in said only that it leaves routes alone.
func TestNetworkdLeavesObjectsOfOthersAlone(t *testing.T) {
	text, err := os.ReadFile("../../deploy/systemd/10-edgeway-networkd.conf")
	if err != nil {
		t.Fatal(err)
	}
	_, keys, _ := strings.Cut(string(text), "[Network]\n")
	for _, want := range []string{"ManageForeignRoutes=no", "ManageForeignRoutingPolicyRules=no", "ManageForeignNextHops=no"} {
		if !slices.Contains(strings.Split(keys, "\n"), want) {
			t.Errorf("the drop-in of systemd-networkd has no %s below [Network]:\n%s", want, text)
		}
	}
}
