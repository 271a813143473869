package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// otherChecks are about a plugin's neighbours on its host: untrusted pods, links and addresses of users and
// other agents, networks with another state directory, and helpers that hang.
func otherChecks() []check {
	return slices.Concat(podChecks(), occupiedChecks(), otherStateChecks(), foreignLinkChecks(), hangChecks())
}

// occupied is a check with a pool in which the host uses some addresses. occupy makes the host use one
// address.
func occupied(id, asks string, occupy func(prefix string) step) check {
	return check{id: id, level: robust, section: "2", asks: asks, needs: needRanges | needPrivate, run: func(t *T) {
		const size, taken = 6, 3
		t.small(size)
		before := t.quiet()
		t.OK(t.host.veth(foreignLink, foreignLink+"p"), "make a link")
		free := func() { _ = t.host.deleteLink(foreignLink) } // the link may be gone
		t.Cleanup(free)
		for _, first := range t.net.firsts() {
			for i := range taken {
				a := offset(first, i)
				t.OK(t.host.script(occupy(netip.PrefixFrom(a, a.BitLen()).String())), "occupy an address")
			}
		}
		full := t.snap()
		var p *pod
		var r reply
		for i := 0; i <= taken && (p == nil || !r.ok()); i++ { // the kubelet retries with a new container
			p = t.pod()
			p.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=e60bc00e-1111-2222-3333-444444444444"
			if r = t.tryAdd(p); !r.ok() {
				t.clean(r, "ADD")
				t.wants(t.tryDel(p), "DEL")
			}
		}
		if !r.ok() {
			t.Fatalf("the pod never starts: %s", r.said())
		}
		t.connected(p, p.result())
		t.del(p)
		if lost := full.minus(t.snap()); len(lost) > 0 {
			t.Errorf("the host has lost: %s", strings.Join(lost, ", "))
		}
		free()
		t.nothingNew(before, "all of it")
		t.room(size)
	}}
}

// foreignLink is a link of a user or of another agent.
const foreignLink = "user0"

func occupiedChecks() []check {
	return []check{
		occupied("pool.foreign-route", "a pod starts, after a few new containers at most, although the host routes some of the pool's addresses elsewhere", func(prefix string) step {
			return addRoute(foreignLink, prefix, "")
		}),
		occupied("pool.foreign-address", "a pod starts, after a few new containers at most, although the host itself has some of the pool's addresses", func(prefix string) step {
			return addAddr(foreignLink, prefix)
		}),
	}
}

// beside returns a second network of the same plugins with another state directory.
func (t *T) beside() network {
	dir := filepath.Join(t.dir, "state-of-another")
	t.OK(os.Mkdir(dir, 0o755), "make a state directory")
	n, err := t.network(t.net.name+"-beside", dir)
	t.OK(err, "read the configuration")
	n.version = t.net.version
	return n
}

func otherStateChecks() []check {
	return []check{
		{id: "gc.other-state", level: robust, section: "2", asks: "GC of a network leaves the attachments of a network with another state directory alone", since: sinceGC, needs: needRanges | needState, run: func(t *T) {
			one, other := t.net.small(1, t.seq), t.beside().small(1, t.seq+1)
			t.net = one
			p, r := t.addPod()
			t.net = other
			q, _ := t.addPod()
			t.wants(t.gc(q), "GC of the other network")
			t.del(q)
			t.wants(t.gc(), "GC of the other network without a pod")
			t.net = one
			t.connected(p, r)
			t.wants(t.check(p), "CHECK")
			t.refuses(t.tryAdd(t.pod()), "ADD while the only address is in use")
		}},
		{id: "state.other-no-duplicate", level: robust, section: "2", asks: "ADD never gives an address that a running pod has from a network with another state directory", needs: needRanges | needState, run: func(t *T) {
			one, other := t.net.small(4, t.seq), t.beside().small(4, t.seq)
			t.net = one
			p, r := t.addPod()
			t.net = other
			t.duplicate(r)
			t.connected(p, r)
			t.net = one
		}},
	}
}

// lookalikes makes links of a user with names similar to the pod's links on the host. The returned function
// lists the links that were deleted.
func (t *T) lookalikes(p *pod) (lost func() []string) {
	names := t.hostEnds(p)
	made := map[string]int{}
	n := 0
	create := func(l netlink.Link, name string) {
		if t.host.link(name) != nil {
			return
		}
		l.Attrs().Name = name
		t.OK(t.host.nl.LinkAdd(l), "make "+name)
		made[name] = t.host.link(name).Attrs().Index
		t.Cleanup(func() { _ = t.host.deleteLink(name) }) // the plugin may have deleted it
	}
	veth := func(name string) {
		n++
		create(&netlink.Veth{PeerName: fmt.Sprintf("user-peer%d", n)}, name)
	}
	for _, name := range names {
		start, last := name[:min(2, len(name))], "0"
		if strings.HasSuffix(name, last) {
			last = "1"
		}
		create(&netlink.Bridge{}, start+"-bridge02")
		create(&netlink.Bridge{}, start+"an-bridge02")
		veth(start + "-backup01")
		veth(start + "an-backup01")
		veth(name[:len(name)-1] + last)
	}
	return func() (out []string) {
		for _, name := range names { // a user may take a name that is free again
			if t.host.link(name) == nil {
				create(&netlink.Bridge{}, name)
			}
		}
		for name, index := range made {
			if l := t.host.link(name); l == nil || l.Attrs().Index != index {
				out = append(out, name)
			}
		}
		slices.Sort(out)
		return out
	}
}

// foreignLinks deletes a pod beside a user's links with similar names. It repeats the deletion after a user's
// bridge has taken the exact name of the pod's old link.
func foreignLinks(id, asks, since string, end func(t *T, p *pod) reply) check {
	return check{id: id, level: robust, section: "2", asks: asks, since: since, run: func(t *T) {
		p, _ := t.addPod()
		lost := t.lookalikes(p)
		for _, call := range []string{"the first", "the second"} {
			t.wants(end(t, p), call)
			t.gone(p)
			if names := lost(); len(names) > 0 {
				t.Errorf("%s deletes a user's %s", call, strings.Join(names, ", "))
			}
		}
	}}
}

func foreignLinkChecks() []check {
	return []check{
		foreignLinks("del.foreign-links", "DEL leaves a user's bridges and veths alone, whatever their names", "", func(t *T, p *pod) reply { return t.tryDel(p) }),
		foreignLinks("gc.foreign-links", "GC leaves a user's bridges and veths alone, whatever their names", sinceGC, func(t *T, p *pod) reply {
			p.remove()
			return t.gc()
		}),
	}
}

const (
	// verbPatience is the kubelet's default time limit for one call of the runtime (runtimeRequestTimeout).
	verbPatience = 2 * time.Minute
	// statusPatience is how long the kubelet waits for a silent runtime before it reports the node as not
	// ready.
	statusPatience = 30 * time.Second
)

// hung runs all commands at once while a helper of the plugin hangs: ADD for a fresh pod, the others for an
// attached pod. It returns the fresh pod.
func (t *T) hung(attached *pod) (fresh *pod, replies map[string]reply) {
	fresh = t.pod()
	commands := []string{"ADD", "DEL"}
	if !before(t.net.version, sinceCheck) {
		commands = append(commands, "CHECK")
	}
	if !before(t.net.version, sinceGC) {
		commands = append(commands, "GC", "STATUS")
	}
	pods, command := make([]*pod, len(commands)), map[*pod]string{}
	for i, c := range commands {
		p := *attached
		if c == "ADD" {
			p = *fresh
		}
		pods[i], command[&p] = &p, c
	}
	replies = map[string]reply{}
	for i, r := range t.atOnce(pods, func(t *T, p *pod) reply {
		c := p.main(command[p], p.withPrev())
		c.limit = verbPatience
		switch command[p] {
		case "STATUS":
			c.env, c.stdin, c.limit = t.netEnv("STATUS"), t.net.request(0, nil), statusPatience
		case "GC":
			c.env, c.stdin = t.netEnv("GC"), t.net.request(0, onlyValid(attached))
		}
		return t.exec(c)
	}) {
		replies[commands[i]] = r
		if r.status == -1 {
			t.Errorf("%s has not ended after %v", commands[i], r.took.Round(time.Second))
		} else {
			t.clean(r, commands[i])
		}
	}
	return fresh, replies
}

// ended deletes the pods, and fails if an interface is left.
func (t *T) ended(pods ...*pod) {
	for _, p := range pods {
		t.wants(t.tryDel(p), "DEL")
		t.noInterface(p)
	}
}

func hangChecks() []check {
	hangs := delegated("delegate.hangs", "when the IPAM plugin never answers, STATUS fails within 30 s and the other commands within two minutes; once it answers again, DEL leaves nothing", robust, "", nil, func(t *T) {
		before := t.snap()
		p, _ := t.addPod()
		works := t.net
		t.net = t.delegating(object{"hang": true})
		fresh, replies := t.hung(p)
		for command, r := range replies {
			t.refuses(r, command)
		}
		t.net = works
		t.ended(fresh, p)
		t.noNewVeth(before)
	})
	hangs.idle = true
	return []check{
		hangs,
		{alone: true, id: "daemon.hangs", level: robust, section: "-", asks: "when the plugin's daemon never answers, STATUS fails within 30 s and the other commands end within two minutes; once it answers again, DEL leaves nothing", needs: needDaemon, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			group := -t.daemon.PID()
			t.Cleanup(func() { _ = unix.Kill(group, unix.SIGCONT) }) // the daemon may have ended
			t.OK(unix.Kill(group, unix.SIGSTOP), "stop the daemon")
			fresh, replies := t.hung(p)
			t.OK(unix.Kill(group, unix.SIGCONT), "let the daemon go on")
			if r, ok := replies["STATUS"]; ok {
				t.refuses(r, "STATUS", 50, 51)
				t.OK(lab.Wait(context.Background(), daemonPatience, func() error {
					if r := t.status(); !r.ok() {
						return errors.New(r.said())
					}
					return nil
				}), "STATUS of the daemon that goes on")
			}
			t.ended(fresh, p)
			t.nothingNew(before, "all of it")
		}},
	}
}
