package pods

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/plugin"
)

// starting is a daemon whose socket answers and whose store is not open yet.
func starting(t *testing.T) *Pods {
	return New(config.Config{StateDir: t.TempDir()}, slog.New(slog.DiscardHandler))
}

// asked is the answer to a STATUS of the network's plugin.
func (p *Pods) asked(ctx context.Context) <-chan string {
	out := make(chan string, 1)
	go func() {
		conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":%q,"ipam":{"ranges":[[{"subnet":"10.88.0.0/24"}]]}}`, p.config.StateDir)
		reply := p.CNI(ctx, api.Request{Op: "cni", CNI: &api.CNI{Command: "STATUS", Stdin: []byte(conf)}}, nil)
		out <- string(reply.Output)
	}()
	return out
}

// A pod that started right after a restart of the daemon was refused with code 11, and the node
// became NotReady for a moment: the socket answers before the store is open.
func TestPodStartedRightAfterARestartIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := starting(t)
		answer := p.asked(t.Context())
		synctest.Wait()
		select {
		case text := <-answer:
			t.Fatalf("answered before the store was open: %s", text)
		default:
		}
		store, err := plugin.OpenStore(t.Context(), storeFile(p.config.StateDir), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		n, err := leasesOf(store, p.config.StateDir)
		if err != nil {
			t.Fatal(err)
		}
		p.leases.Store(n)
		p.lift()
		if text := <-answer; text != "" {
			t.Errorf("with the store open: %s", text)
		}
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
}

// Nobody waits for a store that cannot be opened.
func TestStoreThatDoesNotOpenIsNotWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(p *Pods, hangUp func())
		took time.Duration
	}{
		{"the first try failed", func(p *Pods, _ func()) { p.lift() }, 0},
		{"the caller hung up", func(_ *Pods, hangUp func()) { hangUp() }, 0},
		{"nothing happens", func(*Pods, func()) {}, openPatience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := starting(t)
				ctx, hangUp := context.WithCancel(t.Context())
				defer hangUp()
				begin, answer := time.Now(), p.asked(ctx)
				tt.do(p, hangUp)
				if text := <-answer; !strings.Contains(text, "the store of leases is not open") {
					t.Errorf("got %s", text)
				}
				if took := time.Since(begin); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if text := <-p.asked(t.Context()); text == "" || time.Since(begin) > openPatience {
					t.Errorf("the next call: %q after %v", text, time.Since(begin))
				}
			})
		})
	}
}

// After a change of mode an operator could not see which pods still had the earlier MTU.
func TestPodsThatKeepAnEarlierMTUAreNamed(t *testing.T) {
	var pods []api.PodMTU
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		pods = append(pods, api.PodMTU{Pod: "default/" + name, MTU: 1500})
	}
	pods = append(pods, api.PodMTU{Pod: "default/slow", MTU: 1280})
	var got []string
	for _, p := range adviseMTU(pods, 1450) {
		if !p.Reason.IsAdvice() {
			t.Errorf("%s is not advice", p.Reason)
		}
		got = append(got, p.String())
	}
	const next = "; recreate the pods when it suits you; until then the kernel tells them which size the path carries"
	want := []string{
		"pods: want the MTU of new pods, 1450, got 1280 for default/slow" + next,
		"pods: want the MTU of new pods, 1450, got 1500 for default/a, default/b, default/c, default/d, default/e and 1 more" + next,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("-got +want\n%s", diff)
	}
	if none := adviseMTU(nil, 1450); none != nil {
		t.Errorf("without such pods: %v", none)
	}
}
