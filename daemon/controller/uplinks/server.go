package uplinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// fieldManager marks, at the API server, what the controller wrote.
const fieldManager = "edgeway-controller"

// instanceAnnotation of an EdgeNode says whose interfaces it has, also when the Node is gone.
func instanceAnnotation(s cloud.Service) string {
	return "network.edgeway.io/" + string(s) + "-instance-id"
}

// fullTaint is the key of the taint of a Node without a free address. Its effect is NoSchedule.
const fullTaint = "network.edgeway.io/no-addresses"

// requestTimeout is long enough for an API server that makes requests wait for their turn.
const requestTimeout = 30 * time.Second

var edgeNodes = schema.GroupVersionResource{Group: "network.edgeway.io", Version: "v1alpha1", Resource: "edgenodes"}

// errConflict says that somebody else wrote the object first.
var errConflict = errors.New("the EdgeNode was changed meanwhile")

// Node holds the fields of a Node that are used.
type Node struct {
	Name, UID, Instance string
	MaxPods             int // of its kubelet
	Tainted             bool
}

// edgeNode is an EdgeNode as it was read.
type edgeNode struct {
	name, version, instance string // version "": it does not exist
	uplinks                 *cluster.Uplinks
	status                  *cluster.UplinksStatus
}

// server reads and writes the cluster's objects.
type server struct {
	service cloud.Service
	typed   kubernetes.Interface
	dynamic dynamic.Interface

	nodes, edges cache.SharedIndexInformer
}

func newServer(config *rest.Config, of cloud.Service) (*server, error) {
	c := rest.CopyConfig(config)
	c.QPS = -1 // no limit but the API server's own fairness
	typed, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	dyn, err := dynamic.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	return &server{service: of, typed: typed, dynamic: dyn}, nil
}

// changes collects the names of objects that changed.
type changes struct {
	mu    sync.Mutex // guards names
	names map[string]bool
	more  chan struct{} // has room for one
}

func (c *changes) add(o any) {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	m, ok := o.(v1.Object)
	if !ok {
		return
	}
	c.mu.Lock()
	c.names[m.GetName()] = true
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *changes) take() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.names
	c.names = map[string]bool{}
	return out
}

// watch follows the Nodes that are instances, and all EdgeNodes, until ctx ends. It returns when it knows them.
func (s *server) watch(ctx context.Context, log *slog.Logger) (*changes, error) {
	c := &changes{names: map[string]bool{}, more: make(chan struct{}, 1)}
	factory := informers.NewSharedInformerFactoryWithOptions(s.typed, 0, informers.WithTweakListOptions(func(o *v1.ListOptions) { o.LabelSelector = InstanceLabel(s.service) }))
	s.nodes = factory.Core().V1().Nodes().Informer()
	s.edges = dynamicinformer.NewDynamicSharedInformerFactory(s.dynamic, 0).ForResource(edgeNodes).Informer()
	_, err := s.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: c.add, DeleteFunc: c.add, UpdateFunc: func(was, is any) {
		if a, b := was.(*corev1.Node), is.(*corev1.Node); s.readNode(a) != s.readNode(b) { // most changes are heartbeats
			c.add(is)
		}
	}})
	if err != nil {
		return nil, err
	}
	if _, err = s.edges.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: c.add, DeleteFunc: c.add, UpdateFunc: func(was, is any) {
		if a, b := was.(v1.Object), is.(v1.Object); a.GetResourceVersion() != b.GetResourceVersion() {
			c.add(is)
		}
	}}); err != nil {
		return nil, err
	}
	for _, i := range []cache.SharedIndexInformer{s.nodes, s.edges} { // the default writes to stderr
		if err := i.SetWatchErrorHandler(func(_ *cache.Reflector, err error) { log.Debug("watch", "err", err) }); err != nil {
			return nil, err
		}
	}
	late := time.AfterFunc(requestTimeout, func() {
		log.Warn("Nodes and EdgeNodes cannot be listed", "next", "apply the CRDs and the ClusterRole edgeway-controller of this version; the controller tries again by itself")
	})
	defer late.Stop()
	go s.nodes.RunWithContext(ctx)
	go s.edges.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), s.nodes.HasSynced, s.edges.HasSynced) {
		return nil, context.Cause(ctx)
	}
	return c, nil
}

func (s *server) readNode(o *corev1.Node) Node {
	return Node{Name: o.Name, UID: string(o.UID), Instance: o.Labels[InstanceLabel(s.service)], MaxPods: int(o.Status.Capacity.Pods().Value()),
		Tainted: slices.ContainsFunc(o.Spec.Taints, isFullTaint)}
}

