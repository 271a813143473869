package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// killRounds is the number of kill points, spread evenly over the length of an execution.
const killRounds = 16

// length measures how long a command of the first plugin takes.
func (t *T) length(command string) time.Duration {
	var longest time.Duration
	for range 3 {
		p := t.pod()
		r := t.exec(p.main("ADD", nil))
		t.wants(r, "ADD")
		d := t.exec(p.main("DEL", nil))
		if command == "DEL" {
			r = d
		}
		longest = max(longest, r.took)
	}
	return longest
}

// killed calls f for each kill point of an execution.
func (t *T) killed(command string, f func(i int, after time.Duration)) {
	t.trySmall(4)
	whole := t.length(command)
	for i := range killRounds {
		f(i, whole*time.Duration(2*i+1)/time.Duration(2*killRounds-6)+time.Microsecond)
		if len(t.failed) > 3 {
			t.Fatalf("and so on")
		}
	}
}

// settled fails unless the host is as before and the pool is complete.
func (t *T) settled(before snapshot, what string) {
	t.nothingNew(before, what)
	t.tryRoom(4)
}

func (t *T) killAdd(p *pod, after time.Duration, signal unix.Signal) reply {
	c := p.main("ADD", nil)
	c.kill, c.signal = after, signal
	return t.exec(c)
}

func killChecks() []check {
	return []check{
		{id: "kill.add", level: robust, section: "3", asks: "DEL after an ADD that was killed at any point leaves nothing", run: func(t *T) { t.killAdds(unix.SIGKILL) }},
		{id: "kill.add-term", level: robust, section: "3", asks: "DEL after an ADD that was ended by SIGTERM at any point leaves nothing", run: func(t *T) { t.killAdds(unix.SIGTERM) }},
		{id: "kill.add-del-late", level: robust, section: "3", asks: "DEL after an ADD that was killed leaves nothing when the namespace is gone", run: func(t *T) {
			before := t.quiet()
			t.killed("ADD", func(i int, after time.Duration) {
				p := t.pod()
				t.killAdd(p, after, 0)
				p.remove()
				p.netns = ""
				t.wants(t.exec(p.main("DEL", nil)), fmt.Sprintf("DEL after a kill at %v", after))
			})
			t.eventually(before)
			t.settled(before, "all of it")
		}},
		{id: "kill.add-gc", level: should, section: "2", asks: "GC after an ADD that was killed leaves nothing when the namespace is gone", since: sinceGC, run: func(t *T) {
			before := t.quiet()
			t.killed("ADD", func(i int, after time.Duration) {
				p := t.pod()
				t.killAdd(p, after, 0)
				p.remove()
				t.wants(t.gc(), fmt.Sprintf("GC after a kill at %v", after))
			})
			t.eventually(before)
			t.settled(before, "all of it")
		}},
		{id: "kill.add-retry", level: robust, section: "3", asks: "after an ADD that was killed, ADD of the same ID works in a new namespace (a crashed runtime's restart)", run: func(t *T) {
			links := t.links()
			t.killed("ADD", func(i int, after time.Duration) {
				p := t.pod()
				t.killAdd(p, after, 0)
				p.remove()
				// The kernel removes a namespace, and the host's end with it, in its own time.
				t.OK(lab.Wait(context.Background(), reachPatience, func() error {
					if now := t.links(); now > links {
						return fmt.Errorf("%d links, %d before", now, links)
					}
					return nil
				}), "wait for the kernel")
				q := t.pod()
				q.id = p.id
				r := t.exec(q.main("ADD", nil))
				t.wants(r, fmt.Sprintf("ADD after a kill at %v", after))
				t.exec(q.main("DEL", nil))
			})
		}},
		{id: "kill.del", level: robust, section: "2", asks: "DEL after a DEL that was killed at any point leaves nothing", run: func(t *T) {
			t.killDels(func(*pod) {})
		}},
		{id: "kill.del-late", level: robust, section: "2", asks: "DEL after a DEL that was killed leaves nothing when namespace and prevResult are gone", run: func(t *T) {
			t.killDels(func(p *pod) {
				p.remove()
				p.netns, p.prev = "", nil
			})
		}},
		{id: "kill.gc", level: robust, section: "2", asks: "GC after a GC that was killed keeps the valid attachment and removes the stale one", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(4)
			keep, _ := t.addPod()
			whole := t.length("DEL")
			for i := range killRounds / 2 {
				p, _ := t.addPod()
				p.remove()
				c := t.net.call(0, t.netEnv("GC"), onlyValid(keep))
				c.kill = whole*time.Duration(i+1)/10 + time.Microsecond
				t.exec(c)
				t.wants(t.gc(keep), "GC after the killed one")
			}
			t.wants(t.check(keep), "CHECK of the valid one")
			t.del(keep)
			t.room(4)
		}},
		{id: "kill.syscalls-add", level: robust, section: "3", asks: "DEL after an ADD that was killed at each writing system call leaves nothing", needs: needStrace, run: func(t *T) { t.killSyscalls("ADD") }},
		{id: "kill.syscalls-del", level: robust, section: "2", asks: "DEL after a DEL that was killed at each writing system call leaves nothing", needs: needStrace, run: func(t *T) { t.killSyscalls("DEL") }},
		{id: "kill.others-untouched", level: must, section: "3", asks: "a running pod is not harmed when ADD and DEL of others are killed", run: func(t *T) {
			keep := t.pod()
			t.killed("ADD", func(i int, after time.Duration) {
				if i == 0 {
					t.add(keep)
				}
				p := t.pod()
				t.killAdd(p, after, 0)
				t.exec(p.main("DEL", nil))
			})
			r := keep.result()
			t.connected(keep, r)
			t.checks(keep, "CHECK")
		}},
	}
}

