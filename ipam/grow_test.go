package ipam

import (
	"fmt"
	"os"
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

func sum(x []int64) (n int64) {
	for _, v := range x {
		n += v
	}
	return n
}

// A lease costs the same beside few and beside many: what a commit writes is counted, since times
// depend on who else is on the machine.
func TestLeaseBesideManyWritesNoMore(t *testing.T) {
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
		t.Logf("beside %d: a lease writes %d times %d bytes, a release %d times %d bytes (median); both and the trees, on average, %.1f times %d bytes",
			n, median(lease[i].calls), median(lease[i].bytes), median(release[i].calls), median(release[i].bytes),
			float64(sum(lease[i].calls)+sum(release[i].calls))/800, (sum(lease[i].bytes)+sum(release[i].bytes))/800)
	}
	for name, c := range map[string][2]costs{"lease": lease, "release": release} {
		if few, lot := median(c[0].calls), median(c[1].calls); lot > few {
			t.Errorf("a %s writes %d times beside %d others, %d times beside 10", name, lot, many, few)
		}
		if few, lot := median(c[0].bytes), median(c[1].bytes); lot*10 > few*11 {
			t.Errorf("a %s writes %d bytes beside %d others, %d beside 10", name, lot, many, few)
		}
	}
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
