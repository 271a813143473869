package ipam

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// defaultLockTimeout bounds the wait for another process: a CNI runtime gives up on an ADD after
// minutes, a kubelet retries after seconds.
const defaultLockTimeout = 2 * time.Second

// lockFile takes an exclusive flock(2) on the file at path. The file is never removed: otherwise two
// processes could hold two files of one name. This lock is the only queue for the store: bbolt's own
// lock, which is polled, is then always free.
//
// The kernel keeps the queue: each waiter waits for the one before it, and an unlock wakes the first
// waiter (fs/locks.c).
func lockFile(ctx context.Context, path string, timeout time.Duration) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("waited %v", timeout))
	defer cancel()
	return lockIn(ctx, path, ErrLocked, func(fd int, wait bool) error {
		how := unix.LOCK_EX
		if !wait {
			how |= unix.LOCK_NB
		}
		return unix.Flock(fd, how)
	})
}

// Claim keeps other processes off an attachment of the store at path, without holding the store. An ADD
// wires a pod after its lease is on disk, and a DEL of the same attachment must not release the lease
// before the ADD is done. The claims of one process exclude each other too. Claim waits in the kernel's queue
// until ctx ends; the error wraps ErrClaimed then. The directory of the store must exist.
//
// The claim is a lock on one byte of the store's lock file (fcntl(2), F_OFD_SETLKW), and ends with the
// process. Two attachments with the same 62 bits of hash wait for each other.
func Claim(ctx context.Context, path string, a Attachment) (release func() error, err error) {
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(binary.BigEndian.Uint64(a.key()) >> 2), Len: 1}
	f, err := lockIn(ctx, path+suffixLock, ErrClaimed, func(fd int, wait bool) error {
		how := unix.F_OFD_SETLKW
		if !wait {
			how = unix.F_OFD_SETLK
		}
		return unix.FcntlFlock(uintptr(fd), how, &at)
	})
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", a, err)
	}
	return f.Close, nil
}

// TryClaim is Claim that does not wait.
func TryClaim(path string, a Attachment) (release func() error, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return Claim(ctx, path, a)
}

// lockIn opens the file at path and locks it until the file is closed. If it must wait and ctx ends first, the
// error is taken. That wait cannot be interrupted: the lock is then released as soon as it is granted.
func lockIn(ctx context.Context, path string, taken error, lock func(fd int, wait bool) error) (*os.File, error) {
	// os.OpenFile would give the file to the Go runtime's poller, with five more system calls.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	take := func(wait bool) error {
		for {
			if err := lock(fd, wait); err != unix.EINTR {
				return err
			}
		}
	}
	busy := func(err error) bool { return err == unix.EAGAIN || err == unix.EACCES }
	waited := func() error { return fmt.Errorf("%w: %s: %w", taken, path, context.Cause(ctx)) }
	if err = take(false); busy(err) && ctx.Err() == nil {
		got := make(chan error, 1)
		go func() { got <- take(true) }()
		select {
		case err = <-got:
		case <-ctx.Done():
			go func() {
				<-got
				f.Close()
			}()
			return nil, waited()
		}
	}
	switch {
	case err == nil:
		return f, nil
	case busy(err):
		err = waited()
	default:
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	f.Close()
	return nil, err
}
