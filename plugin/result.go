package plugin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// previous decodes prevResult; nil when it is missing.
func (c conf) previous() (*current.Result, error) {
	if raw := bytes.TrimSpace(c.PrevResult); len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	bad := func(err error) error {
		return fault(codeDecode, "decode prevResult: %w", err).next("pass the result of the plugin before, in cniVersion %s", c.CNIVersion)
	}
	var in map[string]any
	if err := json.Unmarshal(c.PrevResult, &in); err != nil {
		return nil, bad(err)
	}
	if holdsNull(in) { // the library dereferences the nil pointer
		return nil, bad(errors.New("a list contains null"))
	}
	// Before 1.0.0 a result may lack its version: the configuration's version applies.
	version, _ := in["cniVersion"].(string) // a value of another type counts as missing
	version = cmp.Or(version, c.CNIVersion)
	in["cniVersion"] = version
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, bad(err)
	}
	result, err := create.Create(version, raw)
	if err != nil {
		return nil, bad(err)
	}
	out, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, bad(err)
	}
	for _, ip := range out.IPs {
		if ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(out.Interfaces)) {
			return nil, bad(fmt.Errorf("ips: interface %d does not exist, the result has %d interfaces", *ip.Interface, len(out.Interfaces)))
		}
	}
	return out, nil
}

// holdsNull reports that the value contains a list with a null.
func holdsNull(v any) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return e == nil || holdsNull(e) })
	case map[string]any:
		for _, e := range v {
			if holdsNull(e) {
				return true
			}
		}
	}
	return false
}

// result appends this attachment to the result of the plugins before (SPEC 1.1.0 section 5).
func (w wiring) result(previous *current.Result, dns types.DNS, netns string) *current.Result {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if previous != nil {
		out.Interfaces, out.IPs, out.Routes, out.DNS = previous.Interfaces, previous.IPs, previous.Routes, previous.DNS
	}
	out.Interfaces = append(out.Interfaces,
		&current.Interface{Name: w.hostLink, Mac: w.hostMAC, Mtu: w.mtu},
		&current.Interface{Name: w.ifName, Mac: w.podMAC, Mtu: w.mtu, Sandbox: netns})
	pod := len(out.Interfaces) - 1
	for _, a := range w.addrs {
		out.IPs = append(out.IPs, &current.IPConfig{
			Interface: current.Int(pod), Address: ipNet(single(a)), Gateway: gateway(a.Is6()).AsSlice(),
		})
	}
	for _, r := range w.routes {
		route := r.asked()
		route.Priority = cmp.Or(r.priority, w.metric)
		if via := r.nextHop(); via.IsValid() {
			route.GW = via.AsSlice()
		}
		out.Routes = append(out.Routes, route)
	}
	if !dns.IsEmpty() {
		out.DNS = dns
	}
	return out
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// printed is the result in the request's protocol version.
func printed(result *current.Result, version string) (api.Reply, error) {
	if versionIndex(version) < versionIndex(newestVersion) {
		withoutNewKeys(result)
	}
	out, err := result.GetAsVersion(version)
	if err != nil {
		return api.Reply{}, fault(codeVersion, "encode result in cniVersion %s: %w", version, err).next("report this")
	}
	var b bytes.Buffer
	if err := out.PrintTo(&b); err != nil {
		return api.Reply{}, fault(codeIO, "encode result: %w", err).next("report this")
	}
	b.WriteByte('\n')
	return api.Reply{Output: b.Bytes()}, nil
}

// withoutNewKeys drops the keys that cniVersion 1.1.0 added to results.
func withoutNewKeys(r *current.Result) {
	for _, i := range r.Interfaces {
		i.Mtu, i.SocketPath, i.PciID = 0, "", ""
	}
	for _, route := range r.Routes {
		route.MTU, route.AdvMSS, route.Priority, route.Table, route.Scope = 0, 0, 0, nil, nil
	}
}
