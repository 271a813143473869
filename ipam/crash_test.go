package ipam

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	if mib := os.Getenv(limitEnv); mib != "" {
		limitMemory(mib)
	}
	if path := os.Getenv(bareEnv); path != "" {
		bare(path)
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

// checkKilled compares the store with the answers, and takes over the changes that were under way.
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

// cuts are the files before and after one commit.
type cuts struct {
	before, after []byte // of one length
	pages, meta   []int  // sectors that differ
}

func newCuts(before, after []byte) cuts {
	grown := append(append([]byte(nil), before...), make([]byte, max(0, len(after)-len(before)))...)
	pages, meta := changed(grown, after)
	return cuts{grown, after, pages, meta}
}

// commitStream changes a store over and over, and calls each with what lives before and after it. Some
// commits are large enough to write the trees.
func commitStream(t *testing.T, r *rand.Rand, path string, commits int, each func(i int, c cuts, prev, living node)) {
	s := open(t, path, "boot-1")
	if err := s.SetPool(t.Context(), testPool(t, "10.1.0.0/16", "fd00::/64")); err != nil {
		t.Fatal(err)
	}
	before, living := readFile(t, path), node{}
	var last []Attachment
	for i := range commits {
		prev := maps.Clone(living)
		switch n := r.IntN(12); {
		case n == 0 && i < 100:
			var many []Lease
			for k := range 120 {
				l := Lease{Attachment: Attachment{fmt.Sprintf("%d-%059d", i, k), "eth0"}, Pod: Pod{"default", fmt.Sprint("m", i, k), ""},
					Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(100 + i), byte(k)})}}
				many = append(many, l)
				living[l.Attachment] = l
			}
			if err := s.Import(t.Context(), many); err != nil {
				t.Fatal(err)
			}
		case n < 4 && len(last) > 3:
			k := r.IntN(len(last))
			a := last[k]
			last = slices.Delete(last, k, k+1)
			if _, ok, err := s.Release(t.Context(), a); err != nil || !ok {
				t.Fatal(ok, err)
			}
			delete(living, a)
		default:
			l, err := s.Allocate(t.Context(), request(fmt.Sprintf("%064d", i), fmt.Sprint("pod", r.IntN(40))))
			if err != nil {
				t.Fatal(err)
			}
			living[l.Attachment] = l
			last = append(last, l.Attachment)
		}
		after := readFile(t, path)
		each(i, newCuts(before, after), prev, living)
		before = after
	}
}

// TestPowerLoss makes the files that a power cut can leave behind. A commit of bbolt
// (tx.go, Commit) is: grow the file, fsync; write pages; fdatasync; write the meta page;
// fdatasync. So each sector of the pages may or may not have reached the disk while the old
// meta page stands, and the meta page, one sector, is old or new once all pages are there.
func TestPowerLoss(t *testing.T) {
	if limited(t) {
		return
	}
	commits := 60
	if testing.Short() {
		commits = 12
	}
	r := random(t)
	dir := ramDir(t)
	states := 0
	commitStream(t, r, filepath.Join(dir, "ipam.db"), commits, func(i int, c cuts, prev, living node) {
		cut := filepath.Join(dir, "cut", "ipam.db")
		try := func(data []byte, want node, what string) {
			states++
			fresh(t, cut, data)
			s, err := Open(t.Context(), cut, Options{BootID: "boot-1"})
			if err != nil {
				t.Fatalf("commit %d, %s: %v", i, what, err)
			}
			holds(t, s, want)
			s.Close()
		}
		try(c.before, prev, "after the file grew")
		for range 3 {
			try(patch(c.before, c.after, c.pages, r), prev, "some sectors written")
		}
		whole := patch(c.before, c.after, c.pages, nil)
		try(whole, prev, "all pages written, old meta page")
		try(patch(whole, c.after, c.meta, nil), living, "meta page written")
	})
	t.Logf("%d states of %d commits", states, commits)
}

// A disk that says too early that it wrote can leave the new meta page without some of its pages, or
// without some of the commits before it. The loss is found when the store is first opened
// after the boot, so that no address is given twice and no lease is missing without an error.
func TestDiskThatLies(t *testing.T) {
	if limited(t) {
		return
	}
	commits := 100
	if testing.Short() {
		commits = 12
	}
	r := random(t)
	dir := ramDir(t)
	outcomes := map[string]int{}
	var past [][]byte
	commitStream(t, r, filepath.Join(dir, "ipam.db"), commits, func(i int, c cuts, _, living node) {
		cut := filepath.Join(dir, "cut", "ipam.db")
		try := func(data []byte, what string) {
			fresh(t, cut, patch(data, c.after, c.meta, nil))
			outcome := opens(t, cut, living)
			if outcomes[outcome]++; outcome == "not found" || outcome == "found in use" {
				t.Errorf("commit %d, %s: %s", i, what, outcome)
			}
		}
		try(patch(c.before, c.after, c.pages, r), "some sectors")
		try(c.before, "no page")
		for range 4 {
			try(patchPages(c.before, c.after, r), "some pages")
		}
		for k, old := range past {
			o := newCuts(old, c.after)
			try(patchPages(o.before, o.after, r), fmt.Sprintf("some pages of the last %d commits", len(past)-k+1))
		}
		if i%8 == 0 { // also while the boot lasts
			fresh(t, cut, patch(c.before, c.after, c.meta, nil))
			survives(t, cut, living, fmt.Sprintf("commit %d without its pages", i))
		}
		if past = append(past, c.before); len(past) > 3 {
			past = past[1:]
		}
	})
	t.Logf("%d commits: %v", commits, outcomes)
}

// patchPages writes a random part of the pages that differ, each as a whole.
func patchPages(a, b []byte, r *rand.Rand) []byte {
	out := append([]byte(nil), a...)
	for at := 2 * 4096; at < len(b); at += 4096 {
		if r.IntN(4) > 0 {
			copy(out[at:at+4096], b[at:at+4096])
		}
	}
	return out
}

// opens uses a file whose content nobody can vouch for, after a boot.
func opens(t *testing.T, path string, living node) string {
	s, err := Open(t.Context(), path, Options{BootID: "boot-2"})
	if err != nil {
		return "found by open"
	}
	defer s.Close()
	leases, err := s.Leases()
	if err != nil || s.Check() != nil {
		return "found in use"
	}
	if len(leases) != len(living) {
		return "not found"
	}
	for _, l := range leases {
		if addrStrings(l.Addrs) != addrStrings(living[l.Attachment].Addrs) {
			return "not found"
		}
	}
	return "harmless"
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
