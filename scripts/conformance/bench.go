package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// bench is the state that all checks of a run share.
type bench struct {
	ctx      context.Context
	o        options
	dir      string // files of this run
	conf     string // text of the configuration
	versions []string
	version  string // the newest
	self     string // path of this program

	daemon      *lab.Process
	calm        snapshot // state of a host without pods, with a daemon
	sharedHost  *space   // the daemon's host, or this machine's own namespace
	sharedOther *space
}

// placeholder in a configuration stands for a directory: one for each check, or one for the run if there is
// a daemon.
const placeholder = "@STATE@"

// measure runs the selected checks.
func measure(ctx context.Context, o options) (r *report, err error) {
	b := &bench{ctx: ctx, o: o, calm: snapshot{}}
	if err := b.setUp(); err != nil {
		return nil, errors.Join(err, b.tearDown())
	}
	defer func() { err = errors.Join(err, b.tearDown()) }()
	net, err := b.network("probe", b.sharedState())
	if err != nil {
		return nil, err
	}
	r = &report{Plugins: net.types(), Versions: b.versions, Totals: map[level]levelTotals{}}
	b.runAll(func(out outcome) {
		r.add(out)
		if !o.json {
			printOutcome(os.Stdout, out)
		}
	})
	return r, context.Cause(ctx)
}

// runAll runs the selected checks and passes their outcomes to hand in order. Checks that have their own
// hosts run several at a time: first those that only wait, last those that run alone.
func (b *bench) runAll(hand func(outcome)) {
	type job struct {
		check   check
		version string
		done    chan outcome
	}
	var jobs []job
	for _, c := range b.o.selected() {
		for _, version := range b.versionsOf(c) {
			jobs = append(jobs, job{c, version, make(chan outcome, 1)})
		}
	}
	workers := b.o.parallel
	if b.sharedHost != nil {
		workers = 1
	}
	do := func(i int) {
		j := jobs[i]
		out := outcome{ID: j.check.id, Level: j.check.level, Status: "skip", Seen: "the run was ended"}
		if b.ctx.Err() == nil {
			out = b.one(j.check, j.version, i+1)
		}
		j.done <- out
	}
	go func() {
		var together, alone []int
		for i, j := range jobs {
			switch {
			case j.check.alone || workers == 1:
				alone = append(alone, i)
			case j.check.idle:
				go do(i)
			default:
				together = append(together, i)
			}
		}
		var g errgroup.Group
		g.SetLimit(workers)
		for _, i := range together {
			g.Go(func() error { do(i); return nil })
		}
		_ = g.Wait() // the outcomes have the errors
		for _, i := range alone {
			do(i)
		}
	}()
	for _, j := range jobs {
		hand(<-j.done)
	}
}

// versionsOf returns the versions in which a check runs: the newest version, or each version that has the
// subject of the check.
func (b *bench) versionsOf(c check) []string {
	if !c.each {
		return []string{b.version}
	}
	var out []string
	for _, v := range b.versions {
		if !before(v, c.since) {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return []string{b.version}
	}
	return out
}

func (b *bench) one(c check, version string, seq int) outcome {
	id := c.id
	if c.each {
		id += "/" + version
	}
	skip := func(why string) outcome {
		return outcome{ID: id, Level: c.level, Section: c.section, Asks: c.asks, Status: "skip", Seen: why}
	}
	t := &T{bench: b, seq: seq, dir: filepath.Join(b.dir, fmt.Sprint(seq))}
	defer os.RemoveAll(t.dir)
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return skip("the harness: " + err.Error())
	}
	if err := t.prepare(version); err != nil {
		return skip("the harness: " + err.Error())
	}
	defer t.dismantle()
	if why := t.lacks(c, version); why != "" {
		return skip(why)
	}
	return t.do(c, id)
}

// prepare gives the check its host, state directory and configuration.
func (t *T) prepare(version string) (err error) {
	t.host, t.outside, t.state = t.sharedHost, t.sharedOther, t.sharedState()
	if t.host == nil {
		if t.host, t.outside, err = newHost(filepath.Join(t.dir, "netns")); err != nil {
			return err
		}
	}
	if t.state == "" && strings.Contains(t.conf, placeholder) {
		t.state = filepath.Join(t.dir, "state")
		if err := os.Mkdir(t.state, 0o755); err != nil {
			return err
		}
	}
	if t.net, err = t.network(fmt.Sprintf("conformance-%d-%d", os.Getpid(), t.seq), t.state); err != nil {
		return err
	}
	t.net.version = version
	return nil
}

func (t *T) dismantle() {
	if t.host != t.sharedHost {
		t.host.remove()
		t.outside.remove()
	}
}

