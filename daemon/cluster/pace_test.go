package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// remote is an API server in memory, for a bubble's clock: it has one Node and nothing else.
type remote struct {
	mu    sync.Mutex
	away  func(r *http.Request) (*http.Response, error) // nil: it answers
	asked []time.Time
	live  map[*io.PipeWriter]bool
}

func (s *remote) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, time.Now())
	if s.away != nil {
		return s.away(r)
	}
	if r.URL.Query().Get("watch") != "" {
		out, in := io.Pipe()
		s.live[in] = true
		context.AfterFunc(r.Context(), func() { in.CloseWithError(context.Canceled) })
		opened := reply(http.StatusOK, "")
		opened.Body = out
		return opened, nil
	}
	item := ""
	if kindOf(r.URL.Path) == kindNode {
		item = `{"metadata":{"name":"n1"}}`
	}
	return reply(http.StatusOK, fmt.Sprintf(`{"kind":%q,"metadata":{"resourceVersion":"7"},"items":[%s]}`, kindOf(r.URL.Path)+"List", item)), nil
}

func reply(code int, text string) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{"Audit-Id": {"one"}}, Body: io.NopCloser(strings.NewReader(text))}
}

var errRefused = errors.New("connection refused")

// leave makes the server go, and cuts what is open.
func (s *remote) leave(away func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	s.away = away
	open := s.live
	s.live, s.asked = map[*io.PipeWriter]bool{}, nil
	s.mu.Unlock()
	for in := range open {
		in.CloseWithError(io.ErrUnexpectedEOF)
	}
}

func (s *remote) requests() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// bubble runs a client with the product's own patience on the bubble's clock.
func bubble(t *testing.T, f func(t *testing.T, s *remote, k *kubernetes)) {
	synctest.Test(t, func(t *testing.T) {
		s := &remote{live: map[*io.PipeWriter]bool{}}
		k := newKubernetes(KubernetesOptions{Node: "n1"}, defaultPatience)
		k.connect = func() (*Connection, error) {
			c := &Connection{server: "https://api", base: &url.URL{Scheme: "https", Host: "api"}, client: &http.Client{Transport: s}}
			c.print = c.fingerprint()
			return c, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		look := func() { _, _ = k.World(ctx, World{}) } // as the daemon does
		go func() { _ = k.Watch(ctx, look) }()
		time.Sleep(time.Second) // of the bubble's clock
		f(t, s, k)
	})
}

// healthy reports whether all that there is was told, and nothing is wrong.
func healthy(t *testing.T, k *kubernetes) bool {
	w, err := k.World(t.Context(), World{})
	return err == nil && len(w.Problems) == 0 && len(w.Nodes) == 1
}

func refuses(*http.Request) (*http.Response, error) { return nil, errRefused }

// A start asks for each kind once, once again to watch it, and once for this Node where a list of a kind of ours is
// empty. Without NodeSlices there are two more kinds: these, and Nodes. An hour of peace costs a watch every four to
// eight minutes.
func TestRequestsInPeace(t *testing.T) {
	bubble(t, func(t *testing.T, s *remote, k *kubernetes) {
		own := len(ownKinds())
		start := 2*(own+2) + own
		if n := len(s.requests()); n != start {
			t.Errorf("%d requests at the start, want %d", n, start)
		}
		time.Sleep(time.Hour) // this server never ends a watch: it is left
		if n := len(s.requests()) - start; n > (own+2)*15 {
			t.Errorf("%d requests in an hour of peace, want at most %d", n, (own+2)*15)
		}
		if !healthy(t, k) {
			t.Error("not healthy")
		}
	})
}

// A server that is away for an hour, refuses or flaps is asked twice a minute for each kind at most.
func TestRequestsInAnOutage(t *testing.T) {
	for name, away := range map[string]func(*http.Request) (*http.Response, error){
		"refuses": refuses,
		"500":     func(*http.Request) (*http.Response, error) { return reply(500, "no"), nil },
		"403":     func(*http.Request) (*http.Response, error) { return reply(403, "no"), nil },
		"404":     func(*http.Request) (*http.Response, error) { return reply(404, "no"), nil },
		"410":     func(*http.Request) (*http.Response, error) { return reply(410, "no"), nil },
		"garbage": func(*http.Request) (*http.Response, error) { return reply(200, "<html>"), nil },
		"ends each watch at once": func(r *http.Request) (*http.Response, error) {
			return reply(200, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8"}}}`), nil
		},
		"answers every other time": func() func(r *http.Request) (*http.Response, error) {
			n := 0
			return func(*http.Request) (*http.Response, error) {
				if n++; n%2 == 0 {
					return nil, errRefused
				}
				return reply(200, ""), nil
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *remote, k *kubernetes) {
				s.leave(away)
				time.Sleep(time.Hour)
				// The first minute takes some seven attempts; each may list, watch and confirm.
				if n := len(s.requests()); n > (len(ownKinds())+1)*2*(60+10)*2 {
					t.Errorf("%d requests in an hour", n)
				}
				s.leave(nil)
				time.Sleep(defaultPatience.most)
				if !healthy(t, k) {
					w, err := k.World(t.Context(), World{})
					t.Errorf("not healthy a minute after: %v %v", w.Problems, err)
				}
			})
		})
	}
}

