package cluster

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// known is a cluster that a client has read in full, and its client.
func known(t *testing.T) (*apiServer, *client) {
	t.Helper()
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.put(kindNode, apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24"))
	s.put(kindPeer, apiPeer(t, "lan", `"n1"`))
	s.put(kindSecret, apiSecret(t, "bgp", "secret"))
	c := newClient(t, s.kubeconfig(t), hasty)
	c.untilIs(t, all)
	waitFor(t, "all watches", func() bool { return s.watches() == 7 })
	return s, c
}

const all = "n1 n2 BGPPeer/lan Secret/bgp=secret"

// dropped ends the connection without an answer.
func dropped(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

// answers is a fault that answers each request so.
func answers(code int, reason, message string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		status(w, code, reason, message)
		return true
	}
}

// of is a fault for one resource only, "secrets".
func of(resource string, f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/"+resource) && f(w, r)
	}
}

// While the server is away everything that was known counts, a problem says since when and why,
// and when it is back the watches go on where they were: nothing is listed again.
func TestServerAwayAndBack(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"connection dropped": dropped,
		"500":                answers(http.StatusInternalServerError, "InternalError", "etcdserver: request timed out"),
		"429":                answers(http.StatusTooManyRequests, "TooManyRequests", "try again later"),
		"a portal elsewhere": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://192.0.2.1/login", http.StatusFound)
			return true
		},
		"a proxy's page": func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, "<html>please log in</html>")
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := known(t)
			s.fails(fault)
			s.asked()
			s.cut()
			p := c.untilProblem(t, all, APIServerUnreachable)
			if !strings.Contains(p.Got, "none since 20") || !strings.Contains(p.Got, "watch ") || !strings.Contains(p.Next, "nothing is lost") {
				t.Errorf("got %s", p)
			}
			s.put(kindNode, apiNode(t, "n3", "192.0.2.13", "10.10.3.0/24"))
			s.fails(nil)
			c.untilIs(t, "n1 n2 n3 BGPPeer/lan Secret/bgp=secret")
			for _, r := range s.asked() {
				if strings.HasPrefix(r, "list") && !strings.HasSuffix(r, " n1") && !strings.HasSuffix(r, " bgp") {
					t.Errorf("asked to %s, want watches, and the version of a list of one", r)
				}
			}
		})
	}
}

