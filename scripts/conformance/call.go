package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// call is one execution of a plugin.
type call struct {
	kind  string // type of the plugin
	env   map[string]string
	stdin []byte

	input  io.Reader // replaces stdin
	wrap   []string  // words before the executable: sh -c '... exec "$0"'
	kill   time.Duration
	signal unix.Signal   // signal that kill sends; 0: SIGKILL
	limit  time.Duration // time limit of the call; 0: --timeout
}

// reply is the result of a call.
type reply struct {
	kind, command  string
	stdout, stderr []byte
	status         int // -1: ended by a signal
	took           time.Duration
}

func (r reply) ok() bool { return r.status == 0 }

// cniError is the error that a failing plugin prints (SPEC section 5, "Error").
type cniError struct {
	CNIVersion string `json:"cniVersion"`
	Code       *int   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// fault decodes the error. ok is false if standard output has any other content.
func (r reply) fault() (e cniError, ok bool) {
	err := decodeOnly(r.stdout, &e)
	return e, err == nil && e.Code != nil
}

// code returns the code of the error, or -1 without an error.
func (r reply) code() int {
	if e, _ := r.fault(); e.Code != nil {
		return *e.Code
	}
	return -1
}

// said returns the reply in one line.
func (r reply) said() string {
	what := fmt.Sprintf("%s %s exits with %d", r.kind, r.command, r.status)
	if r.status == -1 {
		what = fmt.Sprintf("%s %s was killed or timed out", r.kind, r.command)
	}
	if e, ok := r.fault(); ok && r.status != 0 {
		return fmt.Sprintf("%s: code %d: %s", what, *e.Code, strings.TrimSpace(e.Msg+" "+e.Details))
	}
	if out := bytes.TrimSpace(r.stdout); len(out) > 0 {
		what += fmt.Sprintf(", stdout %.300q", out)
	}
	if r.status != 0 && len(r.stderr) > 0 {
		what += fmt.Sprintf(", stderr %.200q", r.stderr)
	}
	return what
}

// exec executes a plugin inside the host's namespace.
func (t *T) exec(c call) reply {
	if t.edit != nil {
		t.edit(&c)
	}
	path, err := t.find(c.kind)
	t.OK(err, "find plugin")
	ctx, cancel := context.WithTimeout(t.ctx, cmp.Or(c.limit, t.o.timeout))
	defer cancel()
	argv := append(slices.Clone(c.wrap), path)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, time.Second
	cmd.Stdin = c.input
	if c.input == nil {
		cmd.Stdin = bytes.NewReader(c.stdin)
	}
	for k, v := range c.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	start := time.Now()
	err = t.host.Do(cmd.Start)
	if err != nil {
		t.Fatalf("the harness: start %s: %v", path, err)
	}
	if c.kill > 0 {
		timer := time.AfterFunc(c.kill, func() { _ = unix.Kill(-cmd.Process.Pid, cmp.Or(c.signal, unix.SIGKILL)) })
		defer timer.Stop()
	}
	_ = cmd.Wait() // the exit status has the result
	return reply{kind: c.kind, command: c.env["CNI_COMMAND"], stdout: stdout.Bytes(), stderr: stderr.Bytes(),
		status: cmd.ProcessState.ExitCode(), took: time.Since(start)}
}

// baseEnv is a runtime's environment without the CNI variables.
func (t *T) baseEnv() map[string]string {
	return map[string]string{"PATH": cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin"), "HOME": "/root", "LANG": "C"}
}

// pod is an attachment: a container's namespace and one interface name in the namespace.
type pod struct {
	*space
	t       *T
	id      string
	ifName  string
	netns   string          // CNI_NETNS
	args    string          // CNI_ARGS
	prev    json.RawMessage // result of ADD
	results []json.RawMessage
}

// pod makes a container with its own namespace.
func (t *T) pod() *pod {
	t.pods++
	path := filepath.Join(t.dir, "netns", fmt.Sprintf("pod%d", t.pods))
	if t.o.current {
		path = fmt.Sprintf("/run/netns/cni-conf-%d-%d-%d", os.Getpid(), t.seq, t.pods)
	}
	s, err := newSpace(path)
	t.OK(err, "make a pod")
	p := &pod{space: s, t: t, id: fmt.Sprintf("conf%d-%d-%d", os.Getpid(), t.seq, t.pods), ifName: "eth0", netns: path}
	t.Cleanup(s.remove)
	return p
}

// takenPod makes a container whose interface name is already in use.
func (t *T) takenPod() *pod {
	p := t.pod()
	t.OK(p.veth(p.ifName, "other"), "make a link in the pod")
	return p
}

// again returns the same container with another interface name.
func (p *pod) again(ifName string) *pod {
	q := *p
	q.ifName, q.prev, q.results = ifName, nil, nil
	return &q
}

// env returns the variables of a command.
func (p *pod) env(command string) map[string]string {
	e := p.t.baseEnv()
	maps.Copy(e, map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": p.id, "CNI_NETNS": p.netns, "CNI_IFNAME": p.ifName,
		"CNI_ARGS": p.args, "CNI_PATH": strings.Join(p.t.path(), ":"),
	})
	return e
}

func (p *pod) envWithout(command string, names ...string) map[string]string {
	e := p.env(command)
	for _, n := range names {
		delete(e, n)
	}
	return e
}

// netEnv returns the variables of GC and STATUS.
func (t *T) netEnv(command string) map[string]string {
	e := t.baseEnv()
	e["CNI_COMMAND"], e["CNI_PATH"] = command, strings.Join(t.path(), ":")
	return e
}

// call returns a call of the i-th plugin of the list.
func (n network) call(i int, env map[string]string, extra object) call {
	return call{kind: n.plugins[i]["type"].(string), env: env, stdin: n.request(i, extra)}
}

func (p *pod) main(command string, extra object) call {
	return p.t.net.call(0, p.env(command), extra)
}

// tryAdd runs ADD of the whole list in order and returns the last reply.
func (t *T) tryAdd(p *pod) reply { return t.tryAddWith(p, nil) }

func (t *T) tryAddWith(p *pod, extra object) (r reply) {
	var prev json.RawMessage
	p.results = nil
	for i := range t.net.plugins {
		all := object{}
		maps.Copy(all, extra)
		if prev != nil {
			all["prevResult"] = prev
		}
		r = t.exec(t.net.call(i, p.env("ADD"), all))
		if !r.ok() {
			return r
		}
		prev = slices.Clone(json.RawMessage(bytes.TrimSpace(r.stdout)))
		p.results = append(p.results, prev)
	}
	p.prev = prev
	t.Cleanup(func() { t.tryDel(p) })
	return r
}

// add runs ADD, which must succeed, and returns the result.
func (t *T) add(p *pod) result { return t.addWith(p, nil) }

// addPod makes a pod and attaches it with ADD.
func (t *T) addPod() (*pod, result) {
	p := t.pod()
	return p, t.add(p)
}

func (t *T) addWith(p *pod, extra object) result {
	if r := t.tryAddWith(p, extra); !r.ok() {
		t.Fatalf("%s", r.said())
	}
	return p.result()
}

// result decodes the output of ADD.
func (p *pod) result() result {
	r, err := parseResult(p.prev)
	p.t.OK(err, "decode the result")
	return r
}

// each runs a command on the whole list and stops at a failure. DEL starts at the end of the list.
func (t *T) each(p *pod, command string, env map[string]string, extra object) (r reply) {
	for i := range t.net.plugins {
		if command == "DEL" {
			i = len(t.net.plugins) - 1 - i
		}
		r = t.exec(t.net.call(i, env, extra))
		if !r.ok() {
			return r
		}
	}
	return r
}

// withPrev returns the prevResult for the extra keys of a request, or nil before ADD.
func (p *pod) withPrev() object {
	if p.prev == nil {
		return nil
	}
	return object{"prevResult": p.prev}
}

func (t *T) tryDel(p *pod) reply { return t.each(p, "DEL", p.env("DEL"), p.withPrev()) }

// del runs DEL, which must succeed.
func (t *T) del(p *pod) {
	if r := t.tryDel(p); !r.ok() {
		t.Fatalf("%s", r.said())
	}
}

// checks runs CHECK, which must succeed, unless the version does not have it.
func (t *T) checks(p *pod, what string) {
	if !before(t.net.version, sinceCheck) {
		t.wants(t.check(p), what)
	}
}

func (t *T) check(p *pod) reply { return t.each(p, "CHECK", p.env("CHECK"), p.withPrev()) }

// valid returns the attachment's entry in a list for GC.
func (p *pod) valid() object { return object{"containerID": p.id, "ifname": p.ifName} }

// gc runs GC with a list of valid attachments.
func (t *T) gc(valid ...*pod) reply {
	return t.gcWith(onlyValid(valid...))
}

// onlyValid returns the list of valid attachments for the extra keys of a request.
func onlyValid(pods ...*pod) object {
	list := []object{}
	for _, p := range pods {
		list = append(list, p.valid())
	}
	return object{"cni.dev/valid-attachments": list}
}

func (t *T) gcWith(extra object) reply { return t.each(nil, "GC", t.netEnv("GC"), extra) }

func (t *T) status() reply { return t.each(nil, "STATUS", t.netEnv("STATUS"), nil) }

// wants fails unless the reply is a success.
func (t *T) wants(r reply, what string) {
	if !r.ok() {
		t.Errorf("%s: %s", what, r.said())
	}
}

// refuses fails unless the reply is an error with one of the codes. Without codes, any error will do.
func (t *T) refuses(r reply, what string, codes ...int) {
	if r.ok() {
		t.Errorf("%s: accepted", what)
		return
	}
	if r.status == -1 {
		t.Errorf("%s: %s", what, r.said())
		return
	}
	if len(codes) > 0 && !slices.Contains(codes, r.code()) {
		t.Errorf("%s: want code %v: %s", what, codes, r.said())
	}
}

// result is the output of ADD (SPEC section 5) in 0.3.0 and later.
type result struct {
	CNIVersion string `json:"cniVersion"`
	Interfaces []struct {
		Name    string `json:"name"`
		Mac     string `json:"mac"`
		Mtu     *int   `json:"mtu"`
		Sandbox string `json:"sandbox"`
	} `json:"interfaces"`
	IPs []struct {
		Version   *string      `json:"version"`
		Address   netip.Prefix `json:"address"`
		Gateway   string       `json:"gateway"`
		Interface *int         `json:"interface"`
	} `json:"ips"`
	Routes []resultRoute  `json:"routes"`
	DNS    map[string]any `json:"dns"`
}

type resultRoute struct {
	Dst      netip.Prefix `json:"dst"`
	GW       string       `json:"gw"`
	MTU      int          `json:"mtu"`
	AdvMSS   int          `json:"advmss"`
	Priority int          `json:"priority"`
	Table    *int         `json:"table"`
	Scope    *int         `json:"scope"`
}

func parseResult(b []byte) (r result, err error) {
	err = decodeOnly(b, &r)
	return r, err
}

// decodeOnly decodes standard output, which must be a single JSON value.
func decodeOnly(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w in %.300q", err, b)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("standard output has more than one JSON value: %.300q", b)
	}
	return nil
}

// addrs returns the addresses of the result.
func (r result) addrs() (out []netip.Addr) {
	for _, ip := range r.IPs {
		out = append(out, ip.Address.Addr().Unmap())
	}
	return out
}

// distinct fails if two of the results have an address in common.
func (t *T) distinct(results ...result) {
	seen := map[netip.Addr]bool{}
	for _, r := range results {
		for _, a := range r.addrs() {
			if seen[a] {
				t.Errorf("%s is given twice", a)
			}
			seen[a] = true
		}
	}
}

// hostLinks returns the interfaces outside of the pod.
func (r result) hostLinks() (out []string) {
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			out = append(out, i.Name)
		}
	}
	return out
}
