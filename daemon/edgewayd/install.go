package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

const (
	pluginName  = "edgeway"
	programName = "edgewayd"
)

// places are where install puts the programs; "" for the daemon's: nowhere.
type places struct{ pluginDir, programDir string }

func (p *places) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.pluginDir, "plugin-dir", "", "where the container runtime looks for plugins (default: cni.binDir of the configuration)")
	cmd.Flags().StringVar(&p.programDir, "program-dir", "", "also this program, into this directory, for operators on the host (default: not)")
}

// default fills in what the configuration says.
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

// installFile makes target an executable with the content of source, whole or not at all, also
// over a power cut, and says what it did: "installed", "replaced" or "kept".
func installFile(source, target string) (did string, err error) {
	want, err := os.ReadFile(source)
	if err != nil {
		return "", fmt.Errorf("install %s: %w; the plugin and edgewayd of one version belong into one directory", target, err)
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
	return did, replaceExecutable(target, want)
}

const executable fs.FileMode = 0o755

// replaceExecutable writes beside path and renames: a program that runs cannot be written to
// (ETXTBSY), and one half written fails to start with "exec format error".
func replaceExecutable(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	// One that an earlier install did not finish is in the way, and nobody else's.
	temporary := filepath.Join(dir, "."+filepath.Base(path)+".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install %s: %w", path, err)
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, executable)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install %s: %w; name the runtime's directory with --plugin-dir, or mount it", path, err)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	_, err = f.Write(content)
	// The mode of OpenFile is less the umask.
	if err = errors.Join(err, f.Chmod(executable), f.Sync(), f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("install %s: %w; what was there is untouched", path, err), os.Remove(temporary))
	}
	return syncDir(dir)
}

// syncDir makes the names in dir last over a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
