package bgp

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

const (
	// lookEvery is how often a process looks at its session without cause.
	lookEvery = time.Second
	// farewellTimeout bounds the wait for a switch to take what we sent it before, and our last word.
	farewellTimeout = time.Second
	// ceaseTimeout bounds the wait for a Cease to be sent to a switch that may have stopped reading.
	ceaseTimeout = 2 * time.Second
	// steady is how long a session must have lived to be dialled again at once.
	steady = 10 * time.Second
	// maxBackoff bounds the pause before a session that does not live is dialled again.
	maxBackoff = 32 * time.Second
)

// order is what a process of one session is told. Orders are answered one after another.
type order struct {
	Number  int
	Session Session   // make it so; all orders have the same terms
	Since   time.Time // since when it is not Established, with the first order
	End     string    // end the session because of this; "" does not
}

// answer is what the process of a session says. With the number 0 it is news that nobody asked for.
type answer struct {
	Number   int
	Err      string
	Status   Status // without the Peer
	Learned  []LearnedPath
	Complete bool
}

// ServeSession is the process of one session: it does what comes over link until link ends, which it
// takes for the end of who began it. Then it returns at once, and must be followed by the end of the
// process: the switch sees the connection end without a word, and keeps the paths (RFC 4724).
func ServeSession(link io.ReadWriter) error {
	t, orders, ended := newTalk(gob.NewEncoder(link)), make(chan order, 8), make(chan error, 2)
	go func() { ended <- t.run(orders) }()
	// Read beside what is done: the end must be noticed at once, or this session would go on beside
	// the session of the next daemon.
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

// talk is one session in its own process. One goroutine, run, owns it.
//
// A session that is lost must come back with both restart bits of its OPEN set, or the switch
// flushes what it kept (RFC 4724, section 4.2). GoBGP sets them only in the first session of a
// peer, so the peer is replaced each time, in the five seconds that GoBGP idles after a loss:
//
//	open --> Established --loss--> close (silent: nothing is connected) --backoff--> open
type talk struct {
	out     *gob.Encoder
	wake    chan struct{} // one slot: look again
	journal *journal
	server  *server

	peer     Peer
	told     table // the server's RIB; nobody else writes there
	opened   bool  // the server has the peer
	backoff  time.Duration
	retryAt  time.Time // not opened before
	offer    offer
	received received // of the established session
	learn    []netip.Prefix
	heard    hearing
	said     view // last
}

func newTalk(out *gob.Encoder) *talk {
	return &talk{out: out, wake: make(chan struct{}, 1), told: table{}}
}

// poke makes run look again. It does not block.
func (t *talk) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run does what it is told and reacts to what the journal tells, until it is told to end or fails.
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
			err := t.do(o)
			if err := t.say(o.Number, err); err != nil || o.End != "" {
				return err
			}
			continue
		case <-tick.C:
			ticked = true
		case <-t.wake:
		}
		if err := t.look(); err != nil {
			return err
		}
		t.hear()
		now := t.view()
		if now.in(t.said.state) != t.said || ticked && now != t.said {
			if err := t.say(0, nil); err != nil {
				return err
			}
		}
	}
}

// say answers an order, or tells news.
func (t *talk) say(number int, err error) error {
	t.said = t.view()
	a := answer{Number: number, Status: t.status(), Learned: t.heard.paths(), Complete: t.heard.whole}
	if err != nil {
		a.Err = err.Error()
	}
	return t.out.Encode(a)
}

// begin starts the session: all paths, then the peer, so that the first UPDATEs are complete
// and the End-of-RIB after them flushes nothing that is still wanted.
func (t *talk) begin(o order) error {
	t.peer = o.Session.Peer
	t.heard = newHearing(o.Since)
	t.journal = newJournal(t.peer, o.Since, t.poke)
	t.server = newServer(t.journal)
	if err := t.server.start(t.peer); err != nil {
		return fmt.Errorf("start GoBGP: %w", err)
	}
	if err := t.do(o); err != nil {
		return err
	}
	if err := t.open(); err != nil {
		return err
	}
	return t.say(o.Number, nil)
}

// do does what an order says.
func (t *talk) do(o order) error {
	if o.End != "" {
		return t.end(o.End)
	}
	t.listen(o.Session.Learn)
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
	return errors.Join(errs...)
}

// look brings the session where it should be: it closes a session that was lost, opens it again when
// its time has come, and reads what the switch offered.
func (t *talk) look() error {
	lifetime, lost := t.journal.takeLoss()
	up, _ := t.journal.established()
	switch {
	case up: // a loss that GoBGP has mended meanwhile is past help
		return t.readOffer()
	case lost:
		t.lose(lifetime)
	case t.opened:
		t.probe()
	}
	if t.opened || time.Now().Before(t.retryAt) {
		return nil
	}
	return t.open()
}

// lose closes the session, which is silent as nothing is connected, and sets when to open it: at once
// if it had lived, else after 1 s, 2 s, ... maxBackoff.
func (t *talk) lose(lifetime time.Duration) {
	t.offer = offer{}
	_ = t.server.close(t.peer) // where GoBGP still has the peer, open fails, and says so
	t.opened = false
	t.backoff = min(max(2*t.backoff, time.Second), maxBackoff)
	if lifetime >= steady {
		t.backoff = 0
	}
	t.retryAt = time.Now().Add(t.backoff)
}

func (t *talk) open() error {
	if err := t.server.open(t.peer); err != nil {
		return fmt.Errorf("add the peer to GoBGP: %w", err)
	}
	t.opened = true
	return nil
}

// probe asks a switch that the connection does not come about with, when it is time, and waits for
// nothing. The journal gets what it finds out.
func (t *talk) probe() {
	if due := t.journal.takeProbe(time.Now()); due {
		go func() { t.journal.probed(probe(t.peer)) }()
	}
}

// readOffer reads what the switch said in its OPEN, and how much it has sent where that is wanted.
func (t *talk) readOffer() (err error) {
	if !t.offer.known || len(t.learn) > 0 {
		t.offer, t.received, err = t.server.offer(t.peer)
	}
	return err
}

// end tells the switch that we leave, and why, so that it drops the routes at once. Where our own word
// is not possible, GoBGP sends a Cease without a word.
func (t *talk) end(why string) error {
	if up, _ := t.journal.established(); !up || t.farewell(why) == nil {
		return nil
	}
	stopped := make(chan error, 1)
	go func() { stopped <- t.server.stop() }()
	select {
	case err := <-stopped:
		return err
	case <-time.After(ceaseTimeout):
		return nil // it does not read: what is left of the session goes with its connection
	}
}

// farewell sends the switch a Cease that says why, and returns when the switch has taken it.
func (t *talk) farewell(why string) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
	defer cancel()
	if err := t.readOffer(); err != nil {
		return err
	}
	if !t.offer.known { // a plain Cease makes no switch of RFC 8538 drop the paths
		return errors.New("what the switch supports is not known")
	}
	message, err := shutdownMessage(why, t.peer.RestartTime > 0 && t.offer.notification)
	if err != nil {
		return err
	}
	up, down := t.journal.established()
	if !up {
		return nil
	}
	if err := sayLast(ctx, t.peer.LocalAddress, netip.AddrPortFrom(t.peer.Address, t.peer.Port), message); err != nil {
		return err
	}
	select {
	case <-down:
	case <-ctx.Done(): // the switch does not end its side
	}
	return nil
}
