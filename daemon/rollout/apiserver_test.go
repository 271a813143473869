package rollout_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/rollout"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// kubelets do for the nodes that are online what a kubelet does with a pod: report it ready, and end it when it is
// deleted. They note a pod that ends while the pod of another online node is not ready.
type kubelets struct {
	client  *kubernetes.Clientset
	mu      sync.Mutex
	offline string
	ended   []string // the nodes, in order
	wrong   []string
}

func (k *kubelets) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := k.client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=edgewayd"})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == "" }), nil
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (k *kubelets) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		if err := k.round(ctx); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			t.Logf("kubelets: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (k *kubelets) round(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.pods(ctx)
	if err != nil {
		return err
	}
	online := slices.DeleteFunc(all, func(p corev1.Pod) bool { return p.Spec.NodeName == k.offline })
	for i, p := range online {
		switch {
		case p.DeletionTimestamp != nil:
			for j, other := range online {
				if i != j && (!ready(other) || other.DeletionTimestamp != nil) {
					k.wrong = append(k.wrong, fmt.Sprintf("%s ends while %s is not ready", p.Spec.NodeName, other.Spec.NodeName))
				}
			}
			zero := int64(0)
			if err := k.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
				return err
			}
			k.ended = append(k.ended, p.Spec.NodeName)
		case !ready(p):
			if err := k.report(ctx, p, corev1.ConditionTrue); err != nil {
				return err
			}
		}
	}
	return nil
}

// report writes a pod's condition Ready.
func (k *kubelets) report(ctx context.Context, p corev1.Pod, status corev1.ConditionStatus) error {
	now := metav1.Now()
	p.Status.Phase = corev1.PodRunning
	if p.Status.StartTime == nil {
		p.Status.StartTime = &now
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: now}}
	_, err := k.client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, &p, metav1.UpdateOptions{})
	return err
}

// node writes a Node with the condition Ready, and the taints of a node that is offline if the condition is Unknown.
func (k *kubelets) node(ctx context.Context, name string, status corev1.ConditionStatus) error {
	room := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("10")}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{Capacity: room, Allocatable: room,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.Now()}}}}
	if _, err := k.client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	if _, err := k.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		return err
	}
	taints := `{"spec": {"taints": []}}`
	if status == corev1.ConditionUnknown {
		taints = `{"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}}`
	}
	_, err := k.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, []byte(taints), metav1.PatchOptions{})
	return err
}

// avoids waits until the scheduler has refused to put edgeway-rollout on a node.
func (k *kubelets) avoids(ctx context.Context, name string) error {
	d, err := k.client.AppsV1().Deployments("kube-system").Get(ctx, "edgeway-rollout", metav1.GetOptions{})
	if err != nil {
		return err
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "edgeway-rollout"}, Spec: d.Spec.Template.Spec}
	p.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": name}
	pods := k.client.CoreV1().Pods("kube-system")
	if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return err
	}
	return lab.Wait(ctx, time.Minute, func() error {
		p, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case p.Spec.NodeName != "":
			return fmt.Errorf("edgeway-rollout was put on %s, which is offline", p.Spec.NodeName)
		case !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Reason == corev1.PodReasonUnschedulable }):
			return fmt.Errorf("the scheduler has not looked: %v", p.Status.Conditions)
		}
		return nil
	})
}

// loses takes a node offline, as the node's kubelet and then the node lifecycle controller would.
func (k *kubelets) loses(ctx context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.offline = name
	if err := k.node(ctx, name, corev1.ConditionUnknown); err != nil {
		return err
	}
	all, err := k.pods(ctx)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Spec.NodeName == name {
			return k.report(ctx, p, corev1.ConditionFalse)
		}
	}
	return fmt.Errorf("%s has no pod", name)
}

// A node whose kubelet is stopped does not stop a roll-out, and no two daemons go together. The DaemonSet, its
// controller and the account are those that an operator installs.
func TestAPIServerRolloutGoesOnWhileANodeIsOffline(t *testing.T) {
	server := kube.Start(t, kube.Options{Programs: []string{"kube-controller-manager", "kube-scheduler"}, Args: map[string][]string{
		// The test writes what kubelets and the node lifecycle controller write.
		"kube-controller-manager": {"--controllers=daemonset-controller,serviceaccount-controller"}}})
	config, err := clientcmd.BuildConfigFromFlags("", server.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k := &kubelets{client: client}
	nodes := []string{"n1", "n2", "n3", "n4"}
	for _, name := range nodes {
		if err := k.node(ctx, name, corev1.ConditionTrue); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.Kubectl("apply", "-k", "../../deploy/kubernetes"); err != nil { // as a whole: kustomize rewrites names
		t.Fatal(err)
	}
	patch := func(text string) {
		t.Helper()
		if _, err := client.AppsV1().DaemonSets("kube-system").Patch(ctx, "edgewayd", types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"spec": {"minReadySeconds": 1}}`)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	wait.Go(func() { k.run(ctx, t) })
	updated := func(image string, want ...string) {
		t.Helper()
		err := lab.Wait(ctx, time.Minute, func() error {
			all, err := k.pods(ctx)
			if err != nil {
				return err
			}
			var have []string
			for _, p := range all {
				if p.Spec.Containers[0].Image == image && ready(p) && p.DeletionTimestamp == nil {
					have = append(have, p.Spec.NodeName)
				}
			}
			if slices.Sort(have); !slices.Equal(have, want) {
				return fmt.Errorf("%v have %s, want %v", have, image, want)
			}
			// Kubernetes replaces pods that are not available yet all at once.
			ds, err := client.AppsV1().DaemonSets("kube-system").Get(ctx, "edgewayd", metav1.GetOptions{})
			if err == nil && int(ds.Status.NumberAvailable) != len(want) {
				err = fmt.Errorf("%d daemons are available, want %d", ds.Status.NumberAvailable, len(want))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	updated("localhost/edgeway:latest", nodes...)

	kubeconfig, err := server.ServiceAccount("kube-system", "edgeway-rollout")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.loses(ctx, "n2"); err != nil {
		t.Fatal(err)
	}
	if err := k.avoids(ctx, "n2"); err != nil {
		t.Error(err)
	}
	wait.Go(func() {
		err := rollout.Run(ctx, rollout.Options{Server: cluster.KubernetesOptions{Kubeconfig: kubeconfig}, DaemonSets: []string{"edgewayd", "edgewayd-speaker"},
			Every: 100 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Error(err)
		}
	})
	const image = `{"spec": {"template": {"spec": {"containers": [{"name": "edgewayd", "image": "%s"}]}}}}`
	patch(fmt.Sprintf(image, "new"))
	updated("new", "n1", "n3", "n4")
	// The node is back: Kubernetes replaces its pod and then rolls out the next version by itself.
	k.mu.Lock()
	k.offline = ""
	k.mu.Unlock()
	if err := k.node(ctx, "n2", corev1.ConditionTrue); err != nil {
		t.Fatal(err)
	}
	updated("new", nodes...)
	patch(fmt.Sprintf(image, "newer"))
	updated("newer", nodes...)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.wrong) > 0 {
		t.Errorf("two daemons were away at once: %v", k.wrong)
	}
	if len(k.ended) != 8 {
		t.Errorf("daemons were replaced on %v, want each node twice", k.ended)
	}
}
