package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// command runs edgewayd with these arguments, and returns what it prints, its exit status, and its error.
func command(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	var text bytes.Buffer
	out := &output{Writer: &text}
	cmd := commandLine(out)
	cmd.SetErr(&text)
	cmd.SetArgs(args)
	status, err := out.statusOf(cmd.ExecuteContext(t.Context()))
	return text.String(), status, err
}

// `edgewayd statu` printed the help and exited 0.
func TestUnknownCommandIsAnErrorWithASuggestion(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"statu", `unknown command "statu" for "edgewayd"; did you mean status?`},
		{"foo", `unknown command "foo" for "edgewayd"; edgewayd --help lists the commands`},
		{"help foo", `unknown command "foo" for "edgewayd"`},
		{"help pln", `did you mean plan or run?`},
		{"ipam lst", `did you mean list?`},
		{"help ipam lst", `did you mean list?`},
		{"status extra", `unknown command "extra" for "edgewayd status"`},
		{"bundle", "received 0; usage: edgewayd bundle FILE.tar.gz"},
		{"ipam show", "received 0; usage: edgewayd ipam show WHAT"},
		{"completion foo", `unknown command "foo" for "edgewayd completion"; edgewayd completion --help lists the commands`},
		{"completion zhs", `did you mean zsh?`},
		{"plan", `required flag(s) "filename" not set; usage: edgewayd plan -f DIR|FILE`},
		{"switch-config -f x", `required flag(s) "vendor" not set; usage: edgewayd switch-config --vendor`},
		{"status -o xml", `-o "xml": want json or yaml or wide`},
	} {
		if _, status, err := command(t, strings.Fields(c.args)...); status != 1 || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: exit %d, %v; want %s", c.args, status, err, c.want)
		}
	}
	for _, args := range []string{"", "help", "help plan", "ipam", "--version", "completion", "completion zsh"} {
		if out, status, err := command(t, strings.Fields(args)...); status != 0 || err != nil || out == "" {
			t.Errorf("%q: exit %d, %v, %q", args, status, err, out)
		}
	}
}

// A path that never answered had a full size of 0 bytes and a round trip of 0.0 ms.
func TestPathThatNeverAnsweredHasNoRoundTrip(t *testing.T) {
	at := serve(t, map[string]any{"status": api.Status{Node: "n1", Paths: api.Paths{Canary: []string{"10.0.1.254"}, Probed: 2, Reached: 1, Asked: []api.Asked{
		{Node: "n2", Address: "10.0.2.254", Canary: api.Silent, FullSize: api.Unsure, Host: api.Silent, Sent: 9, Lost: 9},
		{Node: "n3", Address: "10.0.3.254", Canary: api.Answers, FullSize: api.Answers, FullBytes: 1500, Host: api.Answers, Seconds: 0.0004, Sent: 9, Mode: "underlay", Version: "v1"},
	}}}})
	out, _, err := command(t, append([]string{"paths"}, at...)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`n2 +10\.0\.2\.254 +silent +unsure +silent +- +9 of 9 +- +-\n`, `n3 +10\.0\.3\.254 +answers +answers \(1500 bytes\) +answers +0\.4 ms +0 of 9 +underlay +v1\n`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// serve answers on a socket as a daemon would, and returns the arguments that lead there.
func serve(t *testing.T, answers map[string]any) []string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- api.Serve(ctx, l, func(_ context.Context, req api.Request, _ *os.File) api.Reply {
			text, err := json.Marshal(answers[req.Op])
			if err != nil {
				return api.Reply{Error: err.Error()}
			}
			return api.Reply{Output: text}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return []string{"--socket", socket}
}

func TestViews(t *testing.T) {
	at := serve(t, map[string]any{"status": api.Status{Node: "n1", Problems: []api.Problem{{Object: "Node/n2", Reason: "noPodCIDR", Next: "give it one"}},
		Sessions: []api.Session{{Peer: "10.0.0.1", State: "Active"}}}, "ipam": api.LeaseList{Leases: []api.Lease{{Pod: "shop/till", Addrs: []string{"10.0.0.7"}}}, Pools: []api.PoolUsage{}, Remembered: []api.Remembered{}}})
	for _, c := range []struct {
		args   string
		status int
		want   []string
	}{
		{"status", 0, []string{"Node     n1", "Problems: 1", "next: give it one"}},
		{"status --exit-code", 3, nil},
		{"problems --exit-code", 3, []string{"Node/n2: noPodCIDR"}},
		{"routes", 0, []string{"Routes to other nodes: 0 of 0 installed"}},
		{"peers", 0, []string{"10.0.0.1  0"}},
		{"sessions -o wide", 0, []string{"10.0.0.1  0"}},
		{"status -o json", 0, []string{`"apiVersion": "cli.edgeway.io/v1"`, `"kind": "Status"`, `"routes": []`, `"learned": []`, `"podCIDRs": []`, `"advertised": []`}},
		{"routes -o json", 0, []string{`"kind": "RouteList"`, `"routes": []`, `"learned": []`}},
		{"ipam list -o json", 0, []string{`"apiVersion": "cli.edgeway.io/v1"`, `"kind": "LeaseList"`, `"pod": "shop/till"`}},
		{"ipam list -o yaml", 0, []string{"kind: LeaseList", "pod: shop/till"}},
		{"problems -o yaml --exit-code", 3, []string{"kind: ProblemList", "reason: noPodCIDR", "advice: []"}},
	} {
		out, status, err := command(t, append(strings.Fields(c.args), at...)...)
		if status != c.status || err != nil {
			t.Errorf("%s: exit %d, want %d: %v", c.args, status, c.status, err)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, out)
			}
		}
		if strings.Contains(out, ": null") || strings.ContainsAny(out, "\x01\x02\x03\x1b") {
			t.Errorf("%s: %q", c.args, out)
		}
	}
}

// Advice is shown like a problem, and is none: a check of --exit-code stays green.
func TestAdviceIsNoProblem(t *testing.T) {
	at := serve(t, map[string]any{"status": api.Status{Advice: []api.Problem{{Object: "BGPPeer/p", Reason: "singleSpeaker", Next: "name a second one"}}}})
	for _, args := range []string{"status --exit-code", "problems --exit-code", "problems -o json --exit-code"} {
		out, status, err := command(t, append(strings.Fields(args), at...)...)
		if status != 0 || err != nil || !strings.Contains(out, "singleSpeaker") || !strings.Contains(out, "name a second one") {
			t.Errorf("%s: exit %d, %v:\n%s", args, status, err, out)
		}
	}
}

// --watch shows the status again until it is interrupted, also while no daemon answers.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out lines
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"status", "--watch", "--socket", filepath.Join(t.TempDir(), "none")})
	out.at = func(n int) {
		if n == 2 {
			cancel()
		}
	}
	if err := cmd.ExecuteContext(ctx); err != nil || out.n < 2 {
		t.Errorf("%d answers, %v", out.n, err)
	}
}

