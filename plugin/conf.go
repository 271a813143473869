package plugin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

const (
	// DefaultDataDir is where the store lies unless configured otherwise.
	DefaultDataDir = "/var/lib/edgeway"
	// StoreFile is the store's name in the data directory.
	StoreFile = "ipam.db"

	ownType = "edgeway"
	minMTU  = 68    // RFC 791, section 3.2
	minMTU6 = 1280  // RFC 8200, section 5
	maxMTU  = 65535 // drivers/net/veth.c: max_mtu
)

// conf holds the keys that this plugin reads of one entry of a network configuration list, as the runtime
// passes it (SPEC 1.1.0 section 1). Unknown keys are ignored.
type conf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	MTU        int             `json:"mtu"`
	IPMasq     bool            `json:"ipMasq"`
	Socket     string          `json:"socket"`
	DataDir    string          `json:"dataDir"`
	IPAM       ipamConf        `json:"ipam"`
	DNS        types.DNS       `json:"dns"`
	Runtime    runtimeConf     `json:"runtimeConfig"`
	Args       argsConf        `json:"args"`
	PrevResult json.RawMessage `json:"prevResult"`
	gcConf
}

// ipamConf is the key ipam: host-local's keys, for the built-in store.
type ipamConf struct {
	Type    string        `json:"type"`
	Ranges  [][]rangeConf `json:"ranges"`
	Routes  []routeConf   `json:"routes"`
	DataDir string        `json:"dataDir"`
	Socket  string        `json:"socket"`
	Resolv  string        `json:"resolvConf"` // a file like /etc/resolv.conf, for results without dns
	rangeConf
}

type rangeConf struct {
	Subnet  string `json:"subnet"`
	Start   string `json:"rangeStart"`
	End     string `json:"rangeEnd"`
	Gateway string `json:"gateway"`
}

// routeConf is a route of ipam.routes. The keys after gw came with cniVersion 1.1.0.
type routeConf struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

// runtimeConf holds the values that the runtime fills in for declared capabilities (CONVENTIONS).
type runtimeConf struct {
	IPs      []string      `json:"ips"`
	MAC      string        `json:"mac"`
	IPRanges [][]rangeConf `json:"ipRanges"`
}

