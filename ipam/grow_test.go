package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// written is what this process wrote to files so far: system calls and bytes.
func written(t testing.TB) (calls, bytes int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	var skip int64
	if _, err := fmt.Sscanf(string(data), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d", &skip, &bytes, &skip, &calls); err != nil {
		t.Fatal(err)
	}
	return calls, bytes
}

// costs are what the commits of a store wrote.
type costs struct{ calls, bytes []int64 }

func (c *costs) add(t testing.TB, do func()) {
	calls, bytes := written(t)
	do()
	calls2, bytes2 := written(t)
	c.calls, c.bytes = append(c.calls, calls2-calls), append(c.bytes, bytes2-bytes)
}

func median(x []int64) int64 { slices.Sort(x); return x[len(x)/2] }

// Beside many leases the trees are one or two pages deeper: what a commit writes is counted, since times
// depend on who else is on the machine.
func TestLeaseBesideManyWritesLittleMore(t *testing.T) {
	many := 20000
	if testing.Short() {
		many = 2000
	}
	var lease, release [2]costs
	for i, n := range []int{10, many} {
		s := newStore(t, "10.1.0.0/16")
		fill(t, s, n)
		for k := range 400 {
			req := request(fmt.Sprintf("x%063d", k), fmt.Sprint("x", k))
			lease[i].add(t, func() { add(t, s, req) })
			release[i].add(t, func() { del(t, s, req.Attachment.ContainerID) })
		}
		t.Logf("beside %d: a lease writes %d times %d bytes, a release %d times %d bytes (median)",
			n, median(lease[i].calls), median(lease[i].bytes), median(release[i].calls), median(release[i].bytes))
	}
	for name, c := range map[string][2]costs{"lease": lease, "release": release} {
		if few, lot := median(c[0].calls), median(c[1].calls); lot > 2*few {
			t.Errorf("a %s writes %d times beside %d others, %d times beside 10", name, lot, many, few)
		}
		if few, lot := median(c[0].bytes), median(c[1].bytes); lot > 2*few {
			t.Errorf("a %s writes %d bytes beside %d others, %d beside 10", name, lot, many, few)
		}
	}
}

// A pool too large to run out does not make the store grow for ever: each pod has another name, as those of
// a Job have.
func TestStoreOfManyShortPodsStaysSmall(t *testing.T) {
	s := open(t, filepath.Join(ramDir(t), "ipam.db"), "boot-1")
	if err := s.SetPool(t.Context(), testPool(t, "fd00::/64")); err != nil {
		t.Fatal(err)
	}
	s.maxFree = 50
	sizes := map[int]int64{}
	for i := range 1000 {
		add(t, s, request(fmt.Sprint("c", i), fmt.Sprint("pod", i)))
		if i >= 10 {
			del(t, s, fmt.Sprint("c", i-10))
		}
		sizes[i] = int64(len(readFile(t, s.path)))
	}
	memories, err := s.Remembered()
	if err != nil || len(memories) != 50 || memories[0].Pod.Name != "pod940" {
		t.Fatal(len(memories), memories, err)
	}
	if sizes[999] != sizes[200] {
		t.Errorf("%d bytes after 200 pods, %d after 1000", sizes[200], sizes[999])
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	// The addresses are those of the first pods, the longest free next.
	want(t, add(t, s, request("next", "next")), addrStrings([]netip.Addr{memories[0].Addr}))
	want(t, add(t, s, request("again", "pod985")), addrStrings([]netip.Addr{memories[45].Addr}))
}

// Many live leases under one pod's name do not make the next one dearer.
func TestManyLeasesOfOnePod(t *testing.T) {
	s := newStore(t, "10.1.0.0/16", "fd00::/64")
	asked := 0
	for i := range 400 {
		req := request(fmt.Sprint("c", i), "twin")
		asked = 0
		req.Dead = func(Lease) bool { asked++; return false }
		add(t, s, req)
		if asked > 2*maxAsked {
			t.Fatalf("lease %d asked for %d others", i, asked)
		}
	}
	// The last that are dead are still found.
	req := request("again", "twin")
	req.Dead = func(l Lease) bool { return l.Attachment.ContainerID == "c395" }
	want(t, add(t, s, req), "10.1.1.140,fd00::18c")
	// A free one is, however many are held.
	del(t, s, "c7")
	req = request("free", "twin")
	req.Dead = func(Lease) bool { return false }
	want(t, add(t, s, req), "10.1.0.8,fd00::8")
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}
