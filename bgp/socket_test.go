package bgp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// connected is a TCP connection of this process with itself.
func connected(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	if there, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

func ends(c *net.TCPConn) (local netip.Addr, remote netip.AddrPort) {
	return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
}

// The last word comes after all that was written, and is the last.
func TestSayLast(t *testing.T) {
	here, there := connected(t)
	if _, err := here.Write([]byte("before ")); err != nil {
		t.Fatal(err)
	}
	local, remote := ends(here)
	if err := sayLast(t.Context(), local, remote, []byte("last")); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Write([]byte("after")); err == nil {
		t.Error("written after the last word")
	}
	if got, err := io.ReadAll(there); string(got) != "before last" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A switch that does not read gets no last word, rather than one in the middle of a message.
func TestSayLastWaitsItsTurn(t *testing.T) {
	here, there := connected(t)
	sent := 0
	for n := 1; n > 0; { // until not an octet more fits into either end's buffer
		if err := here.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var err error
		if n, err = here.Write(make([]byte, 1<<20)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		sent += n
	}
	local, remote := ends(here)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := sayLast(ctx, local, remote, []byte("last")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	here.Close()
	if got, err := io.ReadAll(there); len(got) != sent || err != nil {
		t.Errorf("got %d octets of %d, %v", len(got), sent, err)
	}
}
