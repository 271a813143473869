package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const patience = 20 * time.Second

// serveOn runs Serve with h until the test ends or stop is called, which waits for Serve.
func serveOn(t *testing.T, h Handler) (socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve did not return")
		}
	})
	t.Cleanup(stop)
	return socket, stop
}

func echo(_ context.Context, req Request, netns *os.File) Reply {
	out := append([]byte(nil), req.CNI.Stdin...)
	if netns != nil {
		b, err := io.ReadAll(netns)
		if err != nil {
			return Reply{Error: err.Error()}
		}
		out = append(out, b...)
	}
	return Reply{Output: out}
}

func TestCallBringsRequestAndFile(t *testing.T) {
	socket, _ := serveOn(t, echo)
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, []byte(" and a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 1 << 10, 1 << 20, 5 << 20} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		stdin := bytes.Repeat([]byte("x"), size)
		got, err := Call(t.Context(), socket, Request{Op: "cni", CNI: &CNI{Stdin: stdin}}, f)
		f.Close()
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		want := string(stdin) + " and a file"
		if string(got.Output) != want {
			t.Errorf("size %d: got %d bytes, want %d", size, len(got.Output), len(want))
		}
	}
}

func TestCallWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, socket := range []string{filepath.Join(dir, "none"), stale, dir, strings.Repeat("x", 200)} {
		_, err := Call(t.Context(), socket, Request{Op: "status"}, nil)
		if !errors.Is(err, ErrNoDaemon) {
			t.Errorf("socket %.20s: got %v, want ErrNoDaemon", socket, err)
		}
	}
}

// A daemon that dies over a request leaves its caller in the dark: ErrBroken.
func TestCallBroken(t *testing.T) {
	for _, answer := range []string{"", "\x00", "\x00\x00\x00\x09{}", "\x00\x00\x00\x02{]"} {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			_, _, _ = receive(conn)
			_, _ = conn.Write([]byte(answer))
			conn.Close()
		}()
		_, err = Call(t.Context(), socket, Request{Op: "status"}, nil)
		if !errors.Is(err, ErrBroken) {
			t.Errorf("answer %q: got %v, want ErrBroken", answer, err)
		}
		l.Close()
	}
}

