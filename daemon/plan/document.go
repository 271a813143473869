package plan

import (
	"net/netip"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Document is a Plan for programs: `edgewayd plan -o json` prints it. No list is null.
type Document struct {
	Nodes    []DocumentNode    `json:"nodes"`
	Switches []DocumentSwitch  `json:"switches"`
	Problems []DocumentProblem `json:"problems"`
	Advice   []DocumentProblem `json:"advice"`
	Changes  []Change          `json:"changes"`
}

// DocumentNode is a node. Lines has the words of ip route, and a line for each path.
type DocumentNode struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	LANs      []uint32     `json:"lans"`
	Mode      string       `json:"mode"`
	// NetworkPool that it belongs to: "NetworkPool/warehouse".
	NetworkPool string   `json:"networkPool,omitempty"`
	Pool        []string `json:"pool"`
	MTU         int      `json:"mtu"`     // of the pods' links, in bytes
	Assumed     bool     `json:"assumed"` // its links and subnets are assumed
	Lines       []string `json:"lines"`
}

// DocumentSwitch is a switch with its neighbours and its table.
type DocumentSwitch struct {
	Address    netip.Addr          `json:"address"`
	Port       uint16              `json:"port"`
	ASN        uint32              `json:"asn"`
	Neighbours []DocumentNeighbour `json:"neighbours"`
	Table      []DocumentEntry     `json:"table"`
}

// DocumentNeighbour is a speaker as the switch sees it.
type DocumentNeighbour struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address"`
	ASN     uint32     `json:"asn"`
}

// DocumentEntry is a line of a switch's table.
type DocumentEntry struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop"`
	From    []string     `json:"from"` // speakers
}

// DocumentProblem is a problem, and the nodes that would report it.
type DocumentProblem struct {
	cluster.Problem
	Nodes []string `json:"nodes"`
}

// Document returns the plan, and its difference to another, for programs.
func (p Plan) Document(changes []Change) Document {
	d := Document{Nodes: []DocumentNode{}, Switches: []DocumentSwitch{}, Problems: documentProblems(p.Problems), Advice: documentProblems(p.Advice), Changes: some(changes)}
	for _, n := range p.Nodes {
		d.Nodes = append(d.Nodes, DocumentNode{Name: n.Name, Addresses: some(n.Addresses), LANs: some(n.LANs), Mode: string(n.Mode), NetworkPool: n.NetworkPool,
			Pool: some(n.pool()), MTU: n.MTU, Assumed: n.Assumed, Lines: n.Lines()})
	}
	for _, sw := range p.Switches {
		out := DocumentSwitch{Address: sw.Address, Port: sw.Port, ASN: sw.ASN, Table: []DocumentEntry{}}
		for _, s := range sw.Sessions {
			out.Neighbours = append(out.Neighbours, DocumentNeighbour{Node: s.Node, Address: s.Peer.LocalAddress, ASN: s.Peer.LocalASN})
		}
		for _, e := range sw.Table {
			out.Table = append(out.Table, DocumentEntry{Prefix: e.Prefix, NextHop: e.NextHop, From: e.From})
		}
		d.Switches = append(d.Switches, out)
	}
	return d
}

func documentProblems(problems []Problem) []DocumentProblem {
	out := []DocumentProblem{}
	for _, p := range problems {
		out = append(out, DocumentProblem{Problem: p.Problem, Nodes: some(p.Nodes)})
	}
	return out
}

// some returns an empty list for none.
func some[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
