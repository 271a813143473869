package uplinks

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// An old etcd came back, in which the node had confirmed not to lease an address. Since then the address had been given back,
// assigned again, and leased: the controller took it from the pod. And in the old etcd the node has an address that another
// node has got since: it is withdrawn, and the other node keeps it.
func TestAPIServerEtcdIsRestored(t *testing.T) {
	s := newStage(t, cloud.ENS, kube.Options{}, nil)
	s.cloud.AddVSwitch("vsw-2", netip.MustParsePrefix("10.0.1.0/28")) // so small that addresses come again soon
	s.cloud.AddInstance("i-2", "vsw-2", "sg-1")
	s.cloud.AddInstance("i-3", "vsw-2", "sg-1")
	nic, other := s.cloud.Bind("i-2").ID, s.cloud.Bind("i-3").ID
	s.options.Terms.PerInterface, s.options.times.full = 3, time.Second
	s.node("n1", "13", InstanceLabel(cloud.ENS), "i-2")
	s.node("n2", "13", InstanceLabel(cloud.ENS), "i-3")
	give := func(id string, want netip.Addr) { // as the cloud may choose it
		for s.cloud.Give(id) != want {
			for _, n := range append(s.cloud.Interfaces("i-2"), s.cloud.Interfaces("i-3")...) {
				if n.ID == id {
					s.cloud.Take(id, n.Addresses[len(n.Addresses)-1])
				}
			}
		}
	}
	data, backup := filepath.Join(s.Dir, "etcd"), filepath.Join(t.TempDir(), "etcd")
	restart := func(between func() error) {
		t.Helper()
		if err := errors.Join(s.StopAPIServer(), s.Stop("etcd"), between(), s.ControlPlane.Run("etcd"), s.StartAPIServer()); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.grants("n1 has joined", "n1", "i-2", 3)
	s.grants("n2 has joined", "n2", "i-3", 3)
	s.end()
	moved, middle, spared := s.granted("n1")[0], s.granted("n1")[1], s.granted("n1")[2]

	// The backup: spared is withdrawn and confirmed, moved is granted.
	s.options.Terms.Fill = Fill{1}
	s.start()
	s.confirm(0)
	s.until("an address is withdrawn", func() (bool, string) {
		w := s.withdrawn("n1")
		return slices.Equal(w, []netip.Addr{spared}), fmt.Sprint(w)
	})
	s.end()
	s.confirm(0)
	old := s.edgeNode("n1").uplinks.Interfaces[0].Withdrawn[0]
	restart(func() error { return os.CopyFS(backup, os.DirFS(data)) })

	// Since then: spared was given back, assigned again, and leased. The cloud has given moved to n2.
	s.start()
	s.until("the address is given back", func() (bool, string) {
		s.confirm(0)
		return !slices.Contains(s.addresses("i-2"), spared) && len(s.withdrawn("n1")) == 0, fmt.Sprint(s.addresses("i-2"), s.withdrawn("n1"))
	})
	s.end() // it must not see what the cloud gives and takes on the way
	s.cloud.Take(nic, moved)
	give(nic, spared)
	give(other, moved)
	s.confirm(1)
	s.start()
	s.until("both addresses are granted again", func() (bool, string) {
		s.confirm(1)
		one, two := s.granted("n1"), s.granted("n2")
		return slices.Equal(one, []netip.Addr{middle, spared}) && slices.Contains(two, moved), fmt.Sprint(one, two)
	})
	calls := len(s.cloud.Calls())
	restart(func() error { return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(backup))) })

	s.until("the node is asked again", func() (bool, string) {
		u := s.edgeNode("n1").uplinks
		return slices.Contains(s.withdrawn("n1"), spared) && !slices.Contains(u.Interfaces[0].Withdrawn, old), fmt.Sprint(u)
	})
	s.until("what n2 has is withdrawn from n1", func() (bool, string) {
		s.confirm(1, spared)
		one, gone, two := s.granted("n1"), s.withdrawn("n1"), s.granted("n2")
		return !slices.Contains(one, moved) && slices.Equal(gone, []netip.Addr{spared}) && slices.Contains(two, moved), fmt.Sprint(one, gone, two)
	})
	for _, c := range s.cloud.Calls()[calls:] {
		if c.Action == "UnassignPrivateIpAddresses" {
			t.Errorf("taken from a pod: %+v", c)
		}
	}
	s.until("the pod is gone, and its address is given back", func() (bool, string) {
		s.confirm(0)
		return !slices.Contains(s.addresses("i-2"), spared), fmt.Sprint(s.addresses("i-2"))
	})
}
