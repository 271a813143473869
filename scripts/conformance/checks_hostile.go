package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hostile tests that ADD and DEL work under unusual conditions.
func hostile(id, asks string, edit func(t *T, c *call)) check {
	return check{id: id, level: robust, section: "2", asks: asks, run: func(t *T) {
		t.life(func(c *call) { edit(t, c) }, func(p *pod) { t.connected(p, p.result()) })
	}}
}

// sh wraps the plugin in a shell that runs script first.
func sh(script string) []string { return []string{"/bin/sh", "-c", script + `; exec "$0"`} }

// badNetns tests ADD with a CNI_NETNS that is not a network namespace.
func badNetns(id, asks string, l level, netns func(t *T) string) check {
	return check{id: id, level: l, section: "2", asks: "ADD fails, at once and leaving nothing, when CNI_NETNS " + asks, run: func(t *T) {
		t.trySmall(2)
		before := t.quiet()
		path := netns(t)
		for range 3 {
			c := t.pod().main("ADD", nil)
			c.env["CNI_NETNS"] = path
			r := t.exec(c)
			t.refuses(r, "ADD")
			t.clean(r, "ADD")
		}
		t.nothingNew(before, "ADD")
		t.tryRoom(2)
	}}
}

func hostileChecks() []check {
	return slices.Concat(hostileLives(), hostileInput(), hostileNames(), []check{
		badNetns("hostile.netns-gone", "does not exist", must, func(t *T) string { return filepath.Join(t.dir, "gone") }),
		badNetns("hostile.netns-plain-file", "is a plain file", robust, func(t *T) string { return t.file("plain", []byte("x")) }),
		badNetns("hostile.netns-directory", "is a directory", robust, func(t *T) string { return t.dir }),
		badNetns("hostile.netns-fifo", "is a FIFO that nobody writes to", robust, func(t *T) string {
			path := filepath.Join(t.dir, "fifo")
			t.OK(unix.Mkfifo(path, 0o600), "make a FIFO")
			return path
		}),
		badNetns("hostile.netns-other-kind", "is a namespace of another kind", robust, func(t *T) string { return fmt.Sprintf("/proc/%d/ns/uts", selfPid()) }),
	})
}

func hostileLives() []check {
	return []check{
		hostile("hostile.path-unset", "ADD and DEL work when PATH is not set", func(t *T, c *call) { delete(c.env, "PATH") }),
		hostile("hostile.path-empty", "ADD and DEL work when PATH is empty", func(t *T, c *call) { c.env["PATH"] = "" }),
		hostile("hostile.env-empty", "ADD and DEL work when the environment has only the CNI variables", func(t *T, c *call) {
			for k := range c.env {
				if !strings.HasPrefix(k, "CNI_") {
					delete(c.env, k)
				}
			}
		}),
		hostile("hostile.tools-shadowed", "ADD and DEL work when the ip, iptables and nft in PATH fail", func(t *T, c *call) {
			dir := filepath.Join(t.dir, "shadow")
			_ = os.Mkdir(dir, 0o755) // the second call finds it in place
			for _, tool := range []string{"ip", "iptables", "ip6tables", "iptables-save", "nft", "sysctl", "conntrack"} {
				t.OK(os.WriteFile(filepath.Join(dir, tool), []byte("#!/bin/sh\nexit 1\n"), 0o755), "write a tool")
			}
			c.env["PATH"] = dir + ":" + c.env["PATH"]
		}),
		hostile("hostile.stderr-closed", "ADD and DEL work when standard error is closed", func(t *T, c *call) { c.wrap = sh("exec 2>&-") }),
		hostile("hostile.stderr-full", "ADD and DEL work when standard error cannot be written", func(t *T, c *call) { c.wrap = sh("exec 2>/dev/full") }),
		hostile("hostile.cwd-removed", "ADD and DEL work when the working directory was removed", func(t *T, c *call) {
			dir := filepath.Join(t.dir, "cwd")
			c.wrap = sh("/bin/mkdir -p " + dir + " && cd " + dir + " && /bin/rmdir " + dir)
		}),
		hostile("hostile.umask-0777", "ADD and DEL work when the umask is 0777", func(t *T, c *call) { c.wrap = sh("umask 0777") }),
		hostile("hostile.umask-0", "ADD and DEL work when the umask is 0", func(t *T, c *call) { c.wrap = sh("umask 0") }),
		hostile("hostile.few-files", "ADD and DEL work when at most 64 files may be open", func(t *T, c *call) { c.wrap = sh("ulimit -n 64") }),
		hostile("hostile.no-core-home", "ADD and DEL work when HOME and TMPDIR do not exist", func(t *T, c *call) {
			c.env["HOME"], c.env["TMPDIR"] = "/nonexistent", "/nonexistent"
		}),
		hostile("hostile.stdin-slow", "ADD and DEL work when standard input arrives in small pieces", func(t *T, c *call) { c.input = &slowReader{b: c.stdin} }),
		{id: "hostile.stdout-closed", level: robust, section: "2", asks: "DEL removes everything that an ADD with a closed standard output leaves", run: func(t *T) { t.undelivered("exec 1>&-") }},
		{id: "hostile.stdout-full", level: robust, section: "2", asks: "ADD fails when it cannot write its result, and DEL removes everything that it leaves", run: func(t *T) { t.undelivered(stdoutFull) }},
	}
}

const stdoutFull = "exec 1>/dev/full"

// undelivered runs an ADD whose result gets lost.
func (t *T) undelivered(script string) {
	t.trySmall(2)
	before := t.quiet()
	p := t.pod()
	c := p.main("ADD", nil)
	c.wrap = sh(script)
	// Language runtimes open a closed descriptor as /dev/null, so the plugin cannot notice it.
	if r := t.exec(c); r.ok() && script == stdoutFull {
		t.Errorf("ADD exits with 0")
	}
	t.wants(t.each(p, "DEL", p.env("DEL"), nil), "DEL")
	t.nothingNew(before, "both")
	t.tryRoom(2)
}