// lacks says why a check cannot run here. "" means that it can.
func (t *T) lacks(c check, version string) string {
	if c.since != "" && before(version, c.since) {
		return fmt.Sprintf("version %s does not have it; %s does", version, c.since)
	}
	_, noStrace := exec.LookPath("strace")
	for _, n := range []struct {
		need  need
		lacks bool
		why   string
	}{
		{needRanges, !t.net.hasRanges(), "the configuration has no ipam.ranges or ipam.subnet in host-local's syntax"},
		{needState, t.state == "" || t.sharedHost != nil, "needs a state directory for each check: " + placeholder + " in the configuration, and no daemon"},
		{needFresh, t.sharedHost != nil, "needs a fresh host for each check: not with --daemon or --host-netns current"},
		{needPrivate, t.o.current, "needs a mount namespace of its own: not with --host-netns current"},
		{needMasq, t.net.plugins[0]["ipMasq"] != true, "the configuration has no ipMasq"},
		{needDaemon, t.daemon == nil, "no daemon runs beside the plugin, or --daemon does not name it"},
		{needStrace, noStrace != nil, "strace is not installed"},
	} {
		if c.needs&n.need != 0 && n.lacks {
			return n.why
		}
	}
	return ""
}

// sharedState is the state directory of the run, or "" if each check has its own.
func (b *bench) sharedState() string {
	if (b.o.daemon != "" || b.o.current) && strings.Contains(b.conf, placeholder) {
		return filepath.Join(b.dir, "state")
	}
	return ""
}

func (b *bench) setUp() (err error) {
	text, err := os.ReadFile(b.o.conf)
	if err != nil {
		return err
	}
	b.conf = string(text)
	if b.dir, err = os.MkdirTemp("", "cni-conf-"); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if !b.o.current {
		// Namespaces are mounted in this directory. Its files need not survive.
		if err := unix.Mount("conformance", b.dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a temporary file system: %w", err)
		}
	}
	for _, d := range []string{"bin", "state"} {
		if err := os.Mkdir(filepath.Join(b.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink(b.self, filepath.Join(b.dir, "bin", fakeIPAM)); err != nil {
		return err
	}
	if b.o.current {
		own, err := lab.OpenSpace("/proc/self/ns/net")
		if err != nil {
			return err
		}
		if b.sharedHost, err = ask(own); err != nil {
			return err
		}
	} else if b.o.daemon != "" {
		if b.sharedHost, b.sharedOther, err = newHost(filepath.Join(b.dir, "netns")); err != nil {
			return err
		}
		if err := b.startDaemon(b.sharedHost); err != nil {
			return err
		}
	}
	return b.findVersions()
}

func (b *bench) tearDown() error {
	b.stopDaemon()
	for _, s := range []*space{b.sharedHost, b.sharedOther} {
		if s != nil {
			s.remove()
		}
	}
	if b.dir == "" {
		return nil
	}
	if !b.o.current {
		_ = unix.Unmount(b.dir, unix.MNT_DETACH) // it may not be mounted yet
	}
	return os.RemoveAll(b.dir)
}

func (b *bench) path() []string { return append([]string{filepath.Join(b.dir, "bin")}, b.o.cniPath...) }

// find returns the path of a plugin's executable.
func (b *bench) find(kind string) (string, error) {
	for _, dir := range b.path() {
		p := filepath.Join(dir, kind)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("plugin %s is not in %s; use --cni-path", kind, strings.Join(b.o.cniPath, ":"))
}

// known returns the versions that the harness can judge, oldest first.
func known() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// before compares protocol versions. "" is before all others.
func before(v, than string) bool { return slices.Index(known(), v) < slices.Index(known(), than) }

// findVersions asks every plugin of the list for its supported versions.
func (b *bench) findVersions() error {
	net, err := b.network("probe", b.sharedState())
	if err != nil {
		return err
	}
	want := b.o.versions
	if want == nil {
		want = known()
	}
	for _, v := range want {
		if !slices.Contains(known(), v) {
			return fmt.Errorf("version %q cannot be measured; known are %v", v, known())
		}
	}
	for _, kind := range net.types() {
		supported, err := b.supported(kind)
		if err != nil {
			return err
		}
		want = slices.DeleteFunc(slices.Clone(want), func(v string) bool { return !slices.Contains(supported, v) })
	}
	if len(want) == 0 {
		return fmt.Errorf("no version that can be measured is supported by all of %v", net.types())
	}
	slices.SortFunc(want, func(a, c string) int { return slices.Index(known(), a) - slices.Index(known(), c) })
	b.versions, b.version = want, want[len(want)-1]
	return nil
}

func (b *bench) supported(kind string) ([]string, error) {
	path, err := b.find(kind)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION", "CNI_PATH="+strings.Join(b.path(), ":"))
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: VERSION: %w: %.200s", kind, err, out)
	}
	v, err := parseVersions(out)
	if err != nil {
		return nil, fmt.Errorf("%s: VERSION: %w", kind, err)
	}
	return v.Supported, nil
}
