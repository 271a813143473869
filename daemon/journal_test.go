package daemon

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func TestJournal(t *testing.T) {
	var log strings.Builder
	j := newJournal(slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Unix(0, 0)
	overlap := cluster.Problem{Object: "Node/a", Reason: cluster.Overlap, Want: "a CIDR", Got: "another", Next: "change it"}
	look := func(after time.Duration, problems ...cluster.Problem) (lines []string) {
		t.Helper()
		log.Reset()
		now = now.Add(after)
		j.note(problems, now)
		for line := range strings.Lines(log.String()) {
			lines = append(lines, line)
		}
		return lines
	}
	says := func(lines []string, want ...string) {
		t.Helper()
		if len(lines) != len(want) {
			t.Fatalf("got %q, want %q", lines, want)
		}
		for i := range want {
			if !strings.Contains(lines[i], want[i]) {
				t.Errorf("line %q, want %q", lines[i], want[i])
			}
		}
	}
	says(look(0))
	says(look(time.Second, overlap, overlap), `level=WARN msg=problem object=Node/a reason=overlap want="a CIDR" got=another next="change it"`)
	changed := overlap
	changed.Got = "a third"
	says(look(time.Second, changed))
	says(look(time.Minute), `level=INFO msg="problem is gone" object=Node/a reason=overlap lasted=1m1s`)
	// It comes and goes: a line each minute, and all of it is counted.
	says(look(time.Minute, overlap), "msg=problem")
	says(look(time.Second), "problem is gone")
	for range 5 {
		says(look(time.Second, overlap))
		says(look(time.Second))
	}
	says(look(time.Minute, overlap), "msg=problem")
	if n := j.appearances()[cluster.Overlap]; n != 8 {
		t.Errorf("%d appearances, want 8", n)
	}
	// One that stays, but was not logged when it came, is logged once it has been quiet.
	says(look(time.Second), "problem is gone")
	says(look(time.Second, overlap))
	says(look(time.Minute, overlap), "msg=problem")
	// Advice is no warning; failures of parts have lines of their own.
	says(look(time.Second, overlap, cluster.Problem{Object: "BGPPeer/p", Reason: cluster.SingleSpeaker}, cluster.Problem{Object: "edgewayd", Reason: cluster.ClusterUnreadable}), "level=INFO msg=advice")
	var many []cluster.Problem
	for i := range 5000 {
		many = append(many, cluster.Problem{Object: fmt.Sprint("Node/", i), Reason: cluster.NoRouteToLAN})
	}
	if lines := look(time.Second, many...); len(lines) != journalMost+1 || !strings.Contains(lines[journalMost], "--all") {
		t.Errorf("%d lines", len(lines))
	}
	look(time.Hour)
	if look(time.Hour); len(j.known) > 0 {
		t.Errorf("%d problems are remembered", len(j.known))
	}
}
