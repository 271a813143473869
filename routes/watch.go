package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls changed whenever a link, address, route or neighbour of the namespace changes,
// and once whenever the kernel says that it lost events. It returns when ctx ends.
//
// Of neighbours it reports those of our own links (ew*, edgeway.*), which are permanent: what
// ARP learns elsewhere comes and goes all the time.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	f, err := k.subscribe()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer f.Close()
	w := watcher{links: map[int]bool{}, changed: changed}
	devices, err := newView(k.c).all()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	for _, d := range devices {
		w.links[d.index] = ours(d.Name)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return w.read(ctx, f)
}

// subscribe opens the socket of the events, in the runtime's poller so that a deadline ends reads.
func (k *Kernel) subscribe() (*os.File, error) {
	var fd int
	err := inside(k.ns, func() (err error) {
		fd, err = rtnetlink(unix.SOCK_NONBLOCK, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

type watcher struct {
	links   map[int]bool // index to: it is one of ours
	changed func()
}

func (w *watcher) read(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch: %w", err)
		case errors.Is(rerr, unix.ENOBUFS):
			w.changed() // events were lost: what changed is not known
		case rerr != nil:
			return fmt.Errorf("watch: %w", rerr)
		case w.counts(buf[:n]):
			w.changed()
		}
	}
}

// counts reports whether one of the events is worth a look.
func (w *watcher) counts(b []byte) (worth bool) {
	eachMessage(b, func(h unix.NlMsghdr, body []byte) {
		switch h.Type {
		case unix.RTM_NEWLINK:
			if d, ok := parseLink(body); ok {
				w.links[d.index] = ours(d.Name)
			}
			worth = true
		case unix.RTM_DELLINK:
			if d, ok := parseLink(body); ok && (len(body) == 0 || body[0] == unix.AF_UNSPEC) {
				delete(w.links, d.index)
			}
			worth = true
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			if len(body) >= sizeofNdMsg && w.links[int(binary.NativeEndian.Uint32(body[4:]))] {
				worth = true
			}
		default:
			worth = true
		}
	})
	return worth
}
