package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/ens"
)

const (
	testKey    = "LTAI-test-key"
	testSecret = "very-secret-word"
	testToken  = "session-token-word"
)

// lab is a cloud with an instance, and a client of it.
type lab struct {
	cloud *ens.Cloud
	*Client
	url string

	mu   sync.Mutex // guards seen
	seen []string
}

func newLab(t *testing.T) *lab {
	l := &lab{cloud: ens.New()}
	l.cloud.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	l.cloud.AddGroup("sg-1", ens.Rule{Direction: "ingress", IpProtocol: "ALL", PortRange: "-1/-1", SourceCidrIp: "10.0.0.0/8", Policy: "Accept"})
	l.cloud.AddInstance("i-1", "vsw-1", "sg-1")
	l.cloud.AddKey(ens.Key{ID: testKey, Secret: testSecret, Actions: []string{"ens:*"}})
	server := httptest.NewServer(l.cloud)
	l.url = server.URL
	t.Cleanup(server.Close)
	t.Cleanup(l.cloud.Close)
	l.Client = l.client(t, Credentials{Key: testKey, Secret: testSecret})
	return l
}

func (l *lab) client(t *testing.T, k Credentials) *Client {
	t.Helper()
	c, err := New(Options{Credentials: k, Endpoint: l.url, Seen: func(action, code string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.seen = append(l.seen, action+" "+code)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every call, against a cloud that checks signatures and parameters.
func TestCalls(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(what, err)
		}
	}
	instance := func() Instance {
		t.Helper()
		all, err := l.Instances(ctx, "i-1", "i-2")
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	i := instance()
	if got := fmt.Sprint(i); got != "{i-1 Running cn-test-1   vsw-1 [sg-1] [{10.0.0.1 10.0.0.253}]}" {
		t.Errorf("got %s", got)
	}
	must("stop", l.StopInstance(ctx, "i-1"))
	for instance().Status != Stopped {
	}
	id, err := l.CreateInterface(ctx, NewInterface{Name: "edgeway-i-1-1", VSwitch: "vsw-1", Groups: []string{"sg-1"}})
	must("create", err)
	must("attach", l.AttachInterface(ctx, id, "i-1"))
	find := func() Interface {
		t.Helper()
		all, err := l.Interfaces(ctx, Filter{Instance: "i-1", Name: "edgeway-i-1-1"})
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	for find().Status != InUse {
	}
	must("start", l.StartInstance(ctx, "i-1"))
	must("assign", l.AssignAddresses(ctx, id, 1, ""))
	must("assign", l.AssignAddresses(ctx, id, 1, ""))
	n := find()
	if got := fmt.Sprint(n.Address, n.Addresses, n.Primary, n.Groups, " ", n.VSwitch); got != "10.0.0.2 [10.0.0.3 10.0.0.4] false [sg-1] vsw-1" {
		t.Errorf("got %s", got)
	}
	must("unassign", l.UnassignAddress(ctx, id, n.Addresses[0]))
	if got := fmt.Sprint(find().Addresses); got != "[10.0.0.4]" {
		t.Errorf("got %s", got)
	}
	switches, err := l.VSwitches(ctx, "vsw-1", "vsw-2")
	if err != nil || len(switches) != 1 || switches[0].CIDR.String() != "10.0.0.0/24" || switches[0].Free != 249 {
		t.Errorf("got %v, %v", switches, err)
	}
	group, err := l.Group(ctx, "sg-1")
	if err != nil || len(group.Rules) != 1 || group.Inside || group.Rules[0].SourceCidrIp != "10.0.0.0/8" || group.Rules[0].Direction != "ingress" {
		t.Errorf("got %v, %v", group, err)
	}
	if len(l.seen) != len(l.cloud.Calls()) || l.seen[0] != "DescribeInstances OK" {
		t.Errorf("saw %v", l.seen)
	}
}

// Every call of ECS: an interface is attached while the instance runs, a call assigns several addresses, and a second
// call with the same token does nothing more.
func TestCallsOfECS(t *testing.T) {
	ctx := t.Context()
	fake := ens.NewECS(map[string]ens.Type{"ecs.small": {Interfaces: 2, Addresses: 6}})
	fake.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	fake.AddGroup("sg-1")
	fake.AddTyped("i-1", "ecs.small", "vsw-1", "sg-1")
	fake.AddKey(ens.Key{ID: testKey, Secret: testSecret, Actions: []string{"ecs:*", "vpc:DescribeVSwitches"}})
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	t.Cleanup(fake.Close)
	c, err := New(Options{Service: ECS, Region: "cn-test-1", Endpoint: server.URL, Credentials: Credentials{Key: testKey, Secret: testSecret}})
	if err != nil {
		t.Fatal(err)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(what, err)
		}
	}
	all, err := c.Instances(ctx, "i-1", "i-2")
	if got := fmt.Sprint(all, err); got != "[{i-1 Running cn-test-1 ecs.small cn-test-1-a vsw-1 [sg-1] []}] <nil>" {
		t.Errorf("got %s", got)
	}
	limits, err := c.Limits(ctx, "ecs.small")
	if limits != (Limits{Interfaces: 1, Addresses: 5}) || err != nil {
		t.Errorf("got %+v, %v", limits, err)
	}
	if _, err := c.Limits(ctx, "ecs.large"); !Is(err, NotFound) {
		t.Errorf("got %v", err)
	}
	create := NewInterface{Name: "edgeway-i-1-1", VSwitch: "vsw-1", Groups: []string{"sg-1"}, Token: "t1"}
	id, err := c.CreateInterface(ctx, create)
	must("create", err)
	if again, err := c.CreateInterface(ctx, create); again != id || err != nil {
		t.Errorf("a second call with the token made %s, %v", again, err)
	}
	must("attach", c.AttachInterface(ctx, id, "i-1"))
	find := func() Interface {
		t.Helper()
		all, err := c.Interfaces(ctx, Filter{Name: "edgeway-i-1-1"})
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	for find().Status != InUse {
	}
	must("assign", c.AssignAddresses(ctx, id, 3, "t2"))
	must("assign", c.AssignAddresses(ctx, id, 3, "t2"))
	if n := find(); fmt.Sprintf("%v %v %v %v %s", n.Address, n.Addresses, n.Primary, n.Groups, n.Instance) != "10.0.0.2 [10.0.0.3 10.0.0.4 10.0.0.5] false [sg-1] i-1" {
		t.Errorf("got %+v", n)
	}
	if err := c.AssignAddresses(ctx, id, 3, "t3"); !Is(err, Refused) || len(find().Addresses) != 3 {
		t.Errorf("more addresses than the type has: %v", err)
	}
	must("unassign", c.UnassignAddress(ctx, id, netip.MustParseAddr("10.0.0.4")))
	if switches, err := c.VSwitches(ctx, "vsw-1", "vsw-2"); err != nil || len(switches) != 1 || switches[0].Free != 248 || switches[0].Zone != "cn-test-1-a" {
		t.Errorf("got %v, %v", switches, err)
	}
	fake.LetInside("sg-1")
	if g, err := c.Group(ctx, "sg-1"); !g.Inside || err != nil {
		t.Errorf("got %+v, %v", g, err)
	}
	for range 70 { // more than a page
		_, err := c.CreateInterface(ctx, NewInterface{Name: "other", VSwitch: "vsw-1", Groups: []string{"sg-1"}})
		must("create", err)
	}
	if all, err := c.Interfaces(ctx, Filter{VSwitch: "vsw-1", Status: Available}); len(all) != 70 || err != nil {
		t.Errorf("got %d, %v", len(all), err)
	}
	fake.AddKey(ens.Key{ID: testKey, Secret: testSecret, Actions: []string{"ecs:DescribeInstances"}})
	if _, err := c.VSwitches(ctx, "vsw-1"); err == nil || !strings.Contains(err.Error(), "allows vpc:DescribeVSwitches") {
		t.Errorf("got %v", err)
	}
}

// A list is whole or it is an error.
func TestPages(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	for n := range 13 {
		i := fmt.Sprint("i-", n+2)
		l.cloud.AddInstance(i, "vsw-1", "sg-1")
		for range 7 {
			l.cloud.Bind(i)
		}
	}
	all, err := l.Interfaces(ctx, Filter{})
	if err != nil || len(all) != 1+13*8 {
		t.Errorf("got %d interfaces, %v", len(all), err)
	}
	turns := 0
	l.options.Turn = func(context.Context) error { turns++; return nil }
	if _, err := l.Interfaces(ctx, Filter{}); err != nil || turns != 2 {
		t.Errorf("%d turns for three pages, %v", turns, err)
	}
	pages := 0
	l.cloud.SetFaults(func(ens.Call) ens.Fault {
		if pages++; pages == 2 {
			return ens.Fault{Stale: 8} // the second page is from a time with fewer interfaces
		}
		return ens.Fault{}
	})
	if all, err := l.Interfaces(ctx, Filter{}); !Is(err, Unreachable) {
		t.Errorf("pages of two states: got %d interfaces, %v", len(all), err)
	}
}

// A failed call is a value: what it means, and the next step; and it holds no secret.
func TestErrors(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.cloud.AddKey(ens.Key{ID: testKey + "-sts", Secret: testSecret, Token: testToken, Actions: []string{"ens:DescribeInstances"}})
	session := l.client(t, Credentials{testKey + "-sts", testSecret, testToken})
	if _, err := session.Instances(ctx, "i-1"); err != nil {
		t.Fatal(err)
	}
	var texts bytes.Buffer
	log := slog.New(slog.NewTextHandler(&texts, nil))
	fault := func(f ens.Fault) { l.cloud.SetFaults(func(ens.Call) ens.Fault { return f }) }
	start := func(c *Client) error { return c.StartInstance(ctx, "i-1") }
	for _, test := range []struct {
		name  string
		fault ens.Fault
		err   func() error
		want  Kind
		says  string
	}{
		{"lost answer", ens.Fault{Lose: true}, func() error { return start(l.Client) }, Unreachable, "StartInstance: unreachable: "},
		{"proxy", ens.Fault{Status: 503}, func() error { return start(l.Client) }, Unreachable, "503 Service Unavailable, which is not an answer of the API"},
		{"unavailable", ens.Fault{Code: "ServiceUnavailable", Status: 503}, func() error { return start(l.Client) }, Unreachable, "ServiceUnavailable"},
		{"throttled", ens.Fault{Code: "Throttling.User"}, func() error { return start(l.Client) }, Throttled, "Throttling.User (made to fail)"},
		{"secret in the message", ens.Fault{Code: "Odd." + testSecret}, func() error { return start(l.Client) }, Refused, "Odd"},
		{"running already", ens.Fault{}, func() error { return start(l.Client) }, Refused, "IncorrectInstanceStatus"},
		{"no such interface", ens.Fault{}, func() error { return l.AssignAddresses(ctx, "eni-x", 1, "") }, NotFound, "InvalidEniId.NotFound"},
		{"no such instance", ens.Fault{}, func() error { return l.StopInstance(ctx, "i-x") }, NotFound, "InstanceIdNotFound"},
		{"no permission", ens.Fault{}, func() error { return start(session) }, Denied, "its RAM policy allows ens:StartInstance"},
		{"wrong secret", ens.Fault{}, func() error { return start(l.client(t, Credentials{Key: testKey, Secret: "x" + testSecret})) }, Denied, "SignatureDoesNotMatch"},
		{"unknown key", ens.Fault{}, func() error { return start(l.client(t, Credentials{Key: "x" + testKey, Secret: testSecret})) }, Denied, "InvalidAccessKeyId.NotFound"},
	} {
		fault(test.fault)
		err := test.err()
		if !Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %s and %q", test.name, err, test.want, test.says)
		}
		log.Warn(fmt.Sprintf("%v %+v", err, l.options.Credentials), "err", err, "client", fmt.Sprintf("%#v", l.options.Credentials), "who", l.options.Credentials)
	}
	fault(ens.Fault{})
	l.cloud.SetSkew(-20 * time.Minute)
	if err := start(l.Client); !Is(err, WrongClock) || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("clock: got %v", err)
	}
	away, err := New(Options{Credentials: l.options.Credentials, Endpoint: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	err = start(away)
	if !Is(err, Unreachable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("away: got %v", err)
	}
	log.Warn("x", "err", err)
	for _, secret := range []string{testSecret, testToken, testKey, "Signature"} {
		if i := strings.Index(strings.ReplaceAll(texts.String(), "SignatureDoesNotMatch", ""), secret); i >= 0 {
			t.Errorf("%s is in the log:\n%s", secret, texts.String())
		}
	}
}

// A call that hangs ends by itself, and at once when its context ends; each call has a nonce of its own.
func TestHangs(t *testing.T) {
	l := newLab(t)
	l.cloud.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Hang: true} })
	began := time.Now()
	if err := l.StartInstance(t.Context(), "i-1"); !Is(err, Unreachable) || !strings.Contains(err.Error(), "no answer") || time.Since(began) < CallTimeout {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l.cloud.SetFaults(func(ens.Call) ens.Fault { cancel(); return ens.Fault{Hang: true} })
	if err := l.StartInstance(ctx, "i-1"); !Is(err, Unreachable) || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("canceled: %v", err)
	}
	l.cloud.SetFaults(nil)
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := l.Instances(t.Context(), "i-1"); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// An answer that is not the API's is an error, not an empty list. An endpoint that redirects gets nothing.
func TestOddAnswers(t *testing.T) {
	var targets []string
	var status int
	var body string
	odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		targets = append(targets, r.URL.Path)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	defer odd.Close()
	c, err := New(Options{Credentials: Credentials{Key: testKey, Secret: testSecret}, Endpoint: odd.URL})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		status int
		body   string
	}{{200, ""}, {200, "<html>"}, {200, `{"Instances": 3}`}, {200, `{"TotalCount": 1}`}, {307, `{"Code": "x"}`[:0]}, {502, "<html>"}, {400, `{}`}, {400, `[]`}} {
		status, body = test.status, test.body
		if all, err := c.Instances(t.Context(), "i-1"); !Is(err, Unreachable) {
			t.Errorf("%d %q: got %v, %v", status, body, all, err)
		}
	}
	if slices.Contains(targets, "/elsewhere") {
		t.Error("a redirect was followed")
	}
}

func TestNew(t *testing.T) {
	for endpoint, want := range map[string]string{"": "https ens.ap-southeast-1.aliyuncs.com", "ens-vpc.ap-southeast-1.aliyuncs.com": "https ens-vpc.ap-southeast-1.aliyuncs.com",
		"http://127.0.0.1:8080": "http 127.0.0.1:8080", "http://127.0.0.1:8080/": "http 127.0.0.1:8080", "ftp://x": "", "http://a/b": "", "http://u:p@h": ""} {
		c, err := New(Options{Credentials: Credentials{Key: "k", Secret: "s"}, Endpoint: endpoint, Region: "ap-southeast-1"})
		if got := ""; err == nil {
			if got = c.protocol + " " + c.host; got != want {
				t.Errorf("%q: got %s, want %s", endpoint, got, want)
			}
		} else if want != "" {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a client without credentials")
	}
	for service, want := range map[Service]string{ENS: "ens.aliyuncs.com", ECS: "ecs.cn-hangzhou.aliyuncs.com"} {
		if got := service.Endpoint("cn-hangzhou"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := New(Options{Service: ECS, Credentials: Credentials{Key: "k", Secret: "s"}}); err == nil {
		t.Error("a client of ECS without a region")
	}
}

// A file that others can read is told apart from a file that is no use, and no error shows a part of it.
func TestReadCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ens.json")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	good := fmt.Sprintf(`{"AccessKey": %q, "SecretKey": %q}`, testKey, testSecret)
	write(good, 0o600)
	if c, err := ReadCredentials(path); err != nil || c != (Credentials{Key: testKey, Secret: testSecret}) {
		t.Errorf("got %#v, %v", c, err)
	}
	for _, test := range []struct {
		text string
		mode os.FileMode
		want string
	}{{good, 0o660, "chmod 600"}, {good, 0o604, "chmod 600"}, {good[:len(good)-1], 0o600, "want {"}, {`{"AccessKey": "x"}`, 0o600, "want {"}} {
		write(test.text, test.mode)
		if _, err := ReadCredentials(path); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), testSecret) || errors.Is(err, ErrReadable) != (test.want == "chmod 600") {
			t.Errorf("%s %o: got %v", test.text, test.mode, err)
		}
	}
	for _, name := range []string{keyVariable, secretVariable, tokenVariable} {
		t.Setenv(name, "")
	}
	if _, err := EnvCredentials(); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("got %v", err)
	}
	t.Setenv(keyVariable, testKey)
	t.Setenv(secretVariable, testSecret)
	if c, err := EnvCredentials(); err != nil || c.Key != testKey {
		t.Errorf("got %v, %v", c, err)
	}
}
