package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// knowsArgs refuses a word after a command that only has other commands, and names those that it may mean.
func knowsArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(cmd, args[0])
}

func unknownCommand(cmd *cobra.Command, word string) error {
	cmd.SuggestionsMinimumDistance = 2
	meant := cmd.SuggestionsFor(word)
	if len(meant) == 0 {
		return fmt.Errorf("unknown command %q for %q; %s --help lists the commands", word, cmd.CommandPath(), cmd.CommandPath())
	}
	return fmt.Errorf("unknown command %q for %q; did you mean %s?", word, cmd.CommandPath(), strings.Join(meant, " or "))
}

// sayUsage adds the form of a command to the errors about its arguments, and about flags that it needs.
func sayUsage(parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		sayUsage(cmd)
		if known := cmd.Args; known != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				err := known(cmd, args)
				if err == nil {
					err = cmd.ValidateRequiredFlags()
				}
				if err != nil && !cmd.HasSubCommands() {
					err = fmt.Errorf("%w; usage: %s", err, cmd.UseLine())
				}
				return err
			}
		}
	}
}

// helpCommand prints the help of a command. A command that does not exist is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "help about a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return unknownCommand(cmd.Root(), args[0])
			}
			if len(rest) > 0 {
				return unknownCommand(about, rest[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
