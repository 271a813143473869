package lab

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRoutes(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"none", "", "[]"},
		{"on the link", `[{"dst":"10.0.0.0/16","dev":"eth0","protocol":"kernel","scope":"link","flags":[]}]`, "[10.0.0.0/16 dev eth0]"},
		{"via", `[{"dst":"10.10.1.0/24","gateway":"10.0.0.11","dev":"eth0","protocol":"bird","metric":32,"flags":[]}]`, "[10.10.1.0/24 via 10.0.0.11]"},
		{"host", `[{"dst":"10.10.0.2","dev":"ew1","flags":[]}]`, "[10.10.0.2/32 dev ew1]"},
		{"default", `[{"dst":"default","gateway":"10.0.0.1","dev":"eth0","flags":[]}]`, "[0.0.0.0/0 via 10.0.0.1]"},
		{"default of IPv6", `[{"dst":"default","gateway":"fd00:10::1","dev":"eth0","flags":[]}]`, "[::/0 via fd00:10::1]"},
		{"several next hops, sorted", `[{"dst":"10.10.2.0/24","nexthops":[{"gateway":"10.0.0.13","dev":"lan"},{"gateway":"10.0.0.12","dev":"lan"},{"gateway":"10.0.0.12","dev":"lan"}]}]`,
			"[10.10.2.0/24 via 10.0.0.12 via 10.0.0.13]"},
		{"next hop of the other family", `[{"dst":"10.10.1.0/24","via":{"family":"inet6","host":"fd00:10::11"},"dev":"eth0"}]`, "[10.10.1.0/24 via fd00:10::11]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			routes, err := parseRoutes(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, fmt.Sprint(routes)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
