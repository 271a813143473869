package daemon

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// DefaultManifests is the directory of manifests outside of a pod.
const DefaultManifests = "/etc/edgeway/cluster.d"

// SourceConfig says where the World comes from: a directory of manifests or an API server. With
// neither set, once it is chosen, this process is in a pod, whose service account counts.
type SourceConfig struct {
	Manifests  string `yaml:"manifests"`  // a directory
	Kubeconfig string `yaml:"kubeconfig"` // a file; it need not be there yet
}

// choose completes what the configuration leaves open.
func (s *SourceConfig) choose() error {
	if s.Manifests != "" && s.Kubeconfig != "" {
		return errors.New("cluster: both manifests and kubeconfig are set; keep the one that counts")
	}
	if s.Manifests == "" && s.Kubeconfig == "" && !inPod() {
		s.Manifests = DefaultManifests
	}
	return nil
}

// paths are the file names that are set.
func (s *SourceConfig) paths() []*string {
	switch {
	case s.Manifests != "":
		return []*string{&s.Manifests}
	case s.Kubeconfig != "":
		return []*string{&s.Kubeconfig}
	}
	return nil
}

// inPod reports whether the kubelet started this process: it tells each container where the API
// server is.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// apiServer says how to reach the API server, if that is the source.
func (c Config) apiServer(version string) (cluster.KubernetesOptions, bool) {
	o := cluster.KubernetesOptions{Kubeconfig: c.Cluster.Kubeconfig, Node: c.NodeName, UserAgent: "edgewayd/" + version}
	return o, c.Cluster.Manifests == ""
}

// source is where the World comes from.
func (c Config) source(version string) cluster.Source {
	if o, ok := c.apiServer(version); ok {
		return cluster.Kubernetes(o)
	}
	return cluster.Manifests(c.Cluster.Manifests)
}

// answerWithin bounds how long a command that does not stay waits for the API server.
const answerWithin = 15 * time.Second

// readOnce reads the source once, for a command that does not stay. It asks an API server until
// that has answered, or for answerWithin.
func (c Config) readOnce(ctx context.Context, last cluster.World) (cluster.World, error) {
	source := c.source("once")
	if _, ok := c.apiServer(""); !ok {
		return source.World(ctx, last)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	changed, ended := newTrigger(), make(chan struct{})
	go func() {
		defer close(ended)
		_ = source.Watch(ctx, changed.fire) // what it could not read is said by World
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
