package bgp

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// The states of a session (RFC 4271, section 8.2.2).
const (
	stateIdle        = "Idle"    // the pause after a loss
	stateConnect     = "Connect" // dialling
	stateActive      = "Active"  // the pause after a failed dial
	stateOpenSent    = "OpenSent"
	stateOpenConfirm = "OpenConfirm"
	stateEstablished = "Established"
)

// journal is the knowledge of one session about its switch: from dials, probes, and the messages of its
// connections. The goroutines of all three write to it.
type journal struct {
	notify func() // must not block

	mu       sync.Mutex // guards all fields below
	peer     Peer
	state    string
	since    time.Time // when state last became, or ceased to be, Established
	flaps    int
	reset    Reset         // the last time that the session left Established
	lifetime time.Duration // how long the last connection was Established
	causes   causes
	evidence evidence
	probing  bool          // a probe is under way
	probeAt  time.Time     // no probe before this time
	pause    time.Duration // after the last probe
	dialled  time.Time     // since when dials have ended like the last dial
	offer    offer
	heard    hearing

	// Of this connection:
	connected bool
	alive     [2]bool      // a KEEPALIVE was sent, received
	word      notification // the first NOTIFICATION, if code is not 0
	theirs    bool         // the switch sent it
	deaf      cause        // one side drops the other's packets; see relay.deaf
}

// newJournal returns the journal of a session that has not been Established since that time.
func newJournal(p Peer, since time.Time, notify func()) *journal {
	return &journal{notify: notify, peer: p, state: stateIdle, since: since,
		causes: causes{first: cause{reason: reasonConnecting}}, heard: hearing{since: since}}
}

// causes are why a session is not Established. A sure cause stays first until the session is Established or
// another sure cause is found, so that its effects, such as a refused connection, do not hide it.
type causes struct {
	first, then cause
	sure        bool // first is from a NOTIFICATION, or from TTL security on one side
}

func (c *causes) add(next cause, sure bool) {
	if c.sure && !sure {
		c.then = next
		return
	}
	*c = causes{first: next, sure: sure}
}

func (c causes) detail() string {
	if c.then.reason == "" {
		return c.first.detail
	}
	return c.first.detail + "; since then: " + c.then.detail
}

func (j *journal) dialling() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state = stateConnect
}

// dialFailed records why a dial failed.
func (j *journal) dialFailed(err error) {
	j.mu.Lock()
	j.state, j.lifetime = stateActive, 0
	if !isTimeout(err) || !isTimeout(j.evidence.err) {
		j.dialled = time.Now()
	}
	j.evidence.err, j.evidence.silent = err, time.Since(j.dialled)
	if !j.evidence.puzzles(j.peer) {
		j.evidence.reply = reply{}
	}
	j.causes.add(dialCause(j.peer, j.evidence), false)
	j.mu.Unlock()
	j.notify()
}

// takeProbe reports, once, that a probe is due.
func (j *journal) takeProbe(now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	due := j.evidence.puzzles(j.peer) && !j.probing && !now.Before(j.probeAt)
	if due {
		j.probing = true
		j.pause = min(max(2*j.pause, probePause), probeRarest)
		j.probeAt = now.Add(j.pause)
	}
	return due
}

// probed records the result of a probe, if it still matters.
func (j *journal) probed(r reply) {
	j.mu.Lock()
	j.probing = false
	if j.evidence.puzzles(j.peer) {
		j.evidence.reply = r
		j.causes.add(dialCause(j.peer, j.evidence), false)
	}
	j.mu.Unlock()
	j.notify()
}

// begun records that GoBGP is connected to the switch.
func (j *journal) begun() {
	j.mu.Lock()
	j.state, j.connected, j.lifetime = stateOpenSent, true, 0
	j.alive, j.word, j.theirs, j.deaf, j.offer = [2]bool{}, notification{}, false, cause{}, offer{}
	j.evidence, j.probeAt, j.pause = evidence{}, time.Time{}, 0
	j.heard.begin(time.Now())
	j.mu.Unlock()
	j.notify()
}

// sent records a message that is sent to the switch.
func (j *journal) sent(m message) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch m.kind() {
	case bgp.BGP_MSG_KEEPALIVE:
		j.alive[0] = true
		j.proceed()
	case bgp.BGP_MSG_NOTIFICATION:
		j.notified(notificationOf(m), false)
	}
}