type argsConf struct {
	CNI struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"cni"`
}

// gcConf holds the keys of a GC call. A missing list is not an empty list: runtimes that know of no
// attachments leave it out.
type gcConf struct {
	Valid    *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	ValidOld *[]types.GCAttachment `json:"cni.dev/attachments"` // libcni before 1.2.3
}

// parseConf decodes and checks the keys that every verb needs. ADD checks its other keys itself.
func parseConf(stdin []byte) (conf, error) {
	var c conf
	if len(bytes.TrimSpace(stdin)) == 0 {
		return c, fault(codeIO, "standard input is empty").next("the runtime must pass the network configuration on standard input")
	}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return c, fault(codeDecode, "decode network configuration: %w", err).next("correct the key that msg names")
	}
	c.CNIVersion = cmp.Or(c.CNIVersion, versions[0]) // SPEC 0.1.0 had no such key
	if versionIndex(c.CNIVersion) < 0 {
		return c, fault(codeVersion, "cniVersion %q is not supported", c.CNIVersion).next("supported are %v", versions)
	}
	if !isIdentifier(c.Name) {
		return c, fault(codeConfig, "name %q is not a network name", c.Name).next("a network name starts with a letter or digit, followed by letters, digits, '_', '.' and '-'")
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return c, fault(codeConfig, "mtu %d is out of range", c.MTU).next("use %d to %d, or 0 for the uplink's", minMTU, maxMTU)
	}
	return c, nil
}

// answerVersion is the version of results and errors; "" when the input's version is not usable.
func (c conf) answerVersion() string {
	if versionIndex(c.CNIVersion) < 0 {
		return ""
	}
	return c.CNIVersion
}

// ipamOnly reports that another main plugin delegates its addresses to us.
func (c conf) ipamOnly() bool { return c.IPAM.Type == ownType && c.Type != "" && c.Type != ownType }

// delegated reports that another IPAM plugin gives the addresses.
func (c conf) delegated() bool { return c.IPAM.Type != "" && c.IPAM.Type != ownType }

// network is the network under which leases are kept. A lease that another main plugin asked for has that
// plugin's type after a slash, which no network name contains: it has no link of ours.
func (c conf) network() string {
	if c.ipamOnly() {
		return c.Name + "/" + c.Type
	}
	return c.Name
}

// socket and dataDir locate the daemon and the store.
func (c conf) socket() string { return cmp.Or(c.Socket, c.IPAM.Socket, api.DefaultSocket) }

func (c conf) dataDir() string {
	if c.delegated() {
		return cmp.Or(c.DataDir, DefaultDataDir) // ipam.dataDir belongs to the other plugin
	}
	return cmp.Or(c.DataDir, c.IPAM.DataDir, DefaultDataDir)
}

// pool is the pool in the configuration; nil: use the pool that the daemon set.
func (c conf) pool() (*ipam.Pool, error) {
	sets := append(append([][]rangeConf(nil), c.Runtime.IPRanges...), c.IPAM.Ranges...)
	if c.IPAM.Subnet != "" {
		sets = append([][]rangeConf{{c.IPAM.rangeConf}}, sets...)
	}
	if len(sets) == 0 {
		return nil, nil
	}
	pool := &ipam.Pool{}
	for _, set := range sets {
		var out ipam.RangeSet
		for _, r := range set {
			parsed, err := r.parse()
			if err != nil {
				return nil, err
			}
			out = append(out, parsed)
		}
		pool.Sets = append(pool.Sets, out)
	}
	return pool, nil
}

func (r rangeConf) parse() (ipam.Range, error) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return ipam.Range{}, fault(codeConfig, "ipam: subnet %q is not a prefix", r.Subnet).next("write it as 10.10.1.0/24")
	}
	out := ipam.Range{Subnet: subnet.Masked()}
	for _, f := range []struct {
		key, value string
		to         *netip.Addr
	}{{"rangeStart", r.Start, &out.First}, {"rangeEnd", r.End, &out.Last}, {"gateway", r.Gateway, &out.Gateway}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if err != nil || !out.Subnet.Contains(a.Unmap()) {
			return out, fault(codeConfig, "ipam: %s %q is not an address in %s", f.key, f.value, out.Subnet).next("correct it or leave it out")
		}
		*f.to = a.Unmap()
	}
	return out, nil
}

// requested are the addresses asked for: the capability ips, else args.cni.ips, else the IP of CNI_ARGS
// (CONVENTIONS: the later must be ignored where the earlier is understood).
func (c conf) requested(a args) ([]netip.Addr, error) {
	key, list := "runtimeConfig.ips", c.Runtime.IPs
	if len(list) == 0 {
		key, list = "args.cni.ips", c.Args.CNI.IPs
	}
	if len(list) == 0 && a.ip != "" {
		ip, err := parseAddr(a.ip)
		if err != nil {
			return nil, fault(codeEnvironment, "CNI_ARGS IP: %w", err).next("correct the value or leave the key out")
		}
		return []netip.Addr{ip}, nil
	}
	var out []netip.Addr
	for _, s := range list {
		ip, err := parseAddr(s)
		if err != nil {
			return nil, fault(codeConfig, "%s: %w", key, err).next("write addresses as 10.10.1.2 or 10.10.1.2/24")
		}
		out = append(out, ip)
	}
	return out, nil
}

// mac is the requested MAC of the pod's end; "" leaves the choice to us.
func (c conf) mac(a args) (string, error) {
	for _, f := range []struct{ key, value string }{{"runtimeConfig.mac", c.Runtime.MAC}, {"args.cni.mac", c.Args.CNI.MAC}} {
		if f.value == "" {
			continue
		}
		mac, err := parseMAC(f.value)
		if err != nil {
			return "", fault(codeConfig, "%s: %w", f.key, err).next("write it as 02:00:0a:0a:01:02")
		}
		return mac, nil
	}
	return a.mac, nil
}

// dns is the DNS part of results: the key dns, or else the file that ipam.resolvConf names.
func (c conf) dns() (types.DNS, error) {
	if c.IPAM.Resolv == "" || !c.DNS.IsEmpty() {
		return c.DNS, nil
	}
	text, err := os.ReadFile(c.IPAM.Resolv)
	if err != nil {
		return types.DNS{}, fault(codeConfig, "ipam.resolvConf: %w", err).next("name a file that the plugin and edgewayd can read, or write the key dns")
	}
	return parseResolv(string(text)), nil
}

// parseResolv reads the format of resolv.conf(5).
func parseResolv(text string) (out types.DNS) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			out.Nameservers = append(out.Nameservers, words[1])
		case "domain":
			out.Domain = words[1]
		case "search":
			out.Search = words[1:]
		case "options":
			out.Options = append(out.Options, words[1:]...)
		}
	}
	return out
}
