package daemon

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// reasonSettles is how long a reason must be old before another one is worth a line.
	reasonSettles = 10 * time.Second
	// repeatLeast and repeatMost bound the wait before a failure that stays is said again. An
	// API server forgets an event after an hour (--event-ttl): one that stays stays in sight.
	repeatLeast = time.Minute
	repeatMost  = 50 * time.Minute
	// healthyAfter is how long a session must stand before its next failure is news again.
	healthyAfter = 10 * time.Minute
)

// announcer says when a session comes up (Established) and why it does not (FailedEstablish),
// in the words of the resource's events, and with back-off: a switch that flaps all day does not
// fill the log. It says so in the log, and where there is an API server to the reporter.
type announcer struct {
	log  *slog.Logger
	tell func(cluster.SessionReport) // nil: nobody
	said map[sessionKey]announcement
}

// sessionKey is a session as one resource asks for it.
type sessionKey struct {
	resource string
	peer     netip.AddrPort
}

func keyOf(s cluster.SessionReport) sessionKey {
	return sessionKey{s.Resource, netip.AddrPortFrom(s.Peer, s.Port)}
}

type announcement struct {
	reason string // "" is Established
	at     time.Time
	wait   time.Duration // before the same failure is said again
}

// announce looks at all sessions; now is the time of the look.
func (a *announcer) announce(sessions []cluster.SessionReport, now time.Time) {
	still := map[sessionKey]announcement{}
	tell := a.tell
	if tell == nil {
		tell = func(cluster.SessionReport) {}
	}
	for _, s := range sessions {
		key := keyOf(s)
		last, known := a.said[key]
		still[key] = last
		attrs := []any{"peer", s.Peer, "asn", s.PeerASN, "resource", s.Resource}
		switch {
		case s.State == "Established" && (!known || last.reason != ""):
			a.log.Info("Established", append(attrs, "prefixes", s.Advertised, "gracefulRestart", s.RestartTime)...)
			tell(s)
			still[key] = announcement{at: now, wait: last.wait}
		case s.State == "Established":
			if now.Sub(s.Since) > healthyAfter {
				last.wait = 0
				still[key] = last
			}
		case s.Reason == "" || s.Reason == "connecting":
			if !known {
				delete(still, key)
			}
		case !known || now.Sub(last.at) >= max(last.wait, reasonSettles) || s.Reason != last.reason && last.wait < repeatMost && now.Sub(last.at) >= reasonSettles:
			a.log.Warn("FailedEstablish", append(attrs, "state", s.State, "reason", s.Reason, "next", s.Message)...)
			tell(s)
			still[key] = announcement{reason: s.Reason, at: now, wait: min(max(2*last.wait, repeatLeast), repeatMost)}
		}
	}
	a.said = still
}
