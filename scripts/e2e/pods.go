package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// pod is a pod as the API server shows it.
type pod struct {
	Name, Node string
	Ready      bool
	Addrs      []netip.Addr // IPv4, IPv6
}

func (p pod) String() string { return fmt.Sprintf("%s on %s %v", p.Name, p.Node, p.Addrs) }

// object holds the fields that are read from a Node or a Pod.
type object struct {
	Metadata struct{ Name string }
	Spec     struct {
		NodeName string
		PodCIDRs []netip.Prefix
	}
	Status struct {
		PodIPs     []struct{ IP netip.Addr }
		Addresses  []struct{ Type, Address string } // of a node
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

func (o object) ready() (bool, string) {
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", strings.TrimSpace(c.Reason + " " + c.Message)
		}
	}
	return false, "no condition Ready yet"
}

// internalIP returns a node's address of like's family.
func (o object) internalIP(like netip.Addr) netip.Addr {
	for _, a := range o.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == "InternalIP" && addr.Is4() == like.Is4() {
			return addr
		}
	}
	return netip.Addr{}
}

func (s *stage) list(kind string) ([]object, error) {
	out, err := s.control.Kubectl("get", kind, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []object }
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

// pods lists the pods of the namespace "default", by name.
func (s *stage) pods() ([]pod, error) {
	items, err := s.list("pods")
	var all []pod
	for _, item := range items {
		p := pod{Name: item.Metadata.Name, Node: item.Spec.NodeName}
		p.Ready, _ = item.ready()
		for _, ip := range item.Status.PodIPs {
			p.Addrs = append(p.Addrs, ip.IP)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b pod) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// waitPods waits until there are count pods, all ready, each with an address of both families.
func (s *stage) waitPods(ctx context.Context, count int, limit time.Duration) (all []pod, err error) {
	err = lab.Wait(ctx, limit, func() error {
		if all, err = s.pods(); err != nil {
			return err
		}
		var wait []string
		for _, p := range all {
			if !p.Ready || len(p.Addrs) != 2 {
				wait = append(wait, p.String())
			}
		}
		if len(all) != count || len(wait) > 0 {
			return fmt.Errorf("%d pods, want %d; not ready: %s", len(all), count, strings.Join(wait, ", "))
		}
		return nil
	})
	return all, err
}

// sameAddrs returns nil if every pod of before is in after with the same name, node and addresses.
func sameAddrs(before, after []pod) error {
	var errs []error
	for _, b := range before {
		i := slices.IndexFunc(after, func(a pod) bool { return a.Name == b.Name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("%s is gone", b.Name))
		} else if a := after[i]; a.Node != b.Node || !slices.Equal(a.Addrs, b.Addrs) {
			errs = append(errs, fmt.Errorf("%s was %v, is %v", b.Name, b, a))
		}
	}
	return errors.Join(errs...)
}

// who parses a pod's answer to a request: the pod's name, and the client address that the pod saw.
func who(answer string) (name string, saw netip.Addr, err error) {
	name, addr, _ := strings.Cut(strings.TrimSpace(answer), " ")
	saw, err = netip.ParseAddr(strings.Trim(addr, "[]"))
	return name, saw.Unmap(), err
}

func url(addr netip.Addr) string {
	return "http://" + netip.AddrPortFrom(addr, 80).String() + "/cgi-bin/who"
}

// wantAnswer returns nil if the machine reaches the pod at an address and the pod sees the machine's own
// address.
func wantAnswer(ctx context.Context, m *lab.Machine, p pod, addr netip.Addr) error {
	out, err := m.Run(ctx, "busybox", "timeout", "5", "busybox", "wget", "-qO-", url(addr))
	if err != nil {
		return fmt.Errorf("%s at %s: %w", p.Name, addr, err)
	}
	name, saw, err := who(out)
	if err != nil || name != p.Name || !slices.Contains(m.Addrs, saw) {
		return fmt.Errorf("%s asks %s at %s: answer %q; want %s and an address of %v", m.Name, p.Name, addr, out, p.Name, m.Addrs)
	}
	return nil
}

// wantAllPairs returns nil if each pod reaches each pod at both addresses and is seen there with its own
// address. It also returns the number of requests.
func (s *stage) wantAllPairs(ctx context.Context, pods []pod) (count int, err error) {
	var script strings.Builder
	for _, to := range pods {
		for _, addr := range to.Addrs {
			fmt.Fprintf(&script, "echo %s %s $(/bin/busybox timeout 5 /bin/busybox wget -qO- '%s')\n", to.Name, addr, url(addr))
		}
	}
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(3)
	for _, from := range pods {
		group.Go(func() error {
			out, err := s.control.Kubectl("exec", from.Name, "--", "/bin/sh", "-c", script.String())
			if err != nil {
				return err
			}
			return from.saw(out)
		})
	}
	return len(pods) * len(pods) * 2, group.Wait()
}

func (p pod) saw(out string) error {
	var errs []error
	for line := range strings.Lines(out) {
		want, rest, _ := strings.Cut(line, " ")
		to, answer, _ := strings.Cut(rest, " ")
		addr, err := netip.ParseAddr(strings.TrimSpace(to))
		if err != nil {
			return fmt.Errorf("%s printed %q: %w", p.Name, line, err)
		}
		name, saw, err := who(answer)
		if err != nil || name != want || saw.Is4() != addr.Is4() || !slices.Contains(p.Addrs, saw) && saw != addr {
			errs = append(errs, fmt.Errorf("%v asks %s at %s: answer %q", p, want, addr, answer))
		}
	}
	return errors.Join(errs...)
}
