package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"time"
)

// repository is the image's name. Nobody serves it: the name is one that no runtime looks for
// elsewhere, and that an operator who has a registry replaces.
const repository = "localhost/edgeway"

// image is what goes into the archive.
type image struct {
	version, arch string
	files         []file // in its root
}

type file struct {
	name string
	mode int64
	body []byte
}

type object = map[string]any

// blob is a file of the archive that is named by its content.
type blob struct {
	mediaType string
	body      []byte
}

func (b blob) hex() string {
	sum := sha256.Sum256(b.body)
	return hex.EncodeToString(sum[:])
}

func (b blob) path() string { return "blobs/sha256/" + b.hex() }

func (b blob) descriptor() object {
	return object{"mediaType": b.mediaType, "digest": "sha256:" + b.hex(), "size": len(b.body)}
}

// archive is the image as both kinds of tools know it: an OCI image layout (OCI Image Format
// Specification 1.1, image-layout.md), and beside its index the manifest.json of `docker save`,
// which names the same blobs.
func (i *image) archive() ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	content, err := i.layer()
	if err != nil {
		return nil, err
	}
	var compressed bytes.Buffer
	z, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
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
	config, err := i.config(blob{body: content})
	if err != nil {
		return nil, err
	}
	manifest, err := encode("application/vnd.oci.image.manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config.descriptor(), "layers": []object{layer.descriptor()},
	})
	if err != nil {
		return nil, err
	}
	return i.tar(manifest, config, layer)
}

// tagged is what a tag may be (OCI Distribution Specification 1.1, "Pulling manifests").
const tagged = `^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`

// elfMachine is the architecture as ELF names it; EM_NONE for one that is not built for.
func elfMachine(arch string) elf.Machine {
	switch arch {
	case "amd64":
		return elf.EM_X86_64
	case "arm64":
		return elf.EM_AARCH64
	}
	return elf.EM_NONE
}

// check keeps programs of another architecture, or that need a dynamic loader, out of the image:
// it would start nowhere.
func (i *image) check() error {
	if ok, _ := regexp.MatchString(tagged, i.version); !ok { // the pattern is valid
		return fmt.Errorf("image: version %q: want letters, digits, '.', '_' and '-', 128 at most", i.version)
	}
	want := elfMachine(i.arch)
	if want == elf.EM_NONE {
		return fmt.Errorf("image: architecture %q: want amd64 or arm64", i.arch)
	}
	for _, f := range i.files {
		if f.mode&0o111 == 0 {
			continue
		}
		program, err := elf.NewFile(bytes.NewReader(f.body))
		if err != nil {
			return fmt.Errorf("image: %s: %w", f.name, err)
		}
		if program.Machine != want {
			return fmt.Errorf("image: %s is for %s, want %s; make cross builds for both", f.name, program.Machine, want)
		}
		for _, p := range program.Progs {
			if p.Type == elf.PT_INTERP {
				return fmt.Errorf("image: %s needs a dynamic loader; build it with CGO_ENABLED=0", f.name)
			}
		}
	}
	return nil
}

// layer is the root of the image, not compressed. /var/run leads to /run, as on the nodes: container
// runtimes name pods' namespaces by it.
func (i *image) layer() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	headers := []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "run/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "var/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "var/run", Typeflag: tar.TypeSymlink, Linkname: "../run", Mode: 0o777},
	}
	for _, h := range headers {
		h.ModTime = time.Unix(0, 0)
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("image: %s: %w", h.Name, err)
		}
	}
	for _, f := range i.files {
		if err := add(w, f); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return out.Bytes(), nil
}

// add writes a file of no particular time, owned by root: the same input shall give the same bytes.
func add(w *tar.Writer, f file) error {
	err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Unix(0, 0)})
	if err == nil {
		_, err = io.Copy(w, bytes.NewReader(f.body))
	}
	if err != nil {
		return fmt.Errorf("image: %s: %w", f.name, err)
	}
	return nil
}

// config says how the image runs (OCI Image Format Specification 1.1, config.md).
func (i *image) config(layer blob) (blob, error) {
	const created = "1970-01-01T00:00:00Z"
	return encode("application/vnd.oci.image.config.v1+json", object{
		"architecture": i.arch, "os": "linux", "created": created,
		"config": object{
			"Entrypoint": []string{"/edgewayd"}, "Cmd": []string{"run"}, "WorkingDir": "/",
			"Labels": object{
				"org.opencontainers.image.title":    "edgeway",
				"org.opencontainers.image.version":  i.version,
				"org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.source":   "https://github.com/edgeway-cni/edgeway",
			},
		},
		"rootfs":  object{"type": "layers", "diff_ids": []string{"sha256:" + layer.hex()}},
		"history": []object{{"created": created, "created_by": "scripts/package"}},
	})
}

// tar joins the blobs with what names them: the version, and latest.
func (i *image) tar(manifest, config, layer blob) ([]byte, error) {
	var named []object
	var tags []string
	for _, tag := range []string{i.version, "latest"} {
		d := manifest.descriptor()
		d["annotations"] = object{"io.containerd.image.name": repository + ":" + tag, "org.opencontainers.image.ref.name": tag}
		d["platform"] = object{"architecture": i.arch, "os": "linux"}
		named, tags = append(named, d), append(tags, repository+":"+tag)
	}
	index, err := encode("", object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": named})
	if err != nil {
		return nil, err
	}
	docker, err := encode("", []object{{"Config": config.path(), "RepoTags": tags, "Layers": []string{layer.path()}}})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []file{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, index.body},
		{"manifest.json", 0o644, docker.body},
		{manifest.path(), 0o644, manifest.body},
		{config.path(), 0o644, config.body},
		{layer.path(), 0o644, layer.body},
	} {
		if err := add(w, f); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return out.Bytes(), nil
}

// encode writes JSON; encoding/json sorts the keys of a map.
func encode(mediaType string, v any) (blob, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return blob{}, fmt.Errorf("image: %w", err)
	}
	return blob{mediaType, body}, nil
}
