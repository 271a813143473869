package bgp

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// 5,000 paths in two sessions are sent within seconds, and cost little.
func TestScalePaths(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := bothSwitches(l)
	p := l.start(t, Session{Peer: peerOf(bird), Paths: nil}, Session{Peer: peerOf(frr), Paths: nil})
	idle := p.established(2)
	begun, before := time.Now(), p.used()
	r := p.sync(Session{Peer: peerOf(bird), Paths: manyPaths()}, Session{Peer: peerOf(frr), Paths: manyPaths()})
	bird.hears(manyPaths())
	frr.hears(manyPaths())
	all, used := time.Since(begun), p.used()-before
	full := p.report()
	t.Logf("Sync %d ms, in both kernels after %v, %v of CPU; heap %d -> %d MiB, resident %d MiB, %d goroutines",
		r.TookMS, all.Round(time.Millisecond), used, idle.HeapMiB, full.HeapMiB, p.resident(), full.Goroutines)
	again := p.sync(Session{Peer: peerOf(bird), Paths: manyPaths()}, Session{Peer: peerOf(frr), Paths: manyPaths()})
	t.Logf("Sync without a change %d ms", again.TookMS)
	if len(again.Changes) != 0 {
		t.Errorf("%d changes, want none", len(again.Changes))
	}
	// A busy machine delays the paths, but costs little CPU. Work that grows with the square of the paths costs minutes.
	if full.HeapMiB > 64 || used > 10*time.Second {
		t.Errorf("too dear: %d MiB, %v of CPU", full.HeapMiB, used)
	}
}

// all returns the process and its sessions' processes.
func (p *daemon) all() []string {
	p.t.Helper()
	pids := []string{strconv.Itoa(p.cmd.Process.Pid)}
	threads, err := filepath.Glob("/proc/" + pids[0] + "/task/*/children")
	for _, name := range threads {
		children, err2 := os.ReadFile(name)
		err = errors.Join(err, err2)
		pids = append(pids, strings.Fields(string(children))...)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return pids
}

// used is the CPU time that all of them have used.
func (p *daemon) used() (sum time.Duration) {
	p.t.Helper()
	for _, pid := range p.all() {
		sum += cpuOf(p.t, pid)
	}
	return sum
}

// resident is the resident set of all of them, in MiB.
func (p *daemon) resident() (sum int) {
	p.t.Helper()
	for _, pid := range p.all() {
		sum += residentOf(p.t, pid)
	}
	return sum
}

// residentOf is the resident set of a process, in MiB.
func residentOf(t testing.TB, pid string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n >> 10
}

// cpuOf is the CPU time that a process has used.
func cpuOf(t testing.TB, pid string) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')'):]))
	user, err1 := strconv.Atoi(fields[12])
	system, err2 := strconv.Atoi(fields[13])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ, proc(5)
}
