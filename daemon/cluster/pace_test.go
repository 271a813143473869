package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
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
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		s, k := join(ctx, 0)
		time.Sleep(time.Second) // of the bubble's clock
		f(t, s, k)
	})
}

// join starts a client of a cluster of that size, which has a server of its own.
func join(ctx context.Context, size int) (*remote, *kubernetes) {
	s := &remote{live: map[*io.PipeWriter]bool{}}
	k := newKubernetes(KubernetesOptions{Node: "n1"}, defaultPatience)
	k.connect = func() (*Connection, error) {
		c := &Connection{server: "https://api", base: &url.URL{Scheme: "https", Host: "api"}, client: &http.Client{Transport: s}}
		c.print = c.fingerprint()
		return c, nil
	}
	look := func() { // as the daemon does
		_, _ = k.World(ctx, World{})
		k.mu.Lock()
		k.size = size
		k.mu.Unlock()
	}
	go func() { _ = k.Watch(ctx, look) }()
	return s, k
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

// 5,000 nodes that lost the API server at one moment do not return at one moment, however long it was away, and also
// when it cut their watches and was never away. A small cluster is back at once. Of the 5,000 nodes 250 run, on the
// bubble's clock.
func TestNoHerdAfterARestart(t *testing.T) {
	for _, c := range []struct {
		size, run int
		outage    time.Duration
		most      int           // nodes in one second
		within    time.Duration // all nodes
	}{
		{5000, 250, 0, 1000, 16 * time.Second}, {5000, 250, 5 * time.Second, 1000, 25 * time.Second},
		{5000, 250, 20 * time.Second, 1000, 40 * time.Second}, {5000, 250, time.Minute, 1000, time.Minute},
		{10, 10, 0, 10, time.Second}, {10, 10, 5 * time.Second, 10, 5 * time.Second},
	} {
		t.Run(fmt.Sprintf("%d nodes %v", c.size, c.outage), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer synctest.Wait()
				defer cancel()
				var servers []*remote
				for range c.run {
					s, _ := join(ctx, c.size)
					servers = append(servers, s)
				}
				time.Sleep(time.Second)
				for _, s := range servers {
					s.leave(refuses)
				}
				time.Sleep(c.outage)
				for _, s := range servers {
					s.leave(nil)
				}
				back := time.Now()
				time.Sleep(2 * time.Minute)
				perSecond, last := map[int]int{}, time.Duration(0)
				for _, s := range servers {
					first := s.requests()[0].Sub(back)
					perSecond[int(first.Seconds())] += c.size / c.run
					last = max(last, first)
				}
				peak := slices.Max(slices.Collect(maps.Values(perSecond)))
				t.Logf("away for %v: at most %d of %d nodes come back in one second, the last after %v", c.outage, peak, c.size, last)
				if peak > c.most || last > c.within {
					t.Errorf("away for %v: %d nodes come back in one second, and the last after %v; want at most %d and %v", c.outage, peak, last, c.most, c.within)
				}
			})
		})
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
