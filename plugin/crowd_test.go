package plugin

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
)

// BenchmarkAddBesideOthers compares an ADD, as the daemon runs it, on a node with 10 leases in a
// /16 with one on a node with 60,000, in turns. The ratio of the medians is what counts.
func BenchmarkAddBesideOthers(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("not root: network namespaces cannot be made")
	}
	type side struct {
		h    *host
		n    *Node
		took []time.Duration
	}
	sides := []*side{{}, {}}
	for i, held := range []int{10, 60000} {
		s := sides[i]
		s.h = newHost(b)
		s.n = s.h.node(b)
		leases := make([]ipam.Lease, held)
		for j := range leases {
			leases[j] = ipam.Lease{
				Attachment: ipam.Attachment{ContainerID: fmt.Sprint("held", j), IfName: "eth0"}, Network: "net/other",
				Pod: ipam.Pod{Namespace: "default", Name: fmt.Sprint("held", j)}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, byte((j + 256) >> 8), byte(j)})},
			}
		}
		if err := s.n.Store.Import(b.Context(), leases); err != nil {
			b.Fatal(err)
		}
	}
	for i := range b.N {
		for _, s := range sides {
			pod := newSpace(b)
			netns, err := os.Open(pod.path)
			if err != nil {
				b.Fatal(err)
			}
			c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, args: fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p%d", i), conf: s.h.conf("1.1.0")}
			begin := time.Now()
			reply := s.n.Do(b.Context(), Call{CNI: c.cni(), NetnsFile: netns})
			s.took = append(s.took, time.Since(begin))
			if reply.Failed {
				b.Fatal(string(reply.Output))
			}
			c.verb = "DEL"
			if reply := s.n.Do(b.Context(), Call{CNI: c.cni(), NetnsFile: netns}); reply.Failed {
				b.Fatal(string(reply.Output))
			}
			netns.Close()
		}
	}
	median := func(s *side) float64 {
		slices.Sort(s.took)
		return float64(s.took[len(s.took)/2].Microseconds())
	}
	few, many := median(sides[0]), median(sides[1])
	b.ReportMetric(few, "µs/ADD-beside-10")
	b.ReportMetric(many, "µs/ADD-beside-60000")
	b.ReportMetric(many/few, "ratio")
}
