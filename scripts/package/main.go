// Command package writes the container image of edgeway: an archive that `ctr images import`,
// `docker load` and `podman load` read, from the programs alone. It needs no container tool and no
// registry, and writes the same bytes for the same programs.
//
//	go run ./scripts/package -version v0.1.0 -arch arm64 -bin dist/arm64 -out dist/edgeway-v0.1.0-arm64.tar
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var i image
	var bin, license, out string
	flag.StringVar(&i.version, "version", "", "version: the image's tag")
	flag.StringVar(&i.arch, "arch", "", "architecture of the programs, as Go names it")
	flag.StringVar(&bin, "bin", "", "directory of the programs")
	flag.StringVar(&license, "license", "LICENSE", "file of the licence")
	flag.StringVar(&out, "out", "", "archive to write")
	flag.Parse()
	if err := run(&i, bin, license, out); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
	fmt.Println(out)
}

func run(i *image, bin, license, out string) error {
	for _, f := range []struct {
		path, name string
		mode       int64
	}{
		{filepath.Join(bin, "edgewayd"), "edgewayd", 0o755},
		{filepath.Join(bin, "edgeway"), "edgeway", 0o755},
		{license, "LICENSE", 0o644},
	} {
		body, err := os.ReadFile(f.path)
		if err != nil {
			return fmt.Errorf("image: %w; make cross builds the programs", err)
		}
		i.files = append(i.files, file{f.name, f.mode, body})
	}
	archive, err := i.archive()
	if err != nil {
		return err
	}
	// Beside and then renamed: whoever copies the archive to a node has it whole.
	if err := os.WriteFile(out+".new", archive, 0o644); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return os.Rename(out+".new", out)
}
