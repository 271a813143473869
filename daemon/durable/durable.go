// Package durable replaces files. A program that reads a file at any moment, and a machine that returns from
// a power cut, find the whole old content or the whole new content.
//
// It owns the order of the steps (temporary file beside the target, fsync, rename(2), fsync of the
// directory). It never creates a directory and never decides what is written.
//
//	err := durable.Replace("/var/lib/edgeway/world.json", text, 0o600)
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace makes the file at path hold content, with the given mode whatever the umask is. The directory must
// exist. A symbolic link at path is replaced, not followed. After an error the file is unchanged.
//
// The temporary file is in the same directory: rename(2) does not cross file systems, and containerd does not
// notice a network configuration that is renamed into the directory from elsewhere. Its name ends in ".new",
// which no container runtime takes for a network configuration. The name is always the same, so a crash
// leaves at most one file, which the next Replace removes.
func Replace(path string, content []byte, mode fs.FileMode) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := Remove(temporary); err != nil {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, Remove(temporary))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove deletes the file at path. A file that does not exist is not an error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
