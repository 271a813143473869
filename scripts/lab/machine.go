package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a network namespace that plays a machine: a host, a router, a switch, a node or a pod.
type Machine struct {
	Name  string
	Netns string       // "ew-4f2a-Node-1", as `ip netns exec` wants it
	Addrs []netip.Addr // in the order of its configuration
	Dir   string       // its files
}

// Path of the machine's network namespace.
func (m *Machine) Path() string { return filepath.Join(netnsDir, m.Netns) }

// Addr returns the machine's first address of the family of like; it is invalid when there is none.
func (m *Machine) Addr(like netip.Addr) netip.Addr {
	for _, a := range m.Addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Do calls f on a thread inside the machine's network namespace. Sockets that f opens and
// processes that it starts stay in there.
func (m *Machine) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() (err error) {
			runtime.LockOSThread()
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			there, err := os.Open(m.Path())
			if err != nil {
				return err
			}
			defer there.Close()
			if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", m.Netns, err)
			}
			defer func() {
				if p := recover(); p != nil { // must reach the caller, who has a laboratory to take down
					err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				}
				// A thread that cannot go home stays locked, and so ends with this goroutine.
				if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
					runtime.UnlockOSThread()
				}
			}()
			return f()
		}()
	}()
	return <-done
}

// Run runs a command inside the machine and returns its standard output.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us alone
	err := m.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s", m.Name, name, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Route is a route as the kernel of a machine has it.
type Route struct {
	Dst netip.Prefix
	Via []netip.Addr // several of a multipath route, sorted; none of one on the link itself
	Dev string
}

// String writes what matters between machines: "10.10.1.0/24 via 10.0.0.11".
func (r Route) String() string {
	s := r.Dst.String()
	for _, via := range r.Via {
		s += " via " + via.String()
	}
	if len(r.Via) == 0 && r.Dev != "" {
		s += " dev " + r.Dev
	}
	return s
}

// Routes lists the routes of the main table that `ip route show FILTER` selects: of both families,
// or of the family of a prefix in the filter.
func (m *Machine) Routes(ctx context.Context, filter ...string) ([]Route, error) {
	var all []Route
	for _, family := range families(filter) {
		out, err := m.Run(ctx, "ip", slices.Concat([]string{"-json", family, "route", "show"}, filter)...)
		if err != nil {
			return nil, err
		}
		routes, err := parseRoutes(out)
		if err != nil {
			return nil, fmt.Errorf("%s: ip %s route: %w", m.Name, family, err)
		}
		all = append(all, routes...)
	}
	slices.SortFunc(all, func(a, b Route) int {
		return strings.Compare(sortKey(a.Dst), sortKey(b.Dst))
	})
	return all, nil
}

// families are iproute2's options for the families that a filter can speak of.
func families(filter []string) []string {
	for _, word := range filter {
		if p, err := netip.ParsePrefix(word); err == nil && p.Addr().Is4() {
			return []string{"-4"}
		} else if err == nil {
			return []string{"-6"}
		}
	}
	return []string{"-4", "-6"}
}

// sortKey orders prefixes by family, address and length.
func sortKey(p netip.Prefix) string {
	return fmt.Sprintf("%03d %x %03d", p.Addr().BitLen(), p.Addr().AsSlice(), p.Bits())
}

func parseRoutes(out string) ([]Route, error) {
	type hop struct {
		Gateway netip.Addr `json:"gateway"`
		Dev     string     `json:"dev"`
		Via     struct {
			Host netip.Addr `json:"host"`
		} `json:"via"` // a gateway of the other family (RFC 8950)
	}
	var raw []struct {
		hop
		Dst      string `json:"dst"`
		Nexthops []hop  `json:"nexthops"`
	}
	if strings.TrimSpace(out) == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(out), &raw); err != nil {
		return nil, err
	}
	var routes []Route
	for _, r := range raw {
		route := Route{Dev: r.Dev}
		hops := append(r.Nexthops, r.hop)
		for _, h := range hops {
			for _, via := range []netip.Addr{h.Gateway, h.Via.Host} {
				if via.IsValid() && !slices.Contains(route.Via, via) {
					route.Via = append(route.Via, via)
				}
			}
		}
		slices.SortFunc(route.Via, netip.Addr.Compare)
		var err error
		if route.Dst, err = parseDst(r.Dst, route.Via); err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	return routes, nil
}

// parseDst reads a destination as iproute2 writes it: "default", a host address or a prefix.
func parseDst(s string, via []netip.Addr) (netip.Prefix, error) {
	if s == "default" {
		if len(via) > 0 && via[0].Is6() {
			return netip.MustParsePrefix("::/0"), nil
		}
		return netip.MustParsePrefix("0.0.0.0/0"), nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// process is a program that runs inside a machine, its output in a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended
}

// spawn starts a program inside the machine. Its output is appended to the file log.
func (m *Machine) spawn(log, name string, args ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, filepath.Base(name), err)
	}
	defer f.Close()
	p := &process{cmd: exec.Command(name, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Dir = m.Dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, filepath.Base(name), err)
	}
	go func() {
		p.cmd.Wait() // its result stands in ProcessState
		close(p.done)
	}()
	return p, nil
}

// errEnded is wrapped by the error of a process that has ended: waiting longer does not help.
var errEnded = errors.New("ended")

// running is nil while the process lives, and otherwise says how it ended.
func (p *process) running() error {
	if p == nil {
		return errors.New("was not started")
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s %w: %s\n%s", filepath.Base(p.cmd.Path), errEnded, p.cmd.ProcessState, tail(p.log, 15))
	default:
		return nil
	}
}

// end sends sig and waits for the end. A process that has ended already is success.
func (p *process) end(sig os.Signal, limit time.Duration) error {
	if p.running() != nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("%s (pid %d) still runs %v after %v", filepath.Base(p.cmd.Path), p.cmd.Process.Pid, limit, sig)
	}
}

// tail returns the last lines of a file, for messages.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