// lines counts the answers that say that there is no daemon.
type lines struct {
	n  int
	at func(n int)
}

func (l *lines) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("no daemon answers")) {
		l.n++
		l.at(l.n)
	}
	return len(p), nil
}

// A full disk looked like a short answer, with exit status 0.
func TestFailedWriteIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"help"}, {"help", "status"}, {"completion"}, {"completion", "bash"}, append([]string{"status"}, serve(t, map[string]any{"status": api.Status{}})...)} {
		out := &output{Writer: full}
		cmd := commandLine(out)
		cmd.SetArgs(args)
		if status, err := out.statusOf(cmd.ExecuteContext(t.Context())); status != 1 || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v: exit %d, %v", args, status, err)
		}
	}
}

// "permission denied" advised to start the service.
func TestPermissionDeniedAdvisesRoot(t *testing.T) {
	err := unreachable(fmt.Errorf("%w on /run/x: %w", api.ErrNoDaemon, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}))
	if text := err.Error(); !strings.Contains(text, "run it as root") || strings.Contains(text, "systemctl") {
		t.Error(text)
	}
}

// A frozen daemon was "went away before its reply", without a next step.
func TestFrozenDaemonHasANextStep(t *testing.T) {
	if text := unreachable(fmt.Errorf("status: %w", api.ErrBroken)).Error(); !strings.Contains(text, "systemctl restart edgewayd") {
		t.Error(text)
	}
}

// On a terminal lines are wrapped and coloured; NO_COLOR and pipes get plain text.
func TestScreen(t *testing.T) {
	terminal := pty(t, 50)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	s := newScreen(&output{Writer: terminal}, false)
	if s.width != 50 || !s.colour || !s.terminal() {
		t.Errorf("%+v", s)
	}
	t.Setenv("NO_COLOR", "1")
	if s := newScreen(terminal, true); s.width != 0 || s.colour {
		t.Errorf("wide, NO_COLOR: %+v", s)
	}
	s.out = nil
	got := s.fit("      next: start the daemon of the other node and look again" + markBad)
	want := "\x1b[31m      next: start the daemon of the other node and\x1b[0m\n\x1b[31m          look again\x1b[0m\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, line := range []string{"", "short", strings.Repeat("x", 120), strings.Repeat("wörd ", 30)} {
		for _, part := range strings.Split(s.fit(line), "\n") {
			if n := len([]rune(part)); n > 50 {
				t.Errorf("%q: %d characters", part, n)
			}
		}
	}
	if got := newScreen(&bytes.Buffer{}, false).fit("a" + markGood); got != "a\n" {
		t.Errorf("not a terminal: %q", got)
	}
}

// pty returns a terminal of that width.
func pty(t *testing.T, width uint16) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: 24}); err != nil {
		t.Skip(err)
	}
	return f
}
