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
	// maxDying bounds the deletions that wait for the kernel's acknowledgement. Each blocks a thread.
	maxDying = 64
	// idleDeletions is how many sockets stay open for the next deletions.
	idleDeletions = 8
)

// Deletions deletes links of one network namespace, and returns when the kernel has announced that a
// link is gone. The acknowledgement follows some 20 ms later: the sender waits until all processors
// have released the device (net/core/dev.c: netdev_run_todo, rcu_barrier).
//
// After the announcement nobody sees the link, the other end of its pair, or anything that was on them.
// Their names and addresses are free. The kernel announces under the rtnetlink lock, after it has
// unlisted both ends and removed their addresses and routes (net/core/dev.c:
// unregister_netdevice_many_notify), and making a link takes that lock.
// A kernel before Linux 6.2 does not announce to the sender (NLM_F_ECHO). Then Deletions waits for the
// acknowledgement.
//
//	d, err := routes.OpenDeletions(netns)
//	existed, err := d.Delete(ctx, "ew81f3a2c04d5")
//	d.Close() // waits for the acknowledgements
type Deletions struct {
	k       *Kernel
	idle    chan *conn    // sockets that wait for no answer
	dying   chan struct{} // holds a token for each unacknowledged deletion
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

// Close waits for the acknowledgements of all deletions. No Delete may be running.
func (d *Deletions) Close() {
	d.pending.Wait()
	close(d.idle)
	for c := range d.idle {
		c.close()
	}
	d.k.Close()
}

// Delete deletes the named link with everything on it, and reports whether the link existed. It
// returns when the kernel has announced that the link is gone.
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
			_, _ = e.await(false) // after the announcement the deletion can only succeed
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

// ending is one deletion under way. It owns its socket until the kernel has acknowledged the deletion.
type ending struct {
	c    *conn
	seq  uint32
	sent chan error // the kernel blocks the sender until it acknowledges
	over error      // result of sent; errSending until then
}

var errSending = errors.New("the kernel has not accepted the deletion yet")

func newEnding(c *conn, link string) *ending {
	m := linkHeader(unix.RTM_DELLINK, 0).attrString(unix.IFLA_IFNAME, link)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_ECHO)
	m = c.stamp(m)
	c.writes.Add(1)
	e := &ending{c: c, seq: c.seq, sent: make(chan error, 1), over: errSending}
	go func() { e.sent <- c.send(m) }()
	return e
}

// await reads until the kernel acknowledges the deletion or, if announcement is set, announces it.
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

// sending reports whether the kernel still blocks the sender. If so, a read that timed out is repeated.
func (e *ending) sending(rerr error) bool {
	if e.over != errSending || !errors.Is(rerr, unix.EAGAIN) {
		return false
	}
	select {
	case e.over = <-e.sent:
		return e.over == nil // the answer has arrived now
	default:
		return true
	}
}

func (e *ending) end() error {
	if e.over == errSending {
		e.over = <-e.sent
	}
	return e.over
}
