package plugin

import (
	"fmt"
	"testing"
)

// A DEL answers before the kernel has acknowledged the end of its link. The address is leased again
// in that instant, and leads to the new pod.
func TestAddressIsLeasedAgainAtOnce(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	conf := h.conf("1.1.0", `"ipMasq":true`, `"ipam":{"ranges":[[{"subnet":"10.99.0.0/16","rangeStart":"10.99.0.9","rangeEnd":"10.99.0.9"}],[{"subnet":"fd00:99::/64","rangeStart":"fd00:99::9","rangeEnd":"fd00:99::9"}]]}`)
	for i := range 40 {
		pod := newSpace(t)
		c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: conf}
		c.does(t, n)
		h.sh(t, "ping -c1 -W5 10.99.0.9 && ping -c1 -W5 fd00:99::9")
		h.whole(t)
		c.verb = "DEL"
		c.does(t, n)
	}
}

// The daemon is killed between the answer of a DEL and the kernel's acknowledgement. What was
// answered is true: the lease is gone, and the link.
func TestDaemonKilledBeforeAcknowledgement(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	exe := plugins(t) + "/edgeway"
	for i := range 20 {
		pod := newSpace(t)
		c := call{exe: exe, verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
		d := h.doomedDaemon(t)
		h.must(t, c)
		h.end(t, c)
		d.kill()
		if leases := h.leases(t); len(leases) > 0 {
			t.Errorf("leases stay: %v", leases)
		}
		h.whole(t)
	}
}

// What the daemon allocates for one pod's ADD and DEL does not grow unnoticed.
func TestAllocations(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	c := call{id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	got := testing.AllocsPerRun(50, func() {
		for _, c.verb = range []string{"ADD", "DEL"} {
			c.does(t, n)
		}
	})
	const most = 1500 // what was measured, and a little more
	t.Logf("%.0f allocations", got)
	if got > most {
		t.Errorf("%.0f allocations for an ADD and a DEL, at most %v", got, most)
	}
}