func isFullTaint(t corev1.Taint) bool { return t.Key == fullTaint }

// taint gives a Node the taint, or takes it away. The Node's other taints stay as they are.
func (s *server) taint(ctx context.Context, name string, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o, err := s.typed.CoreV1().Nodes().Get(ctx, name, v1.GetOptions{})
	if apierrors.IsNotFound(err) && !on {
		return nil
	}
	if err != nil {
		return err
	}
	taints := slices.DeleteFunc(slices.Clone(o.Spec.Taints), isFullTaint)
	if on {
		taints = append(taints, corev1.Taint{Key: fullTaint, Effect: corev1.TaintEffectNoSchedule})
	}
	type object = map[string]any
	text, err := json.Marshal(object{"metadata": object{"resourceVersion": o.ResourceVersion}, "spec": object{"taints": taints}})
	if err != nil {
		return err
	}
	_, err = s.typed.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, text, v1.PatchOptions{FieldManager: fieldManager})
	return err
}

func (s *server) listNodes() (out []Node) {
	for _, o := range s.nodes.GetStore().List() {
		if n := s.readNode(o.(*corev1.Node)); n.Instance != "" && o.(*corev1.Node).DeletionTimestamp == nil {
			out = append(out, n)
		}
	}
	return out
}

// orphans are the EdgeNodes of instances that have no Node.
func (s *server) orphans() (out []edgeNode) {
	nodes := map[string]bool{}
	for _, n := range s.listNodes() {
		nodes[n.Name] = true
	}
	for _, o := range s.edges.GetStore().List() {
		e, err := s.readEdgeNode(o.(*unstructured.Unstructured))
		if err == nil && e.instance != "" && e.uplinks != nil && e.uplinks.Provider == cluster.Provider(s.service) && !nodes[e.name] {
			out = append(out, e)
		}
	}
	return out
}

func (s *server) edgeNode(ctx context.Context, name string) (edgeNode, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o, err := s.dynamic.Resource(edgeNodes).Get(ctx, name, v1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return edgeNode{name: name}, nil
	}
	if err != nil {
		return edgeNode{}, err
	}
	return s.readEdgeNode(o)
}

func (s *server) readEdgeNode(o *unstructured.Unstructured) (edgeNode, error) {
	e := edgeNode{name: o.GetName(), version: o.GetResourceVersion(), instance: o.GetAnnotations()[instanceAnnotation(s.service)]}
	text, err := o.MarshalJSON()
	if err != nil {
		return e, err
	}
	var in struct {
		Spec   struct{ Uplinks *cluster.Uplinks }
		Status cluster.EdgeNodeStatus
	}
	if err := json.Unmarshal(text, &in); err != nil {
		return e, err
	}
	e.uplinks, e.status = in.Spec.Uplinks, in.Status.Uplinks
	return e, nil
}

// write writes the interfaces into spec.uplinks, if the object is still as it was read, and returns the new object.
func (s *server) write(ctx context.Context, e edgeNode, instance string, u cluster.Uplinks) (edgeNode, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	type object = map[string]any
	if u.Interfaces == nil {
		u.Interfaces = []cluster.Uplink{} // null would remove the key
	}
	meta := object{"name": e.name, "annotations": object{instanceAnnotation(s.service): instance}}
	uplinks := object{"provider": u.Provider, "interfaces": u.Interfaces}
	body := object{"apiVersion": edgeNodes.GroupVersion().String(), "kind": "EdgeNode", "metadata": meta, "spec": object{"uplinks": uplinks}}
	if e.version != "" {
		meta["resourceVersion"] = e.version
		meta["ownerReferences"] = nil // the node created it to go with the Node; uplinks go with the instance
	}
	text, err := json.Marshal(body)
	if err != nil {
		return e, err
	}
	var o *unstructured.Unstructured
	if e.version == "" {
		o = &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(text); err != nil {
			return e, err
		}
		o, err = s.dynamic.Resource(edgeNodes).Create(ctx, o, v1.CreateOptions{FieldManager: fieldManager})
	} else {
		o, err = s.dynamic.Resource(edgeNodes).Patch(ctx, e.name, types.MergePatchType, text, v1.PatchOptions{FieldManager: fieldManager})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err) && e.version != "":
		return e, errConflict
	case err != nil:
		return e, err
	}
	return s.readEdgeNode(o)
}

// remove deletes an EdgeNode that is still as it was read.
func (s *server) remove(ctx context.Context, e edgeNode) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.dynamic.Resource(edgeNodes).Delete(ctx, e.name, v1.DeleteOptions{Preconditions: &v1.Preconditions{ResourceVersion: &e.version}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