// The operator restores etcd from a backup: versions go back, and a watch from the version that is known hears nothing
// until the server has come that far again. The state is right again at once.
func TestEtcdIsRestored(t *testing.T) {
	s, c := known(t)
	hangs := func(w http.ResponseWriter, r *http.Request) bool {
		from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
		s.mu.Lock()
		future := r.URL.Query().Get("watch") != "" && from > s.version
		s.mu.Unlock()
		if future {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
		return future
	}
	s.fails(dropped)
	s.cut()
	waitFor(t, "no watch", func() bool { return s.watches() == 0 })
	s.mu.Lock()
	s.version, s.history, s.compact = 50, nil, 0
	s.mu.Unlock()
	s.put(kindNode, apiNode(t, "n3", "192.0.2.13", "10.10.3.0/24"))
	s.remove(kindNode, "n2")
	s.fails(hangs)
	c.untilIs(t, "n1 n3 BGPPeer/lan Secret/bgp=secret")
}

// The operator restores etcd while a node is offline, and the versions pass those that the node knew. The server accepts
// the node's versions, and hears nothing of the changes that the backup undid. The state is right as soon as the node is back,
// by Nodes and by NodeSlices.
func TestEtcdIsRestoredWhileTheNodeIsOffline(t *testing.T) {
	own := len(ownKinds())
	for by, watches := range map[string]int{kindNode: own + 2, kindSlice.kind: own + 1} {
		t.Run(by, func(t *testing.T) {
			s := newAPIServer(t)
			nodes := func(numbers ...int) {
				var all []SlicedNode
				for _, i := range numbers {
					n := sliceNode(i)
					s.put(kindNode, apiNode(t, n.Name, n.Addresses[0], n.PodCIDRs[0]))
					all = append(all, n)
				}
				if by == kindSlice.kind {
					s.slice(t, "nodes-1", SliceSpec{Nodes: all})
					s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1"}})
					s.alive(t, 0)
				}
			}
			nodes(1, 2)
			s.put(kindPeer, apiPeer(t, "lan", `"n2"`))
			p := hasty
			p.trust = time.Nanosecond
			c := newClient(t, s.kubeconfig(t), p)
			c.untilIs(t, "n1 n2 BGPPeer/lan")
			waitFor(t, "all watches", func() bool { return s.watches() == watches })
			s.fails(dropped)
			s.cut()
			waitFor(t, "no watch", func() bool { return s.watches() == 0 })
			c.untilProblem(t, "n1 n2 BGPPeer/lan", APIServerUnreachable)
			s.remove(kindPeer, "lan")
			s.remove(kindNode, "n2")
			nodes(1, 3)
			s.put(kindPeer, apiPeer(t, "other", `"n3"`))
			s.mu.Lock()
			s.history = nil // these changes have versions that the node knows already, of the lost history
			s.mu.Unlock()
			s.fails(nil)
			c.untilIs(t, "n1 n3 BGPPeer/other")
		})
	}
}

// A cluster that was never read is an error, with the cause and the next step. The saved state counts.
func TestServerAwayFromTheStart(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.fails(dropped)
	c := newClient(t, s.kubeconfig(t), hasty)
	c.last = World{Nodes: []Node{{Name: "disk"}}, FromDisk: true}
	w := c.until(t, "nothing", func(_ World, err error) bool {
		return err != nil && !errors.Is(err, ErrNotRead) && strings.Contains(err.Error(), "list ") && strings.Contains(err.Error(), s.URL)
	})
	if describe(w) != "disk" || !w.FromDisk {
		t.Errorf("got %s, from disk %v", describe(w), w.FromDisk)
	}
	s.fails(nil)
	c.untilIs(t, "n1")
}

// A kind that the server does not answer for keeps its known objects. The other kinds count.
func TestKindsCountOneByOne(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.fails(of("bgppeers", dropped))
	c := newClient(t, s.kubeconfig(t), hasty)
	c.last = World{Nodes: []Node{{Name: "disk"}}, Peerings: []Peering{{Kind: kindPeer, Name: "disk"}, {Kind: kindCluster, Name: "disk"}}}
	c.untilProblem(t, "n1 BGPPeer/disk", APIServerUnreachable)
	s.fails(nil)
	c.untilIs(t, "n1")
}

// A kind whose CustomResourceDefinition is not installed is not a problem unless it takes something
// away; it is read as soon as it is installed.
func TestKindInstalledLate(t *testing.T) {
	pool := jsonOf(t, `{"metadata": {"name": "lan"}, "spec": {"nodeSelector": "all()", "mode": "auto"}}`)
	for _, tt := range []struct {
		kind   string
		disk   World
		object map[string]any
	}{
		{kindPeer, World{Peerings: []Peering{{Kind: kindPeer, Name: "disk"}}}, apiPeer(t, "lan", `"n2"`)},
		{kindPool, World{Pools: []NetworkPool{{Name: "disk"}}}, pool},
		{kindEdgeNode, World{EdgeNodes: []EdgeNode{{Name: "n1", Origin: "disk"}}}, jsonOf(t, `{"metadata": {"name": "n1"}}`)}, // this node's own, the only one that is asked for
	} {
		t.Run(tt.kind, func(t *testing.T) {
			s := newAPIServer(t)
			s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
			s.fails(of(kind{kind: tt.kind}.resource(), answers(http.StatusNotFound, "NotFound", "the server could not find the requested resource")))
			c := newClient(t, s.kubeconfig(t), hasty)
			c.untilIs(t, "n1")
			c.last.Peerings, c.last.Pools, c.last.EdgeNodes = tt.disk.Peerings, tt.disk.Pools, tt.disk.EdgeNodes
			s.put(kindNode, apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24"))
			c.untilProblem(t, "n1 n2 "+strings.TrimSpace(describe(tt.disk)), NotInstalled)
			s.put(tt.kind, tt.object)
			s.fails(nil)
			c.untilIs(t, "n1 n2 "+tt.kind+"/"+tt.object["metadata"].(map[string]any)["name"].(string))
		})
	}
}

// Objects that the server does not let us read stay as they were. The problem says which rule is missing.
func TestForbidden(t *testing.T) {
	for _, tt := range []struct {
		resource, message string
		code              int
		reason            Reason
		next              []string
	}{
		{"nodes", `nodes is forbidden: User "edge" cannot watch resource "nodes" in API group "" at the cluster scope`, http.StatusForbidden, forbidden,
			[]string{"ClusterRole", `apiGroups [""]`, "resources [nodes]", "[list, watch]"}},
		{"bgppeers", `bgppeers.network.openyurt.io is forbidden: User "edge" cannot watch`, http.StatusForbidden, forbidden,
			[]string{"ClusterRole", `apiGroups ["network.openyurt.io"]`, "resources [bgppeers]"}},
		{"secrets", `secrets "bgp" is forbidden: User "edge" cannot watch resource "secrets"`, http.StatusForbidden, forbidden,
			[]string{"in the namespace kube-system", "resourceNames [bgp]"}},
		{"nodes", "Unauthorized", http.StatusUnauthorized, unauthorized, []string{"renew the credentials of /"}},
	} {
		t.Run(fmt.Sprint(tt.code, tt.resource), func(t *testing.T) {
			s, c := known(t)
			s.fails(of(tt.resource, answers(tt.code, "", tt.message)))
			s.cut()
			p := c.untilProblem(t, all, tt.reason)
			if !strings.Contains(p.String(), tt.message) || !strings.Contains(p.Got, tt.resource) {
				t.Errorf("got %s", p)
			}
			for _, next := range append(tt.next, "until then the last known state counts") {
				if !strings.Contains(p.Next, next) {
					t.Errorf("got next step %q, want %q in it", p.Next, next)
				}
			}
			s.fails(nil)
			c.untilIs(t, all)
		})
	}
}

// One trouble after another is another problem.
func TestForbiddenAfterUnreachable(t *testing.T) {
	s, c := known(t)
	s.fails(of("nodes", answers(http.StatusInternalServerError, "", "no")))
	s.cut()
	c.untilProblem(t, all, APIServerUnreachable)
	s.fails(of("nodes", answers(http.StatusForbidden, "", "no")))
	c.untilProblem(t, all, forbidden)
}

// A password that may not be read from the start is missing alone.
func TestForbiddenSecretFromTheStart(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.put(kindPeer, apiPeer(t, "lan", `"n1"`))
	s.fails(of("secrets", answers(http.StatusForbidden, "Forbidden", "no")))
	c := newClient(t, s.kubeconfig(t), hasty)
	c.untilProblem(t, "n1 BGPPeer/lan", forbidden)
}

// BGP resources without Nodes do not make a World.
func TestNodesForbiddenFromTheStart(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindPeer, apiPeer(t, "lan", `"n2"`))
	s.fails(of("nodes", answers(http.StatusForbidden, "Forbidden", "nodes is forbidden")))
	c := newClient(t, s.kubeconfig(t), hasty)
	c.until(t, "nothing", func(_ World, err error) bool {
		return err != nil && strings.Contains(err.Error(), "nodes is forbidden")
	})
	c.last = World{Nodes: []Node{{Name: "disk"}}, FromDisk: true}
	s.put(kindPeer, apiPeer(t, "lan2", `"n2"`))
	c.untilProblem(t, "disk BGPPeer/lan BGPPeer/lan2", forbidden)
	if !c.last.FromDisk {
		t.Error("the Nodes are not from disk")
	}
}

// Lists that end in their middle count for nothing.
func TestListCutInItsMiddle(t *testing.T) {
	whole := `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"x"}},{"metadata":{"name":"y"}}]}`
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"connection lost": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(whole[:100]))
			panic(http.ErrAbortHandler)
		},
		"truncated": func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write([]byte(whole[:100])); return true },
		"truncated at end": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(whole[:len(whole)-1]))
			return true
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(whole[:80] + "%%%"))
			return true
		},
		"no list": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(`{"kind":"APIVersions","versions":["v1"]}`))
			return true
		},
		"nothing": func(http.ResponseWriter, *http.Request) bool { return true },
		"an item without a name": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(`{"kind":"NodeList","metadata":{"resourceVersion":"9"},"items":[{"metadata":{}}]}`))
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
			s.fails(of("nodes", fault))
			c := newClient(t, s.kubeconfig(t), hasty)
			c.last = World{Nodes: []Node{{Name: "disk"}}}
			c.until(t, "disk", func(w World, err error) bool {
				return err != nil && !errors.Is(err, ErrNotRead) && describe(w) == "disk"
			})
			s.fails(nil)
			c.untilIs(t, "n1")
		})
	}
}

