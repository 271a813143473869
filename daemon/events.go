package daemon

import (
	"log/slog"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
)

const (
	// reasonSettles is how long a reason must be old before another one is worth a line.
	reasonSettles = 10 * time.Second
	// repeatLeast and repeatMost bound the wait before a failure that stays is said again.
	repeatLeast = time.Minute
	repeatMost  = time.Hour
	// healthyAfter is how long a session must stand before its next failure is news again.
	healthyAfter = 10 * time.Minute
)

// announcer says when a session comes up (Established) and why it does not (FailedEstablish),
// in the words of the resource's events, and with back-off: a switch that flaps all day does not
// fill the log.
type announcer struct {
	log  *slog.Logger
	said map[bgp.Key]announcement
}

type announcement struct {
	reason string // "" is Established
	at     time.Time
	wait   time.Duration // before the same failure is said again
}

// announce looks at all sessions; now is the time of the look.
func (a *announcer) announce(sessions []bgp.Status, now time.Time) {
	still := map[bgp.Key]announcement{}
	for _, s := range sessions {
		key := s.Peer.Key()
		last, known := a.said[key]
		still[key] = last
		attrs := []any{"peer", s.Peer.Address, "asn", s.Peer.ASN, "resource", s.Peer.Name}
		switch {
		case s.State == "Established" && (!known || last.reason != ""):
			a.log.Info("Established", append(attrs, "prefixes", len(s.Advertised), "gracefulRestart", s.Restart)...)
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
			a.log.Warn("FailedEstablish", append(attrs, "state", s.State, "reason", s.Reason, "next", s.Detail)...)
			still[key] = announcement{reason: s.Reason, at: now, wait: min(max(2*last.wait, repeatLeast), repeatMost)}
		}
	}
	a.said = still
}
