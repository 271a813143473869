package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// family selects the address families of a pod, or an uplink of the node as the source of its address.
type family string

const (
	v4     family = "v4"
	dual   family = "dual"
	uplink family = "uplink" // IPv4
)

// contender is one way to wire a pod: a plugin, its configuration and its own host.
type contender struct {
	name string
	exe  string
	path string // CNI_PATH
	conf map[string]any
	host *lab.Space
	pods []*lab.Space
	node *lab.Node // node whose daemon serves; nil: no daemon
	// bare makes the calls itself, without a plugin; nil: exe is executed
	bare *floor
	// least: no plugin at all, but what a plugin's call costs at least
	least bool
}

// arena holds the contenders.
type arena struct {
	dir        string
	lab        *lab.Lab
	contenders []*contender
}

// newArena makes the contenders, each with the same number of pods without a network.
func (b *bench) newArena(ctx context.Context, f family, pods int) (a *arena, err error) {
	a = &arena{}
	if a.dir, err = os.MkdirTemp(b.dir, "arena-"); err != nil {
		return nil, err
	}
	if err := a.withDaemon(ctx, b.bin, f); err != nil {
		return a, err
	}
	ranges := [][]map[string]string{{{"subnet": "10.99.0.0/16"}}}
	routes := []map[string]string{{"dst": "0.0.0.0/0"}}
	if f == dual {
		ranges = append(ranges, []map[string]string{{"subnet": "fd00:99::/64"}})
		routes = append(routes, map[string]string{"dst": "::/0"})
	}
	hostLocal := func(name string) map[string]any {
		return map[string]any{"type": "host-local", "dataDir": filepath.Join(a.dir, name), "ranges": ranges, "routes": routes}
	}
	ours, ptp, bridge := "edgeway, no daemon", "ptp + host-local", "bridge + host-local"
	others := []*contender{
		{name: ours, exe: filepath.Join(b.bin, "edgeway"), path: b.bin, conf: map[string]any{"type": "edgeway", "mtu": 1500,
			"socket": filepath.Join(a.dir, "nobody.sock"), "dataDir": filepath.Join(a.dir, "edgeway"), "ipam": map[string]any{"ranges": ranges}}},
		{name: ptp, exe: filepath.Join(b.peers, "ptp"), path: b.peers,
			conf: map[string]any{"type": "ptp", "mtu": 1500, "ipam": hostLocal("ptp")}},
		{name: bridge, exe: filepath.Join(b.peers, "bridge"), path: b.peers,
			conf: map[string]any{"type": "bridge", "bridge": "br0", "isGateway": true, "mtu": 1500, "ipam": hostLocal("bridge")}},
		{name: "a Go program that does nothing", exe: filepath.Join(b.peers, "nothing"), conf: map[string]any{"type": "nothing"}, least: true},
		{name: "the kernel's part alone", conf: map[string]any{"type": "floor"}, least: true},
	}
	if b.own {
		others = nil
	}
	for _, c := range others {
		c.conf["cniVersion"], c.conf["name"] = "1.0.0", "bench"
		if c.host, err = newSpace(filepath.Join("/run/netns", fmt.Sprintf("host-%d", len(a.contenders)))); err != nil {
			return a, err
		}
		a.contenders = append(a.contenders, c)
		if c.exe == "" {
			if c.bare, err = newFloor(c); err != nil {
				return a, err
			}
		}
	}
	for i, c := range a.contenders {
		for p := range pods {
			s, err := newSpace(fmt.Sprintf("/run/netns/%s-pod-%d-%d", filepath.Base(a.dir), i, p))
			if err != nil {
				return a, err
			}
			c.pods = append(c.pods, s)
		}
	}
	return a, nil
}

// withDaemon adds edgeway as it runs on a node, with the network configuration that the daemon wrote.
func (a *arena) withDaemon(ctx context.Context, bin string, f family) (err error) {
	if a.lab, err = lab.New(lab.Options{Bin: bin}); err != nil {
		return err
	}
	t, err := lab.ParseTopology([]byte("nodes:\n- name: Node-1\n  config: {metrics: \"" + metricsAddress + "\"}\n  links:\n  - {lan: lan, addrs: [10.0.0.11/24, fd00::11/64]}\n  - {lan: up, addrs: []}\n"))
	if err != nil {
		return err
	}
	if err := a.lab.Build(ctx, t); err != nil {
		return err
	}
	cidrs := map[family]string{v4: "[10.99.0.0/16]", dual: "[10.99.0.0/16, fd00:99::/64]", uplink: "[]"}[f]
	manifests := nodeManifest("Node-1", "10.0.0.11", cidrs)
	if f == uplink {
		manifests += "---\napiVersion: network.edgeway.io/v1alpha1\nkind: EdgeNode\nmetadata: {name: Node-1}\nspec:\n  uplinks:\n    provider: static\n" +
			"    interfaces: [{name: up, address: 10.77.0.2, subnet: 10.77.0.0/24, gateway: 10.77.0.1, addresses: [10.77.0.11-10.77.0.250]}]\n"
	}
	if err := os.WriteFile(filepath.Join(a.lab.ClusterDir, "node.yaml"), []byte(manifests), 0o644); err != nil {
		return err
	}
	c := &contender{name: "edgeway", exe: filepath.Join(bin, "edgeway"), path: bin, node: a.lab.Node("Node-1")}
	if err := c.node.Start(ctx); err != nil {
		return err
	}
	if c.host, err = lab.OpenSpace(c.node.Path); err != nil {
		return err
	}
	c.conf, err = confOf(c.node.Conflist())
	a.contenders = append(a.contenders, c)
	return err
}

