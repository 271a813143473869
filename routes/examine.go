package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Feature is something that edgeway, or a program beside it, needs of the kernel.
type Feature struct {
	Name   string
	Err    error // nil: the kernel has it
	Beside bool  // edgeway does without it
}

// QueueFeature is what kube-network-policies needs to enforce a NetworkPolicy.
const QueueFeature = "nftables: queue (nft_queue)"

// Features tries each feature of the kernel, in a fresh network namespace that is gone afterwards. It needs
// CAP_SYS_ADMIN.
func Features(ctx context.Context) ([]Feature, error) {
	ns, err := fresh()
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	defer ns.Close()
	k, err := OpenNetns(ns)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	var out []Feature
	for _, f := range []struct {
		name string
		s    State
	}{
		{"veth pairs", State{Links: []Link{{Name: "ew0", Kind: "veth", Up: true, Peer: &Peer{Name: "ew1"}}}}},
		{"IPv6", State{Addrs: []Addr{{Link: "lo", Prefix: netip.MustParsePrefix("fd00::1/128")}}}},
		{"VXLAN", State{Links: []Link{{Name: VXLANLink, Kind: "vxlan", VXLAN: &VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("127.0.0.1")}}}}},
		{"nftables: source NAT", State{NAT: &NAT{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}},
		{"nftables: filter of the tunnel", State{Senders: &Senders{VNI: 1, Port: 8472}}},
		{"nftables: source check (nft_fib_inet)", State{SourceCheck: &SourceCheck{}}},
	} {
		_, err := k.Sync(ctx, Scope{}, f.s)
		out = append(out, Feature{Name: f.name, Err: err})
	}
	return append(out, Feature{Name: QueueFeature, Err: queues(ns), Beside: true}), nil
}

// queues adds a rule that queues packets for a program, in a namespace that nobody uses.
func queues(ns *os.File) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "queue"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "queue"})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Queue{Num: 98}}})
	return c.Flush()
}

// Listener is a program that waits for packets that the kernel queues.
type Listener struct{ Queue, PortID int }

// Listeners returns the programs that wait for queued packets in this thread's network namespace
// (net/netfilter/nfnetlink_queue.c, /proc/net/netfilter/nfnetlink_queue). A kernel without such queues has none.
func Listeners() (out []Listener, err error) {
	text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for line := range strings.Lines(string(text)) {
		var l Listener
		if n, _ := fmt.Sscan(line, &l.Queue, &l.PortID); n == 2 {
			out = append(out, l)
		}
	}
	return out, err
}

// fresh makes a network namespace, which lives as long as the file is open.
func fresh() (*os.File, error) {
	type made struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, in the new namespace
		ns, err := netns.New()
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		return nil, m.err
	}
	return os.NewFile(uintptr(m.ns), "netns"), nil
}

const (
	// claimProbes and claimWait are RFC 5227, section 1.1: PROBE_NUM, and about PROBE_MIN.
	claimProbes = 3
	claimWait   = 400 * time.Millisecond
)

// Claimed returns the MAC of another machine on the link that has the IPv4 address; "" if none answers. It asks as
// RFC 5227 says, with a sender address of 0.0.0.0, so that no neighbour's entry changes. It needs CAP_NET_RAW, and
// takes 1.2 s if nobody answers.
func (k *Kernel) Claimed(ctx context.Context, link string, a netip.Addr) (mac string, err error) {
	v := newView(k.c)
	index, err := v.index(link)
	if err != nil {
		return "", err
	}
	own, err := hardwareAddr(v.byIndex[index].MAC)
	if err != nil || len(own) != 6 || !a.Is4() {
		return "", nil // a link without Ethernet addresses
	}
	devices, err := v.all()
	if err != nil {
		return "", err
	}
	ours := map[string]bool{} // another link of this machine may hear the question
	for _, d := range devices {
		ours[d.MAC] = true
	}
	fd := -1
	if err := inside(k.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ARP)))
		return err
	}); err != nil {
		return "", fmt.Errorf("ask for %v on %s: %w", a, link, err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: index}); err != nil {
		return "", err
	}
	ask := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, request (RFC 826)
	ask = append(append(ask, own...), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	ask = append(ask, a.AsSlice()...)
	all := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	for range claimProbes {
		if err := unix.Sendto(fd, ask, 0, all); err != nil {
			return "", err
		}
		for end := time.Now().Add(claimWait); ctx.Err() == nil; {
			left := time.Until(end)
			if left <= 0 {
				break
			}
			tv := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return "", err
			}
			buf := make([]byte, 128)
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return "", err
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING || n < 28 {
				continue
			}
			mac := net.HardwareAddr(buf[8:14]).String()
			if sender, _ := netip.AddrFromSlice(buf[14:18]); sender == a && !ours[mac] {
				return mac, nil
			}
		}
	}
	return "", ctx.Err()
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

// Way returns the route by which the kernel sends the packet on, as it decides for a packet with that source that
// arrives on that link: policy rules count, and so does the reverse path filter. The error wraps EXDEV if the reverse
// path filter drops the packet, and EINVAL if an address may not be on that link.
func (k *Kernel) Way(ctx context.Context, p Packet) (Route, error) {
	if err := ctx.Err(); err != nil {
		return Route{}, err
	}
	v := newView(k.c)
	p, ok := v.onLinks(p)
	if !ok {
		p.Out = ""
	}
	m := lookup(p.Dst, 0)
	if p.In != "" {
		index, err := v.index(p.In)
		if err != nil {
			return Route{}, err
		}
		m[unix.SizeofNlMsghdr+2] = uint8(p.Src.BitLen()) // rtm_src_len
		m = m.attrAddr(unix.RTA_SRC, p.Src).attr32(unix.RTA_IIF, uint32(index))
	}
	body, err := k.c.get(m)
	if err != nil {
		return Route{}, fmt.Errorf("route from %v to %v: %w", p.Src, p.Dst, err)
	}
	e, err := chosen(body)
	if err != nil {
		return Route{}, err
	}
	if e.Type != "" && e.Type != "local" {
		return e.Route, fmt.Errorf("route to %v: %s: %w", p.Dst, e.Type, unix.ENETUNREACH)
	}
	r := v.route(e)
	r.Table = 0
	return r, nil
}
