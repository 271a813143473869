package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// variant is edgeway with one setting, to be compared with edgeway with another.
type variant struct {
	*contender
	cells map[int]*verbs // by pods at once
}

// versus has the variants take turns: one pod at a time, and 32 at once.
func (b *bench) versus(ctx context.Context, all []variant) error {
	rounds, limit := 6, 2500*time.Millisecond
	if b.quick {
		rounds = 2
	}
	for _, at := range variantsAt {
		pods := variantPods
		if at == 1 {
			pods /= 2
		}
		for i := range all {
			all[i].cells[at] = &verbs{}
		}
		for round := range rounds {
			for _, i := range rotated(len(all), round) {
				v, err := all[i].round(ctx, fmt.Sprintf("%02d%02d", at, round), at, pods, limit)
				if err != nil {
					return err
				}
				all[i].cells[at].add.add(v.add)
				all[i].cells[at].del.add(v.del)
			}
		}
	}
	return nil
}

// variantPods is the number of pods of each variant.
const variantPods = 64

// variantsAt are the numbers of pods at once.
var variantsAt = []int{1, 32} // read only

// alone makes an arena that has only edgeway and its daemon, whose executables are in bin.
func (b *bench) alone(ctx context.Context, f family, bin string, pods int) (*arena, error) {
	only := *b
	only.own, only.bin = true, bin
	return only.newArena(ctx, f, pods)
}

// masquerade compares pods that have source NAT with pods that do not.
func (b *bench) masquerade(ctx context.Context) error {
	a, err := b.alone(ctx, v4, b.bin, variantPods)
	if a != nil {
		defer a.close()
	}
	if err != nil {
		return err
	}
	plain := a.contenders[0]
	masked := *plain // the same daemon, and the same pods in its own rounds
	masked.name, masked.conf = "edgeway with ipMasq", maps.Clone(plain.conf)
	masked.conf["ipMasq"] = true
	all := []variant{{plain, map[int]*verbs{}}, {&masked, map[int]*verbs{}}}
	if err := b.versus(ctx, all); err != nil {
		return err
	}
	b.toFirst(all, table{Name: "pods/masquerade", Title: "Source NAT for a pod: ADD and DEL, IPv4"}, "to plain")
	return nil
}

// toFirst adds a table of the variants, as ratios to the first.
func (b *bench) toFirst(all []variant, t table, ratios string) {
	t.Columns = columns("pods at once", "plugin", "ADD p50 (ms)", ratios, "CPU (ms)", ratios, "DEL p50 (ms)", ratios, "pods")
	for _, at := range variantsAt {
		base := all[0].cells[at]
		for _, v := range all {
			c := v.cells[at]
			add, cpu := ratio(c.add.p50(), base.add.p50()), ratio(c.add.cpuEach(), base.add.cpuEach())
			t.row(at, v.name, ms(c.add.p50()), add, ms(c.add.cpuEach()), cpu, ms(c.del.p50()), ratio(c.del.p50(), base.del.p50()), len(c.add.took))
			name := strings.TrimPrefix(t.Name, "pods/")
			b.out.keep(fmt.Sprintf("%s/%d/add", name, at), add)
			b.out.keep(fmt.Sprintf("%s/%d/cpu", name, at), cpu)
		}
	}
	b.out.add(t)
}

// setting is edgeway in one of the ways that are compared.
type setting struct {
	name    string
	family  family
	command string // starts the daemon; "": the daemon starts as it is
}

// compare has daemons with these settings take turns, and shows the results while the daemons still run.
func (b *bench) compare(ctx context.Context, settings []setting, show func([]variant) error) error {
	var all []variant
	for _, s := range settings {
		bin := b.bin
		if s.command != "" {
			var err error
			if bin, err = b.started(s.command); err != nil {
				return err
			}
		}
		a, err := b.alone(ctx, s.family, bin, variantPods)
		if a != nil {
			defer a.close()
		}
		if err != nil {
			return err
		}
		a.contenders[0].name = s.name
		all = append(all, variant{a.contenders[0], map[int]*verbs{}})
	}
	if err := b.versus(ctx, all); err != nil {
		return err
	}
	return show(all)
}

// uplinks compares a node whose pods have addresses of an uplink with a node that has a pod CIDR.
func (b *bench) uplinks(ctx context.Context) error {
	settings := []setting{{"edgeway with a pod CIDR", v4, ""}, {"edgeway with an uplink", uplink, ""}}
	return b.compare(ctx, settings, func(all []variant) error {
		b.toFirst(all, table{Name: "pods/uplinks", Title: "A pod with an address of an uplink: ADD and DEL"}, "to a pod CIDR")
		return nil
	})
}

