package bgp

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// child is the process of one session.
type child struct {
	cmd  *exec.Cmd
	link *os.File
	last tail // of what it printed

	writing sync.Mutex // guards out
	out     *gob.Encoder

	mu      sync.Mutex // guards what follows
	number  int
	waiting map[int]chan said
	gone    chan struct{} // closed when it does not answer any more
}

// start starts command with one end of a link as its file descriptor 3.
func start(command []string) (*child, error) {
	if len(command) == 0 {
		return nil, errors.New("start the process of a session: no command")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the process of a session: %w", os.NewSyscallError("socketpair", err))
	}
	// Non-blocking, the runtime polls it: Close then ends a Read that waits.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer theirs.Close()
	p := &child{cmd: exec.Command(command[0], command[1:]...), link: ours, out: gob.NewEncoder(ours),
		waiting: map[int]chan said{}, gone: make(chan struct{})}
	p.cmd.Stderr, p.cmd.ExtraFiles = &p.last, []*os.File{theirs}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process of a session: %w", errors.Join(err, ours.Close()))
	}
	return p, nil
}

// listen gives news to hear until the process ends, and returns why it did.
func (p *child) listen(hear func(said)) error {
	in := gob.NewDecoder(p.link)
	for {
		var r said
		if err := in.Decode(&r); err != nil {
			break
		}
		hear(r)
		p.mu.Lock()
		if answer := p.waiting[r.Number]; answer != nil {
			answer <- r
			delete(p.waiting, r.Number)
		}
		p.mu.Unlock()
	}
	close(p.gone)
	p.end()
	err := p.cmd.Wait()
	if why := p.last.reason(); why != "" {
		return errors.New(why)
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return err
}

// ask gives an order and waits for its answer.
func (p *child) ask(ctx context.Context, o order) (said, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout+orderTimeout/4)
	defer cancel()
	answer := make(chan said, 1)
	p.mu.Lock()
	p.number++
	o.Number = p.number
	p.waiting[o.Number] = answer
	p.mu.Unlock()
	p.writing.Lock() // not under mu, which who reads needs
	err := p.out.Encode(o)
	p.writing.Unlock()
	if err != nil {
		return said{}, fmt.Errorf("the session's process does not listen: %w", err)
	}
	select {
	case r := <-answer:
		return r, nil
	case <-p.gone:
		return said{}, errors.New("the session's process ended")
	case <-ctx.Done():
		return said{}, fmt.Errorf("the session's process does not answer: %w", ctx.Err())
	}
}

// end ends the process without a word to the switch. It may be called twice.
func (p *child) end() {
	_ = p.link.Close()       // closed already at the second call
	_ = p.cmd.Process.Kill() // it may have ended
}

// tail keeps the beginning of what Go prints of a panic, and passes everything on.
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

// reason is the line that says why a Go program ended, "" without one.
func (t *tail) reason() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(t.text) {
		for _, word := range []string{"panic: ", "fatal error: "} {
			if bytes.HasPrefix(line, []byte(word)) {
				return string(bytes.TrimSpace(line))
			}
		}
	}
	return ""
}

var _ io.Writer = (*tail)(nil)
