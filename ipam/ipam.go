// Package ipam owns the answer to one question: which address belongs to which attachment.
// The answer is durable: a lease that [Store.Allocate] returned is on disk, and survives a
// kill, a power cut and a reboot.
//
// The package knows nothing of links, network namespaces, CNI or Kubernetes. The caller says whether an
// attachment still lives (see [Request.Dead]).
//
//	store, err := ipam.Open(ctx, "/var/lib/edgeway/ipam.db", ipam.Options{BootID: boot})
//	lease, err := store.Allocate(ctx, ipam.Request{
//		Attachment: ipam.Attachment{ContainerID: "64dfdb43", IfName: "eth0"},
//		Network:    "edgeway",
//		Pod:        ipam.Pod{Namespace: "default", Name: "till-1"},
//	})
//	fmt.Println(lease.Addrs) // [10.10.1.2 fd00:10:1::2]
package ipam

import (
	"errors"
	"net/netip"
	"time"
)

// Attachment is one interface of one container: the key under which the CNI specification
// (SPEC 1.1.0, section 2) identifies what an ADD made and a DEL removes.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (a Attachment) String() string { return a.ContainerID + "/" + a.IfName }

// Pod names the pod that an attachment serves. An address remembers its last pod, so a pod that comes
// back under the same name gets its old address. No address remembers the zero Pod.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"` // for people; never compared
}

func (p Pod) String() string {
	if p.Name == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name
}

// Range is a run of addresses inside a subnet, written as in host-local's configuration. The zero First
// and Last mean the first and last host address of the subnet. Never leased are an IPv4 subnet's network
// and broadcast address, an IPv6 subnet's router anycast address, and Gateway.
type Range struct {
	Subnet  netip.Prefix `json:"subnet"`
	First   netip.Addr   `json:"rangeStart,omitzero"`
	Last    netip.Addr   `json:"rangeEnd,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// RangeSet is a list of ranges of one family. A lease takes exactly one address of the set.
type RangeSet []Range

// Pool is where leases take addresses from: one address of each set, or none at all.
type Pool struct {
	Sets []RangeSet `json:"sets"`
	// Reserved addresses are never leased, even on request.
	Reserved []netip.Prefix `json:"reserved,omitempty"`
}

// Request asks for one address of each set of a pool.
type Request struct {
	Attachment Attachment
	Network    string // the CNI network's name
	Pod        Pod
	// Pool to take from; nil means the pool that SetPool stored last.
	Pool *Pool
	// Addrs are the requested addresses. A set that contains none of them chooses freely.
	Addrs []netip.Addr
	// Netns is the namespace's path, kept for people and for garbage collection.
	Netns string
	// NetnsCookie identifies the namespace within this boot; 0: not known. See Lease.
	NetnsCookie uint64
	// Dead reports whether the holder of a lease is gone (its link no longer exists). An ADD of the same
	// pod takes over a dead lease with its address. Nil: every lease of this boot is alive. Leases of an
	// earlier boot are always dead.
	Dead func(Lease) bool
}

// Lease is the durable record that an attachment holds one address of each set of its pool.
type Lease struct {
	Attachment Attachment   `json:"attachment"`
	Network    string       `json:"network,omitempty"`
	Pod        Pod          `json:"pod,omitzero"`
	Addrs      []netip.Addr `json:"addrs"`
	Since      time.Time    `json:"since"`
	BootID     string       `json:"bootID,omitempty"`
	Netns      string       `json:"netns,omitempty"`
	// NetnsCookie is the kernel's number of the namespace (SO_NETNS_COOKIE, Linux 5.14); 0: not known.
	// The number is never reused within a boot, while a path may later name another namespace.
	NetnsCookie uint64 `json:"netnsCookie,omitempty"`
	// RememberAs is the network under which the addresses remember the pod, if it differs from Network.
	// An imported lease names the network that serves the pod when the pod comes back.
	RememberAs string `json:"rememberAs,omitempty"`
}

// Usage counts a pool's addresses, summed over its sets. Sizes over 2^62 are reported as 2^62.
type Usage struct {
	Total      uint64 `json:"total"`      // addresses that could ever be leased
	Used       uint64 `json:"used"`       // held by a lease
	Remembered uint64 `json:"remembered"` // free, but the address of a pod that may come back
	Free       uint64 `json:"free"`       // Total - Used
	Outside    uint64 `json:"outside"`    // leased addresses outside the pool, which has changed since
}

// Options of a store.
type Options struct {
	// BootID identifies this boot of the machine (/proc/sys/kernel/random/boot_id).
	BootID string
	// LockTimeout bounds the wait for the store's file lock; zero means two seconds. When it runs out,
	// Open's error wraps ErrLocked.
	LockTimeout time.Duration
	// Recover returns the leases that the links of the node show. It is called only when a file is
	// damaged or new, so that no address is leased twice. Nil: a damaged file is an error that wraps
	// ErrDamaged.
	Recover func() ([]Lease, error)
	// FoundAs maps an attachment to the attachment that Recover reports in its place, when a link does
	// not name its attachment. Nil: the same attachment.
	FoundAs func(Attachment) Attachment
	// Lives reports whether a holder lives that the last good copy lists but Recover does not see, since
	// another program made its link. Nil: no such holder lives.
	Lives func(Lease) bool
}

var (
	// ErrLocked is returned by Open when another process holds the store: try again later.
	ErrLocked = errors.New("store is locked by another process")
	// ErrClaimed is returned by Claim when another process, or another call, has claimed the attachment.
	ErrClaimed = errors.New("another call works on the attachment")
	// ErrExhausted is returned by Allocate when a set has no address left.
	ErrExhausted = errors.New("no address left")
	// ErrInUse is returned by Allocate when a requested address is held by another attachment.
	ErrInUse = errors.New("address is in use")
	// ErrNotInPool is returned by Allocate when a requested address can never be leased: no range
	// contains the address, or it is reserved.
	ErrNotInPool = errors.New("address is not in the pool")
	// ErrHeld is returned by Allocate, with the existing lease, when the attachment already holds a lease
	// and is not dead.
	ErrHeld = errors.New("attachment holds a lease already")
	// ErrNoPool is returned by Allocate when the request names no pool and no pool was ever set.
	ErrNoPool = errors.New("no pool is set")
	// ErrDamaged is wrapped by errors about a file whose content contradicts itself. Nothing is leased
	// from such a file, since the held addresses are not known. The next Open rebuilds it, see
	// Options.Recover.
	ErrDamaged = errors.New("store is damaged")
	// ErrClosed is returned by calls after Close.
	ErrClosed = errors.New("store is closed")
	// ErrInvalid is wrapped by errors about a request or pool that makes no sense.
	ErrInvalid = errors.New("invalid")
)
