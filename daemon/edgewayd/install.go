package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/durable"
)

const (
	pluginName  = "edgeway"
	programName = "edgewayd"
)

// places are the target directories of install. If programDir is empty, edgewayd is not copied.
type places struct{ pluginDir, programDir string }

func (p *places) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.pluginDir, "plugin-dir", "", "where the container runtime looks for plugins (default: cni.binDir of the configuration)")
	cmd.Flags().StringVar(&p.programDir, "program-dir", "", "also this program, into this directory, for operators on the host (default: not)")
}

func (p *places) fill(f *flags) error {
	if p.pluginDir != "" {
		return nil
	}
	c, err := f.read()
	p.pluginDir = c.CNI.BinDir
	return err
}

func installCommand(f *flags) *cobra.Command {
	var to places
	cmd := &cobra.Command{
		Use:   "install",
		Short: "put the CNI plugin where the container runtime looks for it",
		Long: `install copies the plugin edgeway, which lies beside this program, to the directory where the
container runtime looks, and, if told where, this program too. A file that is the same is left alone; any other
is replaced in one step: a pod that starts at that moment finds the old one or the new one. It is the init
container of the DaemonSet, and may run while pods start.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := to.fill(f); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("install: %w", err)
			}
			copies := [][2]string{{filepath.Join(filepath.Dir(self), pluginName), filepath.Join(to.pluginDir, pluginName)}}
			if to.programDir != "" {
				copies = append(copies, [2]string{self, filepath.Join(to.programDir, programName)})
			}
			for _, c := range copies {
				did, err := installFile(c[0], c[1])
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-9s %s\n", did, c[1])
			}
			return nil
		},
	}
	to.flags(cmd)
	return cmd
}

// installFile makes target an executable with the content of source. It returns "installed", "replaced" or
// "kept". A power cut leaves the old file or the new file.
func installFile(source, target string) (did string, err error) {
	want, err := os.ReadFile(source)
	if err != nil {
		return "", fmt.Errorf("install %s: %w; edgeway and edgewayd of one version belong in one directory", target, err)
	}
	did = "replaced"
	have, err := os.ReadFile(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		did = "installed"
	case err != nil:
		return "", fmt.Errorf("install: %w", err)
	}
	if stat, err := os.Lstat(target); err == nil && stat.Mode() == executable && bytes.Equal(have, want) {
		return "kept", nil
	}
	// Replace renames, because a running program's file cannot be written (ETXTBSY).
	switch err := durable.Replace(target, want, executable); {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("install %s: %w; name the runtime's directory with --plugin-dir, or mount it", target, err)
	case err != nil:
		return "", fmt.Errorf("install %s: %w; the old file is untouched", target, err)
	}
	return did, nil
}

const executable fs.FileMode = 0o755
