package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// pair is the traffic from one end to another: a ping and a TCP connection of each family.
type pair struct {
	from, to end
	tried    int
	failed   []error
}

// pairs tests every pair with at least one pod.
func (s *stage) pairs(ctx context.Context) error {
	mirrors := map[string]*lab.Mirror{}
	for _, e := range s.ends {
		m, err := e.m.Serve()
		if err != nil {
			return err
		}
		defer m.Close()
		mirrors[e.name] = m
	}
	var all []*pair
	var mu sync.Mutex // guards the pairs' results
	var g errgroup.Group
	g.SetLimit(workers())
	for _, from := range s.ends {
		for _, to := range s.ends {
			if from.name == to.name || kindOf(from, to) == "" || from.part == "node" && to.node == "" {
				continue
			}
			p := &pair{from: from, to: to}
			all = append(all, p)
			g.Go(func() error {
				tried, failed := try(ctx, p, mirrors[to.name].Port())
				mu.Lock()
				defer mu.Unlock()
				p.tried, p.failed = tried, failed
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.out.heading("every pair: ping and TCP, in every family; the TCP server must see the sender's own address")
	s.matrix(all)
	for _, p := range all {
		err := errors.Join(p.failed...)
		if err != nil {
			err = fmt.Errorf("%s to %s: %w", p.from.name, p.to.name, err)
		}
		s.verdict.count(s.act.name, kindOf(p.from, p.to), p.tried, len(p.failed), err)
	}
	return nil
}

// try runs the pair's checks. The first packet may be sent before neighbour resolution has finished, so
// each check may take a few seconds.
func try(ctx context.Context, p *pair, port uint16) (tried int, failed []error) {
	for _, to := range p.to.m.Addrs {
		checks := []func() error{
			func() error {
				_, err := p.from.m.Ping(ctx, to)
				return err
			},
			func() error {
				saw, err := p.from.m.Seen(ctx, netip.AddrPortFrom(to, port))
				if own := p.from.m.Addr(to); err == nil && saw != own {
					err = fmt.Errorf("TCP to %s: it saw %s, want %s: translated on the way", to, saw, own)
				}
				return err
			},
		}
		for _, check := range checks {
			tried++
			if err := lab.Wait(ctx, convergeTimeout, check); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return tried, failed
}

// matrix prints one row for each sender and one column for each receiver.
func (s *stage) matrix(all []*pair) {
	at := map[[2]string]*pair{}
	for _, p := range all {
		at[[2]string{p.from.name, p.to.name}] = p
	}
	head := []string{"FROM \\ TO"}
	for _, to := range s.ends {
		head = append(head, to.name)
	}
	rows := [][]string{head}
	for _, from := range s.ends {
		row := []string{from.name}
		for _, to := range s.ends {
			cell := "."
			if p := at[[2]string{from.name, to.name}]; p != nil {
				cell = fmt.Sprintf("%d/%d", p.tried-len(p.failed), p.tried)
				if len(p.failed) > 0 || p.tried == 0 {
					cell = s.out.paint(red, cell)
				} else {
					cell = s.out.paint(green, cell)
				}
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	s.out.table(rows)
}
