package cluster

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

const stays = "; until then the last known state counts, and edgewayd tries again by itself"

// problems returns the problems with the server, for the operator who should act; k.mu is held. A fault that
// all feeds share is one problem: the server cannot be reached, or does not know us.
func (k *kubernetes) problems(last World) []Problem {
	object := "API server " + k.server
	var all []Problem
	if k.fault != nil {
		all = append(all, Problem{Object: object, Reason: badKubeconfig, Got: k.fault.Error(),
			Next: "repair the file; until then the earlier connection stays"})
	}
	var silent, unknown *feed
	for _, ref := range slices.Sorted(maps.Keys(k.feeds)) {
		f := k.feeds[ref]
		if f.failure == nil || f.kind == kindSlice { // without slices the Nodes are read
			continue
		}
		p, own := f.problem(last)
		if of := &silent; !own {
			if p.Reason == unauthorized {
				of = &unknown
			}
			if *of == nil || f.since.Before((*of).since) {
				*of = f
			}
		} else if p.Reason != "" {
			p.Object, p.Got = object, f.failure.Error()
			all = append(all, p)
		}
	}
	if unknown != nil {
		all = append(all, Problem{
			Object: object, Reason: unauthorized, Want: "credentials that it knows", Got: unknown.failure.Error(),
			Next: "renew the credentials of " + k.credentials() + stays,
		})
	}
	if silent != nil {
		all = append(all, Problem{
			Object: object, Reason: APIServerUnreachable, Want: "an answer",
			Got:  fmt.Sprintf("none since %s: %v", silent.since.UTC().Format(time.RFC3339), silent.failure),
			Next: k.remedy(silent.failure) + "; nothing is lost: the last known state counts, and edgewayd tries again by itself",
		})
	}
	return all
}

// remedy is the operator's next step where no answer was received.
func (k *kubernetes) remedy(failure error) string {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(failure, &invalid) && invalid.Reason == x509.Expired:
		return "compare this node's clock with the server's; if both are right, renew the server's certificate"
	case errors.As(failure, new(x509.UnknownAuthorityError)):
		return "write the certificate authority that signed the server's present certificate into " + k.credentials() + ", or check that it is the right server"
	case errors.As(failure, new(x509.HostnameError)):
		return "name the server in " + k.file() + " by an address or a name that its certificate has"
	case errors.Is(failure, errHearsay):
		return "check the network between this node and the server; if the server is reached, name it itself in " + k.file() + ", and no cache that always answers for it, such as KubeEdge's metaserver"
	case strings.Contains(failure.Error(), "getting credentials: "): // client-go's words for an exec plugin that fails
		return "run the command of user.exec in " + k.credentials() + " by hand, and correct it"
	}
	return "check the network and the server"
}

// problem returns the problem of this feed. It has no reason when nothing is lost by it. own is false when
// all feeds share the fault.
func (f *feed) problem(last World) (p Problem, own bool) {
	p = Problem{Want: "to list and watch " + f.kind.resource()}
	switch code := code(f.failure); {
	case code == http.StatusUnauthorized:
		return Problem{Reason: unauthorized}, false
	case code == http.StatusForbidden:
		p.Reason, p.Next = forbidden, f.rule()+stays
	case code == http.StatusNotFound:
		// Nobody misses a kind that has no resource: a client that tries to write one gets an error.
		if last.has(f.kind.kind) {
			p.Reason, p.Next = NotInstalled, "install the CustomResourceDefinition of "+f.kind.kind+stays
		}
	case errors.Is(f.failure, errEmptied), errors.Is(f.failure, errUnconfirmed):
		if last.has(f.kind.kind) {
			p.Reason, p.Next = emptyCluster, "check that it is the right server and that its etcd is whole"+stays
		}
	default:
		return Problem{Reason: APIServerUnreachable}, false
	}
	return p, true
}

// emptied is the problem of a server that no longer has any Node.
func (k *kubernetes) emptied() Problem {
	return Problem{
		Object: "API server " + k.server, Reason: emptyCluster, Want: "Nodes, as there were before", Got: "none",
		Next: "check that it is the right server and that its etcd is whole" + stays,
	}
}

// rule names the RBAC rule that the feed needs.
func (f *feed) rule() string {
	group, _, _ := strings.Cut(f.kind.apiVersion, "/")
	if group == f.kind.apiVersion {
		group = groupCore
	}
	rule := fmt.Sprintf("a rule with apiGroups [%q], resources [%s], verbs [list, watch]", group, f.kind.resource())
	if f.kind.kind == kindSecret {
		return fmt.Sprintf("grant that user in the namespace %s %s, resourceNames [%s]", secretNamespace, rule, f.name)
	}
	return "grant that user in a ClusterRole " + rule
}

// credentials says where the credentials come from.
func (k *kubernetes) credentials() string {
	if k.options.Kubeconfig == "" {
		return "the pod's service account"
	}
	return k.options.Kubeconfig
}

// file says where an operator names the API server. A pod's variables are not always his to set.
func (k *kubernetes) file() string { return cmp.Or(k.options.Kubeconfig, "cluster.kubeconfig") }

func (w World) has(kind string) bool {
	switch kind {
	case kindNode:
		return len(w.Nodes) > 0
	case kindSecret:
		return len(w.Secrets) > 0
	case kindPool:
		return len(w.Pools) > 0
	case kindEdgeNode:
		return len(w.EdgeNodes) > 0
	}
	return slices.ContainsFunc(w.Peerings, func(p Peering) bool { return p.Kind == kind })
}
