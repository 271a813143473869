package lab_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// peaceful is a story whose laboratory is at peace: two LANs, in one of them nodes behind a tunnel, both families.
const peaceful = stories + "/paths.txtar"

// TestPeace watches nodes on which nothing is wrong, for as long as EDGEWAY_PEACE says, while pods come and go, a firewall
// is reloaded and a daemon restarts. It fails on any problem: an alarm without a fault makes people deaf. make peace runs it.
func TestPeace(t *testing.T) {
	text := os.Getenv("EDGEWAY_PEACE")
	if text == "" {
		t.Skip("EDGEWAY_PEACE is not set; run make peace")
	}
	lasts, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	lab.Need(t, append(lab.Tools(lab.BIRD), "iptables-restore")...)
	needPrograms(t)
	ctx := t.Context()
	l := peace(t, strings.NewReplacer("every: 1s", "every: 10s", `firewall: "off", `, ""))
	nodes := l.Nodes()
	names := slices.Sorted(maps.Keys(nodes))
	rules, err := filepath.Abs("testdata/docker.rules")
	if err != nil {
		t.Fatal(err)
	}
	docker := nodes["Node-3"]
	if _, err := docker.Run(ctx, "iptables-restore", rules); err != nil {
		t.Fatal(err)
	}
	// A speaker that also receives the tunnel's packets accepts nothing of it all by itself, not even answers.
	strict := "for chain in INPUT OUTPUT; do iptables -P $chain DROP; done; iptables -A INPUT -i lo -j ACCEPT; iptables -A OUTPUT -o lo -j ACCEPT"
	if _, err := nodes["Node-4"].Run(ctx, "sh", "-ec", strict); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := nodes[name].Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, l)
	appeared := map[string]string{}
	note := func(name string) error {
		s, err := nodes[name].Status(ctx)
		if err == nil {
			appeared[name] = fmt.Sprint(s.Appeared)
		}
		return err
	}
	for _, name := range names {
		if err := note(name); err != nil {
			t.Fatal(err)
		}
	}
	deadline, round := time.Now().Add(lasts), 0
	for ; time.Now().Before(deadline); round++ {
		for _, name := range names {
			s, err := nodes[name].Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range s.Problems {
				t.Errorf("%s in round %d: %+v", name, round, p)
			}
			if now := fmt.Sprint(s.Appeared); now != appeared[name] {
				t.Errorf("%s in round %d: appeared %s, before %s", name, round, now, appeared[name])
				appeared[name] = now
			}
		}
		at := nodes[names[round%len(names)]]
		pod, err := at.AddPod(ctx, "default", fmt.Sprintf("pod-%d", round))
		if err != nil {
			t.Fatal(err)
		}
		if err := calm(ctx, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if err := pod.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		if round%20 == 19 { // a daemon restarts; it counts anew
			if err := at.Terminate(); err != nil {
				t.Fatal(err)
			}
			if err := at.Start(ctx); err != nil {
				t.Fatal(err)
			}
			quiet(t, l)
			if err := note(at.Name); err != nil {
				t.Fatal(err)
			}
			t.Logf("round %d: %s restarted; appeared since: %s", round, at.Name, appeared[at.Name])
		}
	}
	t.Logf("%d rounds in %v: appeared %v", round, lasts, appeared)
}

// calm lets time pass: peace is a time in which nothing happens.
func calm(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// peace builds the laboratory of the peaceful story, with BIRD and FRR as switches. The replacer changes its topology.
func peace(t *testing.T, change *strings.Replacer) *lab.Lab {
	t.Helper()
	ctx := t.Context()
	story, err := txtar.ParseFile(peaceful)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Options{Bin: bin()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range story.Files {
		switch {
		case f.Name == "lab.yaml":
			topology, err := lab.ParseTopology([]byte(change.Replace(string(f.Data))))
			if err != nil {
				t.Fatal(err)
			}
			for i := range topology.Switches {
				topology.Switches[i].Flavour = []lab.Flavour{lab.BIRD, lab.FRR}[i%2]
			}
			if err := l.Build(ctx, topology); err != nil {
				t.Fatal(err)
			}
		case strings.HasPrefix(f.Name, "cluster/"):
			if err := os.WriteFile(filepath.Join(l.ClusterDir, filepath.Base(f.Name)), f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

// quiet waits until no node has a problem and every canary is reached: switches and canaries take their time at the start.
func quiet(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := lab.Wait(t.Context(), 2*waitLimit, func() error {
		for name, n := range l.Nodes() {
			s, err := n.Status(t.Context())
			if err != nil {
				return err
			}
			if len(s.Problems) > 0 || s.Paths.Probed == 0 || s.Paths.Reached != s.Paths.Probed {
				return fmt.Errorf("%s: %v, %d of %d paths", name, s.Problems, s.Paths.Reached, s.Paths.Probed)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
