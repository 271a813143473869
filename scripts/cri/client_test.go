package cri

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds one call. The kubelet gives two minutes; on a busy machine a sandbox takes
// a few seconds.
const callTimeout = 40 * time.Second

// Client speaks to one runtime.
type Client struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// Dial prepares a connection to the runtime at a unix socket. The first call makes the connection.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(callOnce))
	if err != nil {
		return nil, fmt.Errorf("runtime at %s: %w", socket, err)
	}
	return &Client{conn: conn, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// callOnce bounds a call, and names it in its error.
func callOnce(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := invoke(ctx, method, request, reply, conn, options...); err != nil {
		return fmt.Errorf("%s: %w", path.Base(method), err)
	}
	return nil
}

// Version returns the runtime's own version: "1.6.20~ds1".
func (c *Client) Version(ctx context.Context) (string, error) {
	reply, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	return reply.GetRuntimeVersion(), err
}

// NetworkReady returns nil if the runtime reports a ready network, and otherwise the reason.
func (c *Client) NetworkReady(ctx context.Context) error {
	reply, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range reply.GetStatus().GetConditions() {
		if condition.Type != runtimeapi.NetworkReady {
			continue
		}
		if condition.Status {
			return nil
		}
		return fmt.Errorf("network not ready: %s: %s", condition.Reason, condition.Message)
	}
	return errors.New("runtime says nothing about NetworkReady")
}

// HasImage reports whether the runtime knows an image.
func (c *Client) HasImage(ctx context.Context, ref string) (bool, error) {
	reply, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return reply.GetImage() != nil, err
}

// Sandbox is the kubelet's description of a pod.
type Sandbox struct {
	Namespace, Name, UID string
	// Attempt counts the sandboxes of one pod.
	Attempt      uint32
	CgroupParent string
	HostPorts    []HostPort
	Annotations  map[string]string
}

// HostPort is a TCP port of the node that leads into the pod.
type HostPort struct{ Host, Container uint16 }

// config is a sandbox's configuration as the kubelet fills it: namespaces of the pod, and a PID
// namespace for each of its containers.
func (s Sandbox) config() *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Namespace: s.Namespace, Name: s.Name, Uid: s.UID, Attempt: s.Attempt},
		Hostname:    s.Name,
		Labels:      map[string]string{"io.kubernetes.pod.name": s.Name, "io.kubernetes.pod.namespace": s.Namespace, "io.kubernetes.pod.uid": s.UID},
		Annotations: s.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: s.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, p := range s.HostPorts {
		config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
			Protocol: runtimeapi.Protocol_TCP, HostPort: int32(p.Host), ContainerPort: int32(p.Container)})
	}
	return config
}

// RunSandbox makes a pod's sandbox: the runtime calls ADD.
func (c *Client) RunSandbox(ctx context.Context, s Sandbox) (id string, err error) {
	reply, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.config()})
	return reply.GetPodSandboxId(), err
}

// StopSandbox ends what runs in a sandbox. The runtime calls DEL each time.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

// RemoveSandbox removes a sandbox. The runtime stops it once more before, with another DEL.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// Status is the runtime's report of a sandbox.
type Status struct {
	Ready bool
	Addrs []netip.Addr // none before ADD and after DEL
}

// SandboxStatus asks for a sandbox.
func (c *Client) SandboxStatus(ctx context.Context, id string) (Status, error) {
	reply, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return Status{}, err
	}
	status := reply.GetStatus()
	s := Status{Ready: status.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY}
	texts := []string{status.GetNetwork().GetIp()}
	for _, more := range status.GetNetwork().GetAdditionalIps() {
		texts = append(texts, more.Ip)
	}
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			s.Addrs = append(s.Addrs, addr)
		}
	}
	return s, nil
}

// Sandboxes lists the IDs of all sandboxes that the runtime knows.
func (c *Client) Sandboxes(ctx context.Context) ([]string, error) {
	reply, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	var ids []string
	for _, item := range reply.GetItems() {
		ids = append(ids, item.Id)
	}
	return ids, err
}

// RunContainer starts a container in a sandbox.
func (c *Client) RunContainer(ctx context.Context, sandbox string, s Sandbox, image string, command ...string) (id string, err error) {
	created, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  sandbox,
		SandboxConfig: s.config(),
		Config: &runtimeapi.ContainerConfig{
			// An attempt keeps its name until its sandbox is removed.
			Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: s.Attempt},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  command,
		},
	})
	if err != nil {
		return "", err
	}
	_, err = c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}

// Exec runs a command in a container and returns its standard output.
func (c *Client) Exec(ctx context.Context, container string, command ...string) (string, error) {
	const seconds = 10
	reply, err := c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: seconds})
	if code := reply.GetExitCode(); code != 0 {
		err = fmt.Errorf("exec %q: exit status %d: %s", command, code, reply.GetStderr())
	}
	return string(reply.GetStdout()), err
}
