// Command edgewayd is the node daemon and the operator's command line.
//
//go:debug multipathtcp=0
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
)

// Set by the linker; see the Makefile.
var (
	version = "unknown"
	commit  = "unknown"
)

// sessionCommand is the argument with which the daemon starts the process of a BGP session. The process runs
// the daemon's own program, even if its file has been replaced.
const sessionCommand = "bgp-session"

func main() {
	if len(os.Args) == 2 && os.Args[1] == sessionCommand {
		serveSession()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	out := &output{Writer: os.Stdout}
	status, err := out.statusOf(commandLine(out).ExecuteContext(ctx))
	if err != nil {
		fmt.Fprintln(os.Stderr, "edgewayd:", err)
	}
	if status != 0 {
		os.Exit(status)
	}
}

// serveSession serves one BGP session until the daemon is gone. It ignores the signals that end the daemon,
// which systemd sends to all processes of the unit: the daemon itself ends its sessions, and leaves the
// switches as they are.
func serveSession() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := daemon.ServeSession(os.NewFile(3, "link")); err != nil {
		fmt.Fprintln(os.Stderr, "edgewayd", sessionCommand+":", err)
		os.Exit(1)
	}
}

// flags are the flags of every command.
type flags struct{ config, socket, node string }

// commandLine is root with cobra's command completion. Its scripts go to out only because it is added after out is set.
func commandLine(out io.Writer) *cobra.Command {
	cmd := root()
	cmd.SetOut(out)
	cmd.InitDefaultCompletionCmd()
	for _, c := range cmd.Commands() {
		if c.Name() == "completion" {
			c.Args, c.RunE = knowsArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return cmd
}

func root() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "edgewayd",
		Short: "the network of edge and on-premises Kubernetes nodes: daemon and command line",
		Long: `edgewayd keeps this node's network as the cluster says: routes to the other nodes' pods, and,
on the nodes that BGP resources name as speakers, sessions with the LAN's switches.

"edgewayd run" runs the daemon; the other commands ask the running daemon.`,
		Version:       fmt.Sprintf("%s (commit %s)", version, commit),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knowsArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetHelpCommand(helpCommand())
	cmd.PersistentFlags().StringVar(&f.config, "config", "", "configuration file (default "+config.DefaultFile+" where it exists)")
	cmd.PersistentFlags().StringVar(&f.socket, "socket", "", "the daemon's socket (default: what the configuration says)")
	cmd.PersistentFlags().StringVar(&f.node, "node-name", "", "this node's name in the cluster (default: what the configuration says)")
	cmd.AddCommand(runCommand(&f), checkCommand(&f), ipamCommand(&f), installCommand(&f), keepCanaryCommand(&f), unmanageCommand(&f), uninstallCommand(&f))
	cmd.AddCommand(viewCommands(&f)...)
	cmd.AddCommand(planCommand(&f), switchConfigCommand(&f), bundleCommand(&f), doctorCommand(&f), whyCommand(&f), logLevelCommand(&f), rolloutCommand(&f))
	sayUsage(cmd)
	return cmd
}

func runCommand(f *flags) *cobra.Command {
	var level, format, health string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the daemon until it is told to stop",
		Long: `run keeps the node's network right until SIGTERM or SIGINT. Stopping changes nothing: pods and
routes stay, and the switches keep the node's routes for the graceful restart time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// An edge node has more processor time than memory to spare (docs/performance.md). This also halves
			// the size below which the runtime collects no garbage.
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50)
			}
			c, err := f.read()
			if err != nil {
				return err
			}
			var l slog.LevelVar
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
			}
			log, err := logger(os.Stderr, format, &l)
			if err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), c, daemon.Options{Version: version, Log: log, Level: &l, Health: health, Ready: notifyReady, Alive: notifyAlive,
				Session: []string{"/proc/self/exe", sessionCommand}})
		},
	}
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error; edgewayd log-level changes it later")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	cmd.Flags().StringVar(&health, "health", "", "host:port that answers HTTP requests with 200 while the daemon is healthy, for a kubelet's probes (default none)")
	return cmd
}

// read reads the configuration: the named file, else the default file, else an empty configuration.
func (f *flags) read() (config.Config, error) {
	path := f.config
	if path == "" {
		path = config.DefaultFile
		if _, err := os.Stat(path); os.IsNotExist(err) {
			path = os.DevNull
		}
	}
	c, err := config.Read(path)
	if f.node != "" {
		c.NodeName = f.node
	}
	return c, err
}

func (f *flags) where() (string, error) {
	if f.socket != "" {
		return f.socket, nil
	}
	if f.config == "" {
		if _, err := os.Stat(config.DefaultFile); os.IsNotExist(err) {
			return api.DefaultSocket, nil
		}
	}
	c, err := f.read()
	return c.Socket, err
}
