package cri

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// process is a program that runs on a node, its output in a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended
}

// start starts argv in the machine's network namespace.
func start(m *lab.Machine, log string, env []string, argv ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, argv[0], err)
	}
	defer f.Close()
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = f, f, env
	if err := m.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", m.Name, argv[0], err)
	}
	go func() {
		_ = p.cmd.Wait() // its result stands in ProcessState
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// running is nil while the process lives, and otherwise says how it ended.
func (p *process) running() error {
	if p == nil {
		return errors.New("was not started")
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s: %s\n%s", strings.Join(p.cmd.Args, " "), p.cmd.ProcessState, tail(p.log, 15))
	default:
		return nil
	}
}

// end sends sig and waits for the end. A process that has ended, or never began, is success.
func (p *process) end(sig os.Signal) error {
	if p.running() != nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", filepath.Base(p.cmd.Path), err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("%s (pid %d) still runs %v after %v", strings.Join(p.cmd.Args, " "), p.pid(), stopTimeout, sig)
	}
}

// tail returns the last lines of a file, for messages.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
