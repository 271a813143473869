package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// The exit statuses of every command. Another error, such as input that cannot be read, exits 1.
const (
	exitChanged  exitStatus = 2 // plan --against: there is a difference, and no problem
	exitProblems exitStatus = 3 // there are problems
)

// exitStatus is the error of a command that has said everything already.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// output remembers the first write that failed: a full disk must not look like a short answer.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("write the answer: %w", err)
	}
	return n, err
}

// statusOf returns the exit status, and the error that is to be printed, of a command that ended with err.
func (o *output) statusOf(err error) (int, error) {
	var told exitStatus
	switch {
	case o.err != nil:
		return 1, o.err
	case errors.As(err, &told):
		return int(told), nil
	case err != nil:
		return 1, err
	}
	return 0, nil
}

// unreachable adds the operator's next step to the error of a daemon that does not answer.
func unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run it as root", err)
	case errors.Is(err, api.ErrNoDaemon):
		return fmt.Errorf("%w: start it with systemctl start edgewayd, or name its socket with --socket", err)
	case errors.Is(err, api.ErrBroken):
		return fmt.Errorf("%w: it runs and does not answer, or it ended just now: look at journalctl -u edgewayd, then systemctl restart edgewayd; pods keep their network meanwhile", err)
	}
	return err
}

// plural writes a count with its noun: "1 problem", "2 problems".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
