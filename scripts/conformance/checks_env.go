package main

import (
	"fmt"
	"slices"
	"strings"
)

// badEnv is an environment with an error in one variable.
type badEnv struct {
	what, variable string
	command        string
	value          *string // nil: not set
}

func text(s string) *string { return &s }

// missing returns missing variables that a command requires (SPEC section 2).
func missing() []badEnv {
	return []badEnv{
		{"ADD without CNI_CONTAINERID", "CNI_CONTAINERID", "ADD", nil},
		{"ADD without CNI_NETNS", "CNI_NETNS", "ADD", nil},
		{"ADD without CNI_IFNAME", "CNI_IFNAME", "ADD", nil},
		{"ADD with an empty CNI_CONTAINERID", "CNI_CONTAINERID", "ADD", text("")},
		{"ADD with an empty CNI_NETNS", "CNI_NETNS", "ADD", text("")},
		{"ADD with an empty CNI_IFNAME", "CNI_IFNAME", "ADD", text("")},
		{"DEL without CNI_CONTAINERID", "CNI_CONTAINERID", "DEL", nil},
		{"DEL without CNI_IFNAME", "CNI_IFNAME", "DEL", nil},
		{"CHECK without CNI_CONTAINERID", "CNI_CONTAINERID", "CHECK", nil},
		{"CHECK without CNI_NETNS", "CNI_NETNS", "CHECK", nil},
		{"CHECK without CNI_IFNAME", "CNI_IFNAME", "CHECK", nil},
	}
}

// invalid returns values that SPEC section 3, "Attachment Parameters", and the kernel exclude.
func invalid() []badEnv {
	return []badEnv{
		{"CNI_CONTAINERID a/b", "CNI_CONTAINERID", "ADD", text("a/b")},
		{"CNI_CONTAINERID ../x", "CNI_CONTAINERID", "ADD", text("../x")},
		{"CNI_CONTAINERID -x", "CNI_CONTAINERID", "ADD", text("-x")},
		{"CNI_CONTAINERID with a space", "CNI_CONTAINERID", "ADD", text("a b")},
		{"CNI_CONTAINERID with a newline", "CNI_CONTAINERID", "ADD", text("a\nb")},
		{"CNI_IFNAME of 16 bytes", "CNI_IFNAME", "ADD", text("abcdefghijklmnop")},
		{"CNI_IFNAME a/b", "CNI_IFNAME", "ADD", text("a/b")},
		{"CNI_IFNAME ..", "CNI_IFNAME", "ADD", text("..")},
		{"CNI_IFNAME with a space", "CNI_IFNAME", "ADD", text("eth 0")},
		{"CNI_IFNAME with a colon", "CNI_IFNAME", "ADD", text("eth0:1")},
	}
}

// badEnv returns the reply to a call with such an environment.
func (t *T) badEnv(b badEnv) reply {
	p := t.pod()
	var extra object
	if b.command == "CHECK" {
		extra = object{"prevResult": object{"cniVersion": t.net.version, "interfaces": []object{}, "ips": []object{}}}
	}
	c := p.main(b.command, extra)
	if b.value == nil {
		delete(c.env, b.variable)
	} else {
		c.env[b.variable] = *b.value
	}
	return t.exec(c)
}

