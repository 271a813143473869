package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
)

// pace is how patient the tool is. Tests are less patient.
type pace struct {
	poll  time.Duration // between two looks
	start time.Duration // how long starting the instance again is tried
}

func defaultPace() pace { return pace{poll: 2 * time.Second, start: 10 * time.Minute} }

// mostRefusals is how often a step may be refused before it has failed: a list can be a few seconds old, and then
// a step is tried that is done already.
const mostRefusals = 3

// binding is one run. Every step looks at the cloud first and does only what is missing, so it does not matter
// which step an earlier run reached, or whether the answer of a call was lost.
//
//	create what is missing -> stop -> attach one by one -> start, whatever happened
type binding struct {
	options
	cloud *cloud.Client
	out   output
	pace  pace
	// stopping says that a call to stop the instance was made and no look has shown its effect yet.
	stopping bool
}

func (b *binding) bind(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.timeout, fmt.Errorf("not done within %v (--timeout)", b.timeout))
	defer cancel()
	i, err := b.look(ctx)
	if err != nil {
		return err
	}
	bound, err := b.bound(ctx)
	if err != nil {
		return err
	}
	missing := b.eniNumber - len(bound)
	b.out.say("instance %s: %s, %d of %d secondary interfaces", i.ID, i.Status, len(bound), b.eniNumber)
	attached := !slices.ContainsFunc(bound, func(n cloud.Interface) bool { return n.Status != cloud.InUse })
	switch {
	case missing <= 0 && attached && i.Status == cloud.Running:
		return nil
	case b.dryRun:
		return b.rehearse(i, missing)
	}
	var ready []cloud.Interface
	if missing > 0 {
		if ready, err = b.create(ctx, missing); err != nil && i.Status == cloud.Running {
			return err
		}
	}
	// From here on the instance can be down. It is started again although ctx has ended.
	defer func() { err = errors.Join(err, b.start(context.WithoutCancel(ctx))) }()
	if err != nil || missing <= 0 && attached {
		return err
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	for _, n := range append(bound, ready...) {
		if err := b.attach(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// look reads the instance, and takes the defaults from it.
func (b *binding) look(ctx context.Context) (i cloud.Instance, err error) {
	err = b.until(ctx, "describe instance "+b.instance, func() (bool, error) {
		i, err = b.read(ctx)
		return err == nil, err
	})
	if err != nil {
		return i, err
	}
	if b.vswitch == "" {
		b.vswitch = i.VSwitch
	}
	if b.securityGroup == "" && len(i.Groups) > 0 {
		b.securityGroup = i.Groups[0]
	}
	switch {
	case !slices.Contains([]string{cloud.Running, cloud.Starting, cloud.Stopping, cloud.Stopped}, i.Status):
		err = fmt.Errorf("instance %s is %s; it must be Running or Stopped", i.ID, i.Status)
	case b.vswitch == "":
		err = fmt.Errorf("instance %s names no vSwitch; set --vswitch", i.ID)
	case b.securityGroup == "":
		err = fmt.Errorf("instance %s names no security group; set --securityGroup", i.ID)
	}
	return i, err
}

func (b *binding) read(ctx context.Context) (cloud.Instance, error) {
	all, err := b.cloud.Instances(ctx, b.instance)
	switch {
	case err != nil:
		return cloud.Instance{}, err
	case len(all) != 1:
		return cloud.Instance{}, errNoInstance
	}
	return all[0], nil
}

var errNoInstance = errors.New("no such instance at this endpoint; check --instance and --region")

// bound lists the secondary interfaces of the instance, also those that are not attached yet.
func (b *binding) bound(ctx context.Context) (out []cloud.Interface, err error) {
	err = b.until(ctx, "list interfaces of "+b.instance, func() (bool, error) {
		all, err := b.cloud.Interfaces(ctx, cloud.Filter{Instance: b.instance})
		out = slices.DeleteFunc(all, func(n cloud.Interface) bool { return n.Primary })
		return err == nil, err
	})
	return out, err
}

func (b *binding) rehearse(i cloud.Instance, missing int) error {
	for range missing {
		b.out.say("would create an interface in %s with %s, or reuse an interface of an earlier run", b.vswitch, b.securityGroup)
	}
	if i.Status == cloud.Running {
		b.out.say("would stop %s", i.ID)
	}
	if missing > 0 {
		b.out.say("would attach %d interfaces", missing)
	}
	b.out.say("would start %s", i.ID)
	return nil
}

// prefix begins the name of every interface that the tool makes for the instance. By its name a later run finds
// an interface whose making was not answered.
func (b *binding) prefix() string { return "edgeway-" + b.instance + "-" }

// create returns interfaces to attach: those that an earlier run left, and new interfaces.
func (b *binding) create(ctx context.Context, missing int) (ready []cloud.Interface, err error) {
	name, unseen := "", 0 // of the last call, and how many more lists may lack it
	err = b.until(ctx, "create an interface", func() (bool, error) {
		all, err := b.cloud.Interfaces(ctx, cloud.Filter{VSwitch: b.vswitch})
		if err != nil {
			return false, err
		}
		ready = nil
		taken := map[string]bool{}
		for _, n := range all {
			if strings.HasPrefix(n.Name, b.prefix()) {
				taken[n.Name] = true
				if n.Status == cloud.Available && len(ready) < missing {
					ready = append(ready, n)
				}
			}
		}
		if len(ready) == missing {
			return true, nil
		}
		if unseen > 0 && !taken[name] { // it can exist, and the list can be too old to show it
			unseen--
			return false, nil
		}
		name = b.prefix() + "1"
		for n := 1; taken[name]; n++ {
			name = fmt.Sprint(b.prefix(), n)
		}
		b.out.say("create %s in %s with %s", name, b.vswitch, b.securityGroup)
		if _, err = b.cloud.CreateInterface(ctx, cloud.NewInterface{Name: name, VSwitch: b.vswitch, Groups: []string{b.securityGroup}}); err == nil || cloud.Is(err, cloud.Unreachable) {
			unseen = mostRefusals
		}
		return false, err
	})
	return ready, err
}

func (b *binding) stop(ctx context.Context) error {
	said := false
	return b.until(ctx, "stop "+b.instance, func() (bool, error) {
		i, err := b.read(ctx)
		if err != nil || i.Status != cloud.Running {
			b.stopping = b.stopping && err != nil
			return i.Status == cloud.Stopped, err
		}
		b.stopping = true
		if !said {
			b.out.say("stop %s: it is down until it has been started again", b.instance)
			said = true
		}
		return false, b.cloud.StopInstance(ctx, b.instance)
	})
}

func (b *binding) attach(ctx context.Context, n cloud.Interface) error {
	said := false
	return b.until(ctx, "attach "+n.ID, func() (bool, error) {
		all, err := b.cloud.Interfaces(ctx, cloud.Filter{Instance: b.instance})
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(all, func(o cloud.Interface) bool { return o.ID == n.ID }); i >= 0 {
			return all[i].Status == cloud.InUse, nil
		}
		if !said {
			b.out.say("attach %s", n.ID)
			said = true
		}
		return false, b.cloud.AttachInterface(ctx, n.ID, b.instance)
	})
}

// start starts the instance. A refusal is no reason to give up: an interface can be on its way.
func (b *binding) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.pace.start, fmt.Errorf("not running within %v; start it in the console", b.pace.start))
	defer cancel()
	said := false
	running := 0
	return b.until(ctx, "start "+b.instance, func() (bool, error) {
		i, err := b.read(ctx)
		if err != nil {
			return false, err
		}
		if i.Status == cloud.Running {
			running++ // a look can be too old to show that the instance stops
			return !b.stopping || running > mostRefusals, nil
		}
		b.stopping = false
		if !said {
			b.out.say("start %s", b.instance)
			said = true
		}
		if i.Status != cloud.Stopped {
			return false, nil
		}
		if err = b.cloud.StartInstance(ctx, b.instance); cloud.Is(err, cloud.Refused) {
			_, err = b.cloud.Interfaces(ctx, cloud.Filter{Instance: b.instance})
		}
		return false, err
	})
}

// until repeats a step until it is done. A call without an answer, or one too many, is tried again after a look.
func (b *binding) until(ctx context.Context, what string, step func() (done bool, err error)) error {
	refusals := 0
	wait := b.pace.poll
	for {
		done, err := step()
		switch {
		case ctx.Err() != nil && !done:
			return fmt.Errorf("%s: %w", what, errors.Join(context.Cause(ctx), err))
		case err == nil && done:
			return nil
		case err == nil:
			wait = b.pace.poll
		case cloud.Is(err, cloud.Throttled), cloud.Is(err, cloud.Unreachable):
			b.out.say("%s: %v; trying again", what, err)
			wait = min(2*wait, 16*b.pace.poll)
		case cloud.Is(err, cloud.Refused):
			if refusals++; refusals > mostRefusals {
				return fmt.Errorf("%s: %w", what, err)
			}
		default:
			return fmt.Errorf("%s: %w", what, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

// list prints the interfaces of the instance, and the interfaces of the tool that are left over.
func (b *binding) list(ctx context.Context) {
	ctx = context.WithoutCancel(ctx) // each call is bounded
	all, err := b.cloud.Interfaces(ctx, cloud.Filter{Instance: b.instance})
	if err != nil {
		b.out.say("list interfaces of %s: %v", b.instance, err)
		return
	}
	if b.vswitch != "" {
		others, err := b.cloud.Interfaces(ctx, cloud.Filter{VSwitch: b.vswitch})
		if err != nil {
			b.out.say("list interfaces of %s: %v", b.vswitch, err)
		}
		for _, n := range others {
			if n.Status == cloud.Available && strings.HasPrefix(n.Name, b.prefix()) {
				all = append(all, n)
			}
		}
	}
	w := tabwriter.NewWriter(b.out.table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INTERFACE\tNAME\tMAC\tADDRESS\tVSWITCH\tSTATUS")
	pods := 0
	for _, n := range all {
		name := n.Name
		if n.Primary {
			name = "(primary)"
		} else if n.Status == cloud.InUse {
			pods += cloud.MostAddresses
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, name, n.MAC, n.Address, n.VSwitch, n.Status)
	}
	w.Flush()
	fmt.Fprintf(b.out.table, "maxPods: %d + host-network pods\n", pods)
}
