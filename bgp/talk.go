package bgp

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how often a process checks its session even if nothing happened.
	lookEvery = time.Second
	// steady is how long a session must have been Established to be dialled again at once.
	steady = 10 * time.Second
	// thrifty is from how many paths on a process collects garbage when its heap has grown by a quarter, instead
	// of doubled: with 5,000 paths this saves a third of its memory. With few paths the heap is too small for any
	// collection, which would cost a MiB itself.
	thrifty = 1000
	// maxBackoff bounds the pause before a session that was lost earlier than steady is dialled again.
	maxBackoff = 32 * time.Second
)

// order tells the process of a session what to do. The process answers orders one after another.
type order struct {
	Number  int
	Session Session   // the desired session; all orders have the same terms
	Since   time.Time // only in the first order: since when the session has not been Established
	Trial   bool      // only in the first order: refuse the switch's OPEN silently; see relay.quiet
	End     string    // if not empty: end the session with a Cease with this text
}

// answer is a message from the process of a session. Number 0 is news that answers no order.
type answer struct {
	Number   int
	Err      string
	Sure     bool   // the Status's Reason is not a guess
	Status   Status // without the Peer
	Learned  []LearnedPath
	Complete bool
}

// ServeSession is the process of one session. It carries out orders from link until link ends, which means
// that the Speaker has ended. Then it returns at once, and the caller must end the process: the connection
// ends without a Cease, and the switch keeps the paths (RFC 4724).
func ServeSession(link io.ReadWriter) error {
	t, orders, ended := newTalk(gob.NewEncoder(link)), make(chan order, 8), make(chan error, 2)
	go func() { ended <- t.run(orders) }()
	// Another goroutine reads, so that the end of link is noticed even during an order. Otherwise this
	// session would continue beside the same session of the next daemon.
	go func() {
		in := gob.NewDecoder(link)
		for {
			var o order
			if err := in.Decode(&o); err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
			orders <- o
		}
	}()
	return <-ended
}

// talk is one session in its process. The goroutine of run owns talk.
//
// After a loss the next OPEN must have both restart bits set, or the switch flushes the kept paths (RFC 4724,
// section 4.2). GoBGP sets the bits only in the first connection of a peer. So GoBGP gets a new peer for each
// connection:
//
//	dial --> add the peer --> GoBGP connects to the relay --> OPENs, Established --> end --> delete the peer --pause--> dial
type talk struct {
	out     *gob.Encoder
	wake    chan struct{} // one slot: look again
	over    chan error    // an attempt ended; not nil: this process cannot continue
	journal *journal
	server  *server
	relay   atomic.Pointer[relay] // of the current connection; nil: not connected

	peer    Peer
	trial   bool
	told    table // the server's RIB
	trying  bool  // an attempt is under way
	retryAt time.Time
	backoff time.Duration
	said    view // the view at the last answer
}

func newTalk(out *gob.Encoder) *talk {
	return &talk{out: out, wake: make(chan struct{}, 1), over: make(chan error, 1), told: table{}}
}

// poke makes run check the session. It does not block.
func (t *talk) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run carries out orders and reacts to the journal, until an order ends the session or run fails.
func (t *talk) run(orders <-chan order) error {
	if err := t.begin(<-orders); err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		ticked := false
		select {
		case o := <-orders:
			if o.End != "" {
				t.end(o.End)
				return t.say(o.Number, nil)
			}
			if err := t.say(o.Number, t.do(o)); err != nil {
				return err
			}
		case err := <-t.over:
			if err != nil {
				return err
			}
			t.trying = false
			t.retryAt = time.Now().Add(t.journal.wait(&t.backoff))
		case <-tick.C:
			ticked = true
		case <-t.wake:
		}
		t.look()
		if now := t.journal.view(); now.urgent(t.said) || ticked && now != t.said {
			if err := t.say(0, nil); err != nil {
				return err
			}
		}
	}
}

// say answers an order, or sends news.
func (t *talk) say(number int, err error) error {
	t.said = t.journal.view()
	a := answer{Number: number, Status: t.status(), Sure: t.said.causes.sure}
	a.Learned, a.Complete = t.journal.learned()
	if err != nil {
		a.Err = err.Error()
	}
	return t.out.Encode(a)
}

// begin starts the session. It adds all paths before it connects, so that the first UPDATEs are complete
// and the End-of-RIB after them flushes no path that is still desired.
func (t *talk) begin(o order) error {
	t.peer, t.trial = o.Session.Peer, o.Trial
	t.journal = newJournal(t.peer, o.Since, t.poke)
	t.server = newServer()
	if err := t.server.start(t.peer); err != nil {
		return fmt.Errorf("start GoBGP: %w", err)
	}
	if err := t.do(o); err != nil {
		return err
	}
	return t.say(o.Number, nil)
}

// do carries out one order.
func (t *talk) do(o order) error {
	// The journal must know the paths before the switch can send them back.
	if again := t.journal.ask(o.Session); again {
		if r := t.relay.Load(); r != nil {
			r.refresh()
		}
	}
	var errs []error
	for _, step := range t.told.steps(o.Session.Paths) {
		do := t.server.add
		if step.gone {
			do = t.server.remove
		}
		if err := do(step.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.change(t.peer), err))
			continue
		}
		t.told.take(step)
	}
	if len(t.told) >= thrifty && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	return errors.Join(errs...)
}

// look takes the next step of the session.
func (t *talk) look() {
	now := time.Now()
	t.journal.tick(now)
	if !t.trying && !now.Before(t.retryAt) {
		t.trying = true
		go func() { t.over <- t.attempt() }()
	}
	if r := t.relay.Load(); r != nil {
		r.deaf(t.peer)
	}
	if t.journal.takeProbe(now) {
		go func() { t.journal.probed(probe(t.peer)) }()
	}
}

// attempt makes one connection to the switch, and returns when the connection is over.
func (t *talk) attempt() error {
	t.journal.dialling()
	outer, err := dial(t.peer)
	if err != nil {
		t.journal.dialFailed(err)
		return nil
	}
	defer outer.Close()
	inner, err := attach(func(port uint16) error { return t.server.open(t.peer, port) })
	if err != nil {
		return err
	}
	r := newRelay(t.journal, outer, inner, t.trial)
	t.journal.begun()
	t.relay.Store(r)
	r.run()
	t.relay.Store(nil)
	return t.server.close()
}

// end ends the session for good, with a Cease that says why, so that the switch drops the routes at
// once.
func (t *talk) end(why string) {
	if r := t.relay.Load(); r != nil {
		if up, offer := t.journal.up(); up {
			r.leave(farewell(why, t.peer.RestartTime > 0 && offer.notification))
		}
	}
}
