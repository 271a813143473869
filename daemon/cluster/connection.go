package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// maxAnswer bounds how much of an error answer is read.
const maxAnswer = 64 << 10

// Connection is one way to an API server, with the credentials that the files held when it was made. It is
// edgewayd's only client of an API server: packages report and rollout write through it too.
//
// It is not client-go's rest.Request. rest.Request reads all of an error answer, however long it is, waits
// and asks again by itself, shows the text of a proxy's page, and logs to stderr.
type Connection struct {
	server string // "https://10.0.0.1:6443"
	base   *url.URL
	client *http.Client
	files  []string     // the connection was made from them
	print  digest       // of the files' content
	ahead  atomic.Int64 // see World.Ahead, in nanoseconds
}

// Connect makes a connection from the configuration as it is now. It sends nothing. Connect reads the files
// itself: client-go's reloading outlives its client and writes to stderr. When a file changes, Stale says so,
// and the caller makes another connection.
func Connect(o KubernetesOptions) (*Connection, error) { return connectWith(o, defaultPatience) }

func connectWith(o KubernetesOptions, p patience) (*Connection, error) {
	config, err := ClientConfig(o.Kubeconfig, o.UserAgent)
	if err != nil {
		return nil, err
	}
	c := &Connection{files: []string{o.Kubeconfig, config.CAFile, config.CertFile, config.KeyFile, config.BearerTokenFile}}
	c.print = c.fingerprint() // before the files are read: a change in between is found later
	if config, err = ClientConfig(o.Kubeconfig, o.UserAgent); err != nil {
		return nil, err
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("API server %s: %w; wait until the program that writes the file has written it, or correct cluster.kubeconfig", config.Host, err)
	}
	config.CAFile, config.CertFile, config.KeyFile, config.BearerTokenFile = "", "", "", ""
	if c.base, _, err = rest.DefaultServerUrlFor(config); err != nil {
		return nil, fmt.Errorf("API server %s: %w; correct cluster.kubeconfig", config.Host, err)
	}
	c.server = strings.TrimSuffix(c.base.String(), "/")
	if c.client, err = clientFor(config, p); err != nil {
		return nil, fmt.Errorf("API server %s: %w; correct cluster.kubeconfig", c.server, err)
	}
	return c, nil
}

// clientFor is rest.HTTPClientFor with a transport of its own, which can be closed and has our time limits.
func clientFor(config *rest.Config, p patience) (*http.Client, error) {
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	const probes = 3
	dialer := &net.Dialer{Timeout: p.dial, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: p.ping / 2, Interval: p.ping / 2 / probes, Count: probes,
	}}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: tls,
		TLSHandshakeTimeout: p.dial, ResponseHeaderTimeout: p.answer, IdleConnTimeout: p.most,
		ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{SendPingTimeout: p.ping, PingTimeout: p.ping / 2},
		DisableCompression: config.DisableCompression,
	}
	if config.Proxy != nil {
		t.Proxy = config.Proxy
	}
	if config.Dial != nil {
		t.DialContext = config.Dial
	}
	authorized, err := rest.HTTPWrappersForConfig(config, t)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &closing{authorized, t},
		// A redirect, such as to a portal that wants a login, would receive the credentials too.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// closing is a transport that can be closed through its wrappers.
type closing struct {
	http.RoundTripper
	transport *http.Transport
}

func (c *closing) CloseIdleConnections() { c.transport.CloseIdleConnections() }

// Close closes the idle connections.
func (c *Connection) Close() { c.client.CloseIdleConnections() }

// Stale reports whether the files have changed since the connection was made.
func (c *Connection) Stale() bool { return c.print != c.fingerprint() }

func (c *Connection) fingerprint() (sum digest) {
	hash := sha256.New()
	for _, name := range c.files {
		if name == "" {
			continue
		}
		text, err := os.ReadFile(name)
		fmt.Fprintf(hash, "%q %d %v\n", name, len(text), err != nil)
		hash.Write(text)
	}
	hash.Sum(sum[:0])
	return sum
}

// Get asks for a path and returns the body of a good answer. When the server refused, the error wraps an
// *apierrors.StatusError.
func (c *Connection) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	return c.send(ctx, http.MethodGet, path, query, nil, acceptJSON)
}

// get asks for a list or a watch of a kind.
func (c *Connection) get(ctx context.Context, of kind, query url.Values) (io.ReadCloser, error) {
	accept := acceptJSON
	if of.kind == kindNode {
		accept = acceptProtobuf
	}
	return c.send(ctx, http.MethodGet, of.path(), query, nil, accept)
}

// The forms in which an answer is accepted.
const (
	acceptJSON     = "application/json"
	acceptProtobuf = "application/vnd.kubernetes.protobuf,application/json" // of Kubernetes' own kinds alone
)

// Apply is a server-side apply: the field manager owns exactly the fields that text sets. It never conflicts
// (force). It returns the object as the server then has it. Its errors are the same as Get's.
func (c *Connection) Apply(ctx context.Context, path, manager string, text []byte) ([]byte, error) {
	body, err := c.send(ctx, http.MethodPatch, path, url.Values{"fieldManager": {manager}, "force": {"true"}}, text, acceptJSON)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxObject))
}

