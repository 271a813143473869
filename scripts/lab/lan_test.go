package lab_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	stories = "../../testdata/lan"
	// waitLimit bounds every `until` that does not say otherwise. A story says 10 s where a change must be
	// seen at once, and not at the daemon's next look, which is every 30 s.
	waitLimit = 60 * time.Second
	// storyPing is the interval of `traffic`.
	storyPing = 20 * time.Millisecond
)

// bin is the directory of the programs under test: what `make build` left, unless said otherwise.
func bin() string { return cmp.Or(os.Getenv("EDGEWAY_BIN"), "../../bin") }

// atOnce is how many stories run at a time. They wait for timers of switches and daemons nearly all the
// time, so a machine with two processors runs more of them than go test's default.
const atOnce = "6"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", atOnce); err != nil { // before the flags are parsed: -parallel counts
		panic(err)
	}
	os.Exit(m.Run())
}

// TestLAN plays the stories of testdata/lan, each with BIRD and with FRR as the switches. OpenBGPD plays the stories
// in which the switch forwards no packet: it writes no routes to the kernel on Linux. The story openbgpd has it as
// a switch beside the others.
func TestLAN(t *testing.T) {
	need(t)
	needPrograms(t)
	play := func(flavour lab.Flavour, p testscript.Params) {
		p.Setup, p.Cmds = func(env *testscript.Env) error { return setup(env, flavour) }, commands()
		p.Condition = func(name string) (bool, error) {
			if name != "vlan" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return hasVLAN(), nil
		}
		t.Run(string(flavour), func(t *testing.T) {
			lab.Need(t, lab.Tools(flavour)...)
			t.Parallel()
			testscript.Run(t, p)
		})
	}
	for _, flavour := range flavours {
		play(flavour, testscript.Params{Dir: stories})
	}
	play(lab.OpenBGPD, testscript.Params{Files: []string{stories + "/stale-speaker.txtar"}})
}

// hasVLAN reports whether the kernel has VLAN links. It loads its module where there is one.
func hasVLAN() bool {
	ns, err := lab.NewSpace("")
	if err != nil {
		return false
	}
	defer ns.Close()
	return ns.Do(func() error {
		return exec.Command("sh", "-c", "ip link add x1 type veth peer name x2 && ip link add link x1 name x1.1 type vlan id 1").Run()
	}) == nil
}

// needPrograms skips a test without programs to test, and removes what an interrupted run left.
func needPrograms(t *testing.T) {
	t.Helper()
	for _, name := range []string{"edgeway", "edgewayd"} {
		if _, err := os.Stat(filepath.Join(bin(), name)); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%v; run make build", err)
			}
			t.Skipf("%v; run make build", err)
		}
	}
	if gone, err := lab.Sweep(); err != nil {
		t.Fatal(err)
	} else if len(gone) > 0 {
		t.Logf("removed what an interrupted run left: %v", gone)
	}
}

// story is the state that the commands of one script share.
type story struct {
	ctx      context.Context
	lab      *lab.Lab
	flavour  lab.Flavour
	work     string // the script's directory
	flows    []*lab.Flow
	streams  []*lab.Stream
	monitors []*lab.Monitor
	control  *kube.ControlPlane      // nil until `kube start`
	proxies  map[string]*lab.Process // kube-proxy, by node
	mirrors  []*lab.Mirror
}

type storyKey struct{}

func setup(env *testscript.Env, flavour lab.Flavour) error {
	ctx, cancel := context.WithCancel(context.Background())
	s := &story{ctx: ctx, flavour: flavour, work: env.WorkDir, proxies: map[string]*lab.Process{}}
	env.Values[storyKey{}] = s
	env.Defer(func() {
		cancel()
		for _, m := range s.mirrors {
			m.Close()
		}
		if s.control != nil {
			if err := s.control.Close(); err != nil {
				env.T().Log(err)
			}
		}
		if s.lab == nil {
			return
		}
		if t, ok := env.T().(interface{ Failed() bool }); ok && t.Failed() {
			for _, n := range s.lab.Nodes() {
				env.T().Log(fmt.Sprintf("%s: end of its log:\n%s", n.Name, lab.Tail(n.Log(), 12)))
			}
		}
		if err := s.lab.Close(); err != nil {
			env.T().Log(err)
		}
	})
	return nil
}

// file is a path of the script's directory.
func (s *story) file(name string) string { return filepath.Join(s.work, name) }
