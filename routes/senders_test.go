package routes

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tunnelled is a VXLAN packet (RFC 7348 section 5) with UDP from src to dst in it.
func tunnelled(vni uint32, mac string, src, dst netip.AddrPort, payload string) []byte {
	hw, _ := net.ParseMAC(mac)
	packet := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
	packet = append(append(packet, hw...), 2, 0, 0, 0, 0x66, 0x66, 8, 0)
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], sum16(ip))
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(payload))), 0, 0) // no checksum (RFC 768)
	return append(append(append(packet, ip...), udp...), payload...)
}

// A machine on the LAN that is not a node sent to UDP port 8472, and a pod received the packet with the source
// address of another pod.
func TestStrangerSendsIntoTheOverlay(t *testing.T) {
	for _, tt := range []struct{ underlay, node, stranger string }{
		{"10.0.0.11", "10.0.0.12", "10.0.0.66"},
		{"fd00:10::11", "fd00:10::12", "fd00:10::66"},
	} {
		t.Run(tt.underlay, func(t *testing.T) {
			s := newSpace(t)
			lan := s.wire()
			for _, a := range []string{tt.node, tt.stranger} {
				bits, flags := "24", ""
				if addr(a).Is6() {
					bits, flags = "64", " nodad"
				}
				lan.run("ip addr add " + a + "/" + bits + " dev lan0" + flags)
			}
			self := overlayNode{addr(tt.underlay), "02:00:00:00:01:0a", prefixes("10.10.1.0/24")}
			want := self.state(overlayNode{addr(tt.node), "02:00:00:00:01:0b", prefixes("10.10.2.0/24")})
			want.Senders = &Senders{VNI: 1, Port: 8472, From: []netip.Addr{addr(tt.node), addr("192.0.2.7")}}
			scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}, Senders: true}
			s.sync(scope, want)
			s.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.edgeway/1.rp_filter=0")

			var vtep *net.UDPConn
			err := inside(netns.NsHandle(s.f.Fd()), func() (err error) {
				vtep, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.10.1.0:0")))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer vtep.Close()
			to := netip.AddrPortFrom(addr("10.10.1.0"), vtep.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			// heard sends from each machine until the packets of the node, or of all machines, have arrived.
			heard := func(last string) (from []string) {
				t.Helper()
				buf := make([]byte, 100)
				for n := range 100 {
					for _, a := range []string{tt.stranger, tt.node} {
						lan.datagramFrom(a, netip.AddrPortFrom(self.underlay, 8472).String(),
							tunnelled(1, self.mac, netip.MustParseAddrPort("10.10.2.7:7"), to, fmt.Sprint(a, " ", n)))
					}
					_ = vtep.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
					for {
						size, err := vtep.Read(buf)
						if err != nil {
							break
						}
						from = append(from, string(buf[:size]))
						if strings.HasPrefix(from[len(from)-1], last+" ") {
							return from
						}
					}
				}
				t.Fatalf("no packet from %s arrived, only %v", last, from)
				return nil
			}
			if got := heard(tt.node); len(got) != 1 {
				t.Errorf("arrived: %v, want only the packets of the node", got)
			}
			for _, damage := range []string{
				"nft add element inet edgeway-vxlan nodes4 { 10.0.0.66 }", "nft flush chain inet edgeway-vxlan input", "nft delete table inet edgeway-vxlan",
			} {
				s.run(damage)
				if changes := s.sync(scope, want); len(changes) != 1 {
					t.Errorf("after %s: changes %v", damage, texts(changes))
				}
			}
			if got := heard(tt.node); len(got) != 1 {
				t.Errorf("arrived: %v, want only the packets of the node", got)
			}
			want.Senders.VNI = 2 // a VXLAN with another VNI on the port has another owner
			s.sync(scope, want)
			heard(tt.stranger)
			want.Senders = nil
			s.sync(scope, want)
			heard(tt.stranger)
			s.lacks("nft list ruleset", "edgeway-vxlan")
		})
	}
}
