package cri

import (
	"archive/tar"
	"bytes"
	"io"
	"slices"
	"testing"
)

// The archive has files that can be run, links and directories.
func TestArchive(t *testing.T) {
	text, err := archive(entry{name: "bin/busybox", body: []byte("x")}, entry{name: "bin/sh", link: "busybox"}, entry{name: "tmp/"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname)
	}
	if want := []string{"-rwxr-xr-x bin/busybox ", "Lrwxr-xr-x bin/sh busybox", "drwxr-xr-x tmp/ "}; !slices.Equal(got, want) {
		t.Errorf("archive has %q, want %q", got, want)
	}
}
