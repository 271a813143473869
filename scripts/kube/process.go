package kube

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a running program, its output in a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended
}

// start starts argv. The kernel kills it when this process ends, however that comes about: it
// watches the thread that made it (PR_SET_PDEATHSIG), so that one waits for the program's end.
func start(log string, argv []string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer f.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // its result stands in ProcessState
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return p, nil
}

func (p *process) name() string { return filepath.Base(p.cmd.Path) }

// err is nil while the process lives, and otherwise says how it ended.
func (p *process) err() error {
	if p == nil {
		return errors.New("was not started")
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s\n%s", p.name(), p.cmd.ProcessState, tail(p.log, 15))
	default:
		return nil
	}
}

// end has the process end by itself, and kills it when it takes longer than the limit. One that has
// ended, or never began, is success.
func (p *process) end(limit time.Duration) error {
	if p.err() != nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // one that has just ended needs none
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
		return p.kill(limit)
	}
}

func (p *process) kill(limit time.Duration) error {
	if p.err() != nil {
		return nil
	}
	_ = p.cmd.Process.Kill()
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("%s (pid %d) has not ended %v after it was killed", p.name(), p.cmd.Process.Pid, limit)
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
