// Package cloud makes the calls of the ENS OpenAPI (version 2017-11-10) and of the ECS OpenAPI (version 2014-05-26)
// that edgeway needs: instances, their network interfaces, and the addresses of these. It never decides what to call,
// and it never tries again: the calls of ENS that change something are not idempotent, so only a list can say whether a
// call without an answer was carried out. The calls of ECS take a token that makes them idempotent.
//
// The vendor's generic client signs and sends the calls. Every call ends within [CallTimeout]. No error shows a
// key, a secret, or the text of a request.
//
//	c, err := cloud.New(cloud.Options{Region: "ap-southeast-1", Credentials: cloud.Credentials{Key: "...", Secret: "..."}})
//	all, err := c.Interfaces(ctx, cloud.Filter{Instance: "i-5siavnr3"})
//	var e *cloud.Error
//	if errors.As(err, &e) && e.Kind == cloud.Throttled { ... }
package cloud

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	"github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
)

const (
	// CallTimeout bounds a call. The real cloud answers within a second; the vendor's client would wait for ever.
	CallTimeout = 4 * time.Second
	// mostInPage is the largest page: the documents name 50 and 100, and a larger page can come back smaller.
	mostInPage = 50
	// mostPages bounds a list: an account has some thousands of interfaces at most.
	mostPages = 1000
	// mostAnswer bounds an answer, in bytes. A page of 50 instances has some 200 kB.
	mostAnswer = 16 << 20
)

// Service is one of the vendor's services that have instances.
type Service string

// The services: instances at the edge, and instances of a cloud region.
const (
	ENS Service = "ens"
	ECS Service = "ecs"
)

// Options of a client.
type Options struct {
	Service     Service // "": ENS
	Credentials Credentials
	// Region chooses the endpoint, see [Service.Endpoint]. For ENS it is not where the instances are.
	Region string
	// Endpoint is a host, or a URL whose scheme is http or https; "": the endpoint of Region. It serves all calls.
	Endpoint  string
	UserAgent string
	// Turn is asked before each page after the first of a list, and waits until the page may be asked for; nil: at once. The
	// caller waits before each call himself.
	Turn func(context.Context) error
	// Seen is told of each call: the action, and "OK", the code of the refusal, or the [Kind]. It may be nil.
	Seen func(action, code string)
}

// Client makes calls. Any number of goroutines may use it.
type Client struct {
	options        Options
	protocol, host string
	http           *http.Client
}

// Endpoint returns the host that serves a region. ENS has one host for all regions of mainland China, and one for the
// international site.
func (s Service) Endpoint(region string) string {
	if s == ENS && (region == "" || strings.HasPrefix(region, "cn-")) {
		return "ens.aliyuncs.com"
	}
	return string(s) + "." + region + ".aliyuncs.com"
}

// New returns a client. It makes no call.
func New(o Options) (*Client, error) {
	if o.Credentials.Key == "" || o.Credentials.Secret == "" {
		return nil, errors.New("credentials: want an access key and its secret, got none")
	}
	o.Service = cmp.Or(o.Service, ENS)
	if o.Service == ECS && o.Region == "" {
		return nil, errors.New("region: want the region of the instances, got none")
	}
	c := &Client{options: o, protocol: "https", host: o.Endpoint}
	if c.host == "" {
		c.host = o.Service.Endpoint(o.Region)
	}
	if scheme, host, ok := strings.Cut(c.host, "://"); ok {
		c.protocol, c.host = scheme, strings.TrimSuffix(host, "/")
	}
	if u, err := url.Parse(c.protocol + "://" + c.host); err != nil || u.Host != c.host || c.host == "" || c.protocol != "http" && c.protocol != "https" {
		return nil, fmt.Errorf("endpoint %q: want a host such as %s, or http://HOST:PORT", o.Endpoint, o.Service.Endpoint(o.Region))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	c.http = &http.Client{Transport: transport,
		// The API does not redirect, and a redirect's target would receive the signature and the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// parameters of a call.
type parameters map[string]string

// call makes one call and reads the answer into out, which may be nil.
func (c *Client) call(ctx context.Context, action string, p parameters, out any) error {
	err := c.try(ctx, action, p, out)
	if c.options.Seen != nil {
		code := "OK"
		var e *Error
		if errors.As(err, &e) {
			code = e.label()
		}
		c.options.Seen(action, code)
	}
	return err
}

func (c *Client) try(ctx context.Context, action string, p parameters, out any) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	one := exchange{ctx: ctx, http: c.http}
	host, version := c.host, "2017-11-10"
	if c.options.Service == ECS {
		version = "2014-05-26"
		if action == "DescribeVSwitches" { // subnets are another service's
			version = "2016-04-28"
			if c.options.Endpoint == "" {
				host = "vpc." + c.options.Region + ".aliyuncs.com"
			}
		}
	}
	// The vendor's client takes no context, but it takes the one who sends. So it is made for each call.
	sdk, err := openapi.NewClient(&utils.Config{
		AccessKeyId: &c.options.Credentials.Key, AccessKeySecret: &c.options.Credentials.Secret, SecurityToken: &c.options.Credentials.Token,
		Endpoint: &host, Protocol: &c.protocol, UserAgent: &c.options.UserAgent, HttpClient: &one,
	})
	if err != nil {
		return &Error{Action: action, Kind: Unreachable, Message: c.redact(err.Error())}
	}
	query := map[string]*string{}
	for name, value := range p {
		query[name] = &value
	}
	if c.options.Service == ECS && action != "DescribeInstanceTypes" { // the endpoint's region is meant there
		query["RegionId"] = &c.options.Region
	}
	text := dara.String
	_, err = sdk.CallApi(&utils.Params{
		Action: &action, Version: &version, Protocol: &c.protocol, Pathname: text("/"), Method: text(http.MethodPost),
		AuthType: text("AK"), Style: text("RPC"), ReqBodyType: text("formData"), BodyType: text("none"),
	}, &utils.OpenApiRequest{Query: query}, &dara.RuntimeOptions{})
	if one.status == 0 { // no answer: what the vendor's client says of it may hold the signed URL
		cause := one.err
		if cause == nil {
			cause = err
		}
		return c.silent(action, cause)
	}
	if one.status != http.StatusOK {
		return c.refusal(action, one.status, one.body)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(one.body, out); err != nil {
		return &Error{Action: action, Kind: Unreachable, Status: one.status, Message: "the answer is not what the API documents: " + c.redact(err.Error())}
	}
	return nil
}

// exchange sends the one request of a call, and keeps the answer. It is what the vendor's client calls an HTTP client.
type exchange struct {
	ctx    context.Context
	http   *http.Client
	status int
	body   []byte
	err    error
}

// Call implements the vendor's interface.
func (e *exchange) Call(r *http.Request, _ *http.Transport) (*http.Response, error) {
	answer, err := e.http.Do(r.WithContext(e.ctx))
	if err == nil {
		defer answer.Body.Close()
		e.body, err = io.ReadAll(io.LimitReader(answer.Body, mostAnswer))
	}
	if err != nil {
		e.err = err
		return nil, err
	}
	e.status = answer.StatusCode
	answer.Body = http.NoBody
	return answer, nil
}
