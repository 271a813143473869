package cri

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// manyAtOnce starts pods as at a node's start: the kubelet does not wait for one pod before the next.
func manyAtOnce(t *testing.T, c *cluster) {
	const count = 8
	var mu sync.Mutex // guards seen
	seen := map[netip.Addr]string{}
	ids := make([]string, count)
	starts, ctx := errgroup.WithContext(t.Context())
	for i := range ids {
		starts.Go(func() (err error) {
			name := fmt.Sprintf("many-%d", i)
			s := Sandbox{Namespace: "default", Name: name, UID: "uid-of-" + name, CgroupParent: string(c.n2.Cgroup)}
			if ids[i], err = c.n2.CRI.RunSandbox(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			status, err := c.n2.CRI.SandboxStatus(ctx, ids[i])
			mu.Lock()
			defer mu.Unlock()
			for _, addr := range status.Addrs {
				if other, taken := seen[addr]; taken {
					t.Errorf("%s and %s have the same address %s", name, other, addr)
				}
				seen[addr] = name
			}
			return err
		})
	}
	if err := starts.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2*count {
		t.Errorf("%d pods have %d addresses", count, len(seen))
	}
	wantUsed(t, c.n2, count+1)
	ends, ctx := errgroup.WithContext(t.Context())
	for _, id := range ids {
		ends.Go(func() error {
			return errors.Join(c.n2.CRI.StopSandbox(ctx, id), c.n2.CRI.RemoveSandbox(ctx, id))
		})
	}
	if err := ends.Wait(); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, c.n2, 1)
}

// chainFails breaks a later plugin. containerd calls DEL of every plugin at once, without prevResult.
func chainFails(t *testing.T, c *cluster) {
	last := filepath.Join(c.n2.bins.cni, chain[len(chain)-1])
	plugin, err := os.Readlink(last)
	if err != nil {
		t.Fatal(err)
	}
	broken := "#!/bin/sh\n[ \"$CNI_COMMAND\" != ADD ] && exec " + plugin + "\ncat >/dev/null\necho '{\"cniVersion\": \"1.0.0\", \"code\": 999, \"msg\": \"out of order\"}'\nexit 1\n"
	if err := errors.Join(os.Remove(last), os.WriteFile(last, []byte(broken), 0o755)); err != nil {
		t.Fatal(err)
	}
	s := Sandbox{Namespace: "default", Name: "unlucky", UID: "uid-of-unlucky", CgroupParent: string(c.n2.Cgroup)}
	if _, err := c.n2.CRI.RunSandbox(t.Context(), s); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("run sandbox with a broken plugin: %v, want its message", err)
	}
	if err := errors.Join(os.Remove(last), os.Symlink(plugin, last)); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, c.n2, 1)
	lucky := c.run(t, c.n2, s) // the next attempt of the kubelet
	lucky.reaches(t, c.pods["web"])
	lucky.stop(t)
	lucky.remove(t)
	delete(c.pods, s.Name)
	wantUsed(t, c.n2, 1)
}

// containerdRestarts checks that the pods go on and that no verb is called.
func containerdRestarts(t *testing.T, c *cluster) {
	web := c.pods["web"]
	if err := c.n1.StopContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := c.n1.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lab.Wait(t.Context(), waitLimit, func() error { return c.n1.CRI.NetworkReady(t.Context()) }); err != nil {
		t.Error(err)
	}
	c.pods["far"].reaches(t, web)
	wantCalls(t, web, "ADD")
	wantUsed(t, c.n1, 2)
}

// diesDuringAdd kills containerd during ADD. The plugin goes on alone, and nobody reads its result. When
// the kubelet removes the sandbox that containerd finds, DEL comes without prevResult.
func diesDuringAdd(t *testing.T, c *cluster) {
	record := c.n2.file("cni-calls")
	hold := record + ".hold"
	if err := os.WriteFile(hold, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		s := Sandbox{Namespace: "default", Name: "orphan", UID: "uid-of-orphan", CgroupParent: string(c.n2.Cgroup)}
		_, err := c.n2.CRI.RunSandbox(t.Context(), s)
		failed <- err
	}()
	var id string
	err := lab.Wait(t.Context(), waitLimit, func() error {
		calls, err := readRecord(record)
		if err != nil || len(calls) == 0 {
			return errors.Join(errors.New("no call of the plugin"), err)
		}
		id = calls[len(calls)-1].Container
		if got := fmt.Sprint(c.n2.calls(t, id)); got != "[ADD]" {
			return fmt.Errorf("the last calls of the plugin are %s", got)
		}
		return nil
	})
	if err := errors.Join(err, c.n2.Program("containerd").Kill(), os.Remove(hold)); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("run sandbox: succeeded without containerd")
	}
	if err := c.n2.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.n2.CRI.StopSandbox(t.Context(), id), c.n2.CRI.RemoveSandbox(t.Context(), id)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"ADD", "DEL", "DEL, no netns"}, c.n2.calls(t, id)); diff != "" {
		t.Errorf("calls of the plugin for the orphan (-want +got):\n%s", diff)
	}
	wantUsed(t, c.n2, 1)
	c.pods["web"].reaches(t, c.pods["far"])
}

// reboot kills every process and empties /run. For one pod the kubelet stops the old sandbox before it
// makes the new one; for the other pod it stops the old sandbox later.
func reboot(t *testing.T, c *cluster) {
	before := map[string]*pod{"web": c.pods["web"], "near": c.pods["near"]}
	if err := c.n1.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.n1.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lab.Wait(t.Context(), waitLimit, func() error { return c.n1.CRI.NetworkReady(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	for _, p := range before {
		if status, err := c.n1.CRI.SandboxStatus(t.Context(), p.id); err != nil || status.Ready {
			t.Errorf("%s: old sandbox after the reboot: %+v, %v; want it known and not ready", p.Name, status, err)
		}
	}
	before["near"].stop(t)
	// In the reverse order of their first start: the remembered address decides, not the order.
	near := c.run(t, c.n1, Sandbox{Name: "near"})
	web := c.run(t, c.n1, Sandbox{Name: "web"})
	wantSameAddrs(t, before["web"], web)
	wantSameAddrs(t, before["near"], near)

	before["web"].stop(t)
	for _, p := range before {
		p.remove(t)
		calls := c.n1.calls(t, p.id)
		if len(calls) < 3 || calls[0] != "ADD" || calls[1] != "DEL, no netns, prevResult" || calls[2] != "DEL, no netns" {
			t.Errorf("%s: calls of the plugin for the sandbox from before the reboot: %q", p.Name, calls)
		}
	}
	wantUsed(t, c.n1, 2)
	c.pods["far"].reaches(t, web)
	c.pods["far"].reaches(t, near)
	web.reaches(t, c.pods["far"])
	hostPortLeadsToPod(t, c)
}

// rebootAlone starts the pods before the daemon. The old sandboxes' DEL comes last.
func rebootAlone(t *testing.T, c *cluster) {
	before := c.pods["far"]
	if err := c.n2.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lab.Wait(t.Context(), waitLimit, func() error { return c.n2.CRI.NetworkReady(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	other := c.run(t, c.n2, Sandbox{Name: "other"}) // a new pod does not take the addresses of the old pods
	far := c.run(t, c.n2, Sandbox{Name: "far"})
	wantSameAddrs(t, before, far)
	before.stop(t)
	before.remove(t)
	far.reaches(t, other)
	if err := c.n2.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, c.n2, 2)
	c.pods["web"].reaches(t, far)
	c.pods["web"].reaches(t, other)
}
