package uplinks

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/scripts/ens"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const secret = "very-secret-word"

// stage is a real API server, a fake cloud, and a controller with the rights that are shipped.
type stage struct {
	*testing.T
	*kube.ControlPlane
	cloud   *ens.Cloud
	server  *server // of who may do everything
	options Options
	account string // the kubeconfig of the controller
	logs    logs
	events  logs
	stop    func()
}

// logs collects text of several goroutines.
type logs struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// credentials writes the file with the key AKID.
func credentials(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ens.json")
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"AccessKey": "AKID", "SecretKey": %q}`, secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newStage makes a stage. dial reaches the API server; nil: the usual way.
func newStage(t *testing.T, of cloud.Service, o kube.Options, dial func(context.Context, string, string) (net.Conn, error)) *stage {
	t.Helper()
	s := newSky(t, of)
	s.land(o, dial)
	return s
}

// newSky makes the cloud of a stage, with the instance i-1 and the controller's key.
func newSky(t *testing.T, of cloud.Service) *stage {
	t.Helper()
	s := &stage{T: t, cloud: ens.New()}
	actions := []string{"ens:DescribeInstances", "ens:DescribeNetworkInterfaces", "ens:DescribeVSwitches",
		"ens:DescribeSecurityGroupAttribute", "ens:AssignPrivateIpAddresses", "ens:UnassignPrivateIpAddresses"}
	if of == cloud.ECS {
		s.cloud = ens.NewECS(map[string]ens.Type{"ecs.small": {Interfaces: 3, Addresses: 13}})
		actions = []string{"ecs:DescribeInstances", "ecs:DescribeInstanceTypes", "ecs:DescribeNetworkInterfaces", "vpc:DescribeVSwitches", "ecs:DescribeSecurityGroupAttribute",
			"ecs:CreateNetworkInterface", "ecs:AttachNetworkInterface", "ecs:AssignPrivateIpAddresses", "ecs:UnassignPrivateIpAddresses"}
	}
	s.cloud.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	s.cloud.AddGroup("sg-1", ens.Rule{Direction: "ingress", IpProtocol: "ALL", PortRange: "-1/-1", SourceCidrIp: "10.0.0.0/8", Policy: "Accept"},
		ens.Rule{Direction: "egress", IpProtocol: "ALL", PortRange: "-1/-1", DestCidrIp: "10.0.0.0/8", Policy: "Accept"})
	s.cloud.AddTyped("i-1", "ecs.small", "vsw-1", "sg-1")
	s.cloud.AddKey(ens.Key{ID: "AKID", Secret: secret, Actions: actions})
	api := httptest.NewServer(s.cloud)
	t.Cleanup(api.Close)
	t.Cleanup(s.cloud.Close)
	s.options = Options{Config: Config{Service: of, Endpoint: api.URL, Credentials: credentials(t), Terms: Terms{PerInterface: cloud.MostAddresses, Release: On}},
		Log: slog.New(slog.NewTextHandler(&s.logs, nil)), times: times{full: 5 * time.Second, oldest: time.Second, fresh: time.Minute, least: 10 * time.Millisecond, mostPause: 200 * time.Millisecond,
			mostBlock: 500 * time.Millisecond, subnets: time.Minute, callsASec: 500, groupCheck: time.Hour, orphan: 2 * time.Second},
		Tell: func(_ context.Context, name, _, reason, message string) error {
			fmt.Fprintln(&s.events, name, reason, message)
			return nil
		}}
	return s
}

// land gives a stage its API server, and the controller its rights there.
func (s *stage) land(o kube.Options, dial func(context.Context, string, string) (net.Conn, error)) {
	t := s.T
	t.Helper()
	s.ControlPlane = kube.Start(t, o)
	for _, apply := range [][]string{{"apply", "-f", "../../../deploy/kubernetes/crds"}, {"apply", "-k", "../../../deploy/kubernetes/rbac/controller"},
		{"wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"}} {
		if _, err := s.Kubectl(apply...); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.account, err = s.Kubeconfig("system:serviceaccount:kube-system:edgeway-controller", "system:serviceaccounts", "system:authenticated"); err != nil {
		t.Fatal(err)
	}
	if s.options.API, err = cluster.ClientConfig(s.account, "test"); err != nil {
		t.Fatal(err)
	}
	admin, err := cluster.ClientConfig(s.AdminKubeconfig(), "test")
	if err != nil {
		t.Fatal(err)
	}
	s.options.API.Dial, admin.Dial = dial, dial
	if s.server, err = newServer(admin, s.options.Service); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.end()
		if s.logs.has(secret) || s.events.has(secret) {
			t.Error("the log or an event shows the secret")
		}
		if t.Failed() {
			t.Log(s.logs.text.String())
		}
	})
}

// start starts the controller, as after a kill: it remembers nothing.
func (s *stage) start() {
	s.Helper()
	c, err := New(s.options)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	s.stop = func() { cancel(); <-done }
}

func (s *stage) end() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

func (s *stage) kubectl(args ...string) string {
	s.Helper()
	out, err := s.Kubectl(args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *stage) edgeNode(name string) edgeNode {
	s.Helper()
	e, err := s.server.edgeNode(s.Context(), name)
	if err != nil {
		s.Fatal(err)
	}
	return e
}

// until waits for a condition; ok may say more.
func (s *stage) until(what string, ok func() (bool, string)) {
	s.Helper()
	if err := lab.Wait(s.Context(), 2*time.Minute, func() error {
		if ok, why := ok(); !ok {
			return fmt.Errorf("%s: %s", what, why)
		}
		return nil
	}); err != nil {
		s.Fatal(err)
	}
}

// same waits until the EdgeNode n1 grants what the cloud has assigned to i-1, so many addresses.
func (s *stage) same(what string, want int) {
	s.Helper()
	s.grants(what, "n1", "i-1", want)
}

func (s *stage) grants(what, name, instance string, want int) {
	s.Helper()
	s.until(what, func() (bool, string) {
		have, assigned := s.granted(name), s.addresses(instance)
		return len(have) == want && slices.Equal(have, assigned), fmt.Sprintf("granted %v, assigned %v, want %d", have, assigned, want)
	})
}

// granted are the addresses that an EdgeNode grants, sorted.
func (s *stage) granted(name string) (out []netip.Addr) {
	s.Helper()
	if e := s.edgeNode(name); e.uplinks != nil {
		for _, u := range e.uplinks.Interfaces {
			out = append(out, addresses(u)...)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// addresses are the secondary addresses of an instance, sorted.
func (s *stage) addresses(instance string) (out []netip.Addr) {
	for _, n := range s.cloud.Interfaces(instance) {
		out = append(out, n.Addresses...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// withdrawn are the addresses that an EdgeNode withdraws.
func (s *stage) withdrawn(name string) (out []netip.Addr) {
	s.Helper()
	if e := s.edgeNode(name); e.uplinks != nil {
		for _, u := range e.uplinks.Interfaces {
			for _, w := range u.Withdrawn {
				out = append(out, w.Address)
			}
		}
	}
	return out
}

// confirm has the node confirm all withdrawals but of the addresses that pods have, and say how many these are.
func (s *stage) confirm(used int, but ...netip.Addr) {
	s.Helper()
	status := cluster.UplinksStatus{Used: used}
	for _, u := range s.edgeNode("n1").uplinks.Interfaces {
		for _, w := range u.Withdrawn {
			if !slices.Contains(but, w.Address) {
				status.Confirmed = append(status.Confirmed, w)
			}
		}
	}
	s.status(status)
}

// status is what the node's daemon writes.
func (s *stage) status(status cluster.UplinksStatus) {
	s.Helper()
	text, err := json.Marshal(map[string]any{"status": cluster.EdgeNodeStatus{Uplinks: &status}})
	if err != nil {
		s.Fatal(err)
	}
	s.kubectl("patch", "edgenode", "n1", "--subresource=status", "--type=merge", "-p", string(text))
}

// node makes a Node with a label, whose kubelet has a maxPods.
func (s *stage) node(name, maxPods, label, value string) {
	s.Helper()
	if err := s.ApplyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q, "labels": {%q: %q}}}`, name, label, value)); err != nil {
		s.Fatal(err)
	}
	s.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status": {"capacity": {"pods": %q}}}`, maxPods))
}

