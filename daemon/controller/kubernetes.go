package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	// requestTimeout is long enough for an API server that makes requests wait for their turn.
	requestTimeout = 30 * time.Second
	// listTimeout is for a list of all Nodes: 5,000 are some 50 MB.
	listTimeout = 2 * time.Minute
	// pageSize is how many Nodes the API server puts in one answer.
	pageSize = 500
)

// Keys of the ledger's ConfigMap.
const (
	ledgerKey = "ledger"
	sinceKey  = "since"
)

const (
	ledgersPath = "/api/v1/namespaces/" + Namespace + "/configmaps"
	ledgerPath  = ledgersPath + "/" + Name
	nodesPath   = "/api/v1/nodes"
	eventsPath  = "/api/v1/namespaces/default/events"
)

// manager has the API server note who writes.
var manager = url.Values{"fieldManager": {FieldManager}}

// server is the cluster's objects, at the API server. One goroutine uses it.
type server struct {
	client *client
	last   *configMap // the ledger's object as it was read last; nil: there was none
}

type configMap struct {
	stored
	Data map[string]string `json:"data,omitempty"`
}

func (s *server) ledger(ctx context.Context) (Ledger, string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	what := "ConfigMap " + Namespace + "/" + Name
	var m configMap
	err := s.client.do(ctx, request{method: http.MethodGet, path: ledgerPath}, &m)
	switch {
	case codeOf(err) == http.StatusNotFound:
		s.last = nil
		return Ledger{}, "", nil
	case err != nil:
		return Ledger{}, "", fmt.Errorf("read %s: %w", what, err)
	case m.version() == "":
		return Ledger{}, "", fmt.Errorf("read %s: an object without resourceVersion; see what answers for the API server", what)
	}
	s.last = &m
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
	return l, m.version(), nil
}

func (s *server) save(ctx context.Context, l Ledger, version string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m := configMap{stored: newStored("v1", "ConfigMap"), Data: map[string]string{}}
	r := request{method: http.MethodPost, path: ledgersPath, query: manager, body: &m}
	if version != "" {
		if s.last == nil || s.last.version() != version {
			return errChanged // it was read again in between
		}
		m.Metadata = s.last.Metadata
		maps.Copy(m.Data, s.last.Data)
		r.method, r.path = http.MethodPut, ledgerPath
	}
	m.Data[ledgerKey], m.Data[sinceKey] = l.String(), l.Since.UTC().Format(time.RFC3339)
	err := s.client.do(ctx, r, nil)
	switch code := codeOf(err); {
	case code == http.StatusConflict, code == http.StatusNotFound && version != "":
		return errChanged
	case err != nil:
		return fmt.Errorf("write ConfigMap %s/%s: %w", Namespace, Name, err)
	}
	return nil
}

