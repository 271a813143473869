package ipam

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A child of TestKill does random work on the store named here, until it is killed.
const childEnv, roundEnv = "IPAM_TEST_CHILD", "IPAM_TEST_ROUND"

func TestMain(m *testing.M) {
	if name := os.Getenv(storyEnv); name != "" {
		if err := tellStory(name, os.Getenv(storyPathEnv)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(childEnv); path != "" {
		if err := child(path, os.Getenv(roundEnv)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child says before each change what it wants ("try ID") and after it what was answered
// ("held ID ADDRS", "gone ID").
func child(path, round string) error {
	s, err := Open(context.Background(), path, Options{BootID: "boot-1"})
	if err != nil {
		return err
	}
	fmt.Println("open")
	p := Pool{Sets: []RangeSet{{{Subnet: netip.MustParsePrefix("10.1.0.0/22")}}, {{Subnet: netip.MustParsePrefix("fd00::/64")}}}}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...) // one write, unbuffered
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), uint64(time.Now().UnixNano())))
			var mine []Attachment
			for n := 0; ; n++ {
				if g == 0 && n%16 == 15 {
					if err := s.Backup(context.Background()); err != nil {
						say("error %v", err)
					}
				}
				if len(mine) > 0 && r.IntN(5) < 2 {
					a := mine[0]
					mine = mine[1:]
					say("try %s", a.ContainerID)
					if _, ok, err := s.Release(context.Background(), a); !ok || err != nil {
						say("error release %s: %v %v", a, ok, err)
						return
					}
					say("gone %s", a.ContainerID)
					continue
				}
				req := Request{Attachment: Attachment{fmt.Sprintf("r%s-%d-%d", round, g, n), "eth0"}, Network: "n", Pod: Pod{"d", fmt.Sprint("p", r.IntN(50)), ""}, Pool: &p}
				if len(mine) > 40 {
					continue
				}
				say("try %s", req.Attachment.ContainerID)
				l, err := s.Allocate(context.Background(), req)
				if err != nil {
					say("error %v", err)
					return
				}
				mine = append(mine, req.Attachment)
				say("held %s %s", req.Attachment.ContainerID, addrStrings(l.Addrs))
			}
		})
	}
	wg.Wait()
	return nil
}

func TestKill(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 4
	}
	path := filepath.Join(ramDir(t), "ipam.db")
	r := random(t)
	acked := map[string]string{} // container ID -> addresses, "" when released
	open := map[string]bool{}    // a change was under way
	answers := 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path, fmt.Sprintf("%s=%d", roundEnv, round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			switch {
			case f[0] == "open":
				// From now on at any time; nothing is waited for.
				kill.Reset(time.Duration(r.IntN(20000)) * time.Microsecond)
			case f[0] == "try":
				open[f[1]] = true
			case f[0] == "held":
				acked[f[1]] = f[2]
				delete(open, f[1])
				answers++
			case f[0] == "gone":
				acked[f[1]] = ""
				delete(open, f[1])
				answers++
			default:
				t.Error(lines.Text())
			}
		}
		kill.Stop()
		cmd.Wait()
		checkKilled(t, path, acked, open)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills, %d answered changes, all of them there", rounds, answers)
}

// checkKilled compares what is in the store with what was answered, and takes over what was
// under way.
func checkKilled(t *testing.T, path string, acked map[string]string, underWay map[string]bool) {
	t.Helper()
	s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]string{}
	for _, l := range leases {
		is[l.Attachment.ContainerID] = addrStrings(l.Addrs)
	}
	for id, addrs := range acked {
		if is[id] != addrs && !underWay[id] {
			t.Errorf("%s: answered %q, found %q", id, addrs, is[id])
		}
	}
	for id := range is {
		if acked[id] != is[id] && !underWay[id] {
			t.Errorf("%s: found %q, answered %q", id, is[id], acked[id])
		}
	}
	for id := range underWay {
		acked[id] = is[id]
		delete(underWay, id)
	}
	// Make room for the next rounds, so that the store does not only grow.
	for i, l := range leases {
		if i%2 == 0 {
			if _, ok, err := s.Release(t.Context(), l.Attachment); !ok || err != nil {
				t.Fatal(err)
			}
			acked[l.Attachment.ContainerID] = ""
		}
	}
}

