package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// DefaultConfig is where the configuration is read from unless said otherwise.
const DefaultConfig = "/etc/edgeway/edgewayd.yaml"

// Config is the daemon's configuration file. Every key is optional.
type Config struct {
	NodeName  string       `yaml:"nodeName"` // default: the host name
	Cluster   SourceConfig `yaml:"cluster"`
	Mode      Mode         `yaml:"mode"`
	Modes     []PoolMode   `yaml:"modes"`
	SourceNAT SourceNAT    `yaml:"sourceNAT"`
	VXLAN     VXLAN        `yaml:"vxlan"`
	BGP       BGP          `yaml:"bgp"`
	CNI       CNI          `yaml:"cni"`
	StateDir  string       `yaml:"stateDir"`
	Socket    string       `yaml:"socket"`
	Metrics   string       `yaml:"metrics"` // host:port; "" switches them off
	// Controller is read by edgewayd controller alone.
	Controller Controller `yaml:"controller"`
}

// Mode says how packets reach the pods of other nodes.
type Mode string

// The modes: routed by the LAN, in VXLAN, or in VXLAN only where the LAN does not reach.
const (
	Underlay Mode = "underlay"
	Overlay  Mode = "overlay"
	Auto     Mode = "auto"
)

// PoolMode gives the nodes that a selector selects a mode of their own.
type PoolMode struct {
	NodeSelector selector `yaml:"nodeSelector"`
	Mode         Mode     `yaml:"mode"`
}

// SourceNAT gives pods' packets the node's address where they leave the pods' own networks.
type SourceNAT struct {
	Enabled bool     `yaml:"enabled"`
	Exclude []prefix `yaml:"exclude"` // destinations that keep seeing the pod's address
}

// VXLAN is the overlay's identity; all nodes of a cluster share it.
type VXLAN struct {
	VNI  vni  `yaml:"vni"`
	Port port `yaml:"port"` // UDP
}

// BGP holds what all sessions share.
type BGP struct {
	Port        port        `yaml:"port"` // TCP, on the switch
	RestartTime restartTime `yaml:"restartTime"`
	// LongLivedTime is how long after that the switch keeps the paths as a last resort
	// (RFC 9494); 0: off.
	LongLivedTime longLivedTime `yaml:"longLivedTime"`
	HoldTime      holdTime      `yaml:"holdTime"`
	RouterID      routerID      `yaml:"routerID"` // default: the node's IPv4 address
	// WithdrawAfter is how long a node must not answer ARP or neighbour discovery before a
	// speaker of its LAN withdraws its pod CIDRs; 0: never.
	WithdrawAfter withdrawAfter `yaml:"withdrawAfter"`
	// Learn lists what of the switches' own paths becomes a route here: what is equal to one of
	// them or lies in it, of 0.0.0.0/0 and ::/0 only the default route itself. Empty: nothing.
	Learn     []prefix  `yaml:"learn"`
	LearnMost learnMost `yaml:"learnMost"` // routes at most
}

// CNI says where the container runtime looks.
type CNI struct {
	ConfDir string   `yaml:"confDir"`
	BinDir  string   `yaml:"binDir"`
	Chain   []string `yaml:"chain"` // plugins after ours; default: portmap where it is installed
	MTU     mtu      `yaml:"mtu"`   // bytes, of the pods' links; default: what the underlay carries
}

// ReadConfig reads the file at path. Relative paths in it are relative to its directory. The
// error names file, line and what was wanted.
func ReadConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w; name the file with --config", err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	paths := []*string{&c.CNI.ConfDir, &c.CNI.BinDir, &c.StateDir, &c.Socket}
	for _, p := range append(paths, c.Cluster.paths()...) {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

func defaults() Config {
	return Config{
		Mode:  Underlay,
		VXLAN: VXLAN{VNI: 1, Port: 8472},
		BGP: BGP{Port: bgp.DefaultPort, RestartTime: restartTime(600 * time.Second), HoldTime: holdTime(90 * time.Second),
			WithdrawAfter: withdrawAfter(15 * time.Second), LearnMost: 100},
		CNI:      CNI{ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin"},
		StateDir: "/var/lib/edgeway",
		Socket:   api.DefaultSocket,
		Metrics:  "127.0.0.1:9475",
	}
}

func parseConfig(text []byte) (Config, error) {
	c := defaults()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, plainYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("a second document; keep one")
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("host name: %w; set nodeName", err)
		}
		c.NodeName = name
	}
	if err := c.Cluster.choose(); err != nil {
		return Config{}, err
	}
	if c.BGP.LongLivedTime > 0 && c.BGP.RestartTime == 0 {
		return Config{}, errors.New("bgp.longLivedTime: it begins when bgp.restartTime is over, which is off; set both")
	}
	for i, m := range c.Modes {
		if m.Mode == "" || m.NodeSelector.String() == "" {
			return Config{}, fmt.Errorf("modes[%d]: want both nodeSelector and mode", i)
		}
	}
	return c, nil
}

