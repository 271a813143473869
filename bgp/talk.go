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
	// lookEvery is how often a process looks at its session even if nothing happened.
	lookEvery = time.Second
	// farewellTimeout bounds the wait for a switch to read all that we sent, and then our Cease.
	farewellTimeout = time.Second
	// ceaseTimeout bounds the wait for GoBGP to send a Cease to a switch that may have stopped reading.
	ceaseTimeout = 2 * time.Second
	// steady is how long a session must have been Established to be dialled again at once.
	steady = 10 * time.Second
	// maxBackoff bounds the pause before a session that was lost earlier is dialled again.
	maxBackoff = 32 * time.Second
)

// order tells the process of a session what to do. Orders are answered one after another.
type order struct {
	Number  int
	Session Session   // to make true; all orders have the same terms
	Since   time.Time // in the first order: since when the session has not been Established
	End     string    // if not empty: end the session with a Cease of this text
}

// answer is what the process of a session says. Number 0 is news that answers no order.
type answer struct {
	Number   int
	Err      string
	Status   Status // without the Peer
	Learned  []LearnedPath
	Complete bool
}

// ServeSession is the process of one session. It carries out the orders that it reads from link until
// link ends, because its Speaker has ended. It returns at once then, and the caller must end the
// process: the connection ends without a Cease, and the switch keeps the paths (RFC 4724).
func ServeSession(link io.ReadWriter) error {
	t, orders, ended := newTalk(gob.NewEncoder(link)), make(chan order, 8), make(chan error, 2)
	go func() { ended <- t.run(orders) }()
	// Another goroutine reads, so that the end of link is noticed during an order too. Otherwise this
	// session would go on beside the same session of the next daemon.
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

// talk is one session in its own process. The goroutine of run owns it.
//
// After a loss the next OPEN must have both restart bits set, or the switch flushes the paths that it
// kept (RFC 4724, section 4.2). GoBGP sets the bits only in the first session of a peer. So talk replaces
// the peer after each loss, within the five seconds for which GoBGP then stays Idle:
//
//	open --> Established --loss--> close (sends nothing, as nothing is connected) --backoff--> open
type talk struct {
	out     *gob.Encoder
	wake    chan struct{} // one slot: look again
	journal *journal
	server  *server

	peer     Peer
	told     table // the server's RIB
	opened   bool  // the server has the peer
	backoff  time.Duration
	retryAt  time.Time // not opened before
	offer    offer
	received received // of the established session
	learn    []netip.Prefix
	heard    hearing
	said     view // at the last answer
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

// run carries out orders and reacts to the journal, until it is told to end or fails.
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

// say answers an order, or sends news.
func (t *talk) say(number int, err error) error {
	t.said = t.view()
	a := answer{Number: number, Status: t.status(), Learned: t.heard.paths(), Complete: t.heard.whole}
	if err != nil {
		a.Err = err.Error()
	}
	return t.out.Encode(a)
}

// begin starts the session: first all paths, then the peer, so that the first UPDATEs are complete
// and the End-of-RIB after them flushes no path that is still desired.
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

// do carries out one order.
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

// look takes the next step of the session: it closes a session that was lost, opens it again when the
// pause is over, and reads the switch's OPEN.
func (t *talk) look() error {
	lifetime, lost := t.journal.takeLoss()
	up, _ := t.journal.established()
	switch {
	case up: // if GoBGP has already repaired a loss, it is too late to replace the peer
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

// lose closes the session, and decides when to open it again: at once if it had been Established for
// steady, else after 1 s, 2 s, 4 s, ... maxBackoff.
func (t *talk) lose(lifetime time.Duration) {
	t.offer = offer{}
	_ = t.server.close(t.peer) // if GoBGP keeps the peer, open fails
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

// probe probes a switch that cannot be connected to, if a probe is due. It does not wait: the journal
// gets the result.
func (t *talk) probe() {
	if due := t.journal.takeProbe(time.Now()); due {
		go func() { t.journal.probed(probe(t.peer)) }()
	}
}

// readOffer reads the switch's OPEN once, and, if paths are learned, counts each time what it has sent.
func (t *talk) readOffer() (err error) {
	if !t.offer.known || len(t.learn) > 0 {
		t.offer, t.received, err = t.server.offer(t.peer)
	}
	return err
}

// end ends the session for good, with a Cease that says why, so that the switch drops the routes at
// once. If that fails, GoBGP sends a Cease without a text.
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
		return nil // the switch does not read; the connection ends with this process
	}
}

// farewell sends a Cease that says why, and waits until the switch has closed the connection.
func (t *talk) farewell(why string) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
	defer cancel()
	if err := t.readOffer(); err != nil {
		return err
	}
	if !t.offer.known { // a switch that supports RFC 8538 keeps the paths at a plain Cease
		return errors.New("the switch's capabilities are not known")
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
	case <-ctx.Done(): // the switch does not close its end
	}
	return nil
}
