package lab_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestAPIServerHybrid plays the stories of testdata/hybrid: nodes whose cluster is a real API server, with a real
// edgeway-controller and a real kube-proxy.
func TestAPIServerHybrid(t *testing.T) {
	need(t)
	needPrograms(t)
	kube.Need(t, "etcd", "kube-apiserver", "kubectl", "kube-proxy")
	testscript.Run(t, testscript.Params{
		Dir:   "../../testdata/hybrid",
		Setup: func(env *testscript.Env) error { return setup(env, lab.BIRD) },
		Cmds:  commands(),
	})
}

// controller starts edgeway-controller in one machine's namespace, with the account and the roles that are shipped.
func (s *story) controller(args []string) (string, error) {
	m, err := s.machine(args[0])
	if err != nil {
		return "", err
	}
	if err := s.control.Apply(filepath.Join(deployed, "rbac/controller/controller.yaml")); err != nil {
		return "", err
	}
	kubeconfig, err := s.control.ServiceAccount("kube-system", "edgeway-controller")
	if err != nil {
		return "", err
	}
	config := s.file("edgeway-controller.yaml")
	if err := os.WriteFile(config, []byte("controller: {}\n"), 0o644); err != nil {
		return "", err
	}
	program, err := filepath.Abs(filepath.Join(bin(), "edgeway-controller"))
	if err != nil {
		return "", err
	}
	_, err = m.Spawn(s.file("edgeway-controller.log"), program, "--kubeconfig", kubeconfig, "--config", config)
	return "", err
}

// proxy starts kube-proxy on each node, in place of the one that runs there. It leaves alone the settings of connection
// tracking that belong to the whole machine.
func (s *story) proxy(args []string) (string, error) {
	kubeconfig, err := s.control.Kubeconfig("system:kube-proxy")
	if err != nil {
		return "", err
	}
	for name, n := range s.lab.Nodes() {
		config := map[string]any{
			"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
			"mode": args[0], "hostnameOverride": name, "clientConnection": map[string]any{"kubeconfig": kubeconfig},
			"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		}
		if len(args) > 1 {
			config["clusterCIDR"] = args[1]
		}
		text, err := yaml.Marshal(config)
		if err != nil {
			return "", err
		}
		file := s.file("kube-proxy-" + name)
		if err := os.WriteFile(file+".yaml", text, 0o644); err != nil {
			return "", err
		}
		if err := s.proxies[name].Kill(); err != nil {
			return "", err
		}
		if s.proxies[name], err = n.Spawn(file+".log", kube.Program("kube-proxy"), "--config", file+".yaml"); err != nil {
			return "", err
		}
	}
	return "", nil
}

// The ports of `serve` and of its Services.
const (
	servedPort  = 8080
	servicePort = 80
)

// serve starts a server on port 8080 of each machine, which tells each client the address that it sees.
func (s *story) serve(args []string) (string, error) {
	for _, name := range args {
		m, err := s.machine(name)
		if err != nil {
			return "", err
		}
		mirror, err := m.ServeAt(servedPort)
		if err != nil {
			return "", err
		}
		s.mirrors = append(s.mirrors, mirror)
	}
	return "", nil
}

// expose makes a Service of each server, with its node port: NAME:PORT... A word local before them has the node ports
// take connections to this node's pods only.
func (s *story) expose(args []string) (string, error) {
	policy, suffix := "Cluster", ""
	if args[0] == "local" {
		policy, suffix, args = "Local", "-local", args[1:]
	}
	type object = map[string]any
	var list []object
	for _, word := range args {
		name, port, _ := strings.Cut(word, ":")
		nodePort, err := strconv.Atoi(port)
		if err != nil {
			return "", fmt.Errorf("expose %s: want NAME:PORT", word)
		}
		m, err := s.machine(name)
		if err != nil {
			return "", err
		}
		node := name
		if p := s.lab.Pod(name); p != nil {
			node = p.Node.Name
		}
		service := name + suffix
		list = append(list, object{"apiVersion": "v1", "kind": "Service", "metadata": object{"name": service}, "spec": object{
			"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": policy,
			"ports": []object{{"port": servicePort, "nodePort": nodePort}}}})
		for _, addr := range m.Addrs {
			family := map[bool]string{true: "IPv4", false: "IPv6"}[addr.Is4()]
			list = append(list, object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
				"metadata":  object{"name": service + "-" + strings.ToLower(family), "labels": object{"kubernetes.io/service-name": service}},
				"endpoints": []object{{"addresses": []string{addr.String()}, "nodeName": node, "conditions": object{"ready": true}}},
				"ports":     []object{{"name": "", "port": servedPort, "protocol": "TCP"}}})
		}
	}
	text, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": list})
	if err != nil {
		return "", err
	}
	return "", s.control.ApplyText(string(text))
}