// Delete deletes an object, unless it has another UID or version by now. Its errors are the same as Get's.
func (c *Connection) Delete(ctx context.Context, path, uid, version string) error {
	text, err := json.Marshal(metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		Preconditions: &metav1.Preconditions{UID: (*types.UID)(&uid), ResourceVersion: &version}})
	if err != nil {
		return err
	}
	body, err := c.send(ctx, http.MethodDelete, path, nil, text, acceptJSON)
	if err != nil {
		return err
	}
	return body.Close()
}

// Create creates an object in the list at path. Its errors are the same as Get's.
func (c *Connection) Create(ctx context.Context, path, manager string, text []byte) error {
	body, err := c.send(ctx, http.MethodPost, path, url.Values{"fieldManager": {manager}}, text, acceptJSON)
	if err == nil {
		body.Close()
	}
	return err
}

func (c *Connection) send(ctx context.Context, method, path string, query url.Values, text []byte, accept string) (io.ReadCloser, error) {
	to := c.base.JoinPath(path)
	to.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, to.String(), bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	switch method {
	case http.MethodPatch:
		req.Header.Set("Content-Type", string(types.ApplyPatchType)) // JSON is YAML
	case http.MethodPost, http.MethodDelete:
		req.Header.Set("Content-Type", acceptJSON)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if of := (*url.Error)(nil); errors.As(err, &of) {
			err = of.Err // the outer text repeats the whole URL
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("connection closed without an answer: %w", err)
		}
		return nil, &unreached{err}
	}
	if hearsay(resp) {
		resp.Body.Close()
		return nil, &unreached{fmt.Errorf("%w: %s", errHearsay, resp.Status)}
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.ahead.Store(int64(time.Since(date.Add(time.Second / 2)))) // Date has whole seconds
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, refused(resp)
}

// errHearsay is an answer of something between this node and the API server.
var errHearsay = errors.New("answered by a cache or a proxy, not by the API server (no Audit-Id)")

// hearsay reports whether an answer is not the API server's own. An API server sets Audit-Id on each answer, a refusal
// too (k8s.io/apiserver, pkg/endpoints/filters/audit_init.go). While OpenYurt's yurthub cannot reach the server, it
// answers a list with the part that it kept, a watch with silence, a patch with the object as it was, and a creation with
// what was sent. KubeEdge's metaserver then answers a list with the few objects that its node has, mostly none, and it
// never sets Audit-Id. This node's own copy of the cluster state is whole, and counts instead. 401, 429 and 5xx claim nothing about objects, whoever answers so.
func hearsay(resp *http.Response) bool {
	claims := resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusTooManyRequests
	return claims && resp.Header.Get("Audit-Id") == ""
}

// unreached says that the server did not answer.
type unreached struct{ error }

func (u *unreached) Unwrap() error { return u.error }

// refused reads an error answer. Text that is not a metav1.Status, such as a proxy's page, is not shown.
func refused(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		text = nil
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil {
		seconds = 0
	}
	return refusal(text, resp.StatusCode, seconds)
}

// refusal is the error of a metav1.Status. code is the HTTP status, retryAfter the Retry-After header in
// seconds. Both are 0 in a watch's event. They win over the text.
func refusal(text []byte, code, retryAfter int) error {
	var s metav1.Status
	if json.Unmarshal(statusText(text), &s) != nil {
		s = metav1.Status{}
	}
	if code != 0 {
		s.Code = int32(code)
	}
	if retryAfter > 0 {
		s.Details = &metav1.StatusDetails{RetryAfterSeconds: int32(retryAfter)}
	}
	if s.Message == "" {
		s.Message = strings.TrimSpace(fmt.Sprintf("%d %s", s.Code, http.StatusText(int(s.Code))))
	} else {
		s.Message = fmt.Sprintf("%d: %s", s.Code, s.Message)
	}
	return &apierrors.StatusError{ErrStatus: s}
}

// expired reports whether the requested version is gone, or belongs to another history: the kind must be
// listed again. An old version is gone after five minutes (410). A version that is too large comes from
// before etcd was restored (504). A version that is refused (400) or unknown (404) comes from another server.
func expired(err error) bool {
	switch code(err) {
	case http.StatusGone, http.StatusBadRequest, http.StatusNotFound:
		return true
	}
	return code(err) != 0 && strings.Contains(err.Error(), "Too large resource version")
}

// code is the HTTP status of a refusal, or 0 for any other error.
func code(err error) int {
	if status := (*apierrors.StatusError)(nil); errors.As(err, &status) {
		return int(status.ErrStatus.Code)
	}
	return 0
}

// RetryAfter is how long the server asks the client to wait before the next request; 0: it does not ask.
func RetryAfter(err error) time.Duration {
	status := (*apierrors.StatusError)(nil)
	if !errors.As(err, &status) || status.ErrStatus.Details == nil {
		return 0
	}
	return time.Duration(status.ErrStatus.Details.RetryAfterSeconds) * time.Second
}