// received records a message from the switch. It reports whether GoBGP needs the message. Its error is a
// refusal.
func (j *journal) received(m message) (pass bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch kind := m.kind(); {
	case kind == bgp.BGP_MSG_NOTIFICATION:
		j.notified(notificationOf(m), true)
		return true, nil
	case kind == bgp.BGP_MSG_OPEN && !j.offer.known:
		j.offer, err = offerOf(m, j.peer)
		return err == nil, err
	case kind == bgp.BGP_MSG_OPEN || !j.offer.known || !j.alive[1] && kind != bgp.BGP_MSG_KEEPALIVE:
		return false, refusal{5, map[string]uint8{stateOpenSent: 1, stateOpenConfirm: 2, stateEstablished: 3}[j.state], []byte{kind}}
	case kind == bgp.BGP_MSG_KEEPALIVE:
		j.alive[1] = true
		j.proceed()
		return true, nil
	case kind == bgp.BGP_MSG_UPDATE:
		return false, j.heard.update(j.peer, j.offer, m, time.Now())
	}
	return true, nil // ROUTE-REFRESH: GoBGP sends its table again
}

// proceed sets the state after a KEEPALIVE.
func (j *journal) proceed() {
	switch {
	case j.alive == [2]bool{true, true} && j.state != stateEstablished:
		j.state, j.since, j.causes = stateEstablished, time.Now(), causes{}
		j.notify()
	case j.alive[0] && j.state == stateOpenSent:
		j.state = stateOpenConfirm
	}
}

func (j *journal) notified(n notification, theirs bool) {
	if j.word.code == 0 {
		j.word, j.theirs = n.inner(), theirs
	}
}

// ended records that the connection is over. Only the first call for a connection counts.
func (j *journal) ended(byThem bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.connected {
		return
	}
	now := time.Now()
	switch {
	case j.deaf.reason != "":
		j.causes.add(j.deaf, true)
	case j.word.code == 0:
		c, rival := cause{}, false
		if byThem {
			c, rival = rivalCause(j.peer)
		}
		if !rival {
			c = lostCause(j.peer, j.state, byThem)
		}
		j.causes.add(c, false)
	case j.theirs:
		j.causes.add(receivedCause(j.peer, j.word), true)
	default:
		j.causes.add(sentCause(j.peer, j.word, j.offer), true)
	}
	if j.state == stateEstablished {
		j.lifetime, j.since = now.Sub(j.since), now
		j.flaps++
		j.reset = Reset{now, j.causes.first.reason, j.causes.first.detail}
	}
	j.state, j.connected, j.offer = stateIdle, false, offer{}
	j.heard.end(now)
	if j.theirs && j.word.leaves() {
		j.heard.forget()
	}
	j.notify()
}

// silent records that the connection ends because the switch never acknowledged any of our octets.
func (j *journal) silent() {
	j.mu.Lock()
	j.deaf = deafCause(j.peer)
	j.mu.Unlock()
	j.ended(false)
}

// wait returns the pause before the next dial. After a session that was Established there is no pause. If
// the session did not last, the pause is *backoff, which doubles from 1 s to maxBackoff.
func (j *journal) wait(backoff *time.Duration) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.lifetime == 0: // RFC 4271, section 10: 3/4 to all of ConnectRetryTime
		return connectRetry - rand.N(connectRetry/4)
	case j.lifetime >= steady:
		*backoff = 0
	default:
		*backoff = min(max(2**backoff, time.Second), maxBackoff)
	}
	return *backoff
}

// up reports whether the session is Established, and returns the switch's offer.
func (j *journal) up() (bool, offer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state == stateEstablished, j.offer
}

// ends returns the families of which both sides send an End-of-RIB (RFC 4724), once the switch's OPEN is known.
func (j *journal) ends() (families []uint16) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.offer.restart || j.peer.RestartTime == 0 {
		return nil
	}
	if j.offer.ipv4 {
		families = append(families, bgp.AFI_IP)
	}
	if j.offer.ipv6 {
		families = append(families, bgp.AFI_IP6)
	}
	return families
}

