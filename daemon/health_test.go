package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
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

// A port that another program has filled the log with a line each second.
func TestTakenPortIsALineAMinute(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var text bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute-time.Second/2)
		defer cancel()
		persist(ctx, slog.New(slog.NewTextHandler(&text, nil)), "serve health", func(ctx context.Context) error {
			return serveHTTP(ctx, other.Addr().String(), http.NotFoundHandler())
		})
	})
	if n := strings.Count(text.String(), "in use; end the program that has the port"); n != 10 {
		t.Errorf("%d lines in ten minutes, want 10:\n%s", n, text.String())
	}
}