// An instance of ECS: it gets its interfaces while it runs, as many as its type can have, though answers get lost, the
// cloud throttles and the controller is killed. A vSwitch is empty, and the next one is used. While all addresses are in use, the
// Node has a taint. Addresses that are spare go back. An interface that is left over is reported, and stays.
func TestAPIServerECS(t *testing.T) {
	s := newStage(t, cloud.ECS, kube.Options{}, nil)
	s.cloud.LetInside("sg-1")
	s.cloud.AddVSwitch("vsw-2", netip.MustParsePrefix("10.0.1.0/24"))
	s.cloud.Limit("vsw-2", 9) // an interface and eight addresses
	s.cloud.Limit("vsw-1", 13)
	s.options.Region, s.options.Terms.PerInterface, s.options.Terms.Interfaces = "cn-test-1", 0, 9
	s.options.Terms.VSwitches, s.options.TaintWhenFull = []string{"vsw-1", "vsw-2"}, true
	s.node("n1", "30", InstanceLabel(cloud.ECS), "i-1")
	n := 0
	s.cloud.SetFaults(func(c ens.Call) ens.Fault {
		n++
		switch {
		case c.Action == "CreateNetworkInterface" && n%3 > 0, c.Action == "AttachNetworkInterface" && n%2 > 0, c.Action == "AssignPrivateIpAddresses" && n%3 == 0:
			return ens.Fault{Lose: true}
		case n%7 == 0:
			return ens.Fault{Code: "Throttling.User"}
		}
		return ens.Fault{}
	})
	s.start()
	s.until("the first interface has what its vSwitch has", func() (bool, string) { n := len(s.addresses("i-1")); return n >= 10, fmt.Sprint(n) })
	s.end()
	s.start() // killed
	s.same("both interfaces", 20)
	s.cloud.SetFaults(nil)
	all := s.cloud.Interfaces("i-1")
	if len(all) != 3 || all[0].Primary == false || len(all[0].Addresses) > 0 || len(s.cloud.Interfaces("")) > 0 {
		t.Fatalf("want the primary interface without an address, two more, and none that is left over; got %+v and %+v", all, s.cloud.Interfaces(""))
	}
	if e := s.edgeNode("n1"); e.instance != "i-1" || e.uplinks.Provider != cluster.ProviderECS || !slices.ContainsFunc(e.uplinks.Interfaces, func(u cluster.Uplink) bool {
		return u.Subnet.String() == "10.0.1.0/24" && u.Gateway == addr("10.0.1.253")
	}) {
		t.Errorf("got %+v", e)
	}
	if s.events.has("TooManyPods") || s.events.has("SecurityGroup") || s.events.has("GatewayGuessed") {
		t.Errorf("problems that are none: %s", s.events.text.String())
	}
	s.kubectl("patch", "node", "n1", "--subresource=status", "--type=merge", "-p", `{"status": {"capacity": {"pods": "110"}}}`)
	s.until("an event", func() (bool, string) { return s.events.has("n1 TooManyPods"), "" })

	// All addresses are in use, and then not.
	s.kubectl("taint", "node", "n1", "mine=x:NoSchedule")
	taints := func(want string) {
		t.Helper()
		s.until("taints "+want, func() (bool, string) {
			got := s.kubectl("get", "node", "n1", "-o", "jsonpath={.spec.taints[*].key}")
			return strings.Contains(got, fullTaint) == (want == "on") && strings.Contains(got, "mine"), got
		})
	}
	s.confirm(20)
	taints("on")
	s.status(cluster.UplinksStatus{Used: 19, Free: 1})
	taints("off")

	// What is spare goes back, and an interface that somebody detached is reported.
	s.end()
	s.options.Terms.Fill, s.options.Terms.Interfaces = Fill{3}, 0
	s.start()
	s.until("the surplus is gone", func() (bool, string) {
		s.confirm(4)
		n := len(s.addresses("i-1"))
		return n == 10, fmt.Sprint(n)
	})
	s.cloud.Unbind(all[2].ID)
	s.until("the interface is reported", func() (bool, string) { return s.logs.has("eniLeft") && s.logs.has(all[2].ID), "" })
	if left := s.cloud.Interfaces(""); len(left) != 1 {
		t.Errorf("left over: %+v", left)
	}
	for _, c := range s.cloud.Calls() {
		if strings.HasPrefix(c.Code, "InvalidParameter") || strings.HasPrefix(c.Code, "Missing") || c.Code == "NoPermission" {
			t.Errorf("a wrong call: %+v", c)
		}
	}
}

