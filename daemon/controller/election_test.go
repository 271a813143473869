package controller

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// One replica leads at a time; when the API server does not hear of it any more, another one does
// after the Lease's duration, and not before; the first stops before that.
func TestElection(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	var mu sync.Mutex
	var leads []string // who leads now
	var history []string
	stand := func(name string) {
		c, err := newClient(f.config())
		if err != nil {
			t.Fatal(err)
		}
		c.http = &http.Client{Transport: named{name}}
		e := &election{client: c, identity: name, times: hurry(), log: slog.New(slog.DiscardHandler)}
		wait.Go(func() {
			e.run(ctx, func(ctx context.Context) {
				mu.Lock()
				leads = append(leads, name)
				history = append(history, name)
				if len(leads) > 1 {
					t.Errorf("%v lead at once", leads)
				}
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				leads = leads[:0]
				mu.Unlock()
			})
		})
	}
	stand("a")
	led := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(history, " ") == want
		}
	}
	until(t, "a leads", led("a"))
	stand("b")
	stand("c")
	cut := time.Now()
	f.set(func(r *http.Request) fault {
		if r.Header.Get("User-Agent") == "a" {
			return fault{status: -1}
		}
		return fault{}
	})
	until(t, "another one leads", func() bool { return !led("a")() })
	if after := time.Since(cut); after < hurry().lease-hurry().retry {
		t.Errorf("already after %v", after)
	}
	f.set(nil)
	var second string
	until(t, "a stands by", func() bool {
		mu.Lock()
		defer mu.Unlock()
		second = history[len(history)-1]
		return len(leads) == 1 && second != "a"
	})
	f.mu.Lock()
	holder := f.objects[leasePath]["spec"].(map[string]any)["holderIdentity"]
	f.mu.Unlock()
	if holder != second {
		t.Errorf("%s leads, and the Lease says %v", second, holder)
	}
}

// A replica that is told to stop just after another one took the Lease does not give that up.
func TestReleaseOfAnother(t *testing.T) {
	f := newFake(t)
	c, err := newClient(f.config())
	if err != nil {
		t.Fatal(err)
	}
	stand := func(name string) *election {
		return &election{client: c, identity: name, times: hurry(), log: slog.New(slog.DiscardHandler)}
	}
	a, b := stand("a"), stand("b")
	if !b.hold(t.Context()) || a.hold(t.Context()) {
		t.Fatal("want b to have the Lease, and a not")
	}
	holder := func() any {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.objects[leasePath]["spec"].(map[string]any)["holderIdentity"]
	}
	a.release()
	if got := holder(); got != "b" {
		t.Errorf("after a released: %q has the Lease, want b", got)
	}
	b.release()
	if got := holder(); got != "" {
		t.Errorf("after b released: %q has the Lease, want nobody", got)
	}
}

// named names its requests' sender.
type named struct{ name string }

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", n.name)
	return http.DefaultTransport.RoundTrip(r)
}
