package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// open reads the archive.
func open(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		head, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(head.Name, "edgeway/")] = string(text)
	}
}

// A bundle goes to strangers: it has no password, whatever the cluster state and the configuration hold.
func TestBundleHasNoSecret(t *testing.T) {
	const secret = "hunter2-hunter2"
	dir := manifests(t, "no-secret")
	text := "apiVersion: v1\nkind: Secret\nmetadata: {name: bgp-secret, namespace: kube-system}\nstringData: {password: " + secret + "}\n"
	if err := os.WriteFile(filepath.Join(dir, "secret.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := cluster.ReadManifests(t.Context(), dir)
	if err != nil || len(w.Secrets) != 1 {
		t.Fatal(err, w.Secrets)
	}
	at := serve(t, map[string]any{
		"status": api.Status{Node: "hybrid-node-2"},
		"known":  daemon.Known{Self: "hybrid-node-2", Cluster: w.Masked()},
		"ipam":   api.LeaseList{Leases: []api.Lease{{Pod: "payroll/salaries-0", Addrs: []string{"10.244.2.7"}}}},
	})
	for _, redact := range []string{"--redact=false", "--redact"} {
		file := filepath.Join(t.TempDir(), "b.tar.gz")
		if _, status, err := command(t, append([]string{"bundle", redact, file}, at...)...); status != 0 {
			t.Fatal(err)
		}
		archive, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files := open(t, archive)
		for name, text := range files {
			for _, s := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))} {
				if strings.Contains(text, s) {
					t.Errorf("%s has the password", name)
				}
			}
			if redact == "--redact" && (strings.Contains(text, "salaries") || strings.Contains(text, "hybrid-node")) {
				t.Errorf("%s has a name:\n%.2000s", name, text)
			}
		}
		if plan := files["plan.txt"]; !strings.Contains(plan, "md5") || !strings.Contains(plan, "10.244.2.0/24") {
			t.Errorf("plan.txt: %s", plan)
		}
		if len(files) != 6+len(asks) {
			t.Errorf("%d files", len(files))
		}
		if _, status, _ := command(t, append([]string{"bundle", file}, at...)...); status != 1 {
			t.Error("a file that is there was overwritten")
		}
	}
}

// A node without a daemon needs its bundle most.
func TestBundleWithoutDaemon(t *testing.T) {
	config := filepath.Join(t.TempDir(), "edgewayd.yaml")
	if err := os.WriteFile(config, []byte("socket: s\nstateDir: state\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, status, err := command(t, "bundle", "-", "--config", config)
	if status != 0 {
		t.Fatal(err)
	}
	if files := open(t, []byte(out)); !strings.Contains(files["status.json"], "no daemon answers") || files["routes4.txt"] == "" {
		t.Errorf("%q", files["status.json"])
	}
}
