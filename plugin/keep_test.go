package plugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
)

// A pod whose route, link, neighbour or gateway address somebody changed was cut off until an operator
// ran edgewayd ipam check --repair.
func TestDamagedPodStayedCutOff(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	for i, id := range []string{"c1", "c2"} {
		pod := newSpace(t)
		call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0"), args: fmt.Sprintf("K8S_POD_NAMESPACE=d;K8S_POD_NAME=till-%d", i)}.does(t, n)
	}
	link := HostLink(ipam.Attachment{ContainerID: "c1", IfName: "eth0"})
	for _, breaks := range []string{
		"ip route del 10.99.0.1", "ip -6 route del fd00:99::1", "ip link set LINK down", "ip addr flush dev LINK", "ip -6 addr flush dev LINK",
		"ip neigh replace 10.99.0.1 lladdr 02:00:00:00:00:01 nud permanent dev LINK",
		"sysctl -qw net.ipv4.conf.LINK.forwarding=0", "sysctl -qw net.ipv6.conf.LINK.accept_ra=2", "sysctl -qw net.ipv4.conf.LINK.accept_redirects=1",
	} {
		t.Run(breaks, func(t *testing.T) {
			h.sh(t, strings.ReplaceAll(breaks, "LINK", link))
			found := audited(t, n.KeepHosts)
			if len(found) == 0 {
				t.Error("nothing was found")
			}
			for _, f := range found {
				if !f.Done || f.Object != "pod d/till-0 (10.99.0.1, fd00:99::1)" {
					t.Errorf("found %+v", f)
				}
			}
			for _, look := range []func(context.Context) ([]Finding, error){n.KeepHosts, n.Keep, n.Audit} {
				if again := audited(t, look); len(again) > 0 {
					t.Errorf("after the repair: %+v", again)
				}
			}
			for _, a := range []string{"10.99.0.1", "fd00:99::1", "10.99.0.2", "fd00:99::2"} {
				if out, err := h.try(t, "ping -c1 -W2 "+a); err != nil {
					t.Errorf("%s does not answer: %s", a, out)
				}
			}
		})
	}
	h.endAll(t, n, "c1", "c2")
}

// What happened inside a pod, or to a link as a whole, was said by nobody before somebody asked.
func TestPodThatCannotBeRepairedIsSaid(t *testing.T) {
	kernelTest(t)
	h, lost, cut := newHost(t), newSpace(t), newSpace(t)
	n := h.node(t)
	call{verb: "ADD", id: "c1", ifName: "eth0", netns: lost.path, conf: h.conf("1.1.0")}.does(t, n)
	call{verb: "ADD", id: "c2", ifName: "eth0", netns: cut.path, conf: h.conf("1.1.0")}.does(t, n)
	lost.sh(t, "ip route del default")
	lost.sh(t, "ip route del 169.254.1.1")
	h.sh(t, "ip link del "+HostLink(ipam.Attachment{ContainerID: "c2", IfName: "eth0"}))
	if found := audited(t, n.KeepHosts); len(found) != 1 || !strings.Contains(found[0].Got, "does not exist") || found[0].Next == "" {
		t.Errorf("of the host's ends: %+v", found)
	}
	for range 2 {
		var got []string
		for _, f := range audited(t, n.Keep) {
			if f.Done || f.Next == "" {
				t.Errorf("want what cannot be mended: %+v", f)
			}
			got = append(got, f.Got)
		}
		if text := strings.Join(got, "\n"); len(got) != 2 || !strings.Contains(text, "lost its routes through 169.254.1.1") || !strings.Contains(text, "does not exist") {
			t.Errorf("found %q", got)
		}
	}
	h.endAll(t, n, "c1", "c2")
}

// A look that changes nothing says nothing, and costs little. The reported times are of one look.
func BenchmarkKeepOf250Pods(b *testing.B) {
	h := newHost(b)
	n := h.node(b)
	var ids []string
	for i := range 250 {
		pod := newSpace(b)
		id := fmt.Sprintf("k%d", i)
		ids = append(ids, id)
		call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}.does(b, n)
	}
	for name, look := range map[string]func(context.Context) ([]Finding, error){"hosts": n.KeepHosts, "both": n.Keep} {
		b.Run(name, func(b *testing.B) {
			used := processorTime(b)
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				if found, err := look(b.Context()); err != nil || len(found) > 0 {
					b.Fatalf("found %+v, %v", found, err)
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64((processorTime(b)-used).Microseconds())/float64(len(took)), "cpu-us")
		})
	}
	h.endAll(b, n, ids...)
}

func (h *host) endAll(t testing.TB, n *Node, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := n.Remove(t.Context(), ipam.Attachment{ContainerID: id, IfName: "eth0"}); err != nil {
			t.Error(err)
		}
	}
}