// TestPowerLoss makes the files that a power cut can leave behind. A commit of bbolt
// (tx.go, Commit) is: grow the file, fsync; write pages; fdatasync; write the meta page;
// fdatasync. So each sector of the pages may or may not have reached the disk while the old
// meta page stands, and the meta page, one sector, is old or new once all pages are there.
// A disk that lies about fdatasync can also leave the new meta page without its pages. Without
// any of them no lease may be lost without an error and no address be given twice; of a part,
// a page that is an older one whole in itself cannot be told, and only a crash is ruled out.
func TestPowerLoss(t *testing.T) {
	commits := 120
	if testing.Short() {
		commits = 12
	}
	r := random(t)
	dir := ramDir(t)
	path := filepath.Join(dir, "ipam.db")
	s := open(t, path, "boot-1")
	p := testPool(t, "10.1.0.0/16", "fd00::/64")
	if err := s.SetPool(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	before, living := readFile(t, path), node{}
	states, outcomes := 0, map[string]int{}
	var last []Attachment
	for i := range commits {
		prev := node{}
		for k, v := range living {
			prev[k] = v
		}
		if len(last) > 3 && r.IntN(3) == 0 {
			a := last[r.IntN(len(last))]
			if _, ok, err := s.Release(t.Context(), a); err != nil {
				t.Fatal(err)
			} else if ok {
				delete(living, a)
			}
		} else {
			l, err := s.Allocate(t.Context(), request(fmt.Sprintf("%064d", i), fmt.Sprint("pod", r.IntN(40))))
			if err != nil {
				t.Fatal(err)
			}
			living[l.Attachment] = l
			last = append(last, l.Attachment)
		}
		after := readFile(t, path)
		grown := append(append([]byte(nil), before...), make([]byte, max(0, len(after)-len(before)))...)
		sectors, meta := changed(grown, after)
		copyPath := filepath.Join(dir, "cut", "ipam.db")
		try := func(data []byte, want node, what string) {
			states++
			fresh(t, copyPath, data)
			s, err := Open(t.Context(), copyPath, Options{BootID: "boot-1"})
			if err != nil {
				t.Fatalf("commit %d, %s: %v", i, what, err)
			}
			holds(t, s, want)
			s.Close()
		}
		try(before, prev, "before the file grew")
		try(grown, prev, "after the file grew")
		for range 3 {
			try(patch(grown, after, sectors, r), prev, "some sectors written")
		}
		whole := patch(grown, after, sectors, nil)
		try(whole, prev, "all pages written, old meta page")
		try(patch(whole, after, meta, nil), living, "meta page written")
		// The lying disk.
		fresh(t, copyPath, patch(patch(grown, after, sectors, r), after, meta, nil))
		outcomes[opens(t, copyPath)]++
		fresh(t, copyPath, patch(grown, after, meta, nil))
		outcomes[survives(t, copyPath, living, fmt.Sprintf("commit %d without its pages", i))]++
		before = after
	}
	t.Logf("%d states of %d commits; on a lying disk: %v", states, commits, outcomes)
}

// opens uses a file whose content nobody can vouch for.
func opens(t *testing.T, path string) string {
	s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
	if err != nil {
		return "found by open"
	}
	defer s.Close()
	_, err = s.Allocate(t.Context(), request("x", "pod1"))
	_, _, err2 := s.Release(t.Context(), Attachment{"x", "eth0"})
	if err != nil || err2 != nil || s.Check() != nil {
		return "found in use"
	}
	return "not found"
}

func fresh(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, path, data)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const sector = 512

// changed lists the sectors that differ, those of the meta pages apart.
func changed(a, b []byte) (pages, meta []int) {
	for at := 0; at+sector <= len(b); at += sector {
		switch {
		case bytes.Equal(a[at:at+sector], b[at:at+sector]):
		case at < 2*4096:
			meta = append(meta, at)
		default:
			pages = append(pages, at)
		}
	}
	return pages, meta
}

// patch writes sectors of b over a: all of them, or a random half.
func patch(a, b []byte, sectors []int, r *rand.Rand) []byte {
	out := append([]byte(nil), a...)
	for _, at := range sectors {
		if r == nil || r.IntN(2) == 0 {
			copy(out[at:at+sector], b[at:at+sector])
		}
	}
	return out
}
