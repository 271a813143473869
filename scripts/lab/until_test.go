package lab_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
	"github.com/google/go-cmp/cmp"
)

// until repeats a verb until it succeeds and its output is as wanted.
func (s *story) until(args []string) (out string, err error) {
	limit := waitLimit
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		seconds, err := strconv.Atoi(args[0][1:])
		if err != nil {
			return "", fmt.Errorf("until %s: want seconds", args[0])
		}
		limit, args = time.Duration(seconds)*time.Second, args[1:]
	}
	args, wanted, err := s.wanted(args)
	if err != nil {
		return "", err
	}
	if len(args) == 0 {
		return "", errors.New("until: want a verb")
	}
	v := verbs()[args[0]]
	if args[0] == "count" {
		v = (*story).count
	}
	if v == nil {
		return "", fmt.Errorf("until %q: no such verb", args)
	}
	err = lab.Wait(s.ctx, limit, func() error {
		if out, err = v(s, args[1:]); err != nil {
			return err
		}
		return wanted(out)
	})
	if err != nil {
		return out, fmt.Errorf("until %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// count counts the lines that a verb prints.
func (s *story) count(args []string) (string, error) {
	if len(args) == 0 || verbs()[args[0]] == nil {
		return "", fmt.Errorf("count %q: no such verb", args)
	}
	out, err := verbs()[args[0]](s, args[1:])
	return fmt.Sprintln(strings.Count(out, "\n")), err
}

// wanted cuts the expectation off the end of a command.
func (s *story) wanted(args []string) ([]string, func(out string) error, error) {
	if n := len(args); n > 2 && args[n-2] == "==" {
		text, err := os.ReadFile(s.file(args[n-1]))
		if err != nil {
			return nil, nil, err
		}
		return args[:n-2], func(out string) error { return differ(table(string(text)), table(out)) }, nil
	} else if n > 2 && (args[n-2] == "~" || args[n-2] == "!~") {
		re, err := regexp.Compile("(?m)" + args[n-1])
		if err != nil {
			return nil, nil, err
		}
		return args[:n-2], func(out string) error {
			if re.MatchString(out) != (args[n-2] == "~") {
				return fmt.Errorf("want it %s %q: %s", args[n-2], re, out)
			}
			return nil
		}, nil
	}
	return args, func(string) error { return nil }, nil
}

// table is a text's lines without comments, outer space and empty lines.
func table(text string) []string {
	var rows []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			rows = append(rows, line)
		}
	}
	return rows
}

type differError string

func (e differError) Error() string { return "-want +got:\n" + string(e) }

func differ(want, got any) error {
	if d := cmp.Diff(want, got); d != "" {
		return differError(d)
	}
	return nil
}
