package report

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func TestAmend(t *testing.T) {
	entry, err := json.Marshal(up("BGPPeer/a", 3).status("n2"))
	if err != nil {
		t.Fatal(err)
	}
	resource := func(manager string, spoke time.Time, speakers ...string) applied {
		var a applied
		mustUnmarshal(t, `{"metadata":{"managedFields":[{"manager":"kubectl","subresource":"status","time":"2030-01-01T00:00:00Z"},
			{"manager":"`+manager+`","subresource":"status","time":"`+spoke.Format(time.RFC3339)+`"}]}}`, &a)
		a.Spec.LocalSpeakers = speakers
		return a
	}
	hour := since.Add(time.Hour)
	for name, test := range map[string]struct {
		a       applied
		entries string
		life    life
		want    string // "": they stay
	}{
		"speaks":                         {resource("edgewayd-n2", since, "n1", "n2"), string(entry), life{}, ""},
		"is no speaker any more":         {resource("edgewayd-n2", since, "n1"), string(entry), life{}, "none"},
		"is no speaker, and wrote junk":  {resource("edgewayd-n2", since, "n1"), `{"node":"n2","address":"x"}`, life{}, "none"},
		"has no Node":                    {resource("edgewayd-n2", since, "n1", "n2"), string(entry), life{gone: true}, "none"},
		"is silent":                      {resource("edgewayd-n2", since, "n1", "n2"), string(entry), life{silent: hour, comment: "NodeStatusUnknown"}, "Unknown nodeNotHeard"},
		"is silent, of an unknown time":  {resource("edgewayd-n3", since, "n1", "n2"), string(entry), life{silent: hour}, "Unknown nodeNotHeard"},
		"has a dead kubelet, and speaks": {resource("edgewayd-n2", hour.Add(time.Second), "n1", "n2"), string(entry), life{silent: hour}, ""},
		"is silent, and wrote junk":      {resource("edgewayd-n2", since, "n1", "n2"), `{"node":"n2","address":"x"}`, life{silent: hour}, ""},
	} {
		got, change := "", false
		to, change := test.a.amend("n2", []json.RawMessage{json.RawMessage(test.entries)}, test.life)
		switch {
		case change && len(to.entries) == 0:
			got = "none"
		case change:
			e := to.entries[0]
			got = e.State + " " + string(e.Reason)
			if e.Conditions[0].Status != "Unknown" || !e.Since.Equal(hour) || e.Prefixes != 3 || !strings.Contains(e.Message, "n2") {
				t.Errorf("%s: %+v", name, e)
			}
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// A speaker that dies is not Established for ever: those that live say so in its place. When it
// is back, it is right about itself; and when its Node is deleted, its entries go.
func TestAPIServerDeadSpeaker(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	withSpeakers(t, cp, "n1", "n2")
	ready := func(node, status string) {
		t.Helper()
		kubectl(t, cp, "patch", "node", node, "--subresource=status", "-p",
			`{"status":{"conditions":[{"type":"Ready","status":"`+status+`","reason":"NodeStatusUnknown","message":"Kubelet stopped posting node status.","lastTransitionTime":"`+time.Now().UTC().Add(2*time.Second).Format(time.RFC3339)+`"}]}}`)
	}
	for _, node := range []string{"n1", "n2"} {
		ready(node, "True")
	}
	wide := func() []string {
		out := kubectl(t, cp, "get", "bgppeer", "peer", "-o", `jsonpath={range .status.speakers[*]}{.node} {.state} {.conditions[0].status}{"\n"}{end}{range .status.established[*]}up {@}{"\n"}{end}`)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		slices.Sort(lines) // their order is that of the first writes
		return lines
	}
	p := quickReports
	p.check, p.others = 100*time.Millisecond, 100*time.Millisecond
	reportingTo(t, cp.AdminKubeconfig(), "n1", p).Sync([]Session{up("BGPPeer/peer", 3)})
	live := func() (die func()) {
		ctx, stop := context.WithCancel(context.Background())
		n2 := New(cluster.KubernetesOptions{Kubeconfig: cp.AdminKubeconfig(), Node: "n2", UserAgent: "edgewayd/test"})
		n2.pace = p
		n2.Sync([]Session{up("BGPPeer/peer", 3)})
		dead := make(chan error, 1)
		go func() { dead <- n2.Run(ctx) }()
		return func() {
			stop()
			if err := <-dead; err != nil {
				t.Error(err)
			}
		}
	}
	die := live()
	both := []string{"n1 Established True", "n2 Established True", "up n1", "up n2"}
	eventually(t, "both", both, wide)
	die()
	ready("n2", "Unknown")
	eventually(t, "n2 is not heard", []string{"n1 Established True", "n2 Unknown Unknown", "up n1"}, wide)
	die = live()
	eventually(t, "n2 is back, its kubelet is not", both, wide)
	die()
	kubectl(t, cp, "delete", "node", "n2")
	eventually(t, "n2 is no Node", []string{"n1 Established True", "up n1"}, wide)
}

func mustUnmarshal(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}
