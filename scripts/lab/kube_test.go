package lab_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	kubeStories = "../../testdata/kube"
	deployed    = "../../deploy/kubernetes"
)

// TestAPIServerStories plays the stories of testdata/kube: nodes whose cluster is a real API server.
func TestAPIServerStories(t *testing.T) {
	need(t)
	needPrograms(t)
	kube.Need(t, "etcd", "kube-apiserver", "kubectl")
	for _, flavour := range flavours {
		t.Run(string(flavour), func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, testscript.Params{
				Dir:   kubeStories,
				Setup: func(env *testscript.Env) error { return setup(env, flavour) },
				Cmds:  commands(),
			})
		})
	}
}

// kube runs the API server in one machine's namespace:
//
//	kube start MACHINE [DIR]    with our kinds and roles, or those of DIR; every node's daemon reads it as its service account
//	kube bind NODE...           each daemon's token is bound to its Node, as the token of a pod there
//	kube stop                   the API server goes away; its data stay
//	kube resume
func (s *story) kube(args []string) (string, error) {
	switch args[0] {
	case "start":
		return "", s.startKube(args[1], append(args[2:], deployed)[0])
	case "bind":
		return s.each(args[1:], func(n *lab.Node) error {
			kubeconfig, err := s.control.ServiceAccountOn(n.Name, "kube-system", "edgeway")
			if err != nil {
				return err
			}
			return s.edit(n, func(config map[string]any) error {
				config["cluster"] = map[string]any{"kubeconfig": kubeconfig}
				return nil
			})
		})
	case "stop":
		return "", s.control.StopAPIServer()
	case "resume":
		return "", s.control.StartAPIServer()
	}
	return "", fmt.Errorf("kube %s: want start, bind, stop or resume", args[0])
}

func (s *story) startKube(name, deploy string) error {
	m, err := s.machine(name)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.work, ".kube")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.control, err = kube.New(s.ctx, dir, kube.Options{Space: m.Space, Addr: m.Addrs[0]})
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(deploy, "crds")}, {"wait", "--for=condition=established", "crd", "--all"},
		{"apply", "-k", filepath.Join(deploy, "rbac")},
	} {
		if _, err := s.control.Kubectl(args...); err != nil {
			return err
		}
	}
	kubeconfig, err := s.control.ServiceAccount("kube-system", "edgeway")
	if err != nil {
		return err
	}
	config, err := yaml.Marshal(map[string]any{"cluster": map[string]any{"kubeconfig": kubeconfig}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file("kubeconfig.yaml"), config, 0o644); err != nil {
		return err
	}
	for node := range s.lab.Nodes() {
		if _, err := s.config([]string{node, "kubeconfig.yaml"}); err != nil {
			return err
		}
	}
	return nil
}

// kubectl runs kubectl as the administrator; a word that names a file of the script is that file.
func (s *story) kubectl(args []string) (string, error) {
	if s.control == nil {
		return "", errors.New("kubectl: there is no API server; kube start MACHINE")
	}
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if _, err := os.Stat(s.file(a)); err == nil && strings.HasSuffix(a, ".yaml") {
			words[i] = s.file(a)
		}
	}
	return s.control.Kubectl(words...)
}
