package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// delegated is a check of a plugin that executes an IPAM plugin for its addresses. The fake plays the IPAM
// plugin.
func delegated(id, asks string, l level, since string, extra object, judge func(t *T)) check {
	return check{id: id, level: l, section: "4", asks: asks, since: since, run: func(t *T) {
		// The check applies only to a plugin that executes an ipam.type that it does not know.
		n := t.net
		t.net = t.delegating(nil)
		p := t.pod()
		r := t.tryAdd(p)
		if len(t.fakeNotes("ADD")) == 0 {
			t.net = n
			t.Skipf("the plugin does not execute the plugin of ipam.type: %s", r.said())
		}
		t.tryDel(p)
		t.net = n
		t.file("ipam.log", nil)
		t.net = t.delegating(extra)
		judge(t)
	}}
}

func delegateChecks() []check {
	return []check{
		delegated("delegate.result-applied", "the address that the IPAM plugin gives is on the interface and in the result", must, "", nil, func(t *T) {
			p, r := t.addPod()
			want := netip.MustParseAddr("10.222.0.7")
			have, err := p.addrs(p.ifName)
			t.OK(err, "list addresses")
			if !slices.Contains(r.addrs(), want) || !slices.ContainsFunc(have, func(x netip.Prefix) bool { return x.Addr() == want }) {
				t.Errorf("result %v, interface %v", r.addrs(), have)
			}
		}),
		delegated("delegate.environment", "the IPAM plugin gets the same environment", must, "", nil, func(t *T) {
			p := t.pod()
			p.args = "IgnoreUnknown=1;K8S_POD_NAME=p"
			t.add(p)
			t.tryDel(p)
			for _, command := range []string{"ADD", "DEL"} {
				notes := t.fakeNotes(command)
				if len(notes) == 0 {
					t.Errorf("%s is not forwarded", command)
					continue
				}
				for k, v := range p.env(command) {
					if strings.HasPrefix(k, "CNI_") && notes[0].Env[k] != v {
						t.Errorf("%s: %s is %q, want %q", command, k, notes[0].Env[k], v)
					}
				}
			}
		}),
		delegated("delegate.configuration", "the IPAM plugin gets the complete configuration", must, "", nil, func(t *T) {
			p := t.pod()
			t.net = t.net.with("xyzzy-args", nil).with("args", object{"cni": object{"labels": []object{{"key": "a", "value": "b"}}}})
			t.add(p)
			var want, have any
			t.OK(json.Unmarshal(t.net.request(0, nil), &want), "decode")
			t.OK(json.Unmarshal(t.fakeNotes("ADD")[0].Stdin, &have), "decode what it got")
			if !reflect.DeepEqual(want, have) {
				t.Errorf("got %.400s", t.fakeNotes("ADD")[0].Stdin)
			}
		}),
		delegated("delegate.stderr", "the IPAM plugin's standard error goes to the caller", should, "", nil, func(t *T) {
			p := t.pod()
			if r := t.tryAdd(p); !bytes.Contains(r.stderr, []byte(fakeWord)) {
				t.Errorf("standard error is %.200q", r.stderr)
			}
		}),
		delegated("delegate.del", "DEL is forwarded to the IPAM plugin", must, "", nil, func(t *T) {
			p, _ := t.addPod()
			t.del(p)
			if len(t.fakeNotes("DEL")) == 0 {
				t.Errorf("it is not")
			}
		}),
		delegated("delegate.del-netns-gone", "DEL is forwarded to the IPAM plugin when the namespace is gone", should, "", nil, func(t *T) {
			p, _ := t.addPod()
			p.remove()
			for _, netns := range []string{p.netns, ""} {
				p.netns = netns
				t.wants(t.tryDel(p), "DEL")
			}
			if n := len(t.fakeNotes("DEL")); n < 2 {
				t.Errorf("2 DEL, %d forwarded", n)
			}
		}),
		delegated("delegate.check", "CHECK is forwarded to the IPAM plugin", must, sinceCheck, nil, func(t *T) {
			p, _ := t.addPod()
			t.wants(t.check(p), "CHECK")
			if len(t.fakeNotes("CHECK")) == 0 {
				t.Errorf("it is not")
			}
		}),
		delegated("delegate.forwarded", "GC is forwarded to the IPAM plugin", must, sinceGC, nil, func(t *T) {
			t.wants(t.gc(), "GC")
			notes := t.fakeNotes("GC")
			if len(notes) == 0 {
				t.Fatalf("it is not")
			}
			if !bytes.Contains(notes[0].Stdin, []byte("cni.dev/valid-attachments")) {
				t.Errorf("without the list: %s", notes[0].Stdin)
			}
		}),
		delegated("delegate.status", "STATUS is forwarded to the IPAM plugin", must, sinceGC, nil, func(t *T) {
			t.wants(t.status(), "STATUS")
			if len(t.fakeNotes("STATUS")) == 0 {
				t.Errorf("it is not")
			}
		}),
		delegated("delegate.error-del", "DEL returns the IPAM plugin's error", should, "", object{"fail": []string{"DEL"}}, func(t *T) {
			p, _ := t.addPod()
			t.refuses(t.tryDel(p), "DEL")
		}),
		delegated("delegate.error-check", "CHECK returns the IPAM plugin's error", should, sinceCheck, object{"fail": []string{"CHECK"}}, func(t *T) {
			p, _ := t.addPod()
			t.refuses(t.check(p), "CHECK")
		}),
		delegated("delegate.error-gc", "GC returns the IPAM plugin's error", should, sinceGC, object{"fail": []string{"GC"}}, func(t *T) {
			t.refuses(t.gc(), "GC")
		}),
		delegated("delegate.gc-continues", "GC removes its own links and rules although the IPAM plugin fails", should, sinceGC, object{"fail": []string{"GC"}}, func(t *T) {
			p := t.pod()
			before := t.snap()
			t.add(p)
			p.remove()
			t.refuses(t.gc(), "GC")
			t.nothingNew(before, "GC")
		}),
		delegated("delegate.error-status", "STATUS returns the IPAM plugin's error", must, sinceGC, object{"fail": []string{"STATUS"}}, func(t *T) {
			t.refuses(t.status(), "STATUS")
		}),
		delegated("delegate.error-code", "ADD returns the IPAM plugin's error with its code", robust, "", object{"fail": []string{"ADD"}}, func(t *T) {
			t.refuses(t.tryAdd(t.pod()), "ADD", 123)
		}),
		delegated("delegate.add-undone", "the IPAM plugin is called with DEL when its ADD fails", should, "", object{"fail": []string{"ADD"}}, func(t *T) {
			before := t.snap()
			p := t.pod()
			t.refuses(t.tryAdd(p), "ADD")
			if len(t.fakeNotes("DEL")) == 0 {
				t.Errorf("it is not")
			}
			t.noInterface(p)
			t.noNewVeth(before)
		}),
		delegated("delegate.undone-later", "the IPAM plugin is called with DEL when ADD fails later", robust, "", nil, func(t *T) {
			t.refuses(t.exec(t.takenPod().main("ADD", nil)), "ADD")
			if a, d := len(t.fakeNotes("ADD")), len(t.fakeNotes("DEL")); a > 0 && d == 0 {
				t.Errorf("%d ADD, %d DEL", a, d)
			}
		}),
		delegated("delegate.garbage", "ADD fails and leaves nothing when the IPAM plugin's answer is not a result", robust, "", object{"garbage": "no JSON"}, func(t *T) {
			before := t.snap()
			p := t.pod()
			r := t.tryAdd(p)
			t.refuses(r, "ADD")
			t.clean(r, "ADD")
			t.noInterface(p)
			t.noNewVeth(before)
		}),
		delegated("delegate.no-address", "ADD fails when the IPAM plugin's answer has no addresses", robust, "", object{"result": object{"ips": []object{}}}, func(t *T) {
			t.refuses(t.tryAdd(t.pod()), "ADD")
		}),
	}
}
