package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// mountTmpfs mounts a file system of the given size at dir that only this thread sees. The
// thread ends with the test's goroutine.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if testing.Short() {
		t.Skip("kernel test: mounts a tmpfs")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	runtime.LockOSThread()
	for _, step := range []func() error{
		func() error { return syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_FS) },
		func() error { return syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "") },
		func() error { return os.MkdirAll(dir, 0o700) },
		func() error { return syscall.Mount("tmpfs", dir, "tmpfs", 0, options) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // on the same thread
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestFullDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "small")
	mountTmpfs(t, dir, "size=256k")
	path := filepath.Join(dir, "ipam.db")
	s, err := Open(t.Context(), path, Options{BootID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	p := testPool(t, "10.1.0.0/16")
	living := node{}
	var req Request
	var chosen Lease
	for i := range 5000 {
		req = request(fmt.Sprintf("%064d", i), fmt.Sprint("pod", i))
		req.Pool = &p
		var commit func(context.Context) error
		if chosen, commit, err = s.Begin(t.Context(), req); err == nil {
			err = commit(t.Context())
		}
		if err != nil {
			break
		}
		living[chosen.Attachment] = chosen
	}
	if !errors.Is(err, syscall.ENOSPC) || len(living) < 50 {
		t.Fatalf("after %d leases: %v", len(living), err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("backup: %v", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Lookup(chosen.Attachment); ok || err != nil {
		t.Errorf("a lease that was chosen and not written: %v, %v", ok, err)
	}
	if again, err := s.Allocate(t.Context(), req); err != nil || !slices.Equal(again.Addrs, chosen.Addrs) {
		t.Errorf("its address went elsewhere: %v, %v, want %v", again.Addrs, err, chosen.Addrs)
	}
	del(t, s, req.Attachment.ContainerID)
	holds(t, s, living) // goes on as it is
	for i := range 20 {
		del(t, s, fmt.Sprint("after-", i))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), path, Options{BootID: "b"}); err != nil {
		t.Fatal(err)
	}
	holds(t, s, living)
	s.Close()
}

func TestReadOnlyDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ro")
	mountTmpfs(t, dir, "size=8m")
	path := filepath.Join(dir, "ipam.db")
	open(t, path, "b").Close()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path, Options{BootID: "b", Recover: node{}.recover})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "read-only file system") {
		t.Fatal(err)
	}
}

// A file that is cut short under an open store: page faults become errors.
func TestFileCutWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	living := filled(t, path, 200, true)
	s := open(t, path, "boot-1")
	if err := os.Truncate(path, 16<<10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Leases(); !errors.Is(err, ErrDamaged) {
		t.Fatalf("leases: %v", err)
	}
	if _, err := s.Allocate(t.Context(), request("x", "x")); !errors.Is(err, ErrDamaged) {
		t.Fatalf("allocate: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path, Options{BootID: "boot-1", Recover: living.recover})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, s, living)
	s.Close()
}
