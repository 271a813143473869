package report

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func TestSessionEvent(t *testing.T) {
	named := up("BGPClusterConfig/bgp", 2)
	named.PeerName, named.Peer, named.Port, named.RestartTime = "switch-1", netip.MustParseAddr("fd00::1"), 1179, 0
	for _, test := range []struct {
		session Session
		want    string
	}{
		{up("BGPPeer/peer", 3), "Normal Established: node-1 has a BGP session with switch 10.0.0.1, AS 65001: 3 prefixes advertised, graceful restart 600 s"},
		{named, "Normal Established: node-1 has a BGP session with switch switch-1 fd00::1 port 1179, AS 65001: 2 prefixes advertised, no graceful restart: switch it on there"},
		{down("BGPPeer/peer", "refused", "10.0.0.1:179 refuses the connection: start BGP on the switch"),
			"Warning FailedEstablish: node-1 has no BGP session with switch 10.0.0.1, AS 65001 (refused): 10.0.0.1:179 refuses the connection: start BGP on the switch"},
		{down("BGPPeer/peer", "", ""), "Warning FailedEstablish: node-1 has no BGP session with switch 10.0.0.1, AS 65001 (connecting)"},
	} {
		e := test.session.Event("node-1")
		if got := string(e.Type) + " " + e.Reason + ": " + e.Message; got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Repeated events are counted in one object; another reason is another object.
func TestEventsAreCounted(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	r := reporting(t, f, "n1", quickReports)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	failed, came := down("BGPPeer/a", "refused", "start BGP").Event("n1"), up("BGPPeer/a", 1).Event("n1")
	for _, step := range []struct {
		event Event
		want  []string
	}{
		{failed, []string{"FailedEstablish x1"}},
		{failed, []string{"FailedEstablish x2"}},
		{came, []string{"Established x1", "FailedEstablish x2"}},
		{failed, []string{"Established x1", "FailedEstablish x3"}},
	} {
		r.Event(step.event)
		eventually(t, step.event.Reason, step.want, f.told)
	}
	for range 1000 {
		r.Event(failed)
	}
	before := f.count()
	eventually(t, "a flood", []string{"Established x1", "FailedEstablish x1003"}, f.told)
	if n := f.count() - before; n > 3 {
		t.Errorf("%d requests for 1000 events, want one or two", n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Namespace != "default" || e.InvolvedObject.Namespace != "" || e.InvolvedObject.UID != "uid-a" || e.Source.Component != "edgewayd" || e.Source.Host != "n1" {
			t.Errorf("event %+v: kubectl describe would not list it", e)
		}
	}
}

// Events of a session that no resource asks for are dropped. Events over the bound are dropped too.
func TestEventsAreBounded(t *testing.T) {
	f := newFakeAPI(t)
	r := newReporter("n1", f.connect(t), quickReports)
	for i := range 100_000 {
		e := up("BGPPeer/a", 1).Event("n1")
		e.About = fmt.Sprint(i)
		r.Event(e)
	}
	if len(r.pending) != maxPendingEvents {
		t.Errorf("%d events wait, want %d", len(r.pending), maxPendingEvents)
	}
	r.Sync(nil)
	if len(r.pending) != 0 {
		t.Errorf("%d events wait of sessions that are not wanted", len(r.pending))
	}
}

func TestEventRecord(t *testing.T) {
	at := func(minutes int) time.Time { return since.Add(time.Duration(minutes) * time.Minute) }
	p := func(minutes int) pendingEvent {
		return pendingEvent{}.then(Event{Reason: "FailedEstablish"}, at(minutes))
	}
	r := eventRecord{}.after(p(0), "u")
	if r = r.after(p(50), "u"); r.count != 2 || !r.first.Equal(at(0)) || !r.last.Equal(at(50)) {
		t.Errorf("after 50 minutes %+v, want 2 since the first", r)
	}
	if again := r.after(p(51), "new"); again.count != 1 || !again.first.Equal(at(51)) {
		t.Errorf("of a recreated object %+v, want 1", again)
	}
	if r = r.after(p(120), "u"); r.count != 1 || !r.first.Equal(at(120)) {
		t.Errorf("after the API server dropped it %+v, want 1", r)
	}
}

// A pool without a free address is an event of the Node, once, and again when it is full again much later.
func TestFullPoolIsAnEventOfTheNode(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	p := quickReports
	p.settle = time.Millisecond
	r := reporting(t, f, "n1", p)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	full := cluster.Problem{Object: "pool", Reason: cluster.PoolFull, Want: "an address for the next pod", Got: "none", Next: "delete pods of this node"}
	problems := []cluster.Problem{full,
		{Object: "BGPPeer/a", Reason: cluster.SelectsNothing, Next: "label the Nodes"},
		{Object: "Node/n2", Reason: cluster.SilentNode, Next: "check the node"},
		{Object: "Node/n3", Reason: cluster.Overlap, Next: "n3 tells that itself"},
		{Object: "BGPPeer/a", Reason: cluster.SingleSpeaker, Next: "name a second one"},
		{Object: "BGPPeer/b", Reason: cluster.SelectsNothing, Next: "its speakers tell that"},
		{Object: "API server https://10.0.0.1", Reason: cluster.NotInstalled, Next: "cannot be told"},
	}
	tell := func() []string {
		r.Tell(problems)
		return f.told()
	}
	want := []string{"PoolFull x1", "SelectsNothing x1", "SilentNode x1", "SingleSpeaker x1"}
	eventually(t, "the problems", want, tell)
	for range 100 {
		tell()
	}
	r.Event(up("BGPPeer/a", 1).Event("n1"))
	eventually(t, "not again", append([]string{"Established x1"}, want...), tell)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		object := e.InvolvedObject
		if e.Reason == "PoolFull" && (object.Kind != "Node" || object.Name != "n1" || object.UID != "n1" || object.APIVersion != "v1" || e.Message != full.String()) ||
			(e.Type == "Normal") != (e.Reason == "Established" || e.Reason == "SingleSpeaker") ||
			e.Reason == "SilentNode" && object.Name != "n2" || e.Reason == "SelectsNothing" && object.UID != "uid-a" {
			t.Errorf("event %+v: kubectl describe would not list it", e)
		}
	}
}
