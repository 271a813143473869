package controller

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// objects are the parts of the cluster that the worker reads and writes. A look tells the sentinels apart.
type objects interface {
	// ledger reads the ledger and its version, which is "" if there is no ledger yet.
	ledger(ctx context.Context) (Ledger, string, error)
	// save writes the ledger if its version is still the given version, else it returns errChanged.
	save(ctx context.Context, l Ledger, version string) error
	// nodes lists all Nodes as they were at one moment after the call, and returns the version of that
	// moment.
	nodes(ctx context.Context) ([]Node, string, error)
	services(ctx context.Context) ([]netip.Prefix, error)
	// pools lists the NetworkPools, and returns the version of the list, which is "" where the API server
	// does not have the resource.
	pools(ctx context.Context) ([]NetworkPool, string, error)
	// report writes the status of a NetworkPool.
	report(ctx context.Context, name string, status poolStatus) error
	// grant sets the Node's pod CIDRs if the Node has that UID and no pod CIDRs, else it returns errRefused.
	// errDenied says that the API server works but does not allow the change.
	grant(ctx context.Context, p Promise) error
	// wait returns nil when a Node has gone since version, when matters reports true for a changed Node, when a
	// NetworkPool has changed, or when quiet has passed.
	wait(ctx context.Context, since version, matters func(Node) bool) error
	// tell writes an Event about the Node.
	tell(ctx context.Context, n Node, reason, message string) error
}

// version says where a wait begins, and how long it lasts at most.
type version struct {
	of    string
	quiet time.Duration
	pools string           // version of the NetworkPools; "": the API server does not have the resource
	known map[string]int64 // generation of each NetworkPool
}

var (
	errChanged = errors.New("another replica wrote the ledger first")
	errRefused = errors.New("the Node is gone or has pod CIDRs")
	errDenied  = errors.New("denied")
)

type pace struct {
	courtesy              time.Duration // how long a new Node is left to other programs
	quiet                 time.Duration // the longest time between two looks
	busy                  time.Duration // the longest time while nodes wait for an operator
	retryLeast, retryMost time.Duration // after an error
	spaceLeast, spaceMost time.Duration // between two looks, so that bursts are served together
	repeat                time.Duration // between two reports of a problem that stays: an Event lives for an hour
}

func defaultPace() pace {
	return pace{
		// kube-controller-manager serves a new Node within milliseconds. A kubelet takes longer
		// than this to become ready.
		courtesy: time.Second,
		quiet:    5 * time.Minute, busy: 30 * time.Second,
		retryLeast: time.Second, retryMost: 30 * time.Second,
		spaceLeast: 100 * time.Millisecond, spaceMost: 10 * time.Second,
		repeat: 50 * time.Minute,
	}
}

// worker looks and acts while it leads. Only its goroutine uses it.
type worker struct {
	file    []Pool   // of the configuration
	pools   []Pool   // of the last look: those of the NetworkPools, and file
	uplinks []string // labels of nodes that are instances of the cloud: they have uplinks, and get no pod CIDRs
	objects objects
	log     *slog.Logger
	pace    pace
	metrics *metrics
	before  []Node                // of the last look that was carried out
	first   map[string]time.Time  // by UID: when a Node was first seen without pod CIDRs
	said    map[subject]saying    // problems, as last logged
	told    map[subject]time.Time // Events, by the Node's UID
	denied  map[string]denial     // by UID
	failed  string                // the last logged error
}

// result says when the next look is due.
type result struct {
	version version
	again   time.Duration // when to look again without waiting for a change; 0: wait
	cost    time.Duration // the time that reading took
}