// A WAN that comes back is used again after at most as long as it was away, and a minute.
func TestBackAfter(t *testing.T) {
	for _, outage := range []time.Duration{time.Second, 5 * time.Second, 20 * time.Second, time.Minute, time.Hour} {
		t.Run(outage.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, s *remote, k *kubernetes) {
				s.leave(refuses)
				time.Sleep(outage)
				s.leave(nil)
				back := time.Now()
				for !healthy(t, k) || len(s.requests()) < 3 {
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(back); took > min(max(outage, time.Second), defaultPatience.most) {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// 5,000 nodes that lost the API server at one moment do not return at one moment once it was away for a minute. After a
// shorter time most of them do: a node asks again within seconds then. The real waits are computed, without a server. A
// node is back when its first feed is.
func TestNoHerdAfterARestart(t *testing.T) {
	const nodes = 5000
	feeds := len(ownKinds()) + 1
	for _, c := range []struct {
		outage time.Duration
		most   int // nodes in one second
	}{{5 * time.Second, nodes}, {20 * time.Second, nodes}, {time.Minute, 900}, {time.Hour, 800}} {
		perSecond := map[int]int{}
		for range nodes {
			first := time.Duration(math.MaxInt64)
			for range feeds {
				at, wait := time.Duration(0), defaultPatience.least
				for at < c.outage {
					at += jittered(wait, 0)
					wait = min(2*wait, defaultPatience.most)
				}
				first = min(first, at)
			}
			perSecond[int((first-c.outage).Seconds())]++
		}
		peak := 0
		for _, n := range perSecond {
			peak = max(peak, n)
		}
		t.Logf("away for %v: at most %d of %d nodes come back in one second", c.outage, peak, nodes)
		if peak > c.most {
			t.Errorf("away for %v: %d nodes come back in one second, want at most %d", c.outage, peak, c.most)
		}
	}
}

// The server's own wish when to come again is followed.
func TestRetryAfter(t *testing.T) {
	for name, wish := range map[string]func(*http.Request) (*http.Response, error){
		"in the header": func(*http.Request) (*http.Response, error) {
			r := reply(http.StatusTooManyRequests, "")
			r.Header.Set("Retry-After", "100")
			return r, nil
		},
		"in the status": func(*http.Request) (*http.Response, error) {
			return reply(http.StatusServiceUnavailable, `{"kind":"Status","details":{"retryAfterSeconds":100}}`), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *remote, k *kubernetes) {
				s.leave(wish)
				time.Sleep(99 * time.Second)
				kinds := len(ownKinds()) + 2
				if n := len(s.requests()); n != kinds {
					t.Errorf("%d requests within the time that the server asked for, want %d", n, kinds)
				}
				time.Sleep(200 * time.Second)
				if n := len(s.requests()); n < 2*kinds {
					t.Errorf("%d requests in three times that time, want at least %d", n, 2*kinds)
				}
			})
		})
	}
}
