// Command e2e plays a shop's day on a real Kubernetes: an API server and its controllers, a BIRD switch,
// and three nodes, each with a real kubelet, containerd and edgewayd in network and mount namespaces of its
// own. The API server goes away, pods restart, the power fails, and each pod must keep its address. The
// command needs root and some minutes. It removes what it made, even after an interrupt, and keeps the
// programs' logs after a failure.
//
//	make e2e
//	go run ./scripts/e2e -install daemonset   # edgewayd as pods, instead of a program of the node
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory of edgeway and edgewayd")
	deploy := flag.String("deploy", "deploy/kubernetes", "directory of the manifests that a cluster needs for edgewayd")
	install := flag.String("install", string(byPackage), "how edgewayd comes onto the nodes: package or daemonset")
	flag.Parse()
	// SIGPIPE: the reader of the output has gone. The nodes must go too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	s := &stage{deploy: *deploy, install: installation(*install)}
	if err := run(ctx, s, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL ", err)
		os.Exit(1)
	}
}

// run plays the story and takes everything down afterwards, even after an error.
func run(ctx context.Context, st *stage, bin string) (err error) {
	if st.install != byPackage && st.install != byDaemonSet {
		return fmt.Errorf("-install %s: want %s or %s", st.install, byPackage, byDaemonSet)
	}
	if err := missing(bin); err != nil {
		return err
	}
	gone, err := lab.Sweep()
	if err != nil {
		return fmt.Errorf("remove what an interrupted run left: %w", err)
	}
	if len(gone) > 0 {
		fmt.Println("removed what an interrupted run left:", strings.Join(gone, ", "))
	}
	if st.lab, err = lab.New(lab.Options{Bin: bin}); err != nil {
		return err
	}
	s := &story{stage: st, begin: time.Now()}
	defer func() {
		if err != nil {
			dir, e := s.keepLogs()
			err = errors.Join(err, e)
			fmt.Fprintln(os.Stderr, "what the programs said is in", dir)
		}
		if e := s.close(); e != nil {
			err = errors.Join(err, e)
		} else if err == nil {
			s.pass("nothing is left on this machine: no process, namespace, mount or cgroup")
		}
	}()
	if err := s.build(ctx, bin); err != nil {
		return err
	}
	s.pass("control plane %s, switch, LAN", s.version())
	for _, act := range s.acts() {
		if err := act(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return errors.New("interrupted; what was built is taken down")
		}
	}
	return nil
}
