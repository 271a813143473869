package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// asProgram in the environment makes the test binary the program.
const asProgram = "CNI_CONFORMANCE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || filepath.Base(os.Args[0]) == fakeIPAM {
		os.Exit(run(os.Args))
	}
	os.Exit(m.Run())
}

// edgeway meets every requirement, MUST, SHOULD and ROBUST.
func TestEdgewayConforms(t *testing.T) {
	if testing.Short() {
		t.Skip("kernel test")
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("kernel tests need root")
		}
		t.Skip("kernel tests need root")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "edgeway"), "../../plugin/edgeway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	cmd := exec.Command(os.Args[0], "--conflist", "testdata/edgeway.conflist", "--cni-path", bin, "--strict", "-o", "json")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s%s", err, stdout.String(), stderr.String())
	}
	for _, c := range r.Checks {
		if c.Status == "fail" {
			t.Errorf("%s %s: %s: %s", c.Level, c.ID, c.Asks, c.Seen)
		}
		if c.Status == "skip" && !mayBeSkipped(c.ID) {
			t.Errorf("%s is skipped: %s", c.ID, c.Seen)
		}
	}
	if len(r.Checks) < len(allChecks()) {
		t.Errorf("%d outcomes of %d checks", len(r.Checks), len(allChecks()))
	}
}

// mayBeSkipped are checks that do not apply to a list of one plugin, to a plugin without a daemon, or to a
// machine without strace.
func mayBeSkipped(id string) bool {
	return id == "chain.result-passes" || id == "daemon.hangs" || strings.HasPrefix(id, "kill.syscalls")
}

func TestChecksAreWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range allChecks() {
		if seen[c.id] {
			t.Errorf("%s is there twice", c.id)
		}
		seen[c.id] = true
		if !strings.Contains(c.id, ".") || c.asks == "" || c.section == "" || c.run == nil {
			t.Errorf("%s: incomplete", c.id)
		}
		if !slices.Contains([]level{must, should, robust}, c.level) {
			t.Errorf("%s: level %q", c.id, c.level)
		}
		if c.since != "" && !slices.Contains(known(), c.since) {
			t.Errorf("%s: since %q", c.id, c.since)
		}
	}
}

func TestSmallPool(t *testing.T) {
	n := network{plugins: []object{{"type": "x", "ipam": object{"ranges": []any{
		[]any{object{"subnet": "10.88.0.0/24"}}, []any{object{"subnet": "fd00:88::/64"}},
	}}}}}
	for _, tt := range []struct {
		size, number int
		want         []string
	}{
		{2, 0, []string{"10.88.0.10", "10.88.0.11", "fd00:88::a", "fd00:88::b"}},
		{4, 3, []string{"10.88.0.58", "10.88.0.61", "fd00:88::3a", "fd00:88::3d"}},
		{1, 15, []string{"10.88.0.10", "10.88.0.10", "fd00:88::fa", "fd00:88::fa"}}, // a /24 has 15 slots
	} {
		var got []string
		for _, set := range n.small(tt.size, tt.number).plugins[0]["ipam"].(object)["ranges"].([]any) {
			r := set.([]any)[0].(object)
			got = append(got, r["rangeStart"].(string), r["rangeEnd"].(string))
		}
		if diff := cmp.Diff(got, tt.want); diff != "" {
			t.Errorf("%d addresses, number %d (-got +want):\n%s", tt.size, tt.number, diff)
		}
	}
}

func TestOffset(t *testing.T) {
	for _, tt := range []struct {
		addr string
		by   int
		want string
	}{{"10.0.0.255", 1, "10.0.1.0"}, {"10.0.255.250", 16, "10.1.0.10"}, {"fd00::ffff", 1, "fd00::1:0"}} {
		if got := offset(netip.MustParseAddr(tt.addr), tt.by); got.String() != tt.want {
			t.Errorf("%s + %d = %s, want %s", tt.addr, tt.by, got, tt.want)
		}
	}
}

// A request has what section 3 inserts, lacks what it forbids, and leaves the rest alone.
func TestRequest(t *testing.T) {
	n := network{name: "net", version: "1.1.0", plugins: []object{{"type": "x", "capabilities": object{"ips": true}, "keyA": []any{"a"}}}}
	for _, tt := range []struct {
		extra object
		want  string
	}{
		{nil, `{"cniVersion":"1.1.0","keyA":["a"],"name":"net","type":"x"}`},
		{object{"prevResult": object{}}, `{"cniVersion":"1.1.0","keyA":["a"],"name":"net","prevResult":{},"type":"x"}`},
		{object{"name": nil}, `{"cniVersion":"1.1.0","keyA":["a"],"type":"x"}`},
	} {
		if diff := cmp.Diff(string(n.request(0, tt.extra)), tt.want); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct{ args, err string }{
		{"--conflist x.conflist", ""},
		{"--list", ""},
		{"", "no configuration"},
		{"--conflist x -o xml", "want text or json"},
		{"--conflist x --host-netns other", "want fresh or current"},
		{"--conflist x --run (", "missing closing"},
		{"--conflist x --parallel 0", "want 1 or more"},
		{"--conflist x y", "all options are flags"},
	} {
		_, err := parseFlags(strings.Fields(tt.args))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %v, want %q", tt.args, err, tt.err)
		}
	}
}

// The exit status says whether the MUST passed; --strict counts SHOULD.
func TestExitStatus(t *testing.T) {
	for _, tt := range []struct {
		failed level
		strict bool
		want   int
	}{{must, false, statusFail}, {should, false, statusPass}, {should, true, statusFail}, {robust, true, statusPass}} {
		r := &report{Totals: map[level]levelTotals{}}
		r.add(outcome{ID: "x", Level: tt.failed, Status: "fail"})
		if got := r.print(&bytes.Buffer{}, options{strict: tt.strict}); got != tt.want {
			t.Errorf("%s failed, strict %v: status %d, want %d", tt.failed, tt.strict, got, tt.want)
		}
	}
}
