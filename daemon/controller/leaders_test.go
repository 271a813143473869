package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// stage is a cluster on which several replicas act at once, all of them sure that they lead.
// Every request of theirs waits until the play lets it arrive: so the play decides, from one
// seed, in which order requests arrive, which answers get lost, and which requests arrive long
// after their sender gave up or was killed.
type stage struct {
	random  *rand.Rand
	flaw    string // what is left out of the protocol, to see that the play notices
	nodes   []Node
	book    Ledger
	version int
	created int
	waiting map[int]*call  // by replica
	listed  map[int][]Node // by replica
	late    []func()       // requests that arrive some time after their sender gave up
	arrived chan *call
	fault   string
}

type call struct {
	replica int
	act     func() // at the API server; nil: this replica's look is over
	turn    chan error
}

// replica is one replica's way to the stage.
type replica struct {
	*stage
	id int
}

var errLost = errors.New("the answer got lost")

// arrive sends a request and returns when the play has let it arrive, or has lost it.
func (r replica) arrive(act func()) error {
	q := &call{r.id, act, make(chan error)}
	r.arrived <- q
	return <-q.turn
}

func (r replica) ledger(context.Context) (l Ledger, version string, err error) {
	lost := r.arrive(func() {
		if l, err = parseLedger(r.book.String()); r.version > 0 {
			l.Since, version = r.book.Since, fmt.Sprint(r.version)
		}
		if r.flaw == "promises are forgotten" {
			l.Promised = nil
		}
	})
	return l, version, errors.Join(lost, err)
}

func (r replica) save(_ context.Context, l Ledger, version string) (err error) {
	lost := r.arrive(func() {
		if version == "" {
			version = "0"
		}
		if version != fmt.Sprint(r.version) && r.flaw != "the ledger is written over" {
			err = errChanged
			return
		}
		r.book, r.version = l, r.version+1
	})
	return errors.Join(lost, err)
}

func (r replica) grant(_ context.Context, p Promise) (err error) {
	lost := r.arrive(func() {
		for i := range r.stage.nodes {
			n := &r.stage.nodes[i]
			if n.Name != p.Node || n.UID != p.UID && r.flaw != "the UID is not tested" {
				continue
			}
			if n.hasPodCIDRs() && r.flaw != "pod CIDRs are not tested" {
				break
			}
			n.PodCIDRs, n.SetBy = p.PodCIDRs, FieldManager
			r.check()
			return
		}
		err = errRefused
	})
	return errors.Join(lost, err)
}

// actor gives a replica the names that objects wants.
type actor struct{ replica }

func (a actor) nodes(context.Context) (nodes []Node, version string, err error) {
	err = a.arrive(func() {
		now := slices.Clone(a.stage.nodes)
		if nodes = now; a.flaw == "the list is older than the ledger" {
			nodes = a.listed[a.id]
		}
		a.listed[a.id] = now
	})
	return nodes, "", err
}

func (a actor) services(context.Context) ([]netip.Prefix, error)             { return nil, nil }
func (a actor) pools(context.Context) ([]NetworkPool, string, error)         { return nil, "", nil }
func (a actor) report(context.Context, string, poolStatus) error             { return nil }
func (a actor) wait(context.Context, version, func(Node) bool) error         { return nil }
func (a actor) tell(_ context.Context, _ Node, reason, message string) error { return nil }

// check looks at all Nodes: none may overlap another.
func (s *stage) check() {
	for i, a := range s.nodes {
		for _, b := range s.nodes[:i] {
			for _, c := range a.PodCIDRs {
				if slices.ContainsFunc(b.PodCIDRs, c.Overlaps) && s.fault == "" {
					s.fault = fmt.Sprintf("%s (%s) and %s (%s) both have %v", a.Name, a.UID, b.Name, b.UID, c)
				}
			}
		}
	}
}

// churn lets a Node come, go, or come again under its name at once.
func (s *stage) churn() {
	name := fmt.Sprint("n", s.random.IntN(4))
	s.nodes = slices.DeleteFunc(s.nodes, func(n Node) bool { return n.Name == name })
	if s.random.IntN(3) > 0 {
		s.created++
		s.nodes = append(s.nodes, Node{Name: name, UID: fmt.Sprint("uid-", s.created), Created: epoch})
	}
}

