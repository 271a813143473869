//go:build amd64 || arm64

// Package forward passes a call of the plugin to the node's daemon before anything else of the program
// has run. It owns that one exchange: it sends the runtime's variables, standard input and the pod's
// network namespace, prints the answer, and ends the process. It never decodes JSON. Of the verbs it
// knows only that VERSION needs no daemon and that STATUS is quick. An unusual call is left to the rest
// of the program, which asks the daemon again, serves the call itself, or explains why nobody can:
//
//	left := forward.Left() // reached only when the call was not served
//	plugin.Process{Begun: left.Begun, ...}.Run(ctx)
//
// The executable links all that it needs to serve a call without a daemon. Initialising those packages
// costs more than half of a forwarded ADD. The Go specification ("Program execution") sorts packages by
// import path, and repeatedly initialises the first package whose imports are initialised. This package
// imports nothing but runtime and unsafe, so it is ready from the start, and "github.com" sorts before
// "internal", "net", "os", "reflect", "sync", "syscall" and "time". So it does its work while its
// variables are initialised. A test checks the order.
//
// On the wire (numbers are big endian; daemon/api has the other end):
//
//	caller                                                  daemon
//	  length, 0x01, NAME=VALUE NUL ..., NUL,
//	  standard input, NUL, path of the socket (+ netns) ---->
//	                                         <---- length, exit status (0 or 1), standard output
//	  0x06, once the answer is printed ---------------------> end of file instead: the call is undone
//
// An answer with another first byte than 0 or 1 is a refusal: the daemon did nothing.
package forward

import (
	"runtime"
	"unsafe"
)

const (
	// mark is the first byte of a forwarded call. JSON never begins with this byte.
	mark = 0x01
	// acknowledged is sent once the answer is printed (ASCII ACK).
	acknowledged = 0x06
	// lengthBytes is the size of the length in front of each message.
	lengthBytes = 4
	// maxAnswer bounds the daemon's answer in bytes (daemon/api: MaxMessage).
	maxAnswer = 8 << 20

	// soon is how long the plugin waits for the answer, in nanoseconds, before it prepares for a longer
	// wait.
	soon = 1_000_000

	defaultSocket = "/run/edgeway/edgewayd.sock" // daemon/api: DefaultSocket
	// socketKey is the key of the network configuration that names the socket.
	socketKey = `"socket"`
)

// usual is the limit of all waits of a step together, in seconds.
var usual = patience{
	stdin:  2,  // the rest of the program waits for a slower runtime
	answer: 30, // sending and the answer together; plugin.answerPatience says why
	print:  10, // the pipe may be full
}

// statusAnswer is the limit of an answer to STATUS, in seconds: runtimes call STATUS every few seconds.
const statusAnswer = 5

type patience struct{ stdin, answer, print int64 }

// Rest tells the rest of the program about a call that was not served.
type Rest struct {
	// Stdin was read from standard input.
	Stdin []byte
	// Begun: a daemon took the call and did not answer. The effect of the call is not known.
	Begun bool
	// Silent: a daemon is still connected, and has not read the call, or has not answered the call in time.
	Silent bool
}

// Left returns the Rest of this process's call.
func Left() Rest { return left }

// left is read-only afterwards.
var left = func() Rest {
	process.out, process.limit = 1, usual
	if process.serve("/proc/self/environ\x00") {
		exit(process.status)
	}
	process.close()
	return process.Rest
}()

// process is the call of this process. It lies in memory that the program has anyway, as does all that
// one step leaves for the next. With larger frames the goroutine would need a larger stack, which costs
// eleven page faults.
var process call

type call struct {
	Rest
	in, out   int // standard input and output
	limit     patience
	request   []byte
	socket    []byte // path of the daemon's socket, in the request or in this program
	namespace *byte  // the path of the pod's network namespace with a final NUL; nil: none
	netns     int    // the open namespace, or -1
	daemon    int    // the connection, or -1
	answer    []byte
	status    int
	// processors is the GOMAXPROCS to restore for the rest of the program; 0: it was not changed.
	processors int
	kernel
	// buffer holds the whole of a usual call and of its answer. Only the pages that are used cost memory.
	buffer [64 << 10]byte
}

