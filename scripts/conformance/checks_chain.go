package main

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// earlier returns the result of an earlier plugin that made its own interface.
func (t *T) earlier(p *pod) object {
	ip := object{"address": "198.51.100.7/24", "gateway": "198.51.100.1", "interface": 0}
	if before(t.net.version, "1.0.0") {
		ip["version"] = "4"
	}
	return object{"cniVersion": t.net.version,
		"interfaces": []object{{"name": "net7", "mac": "02:00:00:00:00:07", "sandbox": p.netns}},
		"ips":        []object{ip},
		"routes":     []object{{"dst": "198.51.100.0/24", "gw": "198.51.100.1"}},
		"dns":        object{"nameservers": []string{"198.51.100.53"}},
	}
}

// kept runs ADD of the first plugin with a prevResult and returns the result. An error of the plugin passes
// the check, because the text only requires that prevResult is handled, not ignored. raw is nil then.
func (t *T) kept(p *pod, prev object) (out result, raw json.RawMessage) {
	r := t.exec(p.main("ADD", object{"prevResult": prev}))
	if !r.ok() {
		if _, ok := r.fault(); !ok {
			t.Fatalf("neither a result nor an error: %s", r.said())
		}
		t.Notef("refused: %s", r.said())
		return out, nil
	}
	t.Cleanup(func() { t.exec(p.main("DEL", object{"prevResult": json.RawMessage(r.stdout)})) })
	out, err := parseResult(r.stdout)
	t.OK(err, "decode the result")
	return out, r.stdout
}

// chained runs ADD after the ADD of an earlier plugin.
func (t *T) chained() (p *pod, r result, raw []byte) {
	p = t.pod()
	t.OK(p.veth("net7", "peer7"), "make the earlier link")
	r, raw = t.kept(p, t.earlier(p))
	return p, r, raw
}

func chainChecks() []check {
	return []check{
		{id: "chain.prevresult-kept", level: must, section: "2,5", asks: "ADD passes on the content of its prevResult, or fails", run: func(t *T) {
			_, r, raw := t.chained()
			if raw == nil {
				return
			}
			if !slices.ContainsFunc(r.addrs(), func(a netip.Addr) bool { return a.String() == "198.51.100.7" }) || len(r.Interfaces) < 2 {
				t.Errorf("the earlier interface or address is lost: %s", raw)
			}
		}},
		{id: "chain.indices", level: must, section: "5", asks: "each address of a passed-on prevResult still points to its own interface", run: func(t *T) {
			p, r, raw := t.chained()
			for _, ip := range r.IPs {
				if ip.Interface == nil || *ip.Interface >= len(r.Interfaces) {
					t.Errorf("%s points nowhere: %s", ip.Address, raw)
					continue
				}
				name := r.Interfaces[*ip.Interface].Name
				if own := ip.Address.Addr().String() != "198.51.100.7"; own && name != p.ifName || !own && name != "net7" {
					t.Errorf("%s points to %s", ip.Address, name)
				}
			}
		}},
		{id: "chain.routes-kept", level: must, section: "5", asks: "ADD keeps routes and dns of its prevResult, or fails", run: func(t *T) {
			_, r, raw := t.chained()
			if raw == nil {
				return
			}
			if !slices.ContainsFunc(r.Routes, func(x resultRoute) bool { return x.Dst.String() == "198.51.100.0/24" }) {
				t.Errorf("the earlier route is lost: %s", raw)
			}
			if b, _ := json.Marshal(r.DNS); len(b) < 10 {
				t.Errorf("the earlier dns is lost: %s", raw)
			}
		}},
		{id: "chain.loopback-before", level: must, section: "2,5", asks: "ADD after a loopback plugin passes on its result, or fails", run: func(t *T) {
			p := t.pod()
			t.OK(p.script(setUp("lo")), "set lo up")
			ip := object{"address": "127.0.0.1/8", "interface": 0}
			if before(t.net.version, "1.0.0") {
				ip["version"] = "4"
			}
			r, raw := t.kept(p, object{"cniVersion": t.net.version, "interfaces": []object{{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": p.netns}},
				"ips": []object{ip}, "dns": object{}})
			if raw != nil && (len(r.Interfaces) < 2 || len(r.IPs) < 2) {
				t.Errorf("lo is lost: %s", raw)
			}
		}},
		{id: "chain.result-passes", level: must, section: "5", asks: "the plugins after the first pass on the result", run: func(t *T) {
			if len(t.net.plugins) < 2 {
				t.Skipf("the list has one plugin")
			}
			p, last := t.addPod()
			first, err := parseResult(p.results[0])
			t.OK(err, "decode")
			if !slices.Equal(first.addrs(), last.addrs()) || len(first.Interfaces) > len(last.Interfaces) {
				t.Errorf("in: %s, out: %s", p.results[0], p.prev)
			}
		}},
		{id: "chain.later-changes", level: must, section: "2", asks: "DEL accepts a prevResult that a later plugin has changed", run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			p.prev = t.changed(p, func(r object) {
				r["routes"] = []object{{"dst": "203.0.113.0/24"}}
				ifs := r["interfaces"].([]any)
				r["interfaces"] = append(ifs, object{"name": "ifb9", "mac": "02:00:00:00:00:09"})
			})
			t.del(p)
			t.nothingNew(before, "DEL")
		}},
		{id: "chain.mac-changed", level: robust, section: "2", asks: "a pod whose MAC address was changed by a later plugin (tuning) can be reached", run: func(t *T) {
			p, r := t.addPod()
			t.OK(p.setMAC(p.ifName), "change the MAC address")
			for _, a := range r.addrs() {
				_, err := reach(t.host, p.space, a)
				t.OK(err, "host to pod")
			}
		}},
		{id: "chain.mac-changed-in-use", level: robust, section: "2", asks: "a pod whose MAC address changes while it is in use can be reached, and reaches the host", run: func(t *T) {
			p, r := t.addPod()
			for range 2 {
				t.connected(p, r)
				t.OK(p.setMAC(p.ifName), "change the MAC address")
			}
			t.connected(p, r)
		}},
		{id: "chain.prevresult-old-version", level: robust, section: "3", asks: "DEL and CHECK accept a prevResult that was made in an older version of the list", run: func(t *T) {
			if t.net.version != "1.1.0" {
				t.Skipf("needs 1.1.0")
			}
			p := t.pod()
			t.net.version = "1.0.0"
			t.add(p)
			t.net.version = "1.1.0"
			p.prev = t.changed(p, func(r object) { r["cniVersion"] = "1.1.0" })
			t.wants(t.check(p), "CHECK")
			t.wants(t.tryDel(p), "DEL")
		}},
	}
}

// changed returns the pod's result after an edit.
func (t *T) changed(p *pod, edit func(r object)) json.RawMessage {
	var r object
	t.OK(json.Unmarshal(p.prev, &r), "decode the result")
	edit(r)
	b, err := json.Marshal(r)
	t.OK(err, "encode the result")
	return b
}
