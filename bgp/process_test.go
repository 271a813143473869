package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// daemon is a process that can be killed: the test binary with a Speaker. It Syncs each line of its standard
// input, which is a State as JSON, and Syncs it again when the Speaker asks for it. It Stops at SIGTERM.
type daemon struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	flaps int
}

// report is the answer to each line.
type report struct {
	Err        string
	Changes    []string
	Status     []Status
	Goroutines int
	HeapMiB    uint64
	TookMS     int64
}

func speakerProcess() int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	trigger := make(chan struct{}, 1)
	s := NewSpeaker(Options{Command: sessionCommand, Changed: func() {
		select {
		case trigger <- struct{}{}:
		default:
		}
	}})
	lines := make(chan []byte)
	go func() {
		in := bufio.NewReader(os.Stdin)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	out := json.NewEncoder(os.Stdout)
	var desired State
	for {
		select {
		case <-trigger: // as the daemon does
			_, _ = s.Sync(context.Background(), desired) // the next line reports what is still wrong
		case <-term:
			s.Stop()
			return 0
		case line := <-lines:
			if err := out.Encode(respond(s, line, &desired)); err != nil {
				return 1
			}
		}
	}
}

func respond(s *Speaker, line []byte, desired *State) (r report) {
	if string(line) != "null\n" {
		*desired = State{}
		if err := json.Unmarshal(line, desired); err != nil {
			return report{Err: err.Error()}
		}
		begun := time.Now()
		changes, err := s.Sync(context.Background(), *desired)
		r.TookMS = time.Since(begun).Milliseconds()
		if err != nil {
			r.Err = err.Error()
		}
		for _, c := range changes {
			r.Changes = append(r.Changes, c.String())
		}
	}
	r.Status = s.Status(context.Background())
	for i := range r.Status {
		r.Status[i].Advertised = nil // thousands
	}
	r.Goroutines = runtime.NumGoroutine()
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.HeapMiB = mem.HeapAlloc >> 20
	return r
}

func startProcess(t testing.TB, cmd *exec.Cmd, sessions ...Session) *daemon {
	t.Helper()
	cmd.Env = append(os.Environ(), envSpeaker+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &daemon{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	p.out.Buffer(nil, 16<<20)
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	if r := p.sync(sessions...); r.Err != "" {
		t.Fatal(r.Err)
	}
	return p
}

func (p *daemon) sync(sessions ...Session) report {
	p.t.Helper()
	return p.send(&State{Sessions: sessions})
}

func (p *daemon) report() report {
	p.t.Helper()
	return p.send(nil)
}

func (p *daemon) send(desired *State) (r report) {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(desired); err != nil {
		p.t.Fatal(err)
	}
	if !p.out.Scan() {
		p.t.Fatalf("process ended: %v", p.out.Err())
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// end signals the process and waits for its end.
func (p *daemon) end(sig os.Signal) {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	_ = p.cmd.Wait()
}

// established waits until all n sessions are.
func (p *daemon) established(n int) report {
	p.t.Helper()
	var r report
	eventually(p.t, func() error {
		r = p.report()
		up := 0
		for _, st := range r.Status {
			if st.State == "Established" {
				up++
			}
		}
		if up != n {
			return fmt.Errorf("%d of %d sessions up: %+v", up, n, r.Status)
		}
		return nil
	})
	return r
}

// flapped waits until every session has been lost once more than at the last call.
func (p *daemon) flapped() {
	p.t.Helper()
	eventually(p.t, func() error {
		r := p.report()
		for _, st := range r.Status {
			if st.Flaps <= p.flaps {
				return fmt.Errorf("no new flap: %+v", st)
			}
		}
		p.flaps++
		return nil
	})
}