// serve reports whether the daemon served the call and the answer was printed or could not be printed.
// environ is the path of the process's environment, with a final NUL.
func (c *call) serve(environ string) bool {
	c.netns, c.daemon = -1, -1
	return c.variables(environ) && c.printable() && c.readStdin() && c.findSocket() && c.connect() && c.send() && c.receive() && c.print()
}

func (c *call) close() {
	if c.processors > 0 {
		runtime.GOMAXPROCS(c.processors)
	}
	closeFile(c.netns)
	closeFile(c.daemon)
}

// variables starts the request with the CNI variables. A call without a verb comes from a person, and
// VERSION needs no daemon. The environment is read from the kernel (proc(5)), because package syscall makes
// a map of the environment.
func (c *call) variables(environ string) bool {
	fd, errno := open(unsafe.StringData(environ))
	if errno != 0 {
		return false
	}
	c.request = append(c.buffer[:lengthBytes], mark)
	rest := c.buffer[len(c.request) : len(c.buffer)-1]
	n, errno := read(fd, rest)
	closeFile(fd)
	if errno != 0 || n == 0 || n == len(rest) || rest[n-1] != 0 {
		return false
	}
	verb := false
	for rest = rest[:n]; len(rest) > 0; {
		v := rest[:index(rest, "\x00")+1]
		rest = rest[len(v):]
		if hasPrefix(v, "CNI_") {
			at := len(c.request)
			c.request = append(c.request, v...) // writes at v's place or before it
			verb = c.notice(c.request[at:]) || verb
		}
	}
	c.request = append(c.request, 0)
	return verb && (c.namespace == nil || *c.namespace == '/') // the program explains a relative path
}

// notice records what this package needs of one variable, which ends in NUL. It reports whether the
// variable is a verb for the daemon.
func (c *call) notice(variable []byte) (verb bool) {
	const command, namespace = "CNI_COMMAND=", "CNI_NETNS="
	if c.namespace == nil && hasPrefix(variable, namespace) && len(variable) > len(namespace)+1 {
		c.namespace = &variable[len(namespace)]
	}
	if hasPrefix(variable, command+"STATUS\x00") {
		c.limit.answer = min(c.limit.answer, statusAnswer)
	}
	return hasPrefix(variable, command) && len(variable) > len(command)+1 && !hasPrefix(variable, command+"VERSION\x00")
}

// printable reports that standard output is not /dev/null. The Go runtime opens /dev/null in the place of
// a closed descriptor (runtime/fds_unix.go), and the program tells the two apart.
func (c *call) printable() bool {
	major, minor, device, errno := c.device(c.out)
	return errno == 0 && !(device && major == 1 && minor == 3) // linux/Documentation/admin-guide/devices.txt
}

// readStdin appends standard input to the request.
func (c *call) readStdin() bool {
	begin, end := len(c.request), len(c.request)
	c.patience.seconds = c.limit.stdin
	for {
		c.Stdin, c.request = c.buffer[begin:end:end], c.buffer[:end]
		if end == len(c.buffer) || !c.wait(c.in, pollIn) {
			return false
		}
		n, errno := read(c.in, c.buffer[end:])
		switch {
		case errno == eintr || errno == eagain:
		case errno != 0:
			return false
		case n == 0:
			return len(c.Stdin) > 0
		}
		end += n
	}
}

// findSocket finds the daemon's socket by the bytes of its key alone, so the value may belong to another
// key. The daemon decodes the configuration, and refuses a call that came by a socket which the
// configuration does not name. Anything but one plain absolute path is left to the program.
func (c *call) findSocket() bool {
	at := index(c.Stdin, socketKey)
	if at < 0 {
		c.socket = unsafe.Slice(unsafe.StringData(defaultSocket), len(defaultSocket))
		return true
	}
	rest := skip(c.Stdin[at+len(socketKey):])
	if len(rest) == 0 || rest[0] != ':' || index(rest, socketKey) >= 0 {
		return false
	}
	rest = skip(rest[1:])
	if len(rest) < 2 || rest[0] != '"' || rest[1] != '/' {
		return false
	}
	for i, b := range rest[1:] {
		switch {
		case b == '"':
			c.socket = rest[1 : 1+i]
			return i < maxPath
		case b == '\\' || b < ' ' || b > '~':
			return false
		}
	}
	return false
}

