// Package cri runs pods as a node does: it speaks the Kubernetes container runtime interface
// (runtime.v1) to a real containerd, which calls the CNI plugins of the network configuration
// that edgewayd wrote. Its test is the story of two such nodes; nothing else uses it.
//
//	test --CRI--> containerd --CNI--> edgeway, portmap, bandwidth
//	                  |                  |
//	                 runc             edgewayd
//
// The client speaks the wire format itself: its Go bindings (k8s.io/cri-api) need a newer gRPC
// than the one that the BGP speaker is built with.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// callTimeout bounds one call. The kubelet gives two minutes; on a busy machine a sandbox takes
// a few seconds.
const callTimeout = 40 * time.Second

// Client speaks to one runtime.
type Client struct{ conn *grpc.ClientConn }

// Dial prepares a connection to the runtime at a unix socket; it is made by the first call.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	if err != nil {
		return nil, fmt.Errorf("runtime at %s: %w", socket, err)
	}
	return &Client{conn: conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) call(ctx context.Context, method string, request message) (fields, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	service := "RuntimeService"
	if method == "ImageStatus" {
		service = "ImageService"
	}
	var reply fields
	if err := c.conn.Invoke(ctx, "/runtime.v1."+service+"/"+method, request, &reply); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return reply, nil
}

// Version returns the runtime's own version: "1.6.20~ds1".
func (c *Client) Version(ctx context.Context) (string, error) {
	reply, err := c.call(ctx, "Version", nil)
	return reply.text(3), err // VersionResponse.runtime_version
}

// NetworkReady is nil when the runtime says so; otherwise it says why not.
func (c *Client) NetworkReady(ctx context.Context) error {
	reply, err := c.call(ctx, "Status", nil)
	if err != nil {
		return err
	}
	status, err := reply.inner(1) // StatusResponse.status
	if err != nil {
		return err
	}
	conditions, err := status.each(1) // RuntimeStatus.conditions
	if err != nil {
		return err
	}
	for _, c := range conditions { // RuntimeCondition: type, status, reason, message
		if c.text(1) != "NetworkReady" {
			continue
		}
		if c.number(2) == 1 {
			return nil
		}
		return fmt.Errorf("network not ready: %s: %s", c.text(3), c.text(4))
	}
	return errors.New("runtime says nothing about NetworkReady")
}

// HasImage says whether the runtime knows an image.
func (c *Client) HasImage(ctx context.Context, ref string) (bool, error) {
	reply, err := c.call(ctx, "ImageStatus", message{}.inner(1, message{}.text(1, ref)))
	return len(reply[1]) > 0, err
}

// Sandbox is what the kubelet says of a pod.
type Sandbox struct {
	Namespace, Name, UID string
	// Attempt counts the sandboxes of one pod.
	Attempt      uint64
	CgroupParent string
	HostPorts    []HostPort
	Annotations  map[string]string
}

// HostPort is a TCP port of the node that leads into the pod.
type HostPort struct{ Host, Container uint16 }

// config is a PodSandboxConfig as the kubelet fills it.
func (s Sandbox) config() message {
	m := message{}.
		inner(1, message{}.text(1, s.Name).text(2, s.UID).text(3, s.Namespace).number(4, s.Attempt)). // PodSandboxMetadata
		text(2, s.Name)                                                                               // hostname
	for _, p := range s.HostPorts {
		m = m.inner(5, message{}.number(2, uint64(p.Container)).number(3, uint64(p.Host))) // PortMapping, protocol 0: TCP
	}
	const containersOwn = 1 // NamespaceMode CONTAINER
	security := message{}.inner(1, message{}.number(2, containersOwn))
	return m.entries(6, map[string]string{
		"io.kubernetes.pod.name": s.Name, "io.kubernetes.pod.namespace": s.Namespace, "io.kubernetes.pod.uid": s.UID,
	}).entries(7, s.Annotations).
		inner(8, message{}.text(1, s.CgroupParent).inner(2, security)) // LinuxPodSandboxConfig
}

