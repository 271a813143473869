package kube

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// build.sh builds the version that Version names.
func TestVersion(t *testing.T) {
	text, err := os.ReadFile("build/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (\S+)`).FindStringSubmatch(string(text))
	if match == nil || match[1] != Version {
		t.Errorf("build/go.mod requires %q, Version is %s", match, Version)
	}
}

const nodes = `
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
`

// podCIDRs of a node, as an operator asks for them.
func podCIDRs(t *testing.T, c *ControlPlane, node string) string {
	t.Helper()
	out, err := c.Kubectl("get", "node", node, "-o", "jsonpath={.spec.podCIDRs}")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Nodes get pod CIDRs of both families, and keep them over an outage of the API server.
func TestAPIServerKeepsWhatItHad(t *testing.T) {
	begin := time.Now()
	c := Start(t, Options{PodCIDRs: []string{"10.244.0.0/16", "fd00:244::/48"}})
	t.Logf("ready after %v", time.Since(begin).Round(time.Millisecond))

	version, err := c.Kubectl("version")
	if err != nil || strings.Count(version, Version) != 2 {
		t.Errorf("kubectl version, of itself and the server: %v\n%s", err, version)
	}
	if err := c.ApplyText(nodes); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "n2"} {
		if _, err := c.Kubectl("wait", "--for=jsonpath={.spec.podCIDRs[1]}", "--timeout=60s", "node/"+name); err != nil {
			t.Fatal(err)
		}
	}
	n1, n2 := podCIDRs(t, c, "n1"), podCIDRs(t, c, "n2")
	if pattern := regexp.MustCompile(`^\["10\.244\.\d+\.0/24","fd00:244:(0:[0-9a-f]+:)?:/64"\]$`); !pattern.MatchString(n1) || !pattern.MatchString(n2) || n1 == n2 {
		t.Errorf("pod CIDRs: n1 %s, n2 %s", n1, n2)
	}

	url := c.URL()
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl("get", "nodes"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("without API server kubectl says: %v\n%s", err, out)
	}
	begin = time.Now()
	if err := c.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	t.Logf("API server back after %v", time.Since(begin).Round(time.Millisecond))
	if c.URL() != url {
		t.Errorf("API server was at %s, came back at %s", url, c.URL())
	}
	if got := podCIDRs(t, c, "n1"); got != n1 {
		t.Errorf("n1 had %s, has %s after the restart", n1, got)
	}
}

// RBAC decides what a user may do, and the audit log has the requests of each user.
func TestAPIServerKnowsItsUsers(t *testing.T) {
	c := Start(t, Options{})
	if err := c.ApplyText(nodes + `
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: kube-system}
- {kind: Group, name: readers, apiGroup: rbac.authorization.k8s.io}
`); err != nil {
		t.Fatal(err)
	}
	account, err := c.ServiceAccount("kube-system", "reader")
	if err != nil {
		t.Fatal(err)
	}
	member, err := c.Kubeconfig("jane", "readers")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := c.Kubeconfig("joe")
	if err != nil {
		t.Fatal(err)
	}
	for config, allowed := range map[string]bool{account: true, member: true, stranger: false} {
		if _, err := c.Kubectl("get", "nodes", "--kubeconfig", config); (err == nil) != allowed {
			t.Errorf("%s: get nodes: allowed %v: %v", config, allowed, err)
		}
		if _, err := c.Kubectl("delete", "node", "n1", "--kubeconfig", config); err == nil || !strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("%s: delete node: %v; want Forbidden", config, err)
		}
	}

	for user, code := range map[string]int{"system:serviceaccount:kube-system:reader": 200, "jane": 200, "joe": 403} {
		err := lab.Wait(t.Context(), 10*time.Second, func() error { // the log comes after the answer
			got, err := c.Requests(func(r Request) bool { return r.User == user && r.Verb == "list" })
			if err == nil && !slices.ContainsFunc(got, func(r Request) bool { return r.Code == code && strings.HasPrefix(r.URI, "/api/v1/nodes") }) {
				err = fmt.Errorf("the log has %v", got)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: list of nodes with code %d: %v", user, code, err)
		}
	}
}
