package paths

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens a UDP socket on an address, in the calling thread's network namespace. The kernel sets DF on what it
// sends and ignores what routers said about the path's MTU (ip(7), ipv6(7): IP_PMTUDISC_PROBE): each question tries
// the path anew.
func listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			if at.Addr().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
				return
			}
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	conn, err := c.ListenPacket(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil // of network udp
}
