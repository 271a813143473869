package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// Flavour is the routing software of a switch.
type Flavour string

// The flavours.
const (
	BIRD Flavour = "bird"
	FRR  Flavour = "frr"
	// OpenBGPD speaks BGP but does not forward by its routes: on Linux it does not write to the kernel's
	// table.
	OpenBGPD Flavour = "openbgpd"
)

// startTimeout is enough for a routing daemon on a busy machine.
const startTimeout = 30 * time.Second

// Switch is a router that speaks BGP.
type Switch struct {
	*Machine
	Spec  SwitchSpec
	suite suite
	procs []*Process
}

// Session is a BGP session as the switch sees it.
type Session struct {
	Neighbor netip.Addr
	Name     string
	ASN      uint32
	State    string // "Established", or the switch's own word for another state
}

// String returns the session as a line: "10.0.10.11 as 65010 Established".
func (s Session) String() string { return fmt.Sprintf("%s as %d %s", s.Neighbor, s.ASN, s.State) }

// suite is the part of a switch that differs between the flavours.
type suite interface {
	// files returns the configuration files of the programs, by name.
	files(s *Switch) (map[string]string, error)
	// user is the user that the programs switch to, and that creates sockets in the switch's directory. ""
	// is root.
	user() string
	// programs returns the programs in start order.
	programs(s *Switch) []program
	sessions(ctx context.Context, s *Switch) ([]Session, error)
	// proto is the kernel's name for the origin of the routes learned by BGP. It is "" if they do not reach
	// the kernel.
	proto() string
	// learned asks the running switch for its best routes, if they do not reach the kernel.
	learned(ctx context.Context, s *Switch) ([]Route, error)
	// console is the command line that sends an operator's words to the switch.
	console(s *Switch, words []string) []string
	// tables are the command lines that show sessions and routes to an operator.
	tables(s *Switch) (sessions, routes []string)
}

// program is one routing daemon: its command line, and the unix socket on which it listens once it is
// ready.
type program struct {
	name   string // of its log
	argv   []string
	socket string
}

func suiteOf(f Flavour) (suite, error) {
	switch f {
	case BIRD, "":
		return bird{}, nil
	case FRR:
		return frr{}, nil
	case OpenBGPD:
		return openbgpd{}, nil
	}
	return nil, fmt.Errorf("switch flavour %q: want %q, %q or %q", f, BIRD, FRR, OpenBGPD)
}

// addSwitch turns a wired machine into a switch and starts it.
func (l *Lab) addSwitch(ctx context.Context, spec SwitchSpec) error {
	s, err := NewSwitch(l.Machine(spec.Name), spec)
	if err != nil {
		return fmt.Errorf("%s: %w", spec.Name, err)
	}
	l.mu.Lock()
	l.switches[spec.Name] = s
	l.mu.Unlock()
	return s.Start(ctx)
}

// NewSwitch makes a switch outside of a laboratory. Its routing daemons do not outlive this process.
func NewSwitch(m *Machine, spec SwitchSpec) (*Switch, error) {
	suite, err := suiteOf(spec.Flavour)
	return &Switch{Machine: m, Spec: spec, suite: suite}, err
}

// Start writes the configuration and starts the routing daemons. It returns when they answer.
func (s *Switch) Start(ctx context.Context) error {
	files, err := s.suite.files(s)
	if err != nil {
		return fmt.Errorf("%s: configuration: %w", s.Name, err)
	}
	if err := s.StartWith(ctx, files); err != nil {
		return err
	}
	return Wait(ctx, startTimeout, func() error {
		_, err := s.Sessions(ctx)
		return err
	})
}