// An object that is null is none: what was known stays, and the daemon lives.
func TestNullObject(t *testing.T) {
	for name, text := range map[string]string{
		"list":  `{"kind":"BGPPeerList","metadata":{"resourceVersion":"9"},"items":[null]}`,
		"event": `{"type":"MODIFIED","object":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			s, c := known(t)
			s.fails(of("bgppeers", func(w http.ResponseWriter, r *http.Request) bool {
				if (r.URL.Query().Get("watch") == "") != (name == "list") {
					return false
				}
				fmt.Fprint(w, text)
				return true
			}))
			s.mu.Lock()
			s.version++
			s.compact = s.version // everything is listed again
			s.mu.Unlock()
			s.cut()
			c.untilProblem(t, all, APIServerUnreachable)
			s.fails(nil)
			c.untilIs(t, all)
		})
	}
}

// When the server has forgotten a version, the kind is listed again, once. That is not a problem.
func TestVersionTooOld(t *testing.T) {
	for name, forget := range map[string]func(s *apiServer){
		"410 at the watch": func(s *apiServer) { s.compact = s.version },
		"410 in the watch": func(s *apiServer) {
			first := true
			s.fault = of("nodes", func(w http.ResponseWriter, r *http.Request) bool {
				if !first || r.URL.Query().Get("watch") == "" {
					return false
				}
				first = false
				fmt.Fprintf(w, `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}`+"\n")
				return true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := known(t)
			s.asked()
			s.mu.Lock()
			s.version++
			forget(s)
			delete(s.objects["/api/v1/nodes"], "n2") // nobody remembers that it went
			s.mu.Unlock()
			s.cut()
			c.untilIs(t, "n1 BGPPeer/lan Secret/bgp=secret")
			if lists := count(s.asked(), "list nodes"); lists != 1 {
				t.Errorf("nodes were listed %d times, want once", lists)
			}
		})
	}
}

func count(requests []string, want string) (n int) {
	for _, r := range requests {
		if r == want {
			n++
		}
	}
	return n
}

// An etcd that was restored from an old backup counts from an old version on. What is there
// counts, also when the versions go on.
func TestEtcdRestored(t *testing.T) {
	s, c := known(t)
	s.mu.Lock()
	s.version, s.history = 50, nil
	delete(s.objects["/api/v1/nodes"], "n2")
	s.mu.Unlock()
	s.cut()
	c.untilIs(t, "n1 BGPPeer/lan Secret/bgp=secret")
	s.put(kindNode, apiNode(t, "n4", "192.0.2.14", "10.10.4.0/24"))
	c.untilIs(t, "n1 n4 BGPPeer/lan Secret/bgp=secret")
}

// The server of before may not say that the version is too large, and send what is new.
func TestEtcdRestoredUnnoticed(t *testing.T) {
	s, c := known(t)
	s.mu.Lock()
	s.version = 50
	for i := range s.history {
		s.history[i].version = 1
	}
	delete(s.objects["/api/v1/nodes"], "n2")
	s.mu.Unlock()
	s.put(kindNode, apiNode(t, "n4", "192.0.2.14", "10.10.4.0/24")) // version 51 on the old watch
	s.mu.Lock()
	s.history[len(s.history)-1].version = 1000 // past the test server's own filter
	close(s.news)
	s.news = make(chan struct{})
	s.mu.Unlock()
	c.untilIs(t, "n1 n4 BGPPeer/lan Secret/bgp=secret")
}

// An etcd that was restored empty, or the kubeconfig of another cluster, takes nothing away.
func TestEtcdRestoredEmpty(t *testing.T) {
	s, c := known(t)
	s.mu.Lock()
	s.version, s.history = 5, nil
	for path := range s.objects {
		s.objects[path] = map[string]any{}
	}
	s.mu.Unlock()
	s.cut()
	w := c.until(t, "what was known", func(w World, err error) bool {
		return err == nil && describe(w) == all && len(w.Problems) > 0 && !slices.ContainsFunc(w.Problems, func(p Problem) bool { return p.Reason != emptyCluster })
	})
	for _, p := range w.Problems {
		if !strings.Contains(p.Next, "etcd is whole") {
			t.Errorf("got %s", p)
		}
	}
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.put(kindPeer, apiPeer(t, "new", `"n2"`))
	c.untilIs(t, "n1 BGPPeer/new")
}

// The last resource of a kind goes when the server knows this node.
func TestLastResourceGoneMeanwhile(t *testing.T) {
	s, c := known(t)
	s.mu.Lock()
	s.version++
	s.compact = s.version
	delete(s.objects["/apis/network.openyurt.io/v1alpha1/bgppeers"], "lan")
	s.mu.Unlock()
	s.cut()
	c.untilIs(t, "n1 n2")
}

// While OpenYurt's yurthub cannot reach the server it answers from its disk: a list with the one Node that was once asked
// for, a watch with silence, 404 for what it never kept, and for one name an empty list without a version. Nothing of it
// counts, and the problem says who answers.
func TestCachingProxyOffline(t *testing.T) {
	s, c := known(t)
	s.fails(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Del("Audit-Id")
		switch q := r.URL.Query(); {
		case q.Get("watch") != "":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/nodes"):
			fmt.Fprint(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"101"},"items":[{"metadata":{"name":"n1","resourceVersion":"101"},
				"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.11"}]}}]}`)
		case strings.HasSuffix(r.URL.Path, "/secrets"):
			fmt.Fprint(w, `{"kind":"SecretList","apiVersion":"v1","metadata":{},"items":null}`)
		default:
			status(w, http.StatusNotFound, "NotFound", "not found")
		}
		return true
	})
	unsaid := func(c *client) {
		t.Helper()
		if p := c.untilProblem(t, all, APIServerUnreachable); !strings.Contains(p.Got, "not by the API server") || !strings.Contains(p.Next, "no cache") {
			t.Errorf("got %s", p)
		}
	}
	s.cut()
	unsaid(c)
	again := newClient(t, c.source.options.Kubeconfig, hasty)
	again.last = c.last
	again.until(t, "an error", func(w World, err error) bool {
		return err != nil && strings.Contains(err.Error(), "not by the API server") && describe(w) == all
	})
	s.fails(nil)
	c.untilIs(t, all)
	again.untilIs(t, all)
}