// killDels kills DELs. It calls between before it repeats each DEL.
func (t *T) killDels(between func(p *pod)) {
	before := t.quiet()
	t.killed("DEL", func(i int, after time.Duration) {
		p, _ := t.addPod()
		c := p.main("DEL", p.withPrev())
		c.kill = after
		t.exec(c)
		between(p)
		t.wants(t.tryDel(p), fmt.Sprintf("DEL after a kill at %v", after))
	})
	t.settled(before, "all of it")
}

// links returns the number of veth links on the host.
func (t *T) links() (n int) {
	list, err := t.host.nl.LinkList()
	t.OK(err, "list links")
	for _, l := range list {
		if l.Type() == "veth" {
			n++
		}
	}
	return n
}

func (t *T) killAdds(signal unix.Signal) {
	before := t.quiet()
	t.killed("ADD", func(i int, after time.Duration) {
		p := t.pod()
		t.killAdd(p, after, signal)
		t.wants(t.exec(p.main("DEL", nil)), fmt.Sprintf("DEL after a kill at %v", after))
		if p.link(p.ifName) != nil {
			t.Errorf("killed at %v: %s is still in the pod after DEL", after, p.ifName)
		}
	})
	t.settled(before, "all of it")
}

// eventually waits until the host has nothing that it did not have before. It does not report a failure;
// the caller's next comparison does.
func (t *T) eventually(before snapshot) {
	_ = lab.Wait(context.Background(), reachPatience, func() error {
		s, err := t.host.look()
		if err == nil && len(s.minus(before)) > 0 {
			err = fmt.Errorf("left: %v", s.minus(before))
		}
		return err
	})
}

// killSyscalls kills the plugin at the n-th call of each system call that writes.
func (t *T) killSyscalls(command string) {
	t.trySmall(4)
	before := t.quiet()
	tried := 0
	for _, syscall := range []string{"sendto", "sendmsg", "write", "pwrite64", "fdatasync", "fsync", "renameat,rename,renameat2", "unlinkat,unlink", "flock", "setns"} {
		for _, n := range []int{1, 2, 3, 5, 8} {
			p := t.pod()
			if command == "DEL" {
				t.wants(t.exec(p.main("ADD", nil)), "ADD")
			}
			c := p.main(command, nil)
			c.wrap = []string{"/usr/bin/env", "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + syscall, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", syscall, n)}
			r := t.exec(c)
			t.wants(t.exec(p.main("DEL", nil)), fmt.Sprintf("DEL after a kill at %s number %d", syscall, n))
			if p.link(p.ifName) != nil {
				t.Errorf("killed at %s number %d: %s is still in the pod after DEL", syscall, n, p.ifName)
			}
			p.remove()
			if len(t.failed) > 3 {
				t.Fatalf("and so on")
			}
			tried++
			if r.ok() {
				break // the command makes no more of these calls
			}
		}
	}
	t.Notef("%d points", tried)
	t.settled(before, "all of it")
}
