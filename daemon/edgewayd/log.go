package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// logger returns the daemon's log in the format.
func logger(out io.Writer, format string, level slog.Leveler) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, o)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}

func logLevelCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:       "log-level [debug|info|warn|error]",
		Short:     "show or change the level of the running daemon's log",
		Long:      `log-level changes the level until the daemon stops; edgewayd run --log-level sets it from the start.`,
		ValidArgs: []string{"debug", "info", "warn", "error"},
		Args:      cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := ask(cmd.Context(), f, api.Request{Op: "logLevel", Args: args})
			if err != nil {
				return err
			}
			var level slog.Level
			if err := json.Unmarshal(text, &level); err != nil {
				return fmt.Errorf("daemon's answer: %w; the daemon is of another version than this command", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), level)
			return nil
		},
	}
}