// seen prints whom each server sees: a row for each client, a column for each target. A target is a machine, a Service
// (svc/NAME), a node port (NODE:PORT), or an address with or without a port. A cell names the machine that has the address, once for each family if the
// two differ, and - says that the server does not answer. NODE.1 is the end of a node's tunnel.
func (s *story) seen(args []string) (string, error) {
	at := slices.Index(args, "to")
	if at < 0 {
		return "", errors.New("seen: want CLIENT... to TARGET...")
	}
	clients, targets := args[:at], args[at+1:]
	names, err := s.owners(clients)
	if err != nil {
		return "", err
	}
	services, err := s.services()
	if err != nil {
		return "", err
	}
	cells := make([]string, len(clients)*len(targets))
	var g errgroup.Group
	g.SetLimit(16) // a broken table has many connections that wait for their end
	for i := range cells {
		from, err := s.machine(clients[i/len(targets)])
		if err != nil {
			return "", err
		}
		to, err := s.target(targets[i%len(targets)], services)
		if err != nil {
			return "", err
		}
		g.Go(func() error {
			var saw []string
			for _, addr := range to {
				if from.Addr(addr.Addr()).IsValid() {
					by, _ := from.Seen(s.ctx, addr) // an error leaves by invalid
					saw = append(saw, cmp.Or(names[by], strings.TrimPrefix(by.String(), "invalid IP"), "-"))
				}
			}
			cells[i] = strings.Join(slices.Compact(saw), "/")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	out := fmt.Sprintln("from", strings.Join(targets, " "))
	for i, name := range clients {
		out += fmt.Sprintln(name, strings.Join(cells[i*len(targets):(i+1)*len(targets)], " "))
	}
	return out, nil
}

// owners names the owner of each address of the nodes and of these machines.
func (s *story) owners(machines []string) (map[netip.Addr]string, error) {
	names := map[netip.Addr]string{}
	for name, n := range s.lab.Nodes() {
		machines = append(slices.Clone(machines), name)
		ends, err := n.Run(s.ctx, "ip", "-o", "addr", "show", "scope", "global")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(ends) {
			if words := strings.Fields(line); words[1] == "edgeway.1" {
				if end, err := netip.ParsePrefix(words[3]); err == nil {
					names[end.Addr()] = name + ".1"
				}
			}
		}
	}
	for _, name := range machines {
		m, err := s.machine(name)
		if err != nil {
			return nil, err
		}
		for _, addr := range m.Addrs {
			names[addr] = name
		}
	}
	return names, nil
}

// services returns the addresses of each Service. A story without an API server has none.
func (s *story) services() (map[string][]netip.AddrPort, error) {
	if s.control == nil {
		return nil, nil
	}
	text, err := s.control.Kubectl("get", "services", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ ClusterIPs []netip.Addr }
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	all := map[string][]netip.AddrPort{}
	for _, item := range list.Items {
		for _, addr := range item.Spec.ClusterIPs {
			all[item.Metadata.Name] = append(all[item.Metadata.Name], netip.AddrPortFrom(addr, servicePort))
		}
	}
	return all, nil
}

// target returns the addresses of a target of seen.
func (s *story) target(text string, services map[string][]netip.AddrPort) (out []netip.AddrPort, err error) {
	if service, ok := strings.CutPrefix(text, "svc/"); ok {
		return services[service], nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(addr, servedPort)}, nil
	}
	if addr, err := netip.ParseAddrPort(text); err == nil {
		return []netip.AddrPort{addr}, nil
	}
	name, number, _ := strings.Cut(text, ":")
	m, err := s.machine(name)
	if err != nil {
		return nil, err
	}
	port := servedPort
	if number != "" {
		if port, err = strconv.Atoi(number); err != nil {
			return nil, err
		}
	}
	for _, addr := range m.Addrs {
		out = append(out, netip.AddrPortFrom(addr, uint16(port)))
	}
	return out, nil
}

// ask has each machine read the API server's description of itself, some megabytes, at the address of the Service
// kubernetes.default, as a pod's client does.
func (s *story) ask(args []string) (string, error) {
	var g errgroup.Group
	for _, name := range args {
		m, err := s.machine(name)
		if err != nil {
			return "", err
		}
		g.Go(func() error {
			text, err := m.Run(s.ctx, kube.Program("kubectl"), "--kubeconfig", s.control.AdminKubeconfig(), "--server", "https://10.96.0.1",
				"--request-timeout", "30s", "get", "--raw", "/openapi/v2")
			if err == nil && !json.Valid([]byte(text)) {
				err = fmt.Errorf("%s: the API server's answer ends early, after %d bytes", name, len(text))
			}
			return err
		})
	}
	return "", g.Wait()
}
