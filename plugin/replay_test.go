package plugin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// recorded is a call that a runtime made, as testdata/*.jsonl have it.
type recorded struct {
	Plugin string
	Env    map[string]string
	Stdin  map[string]json.RawMessage
	RC     int
}

func recordedCalls(t *testing.T, file string) (out []recorded) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r recorded
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out = append(out, r)
	}
	return out
}

// The calls that containerd, crictl and cnitool made to the main plugin of a pod, one after the other,
// with the prevResult of a whole chain or without: edgeway in that plugin's place serves them, and
// the last DEL leaves nothing.
func TestRealCallsAreServed(t *testing.T) {
	kernelTest(t)
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded calls: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			added := ""
			for _, r := range recordedCalls(t, file) {
				if r.Plugin != "ptp" {
					continue
				}
				conf := r.Stdin
				for key, value := range map[string]any{
					"type": "edgeway", "dataDir": h.dir, "socket": filepath.Join(h.dir, "sock"),
					"ipam": map[string]any{"ranges": [][]map[string]string{{{"subnet": "10.99.0.0/16"}}, {{"subnet": "fd00:99::/64"}}}},
				} {
					if conf[key], err = json.Marshal(value); err != nil {
						t.Fatal(err)
					}
				}
				c := call{verb: r.Env["CNI_COMMAND"], id: r.Env["CNI_CONTAINERID"], ifName: r.Env["CNI_IFNAME"], args: r.Env["CNI_ARGS"], path: r.Env["CNI_PATH"]}
				if r.Env["CNI_NETNS"] != "" {
					c.netns = pod.path
				}
				if c.verb == "CHECK" && conf["prevResult"] != nil {
					conf["prevResult"] = json.RawMessage(added) // ours in the place of the other plugin's
				}
				text, err := json.Marshal(conf)
				if err != nil {
					t.Fatal(err)
				}
				c.conf = string(text)
				out, status := h.exec(t, c)
				if (status != 0) != (r.RC != 0) {
					t.Errorf("%s: status %d, %d was recorded: %s", c.verb, status, r.RC, out)
				}
				if c.verb == "ADD" {
					added = out
					for _, a := range parseResult(t, out).addrs() {
						h.sh(t, "ping -c1 -W5 "+a)
					}
				}
			}
			if leases := h.leases(t); len(leases) > 0 {
				t.Errorf("leases after the last call: %v", leases)
			}
		})
	}
}

// containerd is killed over an ADD: the plugin goes on as an orphan. After its restart the sandbox
// is deleted, with namespace and without prevResult and then with neither, while the kubelet has a
// new sandbox made for the same pod: all at a time, through the daemon and without one.
func TestSandboxIsDeletedOverAnOrphanADD(t *testing.T) {
	kernelTest(t)
	for _, mode := range []string{"daemon", "alone"} {
		t.Run(mode, func(t *testing.T) {
			h := newHost(t)
			if mode == "daemon" {
				h.serve(t, handler)
			}
			args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=till-1"
			for i := range 10 {
				old := call{verb: "ADD", id: fmt.Sprint("old", i), ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0"), args: args}
				fresh := call{verb: "ADD", id: fmt.Sprint("new", i), ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0"), args: args}
				gone := old
				gone.verb = "DEL"
				var added string
				var all sync.WaitGroup
				serve := func(c call) {
					out, status := h.exec(t, c)
					if status != 0 && c.id != old.id || status != 0 && c.verb == "DEL" { // the orphan may fail
						t.Errorf("%s %s: %s", c.verb, c.id, out)
					}
					if c.id == fresh.id {
						added = out
					}
				}
				for _, c := range []call{old, gone, fresh} {
					all.Go(func() { serve(c) })
				}
				all.Wait()
				gone.netns = ""
				for range 2 {
					h.must(t, gone)
				}
				h.whole(t)
				for _, a := range parseResult(t, added).addrs() {
					h.sh(t, "ping -c1 -W5 "+a)
				}
				if leases := h.leases(t); len(leases) != 1 || leases[0].Attachment != attachmentOf(fresh) {
					t.Errorf("leases: %v", leases)
				}
				h.end(t, fresh)
			}
		})
	}
}
