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

// Process is a running program, its output in a file. It does not outlive this process.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended
}

// Spawn starts a program, its output appended to the file log. The kernel kills it when this process
// ends, however that comes about: it watches the thread that made the program (PR_SET_PDEATHSIG),
// so that thread waits for the program's end. What the program starts itself is not watched.
func Spawn(log string, argv ...string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &Process{cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
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

// PID of the program.
func (p *Process) PID() int { return p.cmd.Process.Pid }

func (p *Process) name() string { return filepath.Base(p.cmd.Path) }

// Err is nil while the process lives, and otherwise says how it ended.
func (p *Process) Err() error {
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

// End has the process end by itself, and kills it when it takes longer than the limit. One that has
// ended, or never began, is success.
func (p *Process) End(limit time.Duration) error {
	if p.Err() != nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // one that has just ended needs none
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
		return p.Kill(limit)
	}
}

// Kill kills the process. One that has ended, or never began, is success.
func (p *Process) Kill(limit time.Duration) error {
	if p.Err() != nil {
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
