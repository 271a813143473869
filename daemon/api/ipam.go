package api

import "time"

// The answers to Op "ipam". The first of Request.Args selects the answer. `edgewayd ipam -o json` prints the
// same.

// Lease is the lease of one attachment.
type Lease struct {
	Addrs       []string  `json:"addrs"`
	Pod         string    `json:"pod,omitempty"` // namespace/name
	ContainerID string    `json:"containerID"`
	IfName      string    `json:"ifName"`
	Network     string    `json:"network,omitempty"`
	Since       time.Time `json:"since"`
	// State is "alive", "unlinked", "foreign", "dead" or "earlier boot" (plugin.Standing).
	State string `json:"state"`
	Link  string `json:"link,omitempty"` // the host's end; "" if another main plugin made the link
	Netns string `json:"netns,omitempty"`
	// Uplink is the secondary interface whose address this is, by MAC or name as the EdgeNode has it; "" if none.
	Uplink string `json:"uplink,omitempty"`
}

// Remembered is a free address that remembers its last pod.
type Remembered struct {
	Addr    string `json:"addr"`
	Pod     string `json:"pod"`
	IfName  string `json:"ifName"`
	Network string `json:"network,omitempty"`
}

// PoolUsage counts the addresses of one pod CIDR.
type PoolUsage struct {
	CIDR       string `json:"cidr"`
	Total      uint64 `json:"total"`
	Used       uint64 `json:"used"`
	Free       uint64 `json:"free"`
	Remembered uint64 `json:"remembered"` // free addresses that remember a pod
}

// LeaseList answers "list".
type LeaseList struct {
	Leases     []Lease      `json:"leases"`
	Pools      []PoolUsage  `json:"pools"`
	Outside    uint64       `json:"outside"` // leased addresses outside the pools
	Remembered []Remembered `json:"remembered"`
	Now        time.Time    `json:"now"`
}

// LeaseDetail is a lease with its kernel state, as ip prints it.
type LeaseDetail struct {
	Lease
	LinkExists bool     `json:"linkExists"`
	MAC        string   `json:"mac,omitempty"`
	PodMAC     string   `json:"podMAC,omitempty"`
	HostEnd    []string `json:"hostEnd"` // routes and neighbours of the host's end
	PodEnd     []string `json:"podEnd"`
	// NoPod says why the pod's end could not be read.
	NoPod string `json:"noPod,omitempty"`
	// KeptFor is the network for which the addresses remember the pod.
	KeptFor string `json:"keptFor,omitempty"`
}

// LeaseDetails answers "show".
type LeaseDetails struct {
	Leases     []LeaseDetail `json:"leases"`
	Remembered []Remembered  `json:"remembered"`
	Now        time.Time     `json:"now"`
}

// Released answers "release", once for each attachment.
type Released struct {
	Lease
	Error string `json:"error,omitempty"` // why the lease still exists
}

// Finding is a line of the answer to "check" and "repair".
type Finding struct {
	Object string `json:"object"`
	Got    string `json:"got"`
	Repair string `json:"repair,omitempty"` // what repair would do
	Next   string `json:"next,omitempty"`   // what the operator can do if repair cannot help
	Done   bool   `json:"done,omitempty"`   // repair was done
}

// Findings answers "check" and "repair".
type Findings struct {
	Findings []Finding `json:"findings"`
	Leases   int       `json:"leases"` // number of leases checked
	Error    string    `json:"error,omitempty"`
}

// Imported answers "import", once for each container.
type Imported struct {
	Lease
	Action string `json:"action"`
	Why    string `json:"why,omitempty"`
}

// The actions of an import.
const (
	Hold     = "hold"     // the old pod runs: the address is leased until its namespace is gone
	Remember = "remember" // the old pod is gone: the address stays free and remembers the pod
	Known    = "known"    // the store already has the lease
	Skip     = "skip"     // the lease cannot be taken over: Why says the reason
)
