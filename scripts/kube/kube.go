// Package kube runs a real Kubernetes control plane for tests: etcd and kube-apiserver, and on request
// kube-controller-manager and kube-scheduler, all built by build.sh. It never fakes an answer, and shares
// no code with the program under test.
//
//	cp := kube.Start(t, kube.Options{PodCIDRs: []string{"10.244.0.0/16", "fd00:244::/48"}})
//	err := cp.ApplyText(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}`)
//	out, err := cp.Kubectl("get", "nodes")
//	config, err := cp.Kubeconfig("system:node:n1", "system:nodes") // a file, for the program under test
//	err = cp.StopAPIServer()                                       // and StartAPIServer: same port, same data
//
// All programs end with the test, even if the test is killed. They need root only to run in another network
// namespace.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// startTimeout bounds the start of one program: an API server takes 3 s on an idle machine.
const startTimeout = 90 * time.Second

// Options are the options of a control plane. The zero value is etcd and an API server on 127.0.0.1.
type Options struct {
	// PodCIDRs has the controller manager give each node one pod CIDR of each family from these ranges.
	PodCIDRs []string
	// Programs lists additional programs: "kube-controller-manager", "kube-scheduler".
	Programs []string
	// Space is the network namespace of the programs; nil is the caller's.
	Space *lab.Space
	// Addr is the address of the API server; the zero value is 127.0.0.1.
	Addr netip.Addr
	// ServiceCIDRs are the ranges of Service addresses; the default is 10.96.0.0/16 and fd00:96::/112.
	ServiceCIDRs []string
	// Args are additional command line arguments, by program.
	Args map[string][]string
}

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Dir holds the files; Dir/PROGRAM.log is a program's log.
	Dir string
	o   Options
	ca  *authority
	// The ports are chosen at the first start and do not change.
	etcdPort, etcdPeerPort, apiPort int
	running                         map[string]*lab.Process
	client                          *http.Client
}

// Need skips a test if one of these programs is not built, or if EDGEWAY_KUBE=skip is set in the environment. With
// EDGEWAY_KUBE=required a program that is not built fails the test.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv("EDGEWAY_KUBE") == "skip" {
		t.Skip("EDGEWAY_KUBE=skip")
	}
	if missing := Missing(programs...); len(missing) > 0 {
		fail := t.Skipf
		if os.Getenv("EDGEWAY_KUBE") == "required" {
			fail = t.Fatalf
		}
		fail("not in %s: %s; run scripts/kube/build.sh %[2]s (some 15 minutes of CPU, once)", Dir(), strings.Join(missing, " "))
	}
}

// Start starts a control plane that ends with the test. The test must be allowed to have one: see Need.
func Start(t testing.TB, o Options) *ControlPlane {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Kubernetes control plane")
	}
	Need(t, o.programs()...)
	c, err := New(t.Context(), t.TempDir(), o)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				c.logTails(t)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// New starts a control plane with its files in the existing directory dir. If it returns a control plane
// and an error, the start failed, but the control plane must be closed.
func New(ctx context.Context, dir string, o Options) (*ControlPlane, error) {
	if !o.Addr.IsValid() {
		o.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []string{"10.96.0.0/16", "fd00:96::/112"}
	}
	c := &ControlPlane{Dir: dir, o: o, running: map[string]*lab.Process{}}
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	if err := c.startStore(ctx); err != nil {
		return c, err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return c, err
	}
	for _, name := range o.programs()[3:] {
		if err := c.Run(name); err != nil {
			return c, err
		}
	}
	return c, c.settle(ctx)
}

// programs returns the control plane's programs. The first three are always there.
func (o Options) programs() []string {
	all := []string{etcd, apiServer, kubectl}
	if len(o.PodCIDRs) > 0 || slices.Contains(o.Programs, controllerManager) {
		all = append(all, controllerManager)
	}
	if slices.Contains(o.Programs, scheduler) {
		all = append(all, scheduler)
	}
	return all
}

// settle waits until the controllers have created the service account that pods use.
func (c *ControlPlane) settle(ctx context.Context) error {
	if !slices.Contains(c.o.programs(), controllerManager) {
		return nil
	}
	return c.wait(ctx, controllerManager, func() error {
		return c.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	})
}

// startStore starts etcd. It tries again if another process takes a port after freePorts chose it.
func (c *ControlPlane) startStore(ctx context.Context) error {
	var err error
	for range 3 {
		if c.etcdPort, c.etcdPeerPort, err = freePorts(); err != nil {
			return err
		}
		if err = c.Run(etcd); err != nil {
			return err
		}
		err = c.wait(ctx, etcd, func() error {
			conn, err := c.dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", c.etcdPort))
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err == nil || !c.portTaken(etcd) {
			return err
		}
	}
	return err
}

// StartAPIServer starts the API server and returns when it is ready. Port and data are the same as before.
func (c *ControlPlane) StartAPIServer() error { return c.startAPIServer(context.Background()) }

func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	if c.running[apiServer].Err() == nil {
		return errors.New("API server: it runs already")
	}
	first := c.apiPort == 0
	for tries := 3; ; tries-- {
		if first {
			var err error
			if c.apiPort, _, err = freePorts(); err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
		}
		if err := c.Run(apiServer); err != nil {
			return err
		}
		err := c.wait(ctx, apiServer, func() error { return c.get(ctx, "/readyz") })
		if err == nil || !first || tries == 0 || !c.portTaken(apiServer) {
			return err
		}
	}
}

// StopAPIServer kills the API server: connections to it end, and new connections are refused. After SIGTERM
// the API server would serve its watches for some more seconds.
func (c *ControlPlane) StopAPIServer() error {
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return c.running[apiServer].Kill()
}

// Stop ends one of the programs.
func (c *ControlPlane) Stop(name string) error { return c.running[name].End(syscall.SIGTERM) }

// Close ends all programs. It may be called twice; the files stay.
func (c *ControlPlane) Close() error {
	var errs []error
	for _, name := range []string{scheduler, controllerManager, apiServer, etcd} {
		errs = append(errs, c.running[name].Kill())
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return errors.Join(errs...)
}

// URL returns the URL of the API server.
func (c *ControlPlane) URL() string {
	return "https://" + net.JoinHostPort(c.o.Addr.String(), fmt.Sprint(c.apiPort))
}

// Log is the path of a program's log.
func (c *ControlPlane) Log(program string) string { return c.file(program + ".log") }

func (c *ControlPlane) file(name string) string { return filepath.Join(c.Dir, name) }

func (c *ControlPlane) logTails(t testing.TB) {
	for name := range c.running {
		t.Logf("%s:\n%s", name, lab.Tail(c.Log(name), 15))
	}
}

// wait calls f until it returns nil. It stops when the program that f asks has ended.
func (c *ControlPlane) wait(ctx context.Context, program string, f func() error) error {
	err := lab.Wait(ctx, startTimeout, func() error {
		if err := c.running[program].Err(); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w\n%s", program, err, lab.Tail(c.Log(program), 10))
	}
	return nil
}

// Dir is where build.sh puts the programs.
func Dir() string {
	cache := os.Getenv("XDG_CACHE_HOME")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, ".cache")
	}
	return filepath.Join(cmp.Or(os.Getenv("EDGEWAY_KUBE_DIR"), filepath.Join(cache, "edgeway", "kube")), Version)
}
