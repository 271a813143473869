package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/plugin/uplink"
)

// A DHCP client configured the card of an uplink: nobody had told it not to.
func TestUnmanage(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc/systemd", "etc/NetworkManager"} { // no cloud-init here
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(f func(*bytes.Buffer) error) string {
		t.Helper()
		var out bytes.Buffer
		if err := f(&out); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(out.String(), root, "")
	}
	interfaces := []uplink.Interface{{MAC: "00:16:3e:08:60:0a"}, {MAC: "00:16:3e:08:60:0b"}, {Name: "eth3"}}
	write := func(b *bytes.Buffer) error { return unmanage(root, interfaces, b) }
	if got, want := run(write), `installed /etc/systemd/network/05-edgeway.network
installed /etc/systemd/network/05-edgeway-name.network
installed /etc/systemd/networkd.conf.d/05-edgeway.conf
installed /etc/NetworkManager/conf.d/05-edgeway.conf
next: systemctl restart systemd-networkd
next: systemctl reload NetworkManager
`; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for path, want := range map[string]string{
		"etc/systemd/network/05-edgeway.network":      "[Match]\nMACAddress=00:16:3e:08:60:0a 00:16:3e:08:60:0b\n[Link]\nUnmanaged=yes\n",
		"etc/systemd/network/05-edgeway-name.network": "[Match]\nName=eth3\n[Link]\nUnmanaged=yes\n",
		"etc/systemd/networkd.conf.d/05-edgeway.conf": "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\nManageForeignNextHops=no\n",
		"etc/NetworkManager/conf.d/05-edgeway.conf":   "[keyfile]\nunmanaged-devices+=mac:00:16:3e:08:60:0a;mac:00:16:3e:08:60:0b;interface-name:eth3\n",
	} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || string(text) != byEdgewayd+want {
			t.Errorf("%s: %v\n%s", path, err, text)
		}
	}
	if got := run(write); strings.Count(got, "kept ") != 4 || strings.Contains(got, "next") {
		t.Errorf("once more:\n%s", got)
	}
	interfaces = interfaces[:1]
	if got := run(write); !strings.Contains(got, "delete /etc/systemd/network/05-edgeway-name.network") {
		t.Errorf("without the interface by name:\n%s", got)
	}
	undo := func(b *bytes.Buffer) error { return remanage(root, b) }
	if got := run(undo); strings.Count(got, "delete ") != 3 {
		t.Errorf("undo:\n%s", got)
	}
	if got := run(undo); got != "" {
		t.Errorf("undo again:\n%s", got)
	}
}

// A person had written these files by hand before, and uninstall --purge deleted them.
func TestUnmanageLeavesFilesOfOthers(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "etc/systemd/network/05-edgeway.network")
	const own = "[Match]\nMACAddress=00:16:3e:08:60:0a\n[Network]\nDHCP=no\n"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := remanage(root, &out); err != nil || out.String() != "left   "+path+": somebody else wrote it\n" {
		t.Errorf("got %v\n%s", err, &out)
	}
	if err := unmanage(root, []uplink.Interface{{MAC: "00:16:3e:08:60:0b"}}, &out); err == nil || !strings.Contains(err.Error(), "somebody else wrote it; move it away") {
		t.Errorf("got %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != own {
		t.Errorf("%v\n%s", err, text)
	}
}

// An argument becomes a line of three programs' files.
func TestUnmanageArguments(t *testing.T) {
	got, err := unmanaged(nil, []string{"00:16:3E:08:60:0A", "00-16-3e-08-60-0b", "eth1.100"})
	if err != nil || got[0].MAC != "00:16:3e:08:60:0a" || got[1].MAC != "00:16:3e:08:60:0b" || got[2].Name != "eth1.100" {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, text := range []string{"", "*", "eth*", "eth1 eth0", "!eth1", "eth1;type:ethernet", "eth1\n[Network]", "00:16:3e", "00:16:3e:08:60:0a:00:00"} {
		if got, err := unmanaged(nil, []string{text}); err == nil || !strings.Contains(err.Error(), "want a MAC such as") {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}
