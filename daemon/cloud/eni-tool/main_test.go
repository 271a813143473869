package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/ens"
)

// asTool in the environment has the test's own program run as eni-tool, which can be killed as no goroutine can.
const asTool = "EDGEWAY_TEST_ENI_TOOL"

func hurry() pace { return pace{poll: time.Millisecond, start: time.Minute} }

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		os.Exit(run(context.Background(), os.Args[1:], output{os.Stdout, os.Stderr}, hurry()))
	}
	os.Exit(m.Run())
}

const secret = "very-secret-word"

// lab is a cloud with the instance i-1, which has no secondary interface yet.
type lab struct {
	*ens.Cloud
	t    *testing.T
	args []string
}

func newLab(t *testing.T, args ...string) *lab {
	t.Helper()
	l := &lab{Cloud: ens.New(), t: t}
	l.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	l.AddGroup("sg-1")
	l.AddInstance("i-1", "vsw-1", "sg-1")
	l.AddInstance("i-2", "vsw-1", "sg-1")
	l.AddKey(ens.Key{ID: "AKID", Secret: secret, Actions: []string{"ens:DescribeInstances", "ens:DescribeNetworkInterfaces",
		"ens:CreateNetworkInterface", "ens:AttachNetworkInterface", "ens:StopInstance", "ens:StartInstance"}})
	server := httptest.NewServer(l.Cloud)
	t.Cleanup(server.Close)
	t.Cleanup(l.Cloud.Close)
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, fmt.Appendf(nil, `{"AccessKey": "AKID", "SecretKey": %q}`, secret), 0o600); err != nil {
		t.Fatal(err)
	}
	l.args = append([]string{"--profile", profile, "--instance", "i-1", "--endpoint", server.URL}, args...)
	return l
}

// run runs the tool in this process, and returns its exit status and its output.
func (l *lab) run(ctx context.Context, args ...string) (int, string) {
	l.t.Helper()
	var out bytes.Buffer
	code := run(ctx, append(slices.Clone(l.args), args...), output{&out, &out}, hurry())
	if strings.Contains(out.String(), secret) {
		l.t.Errorf("the output shows the secret:\n%s", &out)
	}
	return code, out.String()
}

// changes are the calls that change something.
func (l *lab) changes() (out []string) {
	for _, c := range l.Calls() {
		if !strings.HasPrefix(c.Action, "Describe") {
			out = append(out, strings.TrimSpace(c.Action+" "+c.Code))
		}
	}
	return out
}

// bound checks the end: the instance runs with so many secondary interfaces, and no interface is left over.
func (l *lab) bound(what string, want int) {
	l.t.Helper()
	if s := l.Status("i-1"); s != ens.Running {
		l.t.Errorf("%s: the instance is %s", what, s)
	}
	if n := len(l.Interfaces("i-1")); n != want+1 {
		l.t.Errorf("%s: the instance has %d interfaces, want %d and the primary", what, n, want)
	}
	for _, n := range l.Interfaces("") {
		l.t.Errorf("%s: %s (%s) is left over", what, n.ID, n.Name)
	}
}

// The seed's command line: two interfaces are made and bound, and a second run changes nothing.
func TestBind(t *testing.T) {
	l := newLab(t)
	code, out := l.run(t.Context())
	if code != exitOK || !strings.Contains(out, "maxPods: 50 + host-network pods") || !strings.Contains(out, "i-1: Running, 0 of 2 secondary interfaces") {
		t.Errorf("exit %d:\n%s", code, out)
	}
	l.bound("first run", 2)
	want := "[CreateNetworkInterface CreateNetworkInterface StopInstance AttachNetworkInterface AttachNetworkInterface StartInstance]"
	if got := fmt.Sprint(l.changes()); got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
	if code, out := l.run(t.Context()); code != exitOK || len(l.changes()) != 6 || !strings.Contains(out, "2 of 2") {
		t.Errorf("second run: exit %d, calls %v:\n%s", code, l.changes(), out)
	}
	if code, _ := l.run(t.Context(), "--eniNumber", "3"); code != exitOK {
		t.Errorf("one more: exit %d", code)
	}
	l.bound("one more", 3)
	for _, n := range l.Interfaces("i-1")[1:] {
		if !strings.HasPrefix(n.Name, "edgeway-i-1-") || n.Group != "sg-1" || n.VSwitch != "vsw-1" {
			t.Errorf("got %+v", n)
		}
	}
}

