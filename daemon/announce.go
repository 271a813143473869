package daemon

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

const (
	// reasonSettles is the age from which a reason is stable, so that another reason is worth a line.
	reasonSettles = 10 * time.Second
	// repeatLeast and repeatMost bound the wait before a lasting failure is announced again. An API server
	// forgets an event after an hour (--event-ttl), so a lasting failure keeps its event.
	repeatLeast = time.Minute
	repeatMost  = 50 * time.Minute
	// healthyAfter is how long a session must be up before its next failure is announced at once.
	healthyAfter = 10 * time.Minute
)

// announcer announces that a session is up (Established), or why it is down (FailedEstablish): in the log,
// and to the reporter if there is an API server. It backs off: a switch that flaps all day does not fill the
// log.
type announcer struct {
	log  *slog.Logger
	tell func(report.Session) // nil: there is no reporter
	said map[sessionKey]announcement
}

// sessionKey names a session that one resource asks for.
type sessionKey struct {
	resource string
	peer     netip.AddrPort
}

func keyOf(s report.Session) sessionKey {
	return sessionKey{s.Resource, netip.AddrPortFrom(s.Peer, s.Port)}
}

type announcement struct {
	reason cluster.Reason // "" means Established
	at     time.Time
	wait   time.Duration // before the same failure is announced again
}

// announce announces the changes since the last call. now is the time of the look.
func (a *announcer) announce(sessions []report.Session, now time.Time) {
	still := map[sessionKey]announcement{}
	for _, s := range sessions {
		key := keyOf(s)
		last, known := a.said[key]
		switch {
		case s.Established():
			still[key] = a.up(s, last, known, now)
		case s.Reason == "" || s.Reason == report.Connecting:
			if known {
				still[key] = last
			}
		default:
			still[key] = a.down(s, last, known, now)
		}
	}
	a.said = still
}

func (a *announcer) up(s report.Session, last announcement, known bool, now time.Time) announcement {
	if known && last.reason == "" { // announced already
		if now.Sub(s.Since) > healthyAfter {
			last.wait = 0
		}
		return last
	}
	a.log.Info("Established", "peer", s.Peer, "asn", s.PeerASN, "resource", s.Resource, "prefixes", s.Advertised, "gracefulRestart", s.RestartTime)
	a.pass(s)
	return announcement{at: now, wait: last.wait}
}

func (a *announcer) down(s report.Session, last announcement, known bool, now time.Time) announcement {
	age := now.Sub(last.at)
	repeat := age >= max(last.wait, reasonSettles)
	another := s.Reason != last.reason && age >= reasonSettles && last.wait < repeatMost
	if known && !repeat && !another {
		return last
	}
	a.log.Warn("FailedEstablish", "peer", s.Peer, "asn", s.PeerASN, "resource", s.Resource, "state", s.State, "reason", s.Reason, "next", s.Message)
	a.pass(s)
	return announcement{reason: s.Reason, at: now, wait: min(max(2*last.wait, repeatLeast), repeatMost)}
}

func (a *announcer) pass(s report.Session) {
	if a.tell != nil {
		a.tell(s)
	}
}
