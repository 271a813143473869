package plugin

import (
	"fmt"
	"testing"
)

// BenchmarkAttachment is one ADD and one DEL as the daemon runs them.
func BenchmarkAttachment(b *testing.B) {
	h := newHost(b)
	n := h.node(b)
	for _, family := range []struct{ name, ipam string }{
		{"v4", `"ipam":{"ranges":[[{"subnet":"10.99.0.0/16"}]]}`},
		{"dual", pool},
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
				other := map[string]string{"ADD": "DEL", "DEL": "ADD"}[verb]
				for i := 0; b.Loop(); i++ {
					c.id = fmt.Sprintf("bench%d", i)
					if verb == "ADD" {
						run("ADD")
						b.StopTimer()
						run(other)
						b.StartTimer()
						continue
					}
					b.StopTimer()
					run(other)
					b.StartTimer()
					run("DEL")
				}
			})
		}
	}
}
