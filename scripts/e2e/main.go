// Command e2e plays a shop's day on a real Kubernetes: an API server and its controllers, a BIRD switch,
// and three nodes, each with a real kubelet, containerd and edgewayd in network and mount namespaces of its
// own. The API server goes away, pods restart, the power fails, and each pod must keep its address. The
// command needs root and some minutes. It removes what it made, even after an interrupt, and keeps the
// programs' logs after a failure.
//
//	make e2e
//	go run ./scripts/e2e -install daemonset   # edgewayd as pods, instead of a program of the node
//	make e2e-upgrade FROM=COMMIT              # instead of all this, from an earlier version to this one and back
//
// The same three nodes also run Kubernetes' own network tests, in the modes of the pods' network that are asked
// for. The results go into a table of docs/conformance.md.
//
//	make e2e-upstream
//	go run ./scripts/e2e -upstream overlay                    # one mode; the other modes keep their results
//	go run ./scripts/e2e -upstream overlay -focus 'HostPort'  # these specs; the other specs keep their results
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
	var u suite
	upstream := flag.String("upstream", "", "run Kubernetes' own network tests instead, in these modes: "+strings.Join(modes, ","))
	only := flag.String("groups", "", "of -upstream: only the groups of specs whose names match the regular expression")
	focus := flag.String("focus", "", "of -upstream: only the specs whose full names match the regular expression")
	flag.IntVar(&u.procs, "procs", 2, "of -upstream: specs at a time")
	flag.DurationVar(&u.limit, "limit", time.Hour, "of -upstream: time for the specs of one mode, once without NetworkPolicies and once with them")
	flag.StringVar(&u.table.results, "results", "scripts/e2e/testdata/upstream.json", "of -upstream: file of the results so far")
	flag.StringVar(&u.table.page, "page", "docs/conformance.md", "of -upstream: page with the table")
	from := flag.String("from", "", "directory of an earlier version, with its programs in bin/: play the way from there and back")
	flag.Parse()
	// SIGPIPE: the reader of the output has gone. The nodes must go too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	err := func() error {
		if *upstream == "" {
			return run(ctx, &stage{deploy: *deploy, install: installation(*install), from: *from}, *bin, day)
		}
		if err := u.choose(*only, *focus); err != nil {
			return err
		}
		for mode := range strings.SplitSeq(*upstream, ",") {
			if err := u.in(ctx, mode, &stage{deploy: *deploy, install: byDaemonSet}, *bin); err != nil {
				return fmt.Errorf("%s: %w", mode, err)
			}
		}
		if u.failed > 0 {
			return fmt.Errorf("%d specs of Kubernetes' own tests failed", u.failed)
		}
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL ", err)
		os.Exit(1)
	}
}

// day plays the shop's day.
func day(ctx context.Context, s *story) error {
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

// run builds the stage, plays on it, and takes everything down afterwards, even after an error.
func run(ctx context.Context, st *stage, bin string, play func(context.Context, *story) error) (err error) {
	if st.install != byPackage && st.install != byDaemonSet {
		return fmt.Errorf("-install %s: want %s or %s", st.install, byPackage, byDaemonSet)
	}
	if st.from != "" && st.install != byDaemonSet {
		return fmt.Errorf("-from %s: want -install %s", st.from, byDaemonSet)
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
	return play(ctx, s)
}
