package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/controller/uplinks"
)

const (
	// requestTimeout is long enough for an API server that makes requests wait for their turn.
	requestTimeout = 30 * time.Second
	// listTimeout is for a part of a list: a page of Nodes has some 5 MB, all NodeSlices of 20,000 nodes 3 MB.
	listTimeout = time.Minute
	// pageSize is how many Nodes the API server puts in one answer.
	pageSize = 500
)

// Keys of the ledger's ConfigMap.
const (
	ledgerKey = "ledger"
	sinceKey  = "since"
)

// newClient returns a client of the API server. Lists of Nodes come as protobuf, which costs the API server a
// quarter of the work for JSON.
func newClient(config *rest.Config) (*kubernetes.Clientset, error) {
	c := rest.CopyConfig(config)
	c.QPS = -1 // no limit but the API server's own fairness: a burst of Nodes is served at once
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	own := *h // client-go may share h
	// An API server does not redirect, and a redirect's target would receive the credentials.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client, err := kubernetes.NewForConfigAndClient(c, &own)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	return client, nil
}

// codeOf returns the HTTP status of an API server's refusal, or 0 for any other error.
func codeOf(err error) int {
	var refusal apierrors.APIStatus
	if errors.As(err, &refusal) {
		return int(refusal.Status().Code)
	}
	return 0
}

// server reads and writes the cluster's objects at the API server. One goroutine uses it.
type server struct {
	client kubernetes.Interface
	last   *corev1.ConfigMap // the ledger's object as last read; nil: it does not exist
}

// newWorker returns a worker that asks the API server.
func newWorker(o Options, c kubernetes.Interface) *worker {
	var labels []string
	for _, u := range o.Uplinks {
		labels = append(labels, uplinks.InstanceLabel(u.Service))
	}
	return &worker{file: o.Pools, uplinks: labels, objects: &server{client: c}, log: o.Log, pace: o.times.pace, metrics: &metrics{}}
}

func (s *server) ledger(ctx context.Context) (Ledger, string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	what := "ConfigMap " + Namespace + "/" + Name
	m, err := s.client.CoreV1().ConfigMaps(Namespace).Get(ctx, Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.last = nil
		return Ledger{}, "", nil
	case err != nil:
		return Ledger{}, "", fmt.Errorf("read %s: %w", what, err)
	case m.ResourceVersion == "":
		return Ledger{}, "", fmt.Errorf("read %s: an object without resourceVersion; check what answers for the API server", what)
	}
	s.last = m
	next := "correct it, or stop all replicas, delete it and start them again"
	l, err := parseLedger(m.Data[ledgerKey])
	if err != nil {
		return Ledger{}, "", fmt.Errorf("%s: %w; %s", what, err, next)
	}
	if text := m.Data[sinceKey]; text != "" {
		if l.Since, err = time.Parse(time.RFC3339, text); err != nil {
			return Ledger{}, "", fmt.Errorf("%s: %s: %w; %s", what, sinceKey, err, next)
		}
	}
	return l, m.ResourceVersion, nil
}

func (s *server) save(ctx context.Context, l Ledger, version string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ledgers := s.client.CoreV1().ConfigMaps(Namespace)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name}}
	if version != "" {
		if s.last == nil || s.last.ResourceVersion != version {
			return errChanged // the ledger was read again in between
		}
		m = s.last.DeepCopy()
	}
	data := map[string]string{}
	maps.Copy(data, m.Data)
	data[ledgerKey], data[sinceKey] = l.String(), l.Since.UTC().Format(time.RFC3339)
	m.Data = data
	var err error
	if version == "" {
		_, err = ledgers.Create(ctx, m, metav1.CreateOptions{FieldManager: FieldManager})
	} else {
		_, err = ledgers.Update(ctx, m, metav1.UpdateOptions{FieldManager: FieldManager})
	}
	switch code := codeOf(err); {
	case code == http.StatusConflict, code == http.StatusNotFound && version != "":
		return errChanged
	case err != nil:
		return fmt.Errorf("write ConfigMap %s/%s: %w", Namespace, Name, err)
	}
	return nil
}

