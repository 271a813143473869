package main

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// files are the topologies, and the manifests: the BGPPeer documents as their authors wrote them,
// and Nodes as an API server would show them.
//
//go:embed topology manifests
var files embed.FS

// act is one scenario of the documents.
type act struct {
	name    string // name of the act's files
	title   string
	picture string
	pods    []podSpec
	guests  []guest             // machines that take part in the traffic besides the pods
	expect  map[string][]string // by switch: routes that the switch must learn
	node    string              // node whose status is shown and whose daemon is restarted
	restart [][2]string         // pairs with traffic during the restart; empty: no restart
	cloud   bool                // the cloud is behind the switch core
	change  [][2]string         // pairs with traffic while a pool's mode changes; empty: no change
	router  string              // a router that has no route to pods; "": there is none
}

type podSpec struct{ node, name string }

// guest is a machine of the topology and its part.
type guest struct{ machine, part string }

// end is one end of a pair.
type end struct {
	name string
	part string // "pod", "node", "host", "router" or "VPC"
	node string // the node of a pod
	lan  string
	m    *lab.Machine
}

var acts = []act{
	{
		name:  "edge-containers",
		title: "Act 1. Communication between edge containers: one LAN, three speakers, the cloud behind",
		picture: `
     VPC 192.168.0.0/16                                data center 10.0.0.0/16, AS 65010
  +---------------------+                             +------------------------------------+
  | ecs 192.168.1.20    |   TR       VBR     circuit  |  core switch 10.0.0.1, AS 65001    |
  |  '- vpc -------------- tr ----- vbr -----------------+  (BIRD)                         |
  +---------------------+                             |  |                                 |
                                                      |  +-- host    10.0.0.50             |
   every router forwards 10.0.0.0/16 and              |  +-- Node-1  10.0.0.10  speaker    |
   10.10.0.0/16 toward the core switch; the           |  |     pods  10.10.0.0/24          |
   core switch learns by BGP which node has           |  +-- Node-2  10.0.0.11  speaker    |
   which pods                                         |  |     pods  10.10.1.0/24          |
                                                      |  +-- Node-3  10.0.0.12  speaker    |
                                                      |        pods  10.10.2.0/24          |
                                                      +------------------------------------+`,
		pods:   []podSpec{{"Node-1", "web-1"}, {"Node-1", "db-1"}, {"Node-2", "web-2"}, {"Node-3", "web-3"}},
		guests: []guest{{"Node-1", "node"}, {"host", "host"}, {"ecs", "VPC"}},
		node:   "Node-1",
		cloud:  true,
		expect: map[string][]string{"core": {
			"10.10.0.0/24 via 10.0.0.10", "10.10.1.0/24 via 10.0.0.11", "10.10.2.0/24 via 10.0.0.12",
			"fd00:10:10::/64 via fd00:10::10", "fd00:10:10:1::/64 via fd00:10::11", "fd00:10:10:2::/64 via fd00:10::12",
		}},
	},
	{
		name:  "two-lans",
		title: "Act 2. Communication between containers across LANs: one speaker each, switches that peer",
		picture: `
                VPC 192.168.0.0/16:  ecs --- vpc --- tr --- vbr
                                                             |  circuit
                                                core switch, AS 65001
                                              BGP /               \ BGP
            switch A 10.0.10.1, AS 65002 ------- BGP -------- switch B 10.0.20.1, AS 65003
              |                                                 |
              +-- host    10.0.10.50                            +-- Node-4  10.0.20.14
              +-- Node-1  10.0.10.11  speaker, AS 65010         |     pods  10.10.3.0/24
              |     pods  10.10.0.0/24                          +-- Node-5  10.0.20.15  speaker,
              +-- Node-2  10.0.10.12                                  pods  10.10.4.0/24  AS 65020
              |     pods  10.10.1.0/24
              +-- Node-3  10.0.10.13
                    pods  10.10.2.0/24`,
		pods: []podSpec{{"Node-1", "a1"}, {"Node-1", "a1-too"}, {"Node-2", "a2"}, {"Node-3", "a3"},
			{"Node-4", "b4"}, {"Node-5", "b5"}},
		guests: []guest{{"Node-2", "node"}, {"host", "host"}, {"ecs", "VPC"}},
		node:   "Node-1",
		cloud:  true,
		restart: [][2]string{{"a1", "a1-too"}, {"a1", "a2"}, {"a2", "a3"}, {"a1", "b5"}, {"b4", "a3"},
			{"ecs", "a1"}, {"ecs", "a3"}, {"a2", "ecs"}, {"host", "a2"}},
		expect: map[string][]string{
			"switch-a": {
				"10.10.0.0/24 via 10.0.10.11", "10.10.1.0/24 via 10.0.10.12", "10.10.2.0/24 via 10.0.10.13",
				"10.10.3.0/24 via 172.30.0.2", "10.10.4.0/24 via 172.30.0.2", "192.168.0.0/16 via 172.30.1.2",
				"fd00:10:10::/64 via fd00:10:0:10::11", "fd00:10:10:1::/64 via fd00:10:0:10::12",
				"fd00:10:10:2::/64 via fd00:10:0:10::13", "fd00:10:10:3::/64 via fd00:172:30::2",
				"fd00:10:10:4::/64 via fd00:172:30::2", "fd00:192:168::/48 via fd00:172:30:1::2",
			},
			"switch-b": {
				"10.10.0.0/24 via 172.30.0.1", "10.10.1.0/24 via 172.30.0.1", "10.10.2.0/24 via 172.30.0.1",
				"10.10.3.0/24 via 10.0.20.14", "10.10.4.0/24 via 10.0.20.15", "192.168.0.0/16 via 172.30.2.2",
				"fd00:10:10::/64 via fd00:172:30::1", "fd00:10:10:1::/64 via fd00:172:30::1",
				"fd00:10:10:2::/64 via fd00:172:30::1", "fd00:10:10:3::/64 via fd00:10:0:20::14",
				"fd00:10:10:4::/64 via fd00:10:0:20::15", "fd00:192:168::/48 via fd00:172:30:2::2",
			},
			"core": {
				"10.10.0.0/24 via 172.30.1.1", "10.10.2.0/24 via 172.30.1.1", "10.10.4.0/24 via 172.30.2.1",
				"fd00:10:10::/64 via fd00:172:30:1::1", "fd00:10:10:4::/64 via fd00:172:30:2::1",
			},
		},
	},
	{
		name:  "across-domains",
		title: "Act 3. Communication between containers across domains, and a pool of nodes that leaves its tunnel",
		picture: `
   domain A, pool domains                                    domain B, pool domains
   switch A 10.0.10.1, AS 65001 ------ circuit, BGP ------ switch B 10.0.20.1, AS 65002
     |            |                                           |
     |            +-- Node-1  10.0.10.11  speaker, AS 65010   +-- Node-5  10.0.20.15  speaker, AS 65020
     |            |     pods  10.10.0.0/24                          pods  10.10.4.0/24
     |            +-- Node-2  10.0.10.12
    BGP                 pods  10.10.1.0/24
     |
   switch C 10.0.30.1, AS 65003
     |
     +-- Node-6  10.0.30.16  speaker, AS 65030          pool warehouse: mode overlay, from the time when
     |     pods  10.10.5.0/24                           switch C did not speak BGP. Today it does, and the
     +-- Node-7  10.0.30.17                             pool leaves the tunnel.
           pods  10.10.6.0/24`,
		pods:   []podSpec{{"Node-1", "a1"}, {"Node-2", "a2"}, {"Node-5", "b5"}, {"Node-6", "w6"}, {"Node-7", "w7"}},
		node:   "Node-6",
		change: [][2]string{{"w6", "a1"}, {"w7", "b5"}, {"a1", "w7"}, {"b5", "w6"}, {"w6", "w7"}, {"a2", "b5"}},
		expect: map[string][]string{"switch-c": {
			"10.10.0.0/24 via 172.30.1.1", "10.10.1.0/24 via 172.30.1.1", "10.10.4.0/24 via 172.30.1.1",
			"10.10.5.0/24 via 10.0.30.16", "10.10.6.0/24 via 10.0.30.17",
			"fd00:10:10::/64 via fd00:172:30:1::1", "fd00:10:10:1::/64 via fd00:172:30:1::1", "fd00:10:10:4::/64 via fd00:172:30:1::1",
			"fd00:10:10:5::/64 via fd00:10:0:30::16", "fd00:10:10:6::/64 via fd00:10:0:30::17",
		}},
	},
	{
		name:  "second-nic",
		title: "Act 4. A second NIC in a plain LAN: pods with addresses of that LAN, and no switch to configure",
		picture: `
                        router, which has no route to any pod
            10.0.40.254 |                        | 10.0.41.254
         ---------------+----------     ---------+--------------------
          |          |         |          |                     |
        host       first     first      second                second
        10.0.40.50 NIC of    NIC of     NIC of Node-8         NIC of Node-9
                   Node-8    Node-9     pods 10.0.41.80-89    pods 10.0.41.90-99`,
		pods:   []podSpec{{"Node-8", "n8"}, {"Node-8", "n8-too"}, {"Node-9", "n9"}},
		guests: []guest{{"Node-8", "node"}, {"host", "host"}, {"router", "router"}},
		node:   "Node-8",
		router: "router",
	},
}

