package plugin

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkAttachment is one ADD and one DEL as the daemon runs them. On a machine that does other
// work the median and the processor time say more than the mean.
func BenchmarkAttachment(b *testing.B) {
	h := newHost(b)
	n := h.node(b)
	for _, family := range []struct{ name, ipam string }{
		{"v4", `"ipam":{"ranges":[[{"subnet":"10.99.0.0/16"}]]}`},
		{"dual", pool},
		{"masq", `"ipam":{"ranges":[[{"subnet":"10.99.0.0/16"}]]},"ipMasq":true`},
	} {
		for _, verb := range []string{"ADD", "DEL"} {
			b.Run(family.name+"/"+verb, func(b *testing.B) {
				pod := newSpace(b)
				c := call{id: "bench", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", family.ipam, `"mtu":1450`)}
				run := func(v string) {
					c.verb = v
					if reply := c.do(b, n); reply.Failed {
						b.Fatal(string(reply.Output))
					}
				}
				var took []time.Duration
				var spent time.Duration
				for i := range b.N {
					c.id = fmt.Sprintf("bench%d", i)
					for _, v := range []string{"ADD", "DEL"} {
						begin, used := time.Now(), processorTime(b)
						run(v)
						if v == verb {
							took, spent = append(took, time.Since(begin)), spent+processorTime(b)-used
						}
					}
				}
				slices.Sort(took)
				b.ReportMetric(0, "ns/op") // of both verbs
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
				b.ReportMetric(float64(took[0].Microseconds()), "min-us")
				b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "cpu-us")
			})
		}
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
