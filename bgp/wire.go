package bgp

import (
	"context"
	"encoding/gob"
	"errors"
	"io"
	"sync"
	"time"
)

// order is what a process of one session is told. Orders are answered one after another.
type order struct {
	Number  int
	Session *Session // make it so; nil: end it, because of Why
	Why     string
	Past    pastOnWire // what was before, with the first order
	Leave   bool       // end the process without a Cease
}

// said is an answer, or, with the number 0, news of the session.
type said struct {
	Number   int
	Changes  []changeOnWire
	Err      string
	Past     pastOnWire // of a session that was ended
	Status   []Status   // of the session; none: there is none
	Learned  []LearnedPath
	Complete bool
}

// changeOnWire is a Change; an error crosses as its text.
type changeOnWire struct{ Op, Object, Why, Err string }

type pastOnWire struct {
	Flaps int
	Reset Reset
}

func (p past) onWire() pastOnWire { return pastOnWire{p.flaps, p.reset} }
func (p pastOnWire) past() past   { return past{p.Flaps, p.Reset} }

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func failure(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

const (
	// orderTimeout bounds one order: a table of 5,000 paths takes a second on a busy machine.
	orderTimeout = 20 * time.Second
	// statusEvery is how often a session that is not up says how far its attempts are.
	statusEvery = time.Second
)

// ServeSession is a process of one session: it does what comes over link until link ends, which it
// takes for the end of who began it. Then it returns at once, and must be followed by the end of the
// process: the switch sees the connection end without a word, and keeps the paths (RFC 4724).
func ServeSession(link io.ReadWriter) error {
	news := make(chan struct{}, 1)
	s := &served{out: gob.NewEncoder(link)}
	s.speaker = NewSpeaker(Options{Changed: func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}})
	go s.tell(news)
	orders, ended := make(chan order, 8), make(chan error, 2) // one order is under way, others were given up
	go func() {
		for o := range orders {
			if err := s.send(s.do(o)); err != nil || o.Leave {
				ended <- err
				return
			}
		}
	}()
	// Read beside what is done: the end must be noticed at once, or this session would go on beside
	// the one of the next daemon.
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

// served is the session's side of the link.
type served struct {
	speaker *Speaker
	mu      sync.Mutex // guards out
	out     *gob.Encoder
	last    Status // told when nothing was up
}

func (s *served) do(o order) said {
	if o.Leave {
		s.speaker.Stop()
		return s.report(o.Number)
	}
	ctx, cancel := context.WithTimeout(context.Background(), orderTimeout)
	defer cancel()
	var want State
	if o.Session != nil {
		want.Sessions = []Session{*o.Session}
		s.speaker.remember(o.Session.Peer.Key(), o.Past.past())
	} else {
		for _, session := range s.speaker.all() {
			want.Held = append(want.Held, Held{session.key, o.Why})
		}
	}
	changes, err := s.speaker.Sync(ctx, want)
	r := s.report(o.Number)
	r.Err = text(err)
	for _, c := range changes {
		r.Changes = append(r.Changes, changeOnWire{c.Op, c.Object, c.Why, text(c.Err)})
	}
	for _, h := range want.Held {
		r.Past = s.speaker.history(h.Key).onWire()
	}
	return r
}

// report says how the session is.
func (s *served) report(number int) said {
	r := said{Number: number, Status: s.speaker.Status(context.Background())}
	r.Learned, r.Complete = s.speaker.Learned(context.Background())
	return r
}

func (s *served) send(r said) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Encode(r)
}

// tell sends news until the process ends.
func (s *served) tell(news <-chan struct{}) {
	tick := time.NewTicker(statusEvery)
	for {
		select {
		case <-news:
		case <-tick.C:
			if !s.moved() {
				continue
			}
		}
		if s.send(s.report(0)) != nil {
			return // the loop that reads ends too
		}
	}
}

// moved reports whether a session that is not up is at another step than when last asked. What
// happens to one that is up is news.
func (s *served) moved() bool {
	all := s.speaker.all()
	if len(all) == 0 {
		return false
	}
	if up, _ := all[0].journal.established(); up {
		return false
	}
	now, was := all[0].status(), s.last
	s.last = now
	return now.State != was.State || now.Reason != was.Reason || now.Detail != was.Detail
}
