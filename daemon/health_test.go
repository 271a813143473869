package daemon

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
)

// A probe hears what "edgewayd status" would end with: success while the daemon answers on its socket.
func TestHealthIsTheExitStatusOfStatus(t *testing.T) {
	hangs := func(ctx context.Context, _ api.Request, _ *os.File) api.Reply {
		<-ctx.Done()
		return api.Reply{Failed: true, Error: "hung"}
	}
	for name, c := range map[string]struct {
		answer api.Handler // nil: no daemon
		code   int
		says   string
	}{
		"answers": {func(context.Context, api.Request, *os.File) api.Reply { return api.Reply{Output: []byte("{}")} }, 200, ""},
		"fails": {func(context.Context, api.Request, *os.File) api.Reply {
			return api.Reply{Failed: true, Error: "no store"}
		}, 503, "no store"},
		"hangs":       {hangs, 503, "deadline"},
		"not started": {nil, 503, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Daemon{config: config.Config{Socket: filepath.Join(t.TempDir(), "s")}}
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			if c.answer != nil {
				l, err := listen(ctx, d.config.Socket)
				if err != nil {
					t.Fatal(err)
				}
				go func() { served <- api.Serve(ctx, l, c.answer) }()
			} else {
				served <- nil
			}
			limit := time.Minute
			if name == "hangs" {
				limit = 300 * time.Millisecond
			}
			asked, stop := context.WithTimeout(ctx, limit)
			defer stop()
			w := httptest.NewRecorder()
			d.healthz(w, httptest.NewRequestWithContext(asked, "GET", "/healthz", nil))
			if w.Code != c.code || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("%d %s, want %d and %q", w.Code, w.Body, c.code, c.says)
			}
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}
