package bgp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// rivalCause explains why the switch ended a connection of ours, if another program of this node has a connection
// from the same address to the switch. A switch has one session with each neighbour. A switch that knows graceful
// restart takes a second connection for the restart of the first, so that the two programs end each other's
// session again and again; another switch closes the second connection, mostly without a word.
func rivalCause(p Peer) (c cause, found bool) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a kernel without IPv6
		}
		for line := range strings.Lines(string(text)) {
			if connects(line, p) {
				return cause{reasonCollision, fmt.Sprintf("another program of this node has a connection from %s to the switch, which has one session with each neighbour: stop that BGP daemon; ss -tnp dst %s names it",
					p.LocalAddress, p.Address)}, true
			}
		}
	}
	return cause{}, false
}

// connects reports whether a line of /proc/net/tcp or tcp6 (proc_net_tcp.rst) is an established connection from
// our source address to the switch.
func connects(line string, p Peer) bool {
	const established = "01" // TCP_ESTABLISHED, include/net/tcp_states.h
	f := strings.Fields(line)
	if len(f) < 4 || f[3] != established {
		return false
	}
	from, to := endpointOf(f[1]), endpointOf(f[2])
	return from.Addr() == p.LocalAddress && to == netip.AddrPortFrom(p.Address, p.Port)
}

// endpointOf reads an address and port such as 0100007F:00B3. The kernel prints each 32 bits of the address as a
// number of this machine's byte order.
func endpointOf(text string) netip.AddrPort {
	address, port, _ := strings.Cut(text, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	octets, err2 := hex.DecodeString(address)
	if err != nil || err2 != nil || len(octets)%4 != 0 {
		return netip.AddrPort{}
	}
	for i := 0; i < len(octets); i += 4 {
		binary.NativeEndian.PutUint32(octets[i:], binary.BigEndian.Uint32(octets[i:]))
	}
	a, _ := netip.AddrFromSlice(octets)
	return netip.AddrPortFrom(a.Unmap(), uint16(number))
}
