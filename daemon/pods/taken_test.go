package pods

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// onMachine is a daemon with an open store, on a machine of its own with an uplink up0. The test must close n.
func onMachine(t *testing.T) (p *Pods, n *leases, host *lab.Space) {
	t.Helper()
	lab.Need(t, "ip")
	p = starting(t)
	p.lift()
	host = newSpace(t)
	if err := host.IP(t.Context(), "link set lo up\nlink add up0 type veth peer name up1\nlink set up1 up\nlink set up0 up\nroute add default dev up0"); err != nil {
		t.Fatal(err)
	}
	if err := host.Do(func() error {
		store, err := plugin.OpenStore(t.Context(), storeFile(p.config.StateDir), time.Second)
		if err == nil {
			n, err = leasesOf(store, p.config.StateDir)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	p.leases.Store(n)
	return p, n, host
}

func newSpace(t *testing.T) *lab.Space {
	t.Helper()
	s, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// call runs a verb; ipam is a key of the network configuration.
func (p *Pods) call(t *testing.T, verb, id string, pod *lab.Space, ipam string) api.Reply {
	t.Helper()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":%q,"ipam":%s}`, p.config.StateDir, ipam)
	cni := api.CNI{Command: verb, ContainerID: id, IfName: "eth0", Netns: pod.Path, Stdin: []byte(conf)}
	return p.CNI(t.Context(), api.Request{Op: "cni", CNI: &cni}, pod.File)
}

// Pods got other addresses than the next, and edgewayd status did not say why.
func TestStatusNamesAnAddressThatIsTaken(t *testing.T) {
	p, n, host := onMachine(t)
	if err := host.IP(t.Context(), "addr add 10.88.0.1/32 dev up0"); err != nil {
		t.Fatal(err)
	}
	pod := newSpace(t)
	const pool = `{"ranges":[[{"subnet":"10.88.0.0/24"}]]}`
	if reply := p.call(t, "ADD", "c1", pod, pool); reply.Failed {
		t.Fatalf("ADD: %s", reply.Output)
	}
	_, problems := p.Status(t.Context())
	if len(problems) != 1 || problems[0].Reason != "addressTaken" || problems[0].Object != "address 10.88.0.1" {
		t.Errorf("problems %+v", problems)
	}
	if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || len(checked.Findings) != 1 || checked.Findings[0].Object != "address 10.88.0.1" {
		t.Errorf("ipam check: %+v, %v", checked, err)
	}
	if reply := p.call(t, "DEL", "c1", pod, pool); reply.Failed {
		t.Fatalf("DEL: %s", reply.Output)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// STATUS of a full pool failed, so the kubelet evicted the node's pods. It succeeds, and edgewayd status and the metrics
// have the shortage until a pod ends.
func TestStatusNamesAFullPool(t *testing.T) {
	p, n, _ := onMachine(t)
	if err := n.store.SetPool(t.Context(), ipam.Pool{Sets: []ipam.RangeSet{{{Subnet: netip.MustParsePrefix("10.88.0.0/30")}}}}); err != nil {
		t.Fatal(err)
	}
	says := func(full bool) {
		t.Helper()
		l, problems := p.Status(t.Context())
		if reason := slices.ContainsFunc(problems, func(p cluster.Problem) bool { return p.Reason == cluster.PoolFull }); reason != full || (l.Free == 0) != full {
			t.Errorf("leases %+v, problems %+v; want full: %v", l, problems, full)
		}
	}
	pods := map[string]*lab.Space{"c1": newSpace(t), "c2": newSpace(t), "c3": newSpace(t)}
	for _, id := range []string{"c1", "c2"} {
		says(false)
		if reply := p.call(t, "ADD", id, pods[id], "{}"); reply.Failed {
			t.Fatalf("ADD %s: %s", id, reply.Output)
		}
	}
	says(true)
	if reply := p.call(t, "STATUS", "", pods["c3"], "{}"); reply.Failed {
		t.Errorf("STATUS: %s", reply.Output)
	}
	if reply := p.call(t, "ADD", "c3", pods["c3"], "{}"); !reply.Failed || !strings.Contains(string(reply.Output), "10.88.0.0/30") {
		t.Errorf("ADD on a full pool: %s", reply.Output)
	}
	for _, id := range []string{"c1", "c2"} {
		if reply := p.call(t, "DEL", id, pods[id], "{}"); reply.Failed {
			t.Fatalf("DEL %s: %s", id, reply.Output)
		}
		says(false)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}
