package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Topology lists the machines and their wiring. LANs need no declaration: two links with the same LAN are
// on the same wire.
type Topology struct {
	Switches []SwitchSpec `json:"switches,omitempty"`
	Nodes    []NodeSpec   `json:"nodes,omitempty"`
	Hosts    []HostSpec   `json:"hosts,omitempty"` // also plain routers
}

// HostSpec is a machine with fixed addresses and routes.
type HostSpec struct {
	Name    string      `json:"name"`
	Links   []LinkSpec  `json:"links"`
	Routes  []RouteSpec `json:"routes,omitempty"`
	Forward bool        `json:"forward,omitempty"` // the machine is a router
}

// LinkSpec is one network card. Its name is eth0, or the name of its LAN if the machine has several cards.
type LinkSpec struct {
	LAN   string         `json:"lan"`
	Addrs []netip.Prefix `json:"addrs"`
}

// RouteSpec is a fixed route.
type RouteSpec struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// SwitchSpec is a router that speaks BGP.
type SwitchSpec struct {
	HostSpec
	Flavour   Flavour        `json:"flavour,omitempty"` // default: BIRD
	ASN       uint32         `json:"asn"`
	Port      int            `json:"port,omitempty"` // of FRR's bgpd; default: 179
	Neighbors []NeighborSpec `json:"neighbors"`
}

// NeighborSpec is one BGP neighbor of a switch.
type NeighborSpec struct {
	Name     string     `json:"name"`
	Address  netip.Addr `json:"address"`
	ASN      uint32     `json:"asn"`
	Password string     `json:"password,omitempty"`
	// Announce has the switch advertise all of its routes to the neighbor. Towards a node it stays off.
	Announce bool `json:"announce,omitempty"`
}

// NodeSpec is a machine that runs edgewayd.
type NodeSpec struct {
	HostSpec
	// Config overrides keys of the daemon configuration that the laboratory writes. null leaves a key out.
	Config map[string]any `json:"config,omitempty"`
}

// ParseTopology reads a topology from YAML.
func ParseTopology(text []byte) (Topology, error) {
	var t Topology
	if err := yaml.UnmarshalStrict(text, &t); err != nil {
		return Topology{}, fmt.Errorf("topology: %w", err)
	}
	return t, nil
}

const wireName = "wire"

// Build makes the machines, wires them, and starts the switches. It does not start the nodes' daemons, and
// leaves the cluster directory empty.
func (l *Lab) Build(ctx context.Context, t Topology) error {
	specs := append([]HostSpec(nil), t.Hosts...)
	for _, s := range t.Switches {
		s.Forward = true
		specs = append(specs, s.HostSpec)
	}
	for _, n := range t.Nodes {
		specs = append(specs, n.HostSpec)
	}
	if err := l.addWire(ctx); err != nil {
		return err
	}
	if err := l.wire(ctx, specs); err != nil {
		return err
	}
	for _, n := range t.Nodes {
		if err := l.addNode(n); err != nil {
			return err
		}
	}
	var errs []error
	for _, s := range t.Switches {
		errs = append(errs, l.addSwitch(ctx, s))
	}
	return errors.Join(append(errs, os.MkdirAll(l.ClusterDir, 0o755))...)
}

// wire makes the machines' namespaces and connects them through another namespace, where each LAN is a
// bridge.
//
//	[ Node-1  eth0 ]---p1 | br1 | p2---[ switch-a  lan-a ]
//	                      wire
func (l *Lab) wire(ctx context.Context, specs []HostSpec) error {
	wire := l.Machine(wireName)
	var plug strings.Builder
	for _, spec := range specs {
		m, err := l.addMachine(ctx, spec.Name)
		if err != nil {
			return err
		}
		for i, link := range spec.Links {
			bridge, ok := l.bridges[link.LAN]
			if !ok {
				bridge = fmt.Sprintf("br%d", len(l.bridges)+1)
				l.bridges[link.LAN] = bridge
				// Without snooping a bridge forwards neighbour solicitations from its first moment.
				fmt.Fprintf(&plug, "link add name %s type bridge mcast_snooping 0 forward_delay 0\nlink set dev %s up\n", bridge, bridge)
			}
			l.cables++
			fmt.Fprintf(&plug, "link add name p%d type veth peer name %s address %s netns %s\nlink set dev p%d master %s up\n",
				l.cables, spec.ifName(i), mac(spec.Name, i), m.Netns(), l.cables, bridge)
		}
	}
	if err := wire.IP(ctx, plug.String()); err != nil {
		return fmt.Errorf("wire LANs: %w", err)
	}
	for _, spec := range specs {
		if err := l.Machine(spec.Name).configure(ctx, spec); err != nil {
			return fmt.Errorf("%s: %w", spec.Name, err)
		}
	}
	return nil
}

// mac is the hardware address of a machine's card. It stays the same when the machine reboots, because
// neighbours remember it.
func mac(machine string, card int) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d", machine, card)
	b := h.Sum(nil)
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3]) // locally administered
}

// addWire makes the namespace of the LANs' bridges. The bridges need no addresses.
func (l *Lab) addWire(ctx context.Context) error {
	wire, err := l.addMachine(ctx, wireName)
	if err != nil {
		return err
	}
	return wire.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
}

func (l *Lab) addMachine(ctx context.Context, name string) (*Machine, error) {
	m := &Machine{Space: &Space{Path: filepath.Join(netnsDir, l.Prefix+"-"+name)}, Name: name, Dir: filepath.Join(l.Dir, name), outlives: true}
	l.mu.Lock()
	_, taken := l.machines[name]
	if !taken {
		l.machines[name] = m
	}
	l.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("machine %s: two machines have this name", name)
	}
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	if err := ipNetns(ctx, "add "+m.Netns()); err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return m, m.Loopback()
}

func (l *Lab) removeMachine(ctx context.Context, m *Machine) error {
	l.mu.Lock()
	delete(l.machines, m.Name)
	l.mu.Unlock()
	return ipNetns(ctx, "del "+m.Netns())
}

func (m *Machine) configure(ctx context.Context, spec HostSpec) error {
	if spec.Forward {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := m.Sysctl(key, "1"); err != nil {
				return err
			}
		}
	}
	var script strings.Builder
	for i, link := range spec.Links {
		name := spec.ifName(i)
		// The link-local address is usable at once; duplicate address detection would take a second.
		if err := m.Sysctl("net/ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
			return err
		}
		fmt.Fprintf(&script, "link set dev %s up\n", name)
		for _, addr := range link.Addrs {
			nodad := ""
			if addr.Addr().Is6() {
				nodad = " nodad"
			}
			fmt.Fprintf(&script, "addr add %s dev %s%s\n", addr, name, nodad)
			m.Addrs = append(m.Addrs, addr.Addr())
		}
	}
	for _, r := range spec.Routes {
		fmt.Fprintf(&script, "route add %s via %s proto static\n", r.To, r.Via)
	}
	return m.IP(ctx, script.String())
}

func (h HostSpec) ifName(i int) string {
	if len(h.Links) == 1 {
		return "eth0"
	}
	return h.Links[i].LAN
}
