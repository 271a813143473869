package daemon

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// journalMost bounds the lines of one look: a cluster of thousands of nodes can have thousands of problems at once.
	journalMost = 20
	// journalQuiet is the least time between two lines about the appearance of a problem: one that comes and goes all
	// day does not fill the log. It is counted each time.
	journalQuiet = time.Minute
)

// journal logs each problem when it appears and when it goes, and counts the appearances.
type journal struct {
	log   *slog.Logger
	known map[problemKey]entry

	mu     sync.Mutex // guards counts
	counts map[cluster.Reason]int
}

type problemKey struct {
	object string
	reason cluster.Reason
}

type entry struct {
	since time.Time // zero: it is gone
	said  time.Time // when its appearance was last logged
	open  bool      // the last line about it said that it appeared
}

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, known: map[problemKey]entry{}, counts: map[cluster.Reason]int{}}
}

// isSaid reports that another line of the log is about the problem: a failure of a part, or a pod that Keep found.
func isSaid(p cluster.Problem) bool {
	return p.Object == "edgewayd" || p.Object == "kernel" || p.Reason == cluster.PodBroken
}

// note takes all problems of one look. now is the time of the look.
func (j *journal) note(problems []cluster.Problem, now time.Time) {
	there, lines, left := map[problemKey]bool{}, 0, 0
	for _, p := range problems {
		key := problemKey{p.Object, p.Reason}
		if there[key] || isSaid(p) {
			continue
		}
		there[key] = true
		e := j.known[key]
		if e.since.IsZero() {
			e.since = now
			j.count(p.Reason)
		}
		if !e.open && (e.said.IsZero() || now.Sub(e.said) >= journalQuiet) {
			if lines++; lines > journalMost {
				left++
			} else {
				j.appeared(p)
			}
			e.open, e.said = true, now
		}
		j.known[key] = e
	}
	for key, e := range j.known {
		switch {
		case there[key]:
			continue
		case e.open:
			if lines++; lines > journalMost {
				left++
			} else {
				j.log.Info("problem is gone", "object", key.object, "reason", string(key.reason), "lasted", now.Sub(e.since).Round(time.Second))
			}
		}
		if e.since, e.open = (time.Time{}), false; now.Sub(e.said) >= journalQuiet {
			delete(j.known, key)
			continue
		}
		j.known[key] = e
	}
	if left > 0 {
		j.log.Warn("more problems appeared or went", "lines", left, "next", "edgewayd problems --all")
	}
}

func (j *journal) appeared(p cluster.Problem) {
	level, what := slog.LevelWarn, "problem"
	if p.Reason.IsAdvice() {
		level, what = slog.LevelInfo, "advice"
	}
	j.log.Log(context.Background(), level, what, "object", p.Object, "reason", string(p.Reason), "want", p.Want, "got", p.Got, "next", p.Next)
}

func (j *journal) count(r cluster.Reason) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[r]++
}

// appearances returns how often problems of each reason have appeared since the daemon started.
func (j *journal) appearances() map[cluster.Reason]int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.counts)
}
