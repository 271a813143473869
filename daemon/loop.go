package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/daemon/report"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	// resyncEvery bounds how long a difference stays when no event announces it.
	resyncEvery = 30 * time.Second
	// settle is the pause after a look. A burst of events costs one more look, not one look for each event. A
	// route that was changed by hand is back well within a second.
	settle = 100 * time.Millisecond
	// retryLeast and retryMost bound the wait after a look that could not do everything.
	retryLeast = time.Second
	retryMost  = 30 * time.Second
)

// trigger is a slot that holds at most one "look again". It carries no data: the look finds out what
// happened.
type trigger chan struct{}

func newTrigger() trigger { return make(trigger, 1) }

func (t trigger) fire() {
	select {
	case t <- struct{}{}:
	default:
	}
}

// kernel is routes.Kernel as the loop uses it.
type kernel interface {
	Host(ctx context.Context) (routes.Host, error)
	Ruled(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]routes.Way, error)
	ForeignRules(ctx context.Context) ([]routes.ForeignRule, error)
	Sync(ctx context.Context, scope routes.Scope, desired routes.State) ([]routes.Change, error)
}

// speaker is bgp.Speaker as the loop uses it.
type speaker interface {
	Sync(ctx context.Context, desired bgp.State) ([]bgp.Change, error)
	Status(ctx context.Context) []bgp.Status
	Learned(ctx context.Context) (paths []bgp.LearnedPath, complete bool)
}

// reporter is report.Reporter as the loop uses it.
type reporter interface {
	Sync(sessions []report.Session)
	Event(e report.Event)
	Tell(problems []cluster.Problem)
	Self(n report.Node)
	MaxPods() int
	Problems() []cluster.Problem
}

// podServer is pods.Pods as the loop uses it.
type podServer interface {
	Sync(ctx context.Context, plan policy.Plan) ([]cluster.Problem, error)
	Status(ctx context.Context) (api.Leases, []cluster.Problem)
	Held() policy.Held
}

// view holds what one look saw and decided, for status. It is never changed after publication.
type view struct {
	World    policy.World
	Survey   *policy.Survey // of World.Cluster; nil: the cluster or the machine is not known
	Plan     policy.Plan
	Problems []cluster.Problem // of the plan, and of applying it
}

// loop keeps the machine as the plan says. One goroutine runs the loop and owns all fields but the shared
// ones.
//
//	look ────┐
//	reread ──┼─> Host ─ source ─ policy.Admit ─ Learned ─ policy.Decide ─ Sync kernel, speaker ─ save ─ Sync pods
//	clock ───┘          └ only after reread ┘
type loop struct {
	config   config.Config
	source   cluster.Source
	kernel   kernel
	speaker  speaker
	reporter reporter // reports this node to the cluster; nil: there is no API server
	version  string   // of the daemon, for the reporter
	// annotations writes those of this node's Node; nil: there is no API server.
	annotations *report.Annotations
	pods        podServer
	proven      func() paths.Report // of the paths to other nodes' pods; nil: nobody asks
	save        func(cluster.World) error
	grant       func(uplink.Uplinks) error // writes uplink.File
	log         *slog.Logger
	turned      func(worked bool, took time.Duration) // called after each look
	shared

	last    cluster.World  // the World that counts; zero while known is false
	known   bool           // a source or the disk gave a World
	saved   bool           // last is on disk
	survey  *policy.Survey // of last; nil: not made yet
	granted uplink.Uplinks // in uplink.File
	// reserved are the addresses of uplinks that no pod gets, as the pool that was set last has them.
	reserved []netip.Prefix
	unread   error             // why the last read of the source failed
	found    []cluster.Problem // in the last read of the source
	said     map[string]bool   // the failures of the last look: a failure that stays is logged once

	announcer announcer
	journal   *journal
	held      map[sessionKey]time.Time // since when sessions are not tried
	removals  removals
}

// shared holds the fields of a loop that other goroutines use.
type shared struct {
	look, reread trigger
	harmed       trigger                  // a pod's link may lack something: pods.Keep looks
	firewall     trigger                  // a firewall changed: the guard looks
	seen         atomic.Pointer[view]     // the last look's view; nil before the first look
	lan          atomic.Pointer[lan]      // of the last round of probes; nil before the first round
	guarded      atomic.Pointer[guarding] // of the last look of the guard; nil before the first look
}

