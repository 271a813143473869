package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
)

// settings are files that keep another program away from the interfaces of uplinks.
type settings struct {
	of   string // the directory that exists where the program is installed
	path string
	text string
	next string // what makes the program read it
}

const byEdgewayd = "# Written by edgewayd unmanage. edgewayd unmanage --undo removes it.\n"

// settingsFor returns the files for these interfaces. None is named: the files to remove.
func settingsFor(interfaces []uplink.Interface) []settings {
	var macs, names, devices []string
	for n, i := range interfaces {
		if slices.ContainsFunc(interfaces[:n], func(o uplink.Interface) bool { return o.MAC == i.MAC && o.Name == i.Name }) {
			continue // of another family
		}
		if i.MAC != "" {
			macs, devices = append(macs, i.MAC), append(devices, "mac:"+i.MAC)
		} else {
			names, devices = append(names, i.Name), append(devices, "interface-name:"+i.Name)
		}
	}
	// Every condition of one [Match] must hold, so MACs and names are two files.
	network := func(key string, values []string) string {
		if len(values) == 0 {
			return ""
		}
		return byEdgewayd + "[Match]\n" + key + "=" + strings.Join(values, " ") + "\n[Link]\nUnmanaged=yes\n"
	}
	var manager, cloud, foreign string
	if len(devices) > 0 {
		foreign = byEdgewayd + "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\nManageForeignNextHops=no\n"
		manager = byEdgewayd + "[keyfile]\nunmanaged-devices+=" + strings.Join(devices, ";") + "\n"
		cloud = byEdgewayd + "network: {config: disabled}\n"
	}
	const networkd, networkManager = "systemctl restart systemd-networkd", "systemctl reload NetworkManager"
	return []settings{
		{"etc/systemd", "etc/systemd/network/05-edgeway.network", network("MACAddress", macs), networkd},
		{"etc/systemd", "etc/systemd/network/05-edgeway-name.network", network("Name", names), networkd},
		{"etc/systemd", "etc/systemd/networkd.conf.d/05-edgeway.conf", foreign, networkd},
		{"etc/NetworkManager", "etc/NetworkManager/conf.d/05-edgeway.conf", manager, networkManager},
		{"etc/cloud", "etc/cloud/cloud.cfg.d/99-edgeway.cfg", cloud, "nothing: cloud-init reads it at the next boot, and leaves the present configuration of all interfaces as it is"},
	}
}

func unmanageCommand(f *flags) *cobra.Command {
	var root string
	var undo bool
	cmd := &cobra.Command{
		Use:   "unmanage [MAC|NAME...]",
		Short: "keep networkd, NetworkManager and cloud-init away from the interfaces of uplinks",
		Long: `unmanage writes the files that keep systemd-networkd, NetworkManager and cloud-init from configuring the
secondary interfaces whose addresses pods have: a DHCP client there adds a second default route. A file also
keeps networkd from deleting the policy rules and routes of other programs. Without arguments the interfaces are those of this node's EdgeNode, as the daemon has saved them. Only programs whose
directory in /etc exists get a file. The last lines say what makes them read it. --undo removes the files, and
so does uninstall --purge.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if undo {
				return remanage(root, cmd.OutOrStdout())
			}
			interfaces, err := unmanaged(f, args)
			if err != nil {
				return err
			}
			return unmanage(root, interfaces, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&root, "root", "/", "the directory in which etc lies")
	cmd.Flags().BoolVar(&undo, "undo", false, "remove the files again")
	return cmd
}

// unmanaged returns the interfaces of the arguments, or those that the daemon has saved.
func unmanaged(f *flags, args []string) (out []uplink.Interface, err error) {
	for _, a := range args {
		mac, err := net.ParseMAC(a)
		switch {
		case err == nil && len(mac) == 6:
			out = append(out, uplink.Interface{MAC: mac.String()})
		case cluster.IsLinkName(a): // in the files, a pattern or a list would be more than one link
			out = append(out, uplink.Interface{Name: a})
		default:
			return nil, fmt.Errorf("unmanage %q: want a MAC such as 00:16:3e:08:60:0a, or the name of a link", a)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	c, err := f.read()
	if err != nil {
		return nil, err
	}
	u, err := uplink.Read(filepath.Join(c.StateDir, uplink.File))
	if err == nil && len(u.Interfaces) == 0 {
		err = errors.New("unmanage: this node has no uplinks yet; apply its EdgeNode first, or name the interfaces by MAC")
	}
	return u.Interfaces, err
}

func unmanage(root string, interfaces []uplink.Interface, out io.Writer) error {
	said := map[string]bool{}
	var next []string
	for _, s := range settingsFor(interfaces) {
		path := filepath.Join(root, s.path)
		if s.text == "" {
			if err := removeFile(path, out); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(root, s.of)); errors.Is(err, fs.ErrNotExist) {
			continue // it is not installed
		}
		have, err := os.ReadFile(path)
		if err == nil && !ours(have) {
			return fmt.Errorf("unmanage %s: somebody else wrote it; move it away, and run unmanage again", path)
		}
		did := "kept"
		if string(have) != s.text {
			did = "installed"
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("unmanage: %w", err)
			}
			if err := durable.Replace(path, []byte(s.text), 0o644); err != nil {
				return fmt.Errorf("unmanage %s: %w", path, err)
			}
			if !said[s.next] {
				next = append(next, s.next)
			}
			said[s.next] = true
		}
		fmt.Fprintf(out, "%-9s %s\n", did, path)
	}
	for _, n := range next {
		fmt.Fprintf(out, "next: %s\n", n)
	}
	return nil
}

// remanage removes the files. Absent is success.
func remanage(root string, out io.Writer) error {
	for _, s := range settingsFor(nil) {
		if err := removeFile(filepath.Join(root, s.path), out); err != nil {
			return err
		}
	}
	return nil
}

// ours reports whether unmanage wrote the file of this text.
func ours(text []byte) bool { return bytes.HasPrefix(text, []byte(byEdgewayd)) }

// removeFile removes a file that unmanage wrote. A file of the same name that a person wrote stays.
func removeFile(path string, out io.Writer) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !ours(text) {
		fmt.Fprintf(out, "left   %s: somebody else wrote it\n", path)
		return nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		fmt.Fprintf(out, "delete %s\n", path)
	}
	return err
}
