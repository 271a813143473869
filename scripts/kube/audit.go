package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Request is a request that the API server answered.
type Request struct {
	User, Agent string
	Verb, URI   string
	Code        int
	At          time.Time
	// Open is true for a watch that has not ended.
	Open bool
}

func (r Request) String() string {
	return fmt.Sprintf("%s (%s) %s %s: %d", r.User, r.Agent, r.Verb, r.URI, r.Code)
}

// Requests returns the requests so far that the filter selects, in order of arrival. A nil filter selects
// all. The latest requests may be missing, because the API server answers before it writes its log.
func (c *ControlPlane) Requests(filter func(Request) bool) ([]Request, error) {
	text, err := os.ReadFile(c.file("audit.log"))
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	var ids []string
	byID := map[string]Request{}
	for line := range bytes.Lines(text) {
		var e struct {
			AuditID, Stage, Verb, UserAgent, RequestURI string
			User                                        struct{ Username string }
			ResponseStatus                              struct{ Code int }
			RequestReceivedTimestamp                    time.Time
		}
		if err := json.Unmarshal(line, &e); err != nil {
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) && !bytes.HasSuffix(line, []byte("\n")) {
				continue // the last line is only half written
			}
			return nil, fmt.Errorf("audit log: %w: %.200s", err, line)
		}
		if _, known := byID[e.AuditID]; !known {
			ids = append(ids, e.AuditID)
		}
		byID[e.AuditID] = Request{User: e.User.Username, Agent: e.UserAgent, Verb: e.Verb, URI: e.RequestURI,
			Code: e.ResponseStatus.Code, At: e.RequestReceivedTimestamp, Open: e.Stage == "ResponseStarted"}
	}
	var all []Request
	for _, id := range ids {
		if r := byID[id]; filter == nil || filter(r) {
			all = append(all, r)
		}
	}
	return all, nil
}
