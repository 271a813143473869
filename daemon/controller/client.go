package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// client speaks to the API server in JSON. It is all that is used of it: client-go's typed clients
// and its election would add 32 MB to edgewayd and 7 ms to the start of every command.
type client struct {
	http *http.Client
	base string
}

func newClient(config *rest.Config) (*client, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	// It reads tokens and certificates again when their files change, and pings a silent HTTP/2
	// connection.
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	own := *h // it may be shared
	// No API server redirects: whoever does would be sent the credentials.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{http: &own, base: strings.TrimSuffix(base.String(), "/")}, nil
}

// request is one request; body and out may be nil.
type request struct {
	method, path string
	query        url.Values
	patch        string // the media type of a patch
	body         any
}

// refusal is an answer that is no success, in the API server's words.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

// codeOf returns the HTTP status of a refusal, 0 for any other error.
func codeOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.code
	}
	return 0
}

const (
	// mostTurns is how often a request is sent that the API server asks to send later.
	mostTurns = 4
	// longestTurn bounds what is waited in between, whatever the API server asks for.
	longestTurn = 10 * time.Second
	// mostMessage bounds what is read of a refusal.
	mostMessage = 64 << 10
)

// do sends a request and reads the answer into out, unless that is nil.
func (c *client) do(ctx context.Context, r request, out any) error {
	answer, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, answer.Body) // so that the connection can be used again
		return err
	}
	if err := json.NewDecoder(answer.Body).Decode(out); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// send returns an answer that is a success. It waits for its turn when the API server is busy
// (status 429 with Retry-After).
func (c *client) send(ctx context.Context, r request) (*http.Response, error) {
	for turn := 1; ; turn++ {
		answer, err := c.once(ctx, r)
		if err != nil {
			return nil, err
		}
		if answer.StatusCode < 300 {
			return answer, nil
		}
		err = refusalOf(answer)
		seconds, tellErr := strconv.Atoi(answer.Header.Get("Retry-After"))
		if answer.StatusCode != http.StatusTooManyRequests || tellErr != nil || turn == mostTurns {
			return nil, err
		}
		pause(ctx, min(max(time.Duration(seconds)*time.Second, 10*time.Millisecond), longestTurn))
	}
}

func (c *client) once(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	q, err := http.NewRequestWithContext(ctx, r.method, c.base+r.path, body)
	if err != nil {
		return nil, err
	}
	q.URL.RawQuery = r.query.Encode()
	q.Header.Set("Accept", "application/json")
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	if r.patch != "" {
		q.Header.Set("Content-Type", r.patch)
	}
	return c.http.Do(q)
}

// refusalOf reads why the API server refused.
func refusalOf(answer *http.Response) error {
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, mostMessage))
	var status struct{ Message string }
	if err != nil || json.Unmarshal(text, &status) != nil || status.Message == "" {
		status.Message = "API server: " + answer.Status
	}
	return &refusal{answer.StatusCode, status.Message}
}

// stored is an object that is written back: its metadata as it was read, so that nobody's labels
// or finalizers get lost, and with the version that it must still have.
type stored struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
}

// newStored is an object that is not there yet.
func newStored(apiVersion, kind string) stored {
	return stored{apiVersion, kind, json.RawMessage(`{"name":"` + Name + `","namespace":"` + Namespace + `"}`)}
}

// version is the object's version, "" when it is not there yet.
func (o stored) version() string {
	var m struct{ ResourceVersion string }
	if json.Unmarshal(o.Metadata, &m) != nil {
		return ""
	}
	return m.ResourceVersion
}
