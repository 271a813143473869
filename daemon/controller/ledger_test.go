package controller

import (
	"strings"
	"testing"
)

func TestLedgerMistakes(t *testing.T) {
	for text, want := range map[string]string{
		`{"promised":[{"node":"a","podCIDRs":["10.10.0.0/24"]}]}`:           `ledger: promised to "a": want a uid`,
		`{"promised":[{"node":"a","uid":"u"}]}`:                             `ledger: promised to "a": want a uid and CIDRs`,
		`{"promised":[{"node":"a","uid":"u","podCIDRs":[""]}]}`:             `ledger: promised to "a": want a uid and CIDRs`,
		`{"promised":[{"node":"a","uid":"u","podCIDRs":["10.10.0.1/24"]}]}`: `ledger: promised to "a": want a uid and CIDRs`,
		`{"released":[{"node":"a","podCIDRs":["::ffff:10.0.0.0/120"]}]}`:    `ledger: released by "a": want CIDRs`,
		`{"next":{"10.10.0.0/16":"10.11.0.0"}}`:                             "ledger: next: want an address in 10.10.0.0/16, got 10.11.0.0",
		`{"next":{"10.10.0.0/16":""}}`:                                      "ledger: next: want an address in 10.10.0.0/16",
		`[]`:                                                                "ledger: json",
	} {
		if _, err := parseLedger(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

// Any text in the ConfigMap is refused, or it comes back the same and can be used.
func FuzzLedger(f *testing.F) {
	f.Add("")
	f.Add(`{"promised":[{"node":"a","uid":"u","podCIDRs":["10.10.0.0/24","fd00:10::/64"]}],"released":[{"node":"b","podCIDRs":["10.10.1.0/24"]}],"next":{"10.10.0.0/16":"10.10.2.0"}}`)
	f.Add(`{"promised":[{"node":"a","uid":"uid-a","podCIDRs":["0.0.0.0/0","::/0"]}],"next":{"255.255.255.255/32":"255.255.255.255"}}`)
	pools := []Pool{pool(f, "10.10.0.0/16", "fd00:10::/48")}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseLedger(text)
		if err != nil {
			return
		}
		again, err := parseLedger(l.String())
		if err != nil || !again.equal(l) {
			t.Fatalf("%v comes back as %v, %v", l, again, err)
		}
		s := State{Pools: pools, Ledger: l, Nodes: []Node{node("a"), node("b"), node("c", "10.10.7.0/24")}}
		checkPlan(t, s, allocate(s))
	})
}
