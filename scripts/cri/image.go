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

// image is the one image of the nodes: a static busybox, which also plays the pause container.
const image = "edgeway.test/busybox:1"

// writeImage writes the image as `docker save` does: manifest.json, the image's configuration, and
// one layer (Docker Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format").
func writeImage(path, busybox string) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/", "www/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	if err := writeFile(w, "bin/busybox", program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	sum := sha256.Sum256(layer.Bytes())
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Cmd": []string{"/bin/busybox", "sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	for _, f := range []struct {
		name string
		body []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {"layer.tar", layer.Bytes()}} {
		if err := writeFile(w, f.name, f.body); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return os.WriteFile(path, archive.Bytes(), 0o644)
}

func writeFile(w *tar.Writer, name string, body []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))}); err != nil {
		return fmt.Errorf("image: %s: %w", name, err)
	}
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("image: %s: %w", name, err)
	}
	return nil
}
