package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// topology: a machine with a package, another node, and behind the switch a host.
const topology = `
switches:
- name: switch
  asn: 65001
  links:
  - {lan: lan, addrs: [10.0.0.1/24, "fd00:10::1/64"]}
  - {lan: office, addrs: [10.9.0.1/24, "fd00:9::1/64"]}
  neighbors: [{name: packaged, address: 10.0.0.11, asn: 65010}]
nodes:
- name: packaged
  links: [{lan: lan, addrs: [10.0.0.11/24, "fd00:10::11/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.0.0.1}, {to: "::/0", via: "fd00:10::1"}]
- name: other
  links: [{lan: lan, addrs: [10.0.0.12/24, "fd00:10::12/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.0.0.1}, {to: "::/0", via: "fd00:10::1"}]
hosts:
- name: host
  links: [{lan: office, addrs: [10.9.0.50/24, "fd00:9::50/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.9.0.1}, {to: "::/0", via: "fd00:9::1"}]
`

const manifests = `
apiVersion: v1
kind: Node
metadata: {name: packaged, labels: {ASN: "65010"}}
spec: {podCIDRs: [10.10.1.0/24, "fd00:10:10:1::/64"]}
status: {addresses: [{type: InternalIP, address: 10.0.0.11}, {type: InternalIP, address: "fd00:10::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: other, labels: {ASN: "65010"}}
spec: {podCIDRs: [10.10.2.0/24, "fd00:10:10:2::/64"]}
status: {addresses: [{type: InternalIP, address: 10.0.0.12}, {type: InternalIP, address: "fd00:10::12"}]}
---
apiVersion: network.openyurt.io/v1alpha1
kind: BGPPeer
metadata: {name: switch}
spec: {localSpeakers: [packaged], localAsNumber: 65010, peerIP: 10.0.0.1, peerAsNumber: 65001, nodeSelector: ASN=65010}
`

type story struct {
	lab    *lab.Lab
	m      *machine
	web    *lab.Pod        // on the machine
	far    *lab.Pod        // on the other node
	files  map[string]bool // before the package
	kernel string
}

func newStory(t *testing.T) *story {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "share"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, bin := newLab(t)
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "cluster.yaml"), []byte(manifests), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v0.0.1", "v0.0.2"} {
		buildPackage(t, version, filepath.Join(dir, "share"))
	}
	s := &story{lab: l, m: boot(t, l.Node("packaged"), dir)}
	s.install(t, bin)
	if err := l.Node("other").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.far, err = l.Node("other").AddPod(t.Context(), "default", "far"); err != nil {
		t.Fatal(err)
	}
	s.files, s.kernel = s.m.changed(t), s.m.network(t)
	return s
}

// newLab builds the topology. The directory of its programs is empty.
func newLab(t *testing.T) (l *lab.Lab, bin string) {
	t.Helper()
	gone, err := lab.Sweep() // laboratories of tests that were killed
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range gone {
		removeCgroups(t, prefix+"-packaged")
	}
	bin = t.TempDir()
	l, err = lab.New(lab.Options{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	spec, err := lab.ParseTopology([]byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	return l, bin
}

// needAsked skips a test that downloads or builds other people's tools, unless the test was asked for.
func needAsked(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getenv("EDGEWAY_PACKAGES") == "" {
		t.Skip("make test-packages runs it")
	}
	lab.Need(t)
	if missing := lab.Missing(tools...); len(missing) > 0 {
		t.Fatalf("not installed: %s; scripts/install-test-tools.sh installs most, systemd-container and rpm are Debian's packages for the others", strings.Join(missing, ", "))
	}
}

// install gives the laboratory its bin. On the machine, the runtime calls the package's plugin, which sees
// the machine's files. On the other node, it calls the plugin itself.
func (s *story) install(t *testing.T, bin string) {
	t.Helper()
	built := buildPrograms(t, "v0.0.1")
	if err := os.Rename(filepath.Join(built, "edgewayd"), filepath.Join(bin, "edgewayd")); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nif [ /proc/self/ns/net -ef %s ]; then\n\texec nsenter -t %d -m -p -r /opt/cni/bin/edgeway\nfi\nexec %s\n",
		s.m.Path, s.m.pid, filepath.Join(built, "edgeway"))
	if err := os.WriteFile(filepath.Join(bin, "edgeway"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Dir(s.m.Conflist())
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(s.m.path("etc/cni/net.d"), conf); err != nil {
		t.Fatal(err)
	}
}

// buildPackage writes edgeway_VERSION_ARCH.deb into out.
func buildPackage(t *testing.T, version, out string) {
	t.Helper()
	bins := filepath.Join(t.TempDir(), "dist")
	if err := os.MkdirAll(bins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(buildPrograms(t, version), filepath.Join(bins, runtime.GOARCH)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("./packages.sh")
	cmd.Env = append(os.Environ(), "VERSION="+version, "OUT="+out, "BINS="+bins, "ARCHES="+runtime.GOARCH)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func rpm(version string) string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	return fmt.Sprintf("/srv/edgeway-%s-1.%s.rpm", version, arch)
}

func deb(version string) string {
	return fmt.Sprintf("/srv/edgeway_%s_%s.deb", version, runtime.GOARCH)
}

// status asks the machine's daemon.
func (s *story) status(t *testing.T) (api.Status, error) {
	t.Helper()
	out, err := s.m.run(t.Context(), "edgewayd", "status", "-o", "json")
	var status api.Status
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	return status, err
}

// up waits until the daemon of that version runs and its session is established.
func (s *story) up(t *testing.T, version string) {
	t.Helper()
	err := lab.Wait(t.Context(), waitLimit, func() error {
		status, err := s.status(t)
		if err != nil {
			return err
		}
		if status.Version != version {
			return fmt.Errorf("edgewayd %s runs, want %s", status.Version, version)
		}
		if len(status.Sessions) != 1 || status.Sessions[0].State != "Established" {
			return fmt.Errorf("sessions %+v, want one that is Established", status.Sessions)
		}
		if len(status.Problems) > 0 {
			return fmt.Errorf("problems: %+v", status.Problems)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reach waits until the host behind the switch reaches the addresses.
func (s *story) reach(t *testing.T, addrs []netip.Addr) {
	t.Helper()
	for _, addr := range addrs {
		err := lab.Wait(t.Context(), waitLimit, func() error {
			_, err := s.lab.Machine("host").Ping(t.Context(), addr)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
