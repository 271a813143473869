package bgp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout bounds one order: a table of 5,000 paths takes a second on a busy machine. After this time
// the process is killed.
const answerTimeout = 30 * time.Second

// process is the process of one session, as its Speaker sees it.
type process struct {
	cmd  *exec.Cmd
	link *os.File
	out  *gob.Encoder
	last tail          // the output of the process
	gone chan struct{} // closed when the process has ended

	mu     sync.Mutex // guards the fields below
	number int        // number of the newest order
	answer chan answer
}

// start starts command with one end of a link as its file descriptor 3.
func start(command []string) (*process, error) {
	if len(command) == 0 {
		return nil, errors.New("start the process of a session: the Speaker has no Options.Command")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the process of a session: %w", os.NewSyscallError("socketpair", err))
	}
	// The runtime polls a non-blocking descriptor, so Close ends a waiting Read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer theirs.Close()
	p := &process{cmd: exec.Command(command[0], command[1:]...), link: ours, out: gob.NewEncoder(ours), gone: make(chan struct{})}
	p.cmd.Stderr, p.cmd.ExtraFiles = &p.last, []*os.File{theirs}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process of a session: %w", errors.Join(err, ours.Close()))
	}
	return p, nil
}

// listen calls hear with each answer until the process ends, and returns why it ended.
func (p *process) listen(hear func(answer)) error {
	defer close(p.gone)
	in := gob.NewDecoder(p.link)
	for {
		var a answer
		if err := in.Decode(&a); err != nil {
			break
		}
		hear(a)
		p.mu.Lock()
		if a.Number > 0 && a.Number == p.number {
			p.answer <- a // there is room: an order has one answer
		}
		p.mu.Unlock()
	}
	p.kill()
	err := p.cmd.Wait()
	return cmp.Or(p.last.reason(), err, errors.New("exit status 0"))
}

// ask gives an order and waits for its answer. Only one caller at a time is allowed.
func (p *process) ask(ctx context.Context, o order) error {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	answered := make(chan answer, 1)
	p.mu.Lock()
	p.number++
	p.answer = answered
	o.Number = p.number
	p.mu.Unlock()
	_ = p.link.SetWriteDeadline(time.Now().Add(answerTimeout)) // a socket always takes a deadline
	if err := p.out.Encode(o); err != nil {
		p.kill() // no order can follow half an order
		return fmt.Errorf("the session's process reads no orders and is restarted: %w", err)
	}
	select {
	case a := <-answered:
		if a.Err != "" {
			return errors.New(a.Err)
		}
		return nil
	case <-p.gone:
		return errors.New("the session's process ended and is restarted")
	case <-ctx.Done():
		return fmt.Errorf("the session's process has not answered: %w", ctx.Err())
	case <-timeout.C:
		p.kill()
		return fmt.Errorf("the session's process has not answered for %s and is restarted", answerTimeout)
	}
}

// kill ends the process without a message to the switch. It may be called twice.
func (p *process) kill() {
	_ = p.link.Close()       // at the second call the link is closed already
	_ = p.cmd.Process.Kill() // the process may have ended already
}

// end kills the process and waits for its end.
func (p *process) end() {
	p.kill()
	<-p.gone
}

// tail keeps the beginning of a process's output and passes all of it on.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// maxTail is enough for the first lines of a panic.
const maxTail = 16 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := maxTail - len(t.text); room > 0 {
		t.text = append(t.text, b[:min(len(b), room)]...)
	}
	return os.Stderr.Write(b)
}

// reason returns the line that says why a Go program ended; nil if there is no such line.
func (t *tail) reason() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(t.text) {
		for _, word := range []string{"panic: ", "fatal error: "} {
			if bytes.HasPrefix(line, []byte(word)) {
				return errors.New(string(bytes.TrimSpace(line)))
			}
		}
	}
	return nil
}
