package bgp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// 5,000 paths on two sessions: what it costs, and that it is done in seconds.
func TestScalePaths(t *testing.T) {
	l := newLAN(t)
	bird, frr := bothSwitches(t, l)
	p := startProcess(t, Session{Peer: peerOf(bird), Paths: nil}, Session{Peer: peerOf(frr), Paths: nil})
	idle := p.established(20*time.Second, 2)
	begun := time.Now()
	r := p.sync(Session{Peer: peerOf(bird), Paths: manyPaths()}, Session{Peer: peerOf(frr), Paths: manyPaths()})
	bird.hears(20*time.Second, manyPaths())
	frr.hears(20*time.Second, manyPaths())
	all := time.Since(begun)
	full := p.report()
	t.Logf("Sync %d ms, in both kernels after %v; heap %d -> %d MiB, resident %d MiB, %d goroutines",
		r.TookMS, all.Round(time.Millisecond), idle.HeapMiB, full.HeapMiB, p.resident(), full.Goroutines)
	again := p.sync(Session{Peer: peerOf(bird), Paths: manyPaths()}, Session{Peer: peerOf(frr), Paths: manyPaths()})
	t.Logf("Sync without a change %d ms", again.TookMS)
	if len(again.Changes) != 0 {
		t.Errorf("%d changes, want none", len(again.Changes))
	}
	if full.HeapMiB > 64 || r.TookMS > 10_000 {
		t.Errorf("too dear: %d MiB, %d ms", full.HeapMiB, r.TookMS)
	}
}

// A switch that sends a full table must not be what brings the node down.
func TestScaleUnwantedRoutes(t *testing.T) {
	const unwanted = 100_000
	l := newLAN(t)
	bird := l.router("bird", 1)
	c := nodeOf(bird)
	var b strings.Builder
	b.WriteString("protocol static s4 { ipv4;\n")
	for i := range unwanted {
		fmt.Fprintf(&b, "route %d.%d.%d.0/24 blackhole;\n", 20+i>>16, i>>8&255, i&255)
	}
	c.extra = b.String() + "}\n"
	bird.start(c)
	p := startProcess(t, Session{Peer: peerOf(bird), Paths: pods(2)})
	before := p.established(20*time.Second, 1)
	bird.hears(30*time.Second, pods(2))
	exported := func(n int) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			_, channel, _ := strings.Cut(bird.ask("show protocols all n0"), "Channel ipv4")
			if channel, _, _ = strings.Cut(channel, "Channel ipv6"); !strings.Contains(channel, fmt.Sprintf(" %d exported", n)) {
				return fmt.Errorf("bird: %s", channel)
			}
			return nil
		})
	}
	exported(unwanted + 1) // and the link's own prefix
	after := p.report()
	resident, used := p.resident(), p.used()
	if resident > 80 || used > 3*time.Second {
		t.Errorf("%d routes that nobody wants: %d MiB, %v", unwanted, resident, used)
	}
	// They come and go, all of them, again and again.
	for range 3 {
		bird.ask("disable s4")
		exported(1)
		bird.ask("enable s4")
		exported(unwanted + 1)
	}
	if r := p.sync(Session{Peer: peerOf(bird), Paths: pods(3)}); r.Err != "" {
		t.Error(r.Err)
	}
	bird.hears(5*time.Second, pods(3))
	t.Logf("heap %d -> %d MiB, resident %d MiB, %v CPU; after %d changes %d MiB, %v CPU", before.HeapMiB, after.HeapMiB, resident, used, 6*unwanted, p.resident(), p.used())
	p.end(syscall.SIGTERM)
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

// resident is the resident set of all of them, in MiB.
func (p *daemon) resident() (sum int) {
	p.t.Helper()
	for _, pid := range p.all() {
		b, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			p.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "VmRSS:")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			p.t.Fatal(err)
		}
		sum += n >> 10
	}
	return sum
}

// used is the CPU time that all of them have used.
func (p *daemon) used() (sum time.Duration) {
	p.t.Helper()
	for _, pid := range p.all() {
		sum += cpuOf(p.t, pid)
	}
	return sum
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
