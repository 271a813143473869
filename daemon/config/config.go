// Package config reads edgewayd.yaml: what the operator set on this node.
//
// It owns the keys, their defaults and their possible values. A mistake is an error that names the line and
// the expected value. It decides nothing: package policy does. It also opens the source of cluster state that
// the file names, for the daemon and for commands that read it once.
//
//	c, err := config.Read("/etc/edgeway/edgewayd.yaml")
//	// /etc/edgeway/edgewayd.yaml: line 2: want underlay, overlay or auto, got "tunnel"
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config/keys"
)

// DefaultFile is the configuration file unless another file is named.
const DefaultFile = "/etc/edgeway/edgewayd.yaml"

// ProbeEvery is the time between two rounds of probes of the LAN. The kernel needs three seconds for a round.
// BGP.WithdrawAfter is counted in rounds.
const ProbeEvery = 5 * time.Second

// Config is the daemon's configuration file. Every key is optional.
type Config struct {
	NodeName  string // default: the host name
	Cluster   Source
	Mode      cluster.Mode
	Modes     []PoolMode
	SourceNAT cluster.SourceNAT
	VXLAN     VXLAN
	BGP       BGP
	CNI       CNI
	Paths     Paths
	Firewall  Firewall
	StateDir  string
	Socket    string
	Metrics   string // host:port; "": no metrics
	// Given has those keys of the file that a NetworkPool can decide instead: "mode", "vxlan.vni".
	Given []string
}

// PoolMode is the mode of the nodes that a selector selects.
type PoolMode struct {
	NodeSelector cluster.Selector
	Mode         cluster.Mode
}

// VXLAN is where the nodes that no NetworkPool selects receive the overlay's packets.
type VXLAN struct {
	cluster.VXLAN
	// AcceptAll lets any machine send to the port; else only nodes of the cluster may.
	AcceptAll bool
}

// BGP holds the settings that all sessions share.
type BGP struct {
	Port        uint16 // TCP, on the switch
	RestartTime time.Duration
	// LongLivedTime is how long the switch keeps the paths as a last resort after RestartTime
	// (RFC 9494); 0: off.
	LongLivedTime time.Duration
	HoldTime      time.Duration
	RouterID      netip.Addr // default: the node's IPv4 address
	// WithdrawAfter is how long a node must fail to answer ARP or neighbour discovery before a speaker of its
	// LAN withdraws its pod CIDRs; 0: never.
	WithdrawAfter time.Duration
	// Learn lists the prefixes that are learned. A path that a switch announces becomes a route here when it
	// equals one of the prefixes or lies inside it. 0.0.0.0/0 and ::/0 mean only the default route itself.
	// Each prefix is listed once. Empty: nothing is learned.
	Learn     []netip.Prefix
	LearnMost int // the largest number of learned routes
}

// CNI says where the container runtime looks.
type CNI struct {
	ConfDir string
	BinDir  string
	Chain   []string // plugins after ours; nil: portmap where it is installed
	MTU     int      // bytes, of the pods' links; 0: as large as the underlay carries
	// SourceCheck drops packets that a pod sends from an address that is not the pod's own.
	SourceCheck bool
}

// Paths says how this node proves that packets of pods arrive.
type Paths struct {
	// Canary gives the node a pod of its own, edgeway/canary, and lets it ask and answer the canaries of other nodes.
	Canary bool
	Port   uint16        // UDP, the same on all nodes
	Every  time.Duration // from one round of questions to the next, the same on all nodes
	// Secret is the name of the Secret in kube-system with the key of questions and answers; "": addresses alone
	// say who may ask.
	Secret string
}

// Firewall says what edgeway does where the end of a firewall's chain drops packets of pods, of the tunnel or of BGP.
type Firewall string

// FirewallAccept adds a rule of edgeway's to the chain, which accepts the packets. FirewallOff changes no firewall.
const (
	FirewallAccept Firewall = "accept"
	FirewallOff    Firewall = "off"
)

// Defaults returns the configuration of an empty file, without the node's name.
func Defaults() Config {
	return Config{
		Mode:     cluster.Underlay,
		VXLAN:    VXLAN{VXLAN: cluster.DefaultVXLAN()},
		BGP:      BGP{Port: bgp.DefaultPort, RestartTime: 600 * time.Second, HoldTime: 90 * time.Second, WithdrawAfter: 15 * time.Second, LearnMost: 100},
		CNI:      CNI{ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin", SourceCheck: true},
		Paths:    Paths{Canary: true, Port: 9476, Every: 10 * time.Second},
		Firewall: FirewallAccept,
		StateDir: "/var/lib/edgeway",
		Socket:   api.DefaultSocket,
		Metrics:  "127.0.0.1:9475",
	}
}

// Read reads the file at path. Relative paths in the file are relative to its directory. The error names the
// file, the line and the expected value.
func Read(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w; name the file with --config", err)
	}
	c, err := Parse(text)
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

// Parse reads the text of a configuration file. The error names the line and the expected value.
func Parse(text []byte) (Config, error) {
	c := Defaults()
	if err := keys.Parse(text, "the example configuration", c.read); err != nil {
		return Config{}, err
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("host name: %w; set nodeName", err)
		}
		c.NodeName = name
	}
	return c, c.finish()
}

// finish sets the values that the file leaves open, and refuses settings that contradict each other.
func (c *Config) finish() error {
	if err := c.Cluster.choose(); err != nil {
		return err
	}
	if c.BGP.LongLivedTime > 0 && c.BGP.RestartTime == 0 {
		return errors.New("bgp.longLivedTime: it begins when bgp.restartTime is over, which is off; set both")
	}
	for i, m := range c.Modes {
		if m.Mode == "" || m.NodeSelector.String() == "" {
			return fmt.Errorf("modes[%d]: want both nodeSelector and mode", i)
		}
	}
	return nil
}

