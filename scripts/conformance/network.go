package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// object is a JSON object.
type object = map[string]any

// network is a network configuration list under measurement.
type network struct {
	name    string
	version string
	plugins []object
}

// network reads the configuration again, so that the caller may change it.
func (b *bench) network(name, state string) (network, error) {
	text := strings.ReplaceAll(b.conf, placeholder, state)
	var raw struct {
		CNIVersion string   `json:"cniVersion"`
		Plugins    []object `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return network{}, fmt.Errorf("%s: %w", b.o.conf, err)
	}
	if raw.Plugins == nil {
		var one object
		if err := json.Unmarshal([]byte(text), &one); err != nil {
			return network{}, fmt.Errorf("%s: %w", b.o.conf, err)
		}
		delete(one, "cniVersion")
		delete(one, "cniVersions")
		delete(one, "name")
		raw.Plugins = []object{one}
	}
	n := network{name: name, version: b.version, plugins: raw.Plugins}
	for i, p := range n.plugins {
		if s, ok := p["type"].(string); !ok || s == "" {
			return n, fmt.Errorf("%s: plugin %d has no type", b.o.conf, i)
		}
	}
	if len(n.plugins) == 0 {
		return n, fmt.Errorf("%s: no plugins", b.o.conf)
	}
	return n, nil
}

func (n network) clone() network {
	var copied []object
	b, err := json.Marshal(n.plugins)
	if err == nil {
		err = json.Unmarshal(b, &copied)
	}
	if err != nil {
		panic("what came from JSON goes there again: " + err.Error())
	}
	n.plugins = copied
	return n
}

// with returns a copy with the key set in the first plugin; nil removes the key.
func (n network) with(key string, value any) network {
	n = n.clone()
	if value == nil {
		delete(n.plugins[0], key)
	} else {
		n.plugins[0][key] = value
	}
	return n
}

// withIPAM returns a copy with the key set in the first plugin's ipam; nil removes the key.
func (n network) withIPAM(key string, value any) network {
	n = n.clone()
	ipam, _ := n.plugins[0]["ipam"].(object)
	if ipam == nil {
		ipam = object{}
	}
	if value == nil {
		delete(ipam, key)
	} else {
		ipam[key] = value
	}
	n.plugins[0]["ipam"] = ipam
	return n
}

func (n network) only() network {
	n = n.clone()
	n.plugins = n.plugins[:1]
	return n
}

// types returns the types of the executed plugins: the list's plugins and the IPAM plugin.
func (n network) types() []string {
	var out []string
	for _, p := range n.plugins {
		if t := p["type"].(string); !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	if ipam, ok := n.plugins[0]["ipam"].(object); ok {
		if t, ok := ipam["type"].(string); ok && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// request returns the configuration of one call (SPEC section 3, "Deriving request configuration"). A nil
// value in extra removes the key.
func (n network) request(i int, extra object) []byte {
	conf := object{}
	for k, v := range n.plugins[i] {
		if k != "capabilities" {
			conf[k] = v
		}
	}
	conf["cniVersion"], conf["name"] = n.version, n.name
	for k, v := range extra {
		if v == nil {
			delete(conf, k)
		} else {
			conf[k] = v
		}
	}
	b, err := json.Marshal(conf)
	if err != nil {
		panic("what came from JSON goes there again: " + err.Error())
	}
	return b
}

func (n network) conflist() []byte {
	b, err := json.MarshalIndent(object{"cniVersion": n.version, "name": n.name, "plugins": n.plugins}, "", "  ")
	if err != nil {
		panic("what came from JSON goes there again: " + err.Error())
	}
	return b
}

// subnets returns ipam's subnets in host-local's syntax: the first range of each set.
func (n network) subnets() (out []netip.Prefix) {
	ipam, _ := n.plugins[0]["ipam"].(object)
	add := func(v any) {
		r, _ := v.(object)
		s, _ := r["subnet"].(string)
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	add(ipam)
	sets, _ := ipam["ranges"].([]any)
	for _, set := range sets {
		if ranges, ok := set.([]any); ok && len(ranges) > 0 {
			add(ranges[0])
		}
	}
	return out
}

// minHostBits is the number of host bits that a small pool needs.
const minHostBits = 5

func (n network) hasRanges() bool {
	subnets := n.subnets()
	return len(subnets) > 0 && !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().BitLen()-p.Bits() < minHostBits })
}

// small returns a copy with a pool of size addresses of each family. Different numbers give different
// pools, so that no check depends on leftovers of another check.
func (n network) small(size, number int) network {
	var sets []any
	for _, p := range n.subnets() {
		room := 1 << min(p.Addr().BitLen()-p.Bits(), 16)
		slot := max(size, 16)
		slots := max((room-12)/slot, 1)
		first := offset(p.Addr(), 10+(number%slots)*slot)
		sets = append(sets, []any{object{"subnet": p.String(), "rangeStart": first.String(), "rangeEnd": offset(first, size-1).String()}})
	}
	out := n.withIPAM("ranges", sets)
	for _, k := range []string{"subnet", "rangeStart", "rangeEnd", "gateway"} {
		out = out.withIPAM(k, nil)
	}
	return out
}

// firsts returns the first address of each range of a small pool.
func (n network) firsts() (out []netip.Addr) {
	for _, set := range n.plugins[0]["ipam"].(object)["ranges"].([]any) {
		out = append(out, netip.MustParseAddr(set.([]any)[0].(object)["rangeStart"].(string)))
	}
	return out
}

// ipv4Only returns a copy without IPv6 ranges and routes.
func (n network) ipv4Only() network {
	n = n.clone()
	ipam := n.plugins[0]["ipam"].(object)
	for _, key := range []string{"ranges", "routes"} {
		if list, ok := ipam[key].([]any); ok {
			ipam[key] = slices.DeleteFunc(list, func(v any) bool { return strings.Contains(fmt.Sprint(v), "::") })
		}
	}
	return n
}

func offset(a netip.Addr, by int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; i >= 0 && by > 0; i-- {
		by += int(b[i])
		b[i] = byte(by)
		by >>= 8
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

// small gives the check a pool of size addresses.
func (t *T) small(size int) { t.net = t.net.small(size, t.seq) }

// trySmall is small if the harness knows the syntax of the pool.
func (t *T) trySmall(size int) {
	if t.net.hasRanges() {
		t.small(size)
	}
}

// capable reports whether the first plugin declares a capability.
func (n network) capable(name string) bool {
	c, _ := n.plugins[0]["capabilities"].(object)
	return c[name] == true
}

// stateFiles returns the files below the state directory.
func (t *T) stateFiles() (out []string) {
	var walk func(dir string)
	walk = func(dir string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := dir + "/" + e.Name()
			if e.IsDir() {
				walk(path)
			} else if e.Type().IsRegular() {
				out = append(out, path)
			}
		}
	}
	walk(t.state)
	return out
}
