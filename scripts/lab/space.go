package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Space is a network namespace.
type Space struct {
	// Path is the path for other processes: a mount, or a file descriptor of this process.
	Path string
	// File holds the namespace. If it is nil, each entry opens Path.
	File *os.File
}

// NewSpace makes a network namespace and mounts it at path. Without a path the namespace lives as long as
// its file is open. Its loopback link is down.
func NewSpace(path string) (*Space, error) {
	s := &Space{Path: path}
	if path != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o444)); err != nil {
			return nil, fmt.Errorf("make network namespace: %w", err)
		}
	}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if path != "" {
			if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
				return err
			}
		}
		s.File, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", path, err)
	}
	if path == "" {
		s.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.File.Fd())
	}
	return s, nil
}

// OpenSpace opens an existing namespace.
func OpenSpace(path string) (*Space, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &Space{Path: path, File: f}, nil
}

// Close closes the namespace's file. It may be called twice.
func (s *Space) Close() {
	if s.File != nil {
		s.File.Close()
	}
}

// Remove closes the namespace and removes its mount, or any other file at that path. The namespace ends
// when no process and no socket uses it.
func (s *Space) Remove() {
	s.Close()
	if !strings.HasPrefix(s.Path, "/proc/") {
		_ = unix.Unmount(s.Path, unix.MNT_DETACH) // it may be unmounted already
		_ = os.Remove(s.Path)
	}
}

// Do calls f on a thread inside the namespace. Sockets that f opens and processes that f starts stay in the
// namespace. A panic of f becomes an error, because the caller must still take its laboratory down.
func (s *Space) Do(f func() error) error {
	return onThread(func() error { return s.enter(f) })
}

func (s *Space) enter(f func() error) error {
	there := s.File
	if there == nil {
		var err error
		if there, err = os.Open(s.Path); err != nil {
			return err
		}
		defer there.Close()
	}
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", s.Path, err)
	}
	return f()
}

// onThread calls f on a thread that may change its network namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("ended inside of a network namespace") // by runtime.Goexit, which testing.T's FailNow calls
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			done <- err
		}()
		err = andHome(f)
	}()
	return <-done
}

// andHome calls f, which may change the thread's network namespace, and returns to the old namespace. A
// thread that cannot return stays locked, and so ends with its goroutine.
func andHome(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// Loopback sets the loopback link up, as a machine does at its start.
func (s *Space) Loopback() error { return s.Do(loopbackUp) }

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("set lo up", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
}

// Run runs a command inside the namespace and returns its standard output. The error contains the command's
// standard error.
func (s *Space) Run(ctx context.Context, name string, args ...string) (string, error) {
	return s.run(ctx, nil, "", name, args...)
}

// IP runs a script of iproute2 commands inside the namespace, one command a line.
func (s *Space) IP(ctx context.Context, script string) error {
	if script == "" {
		return nil
	}
	_, err := s.run(ctx, nil, script, "ip", "-batch", "-")
	return err
}

func (s *Space) run(ctx context.Context, env []string, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin, cmd.Env = &stdout, &stderr, strings.NewReader(stdin), env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C must reach this process only
	err := s.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %.200s: %w: %.1000s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// Sysctl sets one kernel setting of the namespace. The key is a path below /proc/sys.
func (s *Space) Sysctl(key, value string) error {
	return s.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}