// nodes lists without a resource version: the API server then answers with what is true now, not
// with what its cache had. Its pages are all of one moment; where that moment is forgotten before
// the last page (status 410) the list has failed.
func (s *server) nodes(ctx context.Context) ([]Node, string, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var nodes []Node
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for version := ""; ; {
		var page struct {
			Metadata struct{ ResourceVersion, Continue string }
			Items    []nodeObject
		}
		if err := s.client.do(ctx, request{method: http.MethodGet, path: nodesPath, query: query}, &page); err != nil {
			return nil, "", fmt.Errorf("list Nodes: %w", err)
		}
		if v := page.Metadata.ResourceVersion; v == "" || version != "" && v != version {
			return nil, "", fmt.Errorf("list Nodes: pages of the versions %q and %q; nothing is given from that", version, v)
		}
		version = page.Metadata.ResourceVersion
		for i := range page.Items {
			n := page.Items[i].read()
			if n.Name == "" || n.UID == "" { // what else would be missing?
				return nil, "", fmt.Errorf("list Nodes: Node %q without uid; see what answers for the API server", n.Name)
			}
			nodes = append(nodes, n)
		}
		if page.Metadata.Continue == "" {
			return nodes, version, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

// services reads the Service CIDRs. Before Kubernetes 1.33 no object names them: then the address
// of the Service kubernetes stands for them.
func (s *server) services(ctx context.Context) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list struct {
		Items []struct{ Spec struct{ CIDRs []string } }
	}
	var one struct{ Spec struct{ ClusterIPs []string } }
	err := s.client.do(ctx, request{method: http.MethodGet, path: "/apis/networking.k8s.io/v1/servicecidrs"}, &list)
	if codeOf(err) == http.StatusNotFound {
		err = s.client.do(ctx, request{method: http.MethodGet, path: "/api/v1/namespaces/default/services/kubernetes"}, &one)
		if codeOf(err) == http.StatusNotFound {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read Service CIDRs: %w", err)
	}
	texts := one.Spec.ClusterIPs
	for _, c := range list.Items {
		texts = append(texts, c.Spec.CIDRs...)
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
	path := nodesPath + "/" + url.PathEscape(p.Node)
	err := s.client.do(ctx, request{method: http.MethodPatch, path: path, query: manager, patch: "application/json-patch+json", body: []operation{
		{"test", "/metadata/uid", p.UID},
		{"test", "/spec/podCIDRs", nil},
		{"test", "/spec/podCIDR", nil},
		{"add", "/spec/podCIDRs", p.PodCIDRs},
		{"add", "/spec/podCIDR", p.PodCIDRs[0]},
	}}, nil)
	switch codeOf(err) {
	case http.StatusNotFound, http.StatusConflict:
		return errRefused
	case http.StatusUnprocessableEntity: // a test that failed, or a Node that would not be valid
		var n nodeObject
		readErr := s.client.do(ctx, request{method: http.MethodGet, path: path}, &n)
		if codeOf(readErr) == http.StatusNotFound || readErr == nil && (n.Metadata.UID != p.UID || n.read().hasPodCIDRs()) {
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
	answer, err := s.client.send(ctx, request{method: http.MethodGet, path: nodesPath, query: url.Values{
		"watch": {"1"}, "resourceVersion": {since.of}, "timeoutSeconds": {strconv.Itoa(int(since.quiet / time.Second))}}})
	if err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	defer answer.Body.Close()
	for events := json.NewDecoder(answer.Body); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		switch err := events.Decode(&event); {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("watch Nodes: %w", err)
		}
		switch event.Type {
		case "ADDED", "MODIFIED":
			var n nodeObject
			if err := json.Unmarshal(event.Object, &n); err != nil {
				return fmt.Errorf("watch Nodes: %w", err)
			}
			if matters(n.read()) {
				return nil
			}
		case "BOOKMARK":
		default: // DELETED, or an ERROR: the version is forgotten, say
			return nil
		}
	}
}

func (s *server) tell(ctx context.Context, n Node, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	const most = 1024 // the API server's bound of a message
	if len(message) > most {
		message = message[:most-3] + "..."
	}
	type object = map[string]any
	now := time.Now().UTC().Format(time.RFC3339)
	return s.client.do(ctx, request{method: http.MethodPost, path: eventsPath, query: manager, body: object{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       object{"generateName": n.Name + ".", "namespace": "default"},
		"involvedObject": object{"apiVersion": "v1", "kind": "Node", "name": n.Name, "uid": n.UID},
		"type":           "Warning", "reason": reason, "message": message,
		"source": object{"component": "edgewayd"}, "reportingComponent": "edgewayd",
		"firstTimestamp": now, "lastTimestamp": now, "count": 1,
	}}, nil)
}

// nodeObject is what is read of a Node.
type nodeObject struct {
	Metadata struct {
		Name, UID         string
		Labels            map[string]string
		CreationTimestamp time.Time
		DeletionTimestamp *time.Time
		ManagedFields     []struct {
			Manager  string
			FieldsV1 struct {
				Spec map[string]json.RawMessage `json:"f:spec"`
			}
		}
	}
	Spec struct {
		PodCIDR  string
		PodCIDRs []string
	}
	Status struct {
		Addresses []struct{ Type, Address string }
	}
}

func (o *nodeObject) read() Node {
	m := o.Metadata
	n := Node{Name: m.Name, UID: m.UID, Labels: m.Labels, Created: m.CreationTimestamp, Leaving: m.DeletionTimestamp != nil}
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
		if ip, err := netip.ParseAddr(a.Address); err == nil && (a.Type == "InternalIP" || a.Type == "ExternalIP") {
			n.Addresses = append(n.Addresses, ip.Unmap())
		}
	}
	for _, f := range m.ManagedFields {
		if n.hasPodCIDRs() && (f.FieldsV1.Spec["f:podCIDRs"] != nil || f.FieldsV1.Spec["f:podCIDR"] != nil) {
			n.SetBy = f.Manager
		}
	}
	return n
}