// run repeats the look until ctx ends.
func (w *worker) run(ctx context.Context) {
	retry := w.pace.retryLeast
	for ctx.Err() == nil {
		r, err := w.look(ctx)
		switch {
		case errors.Is(err, errChanged):
			// Two replicas work, and one of them stops soon. Until then they take turns.
			pause(ctx, w.pace.spaceLeast+rand.N(w.pace.spaceLeast))
			continue
		case err != nil:
			w.fail(ctx, err)
			pause(ctx, retry)
			retry = min(2*retry, w.pace.retryMost)
			continue
		}
		w.fail(ctx, nil)
		retry = w.pace.retryLeast
		// Listing all Nodes is the expensive part: it gets at most a tenth of the time.
		pause(ctx, max(r.again, min(max(10*r.cost, w.pace.spaceLeast), w.pace.spaceMost)))
		if r.again > 0 {
			continue
		}
		if err := w.objects.wait(ctx, r.version, w.matters); err != nil && ctx.Err() == nil {
			w.log.Debug("watch Nodes", "err", err) // the next look shows whether the fault lasts
			pause(ctx, w.pace.retryLeast)
		}
	}
}

// matters reports whether a change of this Node is worth a look. Most changes are heartbeats.
func (w *worker) matters(n Node) bool {
	return !n.hasPodCIDRs() && !n.Leaving && !w.hasUplinks(n) && poolOf(w.pools, n.Labels) != nil
}

// hasUplinks reports whether the node gets uplinks instead of pod CIDRs.
func (w *worker) hasUplinks(n Node) bool {
	return slices.ContainsFunc(w.uplinks, func(label string) bool { return n.Labels[label] != "" })
}

// look reads everything, decides, and carries out the plan. The order makes it safe: see the package doc.
func (w *worker) look(ctx context.Context) (result, error) {
	start := time.Now()
	ledger, at, err := w.objects.ledger(ctx)
	if err != nil {
		return result{}, err
	}
	services, err := w.objects.services(ctx)
	if err != nil {
		return result{}, err
	}
	networkPools, poolsAt, err := w.objects.pools(ctx)
	if err != nil {
		return result{}, err
	}
	w.pools = allPools(networkPools, w.file)
	nodes, seen, err := w.objects.nodes(ctx)
	if err != nil {
		return result{}, err
	}
	nodes = slices.DeleteFunc(nodes, func(n Node) bool { return !n.hasPodCIDRs() && w.hasUplinks(n) })
	r := result{version: version{of: seen, quiet: w.pace.quiet, pools: poolsAt, known: map[string]int64{}}, cost: time.Since(start)}
	for _, p := range networkPools {
		r.version.known[p.Name] = p.Generation
	}
	early, due := w.early(nodes)
	plan := allocate(State{Pools: w.pools, Services: services, Ledger: ledger, Nodes: nodes, Before: w.before, Early: early})
	if at == "" || !plan.Ledger.equal(ledger) {
		if err := w.objects.save(ctx, plan.Ledger, at); err != nil {
			return result{}, err
		}
	}
	w.before = nodes
	denied, err := w.grant(ctx, plan.Grants)
	problems := slices.Concat(plan.Problems, denied)
	problems = append(problems, w.report(ctx, networkPools, w.before, problems)...)
	w.metrics.set(w.pools, w.before, problems)
	w.say(ctx, problems, nodes)
	if plan.Later || due > 0 {
		r.again = max(due, w.pace.spaceLeast)
	}
	if slices.ContainsFunc(problems, func(p Problem) bool { return len(p.Nodes) > 0 }) {
		r.version.quiet = w.pace.busy
	}
	return r, err
}

// early returns the Nodes that are too new to be served, and the wait until the first of them can be served.
func (w *worker) early(nodes []Node) (early map[string]bool, due time.Duration) {
	now, first := time.Now(), map[string]time.Time{}
	early = map[string]bool{}
	for _, n := range nodes {
		if !w.matters(n) {
			continue
		}
		since, known := w.first[n.UID]
		if !known {
			since = now
		}
		first[n.UID] = since
		if left := w.pace.courtesy - now.Sub(since); left > 0 {
			early[n.UID] = true
			if due == 0 || left < due {
				due = left
			}
		}
	}
	w.first = first
	return early, due
}

