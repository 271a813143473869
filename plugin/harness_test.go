package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// asExecutable in the environment makes the test binary the plugin's executable, asDaemon a daemon
// on the directory that it names.
const (
	asExecutable = "EDGEWAY_TEST_EXECUTABLE"
	asDaemon     = "EDGEWAY_TEST_DAEMON"
)

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asExecutable) != "" {
		os.Exit(Process{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}.Run(context.Background()))
	}
	if dir := os.Getenv(asDaemon); dir != "" {
		fmt.Fprintln(os.Stderr, serveForTests(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// kernelTest skips what needs root and the kernel's namespaces.
func kernelTest(t *testing.T) {
	t.Helper()
	lab.Need(t, "ip", "ping")
}

// space is a network namespace of a test.
type space struct {
	*lab.Space
	file *os.File
	path string // for CNI_NETNS
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &space{s, s.File, s.Path}
}

// run runs do on a thread inside the namespace.
func (s *space) run(t testing.TB, do func() error) {
	t.Helper()
	if err := s.Do(do); err != nil {
		t.Fatal(err)
	}
}

// sh runs a command line inside the namespace and returns what it prints.
func (s *space) sh(t testing.TB, line string) string {
	t.Helper()
	out, err := s.try(t, line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (s *space) try(t testing.TB, line string) (out string, err error) {
	t.Helper()
	s.run(t, func() error {
		var stdout, stderr strings.Builder
		cmd := exec.Command("sh", "-ec", line)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
		if out = stdout.String(); err != nil { // ip(8) warns of namespaces that end while it reads /run/netns
			out += stderr.String()
		}
		return nil
	})
	return out, err
}

// host is a machine of a test: its namespace, store and socket.
type host struct {
	*space
	dir    string
	leased func() []ipam.Lease // set while a Node holds the store
}

// newHost makes a machine with an uplink of both families. When the test ends, the host must
// be whole: no lease without link, no link without lease, no route without owner.
func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{space: newSpace(t), dir: t.TempDir()}
	h.sh(t, `ip link set lo up
		ip link add up0 type veth peer name up1
		ip link set up1 up
		ip link set up0 up mtu 1480
		ip addr add 192.0.2.1/24 dev up0
		ip addr add 2001:db8::1/64 dev up0 nodad
		ip route add default via 192.0.2.254
		ip -6 route add default via 2001:db8::fe`)
	t.Cleanup(func() { h.whole(t) })
	return h
}

// node opens the store and returns the verbs on it, as a daemon has them.
func (h *host) node(t testing.TB) *Node {
	t.Helper()
	store := h.store(t)
	var n *Node
	h.run(t, func() (err error) {
		n, err = NewNode(store, h.dir)
		return errors.Join(err, n.DeleteEarly())
	})
	h.leased = func() []ipam.Lease { return leasesOf(t, store) }
	t.Cleanup(func() {
		h.whole(t)
		h.leased = nil
		if n.Store != nil {
			store = n.Store // of a node that shares it
		}
		if err := errors.Join(n.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (h *host) store(t testing.TB) *ipam.Store {
	t.Helper()
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	store, err := ipam.Open(t.Context(), filepath.Join(h.dir, StoreFile), ipam.Options{BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func leasesOf(t testing.TB, store *ipam.Store) []ipam.Lease {
	t.Helper()
	leases, err := store.Leases()
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

// leases reads the store; without a Node it is opened for that.
func (h *host) leases(t testing.TB) []ipam.Lease {
	t.Helper()
	if h.leased != nil {
		return h.leased()
	}
	if _, err := os.Stat(filepath.Join(h.dir, StoreFile)); err != nil {
		return nil
	}
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	store, err := ipam.Open(context.Background(), filepath.Join(h.dir, StoreFile), ipam.Options{BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	return leasesOf(t, store)
}

// whole is the check that each kernel test ends with.
func (h *host) whole(t testing.TB) {
	t.Helper()
	var wantLinks, wantRoutes []string
	for _, l := range h.leases(t) {
		if isForeign(l) {
			continue
		}
		wantLinks = append(wantLinks, HostLink(l.Attachment))
		for _, a := range l.Addrs {
			wantRoutes = append(wantRoutes, single(a).String()+" dev "+HostLink(l.Attachment))
		}
	}
	links, podRoutes := h.wired(t)
	slices.Sort(wantLinks)
	slices.Sort(wantRoutes)
	if diff := cmp.Diff(wantLinks, links); diff != "" {
		t.Errorf("links (-of leases +on the host):\n%s", diff)
	}
	if diff := cmp.Diff(wantRoutes, podRoutes); diff != "" {
		t.Errorf("routes (-of leases +on the host):\n%s", diff)
	}
}

// wired are the host's links and pod routes, sorted; those of delegated attachments are left out.
func (h *host) wired(t testing.TB) (links, podRoutes []string) {
	t.Helper()
	k, err := routes.OpenNetns(h.file)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	found, err := k.Links(context.Background(), linkPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		if isOwnLink(l.Name) {
			links = append(links, l.Name)
		}
	}
	observed, err := k.Observe(context.Background(), routes.Scope{Protocol: routes.ProtoPod}, routes.State{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range observed.Routes {
		if isOwnLink(r.Link) || r.Link == "" {
			podRoutes = append(podRoutes, r.Dst.String()+" dev "+r.Link)
		}
	}
	slices.Sort(links)
	slices.Sort(podRoutes)
	return links, podRoutes
}

// pool is a dual stack ipam configuration.
const pool = `"ipam":{"type":"edgeway","ranges":[[{"subnet":"10.99.0.0/16"}],[{"subnet":"fd00:99::/64"}]]}`

// conf is a network configuration of the host: version, and further keys.
func (h *host) conf(version string, keys ...string) string {
	all := append([]string{
		fmt.Sprintf(`"cniVersion":%q,"name":"net","type":"edgeway","dataDir":%q,"socket":%q`, version, h.dir, filepath.Join(h.dir, "sock")),
	}, keys...)
	if !slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, `"ipam"`) }) {
		all = append(all, pool)
	}
	return "{" + strings.Join(all, ",") + "}"
}

// with adds a key to a configuration.
func with(conf, key, value string) string {
	return strings.TrimSuffix(conf, "}") + `,"` + key + `":` + value + "}"
}

// call is one invocation of a test.
type call struct {
	verb, id, ifName, netns, args, path, conf string

	exe string // "": the test binary, which is the executable but for plugin/forward
}

func (c call) cni() api.CNI {
	return api.CNI{Command: c.verb, ContainerID: c.id, Netns: c.netns, IfName: c.ifName, Args: c.args, Path: c.path, Stdin: []byte(c.conf)}
}

// do runs the call on a Node, as the daemon does.
func (c call) do(t testing.TB, n *Node) api.Reply {
	t.Helper()
	netns, err := OpenNetns(c.netns)
	if err != nil && c.verb != "DEL" {
		t.Fatal(err)
	}
	if netns != nil {
		defer netns.Close()
	}
	return n.Do(t.Context(), Call{CNI: c.cni(), NetnsFile: netns})
}

// does is do for a call that must succeed.
func (c call) does(t testing.TB, n *Node) []byte {
	t.Helper()
	reply := c.do(t, n)
	if reply.Failed {
		t.Fatalf("%s %s: %s", c.verb, c.id, reply.Output)
	}
	return reply.Output
}

// command is the call as a runtime makes it.
func (c call) command(ctx context.Context) *exec.Cmd {
	exe := os.Args[0]
	if c.exe != "" {
		exe = c.exe
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Stdin = strings.NewReader(c.conf)
	cmd.Env = append(os.Environ(), asExecutable+"=1", "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.id,
		"CNI_NETNS="+c.netns, "CNI_IFNAME="+c.ifName, "CNI_ARGS="+c.args, "CNI_PATH="+c.path)
	return cmd
}

// exec executes the call on the host.
func (h *host) exec(t testing.TB, c call) (stdout string, status int) {
	t.Helper()
	var out, errOut bytes.Buffer
	h.run(t, func() error {
		cmd := c.command(context.Background())
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		status = cmd.ProcessState.ExitCode()
		return nil
	})
	if errOut.Len() > 0 {
		t.Errorf("%s: standard error: %s", c.verb, errOut.String())
	}
	return out.String(), status
}

// must is exec for a call that must succeed.
func (h *host) must(t testing.TB, c call) string {
	t.Helper()
	out, status := h.exec(t, c)
	if status != 0 {
		t.Fatalf("%s %s/%s: status %d: %s", c.verb, c.id, c.ifName, status, out)
	}
	return out
}

// end makes a DEL of each call.
func (h *host) end(t testing.TB, calls ...call) {
	t.Helper()
	for _, c := range calls {
		c.verb = "DEL"
		h.must(t, c)
	}
}

// refused is exec for a call that must fail with the code; it returns the error.
func (h *host) refused(t testing.TB, c call, code uint) string {
	t.Helper()
	out, status := h.exec(t, c)
	return wantError(t, c.verb, out, status != 0, code)
}

func wantError(t testing.TB, what, out string, failed bool, code uint) string {
	t.Helper()
	var e struct {
		CNIVersion string
		Code       uint
		Msg        string
		Details    string
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("%s: want an error of code %d, got %q: %v", what, code, out, err)
	}
	if !failed || e.Code != code || e.Msg == "" || e.Details == "" || e.CNIVersion == "" {
		t.Fatalf("%s: want an error of code %d, got failed=%v: %s", what, code, failed, out)
	}
	return e.Msg + "; " + e.Details
}

// podResult has the fields of a result that the tests read.
type podResult struct {
	CNIVersion string
	Interfaces []struct {
		Name, Mac, Sandbox string
		Mtu                int
	}
	IPs []struct {
		Version, Address, Gateway string
		Interface                 *int
	}
	Routes []struct{ Dst, GW string }
}

func parseResult(t testing.TB, out string) podResult {
	t.Helper()
	var r podResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("result %q: %v", out, err)
	}
	return r
}

// addrs are the result's addresses without their length.
func (r podResult) addrs() (out []string) {
	for _, ip := range r.IPs {
		a, _, _ := strings.Cut(ip.Address, "/")
		out = append(out, a)
	}
	return out
}

// until waits for a condition.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited %v: %s", patience, what)
		}
	}
}

func attachmentOf(c call) ipam.Attachment {
	return ipam.Attachment{ContainerID: c.id, IfName: c.ifName}
}
