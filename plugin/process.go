package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

const (
	// maxStdin bounds the configuration: a GC list of ten thousand pods fits. Base64 on the
	// socket makes four bytes of three.
	maxStdin = api.MaxMessage / 2
	// stdinTimeout bounds the wait for a runtime that does not close its end.
	stdinTimeout = 30 * time.Second
	// answerPatience is how long a daemon may take for a call: a verb and its undoing.
	answerPatience = verbTimeout + undoTimeout + 10*time.Second
	// storePatience is how long daemon and store are tried in turn: a daemon that starts or
	// stops holds the store for a moment without an answer on its socket.
	storePatience = 8 * time.Second
	// storeTry is one wait for the store's lock.
	storeTry = 2 * time.Second
	// queuePatience bounds the wait behind other executables: without a daemon one is served at
	// a time, in some 20 ms.
	queuePatience = 30 * time.Second
	queueFile     = "plugin.lock"
)

// Process is one invocation of the executable.
type Process struct {
	Getenv func(string) string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer // a delegated plugin's; nothing else is written there
	// Begun: a daemon took the call already and went away. What it did is not known.
	Begun bool
	// Silent: it has not gone away, but did not answer in time. It is not asked again.
	Silent bool
}

// Run serves the invocation and returns its exit status: it asks the daemon, and when none
// answers runs the verb on the store itself. Standard output gets one JSON value or nothing.
func (p Process) Run(ctx context.Context) (status int) {
	c := caller{stderr: p.Stderr, begun: p.Begun, silent: p.Silent}
	defer c.close()
	version, reply, err := c.run(ctx, p)
	if err != nil {
		reply = errorReply(version, err)
	}
	if len(reply.Output) == 0 {
		return 0
	}
	if _, err := p.Stdout.Write(reply.Output); err != nil {
		if reply.Undelivered != nil {
			reply.Undelivered(context.WithoutCancel(ctx))
		}
		return 1
	}
	if reply.Failed {
		return 1
	}
	return 0
}

// run checks the input, so that nobody is asked about a call that cannot succeed, and has the
// call served.
func (c *caller) run(ctx context.Context, p Process) (version string, reply api.Reply, err error) {
	cni := api.CNI{
		Command: p.Getenv("CNI_COMMAND"), ContainerID: p.Getenv("CNI_CONTAINERID"), Netns: p.Getenv("CNI_NETNS"),
		IfName: p.Getenv("CNI_IFNAME"), Args: p.Getenv("CNI_ARGS"), Path: p.Getenv("CNI_PATH"),
	}
	verb, ok := verbs[cni.Command]
	if !ok && cni.Command != "VERSION" {
		return "", reply, badCommand(cni.Command)
	}
	if cni.Stdin, err = readStdin(ctx, p.Stdin); err != nil {
		return "", reply, err
	}
	if cni.Command == "VERSION" {
		return probeVersion(cni.Stdin)
	}
	c.conf, err = parseConf(cni.Stdin)
	version = c.conf.answerVersion()
	if err != nil {
		return version, reply, err
	}
	c.call = Call{CNI: cni}
	netns, nerr := OpenNetns(cni.Netns)
	if nerr == nil && netns != nil {
		defer netns.Close()
		c.call.NetnsFile = netns
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return version, reply, fault(codeIO, "open the host's network namespace: %w", err).next("mount /proc")
	}
	defer home.Close()
	err = verb.admits(newRequest(c.call, c.conf), home)
	if err != nil && nerr != nil {
		err = nerr // says more than that there is none
	}
	if err != nil {
		return version, reply, err
	}
	reply, err = c.serve(ctx)
	return version, reply, unavailable(cni.Command, err)
}

