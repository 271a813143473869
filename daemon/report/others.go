package report

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// unheard is the reason of an entry whose node the API server no longer hears.
const unheard cluster.Reason = "nodeNotHeard"

const (
	unknown = "Unknown"

	// maxAnswer bounds how much of a Node is read, in bytes. etcd accepts 1.5 MB.
	maxAnswer = 4 << 20
)

// applied holds the fields that we read of the resource in the API server's answer.
type applied struct {
	Metadata struct {
		UID           string
		ManagedFields []struct {
			Manager, Subresource string
			Time                 time.Time
		}
	}
	Spec struct {
		LocalSpeakers []string                // of a BGPPeer
		BGPSpeakers   []struct{ Name string } // of a BGPClusterConfig
	}
	Status struct {
		Speakers []json.RawMessage
	}
}

// life is what the API server knows about a node's life.
type life struct {
	uid     string    // of the Node; "": the API server did not say
	gone    bool      // there is no such Node
	silent  time.Time // since when its kubelet is not heard; zero: it is heard
	comment string
	maxPods int // of its kubelet; 0: it did not say
}

// amendment holds the right entries of another node that cannot write them itself.
type amendment struct {
	node    string
	entries []speakerStatus // none: the entries are removed
}

// others returns the nodes besides self that have entries, with those entries.
func (a applied) others(self string) map[string][]json.RawMessage {
	all := map[string][]json.RawMessage{}
	for _, text := range a.Status.Speakers {
		var e struct{ Node string }
		if json.Unmarshal(text, &e) == nil && e.Node != self {
			all[e.Node] = append(all[e.Node], text)
		}
	}
	return all
}

// named reports whether the spec names the node as a speaker.
func (a applied) named(node string) bool {
	return slices.Contains(a.Spec.LocalSpeakers, node) ||
		slices.ContainsFunc(a.Spec.BGPSpeakers, func(s struct{ Name string }) bool { return s.Name == node })
}

// amend decides about another node's entries:
//
//	the spec does not name it, or there is no such Node      they are removed
//	it was not heard since, and has said nothing since       they say Unknown
//	else                                                     they stay
//
// The second row holds once: a node that reports again that its session is up is believed, though its kubelet
// is dead.
func (a applied) amend(node string, entries []json.RawMessage, l life) (amendment, bool) {
	if !a.named(node) || l.gone {
		return amendment{node: node}, true
	}
	if l.silent.IsZero() || a.spoke(node).After(l.silent) {
		return amendment{}, false
	}
	to := amendment{node: node}
	for _, text := range entries {
		var e speakerStatus
		if json.Unmarshal(text, &e) != nil {
			return amendment{}, false // not written by this program
		}
		e.State, e.Since, e.Reason = unknown, l.silent, unheard
		e.Message = fmt.Sprintf("the API server has not heard from %s since then: %s; the session may stand, ask the switch; check the node or its uplink", node, l.comment)
		e.Conditions = []condition{{Type: established, Status: unknown, Reason: unheard, Message: e.Message, LastTransitionTime: l.silent}}
		to.entries = append(to.entries, e)
	}
	return to, true
}

// spoke returns when the node's entries last changed.
func (a applied) spoke(node string) time.Time {
	for _, f := range a.Metadata.ManagedFields {
		if f.Manager == manager(node) && f.Subresource == "status" {
			return f.Time
		}
	}
	return time.Time{}
}

// amendOthers corrects the entries of speakers that cannot do so themselves. Any live speaker may do it in
// their name, and two speakers that do it at once write the same. ask returns the life of a Node.
func (w *reportWriter) amendOthers(ctx context.Context, ref string, a applied, ask func(node string) (life, error)) error {
	for node, entries := range a.others(w.node) {
		var l life
		if a.named(node) {
			var err error
			if l, err = ask(node); err != nil {
				return err
			}
		}
		to, ok := a.amend(node, entries, l)
		if !ok {
			continue
		}
		if _, err := w.applyStatus(ctx, ref, manager(node), to.entries); away(err) {
			return err
		}
	}
	return nil
}

// alive is the answer while no Node is asked for.
func alive(string) (life, error) { return life{}, nil }

// life asks the API server for a Node.
func (w *reportWriter) life(ctx context.Context, node string) (life, error) {
	var list struct {
		Kind  string
		Items []struct {
			Metadata struct{ UID string }
			Status   struct {
				Capacity   struct{ Pods string } // the kubelet's maxPods
				Conditions []struct {
					Type, Status, Reason string
					LastTransitionTime   time.Time
				}
			}
		}
	}
	if err := w.list(ctx, "Node", node, &list); away(err) {
		return life{}, err
	} else if err != nil {
		return life{}, nil // a refusal says nothing about the Node
	}
	if list.Kind != "NodeList" {
		return life{}, fmt.Errorf("read Node %s: the answer is not from an API server: kind %q", node, list.Kind)
	}
	if len(list.Items) == 0 {
		return life{gone: true}, nil
	}
	l := life{uid: list.Items[0].Metadata.UID}
	l.maxPods, _ = strconv.Atoi(list.Items[0].Status.Capacity.Pods) // "": a kubelet has not said it yet
	for _, c := range list.Items[0].Status.Conditions {
		if c.Type == "Ready" && c.Status == unknown {
			l.silent, l.comment = c.LastTransitionTime, c.Reason
		}
	}
	return l, nil
}