// StartWith starts the routing daemons with these configuration files. Each daemon starts when the one
// before listens, because a bgpd without zebra waits ten seconds before it tries again. StartWith returns
// when all listen.
func (s *Switch) StartWith(ctx context.Context, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(s.file(name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("%s: configuration: %w", s.Name, err)
		}
	}
	if err := s.giveDir(s.suite.user()); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	for _, prog := range s.suite.programs(s) {
		if err := os.Remove(prog.socket); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a killed daemon
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		p, err := s.Spawn(s.file(prog.name+".log"), prog.argv...)
		if err != nil {
			return err
		}
		s.procs = append(s.procs, p)
		err = Wait(ctx, startTimeout, func() error {
			if err := p.Err(); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
			conn, err := net.Dial("unix", prog.socket)
			if err != nil {
				return fmt.Errorf("%s: %s does not listen yet: %w", s.Name, prog.name, err)
			}
			return conn.Close()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Switch) giveDir(name string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	return os.Chown(s.Dir, uid, -1)
}

// Console sends an operator's words to the running switch and returns the answer. For FRR's vtysh each word
// is a command.
func (s *Switch) Console(ctx context.Context, words ...string) (string, error) {
	argv := s.suite.console(s, words)
	return s.Run(ctx, argv[0], argv[1:]...)
}

// Stop ends the routing daemons as an operator would.
func (s *Switch) Stop() error { return s.end(unix.SIGTERM) }

// Kill ends the routing daemons as a power cut does: all their processes at once. A process of OpenBGPD that sees
// its parent die ends the sessions with a Cease. Kill returns when all are gone: the next daemon needs their port.
func (s *Switch) Kill() error {
	var groups []int
	for _, p := range s.procs {
		if p.Err() == nil {
			groups = append(groups, p.PID())
			_ = unix.Kill(-p.PID(), unix.SIGKILL) // End reports a process that lives
		}
	}
	err := s.end(unix.SIGKILL)
	for _, group := range groups {
		// A process that nobody reaps has closed its sockets, too.
		_ = Wait(context.Background(), groupTimeout, func() error {
			if unix.Kill(-group, 0) == unix.ESRCH {
				return nil
			}
			return fmt.Errorf("processes of group %d are left", group)
		})
	}
	return err
}

// groupTimeout bounds the time from the end of a daemon to the end of the processes that it started.
const groupTimeout = 5 * time.Second

func (s *Switch) end(sig unix.Signal) error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, p.End(sig))
	}
	s.procs = nil
	return errors.Join(errs...)
}

// Sessions lists the BGP sessions in configuration order.
func (s *Switch) Sessions(ctx context.Context) ([]Session, error) { return s.suite.sessions(ctx, s) }

// Learned lists the routes that BGP put into the switch's kernel, or into the switch's own table if it does
// not write to the kernel's.
func (s *Switch) Learned(ctx context.Context) ([]Route, error) {
	if s.suite.proto() == "" {
		return s.suite.learned(ctx, s)
	}
	return s.Routes(ctx, "proto", s.suite.proto())
}

// Tables returns the commands that print sessions and routes for an operator.
func (s *Switch) Tables() (sessions, routes []string) { return s.suite.tables(s) }

// Proto is the kernel's name for the origin of the routes learned by BGP.
func (s *Switch) Proto() string { return s.suite.proto() }

func (s *Switch) file(name string) string { return filepath.Join(s.Dir, name) }

func (s *Switch) routerID() netip.Addr { return s.Addr(netip.IPv4Unspecified()) }

// sessionsOf lists the configured sessions with their states. An unknown session, with the state "", is an
// error.
func (s *Switch) sessionsOf(state func(NeighborSpec) string) ([]Session, error) {
	var all []Session
	for _, n := range s.Spec.Neighbors {
		session := Session{Neighbor: n.Address, Name: n.Name, ASN: n.ASN, State: state(n)}
		if session.State == "" {
			return nil, fmt.Errorf("%s: shows no neighbor %s (%s)", s.Name, n.Name, n.Address)
		}
		all = append(all, session)
	}
	return all, nil
}

// networks are the switch's connected and fixed routes.
func (s *Switch) networks() (all []netip.Prefix) {
	for _, link := range s.Spec.Links {
		for _, addr := range link.Addrs {
			all = append(all, addr.Masked())
		}
	}
	for _, r := range s.Spec.Routes {
		all = append(all, r.To)
	}
	return all
}

func (s *Switch) config(text string) (string, error) {
	t, err := template.New(s.Name).Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{"Spec": s.Spec, "RouterID": s.routerID(), "Families": []string{"ipv4", "ipv6"},
		"Networks": s.networks(), "Socket": s.file("bgpd.sock")})
	return out.String(), err
}

// Tools returns the programs that laboratories with these switches need.
func Tools(flavours ...Flavour) []string {
	all := []string{"ip"}
	for _, f := range flavours {
		switch f {
		case FRR:
			all = append(all, frrDir+"/zebra", frrDir+"/bgpd", "vtysh")
		case OpenBGPD:
			all = append(all, openbgpdDir+"/bgpd", "bgpctl", "unshare")
		default:
			all = append(all, "bird", "birdc")
		}
	}
	return all
}
