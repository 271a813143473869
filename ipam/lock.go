package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultLockTimeout bounds the wait for another process: a CNI runtime gives up on an ADD
	// after minutes, a kubelet retries after seconds.
	defaultLockTimeout = 2 * time.Second
	// headPoll and queuePoll are the times between two attempts of the first in the queue and of
	// the others. bbolt's own lock is tried each 50 ms; a try costs a microsecond. A blocking
	// flock(2) could not be given up: Go restarts it after signals.
	headPoll  = 200 * time.Microsecond
	queuePoll = time.Millisecond
)

// lockFile takes an exclusive flock(2) on the file at path, which is never removed: removing a
// lock file lets two processes hold two files of one name.
//
// First come, first served: who waits holds a lock on the byte that its time of arrival
// numbers, and tries the flock only when no lower byte is locked. The kernel drops the locks of
// a process that dies.
func lockFile(ctx context.Context, path string, timeout time.Duration) (_ *os.File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	ticket := arrival()
	if isHead(f, ticket) {
		if ok, err := tryLock(f); ok || err != nil {
			return f, err
		}
	}
	byteLock(f, unix.F_WRLCK, ticket)
	defer byteLock(f, unix.F_UNLCK, ticket)
	for start := time.Now(); ; {
		pause := queuePoll
		// One that came before may be stopped: nobody waits for it to the end.
		if isHead(f, ticket) || time.Since(start) > timeout/2 {
			if ok, err := tryLock(f); ok || err != nil {
				return f, err
			}
			pause = headPoll
		}
		if time.Since(start) > timeout {
			return nil, fmt.Errorf("%w: waited %v for %s", ErrLocked, timeout, path)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s: %w", ErrLocked, path, context.Cause(ctx))
		}
	}
}

func tryLock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("flock %s: %w", f.Name(), err)
		}
	}
}

// arrival is a time that all processes of the machine share, in nanoseconds since its boot.
func arrival() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 1
	}
	return max(ts.Nano(), 1)
}

// byteLock takes or drops a byte's lock. It keeps the order only: an error of it is none.
func byteLock(f *os.File, kind int16, at int64) {
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
}

// isHead reports whether nobody waits that came before.
func isHead(f *os.File, ticket int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: ticket}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l) != nil || l.Type == unix.F_UNLCK
}
