package cluster

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// requestsPerSecond and requestBurst bound this node's requests to the API server. The server's own
	// fairness (429) bounds all nodes together.
	requestsPerSecond, requestBurst = 10, 20
)

// KubernetesOptions say which API server is asked, and with whose credentials.
type KubernetesOptions struct {
	// Kubeconfig is a file. It need not exist yet. Empty: the service account of the pod that this process
	// runs in.
	Kubeconfig string
	Node       string // the name of this node
	// LabelKeys are the keys of node labels that matter to this node beside those of the cluster's resources: its
	// own file selects by them.
	LabelKeys []string
	// Secrets are the names of Secrets in kube-system that matter to this node beside those of the cluster's resources.
	Secrets   []string
	UserAgent string // "edgewayd/1.4.0"
}

// ClientConfig says how to reach the API server: by a kubeconfig file, or, when its name is empty, by the
// service account of the pod that this process runs in. It sends nothing. Credential files (client
// certificate, token) are read again when they change, like a kubelet's.
func ClientConfig(kubeconfig, userAgent string) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if kubeconfig == "" {
		c, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("API server: %w; set cluster.kubeconfig or cluster.manifests, or run edgewayd as a pod; on a node of KubeEdge, which empties both variables in each pod, set cluster.kubeconfig to a file that names an API server which the node reaches", err)
		}
	} else {
		c, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct cluster.kubeconfig, or wait until the program that writes it has written it", err)
	}
	c.UserAgent = userAgent
	c.QPS, c.Burst = requestsPerSecond, requestBurst
	c.WarningHandler = rest.NoWarnings{} // the default writes to stderr, which no log collects
	return c, nil
}
