package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

const (
	// maxStdin bounds the configuration in bytes: a GC list of ten thousand pods fits. Base64 on the
	// socket makes four bytes of three.
	maxStdin = api.MaxMessage / 2
	// stdinTimeout bounds the wait for a runtime that does not close its end of standard input.
	stdinTimeout = 30 * time.Second
	// answerPatience is how long the plugin waits for a daemon to take a call and to answer it (also
	// plugin/forward: usual). A busy daemon answers a hundred ADDs in a few seconds; one that needs longer
	// is stopped or stuck. The kubelet gives up after two minutes.
	answerPatience = 30 * time.Second
	// callTimeout bounds a whole call once its configuration was read: the answer of a daemon, then the verb
	// without a daemon. The undo of an ADD takes undoTimeout more.
	callTimeout = answerPatience + verbTimeout
	// statusPatience is how long STATUS may take: runtimes call it every few seconds.
	statusPatience = 5 * time.Second
	// storePatience bounds the wait for the store. Other executables hold the store for some milliseconds
	// each. A daemon that starts or stops holds it for a moment without answering on its socket.
	storePatience = 15 * time.Second
	// daemonLook is the time between two looks for a daemon during that wait: a daemon that started holds
	// the store as long as it lives.
	daemonLook = 500 * time.Millisecond
)

// Process is one invocation of the executable.
type Process struct {
	Getenv func(string) string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer // for a delegated plugin; nothing else is written there
	// Begun: a daemon already took the call and went away. The effect of the call is not known.
	Begun bool
	// Silent: a daemon has not gone away, but did not take or answer the call in time. It is not asked again.
	Silent bool
}

