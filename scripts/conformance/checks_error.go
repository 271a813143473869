package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

func selfPid() int { return os.Getpid() }

func (t *T) symlink(to string) string {
	path := filepath.Join(t.dir, "link")
	t.OK(os.Symlink(to, path), "make a symbolic link")
	return path
}

// provocation is a call that must fail, and the codes that fit in the specification's table. It has no
// codes if the specification leaves the code open.
type provocation struct {
	what  string
	codes []int
	run   func(t *T) reply
}

func provocations() []provocation {
	add := func(edit func(c *call)) func(t *T) reply {
		return func(t *T) reply {
			c := t.pod().main("ADD", nil)
			edit(&c)
			return t.exec(c)
		}
	}
	return []provocation{
		{"broken JSON", []int{6}, add(func(c *call) { c.stdin = []byte(`{"cniVersion":"1.0.0",`) })},
		{"an array for the configuration", []int{6, 7}, add(func(c *call) { c.stdin = []byte(`["cniVersion"]`) })},
		{"empty standard input", []int{5, 6, 7}, add(func(c *call) { c.stdin = nil })},
		{"no CNI_CONTAINERID", []int{4}, add(func(c *call) { delete(c.env, "CNI_CONTAINERID") })},
		{"no CNI_IFNAME", []int{4}, add(func(c *call) { delete(c.env, "CNI_IFNAME") })},
		{"unknown CNI_COMMAND", []int{4}, add(func(c *call) { c.env["CNI_COMMAND"] = "UPDATE" })},
		{"an unsupported version", []int{1}, func(t *T) reply { return t.exec(t.pod().main("ADD", object{"cniVersion": "99.0.0"})) }},
		{"a namespace that does not exist", nil, add(func(c *call) { c.env["CNI_NETNS"] = "/run/netns/no-such-namespace" })},
		{"a file for the namespace", nil, func(t *T) reply {
			c := t.pod().main("ADD", nil)
			c.env["CNI_NETNS"] = t.file("plain", nil)
			return t.exec(c)
		}},
		{"an interface name that is taken", nil, func(t *T) reply { return t.exec(t.takenPod().main("ADD", nil)) }},
		{"an IPAM plugin that is not there", nil, func(t *T) reply {
			n := t.net
			defer func() { t.net = n }()
			t.net = t.net.withIPAM("type", "no-such-ipam-plugin")
			return t.exec(t.pod().main("ADD", nil))
		}},
	}
}

func (t *T) file(name string, content []byte) string {
	path := filepath.Join(t.dir, name)
	t.OK(os.WriteFile(path, content, 0o644), "write a file")
	return path
}

// provoke makes each provocation and calls f with the reply.
func (t *T) provoke(f func(p provocation, r reply)) {
	for _, p := range provocations() {
		r := p.run(t)
		if r.ok() {
			t.Errorf("%s: accepted", p.what)
			continue
		}
		f(p, r)
	}
}

func errorChecks() []check {
	return []check{
		{id: "error.exit-status", level: must, section: "2,4", asks: "a call that fails exits with a status other than 0, and not by a signal", run: func(t *T) {
			t.provoke(func(p provocation, r reply) {
				if r.status == -1 {
					t.Errorf("%s: %s", p.what, r.said())
				}
			})
		}},
		{id: "error.result-shape", level: should, section: "5", asks: "an error is a JSON object with cniVersion, code and msg", run: func(t *T) {
			t.provoke(func(p provocation, r reply) {
				e, ok := r.fault()
				switch {
				case !ok:
					t.Errorf("%s: no error object: %s", p.what, r.said())
				case e.CNIVersion == "" || e.Msg == "":
					t.Errorf("%s: cniVersion %q, msg %q", p.what, e.CNIVersion, e.Msg)
				}
			})
		}},
		{id: "error.version", level: should, section: "5", asks: "an error's cniVersion is the protocol version in use", each: true, run: func(t *T) {
			for _, p := range provocations() {
				if slices.Contains([]string{"broken JSON", "an array for the configuration", "empty standard input", "an unsupported version", "unknown CNI_COMMAND"}, p.what) {
					continue // no version is in use
				}
				if e, ok := p.run(t).fault(); ok && e.CNIVersion != t.net.version {
					t.Errorf("%s: says %q", p.what, e.CNIVersion)
				}
			}
		}},
		{id: "error.single-json", level: should, section: "5", asks: "the standard output of a call that fails is one JSON value", run: func(t *T) {
			t.provoke(func(p provocation, r reply) {
				if _, ok := r.fault(); !ok {
					t.Errorf("%s: %.200q", p.what, r.stdout)
				}
			})
		}},
		{id: "error.reserved-codes", level: should, section: "5", asks: "codes below 100 are only those of the specification's table", run: func(t *T) {
			table := []int{1, 2, 3, 4, 5, 6, 7, 11, 50, 51}
			t.provoke(func(p provocation, r reply) {
				if c := r.code(); c < 100 && !slices.Contains(table, c) {
					t.Errorf("%s: code %d", p.what, c)
				}
			})
		}},
		{id: "error.right-code", level: should, section: "5", asks: "the error's code is the one that the table has for the cause", run: func(t *T) {
			t.provoke(func(p provocation, r reply) {
				if len(p.codes) > 0 && !slices.Contains(p.codes, r.code()) {
					t.Errorf("%s: want %v: %s", p.what, p.codes, r.said())
				}
			})
		}},
		{id: "error.says-why", level: robust, section: "5", asks: "the message names what was wrong", run: func(t *T) {
			r := provocations()[7].run(t)
			if !bytes.Contains(r.stdout, []byte("no-such-namespace")) {
				t.Errorf("the namespace is not named: %s", r.said())
			}
		}},
		{id: "error.leaves-nothing", level: robust, section: "2", asks: "a call that fails leaves nothing on the host", run: func(t *T) {
			before := t.quiet()
			t.provoke(func(p provocation, r reply) { t.nothingNew(before, p.what) })
		}},
		{id: "error.del-after-failed-add", level: must, section: "3", asks: "DEL after an ADD that failed succeeds", run: func(t *T) {
			lost := t.pod()
			lost.netns = "/run/netns/no-such-namespace"
			for what, p := range map[string]*pod{"ns": lost, "taken": t.takenPod()} {
				t.refuses(t.tryAdd(p), "ADD")
				t.wants(t.tryDel(p), fmt.Sprintf("DEL (%s)", what))
			}
		}},
	}
}
