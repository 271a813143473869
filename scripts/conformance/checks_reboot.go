package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// reboot ends every namespace and gives the check a new host. Only files on disk stay. newBoot also changes
// the kernel's boot ID for every process in our mount namespace.
func (t *T) reboot(newBoot bool, pods ...*pod) {
	for _, p := range pods {
		p.remove()
	}
	shared := t.host == t.sharedHost
	if shared {
		t.stopDaemon()
	}
	t.host.remove()
	t.outside.remove()
	if newBoot {
		path := t.file("boot_id", fmt.Appendf(nil, "c0nf0000-0000-4000-8000-%012d\n", t.seq))
		t.OK(unix.Mount(path, bootIDFile, "", unix.MS_BIND, ""), "give the kernel another boot ID")
		t.Cleanup(func() { _ = unix.Unmount(bootIDFile, unix.MNT_DETACH) })
	}
	var err error
	t.host, t.outside, err = newHost(filepath.Join(t.dir, "netns-after"))
	t.OK(err, "make a new host")
	if shared {
		t.bench.sharedHost, t.bench.sharedOther = t.host, t.outside
		t.OK(t.startDaemon(t.host), "start the daemon again")
		if !before(t.net.version, sinceGC) {
			_ = lab.Wait(context.Background(), reachPatience, func() error { // wait for the daemon; a failure shows in the check
				if r := t.status(); !r.ok() {
					return errors.New(r.said())
				}
				return nil
			})
		}
	}
}

// rebooted is a check that fills a pool and reboots.
func rebooted(id, asks string, l level, section, since string, newBoot bool, after func(t *T, old []*pod)) check {
	return check{id: id, level: l, section: section, asks: asks, since: since, alone: newBoot, needs: needRanges | needPrivate, run: func(t *T) {
		t.small(2)
		old := []*pod{t.pod(), t.pod()}
		for _, p := range old {
			t.add(p)
		}
		t.reboot(newBoot, old...)
		after(t, old)
	}}
}

// renew adds the containers again under their old IDs.
func renew(t *T, old []*pod) {
	for _, p := range old {
		q := t.pod()
		q.id = p.id
		t.connected(q, t.add(q))
	}
}

// fresh adds as many containers as before, under new IDs.
func fresh(t *T, old []*pod) {
	for range old {
		q := t.pod()
		t.connected(q, t.add(q))
	}
}

func rebootChecks() []check {
	del := func(t *T, old []*pod) {
		for _, p := range old {
			t.wants(t.tryDel(p), "DEL")
			p.netns, p.prev = "", nil
			t.wants(t.tryDel(p), "the second DEL")
		}
		t.room(2)
	}
	return []check{
		rebooted("reboot.del", "DEL of the old attachments after a reboot frees their addresses", should, "2", "", true, del),
		rebooted("reboot.readd", "ADD of the same IDs works after a reboot, without DEL", robust, "3", "", true, renew),
		rebooted("reboot.nothing", "ADD of new IDs gets every address after a reboot, without DEL or GC of the old IDs", robust, "3", "", true, fresh),
		rebooted("reboot.gc", "GC with an empty list frees all addresses after a reboot", should, "2", sinceGC, true, func(t *T, old []*pod) {
			t.wants(t.gc(), "GC")
			t.room(2)
		}),
		rebooted("reboot.status", "STATUS agrees with ADD after a reboot", should, "2", sinceGC, true, func(t *T, old []*pod) {
			status := t.status()
			if add := t.tryAdd(t.pod()); add.ok() != status.ok() {
				t.Errorf("STATUS: %s; ADD: %s", status.said(), add.said())
			}
		}),
		rebooted("reboot.same-boot-id", "ADD of the same IDs works when all namespaces are gone and the boot ID is the same", robust, "3", "", false, renew),
		rebooted("reboot.same-boot-id-new", "ADD of new IDs works when all namespaces are gone and the boot ID is the same", robust, "3", "", false, fresh),
		rebooted("reboot.late-del", "a late DEL of an attachment from before the reboot does not harm new pods", must, "2", "", true, func(t *T, old []*pod) {
			for _, p := range old {
				q := t.pod()
				r := t.tryAdd(q)
				if !r.ok() {
					t.Skipf("ADD fails: see reboot.nothing")
				}
				res := q.result()
				t.wants(t.tryDel(p), "DEL of the old one")
				t.connected(q, res)
				t.wants(t.check(q), "CHECK of the new one")
			}
		}),
	}
}

