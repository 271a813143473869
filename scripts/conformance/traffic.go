package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	// reachPatience covers duplicate address detection of IPv6 (RFC 4862: a second, and a random delay),
	// but not a stale neighbour entry.
	reachPatience = 4 * time.Second
	probeInterval = 200 * time.Millisecond
)

// reach sends a datagram from one namespace to an address of another and waits for the answer. It returns
// the source address that arrived.
func reach(from, to *space, addr netip.Addr) (source netip.Addr, err error) {
	var l net.PacketConn
	err = lab.Wait(context.Background(), reachPatience, func() error { // until the address is usable
		return to.Do(func() (err error) {
			l, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
			return err
		})
	})
	if err != nil {
		return source, fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer l.Close()
	seen := make(chan netip.Addr, 1)
	go func() {
		b := make([]byte, 64)
		for {
			n, peer, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			select {
			case seen <- peer.(*net.UDPAddr).AddrPort().Addr().Unmap():
			default:
			}
			_, _ = l.WriteTo(b[:n], peer) // if it gets lost, the other side repeats
		}
	}()
	deadline := time.Now().Add(reachPatience)
	for time.Now().Before(deadline) {
		err = from.Do(func() error { return probe(l.LocalAddr().String()) })
		if err == nil {
			return <-seen, nil
		}
	}
	return source, fmt.Errorf("no answer from %s in %v: %w", addr, reachPatience, err)
}

func probe(to string) error {
	start := time.Now()
	c, err := net.Dial("udp", to)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(probeInterval))
		if _, err = c.Write([]byte("?")); err == nil {
			_, err = c.Read(make([]byte, 64))
		}
	}
	if err != nil {
		time.Sleep(max(0, probeInterval-time.Since(start))) // an unreachable error comes at once
	}
	return err
}

// connected fails unless host and pod reach each other at every address of the result.
func (t *T) connected(p *pod, r result) {
	t.OK(t.connects(p, r), "traffic")
}

func (t *T) connects(p *pod, r result) error {
	var errs []error
	for _, a := range r.addrs() {
		if _, err := reach(t.host, p.space, a); err != nil {
			errs = append(errs, fmt.Errorf("host to pod: %w", err))
		}
		host := netip.MustParseAddr(hostIP)
		if a.Is6() {
			host = netip.MustParseAddr(hostIP6)
		}
		if t.o.current {
			continue // this machine's addresses are unknown
		}
		if _, err := reach(p.space, t.host, host); err != nil {
			errs = append(errs, fmt.Errorf("pod to host: %w", err))
		}
	}
	return errors.Join(errs...)
}
