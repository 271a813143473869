package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestImageArchive reads the archive as a runtime does: from the index to the files in the root.
func TestImageArchive(t *testing.T) {
	p, content := testPrograms(t)
	archive, err := p.image(content).Archive()
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.image(content).Archive()
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("the same programs gave two archives (%v)", err)
	}
	outer := untar(t, bytes.NewReader(archive))
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	decode(t, outer["index.json"], &index)
	var names []string
	for _, m := range index.Manifests {
		names = append(names, m.Annotations["io.containerd.image.name"])
	}
	if want := []string{"localhost/edgeway:v0.0.1", "localhost/edgeway:latest"}; !slices.Equal(names, want) {
		t.Errorf("names %v, want %v", names, want)
	}
	var manifest struct{ Layers []struct{ Digest string } }
	decode(t, outer[blobPath(index.Manifests[0].Digest)], &manifest)
	layer, err := gzip.NewReader(bytes.NewReader(outer[blobPath(manifest.Layers[0].Digest)]))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for name := range untar(t, layer) {
		files = append(files, name)
	}
	slices.Sort(files)
	if diff := cmp.Diff([]string{"LICENSE", "edgeway", "edgewayd", "etc/", "run/", "tmp/", "var/", "var/run"}, files); diff != "" {
		t.Errorf("root of the image (-want +got):\n%s", diff)
	}
	var docker []struct{ Layers []string }
	decode(t, outer["manifest.json"], &docker)
	if len(docker) != 1 || !slices.Equal(docker[0].Layers, []string{blobPath(manifest.Layers[0].Digest)}) {
		t.Errorf("manifest.json of docker: %+v, want the layer of the index", docker)
	}
}

func TestImageRefuses(t *testing.T) {
	script := lab.File{Name: "x", Mode: 0o755, Body: []byte("#!/bin/sh\nexec true, and no ELF header of 64 bytes anywhere in this text\n")}
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, version, arch string
		more                []lab.File
		want                string
	}{
		{"a version that is not a tag", "a/b", runtime.GOARCH, nil, "version"},
		{"an architecture that is not built", "v0.0.1", "mips", nil, "want amd64 or arm64"},
		{"a program for another architecture", "v0.0.1", other(), nil, "make cross"},
		{"a script", "v0.0.1", runtime.GOARCH, []lab.File{script}, "bad magic"},
		{"a program that needs libraries", "v0.0.1", runtime.GOARCH, []lab.File{{Name: "sh", Mode: 0o755, Body: shell}}, "CGO_ENABLED=0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, content := testPrograms(t)
			err := programs{name: "edgeway", version: tt.version, arch: tt.arch}.check(append(content, tt.more...))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want one that says %q", err, tt.want)
			}
		})
	}
}

// TestImageRuns imports the image into a containerd of its own and runs its programs.
func TestImageRuns(t *testing.T) {
	lab.Need(t, "containerd", "ctr", "runc", "unshare", "mount")
	bin := buildPrograms(t, "v0.0.1")
	archive := filepath.Join(t.TempDir(), "edgeway.tar")
	if err := (programs{name: "edgeway", version: "v0.0.1", arch: runtime.GOARCH, dir: bin}).write("../../LICENSE", archive); err != nil {
		t.Fatal(err)
	}
	container := fmt.Sprintf("edgeway-test-%d", os.Getpid())
	cmd := exec.Command("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", containerdScript,
		"sh", t.TempDir(), archive, container)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Fatalf("%v\n%s\n%s", err, out, exit.Stderr)
	}
	for _, want := range []string{"edgewayd version v0.0.1", "edgeway version v0.0.1", "installed /host/edgeway", "kept      /host/edgeway"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output does not have %q:\n%s", want, out)
		}
	}
}

// containerdScript has a containerd whose files, socket and mounts end with it.
const containerdScript = `set -e
dir=$1 archive=$2 name=$3
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p $dir/lib
mount --bind $dir/lib /var/lib
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >$dir/config.toml
containerd --config $dir/config.toml >$dir/log 2>&1 &
pid=$!
trap 'kill $pid; wait $pid || true; umount -R /var/lib /run || true' EXIT
i=0
until ctr version >/dev/null 2>&1; do
	i=$((i+1)); test $i -lt 300 || { cat $dir/log >&2; exit 1; }
	sleep 0.1
done
ctr -n k8s.io images import $archive
ctr -n k8s.io run --rm --cgroup /$name localhost/edgeway:v0.0.1 $name-1 /edgewayd --version
ctr -n k8s.io run --rm --cgroup /$name localhost/edgeway:latest $name-2 /edgeway --version
ctr -n k8s.io run --rm --cgroup /$name --mount type=bind,src=$dir,dst=/host,options=rbind:rw localhost/edgeway:latest $name-3 /edgewayd install --plugin-dir /host
ctr -n k8s.io run --rm --cgroup /$name --mount type=bind,src=$dir,dst=/host,options=rbind:rw localhost/edgeway:latest $name-4 /edgewayd install --plugin-dir /host
`

func testPrograms(t *testing.T) (programs, []lab.File) {
	t.Helper()
	// Only the header of a program is read: this is the header of a program for this architecture.
	h := elf.Header64{Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type: uint16(elf.ET_EXEC), Machine: uint16(machines[runtime.GOARCH]), Version: uint32(elf.EV_CURRENT), Ehsize: 64}
	var program bytes.Buffer
	if err := binary.Write(&program, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	return programs{name: "edgeway", version: "v0.0.1", arch: runtime.GOARCH}, []lab.File{{Name: "edgewayd", Mode: 0o755, Body: program.Bytes()},
		{Name: "edgeway", Mode: 0o755, Body: program.Bytes()}, {Name: "LICENSE", Mode: 0o644, Body: []byte("text")}}
}

func other() string {
	if runtime.GOARCH == "amd64" {
		return "arm64"
	}
	return "amd64"
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = body
	}
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
