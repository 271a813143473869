package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// healthTimeout bounds one answer of /healthz. The probes of the DaemonSet wait longer.
const healthTimeout = 8 * time.Second

// healthz answers 200 if the daemon answers "status" on its socket, as the plugin and an operator call it, and 503 with
// the cause if the daemon does not. The answer depends on no switch and no API server: a restart would repair neither,
// and would interrupt the parts that still work.
func (d *Daemon) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
	defer cancel()
	reply, err := api.Call(ctx, d.config.Socket, api.Request{Op: "status"}, nil)
	if err == nil && reply.Failed {
		err = errors.New(reply.Error)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// serveHTTP answers requests to address, a host and a port, until ctx ends. An empty address is not served.
func serveHTTP(ctx context.Context, address string, h http.Handler) error {
	if address == "" {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("%w; end the program that has the port, or set another one", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
