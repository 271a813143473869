package ens

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// Fault is what happens to a call. The zero Fault is: nothing, the call is answered.
type Fault struct {
	Lose  bool   // the call is carried out, and the connection breaks before the answer
	Break bool   // the connection breaks, and the call is not carried out
	Hang  bool   // the call is carried out, and no answer comes until the caller hangs up
	Code  string // the call is refused with this code, such as Throttling.User
	// Status is the HTTP status of the refusal; 0: 400. A status of 503 without a Code has no JSON in its body,
	// as when a proxy answers.
	Status int
	Stale  int // a list shows the state before so many changes
}

// SetFaults has decide called for every call that is signed and permitted. nil ends all faults.
func (c *Cloud) SetFaults(decide func(Call) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = decide
}

// ServeHTTP implements http.Handler.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has gone
	}
	answer, fault, err := c.call(r, body)
	var no refusal
	switch {
	case fault.Break, fault.Lose:
		panic(http.ErrAbortHandler) // the connection breaks
	case fault.Hang:
		select {
		case <-r.Context().Done():
		case <-c.closing:
		}
	case fault.Status != 0 && fault.Code == "":
		http.Error(w, "<html>upstream connect error</html>", fault.Status)
	case errors.As(err, &no):
		write(w, no.status, object{"RequestId": "R", "HostId": r.Host, "Code": no.code, "Message": no.message, "Recommend": "https://example.invalid/?Code=" + no.code})
	default:
		answer["RequestId"] = "R"
		write(w, http.StatusOK, answer)
	}
}

func write(w http.ResponseWriter, status int, o object) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(o) // the caller may have gone
}

// call checks a call and carries it out.
func (c *Cloud) call(r *http.Request, body []byte) (answer object, fault Fault, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, err := read(r, body)
	seen := Call{Action: in.action, Query: in.query}
	defer func() {
		var no refusal
		if errors.As(err, &no) {
			seen.Code = no.code
		}
		c.calls = append(c.calls, seen)
	}()
	if err == nil {
		err = c.admit(in)
	}
	if err != nil {
		return nil, Fault{}, err
	}
	if c.faults != nil {
		fault = c.faults(seen)
	}
	switch {
	case fault.Break:
		return nil, fault, nil
	case fault.Code != "":
		status := fault.Status
		if status == 0 {
			status = http.StatusBadRequest
		}
		return nil, fault, refusal{status, fault.Code, "made to fail"}
	case fault.Status != 0:
		seen.Code = fmt.Sprint(fault.Status)
		return nil, fault, nil
	}
	a, _, _ := c.find(in.action, in.version)
	if err := a.check(in.query); err != nil {
		return nil, fault, err
	}
	from := &c.now
	if n := len(c.before); fault.Stale > 0 && n > 0 {
		from = &c.before[max(0, n-fault.Stale)]
	}
	if len(in.action) < 8 || in.action[:8] != "Describe" {
		c.remember()
	}
	answer, err = c.once(in.action, in.query, func() (object, error) { return a.do(c, in.query, from) })
	return answer, fault, err
}

// admit checks who calls, when, and whether he may.
func (c *Cloud) admit(in request) error {
	key, ok := c.keys[in.key]
	switch {
	case !ok:
		return refusal{http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	case !in.valid(key.Secret):
		return refusal{http.StatusBadRequest, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation."}
	case key.Token != in.token:
		return refusal{http.StatusBadRequest, "InvalidSecurityToken.Malformed", "The security token is not valid."}
	case time.Now().Add(c.skew).Sub(in.at).Abs() > mostSkew:
		return refusal{http.StatusBadRequest, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."}
	case in.nonce == "" || c.nonces[in.nonce]:
		return refusal{http.StatusBadRequest, "SignatureNonceUsed", "Specified signature nonce was used already."}
	}
	c.nonces[in.nonce] = true
	_, service, ok := c.find(in.action, in.version)
	if !ok {
		return refusal{http.StatusNotFound, "InvalidAction.NotFound", fmt.Sprintf("%s of %s is not found.", in.action, in.version)}
	}
	if !slices.Contains(key.Actions, service+":*") && !slices.Contains(key.Actions, service+":"+in.action) {
		return refuse("NoPermission", "the user may not call %s:%s", service, in.action)
	}
	return nil
}