// confOf returns a runtime's configuration of the first plugin of a network configuration list.
func confOf(conflist string) (map[string]any, error) {
	text, err := os.ReadFile(conflist)
	if err != nil {
		return nil, err
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil || len(list.Plugins) == 0 {
		return nil, fmt.Errorf("network configuration %s: no plugin (%v)", conflist, err)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	return conf, nil
}

func (a *arena) close() {
	for _, c := range a.contenders {
		for _, p := range c.pods {
			p.Remove()
		}
		if c.bare != nil {
			c.bare.close()
		}
		if c.host == nil {
			continue
		}
		if c.node != nil {
			c.host.Close() // belongs to the laboratory
		} else {
			c.host.Remove()
		}
	}
	if a.lab != nil {
		_ = a.lab.Close()
	}
	_ = os.RemoveAll(a.dir)
}

// daemonCPU is the processor time of the process that serves the calls beside the plugin.
func (c *contender) daemonCPU() (time.Duration, error) {
	switch {
	case c.bare != nil:
		return ownCPU(), nil
	case c.node == nil:
		return 0, nil
	}
	return cpuOf(c.node.PID())
}

// metricsAddress is where the daemon tells its memory, in its own network namespace.
const metricsAddress = "127.0.0.1:9475"

// allocated returns the bytes and the objects that the daemon has allocated since its start.
func (c *contender) allocated() (n [2]float64, err error) {
	err = c.host.Do(func() error {
		conn, err := net.Dial("tcp", metricsAddress)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		for line := range strings.Lines(string(text)) {
			// A line of another metric fits neither.
			_, _ = fmt.Sscanf(line, "go_memstats_alloc_bytes_total %g", &n[0])
			_, _ = fmt.Sscanf(line, "go_memstats_mallocs_total %g", &n[1])
		}
		if err == nil && n[0]*n[1] == 0 {
			err = errors.New("the daemon's metrics do not tell its memory")
		}
		return err
	})
	return n, err
}

// invocation is one call of a plugin.
type invocation struct {
	verb, id string
	pod      *lab.Space
	prev     json.RawMessage // result of the ADD
}

// command prepares the exec of an invocation with a runtime's environment and input. The caller must start
// it inside the host's network namespace.
func (c *contender) command(ctx context.Context, in invocation, argv ...string) (*exec.Cmd, error) {
	conf := make(map[string]any, len(c.conf)+1)
	for k, v := range c.conf {
		conf[k] = v
	}
	if len(in.prev) > 0 {
		conf["prevResult"] = in.prev
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	argv = append(argv, c.exe)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + in.verb, "CNI_CONTAINERID=" + in.id, "CNI_IFNAME=eth0",
		"CNI_PATH=" + c.path, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-" + in.id[:4] + in.id[len(in.id)-12:] + ";K8S_POD_INFRA_CONTAINER_ID=" + in.id}
	if in.pod != nil {
		cmd.Env = append(cmd.Env, "CNI_NETNS="+in.pod.Path)
	}
	return cmd, nil
}

// call makes one invocation on the current thread. It returns the time taken, the processor time of its
// processes (wait4(2) includes the descendants that they waited for), and the result.
func (c *contender) call(ctx context.Context, in invocation) (took, cpu time.Duration, result []byte, err error) {
	if c.bare != nil {
		took, err = c.bare.call(ctx, in)
		return took, 0, nil, err
	}
	cmd, err := c.command(context.Background(), in) // the PID namespace ends it
	if err != nil {
		return 0, 0, nil, err
	}
	// All that a plugin reads and writes fits in a pipe. So no goroutines of this program copy it during the call.
	stdin, feed, err := os.Pipe()
	if err != nil {
		return 0, 0, nil, err
	}
	defer stdin.Close()
	_, err = cmd.Stdin.(*bytes.Reader).WriteTo(feed)
	if err := errors.Join(err, feed.Close()); err != nil {
		return 0, 0, nil, err
	}
	printed, stdout, err := os.Pipe()
	if err != nil {
		return 0, 0, nil, err
	}
	defer printed.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stdout
	start := time.Now()
	rerr := cmd.Run()
	took = time.Since(start)
	stdout.Close()
	if result, err = io.ReadAll(printed); rerr != nil || err != nil {
		return 0, 0, nil, fmt.Errorf("%s: %s: %w: %s", c.name, in.verb, errors.Join(rerr, err), result)
	}
	return took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), result, nil
}

func nodeManifest(name, address, cidrs string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata:\n  name: %s\n  labels: {ASN: \"65010\"}\nspec:\n  podCIDRs: %s\n"+
		"status:\n  addresses: [{type: InternalIP, address: %s}]\n", name, cidrs, address)
}
