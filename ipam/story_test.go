package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// story is the work of one recorded child.
type story struct {
	name string
	// prepare makes the files that are there before.
	prepare func(t testing.TB, path string) node
	// work is the work of the child. It says "try ID" before a change and "held ID ADDRS" or
	// "gone ID" when it was answered.
	work func(w *worker) error
	// lost: the store is damaged until the child says "open": what the node has decides.
	lost bool
	// unsynced: a process made the files that are there before, and was killed before it synced any name.
	unsynced bool
}

const storyEnv, storyPathEnv, statesEnv = "IPAM_TEST_STORY", "IPAM_TEST_STORY_PATH", "IPAM_TEST_STATES"

func stories() []story {
	nothing := func(testing.TB, string) node { return node{} }
	return []story{
		{name: "first commits", prepare: nothing, work: func(w *worker) error { return w.open(w.changes(90), w.together(12)) }},
		{name: "opened again and again", prepare: nothing, work: func(w *worker) error {
			for range 3 {
				if err := w.open(w.changes(35)); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "backup", prepare: nothing, work: func(w *worker) error {
			return w.open(w.changes(20), w.backup, w.changes(20), w.backup, w.together(8), w.backup, w.changes(5))
		}},
		{name: "import", prepare: nothing, work: func(w *worker) error { return w.open(w.imports(40), w.changes(10), w.imports(200), w.changes(10)) }},
		{name: "rebuild", lost: true, work: func(w *worker) error { return w.open(w.changes(10), w.backup, w.changes(5)) },
			prepare: func(t testing.TB, path string) node {
				living := filled(t, path, 50, true)
				return living.damaged(t, path)
			}},
		{name: "rebuild without a copy", lost: true, work: func(w *worker) error { return w.open(w.changes(10)) },
			prepare: func(t testing.TB, path string) node {
				living := filled(t, path, 50, false)
				return living.damaged(t, path)
			}},
		{name: "first open of a node with pods", lost: true, work: func(w *worker) error { return w.open(w.changes(10)) },
			prepare: func(t testing.TB, path string) node {
				living := filled(t, filepath.Join(t.TempDir(), "other"), 20, false)
				return living
			}},
		{name: "after one that was killed making it", unsynced: true, work: func(w *worker) error { return w.open(w.changes(10)) },
			prepare: func(t testing.TB, path string) node {
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				s := &Store{path: path}
				if err := errors.Join(s.build("", nil, &Rebuild{}), os.Rename(path+suffixNew, path)); err != nil {
					t.Fatal(err)
				}
				return node{}
			}},
		{name: "suspect", work: func(w *worker) error { return w.open(w.changes(10)) },
			prepare: func(t testing.TB, path string) node {
				living := filled(t, path, 50, true)
				copyFile(t, path+suffixSuspect, []byte("a test\n"))
				return living
			}},
		{name: "schema 1", work: afterEarlier, prepare: func(t testing.TB, path string) node { return prepareEarlier(t, 1, path) }},
		{name: "schema 2", work: afterEarlier, prepare: func(t testing.TB, path string) node { return prepareEarlier(t, 2, path) }},
	}
}

func (n node) damaged(t testing.TB, path string) node {
	t.Helper()
	if err := flip(path, 4096+20, 1); err != nil { // a meta page
		t.Fatal(err)
	}
	return n
}

func afterEarlier(w *worker) error { return w.open(w.changes(30), w.backup) }

// prepareEarlier lays out a store of an earlier schema, with its copy, and returns its leases.
func prepareEarlier(t testing.TB, schema int, path string) node {
	t.Helper()
	data, _ := earlier(t, schema)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, path, data)
	copyFile(t, path+suffixGood, data)
	other := filepath.Join(t.TempDir(), "ipam.db")
	copyFile(t, other, data)
	s := open(t, other, "boot-1")
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	living := node{}
	for _, l := range leases {
		living[l.Attachment] = l
	}
	return living
}

// worker is the child.
type worker struct {
	path string
	node node // what Recover says
	s    *Store
	r    *rand.Rand
	mine []Attachment
	n    int
}

// storeUnder is where the store lies below a story's root, which alone is there before.
const storeUnder = "state/edgeway/ipam.db"

// tellStory is the child's main.
func tellStory(name, path string) error {
	w := &worker{path: path, r: rand.New(rand.NewPCG(7, 1)), node: node{}}
	data, err := os.ReadFile(strings.TrimSuffix(path, "/"+storeUnder) + ".node")
	if err != nil {
		return err
	}
	var leases []Lease
	if err := json.Unmarshal(data, &leases); err != nil {
		return err
	}
	for _, l := range leases {
		w.node[l.Attachment] = l
	}
	i := slices.IndexFunc(stories(), func(s story) bool { return s.name == name })
	return stories()[i].work(w)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }

func (w *worker) open(steps ...func() error) (err error) {
	if w.s, err = Open(context.Background(), w.path, Options{BootID: "boot-1", Recover: w.node.recover}); err != nil {
		return err
	}
	say("open")
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return w.s.Close()
}

func (w *worker) request() Request {
	w.n++
	p := Pool{Sets: []RangeSet{{{Subnet: netip.MustParsePrefix("10.1.0.0/16")}}, {{Subnet: netip.MustParsePrefix("fd00::/64")}}}}
	return Request{Attachment: Attachment{fmt.Sprintf("%060d", w.n), "eth0"}, Network: "edgeway", Pod: Pod{"default", fmt.Sprint("w", w.r.IntN(30)), ""}, Pool: &p}
}

// changes leases and releases, one after the other.
func (w *worker) changes(n int) func() error {
	return func() error {
		for range n {
			if len(w.mine) > 3 && w.r.IntN(5) < 2 {
				i := w.r.IntN(len(w.mine))
				a := w.mine[i]
				w.mine = slices.Delete(w.mine, i, i+1)
				say("try %s", a.ContainerID)
				if _, ok, err := w.s.Release(context.Background(), a); err != nil || !ok {
					return fmt.Errorf("release: %v %w", ok, err)
				}
				say("gone %s", a.ContainerID)
				continue
			}
			if err := w.lease(w.request()); err != nil {
				return err
			}
		}
		return nil
	}
}

func (w *worker) lease(req Request) error {
	say("try %s", req.Attachment.ContainerID)
	l, err := w.s.Allocate(context.Background(), req)
	if err != nil {
		return err
	}
	say("held %s %s", req.Attachment.ContainerID, addrStrings(l.Addrs))
	w.mine = append(w.mine, req.Attachment)
	return nil
}

// together leases n at once: they share commits.
func (w *worker) together(n int) func() error {
	return func() error {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var errs []error
		for range n {
			req := w.request()
			say("try %s", req.Attachment.ContainerID)
			wg.Go(func() {
				l, err := w.s.Allocate(context.Background(), req)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
				w.mine = append(w.mine, req.Attachment)
				say("held %s %s", req.Attachment.ContainerID, addrStrings(l.Addrs))
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

func (w *worker) backup() error {
	err := w.s.Backup(context.Background())
	say("backed up")
	return err
}

// imports takes over n leases in one commit.
func (w *worker) imports(n int) func() error {
	return func() error {
		var leases []Lease
		var ids []string
		for range n {
			req := w.request()
			leases = append(leases, Lease{Attachment: req.Attachment, Pod: req.Pod, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(200 + w.n>>8), byte(w.n)})}})
			ids = append(ids, req.Attachment.ContainerID)
		}
		say("try %s", strings.Join(ids, " "))
		if err := w.s.Import(context.Background(), leases); err != nil {
			return err
		}
		for _, l := range leases {
			say("held %s %s", l.Attachment.ContainerID, addrStrings(l.Addrs))
		}
		return nil
	}
}
