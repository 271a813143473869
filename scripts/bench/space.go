package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// space is a network namespace.
type space struct {
	path string // where it is mounted; "": it is not
	file *os.File
}

// newSpace makes a network namespace and mounts it at path.
func newSpace(path string) (*space, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return nil, err
	}
	s := &space{path: path}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		s.file, err = os.Open(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return s, s.ip("link set lo up")
}

// openSpace opens one that stands already.
func openSpace(path string) (*space, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &space{path: path, file: f}, nil
}

// current is this process's own.
func current() (*space, error) { return openSpace("/proc/self/ns/net") }

func (s *space) close() { s.file.Close() }

// remove ends the namespace, once nothing is inside any more.
func (s *space) remove() {
	s.close()
	_ = unix.Unmount(s.path, unix.MNT_DETACH) // a leftover ends with this process's mount namespace
	_ = os.Remove(s.path)
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// do runs f on a thread inside the namespace. Processes that it starts stay in there.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", s.path, err)
		}
		return f()
	})
}

// ip runs a batch of iproute2 commands inside the namespace.
func (s *space) ip(commands ...string) error {
	return s.do(func() error {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("ip -batch: %w: %.300s", err, out.String())
		}
		return nil
	})
}
