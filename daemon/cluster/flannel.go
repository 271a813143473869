package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Flannel is what flannel says of a node, in annotations of the Node (flannel, pkg/subnet/kube).
type Flannel struct {
	Backend string // "vxlan", "host-gw", "wireguard", ...
	// V4 and V6 are where the node receives the packets of each family, in VXLAN. flannel carries each family in a
	// tunnel of that family. nil: the annotations do not say it.
	V4, V6 *FlannelEnd
}

// FlannelEnd is the end of flannel's tunnel of one family.
type FlannelEnd struct {
	VNI  uint32
	MAC  string // of the VXLAN link; lower case, colons
	Addr netip.Addr
}

// FlannelVXLAN is the only backend whose nodes tunnel as edgeway does.
const FlannelVXLAN = "vxlan"

var backendPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// FlannelVNI returns the VNI as annotations have it. Earlier versions of flannel keep 16 bits of it there, and refuse
// more of them (pkg/backend/vxlan: vxlanLeaseAttrs). No version uses the VNI of another node.
func FlannelVNI(vni uint32) uint32 { return vni & (1<<16 - 1) }

// Ends returns the ends that the annotations say.
func (f Flannel) Ends() (out []FlannelEnd) {
	for _, e := range []*FlannelEnd{f.V4, f.V6} {
		if e != nil {
			out = append(out, *e)
		}
	}
	return out
}

// The annotations. Their values are texts; flannelData and flannelData6 are JSON.
const (
	flannelManaged = "flannel.alpha.coreos.com/kube-subnet-manager"
	flannelBackend = "flannel.alpha.coreos.com/backend-type"
	flannelData    = "flannel.alpha.coreos.com/backend-data"
	flannelAddr    = "flannel.alpha.coreos.com/public-ip"
	flannelData6   = "flannel.alpha.coreos.com/backend-v6-data"
	flannelAddr6   = "flannel.alpha.coreos.com/public-ipv6"
)

// flannelKeys returns the annotations' keys.
func flannelKeys() []string {
	return []string{flannelManaged, flannelBackend, flannelData, flannelAddr, flannelData6, flannelAddr6}
}

// mostAnnotation bounds the value of an annotation, in bytes. Flannel's have at most 50. Annotations of a Node may have
// 256 KB, its kubelet writes them, and all nodes would keep them, and read them in NodeSlices.
const mostAnnotation = 256

// FlannelAnnotations returns flannel's annotations of all annotations of a Node; nil if there are none. A value that is too
// long is cut off, and then cannot be read.
func FlannelAnnotations(all map[string]string) map[string]string {
	out := kept(all, flannelKeys())
	for key, value := range out {
		if len(value) > mostAnnotation {
			out[key] = strings.ToValidUTF8(value[:mostAnnotation], "")
		}
	}
	return out
}

// flannelEnd is the JSON of one tunnel's end.
type flannelEnd struct {
	VNI     uint32
	VtepMAC string
}

// Flannel reads flannel's annotations of the node. ok is false if flannel does not say that it manages the node. The
// problems name each annotation that cannot be read; that end of the tunnel is nil.
func (n Node) Flannel() (f Flannel, problems []Problem, ok bool) {
	if n.Annotations[flannelManaged] != "true" {
		return f, nil, false
	}
	bad := func(key, want string) {
		got := "nothing"
		if value, there := n.Annotations[key]; there {
			got = strconv.Quote(fmt.Sprintf("%.80s", value))
		}
		problems = append(problems, Problem{Object: kindNode + "/" + n.Name, Reason: BadAnnotation, Want: want + " in " + key, Got: got,
			Next: "restart flannel on the node, which writes it again, or correct it: kubectl edit node " + n.Name + "; no tunnel leads to the node's pods until then"})
	}
	if f.Backend = n.Annotations[flannelBackend]; !backendPattern.MatchString(f.Backend) {
		bad(flannelBackend, "the name of flannel's backend")
		f.Backend = ""
	}
	if f.Backend != FlannelVXLAN {
		return f, problems, true
	}
	end := func(data, addr, family string, is func(netip.Addr) bool) *FlannelEnd {
		text := n.Annotations[data]
		if text == "" || text == "null" { // flannel has no tunnel of that family
			return nil
		}
		var e flannelEnd
		err := json.Unmarshal([]byte(text), &e)
		mac, errMAC := net.ParseMAC(e.VtepMAC)
		if err != nil || errMAC != nil || len(mac) != 6 || mac[0]&1 != 0 || e.VNI == 0 || e.VNI > 1<<24-1 {
			bad(data, `{"VNI": ..., "VtepMAC": "..."}`)
			return nil
		}
		a, err := netip.ParseAddr(n.Annotations[addr])
		if err != nil || !is(a) || a.Zone() != "" || !unicast(a) {
			bad(addr, "an "+family+" address")
			return nil
		}
		return &FlannelEnd{VNI: e.VNI, MAC: mac.String(), Addr: a}
	}
	f.V4 = end(flannelData, flannelAddr, "IPv4", netip.Addr.Is4)
	f.V6 = end(flannelData6, flannelAddr6, "IPv6", func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() })
	return f, problems, true
}

// Equal reports whether f and g say the same.
func (f Flannel) Equal(g Flannel) bool {
	return f.Backend == g.Backend && slices.Equal(f.Ends(), g.Ends())
}

// Annotations returns the annotations that say f, as flannel writes them. The JSON of each end also names the addresses of
// all ends, which flannel does not read: with two families, flannel takes notice of a Node only when the texts of both
// families change in one update (pkg/subnet/kube: handleUpdateLeaseEvent), and the ends of a node can change one by one.
func (f Flannel) Annotations() map[string]string {
	out := map[string]string{flannelManaged: "true", flannelBackend: f.Backend}
	var addrs []netip.Addr
	for _, e := range f.Ends() {
		addrs = append(addrs, e.Addr)
	}
	for _, one := range []struct {
		end        *FlannelEnd
		data, addr string
	}{{f.V4, flannelData, flannelAddr}, {f.V6, flannelData6, flannelAddr6}} {
		if e := one.end; e != nil {
			out[one.data], out[one.addr] = string(mustJSON(struct {
				flannelEnd
				Addrs []netip.Addr
			}{flannelEnd{e.VNI, e.MAC}, addrs})), e.Addr.String()
		}
	}
	return out
}
