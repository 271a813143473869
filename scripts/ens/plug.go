package ens

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Plug wires the interfaces of instances into machines of a laboratory, as the cloud's network does. That network is
// a router and not a switch:
//
//	[ node  eth0 ]---port1 |               |
//	[       eth1 ]---port2 | vpc: routes   |--- other links of the machine, such as to the internet
//	[ node  eth0 ]---port3 | only what the |
//	                       | cloud assigned|
//
// The network forwards to an address only by the port of the interface that has it, and answers every ARP request
// itself. It drops and counts each packet, IPv4 or ARP, whose port, MAC and source address do not belong together.
// When an instance stops, its links are gone.
type Plug struct {
	cloud *Cloud
	vpc   *lab.Machine

	mu    sync.Mutex // guards the fields below
	nodes map[string]*lab.Machine
	ports map[string]*port // by interface
	count int
	err   error // of a change that no caller waits for
}

// port is one interface in its place.
type port struct {
	Interface
	name, link string
	addresses  map[netip.Addr]bool
}

// NewPlug makes the machine vpc the network of the cloud.
func NewPlug(ctx context.Context, cloud *Cloud, vpc *lab.Machine) (*Plug, error) {
	p := &Plug{cloud: cloud, vpc: vpc, nodes: map[string]*lab.Machine{}, ports: map[string]*port{}}
	for key, value := range map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
		"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/default/send_redirects": "0", "net/ipv6/conf/default/disable_ipv6": "1"} {
		if err := vpc.Sysctl(key, value); err != nil {
			return nil, err
		}
	}
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	var gateways strings.Builder
	for _, s := range cloud.now.switches {
		fmt.Fprintf(&gateways, "addr add %v/32 dev lo\n", gateway(s.cidr))
	}
	if err := vpc.IP(ctx, gateways.String()); err != nil {
		return nil, err
	}
	_, err := vpc.Run(ctx, "nft", `
table inet vpc {
	counter spoofed {}
	set allowed { type ifname . ether_addr . ipv4_addr; }
	chain in {
		type filter hook prerouting priority raw;
		iifname "port*" meta nfproto ipv6 drop
		iifname "port*" iifname . ether saddr . ip saddr != @allowed counter name spoofed drop
	}
}
table arp vpc {
	counter spoofed {}
	set allowed { type ifname . ether_addr . ipv4_addr; }
	chain in {
		type filter hook input priority 0;
		iifname "port*" iifname . arp saddr ether . arp saddr ip != @allowed counter name spoofed drop
	}
}`)
	if err != nil {
		return nil, err
	}
	cloud.changed = p.changed
	return p, nil
}

// Connect plugs a running instance into a machine that has no links. Its primary interface becomes eth0, with the
// address and the default route that DHCP gives. The other interfaces become eth1, eth2, ... in the order of their IDs;
// they are down. Connect plugs the instance again when the machine was booted again and has no links.
func (p *Plug) Connect(ctx context.Context, instance string, node *lab.Machine) error {
	p.cloud.mu.Lock()
	defer p.cloud.mu.Unlock()
	p.mu.Lock()
	p.nodes[instance] = node
	for _, o := range p.ports {
		if o.Instance == instance {
			_ = p.remove(ctx, o) // its link and routes can have gone with the machine
		}
	}
	p.mu.Unlock()
	return p.sync(ctx, instance)
}

// Spoofed returns how many packets were dropped because their port, MAC and source did not belong together, and the
// error of a change that failed meanwhile.
func (p *Plug) Spoofed(ctx context.Context) (int, error) {
	p.mu.Lock()
	err := p.err
	p.mu.Unlock()
	total := 0
	out, listErr := p.vpc.Run(ctx, "nft", "-j", "list", "counters")
	var all struct {
		Nftables []struct {
			Counter struct{ Packets int }
		}
	}
	if listErr == nil {
		listErr = json.Unmarshal([]byte(out), &all)
	}
	for _, o := range all.Nftables {
		total += o.Counter.Packets
	}
	return total, errors.Join(err, listErr)
}

