package ens

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The signatures are written from the documents "Request syntax and signature method V3" and "RPC mechanism
// (V1)" of the vendor. The vectors in testdata come from the vendor's own clients.

const (
	algorithmV3 = "ACS3-HMAC-SHA256"
	algorithmV1 = "HMAC-SHA1"
	// mostSkew is how far a client's clock may be off.
	mostSkew = 15 * time.Minute
)

// request is what both signatures say of a call.
type request struct {
	key, action, version, nonce, token string
	at                                 time.Time
	query                              query
	valid                              func(secret string) bool
}

// read reads a request, without its signature.
func read(r *http.Request, body []byte) (request, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return request{}, refuse("InvalidParameter", "query: %v", err)
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return request{}, refuse("InvalidParameter", "body: %v", err)
		}
		for name, values := range form {
			q[name] = append(q[name], values...)
		}
	}
	if r.Header.Get("Authorization") != "" {
		return readV3(r, body, q)
	}
	return readV1(r, q)
}

func readV3(r *http.Request, body []byte, q url.Values) (request, error) {
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	at, err := time.Parse(time.RFC3339, r.Header.Get("x-acs-date"))
	if algorithm != algorithmV3 || err != nil {
		return request{}, refusal{http.StatusBadRequest, "IncompleteSignature", "algorithm or x-acs-date"}
	}
	return request{
		key: parts["Credential"], action: r.Header.Get("x-acs-action"), version: r.Header.Get("x-acs-version"),
		nonce: r.Header.Get("x-acs-signature-nonce"), token: r.Header.Get("x-acs-security-token"), at: at, query: flat(q),
		valid: func(secret string) bool {
			return hmac.Equal([]byte(parts["Signature"]), []byte(signV3(secret, r, parts["SignedHeaders"], body, q)))
		},
	}, nil
}

// signV3 computes the signature of a request. A header that must be signed and is not gives no signature.
func signV3(secret string, r *http.Request, signed string, body []byte, q url.Values) string {
	names := strings.Split(signed, ";")
	hash := sha256.Sum256(body)
	if r.Header.Get("x-acs-content-sha256") != hex.EncodeToString(hash[:]) || !slices.IsSorted(names) || !slices.Contains(names, "host") {
		return ""
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") && !slices.Contains(names, name) {
			return ""
		}
	}
	var headers strings.Builder
	for _, name := range names {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		headers.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
	}
	canonical := strings.Join([]string{r.Method, "/", sorted(q), headers.String(), signed, hex.EncodeToString(hash[:])}, "\n")
	hashed := sha256.Sum256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(algorithmV3 + "\n" + hex.EncodeToString(hashed[:])))
	return hex.EncodeToString(mac.Sum(nil))
}

func readV1(r *http.Request, q url.Values) (request, error) {
	at, err := time.Parse(time.RFC3339, q.Get("Timestamp"))
	if err != nil || q.Get("SignatureMethod") != algorithmV1 || q.Get("SignatureVersion") != "1.0" {
		return request{}, refusal{http.StatusBadRequest, "IncompleteSignature", "SignatureMethod, SignatureVersion or Timestamp"}
	}
	out := request{
		key: q.Get("AccessKeyId"), action: q.Get("Action"), version: q.Get("Version"),
		nonce: q.Get("SignatureNonce"), token: q.Get("SecurityToken"), at: at,
		valid: func(secret string) bool {
			return hmac.Equal([]byte(q.Get("Signature")), []byte(signV1(secret, r.Method, q)))
		},
	}
	out.query = flat(q)
	for _, name := range []string{"AccessKeyId", "Action", "Format", "Signature", "SignatureMethod", "SignatureNonce", "SignatureType", "SignatureVersion", "SecurityToken", "Timestamp", "Version", "RegionId"} {
		delete(out.query, name)
	}
	return out, nil
}

func signV1(secret, method string, q url.Values) string {
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	mac.Write([]byte(method + "&" + encode("/") + "&" + encode(sorted(q))))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// sorted writes the parameters in order, without the signature.
func sorted(q url.Values) string {
	var parts []string
	for name, values := range q {
		for _, v := range values {
			if name != "Signature" {
				parts = append(parts, encode(name)+"="+encode(v))
			}
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

// encode is the percent encoding of RFC 3986, section 2.1.
func encode(text string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(text))
}

func flat(q url.Values) query {
	out := query{}
	for name, values := range q {
		out[name] = values[0]
	}
	return out
}
