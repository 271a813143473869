package pods

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// onKeepingMachine is onMachine where `edgewayd keep-canary` ran.
func onKeepingMachine(t *testing.T) (p *Pods, n *leases, host *lab.Space) {
	t.Helper()
	p, n, host = onMachine(t)
	p.config.Paths.Canary = true
	p.config.Socket = filepath.Join(t.TempDir(), "edgewayd.sock")
	path := CanaryNetns(p.config)
	t.Cleanup(func() {
		if err := routes.UnpinNetns(path); err != nil {
			t.Error(err)
		}
	})
	if err := routes.PinNetns(path); err != nil {
		t.Fatal(err)
	}
	return p, n, host
}

// restart ends the daemon as a crash does; the next one has the same store.
func (p *Pods) restart(n *leases) *Pods {
	next := New(p.config, p.log)
	next.lift()
	next.leases.Store(n)
	if c := p.canary.Swap(nil); c != nil {
		c.end()
	}
	return next
}

// links says which links the canary has, on the host and inside: their indexes tell a new link from the old one.
func (p *Pods) links(t *testing.T, host *lab.Space) string {
	t.Helper()
	var out []string
	name := plugin.HostLink(plugin.Canary())
	see := func() error {
		l, err := net.InterfaceByName(name)
		if err == nil {
			out = append(out, fmt.Sprintf("%s %d", l.Name, l.Index))
		}
		return err
	}
	err := host.Do(see)
	if name = "eth0"; p.Canary() != nil {
		err = errors.Join(err, p.Canary().Inside(see))
	}
	if err != nil {
		t.Error(err)
	}
	return strings.Join(out, ", ")
}

// Each restart of edgewayd ended the canary and made another: for a moment nobody answered at its address.
func TestCanaryLivesThroughRestarts(t *testing.T) {
	p, n, host := onKeepingMachine(t)
	plan := planFor(1450, "10.88.0.0/24", "fd88::/64")
	addrs := p.keeps(t, n, plan)
	links := p.links(t, host)
	audit := func(when string) {
		t.Helper()
		if err := p.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || checked.Leases != 1 || len(checked.Findings) > 0 {
			t.Errorf("%s: ipam check: %+v, %v", when, checked, err)
		}
	}
	for name, end := range map[string]func(){
		"kill -9": func() {},
		"stop": func() {
			if err := p.leaveCanary(t.Context(), n); err != nil {
				t.Error(err)
			}
		},
	} {
		end()
		p = p.restart(n)
		audit(name + ", while no daemon runs")
		if got := p.keeps(t, n, plan); got != addrs || !p.Canary().Kept {
			t.Errorf("%s: canary %s, kept: %v, want %s", name, got, p.Canary().Kept, addrs)
		}
		if got := p.links(t, host); got != links {
			t.Errorf("%s: links %s, before %s", name, got, links)
		}
		if err := p.keep(t.Context(), true); err != nil || p.Canary() == nil {
			t.Errorf("%s: Keep ended it: %v", name, err)
		}
		audit(name)
	}

	// It is not what a new pod would be: the next daemon makes it again, in the same namespace if it can.
	for name, away := range map[string]func(){
		"another MTU":  func() { plan.MTU -= 50 },
		"another CIDR": func() { plan.Pool = planFor(0, "10.89.0.0/24").Pool },
		"link deleted": func() {
			if err := host.IP(t.Context(), "link del "+plugin.HostLink(plugin.Canary())); err != nil {
				t.Error(err)
			}
		},
		"link inside renamed": func() {
			inside, err := lab.OpenSpace(CanaryNetns(p.config))
			if err == nil {
				defer inside.Close()
				err = inside.IP(t.Context(), "link set eth0 down\nlink set eth0 name other")
			}
			if err != nil {
				t.Error(err)
			}
		},
		"released by an operator": func() {
			if _, err := n.releaseLeases(t.Context(), []string{plugin.Canary().String(), Force}); err != nil {
				t.Error(err)
			}
		},
	} {
		before := p.links(t, host)
		p = p.restart(n)
		away()
		if got := p.keeps(t, n, plan); got == "" || p.Canary().MTU != plan.MTU || !p.Canary().Kept {
			t.Errorf("%s: canary %q, %+v", name, got, p.Canary())
		}
		if got := p.links(t, host); got == before {
			t.Errorf("%s: it has the old links %s", name, got)
		}
		audit(name)
	}

	// Its routes were flushed meanwhile: Keep's judge finds that, and the next look makes it again.
	p = p.restart(n)
	inside, err := lab.OpenSpace(CanaryNetns(p.config))
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.IP(t.Context(), "route flush dev eth0"); err != nil {
		t.Error(err)
	}
	inside.Close()
	p.keeps(t, n, plan)
	if err := p.keep(t.Context(), true); err != nil || p.Canary() != nil {
		t.Errorf("after Keep: %v, canary %+v", err, p.Canary())
	}
	p.keeps(t, n, plan)
	audit("routes flushed")

	// Switched off, or unmounted, meanwhile.
	p = p.restart(n)
	p.config.Paths.Canary = false
	if got := p.keeps(t, n, plan); got != "" {
		t.Errorf("switched off: canary %s", got)
	}
	if leases, err := n.store.Leases(); err != nil || len(leases) > 0 {
		t.Errorf("switched off: leases %v, %v", leases, err)
	}
	p.config.Paths.Canary = true
	p.keeps(t, n, plan)
	p = p.restart(n)
	if err := routes.UnpinNetns(CanaryNetns(p.config)); err != nil {
		t.Error(err)
	}
	if p.keeps(t, n, plan) == "" || p.Canary().Kept {
		t.Errorf("unmounted: canary %+v", p.Canary())
	}
	audit("unmounted")
	if err := errors.Join(p.leaveCanary(t.Context(), n), n.close()); err != nil {
		t.Error(err)
	}
}

