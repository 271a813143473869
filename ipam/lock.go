package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// defaultLockTimeout bounds the wait for another process: a CNI runtime gives up on an ADD after
// minutes, a kubelet retries after seconds.
const defaultLockTimeout = 2 * time.Second

// lockFile takes an exclusive flock(2) on the file at path, which is never removed: removing a
// lock file lets two processes hold two files of one name. It is the one queue for the store: bbolt's own
// lock, which is polled, is free for whoever has this one.
//
// The kernel keeps the line (fs/locks.c: a waiter waits for the one before it, and the end of a lock wakes
// the first). A wait cannot be interrupted: when it is given up, its turn is passed on when it comes.
func lockFile(ctx context.Context, path string, timeout time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("waited %v", timeout))
	defer cancel()
	got := make(chan error, 1)
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		got <- err
	} else {
		go func() { got <- flock(f, unix.LOCK_EX) }()
	}
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		return f, nil
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return nil, fmt.Errorf("%w: %s: %w", ErrLocked, path, context.Cause(ctx))
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
