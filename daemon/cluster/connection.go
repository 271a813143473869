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
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// maxAnswer bounds what is read of an answer that is an error.
const maxAnswer = 64 << 10

// Connection is one way to an API server, with the credentials as the files said when it was made.
// It is edgewayd's only client of an API server: package report writes through it too.
//
// It is not client-go's rest.Request: that reads all of an answer that is an error, however long it
// is, waits and asks again by itself, shows what a proxy's page says, and logs to stderr.
type Connection struct {
	server string // "https://10.0.0.1:6443"
	base   *url.URL
	client *http.Client
	files  []string // that it was made from
	print  digest   // of their content
}

// Connect makes a connection of the configuration as it is now. Nothing is sent. The files are
// read here and not by client-go's own reloading, which outlives its client and writes to stderr:
// when one of them changes, Stale says so, and the caller makes another connection.
func Connect(o KubernetesOptions) (*Connection, error) { return connectWith(o, defaultPatience) }

func connectWith(o KubernetesOptions, p patience) (*Connection, error) {
	config, err := ClientConfig(o.Kubeconfig, o.UserAgent)
	if err != nil {
		return nil, err
	}
	c := &Connection{files: []string{o.Kubeconfig, config.CAFile, config.CertFile, config.KeyFile, config.BearerTokenFile}}
	c.print = c.fingerprint() // before they are read: a change in between is found later
	if config, err = ClientConfig(o.Kubeconfig, o.UserAgent); err != nil {
		return nil, err
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("API server %s: %w; wait for whoever writes the file, or correct cluster.kubeconfig", config.Host, err)
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

// clientFor is rest.HTTPClientFor with a transport of its own, so that it can be closed and that
// its time limits are ours.
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
		// A redirect, as of a portal that wants to be logged in to, would get the credentials too.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// closing is a transport that can be closed under what wraps it.
type closing struct {
	http.RoundTripper
	transport *http.Transport
}

func (c *closing) CloseIdleConnections() { c.transport.CloseIdleConnections() }

// Close closes its idle connections.
func (c *Connection) Close() { c.client.CloseIdleConnections() }

// Stale reports whether the files say something else than when the connection was made.
func (c *Connection) Stale() bool { return c.print != c.fingerprint() }

// fingerprint is the digest of the files' content.
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

// Get asks for a path and returns the body of a good answer. An error wraps an
// *apierrors.StatusError when the server refused.
func (c *Connection) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	return c.send(ctx, http.MethodGet, path, query, nil)
}

// Apply is a server-side apply: the field manager owns of the object what text says, and nothing
// else. It never conflicts (force). It returns the object as the server has it then; its errors are
// those of Get.
func (c *Connection) Apply(ctx context.Context, path, manager string, text []byte) ([]byte, error) {
	body, err := c.send(ctx, http.MethodPatch, path, url.Values{"fieldManager": {manager}, "force": {"true"}}, text)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxObject))
}

func (c *Connection) send(ctx context.Context, method, path string, query url.Values, text []byte) (io.ReadCloser, error) {
	to := c.base.JoinPath(path)
	to.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, to.String(), bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", string(types.ApplyPatchType)) // JSON is YAML
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if of := (*url.Error)(nil); errors.As(err, &of) {
			err = of.Err // its own text repeats the whole URL
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("connection closed without an answer: %w", err)
		}
		return nil, &unreached{err}
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, refused(resp)
}

// unreached: there was no answer.
type unreached struct{ error }

func (u *unreached) Unwrap() error { return u.error }

// refused reads an answer that is an error. Text that is not a metav1.Status, such as a proxy's page,
// is not shown.
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

// refusal is the error of a metav1.Status. The HTTP status and its Retry-After header, in seconds,
// are 0 in a watch's event; they win over what the text says.
func refusal(text []byte, code, retryAfter int) error {
	var s metav1.Status
	if json.Unmarshal(text, &s) != nil {
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

// expired reports whether the version that was asked from is gone, or of another history: the
// kind must be listed again. An old version is gone after five minutes (410), one that is too large
// comes from before etcd was restored (504), and one that is refused (400) or unknown (404) from
// another server.
func expired(err error) bool {
	switch code(err) {
	case http.StatusGone, http.StatusBadRequest, http.StatusNotFound:
		return true
	}
	return code(err) != 0 && strings.Contains(err.Error(), "Too large resource version")
}

// code is the HTTP status of a refusal, 0 for all other errors.
func code(err error) int {
	if status := (*apierrors.StatusError)(nil); errors.As(err, &status) {
		return int(status.ErrStatus.Code)
	}
	return 0
}

// RetryAfter is how long the server asks to wait before the next request; 0: it does not ask.
func RetryAfter(err error) time.Duration {
	status := (*apierrors.StatusError)(nil)
	if !errors.As(err, &status) || status.ErrStatus.Details == nil {
		return 0
	}
	return time.Duration(status.ErrStatus.Details.RetryAfterSeconds) * time.Second
}