// nodePage reads a part of all Nodes. The time is that of one part: 20,000 Nodes have forty, and a busy API server takes
// seconds for each.
func nodePage(ctx context.Context, c kubernetes.Interface, options metav1.ListOptions) (*corev1.NodeList, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	page, err := c.CoreV1().Nodes().List(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	return page, nil
}

// nodes lists without a resource version: the API server then answers with the present state, not with its
// cache. All pages show one moment. If the server forgets that moment before the last page (status 410), the
// list has failed.
func (s *server) nodes(ctx context.Context) ([]Node, string, error) {
	var nodes []Node
	options := metav1.ListOptions{Limit: pageSize}
	for version := ""; ; {
		page, err := nodePage(ctx, s.client, options)
		if err != nil {
			return nil, "", err
		}
		if v := page.ResourceVersion; v == "" || version != "" && v != version {
			return nil, "", fmt.Errorf("list Nodes: pages of the versions %q and %q; nothing is given from that", version, v)
		}
		version = page.ResourceVersion
		for i := range page.Items {
			n := readNode(&page.Items[i])
			if n.Name == "" || n.UID == "" { // other fields may be missing too
				return nil, "", fmt.Errorf("list Nodes: Node %q without uid; check what answers for the API server", n.Name)
			}
			nodes = append(nodes, n)
		}
		if page.Continue == "" {
			return nodes, version, nil
		}
		options.Continue = page.Continue
	}
}

// services reads the Service CIDRs. Before Kubernetes 1.33 no object names them: the address of the Service
// kubernetes then stands for them.
func (s *server) services(ctx context.Context) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var texts []string
	list, err := s.client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, c := range list.Items {
			texts = append(texts, c.Spec.CIDRs...)
		}
	} else if apierrors.IsNotFound(err) {
		var one *corev1.Service
		if one, err = s.client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{}); err == nil {
			texts = one.Spec.ClusterIPs
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read Service CIDRs: %w", err)
	}
	var out []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out, nil
}

// grant patches the Node only if the promise names its UID and it has no pod CIDRs yet: RFC 6902's test of a
// member against null succeeds where the API server has no such member.
func (s *server) grant(ctx context.Context, p Promise) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch, err := json.Marshal([]operation{
		{"test", "/metadata/uid", p.UID},
		{"test", "/spec/podCIDRs", nil},
		{"test", "/spec/podCIDR", nil},
		{"add", "/spec/podCIDRs", p.PodCIDRs},
		{"add", "/spec/podCIDR", p.PodCIDRs[0]},
	})
	if err != nil {
		return fmt.Errorf("patch Node %s: %w", p.Node, err)
	}
	nodes := s.client.CoreV1().Nodes()
	_, err = nodes.Patch(ctx, p.Node, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
	switch codeOf(err) {
	case http.StatusNotFound, http.StatusConflict:
		return errRefused
	case http.StatusUnprocessableEntity: // a test failed, or the Node would not be valid
		n, readErr := nodes.Get(ctx, p.Node, metav1.GetOptions{})
		if apierrors.IsNotFound(readErr) || readErr == nil && (string(n.UID) != p.UID || readNode(n).hasPodCIDRs()) {
			return errRefused
		}
		return fmt.Errorf("patch Node %s: %w: %w", p.Node, errDenied, err)
	case http.StatusBadRequest, http.StatusForbidden:
		return fmt.Errorf("patch Node %s: %w: %w", p.Node, errDenied, err)
	}
	if err != nil {
		return fmt.Errorf("patch Node %s: %w", p.Node, err)
	}
	return nil
}

func (s *server) wait(ctx context.Context, since version, matters func(Node) bool) error {
	ctx, cancel := context.WithTimeout(ctx, since.quiet)
	defer cancel()
	if since.pools != "" {
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() {
			if s.poolChanged(ctx, since.pools, since.known) {
				cancel()
			}
		})
	}
	seconds := int64(since.quiet / time.Second)
	w, err := s.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{ResourceVersion: since.of, TimeoutSeconds: &seconds})
	if err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-w.ResultChan():
			n, ok := event.Object.(*corev1.Node)
			if !open || !ok || event.Type == watch.Deleted {
				return nil // the watch ended, a Node is gone, or (as an error) the version is forgotten
			}
			if matters(readNode(n)) {
				return nil
			}
		}
	}
}

func (s *server) tell(ctx context.Context, n Node, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	const most = 1024 // the API server's bound for a message
	if len(message) > most {
		message = message[:most-3] + "..."
	}
	now := metav1.Now()
	_, err := s.client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: n.Name + ".", Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.UID)},
		Type:           corev1.EventTypeWarning, Reason: reason, Message: message,
		Source: corev1.EventSource{Component: FieldManager}, ReportingController: FieldManager,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{FieldManager: FieldManager})
	return err
}

// readNode reads the fields of a Node object that are used.
func readNode(o *corev1.Node) Node {
	n := Node{Name: o.Name, UID: string(o.UID), Labels: o.Labels, Created: o.CreationTimestamp.Time, Leaving: o.DeletionTimestamp != nil}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		c, err := netip.ParsePrefix(text)
		if err != nil || c.Addr().Is4In6() {
			n.Unread = text
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, c.Masked())
	}
	for _, a := range o.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) {
			n.Addresses = append(n.Addresses, ip.Unmap())
		}
	}
	for _, f := range o.ManagedFields {
		if n.hasPodCIDRs() && f.FieldsV1 != nil && ownsPodCIDRs(f.FieldsV1) {
			n.SetBy = f.Manager
		}
	}
	return n
}

// ownsPodCIDRs reports whether the fields contain a Node's pod CIDRs.
func ownsPodCIDRs(fields *metav1.FieldsV1) bool {
	var f struct {
		Spec map[string]json.RawMessage `json:"f:spec"`
	}
	return json.Unmarshal(fields.GetRawBytes(), &f) == nil && (f.Spec["f:podCIDRs"] != nil || f.Spec["f:podCIDR"] != nil)
}
