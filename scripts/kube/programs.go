package kube

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Version is the version of Kubernetes. It must match build/go.mod.
const Version = "v1.36.3"

const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	kubectl           = "kubectl"
)

// Missing lists the programs that are not built.
func Missing(programs ...string) []string {
	return slices.DeleteFunc(slices.Clone(programs), func(name string) bool {
		_, err := exec.LookPath(Program(name))
		return err == nil
	})
}

// Program is the path of an executable. If build.sh built no etcd, it is the machine's etcd.
func Program(name string) string {
	path := filepath.Join(Dir(), name)
	if _, err := os.Stat(path); err != nil && name == etcd {
		return cmp.Or(lookPath(etcd), path)
	}
	return path
}

func lookPath(name string) string {
	path, _ := exec.LookPath(name) // "" if there is none
	return path
}

// Run starts one of the control plane's programs with its arguments.
func (c *ControlPlane) Run(name string) error {
	args := map[string]func() []string{
		etcd: c.etcdArgs, apiServer: c.apiServerArgs, controllerManager: c.controllerManagerArgs, scheduler: c.schedulerArgs,
	}[name]
	if args == nil {
		return fmt.Errorf("%s: no program of a control plane", name)
	}
	argv := slices.Concat([]string{Program(name)}, args(), c.o.Args[name])
	p, err := lab.Program{Argv: argv, Log: c.Log(name), Space: c.o.Space}.Start()
	if err != nil {
		return err
	}
	c.running[name] = p
	return nil
}

func (c *ControlPlane) etcdArgs() []string {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort), fmt.Sprintf("http://127.0.0.1:%d", c.etcdPeerPort)
	return []string{
		"--name=default", "--data-dir=" + c.file("etcd"),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
	}
}

func (c *ControlPlane) apiServerArgs() []string {
	args := []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.etcdPort),
		"--bind-address=" + c.o.Addr.String(), "--advertise-address=" + c.o.Addr.String(), fmt.Sprintf("--secure-port=%d", c.apiPort),
		"--tls-cert-file=" + c.file("apiserver.crt"), "--tls-private-key-file=" + c.file("apiserver.key"),
		"--client-ca-file=" + c.file("ca.crt"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.file("accounts.key"),
		"--service-account-signing-key-file=" + c.file("accounts.key"),
		"--service-cluster-ip-range=" + strings.Join(c.o.ServiceCIDRs, ","),
		"--audit-policy-file=" + c.file("audit-policy.yaml"), "--audit-log-path=" + c.file("audit.log"),
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged", "--profiling=false", "--v=1",
	}
	if c.o.Addr.IsLoopback() {
		args = append(args, "--endpoint-reconciler-type=none") // Endpoints must not be loopback addresses
	}
	if !slices.Contains(c.o.programs(), controllerManager) {
		args = append(args, "--disable-admission-plugins=ServiceAccount") // nothing else creates the accounts of pods
	}
	return args
}

func (c *ControlPlane) controllerManagerArgs() []string {
	args := []string{
		"--kubeconfig=" + c.AdminKubeconfig(), "--leader-elect=false", "--secure-port=0", "--profiling=false", "--v=1",
		"--service-account-private-key-file=" + c.file("accounts.key"), "--root-ca-file=" + c.file("ca.crt"),
		"--service-cluster-ip-range=" + strings.Join(c.o.ServiceCIDRs, ","),
	}
	if len(c.o.PodCIDRs) > 0 {
		args = append(args, "--allocate-node-cidrs", "--cluster-cidr="+strings.Join(c.o.PodCIDRs, ","))
	}
	return args
}

func (c *ControlPlane) schedulerArgs() []string {
	return []string{"--kubeconfig=" + c.AdminKubeconfig(), "--leader-elect=false", "--secure-port=0", "--profiling=false", "--v=1"}
}

// freePorts finds two free ports. They are below the kernel's port range for outgoing connections
// (ip_local_port_range), so that an API server finds its port free after a restart.
func freePorts() (a, b int, err error) {
	const from, to = 20000, 32000
	var found []int
	for range 100 {
		port := from + rand.IntN(to-from)
		l, e := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if e != nil {
			err = e
			continue
		}
		l.Close()
		if found = append(found, port); len(found) == 2 && found[0] != found[1] {
			return found[0], found[1], nil
		}
		found = found[:1]
	}
	return 0, 0, fmt.Errorf("no free port between %d and %d: %w", from, to, err)
}

// portTaken reports whether a program ended because its port was in use.
func (c *ControlPlane) portTaken(program string) bool {
	return c.running[program].Err() != nil && strings.Contains(lab.Tail(c.Log(program), 40), "address already in use")
}
