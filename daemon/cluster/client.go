package cluster

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// requestsPerSecond and requestBurst bound what this node asks of the API server; the
	// server's own fairness (429) bounds all nodes together.
	requestsPerSecond, requestBurst = 10, 20
)

// ClientConfig says how to reach the API server: by a kubeconfig file, or, when its name is empty,
// by the service account of the pod that this process runs in. Nothing is sent. The credentials'
// files (client certificate, token) are read again when they change, as those of a kubelet do.
func ClientConfig(kubeconfig, userAgent string) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if kubeconfig == "" {
		c, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("API server: %w; run edgewayd as a pod, or set cluster.kubeconfig or cluster.manifests", err)
		}
	} else {
		c, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct cluster.kubeconfig, or wait for whoever writes it", err)
	}
	c.UserAgent = userAgent
	c.QPS, c.Burst = requestsPerSecond, requestBurst
	return c, nil
}
