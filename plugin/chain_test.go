package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// reference are the plugins of containernetworking/plugins that edgeway is tried with.
const reference = "github.com/containernetworking/plugins/plugins/"

var buildPlugins = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "edgeway-plugins"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "./edgeway",
		reference+"ipam/host-local", reference+"ipam/static",
		reference+"main/ptp", reference+"main/bridge", reference+"main/macvlan", reference+"main/loopback",
		reference+"meta/portmap", reference+"meta/bandwidth", reference+"meta/firewall", reference+"meta/sbr", reference+"meta/tuning")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// plugins is a directory with the executables, for CNI_PATH.
func plugins(t testing.TB) string {
	t.Helper()
	dir, err := buildPlugins()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// need skips a test without a tool that reference plugins execute.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// runtimeOf is libcni as a runtime has it.
func runtimeOf(t *testing.T) *libcni.CNIConfig {
	t.Helper()
	return libcni.NewCNIConfigWithCacheDir([]string{plugins(t)}, t.TempDir(), nil)
}

// One pod's life through libcni, in a chain with the plugins that Kubernetes nodes use.
func TestChain(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","plugins":[%s,
				{"type":"tuning","sysctl":{"net.core.somaxconn":"300"}},
				{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}},
				{"type":"bandwidth","ingressRate":10000000,"ingressBurst":10000000,"egressRate":10000000,"egressBurst":10000000}]}`,
				version, h.conf(version, `"capabilities":{"ips":true,"mac":true}`)))
			if err != nil {
				t.Fatal(err)
			}
			rt := &libcni.RuntimeConf{
				ContainerID: "c1", NetNS: pod.path, IfName: "eth0",
				Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "p1"}},
				CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}}},
			}
			cni := runtimeOf(t)
			on := func(what string, do func(context.Context) error) {
				t.Helper()
				h.run(t, func() error {
					if err := do(t.Context()); err != nil {
						t.Errorf("%s: %v", what, err)
					}
					return nil
				})
			}
			on("ADD", func(ctx context.Context) error {
				r, err := cni.AddNetworkList(ctx, list, rt)
				if err != nil {
					return err
				}
				result, err := current.NewResultFromResult(r)
				if err != nil {
					return err
				}
				if len(result.Interfaces) != 3 || len(result.IPs) != 2 {
					return fmt.Errorf("result %v", result)
				}
				return nil
			})
			if out, err := h.try(t, "ping -c1 -W5 10.99.0.1"); err != nil {
				t.Error(out)
			}
			on("CHECK", func(ctx context.Context) error { return cni.CheckNetworkList(ctx, list, rt) })
			if version == "1.1.0" {
				on("STATUS", func(ctx context.Context) error { return cni.GetStatusNetworkList(ctx, list) })
			}
			for range 2 {
				on("DEL", func(ctx context.Context) error { return cni.DelNetworkList(ctx, list, rt) })
			}
			h.whole(t)
		})
	}
}

// sbr moves the pod's routes to a table of its own; the gateway must be usable there.
func TestChainWithSBR(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"net","plugins":[%s,{"type":"sbr"}]}`, h.conf("1.1.0")))
	if err != nil {
		t.Fatal(err)
	}
	rt := &libcni.RuntimeConf{ContainerID: "c1", NetNS: pod.path, IfName: "eth0"}
	cni := runtimeOf(t)
	h.run(t, func() error {
		_, err := cni.AddNetworkList(t.Context(), list, rt)
		return err
	})
	pod.sh(t, "ping -c1 -W5 -I 10.99.0.1 192.0.2.1")
	h.run(t, func() error { return cni.DelNetworkList(t.Context(), list, rt) })
}

