package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/pods"
)

// pingFor bounds the wait for an answer when no daemon should run.
const pingFor = 2 * time.Second

type removal struct {
	places
	purge, force, stay bool
}

func uninstallCommand(f *flags) *cobra.Command {
	var r removal
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "take the network configuration and the plugin away, and say what is left",
		Long: `uninstall removes the network configuration that the daemon wrote and the plugin that install put
there. Leases, routes, links and firewall rules stay, so that a later install finds everything and pods go on;
--purge removes them too. The last lines say what is left. The daemon must be stopped: it would write the
configuration again.

A pod that runs needs the plugin once more, when it is deleted: delete the node's pods first. While there are
any, uninstall refuses, unless told to --force.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.fill(f); err != nil {
				return err
			}
			c, err := f.read()
			if err != nil {
				return err
			}
			if err := r.run(cmd.Context(), c, cmd.OutOrStdout()); err != nil {
				return err
			}
			if r.stay {
				<-cmd.Context().Done()
			}
			return nil
		},
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&r.purge, "purge", false, "also leases, routes, links, firewall rules and the saved cluster state")
	cmd.Flags().BoolVar(&r.force, "force", false, "although pods run here; with --purge they lose their network at once")
	cmd.Flags().BoolVar(&r.stay, "stay", false, "then wait to be told to stop, as the container of a DaemonSet must")
	return cmd
}

func (r *removal) run(ctx context.Context, c config.Config, out io.Writer) error {
	if err := stopped(ctx, c); err != nil {
		return err
	}
	found, err := daemon.Remaining(ctx, c)
	if err != nil {
		return fmt.Errorf("uninstall: %w; nothing was removed", err)
	}
	if n := len(found.Pods); n > 0 && !r.force {
		return fmt.Errorf("uninstall: %d pods of edgeway run on this node (%s); nothing was removed: delete them first, or add --force",
			n, shorten(found.Pods))
	}
	if err := r.removeFiles(c, out); err != nil {
		return err
	}
	did, err := daemon.EndCanary(ctx, c)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	for _, d := range did {
		fmt.Fprintln(out, d)
	}
	if r.purge {
		if err := remanage("/", out); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		did, err := daemon.Purge(ctx, c)
		for _, d := range did {
			fmt.Fprintln(out, d)
		}
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	if found, err = daemon.Remaining(ctx, c); err != nil {
		return err
	}
	printRemains(out, found)
	return nil
}

// stopped returns an error when a daemon answers.
func stopped(ctx context.Context, c config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, pingFor)
	defer cancel()
	switch _, err := api.Call(ctx, c.Socket, api.Request{Op: "ping"}, nil); {
	case err == nil:
		return fmt.Errorf("uninstall: edgewayd runs and would write %s again; nothing was removed: systemctl stop edgewayd, or delete its DaemonSet, first", pods.Conflist(c))
	case !errors.Is(err, api.ErrNoDaemon):
		return fmt.Errorf("uninstall: socket %s: %w; nothing was removed", c.Socket, err)
	}
	return nil
}

// removeFiles removes the network configuration first: a runtime must not find it without the plugin.
func (r *removal) removeFiles(c config.Config, out io.Writer) error {
	paths := []string{pods.Conflist(c), filepath.Join(r.pluginDir, pluginName)}
	if r.programDir != "" {
		paths = append(paths, filepath.Join(r.programDir, programName))
	}
	for _, path := range paths {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		fmt.Fprintf(out, "delete %s\n", path)
	}
	return nil
}

func printRemains(out io.Writer, r daemon.Remains) {
	for _, l := range []struct {
		what  string
		items []string
		next  string
	}{
		{"pods", r.Pods, "the runtime cannot delete them without the plugin"},
		{"in the kernel", r.Kernel, "a reboot removes it, or a purge"},
		{"files", r.Files, "a purge deletes them"},
	} {
		if len(l.items) > 0 {
			fmt.Fprintf(out, "left   %s: %s; %s\n", l.what, shorten(l.items), l.next)
		}
	}
	fmt.Fprintln(out, "left   IP forwarding as it is: other software may need it")
}

func shorten(items []string) string {
	const few = 4
	if len(items) <= few {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:few], ", "), len(items)-few)
}
