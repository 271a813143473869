package plugin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/edgeway-cni/edgeway/ipam"
)

// A store that is rebuilt from its copy keeps the leases of pods that other plugins wired: no
// link of ours says that they live, and their addresses must not be given twice.
func TestRebuiltStoreKeepsImportedPods(t *testing.T) {
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), StoreFile)
	open := func() *ipam.Store {
		t.Helper()
		none := func() ([]ipam.Lease, error) { return nil, nil }
		s, err := ipam.Open(t.Context(), path, ipam.Options{BootID: boot, Recover: none, Lives: Lives})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	lease := func(id, netns, addr string) ipam.Lease {
		return Adopted(ipam.Lease{Attachment: ipam.Attachment{ContainerID: id, IfName: "eth0"}, Pod: ipam.Pod{Namespace: "d", Name: id}, Netns: netns, Addrs: addrsOf(t, addr)}, "net")
	}
	if err := s.Import(t.Context(), []ipam.Lease{lease("lives", "/proc/self/ns/net", "10.0.0.2"), lease("gone", "/nonexistent/netns", "10.0.0.3")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	leases := leasesOf(t, s)
	if len(leases) != 1 || leases[0].Attachment.ContainerID != "lives" || leases[0].RememberAs != "net" {
		t.Errorf("leases after the rebuild: %+v", leases)
	}
	if m, err := s.Remembered(); err != nil || len(m) != 1 || m[0].Network != "net" || m[0].Pod.Name != "gone" {
		t.Errorf("remembered %v, %v", m, err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}
