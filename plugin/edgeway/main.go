// Edgeway is the CNI plugin: container runtimes execute it with the CNI_ variables in the
// environment and a network configuration on standard input (CNI SPEC 1.1.0). Operators use
// edgewayd.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/edgeway-cni/edgeway/plugin"
)

func main() { os.Exit(run()) }

func run() int {
	// A reader that went away is an error of the write, not the end of the process: what an ADD
	// made is undone then.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return plugin.Process{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}.Run(ctx)
}