// A namespace that was unmounted while the daemon ran: the lease named a path that names nothing.
func TestCanaryUnmountedUnderTheDaemon(t *testing.T) {
	p, n, _ := onKeepingMachine(t)
	plan := planFor(1500, "10.88.0.0/24")
	p.keeps(t, n, plan)
	if err := routes.UnpinNetns(CanaryNetns(p.config)); err != nil {
		t.Error(err)
	}
	if p.keeps(t, n, plan) == "" || p.Canary().Kept {
		t.Errorf("canary %+v", p.Canary())
	}
	if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || len(checked.Findings) > 0 {
		t.Errorf("ipam check: %+v, %v", checked, err)
	}
	if err := errors.Join(p.leaveCanary(t.Context(), n), n.close()); err != nil {
		t.Error(err)
	}
}

// Another program's namespace, or the host's own, lies where the canary's should: it is not touched, and edgewayd says so.
func TestCanaryEntersNoOtherNamespace(t *testing.T) {
	for name, other := range map[string]func(t *testing.T, path string, host *lab.Space) error{
		"of a VPN": func(t *testing.T, path string, _ *lab.Space) error {
			s, err := lab.NewSpace(path)
			if err == nil {
				t.Cleanup(s.Close)
				err = s.IP(t.Context(), "link add wg0 type veth peer name wg1\nlink set wg0 up")
			}
			return err
		},
		"of a pod": func(t *testing.T, path string, _ *lab.Space) error {
			s, err := lab.NewSpace(path)
			if err == nil {
				t.Cleanup(s.Close)
				err = s.IP(t.Context(), "link add eth0 type veth peer name other\nlink set eth0 up\naddr add 192.0.2.1/32 dev eth0")
			}
			return err
		},
		"the host's": func(t *testing.T, path string, host *lab.Space) error {
			return errors.Join(os.WriteFile(path, nil, 0o444), unix.Mount(host.Path, path, "", unix.MS_BIND, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, n, host := onKeepingMachine(t)
			path := CanaryNetns(p.config)
			err := routes.UnpinNetns(path)
			if err == nil {
				err = os.Mkdir(filepath.Dir(path), 0o700)
			}
			if err == nil {
				err = other(t, path, host)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := all(t, path)
			plan := planFor(1500, "10.88.0.0/24")
			if err := n.store.SetPool(t.Context(), plan.Pool); err != nil {
				t.Fatal(err)
			}
			problems := p.keepCanary(t.Context(), n, plan)
			if len(problems) != 1 || problems[0].Reason != cluster.NoCanary || !strings.Contains(problems[0].Got, path) || p.Canary() != nil {
				t.Errorf("canary %+v, problems %+v", p.Canary(), problems)
			}
			if after := all(t, path); after != before {
				t.Errorf("links and addresses %s, before %s", after, before)
			}
			if leases, err := n.store.Leases(); err != nil || len(leases) > 0 {
				t.Errorf("leases %v, %v", leases, err)
			}
			if err := n.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// all are the links and addresses of a namespace.
func all(t *testing.T, path string) (out string) {
	t.Helper()
	s, err := lab.OpenSpace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			addrs, aerr := l.Addrs()
			out += fmt.Sprintln(l, addrs, aerr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// The canary lives on while no daemon runs: the plugin alone ends it for a pod that needs its address.
func TestPluginTakesTheAddressOfAKeptCanary(t *testing.T) {
	p, n, host := onKeepingMachine(t)
	p.keeps(t, n, planFor(1500, "10.88.0.0/30"))
	first, second, third := newSpace(t), newSpace(t), newSpace(t)
	if reply := p.call(t, "ADD", "c1", first, "{}"); reply.Failed {
		t.Fatalf("ADD: %s", reply.Output)
	}
	if err := errors.Join(p.leaveCanary(t.Context(), n), n.close()); err != nil {
		t.Fatal(err)
	}
	alone := func(verb, id string, pod *lab.Space) (status int, answer string) {
		t.Helper()
		env := map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": id, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.Path}
		conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":%q,"socket":%q}`, p.config.StateDir, p.config.Socket)
		var out strings.Builder
		call := plugin.Process{Getenv: func(key string) string { return env[key] }, Stdin: strings.NewReader(conf), Stdout: &out, Stderr: io.Discard}
		if err := host.Do(func() error { status = call.Run(t.Context()); return nil }); err != nil {
			t.Fatal(err)
		}
		return status, out.String()
	}
	if status, answer := alone("ADD", "c2", second); status != 0 || !strings.Contains(answer, "10.88.0.2/32") {
		t.Errorf("ADD: status %d, %s", status, answer)
	}
	if status, answer := alone("ADD", "c3", third); status == 0 || !strings.Contains(answer, `"code":11,`) {
		t.Errorf("ADD with a full pool: status %d, %s", status, answer)
	}
	for id, pod := range map[string]*lab.Space{"c1": first, "c2": second} {
		if status, answer := alone("DEL", id, pod); status != 0 {
			t.Errorf("DEL %s: %s", id, answer)
		}
	}
	if inside := all(t, CanaryNetns(p.config)); strings.Contains(inside, "eth0") {
		t.Errorf("the canary's namespace has %s", inside)
	}
}

// On a node whose daemon is stopped, an imported lease could have the address of the canary that the daemon left.
func TestImportEndsAKeptCanary(t *testing.T) {
	p, n, host := onKeepingMachine(t)
	p.keeps(t, n, planFor(1500, "10.88.0.0/24"))
	if err := errors.Join(p.leaveCanary(t.Context(), n), n.close()); err != nil {
		t.Fatal(err)
	}
	if err := host.Do(func() error {
		_, err := Answer(t.Context(), p.config, []string{"import", "n", "[]"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside := all(t, CanaryNetns(p.config)); strings.Contains(inside, "eth0") {
		t.Errorf("the canary's namespace has %s", inside)
	}
}