// Each interface after the first was created eight seconds after a list had shown the one before.
func TestNextInterfaceIsCreatedAtOnce(t *testing.T) {
	l := newLab(t, "--eniNumber", "3")
	if code, out := l.run(t.Context()); code != exitOK {
		t.Errorf("exit %d:\n%s", code, out)
	}
	var looks []int // before each creation
	n := 0
	for _, c := range l.Calls() {
		if n++; c.Action == "CreateNetworkInterface" {
			looks, n = append(looks, n-1), 0
		}
	}
	if want := []int{3, 1, 1}; !slices.Equal(looks, want) {
		t.Errorf("calls before each creation: %v, want %v", looks, want)
	}
}

// --dry-run says what would be done and makes no call that changes something.
func TestDryRun(t *testing.T) {
	l := newLab(t, "--dry-run")
	code, out := l.run(t.Context())
	if code != exitOK || len(l.changes()) > 0 || strings.Count(out, "would create") != 2 || !strings.Contains(out, "would stop i-1") || !strings.Contains(out, "would start i-1") {
		t.Errorf("exit %d, calls %v:\n%s", code, l.changes(), out)
	}
}

func TestUsage(t *testing.T) {
	l := newLab(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--eniNumber", "10"}, "want 1 to 9"},
		{[]string{"--eniNumber", "0"}, "want 1 to 9"},
		{[]string{"--instance", ""}, "--instance: want"},
		{[]string{"i-1"}, "want flags only"},
		{[]string{"--accesskey", "x"}, "not defined: -accesskey"},
		{[]string{"--endpoint", "ftp://x"}, "endpoint"},
		{[]string{"--profile", "/does/not/exist"}, "or --profile"},
		{[]string{"--accessKey", "x"}, "want an access key and its secret"},
	} {
		if code, out := l.run(t.Context(), test.args...); code != exitUsage || !strings.Contains(out, test.want) {
			t.Errorf("%v: exit %d, want %d and %q:\n%s", test.args, code, exitUsage, test.want, out)
		}
	}
	if len(l.Calls()) > 0 {
		t.Errorf("calls %v", l.Calls())
	}
	if code, out := l.run(t.Context(), "--accessKey", "AKID", "--secretKey", secret, "--dry-run"); code != exitOK || !strings.Contains(out, "warning: other users") {
		t.Errorf("key by flags: exit %d:\n%s", code, out)
	}
	if code, out := l.run(t.Context(), "--instance", "i-3"); code != exitFailed || !strings.Contains(out, "check --instance and --region") {
		t.Errorf("no such instance: exit %d:\n%s", code, out)
	}
	if code, out := l.run(t.Context(), "--help"); code != exitOK || !strings.Contains(out, "(default ap-southeast-1)") {
		t.Errorf("--help: exit %d:\n%s", code, out)
	}
}

// An error while the instance is down: the instance is started again, and the next run goes on.
func TestErrorWhileDown(t *testing.T) {
	l := newLab(t)
	attaches := 0
	l.SetFaults(func(c ens.Call) ens.Fault {
		if c.Action == "AttachNetworkInterface" {
			if attaches++; attaches > 1 {
				return ens.Fault{Code: "NoPermission"}
			}
		}
		return ens.Fault{}
	})
	code, out := l.run(t.Context())
	if code != exitFailed || l.Status("i-1") != ens.Running || !strings.Contains(out, "ens:AttachNetworkInterface") || !strings.Contains(out, "Available") {
		t.Errorf("exit %d, instance %s:\n%s", code, l.Status("i-1"), out)
	}
	l.SetFaults(nil)
	if code, out := l.run(t.Context()); code != exitOK {
		t.Errorf("exit %d:\n%s", code, out)
	}
	l.bound("next run", 2)
}

