package bgp

import (
	"fmt"
	"os"
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
	eventually(t, 30*time.Second, func() error {
		if out := bird.ask("show protocols all n0"); !strings.Contains(out, fmt.Sprintf("%d exported", unwanted+1)) {
			return fmt.Errorf("bird: %s", out)
		}
		return nil
	})
	after := p.report()
	resident := p.resident()
	if after.HeapMiB > 256 {
		t.Errorf("heap %d MiB", after.HeapMiB)
	}
	if r := p.sync(Session{Peer: peerOf(bird), Paths: pods(3)}); r.Err != "" {
		t.Error(r.Err)
	}
	bird.hears(5*time.Second, pods(3))
	p.end(syscall.SIGTERM)
	cpu := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	t.Logf("heap %d -> %d MiB, resident %d MiB, %v CPU", before.HeapMiB, after.HeapMiB, resident, cpu)
}

// resident is the process's resident set, in MiB.
func (p *daemon) resident() int {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return n >> 10
}
