package lab

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

// Program describes a process to start.
type Program struct {
	Argv []string
	Log  string   // output is appended to this file
	Env  []string // nil: this process's environment
	Dir  string   // working directory; "": this process's
	// Space is the network namespace of the program; nil: this process's.
	Space *Space
	// Outlives lets the program continue when this process ends. Otherwise the kernel kills the program
	// then, but not the processes that the program started.
	Outlives bool
}

// Process is a running program.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
}

// Start starts the program.
func (p Program) Start() (*Process, error) {
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Argv[0], err)
	}
	proc := &Process{cmd: exec.Command(p.Argv[0], p.Argv[1:]...), log: p.Log, done: make(chan struct{})}
	proc.cmd.Stdout, proc.cmd.Stderr, proc.cmd.Env, proc.cmd.Dir = f, f, p.Env, p.Dir
	proc.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C must reach this process only
	start := proc.cmd.Start
	if p.Space != nil {
		start = func() error { return andHome(func() error { return p.Space.enter(proc.cmd.Start) }) }
	}
	if !p.Outlives {
		// PR_SET_PDEATHSIG depends on the thread that started the program, so that thread waits for its
		// end.
		proc.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	go func() {
		defer f.Close()
		if !p.Outlives {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
		}
		err := start()
		started <- err
		if err == nil {
			_ = proc.cmd.Wait() // the result is in ProcessState
			close(proc.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Argv[0], err)
	}
	return proc, nil
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

func (p *Process) name() string { return filepath.Base(p.cmd.Path) }

// ErrEnded is wrapped by the error of a process that has ended. Waiting longer does not help.
var ErrEnded = errors.New("ended")

// Err is nil while the process lives. Afterwards it says how the process ended.
func (p *Process) Err() error {
	if p == nil {
		return errors.New("was not started")
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s %w: %s\n%s", p.name(), ErrEnded, p.cmd.ProcessState, Tail(p.log, 15))
	default:
		return nil
	}
}

// endTimeout bounds the time from a signal to the end of a process, on a busy machine.
const endTimeout = 20 * time.Second

// End sends sig and waits for the end. A process that has ended, or was never started, is not an error.
func (p *Process) End(sig os.Signal) error {
	if p.Err() != nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(endTimeout):
		return fmt.Errorf("%s (pid %d) still runs %v after %v", p.name(), p.PID(), endTimeout, sig)
	}
}

// Kill ends the process at once.
func (p *Process) Kill() error { return p.End(syscall.SIGKILL) }

// Tail returns the last lines of a file, for use in messages.
func Tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