// connect completes the request and opens the namespace and the connection.
func (c *call) connect() bool {
	if len(c.request)+1+len(c.socket) > len(c.buffer) {
		return false
	}
	c.request = append(append(c.request, 0), c.socket...)
	n := len(c.request) - lengthBytes
	c.request[0], c.request[1], c.request[2], c.request[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	var errno uintptr
	if c.namespace != nil {
		if c.netns, errno = open(c.namespace); errno != 0 {
			c.netns = -1
			return false
		}
	}
	c.daemon, errno = c.dial(c.socket)
	return errno == 0
}

// send sends the whole request; the namespace goes with the first byte. The daemon never acts on part of
// a request.
func (c *call) send() bool {
	c.patience.seconds = c.limit.answer
	for message, netns := c.request, c.netns; len(message) > 0; {
		n, errno := c.sendmsg(c.daemon, message, netns)
		switch {
		case errno == eintr:
		case errno == eagain:
			if c.Silent = !c.wait(c.daemon, pollOut); c.Silent {
				return false
			}
		case errno != 0:
			return false
		default:
			message, netns = message[n:], -1
		}
	}
	c.Begun = true
	return true
}

func (c *call) receive() bool {
	left := c.patience
	if c.patience.seconds, c.patience.nanoseconds = 0, soon; !c.wait(c.daemon, pollIn) {
		// With one processor, blocked in a system call, the runtime's monitor sleeps. With a second
		// processor the monitor wakes up every 20 microseconds to look for work (runtime/proc.go:
		// sysmon).
		c.processors = runtime.GOMAXPROCS(1)
	}
	c.patience = left
	got, want := 0, lengthBytes+1
	c.answer = c.buffer[len(c.request):]
	if len(c.answer) < want {
		c.answer = make([]byte, want)
	}
	for got < want {
		if !c.wait(c.daemon, pollIn) {
			c.Silent = true
			return false
		}
		n, errno := read(c.daemon, c.answer[got:])
		if errno == eintr || errno == eagain {
			continue
		}
		if errno != 0 || n == 0 {
			return false
		}
		if got += n; got >= lengthBytes {
			a := c.answer
			size := int(a[0])<<24 | int(a[1])<<16 | int(a[2])<<8 | int(a[3])
			if size == 0 || size > maxAnswer {
				return false
			}
			if want = lengthBytes + size; want > len(a) {
				c.answer = make([]byte, want)
				copy(c.answer, a[:got])
			}
		}
	}
	c.status, c.answer = int(c.answer[lengthBytes]), c.answer[lengthBytes+1:want]
	if c.status > 1 {
		c.Begun = false // a refusal
		return false
	}
	return true
}

// print writes the answer to standard output and acknowledges the answer. Without the acknowledgement
// the daemon undoes the call.
func (c *call) print() bool {
	c.patience.seconds = c.limit.print
	for len(c.answer) > 0 {
		n, errno := write(c.out, c.answer)
		switch {
		case errno == eintr || errno == eagain && c.wait(c.out, pollOut):
		case errno != 0:
			c.status = 1
			c.hangUp()
			return true
		default:
			c.answer = c.answer[n:]
		}
	}
	// If the daemon has ended by now, the acknowledgement is lost, but then nobody waits for it.
	c.buffer[0] = acknowledged
	_, _ = c.sendmsg(c.daemon, c.buffer[:1], -1)
	return true
}

// hangUp ends the call without the acknowledgement, and waits until the daemon has undone the call.
func (c *call) hangUp() {
	shutdown(c.daemon)
	c.patience.seconds = c.limit.answer
	for c.wait(c.daemon, pollIn) {
		if n, errno := read(c.daemon, c.buffer[:1]); n == 0 || errno != 0 && errno != eintr {
			return
		}
	}
}

// Importing strings or bytes would initialise those packages first.

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// index returns the offset of s in b, or -1.
func index(b []byte, s string) int {
	for i := 0; i+len(s) <= len(b); i++ {
		if string(b[i:i+len(s)]) == s {
			return i
		}
	}
	return -1
}

// skip drops leading JSON white space (RFC 8259, section 2).
func skip(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\n' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}
