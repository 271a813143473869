// Package switchconf writes the configuration that the network team gives a switch: the speakers as
// neighbours, what the switch takes from them, and what it sends to them.
//
// It owns one model, [Switch], and one template for each vendor. It never decides what is in the model, and it
// has no password: where a session has one, the configuration says PASSWORD.
//
//	text, err := switchconf.Write("frr", switchconf.Switch{Address: addr("10.0.10.1"), ASN: 65002, ...})
//	// router bgp 65002
//	//  neighbor 10.0.10.11 remote-as 65010 ...
package switchconf

import (
	"bytes"
	"embed"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/template"
)

// Switch is what one switch is to be told.
type Switch struct {
	Address    netip.Addr
	Port       uint16 // TCP, on which the switch listens
	ASN        uint32
	Neighbours []Neighbour
	Families   []Family
	// Restart is for how long the switch keeps the paths of a speaker that is away, in seconds (RFC 4724); 0:
	// not at all. LongLived is for how long after that, as a last resort (RFC 9494).
	Restart, LongLived int
}

// Neighbour is a speaker.
type Neighbour struct {
	Node        string
	Address     netip.Addr
	ASN         uint32
	Secret      string // where the password is; "": none
	MultihopTTL uint8
	TTLSecurity bool
}

// Family is IPv4 or IPv6 unicast.
type Family struct {
	IPv6    bool
	In, Out []Filter // what is taken from a speaker, and what is sent to it
	Most    int      // prefixes that are taken from a speaker
}

// Filter accepts the prefixes inside Prefix whose length is from Least to Longest.
type Filter struct {
	netip.Prefix
	Least, Longest int
}

// Exact accepts the prefix alone.
func Exact(p netip.Prefix) Filter { return Filter{p, p.Bits(), p.Bits()} }

// Inside accepts the prefix and all that it contains. A default route is only itself.
func Inside(p netip.Prefix) Filter {
	if p.Bits() == 0 {
		return Exact(p)
	}
	return Filter{p, p.Bits(), p.Addr().BitLen()}
}

//go:embed templates
var files embed.FS

// Vendors returns the vendors, sorted.
func Vendors() (out []string) {
	entries, _ := files.ReadDir("templates") // it is embedded
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), ".tmpl"))
	}
	return out
}

// Write returns the configuration in the vendor's language. The error says which vendors there are.
func Write(vendor string, sw Switch) (string, error) {
	if !slices.Contains(Vendors(), vendor) {
		return "", fmt.Errorf("vendor %q: want one of %s", vendor, strings.Join(Vendors(), ", "))
	}
	t, err := template.New(vendor+".tmpl").Funcs(functions).ParseFS(files, "templates/*.tmpl")
	if err != nil {
		return "", fmt.Errorf("switch configuration for %s: %w", vendor, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, sw); err != nil {
		return "", fmt.Errorf("switch configuration for %s: %w", vendor, err)
	}
	return out.String(), nil
}

// Title is the first line of the configuration.
func (sw Switch) Title() string {
	return fmt.Sprintf("Switch %s, AS %d: the speakers of edgeway as neighbours.", sw.Address, sw.ASN)
}

// Most is the number of prefixes that are taken from a speaker, of all families.
func (sw Switch) Most() (n int) {
	for _, f := range sw.Families {
		n += f.Most
	}
	return n
}

// Notes are what the configuration itself cannot say.
func (sw Switch) Notes() (notes []string) {
	if sw.Port != 179 {
		notes = append(notes, fmt.Sprintf("The speakers dial port %d: let BGP listen there, or take peerPort out of the resource.", sw.Port))
	}
	for _, n := range sw.Neighbours {
		if n.Secret != "" {
			notes = append(notes, fmt.Sprintf("PASSWORD of %s is in %s.", n.Address, n.Secret))
		}
	}
	return notes
}

// functions are what the templates call.
var functions = template.FuncMap{
	"seq":     func(i int) int { return (i + 1) * 10 },
	"atMost":  func(most, n int) int { return min(most, n) },
	"powerOf": powerOf10,
	"symbol":  symbol,
	"af": func(f Family) string {
		if f.IPv6 {
			return "ipv6"
		}
		return "ipv4"
	},
	// The words of prefix lists that begin with "ip prefix-list" and "ipv6 prefix-list".
	"ip": func(f Family) string {
		if f.IPv6 {
			return "ipv6"
		}
		return "ip"
	},
	"everything": func(f Family) string {
		if f.IPv6 {
			return "::/0 le 128"
		}
		return "0.0.0.0/0 le 32"
	},
	"lengths": func(f Filter) string { return lengths(f, " ge %d", " le %d") },
	"vrp":     func(f Filter) string { return lengths(f, " greater-equal %d", " less-equal %d") },
	"exact":   func(f Filter) bool { return f.Least == f.Bits() && f.Longest == f.Bits() },
	"default": func(f Family) bool { return slices.ContainsFunc(f.Out, func(o Filter) bool { return o.Bits() == 0 }) },
}

// lengths returns the lengths that a prefix list accepts, in the words of the vendor.
func lengths(f Filter, least, longest string) (out string) {
	if f.Least > f.Bits() {
		out = fmt.Sprintf(least, f.Least)
	}
	if f.Longest > f.Bits() {
		out += fmt.Sprintf(longest, f.Longest)
	}
	return out
}

// powerOf10 returns the least power of ten that is not less than n.
func powerOf10(n int) int {
	p := 10
	for p < n {
		p *= 10
	}
	return p
}

// symbol returns the name as a word of letters, digits and underscores.
func symbol(name string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '_'
	}, name)
}