// Addresses from host-local: all verbs are passed on, and nothing stays.
func TestDelegated(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	leases := filepath.Join(h.dir, "host-local")
	conf := h.conf("1.1.0", `"ipMasq":true`, fmt.Sprintf(`"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.97.0.0/24"}],[{"subnet":"fd00:97::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}`, leases))
	c := call{id: "c1", ifName: "eth0", netns: pod.path, path: plugins(t), conf: conf}
	verb := func(v string) call { c.verb = v; return c }
	h.must(t, verb("STATUS"))
	added := h.must(t, verb("ADD"))
	r := parseResult(t, added)
	if got, want := fmt.Sprint(r.addrs()), "[10.97.0.2 fd00:97::2]"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
	for _, a := range r.addrs() {
		h.sh(t, "ping -c1 -W5 "+a)
	}
	// No lease of ours: Sweep must leave it alone.
	n := h.node(t)
	if did, err := n.Sweep(t.Context()); err != nil || len(did) > 0 {
		t.Errorf("Sweep: %q, %v", did, err)
	}
	c.conf = with(conf, "prevResult", added)
	h.must(t, verb("CHECK"))
	h.sh(t, "ip route del 10.97.0.2")
	h.refused(t, verb("CHECK"), codeDifferent)

	c.conf = with(conf, "cni.dev/valid-attachments", `[{"containerID":"c1","ifname":"eth0"}]`)
	h.must(t, verb("GC"))
	pod.sh(t, "ip link show eth0")
	c.conf = with(conf, "cni.dev/valid-attachments", `[]`)
	h.must(t, verb("GC"))
	if out, err := pod.try(t, "ip link show eth0"); err == nil {
		t.Errorf("eth0 stays: %s", out)
	}
	c.conf = conf
	for range 2 {
		h.must(t, verb("DEL"))
	}
	if entries, _ := filepath.Glob(filepath.Join(leases, "net", "*.*.*")); len(entries) > 0 {
		t.Errorf("host-local holds %v", entries)
	}
}

// A delegate that fails on ADD is told DEL, and its error is passed on (SPEC 1.1.0 section 4).
func TestDelegateFails(t *testing.T) {
	kernelTest(t)
	h, pod, dir := newHost(t), newSpace(t), t.TempDir()
	log := filepath.Join(dir, "log")
	script := "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>" + log +
		"\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{\"cniVersion\":\"1.1.0\",\"code\":123,\"msg\":\"no\",\"details\":\"ask later\"}'\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "grumpy"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, path: dir, conf: h.conf("1.1.0", `"ipam":{"type":"grumpy"}`)}
	if text := h.refused(t, c, 123); !strings.Contains(text, "ipam plugin grumpy: no; ask later") {
		t.Errorf("got %s", text)
	}
	calls, err := os.ReadFile(log)
	if err != nil || string(calls) != "ADD c1 eth0\nDEL c1 eth0\n" {
		t.Errorf("calls %q, %v", calls, err)
	}
	if links := h.sh(t, "ip -br link"); strings.Contains(links, linkPrefix) {
		t.Errorf("links stay: %s", links)
	}
}

// edgeway as ipam.type of ptp and bridge.
func TestIPAMOfOthers(t *testing.T) {
	kernelTest(t)
	for _, kind := range []string{"ptp", "bridge"} {
		for _, mode := range []string{"daemon", "alone"} {
			t.Run(kind+" "+mode, func(t *testing.T) {
				h := newHost(t)
				if mode == "daemon" {
					h.serve(t, handler)
				}
				list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":%q,"bridge":"br-ew","isGateway":true,
					"ipam":{"type":"edgeway","dataDir":%q,"socket":%q,"ranges":[[{"subnet":"10.96.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`,
					kind, h.dir, filepath.Join(h.dir, "sock")))
				if err != nil {
					t.Fatal(err)
				}
				cni := runtimeOf(t)
				for i := range 2 {
					pod := newSpace(t)
					rt := &libcni.RuntimeConf{ContainerID: fmt.Sprint("c", i), NetNS: pod.path, IfName: "eth0"}
					h.run(t, func() error {
						_, err := cni.AddNetworkList(t.Context(), list, rt)
						return errors.Join(err, cni.CheckNetworkList(t.Context(), list, rt))
					})
					pod.sh(t, "ping -c1 -W5 10.96.0.1")
				}
				if got := len(h.leases(t)); got != 2 {
					t.Errorf("%d leases", got)
				}
				h.run(t, func() error {
					args := &libcni.GCArgs{}
					return errors.Join(cni.GetStatusNetworkList(t.Context(), list), cni.GCNetworkList(t.Context(), list, args))
				})
				if got := len(h.leases(t)); got != 0 {
					t.Errorf("%d leases after GC", got)
				}
			})
		}
	}
}
