package config

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// DefaultManifests is the directory of manifests for a daemon outside a pod.
const DefaultManifests = "/etc/edgeway/cluster.d"

// Source says where the cluster state comes from: a directory of manifests or an API server. After choose,
// a Source with neither set means the service account of the pod that this process runs in.
type Source struct {
	Manifests  string // a directory
	Kubeconfig string // a file; it need not exist yet
}

// choose sets the source if the file leaves it open.
func (s *Source) choose() error {
	if s.Manifests != "" && s.Kubeconfig != "" {
		return errors.New("cluster: both manifests and kubeconfig are set; keep the one that counts")
	}
	if s.Manifests == "" && s.Kubeconfig == "" && !inPod() {
		s.Manifests = DefaultManifests
	}
	return nil
}

// paths returns the file names that are set.
func (s *Source) paths() []*string {
	switch {
	case s.Manifests != "":
		return []*string{&s.Manifests}
	case s.Kubeconfig != "":
		return []*string{&s.Kubeconfig}
	}
	return nil
}

// accountToken is the file in which a kubelet gives a container the token of its service account.
const accountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// inPod reports whether a kubelet started this process. A kubelet tells each container where the API server is;
// KubeEdge's edgecore gives the token, and the variable empty unless its metaserver authorizes pods.
func inPod() bool {
	_, err := os.Stat(accountToken)
	return os.Getenv("KUBERNETES_SERVICE_HOST") != "" || err == nil
}

// APIServer returns how to reach the API server, or false when the source is a directory.
func (c Config) APIServer(version string) (cluster.KubernetesOptions, bool) {
	o := cluster.KubernetesOptions{Kubeconfig: c.Cluster.Kubeconfig, Node: c.NodeName, UserAgent: "edgewayd/" + version}
	for _, m := range c.Modes {
		o.LabelKeys = append(o.LabelKeys, m.NodeSelector.Keys()...)
	}
	o.Secrets = c.secrets()
	return o, c.Cluster.Manifests == ""
}

// Source returns the source of cluster state. An API server sees version in the user agent.
func (c Config) Source(version string) cluster.Source {
	if o, ok := c.APIServer(version); ok {
		return cluster.Kubernetes(o)
	}
	return cluster.Manifests(c.Cluster.Manifests, c.secrets()...)
}

// secrets are the names of the Secrets that the file itself names.
func (c Config) secrets() []string {
	if c.Paths.Secret == "" || !c.Paths.Canary {
		return nil
	}
	return []string{c.Paths.Secret}
}

// WorldFile is the file in which the cluster state is saved.
func (c Config) WorldFile() string { return filepath.Join(c.StateDir, "world.json") }

// SavedWorld reads the cluster state that an earlier run saved. A missing file is not an error: known is false.
func (c Config) SavedWorld() (w cluster.World, known bool, err error) {
	w, err = cluster.Load(c.WorldFile())
	if errors.Is(err, fs.ErrNotExist) {
		return cluster.World{}, false, nil
	}
	return w, err == nil, err
}

// answerWithin bounds how long a command waits for the API server.
const answerWithin = 15 * time.Second

// ReadCluster reads the source once, for a command. It waits at most 15 seconds for an API server.
func (c Config) ReadCluster(ctx context.Context, last cluster.World) (cluster.World, error) {
	source := c.Source("once")
	if _, ok := c.APIServer(""); !ok {
		return source.World(ctx, last)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	changed, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		_ = source.Watch(ctx, func() { // World returns the error
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { cancel(); <-ended }()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return source.World(context.WithoutCancel(ctx), last)
		}
		w, err := source.World(ctx, last)
		if err == nil && !w.FromDisk || err != nil && !errors.Is(err, cluster.ErrNotRead) {
			return w, err
		}
	}
}
