package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// Force is the argument of "release" that also ends attachments of running pods.
const Force = "--force"

// Answer answers an operator's request about leases (api.Request.Args) on a node where no daemon runs. It
// opens the store itself and does the same as the daemon.
func Answer(ctx context.Context, c config.Config, args []string) ([]byte, error) {
	path := storeFile(c.StateDir)
	_, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && (len(args) == 0 || args[0] != "import") {
		return nil, fmt.Errorf("store %s: it does not exist: no pod was started here yet; name another stateDir with --config", path)
	}
	boot, err := plugin.BootID()
	if err != nil {
		return nil, err
	}
	options := ipam.Options{BootID: boot}
	if missing { // an import creates the store, as the first ADD does; its plan uses an empty store
		options.Recover = func() ([]ipam.Lease, error) { return plugin.Recover(c.StateDir) }
		if !slices.Contains(args, Apply) {
			dir, err := os.MkdirTemp("", "edgewayd-ipam-")
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
			path = storeFile(dir)
		}
	}
	store, err := ipam.Open(ctx, path, options)
	if errors.Is(err, ipam.ErrLocked) {
		return nil, fmt.Errorf("%w; a plugin is using it, or edgewayd is starting: try again", err)
	}
	if err != nil {
		return nil, err
	}
	n, err := leasesOf(store, c.StateDir)
	if err != nil {
		return nil, err
	}
	if len(args) > 0 && args[0] == "import" && !missing { // an imported lease may have the address of a canary that a daemon left
		if err := n.verbs.Remove(ctx, plugin.Canary()); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	out, err := n.answer(ctx, c, args)
	return out, errors.Join(err, n.close())
}

// IPAM serves Op "ipam" on the socket.
func (p *Pods) IPAM(ctx context.Context, req api.Request) api.Reply {
	n := p.opened(ctx)
	if n == nil {
		return api.Reply{Failed: true, Error: "the store of leases is not open; edgewayd status and its log say why"}
	}
	n.busy.RLock()
	defer n.busy.RUnlock()
	if len(req.Args) > 0 && req.Args[0] == "import" { // an imported lease may have its address
		if err := p.endCanary(ctx, n, "leases are imported"); err != nil {
			return api.Reply{Failed: true, Error: err.Error()}
		}
	}
	out, err := n.answer(ctx, p.config, req.Args)
	p.lookAgain()
	if err != nil {
		return api.Reply{Failed: true, Error: err.Error()}
	}
	if req.Args[0] != "list" && req.Args[0] != "show" && req.Args[0] != "check" {
		p.log.Info("operator: ipam "+req.Args[0], "did", string(out))
	}
	return api.Reply{Output: out}
}

func (n *leases) answer(ctx context.Context, c config.Config, args []string) ([]byte, error) {
	var answer any
	var err error
	verb, rest := "", []string{}
	if len(args) > 0 {
		verb, rest = args[0], args[1:]
	}
	switch verb {
	case "list":
		var a api.LeaseList
		a, err = n.list(ctx)
		by := uplinks(c.StateDir)
		for i := range a.Leases {
			a.Leases[i].Uplink = by(a.Leases[i])
		}
		answer = a
	case "show":
		var a api.LeaseDetails
		a, err = n.show(ctx, rest)
		by := uplinks(c.StateDir)
		for i := range a.Leases {
			a.Leases[i].Uplink = by(a.Leases[i].Lease)
		}
		answer = a
	case "release":
		answer, err = n.releaseLeases(ctx, rest)
	case "forget":
		answer, err = n.forget(ctx, rest)
	case "check":
		answer, err = n.check(ctx, n.verbs.Audit)
	case "repair":
		answer, err = n.check(ctx, n.verbs.Repair)
	case "import":
		answer, err = n.importLeases(ctx, c, rest)
	default:
		return nil, fmt.Errorf("ipam %q: not known to this edgewayd; update it, or use the edgewayd that is running", verb)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

// uplinks returns a function that names the secondary interface that a lease's address belongs to; "": none. A file of
// uplinks that cannot be read names none: the daemon reports it.
func uplinks(dir string) func(api.Lease) string {
	u, _ := uplink.Read(filepath.Join(dir, uplink.File))
	by := map[string]string{}
	for _, i := range u.Interfaces {
		for _, a := range i.Addresses {
			by[a.String()] = i.String()
		}
	}
	return func(l api.Lease) string {
		for _, a := range l.Addrs {
			if name := by[a]; name != "" {
				return name
			}
		}
		return ""
	}
}

func leaseRow(a plugin.Attached) api.Lease {
	l := a.Lease
	row := api.Lease{
		Addrs: []string{}, Pod: l.Pod.String(), ContainerID: l.Attachment.ContainerID, IfName: l.Attachment.IfName,
		Network: l.Network, Since: l.Since, State: string(a.Standing), Link: a.Link, Netns: l.Netns,
	}
	for _, addr := range l.Addrs {
		row.Addrs = append(row.Addrs, addr.String())
	}
	return row
}

func byAddr(a, b plugin.Attached) int {
	if len(a.Lease.Addrs) == 0 || len(b.Lease.Addrs) == 0 {
		return cmp.Compare(len(a.Lease.Addrs), len(b.Lease.Addrs))
	}
	return a.Lease.Addrs[0].Compare(b.Lease.Addrs[0])
}

func (n *leases) list(ctx context.Context) (api.LeaseList, error) {
	out := api.LeaseList{Leases: []api.Lease{}, Pools: []api.PoolUsage{}, Remembered: []api.Remembered{}, Now: time.Now()}
	all, err := n.verbs.Attachments(ctx)
	if err != nil {
		return out, err
	}
	slices.SortFunc(all, byAddr)
	for _, a := range all {
		out.Leases = append(out.Leases, leaseRow(a))
	}
	memories, err := n.store.Remembered()
	if err != nil {
		return out, err
	}
	for _, m := range memories {
		out.Remembered = append(out.Remembered, memoryRow(m))
	}
	pool, ok, err := n.store.Pool()
	if err != nil || !ok {
		return out, err
	}
	for _, set := range pool.Sets {
		for _, r := range set {
			u, err := n.store.Usage(ipam.Pool{Sets: []ipam.RangeSet{{r}}, Reserved: pool.Reserved})
			if err != nil {
				return out, err
			}
			out.Pools = append(out.Pools, api.PoolUsage{CIDR: r.Subnet.String(), Total: u.Total, Used: u.Used, Free: u.Free, Remembered: u.Remembered})
		}
	}
	u, err := n.store.Usage(pool)
	out.Outside = u.Outside
	return out, err
}

func memoryRow(m ipam.Memory) api.Remembered {
	return api.Remembered{Addr: m.Addr.String(), Pod: m.Pod.String(), IfName: m.IfName, Network: m.Network}
}

// named reports whether an operator's word names the attachment: by its pod (namespace/name, or name), an
// address, the beginning of its container ID, its container ID and interface, or its link.
func named(a plugin.Attached, word string) bool {
	l := a.Lease
	if addr, err := netip.ParseAddr(word); err == nil {
		return slices.Contains(l.Addrs, addr.Unmap())
	}
	switch word {
	case "":
		return false
	case l.Pod.String(), l.Pod.Name, l.Attachment.String(), a.Link:
		return true
	}
	return strings.HasPrefix(l.Attachment.ContainerID, word)
}

// errNothing is the error for a word that names nothing.
func errNothing(word string) error {
	return fmt.Errorf("%s: no lease of a pod (namespace/name), address, container or link of that name; edgewayd ipam list shows all", word)
}

func (n *leases) show(ctx context.Context, words []string) (api.LeaseDetails, error) {
	out := api.LeaseDetails{Leases: []api.LeaseDetail{}, Remembered: []api.Remembered{}, Now: time.Now()}
	all, err := n.verbs.Attachments(ctx)
	if err != nil {
		return out, err
	}
	slices.SortFunc(all, byAddr)
	memories, err := n.store.Remembered()
	if err != nil {
		return out, err
	}
	for _, word := range words {
		found := false
		for _, a := range all {
			if !named(a, word) {
				continue
			}
			found = true
			d, err := n.detail(ctx, a)
			if err != nil {
				return out, err
			}
			out.Leases = append(out.Leases, d)
		}
		for _, m := range memories {
			if word == m.Addr.String() || word == m.Pod.String() || word == m.Pod.Name {
				found = true
				out.Remembered = append(out.Remembered, memoryRow(m))
			}
		}
		if !found {
			return out, errNothing(word)
		}
	}
	return out, nil
}

// detail asks the kernel for both ends of the link.
func (n *leases) detail(ctx context.Context, a plugin.Attached) (api.LeaseDetail, error) {
	d := api.LeaseDetail{Lease: leaseRow(a), LinkExists: a.Linked, HostEnd: []string{}, PodEnd: []string{}, KeptFor: cmp.Or(a.Lease.RememberAs, a.Lease.Network)}
	if a.Lease.Pod.Name == "" {
		d.KeptFor = ""
	}
	ends, err := n.verbs.Ends(ctx, a)
	if err != nil {
		return d, err
	}
	d.NoPod = ends.NoPod
	d.HostEnd, d.MAC = endLines(ends.Host)
	d.PodEnd, d.PodMAC = endLines(ends.Pod)
	return d, nil
}

func endLines(s routes.State) (lines []string, mac string) {
	lines = []string{}
	for _, l := range s.Links {
		mac = l.MAC
		lines = append(lines, fmt.Sprint(l))
	}
	for _, a := range s.Addrs {
		lines = append(lines, fmt.Sprint(a))
	}
	for _, r := range s.Routes {
		lines = append(lines, fmt.Sprint(r))
	}
	for _, x := range s.Neighs {
		lines = append(lines, fmt.Sprint(x))
	}
	return lines, mac
}

// releaseLeases ends attachments as DEL does. Each word is an attachment as show names it.
func (n *leases) releaseLeases(ctx context.Context, words []string) ([]api.Released, error) {
	force := slices.Contains(words, Force)
	all, err := n.verbs.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	var chosen []plugin.Attached
	for _, word := range words {
		if word == Force {
			continue
		}
		i := slices.IndexFunc(all, func(a plugin.Attached) bool { return a.Lease.Attachment.String() == word })
		if i < 0 {
			return nil, errNothing(word)
		}
		if all[i].Standing.Lives() && !force {
			return nil, fmt.Errorf("release %s: its pod is running now; nothing was released", word)
		}
		chosen = append(chosen, all[i])
	}
	out := []api.Released{}
	for _, a := range chosen {
		r := api.Released{Lease: leaseRow(a)}
		if err := n.verbs.Remove(ctx, a.Lease.Attachment); err != nil {
			r.Error = err.Error()
		}
		out = append(out, r)
	}
	return out, nil
}

// forget makes free addresses forget their last pods.
func (n *leases) forget(ctx context.Context, words []string) ([]api.Remembered, error) {
	memories, err := n.store.Remembered()
	if err != nil {
		return nil, err
	}
	out := []api.Remembered{}
	for _, word := range words {
		addr, err := netip.ParseAddr(word)
		if err != nil {
			return out, fmt.Errorf("forget %s: not an address; edgewayd ipam list --remembered shows them", word)
		}
		i := slices.IndexFunc(memories, func(m ipam.Memory) bool { return m.Addr == addr.Unmap() })
		if i < 0 {
			return out, fmt.Errorf("forget %s: it is not kept for a pod; edgewayd ipam list --remembered shows the addresses that are", word)
		}
		if err := n.store.Forget(ctx, addr); err != nil {
			return out, err
		}
		out = append(out, memoryRow(memories[i]))
	}
	return out, nil
}

// check compares the store, the host and the pods. look is Audit or Repair.
func (n *leases) check(ctx context.Context, look func(context.Context) ([]plugin.Finding, error)) (api.Findings, error) {
	out := api.Findings{Findings: []api.Finding{}}
	if err := n.store.Check(); err != nil {
		out.Findings = append(out.Findings, api.Finding{Object: "store", Got: err.Error(), Next: "restart edgewayd: it rebuilds the store from the node's links and the last good copy"})
		return out, nil
	}
	leases, err := n.store.Leases()
	if err != nil {
		return out, err
	}
	out.Leases = len(leases)
	found, err := look(ctx)
	for _, f := range found {
		out.Findings = append(out.Findings, api.Finding{Object: f.Object, Got: f.Got, Repair: f.Repair, Next: f.Next, Done: f.Done})
	}
	for _, p := range n.addressTaken(ctx) {
		out.Findings = append(out.Findings, api.Finding{Object: p.Object, Got: p.Got, Next: p.Next})
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out, nil
}

// poolToBe returns the store's pool, or else the pool that the daemon will set when it starts. It returns
// false when neither is known.
func (n *leases) poolToBe(ctx context.Context, c config.Config) (ipam.Pool, bool, error) {
	pool, ok, err := n.store.Pool()
	if ok || err != nil {
		return pool, ok, err
	}
	last, _, err := c.SavedWorld()
	if err != nil {
		return pool, false, err
	}
	w, err := c.ReadCluster(ctx, last)
	if err != nil {
		w = last // the manifests of this node come later
	}
	pool = policy.Decide(policy.World{Cluster: w, Self: c.NodeName, Config: c}).Pool
	return pool, len(pool.Sets) > 0, nil
}
