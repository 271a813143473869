package switchconf

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing")

// everything is a switch with each thing that a configuration can say.
func everything() Switch {
	p := netip.MustParsePrefix
	return Switch{
		Address: netip.MustParseAddr("10.0.10.1"), Port: 1179, ASN: 65002, Restart: 600, LongLived: 259200,
		Neighbours: []Neighbour{
			{Node: "node-1", Address: netip.MustParseAddr("10.0.10.11"), ASN: 65010, TTLSecurity: true, Secret: "the key password of Secret kube-system/bgp"},
			{Node: "node-2.shop", Address: netip.MustParseAddr("10.0.20.12"), ASN: 65010, MultihopTTL: 3},
		},
		Families: []Family{
			{In: []Filter{Exact(p("10.10.1.0/24")), {p("10.20.0.0/16"), 24, 24}}, Out: []Filter{Exact(p("0.0.0.0/0")), Inside(p("192.168.0.0/16"))}, Most: 20},
			{IPv6: true, In: []Filter{Exact(p("fd00:10:1::/64"))}, Most: 16},
		},
	}
}

// Each vendor's golden file was written from the vendor's manual, which the template names.
func TestVendors(t *testing.T) {
	if len(Vendors()) != 11 {
		t.Errorf("vendors: %v", Vendors())
	}
	for _, v := range Vendors() {
		t.Run(v, func(t *testing.T) {
			got, err := Write(v, everything())
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", v+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			source, err := files.ReadFile("templates/" + v + ".tmpl")
			if err != nil || !strings.HasPrefix(string(source), "{{/* The manual: ") {
				t.Errorf("the template does not begin with the manual: %v", err)
			}
			if run := v == "frr" || v == "bird" || v == "openbgpd"; run == strings.Contains(got, "Not run on the device.") {
				t.Error("does it say whether it was run on the device?")
			}
		})
	}
	if _, err := Write("cisco", everything()); err == nil || !strings.Contains(err.Error(), "cisco-nxos") {
		t.Errorf("an unknown vendor: %v", err)
	}
}
