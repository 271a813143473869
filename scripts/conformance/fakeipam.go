package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// fakeIPAM is the plugin type under which this program is an IPAM plugin. The plugin under measurement
// executes it. The fake records its calls and answers as its configuration says.
const fakeIPAM = "conformance-ipam"

type fakeNote struct {
	Env   map[string]string `json:"env"` // variables that begin with CNI_
	Stdin json.RawMessage   `json:"stdin"`
}

const fakeWord = "a word of the ipam plugin on standard error"

// serveFakeIPAM is the fake's main. The keys of its ipam section are: log (a file), result (an object for
// ADD), fail (a list of commands), garbage (standard output of ADD), hang (no answer while the caller
// lives).
func serveFakeIPAM(stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	in, err := io.ReadAll(stdin)
	if err != nil {
		return statusFail
	}
	note := fakeNote{Env: map[string]string{}, Stdin: in}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "CNI_") {
			note.Env[k] = v
		}
	}
	command := note.Env["CNI_COMMAND"]
	if command == "VERSION" {
		fmt.Fprintf(stdout, `{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return statusPass
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
		IPAM       struct {
			Log     string   `json:"log"`
			Result  object   `json:"result"`
			Fail    []string `json:"fail"`
			Garbage string   `json:"garbage"`
			Hang    bool     `json:"hang"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal(in, &conf); err != nil || conf.IPAM.Log == "" {
		return statusFail
	}
	line, err := json.Marshal(note)
	if err != nil {
		return statusFail
	}
	f, err := os.OpenFile(conf.IPAM.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return statusFail
	}
	defer f.Close()
	fmt.Fprintf(f, "%s\n", line)
	fmt.Fprintln(stderr, fakeWord)
	for caller := os.Getppid(); conf.IPAM.Hang && os.Getppid() == caller; { // nothing else would end the fake
		time.Sleep(100 * time.Millisecond)
	}
	for _, c := range conf.IPAM.Fail {
		if c == command {
			fmt.Fprintf(stdout, `{"cniVersion":%q,"code":123,"msg":"the fake fails","details":"as it was told"}`, conf.CNIVersion)
			return statusFail
		}
	}
	switch {
	case command == "ADD" && conf.IPAM.Garbage != "":
		fmt.Fprint(stdout, conf.IPAM.Garbage)
	case command == "ADD":
		conf.IPAM.Result["cniVersion"] = conf.CNIVersion
		_ = json.NewEncoder(stdout).Encode(conf.IPAM.Result) // a caller that has gone is not our failure
	}
	return statusPass
}

// delegating returns the network with the fake as its IPAM plugin; extra adds to the fake's configuration.
func (t *T) delegating(extra object) network {
	address, gateway := "10.222.0.7/24", "10.222.0.1"
	ip := object{"address": address, "gateway": gateway}
	if before(t.net.version, "1.0.0") {
		ip["version"] = "4"
	}
	ipam := object{"type": fakeIPAM, "log": filepath.Join(t.dir, "ipam.log"),
		"result": object{"ips": []object{ip}, "routes": []object{{"dst": "0.0.0.0/0"}}, "dns": object{}}}
	for k, v := range extra {
		ipam[k] = v
	}
	return t.net.only().with("ipam", ipam)
}

// fakeNotes returns the fake's calls of one command.
func (t *T) fakeNotes(command string) (out []fakeNote) {
	b, err := os.ReadFile(filepath.Join(t.dir, "ipam.log"))
	if err != nil {
		return nil
	}
	for _, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
		var n fakeNote
		if json.Unmarshal(line, &n) == nil && n.Env["CNI_COMMAND"] == command {
			out = append(out, n)
		}
	}
	return out
}