// RunSandbox makes a pod's sandbox: the runtime calls ADD.
func (c *Client) RunSandbox(ctx context.Context, s Sandbox) (id string, err error) {
	reply, err := c.call(ctx, "RunPodSandbox", message{}.inner(1, s.config()))
	return reply.text(1), err
}

// StopSandbox ends what runs in a sandbox: the runtime calls DEL, however often it was stopped.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	_, err := c.call(ctx, "StopPodSandbox", message{}.text(1, id))
	return err
}

// RemoveSandbox forgets a sandbox, which the runtime stops once more before: DEL again.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := c.call(ctx, "RemovePodSandbox", message{}.text(1, id))
	return err
}

// Status is what the runtime says of a sandbox.
type Status struct {
	Ready bool
	Addrs []netip.Addr
	PID   int // of the sandbox's own process; 0 when it has ended
}

// SandboxStatus asks for a sandbox.
func (c *Client) SandboxStatus(ctx context.Context, id string) (Status, error) {
	const verbose = 1
	reply, err := c.call(ctx, "PodSandboxStatus", message{}.text(1, id).number(2, verbose))
	if err != nil {
		return Status{}, err
	}
	status, err := reply.inner(1) // PodSandboxStatusResponse.status
	if err != nil {
		return Status{}, err
	}
	network, err := status.inner(5) // PodSandboxStatus.network
	if err != nil {
		return Status{}, err
	}
	more, err := network.each(2) // PodSandboxNetworkStatus.additional_ips
	if err != nil {
		return Status{}, err
	}
	s := Status{Ready: status.number(3) == 0} // SANDBOX_READY
	for _, f := range append([]fields{network}, more...) {
		if addr, err := netip.ParseAddr(f.text(1)); err == nil { // none before ADD and after DEL
			s.Addrs = append(s.Addrs, addr)
		}
	}
	info, err := reply.each(2) // map<string, string>: containerd's "info" is JSON
	if err != nil {
		return Status{}, err
	}
	for _, entry := range info {
		var own struct {
			PID int `json:"pid"`
		}
		if entry.text(1) == "info" && json.Unmarshal([]byte(entry.text(2)), &own) == nil {
			s.PID = own.PID
		}
	}
	return s, nil
}

// Sandboxes lists the IDs of all sandboxes that the runtime knows.
func (c *Client) Sandboxes(ctx context.Context) ([]string, error) {
	reply, err := c.call(ctx, "ListPodSandbox", nil)
	if err != nil {
		return nil, err
	}
	items, err := reply.each(1)
	var ids []string
	for _, item := range items {
		ids = append(ids, item.text(1))
	}
	return ids, err
}

// RunContainer starts a container in a sandbox.
func (c *Client) RunContainer(ctx context.Context, sandbox string, s Sandbox, image string, command ...string) (id string, err error) {
	// Of two attempts one keeps its name until its sandbox is removed.
	metadata := message{}.text(1, "main").number(2, s.Attempt)
	config := message{}.inner(1, metadata).inner(2, message{}.text(1, image)).text(3, command...)
	reply, err := c.call(ctx, "CreateContainer", message{}.text(1, sandbox).inner(2, config).inner(3, s.config()))
	if err != nil {
		return "", err
	}
	id = reply.text(1)
	_, err = c.call(ctx, "StartContainer", message{}.text(1, id))
	return id, err
}

// Exec runs a command in a container and returns its standard output.
func (c *Client) Exec(ctx context.Context, container string, command ...string) (string, error) {
	const seconds = 10
	reply, err := c.call(ctx, "ExecSync", message{}.text(1, container).text(2, command...).number(3, seconds))
	if err != nil {
		return "", err
	}
	if code := int32(reply.number(3)); code != 0 {
		return reply.text(1), fmt.Errorf("exec %q: exit status %d: %s", command, code, reply.text(2))
	}
	return reply.text(1), nil
}
