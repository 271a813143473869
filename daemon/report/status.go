package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Connecting is package bgp's reason for a session that has just started.
const Connecting cluster.Reason = "connecting"

const (
	established = "Established"
	defaultPort = 179 // RFC 4271 section 4.2
)

// speakerStatus is one entry of status.speakers: one session of one node. Node, address and port are its key
// in the list.
type speakerStatus struct {
	Node        string         `json:"node"`
	Address     netip.Addr     `json:"address"`
	Port        uint16         `json:"port"`
	Name        string         `json:"name,omitempty"`
	ASN         uint32         `json:"asn"`
	State       string         `json:"state"`
	Since       time.Time      `json:"since"`
	Reason      cluster.Reason `json:"reason,omitempty"`
	Message     string         `json:"message,omitempty"`
	Prefixes    int            `json:"prefixesAdvertised"`
	RestartTime int            `json:"gracefulRestartSeconds"`
	Conditions  []condition    `json:"conditions"`
}

// condition is a metav1.Condition.
type condition struct {
	Type               string         `json:"type"`
	Status             string         `json:"status"` // True, False
	LastTransitionTime time.Time      `json:"lastTransitionTime"`
	Reason             cluster.Reason `json:"reason"`
	Message            string         `json:"message"`
}

// reportStatus is one node's part of the status of a BGPPeer or BGPClusterConfig.
type reportStatus struct {
	Established []string        `json:"established,omitempty"`
	Speakers    []speakerStatus `json:"speakers,omitempty"`
}

// statusApply is the text to send. Without a status, it removes everything that the field manager owns.
type statusApply struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Status     *reportStatus     `json:"status,omitempty"`
}

// endpoint returns the switch's end of the session.
func (s Session) endpoint() netip.AddrPort {
	return netip.AddrPortFrom(s.Peer, cmp.Or(s.Port, defaultPort))
}

func (s Session) status(node string) speakerStatus {
	since := s.Since.UTC().Truncate(time.Second) // the API server keeps whole seconds
	e := speakerStatus{
		Node: node, Address: s.Peer, Port: s.endpoint().Port(), Name: s.PeerName, ASN: s.PeerASN,
		State: s.State, Since: since, Prefixes: s.Advertised, RestartTime: int(s.RestartTime / time.Second),
	}
	up := condition{Type: established, Status: "True", Reason: established, LastTransitionTime: since}
	if !s.Established() {
		e.Reason, e.Message = cmp.Or(s.Reason, Connecting), s.Message
		up.Status, up.Reason, up.Message = "False", e.Reason, e.Message
	}
	e.Conditions = []condition{up}
	return e
}

// arranged returns the entries in the order of their keys, each key once. A resource may name two peers,
// "port 179" and "the usual port", that are one session.
func arranged(entries []speakerStatus) []speakerStatus {
	order := func(a, b speakerStatus) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	}
	slices.SortStableFunc(entries, order)
	return slices.CompactFunc(entries, func(a, b speakerStatus) bool { return order(a, b) == 0 })
}

// news is the part of an entry that is worth a write. It leaves out the message, which can change at each
// attempt. It also leaves out the state until it is Established: the state machine of RFC 4271 goes round
// once per attempt.
type news struct {
	node, name            string
	reason                cluster.Reason
	peer                  netip.AddrPort
	asn                   uint32
	established           bool
	since                 int64
	prefixes, restartTime int
}

func (e speakerStatus) news() news {
	return news{
		node: e.Node, name: e.Name, reason: e.Reason, peer: netip.AddrPortFrom(e.Address, e.Port), asn: e.ASN,
		established: e.State == established, since: e.Since.Unix(), prefixes: e.Prefixes, restartTime: e.RestartTime,
	}
}

// sameNews reports whether want has no news that have lacks.
func sameNews(want, have []speakerStatus) bool {
	return slices.EqualFunc(want, have, func(a, b speakerStatus) bool { return a.news() == b.news() })
}

// sameButCount is sameNews without the numbers of prefixes.
func sameButCount(want, have []speakerStatus) bool {
	return slices.EqualFunc(want, have, func(a, b speakerStatus) bool {
		a.Prefixes = b.Prefixes
		return a.news() == b.news()
	})
}

// settled returns when the youngest session that has just started is worth a report.
func settled(entries []speakerStatus, settle time.Duration) time.Time {
	var at time.Time
	for _, e := range entries {
		if t := e.Since.Add(settle); e.Reason == Connecting && t.After(at) {
			at = t
		}
	}
	return at
}

// label names a session in status.established: "node-1", or "node-1/switch-1" where the resource names its
// switches.
func (e speakerStatus) label() string {
	if e.Name == "" {
		return e.Node
	}
	return e.Node + "/" + e.Name
}

// statusText returns the text to send for a resource: all of one node's entries.
func statusText(ref string, entries []speakerStatus) ([]byte, error) {
	kind, name, _ := strings.Cut(ref, "/")
	apply := statusApply{APIVersion: cluster.APIVersion(kind), Kind: kind, Metadata: map[string]string{"name": name}}
	if len(entries) > 0 {
		apply.Status = &reportStatus{Speakers: entries}
		for _, e := range entries {
			if e.State == established && !slices.Contains(apply.Status.Established, e.label()) {
				apply.Status.Established = append(apply.Status.Established, e.label())
			}
		}
	}
	text, err := json.Marshal(apply)
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", ref, err)
	}
	return text, nil
}
