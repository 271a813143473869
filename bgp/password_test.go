package bgp

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A SYN without an answer is all that this node sees of a wrong password. A second SYN without a signature tells
// some of the causes apart, and leaves no trace in the switch's sessions.
func TestPassword(t *testing.T) {
	type row struct {
		name, from     string
		theirs         string // "none": the neighbour is not configured there
		ours           string
		port           uint16
		reason, detail string
		remedy         string // our password then
	}
	rows := []row{
		{name: "right", from: "10.0.0.10", theirs: "s3cret", ours: "s3cret"},
		{name: "missing", from: "10.0.0.20", theirs: "s3cret", reason: reasonTimeout,
			detail: "does not answer: the switch expects a password from 10.0.0.20, a filter drops TCP, or", remedy: "s3cret"},
		{name: "wrong", from: "10.0.0.21", theirs: "s3cret", ours: "wrong", reason: reasonTimeout,
			detail: "SWITCH port 179 answers neither with our password nor without one: the password differs", remedy: "s3cret"},
		{name: "not wanted", from: "10.0.0.22", ours: "s3cret", reason: reasonPasswordNotWanted,
			detail: "the switch has no password for neighbour 10.0.0.22 as 65001, or no such neighbour"},
		{name: "unknown", from: "10.0.0.23", theirs: "none", ours: "s3cret", reason: reasonPasswordNotWanted, detail: "no such neighbour"},
		{name: "nobody listens", from: "10.0.0.24", ours: "s3cret", port: 1179, reason: reasonRefused, detail: "port 1179 refuses the connection"},
		{name: "dropped", from: "10.0.0.25", theirs: "s3cret", ours: "s3cret", reason: reasonTimeout,
			detail: "SWITCH port 179 answers neither with our password nor without one: the password differs from the switch's, a filter drops TCP, or"},
		{name: "rejected", from: "10.0.0.26", theirs: "s3cret", ours: "s3cret", reason: reasonFiltered, detail: "SWITCH rejects the connection to SWITCH port 179 with ICMP"},
		{name: "rejected without password", from: "10.0.0.27", reason: reasonFiltered, detail: "open the filter there for 10.0.0.27"},
	}
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := swconf{asn: 65000}
		for _, row := range rows {
			if row.theirs != "none" {
				c.neighbours = append(c.neighbours, neighbour{addr: row.from, asn: 65001, password: row.theirs})
			}
			if row.from != "10.0.0.10" {
				l.ip("addr add " + row.from + "/24 dev eth0")
			}
		}
		sw.start(c)
		run(t, sw.Machine, "nft", "add table inet f; add chain inet f in { type filter hook input priority 0; };"+
			"add rule inet f in tcp dport 179 ip saddr 10.0.0.25 drop; add rule inet f in tcp dport 179 ip saddr 10.0.0.26-10.0.0.27 reject with icmpx type admin-prohibited")
		speakers := make([]*Speaker, len(rows))
		session := func(i int, password string) Session {
			p := peerOf(sw)
			p.LocalAddress, p.RouterID, p.Port, p.Password = addr(rows[i].from), addr(rows[i].from), rows[i].port, password
			return Session{Peer: p, Paths: pods(len(rows))[2*i : 2*i+2]}
		}
		for i, row := range rows {
			speakers[i] = l.speaker(t)
			mustSync(t, speakers[i], session(i, row.ours))
		}
		sw.hears(session(0, "").Paths)
		for i, row := range rows[1:] {
			detail := strings.ReplaceAll(row.detail, "SWITCH", sw.addr4.String())
			eventually(t, func() error {
				st := speakers[i+1].Status(t.Context())[0]
				if st.Reason != row.reason || !strings.Contains(st.Detail, detail) {
					return fmt.Errorf("%s: %s: %s, want %s: %s", row.name, st.Reason, st.Detail, row.reason, detail)
				}
				return nil
			})
		}
		most := map[string]int{"bird": 1, "frr": 0}[sw.kind] // BIRD names a stranger
		if lines := sw.complaints(); len(lines) > most {
			t.Errorf("%d lines in the switch's log for two probes that it took:\n%s", len(lines), strings.Join(lines, "\n"))
		}
		if st := becomes(t, speakers[0], "Established", ""); st.Flaps != 0 {
			t.Errorf("%+v", st)
		}

		// Each is mended where it is wrong, and comes up in its usual time.
		run(t, sw.Machine, "nft", "delete table inet f")
		mended := time.Now()
		want := session(0, "").Paths
		for i, row := range rows {
			switch row.name {
			case "missing", "wrong", "not wanted":
				if changes := mustSync(t, speakers[i], session(i, row.remedy)); len(changes) != 1 || changes[0].Op != "reset" || strings.Contains(fmt.Sprint(changes), "s3cret") {
					t.Errorf("%s: changes %v", row.name, changes)
				}
			case "right", "unknown", "nobody listens":
				continue
			}
			want = append(want, session(i, "").Paths...)
		}
		sw.hears(want)
		promised(t, sw.kind+": all that was mended is heard", mended, time.Now(), 0, redial)
	})
}

// complaints are the lines of the switch's log that are there without any debugging.
func (r *router) complaints() (out []string) {
	r.t.Helper()
	name, no := "bird.log", regexp.MustCompile(`<(TRACE|INFO|DBG)>|Missing link-local address|Kernel dropped some netlink messages`)
	if r.kind == "frr" {
		name, no = "bgpd.log", regexp.MustCompile(`^Graceful restart configuration changed|"/var/tmp/frr/|crashlog and per-thread log| starting: |has not been registered|hasEstablished|ADJCHANGE|rcvd End-of-RIB`)
	}
	text, err := os.ReadFile(r.file(name))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !no.MatchString(line) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