// kindOf names the kind of traffic between two ends.
func kindOf(from, to end) string {
	if from.part != "pod" || to.part != "pod" {
		if from.part != "pod" && to.part != "pod" {
			return "" // traffic that edgeway does not touch
		}
		return from.part + " to " + to.part
	}
	switch {
	case from.node == to.node:
		return "pods of one node"
	case from.lan == to.lan:
		return "pods of one LAN"
	default:
		return "pods of two LANs"
	}
}

// topology reads the act's machines, and the cloud behind them.
func (a act) topology() (lab.Topology, error) {
	var all lab.Topology
	names := []string{a.name}
	if a.cloud {
		names = append(names, "cloud")
	}
	for _, name := range names {
		text, err := files.ReadFile("topology/" + name + ".yaml")
		if err != nil {
			return all, err
		}
		t, err := lab.ParseTopology(text)
		if err != nil {
			return all, fmt.Errorf("%s: %w", name, err)
		}
		all.Switches = append(all.Switches, t.Switches...)
		all.Nodes = append(all.Nodes, t.Nodes...)
		all.Hosts = append(all.Hosts, t.Hosts...)
	}
	return all, nil
}

// manifests lists the act's manifests.
func (a act) manifests() ([]fs.DirEntry, error) { return files.ReadDir("manifests/" + a.name) }

// copyManifests copies the act's manifests to the directory that the daemons read.
func (a act) copyManifests(dir string) error {
	entries, err := a.manifests()
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := files.ReadFile(path.Join("manifests", a.name, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
