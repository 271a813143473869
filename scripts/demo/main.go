// Command demo shows the purpose of edgeway, with real network namespaces and real BIRD switches. It plays
// the documents' three scenarios with their manifests as written, restarts the only speaker of a LAN and changes
// the mode of a pool under traffic, and gives pods the addresses of a second NIC. It needs root, and removes what
// it made, even after an interrupt.
//
//	go run ./scripts/demo          play, and take everything down
//	go run ./scripts/demo -keep    leave the laboratories standing to look around
//	go run ./scripts/demo -down    take down what -keep left
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func main() {
	keep := flag.Bool("keep", false, "leave the laboratories standing, and say how to look around")
	down := flag.Bool("down", false, "take down what -keep left standing, and stop")
	bin := flag.String("bin", "bin", "directory of edgeway and edgewayd")
	flag.Parse()

	// SIGPIPE: the reader of the output has gone. The laboratory must go too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	out := newPage(os.Stdout)
	var err error
	if *down {
		err = takeDown(out)
	} else {
		err = run(ctx, out, *bin, *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run plays the acts and prints the verdict. Unless keep is set, it takes the laboratories down, even after
// an error.
func run(ctx context.Context, out *page, bin string, keep bool) error {
	if err := ready(bin); err != nil {
		return err
	}
	if gone, err := lab.Sweep(); err != nil {
		return fmt.Errorf("remove what an interrupted run left: %w", err)
	} else if len(gone) > 0 {
		out.printf("removed what an interrupted run left: %s\n", strings.Join(gone, ", "))
	}
	start := time.Now()
	out.printf("edgeway, demonstrated: pods with addresses that the LAN itself routes. No NAT; a tunnel where a pool asks for it.\n")
	out.printf("Switches are %s; everything stands in network namespaces.\n", birdVersion())

	var verdict verdict
	var kept []*stage
	for _, a := range acts {
		s := &stage{act: a, out: out, verdict: &verdict}
		err := s.perform(ctx, bin, keep)
		if ctx.Err() != nil {
			return errors.Join(errors.New("interrupted; what was built is taken down"), takenDown(kept))
		}
		if keep && s.lab != nil {
			kept = append(kept, s)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", a.title, err), leave(out, kept))
		}
	}
	return errors.Join(verdict.print(out, time.Since(start)), leave(out, kept))
}

// perform plays the act in its own laboratory. Unless keep is set, it takes the laboratory down.
func (s *stage) perform(ctx context.Context, bin string, keep bool) (err error) {
	if s.lab, err = lab.New(lab.Options{Bin: bin}); err != nil {
		return err
	}
	played := false // a panic must not leave a laboratory behind
	defer func() {
		if !keep || !played || ctx.Err() != nil {
			err = errors.Join(err, s.lab.Close())
		}
	}()
	err = s.play(ctx)
	played = true
	return err
}

func takenDown(kept []*stage) (err error) {
	for _, s := range kept {
		err = errors.Join(err, s.lab.Close())
	}
	return err
}

// ready returns nil if nothing is missing. The error says how to get the missing part.
func ready(bin string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root to make network namespaces; run 'sudo make demo'")
	}
	if missing := lab.Missing(lab.Tools(lab.BIRD)...); len(missing) > 0 {
		return fmt.Errorf("not installed: %s; run scripts/install-test-tools.sh", strings.Join(missing, ", "))
	}
	for _, name := range []string{"edgeway", "edgewayd"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("%w; run 'make build'", err)
		}
	}
	return nil
}

func birdVersion() string {
	text, err := exec.Command("bird", "--version").CombinedOutput() // bird prints its version on standard error
	if err != nil {
		return "BIRD"
	}
	return strings.TrimSpace(strings.Replace(string(text), " version ", " ", 1))
}

func takeDown(out *page) error {
	gone, err := lab.Down()
	if err == nil && len(gone) == 0 {
		out.printf("no laboratory is standing\n")
	}
	for _, name := range gone {
		out.printf("took down %s\n", name)
	}
	return err
}

// leave keeps the laboratories and says how to look around in them.
func leave(out *page, kept []*stage) error {
	if len(kept) == 0 {
		return nil
	}
	var errs []error
	for _, s := range kept {
		if err := s.lab.Keep(); err != nil {
			errs = append(errs, err, s.lab.Close())
			continue
		}
		s.lookAround()
	}
	out.printf("\nTake it all down:  go run ./scripts/demo -down   (make demo-down)\n")
	return errors.Join(errs...)
}
