package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The power cut, on what really went to the disk: a child process does the work of a story under
// strace(1), which records each call that changes a file with its data. After every call, and
// with every (or many) of the sets of calls that no sync has covered yet, whole and torn, the
// disk is laid out again and opened: every answered change must be there.

// answered are the answers that the child got until now.
type answered struct {
	open     bool
	backedUp bool
	lost     bool
	node     node
	held     map[string]string
	underWay map[string]bool
}

func (a *answered) hear(line string) {
	f := strings.Fields(line)
	switch f[0] {
	case "open":
		a.open = true
	case "backed":
		a.backedUp = true
	case "try":
		for _, id := range f[1:] {
			a.underWay[id] = true
		}
	case "held":
		a.held[f[1]] = f[2]
		delete(a.underWay, f[1])
	case "gone":
		delete(a.held, f[1])
		delete(a.underWay, f[1])
	}
}

func (a *answered) clone() *answered {
	b := *a
	b.held, b.underWay = maps.Clone(a.held), maps.Clone(a.underWay)
	return &b
}

// seen is what a store says after a power cut.
type seen struct {
	err      error
	leases   map[string]string
	goodErr  error
	goodGone bool
}

// look opens the files that a power cut left. Recovered leases are taken from living; nil: there must
// be nothing to recover.
func look(path string, living node) (x seen) {
	if good := path + suffixGood; exists(good) {
		x.goodErr = verify(good)
	} else {
		x.goodGone = true
	}
	opts := Options{BootID: "boot-1"}
	if living != nil {
		opts.Recover = living.recover
	}
	s, err := Open(context.Background(), path, opts)
	if err != nil {
		x.err = err
		return x
	}
	defer s.Close()
	leases, err := s.Leases()
	if x.err = errors.Join(err, s.Check()); x.err != nil {
		return x
	}
	x.leases = map[string]string{}
	taken := map[netip.Addr]string{}
	l, err := s.Allocate(context.Background(), (&worker{r: rand.New(rand.NewPCG(1, 1)), n: 1 << 20}).request())
	for _, l := range append(leases, l) {
		id := l.Attachment.ContainerID
		if x.leases[id] = addrStrings(l.Addrs); id == fmt.Sprintf("%060d", 1<<20+1) {
			delete(x.leases, id)
		}
		for _, a := range l.Addrs {
			if by, dup := taken[a]; dup {
				err = errors.Join(err, fmt.Errorf("%s is held by %s and %s", a, by, id))
			}
			taken[a] = id
		}
	}
	x.err = err
	return x
}

// judge compares the answers with the store.
func (a *answered) judge(x seen) error {
	switch {
	case x.err != nil:
		return x.err
	case x.goodErr != nil:
		return fmt.Errorf("the last good copy: %w", x.goodErr)
	case x.goodGone && a.backedUp:
		return errors.New("the last good copy is gone")
	}
	for id, addrs := range a.held {
		if x.leases[id] != addrs && !(a.underWay[id] && x.leases[id] == "") {
			return fmt.Errorf("%s: answered %q, found %q", id, addrs, x.leases[id])
		}
	}
	for id, addrs := range x.leases {
		if a.held[id] != addrs && !a.underWay[id] {
			return fmt.Errorf("%s: found %q, answered %q", id, addrs, a.held[id])
		}
	}
	return nil
}

func TestRecordedPowerLoss(t *testing.T) {
	needStrace(t)
	each := 5
	if testing.Short() {
		t.Skip("records real runs with strace")
	}
	if n, err := strconv.Atoi(os.Getenv(statesEnv)); err == nil {
		each = n
	}
	r := random(t)
	total := 0
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) { total += s.cut(t, r, each) })
	}
	t.Logf("%d states, up to %d for each call that was not synced yet (%s=%d)", total, each, statesEnv, each)
}

// cut records the story and cuts the power everywhere.
func (s story) cut(t *testing.T, r *rand.Rand, each int) int {
	home := ramDir(t)
	root := filepath.Join(home, "root")
	path := filepath.Join(root, storeUnder)
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	heard := &answered{held: map[string]string{}, underWay: map[string]bool{}, lost: s.lost}
	heard.node = s.prepare(t, path)
	var leases []Lease
	for _, l := range heard.node {
		leases = append(leases, l)
		heard.held[l.Attachment.ContainerID] = addrStrings(l.Addrs)
	}
	data, err := json.Marshal(leases)
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, root+".node", data)
	ops, before := trace(t, root, storyEnv+"="+s.name, storyPathEnv+"="+path)
	d := newDisk(root, before, s.unsynced)
	jobs := make(chan job)
	looks := &looks{found: map[uint64]*seen{}}
	done := looks.workers(t, home, root, jobs)
	states := 0
	try := func(m image, what string) {
		states++
		jobs <- job{m, heard.clone(), what}
	}
	for i, op := range ops {
		if t.Failed() {
			break
		}
		what := fmt.Sprintf("call %d of %d: %s", i, len(ops), op)
		if op.kind == "sync" || op.kind == "say" {
			for k, m := range d.some(r, each) {
				try(m, fmt.Sprintf("before %s, set %d", what, k))
			}
		}
		if d.do(op); op.kind == "say" {
			heard.hear(op.line)
		}
		try(d.all(), "after "+what)
	}
	for k, m := range d.some(r, each) {
		try(m, fmt.Sprintf("at the end, set %d", k))
	}
	close(jobs)
	done()
	t.Logf("%d calls, %d states, %d different ones", len(ops), states, looks.n)
	return states
}

// job is a state to look at.
type job struct {
	image
	heard *answered
	what  string
}

// looks are the different states of a story, each of which is opened once.
type looks struct {
	mu    sync.Mutex // guards found and n
	found map[uint64]*seen
	n     int
}

func (l *looks) workers(t *testing.T, home, root string, jobs chan job) (wait func()) {
	var wg sync.WaitGroup
	for n := range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			there := filepath.Join(home, fmt.Sprint("cut", n))
			for j := range jobs {
				if err := l.look(j, there, root); err != nil && !t.Failed() {
					t.Errorf("power cut %s: %v", j.what, err)
				}
			}
		})
	}
	return wg.Wait
}

func (l *looks) look(j job, there, root string) error {
	var living node
	if j.heard.lost && !j.heard.open {
		living = j.heard.node
	}
	key := j.sum(living != nil)
	l.mu.Lock()
	x := l.found[key]
	l.mu.Unlock()
	if x == nil {
		if err := j.write(there, root); err != nil {
			return err
		}
		found := look(filepath.Join(there, storeUnder), living)
		x = &found
		l.mu.Lock()
		l.found[key] = x
		l.n++
		l.mu.Unlock()
	}
	return j.heard.judge(*x)
}
