package main

import (
	"encoding/json"
	"strings"
)

// accepts runs ADD and DEL of a pod with additional keys in the first plugin's configuration.
func (t *T) accepts(what string, extra object) (res result) {
	n := t.net
	defer func() { t.net = n }()
	for k, v := range extra {
		t.net = t.net.with(k, v)
	}
	p := t.pod()
	if r := t.tryAdd(p); !r.ok() {
		t.Errorf("%s: %s", what, r.said())
		return res
	}
	res = p.result()
	t.wants(t.tryDel(p), "DEL with "+what)
	return res
}

// accepted is a check that ADD and DEL work with additional keys in the first plugin's configuration.
func accepted(id string, l level, section, asks string, extra object) check {
	return check{id: id, level: l, section: section, asks: asks, run: func(t *T) { t.accepts(asks, extra) }}
}

func (t *T) refusesConf(what string, n network, codes ...int) {
	old := t.net
	defer func() { t.net = old }()
	t.net = n
	p := t.pod()
	r := t.exec(p.main("ADD", nil))
	if r.ok() {
		t.exec(p.main("DEL", nil))
	}
	t.refuses(r, what, codes...)
}

func confChecks() []check {
	return []check{
		{id: "conf.bad-json", level: should, section: "5", asks: "broken JSON is code 6 in every command", run: func(t *T) {
			for _, command := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS"} {
				p := t.pod()
				c := p.main(command, nil)
				c.stdin = []byte(`{"cniVersion":"1.1.0","name":"x`)
				t.refuses(t.exec(c), command, 6)
			}
		}},
		{id: "conf.empty-stdin", level: must, section: "2", asks: "empty standard input fails", run: func(t *T) {
			c := t.pod().main("ADD", nil)
			c.stdin = nil
			t.refuses(t.exec(c), "ADD")
		}},
		{id: "conf.wrong-type", level: should, section: "5", asks: "a key of the wrong JSON type is code 6 or 7", run: func(t *T) {
			for key, value := range map[string]any{"cniVersion": 1, "name": []string{"x"}, "ipam": "host-local"} {
				t.refuses(t.exec(t.pod().main("ADD", object{key: value})), key+" of the wrong type", 6, 7)
			}
		}},
		{id: "conf.name-missing", level: should, section: "1", asks: "a missing network name is code 6 or 7", run: func(t *T) {
			t.refuses(t.exec(t.pod().main("ADD", object{"name": nil})), "no name", 6, 7)
		}},
		{id: "conf.name-invalid", level: should, section: "1", asks: "a network name with disallowed characters is refused with code 7", run: func(t *T) {
			for _, name := range []string{"a/b", "../x", "-x", "a b"} {
				t.refuses(t.exec(t.pod().main("ADD", object{"name": name})), "name "+name, 7)
			}
		}},
		{id: "conf.name-long", level: robust, section: "1", asks: "a network name of 200 characters works, or is refused and leaves nothing", run: func(t *T) {
			before := t.quiet()
			t.net.name = "n" + strings.Repeat("x", 199)
			p := t.pod()
			if r := t.tryAdd(p); r.ok() {
				t.del(p)
			} else {
				t.wants(t.tryDel(p), "DEL")
				t.Notef("refused: %s", r.said())
			}
			t.nothingNew(before, "a long name")
		}},
		{id: "conf.bad-pool", level: should, section: "5", asks: "an impossible pool is code 6 or 7", needs: needRanges, run: func(t *T) {
			p := t.net.subnets()[0]
			for what, r := range map[string]object{
				"subnet 10.0.0.0/99":        {"subnet": "10.0.0.0/99"},
				"subnet nonsense":           {"subnet": "nonsense"},
				"rangeStart outside":        {"subnet": p.String(), "rangeStart": "203.0.113.1"},
				"rangeEnd before the start": {"subnet": p.String(), "rangeStart": offset(p.Addr(), 12).String(), "rangeEnd": offset(p.Addr(), 10).String()},
				"a subnet of one address":   {"subnet": "10.0.0.1/32"},
			} {
				t.refusesConf(what, t.net.small(4, t.seq).withIPAM("ranges", []any{[]any{r}}), 6, 7)
			}
		}},
		{id: "conf.no-ipam-plugin", level: robust, section: "4", asks: "ADD with an ipam.type that is not installed fails with a code of the table or above 99, and leaves nothing", run: func(t *T) {
			before := t.quiet()
			t.refusesConf("ipam.type no-such-plugin", t.net.withIPAM("type", "no-such-plugin"))
			t.nothingNew(before, "the refused ADD")
		}},
		{id: "conf.unknown-key", level: must, section: "1", asks: "an unknown key is ignored, or refused with code 2 and named", run: func(t *T) {
			n := t.net
			t.net = t.net.with("xyzzy", object{"a": []int{1}})
			p := t.pod()
			r := t.tryAdd(p)
			if !r.ok() {
				t.refuses(r, "an unknown key", 2)
				if e, _ := r.fault(); !strings.Contains(e.Msg+e.Details, "xyzzy") {
					t.Errorf("the key is not named: %s", r.said())
				}
			}
			t.net = n
		}},
		accepted("conf.args", should, "CONV", "args that a plugin does not understand are ignored", object{"args": object{"cni": object{"labels": []object{{"key": "app", "value": "web"}}}, "org.example": object{"x": 1}}}),
		accepted("conf.runtime-config", should, "CONV", "runtimeConfig that a plugin does not understand is ignored", object{"runtimeConfig": object{"cgroupPath": "/x", "io.kubernetes.cri.pod-annotations": object{"a": "b"}, "deviceID": "0000:04:00.5"}}),
		accepted("conf.cni-dev-keys", must, "3", "keys that begin with cni.dev/ are accepted in ADD and DEL", object{"cni.dev/future": object{"x": 1}}),
		{id: "conf.capabilities", level: robust, section: "3", asks: "capabilities left in the configuration do not matter", run: func(t *T) {
			p := t.pod()
			c := p.main("ADD", object{"capabilities": object{"portMappings": true, "mac": true}})
			t.wants(t.exec(c), "ADD")
			t.exec(p.main("DEL", nil))
		}},
		{id: "conf.prevresult-null", level: robust, section: "3", asks: "prevResult null counts as no prevResult", run: func(t *T) {
			p := t.pod()
			c := p.main("ADD", nil)
			var conf map[string]any
			t.OK(json.Unmarshal(c.stdin, &conf), "decode")
			conf["prevResult"] = nil
			c.stdin, _ = json.Marshal(conf)
			t.wants(t.exec(c), "ADD")
			t.exec(p.main("DEL", nil))
		}},
		{id: "conf.prevresult-garbage", level: robust, section: "5", asks: "ADD with a prevResult that is not a result fails cleanly", run: func(t *T) {
			before := t.quiet()
			for _, v := range []any{"a string", 5, []int{1}} {
				p := t.pod()
				r := t.exec(p.main("ADD", object{"prevResult": v}))
				t.refuses(r, "prevResult garbage")
				t.clean(r, "ADD")
				t.exec(p.main("DEL", nil))
			}
			t.nothingNew(before, "prevResult garbage")
		}},
		{id: "conf.dns", level: robust, section: "1", asks: "dns of the configuration is in the result", run: func(t *T) {
			r := t.accepts("dns", object{"dns": object{"nameservers": []string{"10.1.0.1"}, "domain": "example.com", "search": []string{"example.com"}, "options": []string{"ndots:5"}}})
			b, _ := json.Marshal(r.DNS)
			for _, s := range []string{"10.1.0.1", "example.com", "ndots:5"} {
				if !strings.Contains(string(b), s) {
					t.Errorf("the result's dns is %s", b)
					return
				}
			}
		}},
		{id: "conf.stdin-whitespace", level: robust, section: "2", asks: "white space around the configuration does not matter", run: func(t *T) {
			p := t.pod()
			c := p.main("ADD", nil)
			c.stdin = []byte("\n\t  " + string(c.stdin) + "\r\n\n")
			t.wants(t.exec(c), "ADD")
			t.exec(p.main("DEL", nil))
		}},
		accepted("conf.version-list", robust, "1", "cniVersions beside cniVersion is accepted", object{"cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"}}),
		accepted("conf.disable-keys", robust, "1", "disableCheck, disableGC and loadOnlyInlinedPlugins are accepted", object{"disableCheck": false, "disableGC": false, "loadOnlyInlinedPlugins": true}),
		accepted("conf.non-ascii", robust, "1", "unknown keys may hold text in any script", object{"args": object{"cni": object{"labels": []object{{"key": "où", "value": "端"}}}}}),
	}
}
