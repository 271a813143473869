// Command package writes the container images: edgeway for the nodes, edgeway-controller for the control
// plane. Each image is an archive for `ctr images import`, `docker load` and `podman load`. The command
// never needs a container tool or a registry, and writes the same bytes for the same programs.
//
//	go run ./scripts/package -name edgeway -version v0.1.0 -arch arm64 -bin dist/arm64 -out dist/edgeway-v0.1.0-arm64.tar
package main

import (
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// images lists the programs of each image by the image's name. The image runs the first program.
var images = map[string][]string{"edgeway": {"edgewayd", "edgeway"}, "edgeway-controller": {"edgeway-controller"}} // read only

// registry is the prefix of an image's name. No registry serves it and no runtime looks it up elsewhere. An
// operator with a registry replaces it.
const registry = "localhost/"

func main() {
	var p programs
	var license, out string
	flag.StringVar(&p.name, "name", "edgeway", "image: edgeway or edgeway-controller")
	flag.StringVar(&p.version, "version", "", "version: the image's tag")
	flag.StringVar(&p.arch, "arch", "", "architecture of the programs, as Go names it")
	flag.StringVar(&p.dir, "bin", "", "directory of the programs")
	flag.StringVar(&license, "license", "LICENSE", "file of the licence")
	flag.StringVar(&out, "out", "", "archive to write")
	flag.Parse()
	if err := p.write(license, out); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
	fmt.Println(out)
}

// programs are the programs of one image for one architecture.
type programs struct {
	name, version, arch, dir string
}

// write writes the image to a new file beside out and renames it, so that nobody copies a partial archive
// to a node.
func (p programs) write(license, out string) error {
	if images[p.name] == nil {
		return fmt.Errorf("image: name %q: want edgeway or edgeway-controller", p.name)
	}
	files := []lab.File{{Name: "LICENSE", Mode: 0o644}}
	paths := []string{license}
	for _, name := range images[p.name] {
		files, paths = append(files, lab.File{Name: name, Mode: 0o755}), append(paths, filepath.Join(p.dir, name))
	}
	for i := range files {
		var err error
		if files[i].Body, err = os.ReadFile(paths[i]); err != nil {
			return fmt.Errorf("image: %w; make cross builds the programs", err)
		}
	}
	if err := p.check(files); err != nil {
		return err
	}
	archive, err := p.image(files).Archive()
	if err != nil {
		return err
	}
	if err := os.WriteFile(out+".new", archive, 0o644); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return os.Rename(out+".new", out)
}

// image returns the image with the files in its root directory. /var/run is a link to /run, as on the
// nodes, because container runtimes name pods' namespaces by it.
func (p programs) image(files []lab.File) lab.Image {
	root := []lab.File{{Name: "etc/", Mode: 0o755}, {Name: "run/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "var/", Mode: 0o755},
		{Name: "var/run", Link: "../run", Mode: 0o777}}
	program := images[p.name][0]
	var arguments []string
	if program == "edgewayd" {
		arguments = []string{"run"}
	}
	return lab.Image{
		Name: registry + p.name, Tags: []string{p.version, "latest"}, Arch: p.arch, Files: append(root, files...),
		Config: map[string]any{
			"Entrypoint": []string{"/" + program}, "Cmd": arguments, "WorkingDir": "/",
			"Labels": map[string]string{
				"org.opencontainers.image.title":    p.name,
				"org.opencontainers.image.version":  p.version,
				"org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.source":   "https://github.com/edgeway-cni/edgeway",
			},
		},
	}
}

// tagged matches a valid tag (OCI Distribution Specification 1.1, "Pulling manifests").
const tagged = `^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`

// machines maps Go's architectures to ELF's.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} // read only

// check rejects a program for another architecture or with a dynamic loader. It would not start in the
// image.
func (p programs) check(files []lab.File) error {
	if ok, _ := regexp.MatchString(tagged, p.version); !ok { // the pattern is valid
		return fmt.Errorf("image: version %q: want letters, digits, '.', '_' and '-', 128 at most", p.version)
	}
	want, ok := machines[p.arch]
	if !ok {
		return fmt.Errorf("image: architecture %q: want amd64 or arm64", p.arch)
	}
	for _, f := range files {
		if f.Mode&0o111 == 0 {
			continue
		}
		program, err := elf.NewFile(bytes.NewReader(f.Body))
		if err != nil {
			return fmt.Errorf("image: %s: %w", f.Name, err)
		}
		if program.Machine != want {
			return fmt.Errorf("image: %s is for %s, want %s; make cross builds for both", f.Name, program.Machine, want)
		}
		for _, segment := range program.Progs {
			if segment.Type == elf.PT_INTERP {
				return fmt.Errorf("image: %s needs a dynamic loader; build it with CGO_ENABLED=0", f.Name)
			}
		}
	}
	return nil
}
