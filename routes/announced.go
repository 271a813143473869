package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Announced lets Kernel.Announce announce a pod's IPv4 address to a LAN, of which machines may know the address at another
// node's MAC, for minutes or hours.
//
// The kernel announces only addresses that a link has itself (net/ipv4/devinet.c: inetdev_send_gratuitous_arp), and who
// sends ARP packets himself needs CAP_NET_RAW. With CAP_NET_ADMIN, Announce makes the kernel ask the LAN for the address,
// and this table makes that question an announcement (RFC 5227, section 3): a question whose sender is the address that
// it asks for. The address is in the set for a moment only: a machine does not answer an announcement, and Answering
// asks whether somebody else has an address.
type Announced struct {
	// Damaged: the table differs from the table that Sync makes. Observed only.
	Damaged bool
}

// The table of Announced, as nft would print it; links "ew*" lead to the pods themselves:
//
//	table arp edgeway-announced {
//		set moment { type ipv4_addr; flags timeout; }
//		chain output {
//			type filter hook output priority filter; policy accept;
//			oifname != "ew*" arp operation request arp daddr ip @moment arp saddr ip set arp daddr ip
//		}
//	}
const (
	announcedTable   = "edgeway-announced"
	announcedVersion = "edgeway 1"
)

// announcedFor is how long a question about an address is an announcement: the kernel asks three times, a second apart
// (neighbour parameters mcast_solicit, retrans_time).
const announcedFor = 2500 * time.Millisecond

// nfArpOut is NF_ARP_OUT (linux/netfilter_arp.h).
const nfArpOut nftables.ChainHook = 1

func announcedHook() *nftables.Chain {
	return &nftables.Chain{
		Name: "output", Table: &nftables.Table{Name: announcedTable, Family: nftables.TableFamilyARP}, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookRef(nfArpOut), Priority: nftables.ChainPriorityFilter,
	}
}

func announcedSet() *nftables.Set {
	return &nftables.Set{Table: announcedHook().Table, ID: 1, Name: "moment", KeyType: nftables.TypeIPAddr, HasTimeout: true}
}

// announcedRules has the offsets of RFC 826's fields, for addresses of 6 and 4 bytes.
func announcedRules() []*nftables.Rule {
	const operation, sender, target = 6, 14, 24
	set := announcedSet()
	return []*nftables.Rule{{
		Table: announcedHook().Table, Chain: announcedHook(), UserData: userdata.AppendString(nil, userdata.TypeComment, announcedVersion),
		Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("ew")},
			load(expr.PayloadBaseNetworkHeader, operation, 2), equal(0, 1),
			load(expr.PayloadBaseNetworkHeader, target, 4), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sender, Len: 4},
		},
	}}
}

func (k *Kernel) observeAnnounced(scope Scope, desired *Announced) *Announced {
	if !scope.Rules && desired == nil {
		return nil
	}
	t := k.readTable(announcedHook(), []*nftables.Set{announcedSet()})
	if t == nil {
		return nil
	}
	return &Announced{Damaged: !sameRules(t.rules, announcedRules())}
}

func (a Announced) table() table {
	return table{announcedHook(), announcedRules(), []*nftables.Set{announcedSet()}, make([][]nftables.SetElement, 1)}
}

func diffAnnounced(observed, desired *Announced) []Change {
	return diffOne(observed, desired, func(got, want Announced) bool { return !got.Damaged })
}

func (a Announced) String() string {
	if a.Damaged {
		return "table arp " + announcedTable + " damaged"
	}
	return "table arp " + announcedTable
}

// Announce tells the LAN of a link that the address is at this node: now, and as nobody answers, twice more a second
// apart. The kernel's entry for the address is FAILED afterwards. Without the table of Announced it is an error.
func (k *Kernel) Announce(_ context.Context, link string, a netip.Addr) error {
	index, err := newView(k.c).index(link)
	if err != nil {
		return err
	}
	c, err := k.natConn()
	if err == nil {
		err = c.SetAddElements(announcedSet(), []nftables.SetElement{{Key: a.AsSlice(), Timeout: announcedFor}})
	}
	if err == nil {
		err = c.Flush()
	}
	if err == nil {
		err = errors.Join(k.c.change(setNeigh(a, index, unix.NUD_FAILED, 0), setNeigh(a, index, unix.NUD_NONE, unix.NTF_USE))...)
	}
	if err != nil {
		return fmt.Errorf("announce %s on %s: %w", a, link, err)
	}
	return nil
}