// mounted covers the state directory, which must be empty, with a file system of size bytes.
func (t *T) mounted(size int) {
	entries, err := os.ReadDir(t.state)
	t.OK(err, "read the state directory")
	if len(entries) > 0 {
		t.Fatalf("the harness: the state directory is in use")
	}
	t.OK(unix.Mount("conformance", t.state, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0755", size)), "mount a small file system")
	t.Cleanup(func() { _ = unix.Unmount(t.state, unix.MNT_DETACH) })
}

// fill uses up the free space of the state directory's file system.
func (t *T) fill() (free func()) {
	path := filepath.Join(t.state, "filler")
	f, err := os.Create(path)
	t.OK(err, "fill the file system")
	defer f.Close()
	for n := 4096; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	return func() { _ = os.Remove(path) }
}

// damaged overwrites every state file.
func (t *T) damaged(content []byte) {
	files := t.stateFiles()
	if len(files) == 0 {
		t.Skipf("nothing lies below the state directory")
	}
	for _, f := range files {
		if len(content) > 0 {
			if info, err := os.Stat(f); err == nil && info.Size() == 0 {
				continue // an empty file is a lock
			}
		}
		t.OK(os.WriteFile(f, content, 0o644), "damage "+f)
	}
}

// duplicate fails if a new pod gets the address of a running pod.
func (t *T) duplicate(running result) {
	for range 3 {
		q := t.pod()
		if r := t.tryAdd(q); !r.ok() {
			t.clean(r, "ADD")
			continue
		}
		r := q.result()
		t.distinct(running, r)
	}
}

func stateChecks() []check {
	garbage := []byte("garbage: neither JSON nor anything else \x00\xff\n")
	lossy := func(id, asks string, damage func(t *T)) check {
		return check{id: id, level: robust, section: "2", asks: "DEL succeeds and no address is lost when " + asks, needs: needRanges | needState, run: func(t *T) {
			t.small(2)
			p, _ := t.addPod()
			damage(t)
			t.wants(t.tryDel(p), "DEL")
			t.room(2)
		}}
	}
	double := func(id, asks string, damage func(t *T)) check {
		return check{id: id, level: robust, section: "2", asks: "a running pod's address is not given out again when " + asks, needs: needRanges | needState, run: func(t *T) {
			t.small(4)
			p, r := t.addPod()
			damage(t)
			t.duplicate(r)
			t.connected(p, r)
		}}
	}
	return []check{
		lossy("state.empty", "the state files are empty, as after a power cut", func(t *T) { t.damaged(nil) }),
		lossy("state.garbage", "the state files hold garbage", func(t *T) { t.damaged(garbage) }),
		lossy("state.removed", "the state directory was emptied", func(t *T) { t.emptyState() }),
		double("state.empty-no-duplicate", "the state files are empty", func(t *T) { t.damaged(nil) }),
		double("state.garbage-no-duplicate", "the state files hold garbage", func(t *T) { t.damaged(garbage) }),
		double("state.removed-no-duplicate", "the state directory was emptied", func(t *T) { t.emptyState() }),
		{id: "state.directory-missing", level: robust, section: "2", asks: "ADD creates a missing state directory", needs: needState, run: func(t *T) {
			t.OK(os.RemoveAll(t.state), "remove it")
			p, _ := t.addPod()
			t.del(p)
		}},
		{id: "state.read-only", level: robust, section: "2", asks: "with state on a read-only file system ADD fails cleanly, and leaves nothing after DEL", needs: needState | needPrivate, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			t.readOnly(true)
			q := t.pod()
			r := t.tryAdd(q)
			t.refuses(r, "ADD")
			t.clean(r, "ADD")
			t.noInterface(q)
			t.readOnly(false)
			t.del(p)
			t.tryDel(q)
			t.nothingNew(before, "all of it")
		}},
		{id: "state.read-only-status", level: robust, section: "2", asks: "STATUS fails with code 50 while the state is on a read-only file system", since: sinceGC, needs: needState | needPrivate, run: func(t *T) {
			t.quiet()
			t.readOnly(true)
			t.refuses(t.status(), "STATUS", 50)
			t.readOnly(false)
			t.wants(t.status(), "STATUS when it can be written again")
		}},
		{id: "state.full", level: robust, section: "2", asks: "on a full file system ADD works or fails cleanly, DEL succeeds, and no address is lost", needs: needState | needPrivate | needRanges, run: func(t *T) {
			t.mounted(2 << 20)
			t.small(2)
			before := t.quiet()
			p, _ := t.addPod()
			free := t.fill()
			q := t.pod()
			t.clean(t.tryAdd(q), "ADD")
			t.wants(t.tryDel(p), "DEL")
			t.tryDel(q)
			free()
			t.wants(t.tryDel(q), "DEL with room again")
			t.nothingNew(before, "all of it")
			t.room(2)
		}},
	}
}

// readOnly makes the state directory read-only, or writable again.
func (t *T) readOnly(on bool) {
	if !on {
		t.OK(unix.Unmount(t.state, unix.MNT_DETACH), "unmount")
		return
	}
	t.OK(unix.Mount(t.state, t.state, "", unix.MS_BIND, ""), "bind the state directory")
	t.Cleanup(func() { _ = unix.Unmount(t.state, unix.MNT_DETACH) })
	t.OK(unix.Mount("", t.state, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""), "make it read-only")
}
