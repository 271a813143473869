package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	// requestTimeout is long enough for an API server that makes requests wait for their turn.
	requestTimeout = 30 * time.Second
	// listTimeout is for a list of all Nodes: 5,000 are some 50 MB.
	listTimeout = 2 * time.Minute
)

// Keys of the ledger's ConfigMap.
const (
	ledgerKey = "ledger"
	sinceKey  = "since"
)

// server is the API server. One goroutine uses it.
type server struct {
	client kubernetes.Interface
	last   *corev1.ConfigMap // the ledger's object as it was read last; nil: there was none
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
	maps := s.client.CoreV1().ConfigMaps(Namespace)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: Name, Namespace: Namespace}}
	if s.last != nil {
		m = s.last.DeepCopy()
	}
	m.ResourceVersion = version
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[ledgerKey], m.Data[sinceKey] = l.String(), l.Since.UTC().Format(time.RFC3339)
	var err error
	if version == "" {
		_, err = maps.Create(ctx, m, metav1.CreateOptions{FieldManager: FieldManager})
	} else {
		_, err = maps.Update(ctx, m, metav1.UpdateOptions{FieldManager: FieldManager})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), version != "" && apierrors.IsNotFound(err):
		return errChanged
	case err != nil:
		return fmt.Errorf("write ConfigMap %s/%s: %w", Namespace, Name, err)
	}
	return nil
}

// nodes lists without a resource version: the API server then answers with what is true now, not
// with what its cache had. A list in pages is of one moment too, but here one page does.
func (s *server) nodes(ctx context.Context) ([]Node, string, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, "", fmt.Errorf("list Nodes: %w", err)
	}
	if list.Continue != "" { // we asked for no pages: somebody in between made some
		return nil, "", fmt.Errorf("list Nodes: the answer is a part of the list; nothing is given from that")
	}
	nodes := make([]Node, 0, len(list.Items))
	for i := range list.Items {
		nodes = append(nodes, readNode(&list.Items[i]))
	}
	return nodes, list.ResourceVersion, nil
}

// services reads the Service CIDRs. Before Kubernetes 1.33 no object names them: then the address
// of the Service kubernetes stands for them.
func (s *server) services(ctx context.Context) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var texts []string
	list, err := s.client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err):
		one, err := s.client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read Service default/kubernetes: %w", err)
		}
		if err == nil {
			texts = one.Spec.ClusterIPs
		}
	case err != nil:
		return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
	default:
		for _, c := range list.Items {
			texts = append(texts, c.Spec.CIDRs...)
		}
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

// grant patches the Node only if it is the one that was promised something and has nothing yet:
// RFC 6902's test of a member against null succeeds where the API server has no such member.
func (s *server) grant(ctx context.Context, p Promise) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	body, err := json.Marshal([]operation{
		{"test", "/metadata/uid", p.UID},
		{"test", "/spec/podCIDRs", nil},
		{"test", "/spec/podCIDR", nil},
		{"add", "/spec/podCIDRs", p.PodCIDRs},
		{"add", "/spec/podCIDR", p.PodCIDRs[0]},
	})
	if err != nil {
		return err
	}
	nodes := s.client.CoreV1().Nodes()
	_, err = nodes.Patch(ctx, p.Node, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	var status *apierrors.StatusError
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return errRefused
	case !errors.As(err, &status):
		return fmt.Errorf("patch Node %s: %w", p.Node, err)
	}
	switch status.ErrStatus.Code {
	case http.StatusUnprocessableEntity: // a test that failed, or a Node that would not be valid
		n, readErr := nodes.Get(ctx, p.Node, metav1.GetOptions{})
		if apierrors.IsNotFound(readErr) || readErr == nil && (string(n.UID) != p.UID || readNode(n).hasPodCIDRs()) {
			return errRefused
		}
	case http.StatusBadRequest, http.StatusForbidden:
	default:
		return fmt.Errorf("patch Node %s: %w", p.Node, err)
	}
	return fmt.Errorf("patch Node %s: %w: %w", p.Node, errDenied, err)
}

func (s *server) wait(ctx context.Context, since version, matters func(Node) bool) error {
	seconds := int64(since.quiet / time.Second)
	ctx, cancel := context.WithTimeout(ctx, since.quiet)
	defer cancel()
	w, err := s.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{ResourceVersion: since.of, TimeoutSeconds: &seconds})
	if err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		switch event.Type {
		case watch.Deleted:
			return nil
		case watch.Error:
			return fmt.Errorf("watch Nodes: %w", apierrors.FromObject(event.Object))
		case watch.Added, watch.Modified:
			if n, ok := event.Object.(*corev1.Node); ok && matters(readNode(n)) {
				return nil
			}
		}
	}
	return nil
}

func (s *server) tell(ctx context.Context, n Node, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	const most = 1024 // the API server's bound of a message
	if len(message) > most {
		message = message[:most-3] + "..."
	}
	now := metav1.Now()
	_, err := s.client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{GenerateName: n.Name + ".", Namespace: metav1.NamespaceDefault},
		InvolvedObject:      corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.UID)},
		Type:                corev1.EventTypeWarning,
		Reason:              reason,
		Message:             message,
		Source:              corev1.EventSource{Component: "edgewayd"},
		ReportingController: "edgewayd",
		FirstTimestamp:      now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{FieldManager: FieldManager})
	return err
}

// readNode reads what is used of a Node.
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
	if n.hasPodCIDRs() {
		n.SetBy = setBy(o)
	}
	return n
}

// setBy returns the field manager that owns the Node's pod CIDRs.
func setBy(o *corev1.Node) string {
	for _, m := range o.ManagedFields {
		if m.FieldsV1 == nil {
			continue
		}
		var owned struct {
			Spec map[string]json.RawMessage `json:"f:spec"`
		}
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &owned) == nil && (owned.Spec["f:podCIDRs"] != nil || owned.Spec["f:podCIDR"] != nil) {
			return m.Manager
		}
	}
	return ""
}
