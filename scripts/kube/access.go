package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	requestTimeout = 5 * time.Second
	commandTimeout = 2 * time.Minute
)

// credential is the user entry of a kubeconfig.
type credential struct {
	Token string `json:"token,omitempty"`
	Cert  []byte `json:"client-certificate-data,omitempty"`
	Key   []byte `json:"client-key-data,omitempty"`
}

// AdminKubeconfig is the path of the administrator's kubeconfig, which has every permission.
func (c *ControlPlane) AdminKubeconfig() string { return c.file("admin.kubeconfig") }

// Kubeconfig writes a kubeconfig for any user and returns its path. The API server need not know the user.
// Group "system:masters" has every permission. User "system:node:NAME" in group "system:nodes" is a
// kubelet. RBAC decides about all other users.
func (c *ControlPlane) Kubeconfig(user string, groups ...string) (string, error) {
	cert, key, err := c.ca.client(user, groups)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(user, credential{Cert: cert, Key: key})
}

// Certificate returns the certificate and the key, as PEM, of a program that is the API server's client, as in
// Kubeconfig, and a server with these addresses and names itself.
func (c *ControlPlane) Certificate(user string, groups []string, addrs []net.IP, names []string) (cert, key []byte, err error) {
	t := template(pkix.Name{CommonName: user, Organization: groups})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.IPAddresses, t.DNSNames = addrs, names
	return c.ca.sign(t)
}

// ServiceAccount writes a kubeconfig with a token of an existing service account.
func (c *ControlPlane) ServiceAccount(namespace, name string) (string, error) {
	return c.token(namespace, name, "")
}

// ServiceAccountOf is ServiceAccount with the token that the kubelet gives to a pod of the same namespace.
func (c *ControlPlane) ServiceAccountOf(pod, namespace, name string) (string, error) {
	return c.token(namespace, name, "."+pod, "--bound-object-kind=Pod", "--bound-object-name="+pod)
}

// ServiceAccountOn is ServiceAccount with a token that is bound to an existing Node, as that of a pod there.
func (c *ControlPlane) ServiceAccountOn(node, namespace, name string) (string, error) {
	return c.token(namespace, name, "."+node, "--bound-object-kind=Node", "--bound-object-name="+node)
}

func (c *ControlPlane) token(namespace, name, file string, args ...string) (string, error) {
	token, err := c.Kubectl(append([]string{"create", "token", "-n", namespace, name}, args...)...)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(namespace+"."+name+file, credential{Token: strings.TrimSpace(token)})
}

func (c *ControlPlane) writeKubeconfig(name string, user credential) (string, error) {
	type object = map[string]any
	config, err := json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []object{{"name": "test", "cluster": object{"server": c.URL(), "certificate-authority-data": c.ca.certPEM}}},
		"users":    []object{{"name": name, "user": user}},
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": name}}},
	}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("kubeconfig of %s: %w", name, err)
	}
	path := c.file(strings.NewReplacer(":", "-", "/", "-").Replace(name) + ".kubeconfig")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return "", fmt.Errorf("kubeconfig of %s: %w", name, err)
	}
	return path, nil
}

// Kubectl runs kubectl and returns its output. The user is the administrator unless the arguments contain
// --kubeconfig. The error contains kubectl's standard error.
func (c *ControlPlane) Kubectl(args ...string) (string, error) { return c.kubectl("", args) }

// Apply applies a file or a directory of manifests.
func (c *ControlPlane) Apply(path string) error {
	_, err := c.kubectl("", []string{"apply", "-f", path})
	return err
}

// ApplyText applies manifests.
func (c *ControlPlane) ApplyText(manifests string) error {
	_, err := c.kubectl(manifests, []string{"apply", "-f", "-"})
	return err
}

func (c *ControlPlane) kubectl(stdin string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Program(kubectl), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.AdminKubeconfig(), "KUBECACHEDIR="+c.file("kubectl-cache"), "KUBERC=off")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C must reach the test only
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := c.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("kubectl %.100s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// get returns nil if the API server answers OK.
func (c *ControlPlane) get(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL()+path, nil)
	if err != nil {
		return err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("%s: %s: %s", path, response.Status, text)
	}
	return nil
}

// connect prepares the administrator's requests to the API server's future port.
func (c *ControlPlane) connect() error {
	cert, key, err := c.ca.client("admin", []string{"system:masters"})
	if err != nil {
		return err
	}
	if _, err := c.writeKubeconfig("admin", credential{Cert: cert, Key: key}); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("administrator: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	c.client = &http.Client{Transport: &http.Transport{
		DialContext:     c.dial,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}}
	return nil
}

func (c *ControlPlane) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	dialer := &net.Dialer{Timeout: requestTimeout}
	err = c.do(func() error {
		conn, err = dialer.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (c *ControlPlane) do(f func() error) error {
	if c.o.Space == nil {
		return f()
	}
	return c.o.Space.Do(f)
}
