// Edgeway is the CNI plugin. Container runtimes execute it with the CNI_ variables in the environment and
// a network configuration on standard input (CNI SPEC 1.1.0). Operators use edgewayd.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/plugin/forward"
)

// Set by the linker; see the Makefile.
var (
	version = "unknown"
	commit  = "unknown"
)

func main() {
	// A runtime passes no arguments, so a person called this.
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Printf("edgeway version %s (commit %s)\n", version, commit)
		return
	}
	os.Exit(run())
}

func run() int {
	// If the reader went away, the write must fail instead of ending the process: the failure makes an
	// ADD undo itself.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	left := forward.Left() // a call that forward has not passed to the daemon
	return plugin.Process{
		Getenv: os.Getenv, Stdin: io.MultiReader(bytes.NewReader(left.Stdin), os.Stdin), Stdout: stdout(), Stderr: os.Stderr,
		Begun: left.Begun, Silent: left.Silent,
	}.Run(ctx)
}

// stdout returns standard output, or a writer that always fails if standard output was closed. In place
// of a closed descriptor the Go runtime opens /dev/null for reading and writing (runtime/fds_unix.go),
// and a result written there reaches nobody.
func stdout() io.Writer {
	var out, null syscall.Stat_t
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, os.Stdout.Fd(), syscall.F_GETFL, 0)
	if errno == 0 && flags&syscall.O_ACCMODE == syscall.O_RDWR &&
		syscall.Fstat(int(os.Stdout.Fd()), &out) == nil && syscall.Stat(os.DevNull, &null) == nil && out.Rdev == null.Rdev && out.Mode == null.Mode {
		return closed{}
	}
	return os.Stdout
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }
