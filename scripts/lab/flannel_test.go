package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// A node of edgeway and two nodes of flannel, each with a pod. The pods of flannel's nodes are hosts behind their node, as
// flannel's own plugin does not matter here. middle moves from flannel to edgeway.
const flannelLab = `
hosts:
- name: cloud
  links: [{lan: lan, addrs: [10.0.0.50/24, "fd00:10::50/64"]}]
- name: far
  forward: true
  links: [{lan: lan, addrs: [10.0.0.13/24, "fd00:10::13/64"]}, {lan: far-pods, addrs: [10.244.3.1/24, "fd00:244:0:3::1/64"]}]
- name: far-pod
  links: [{lan: far-pods, addrs: [10.244.3.9/24, "fd00:244:0:3::9/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.244.3.1}, {to: "::/0", via: "fd00:244:0:3::1"}]
- name: middle-pod
  links: [{lan: middle-pods, addrs: [10.244.2.9/24, "fd00:244:0:2::9/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.244.2.1}, {to: "::/0", via: "fd00:244:0:2::1"}]
nodes:
- name: edge
  links: [{lan: lan, addrs: [10.0.0.11/24, "fd00:10::11/64"]}]
- name: middle
  forward: true
  links: [{lan: lan, addrs: [10.0.0.12/24, "fd00:10::12/64"]}, {lan: middle-pods, addrs: [10.244.2.1/24, "fd00:244:0:2::1/64"]}]
`

// flannel's own rights, as its manifest has them; and the cluster.
const flannelCluster = `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: flannel, namespace: kube-system}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: flannel}, rules: [{apiGroups: [""], resources: [pods], verbs: [get]},
  {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}, {apiGroups: [""], resources: [nodes/status], verbs: [patch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: flannel}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel},
  subjects: [{kind: ServiceAccount, name: flannel, namespace: kube-system}]}
---
{apiVersion: network.edgeway.io/v1alpha1, kind: NetworkPool, metadata: {name: edge}, spec: {nodeSelector: pool=edge, mode: auto, vxlan: {flannel: true}}}
`

const flannelNet = `{"EnableIPv4": true, "EnableIPv6": true, "EnableNFTables": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}`

// flannelStory is a laboratory with flannel's real daemon.
type flannelStory struct {
	*testing.T
	lab     *lab.Lab
	control *kube.ControlPlane
	account string // kubeconfig of flannel
	daemons map[string]*lab.Process
}

// start starts flannel on a machine, and waits until it has its tunnels.
func (s *flannelStory) start(name string) {
	s.Helper()
	m := s.lab.Machine(name)
	conf := filepath.Join(m.Dir, "net-conf.json")
	s.ok(os.WriteFile(conf, []byte(flannelNet), 0o644))
	p, err := lab.Program{Argv: []string{kube.Program("flanneld"), "-kube-subnet-mgr", "-kubeconfig-file", s.account, "-net-config-path", conf,
		"-subnet-file", filepath.Join(m.Dir, "subnet.env"), "-iface", "lan", "-ip-masq"}, Log: filepath.Join(m.Dir, "flanneld.log"), Dir: m.Dir, Space: m.Space,
		Env: append(os.Environ(), "NODE_NAME="+name)}.Start()
	s.ok(err)
	s.daemons[name] = p
	s.Cleanup(func() {
		if s.Failed() {
			s.Logf("flannel on %s:\n%s", name, lab.Tail(filepath.Join(m.Dir, "flanneld.log"), 12))
		}
		if err := p.Kill(); err != nil {
			s.Error(err)
		}
	})
	s.until("flannel on "+name, func() error {
		if err := p.Err(); err != nil {
			return err
		}
		_, err := os.Stat(filepath.Join(m.Dir, "subnet.env"))
		return err
	})
}

func (s *flannelStory) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// until waits for a condition. At its next look without a reason, in 30 s, a daemon would find anything: so it fails before.
func (s *flannelStory) until(what string, is func() error) {
	s.Helper()
	if err := lab.Wait(s.Context(), 20*time.Second, is); err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

func (s *flannelStory) kubectl(args ...string) string {
	s.Helper()
	out, err := s.control.Kubectl(args...)
	s.ok(err)
	return out
}

func (s *flannelStory) run(machine string, command ...string) string {
	s.Helper()
	out, err := s.lab.Machine(machine).Run(s.Context(), command[0], command[1:]...)
	s.ok(err)
	return out
}

// reach lets each machine ping the addresses of the other, and connect to them with its own addresses, in both directions.
func (s *flannelStory) reach(one, other string) {
	s.Helper()
	for _, names := range [][2]string{{one, other}, {other, one}} {
		from, to := s.lab.Machine(names[0]), s.lab.Machine(names[1])
		for _, addr := range to.Addrs {
			s.until(fmt.Sprintf("%s to %s", from.Name, to.Name), func() error { _, err := from.Ping(s.Context(), addr); return err })
		}
		mirror, err := to.Serve()
		s.ok(err)
		for _, addr := range to.Addrs {
			saw, err := from.Seen(s.Context(), netip.AddrPortFrom(addr, mirror.Port()))
			if err != nil || saw != from.Addr(addr) {
				s.Errorf("TCP from %s to %s at %v: it saw %v, want %v (%v)", from.Name, to.Name, addr, saw, from.Addr(addr), err)
			}
		}
		mirror.Close()
	}
}

// mac is the MAC of a link.
func (s *flannelStory) mac(machine, link string) string {
	s.Helper()
	found := regexp.MustCompile(`link/ether (\S+)`).FindStringSubmatch(s.run(machine, "ip", "link", "show", link))
	if found == nil {
		s.Fatalf("%s: %s has no MAC", machine, link)
	}
	return found[1]
}

// problems returns the reasons of a node's problems.
func (s *flannelStory) problems(node string) (out []string) {
	s.Helper()
	status, err := s.lab.Node(node).Status(s.Context())
	s.ok(err)
	for _, p := range status.Problems {
		out = append(out, p.Reason+" "+p.Object)
	}
	return out
}

// noProblems waits until a node has none.
func (s *flannelStory) noProblems(node string) {
	s.Helper()
	s.until("no problems on "+node, func() error {
		if p := s.problems(node); len(p) > 0 {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
}

func startFlannelStory(t *testing.T) *flannelStory {
	lab.Need(t, "ip", "bridge", "ping", "tcpdump")
	needPrograms(t)
	kube.Need(t, "etcd", "kube-apiserver", "kubectl", "flanneld")
	topology, err := lab.ParseTopology([]byte(flannelLab))
	if err != nil {
		t.Fatal(err)
	}
	s := &flannelStory{T: t, daemons: map[string]*lab.Process{}}
	s.lab, err = lab.New(lab.Options{Bin: bin()})
	s.ok(err)
	t.Cleanup(func() {
		for _, n := range s.lab.Nodes() {
			if t.Failed() {
				t.Logf("%s: end of its log:\n%s", n.Name, lab.Tail(n.Log(), 12))
			}
		}
		if err := s.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	s.ok(s.lab.Build(t.Context(), topology))
	cloud := s.lab.Machine("cloud")
	s.control, err = kube.New(t.Context(), t.TempDir(), kube.Options{Space: cloud.Space, Addr: cloud.Addrs[0]})
	if s.control != nil {
		t.Cleanup(func() {
			if err := s.control.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	s.ok(err)
	s.kubectl("apply", "-f", filepath.Join(deployed, "crds"))
	s.kubectl("wait", "--for=condition=established", "crd", "--all")
	s.kubectl("apply", "-k", filepath.Join(deployed, "rbac"))
	s.ok(s.control.ApplyText(flannelCluster))
	for i, name := range []string{"edge", "middle", "far"} {
		labels := "{}"
		if name == "edge" {
			labels = "{pool: edge}"
		}
		s.ok(s.control.ApplyText(fmt.Sprintf(`{apiVersion: v1, kind: Node, metadata: {name: %[1]s, labels: %[2]s}, spec: {podCIDR: 10.244.%[3]d.0/24, podCIDRs: [10.244.%[3]d.0/24, "fd00:244:0:%[3]d::/64"]},
			status: {addresses: [{type: InternalIP, address: 10.0.0.1%[3]d}, {type: InternalIP, address: "fd00:10::1%[3]d"}]}}`, name, labels, i+1)))
		s.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p",
			fmt.Sprintf(`{"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1%[1]d"}, {"type": "InternalIP", "address": "fd00:10::1%[1]d"}]}}`, i+1))
	}
	s.account, err = s.control.ServiceAccount("kube-system", "flannel")
	s.ok(err)
	ours, err := s.control.ServiceAccount("kube-system", "edgeway")
	s.ok(err)
	for _, n := range s.lab.Nodes() {
		config := map[string]any{}
		text, err := os.ReadFile(n.Config)
		s.ok(err)
		s.ok(yaml.Unmarshal(text, &config))
		config["cluster"] = map[string]any{"kubeconfig": ours}
		text, err = yaml.Marshal(config)
		s.ok(err)
		s.ok(os.WriteFile(n.Config, text, 0o644))
	}
	return s
}

// TestAPIServerFlannel has flannel's real daemon beside edgeway in one cluster. Pods reach each other in both families and
// both directions, with their own addresses. Restarts of both daemons lose nothing, a new MAC is followed, and a node
// moves from flannel to edgeway while its pods run.
func TestAPIServerFlannel(t *testing.T) {
	s := startFlannelStory(t)
	edge := s.lab.Node("edge")
	s.start("far")
	s.start("middle")
	s.ok(edge.Start(t.Context()))
	if _, err := edge.AddPod(t.Context(), "default", "edge-pod"); err != nil {
		t.Fatal(err)
	}
	s.reach("middle-pod", "far-pod") // flannel works

	// Without the role flannel does not know the node, and a problem names the role.
	s.until("the problem of the missing role", func() error {
		if p := s.problems("edge"); len(p) != 1 || p[0] != "annotationRefused Node/edge" {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
	s.kubectl("apply", "-k", filepath.Join(deployed, "rbac/flannel"))
	s.ok(edge.Terminate()) // a refusal is tried again in a minute
	s.ok(edge.Start(t.Context()))
	s.noProblems("edge")
	s.reach("edge-pod", "far-pod")
	s.reach("edge-pod", "middle-pod")
	// A host and the pods of the other kind.
	for _, pair := range [][2]string{{"edge", "far-pod"}, {"far", "edge-pod"}, {"edge-pod", "far"}, {"far-pod", "edge"}} {
		for _, addr := range s.lab.Machine(pair[1]).Addrs[:2] {
			s.until(fmt.Sprint(pair), func() error { _, err := s.lab.Machine(pair[0]).Ping(t.Context(), addr); return err })
		}
	}

	s.captured()
	s.restarts()
	s.newMAC()
	s.moves()
}

// captured looks at the packets on the LAN: each family travels in a tunnel of that family, to the MAC of the other end.
func (s *flannelStory) captured() {
	s.Helper()
	edge := s.lab.Machine("edge")
	log := filepath.Join(edge.Dir, "tcpdump.log")
	p, err := edge.Spawn(log, "tcpdump", "-lnne", "-T", "vxlan", "-i", "eth0", "udp", "port", "8472")
	s.ok(err)
	shows := func(what string) {
		s.Helper()
		s.until(what, func() error {
			text, err := os.ReadFile(log)
			if err == nil && !regexp.MustCompile(`(?s)`+what).Match(text) {
				err = fmt.Errorf("not in\n%s", lab.Tail(log, 12))
			}
			return err
		})
	}
	shows("listening on eth0")
	pod := s.lab.Machine("edge-pod")
	for _, addr := range s.lab.Machine("far-pod").Addrs {
		s.until("ping", func() error { _, err := pod.Ping(s.Context(), addr); return err })
	}
	ours := s.mac("edge", "edgeway.1")
	for _, want := range []string{
		`10\.0\.0\.11\.\d+ > 10\.0\.0\.13\.8472: VXLAN, flags \[I\] \(0x08\), vni 1\n` + ours + ` > ` + s.mac("far", "flannel.1") + `[^\n]* 10\.244\.1\.\d+ > 10\.244\.3\.9: ICMP echo request`,
		`10\.0\.0\.13\.\d+ > 10\.0\.0\.11\.8472: VXLAN, flags \[I\] \(0x08\), vni 1\n` + s.mac("far", "flannel.1") + ` > ` + ours + `[^\n]* 10\.244\.3\.9 > 10\.244\.1\.\d+: ICMP echo reply`,
		`fd00:10::11\.\d+ > fd00:10::13\.8472: VXLAN, flags \[I\] \(0x08\), vni 1\n` + s.mac("edge", "edgeway.6") + ` > ` + s.mac("far", "flannel-v6.1") + `[^\n]* fd00:244:0:1:\S+ > fd00:244:0:3::9: ICMP6, echo request`,
		`fd00:10::13\.\d+ > fd00:10::11\.8472: VXLAN, flags \[I\] \(0x08\), vni 1\n` + s.mac("far", "flannel-v6.1") + ` > ` + s.mac("edge", "edgeway.6") + `[^\n]* fd00:244:0:3::9 > fd00:244:0:1:\S+: ICMP6, echo reply`,
	} {
		shows(want)
	}
	s.ok(p.Kill())
}

// flows pings between two machines, both ways and in both families, while do works, and returns what each flow lost.
func (s *flannelStory) flows(one, other string, do func()) (all []lab.Lost) {
	s.Helper()
	var flows []*lab.Flow
	for _, names := range [][2]string{{one, other}, {other, one}} {
		for _, addr := range s.lab.Machine(names[1]).Addrs {
			f, err := s.lab.Machine(names[0]).StartFlow(addr, storyPing)
			s.ok(err)
			flows = append(flows, f)
		}
	}
	do()
	for _, f := range flows { // and what comes after
		waitSent(s.T, f, f.Sent()+20)
	}
	for _, f := range flows {
		lost := f.Stop()
		s.Logf("%s to %v: %v", f.From, f.Addr, lost)
		all = append(all, lost)
	}
	return all
}

// restarts kills both daemons and starts them again: the kernel goes on, and nothing is lost.
func (s *flannelStory) restarts() {
	s.Helper()
	for _, lost := range s.flows("edge-pod", "far-pod", func() {
		s.ok(s.lab.Node("edge").Kill())
		s.ok(s.lab.Node("edge").Start(s.Context()))
		s.ok(s.daemons["far"].Kill())
		s.ok(os.Remove(filepath.Join(s.lab.Machine("far").Dir, "subnet.env")))
		s.start("far")
	}) {
		if lost.Lost > 0 || lost.Err != nil {
			s.Errorf("a restart lost packets: %v", lost)
		}
	}
}

// newMAC has flannel make its links anew, as after a reboot with a Node that registered again: with other MACs.
func (s *flannelStory) newMAC() {
	s.Helper()
	far, old := s.lab.Machine("far"), s.mac("far", "flannel.1")
	s.ok(s.daemons["far"].Kill())
	s.run("far", "ip", "link", "del", "flannel.1")
	s.run("far", "ip", "link", "del", "flannel-v6.1")
	s.kubectl("annotate", "node", "far", "flannel.alpha.coreos.com/backend-data-", "flannel.alpha.coreos.com/backend-v6-data-")
	s.ok(os.Remove(filepath.Join(far.Dir, "subnet.env")))
	s.start("far")
	mac := s.mac("far", "flannel.1")
	if mac == old {
		s.Fatal("flannel has its earlier MAC")
	}
	began := time.Now() // flannel is ready some time after it wrote the annotation
	s.until("the new MAC", func() error {
		if out := s.run("edge", "bridge", "fdb", "show", "dev", "edgeway.1"); !strings.Contains(out, mac+" dst 10.0.0.13") {
			return errors.New(out)
		}
		return nil
	})
	s.Logf("edgeway has the new MAC %v after flannel is ready", time.Since(began).Round(time.Millisecond))
	s.reach("edge-pod", "far-pod")
	s.noProblems("edge")
}

// moves migrates middle from flannel to edgeway, as docs/migration.md says: its pod reaches the others before and after,
// and its connections survive.
func (s *flannelStory) moves() {
	s.Helper()
	middle := s.lab.Node("middle")
	var kept []*lab.Stream
	for _, to := range []string{"edge-pod", "far-pod"} {
		stream, err := s.lab.Machine("middle-pod").StartStream(s.lab.Machine(to), s.lab.Machine(to).Addrs[0])
		s.ok(err)
		kept = append(kept, stream)
	}
	s.ok(s.daemons["middle"].Kill())
	s.ok(middle.Start(s.Context()))
	// flannel's link is in the way of edgeway's: one problem says so.
	s.until("flannel's link in the way", func() error {
		if got, want := s.problems("middle"), "vxlanTaken link flannel.1"; !slices.Contains(got, want) {
			return fmt.Errorf("problems %v, want %s", got, want)
		}
		return nil
	})
	s.reach("middle-pod", "far-pod") // flannel's links work without their daemon
	s.reach("middle-pod", "edge-pod")
	s.flows("middle-pod", "edge-pod", func() {
		s.flows("middle-pod", "far-pod", func() {
			s.kubectl("label", "node", "middle", "pool=edge")
			s.run("middle", "ip", "link", "del", "flannel.1")
			s.until("the end of the IPv4 tunnel", func() error {
				data := s.kubectl("get", "node", "middle", "-o", `jsonpath={.metadata.annotations.flannel\.alpha\.coreos\.com/backend-data}`)
				if _, err := s.lab.Machine("middle").Run(s.Context(), "ip", "link", "show", "edgeway.1"); err != nil {
					return err
				}
				if mac := s.mac("middle", "edgeway.1"); !strings.Contains(data, mac) {
					return errors.New(data)
				}
				return nil
			})
			s.run("middle", "ip", "link", "del", "flannel-v6.1")
			s.reach("middle-pod", "far-pod")
			s.reach("middle-pod", "edge-pod")
		})
	})
	for _, stream := range kept {
		before, _ := stream.Arrived()
		s.until("TCP from "+stream.From+" to "+stream.To, func() error {
			if now, err := stream.Arrived(); now < before+1_000_000 {
				return fmt.Errorf("%d bytes arrived, %w", now-before, errors.Join(err, errors.New("wanted 1 MB")))
			}
			return nil
		})
		s.ok(stream.Stop())
	}
}
