package cluster

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

func withCancel(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(t.Context()))
}

// A resource that names another Secret never counts without it: its session would end.
func TestAnotherSecretIsNamed(t *testing.T) {
	s, c := known(t)
	s.put(kindSecret, apiSecret(t, "next", "secret"))
	peer := apiPeer(t, "lan", `"n1"`)
	peer["spec"].(map[string]any)["authPassword"] = map[string]any{"secretKeyRef": map[string]any{"name": "next", "key": "password"}}
	s.put(kindPeer, peer)
	c.until(t, "the other Secret", func(w World, err error) bool {
		if err != nil || len(w.Secrets) != 1 || w.Secrets[0].Name != w.Peerings[0].secretNames()[0] {
			t.Errorf("meanwhile %s, %v", describe(w), err)
		}
		return describe(w) == "n1 n2 BGPPeer/lan Secret/next=secret"
	})
}

// The Secret that the node's own file names is read without a resource that names it. It is the only one that is asked
// for, and is known without the server.
func TestSecretOfTheNodesFile(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.put(kindSecret, apiSecret(t, "other", "not asked for"))
	s.put(kindSecret, apiSecret(t, "paths-key", "one"))
	c := newClientOf(t, KubernetesOptions{Kubeconfig: s.kubeconfig(t), Node: self, Secrets: []string{"paths-key"}, UserAgent: "edgewayd/test"}, hasty)
	first := false
	c.until(t, "the Secret", func(w World, err error) bool {
		if err == nil && !first {
			first = true
			if len(w.Secrets) != 1 {
				t.Errorf("the first cluster state has the Secrets %v", w.Secrets)
			}
		}
		return err == nil && describe(w) == "n1 Secret/paths-key=one"
	})
	s.put(kindSecret, apiSecret(t, "paths-key", "two"))
	c.untilIs(t, "n1 Secret/paths-key=two")
	s.fails(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	s.cut()
	c.untilProblem(t, "n1 Secret/paths-key=two", APIServerUnreachable)
	s.fails(nil)
	s.remove(kindSecret, "paths-key")
	c.untilIs(t, "n1")
}

// A key that may not be read is missing alone, and the problem names the right.
func TestForbiddenSecretOfTheNodesFile(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.fails(of("secrets", answers(http.StatusForbidden, "Forbidden", "no")))
	c := newClientOf(t, KubernetesOptions{Kubeconfig: s.kubeconfig(t), Node: self, Secrets: []string{"paths-key"}, UserAgent: "edgewayd/test"}, hasty)
	if p := c.untilProblem(t, "n1", forbidden); !strings.Contains(p.Next, "resourceNames [paths-key]") {
		t.Error(p)
	}
}

// The World follows the objects that are created, changed and deleted in the cluster.
func TestKubernetesFollowsTheCluster(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	c := newClient(t, s.kubeconfig(t), hasty)
	w := c.untilIs(t, "n1")
	if w.Source != "API server "+s.URL || w.ReadAt.IsZero() || w.FromDisk {
		t.Errorf("got source %q, read at %v, from disk %v", w.Source, w.ReadAt, w.FromDisk)
	}
	if n := w.Nodes[0]; n.Origin != "kubectl edit node n1" || len(n.Addresses) != 1 || len(n.PodCIDRs) != 1 {
		t.Errorf("got node %+v", n)
	}
	s.put(kindNode, apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24"))
	c.untilIs(t, "n1 n2")
	s.put(kindPeer, apiPeer(t, "lan", `"n2"`))
	c.untilIs(t, "n1 n2 BGPPeer/lan")
	s.put(kindSecret, apiSecret(t, "bgp", "one"))
	s.put(kindPeer, apiPeer(t, "lan", `"n2","n1"`)) // only now is the password ours to read
	c.untilIs(t, "n1 n2 BGPPeer/lan Secret/bgp=one")
	s.put(kindSecret, apiSecret(t, "bgp", "two"))
	c.untilIs(t, "n1 n2 BGPPeer/lan Secret/bgp=two")
	s.remove(kindSecret, "bgp")
	c.untilIs(t, "n1 n2 BGPPeer/lan")
	s.remove(kindPeer, "lan")
	c.untilIs(t, "n1 n2")
	s.remove(kindNode, "n2")
	c.untilIs(t, "n1")
}
