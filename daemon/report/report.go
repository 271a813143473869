// Package report tells the cluster the state of this node: in the status of its EdgeNode, in the status of each
// BGPPeer and BGPClusterConfig that gives it a session, and as events about sessions and problems.
//
// It owns everything that edgewayd writes to the API server. It never reads what the cluster wants and never
// decides anything. Nothing waits for it: while the API server is away or refuses, only the reports are
// missing.
//
//	r := report.New(o)
//	go r.Run(ctx)
//	r.Sync(sessions)                   // whenever something may have changed
//	r.Event(sessions[0].Event("n1"))   // when it is worth an event
//	r.Self(report.Node{...})           // the status of EdgeNode/n1
//	r.Tell(problems)                   // an event for each problem that lasts
package report

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Session is this node's report about one of its BGP sessions, in the status of the resource that asks for
// the session.
type Session struct {
	Resource    string     // "BGPPeer/peer-a"
	Peer        netip.Addr // address of the switch
	Port        uint16     // TCP port of the switch; 0 means 179
	PeerName    string     // the resource's name for the switch; "": it has none
	PeerASN     uint32
	State       string         // RFC 4271: Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since       time.Time      // of the present state: Established or not
	Reason      cluster.Reason // why it is not Established
	Message     string         // one sentence with the next step
	Advertised  int            // number of prefixes advertised to the switch
	RestartTime time.Duration  // negotiated time of graceful restart; 0: not negotiated
}

// Established reports whether the session is up with the settings of the resource.
func (s Session) Established() bool { return s.State == established && s.Reason == "" }

// Reporter writes this node's BGP sessions where `kubectl get`, `describe` and `wait` show them: into the
// status of each BGPPeer and BGPClusterConfig that has them, and as events.
//
// Each node owns only its own entries of status.speakers (server-side apply, with the field manager
// edgewayd-<node>), so that nodes neither overwrite each other nor wait for each other.
type Reporter struct {
	node string
	dial func() (*cluster.Connection, error)
	pace reportPace
	wake chan struct{} // one slot: look again

	mu       sync.Mutex // guards the fields below; never held during a request
	wanted   map[string][]speakerStatus
	pending  map[eventKey]pendingEvent
	told     map[eventKey]telling // this node's problems
	problems map[string]cluster.Problem

	self       *nodeStatus // what the node says of itself; nil: nothing yet
	generation int64       // of its EdgeNode, as the source knows it
	moved      bool        // the EdgeNode was created or deleted, as the source heard
	maxPods    int         // see MaxPods
	away, back bool        // the source does not hear the API server; it does again
}

// reportPace says how often requests go to the API server.
type reportPace struct {
	// coalesce is the least time between two writes of an object. A switch that flaps must not become a load
	// on etcd, and each write goes out to every node that watches.
	coalesce time.Duration
	// count is the least time before a write that changes only a number of prefixes. Each node that joins
	// changes the number for each speaker of its LAN, and this can wait.
	count time.Duration
	// settle is how long a session that has just started is not reported. Most sessions come up in seconds,
	// and a restart of the daemon should be one write.
	settle time.Duration
	// check is how often a status that should be right is written again: it may have been lost with its
	// object, or changed by others. The API server ignores a write that changes nothing.
	check time.Duration
	// others is how often the Nodes of the other speakers are asked for: a Node has 12 KB, most of it its images.
	others time.Duration
	// refused is the longest wait after an answer that will hardly change by itself: 403, 404, 422.
	refused time.Duration
	// retryLeast and retryMost bound the wait while the API server is away. The wait doubles each time.
	retryLeast, retryMost time.Duration
	// start is how long a daemon that started says nothing in its EdgeNode: until its sessions and the first questions
	// to other nodes are answered, so that a restart is one write, or none.
	start time.Duration
	// own is how often an EdgeNode that should be right is read again, and the longest wait after a refusal. Each
	// node has one, and hears from its source when it comes or goes.
	own time.Duration
}

var defaultReportPace = reportPace{
	coalesce: 10 * time.Second, count: time.Minute, settle: 10 * time.Second, check: 2 * time.Minute, others: 10 * time.Minute,
	refused: time.Minute, retryLeast: time.Second, retryMost: time.Minute, start: 15 * time.Second, own: 20 * time.Minute,
}

// New returns a Reporter for the node o.Node. It sends nothing before Run.
func New(o cluster.KubernetesOptions) *Reporter {
	return newReporter(o.Node, func() (*cluster.Connection, error) { return cluster.Connect(o) }, defaultReportPace)
}

func newReporter(node string, dial func() (*cluster.Connection, error), p reportPace) *Reporter {
	return &Reporter{
		node: node, dial: dial, pace: p, wake: make(chan struct{}, 1),
		pending: map[eventKey]pendingEvent{}, told: map[eventKey]telling{}, problems: map[string]cluster.Problem{},
	}
}

// Sync sets the complete list of this node's sessions. A session that was reported before and is not in the
// list is removed from the status. Sync does not block, and only the latest call counts.
func (r *Reporter) Sync(sessions []Session) {
	wanted := map[string][]speakerStatus{}
	live := map[eventKey]bool{}
	for _, s := range sessions {
		wanted[s.Resource] = append(wanted[s.Resource], s.status(r.node))
		live[eventKey{s.Resource, s.endpoint().String()}] = true
	}
	for ref, entries := range wanted {
		wanted[ref] = arranged(entries)
	}
	r.mu.Lock()
	r.wanted = wanted
	for key := range r.pending {
		if _, problem := r.told[key]; !live[key] && !problem {
			delete(r.pending, key) // no resource asks for this session any more
		}
	}
	r.mu.Unlock()
	r.look()
}

// Event says that something happened to a session. It does not block. While the API server is away, only the
// latest event of a session is kept.
func (r *Reporter) Event(e Event) {
	r.mu.Lock()
	r.event(e)
	r.mu.Unlock()
	r.look()
}

// event is Event; r.mu is held.
func (r *Reporter) event(e Event) {
	key := eventKey{e.Resource, e.About}
	last, known := r.pending[key]
	if known || len(r.pending) < maxPendingEvents {
		r.pending[key] = last.then(e, time.Now())
	}
}

// Problems returns why the API server refuses the reports, which an operator can repair. An API server that
// does not answer is not among them: the source reports it.
func (r *Reporter) Problems() []cluster.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	problems := slices.Collect(maps.Values(r.problems))
	slices.SortFunc(problems, func(a, b cluster.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason))
	})
	return problems
}

func (r *Reporter) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends, and then returns nil. Statuses stay as they are, because the sessions do too
// (graceful restart).
func (r *Reporter) Run(ctx context.Context) error {
	w := newReportWriter(r)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		if next := w.work(ctx); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, time.Until(next)))
		}
	}
}
