package daemon

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

func TestAnnounce(t *testing.T) {
	var log bytes.Buffer
	told := 0
	a := &announcer{log: slog.New(slog.NewTextHandler(&log, nil)), tell: func(report.Session) { told++ }}
	now := time.Unix(1e9, 0)
	var since time.Time
	was := ""
	lines := func(after time.Duration, state string, reason cluster.Reason) string {
		now = now.Add(after)
		log.Reset()
		if state != was {
			since, was = now, state
		}
		a.announce([]report.Session{{Resource: "BGPPeer/peer", Peer: netip.MustParseAddr("10.0.0.1"), PeerASN: 65001,
			State: state, Since: since, Reason: reason, Message: "start BGP on the switch"}}, now)
		var words []string
		for line := range strings.Lines(log.String()) {
			for _, w := range strings.Fields(line) {
				if v, ok := strings.CutPrefix(w, "msg="); ok {
					words = append(words, v)
				}
			}
		}
		if told != strings.Count(log.String(), "\n") {
			t.Errorf("%d events for the lines %q", told, log.String())
		}
		told = 0
		return strings.Join(words, " ")
	}
	for i, step := range []struct {
		after  time.Duration
		state  string
		reason cluster.Reason
		want   string
	}{
		{0, "Active", "connecting", ""},
		{time.Second, "Active", "refused", "FailedEstablish"},
		{time.Second, "Active", "refused", ""},
		{time.Second, "Active", "timeout", ""},
		{20 * time.Second, "Active", "timeout", "FailedEstablish"},
		{time.Minute, "Active", "timeout", ""},
		{time.Minute, "Active", "timeout", "FailedEstablish"},
		{time.Second, "Established", "", "Established"},
		{time.Second, "Established", "", ""},
		{time.Hour, "Established", "", ""},
		{time.Second, "Active", "connectionLost", "FailedEstablish"},
		{time.Second, "Established", "", "Established"},
	} {
		if got := lines(step.after, step.state, step.reason); got != step.want {
			t.Errorf("step %d (%s %s): got %q, want %q", i, step.state, step.reason, got, step.want)
		}
	}
	n := 0
	for range 24 * 60 * 12 { // a day of a session that goes up and down every five seconds
		if lines(5*time.Second/2, "Active", "connectionLost") != "" {
			n++
		}
		if lines(5*time.Second/2, "Established", "") != "" {
			n++
		}
	}
	if n > 200 {
		t.Errorf("%d lines for a day of flapping", n)
	}
}