// An instance's life at a real API server: it joins, the cloud fails in each of its ways, people edit in the console,
// addresses are taken back, the instance leaves.
func TestAPIServerUplinks(t *testing.T) {
	s := newStage(t, cloud.ENS, kube.Options{}, nil)
	s.node("n1", "110", InstanceLabel(cloud.ENS), "i-1")
	s.node("other", "110", "shop", "berlin")

	// Without a secondary interface there is nothing to give, and the operator hears what to do.
	s.start()
	s.until("an event", func() (bool, string) { return s.events.has("n1 NoInterface"), "" })
	if e := s.edgeNode("n1"); e.version != "" {
		t.Errorf("an EdgeNode without interfaces: %+v", e)
	}
	// The node has created its EdgeNode meanwhile.
	if err := s.ApplyText(`{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "EdgeNode", "metadata": {"name": "n1", "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1",
		"uid": "` + s.kubectl("get", "node", "n1", "-o", "jsonpath={.metadata.uid}") + `"}]}}`); err != nil {
		t.Fatal(err)
	}

	// Two interfaces fill up, though answers get lost, the cloud throttles and lists are old.
	n := 0
	s.cloud.SetFaults(func(c ens.Call) ens.Fault {
		n++
		switch {
		case n%5 == 0 && c.Action == "AssignPrivateIpAddresses":
			return ens.Fault{Lose: true}
		case n%7 == 0:
			return ens.Fault{Code: "Throttling.User"}
		case n%11 == 0 && c.Action == "DescribeNetworkInterfaces":
			return ens.Fault{Stale: 2}
		}
		return ens.Fault{}
	})
	first := s.cloud.Bind("i-1")
	second := s.cloud.Bind("i-1")
	s.same("two interfaces", 50)
	if owners := s.kubectl("get", "edgenode", "n1", "-o", "jsonpath={.metadata.ownerReferences}"); owners != "" {
		t.Errorf("the uplinks would go with the Node, which may come back: %s", owners)
	}
	u := s.edgeNode("n1").uplinks
	if i := u.Interfaces[0]; i.ID != first.ID || i.MAC != first.MAC || i.Address != first.Address || i.Gateway != addr("10.0.0.253") || i.Subnet.String() != "10.0.0.0/24" || i.AnswerARP || i.OnLink {
		t.Errorf("got %+v, want %+v", i, first)
	}
	s.until("an event", func() (bool, string) { return s.events.has("n1 TooManyPods"), "" })
	s.cloud.SetFaults(nil)

	// What a person sets beside the interfaces stays. An EdgeNode that is deleted by mistake comes back.
	s.kubectl("patch", "edgenode", "n1", "--type=merge", "-p", `{"spec": {"uplinks": {"egress": "node"}}}`)
	s.cloud.Take(first.ID, s.cloud.Interfaces("i-1")[1].Addresses[24])
	s.until("an address that is gone is withdrawn", func() (bool, string) {
		u := s.edgeNode("n1").uplinks
		return len(u.Interfaces[0].Withdrawn) == 1 && u.Egress == cluster.EgressNode, fmt.Sprint(u)
	})
	s.until("an event", func() (bool, string) { return s.events.has("n1 AddressLost"), "" })
	s.confirm(10)
	s.same("the lost address is replaced", 50)
	s.kubectl("delete", "edgenode", "n1")
	s.same("the EdgeNode is back", 50)

	// The cloud is away: nothing changes, and the operator hears it.
	s.cloud.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: 503} })
	s.until("an event", func() (bool, string) { return s.events.has("n1 CloudUnreachable"), "" })
	s.end()
	s.start()
	s.same("the cloud is away", 50)
	s.cloud.SetFaults(nil)

	// Now a node gets five more than its pods use. What is spare goes back, and nothing that the node has not confirmed.
	s.end()
	s.options.Terms.Fill = Fill{5}
	s.start()
	s.confirm(10)
	s.until("addresses are withdrawn", func() (bool, string) {
		n := len(s.withdrawn("n1"))
		return n == mostWithdrawn, fmt.Sprint(n)
	})
	var kept netip.Addr // of a pod that started before the node heard of the withdrawal
	for _, kept = range s.withdrawn("n1") {
	}
	s.confirm(10, kept)
	s.until("the confirmed addresses are unassigned", func() (bool, string) {
		n := len(s.addresses("i-1"))
		return n == 46, fmt.Sprint(n)
	})
	s.end()
	s.start() // killed: it must not forget what was withdrawn
	s.until("the last withdrawal still stands alone", func() (bool, string) {
		all := s.withdrawn("n1")
		return slices.Equal(all, []netip.Addr{kept}), fmt.Sprint(all, kept)
	})
	if !slices.Contains(s.addresses("i-1"), kept) {
		t.Errorf("%v was unassigned while a pod had it", kept)
	}
	s.until("the surplus is gone", func() (bool, string) {
		s.confirm(10)
		n := len(s.addresses("i-1"))
		return n == 20, fmt.Sprint(n)
	})

	// An interface is taken away, and the instance leaves.
	s.cloud.Unbind(second.ID)
	s.until("the interface is gone", func() (bool, string) {
		s.confirm(10)
		u := s.edgeNode("n1").uplinks
		return len(u.Interfaces) == 1, fmt.Sprint(u)
	})

	// The machine joins again under another name: one of the two Nodes is served, and when the first is deleted, the other.
	s.node("n2", "110", InstanceLabel(cloud.ENS), "i-1")
	s.until("an event", func() (bool, string) { return s.events.has("n2 SharedInstance"), "" })
	if e := s.edgeNode("n2"); e.version != "" {
		t.Errorf("two EdgeNodes of one instance: %+v", e)
	}
	s.kubectl("delete", "node", "n1")
	s.until("the EdgeNode has the other name", func() (bool, string) {
		was, is := s.edgeNode("n1"), s.edgeNode("n2")
		return was.version == "" && is.uplinks != nil && len(is.uplinks.Interfaces) == 1, fmt.Sprint(was, is)
	})
	s.kubectl("delete", "node", "n2")
	s.cloud.RemoveInstance("i-1")
	s.until("the EdgeNode is gone", func() (bool, string) { return s.edgeNode("n2").version == "", "" })
	for _, c := range s.cloud.Calls() {
		if strings.HasPrefix(c.Code, "InvalidParameter") || strings.HasPrefix(c.Code, "Missing") || c.Code == "NoPermission" {
			t.Errorf("a wrong call: %+v", c)
		}
	}
}
