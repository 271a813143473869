package cloud

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Kind says what a failed call means to the caller.
type Kind string

// The kinds of errors.
const (
	// Unreachable: no answer, or no answer of the API. A call that changes something may have been carried out.
	Unreachable Kind = "unreachable"
	// Throttled: too many calls. Nothing was carried out; call again later.
	Throttled Kind = "throttled"
	// Denied: the key, its signature or its permissions. Only an operator can help.
	Denied Kind = "denied"
	// WrongClock: this machine's clock is more than 15 minutes off.
	WrongClock Kind = "wrongClock"
	// NotFound: the named instance, interface, vSwitch or group does not exist.
	NotFound Kind = "notFound"
	// Refused: the cloud understood the call and does not do it, such as an interface that is full.
	Refused Kind = "refused"
)

// Error is a call that failed.
type Error struct {
	Action  string
	Kind    Kind
	Status  int    // of HTTP; 0: no answer
	Code    string // the cloud's; "": none
	Message string // the cloud's, shortened

	service Service
}

// Error names the call, the cause and the operator's next step.
func (e *Error) Error() string {
	cause := e.Message
	if e.Code != "" {
		cause = e.Code
		if e.Message != "" {
			cause += " (" + e.Message + ")"
		}
	}
	text := fmt.Sprintf("%s: %s: %s", e.Action, e.Kind, cause)
	if next := map[Kind]string{
		Unreachable: "check the network, the endpoint and the region",
		Denied:      "check the access key, and that its RAM policy allows " + string(cmp.Or(e.service, ENS)) + ":" + e.Action,
		WrongClock:  "set the clock of this machine",
	}[e.Kind]; next != "" {
		text += "; " + next
	}
	return text
}

// label is the code for metrics: the cloud's code, else the kind.
func (e *Error) label() string {
	if e.Code != "" {
		return e.Code
	}
	return string(e.Kind)
}

// Is reports whether err is a failed call of that kind.
func Is(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// mostMessage is how much of a message is kept, in bytes.
const mostMessage = 200

// silent is the error of a call without an answer.
func (c *Client) silent(action string, cause error) error {
	var u *url.Error
	if errors.As(cause, &u) {
		cause = u.Err // u's text holds the signed URL
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return &Error{Action: action, Kind: Unreachable, Message: fmt.Sprintf("no answer from %s within %v", c.host, CallTimeout)}
	}
	return &Error{Action: action, Kind: Unreachable, Message: c.redact(fmt.Sprintf("%s: %v", c.host, cause))}
}

// refusal reads the answer of a call that failed.
func (c *Client) refusal(action string, status int, body []byte) error {
	var said struct{ Code, Message string }
	if json.Unmarshal(body, &said) != nil || said.Code == "" {
		return &Error{Action: action, Kind: Unreachable, Status: status, Message: fmt.Sprintf("%s answers %d %s, which is not an answer of the API", c.host, status, http.StatusText(status))}
	}
	e := &Error{Action: action, Kind: kindOf(said.Code, status), Status: status, Code: c.redact(said.Code), service: c.options.Service}
	if e.service == ECS && action == "DescribeVSwitches" {
		e.service = "vpc"
	}
	if said.Code != "SignatureDoesNotMatch" { // its message repeats the whole request
		e.Message = c.redact(said.Message)
	}
	return e
}

// kindOf sorts the codes. ENS documents few of them and answers nearly all with status 400, so the code decides.
// A code that is not known is a refusal.
func kindOf(code string, status int) Kind {
	starts := func(with ...string) bool {
		for _, w := range with {
			if strings.HasPrefix(code, w) {
				return true
			}
		}
		return false
	}
	switch {
	case starts("Throttling"), status == http.StatusTooManyRequests:
		return Throttled
	case starts("InvalidTimeStamp"):
		return WrongClock
	case starts("SignatureNonceUsed"): // a proxy sent the request twice: the first may have been carried out
		return Unreachable
	case starts("NoPermission", "Forbidden", "InvalidAccessKeyId", "InvalidSecurityToken", "SignatureDoesNotMatch", "IncompleteSignature", "MissingSecurityToken"):
		return Denied
	case strings.HasSuffix(code, "NotFound") && !starts("InvalidAction", "InvalidVersion"):
		return NotFound
	case status >= http.StatusInternalServerError, starts("ServiceUnavailable", "InternalError", "CallInterface", "ens.interface.error"):
		return Unreachable
	}
	return Refused
}

// redact takes the credentials out of a text, and shortens it.
func (c *Client) redact(text string) string {
	k := c.options.Credentials
	for _, secret := range []string{k.Secret, k.Token, k.Key} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "...")
		}
	}
	if len(text) > mostMessage {
		text = strings.ToValidUTF8(text[:mostMessage], "") + "..."
	}
	return text
}