// changed is called by the cloud.
func (p *Plug) changed(instance string) {
	if err := p.sync(context.Background(), instance); err != nil {
		p.mu.Lock()
		p.err = errors.Join(p.err, err)
		p.mu.Unlock()
	}
}

// sync makes the ports of an instance what the cloud says. The caller holds the cloud's lock.
func (p *Plug) sync(ctx context.Context, instance string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	node := p.nodes[instance]
	if node == nil {
		return nil
	}
	want := map[string]Interface{}
	all := p.cloud.ofInstance(instance)
	if s := p.cloud.now.instances[instance].Status; s == Running || s == Starting {
		for _, n := range all {
			if n.Status == InUse {
				want[n.ID] = n
			}
		}
	}
	for id, o := range p.ports {
		if _, ok := want[id]; !ok && o.Instance == instance {
			if err := p.remove(ctx, o); err != nil {
				return err
			}
		}
	}
	for i, n := range all {
		if _, ok := want[n.ID]; !ok {
			continue
		}
		o := p.ports[n.ID]
		if o == nil {
			p.count++
			o = &port{Interface: n, name: fmt.Sprint("port", p.count), link: fmt.Sprint("eth", i), addresses: map[netip.Addr]bool{}}
			if err := p.insert(ctx, node, o); err != nil {
				return err
			}
			p.ports[n.ID] = o
		}
		if err := p.route(ctx, o, append(n.Addresses, n.Address)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plug) insert(ctx context.Context, node *lab.Machine, o *port) error {
	script := fmt.Sprintf("link add name %s type veth peer name %s address %s netns %s\nlink set dev %s up\n", o.name, o.link, o.MAC, node.Netns(), o.name)
	if err := p.vpc.IP(ctx, script); err != nil {
		return fmt.Errorf("plug %s: %w", o.ID, err)
	}
	// An address on another port is answered because of proxy_arp; an address on the same port because of the other.
	for _, key := range []string{"proxy_arp", "proxy_arp_pvlan"} {
		if err := p.vpc.Sysctl("net/ipv4/conf/"+o.name+"/"+key, "1"); err != nil {
			return err
		}
	}
	if err := p.vpc.Sysctl("net/ipv4/neigh/"+o.name+"/proxy_delay", "0"); err != nil {
		return err
	}
	if !o.Primary {
		return nil
	}
	cidr := p.cloud.now.switches[o.VSwitch].cidr
	return node.IP(ctx, fmt.Sprintf("addr add %v/%d dev %s\nlink set dev %s up\nroute add default via %v\n", o.Address, cidr.Bits(), o.link, o.link, gateway(cidr)))
}

func (p *Plug) remove(ctx context.Context, o *port) error {
	delete(p.ports, o.ID)
	return errors.Join(p.route(ctx, o, nil), p.vpc.IP(ctx, "link del dev "+o.name+"\n"))
}

// route adds and removes what the network knows of the addresses of a port.
func (p *Plug) route(ctx context.Context, o *port, addresses []netip.Addr) error {
	var ip, nft strings.Builder
	both := func(verb string, a netip.Addr) {
		for _, family := range []string{"inet", "arp"} {
			fmt.Fprintf(&nft, "%s element %s vpc allowed { %q . %s . %v }\n", verb, family, o.name, o.MAC, a)
		}
	}
	for a := range o.addresses {
		if !slices.Contains(addresses, a) {
			fmt.Fprintf(&ip, "route del %v/32 dev %s\nneigh del %v dev %s\n", a, o.name, a, o.name)
			both("delete", a)
			delete(o.addresses, a)
		}
	}
	for _, a := range addresses {
		if !o.addresses[a] {
			fmt.Fprintf(&ip, "route replace %v/32 dev %s\nneigh replace %v lladdr %s dev %s nud permanent\n", a, o.name, a, o.MAC, o.name)
			both("add", a)
			o.addresses[a] = true
		}
	}
	if ip.Len() == 0 {
		return nil
	}
	_, err := p.vpc.Run(ctx, "nft", nft.String())
	return errors.Join(p.vpc.IP(ctx, ip.String()), err)
}
