package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	// defaultLockTimeout bounds the wait for another process: a CNI runtime gives up on an ADD
	// after minutes, a kubelet retries after seconds.
	defaultLockTimeout = 2 * time.Second
	// lockPoll is the time between two attempts. bbolt's own lock is tried each 50 ms, which
	// makes 32 waiting processes starve each other; the try itself costs a microsecond. A
	// blocking flock(2) could not be given up: Go restarts it after signals.
	lockPoll = time.Millisecond
)

// lockFile takes an exclusive flock(2) on the file at path, which is never removed: removing a
// lock file lets two processes hold two files of one name.
func lockFile(ctx context.Context, path string, timeout time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(timeout)
	var tick *time.Ticker
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case !errors.Is(err, syscall.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		case time.Now().After(deadline):
			f.Close()
			return nil, fmt.Errorf("%w: waited %v for %s", ErrLocked, timeout, path)
		}
		if tick == nil {
			tick = time.NewTicker(lockPoll)
			defer tick.Stop()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%w: %s: %w", ErrLocked, path, context.Cause(ctx))
		}
	}
}