// offer is the content of the switch's OPEN.
type offer struct {
	known     bool // the OPEN has been read
	asn       uint32
	as4       bool // AS numbers have four octets (RFC 6793)
	hold      time.Duration
	restart   bool // graceful restart: the switch keeps our paths (RFC 4724)
	longLived bool // long-lived graceful restart (RFC 9494)
	// notification: the switch also keeps our paths at a NOTIFICATION, except a Hard Reset (RFC 8538)
	notification bool
	ipv4         bool
	ipv6         bool
	refresh      bool // RFC 2918
}

// offerOf reads the switch's OPEN and checks it on the terms of p. Its error is a refusal. GoBGP would check
// the same, but GoBGP does not always tell: if the OPEN arrives just when GoBGP has changed its state, GoBGP
// neither sends its NOTIFICATION nor closes the connection (v3.37, peer.startFSMHandler: the handler runs
// before fsm.h is set), and both sides wait until the switch's hold timer expires.
func offerOf(m message, p Peer) (offer, error) {
	parsed, err := bgp.ParseBGPMessage(m)
	if err != nil {
		return offer{}, refusalOf(err)
	}
	open := parsed.Body.(*bgp.BGPOpen)
	o := offer{known: true, asn: uint32(open.MyAS), hold: time.Duration(open.HoldTime) * time.Second}
	multiprotocol := false
	for _, p := range open.OptParams {
		p, ok := p.(*bgp.OptionParameterCapability)
		if !ok {
			continue
		}
		for _, c := range p.Capability {
			switch c := c.(type) {
			case *bgp.CapGracefulRestart:
				o.restart = true
				o.notification = o.notification || c.Flags&0x04 != 0 // RFC 8538, section 2
			case *bgp.CapLongLivedGracefulRestart:
				// A switch without a tuple helps others (BIRD). A switch with a time of 0 keeps nothing (FRR
				// without its stale-time, which is the longest that FRR keeps paths).
				o.longLived = len(c.Tuples) == 0 || slices.ContainsFunc(c.Tuples, func(t *bgp.CapLongLivedGracefulRestartTuple) bool { return t.RestartTime > 0 })
			case *bgp.CapMultiProtocol:
				multiprotocol = true
				o.ipv4 = o.ipv4 || c.CapValue == bgp.RF_IPv4_UC
				o.ipv6 = o.ipv6 || c.CapValue == bgp.RF_IPv6_UC
			case *bgp.CapFourOctetASNumber:
				o.asn, o.as4 = c.CapValue, true
			case *bgp.CapRouteRefresh:
				o.refresh = true
			}
		}
	}
	o.ipv4 = o.ipv4 || !multiprotocol // RFC 4760, section 8
	if _, err := bgp.ValidateOpenMsg(open, p.ASN, p.LocalASN, p.RouterID.AsSlice()); err != nil {
		return o, refusalOf(err)
	}
	if o.hold < minHoldTime { // 0 means no KEEPALIVEs, which GoBGP v3 does not support
		return o, refusal{2, 6, nil}
	}
	return o, nil
}

func (o offer) takes(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return o.ipv4
	}
	return o.ipv6
}

// view is the part of a session's status whose change is news.
type view struct {
	state  string
	flaps  int
	causes causes
	offer  offer
	heard  int
}

// urgent reports whether a change is worth news at once. The steps of an attempt to connect, and learned
// paths, can wait until the next tick.
func (v view) urgent(was view) bool {
	return (v.state == stateEstablished) != (was.state == stateEstablished) || v.flaps != was.flaps || v.causes != was.causes
}

func (j *journal) view() view {
	j.mu.Lock()
	defer j.mu.Unlock()
	return view{j.state, j.flaps, j.causes, j.offer, j.heard.edition}
}

// status returns the journal's part of the Status.
func (j *journal) status() (Status, offer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.causes.first
	st := Status{State: cmp.Or(j.state, stateIdle), Since: j.since, Flaps: j.flaps, LastReset: j.reset, Reason: first.reason, Detail: j.causes.detail()}
	if lack := j.heard.returns.lack(); lack != "" && st.State == stateEstablished {
		st.Lacks = []Lack{{lackPaths, lack}}
	}
	return st, j.offer
}