func TestCallObeysContext(t *testing.T) {
	gone := make(chan struct{})
	socket, _ := serveOn(t, func(ctx context.Context, _ Request, _ *os.File) Reply {
		<-ctx.Done()
		close(gone)
		return Reply{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := Call(ctx, socket, Request{Op: "status"}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrBroken) {
		t.Errorf("got %v, want ErrBroken with the context's end", err)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the handler's context did not end when its caller hung up")
	}
}

func TestUndelivered(t *testing.T) {
	for _, tt := range []struct {
		name   string
		caller func(t *testing.T, conn *net.UnixConn, proceed func())
		want   bool
	}{
		{"killed before the reply", func(t *testing.T, conn *net.UnixConn, proceed func()) {
			conn.Close()
			proceed()
		}, true},
		{"killed with the reply unread", func(t *testing.T, conn *net.UnixConn, proceed func()) {
			proceed()
			waitReadable(t, conn)
			conn.Close()
		}, true},
		{"killed with the reply read, unacknowledged", func(t *testing.T, conn *net.UnixConn, proceed func()) {
			proceed()
			if _, _, err := receive(conn); err != nil {
				t.Error(err)
			}
			conn.Close()
		}, true},
		{"holds the reply", func(t *testing.T, conn *net.UnixConn, proceed func()) {
			proceed()
			if _, err := receiveReply(conn); err != nil {
				t.Error(err)
			}
			conn.Close()
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entered, leave := make(chan struct{}), make(chan struct{})
			undone := false
			socket, stop := serveOn(t, func(context.Context, Request, *os.File) Reply {
				close(entered)
				<-leave
				return Reply{Output: []byte("made"), Undelivered: func(ctx context.Context) { undone = ctx.Err() == nil }}
			})
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			if err := send(conn, []byte(`{"op":"cni"}`), nil); err != nil {
				t.Fatal(err)
			}
			<-entered
			tt.caller(t, conn, func() { close(leave) })
			stop()
			if undone != tt.want {
				t.Errorf("undone: got %v, want %v", undone, tt.want)
			}
		})
	}
}

func waitReadable(t *testing.T, conn *net.UnixConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
}

// The end of the daemon waits for the request in flight, and its caller gets the reply.
func TestServeEndsGracefully(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	socket, stop := serveOn(t, func(ctx context.Context, _ Request, _ *os.File) Reply {
		close(entered)
		<-leave
		if ctx.Err() != nil {
			return Reply{Error: "cut off"}
		}
		return Reply{Output: []byte("done")}
	})
	type answer struct {
		reply Reply
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := Call(t.Context(), socket, Request{Op: "status"}, nil)
		got <- answer{r, err}
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	waitRefused(t, socket)
	close(leave)
	a := <-got
	if a.err != nil || string(a.reply.Output) != "done" {
		t.Errorf("got %+v, %v", a.reply, a.err)
	}
	<-stopped
}

func waitRefused(t *testing.T, socket string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if c, err := net.Dial("unix", socket); err != nil {
			return
		} else {
			c.Close()
		}
	}
	t.Fatal("the listener stays open")
}

func TestServeRefusesMalformed(t *testing.T) {
	socket, _ := serveOn(t, func(context.Context, Request, *os.File) Reply {
		t.Error("the handler was called")
		return Reply{}
	})
	huge := binary.BigEndian.AppendUint32(nil, MaxMessage+1)
	for name, tt := range map[string]struct {
		wire []byte
		want string
	}{
		"too long": {huge, "message is longer than allowed"},
		"no JSON":  {[]byte("\x00\x00\x00\x02{]"), "decode request"},
		"cut off":  {[]byte("\x00\x00\x00\x09{}"), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(tt.wire); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			reply, err := receiveReply(conn)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(reply.Error, tt.want) {
				t.Errorf("got %q, want %q in it", reply.Error, tt.want)
			}
		})
	}
}

// A caller may send more descriptors than one: none may stay open.
func TestServeClosesSurplusFiles(t *testing.T) {
	socket, stop := serveOn(t, func(_ context.Context, _ Request, netns *os.File) Reply {
		return Reply{Output: []byte(netns.Name())}
	})
	before := openFiles(t)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"op":"x"}`)
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	rights := syscall.UnixRights(int(r.Fd()), int(w.Fd()), int(w.Fd()), int(w.Fd()))
	if _, _, err := conn.WriteMsgUnix(frame, rights, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := receiveReply(conn); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	r.Close()
	w.Close()
	stop()
	if diff := cmp.Diff(before-1, openFiles(t)); diff != "" { // the listener is closed too
		t.Errorf("open files (-want +got):\n%s", diff)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCallsInParallel(t *testing.T) {
	socket, _ := serveOn(t, echo)
	var calls sync.WaitGroup
	for i := range 128 {
		calls.Go(func() {
			want := bytes.Repeat([]byte{byte('a' + i%26)}, 1000+i)
			got, err := Call(t.Context(), socket, Request{Op: "cni", CNI: &CNI{Stdin: want}}, nil)
			if err != nil || !bytes.Equal(got.Output, want) {
				t.Errorf("call %d: %d bytes, %v", i, len(got.Output), err)
			}
		})
	}
	calls.Wait()
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ends := [2]*net.UnixConn{}
		for i, fd := range fds {
			file := os.NewFile(uintptr(fd), "socketpair")
			c, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			ends[i] = c.(*net.UnixConn)
			defer ends[i].Close()
		}
		go func() {
			_, _ = ends[0].Write(wire)
			_ = ends[0].CloseWrite()
		}()
		body, file, err := receive(ends[1])
		if file != nil {
			t.Error("a file out of nothing")
		}
		if err == nil && len(body) != int(binary.BigEndian.Uint32(wire)) {
			t.Errorf("%d bytes of %q", len(body), wire)
		}
	})
}

// A daemon that was stopped and continued served calls whose callers had given up: a late DEL could cut off
// a pod that the runtime had added since.
func TestCallerThatGaveUpIsNotServed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := send(conn, []byte(`{"op":"late"}`), nil); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan string, 2)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, func(_ context.Context, req Request, _ *os.File) Reply {
			served <- req.Op
			return Reply{}
		})
	}()
	if _, err := Call(t.Context(), socket, Request{Op: "next"}, nil); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(served)
	for op := range served {
		if op != "next" {
			t.Errorf("served %q", op)
		}
	}
}