// newLoop returns a loop that knows nothing yet. The caller sets the source and the parts that the loop
// syncs.
func newLoop(c config.Config, log *slog.Logger) *loop {
	return &loop{
		config: c, log: log, announcer: announcer{log: log}, journal: newJournal(log),
		shared: shared{look: newTrigger(), reread: newTrigger(), harmed: newTrigger(), firewall: newTrigger()},
		save:   func(w cluster.World) error { return cluster.Save(c.WorldFile(), w) },
		grant:  func(u uplink.Uplinks) error { return saveUplinks(filepath.Join(c.StateDir, uplink.File), u) },
	}
}

func (l *loop) recall() (err error) {
	l.last, l.known, err = l.config.SavedWorld()
	l.saved = l.known
	return err
}

// run looks, then waits for a reason to look again, until ctx ends.
func (l *loop) run(ctx context.Context) {
	reread, retry := true, retryLeast
	for ctx.Err() == nil {
		wait, began := resyncEvery, time.Now()
		worked := l.once(ctx, reread)
		if worked {
			retry = retryLeast
		} else {
			wait, retry = retry, min(2*retry, retryMost)
		}
		l.turned(worked, time.Since(began))
		if !pause(ctx, settle) {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-l.look:
			reread = false
		case <-l.reread:
			reread = true
		case <-timer.C:
			reread = true
		}
		timer.Stop()
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// once looks, decides and applies. It reports whether everything worked; if not, the next look comes soon.
func (l *loop) once(ctx context.Context, reread bool) bool {
	o := outcome{said: map[string]bool{}}
	defer func() { l.said = o.said }()
	host, hostErr := l.kernel.Host(ctx)
	if reread && hostErr == nil {
		l.read(ctx, host)
	}
	l.failed(&o, cluster.ClusterUnreadable, l.unread, "the last known cluster state still applies; edgewayd reads it again on its own")
	w := policy.World{Cluster: l.last, Self: l.config.NodeName, Config: l.config, Host: host}
	if hostErr == nil {
		w.Host.Ruled, hostErr = l.kernel.Ruled(ctx, w.Asks())
	}
	if lan := l.lan.Load(); lan != nil {
		w.Silent, w.MACs = lan.silent, lan.macs
	}
	if g := l.guarded.Load(); g != nil {
		w.Barriers, w.Dead = g.barriers, g.dead
	}
	l.failed(&o, cluster.HostUnreadable, hostErr, "nothing was changed; edgewayd tries again on its own")
	if !l.known || hostErr != nil {
		// The cluster or the machine is not known, so the machine stays as it is.
		l.publish(view{World: w}, o)
		return false
	}
	complete := true // a node that learns nothing waits for no switch
	if len(l.config.BGP.Learn) > 0 {
		w.Learned, complete = l.speaker.Learned(ctx)
		w.LearnedAll = complete && !slices.ContainsFunc(l.speaker.Status(ctx), func(s bgp.Status) bool { return s.State != api.Established })
	}
	if w.Held.Granted = l.granted; w.Grants() {
		w.Held = l.pods.Held()
		w.Held.Granted = l.granted
		var err error
		w.Host.Foreign, err = l.kernel.ForeignRules(ctx)
		l.failed(&o, cluster.HostUnreadable, err, "edgewayd tries again on its own")
	}
	if l.survey == nil {
		l.survey = policy.NewSurvey(l.last)
	}
	plan := l.survey.Decide(w)
	o.problems = append(append(o.problems, plan.Problems...), l.last.Problems...)
	if l.proven != nil {
		o.paths = l.proven()
		o.problems = append(o.problems, o.paths.Problems...)
	}
	l.apply(ctx, plan, complete, &o)
	l.annotate(plan, &o)
	v := view{World: w, Survey: l.survey, Plan: plan}
	l.publish(v, o)
	if l.reporter != nil {
		l.reporter.Self(l.self(&v, o))
	}
	l.journal.note(slices.Concat(o.problems, l.found, o.ofPods), time.Now())
	return !o.again
}

// publish gives status what the look saw, what it decided and which parts failed.
func (l *loop) publish(v view, o outcome) {
	v.Problems = append(o.problems, l.found...)
	l.seen.Store(&v)
}

// apply makes the plan true: kernel, switches, pods. Each part is tried even if another part fails.
func (l *loop) apply(ctx context.Context, plan policy.Plan, heardAll bool, o *outcome) {
	l.writeGranted(plan.Uplinks, o)
	scope := policy.Scope()
	if g := l.guarded.Load(); g == nil || !g.judged {
		scope.Passages = nil // it is not known yet which rules in firewalls are needed: those that are there stay
	}
	changes, err := l.kernel.Sync(ctx, scope, plan.Routes)
	l.changed(o, changes, err)
	if err == nil || len(changes) > 0 {
		l.removals.note(plan.Routes.Rules, changes, time.Now())
	}
	o.problems = append(o.problems, l.removals.problems(l.config.NodeName, time.Now())...)
	l.learn(ctx, o, plan.Learned, heardAll)
	told, err := l.speaker.Sync(ctx, plan.BGP)
	var lines []line
	for _, c := range told {
		noun, _, _ := strings.Cut(c.Object, " ")
		one := line{kind: c.Op + " " + noun, text: func() string { return c.Op + " " + c.Object }}
		if c.Why != "" {
			one.attrs = []any{"why", c.Why}
		}
		lines = append(lines, one)
	}
	l.tell(lines)
	l.failed(o, cluster.SwitchNotTold, err, "edgewayd tries again on its own")
	l.keep(o)
	found, err := l.pods.Sync(ctx, plan)
	o.problems = append(o.problems, found...)
	l.failed(o, cluster.PodsNotServed, err, "running pods are not touched; edgewayd tries again on its own")
	if err == nil && len(plan.Uplinks.Interfaces) > 0 && !slices.Equal(plan.Pool.Reserved, l.reserved) {
		l.reserved = plan.Pool.Reserved
		l.look.fire() // what has just left the pool is confirmed in the next look
	}
	l.report(ctx, plan, o)
}

// keep saves the cluster state that counts: after the kernel and the switches have it, because the disk of an edge
// machine can take a second for the 6 MB of 20,000 nodes, and before a pod gets an address that depends on it.
func (l *loop) keep(o *outcome) {
	if l.saved {
		return
	}
	err := l.save(l.last)
	l.saved = err == nil
	l.failed(o, cluster.WorldNotSaved, err, "a reboot without the cluster would start from an older cluster state; check the disk of stateDir")
}

// writeGranted writes what a plugin without a daemon must know, before a pod can get an address of it. An address
// that leaves the pool in this look is in use until the next look.
func (l *loop) writeGranted(want uplink.Uplinks, o *outcome) {
	if want.Equal(l.granted) {
		return
	}
	err := l.grant(want)
	if err == nil {
		l.granted = want
		l.look.fire()
	}
	l.failed(o, cluster.PodsNotServed, err, "pods that start without edgewayd would get no rules for new addresses; check the disk of stateDir")
}

// learn makes the kernel's learned routes the desired routes. It deletes other learned routes only when the
// switches have announced everything: after a start, the kernel knows more than this process.
func (l *loop) learn(ctx context.Context, o *outcome, desired routes.State, heardAll bool) {
	scope := routes.Scope{}
	if heardAll {
		scope.Protocol = routes.ProtoLearned
	} else if len(desired.Routes) == 0 {
		return
	}
	changes, err := l.kernel.Sync(ctx, scope, desired)
	l.changed(o, changes, err)
}

// report announces the state of the sessions in the log and to the cluster, and tells the cluster all problems.
// The announcement of a session tells why it is down.
func (l *loop) report(ctx context.Context, plan policy.Plan, o *outcome) {
	status := l.speaker.Status(ctx)
	o.sessions = reports(plan, status)
	l.held = sinceHeld(l.held, o.sessions, time.Now())
	l.announcer.announce(o.sessions, time.Now())
	o.leases, o.ofPods = l.pods.Status(ctx)
	if l.reporter != nil {
		l.reporter.Sync(o.sessions)
		l.reporter.Tell(slices.Concat(o.problems, l.found, lacks(status), o.ofPods))
		o.problems = append(o.problems, l.reporter.Problems()...)
		o.ofSessions = slices.Concat(sessionProblems(status), lacks(status))
	}
}

// annotate lets the Node of this node say what other programs must find there. The links that it speaks of are there.
func (l *loop) annotate(plan policy.Plan, o *outcome) {
	if l.annotations == nil {
		return
	}
	if err := l.annotations.Sync(plan.Annotations); err != nil {
		l.log.Warn("annotations of this node", "err", err)
	}
	o.problems = append(o.problems, l.annotations.Problems()...)
}

type outcome struct {
	problems   []cluster.Problem
	ofPods     []cluster.Problem // status asks for them again
	ofSessions []cluster.Problem // the same
	sessions   []report.Session
	leases     api.Leases
	paths      paths.Report
	said       map[string]bool
	again      bool
}

// failed notes that a part failed: as a problem, and in the log unless it is already there.
func (l *loop) failed(o *outcome, reason cluster.Reason, err error, next string) {
	if err == nil {
		return
	}
	o.again = true
	o.problems = append(o.problems, cluster.Problem{Object: "edgewayd", Reason: reason, Got: err.Error(), Next: next})
	l.warn(o, string(reason), err)
}

func (l *loop) warn(o *outcome, what string, err error) {
	key := what + ": " + err.Error()
	if !l.said[key] && !o.said[key] {
		l.log.Warn(what, "err", err)
	}
	o.said[key] = true
}

// read reads the source. When the source cannot be read, the last World counts.
func (l *loop) read(ctx context.Context, host routes.Host) {
	next, err := l.source.World(ctx, l.last)
	if errors.Is(err, cluster.ErrNotRead) {
		return // the source calls changed once it has read
	}
	if l.unread = err; err != nil {
		l.found = nil
		return
	}
	next, refused := policy.Admit(l.last, next, host)
	next, wrong := policy.Date(l.last, next, time.Now())
	next = policy.Leave(l.last, next, l.config.NodeName)
	l.found = append(refused, wrong...)
	if !l.known || !cluster.Equal(l.last, next) {
		l.saved, l.survey = false, nil
		l.log.Info("cluster state changed", "source", next.Source, "nodes", len(next.Nodes), "bgpResources", len(next.Peerings))
	}
	l.last, l.known = next, true
}

// changed logs the changes, and makes a problem of each change that the kernel refused.
func (l *loop) changed(o *outcome, changes []routes.Change, err error) {
	var made []line
	refused := 0
	for _, c := range changes {
		if c.Err == nil {
			made = append(made, line{kind: c.Kind(), text: c.String, attrs: []any{"took", c.Took}})
			if _, ok := c.Object.(routes.Passage); ok {
				l.firewall.fire() // legacy iptables announces no change
			}
			continue
		}
		p := cluster.Problem{Object: "kernel", Reason: cluster.KernelRefused, Want: c.String(), Got: c.Err.Error(), Next: "edgewayd tries again on its own"}
		if errors.Is(c.Err, routes.ErrForeign) {
			p.Reason, p.Next = "foreignRoute", "stop the other agent that owns it, or change the pod CIDR"
		}
		o.problems, o.again = append(o.problems, p), true
		if refused++; refused <= linesMost {
			l.warn(o, c.String(), c.Err)
		}
	}
	l.tell(made)
	switch {
	case refused == 0:
		l.failed(o, cluster.KernelRefused, err, "edgewayd tries again on its own")
	case refused > linesMost:
		l.warn(o, "more changes were refused", fmt.Errorf("%d of them; edgewayd problems --all shows each", refused-linesMost))
	}
}

// linesMost bounds the lines of the log about changes of one kind in one look: a node that joins 5,000 others makes
// 15,000 changes.
const linesMost = 20

// line is one change that was made.
type line struct {
	kind  string // "add route"
	text  func() string
	attrs []any
}

// tell logs each change. Where there are many of one kind, one line has their number; at the level debug, each has a line.
func (l *loop) tell(lines []line) {
	count := map[string]int{}
	for _, one := range lines {
		count[one.kind]++
	}
	each := l.log.Enabled(context.Background(), slog.LevelDebug)
	for _, one := range lines {
		switch n := count[one.kind]; {
		case each || n <= linesMost && n > 0:
			l.log.Info(one.text(), one.attrs...)
		case n > linesMost:
			l.log.Info(one.kind, "count", n, "first", one.text())
			count[one.kind] = 0
		}
	}
}
