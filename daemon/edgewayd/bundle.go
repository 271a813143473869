package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/plan"
	"github.com/edgeway-cni/edgeway/routes"
)

// asks are the tools that show the machine's state. A tool that is missing is named in its file.
var asks = []struct{ file, command string }{
	{"uname.txt", "uname -a"},
	{"links.txt", "ip -d -s link"},
	{"addresses.txt", "ip addr"},
	{"routes4.txt", "ip -4 route show table all"},
	{"routes6.txt", "ip -6 route show table all"},
	{"rules4.txt", "ip -4 rule"},
	{"rules6.txt", "ip -6 rule"},
	{"neighbours.txt", "ip neigh"},
	{"fdb.txt", "bridge fdb"},
	{"nftables.txt", "nft list ruleset"},
	{"sysctl.txt", "sysctl net.ipv4 net.ipv6.conf.all net.ipv6.conf.default"},
	{"log.txt", "journalctl --unit=edgewayd --lines=5000 --no-pager --output=short-iso"},
}

// toolFor bounds how long one tool may take.
const toolFor = 20 * time.Second

func bundleCommand(f *flags) *cobra.Command {
	b := &bundle{flags: f}
	cmd := &cobra.Command{
		Use:   "bundle FILE.tar.gz",
		Short: "collect what a bug report needs into one archive",
		Long: `bundle writes one archive for a bug report: the status, the plan of this node, the leases, the configuration,
the kernel's links, addresses, routes, rules and neighbours, the nftables rules, and the log of the service. It
holds no password. It holds addresses and the names of nodes and pods: --redact replaces the names, each by the
same word everywhere. What cannot be read is named in its file.`,
		Example: `  edgewayd bundle edgeway.tar.gz
  edgewayd bundle --redact - | ssh host 'cat >edgeway.tar.gz'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.collect(cmd.Context())
			if args[0] == "-" {
				return b.write(cmd.OutOrStdout())
			}
			file, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("bundle: %w; name a new file", err)
			}
			return errors.Join(b.write(file), file.Close())
		},
	}
	cmd.Flags().BoolVar(&b.redact, "redact", false, "replace the names of nodes, pods and resources")
	return cmd
}

// bundle is an archive.
type bundle struct {
	*flags
	redact bool
	files  []bundled
	names  []string // to redact
}

type bundled struct {
	name string
	text []byte
}

func (b *bundle) add(name string, text []byte, err error) {
	if err != nil {
		text = fmt.Appendf(text, "edgewayd bundle: %v\n", err)
	}
	b.files = append(b.files, bundled{name, text})
}

// collect asks the daemon and the tools. An error becomes the content of a file: a broken node needs its bundle
// most.
func (b *bundle) collect(ctx context.Context) {
	b.add("version.txt", fmt.Appendf(nil, "edgewayd %s (commit %s)\n", version, commit), nil)
	c, err := b.read()
	b.add("edgewayd.txt", fmt.Appendf(nil, "%+v\n", c), err)
	text, err := ask(ctx, b.flags, api.Request{Op: "status"})
	b.add("status.json", text, err)
	text, err = ask(ctx, b.flags, api.Request{Op: "known"})
	var known daemon.Known
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	b.add("known.json", text, err)
	if err == nil {
		var out bytes.Buffer
		plan.Of(plan.Input{Cluster: known.Cluster, Config: c, Machines: map[string]routes.Host{known.Self: known.Host}, Only: known.Self}).Text(&out)
		b.add("plan.txt", out.Bytes(), nil)
	}
	var leases api.LeaseList
	err = (&leaseFlags{flags: b.flags}).ask(ctx, &leases, "list")
	text, _ = json.MarshalIndent(leases, "", "  ") // it was JSON
	b.add("leases.json", text, err)
	for _, a := range asks {
		text, err := tool(ctx, a.command)
		b.add(a.file, text, err)
	}
	b.names = namesIn(known, leases)
}

func tool(ctx context.Context, command string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolFor)
	defer cancel()
	words := strings.Fields(command)
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	return append(fmt.Appendf(nil, "# %s\n", command), out...), err
}

// namesIn returns the names that --redact replaces.
func namesIn(known daemon.Known, leases api.LeaseList) (names []string) {
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, n := range known.Cluster.Nodes {
		names = append(names, n.Name)
		for _, v := range n.Labels {
			names = append(names, v)
		}
	}
	for _, p := range known.Cluster.Peerings {
		names = append(names, p.Name)
		for _, s := range p.Speakers {
			names = append(names, s.Node)
			for _, peer := range s.Peers {
				names = append(names, peer.Name)
			}
		}
	}
	for _, s := range known.Cluster.Secrets {
		names = append(names, s.Name)
	}
	for _, l := range leases.Leases {
		names = append(names, strings.Split(l.Pod, "/")...)
	}
	for _, r := range leases.Remembered {
		names = append(names, strings.Split(r.Pod, "/")...)
	}
	return names
}

// shortName is the length up to which a name may be part of any word, and stays.
const shortName = 3

// redacted replaces each name by a word of its own. Longer names are replaced first: one may hold another.
func redacted(names []string) *strings.Replacer {
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	var pairs []string
	for _, n := range slices.Compact(names) {
		if len(n) >= shortName {
			pairs = append(pairs, n, fmt.Sprintf("redacted-%d", len(pairs)/2+1))
		}
	}
	return strings.NewReplacer(pairs...)
}

// write writes the archive, all files as of now.
func (b *bundle) write(out io.Writer) error {
	zip := gzip.NewWriter(out)
	archive := tar.NewWriter(zip)
	replace := redacted(nil)
	if b.redact {
		replace = redacted(b.names)
	}
	for _, f := range b.files {
		text := replace.Replace(string(f.text))
		head := &tar.Header{Name: "edgeway/" + f.name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now()}
		if err := archive.WriteHeader(head); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		if _, err := io.WriteString(archive, text); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
