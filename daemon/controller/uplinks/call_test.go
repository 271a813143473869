package uplinks

import (
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/scripts/ens"
)

// caller is a controller of the instance i-1, whose interface has two addresses, and no API server.
func caller(t *testing.T) (*Controller, *ens.Cloud, *node, string) {
	t.Helper()
	fake := ens.New()
	fake.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	fake.AddGroup("sg-1")
	fake.AddInstance("i-1", "vsw-1", "sg-1")
	fake.AddKey(ens.Key{ID: "AKID", Secret: secret, Actions: []string{"ens:*"}})
	id := fake.Bind("i-1").ID
	api := httptest.NewServer(fake)
	t.Cleanup(api.Close)
	t.Cleanup(fake.Close)
	c, err := New(Options{Config: Config{Endpoint: api.URL, Credentials: credentials(t)}, API: &rest.Config{Host: api.URL}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	c.limit = rate.NewLimiter(rate.Inf, 1)
	n := &node{Node: Node{Name: "n1", Instance: "i-1"}}
	for range 2 {
		c.call(t.Context(), n, Call{Interface: id, VSwitch: "vsw-1", Assign: 1}, time.Now().Add(time.Minute))
	}
	return c, fake, n, id
}

// An address was unassigned without an answer, and somebody deleted the EdgeNode: the cloud took the address away from
// the pod that got it then.
func TestAddressOfACallUnderWayIsNotGranted(t *testing.T) {
	for _, fault := range []ens.Fault{{Status: 503}, {}} { // it may still be carried out; the list after it may be old
		c, fake, n, id := caller(t)
		list, err := c.ask(t.Context(), n)
		if err != nil || len(list.Interfaces) != 2 || len(list.Interfaces[1].Addresses) != 2 {
			t.Fatal(list, err)
		}
		all := list.Interfaces[1].Addresses
		fake.SetFaults(func(ens.Call) ens.Fault { return fault })
		c.call(t.Context(), n, Call{Interface: id, VSwitch: "vsw-1", Unassign: all[0]}, time.Now().Add(time.Minute))
		fake.SetFaults(nil)
		now, err := c.ask(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		list.Blocked = now.Blocked
		step := decide(list, nil, nil, Terms{PerInterface: cloud.MostAddresses, Release: On})
		if step.Write == nil || !slices.Equal(addresses(step.Write.Interfaces[0]), all[1:]) {
			t.Errorf("after %+v of %v: %+v", fault, all[0], step.Write)
		}
	}
}

// The controller stood still between its look and its call, and another one has given the address to a pod meanwhile.
func TestNoCallAfterTheDeadline(t *testing.T) {
	c, fake, n, id := caller(t)
	before := len(fake.Calls())
	n.due = time.Now().Add(time.Hour)
	c.call(t.Context(), n, Call{Interface: id, VSwitch: "vsw-1", Unassign: addr("10.0.0.3")}, time.Now().Add(-time.Millisecond))
	if got := fake.Calls()[before:]; len(got) > 0 || !n.due.IsZero() {
		t.Errorf("called %v; next look at %v", got, n.due)
	}
}

// An interface was made without an answer. Then an address was refused, and before a list had the interface a second one was
// made in another vSwitch.
func TestRefusalForgetsNoInterface(t *testing.T) {
	c, _, n, _ := caller(t)
	n.expected = expected{until: time.Now().Add(time.Hour)}
	c.call(t.Context(), n, Call{Interface: "eni-other", VSwitch: "vsw-1", Assign: 1}, time.Now().Add(time.Minute))
	if c.blocks["eni-other"].wait == 0 || !n.expected.open(nil, nil, time.Now()) {
		t.Errorf("blocks %v, expected %+v", c.blocks, n.expected)
	}
	c.call(t.Context(), n, Call{Interface: "eni-other", Attach: true}, time.Now().Add(time.Minute))
	if n.refused == nil || n.expected.open(nil, nil, time.Now()) {
		t.Errorf("refused %v, expected %+v", n.refused, n.expected)
	}
}
