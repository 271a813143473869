package pods

import (
	"fmt"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Pods got other addresses than the next, and edgewayd status did not say why.
func TestStatusNamesAnAddressThatIsTaken(t *testing.T) {
	lab.Need(t, "ip")
	p := starting(t)
	p.lift()
	host, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	pod, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if err := host.IP(t.Context(), "link set lo up\nlink add up0 type veth peer name up1\nlink set up1 up\nlink set up0 up\naddr add 10.88.0.1/32 dev up0\nroute add default dev up0"); err != nil {
		t.Fatal(err)
	}
	var n *leases
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
	call := func(verb string) {
		conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":%q,"ipam":{"ranges":[[{"subnet":"10.88.0.0/24"}]]}}`, p.config.StateDir)
		cni := api.CNI{Command: verb, ContainerID: "c1", IfName: "eth0", Netns: pod.Path, Stdin: []byte(conf)}
		if reply := p.CNI(t.Context(), api.Request{Op: "cni", CNI: &cni}, pod.File); reply.Failed {
			t.Fatalf("%s: %s", verb, reply.Output)
		}
	}
	call("ADD")
	_, problems := p.Status(t.Context())
	if len(problems) != 1 || problems[0].Reason != "addressTaken" || problems[0].Object != "address 10.88.0.1" {
		t.Errorf("problems %+v", problems)
	}
	if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || len(checked.Findings) != 1 || checked.Findings[0].Object != "address 10.88.0.1" {
		t.Errorf("ipam check: %+v, %v", checked, err)
	}
	call("DEL")
	if err := n.close(); err != nil {
		t.Error(err)
	}
}