// plainYAML says in an operator's words what the decoder says in a Go programmer's.
func plainYAML(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	words := strings.NewReplacer(
		"cannot unmarshal !!str", "want another type than the text",
		"cannot unmarshal !!int", "want another type than the number",
		"cannot unmarshal !!map", "want another type than a mapping",
		"cannot unmarshal !!seq", "want another type than a list",
		"cannot unmarshal !!bool", "want another type than",
		" into bool", ": true or false",
		" into string", ": a text",
		" into []string", ": a list of texts",
		" into []daemon.prefix", ": a list of CIDRs",
		" into []daemon.PodPool", ": a list of pools",
	)
	var lines []error
	for _, e := range te.Errors {
		if at, rest, ok := strings.Cut(e, ": field "); ok {
			key, _, _ := strings.Cut(rest, " ")
			e = fmt.Sprintf("%s: unknown key %s; see the example configuration for the known ones", at, key)
		} else {
			e, _, _ = strings.Cut(words.Replace(e), " into daemon.")
		}
		lines = append(lines, errors.New(e))
	}
	return errors.Join(lines...)
}

// Scalars that know what they want. Each decodes from one YAML node and names its line.

func wanted(n *yaml.Node, want string) error {
	return fmt.Errorf("line %d: want %s, got %q", n.Line, want, n.Value)
}

// UnmarshalYAML accepts the three modes.
func (m *Mode) UnmarshalYAML(n *yaml.Node) error {
	switch v := Mode(n.Value); v {
	case Underlay, Overlay, Auto:
		*m = v
		return nil
	}
	return wanted(n, "underlay, overlay or auto")
}

type selector struct{ cluster.Selector }

func (s *selector) UnmarshalYAML(n *yaml.Node) error {
	sel, err := cluster.ParseSelector(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	s.Selector = sel
	return nil
}

type prefix struct{ netip.Prefix }

func (p *prefix) UnmarshalYAML(n *yaml.Node) error {
	v, err := netip.ParsePrefix(n.Value)
	if err != nil || v != v.Masked() {
		return wanted(n, "a CIDR such as 10.0.0.0/8")
	}
	p.Prefix = v
	return nil
}

type routerID struct{ netip.Addr }

func (r *routerID) UnmarshalYAML(n *yaml.Node) error {
	v, err := netip.ParseAddr(n.Value)
	if err != nil || !v.Is4() || v.IsUnspecified() {
		return wanted(n, "an IPv4 address")
	}
	r.Addr = v
	return nil
}

type port uint16

func (p *port) UnmarshalYAML(n *yaml.Node) error {
	v, err := number(n, 1, 65535, "a port from 1 to 65535")
	*p = port(v)
	return err
}

type vni uint32

func (p *vni) UnmarshalYAML(n *yaml.Node) error {
	// RFC 7348, section 5: the VNI has 24 bits.
	v, err := number(n, 1, 1<<24-1, "a VNI from 1 to 16777215")
	*p = vni(v)
	return err
}

type mtu int

func (p *mtu) UnmarshalYAML(n *yaml.Node) error {
	// RFC 8200, section 5: no IPv6 link is smaller than 1280.
	v, err := number(n, 1280, 65535, "an MTU from 1280 to 65535 bytes")
	*p = mtu(v)
	return err
}

type restartTime time.Duration

func (t *restartTime) UnmarshalYAML(n *yaml.Node) error {
	v, err := seconds(n, 0, bgp.MaxRestartTime, "a restart time from 0s (off) to 4095s (RFC 4724), whole seconds")
	*t = restartTime(v)
	return err
}

type longLivedTime time.Duration

func (t *longLivedTime) UnmarshalYAML(n *yaml.Node) error {
	v, err := seconds(n, 0, bgp.MaxLongLivedTime, "a time from 0s (off) to 16777215s (RFC 9494), whole seconds")
	*t = longLivedTime(v)
	return err
}

type holdTime time.Duration

func (t *holdTime) UnmarshalYAML(n *yaml.Node) error {
	// RFC 4271, section 4.2: the hold time has 16 bits and is not 1 or 2.
	v, err := seconds(n, 3*time.Second, 65535*time.Second, "a hold time from 3s to 65535s, whole seconds")
	*t = holdTime(v)
	return err
}

type withdrawAfter time.Duration

func (t *withdrawAfter) UnmarshalYAML(n *yaml.Node) error {
	v, err := seconds(n, 0, time.Hour, "0s (never) or a time from 10s to 1h, whole seconds")
	if err == nil && v != 0 && v < 2*listenEvery {
		return wanted(n, "0s (never) or a time from 10s to 1h, whole seconds")
	}
	*t = withdrawAfter(v)
	return err
}

type learnMost int

func (m *learnMost) UnmarshalYAML(n *yaml.Node) error {
	v, err := number(n, 1, 10000, "a number of routes from 1 to 10000")
	*m = learnMost(v)
	return err
}

func number(n *yaml.Node, least, most int, want string) (int, error) {
	var v int
	if n.Kind != yaml.ScalarNode || n.Decode(&v) != nil || v < least || v > most {
		return 0, wanted(n, want)
	}
	return v, nil
}

func seconds(n *yaml.Node, least, most time.Duration, want string) (time.Duration, error) {
	v, err := time.ParseDuration(n.Value)
	if err != nil || v < least || v > most || v%time.Second != 0 {
		return 0, wanted(n, want)
	}
	return v, nil
}