// A vSwitch without addresses stops the run before the instance is stopped.
func TestVSwitchEmpty(t *testing.T) {
	l := newLab(t)
	l.Limit("vsw-1", 1)
	if code, out := l.run(t.Context()); code != exitFailed || !strings.Contains(out, "IpNotEnough") || slices.Contains(l.changes(), "StopInstance") {
		t.Errorf("exit %d, calls %v:\n%s", code, l.changes(), out)
	}
	l.Limit("vsw-1", 5)
	if code, out := l.run(t.Context()); code != exitOK {
		t.Errorf("exit %d:\n%s", code, out)
	}
	l.bound("next run", 2)
}

// at counts calls and does something at one of them.
func (l *lab) at(call int, f func() ens.Fault) {
	n := 0
	l.SetFaults(func(ens.Call) ens.Fault {
		if n++; n == call {
			return f()
		}
		return ens.Fault{}
	})
}

// everyCall calls f for each call of a run without faults, several at once.
func everyCall(t *testing.T, f func(t *testing.T, l *lab, call int)) {
	l := newLab(t)
	if code, out := l.run(t.Context()); code != exitOK {
		t.Fatalf("exit %d:\n%s", code, out)
	}
	next := make(chan int)
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for call := range next {
				f(t, newLab(t), call)
			}
		})
	}
	for call := range len(l.Calls()) {
		next <- call + 1
	}
	close(next)
	wait.Wait()
}

// A fault at any call changes nothing in the end: an answer is lost, the cloud throttles, is away, shows an old list.
func TestFaultAtEachCall(t *testing.T) {
	for name, fault := range map[string]ens.Fault{
		"lost": {Lose: true}, "broken": {Break: true}, "throttled": {Code: "Throttling.User"}, "unavailable": {Status: 503}, "stale": {Stale: 1}, "very stale": {Stale: 4},
	} {
		everyCall(t, func(t *testing.T, l *lab, call int) {
			l.at(call, func() ens.Fault { return fault })
			code, out := l.run(t.Context())
			what := fmt.Sprintf("%s at call %d", name, call)
			if code != exitOK {
				t.Errorf("%s: exit %d:\n%s", what, code, out)
			}
			l.bound(what, 2)
		})
	}
}

// Ctrl-C at any call: the instance runs in the end, and the next run finishes.
func TestCtrlCAtEachCall(t *testing.T) {
	everyCall(t, func(t *testing.T, l *lab, call int) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.at(call, func() ens.Fault { cancel(); return ens.Fault{} })
		_, out := l.run(ctx)
		if s := l.Status("i-1"); s != ens.Running {
			t.Errorf("Ctrl-C at call %d: the instance is %s:\n%s", call, s, out)
		}
		l.SetFaults(nil)
		if code, out := l.run(t.Context()); code != exitOK {
			t.Errorf("after Ctrl-C at call %d: exit %d:\n%s", call, code, out)
		}
		l.bound(fmt.Sprintf("after Ctrl-C at call %d", call), 2)
	})
}

// The program is killed at any call, whether the cloud still carries the call out or not: the next run finishes, and
// a third run changes nothing.
func TestKillAtEachCall(t *testing.T) {
	everyCall(t, func(t *testing.T, l *lab, call int) {
		for _, fault := range []ens.Fault{{Lose: true}, {Break: true}} {
			l := newLab(t)
			cmd := exec.Command(os.Args[0], l.args...)
			cmd.Env = append(os.Environ(), asTool+"=1")
			started := make(chan error, 1)
			l.at(call, func() ens.Fault {
				if <-started == nil {
					_ = cmd.Process.Kill() // it cannot have ended: it waits for the answer
				}
				return fault
			})
			started <- cmd.Start()
			if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
				t.Errorf("call %d: not killed: %v", call, err)
			}
			l.SetFaults(nil)
			what := fmt.Sprintf("killed at call %d, %+v", call, fault)
			if code, out := l.run(t.Context()); code != exitOK {
				t.Errorf("%s: next run: exit %d:\n%s", what, code, out)
			}
			l.bound(what, 2)
			before := len(l.changes())
			if code, _ := l.run(t.Context()); code != exitOK || len(l.changes()) != before {
				t.Errorf("%s: third run: exit %d, calls %v", what, code, l.changes()[before:])
			}
		}
	})
}