// play lets replicas act for that many steps.
func (s *stage) play(t *testing.T, pools [][]Pool, steps int) {
	ctx := context.Background()
	s.waiting, s.listed, s.arrived = map[int]*call{}, map[int][]Node{}, make(chan *call)
	workers := map[int]*worker{}
	begin := func(id int) {
		go func(w *worker) {
			_, err := w.look(ctx)
			_ = err // the play made it
			s.arrived <- &call{replica: id}
		}(workers[id])
	}
	hire := func(id int) {
		workers[id] = &worker{file: pools[id%len(pools)], objects: actor{replica{s, id}}, log: slog.New(slog.DiscardHandler), metrics: &metrics{}}
	}
	// settle waits until every replica's next request is on its way.
	settle := func() {
		for q := range s.arrived {
			if q.act == nil {
				if s.random.IntN(10) == 0 { // a new process, which remembers nothing
					hire(q.replica)
				}
				begin(q.replica)
				continue
			}
			s.waiting[q.replica] = q
			return
		}
	}
	for id := range 3 {
		hire(id)
		begin(id)
		settle()
	}
	for range steps {
		switch s.random.IntN(12) {
		case 0, 1:
			s.churn()
			continue
		case 2:
			if len(s.late) > 0 {
				i := s.random.IntN(len(s.late))
				s.late[i]()
				s.late = slices.Delete(s.late, i, i+1)
			}
			continue
		}
		id := s.random.IntN(3)
		if s.random.IntN(3) > 0 { // one of the three is slow
			id = s.random.IntN(2)
		}
		q := s.waiting[id]
		switch s.random.IntN(12) {
		case 0: // it never arrives
			q.turn <- errLost
		case 1: // it arrives, and the answer is lost
			q.act()
			q.turn <- errLost
		case 2, 3: // its sender gives up; it arrives later
			s.late = append(s.late, q.act)
			q.turn <- errLost
		default:
			q.act()
			q.turn <- nil
		}
		settle()
	}
	for _, q := range s.waiting { // the curtain falls: looks end, one after the other
		q.turn <- errLost
		for ended := range s.arrived {
			if ended.act == nil {
				break
			}
			ended.turn <- errLost
		}
	}
}

// Three replicas that all believe that they lead, with requests that arrive in any order, late,
// or without an answer, with Nodes that come, go and come again, in a pool with four blocks: no
// two Nodes ever have one block. Two of the replicas have another mask, as during an update.
func TestTwoLeaders(t *testing.T) {
	coarse := []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/28", "fd00:10::/124"), Mask: Mask{30, 126}}}
	fine := []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/28", "fd00:10::/124"), Mask: Mask{31, 127}}}
	plays := func(flaw string, most uint64) (faults []string, given int) {
		for seed := range most {
			s := &stage{random: rand.New(rand.NewPCG(seed, 3)), flaw: flaw}
			s.play(t, [][]Pool{coarse, fine, coarse}, 1500)
			if s.fault != "" {
				faults = append(faults, fmt.Sprintf("seed %d: %s", seed, s.fault))
				if flaw != "" {
					return faults, given
				}
			}
			given += s.version
		}
		return faults, given
	}
	most := uint64(60)
	if testing.Short() {
		most = 15
	}
	faults, given := plays("", most)
	if len(faults) > 0 {
		t.Errorf("overlaps in %d of %d plays:\n%s", len(faults), most, strings.Join(faults, "\n"))
	}
	if given < 20*int(most) {
		t.Errorf("%d writes of the ledger in %d plays are too few to show anything", given, most)
	}
	// The play is worth what it finds: each part of the protocol, left out, leads to overlaps.
	for _, flaw := range []string{"the ledger is written over", "promises are forgotten", "the list is older than the ledger", "the UID is not tested", "pod CIDRs are not tested"} {
		t.Run(flaw, func(t *testing.T) {
			if faults, _ := plays(flaw, 300); len(faults) == 0 {
				t.Error("no overlap in 300 plays")
			} else {
				t.Log(faults[0])
			}
		})
	}
}
