package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxDying bounds the deletions that wait for the kernel's acknowledgement, each with a thread.
	maxDying = 64
	// idleDeletions is how many sockets stay open for the next deletions.
	idleDeletions = 8
)

// Deletions deletes links of one network namespace, and answers when the kernel has announced a
// link gone. The kernel acknowledges a deletion some 20 ms after that: the sender waits until all
// processors have let go of the device (net/core/dev.c: netdev_run_todo, rcu_barrier).
//
// With the announcement a link, the other end of its pair and all that was on them are gone for
// everybody who looks, and their names and addresses are free: the kernel announces under the lock of
// rtnetlink, after it has unlisted both ends and taken their addresses and routes
// (net/core/dev.c: unregister_netdevice_many_notify), and whoever makes a link waits for that lock.
// A kernel before Linux 6.2 does not announce to the sender (NLM_F_ECHO), which waits for the
// acknowledgement then.
//
//	d, err := routes.OpenDeletions(netns)
//	existed, err := d.Delete(ctx, "ew81f3a2c04d5")
//	err = d.Close() // waits for the acknowledgements
type Deletions struct {
	k       *Kernel       // of the namespace
	idle    chan *conn    // sockets that wait for nothing
	dying   chan struct{} // holds a token for each deletion that is not acknowledged
	pending sync.WaitGroup
}

// OpenDeletions opens the namespace that the open file names. The file may be closed afterwards.
func OpenDeletions(ns *os.File) (*Deletions, error) {
	k, err := OpenNetns(ns)
	if err != nil {
		return nil, err
	}
	return &Deletions{k: k, idle: make(chan *conn, idleDeletions), dying: make(chan struct{}, maxDying)}, nil
}

// Close waits for the acknowledgements of what was deleted. No Delete may run.
func (d *Deletions) Close() {
	d.pending.Wait()
	close(d.idle)
	for c := range d.idle {
		c.close()
	}
	d.k.Close()
}

// Delete deletes the link of that name with all that is on it, and reports whether there was one. It
// returns when the kernel has announced the link gone.
func (d *Deletions) Delete(ctx context.Context, link string) (existed bool, err error) {
	select {
	case d.dying <- struct{}{}:
	case <-ctx.Done():
		return false, fmt.Errorf("wait for other links to be deleted: %w", context.Cause(ctx))
	}
	c, err := d.socket()
	if err != nil {
		<-d.dying
		return false, err
	}
	e := newEnding(c, link)
	announced, err := e.await(true)
	if announced {
		d.pending.Go(func() {
			_, _ = e.await(false) // after the announcement it can only succeed
			d.release(c)
		})
		return true, nil
	}
	d.release(c)
	if absent(err) {
		return false, nil
	}
	return true, err
}

func (d *Deletions) socket() (*conn, error) {
	select {
	case c := <-d.idle:
		return c, nil
	default:
		c, err := dial(d.k.ns, unix.NETLINK_ROUTE)
		if err == nil {
			c.buf = make([]byte, 4<<10)
		}
		return c, err
	}
}

func (d *Deletions) release(c *conn) {
	select {
	case d.idle <- c:
	default:
		c.close()
	}
	<-d.dying
}

// ending is one deletion under way. Its socket is its own until the kernel has acknowledged it.
type ending struct {
	c    *conn
	seq  uint32
	sent chan error // the kernel keeps the sender until it acknowledges
	over error      // what sent said; errSending before that
}

var errSending = errors.New("the kernel has not taken it yet")

func newEnding(c *conn, link string) *ending {
	m := linkHeader(unix.RTM_DELLINK, 0).attrString(unix.IFLA_IFNAME, link)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_ECHO)
	m = c.stamp(m)
	c.writes.Add(1)
	e := &ending{c: c, seq: c.seq, sent: make(chan error, 1), over: errSending}
	go func() { e.sent <- c.send(m) }()
	return e
}

// await reads until the kernel acknowledges the deletion, or, if that is enough, announces it.
func (e *ending) await(announcement bool) (announced bool, err error) {
	for done := false; !done && !announced; {
		rerr := e.c.receive(func(h unix.NlMsghdr, body []byte) {
			switch {
			case h.Seq != e.seq:
			case h.Type == unix.NLMSG_ERROR:
				done, err = true, ackError(h, body)
			case h.Type == unix.RTM_DELLINK:
				announced = announcement
			}
		})
		if rerr != nil && !e.sending(rerr) {
			return announced, rerr
		}
	}
	if !announced {
		err = errors.Join(err, e.end())
	}
	return announced, err
}

// sending reports whether the kernel still has the sender: a read that timed out meanwhile is tried
// again.
func (e *ending) sending(rerr error) bool {
	if e.over != errSending || !errors.Is(rerr, unix.EAGAIN) {
		return false
	}
	select {
	case e.over = <-e.sent:
		return e.over == nil // the answer is there now
	default:
		return true
	}
}

// end waits for the sender.
func (e *ending) end() error {
	if e.over == errSending {
		e.over = <-e.sent
	}
	return e.over
}
