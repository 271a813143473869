package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// acknowledged is the byte that a caller sends once it has the reply (ASCII ACK).
const acknowledged = 0x06

// Call sends req to the daemon at socket and waits for the reply until ctx ends. netns may be nil. The error
// wraps ErrNoDaemon or ErrBroken if that is the cause.
func Call(ctx context.Context, socket string, req Request, netns *os.File) (Reply, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return Reply{}, fmt.Errorf("encode request %s: %w", req.Op, err)
	}
	if len(body) > MaxMessage {
		return Reply{}, fmt.Errorf("request %s has %d bytes, more than %d", req.Op, len(body), MaxMessage)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return Reply{}, fmt.Errorf("%w on %s: %w", ErrNoDaemon, socket, err)
	}
	conn := c.(*net.UnixConn) // the network is "unix"
	defer conn.Close()
	// A deadline in the past ends every read and write that is waiting.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if err := send(conn, body, netns); err != nil {
		// Serve never acts on part of a request. There may still be a reply: Serve sends a refusal without
		// reading.
		if reply, rerr := receiveReply(conn); rerr == nil {
			return reply, nil
		}
		return Reply{}, fmt.Errorf("%w on %s: send request: %w", ErrNoDaemon, socket, cause(ctx, err))
	}
	reply, err := receiveReply(conn)
	if err != nil {
		return Reply{}, fmt.Errorf("%w on %s: %w", ErrBroken, socket, cause(ctx, err))
	}
	return reply, nil
}

func receiveReply(conn *net.UnixConn) (Reply, error) {
	body, _, err := receive(conn)
	if err != nil {
		return Reply{}, err
	}
	var reply Reply
	if err := json.Unmarshal(body, &reply); err != nil {
		return Reply{}, fmt.Errorf("decode reply: %w", err)
	}
	// The write fails if the daemon is gone by now, but then nobody waits for the byte.
	_, _ = conn.Write([]byte{acknowledged})
	return reply, nil
}

// cause returns why ctx ended, rather than the resulting deadline error.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("connection closed: %w", err)
	}
	return err
}