// What a pod of KubeEdge says when edgecore empties its variables, and when edgecore's metaserver is their value.
func TestPodOfKubeEdge(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Connect(KubernetesOptions{}); err == nil || !strings.Contains(err.Error(), "set cluster.kubeconfig to a file") {
		t.Errorf("without an API server: %v", err)
	}
	if next := newKubernetes(KubernetesOptions{}, hasty).remedy(errHearsay); !strings.Contains(next, "name it itself in cluster.kubeconfig") {
		t.Errorf("with the metaserver: %s", next)
	}
}

// This machine's clock is a day ahead of the API server's: the World says so.
func TestClockADayAheadOfTheAPIServer(t *testing.T) {
	s, c := known(t)
	s.fails(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Date", time.Now().Add(-24*time.Hour).UTC().Format(http.TimeFormat))
		return false
	})
	if c.last.Ahead.Abs() > time.Hour {
		t.Errorf("ahead %v of a server on the same machine", c.last.Ahead)
	}
	s.cut() // the next watch hears the Date
	s.put(kindNode, apiNode(t, "n9", "192.0.2.19", "10.10.9.0/24"))
	w := c.until(t, "a day ahead", func(w World, err error) bool { return err == nil && w.Ahead > 23*time.Hour })
	if w.Ahead > 25*time.Hour {
		t.Errorf("ahead %v", w.Ahead)
	}
}