// grant patches the Nodes. A Node that the API server denies does not delay the others. An API server that
// does not answer ends the look.
func (w *worker) grant(ctx context.Context, grants []Promise) ([]Problem, error) {
	denied := map[string]denial{}
	defer func() { w.denied = denied }()
	var names []string
	var why error
	for _, g := range grants {
		start := time.Now()
		d, was := w.denied[g.UID]
		if !was || time.Since(d.at) >= w.pace.busy { // an operator is slower than heartbeats
			d = denial{start, w.objects.grant(ctx, g)}
		}
		switch {
		case d.err == nil:
			w.log.Info("pod CIDRs given", "node", g.Node, "podCIDRs", join(g.PodCIDRs), "took", time.Since(start))
			w.metrics.granted()
			if i := slices.IndexFunc(w.before, func(n Node) bool { return n.UID == g.UID }); i >= 0 {
				w.before[i].PodCIDRs, w.before[i].SetBy = g.PodCIDRs, FieldManager
			}
		case errors.Is(d.err, errRefused): // the next look shows the Node's present state
		case errors.Is(d.err, errDenied):
			denied[g.UID], names, why = d, append(names, g.Node), cmp.Or(why, d.err)
		default:
			return deniedTo(names, why), d.err
		}
	}
	return deniedTo(names, why), nil
}

// denial is why the API server did not let us patch a Node.
type denial struct {
	at  time.Time
	err error
}

func deniedTo(names []string, why error) []Problem {
	if why == nil {
		return nil
	}
	return []Problem{{Nodes: names, Problem: cluster.Problem{Object: "Nodes", Reason: grantDenied, Want: "to set the pod CIDRs of " + some(names), Got: why.Error(),
		Next: "let ClusterRole edgeway-controller patch Nodes, and check what admission webhooks do to Nodes; the controller tries again by itself"}}}
}

// fail logs an error once, and logs when it has passed.
func (w *worker) fail(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && err.Error() != w.failed:
		w.failed = err.Error()
		w.log.Warn("look", "err", err, "next", "nodes keep what they have; the controller tries again by itself")
	case err == nil && w.failed != "":
		w.failed = ""
		w.log.Info("look", "again", "works")
	}
}

// mostEvents bounds the Events of one look.
const mostEvents = 50

// subject identifies a problem while its details change.
type subject struct {
	object string
	reason cluster.Reason
}

// saying is the last log line about a subject.
type saying struct {
	text string
	at   time.Time
}

// say logs each problem when it comes, changes or is solved, and writes Events to its Nodes.
func (w *worker) say(ctx context.Context, problems []Problem, nodes []Node) {
	now, said, told := time.Now(), map[subject]saying{}, map[subject]time.Time{}
	for _, p := range problems {
		about := subject{p.Object, p.Reason}
		last := w.said[about]
		after := w.pace.repeat
		if last.text == "" {
			after = 0
		} else if last.text != p.String() {
			after = w.pace.busy // details change with each Node of a burst
		}
		if now.Sub(last.at) >= after {
			w.log.Warn(string(p.Reason), "object", p.Object, "want", p.Want, "got", p.Got, "next", p.Next)
			last = saying{p.String(), now}
		}
		said[about] = last
		w.tell(ctx, p, nodes, told)
	}
	for about := range w.said {
		if _, ok := said[about]; !ok {
			w.log.Info("solved", "reason", about.reason, "object", about.object)
		}
	}
	w.said, w.told = said, told
}

// tell writes an Event for each Node that got no such Event lately.
func (w *worker) tell(ctx context.Context, p Problem, nodes []Node, told map[subject]time.Time) {
	events := 0
	for _, n := range nodes {
		if !slices.Contains(p.Nodes, n.Name) {
			continue
		}
		about := subject{n.UID, p.Reason}
		if at, ok := w.told[about]; ok && time.Since(at) < w.pace.repeat {
			told[about] = at
			continue
		}
		if events++; events > mostEvents {
			continue
		}
		if err := w.objects.tell(ctx, n, eventReasons[p.Reason], p.String()); err != nil {
			w.log.Debug("event", "node", n.Name, "err", err) // the log counts; an Event is a courtesy
			events = mostEvents
			continue
		}
		told[about] = time.Now()
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
