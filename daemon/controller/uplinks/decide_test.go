package uplinks

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, addr(text))
	}
	return out
}

var subnets = map[string]Subnet{"vsw-1": {CIDR: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.253"), Free: 100}}

func eni(id string, own string, addresses ...string) cloud.Interface {
	return cloud.Interface{ID: id, MAC: "00:16:3e:00:00:0" + id[len(id)-1:], Status: cloud.InUse, VSwitch: "vsw-1", Address: addr(own), Addresses: addrs(addresses...)}
}

func link(id string, own string, texts ...string) cluster.Uplink {
	u := cluster.Uplink{ID: id, MAC: "00:16:3e:00:00:0" + id[len(id)-1:], Address: addr(own), Subnet: subnets["vsw-1"].CIDR, Gateway: subnets["vsw-1"].Gateway}
	for _, text := range texts {
		if a, token, withdrawn := strings.Cut(text, "/"); withdrawn {
			u.Withdrawn = append(u.Withdrawn, cluster.Withdrawal{Address: addr(a), Token: token})
		} else {
			u.Addresses = append(u.Addresses, one(addr(text)))
		}
	}
	return u
}

func specOf(links ...cluster.Uplink) *cluster.Uplinks {
	return &cluster.Uplinks{Provider: cluster.ProviderENS, Egress: cluster.EgressUplink, Interfaces: links}
}

// text is a step as an operator would note it.
func (s Step) text() string {
	var out []string
	if s.Write != nil {
		for _, u := range s.Write.Interfaces {
			line := u.ID + ":"
			for _, a := range addresses(u) {
				line += " " + a.String()
			}
			for _, w := range u.Withdrawn {
				line += " -" + w.Address.String() + "/" + w.Token
			}
			out = append(out, line)
		}
		return "write " + strings.Join(out, "; ")
	}
	switch c := s.Call; {
	case c.Unassign.IsValid():
		return "unassign " + c.Unassign.String() + " from " + c.Interface
	case c.Assign == 1:
		return "assign to " + c.Interface
	case c.Assign > 0:
		return fmt.Sprintf("assign %d to %s", c.Assign, c.Interface)
	case c.Attach:
		return "attach " + c.Interface
	case c.Create != "":
		return "create " + c.Create + " in " + c.VSwitch
	}
	return ""
}

func TestDecide(t *testing.T) {
	primary := cloud.Interface{ID: "eni-0", Primary: true, Status: cloud.InUse, VSwitch: "vsw-1", Address: addr("10.0.0.1"), Addresses: addrs("10.0.0.9")}
	attaching := eni("eni-2", "10.0.0.22", "10.0.0.41")
	attaching.Status = cloud.Attaching
	confirmed := func(used int, texts ...string) *cluster.UplinksStatus {
		s := &cluster.UplinksStatus{Used: used}
		for _, text := range texts {
			a, token, _ := strings.Cut(text, "/")
			s.Confirmed = append(s.Confirmed, cluster.Withdrawal{Address: addr(a), Token: token})
		}
		return s
	}
	without := func(s *cluster.UplinksStatus) *cluster.UplinksStatus {
		s.Interfaces = []cluster.UplinkStatus{{MAC: "00:16:3e:00:00:01", State: cluster.InterfaceMissing}}
		return s
	}
	lacking := func(d time.Duration, texts ...string) map[Place]time.Duration {
		out := map[Place]time.Duration{}
		for _, text := range texts {
			out[Place{"eni-1", addr(text)}] = d
		}
		return out
	}
	list := func(all ...cloud.Interface) Cloud { return Cloud{Interfaces: all, Subnets: subnets} }
	blocked := func(c Cloud, ids ...string) Cloud { c.Blocked = set(ids); return c }
	lacks := func(c Cloud, m map[Place]time.Duration) Cloud { c.Lacking = m; return c }
	named := func(n cloud.Interface, name string) cloud.Interface { n.Name = name; return n }
	waits := func(c Cloud, all ...cloud.Interface) Cloud { c.Waiting = all; return c }
	left := named(eni("eni-5", "10.0.0.25"), "edgeway-i-1-2")
	full := eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")
	fullSpec := specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33"))
	hot := Terms{PerInterface: 3, Batch: 10, Interfaces: 2, Instance: "i-1", VSwitches: []string{"vsw-1", "vsw-2"}}
	all := Terms{PerInterface: 3}
	free := Terms{Fill: Fill{1}, PerInterface: 3, Issued: issued{{Address: addr("10.0.0.33"), Token: "spare-2"}: true}}
	for _, test := range []struct {
		name   string
		cloud  Cloud
		spec   *cluster.Uplinks
		status *cluster.UplinksStatus
		terms  Terms
		want   string
	}{
		{"no secondary interface: no EdgeNode", list(primary), nil, nil, all, ""},
		{"the primary interface serves no pod", list(primary, eni("eni-1", "10.0.0.21")), nil, nil, all, "write eni-1:"},
		{"what the list shows is adopted", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, all, "write eni-1: 10.0.0.31 10.0.0.32"},
		{"an interface on its way is left alone", list(attaching), nil, nil, all, ""},
		{"an interface whose subnet is not known waits", Cloud{Interfaces: []cloud.Interface{eni("eni-1", "10.0.0.21")}}, nil, nil, all, ""},
		{"assign to the interface with the fewest", list(eni("eni-1", "10.0.0.21", "10.0.0.31"), eni("eni-2", "10.0.0.22")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31"), link("eni-2", "10.0.0.22")), nil, all, "assign to eni-2"},
		{"an interface that was full a moment ago is passed over", blocked(list(eni("eni-1", "10.0.0.21", "10.0.0.31"), eni("eni-2", "10.0.0.22")), "eni-2"),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31"), link("eni-2", "10.0.0.22")), nil, all, "assign to eni-1"},
		{"an empty vSwitch", blocked(list(eni("eni-1", "10.0.0.21")), "vsw-1"), specOf(link("eni-1", "10.0.0.21")), nil, all, ""},
		{"full", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")), nil, all, ""},
		{"one list that lacks an address proves nothing", lacks(list(eni("eni-1", "10.0.0.21")), lacking(30*time.Second, "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, Terms{PerInterface: 0}, ""},
		{"lists that lack it for a minute do", lacks(list(eni("eni-1", "10.0.0.21")), lacking(time.Minute, "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, all, "write eni-1: -10.0.0.31/lost-T"},
		{"a lost address that is not confirmed stays withdrawn", lacks(list(eni("eni-1", "10.0.0.21")), lacking(time.Hour, "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31/lost-1")), confirmed(1), Terms{}, ""},
		{"it is forgotten once confirmed", lacks(list(eni("eni-1", "10.0.0.21")), lacking(time.Hour, "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31/lost-1")), confirmed(0, "10.0.0.31/lost-1"), all, "write eni-1:"},
		{"a lost address that is back is granted when confirmed", list(eni("eni-1", "10.0.0.21", "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31/lost-1")), confirmed(0, "10.0.0.31/lost-1"), all, "write eni-1: 10.0.0.31"},
		{"a lost address is never unassigned", list(eni("eni-1", "10.0.0.21", "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31/lost-1")), confirmed(0), Terms{}, ""},
		{"surplus is withdrawn, the highest first", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")), confirmed(0), Terms{Fill: Fill{1}, Release: On, PerInterface: 3, Token: "x"}, "write eni-1: 10.0.0.31 10.0.0.32 -10.0.0.33/spare-x"},
		{"a node that has not written a status keeps its surplus", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")), nil, free, ""},
		{"nothing is unassigned before the node has confirmed it", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-2")), confirmed(0, "10.0.0.33/spare-1"), free, ""},
		{"unassign what the node has confirmed with the token", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-2")), confirmed(0, "10.0.0.33/spare-2"), free, "unassign 10.0.0.33 from eni-1"},
		{"not what another process withdrew: the address may have been granted since", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-1")), confirmed(0, "10.0.0.33/spare-1"), free, "write eni-1: 10.0.0.31 -10.0.0.33/spare-T"},
		{"nor another address with the same token", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.32/spare-2", "10.0.0.33/spare-2")), confirmed(0, "10.0.0.32/spare-2"), free,
			"write eni-1: 10.0.0.31 -10.0.0.32/spare-T -10.0.0.33/spare-2"},
		{"a node without the interface cannot confirm: another machine has it, with its pods", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-2")), without(confirmed(0, "10.0.0.33/spare-2")), free, ""},
		{"nothing is surplus on a node without the interface", list(full), fullSpec, without(confirmed(0)), Terms{Fill: Fill{1}, PerInterface: 3}, ""},
		{"not with noRelease", list(eni("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-2")), confirmed(0, "10.0.0.33/spare-2"), Terms{Fill: Fill{1}, Release: NoRelease, Issued: free.Issued}, ""},
		{"no call with off, and lists still count", list(eni("eni-1", "10.0.0.21", "10.0.0.31")), specOf(link("eni-1", "10.0.0.21")), nil, Terms{PerInterface: 3, Release: Off}, "write eni-1: 10.0.0.31"},
		{"no call with off", list(eni("eni-1", "10.0.0.21")), specOf(link("eni-1", "10.0.0.21")), nil, Terms{PerInterface: 3, Release: Off}, ""},
		{"an unassigned address that lists lacked for a minute is forgotten", lacks(list(eni("eni-1", "10.0.0.21", "10.0.0.31")), lacking(time.Minute, "10.0.0.33")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31", "10.0.0.33/spare-2")), confirmed(0, "10.0.0.33/spare-2"), free, "write eni-1: 10.0.0.31"},
		{"an address that moved to another interface waits", list(eni("eni-1", "10.0.0.21"), eni("eni-2", "10.0.0.22", "10.0.0.31")),
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31/lost-1"), link("eni-2", "10.0.0.22")), nil, Terms{}, ""},
		{"enough free addresses", list(eni("eni-1", "10.0.0.21", "10.0.0.31")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), confirmed(0), free, ""},
		{"too few free addresses", list(eni("eni-1", "10.0.0.21", "10.0.0.31")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), confirmed(1), free, "assign to eni-1"},
		{"an interface that is gone, with an address", Cloud{Subnets: subnets, Lacking: lacking(time.Minute, "10.0.0.31")},
			specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, all, "write eni-1: -10.0.0.31/lost-T"},
		{"an interface that is gone, and nothing of it is left", Cloud{Subnets: subnets, Lacking: map[Place]time.Duration{{Interface: "eni-1"}: time.Minute}},
			specOf(link("eni-1", "10.0.0.21")), nil, all, "write "},
		{"a batch fills an interface", list(eni("eni-1", "10.0.0.21", "10.0.0.31")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, hot, "assign 2 to eni-1"},
		{"a batch is not more than the vSwitch has", Cloud{Interfaces: []cloud.Interface{eni("eni-1", "10.0.0.21")}, Subnets: map[string]Subnet{"vsw-1": {CIDR: subnets["vsw-1"].CIDR, Free: 2}}},
			specOf(cluster.Uplink{ID: "eni-1", MAC: "00:16:3e:00:00:01", Address: addr("10.0.0.21"), Subnet: subnets["vsw-1"].CIDR}), nil, hot, "assign 2 to eni-1"},
		{"a batch is not more than the node wants", list(eni("eni-1", "10.0.0.21", "10.0.0.31")), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), confirmed(0),
			Terms{Fill: Fill{2}, PerInterface: 9, Batch: 10}, "assign to eni-1"},
		{"the first interface", list(primary), nil, nil, hot, "create edgeway-i-1-1 in vsw-1"},
		{"another interface when one is full", list(full), fullSpec, nil, hot, "create edgeway-i-1-1 in vsw-1"},
		{"its name is not taken", list(named(full, "edgeway-i-1-1")), fullSpec, nil, hot, "create edgeway-i-1-2 in vsw-1"},
		{"not while an interface has room", list(eni("eni-1", "10.0.0.21", "10.0.0.31"), primary), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, hot, "assign 2 to eni-1"},
		{"nor while one with room was refused a moment ago", blocked(list(eni("eni-1", "10.0.0.21", "10.0.0.31")), "eni-1"), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, hot, ""},
		{"but when its vSwitch is empty", blocked(list(eni("eni-1", "10.0.0.21", "10.0.0.31")), "vsw-1"), specOf(link("eni-1", "10.0.0.21", "10.0.0.31")), nil, hot, "create edgeway-i-1-1 in vsw-2"},
		{"not in a vSwitch that is empty", blocked(list(full), "vsw-1"), fullSpec, nil, hot, "create edgeway-i-1-1 in vsw-2"},
		{"not when all are", blocked(list(full), "vsw-1", "vsw-2"), fullSpec, nil, hot, ""},
		{"not soon after a refusal, and not before a list shows the last one", blocked(list(full), "i-1"), fullSpec, nil, hot, ""},
		{"not more than the type has", list(full), fullSpec, nil, Terms{PerInterface: 3, Interfaces: 1, Instance: "i-1", VSwitches: []string{"vsw-1"}}, ""},
		{"not while one is on its way", list(full, attaching), fullSpec, nil, hot, ""},
		{"not with off", list(full), fullSpec, nil, Terms{PerInterface: 3, Interfaces: 2, Instance: "i-1", VSwitches: []string{"vsw-1"}, Release: Off}, ""},
		{"one that was made for the instance is attached", waits(list(full), left), fullSpec, nil, hot, "attach eni-5"},
		{"and no second one is made when that was refused", blocked(waits(list(full), left), "eni-5"), fullSpec, nil, hot, ""},
		{"no interface for a node with enough free addresses", list(full), fullSpec, confirmed(0), Terms{Fill: Fill{2}, PerInterface: 3, Interfaces: 2, Instance: "i-1", VSwitches: []string{"vsw-1"}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.terms.Token += "T"[len(test.terms.Token):]
			if test.terms.Release == "" {
				test.terms.Release = On
			}
			if got := decide(test.cloud, test.spec, test.status, test.terms).text(); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// What a person wrote into an EdgeNode beside the interfaces stays.
func TestEgressStays(t *testing.T) {
	spec := specOf()
	spec.Egress, spec.Inside = cluster.EgressNode, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	got := decide(Cloud{Interfaces: []cloud.Interface{eni("eni-1", "10.0.0.21")}, Subnets: subnets}, spec, nil, Terms{PerInterface: 3, Release: On})
	if got.Write == nil || got.Write.Egress != cluster.EgressNode || fmt.Sprint(got.Write.Inside) != "[10.0.0.0/8]" {
		t.Errorf("got %+v", got.Write)
	}
}

// An operator finds each reason in docs/ens.md.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/ens.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reasons() {
		if !strings.Contains(string(text), "\n| `"+string(r)+"` |") {
			t.Errorf("docs/ens.md does not say what %s is", r)
		}
	}
}
