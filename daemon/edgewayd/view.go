package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// watchEvery is the time between two pictures of --watch.
const watchEvery = 2 * time.Second

// view is a command that shows the daemon's status, or a part of it.
type view struct {
	use, short string
	alias      string
	kind       string // of the document
	show       func(p *page, s api.Status)
	part       func(s api.Status) any

	*flags
	format          string
	all, exit, loop bool
}

// The documents of the views. Their lists are never null.
type (
	routeList struct {
		Node    string        `json:"node"`
		Routes  []api.Route   `json:"routes"`
		Learned []api.Learned `json:"learned"`
	}
	peerList struct {
		Node  string        `json:"node"`
		Peers []api.Session `json:"peers"`
	}
	pathList struct {
		Node string `json:"node"`
		api.Paths
	}
	problemList struct {
		Node     string        `json:"node"`
		Problems []api.Problem `json:"problems"`
		Advice   []api.Problem `json:"advice"`
	}
)

func viewCommands(f *flags) (all []*cobra.Command) {
	for _, v := range []*view{
		{use: "status", kind: "Status", short: "show what the node knows, routes and advertises, and what is wrong",
			show: (*page).status, part: func(s api.Status) any { return s }},
		{use: "routes", kind: "RouteList", short: "show the routes to other nodes, and the routes learned from switches",
			show: func(p *page, s api.Status) {
				if p.routes(s); len(s.Learned) > 0 {
					fmt.Fprintln(p.out)
					p.learned(s)
				}
			}, part: func(s api.Status) any { return routeList{s.Node, s.Routes, s.Learned} }},
		{use: "peers", alias: "sessions", kind: "PeerList", short: "show the BGP sessions with the switches, and what is advertised to each",
			show: (*page).sessions, part: func(s api.Status) any { return peerList{s.Node, s.Sessions} }},
		{use: "paths", kind: "PathList", short: "show which other nodes' pods this node's canary reaches",
			show: (*page).paths, part: func(s api.Status) any { return pathList{s.Node, s.Paths} }},
		{use: "problems", kind: "ProblemList", short: "show what is wrong, and the next step of each",
			show: (*page).problems, part: func(s api.Status) any { return problemList{s.Node, s.Problems, s.Advice} }},
	} {
		v.flags = f
		all = append(all, v.command())
	}
	return all
}

func (v *view) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   v.use,
		Short: v.short,
		Long: v.use + ` asks the running daemon. With --exit-code the exit status is 0 without a problem, 3 with problems,
and 1 if the daemon does not answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(v.format, "json", "yaml", "wide"); err != nil {
				return err
			}
			if v.loop {
				return v.watch(cmd.Context(), cmd.OutOrStdout())
			}
			return v.once(cmd.Context(), cmd.OutOrStdout())
		},
	}
	if v.alias != "" {
		cmd.Aliases = []string{v.alias}
	}
	cmd.Flags().StringVarP(&v.format, "output", "o", "", "json or yaml: for programs; wide: every row, on lines of any length")
	cmd.Flags().BoolVarP(&v.all, "all", "a", false, "every route, prefix and problem, however many")
	cmd.Flags().BoolVar(&v.exit, "exit-code", false, "exit 3 when there are problems")
	cmd.Flags().BoolVarP(&v.loop, "watch", "w", false, "show it again every two seconds, until interrupted")
	return cmd
}

// once shows the status of this moment.
func (v *view) once(ctx context.Context, out io.Writer) error {
	text, err := ask(ctx, v.flags, api.Request{Op: "status"})
	if err != nil {
		return err
	}
	s, err := readStatus(text)
	if err != nil {
		return err
	}
	if v.format == "json" || v.format == "yaml" {
		if err := writeDocument(out, v.format, v.kind, v.part(s)); err != nil {
			return err
		}
	} else {
		v.show(newPage(newScreen(out, v.format == "wide"), v.all || v.format == "wide"), s)
	}
	if v.exit && len(s.Problems) > 0 {
		return exitProblems
	}
	return nil
}

// watch shows the status again and again. A daemon that does not answer may come back.
func (v *view) watch(ctx context.Context, out io.Writer) error {
	clear := ""
	if newScreen(out, false).terminal() {
		clear = "\x1b[H\x1b[2J" // ECMA-48: cursor to the corner, erase the page
	}
	v.exit = false
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if _, err := fmt.Fprint(out, clear); err != nil {
			return err
		}
		if err := v.once(ctx, out); err != nil && ctx.Err() == nil {
			fmt.Fprintln(out, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readStatus reads the daemon's answer. No list of it is nil.
func readStatus(text []byte) (s api.Status, err error) {
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("daemon's answer: %w; the daemon is of another version than this command", err)
	}
	fill(&s.Addresses)
	fill(&s.PodCIDRs)
	fill(&s.Routes)
	fill(&s.Sessions)
	fill(&s.Learned)
	fill(&s.Paths.Canary)
	fill(&s.Paths.Asked)
	fill(&s.Problems)
	fill(&s.Advice)
	fill(&s.Tunnels)
	fill(&s.Firewall)
	for i := range s.Sessions {
		fill(&s.Sessions[i].Advertised)
	}
	return s, nil
}

// fill makes an empty list of none: a program can count it.
func fill[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}
