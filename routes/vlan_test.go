package routes

import (
	"errors"
	"strings"
	"testing"
)

func vlanState(mtu int) State {
	return State{
		Links: []Link{{Name: "eth0", Up: true}, {Name: "eth0.100", Kind: "vlan", MTU: mtu, Up: true, Alias: "made by edgeway", VLAN: &VLAN{Parent: "eth0", ID: 100}}},
		Addrs: []Addr{{Link: "eth0.100", Prefix: pfx("10.1.0.21/32")}},
	}
}

// vlanSpace is a namespace with eth0, and whether its kernel has VLAN links.
func vlanSpace(t *testing.T) (s *space, supported bool) {
	t.Helper()
	s = newSpace(t)
	lan := s.wire()
	out, err := lan.try("ip link add link lan0 name lan0.100 type vlan id 100")
	if err != nil && !strings.Contains(out, "Unknown device type") {
		t.Fatalf("%v: %s", err, out)
	}
	return s, err == nil
}

// ofLinks lists the changes of links, with their errors.
func ofLinks(changes []Change) string {
	var out []string
	for _, c := range changes {
		if l, ok := c.Object.(Link); ok {
			text := string(c.Op) + " " + l.Name
			if c.Err != nil {
				text += ": " + c.Err.Error()
			}
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

// A VLAN link comes, is repaired and goes. Links of others stay.
func TestVLAN(t *testing.T) {
	s, supported := vlanSpace(t)
	if !supported {
		t.Skip("the kernel has no module 8021q")
	}
	scope, want := Scope{Rules: true}, vlanState(1500)
	s.run("ip link add link eth0 name eth0.200 type vlan id 200")
	s.sync(scope, want)
	s.contains("ip -d link show eth0.100", "vlan protocol 802.1Q id 100")
	s.contains("ip -d link show eth0.100", "alias made by edgeway")
	for _, fault := range []string{"ip link del eth0.100", "ip link set eth0.100 down", "ip link set eth0 down", "ip link set eth0.100 mtu 1400", "ip link set eth0.100 alias x", "ip addr flush dev eth0.100"} {
		s.run(fault)
		if changes := s.sync(scope, want); len(changes) == 0 {
			t.Errorf("%s: not repaired", fault)
		}
	}
	want.Links[1].VLAN.ID = 101
	if got := ofLinks(s.sync(scope, want)); got != "delete eth0.100, add eth0.100" {
		t.Errorf("another tag: got %s", got)
	}
	s.contains("ip -d link show eth0.100", "802.1Q id 101")
	s.sync(scope, State{})
	s.lacks("ip link", "eth0.100")
	s.contains("ip link", "eth0.200")

	for _, foreign := range []string{"ip link add link eth0 name eth0.100 type vlan id 100", "ip link add link eth0 name eth0.100 type vlan proto 802.1ad id 100", "ip link add eth0.100 type dummy"} {
		s.run(foreign)
		was := s.run("ip -d -o link show eth0.100")
		want := State{Links: vlanState(0).Links[1:]}
		if _, err := s.k.Sync(t.Context(), scope, want); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: got %v, want %v", foreign, err, ErrForeign)
		}
		if now := s.run("ip -d -o link show eth0.100"); now != was {
			t.Errorf("%s: was %s, is %s", foreign, was, now)
		}
		s.run("ip link del eth0.100")
	}
}

// The card of a node was deleted: its State had the card twice, as an uplink and as the parent of a VLAN.
func TestLinkThatIsDesiredTwice(t *testing.T) {
	s := newSpace(t)
	s.wire()
	up := Link{Name: "eth0", Up: true}
	if changes := s.sync(Scope{}, State{Links: []Link{up, up}}); len(changes) > 0 {
		t.Errorf("got %v, want no change", changes)
	}
}

// The kernel of a small machine lacks the module. The error names the module.
func TestVLANWithoutTheModule(t *testing.T) {
	s, supported := vlanSpace(t)
	if supported {
		t.Skip("the kernel has the module 8021q")
	}
	_, err := s.k.Sync(t.Context(), Scope{Rules: true}, State{Links: vlanState(0).Links})
	if err == nil || !strings.Contains(err.Error(), "modprobe 8021q") {
		t.Errorf("got %v, want the command that loads the module", err)
	}
	t.Log(err)
}

// Diff knows a VLAN link by its group, makes it again for another tag, and leaves links of others.
func TestDiffOfVLAN(t *testing.T) {
	want := vlanState(0).Links[1]
	of := func(edit func(l *Link, v *VLAN)) State {
		l, v := want, *want.VLAN
		edit(&l, &v)
		l.VLAN = &v
		return State{Links: []Link{l}}
	}
	for _, tt := range []struct {
		name string
		got  State
		want string
	}{
		{"right", of(func(*Link, *VLAN) {}), ""},
		{"down", of(func(l *Link, _ *VLAN) { l.Up = false }), "replace eth0.100"},
		{"another tag", of(func(_ *Link, v *VLAN) { v.ID = 7 }), "delete eth0.100, add eth0.100"},
		{"another parent", of(func(_ *Link, v *VLAN) { v.Parent = "eth9" }), "delete eth0.100, add eth0.100"},
		{"of somebody else", of(func(_ *Link, v *VLAN) { v.Foreign = true }), "replace eth0.100: link eth0.100: held by another owner; delete or rename the existing link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ofLinks(Diff(tt.got, State{Links: []Link{want}})); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