// read reads every key that the file may have.
func (c *Config) read(s keys.Section) {
	s.Text("nodeName", &c.NodeName)
	s.Inside("cluster", func(s keys.Section) {
		s.Text("manifests", &c.Cluster.Manifests)
		s.Text("kubeconfig", &c.Cluster.Kubeconfig)
	})
	c.given(s, "", "mode", "modes", "sourceNAT")
	mode(s, &c.Mode)
	s.Sections("modes", "a list of {nodeSelector, mode}", func(s keys.Section) {
		var m PoolMode
		s.Selector("nodeSelector", &m.NodeSelector)
		mode(s, &m.Mode)
		c.Modes = append(c.Modes, m)
	})
	s.Inside("sourceNAT", func(s keys.Section) {
		s.Flag("enabled", &c.SourceNAT.Enabled)
		s.Prefixes("exclude", &c.SourceNAT.Exclude)
	})
	s.Inside("vxlan", func(s keys.Section) {
		c.given(s, "vxlan.", "vni", "port")
		keys.Number(s, "vni", &c.VXLAN.VNI, 1, 1<<24-1, "a VNI from 1 to 16777215") // RFC 7348, section 5: the VNI has 24 bits
		keys.Number(s, "port", &c.VXLAN.Port, 1, 65535, wantPort)
		s.Flag("acceptAll", &c.VXLAN.AcceptAll)
	})
	s.Inside("bgp", c.BGP.read)
	s.Inside("cni", func(s keys.Section) {
		c.given(s, "cni.", "mtu")
		s.Text("confDir", &c.CNI.ConfDir)
		s.Text("binDir", &c.CNI.BinDir)
		s.Texts("chain", &c.CNI.Chain)
		keys.Number(s, "mtu", &c.CNI.MTU, 1280, 65535, "an MTU from 1280 to 65535 bytes") // RFC 8200, section 5: no IPv6 link is smaller
		s.Flag("sourceCheck", &c.CNI.SourceCheck)
	})
	s.Inside("paths", func(s keys.Section) {
		s.Flag("canary", &c.Paths.Canary)
		keys.Number(s, "port", &c.Paths.Port, 1, 65535, wantPort)
		s.Seconds("every", &c.Paths.Every, "a time from 1s to 10m, whole seconds",
			func(t time.Duration) bool { return time.Second <= t && t <= 10*time.Minute })
		s.Scalar("secret", "the name of a Secret in kube-system", func(n *yaml.Node) bool {
			c.Paths.Secret = n.Value
			return len(n.Value) <= 253 && strings.Trim(n.Value, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" // RFC 1123, as Kubernetes names Secrets
		})
	})
	s.Scalar("firewall", "accept or off", func(n *yaml.Node) bool {
		c.Firewall = Firewall(n.Value)
		return c.Firewall == FirewallAccept || c.Firewall == FirewallOff
	})
	s.Text("stateDir", &c.StateDir)
	s.Text("socket", &c.Socket)
	s.Text("metrics", &c.Metrics)
	s.Take("controller") // edgeway-controller reads this key: one file can serve both programs
}

// given notes which of the keys the section has.
func (c *Config) given(s keys.Section, prefix string, keys ...string) {
	for _, key := range keys {
		if s.Has(key) {
			c.Given = append(c.Given, prefix+key)
		}
	}
}

func mode(s keys.Section, to *cluster.Mode) {
	s.Scalar("mode", "underlay, overlay or auto", func(n *yaml.Node) bool {
		*to = cluster.Mode(n.Value)
		return slices.Contains(cluster.Modes(), *to)
	})
}

const wantPort = "a port from 1 to 65535"

func (b *BGP) read(s keys.Section) {
	keys.Number(s, "port", &b.Port, 1, 65535, wantPort)
	s.Seconds("restartTime", &b.RestartTime, "a restart time from 0s (off) to 4095s (RFC 4724), whole seconds",
		func(t time.Duration) bool { return 0 <= t && t <= bgp.MaxRestartTime })
	s.Seconds("longLivedTime", &b.LongLivedTime, "a time from 0s (off) to 16777215s (RFC 9494), whole seconds",
		func(t time.Duration) bool { return 0 <= t && t <= bgp.MaxLongLivedTime })
	// RFC 4271, section 4.2: the hold time has 16 bits and is not 1 or 2.
	s.Seconds("holdTime", &b.HoldTime, "a hold time from 3s to 65535s, whole seconds",
		func(t time.Duration) bool { return 3*time.Second <= t && t <= 65535*time.Second })
	s.Seconds("withdrawAfter", &b.WithdrawAfter, "0s (never) or a time from 10s to 1h, whole seconds",
		func(t time.Duration) bool { return t == 0 || 2*ProbeEvery <= t && t <= time.Hour })
	s.Scalar("routerID", "an IPv4 address", func(n *yaml.Node) bool {
		var err error
		b.RouterID, err = netip.ParseAddr(n.Value)
		return err == nil && b.RouterID.Is4() && !b.RouterID.IsUnspecified()
	})
	var learn []netip.Prefix
	s.Prefixes("learn", &learn)
	for _, p := range learn {
		if !slices.Contains(b.Learn, p) {
			b.Learn = append(b.Learn, p)
		}
	}
	keys.Number(s, "learnMost", &b.LearnMost, 1, 10000, "a number of routes from 1 to 10000")
}
