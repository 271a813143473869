package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
)

// A node was restarted while no daemon could run. The first pod finds no rule, and one of two interfaces is gone: it
// gets an address of the other, with its rules. When that interface is gone too, the runtime shall try again.
func TestUplinksWithoutDaemon(t *testing.T) {
	kernelTest(t)
	h, pod, second := newHost(t), newSpace(t), newSpace(t)
	h.sh(t, "ip link add nic1 type veth peer name lan1; ip link set lan1 up; ip link set nic1 address 02:00:00:00:01:01")
	var u uplink.Uplinks
	for i, first := range []string{"10.0.0.31", "10.0.1.31"} {
		a := netip.MustParseAddr(first)
		subnet := netip.PrefixFrom(a, 24).Masked()
		u.Interfaces = append(u.Interfaces, uplink.Interface{
			MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), Address: subnet.Addr().Next(), Gateway: subnet.Addr().Next().Next(), Subnet: subnet,
			AnswerARP: true, Addresses: []netip.Addr{a, a.Next()},
		})
	}
	text, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, uplink.File)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	store := h.store(t)
	if err := store.SetPool(t.Context(), u.Pool(func(netip.Addr) bool { return true })); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipam":{"type":"edgeway"}`)}
	if got := parseResult(t, h.must(t, c)).addrs(); len(got) != 1 || got[0] != "10.0.1.31" {
		t.Errorf("got %v, want the first address of the interface that is there", got)
	}
	for command, want := range map[string]string{
		"ip rule": "2048:\tfrom 10.0.1.31 lookup 1694499073 proto 119", "ip route show table 1694499073": "default via 10.0.1.2 dev nic1 proto 119 onlink",
		"ip neigh show proxy": "10.0.1.31 dev nic1", "ip -o link show nic1": "state UP", "ip route get 198.51.100.1 from 10.0.1.31 iif " + HostLink(ipam.Attachment{ContainerID: "c1", IfName: "eth0"}): "dev nic1",
	} {
		if out := h.sh(t, command); !strings.Contains(out, want) {
			t.Errorf("%s has no %q:\n%s", command, want, out)
		}
	}
	h.sh(t, "ip link set nic1 address 02:00:00:00:01:07")
	other := c
	other.id, other.netns = "c2", second.path
	h.refused(t, other, 11)
	if out := h.sh(t, "ip rule"); !strings.Contains(out, "from 10.0.1.31") { // the rule of a running pod stays
		t.Errorf("rules:\n%s", out)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.refused(t, other, 5); !strings.Contains(got, uplink.File) {
		t.Errorf("got %q, want the name of the file", got)
	}
	h.end(t, c)
}
