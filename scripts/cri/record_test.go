package cri

import (
	"fmt"
	"os"
	"strings"
)

// verbCall is one call of our plugin, as the runtime made it.
type verbCall struct {
	Verb, Container string
	// Netns is empty in a DEL that comes after the namespace is gone.
	Netns      string
	PrevResult bool
}

// recorder is a script in place of the plugin. It records the call and executes the plugin, but not while
// the file RECORD.hold exists.
const recorder = `#!/bin/sh
config=$(cat)
case $config in *'"prevResult"'*) prev=prevResult ;; *) prev=- ;; esac
echo "$CNI_COMMAND ${CNI_CONTAINERID:--} ${CNI_NETNS:--} $prev" >>RECORD
while [ -e RECORD.hold ]; do sleep 0.02; done
printf %s "$config" | PLUGIN
`

func writeRecorder(path, plugin, record string) error {
	script := strings.NewReplacer("PLUGIN", plugin, "RECORD", record).Replace(recorder)
	return os.WriteFile(path, []byte(script), 0o755)
}

// readRecord returns the calls so far.
func readRecord(path string) ([]verbCall, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var calls []verbCall
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 4 {
			return nil, fmt.Errorf("%s: %q: want four words", path, line)
		}
		for i, w := range words {
			if w == "-" {
				words[i] = ""
			}
		}
		calls = append(calls, verbCall{Verb: words[0], Container: words[1], Netns: words[2], PrevResult: words[3] != ""})
	}
	return calls, nil
}

// String returns the call as a line: "DEL, no netns, prevResult".
func (c verbCall) String() string {
	s := c.Verb
	if c.Netns == "" {
		s += ", no netns"
	}
	if c.PrevResult {
		s += ", prevResult"
	}
	return s
}
