package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// level says how binding a requirement is.
type level string

const (
	must   level = "MUST"
	should level = "SHOULD"
	// robust: the specification leaves it open, but runtimes or users need it.
	robust level = "ROBUST"
)

// need is a precondition of a check. Without it the check is skipped.
type need uint

const (
	needRanges  need = 1 << iota // ipam with host-local's keys, so that the pool can be made small
	needState                    // @STATE@ in the configuration
	needFresh                    // a fresh host, and no daemon that would have to move to it
	needMasq                     // ipMasq is on
	needStrace                   // strace(1) is installed
	needPrivate                  // a mount namespace of our own
	needDaemon                   // --daemon
)

// check is one requirement.
type check struct {
	id      string
	level   level
	section string // section of SPEC 1.1.0; CONV: CONVENTIONS; "-": neither
	asks    string // the requirement, in one line
	since   string // the first protocol version that has the requirement
	each    bool   // runs in each protocol version
	alone   bool   // runs without others, because it measures time or changes the boot ID
	idle    bool   // only waits: starts first, and runs beside all others
	needs   need
	run     func(t *T)
}

func allChecks() []check {
	return slices.Concat(versionChecks(), envChecks(), errorChecks(), confChecks(), resultChecks(), addChecks(), chainChecks(),
		delChecks(), checkChecks(), gcChecks(), statusChecks(), delegateChecks(), routeChecks(), libcniChecks(), poolChecks(),
		concurrencyChecks(), hostChecks(), hostileChecks(), killChecks(), rebootChecks(), stateChecks(), otherChecks())
}

// outcome is the result of one check in one version.
type outcome struct {
	ID      string  `json:"id"`
	Level   level   `json:"level"`
	Section string  `json:"section"`
	Asks    string  `json:"asks"`
	Status  string  `json:"status"` // pass, fail, skip
	Seen    string  `json:"seen,omitempty"`
	Seconds float64 `json:"seconds"`
}

// T is one running check. The methods that end the check work at any call depth. T is not testing.T, which
// has no levels, no order of parallel tests, and no record of observations.
type T struct {
	*bench
	net     network // the configuration of this check
	host    *space
	outside *space // beyond the host's uplink
	dir     string // directory of this check
	state   string // the directory that replaced @STATE@, or ""
	seq     int    // number of the check in this run
	pods    int
	edit    func(c *call) // changes each call of the check; nil: no change
	failed  []string
	skipped string
	noted   []string
	cleanup []func()
}

// Errorf records a failure; the check continues.
func (t *T) Errorf(format string, args ...any) {
	t.failed = append(t.failed, fmt.Sprintf(format, args...))
}

// Fatalf records a failure and ends the check.
func (t *T) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// Skipf ends the check as not applicable.
func (t *T) Skipf(format string, args ...any) {
	t.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// Notef adds to the printed line of a check that passes.
func (t *T) Notef(format string, args ...any) {
	t.noted = append(t.noted, fmt.Sprintf(format, args...))
}

// OK ends the check if err is not nil; what names the attempt.
func (t *T) OK(err error, what string) {
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Cleanup runs f after the check. The last f runs first.
func (t *T) Cleanup(f func()) { t.cleanup = append(t.cleanup, f) }

// protected runs f on a goroutine that f can end early, and catches panics.
func (t *T) protected(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("the harness panics: %v: %s", p, strings.ReplaceAll(string(debug.Stack()), "\n", " | "))
			}
		}()
		f()
	}()
	<-done
}

// do runs the check and returns its outcome.
func (t *T) do(c check, id string) outcome {
	start := time.Now()
	t.protected(func() { c.run(t) })
	for _, f := range slices.Backward(t.cleanup) {
		t.protected(f)
	}
	out := outcome{ID: id, Level: c.level, Section: c.section, Asks: c.asks, Status: "pass", Seconds: time.Since(start).Seconds()}
	switch {
	case len(t.failed) > 0:
		out.Status, out.Seen = "fail", strings.Join(t.failed, "; ")
	case t.skipped != "":
		out.Status, out.Seen = "skip", t.skipped
	default:
		out.Seen = strings.Join(t.noted, "; ")
	}
	return out
}
