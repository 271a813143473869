package cluster

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// text reads a text. A number or a boolean is not a text.
func (f field) text() string {
	if f.absent() {
		return ""
	}
	if f.node.Kind != yaml.ScalarNode || f.node.Tag != "!!str" {
		f.badText(badValue, "a text (in quotes when it looks like something else)")
		return ""
	}
	return f.node.Value
}

// scalar reads any scalar as it is written. kubectl refuses the label ASN: 65010, but it can only mean the
// text "65010".
func (f field) scalar() string {
	if f.absent() {
		return ""
	}
	if f.node.Kind != yaml.ScalarNode {
		f.bad(badValue, "a text in "+f.path, f.form())
		return ""
	}
	return f.node.Value
}

// name reads the name of an object. It is weaker than RFC 1123, because node names with capitals exist.
func (f field) name() string {
	s := f.text()
	if s == "" {
		if !f.absent() && f.node.Tag == "!!str" {
			f.badText(badValue, "a name")
		}
		return ""
	}
	for _, c := range s {
		if c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			f.badText(badValue, "a name of letters, digits, '-', '.' and '_'")
			return ""
		}
	}
	if len(s) > 253 {
		f.badText(badValue, "a name of at most 253 characters")
		return ""
	}
	return s
}

func (f field) boolean() bool {
	if f.absent() {
		return false
	}
	if f.node.Kind != yaml.ScalarNode || f.node.Tag != "!!bool" {
		f.badText(badValue, "true or false")
		return false
	}
	return strings.EqualFold(f.node.Value, "true")
}

// number reads a whole number from low to high.
func (f field) number(reason Reason, low, high uint64) uint64 {
	if f.absent() {
		return 0
	}
	if f.node.Kind == yaml.ScalarNode && f.node.Tag == "!!int" {
		n, err := strconv.ParseUint(f.node.Value, 10, 64)
		// A leading zero means octal in YAML 1.1 and decimal in 1.2: refuse it.
		if err == nil && n >= low && n <= high && (n == 0 || f.node.Value[0] != '0') {
			return n
		}
	}
	f.badText(reason, fmt.Sprintf("a number from %d to %d", low, high))
	return 0
}

// asn reads an autonomous system number (RFC 6793).
func (f field) asn() uint32 {
	n := f.number(badASN, 1, 1<<32-1)
	var reserved string
	switch n {
	case 23456:
		reserved = "which stands for a number of four bytes (RFC 6793)"
	case 65535, 1<<32 - 1:
		reserved = "which is reserved (RFC 7300)"
	default:
		return uint32(n)
	}
	f.bad(badASN, "an AS number that is not reserved in "+f.path, fmt.Sprintf("%d, %s", n, reserved))
	return 0
}

// addr reads an address that a host can have.
func (f field) addr() netip.Addr {
	if f.absent() {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(f.scalar())
	switch {
	case err != nil:
		f.badText(badAddress, "an IP address")
	case a.Zone() != "":
		f.badText(badAddress, "an IP address without a zone")
	case a.Is4In6():
		f.badText(badAddress, "the IPv4 address "+a.Unmap().String())
	case !unicast(a):
		f.badText(badAddress, "the address of a host (not unspecified, loopback or multicast)")
	default:
		return a
	}
	return netip.Addr{}
}

func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// prefix reads a CIDR that pods can have.
func (f field) prefix() netip.Prefix {
	p := f.cidr()
	if p.IsValid() && (p.Bits() == 0 || !unicast(p.Addr())) {
		f.badText(badCIDR, "a CIDR that pods can have")
		return netip.Prefix{}
	}
	return p
}

// cidr reads a CIDR without host bits.
func (f field) cidr() netip.Prefix {
	p, err := netip.ParsePrefix(f.scalar())
	switch {
	case err != nil:
		f.badText(badCIDR, "a CIDR (10.10.1.0/24)")
	case p.Addr().Is4In6():
		f.badText(badCIDR, "an IPv4 or an IPv6 CIDR, not one mapped into the other")
	case p != p.Masked():
		f.badText(badCIDR, fmt.Sprintf("%s (no host bits)", p.Masked()))
	default:
		return p
	}
	return netip.Prefix{}
}

func (f field) nodeName() string {
	if f.absent() {
		f.bad(missingField, "a node name in "+f.path, "nothing")
		return ""
	}
	return f.name()
}

// selector reads a selector in its text form, or matchLabels and matchExpressions (k8s.io/apimachinery
// meta/v1 LabelSelector), which it converts to text.
func (f field) selector() Selector {
	if f.absent() {
		return Selector{}
	}
	const want = "a label selector (pool=a, or all())"
	if f.node.Kind == yaml.ScalarNode {
		if f.node.Tag != "!!str" {
			f.badText(badSelector, want+", in quotes,")
			return Selector{}
		}
		s, err := ParseSelector(f.node.Value)
		if err != nil {
			f.badText(badSelector, want)
		}
		return s
	}
	if f.node.Kind != yaml.MappingNode {
		f.badText(badSelector, want)
		return Selector{}
	}
	before := len(f.doc.problems)
	form := f.labelSelector()
	if len(f.doc.problems) > before {
		return Selector{}
	}
	set, err := metav1.LabelSelectorAsSelector(&form)
	if err != nil {
		got, _, _ := strings.Cut(err.Error(), ": a valid label") // a regular expression follows
		f.bad(badSelector, want+" in "+f.path, got)
		return Selector{}
	}
	if set.Empty() {
		f.bad(badSelector, want+" in "+f.path, "an empty mapping")
		return Selector{}
	}
	return Selector{text: set.String(), set: set}
}

func (f field) labelSelector() metav1.LabelSelector {
	m := f.mapping("matchLabels", "matchExpressions")
	form := metav1.LabelSelector{MatchLabels: map[string]string{}}
	labels := m.at("matchLabels").mapping()
	for _, key := range labels.keys {
		form.MatchLabels[key.Value] = labels.at(key.Value).scalar()
	}
	for _, item := range m.at("matchExpressions").list() {
		e := item.mapping("key", "operator", "values")
		e.require("key", "operator")
		r := metav1.LabelSelectorRequirement{
			Key:      e.at("key").text(),
			Operator: metav1.LabelSelectorOperator(e.at("operator").text()),
		}
		for _, v := range e.at("values").list() {
			r.Values = append(r.Values, v.scalar())
		}
		form.MatchExpressions = append(form.MatchExpressions, r)
	}
	return form
}
