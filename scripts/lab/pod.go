package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Pod is a network namespace that the plugin wired.
type Pod struct {
	*Machine
	Node      *Node
	Namespace string        // the Kubernetes namespace
	Took      time.Duration // duration of the whole ADD, as a runtime sees it
	rt        *libcni.RuntimeConf
}

// podIfName is the pod interface name that the kubelet's container runtimes use.
const podIfName = "eth0"

// network reads the network configuration that the daemon wrote, as a container runtime does.
func (n *Node) network() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.file("net.d"), []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("%s: network configuration: %w", n.Name, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no network configuration in %s yet", n.Name, n.file("net.d"))
	}
	list, err := libcni.NetworkConfFromFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("%s: network configuration: %w", n.Name, err)
	}
	return list, nil
}

// cni is a container runtime's access to the plugins: their directory, and the runtime's cache.
func (n *Node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.Plugins()}, n.file("cni-cache"), nil)
}

// Plugins is this node's directory of plugins. edgewayd is there too.
func (n *Node) Plugins() string { return n.file("bin") }

// HostPort is a port of the node that a pod's port answers.
type HostPort struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// AddPod makes a pod's sandbox and calls ADD with the arguments that the kubelet's container runtimes send.
// If ADD fails, AddPod sends DEL, as the runtimes do.
func (n *Node) AddPod(ctx context.Context, namespace, name string, ports ...HostPort) (*Pod, error) {
	list, err := n.network()
	if err != nil {
		return nil, err
	}
	m, err := n.lab.addMachine(ctx, name)
	if err != nil {
		return nil, err
	}
	id := randomID()
	p := &Pod{Machine: m, Node: n, Namespace: namespace, rt: &libcni.RuntimeConf{
		ContainerID: id,
		NetNS:       m.Path,
		IfName:      podIfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", namespace},
			{"K8S_POD_NAME", name},
			{"K8S_POD_INFRA_CONTAINER_ID", id},
			{"K8S_POD_UID", randomID()[:32]},
		},
	}}
	if len(ports) > 0 {
		p.rt.CapabilityArgs = map[string]any{"portMappings": ports}
	}
	start := time.Now()
	var result *current.Result
	err = n.Do(func() error {
		r, err := n.cni().AddNetworkList(ctx, list, p.rt)
		if err != nil {
			return err
		}
		result, err = current.NewResultFromResult(r)
		return err
	})
	p.Took = time.Since(start)
	if err != nil {
		err = fmt.Errorf("pod %s/%s on %s: ADD: %w", namespace, name, n.Name, err)
		return nil, errors.Join(err, p.Delete(ctx))
	}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		m.Addrs = append(m.Addrs, addr.Unmap())
	}
	n.lab.mu.Lock()
	n.lab.pods = append(n.lab.pods, p)
	n.lab.mu.Unlock()
	return p, nil
}

// Check has the plugin compare the pod's wiring with the result of ADD.
func (p *Pod) Check(ctx context.Context) error {
	return p.verb("CHECK", func(list *libcni.NetworkConfigList) error {
		return p.Node.cni().CheckNetworkList(ctx, list, p.rt)
	})
}

// Delete has the plugin remove the pod's wiring, then removes the sandbox.
func (p *Pod) Delete(ctx context.Context) error {
	err := p.verb("DEL", func(list *libcni.NetworkConfigList) error {
		return p.Node.cni().DelNetworkList(ctx, list, p.rt)
	})
	if err != nil {
		return err
	}
	l := p.Node.lab
	l.mu.Lock()
	l.pods = without(l.pods, p)
	l.mu.Unlock()
	return l.removeMachine(ctx, p.Machine)
}

func (p *Pod) verb(name string, f func(*libcni.NetworkConfigList) error) error {
	list, err := p.Node.network()
	if err != nil {
		return err
	}
	if err := p.Node.Do(func() error { return f(list) }); err != nil {
		return fmt.Errorf("pod %s/%s on %s: %s: %w", p.Namespace, p.Name, p.Node.Name, name, err)
	}
	return nil
}

// Collect has the plugin collect garbage, as a runtime does that knows the node's pods, and asks its STATUS.
func (n *Node) Collect(ctx context.Context) error {
	list, err := n.network()
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{}
	for _, p := range n.Pods() {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.rt.ContainerID, IfName: p.rt.IfName})
	}
	err = n.Do(func() error {
		return errors.Join(n.cni().GCNetworkList(ctx, list, args), n.cni().GetStatusNetworkList(ctx, list))
	})
	if err != nil {
		return fmt.Errorf("%s: GC and STATUS: %w", n.Name, err)
	}
	return nil
}

// Conflist is the path of the network configuration that the daemon writes.
func (n *Node) Conflist() string { return filepath.Join(n.file("net.d"), "10-edgeway.conflist") }

// Pod returns the pod with that name, or nil.
func (l *Lab) Pod(name string) *Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pods {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Pods returns the pods of the node.
func (n *Node) Pods() []*Pod {
	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Pod
	for _, p := range l.pods {
		if p.Node == n {
			all = append(all, p)
		}
	}
	return all
}

func without(pods []*Pod, gone *Pod) []*Pod {
	var rest []*Pod
	for _, p := range pods {
		if p != gone {
			rest = append(rest, p)
		}
	}
	return rest
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
