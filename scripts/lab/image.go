package lab

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// Image is a container image that is made of files alone, without a container tool or a registry. The same
// image always gives the same bytes.
type Image struct {
	Name  string   // without a tag
	Tags  []string // one or more
	Arch  string   // Go's name of the architecture
	Files []File   // in the image's root directory
	Level int      // of compress/gzip; 0: the best compression
	// Config says how the image runs: the key "config" of the OCI Image Format Specification 1.1,
	// config.md.
	Config map[string]any
}

// File is a file of an image, owned by root. It is a symbolic link if Link is set, and a directory if its
// name ends with a slash.
type File struct {
	Name string
	Mode int64
	Body []byte
	Link string
}

type object = map[string]any

// blob is a file of the archive that is named by the digest of its content.
type blob struct {
	mediaType string
	body      []byte
}

func (b blob) digest() string {
	sum := sha256.Sum256(b.body)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (b blob) path() string { return "blobs/" + strings.Replace(b.digest(), ":", "/", 1) }

func (b blob) descriptor() object {
	return object{"mediaType": b.mediaType, "digest": b.digest(), "size": len(b.body)}
}

// Archive returns the image in both common formats: an OCI image layout (OCI Image Format Specification
// 1.1, image-layout.md), and beside its index the manifest.json of `docker save`, which names the same
// blobs.
func (i Image) Archive() ([]byte, error) {
	content, err := archive(i.Files)
	if err != nil {
		return nil, err
	}
	var compressed bytes.Buffer
	z, err := gzip.NewWriterLevel(&compressed, cmp.Or(i.Level, gzip.BestCompression))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if _, err := z.Write(content); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	layer := blob{"application/vnd.oci.image.layer.v1.tar+gzip", compressed.Bytes()}
	const created = "1970-01-01T00:00:00Z"
	config := encode("application/vnd.oci.image.config.v1+json", object{
		"architecture": i.Arch, "os": "linux", "created": created, "config": i.Config,
		"rootfs":  object{"type": "layers", "diff_ids": []string{blob{body: content}.digest()}},
		"history": []object{{"created": created, "created_by": "edgeway, scripts/lab"}},
	})
	manifest := encode("application/vnd.oci.image.manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config.descriptor(), "layers": []object{layer.descriptor()},
	})
	var named []object
	var tags []string
	for _, tag := range i.Tags {
		d := manifest.descriptor()
		d["annotations"] = object{"io.containerd.image.name": i.Name + ":" + tag, "org.opencontainers.image.ref.name": tag}
		d["platform"] = object{"architecture": i.Arch, "os": "linux"}
		named, tags = append(named, d), append(tags, i.Name+":"+tag)
	}
	index := encode("", object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": named})
	docker := encode("", []object{{"Config": config.path(), "RepoTags": tags, "Layers": []string{layer.path()}}})
	return archive([]File{
		{Name: "oci-layout", Mode: 0o644, Body: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Name: "index.json", Mode: 0o644, Body: index.body},
		{Name: "manifest.json", Mode: 0o644, Body: docker.body},
		{Name: manifest.path(), Mode: 0o644, Body: manifest.body},
		{Name: config.path(), Mode: 0o644, Body: config.body},
		{Name: layer.path(), Mode: 0o644, Body: layer.body},
	})
}

// archive returns a tar file whose entries all have the same time.
func archive(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Linkname: f.Link, Typeflag: tar.TypeReg, Mode: f.Mode, Size: int64(len(f.Body)), ModTime: time.Unix(0, 0)}
		switch {
		case f.Link != "":
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("image: %s: %w", f.Name, err)
		}
		if _, err := w.Write(f.Body); err != nil {
			return nil, fmt.Errorf("image: %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return out.Bytes(), nil
}

// encode writes JSON. encoding/json sorts the keys of a map.
func encode(mediaType string, v any) blob {
	body, err := json.Marshal(v)
	if err != nil {
		panic("strings and numbers can be encoded: " + err.Error())
	}
	return blob{mediaType, body}
}

// Executables returns executables of this machine as files of an image at their own paths, with the dynamic
// loader and the libraries that ldd(1) names. A path that is a symbolic link gets its target's content.
func Executables(paths ...string) ([]File, error) {
	var files []File
	known := map[string]bool{}
	add := func(path string) error {
		if known[path] {
			return nil
		}
		known[path] = true
		body, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("image: %w", err)
		}
		files = append(files, File{Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Body: body})
		return nil
	}
	for _, path := range paths {
		if err := add(path); err != nil {
			return nil, err
		}
		out, err := exec.Command("ldd", path).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
			return nil, fmt.Errorf("image: ldd %s: %w: %s", path, err, out)
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			if err := add(m[1]); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// library matches a file in the output of ldd: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)".
var library = regexp.MustCompile(`(/\S+) \(`)

// BusyboxImage is the only image of the laboratories' pods: a static busybox. It is both the pause
// container of the sandboxes and the web server of the pods.
const BusyboxImage = "edgeway.test/busybox:1"

// whoScript answers a request for /cgi-bin/who with the pod's name and the source address of the request.
const whoScript = `#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n%s %s\n' "$(hostname)" "$REMOTE_ADDR"
`

// WriteBusybox builds BusyboxImage from this machine's busybox and writes it to a file.
func WriteBusybox(path string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	name, tag, _ := strings.Cut(BusyboxImage, ":")
	i := Image{Name: name, Tags: []string{tag}, Arch: runtime.GOARCH,
		Config: object{"Cmd": []string{"/bin/busybox", "sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		Files: []File{{Name: "bin/busybox", Mode: 0o755, Body: program}, {Name: "bin/sh", Link: "busybox"}, {Name: "bin/hostname", Link: "busybox"},
			{Name: "www/cgi-bin/who", Mode: 0o755, Body: []byte(whoScript)}}}
	for _, dir := range []string{"dev/", "etc/", "proc/", "sys/", "tmp/"} {
		i.Files = append(i.Files, File{Name: dir, Mode: 0o755})
	}
	text, err := i.Archive()
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