// Run serves the invocation and returns its exit status. It asks the daemon; when none answers, it runs
// the verb on the store itself. Standard output gets one JSON value or nothing.
func (p Process) Run(ctx context.Context) (status int) {
	c := caller{begun: p.Begun, silent: p.Silent}
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

// run plans the call, so that nobody is asked about a call that cannot succeed, and then has it served.
func (c *caller) run(ctx context.Context, p Process) (version string, reply api.Reply, err error) {
	call := Call{CNI: api.CNI{
		Command: p.Getenv("CNI_COMMAND"), ContainerID: p.Getenv("CNI_CONTAINERID"), Netns: p.Getenv("CNI_NETNS"),
		IfName: p.Getenv("CNI_IFNAME"), Args: p.Getenv("CNI_ARGS"), Path: p.Getenv("CNI_PATH"),
	}}
	if _, ok := verbs[call.Command]; !ok && call.Command != "VERSION" {
		return "", reply, badCommand(call.Command)
	}
	if call.Stdin, err = readStdin(ctx, p.Stdin); err != nil {
		return "", reply, err
	}
	if call.Command == "VERSION" { // VERSION needs no namespace
		if c.op, err = plan(call, nil); err == nil {
			reply = new(Node).run(ctx, c.op)
		}
		return c.op.version, reply, err
	}
	if c.node, err = NewNode(nil, ""); err != nil {
		return "", reply, err
	}
	c.node.stderr = p.Stderr
	if call.NetnsFile, call.unopened = OpenNetns(call.Netns); call.NetnsFile != nil {
		defer call.NetnsFile.Close()
	}
	if c.op, err = plan(call, c.node.home); err != nil {
		return c.op.version, reply, err
	}
	reply, err = c.serve(ctx)
	return c.op.version, reply, unavailable(call.Command, err)
}

// readStdin reads the whole configuration, within bounds of size and time.
func readStdin(ctx context.Context, r io.Reader) ([]byte, error) {
	type input struct {
		b   []byte
		err error
	}
	got := make(chan input, 1)
	go func() { // a read that never returns ends with the process
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
	op            operation
	begun, silent bool // Process.Begun, Process.Silent
	// node has a store when this process serves the call itself.
	node *Node
}

func (c *caller) close() {
	if c.node == nil {
		return
	}
	_ = c.node.Close()
	_ = c.node.yield()
}

func (c *caller) serve(ctx context.Context) (api.Reply, error) {
	// An IPAM plugin must run where the runtime's paths are valid, and no store is needed.
	if c.op.conf.delegated() {
		return c.direct(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	deadline := time.Time{}
	for {
		reply, err := c.ask(ctx)
		switch {
		case err == nil:
			return reply, nil
		case c.silent:
			// It holds the store, and undoes the call when it sees that nobody waits.
			return reply, fault(codeTryAgain, "%w", err).next("edgewayd does not answer: systemctl restart edgewayd, and check its log")
		case errors.Is(err, api.ErrBroken):
			c.begun = true
		case !errors.Is(err, api.ErrNoDaemon):
			return reply, fault(codeTryAgain, "%w", err).next("check edgewayd status and its log")
		}
		if ctx.Err() != nil {
			return reply, fault(codeTryAgain, "%w", err).next("a signal ended the call: the runtime may try again")
		}
		if deadline.IsZero() {
			c.cutEarly(ctx)
			deadline = time.Now().Add(storePatience)
		}
		reply, err = c.local(ctx, deadline)
		if !errors.Is(err, errDaemon) || time.Now().After(deadline) {
			return reply, err
		}
	}
}

// errDaemon ends a wait for the store: a daemon started, and is asked instead.
var errDaemon = errors.New("a daemon started")

// awaitDaemon ends a wait once a daemon takes connections on the socket. It does not wait for a daemon
// that is silent or went away over this call.
func (c *caller) awaitDaemon(ctx context.Context, end context.CancelCauseFunc) {
	for !c.silent {
		select {
		case <-ctx.Done():
			return
		case <-time.After(daemonLook):
		}
		if conn, err := net.Dial("unix", c.op.conf.socket()); err == nil {
			_ = conn.Close()
			end(errDaemon)
			return
		}
	}
}

// cutEarly removes the host's end for a DEL that must wait for its turn, so that the twenty milliseconds
// that the kernel takes overlap with other deletions. DEL removes it again, and reports errors.
func (c *caller) cutEarly(ctx context.Context) {
	if c.op.cni.Command != "DEL" || c.op.conf.ipamOnly() {
		return
	}
	host, done, err := c.node.host()
	if err != nil {
		return
	}
	defer done()
	_ = deleteLinks(ctx, host, c.op.hostLink())
}

// errRefused: the daemon answered, but did not serve.
var errRefused = errors.New("the daemon refused the call")

// ask passes the call to the daemon. A daemon that went away over an earlier try may have left half an
// attachment, which a DEL removes.
func (c *caller) ask(ctx context.Context) (reply api.Reply, err error) {
	if c.silent {
		return reply, fmt.Errorf("%w on %s: it is running and does not answer", api.ErrBroken, c.op.conf.socket())
	}
	patience := answerPatience
	if c.op.cni.Command == "STATUS" {
		patience = statusPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer func() { c.silent = errors.Is(err, context.DeadlineExceeded) }()
	for _, cni := range append(c.before(), c.op.cni) {
		reply, err = api.Call(ctx, c.op.conf.socket(), api.Request{Op: "cni", CNI: &cni}, c.op.netns)
		if err != nil {
			return reply, err
		}
		if reply.Error != "" {
			return reply, fmt.Errorf("%w: %s", errRefused, reply.Error)
		}
	}
	if c.op.cni.Command == "ADD" && !reply.Failed {
		reply.Undelivered = func(ctx context.Context) {
			del := c.op.cni
			del.Command = "DEL"
			ctx, cancel := context.WithTimeout(ctx, undoTimeout)
			defer cancel()
			// After a failure the runtime's DEL removes the rest.
			_, _ = api.Call(ctx, c.op.conf.socket(), api.Request{Op: "cni", CNI: &del}, nil)
		}
	}
	return reply, nil
}

// before are the calls to make first: a DEL if an ADD had started.
func (c *caller) before() []api.CNI {
	if c.begun && c.op.cni.Command == "ADD" {
		del := c.op.cni
		del.Command = "DEL"
		return []api.CNI{del}
	}
	return nil
}

// local runs the verb in this process, on the store.
func (c *caller) local(ctx context.Context, deadline time.Time) (reply api.Reply, err error) {
	path := filepath.Join(c.op.conf.dataDir(), StoreFile)
	if c.op.cni.Command != "ADD" {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return c.direct(ctx)
		}
	}
	open := func(ctx context.Context) (*ipam.Store, error) { return OpenStore(ctx, path, storePatience) }
	wait, stop := context.WithDeadline(ctx, deadline)
	defer stop()
	wait, end := context.WithCancelCause(wait)
	defer end(nil)
	go c.awaitDaemon(wait, end)
	// Claim first: the holder of the claim may need the store to end its lease.
	if a := c.op.attachment; a.ContainerID != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return reply, fault(codeIO, "%w", err).next("make %s writable", filepath.Dir(path))
		}
		release, err := ipam.Claim(wait, path, a)
		if err != nil {
			return reply, err
		}
		defer func() {
			_ = release() // nothing was written to the file
			c.node.claimed = false
		}()
	}
	if c.node.Store, err = open(wait); err != nil {
		return reply, err
	}
	end(nil)
	c.node.claimed, c.node.reopen = true, open
	return c.direct(ctx)
}

// direct runs the operation on the Node of this process, after a DEL if an ADD had started.
func (c *caller) direct(ctx context.Context) (reply api.Reply, err error) {
	c.node.unborn, c.node.Dir = c.node.Store == nil, filepath.Clean(c.op.conf.dataDir())
	for _, cni := range c.before() {
		_ = c.node.Do(ctx, Call{CNI: cni, NetnsFile: c.op.netns})
	}
	reply = c.node.run(ctx, c.op)
	if c.op.cni.Command == "ADD" && reply.Failed && c.node.GiveWay(ctx, reply) {
		reply = c.node.run(ctx, c.op)
	}
	return reply, nil
}
