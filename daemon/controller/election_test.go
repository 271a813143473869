package controller

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// One replica leads at a time. When the API server stops hearing from it, another replica leads
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
	enter := func(name string) {
		e := stand(t, f, name)
		wait.Go(func() {
			err := e.run(ctx, func(ctx context.Context) {
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
			if err != nil {
				t.Error(err)
			}
		})
	}
	enter("a")
	led := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(history, " ") == want
		}
	}
	until(t, "a leads", led("a"))
	enter("b")
	enter("c")
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
	a, b := stand(t, f, "a"), stand(t, f, "b")
	if err := b.lock.Create(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "b"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		by   *election
		want string
	}{{a, "b"}, {b, ""}} {
		test.by.release()
		f.mu.Lock()
		holder := f.objects[leasePath]["spec"].(map[string]any)["holderIdentity"]
		f.mu.Unlock()
		if holder != test.want {
			t.Errorf("after %s released: %q has the Lease, want %q", test.by.lock.Identity(), holder, test.want)
		}
	}
}

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/edgeway-controller"

// stand returns the election of a replica whose requests carry its name.
func stand(t *testing.T, f *fake, name string) *election {
	t.Helper()
	config := f.config()
	config.UserAgent = name
	e, err := newElection(Options{API: config, Identity: name, Log: slog.New(slog.DiscardHandler), times: hurry()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
