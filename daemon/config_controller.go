package daemon

import (
	"go.yaml.in/yaml/v3"
)

// Controller is what `edgewayd controller` gives to which nodes: one pool, or several.
type Controller struct {
	PodPool `yaml:",inline"`
	Pools   []PodPool `yaml:"pools"`
	Listen  string    `yaml:"listen"` // host:port of /healthz and /metrics; default: none
}

// PodPool is where the pod CIDRs of some nodes come from.
type PodPool struct {
	NodeSelector selector `yaml:"nodeSelector"`
	PodCIDRs     []prefix `yaml:"podCIDRs"`
	NodeMask     nodeMask `yaml:"nodeMask"` // the prefix length of one node's pod CIDR; default: 24 and 64
	Exclude      []prefix `yaml:"exclude"`  // addresses that no node gets
}

type nodeMask struct{ IPv4, IPv6 int }

func (m *nodeMask) UnmarshalYAML(n *yaml.Node) error {
	var masks struct {
		IPv4 maskIPv4 `yaml:"ipv4"`
		IPv6 maskIPv6 `yaml:"ipv6"`
	}
	if n.Kind != yaml.MappingNode {
		return wanted(n, "{ipv4: 24, ipv6: 64}")
	}
	for i := 0; i < len(n.Content); i += 2 {
		if key := n.Content[i]; key.Value != "ipv4" && key.Value != "ipv6" {
			return wanted(key, "ipv4 or ipv6")
		}
	}
	if err := n.Decode(&masks); err != nil {
		return err
	}
	*m = nodeMask{int(masks.IPv4), int(masks.IPv6)}
	return nil
}

type (
	maskIPv4 int
	maskIPv6 int
)

func (m *maskIPv4) UnmarshalYAML(n *yaml.Node) error {
	v, err := number(n, 1, 32, "a prefix length from 1 to 32")
	*m = maskIPv4(v)
	return err
}

func (m *maskIPv6) UnmarshalYAML(n *yaml.Node) error {
	v, err := number(n, 1, 128, "a prefix length from 1 to 128")
	*m = maskIPv6(v)
	return err
}
