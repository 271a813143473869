package controller

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Config is the controller's configuration file. An edgewayd.yaml will do: edgewayd's other keys are ignored.
type Config struct {
	Kubeconfig string // absolute; "": the service account of the pod
	Pools      []Pool
	Listen     string // host:port of /healthz and /metrics; "": neither is served
}

// file is the configuration as it is written.
type file struct {
	Cluster struct {
		Kubeconfig string         `yaml:"kubeconfig"`
		Rest       map[string]any `yaml:",inline"`
	} `yaml:"cluster"`
	Controller struct {
		poolConfig `yaml:",inline"`
		Pools      []poolConfig `yaml:"pools"`
		Listen     string       `yaml:"listen"`
	} `yaml:"controller"`
	Rest map[string]any `yaml:",inline"`
}

type poolConfig struct {
	NodeSelector selectorValue `yaml:"nodeSelector"`
	PodCIDRs     []cidrValue   `yaml:"podCIDRs"`
	NodeMask     maskValue     `yaml:"nodeMask"`
	Exclude      []cidrValue   `yaml:"exclude"`
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
	return c, nil
}

func parseConfig(text []byte) (Config, error) {
	var f file
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, plain(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("a second document; keep one")
	}
	c := Config{Kubeconfig: f.Cluster.Kubeconfig, Listen: f.Controller.Listen}
	one := f.Controller.poolConfig
	alone := len(one.PodCIDRs) > 0 || one.NodeSelector.String() != "" || len(one.Exclude) > 0 || one.NodeMask != maskValue{}
	switch {
	case len(f.Controller.Pools) > 0 && alone:
		return Config{}, errors.New("controller: either pools, or podCIDRs and what belongs to them; move the latter into pools")
	case len(one.PodCIDRs) > 0:
		c.Pools = []Pool{one.pool()}
	}
	for _, p := range f.Controller.Pools {
		c.Pools = append(c.Pools, p.pool())
	}
	return c, nil
}

// plain turns the decoder's error for Go programmers into one for operators.
func plain(err error) error {
	var types *yaml.TypeError
	if !errors.As(err, &types) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var all []error
	for _, text := range types.Errors {
		at, what, _ := strings.Cut(text, ": ")
		if key, ok := strings.CutPrefix(what, "field "); ok {
			key, _, _ = strings.Cut(key, " ")
			what = "unknown key " + key + "; see docs/kubernetes.md for the known ones"
		} else if value, ok := strings.CutPrefix(what, "cannot unmarshal !!"); ok {
			value, _, _ = strings.Cut(value, " into ")
			what = "want another type than " + value
		}
		all = append(all, errors.New(at+": "+what))
	}
	return errors.Join(all...)
}

// pool is the configured Pool. Its mask has the defaults of kube-controller-manager.
func (p poolConfig) pool() Pool {
	out := Pool{Selector: p.NodeSelector.Selector, Mask: Mask(p.NodeMask).orDefault()}
	for _, c := range p.PodCIDRs {
		out.CIDRs = append(out.CIDRs, c.Prefix)
	}
	for _, c := range p.Exclude {
		out.Exclude = append(out.Exclude, c.Prefix)
	}
	return out
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

// Scalars that check their values. Each decodes from one YAML node and names its line.

func wanted(n *yaml.Node, want string) error {
	return fmt.Errorf("line %d: want %s, got %q", n.Line, want, n.Value)
}

type selectorValue struct{ cluster.Selector }

func (s *selectorValue) UnmarshalYAML(n *yaml.Node) (err error) {
	if s.Selector, err = cluster.ParseSelector(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

type cidrValue struct{ netip.Prefix }

func (p *cidrValue) UnmarshalYAML(n *yaml.Node) error {
	v, err := netip.ParsePrefix(n.Value)
	if err != nil || v != v.Masked() {
		return wanted(n, "a CIDR such as 10.0.0.0/8")
	}
	p.Prefix = v
	return nil
}

type maskValue Mask

func (m *maskValue) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return wanted(n, "{ipv4: 24, ipv6: 64}")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		into, most := &m.IPv4, 32
		switch key := n.Content[i]; key.Value {
		case "ipv4":
		case "ipv6":
			into, most = &m.IPv6, 128
		default:
			return wanted(key, "ipv4 or ipv6")
		}
		if v := n.Content[i+1]; v.Decode(into) != nil || *into < 1 || *into > most {
			return wanted(v, fmt.Sprintf("a prefix length from 1 to %d", most))
		}
	}
	return nil
}
