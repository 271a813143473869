package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

// flannelNode returns a Node of flannel with both families; changes are pairs of an annotation's name and its value, and
// "-" deletes it.
func flannelNode(changes ...string) Node {
	n := Node{Name: "n1", Origin: "kubectl edit node n1", Annotations: map[string]string{
		flannelManaged: "true", flannelBackend: "vxlan", flannelData: `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:01"}`, flannelAddr: "10.0.0.21",
		flannelData6: `{"VNI":1,"VtepMAC":"4E:2D:F2:44:0A:06"}`, flannelAddr6: "fd00:10::21",
	}}
	for i := 0; i < len(changes); i += 2 {
		key := "flannel.alpha.coreos.com/" + changes[i]
		if n.Annotations[key] = changes[i+1]; changes[i+1] == "-" {
			delete(n.Annotations, key)
		}
	}
	return n
}

func TestNodeOfFlannel(t *testing.T) {
	const four, six = "1 4e:2d:f2:44:0a:01 10.0.0.21", "1 4e:2d:f2:44:0a:06 fd00:10::21"
	for _, test := range []struct {
		name    string
		n       Node
		want    string // backend, and the two ends
		problem string // the annotation, and what it has
	}{
		{"both families", flannelNode(), "vxlan " + four + " " + six, ""},
		{"not managed by flannel", flannelNode("kube-subnet-manager", "false"), "", ""},
		{"no annotation", Node{Name: "n1"}, "", ""},
		{"IPv4 only", flannelNode("backend-v6-data", "-", "public-ipv6", "-"), "vxlan " + four + " -", ""},
		{"IPv6 only, as flannel writes it", flannelNode("backend-data", "null", "public-ip", "0.0.0.0"), "vxlan - " + six, ""},
		{"another backend", flannelNode("backend-type", "host-gw", "backend-data", "null"), "host-gw - -", ""},
		{"another VNI", flannelNode("backend-data", `{"VNI":4096,"VtepMAC":"4e:2d:f2:44:0a:01"}`), "vxlan 4096 4e:2d:f2:44:0a:01 10.0.0.21 " + six, ""},
		{"a key that is new", flannelNode("backend-data", `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:01","Port":8472}`), "vxlan " + four + " " + six, ""},
		{"no backend", flannelNode("backend-type", "-"), " - -", `backend-type, got nothing`},
		{"a backend with a terminal's codes", flannelNode("backend-type", "vx\x1b[2Jlan"), " - -", `backend-type, got "vx\x1b[2Jlan"`},
		{"no JSON", flannelNode("backend-data", "4e:2d:f2:44:0a:01"), "vxlan - " + six, `backend-data, got "4e:2d:f2:44:0a:01"`},
		{"no MAC", flannelNode("backend-data", `{"VNI":1}`), "vxlan - " + six, `backend-data, got "{\"VNI\":1}"`},
		{"a MAC of eight bytes", flannelNode("backend-data", `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:01:02:03"}`), "vxlan - " + six, `backend-data, got`},
		{"a multicast MAC", flannelNode("backend-data", `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`), "vxlan - " + six, `backend-data, got`},
		{"a VNI of no VXLAN", flannelNode("backend-data", `{"VNI":16777216,"VtepMAC":"4e:2d:f2:44:0a:01"}`), "vxlan - " + six, `backend-data, got`},
		{"a negative VNI", flannelNode("backend-data", `{"VNI":-1,"VtepMAC":"4e:2d:f2:44:0a:01"}`), "vxlan - " + six, `backend-data, got`},
		{"no address", flannelNode("public-ip", "-"), "vxlan - " + six, `public-ip, got nothing`},
		{"no unicast address", flannelNode("public-ip", "0.0.0.0"), "vxlan - " + six, `public-ip, got "0.0.0.0"`},
		{"an address of the other family", flannelNode("public-ipv6", "10.0.0.21"), "vxlan " + four + " -", `public-ipv6, got "10.0.0.21"`},
		{"a mapped address", flannelNode("public-ipv6", "::ffff:10.0.0.21"), "vxlan " + four + " -", `public-ipv6, got "::ffff:10.0.0.21"`},
		{"an address with a zone", flannelNode("public-ipv6", "fe80::1%eth0"), "vxlan " + four + " -", `public-ipv6, got "fe80::1%eth0"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, problems, ok := test.n.Flannel()
			got := ""
			if ok {
				got = f.Backend
				for _, e := range []*FlannelEnd{f.V4, f.V6} {
					if e == nil {
						got += " -"
					} else {
						got += fmt.Sprintf(" %d %s %v", e.VNI, e.MAC, e.Addr)
					}
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if (test.problem == "") != (len(problems) == 0) || len(problems) > 1 {
				t.Fatalf("problems %v, want %q", problems, test.problem)
			}
			for _, p := range problems {
				if p.Reason != BadAnnotation || p.Object != "Node/n1" || !strings.Contains(p.String(), "flannel.alpha.coreos.com/"+test.problem) {
					t.Errorf("problem %s: %v, want %q", p.Reason, p, test.problem)
				}
			}
		})
	}
}

// A kubelet that was broken into writes as much as a Node may have: no other node keeps it.
func TestLongAnnotationOfFlannel(t *testing.T) {
	text := flannelNode("backend-data", `{"VNI":1,"VtepMAC":"`+strings.Repeat("4e:ä", 50_000)+`"}`, "backend-type", strings.Repeat("x", 100_000))
	text.Annotations = FlannelAnnotations(text.Annotations)
	size := 0
	for _, value := range text.Annotations {
		size += len(value)
		if !utf8.ValidString(value) {
			t.Errorf("%q", value)
		}
	}
	f, problems, ok := text.Flannel()
	if size > 1<<10 || !ok || f.Backend != "" || len(problems) != 1 || len(problems[0].String()) > 500 {
		t.Errorf("%d bytes of annotations, %v, %v", size, f, problems)
	}
}

// What is written is read again as it was. Each change of one end changes the texts of both ends, because flannel with two
// families takes no notice of a change of one.
func TestFlannelAnnotations(t *testing.T) {
	four := FlannelEnd{VNI: 1, MAC: "4e:2d:f2:44:0a:01", Addr: netip.MustParseAddr("10.0.0.21")}
	six := FlannelEnd{VNI: 1, MAC: "4e:2d:f2:44:0a:06", Addr: netip.MustParseAddr("fd00:10::21")}
	both := Flannel{Backend: "vxlan", V4: &four, V6: &six}
	texts := both.Annotations()
	moved := four
	moved.Addr = netip.MustParseAddr("10.0.0.22")
	for _, f := range []Flannel{{Backend: "vxlan", V4: &four}, {Backend: "vxlan", V6: &six}, {Backend: "vxlan", V4: &moved, V6: &six}, both} {
		all := f.Annotations()
		again, problems, ok := Node{Annotations: all}.Flannel()
		if !again.Equal(f) || !ok || len(problems) > 0 || again.Equal(both) != maps.Equal(all, texts) {
			t.Errorf("%v is read as %v %v %v", all, ok, again, problems)
		}
		if !f.Equal(both) && (all[flannelData] == texts[flannelData] || all[flannelData6] == texts[flannelData6]) {
			t.Errorf("flannel does not see the change from %v to %v", all, texts)
		}
	}
	want := flannelNode("backend-data", `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:01","Addrs":["10.0.0.21","fd00:10::21"]}`,
		"backend-v6-data", `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:06","Addrs":["10.0.0.21","fd00:10::21"]}`).Annotations
	if !maps.Equal(texts, want) {
		t.Errorf("got %v, want %v", texts, want)
	}
}