func envChecks() []check {
	all := func() []badEnv { return slices.Concat(missing(), invalid()) }
	out := []check{
		{id: "env.command-missing", level: must, section: "2", asks: "without CNI_COMMAND a plugin changes nothing: it fails, or describes itself on standard error", run: func(t *T) {
			before := t.snap()
			p := t.pod()
			c := p.main("ADD", nil)
			delete(c.env, "CNI_COMMAND")
			if r := t.exec(c); r.ok() && len(r.stdout) > 0 {
				t.Errorf("%s", r.said())
			}
			t.noInterface(p)
			t.sameAs(before, "it")
		}},
		{id: "env.command-unknown", level: must, section: "2", asks: "an unknown CNI_COMMAND fails", run: func(t *T) {
			for _, command := range []string{"UPDATE", "add", "ADD "} {
				t.refuses(t.exec(t.pod().main(command, nil)), "CNI_COMMAND "+command)
			}
		}},
		{id: "env.command-code", level: should, section: "5", asks: "an unknown CNI_COMMAND fails with code 4, and the error names CNI_COMMAND", run: func(t *T) {
			for _, command := range []string{"UPDATE", "add"} {
				r := t.exec(t.pod().main(command, nil))
				t.refuses(r, fmt.Sprintf("CNI_COMMAND %q", command), 4)
				t.names(r, "CNI_COMMAND")
			}
		}},
		{id: "env.invalid.named", level: must, section: "5", asks: "an error of code 4 contains the name of the invalid variable", run: func(t *T) {
			for _, b := range all() {
				if b.command == "CHECK" && before(t.net.version, "0.4.0") {
					continue
				}
				if r := t.badEnv(b); r.code() == 4 {
					t.names(r, b.variable)
				}
			}
		}},
		{id: "env.several-named", level: robust, section: "5", asks: "when several variables are missing, the error names at least one", run: func(t *T) {
			p := t.pod()
			c := p.main("ADD", nil)
			c.env = p.envWithout("ADD", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
			r := t.exec(c)
			t.refuses(r, "ADD without the three", 4)
			if e, _ := r.fault(); !strings.Contains(e.Msg+e.Details, "CNI_") {
				t.Errorf("names none: %s", r.said())
			}
		}},
		{id: "env.invalid-leaves-nothing", level: robust, section: "2", asks: "a call that is refused for its environment leaves nothing on the host", run: func(t *T) {
			before := t.snap()
			for _, b := range all() {
				t.badEnv(b)
			}
			t.nothingNew(before, "the refused calls")
		}},
		{id: "env.del-without-netns", level: must, section: "2", asks: "CNI_NETNS is optional for DEL", run: func(t *T) {
			p, _ := t.addPod()
			t.wants(t.each(p, "DEL", p.envWithout("DEL", "CNI_NETNS"), p.withPrev()), "DEL without CNI_NETNS")
		}},
		{id: "env.args-optional", level: must, section: "2", asks: "CNI_ARGS is optional", run: func(t *T) {
			t.lifeEnv(func(env map[string]string) { delete(env, "CNI_ARGS") })
		}},
		{id: "env.path-optional", level: robust, section: "2", asks: "CNI_PATH is optional where nothing is delegated", run: func(t *T) {
			if len(t.net.types()) > len(t.net.plugins) {
				t.Skipf("the plugin delegates to %s, which it finds by CNI_PATH", t.net.types()[len(t.net.plugins)])
			}
			t.lifeEnv(func(env map[string]string) { delete(env, "CNI_PATH") })
		}},
		{id: "env.args-kubelet", level: must, section: "2", asks: "the CNI_ARGS of the kubelet's runtimes are accepted", run: func(t *T) {
			t.lifeArgs("K8S_POD_NAME=p1;K8S_POD_INFRA_CONTAINER_ID=64dfdb433c1f;K8S_POD_UID=e60bc00e-1111-2222-3333-444444444444;IgnoreUnknown=1;K8S_POD_NAMESPACE=default")
		}},
		{id: "env.args-ignore-unknown", level: must, section: "CONV", asks: "with IgnoreUnknown unknown keys are ignored, in the spelling of multus as well", run: func(t *T) {
			t.lifeArgs("IgnoreUnknown=1;FOO=BAR;ABC=123")
			t.lifeArgs("IgnoreUnknown=true;FOO=BAR")
		}},
		{id: "env.args-malformed", level: robust, section: "CONV", asks: "CNI_ARGS without '=' is refused with code 4 or ignored", run: func(t *T) {
			p := t.pod()
			p.args = "nonsense"
			if r := t.tryAdd(p); !r.ok() {
				t.refuses(r, "CNI_ARGS=nonsense", 4)
			}
		}},
		{id: "env.large", level: robust, section: "2", asks: "a runtime's large environment does not matter", run: func(t *T) {
			t.lifeEnv(func(env map[string]string) {
				for i := range 300 {
					env[fmt.Sprintf("SOME_SERVICE_%d_PORT", i)] = strings.Repeat("tcp://10.0.0.1:80 ", 10)
				}
			})
		}},
		{id: "env.host-netns", level: robust, section: "2", asks: "a call whose CNI_NETNS is the host's own namespace leaves nothing on the host", run: func(t *T) {
			if t.o.current {
				t.Skipf("not on this machine's own namespace")
			}
			before := t.snap()
			p := t.pod()
			c := p.main("ADD", nil)
			c.env["CNI_NETNS"] = t.host.Path
			r := t.exec(c)
			if r.ok() {
				c = p.main("DEL", nil)
				c.env["CNI_NETNS"] = t.host.Path
				t.exec(c)
				t.Notef("accepted")
			}
			t.nothingNew(before, "ADD with the host's namespace")
		}},
		{id: "env.netns-proc-path", level: robust, section: "3", asks: "CNI_NETNS may be a path below /proc", run: func(t *T) {
			p := t.pod()
			p.netns = fmt.Sprintf("/proc/%d/fd/%d", selfPid(), p.File.Fd())
			r := t.add(p)
			t.connected(p, r)
			t.del(p)
		}},
		{id: "env.netns-symlink", level: robust, section: "3", asks: "CNI_NETNS may be a symbolic link", run: func(t *T) {
			p := t.pod()
			p.netns = t.symlink(p.Path)
			r := t.add(p)
			t.connected(p, r)
			t.del(p)
		}},
	}
	return append(out, refusals()...)
}

// refusals returns a check for each variable and kind of refusal.
func refusals() (out []check) {
	for _, group := range []struct {
		id, asks string
		level    level
		cases    []badEnv
	}{
		{"missing", "a required variable that is missing fails with code 4", must, missing()},
		{"invalid", "an invalid value is refused with code 4", should, invalid()},
	} {
		for _, variable := range []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"} {
			cases := slices.DeleteFunc(slices.Clone(group.cases), func(b badEnv) bool { return b.variable != variable })
			if len(cases) == 0 {
				continue
			}
			name := strings.ToLower(strings.TrimPrefix(variable, "CNI_"))
			out = append(out, check{id: "env." + name + "-" + group.id, level: group.level, section: "2,5", asks: group.asks, run: func(t *T) {
				for _, b := range cases {
					if b.command == "CHECK" && before(t.net.version, "0.4.0") {
						continue
					}
					t.refuses(t.badEnv(b), b.what, 4)
				}
			}})
		}
	}
	return out
}

// names fails unless the error names the variable in msg or details. The specification calls both together
// the message.
func (t *T) names(r reply, variable string) {
	if e, _ := r.fault(); !strings.Contains(e.Msg+" "+e.Details, variable) {
		t.Errorf("does not name %s: %s", variable, r.said())
	}
}

// life runs ADD and DEL of the list, with edit applied to each call, and calls between in the middle.
func (t *T) life(edit func(c *call), between func(p *pod)) {
	t.edit = edit
	defer func() { t.edit = nil }()
	p := t.pod()
	if r := t.tryAdd(p); !r.ok() {
		t.Errorf("%s", r.said())
		t.tryDel(p)
		return
	}
	between(p)
	t.wants(t.tryDel(p), "DEL")
	t.noInterface(p)
}

// lifeEnv is life with CHECK in the middle and with each call's environment edited.
func (t *T) lifeEnv(edit func(env map[string]string)) {
	t.life(func(c *call) { edit(c.env) }, func(p *pod) { t.checks(p, "CHECK") })
}

func (t *T) lifeArgs(args string) {
	t.lifeEnv(func(env map[string]string) { env["CNI_ARGS"] = args })
}
