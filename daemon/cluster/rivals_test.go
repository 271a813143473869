package cluster

import (
	"fmt"
	"testing"
)

// edgeNodeWith is an EdgeNode whose uplink has these addresses for pods.
func edgeNodeWith(t *testing.T, name string, own int, addresses string) map[string]any {
	t.Helper()
	return jsonOf(t, fmt.Sprintf(`{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "EdgeNode", "metadata": {"name": %q}, "spec": {"uplinks": {"provider": "static",
		"interfaces": [{"name": "eth1", "address": "10.0.0.%d", "subnet": "10.0.0.0/24", "gateway": "10.0.0.254", "addresses": [%s]}]}}}`, name, own, addresses))
}

// Two people gave one address to two nodes. A node at an API server reads its own EdgeNode only, so both nodes gave the
// address to pods. The node that is changed later knows the other's EdgeNode before it knows its own new one, and the
// first one knows when it reads again. (Decide gives the address to nobody then, and names both.)
func TestAddressInTwoEdgeNodes(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.put(kindNode, apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24"))
	s.put(kindEdgeNode, edgeNodeWith(t, "n1", 21, `"10.0.0.31-10.0.0.33"`))
	s.put(kindEdgeNode, edgeNodeWith(t, "n2", 22, `"10.0.0.40"`))
	s.put(kindEdgeNode, edgeNodeWith(t, "n3", 23, `"10.0.0.50"`))
	config := s.kubeconfig(t)
	first := newClientOf(t, KubernetesOptions{Kubeconfig: config, Node: "n1"}, patient())
	second := newClientOf(t, KubernetesOptions{Kubeconfig: config, Node: "n2"}, patient())
	first.untilIs(t, "n1 n2 EdgeNode/n1")
	second.untilIs(t, "n1 n2 EdgeNode/n2")
	s.put(kindEdgeNode, edgeNodeWith(t, "n2", 22, `"10.0.0.33"`))
	second.until(t, "both EdgeNodes", func(w World, err error) bool {
		e, _ := w.EdgeNode("n2")
		_, other := w.EdgeNode("n1")
		if e.Uplinks.Interfaces[0].Addresses[0].String() == "10.0.0.33" && !other {
			t.Error("n2 has the address, and does not know that n1 has it")
		}
		return err == nil && other
	})
	again := newClientOf(t, KubernetesOptions{Kubeconfig: config, Node: "n1"}, patient()) // the daemon of n1 starts again
	again.untilIs(t, "n1 n2 EdgeNode/n1 EdgeNode/n2")
	s.put(kindEdgeNode, edgeNodeWith(t, "n1", 21, `"10.0.0.31-10.0.0.34"`))
	first.untilIs(t, "n1 n2 EdgeNode/n1 EdgeNode/n2")

	// The conflict is over.
	s.put(kindEdgeNode, edgeNodeWith(t, "n2", 22, `"10.0.0.40"`))
	second.untilIs(t, "n1 n2 EdgeNode/n2")
	s.cut() // a watch ends every few minutes
	first.untilIs(t, "n1 n2 EdgeNode/n1")
	s.remove(kindEdgeNode, "n2")
	second.untilIs(t, "n1 n2")
}

// The same at a real API server, with the rights that are shipped: the own address of an interface counts as well.
func TestAPIServerAddressInTwoEdgeNodes(t *testing.T) {
	cp, config := servedNode(t)
	mustApply(t, cp, string(mustJSON(edgeNodeWith(t, "n1", 21, `"10.0.0.31-10.0.0.33"`))))
	c := newClientOf(t, KubernetesOptions{Kubeconfig: config, Node: "n2"}, patient())
	c.untilIs(t, "n1")
	mustApply(t, cp, string(mustJSON(edgeNodeWith(t, "n2", 22, `"10.0.0.40"`))))
	c.untilIs(t, "n1 EdgeNode/n2")
	mustApply(t, cp, string(mustJSON(edgeNodeWith(t, "n2", 22, `"10.0.0.40", "10.0.0.21"`))))
	c.untilIs(t, "n1 EdgeNode/n1 EdgeNode/n2")
}
