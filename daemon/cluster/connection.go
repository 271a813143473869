package cluster

import (
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

	"k8s.io/client-go/rest"
)

// maxAnswer bounds what is read of an answer that is an error.
const maxAnswer = 64 << 10

// connection is one way to an API server.
type connection struct {
	server string // "https://10.0.0.1:6443"
	base   *url.URL
	client *http.Client
	files  []string // that it was made from
	print  digest   // of their content
}

// connect makes a connection of the configuration as it is now. Nothing is sent. The files are
// read here and not by client-go's own reloading, which outlives its client and writes to stderr:
// when one of them changes, stale says so, and the connection is made anew.
func connect(o KubernetesOptions) (*connection, error) { return connectWith(o, defaultPatience) }

func connectWith(o KubernetesOptions, p patience) (*connection, error) {
	config, err := ClientConfig(o.Kubeconfig, o.UserAgent)
	if err != nil {
		return nil, err
	}
	c := &connection{files: []string{o.Kubeconfig, config.CAFile, config.CertFile, config.KeyFile, config.BearerTokenFile}}
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

func (c *connection) close() { c.client.CloseIdleConnections() }

// stale reports whether the files say something else than when the connection was made.
func (c *connection) stale() bool { return c.print != c.fingerprint() }

// fingerprint is the digest of the files' content.
func (c *connection) fingerprint() (sum digest) {
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

// get asks for a path and returns the body of a good answer. What else the server answers is a
// *refusal.
func (c *connection) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	to := c.base.JoinPath(path)
	to.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
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
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, refused(resp)
}

// unreached: there was no answer.
type unreached struct{ error }

func (u *unreached) Unwrap() error { return u.error }

// refusal is an answer that is an error.
type refusal struct {
	code       int
	reason     string // of a metav1.Status: "Expired"
	message    string
	retryAfter time.Duration // 0: not said
}

func (r *refusal) Error() string {
	if r.message == "" {
		return strings.TrimSpace(fmt.Sprintf("%d %s", r.code, http.StatusText(r.code)))
	}
	return fmt.Sprintf("%d: %s", r.code, r.message)
}

func refused(resp *http.Response) *refusal {
	r := &refusal{code: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		r.retryAfter = time.Duration(seconds) * time.Second
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil {
		r.status(text)
	}
	return r
}

// status takes what a metav1.Status says. Another text, such as a proxy's page, says nothing.
func (r *refusal) status(text []byte) {
	var s struct {
		Code            int
		Reason, Message string
		Details         struct{ RetryAfterSeconds int }
	}
	if json.Unmarshal(text, &s) != nil {
		return
	}
	r.reason, r.message = s.Reason, s.Message
	if r.code == 0 {
		r.code = s.Code
	}
	if r.retryAfter == 0 {
		r.retryAfter = time.Duration(s.Details.RetryAfterSeconds) * time.Second
	}
}

// expired reports whether the version that was asked from is gone, or of another history: the
// kind must be listed anew. An old one is gone after five minutes (410), one that is too large
// comes from before etcd was restored (504), and one that is refused (400) or unknown (404) from
// another server.
func (r *refusal) expired() bool {
	switch r.code {
	case http.StatusGone, http.StatusBadRequest, http.StatusNotFound:
		return true
	}
	return strings.Contains(r.message, "Too large resource version")
}
