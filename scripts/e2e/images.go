package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// imageTools are the programs of this machine that the specs call in their pods. The shell is dash, because the
// shell of busybox runs its own wget and nc: its static wget crashes where it asks a DNS server, and its nc has
// no UDP.
var imageTools = []string{"dash", "curl", "wget", "nc.openbsd", "ss", "busybox"} // read only

// dnsImage is the image of clusterDNS. policiesImage is the image that deploy/overlays/networkpolicy names. scripts/kube/build.sh builds that version.
const (
	dnsImage      = "edgeway.test/coredns"
	policiesImage = "registry.k8s.io/networking/kube-network-policies"
	policiesTag   = "v0.8.0"
)

// writeImages writes the images of the specs, and those of servers with their programs, as archives into a directory. The tests say the tags of theirs. The images of the specs share one layer, which a node stores once.
func writeImages(ctx context.Context, dir string, servers map[string]string) (archives []string, err error) {
	listed, err := exec.CommandContext(ctx, kube.Program("e2e.test"), "--list-images").Output()
	if err != nil {
		return nil, fmt.Errorf("e2e.test --list-images: %w", err)
	}
	tags := map[string][]string{dnsImage: {"1"}, policiesImage: {policiesTag}}
	for line := range strings.Lines(string(listed)) {
		name, tag, _ := strings.Cut(strings.TrimSpace(line), ":")
		tags[name] = append(tags[name], tag)
	}
	shared, err := shellFiles()
	if err != nil {
		return nil, err
	}
	programs, err := programFiles("agnhost", "regression-issue-74839")
	if err != nil {
		return nil, err
	}
	shared = append(shared, programs...)
	write := func(name string, files []lab.File, command ...string) error {
		if len(tags[name]) == 0 {
			return fmt.Errorf("e2e.test --list-images does not list %s", name)
		}
		// A pod's args replace Cmd and not Entrypoint.
		config := map[string]any{"Entrypoint": command[:1], "Cmd": command[1:], "Env": []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"}}
		i := lab.Image{Name: name, Tags: tags[name], Arch: runtime.GOARCH, Level: gzip.BestSpeed, Config: config}
		for _, dir := range []string{"dev/", "etc/", "proc/", "run/", "sys/", "tmp/", "uploads/", "var/"} {
			i.Files = append(i.Files, lab.File{Name: dir, Mode: 0o755})
		}
		i.Files = append(append(i.Files, lab.File{Name: "var/run", Link: "../run"}), files...)
		archive, err := i.Archive()
		if err != nil {
			return err
		}
		archives = append(archives, filepath.Join(dir, filepath.Base(name)+".tar"))
		return os.WriteFile(archives[len(archives)-1], archive, 0o644)
	}
	const upstream = "registry.k8s.io/e2e-test-images/"
	for name, command := range map[string][]string{
		upstream + "agnhost": {"/agnhost", "pause"}, upstream + "busybox": {"/bin/sh"}, "registry.k8s.io/pause": {"/agnhost", "pause"},
		upstream + "regression-issue-74839": {"/regression-issue-74839"},
	} {
		if err := write(name, shared, command...); err != nil {
			return nil, err
		}
	}
	for name, program := range servers {
		files, err := programFiles(program)
		if err != nil {
			return nil, err
		}
		files = append(files, lab.File{Name: "bin/" + program, Link: "../" + program})
		if err := write(name, files, "/"+program); err != nil {
			return nil, err
		}
	}
	return archives, nil
}

// programFiles returns built programs as files of an image's root directory.
func programFiles(programs ...string) (files []lab.File, err error) {
	for _, program := range programs {
		body, err := os.ReadFile(kube.Program(program))
		if err != nil {
			return nil, err
		}
		files = append(files, lab.File{Name: program, Mode: 0o755, Body: body})
	}
	return files, nil
}

// shellFiles returns a small system around imageTools: busybox has the commands that are not among them.
func shellFiles() ([]lab.File, error) {
	var paths []string
	files := []lab.File{{Name: "bin/sh", Link: "dash"}}
	own := map[string]bool{"sh": true}
	for _, tool := range imageTools {
		path, err := exec.LookPath(tool)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
		name, _, _ := strings.Cut(tool, ".")
		own[name] = true
		if path != "/bin/"+name {
			files = append(files, lab.File{Name: "bin/" + name, Link: path})
		}
	}
	out, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if !own[applet] {
			files = append(files, lab.File{Name: "bin/" + applet, Link: "busybox"})
		}
	}
	more, err := lab.Executables(paths...)
	return append(files, more...), err
}
