package routes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func TestPinNetns(t *testing.T) {
	lab.Need(t, "ip") // and root
	path := filepath.Join(t.TempDir(), "own", "netns")
	inode := func() (s unix.Stat_t) {
		t.Helper()
		if err := unix.Stat(path, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	pin := func() {
		t.Helper()
		if err := PinNetns(path); err != nil || !NetnsPinned(path) {
			t.Fatalf("%v, pinned: %v", err, NetnsPinned(path))
		}
	}
	t.Cleanup(func() {
		if err := UnpinNetns(path); err != nil {
			t.Error(err)
		}
	})
	pin()
	first := inode()
	pin()
	if second := inode(); second.Ino != first.Ino || second.Dev != first.Dev {
		t.Error("a second call made another namespace")
	}
	if err := unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""); err != nil { // somebody mounted over it
		t.Fatal(err)
	}
	for range 2 { // what is absent is not an error
		if err := UnpinNetns(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}

	// A crash before the mount leaves an empty file.
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o444)); err != nil {
		t.Fatal(err)
	}
	pin()

	// A container has a copy of the host's mounts, and unmounts that alone.
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = UnpinNetns(path)
		}
		done <- err
	}()
	if err := <-done; err != nil || NetnsPinned(path) {
		t.Errorf("unpinned from a container: %v; pinned on the host: %v", err, NetnsPinned(path))
	}

	// A file of another program is not covered.
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := PinNetns(path); err == nil || NetnsPinned(path) {
		t.Errorf("pinned over a file: %v", err)
	}
}