// fsyncDelay is what a slow disk adds to each fsync.
const fsyncDelay = 2 * time.Millisecond

// slowDisk compares a daemon whose fsyncs take fsyncDelay longer with one whose fsyncs do not. strace(1)
// delays them. It runs beside both daemons, and stops them at these calls only.
func (b *bench) slowDisk(ctx context.Context) error {
	return b.compare(ctx, []setting{{"as it is", v4, delayed(0)}, {"2 ms slower", v4, delayed(fsyncDelay)}}, func(all []variant) error {
		b.slowDiskTable(all)
		return nil
	})
}

func (b *bench) slowDiskTable(all []variant) {
	t := table{Name: "pods/slowdisk", Title: "A disk whose fsyncs take 2 ms longer: ADD and DEL, IPv4",
		Columns: columns("pods at once", "fsync", "ADD p50 (ms)", "longer (ms)", "fsyncs waited for", "ADDs/s", "DEL p50 (ms)", "longer (ms)", "DELs/s", "pods")}
	for _, at := range variantsAt {
		base := all[0].cells[at]
		for _, v := range all {
			c := v.cells[at]
			longer := c.add.p50() - base.add.p50()
			var waited any // 32 at once also wait for each other
			if at == 1 {
				waited = ratio(longer, fsyncDelay)
				b.out.keep("slowdisk/1/fsyncs", ratio(longer, fsyncDelay))
			}
			t.row(at, v.name, ms(c.add.p50()), ms(longer), waited, c.add.rate(), ms(c.del.p50()), ms(c.del.p50()-base.del.p50()), c.del.rate(), len(c.add.took))
		}
	}
	t.note("A commit has two fsyncs, one after the other. strace delays them in the daemon, and is beside both daemons.")
	b.out.add(t)
}

// delayed is the command that starts the daemon under strace. -D keeps the daemon's process ID, and --seccomp-bpf
// stops the daemon at no other call.
func delayed(delay time.Duration) string {
	return fmt.Sprintf("strace -D -f -qq --seccomp-bpf -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_exit=%d", delay.Microseconds())
}

// started makes a directory of executables whose daemon is started by a command.
func (b *bench) started(command string) (bin string, err error) {
	if bin, err = os.MkdirTemp(b.dir, "bin-"); err != nil {
		return "", err
	}
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = run ] || exec %s/edgewayd \"$@\"\nexec %s %s/edgewayd \"$@\"\n", b.bin, command, b.bin)
	return bin, errors.Join(os.WriteFile(filepath.Join(bin, "edgewayd"), []byte(script), 0o755),
		os.Symlink(filepath.Join(b.bin, "edgeway"), filepath.Join(bin, "edgeway")))
}

// garbage compares daemons that let garbage grow to shares of what is in use, in percent (GOGC).
func (b *bench) garbage(ctx context.Context) error {
	var settings []setting
	for _, share := range []string{"50", "100", "400"} {
		settings = append(settings, setting{share, v4, "env GOGC=" + share})
	}
	return b.compare(ctx, settings, b.garbageTable)
}

// garbageTable reads the memory of the daemons, which still run.
func (b *bench) garbageTable(all []variant) error {
	t := table{Name: "pods/garbage", Title: "Garbage in the daemon's memory: ADD and DEL, IPv4",
		Columns: columns("pods at once", "GOGC", "ADD p50 (ms)", "CPU (ms)", "daemon's (ms)", "DEL p50 (ms)", "CPU (ms)", "daemon's (ms)", "anonymous memory (MiB)", "pods")}
	for _, at := range variantsAt {
		for _, v := range all {
			c := v.cells[at]
			kib, err := strconv.ParseFloat(strings.TrimSuffix(field(fmt.Sprintf("/proc/%d/smaps_rollup", v.node.PID()), "Anonymous"), " kB"), 64)
			if err != nil {
				return err
			}
			t.row(at, v.name, ms(c.add.p50()), ms(c.add.cpuEach()), ms(c.add.each(c.add.daemon)),
				ms(c.del.p50()), ms(c.del.cpuEach()), ms(c.del.each(c.del.daemon)), kib/1024, len(c.add.took))
		}
	}
	t.note("edgewayd sets 50 where GOGC is not in its environment. The memory is that of the daemon alone, after all rounds.")
	b.out.add(t)
	return nil
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
