package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

const patienceOfTests = 20 * time.Second

// exchange makes one call, as the process does. Files take the place of the environment, standard input
// and standard output.
type exchange struct {
	env    []string
	stdin  io.Reader
	limit  patience
	stdout string
	Rest
	served bool
	status int
}

func (e *exchange) run(t testing.TB) {
	t.Helper()
	environ := filepath.Join(t.TempDir(), "environ")
	if err := os.WriteFile(environ, []byte(strings.Join(e.env, "\x00")+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, feed := pipe(t)
	read, out := pipe(t)
	go func() {
		_, _ = io.Copy(feed, e.stdin)
		feed.Close()
	}()
	printed := make(chan string)
	go func() {
		b, _ := io.ReadAll(read)
		printed <- string(b)
	}()
	c := &call{in: int(in.Fd()), out: int(out.Fd()), limit: e.limit}
	if c.limit == (patience{}) {
		c.limit = usual
	}
	e.served = c.serve(environ + "\x00")
	c.close()
	in.Close() // ends a feed that nobody reads
	out.Close()
	e.stdout, e.Rest, e.status = <-printed, c.Rest, c.status
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// listen makes a socket, and calls serve with each connection.
func listen(t testing.TB, serve func(conn *net.UnixConn)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return path
}

// daemon serves requests as edgewayd does.
func daemon(t testing.TB, h api.Handler) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func conf(socket string) string { return fmt.Sprintf(`{"name":"net","socket": %q}`, socket) }

// The daemon receives the whole call of the runtime, and the runtime receives the answer of the daemon.
func TestForward(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, []byte("the namespace"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got api.CNI
	var brought string
	failed := false
	socket := daemon(t, func(_ context.Context, req api.Request, netns *os.File) api.Reply {
		got, brought = *req.CNI, ""
		if netns != nil {
			b, _ := io.ReadAll(netns)
			brought = string(b)
		}
		return api.Reply{Output: append(bytes.Repeat([]byte("y"), len(got.Stdin)), '\n'), Failed: failed}
	})
	for _, size := range []int{0, 1, 1000, 40 << 10} {
		for _, failed = range []bool{false, true} {
			stdin := conf(socket) + strings.Repeat(" ", size)
			e := exchange{stdin: strings.NewReader(stdin), env: []string{
				"PATH=/bin", "CNI_COMMAND=ADD", "HOME=/", "CNI_CONTAINERID=c1", "CNI_NETNS=" + file, "CNI_IFNAME=eth0",
				"CNI_ARGS=A=B;C=D", "CNI_PATH=/opt/cni/bin", "CNI_OTHER=x", "CNI_NETNS=/second"}}
			e.run(t)
			want := api.CNI{Command: "ADD", ContainerID: "c1", Netns: file, IfName: "eth0", Args: "A=B;C=D", Path: "/opt/cni/bin", Stdin: []byte(stdin), Socket: socket}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("size %d (-want +got):\n%s", size, diff)
			}
			status := map[bool]int{true: 1}[failed]
			if !e.served || e.status != status || e.stdout != strings.Repeat("y", len(stdin))+"\n" || brought != "the namespace" {
				t.Errorf("size %d: served %v, status %d, %d bytes, namespace %q", size, e.served, e.status, len(e.stdout), brought)
			}
		}
	}
	failed = false
	e := exchange{env: []string{"CNI_COMMAND=GC", "CNI_NETNS="}, stdin: strings.NewReader(conf(socket))}
	if e.run(t); !e.served || brought != "" || got.Command != "GC" {
		t.Errorf("without a namespace: %+v", e)
	}
	// Standard input may arrive in pieces.
	r, w := io.Pipe()
	go func() {
		for _, b := range []byte(conf(socket)) {
			_, _ = w.Write([]byte{b})
		}
		w.Close()
	}()
	e = exchange{env: []string{"CNI_COMMAND=GC"}, stdin: r}
	if e.run(t); !e.served || string(got.Stdin) != conf(socket) {
		t.Errorf("in pieces: %+v", e)
	}
}

// An unusual call is left to the program, with all input that was read. Nothing is printed.
func TestLeft(t *testing.T) {
	asked := 0
	socket := daemon(t, func(context.Context, api.Request, *os.File) api.Reply {
		asked++
		return api.Reply{Error: "go another way"}
	})
	verb, ok := "CNI_COMMAND=ADD", conf(socket)
	for _, tt := range []struct {
		name, stdin string
		env         []string
		asked       int
	}{
		{"refused", ok, []string{verb}, 1},
		{"no verb", ok, nil, 0},
		{"empty verb", ok, []string{"CNI_COMMAND="}, 0},
		{"VERSION", ok, []string{"CNI_COMMAND=VERSION"}, 0},
		{"empty input", "", []string{verb}, 0},
		{"no daemon", conf(socket + "x"), []string{verb}, 0},
		{"relative namespace", ok, []string{verb, "CNI_NETNS=x"}, 0},
		{"missing namespace", ok, []string{verb, "CNI_NETNS=/none"}, 0},
		{"relative socket", conf("sock"), []string{verb}, 0},
		{"socket is a number", `{"socket":7}`, []string{verb}, 0},
		{"socket cut short", `{"socket":"/x`, []string{verb}, 0},
		{"socket with an escape", `{"socket":"/\u0078"}`, []string{verb}, 0},
		{"socket of another character", `{"socket":"/é"}`, []string{verb}, 0},
		{"socket too long", conf("/" + strings.Repeat("x", 107)), []string{verb}, 0},
		{"socket twice", `{"socket":"` + socket + `","x":{"socket":"/y"}}`, []string{verb}, 0},
		{"socket is a value", `{"x":["socket"]}`, []string{verb}, 0},
		{"ends at the key", `"socket"`, []string{verb}, 0},
		{"ends at the colon", `"socket" : `, []string{verb}, 0},
		{"huge input", ok + strings.Repeat(" ", 64<<10), []string{verb}, 0},
		{"huge environment", ok, []string{verb, "X=" + strings.Repeat("x", 64<<10)}, 0},
		{"no room for the path", ok + strings.Repeat(" ", 64<<10-len("....m"+verb+"..")-len(ok)-2), []string{verb}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked = 0
			e := exchange{env: tt.env, stdin: strings.NewReader(tt.stdin)}
			e.run(t)
			if e.served || e.Begun || e.Silent || e.stdout != "" || asked != tt.asked || !strings.HasPrefix(tt.stdin, string(e.Stdin)) {
				t.Errorf("served %v, begun %v, silent %v, printed %q, asked %d times, %d of %d bytes left", e.served, e.Begun, e.Silent, e.stdout, asked, len(e.Stdin), len(tt.stdin))
			}
			if tt.asked == 1 && string(e.Stdin) != tt.stdin {
				t.Errorf("left %q, want all of %q", e.Stdin, tt.stdin)
			}
		})
	}
}

// If a daemon takes the call and does not answer, the effect of the call is not known. The Rest says so.
func TestBroken(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		begun        bool
	}{
		{"hangs up", "", true},
		{"half a length", "\x00\x00", true},
		{"half an answer", "\x00\x00\x00\x09\x00{}", true},
		{"empty answer", "\x00\x00\x00\x00", true},
		{"endless answer", "\xff\xff\xff\xff\x00", true},
		{"an older daemon", "\x00\x00\x00\x15{\"error\":\"decode it\"}", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := listen(t, func(conn *net.UnixConn) {
				receive(t, conn)
				_, _ = conn.Write([]byte(tt.answer))
			})
			e := exchange{env: []string{"CNI_COMMAND=ADD"}, stdin: strings.NewReader(conf(socket))}
			if e.run(t); e.served || e.Begun != tt.begun || e.Silent || e.stdout != "" || string(e.Stdin) != conf(socket) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// receive reads one request.
func receive(t testing.TB, conn *net.UnixConn) {
	t.Helper()
	var length [lengthBytes]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		t.Error(err)
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(length[:]))); err != nil {
		t.Error(err)
	}
}

// Each wait ends: for standard input, for a daemon that does not read the call, and for the answer.
func TestPatience(t *testing.T) {
	short := patience{stdin: 1, answer: 1, print: 1}
	gone := make(chan struct{})
	t.Cleanup(func() { close(gone) })
	t.Run("standard input stays open", func(t *testing.T) {
		socket := daemon(t, func(context.Context, api.Request, *os.File) api.Reply { return api.Reply{} })
		r, w := io.Pipe()
		defer w.Close()
		go func() { _, _ = io.WriteString(w, conf(socket)) }()
		e := exchange{env: []string{"CNI_COMMAND=ADD"}, stdin: r, limit: short}
		done := make(chan struct{})
		go func() {
			e.run(t)
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(patienceOfTests):
			t.Fatal("the wait does not end")
		}
		if e.served || e.Begun || string(e.Stdin) != conf(socket) {
			t.Errorf("%+v", e)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		socket := listen(t, func(conn *net.UnixConn) { <-gone })
		e := exchange{env: []string{"CNI_COMMAND=ADD"}, stdin: strings.NewReader(conf(socket)), limit: short}
		if e.run(t); e.served || !e.Begun || !e.Silent {
			t.Errorf("%+v", e)
		}
	})
	t.Run("nobody accepts", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "sock")
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Listen(fd, 0); err != nil {
			t.Fatal(err)
		}
		waiting, err := net.Dial("unix", path) // fills the queue
		if err != nil {
			t.Fatal(err)
		}
		defer waiting.Close()
		e := exchange{env: []string{"CNI_COMMAND=ADD"}, stdin: strings.NewReader(conf(path))}
		if e.run(t); e.served || e.Begun {
			t.Errorf("%+v", e)
		}
	})
}

// A result that could not be printed is not acknowledged, and the daemon undoes the call.
func TestUndelivered(t *testing.T) {
	undone := make(chan struct{})
	socket := daemon(t, func(context.Context, api.Request, *os.File) api.Reply {
		return api.Reply{Output: []byte("made"), Undelivered: func(context.Context) { close(undone) }}
	})
	environ := filepath.Join(t.TempDir(), "environ")
	if err := os.WriteFile(environ, []byte("CNI_COMMAND=ADD\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, feed := pipe(t)
	if _, err := io.WriteString(feed, conf(socket)); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &call{in: int(in.Fd()), out: int(full.Fd()), limit: usual}
	if !c.serve(environ+"\x00") || c.status != 1 {
		t.Errorf("the call was not served, or its status is %d; want 1", c.status)
	}
	select {
	case <-undone: // before the plugin ends
	default:
		t.Error("the call is not undone when serve returns")
	}
	c.close()
	in.Close()
	full.Close()
}

// A Go program sees a closed standard output as /dev/null. A call whose result nobody can read must not make
// anything.
func TestClosedStandardOutput(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := &call{out: int(null.Fd())}
	if c.printable() {
		t.Error("/dev/null is taken for a usable standard output")
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	if c.out = int(zero.Fd()); !c.printable() {
		t.Error("/dev/zero is taken for /dev/null")
	}
}

// The package has its own copies of the kernel's numbers and structures.
func TestNumbers(t *testing.T) {
	for name, pair := range map[string][2]uintptr{
		"read": {sysRead, syscall.SYS_READ}, "write": {sysWrite, syscall.SYS_WRITE}, "close": {sysClose, syscall.SYS_CLOSE},
		"socket": {sysSocket, syscall.SYS_SOCKET}, "connect": {sysConnect, syscall.SYS_CONNECT}, "sendmsg": {sysSendmsg, syscall.SYS_SENDMSG}, "shutdown": {sysShutdown, syscall.SYS_SHUTDOWN}, "SHUT_WR": {shutWR, syscall.SHUT_WR},
		"exit_group": {sysExitGroup, syscall.SYS_EXIT_GROUP}, "openat": {sysOpenat, syscall.SYS_OPENAT}, "ppoll": {sysPpoll, syscall.SYS_PPOLL},
		"EINTR": {eintr, uintptr(syscall.EINTR)}, "EAGAIN": {eagain, uintptr(syscall.EAGAIN)},
		"O_NONBLOCK": {oNonblock, syscall.O_NONBLOCK}, "O_CLOEXEC": {oCloexec, syscall.O_CLOEXEC}, "AF_UNIX": {afUnix, syscall.AF_UNIX},
		"SOCK_STREAM": {sockStream, syscall.SOCK_STREAM}, "SOL_SOCKET": {solSocket, syscall.SOL_SOCKET}, "SCM_RIGHTS": {scmRights, syscall.SCM_RIGHTS},
		"MSG_NOSIGNAL": {msgNosignal, syscall.MSG_NOSIGNAL}, "S_IFMT": {sIFMT, syscall.S_IFMT}, "S_IFCHR": {sIFCHR, syscall.S_IFCHR},
		"timespec":    {unsafe.Sizeof(process.patience), unsafe.Sizeof(syscall.Timespec{})},
		"sockaddr_un": {unsafe.Sizeof(process.address), unsafe.Sizeof(syscall.RawSockaddrUnix{})},
		"msghdr":      {unsafe.Sizeof(process.message), unsafe.Sizeof(syscall.Msghdr{})},
		"msg_control": {unsafe.Offsetof(process.message.control), unsafe.Offsetof(syscall.Msghdr{}.Control)},
		"iovec":       {unsafe.Sizeof(process.vector), unsafe.Sizeof(syscall.Iovec{})},
		"cmsghdr":     {unsafe.Offsetof(process.rights.fd), unsafe.Sizeof(syscall.Cmsghdr{})},
		"statx":       {unsafe.Sizeof(process.stat), 256},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %d, want %d", name, pair[0], pair[1])
		}
	}
	if defaultSocket != api.DefaultSocket || maxAnswer != api.MaxMessage {
		t.Error("defaultSocket or maxAnswer differs from daemon/api")
	}
}

// The executable forwards the call before it initialises the packages that it links. Exceptions are the
// packages of the runtime, and two packages that ask the processor about its features.
func TestOrder(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "edgeway")
	build := exec.Command("go", "build", "-o", exe, "github.com/edgeway-cni/edgeway/plugin/edgeway")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{"GODEBUG=inittrace=1"}
	out, _ := cmd.CombinedOutput() // the command fails because there is no verb
	var before, after []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "init" {
			continue
		}
		if f[1] == "github.com/edgeway-cni/edgeway/plugin/forward" || len(after) > 0 {
			after = append(after, f[1])
		} else {
			before = append(before, f[1])
		}
	}
	allowed := []string{"internal/bytealg", "internal/runtime/gc/scan", "runtime", "crypto/internal/fips140deps/cpu", "math", "errors"}
	for _, p := range before {
		if !slices.Contains(allowed, p) {
			t.Errorf("%s is initialised before the call is forwarded", p)
		}
	}
	for _, p := range []string{"os", "net", "github.com/mdlayher/netlink"} {
		if !slices.Contains(after, p) {
			t.Errorf("%s is not initialised after the call is forwarded: before %v, after %v", p, before, after)
		}
	}
}
