package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// transferTimeout bounds the time of one message on the wire. Both ends are on this machine: a caller
	// that needs longer is stopped or broken.
	transferTimeout = 10 * time.Second
	// lastRequestTimeout is the time that a connected caller has for its request once Serve ends.
	lastRequestTimeout = time.Second
	// acceptPause is the wait after an accept that found no free descriptor.
	acceptPause = 50 * time.Millisecond
)

// Handler serves one request. netns is nil when the request has none, and is closed after the Handler
// returns. ctx ends when the caller hangs up.
type Handler func(ctx context.Context, req Request, netns *os.File) Reply

// Serve answers requests on l until ctx ends, then closes l and waits for the requests in flight. It serves
// only root and the daemon's own user (SO_PEERCRED). If a Reply did not reach its caller, Serve calls its
// Undelivered.
func Serve(ctx context.Context, l *net.UnixListener, serve Handler) error {
	s := server{ctx: ctx, serve: serve}
	defer s.calls.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			s.calls.Go(func() { s.answer(conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ECONNABORTED):
			select { // the calls in flight free descriptors
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		default:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
	}
}

type server struct {
	ctx   context.Context // after its end, no new request is taken
	serve Handler
	calls sync.WaitGroup
}

func (s *server) answer(conn *net.UnixConn) {
	defer conn.Close()
	if err := admit(conn); err != nil {
		_ = s.reply(conn, Request{}, Reply{Error: err.Error()})
		return
	}
	req, netns, err := s.request(conn)
	if err != nil {
		_ = s.reply(conn, Request{}, Reply{Error: err.Error()})
		return
	}
	if netns != nil {
		defer netns.Close()
	}
	if hungUp(conn) {
		return
	}
	// A request that was taken is answered even while Serve ends: only its caller ends it.
	ctx, hangUp := context.WithCancel(context.WithoutCancel(s.ctx))
	defer hangUp()
	outcome := make(chan error, 1)
	go func() {
		outcome <- awaitAck(conn)
		hangUp()
	}()

	reply := s.serve(ctx, req, netns)
	lost := s.reply(conn, req, reply)
	_ = conn.SetReadDeadline(time.Now().Add(transferTimeout))
	if err := <-outcome; err != nil {
		lost = err
	}
	// A silent caller may have the reply, so the reply counts as delivered: cutting off a running pod is
	// worse than a lease that a sweep finds later.
	if lost != nil && !errors.Is(lost, os.ErrDeadlineExceeded) && reply.Undelivered != nil {
		reply.Undelivered(context.WithoutCancel(s.ctx))
	}
}

// hungUp reports that the caller is gone already. While the daemon was stopped, the caller gave up, and its
// runtime may have made the next call: a late DEL would cut that pod off.
func hungUp(conn *net.UnixConn) (gone bool) {
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			gone = n == 0 && err == nil
		})
	}
	return gone || err != nil
}

// awaitAck returns nil once the caller says that it has the reply, else how the caller went away.
func awaitAck(conn *net.UnixConn) error {
	var b [1]byte
	_, err := conn.Read(b[:])
	return err
}

// request reads the request. The end of Serve's context ends the wait for a request that has not come.
func (s *server) request(conn *net.UnixConn) (Request, *os.File, error) {
	_ = conn.SetReadDeadline(time.Now().Add(transferTimeout))
	shortened := make(chan struct{})
	stop := context.AfterFunc(s.ctx, func() {
		_ = conn.SetReadDeadline(time.Now().Add(lastRequestTimeout))
		close(shortened)
	})
	body, netns, err := receive(conn)
	if !stop() {
		<-shortened
	}
	if err != nil {
		return Request{}, nil, fmt.Errorf("receive request: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	req, err := decode(body)
	if err != nil {
		if netns != nil {
			_ = netns.Close()
		}
		return Request{}, nil, fmt.Errorf("decode request: %w", err)
	}
	return req, netns, nil
}

// reply answers req, which is the zero Request if no request was read.
func (s *server) reply(conn *net.UnixConn, req Request, r Reply) error {
	body, err := encode(req, r)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(transferTimeout))
	if err := send(conn, body, nil); errors.Is(err, errTooLong) {
		return s.reply(conn, req, Reply{Error: "reply: " + err.Error()})
	} else if err != nil {
		return err
	}
	return nil
}

// admit refuses a caller that is neither root nor the daemon's own user.
func admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("credentials of the caller: %w", err)
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("credentials of the caller: %w", err)
	}
	if cerr != nil {
		return fmt.Errorf("credentials of the caller: %w", cerr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d (process %d) may not speak to the daemon; call as root", cred.Uid, cred.Pid)
	}
	return nil
}
