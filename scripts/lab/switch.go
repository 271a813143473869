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
	"os/exec"
	"path/filepath"
	"strings"
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
)

const (
	startTimeout = 10 * time.Second // a routing daemon on a busy machine
	stopTimeout  = 10 * time.Second
)

// Switch is a router that speaks BGP.
type Switch struct {
	*Machine
	Spec  SwitchSpec
	suite suite
	procs []*process
}

// Session is a BGP session as the switch sees it.
type Session struct {
	Neighbor netip.Addr
	Name     string
	ASN      uint32
	State    string // "Established", or what the switch says instead
}

// String is the session as a line: "10.0.10.11 as 65010 Established".
func (s Session) String() string { return fmt.Sprintf("%s as %d %s", s.Neighbor, s.ASN, s.State) }

// suite is what differs between BIRD and FRR.
type suite interface {
	// files are the configuration files that the programs need, by name.
	files(s *Switch) (map[string]string, error)
	// programs are in the order of their start.
	programs(s *Switch) []program
	// sessions asks the running switch.
	sessions(ctx context.Context, s *Switch) ([]Session, error)
	// proto is the kernel's name for the origin of the routes learned by BGP.
	proto() string
	// Tables are the command lines that show an operator sessions and routes.
	tables(s *Switch) (sessions, routes []string)
}

// program is one routing daemon: its command line, and the unix socket on which it listens once it
// can be talked to.
type program struct {
	argv   []string
	socket string
}

// suiteOf is where a flavour becomes programs.
func suiteOf(f Flavour) (suite, error) {
	switch f {
	case BIRD, "":
		return bird{}, nil
	case FRR:
		return frr{}, nil
	}
	return nil, fmt.Errorf("switch flavour %q: want %q or %q", f, BIRD, FRR)
}

// addSwitch turns a wired machine into a switch and starts it.
func (l *Lab) addSwitch(ctx context.Context, spec SwitchSpec) error {
	suite, err := suiteOf(spec.Flavour)
	if err != nil {
		return fmt.Errorf("%s: %w", spec.Name, err)
	}
	s := &Switch{Machine: l.Machine(spec.Name), Spec: spec, suite: suite}
	l.mu.Lock()
	l.switches[spec.Name] = s
	l.mu.Unlock()
	return s.Start(ctx)
}

// Start writes the configuration and starts the routing daemons, each when the one before listens:
// a bgpd that misses zebra tries again after ten seconds. It returns when they answer.
func (s *Switch) Start(ctx context.Context) error {
	files, err := s.suite.files(s)
	if err != nil {
		return fmt.Errorf("%s: configuration: %w", s.Name, err)
	}
	for name, text := range files {
		if err := os.WriteFile(s.file(name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("%s: configuration: %w", s.Name, err)
		}
	}
	for _, prog := range s.suite.programs(s) {
		if err := os.Remove(prog.socket); err != nil && !errors.Is(err, fs.ErrNotExist) { // a killed one's
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		name := filepath.Base(prog.argv[0])
		p, err := s.spawn(s.file(name+".log"), prog.argv[0], prog.argv[1:]...)
		if err != nil {
			return err
		}
		s.procs = append(s.procs, p)
		err = Wait(ctx, startTimeout, func() error {
			if err := p.running(); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
			conn, err := net.Dial("unix", prog.socket)
			if err != nil {
				return fmt.Errorf("%s: %s does not listen yet: %w", s.Name, name, err)
			}
			return conn.Close()
		})
		if err != nil {
			return err
		}
	}
	return Wait(ctx, startTimeout, func() error {
		_, err := s.Sessions(ctx)
		return err
	})
}

// Stop ends the routing daemons as an operator would.
func (s *Switch) Stop() error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, p.end(unix.SIGTERM, stopTimeout))
	}
	s.procs = nil
	return errors.Join(errs...)
}

// Kill ends the routing daemons without a word to anybody.
func (s *Switch) Kill() error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, p.end(unix.SIGKILL, stopTimeout))
	}
	s.procs = nil
	return errors.Join(errs...)
}

// Sessions lists the BGP sessions in the order of the configuration.
func (s *Switch) Sessions(ctx context.Context) ([]Session, error) { return s.suite.sessions(ctx, s) }

// Learned lists the routes that BGP put into the switch's kernel.
func (s *Switch) Learned(ctx context.Context) ([]Route, error) {
	return s.Routes(ctx, "proto", s.suite.proto())
}

// Tables returns the commands that print sessions and routes for an operator.
func (s *Switch) Tables() (sessions, routes []string) { return s.suite.tables(s) }

// Proto is the kernel's name for the origin of the routes learned by BGP.
func (s *Switch) Proto() string { return s.suite.proto() }

func (s *Switch) file(name string) string { return filepath.Join(s.Dir, name) }

// routerID is the first IPv4 address.
func (s *Switch) routerID() netip.Addr { return s.Addr(netip.IPv4Unspecified()) }

// config renders a configuration template.
func (s *Switch) config(text string) (string, error) {
	t, err := template.New(s.Name).Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{"Spec": s.Spec, "RouterID": s.routerID(), "Families": []string{"ipv4", "ipv6"}})
	return out.String(), err
}

// Tools says which of the programs that laboratories need are missing on this machine.
func Tools(flavours ...Flavour) []string {
	want := []string{"ip"}
	for _, f := range flavours {
		if f == FRR {
			want = append(want, frrDir+"/zebra", frrDir+"/bgpd", "vtysh")
		} else {
			want = append(want, "bird", "birdc")
		}
	}
	var missing []string
	for _, name := range want {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, strings.TrimPrefix(name, frrDir+"/"))
		}
	}
	return missing
}
