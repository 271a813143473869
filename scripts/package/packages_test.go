package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// mostExposed bounds the exposure that `systemd-analyze security` reports for the service, in tenths: from
// 0 to 100.
const mostExposed = 25

// TestPackages installs, upgrades, removes and purges the Debian package with dpkg, and then the RPM
// with rpm, on a machine with a real systemd, a real switch and pods that must not lose a packet.
func TestPackages(t *testing.T) {
	needAsked(t, "systemd-nspawn", "dpkg", "rpm", "nsenter", "ip", "nft", "bird", "birdc", "systemd-analyze")
	s := newStory(t)
	for _, part := range []struct {
		name string
		play func(*testing.T, *story)
	}{
		{"install", installs},
		{"the service is confined", isConfined},
		{"upgrade loses nothing", upgrades},
		{"remove keeps what pods need", removes},
		{"install again finds it", installsAgain},
		{"ready while the API server is silent", readyAlone},
		{"kill -9 and stop keep the canary", killed},
		{"purge leaves nothing", purges},
		{"the RPM", rpms},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.play(t, s) }) {
			t.FailNow() // what comes builds on it
		}
	}
}

func installs(t *testing.T, s *story) {
	out := s.m.must(t, "dpkg", "-i", deb("0.0.1"))
	if !strings.Contains(out, "/etc/edgeway/cluster.d") {
		t.Errorf("dpkg does not say what comes next:\n%s", out)
	}
	for what, want := range map[string]string{"is-enabled": "enabled", "is-active": "active"} {
		if out := strings.TrimSpace(s.m.must(t, "systemctl", what, "edgewayd")); out != want {
			t.Errorf("systemctl %s edgewayd: %s, want %s", what, out, want)
		}
	}
	for _, file := range []string{"usr/share/man/man8/edgewayd-plan.8", "usr/share/bash-completion/completions/edgewayd"} {
		if _, err := os.Stat(s.m.path(file)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(s.m.path("etc/cni/net.d/10-edgeway.conflist")); err == nil {
		t.Error("a node without manifests has a network configuration: pods would start there")
	}
	s.m.write(t, "etc/edgeway/edgewayd.yaml", "nodeName: packaged # the operator's\nmetrics: \"\"\nsourceNAT: {enabled: true, exclude: [10.0.0.0/8, \"fd00::/16\"]}\n")
	s.m.write(t, "etc/edgeway/cluster.d/cluster.yaml", manifests)
	s.m.must(t, "systemctl", "restart", "edgewayd")
	s.up(t, "v0.0.1")
	var err error
	if s.web, err = s.lab.Node("packaged").AddPod(t.Context(), "default", "web"); err != nil {
		t.Fatal(err)
	}
	s.reach(t, s.web.Addrs)
}

// isConfined checks the restrictions of the unit, under which the pod above was wired.
func isConfined(t *testing.T, s *story) {
	pid := strings.TrimSpace(s.m.must(t, "systemctl", "show", "-P", "MainPID", "edgewayd"))
	process := s.m.must(t, "grep", "-E", "^(CapEff|CapBnd|NoNewPrivs|Seccomp):", "/proc/"+pid+"/status")
	// CAP_DAC_OVERRIDE 1, CAP_NET_ADMIN 12, CAP_SYS_ADMIN 21 (linux/capability.h); 2: a filter
	want := "CapEff:\t0000000000201002\nCapBnd:\t0000000000201002\nNoNewPrivs:\t1\nSeccomp:\t2\n"
	if diff := cmp.Diff(want, process); diff != "" {
		t.Errorf("the daemon's process (-want +got):\n%s", diff)
	}
	if out := s.m.must(t, "systemd-analyze", "verify", "/usr/lib/systemd/system/edgewayd.service"); strings.Contains(out, "edgewayd") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	out := s.m.must(t, "systemd-analyze", "security", "--no-pager", fmt.Sprintf("--threshold=%d", mostExposed), "edgewayd.service")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Log(lines[len(lines)-1])
	if out := s.m.must(t, "edgewayd", "ipam", "check"); !strings.Contains(out, "2 leases") { // the pod's, and the canary's
		t.Errorf("ipam check: %s", out)
	}
	// These limits also hold when a rogue switch or manifest controls the daemon.
	journal := s.m.must(t, "journalctl", "--no-pager", "-u", "edgewayd")
	for _, word := range []string{"denied", "not permitted", "read-only"} {
		if strings.Contains(journal, word) {
			t.Errorf("the daemon missed something: %q in its log:\n%s", word, journal)
		}
	}
}

// upgrades installs the second version, and watches traffic and the routes of the switch and the machine.
func upgrades(t *testing.T, s *story) {
	ctx := t.Context()
	var flows []*lab.Flow
	start := func(m *lab.Machine, to []netip.Addr) {
		for _, addr := range to {
			f, err := m.StartFlow(addr, 20*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			flows = append(flows, f)
		}
	}
	start(s.lab.Machine("host"), s.web.Addrs)
	start(s.far.Machine, s.web.Addrs)
	start(s.web.Machine, s.far.Addrs)
	start(s.lab.Machine("host"), canary(t, s)) // in a namespace that keep-canary mounted
	links := s.m.must(t, "ip", "-o", "link", "show", "type", "veth")
	watched := map[string]*lab.Monitor{}
	for name, m := range map[string]*lab.Machine{"the switch, bird": s.lab.Machine("switch"), "the machine, 119": s.m.Machine, "the machine, 101": s.m.Machine} {
		_, proto, _ := strings.Cut(name, ", ")
		monitor, err := m.Monitor(ctx, proto)
		if err != nil {
			t.Fatal(err)
		}
		watched[name] = monitor
	}
	before := s.m.must(t, "systemctl", "show", "-P", "MainPID", "edgewayd")
	out := s.m.must(t, "dpkg", "-i", deb("0.0.2"))
	if s.m.must(t, "systemctl", "show", "-P", "MainPID", "edgewayd") == before {
		t.Errorf("dpkg did not restart the daemon:\n%s", out)
	}
	s.up(t, "v0.0.2")
	if diff := cmp.Diff(links, s.m.must(t, "ip", "-o", "link", "show", "type", "veth")); diff != "" {
		t.Errorf("links, and the canary's is among them (-before +after):\n%s", diff)
	}
	new, err := s.lab.Node("packaged").AddPod(ctx, "default", "new")
	if err != nil {
		t.Fatal(err)
	}
	s.reach(t, new.Addrs)
	if err := new.Delete(ctx); err != nil {
		t.Error(err)
	}
	for _, f := range flows {
		lost := f.Stop()
		t.Logf("%s to %s: %s", f.From, f.Addr, lost)
		if lost.Lost > 0 || lost.Sent < 10 {
			t.Errorf("%s to %s: %s", f.From, f.Addr, lost)
		}
	}
	for name, monitor := range watched {
		events, err := monitor.Stop(ctx)
		if err != nil {
			t.Error(err)
		}
		if name == "the machine, 101" { // the new pod's routes come and go
			events = without(events, new.Addrs)
		}
		if len(events) > 0 {
			t.Errorf("routes of %s changed:\n%s", name, strings.Join(events, "\n"))
		}
	}
	if text, err := os.ReadFile(s.m.path("etc/edgeway/edgewayd.yaml")); err != nil || !strings.Contains(string(text), "the operator's") {
		t.Errorf("the operator's configuration is now %q, %v", text, err)
	}
}

// killed checks that the canary outlives kill -9, and a stop with nothing for ipam check to find. A pod of the other node
// pings it: between nodes of a LAN there is no switch's route.
func killed(t *testing.T, s *story) {
	var flows []*lab.Flow
	for _, addr := range canary(t, s) {
		f, err := s.far.StartFlow(addr, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, f)
	}
	links := s.m.must(t, "ip", "-o", "link", "show", "type", "veth")
	s.m.must(t, "systemctl", "kill", "--signal=KILL", "edgewayd")
	s.m.must(t, "systemctl", "stop", "edgewayd")
	s.m.must(t, "edgewayd", "ipam", "check")
	s.m.must(t, "systemctl", "start", "edgewayd")
	s.up(t, "v0.0.2")
	if diff := cmp.Diff(links, s.m.must(t, "ip", "-o", "link", "show", "type", "veth")); diff != "" {
		t.Errorf("links, and the canary's is among them (-before +after):\n%s", diff)
	}
	for _, f := range flows {
		lost := f.Stop()
		t.Logf("%s to %s: %s", f.From, f.Addr, lost)
		if lost.Lost > 0 || lost.Sent < 10 {
			t.Errorf("%s to %s: %s", f.From, f.Addr, lost)
		}
	}
}

// canary returns the addresses of the machine's canary.
func canary(t *testing.T, s *story) (addrs []netip.Addr) {
	t.Helper()
	status, err := s.status(t)
	if err != nil || len(status.Paths.Canary) != 2 {
		t.Errorf("canary %v, %v; want an address of each family", status.Paths.Canary, err)
	}
	for _, a := range status.Paths.Canary {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs
}

func without(lines []string, addrs []netip.Addr) (rest []string) {
	for _, line := range lines {
		ours := false
		for _, addr := range addrs {
			ours = ours || strings.Contains(line, addr.String())
		}
		if !ours {
			rest = append(rest, line)
		}
	}
	return rest
}

// removes checks that the network configuration is gone, so that the runtime starts no pod without a
// plugin, and that the running pod and its address stay.
func removes(t *testing.T, s *story) {
	out := s.m.must(t, "dpkg", "-r", "edgeway")
	for _, want := range []string{"delete /etc/cni/net.d/10-edgeway.conflist", "delete /run/edgeway/canary/netns", "left   pods: default/web", "left   files: /var/lib/edgeway/ipam.db"} {
		if !strings.Contains(out, want) {
			t.Errorf("dpkg does not say %q:\n%s", want, out)
		}
	}
	for _, name := range []string{"usr/bin/edgewayd", "opt/cni/bin/edgeway", "etc/cni/net.d/10-edgeway.conflist"} {
		if _, err := os.Stat(s.m.path(name)); err == nil {
			t.Errorf("/%s is still there", name)
		}
	}
	s.reach(t, s.web.Addrs)
}

func installsAgain(t *testing.T, s *story) {
	s.m.must(t, "dpkg", "-i", deb("0.0.2"))
	s.up(t, "v0.0.2")
	status, err := s.status(t)
	if err != nil || status.Leases.Used != 1 {
		t.Errorf("%d leases, %v; want the pod's lease", status.Leases.Used, err)
	}
}

// readyAlone checks that units after the daemon, such as the kubelet, do not wait for an API server, which
// may be a pod that this kubelet starts. The kubelet's own kubeconfig may come later, too.
func readyAlone(t *testing.T, s *story) {
	config := s.m.path("etc/edgeway/edgewayd.yaml")
	before := read(t, config)
	defer s.m.write(t, "etc/edgeway/edgewayd.yaml", before)
	s.m.write(t, "etc/edgeway/silent.kubeconfig", `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
"clusters": [{"name": "c", "cluster": {"server": "https://10.9.0.77:6443", "insecure-skip-tls-verify": true}}],
"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "t"}}]}`)
	monitor, err := s.m.Monitor(t.Context(), "119")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"silent.kubeconfig", "not-there-yet.kubeconfig"} {
		s.m.write(t, "etc/edgeway/edgewayd.yaml", before+"cluster: {kubeconfig: /etc/edgeway/"+file+"}\n")
		begin := time.Now()
		s.m.must(t, "systemctl", "restart", "edgewayd") // returns when it is ready
		t.Logf("%s: ready after %s", file, time.Since(begin).Round(time.Millisecond))
		if took := time.Since(begin); took > waitLimit {
			t.Errorf("%s: ready after %s: the kubelet would have waited", file, took)
		}
		s.reach(t, s.web.Addrs)
	}
	if events, err := monitor.Stop(t.Context()); err != nil || len(events) > 0 {
		t.Errorf("routes changed: %v, %v", events, err)
	}
	if err := os.Remove(s.m.path("etc/edgeway/silent.kubeconfig")); err != nil {
		t.Error(err)
	}
	if err := s.web.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// purges checks that the machine is as before the package, except for the files that purge names.
func purges(t *testing.T, s *story) {
	out := s.m.must(t, "dpkg", "-P", "edgeway")
	t.Logf("dpkg -P:\n%s", out)
	if !strings.Contains(out, "left /etc/edgeway/cluster.d") {
		t.Errorf("dpkg does not say that the operator's manifests are left:\n%s", out)
	}
	left := s.m.changed(t)
	for name := range s.files {
		delete(left, name)
	}
	for _, said := range []string{"/etc/edgeway", "/etc/edgeway/cluster.d", "/etc/edgeway/cluster.d/cluster.yaml"} {
		delete(left, said)
	}
	for name := range left {
		t.Errorf("file left: %s", name)
	}
	if diff := cmp.Diff(s.kernel, s.m.network(t)); diff != "" {
		t.Errorf("network (-before the package +after):\n%s", diff)
	}
}

// rpms does the same with rpm, whose scriptlets get the number of installed versions, not the action.
func rpms(t *testing.T, s *story) {
	files := strings.Fields(s.m.must(t, "rpm", "-qlp", rpm("0.0.1")))
	for _, want := range []string{"/etc/cni/net.d", "/etc/edgeway/cluster.d", "/etc/edgeway/edgewayd.yaml", "/opt/cni/bin/edgeway", "/usr/bin/edgewayd",
		"/usr/lib/systemd/networkd.conf.d/10-edgeway.conf", "/usr/lib/systemd/system/edgewayd.service", "/usr/share/doc/edgeway/copyright",
		"/usr/share/doc/edgeway/getting-started.md", "/usr/share/doc/edgeway/examples/cluster.d/nodes.yaml", "/usr/share/man/man8/edgewayd.8"} {
		if !slices.Contains(files, want) {
			t.Errorf("the RPM has no %s: %q", want, files)
		}
	}
	s.m.must(t, "rpm", "--install", "--nodeps", rpm("0.0.1"))
	s.m.write(t, "etc/edgeway/edgewayd.yaml", "nodeName: packaged # the operator's\nmetrics: \"\"\n")
	s.m.must(t, "systemctl", "restart", "edgewayd")
	s.up(t, "v0.0.1")
	s.m.must(t, "rpm", "--upgrade", "--nodeps", rpm("0.0.2"))
	s.up(t, "v0.0.2")
	if out := strings.TrimSpace(s.m.must(t, "systemctl", "is-enabled", "edgewayd")); out != "enabled" {
		t.Errorf("after the upgrade edgewayd is %s, want enabled", out)
	}
	if text, err := os.ReadFile(s.m.path("etc/edgeway/edgewayd.yaml")); err != nil || !strings.Contains(string(text), "the operator's") {
		t.Errorf("the operator's configuration is now %q, %v", text, err)
	}
	s.m.must(t, "rpm", "--erase", "edgeway")
	if out, _ := s.m.run(t.Context(), "systemctl", "is-active", "edgewayd"); strings.TrimSpace(out) == "active" {
		t.Error("the daemon still runs")
	}
	for _, name := range []string{"usr/bin/edgewayd", "etc/cni/net.d/10-edgeway.conflist", "etc/systemd/system/multi-user.target.wants/edgewayd.service"} {
		if _, err := os.Lstat(s.m.path(name)); err == nil {
			t.Errorf("/%s is still there", name)
		}
	}
}
