package controller

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config/keys"
	"github.com/edgeway-cni/edgeway/daemon/controller/uplinks"
)

// Config is the controller's configuration file. An edgewayd.yaml will do: edgewayd's other keys are ignored.
type Config struct {
	Kubeconfig string // absolute; "": the service account of the pod
	Pools      []Pool
	Listen     string // host:port of /healthz and /metrics; "": neither is served
	Uplinks    []uplinks.Config
}

// ReadConfig reads the file at path. Its errors name the file, the line and the expected value. [CheckPools]
// checks the pools.
func ReadConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w; name the file with --config", err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	if c.Kubeconfig != "" && !filepath.IsAbs(c.Kubeconfig) {
		c.Kubeconfig = filepath.Join(filepath.Dir(path), c.Kubeconfig)
	}
	for i := range c.Uplinks {
		if u := &c.Uplinks[i]; u.Credentials != "" && !filepath.IsAbs(u.Credentials) {
			u.Credentials = filepath.Join(filepath.Dir(path), u.Credentials)
		}
	}
	return c, nil
}

func parseConfig(text []byte) (c Config, err error) {
	var one Pool
	given := false // a key of a single pool
	err = keys.Parse(text, "docs/kubernetes.md", func(s keys.Section) {
		s.Inside("cluster", func(s keys.Section) {
			s.Text("kubeconfig", &c.Kubeconfig)
			s.Rest()
		})
		s.Inside("controller", func(s keys.Section) {
			one, given = readPool(s)
			s.Sections("pools", "a list of pools", func(s keys.Section) {
				p, _ := readPool(s)
				c.Pools = append(c.Pools, p)
			})
			s.Text("listen", &c.Listen)
			for _, of := range []cloud.Service{cloud.ENS, cloud.ECS} {
				s.Inside(string(of), func(s keys.Section) { c.Uplinks = append(c.Uplinks, readUplinks(s, of)) })
			}
		})
		s.Rest()
	})
	switch {
	case err != nil:
	case len(c.Pools) > 0 && given:
		err = errors.New("controller: either pools, or podCIDRs and what belongs to them; move the latter into pools")
	case len(one.CIDRs) > 0:
		c.Pools = []Pool{one}
	}
	return c, err
}

// mostOfType is more than any instance type of ECS has, of interfaces and of addresses of one.
const mostOfType = 100

// readUplinks reads the keys of a service of the cloud.
func readUplinks(s keys.Section, of cloud.Service) uplinks.Config {
	u := uplinks.Config{Service: of, Credentials: string(of) + ".json", Terms: uplinks.Terms{Release: uplinks.On}}
	most := mostOfType
	if of == cloud.ENS {
		most = cloud.MostAddresses
		u.Region, u.Terms.PerInterface = "ap-southeast-1", most
	}
	s.Text("endpoint", &u.Endpoint)
	s.Text("region", &u.Region)
	s.Text("credentials", &u.Credentials)
	if u.Credentials == "env" {
		u.Credentials = ""
	}
	keys.Number(s, "addressesPerInterface", &u.Terms.PerInterface, 1, most, fmt.Sprint("a number from 1 to ", most))
	s.Scalar("fill", "all, or how many more addresses a node has than its pods use", func(n *yaml.Node) bool {
		return n.Value == "all" || n.Decode(&u.Terms.Fill.Free) == nil && u.Terms.Fill.Free > 0
	})
	s.Scalar("switch", "on, noRelease or off", func(n *yaml.Node) bool {
		u.Terms.Release = uplinks.Release(n.Value)
		return slices.Contains([]uplinks.Release{uplinks.On, uplinks.NoRelease, uplinks.Off}, u.Terms.Release)
	})
	s.Flag("taintWhenFull", &u.TaintWhenFull)
	if of == cloud.ECS {
		keys.Number(s, "interfaces", &u.Terms.Interfaces, 1, mostOfType, "how many secondary interfaces an instance gets")
		s.Texts("vSwitches", &u.Terms.VSwitches)
	}
	return u
}

// readPool reads the keys of a pool, and reports whether there is one. A mask that is not set is the default of
// kube-controller-manager.
func readPool(s keys.Section) (p Pool, given bool) {
	s.Selector("nodeSelector", &p.Selector)
	s.Prefixes("podCIDRs", &p.CIDRs)
	s.Prefixes("exclude", &p.Exclude)
	s.Inside("nodeMask", func(s keys.Section) {
		keys.Number(s, "ipv4", &p.Mask.IPv4, 1, 32, "a prefix length from 1 to 32")
		keys.Number(s, "ipv6", &p.Mask.IPv6, 1, 128, "a prefix length from 1 to 128")
	})
	given = len(p.CIDRs)+len(p.Exclude) > 0 || p.Selector.String() != "" || p.Mask != Mask{}
	p.Mask = p.Mask.orDefault()
	return p, given
}

func (m Mask) orDefault() Mask { return Mask{cmp.Or(m.IPv4, 24), cmp.Or(m.IPv6, 64)} }

// ParsePool returns the pool that command line flags describe; a mask of 0 is the default.
func ParsePool(nodeSelector string, podCIDRs, exclude []string, mask Mask) (p Pool, err error) {
	p.Mask = mask.orDefault()
	if p.Selector, err = cluster.ParseSelector(nodeSelector); err != nil {
		return p, fmt.Errorf("--node-selector: %w", err)
	}
	if p.CIDRs, err = parseCIDRs("--pod-cidr", podCIDRs); err != nil {
		return p, err
	}
	p.Exclude, err = parseCIDRs("--exclude", exclude)
	return p, err
}

func parseCIDRs(flag string, texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		c, err := netip.ParsePrefix(text)
		if err != nil || c != c.Masked() {
			return nil, fmt.Errorf("%s %q: want a CIDR such as 10.10.0.0/16", flag, text)
		}
		out = append(out, c)
	}
	return out, nil
}
