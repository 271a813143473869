package cri

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// Image is the one image of the nodes: a static busybox. It is the sandboxes' pause container, and
// the web server of the pods.
const Image = "edgeway.test/busybox:1"

// whoScript answers a request for /cgi-bin/who with the pod's name and the address that the request
// came from.
const whoScript = `#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n%s %s\n' "$(hostname)" "$REMOTE_ADDR"
`

// WriteImage writes the image as `docker save` does, so that containerd imports it: manifest.json, the
// image's configuration, and one layer (Docker Image Specification v1.2, "Combined Image JSON +
// Filesystem Changeset Format").
func WriteImage(path, busybox string) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	layer, err := archive(
		entry{name: "bin/busybox", body: program}, entry{name: "bin/sh", link: "busybox"}, entry{name: "bin/hostname", link: "busybox"},
		entry{name: "www/cgi-bin/who", body: []byte(whoScript)},
		entry{name: "dev/"}, entry{name: "etc/"}, entry{name: "proc/"}, entry{name: "sys/"}, entry{name: "tmp/"})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Cmd": []string{"/bin/busybox", "sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{Image}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	whole, err := archive(entry{name: "manifest.json", body: manifest}, entry{name: "config.json", body: config}, entry{name: "layer.tar", body: layer})
	if err != nil {
		return err
	}
	return os.WriteFile(path, whole, 0o644)
}

// entry is a file, a symbolic link, or a directory: then its name ends with a slash.
type entry struct {
	name, link string
	body       []byte
}

func archive(entries ...entry) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(e.body))}
		switch {
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		case e.name[len(e.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("image: %s: %w", e.name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, fmt.Errorf("image: %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return out.Bytes(), nil
}