// readStdin reads the configuration whole, within bounds of size and time.
func readStdin(ctx context.Context, r io.Reader) ([]byte, error) {
	type input struct {
		b   []byte
		err error
	}
	got := make(chan input, 1)
	go func() { // a read that never ends ends with the process
		b, err := io.ReadAll(io.LimitReader(r, maxStdin+1))
		got <- input{b, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, stdinTimeout)
	defer cancel()
	select {
	case in := <-got:
		switch {
		case in.err != nil:
			return nil, fault(codeIO, "read standard input: %w", in.err).next("the runtime must pass the network configuration on standard input")
		case len(in.b) > maxStdin:
			return nil, fault(codeIO, "standard input is longer than %d bytes", maxStdin).next("make the network configuration smaller")
		}
		return in.b, nil
	case <-ctx.Done():
		return nil, fault(codeIO, "read standard input: %w", context.Cause(ctx)).next("the runtime must close standard input after the network configuration")
	}
}

// caller finds somebody to serve one call.
type caller struct {
	call          Call
	conf          conf
	begun, silent bool // Process.Begun, Process.Silent
	stderr        io.Writer
	// store and node are this process's own, once it serves the call itself.
	store *ipam.Store
	node  *Node
	queue *os.File
}

func (c *caller) close() {
	if c.node != nil {
		_ = c.node.Close()
	}
	if c.store != nil {
		_ = c.store.Close()
	}
	if c.queue != nil {
		_ = c.queue.Close()
	}
}

// stand waits for this executable's turn among those that serve themselves. They must not all
// poll the store's lock: two cores that poll for sixty serve nobody. flock(2) blocks in turn.
func (c *caller) stand(ctx context.Context) error {
	if c.queue != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(c.conf.dataDir(), queueFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil // the store says what is wrong with its directory
	}
	got := make(chan error, 1)
	go func() { // a wait that is given up ends with the process
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for err == unix.EINTR {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		got <- err
	}()
	ctx, cancel := context.WithTimeout(ctx, queuePatience)
	defer cancel()
	select {
	case err := <-got:
		c.queue = f
		return err
	case <-ctx.Done():
		return fault(codeTryAgain, "wait for other calls of the plugin on %s: %w", f.Name(), context.Cause(ctx)).next("find the call that hangs with fuser %s", f.Name())
	}
}

func (c *caller) serve(ctx context.Context) (api.Reply, error) {
	// An IPAM plugin is executed where the runtime's paths are true, and the store is not asked.
	if c.conf.delegated() {
		return c.direct(ctx)
	}
	deadline := time.Time{}
	for {
		reply, err := c.ask(ctx)
		switch {
		case err == nil:
			return reply, nil
		case errors.Is(err, api.ErrBroken):
			c.begun = true
		case !errors.Is(err, api.ErrNoDaemon):
			return reply, fault(codeTryAgain, "%w", err).next("look at edgewayd status and its log")
		}
		if ctx.Err() != nil {
			return reply, fault(codeTryAgain, "%w", err).next("the call was ended from outside")
		}
		if deadline.IsZero() {
			c.cutEarly(ctx)
			if err := c.stand(ctx); err != nil {
				return reply, err
			}
			deadline = time.Now().Add(storePatience)
			continue // the turn may have been long in coming: a daemon may be there
		}
		reply, err = c.local(ctx)
		if !errors.Is(err, ipam.ErrLocked) || time.Now().After(deadline) {
			return reply, err
		}
	}
}

// cutEarly removes the host's end for a DEL that has to wait for its turn: the twenty milliseconds
// that the kernel takes for it pass beside those of others. DEL removes it again, and says what
// goes wrong.
func (c *caller) cutEarly(ctx context.Context) {
	if c.call.Command != "DEL" || c.conf.ipamOnly() {
		return
	}
	node, err := NewNode(nil)
	if err != nil {
		return
	}
	defer node.Close()
	host, done, err := node.host()
	if err != nil {
		return
	}
	defer done()
	_ = deleteLinks(ctx, host, newRequest(c.call, c.conf).hostLink())
}

// errRefused: the daemon answered, but did not serve.
var errRefused = errors.New("the daemon refused the call")

// ask passes the call to the daemon. A daemon that went away over an earlier try may have left
// half an attachment, which DEL removes.
func (c *caller) ask(ctx context.Context) (reply api.Reply, err error) {
	if c.silent {
		return reply, fmt.Errorf("%w on %s: it took the call and is silent", api.ErrBroken, c.conf.socket())
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	defer func() { c.silent = errors.Is(err, context.DeadlineExceeded) }()
	for _, cni := range c.steps() {
		reply, err = api.Call(ctx, c.conf.socket(), api.Request{Op: "cni", CNI: &cni}, c.call.NetnsFile)
		if err != nil {
			return reply, err
		}
		if reply.Error != "" {
			return reply, fmt.Errorf("%w: %s", errRefused, reply.Error)
		}
	}
	if c.call.Command == "ADD" && !reply.Failed {
		reply.Undelivered = func(ctx context.Context) {
			del := c.call.CNI
			del.Command = "DEL"
			// What is left over a failure is found by the runtime's DEL.
			_, _ = api.Call(ctx, c.conf.socket(), api.Request{Op: "cni", CNI: &del}, nil)
		}
	}
	return reply, nil
}

// steps are the calls to make: the one that was asked for, after a DEL where an ADD had begun.
func (c *caller) steps() []api.CNI {
	if c.begun && c.call.Command == "ADD" {
		del := c.call.CNI
		del.Command = "DEL"
		return []api.CNI{del, c.call.CNI}
	}
	return []api.CNI{c.call.CNI}
}

// local runs the verb in this process, on the store.
func (c *caller) local(ctx context.Context) (reply api.Reply, err error) {
	path := filepath.Join(c.conf.dataDir(), StoreFile)
	if c.call.Command != "ADD" {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return c.direct(ctx)
		}
	}
	if c.store, err = OpenStore(ctx, path, storeTry); err != nil {
		return reply, err
	}
	return c.direct(ctx)
}

// direct runs the steps on a Node of this process.
func (c *caller) direct(ctx context.Context) (reply api.Reply, err error) {
	if c.node, err = NewNode(c.store); err != nil {
		return reply, err
	}
	c.node.unborn, c.node.stderr = c.store == nil, c.stderr
	for _, cni := range c.steps() {
		reply = c.node.Do(ctx, Call{CNI: cni, NetnsFile: c.call.NetnsFile})
	}
	return reply, nil
}
