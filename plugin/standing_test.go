package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/ipam"
)

// Who lives, by everything that is asked: link, namespace, boot, and whose attachment it is.
func TestJudge(t *testing.T) {
	a := ipam.Attachment{ContainerID: "c1", IfName: "eth0"}
	links := hostLinks{HostLink(a): {Name: "renamed"}}
	own := ipam.Lease{Attachment: a, Network: "lan", BootID: "now"}
	foreign := Adopted(ipam.Lease{Attachment: a, BootID: "now"}, "lan")
	found := own
	found.Attachment = recovered(a)
	for _, tt := range []struct {
		name      string
		lease     ipam.Lease
		links     hostLinks
		netns     presence
		now, next Standing // in the lease's boot, and in the next
	}{
		{"linked", own, links, present, Alive, Alive},
		{"linked, its namespace goes", own, links, gone, Alive, Alive},
		{"linked, found by the link alone", found, links, unknown, Alive, Alive},
		{"link lost, namespace there", own, nil, present, Unlinked, EarlierBoot},
		{"link lost, namespace gone", own, nil, gone, Dead, EarlierBoot},
		{"link lost, namespace not known", own, nil, unknown, Dead, EarlierBoot},
		{"foreign, namespace there", foreign, links, present, Foreign, EarlierBoot},
		{"foreign, namespace gone", foreign, links, gone, Dead, EarlierBoot},
		{"foreign, namespace not known", foreign, nil, unknown, Foreign, EarlierBoot},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netns := func(ipam.Lease) presence { return tt.netns }
			for boot, want := range map[string]Standing{"now": tt.now, "next": tt.next} {
				if got := judge(tt.lease, tt.links, boot, netns); got != want {
					t.Errorf("in boot %s: %s, want %s", boot, got, want)
				}
				if lives := want != Dead && want != EarlierBoot; want.Lives() != lives {
					t.Errorf("%s lives: %v", want, want.Lives())
				}
			}
		})
	}
}

// A path that came to name another pod's namespace kept the address of a pod that was gone.
func TestNamespaceOfAnotherPod(t *testing.T) {
	kernelTest(t)
	pod, other := newSpace(t), newSpace(t)
	cookie, err := cookieIn(pod.file)
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		cookie     uint64
		want       presence
	}{
		{"its own", pod.path, cookie, present},
		{"another pod's", other.path, cookie, gone},
		{"of a process, without cookie", pod.path, 0, unknown},
		{"no path", "", cookie, unknown},
		{"in no directory", "/nonexistent/netns/x", cookie, map[bool]presence{true: gone, false: unknown}[seesHost()]},
		{"removed", plain + "x", cookie, gone},
		{"plain file", plain, cookie, map[bool]presence{true: gone, false: unknown}[seesHost()]},
	} {
		if got := netnsOf(ipam.Lease{Netns: tt.path, NetnsCookie: tt.cookie}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A pod whose host link was renamed or deleted lost its address to another pod when the pool was
// full: two pods had one address.
func TestAddressOfALivingPodIsLeasedAgain(t *testing.T) {
	kernelTest(t)
	for _, do := range []string{"ip link set HOST down; ip link set HOST name uplink7; ip link set uplink7 up", "ip link del HOST"} {
		t.Run(strings.Fields(do)[2], func(t *testing.T) {
			h := newHost(t)
			conf := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.98.0.0/30"}]]}`)
			calls := make([]call, 3)
			for i := range calls {
				calls[i] = call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: newSpace(t).path, conf: conf}
			}
			had := parseResult(t, h.must(t, calls[0])).addrs()
			h.sh(t, strings.ReplaceAll(do, "HOST", HostLink(attachmentOf(calls[0]))))
			h.must(t, calls[1])
			if text := h.refused(t, calls[2], codeTryAgain); !strings.Contains(text, "10.98.0.0/30") {
				t.Errorf("the range is not named: %s", text)
			}
			h.sweep(t)
			h.refused(t, calls[2], codeTryAgain)
			calls[0].verb, calls[0].netns = "DEL", ""
			h.must(t, calls[0])
			if links := h.sh(t, "ip -br link"); strings.Contains(links, "uplink7") {
				t.Errorf("the renamed link stays: %s", links)
			}
			if got := parseResult(t, h.must(t, calls[2])).addrs(); fmt.Sprint(got) != fmt.Sprint(had) {
				t.Errorf("after DEL the next pod gets %v, want %v", got, had)
			}
			for _, c := range calls[1:] {
				h.end(t, c)
			}
		})
	}
}

// sweep is what a daemon does now and then.
func (h *host) sweep(t testing.TB) (did []string) {
	t.Helper()
	h.run(t, func() error {
		store := h.store(t)
		defer store.Close()
		n, err := NewNode(store, h.dir)
		if err != nil {
			return err
		}
		defer n.Close()
		did, err = n.Sweep(t.Context())
		return err
	})
	return did
}
