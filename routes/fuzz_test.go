package routes

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzKernelAnswers: whatever a datagram contains, the code that reads the datagram returns and does not panic.
func FuzzKernelAnswers(f *testing.F) {
	c := &conn{}
	route := routeMessage(unix.RTM_NEWROUTE, 0, Route{Dst: pfx("10.10.2.0/24"), Metric: 5, Table: 1000}, 0, unix.RTN_UNICAST)
	route = via(route, Route{Dst: pfx("10.10.2.0/24"), Via: addr("fd00::1")})
	route = route.nest(unix.RTA_MULTIPATH, func(m message) message {
		return append(m, 16, 0, 0, 0, 3, 0, 0, 0, 8, 0, unix.RTA_GATEWAY, 0, 10, 0, 0, 1)
	})
	link, err := linkMessage(Link{Name: "edgeway.1", Kind: "vxlan", VXLAN: &VXLAN{VNI: 1, Port: 8472, Local: addr("10.0.0.11")}}, 0, 0)
	if err != nil {
		f.Fatal(err)
	}
	neigh, err := Neigh{IP: addr("10.0.0.1"), MAC: "02:00:00:00:00:01"}.messages(unix.RTM_NEWNEIGH, 1)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []message{
		route, link, neigh[0], addrMessage(unix.RTM_NEWADDR, 0, Addr{Prefix: pfx("fd00::1/128")}, 1),
		nexthopMessage(unix.RTM_NEWNEXTHOP, 0, unix.AF_INET, 119, true).attr32(unix.NHA_ID, 1),
		flowsOf(addr("10.0.0.1"), ctaTupleOrig, 0),
		newMessage(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, append([]byte{255, 255, 255, 255}, make([]byte, 16)...)).attrString(unix.NLMSGERR_ATTR_MSG, "No"),
	} {
		f.Add([]byte(c.stamp(m)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWatcher()
		w.counts(b)
		ourTable(b)
		eachMessage(b, func(h unix.NlMsghdr, body []byte) {
			_ = ackError(h, body)
			if e, ok := parseRoute(body); ok {
				_ = e.Route.String()
				_, _ = keyOfRoute(e.Route), normal(e.Route)
			}
			_, _ = parseLink(body)
			_, _ = parseAddr(body)
			_, _ = parseNeigh(body)
			_, _ = parseNexthop(body)
			_, _ = flowDeletion(body, addr("10.0.0.1"))
		})
	})
}

func ExampleDiff() {
	observed := State{Routes: []Route{
		{Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: ProtoNode},
		{Dst: pfx("10.10.9.0/24"), Via: addr("10.0.0.19"), Link: "eth0", Protocol: ProtoNode},
	}}
	desired := State{Routes: []Route{
		{Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.22"), Link: "eth0", Protocol: ProtoNode},
		{Dst: pfx("10.10.3.0/24"), Via: addr("10.0.0.13"), Link: "eth0", Protocol: ProtoNode},
	}}
	for _, c := range Diff(observed, desired) {
		fmt.Println(c)
	}
	// Output:
	// replace route 10.10.2.0/24 via 10.0.0.22 dev eth0 proto 119 (was 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119)
	// add route 10.10.3.0/24 via 10.0.0.13 dev eth0 proto 119
	// delete route 10.10.9.0/24 via 10.0.0.19 dev eth0 proto 119
}