// slowReader returns small pieces with a pause before each.
type slowReader struct{ b []byte }

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	time.Sleep(5 * time.Millisecond)
	n := copy(p, r.b[:min(len(r.b), 17)])
	r.b = r.b[n:]
	return n, nil
}

// clean fails unless the reply is a success or a proper error.
func (t *T) clean(r reply, what string) {
	if r.ok() {
		return
	}
	if _, ok := r.fault(); !ok {
		t.Errorf("%s: neither success nor an error object: %s", what, r.said())
	}
}

func hostileInput() []check {
	return []check{
		{id: "hostile.stdin-huge", level: robust, section: "2", asks: "a configuration of 2 MiB works or is refused cleanly", run: func(t *T) {
			p := t.pod()
			r := t.exec(p.main("ADD", object{"args": object{"x": strings.Repeat("abcdefgh", 1<<18)}}))
			t.clean(r, "ADD")
			t.exec(p.main("DEL", nil))
		}},
		{id: "hostile.stdin-64k", level: must, section: "2", asks: "a configuration of 200 KiB works (it exceeds a pipe)", run: func(t *T) {
			p := t.pod()
			t.wants(t.exec(p.main("ADD", object{"args": object{"x": strings.Repeat("abcdefgh", 25600)}})), "ADD")
			t.exec(p.main("DEL", nil))
		}},
		{id: "hostile.stdin-deep", level: robust, section: "2", asks: "JSON nested 20000 deep works or is refused cleanly", run: func(t *T) {
			c := t.pod().main("ADD", nil)
			deep := `,"args":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}"
			c.stdin = append(bytes.TrimSuffix(c.stdin, []byte("}")), deep...)
			t.clean(t.exec(c), "ADD")
		}},
		{id: "hostile.stdin-binary", level: must, section: "2", asks: "a call with binary standard input fails cleanly", run: func(t *T) {
			for _, b := range [][]byte{{0}, {0xff, 0xfe, 0}, bytes.Repeat([]byte{0xd8}, 4096), []byte("null"), []byte(`"x"`), []byte("{}")} {
				c := t.pod().main("ADD", nil)
				c.stdin = b
				r := t.exec(c)
				t.refuses(r, fmt.Sprintf("%.10q", b))
				t.clean(r, fmt.Sprintf("%.10q", b))
			}
		}},
		{id: "hostile.stdin-closed", level: robust, section: "5", asks: "a call with a closed standard input fails cleanly", run: func(t *T) {
			c := t.pod().main("ADD", nil)
			c.wrap = sh("exec 0<&-")
			r := t.exec(c)
			t.refuses(r, "ADD")
			t.clean(r, "ADD")
		}},
		{id: "hostile.format-verbs", level: robust, section: "5", asks: "a '%' in a wrong value is repeated as it was in the error", run: func(t *T) {
			r := t.exec(t.pod().main("ADD", object{"name": "%s%d%n"}))
			if bytes.Contains(r.stdout, []byte("MISSING")) || bytes.Contains(r.stdout, []byte("(EXTRA")) {
				t.Errorf("%s", r.said())
			}
			c := t.pod().main("ADD", nil)
			c.env["CNI_IFNAME"] = "%s/%d"
			if r := t.exec(c); r.ok() || bytes.Contains(r.stdout, []byte("MISSING")) {
				t.Errorf("%s", r.said())
			}
		}},
		{id: "hostile.args-long", level: robust, section: "2", asks: "CNI_ARGS of 100 KiB work", run: func(t *T) {
			t.lifeArgs("IgnoreUnknown=1;LABELS=" + strings.Repeat("abcdefgh", 12800))
		}},
	}
}

func hostileNames() []check {
	return []check{
		{id: "hostile.id-200", level: robust, section: "3", asks: "container IDs of 200 characters work, or are refused with code 4", run: func(t *T) {
			before := t.quiet()
			p := t.pod()
			p.id = strings.Repeat("a", 200)
			r := t.tryAdd(p)
			if !r.ok() {
				t.refuses(r, "ADD", 4)
			} else {
				t.del(p)
			}
			t.nothingNew(before, "both")
		}},
		{id: "hostile.id-64-alike", level: must, section: "3", asks: "container IDs of 64 characters that differ in the last character are two containers", run: func(t *T) {
			p, q := t.pod(), t.pod()
			p.id, q.id = strings.Repeat("a", 63)+"0", strings.Repeat("a", 63)+"1"
			a, b := t.add(p), t.add(q)
			t.distinct(a, b)
			t.del(p)
			t.connected(q, b)
		}},
		{id: "hostile.id-forms", level: must, section: "3", asks: "container IDs of one character, and with '_', '.' and '-' work", run: func(t *T) {
			for _, id := range []string{"x", "0", "a_b.c-D", "A..b--c__"} {
				p := t.pod()
				p.id = id
				t.add(p)
				t.del(p)
			}
		}},
		{id: "hostile.id-ifname-border", level: must, section: "3", asks: "(a, bc) and (ab, c) are two attachments, with separators as well", run: func(t *T) {
			base := fmt.Sprintf("c%d", t.seq)
			var all []result
			for _, x := range [][2]string{{base, "1a"}, {base + "1", "a"}, {base + "-1", "a"}, {base, "-1a"}, {base + "_1", "a"}, {base, "_1a"}, {base + ".1", "a"}} {
				p := t.pod()
				p.id, p.ifName = x[0], x[1]
				all = append(all, t.add(p))
			}
			t.distinct(all...)
		}},
	}
}
