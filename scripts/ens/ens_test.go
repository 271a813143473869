package ens

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The signatures of the vendor's own clients are valid, and a request with one byte changed is not.
func TestSignatures(t *testing.T) {
	for _, name := range []string{"v3.http", "v1.http"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		valid := func(text []byte, secret string) bool {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")))))
			if err != nil {
				t.Fatal(name, err)
			}
			in, err := read(r, nil)
			if err != nil {
				t.Fatal(name, err)
			}
			if in.action != "DescribeNetworkInterfaces" || in.key != "AKID" || in.query["PageSize"] != "10" {
				t.Errorf("%s: read %+v", name, in)
			}
			return in.valid(secret)
		}
		if !valid(text, "SECRET") {
			t.Errorf("%s: the signature of the vendor's client is not valid", name)
		}
		if valid(text, "SECRETS") || valid(bytes.Replace(text, []byte("-29T14"), []byte("-29T15"), 1), "SECRET") {
			t.Errorf("%s: a signature that is wrong is valid", name)
		}
	}
}

// client signs calls for the cloud. It exists once here and once in each client that is tested.
type client struct {
	t     *testing.T
	url   string
	key   Key
	at    time.Time
	nonce int
	same  bool // use the nonce again
}

func (c *client) call(action string, parameters ...string) (object, string) {
	c.t.Helper()
	q := url.Values{}
	for i := 0; i < len(parameters); i += 2 {
		q.Set(parameters[i], parameters[i+1])
	}
	r, err := http.NewRequest(http.MethodPost, c.url+"/?"+q.Encode(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	empty := sha256.Sum256(nil)
	if !c.same {
		c.nonce++
	}
	for name, value := range map[string]string{"action": action, "content-sha256": hex.EncodeToString(empty[:]), "date": c.at.UTC().Format(time.RFC3339),
		"signature-nonce": fmt.Sprintf("%p-%d", c, c.nonce), "version": versionENS, "security-token": c.key.Token} {
		if value != "" {
			r.Header.Set("x-acs-"+name, value)
		}
	}
	signed := "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version"
	if c.key.Token == "" {
		signed = strings.Replace(signed, "x-acs-security-token;", "", 1)
	}
	r.Header.Set("Authorization", algorithmV3+" Credential="+c.key.ID+",SignedHeaders="+signed+",Signature="+signV3(c.key.Secret, r, signed, nil, q))
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, "broken"
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, "broken"
	}
	var out object
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, fmt.Sprint(answer.StatusCode)
	}
	code, _ := out["Code"].(string)
	return out, code
}

// must makes a call that has to succeed.
func (c *client) must(action string, parameters ...string) object {
	c.t.Helper()
	out, code := c.call(action, parameters...)
	if code != "" {
		c.t.Fatalf("%s %v: %s", action, parameters, code)
	}
	return out
}

func newCloud(t *testing.T) (*Cloud, *client) {
	c := New()
	c.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
	c.AddGroup("sg-1", Rule{Direction: "ingress", IpProtocol: "ALL", PortRange: "-1/-1", SourceCidrIp: "10.0.0.0/8", Policy: "Accept", Priority: 1})
	c.AddInstance("i-1", "vsw-1", "sg-1")
	key := Key{ID: "AKID", Secret: "SECRET", Actions: []string{"ens:*"}}
	c.AddKey(key)
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	t.Cleanup(c.Close)
	return c, &client{t: t, url: server.URL, key: key, at: time.Now()}
}

// Who calls, when, and whether he may.
func TestAdmission(t *testing.T) {
	cloud, good := newCloud(t)
	reader := Key{ID: "READER", Secret: "S", Actions: []string{"ens:DescribeInstances"}}
	session := Key{ID: "STS", Secret: "S", Token: "T", Actions: []string{"ens:*"}}
	cloud.AddKey(reader)
	cloud.AddKey(session)
	as := func(k Key) *client { return &client{t: t, url: good.url, key: k, at: time.Now()} }
	late := as(good.key)
	late.at = time.Now().Add(-16 * time.Minute)
	again := as(session)
	again.must("DescribeInstances")
	again.same = true
	for _, test := range []struct {
		name   string
		by     *client
		action string
		want   string
	}{
		{"unknown key", as(Key{ID: "NOBODY"}), "DescribeInstances", "InvalidAccessKeyId.NotFound"},
		{"wrong secret", as(Key{ID: "AKID", Secret: "X"}), "DescribeInstances", "SignatureDoesNotMatch"},
		{"no token", as(Key{ID: "STS", Secret: "S"}), "DescribeInstances", "InvalidSecurityToken.Malformed"},
		{"16 minutes late", late, "DescribeInstances", "InvalidTimeStamp.Expired"},
		{"the same nonce again", again, "DescribeInstances", "SignatureNonceUsed"},
		{"may read", as(reader), "DescribeInstances", ""},
		{"may not stop", as(reader), "StopInstance", "NoPermission"},
		{"unknown action", as(good.key), "DescribeInstance", "InvalidAction.NotFound"},
	} {
		if _, code := test.by.call(test.action); code != test.want {
			t.Errorf("%s: got %q, want %q", test.name, code, test.want)
		}
	}
	cloud.SetSkew(16 * time.Minute)
	if _, code := good.call("DescribeInstances"); code != "InvalidTimeStamp.Expired" {
		t.Errorf("the cloud's clock is off: got %q", code)
	}
}

// The life of an interface, with each rule of the cloud on the way.
func TestRules(t *testing.T) {
	cloud, by := newCloud(t)
	refused := func(want, action string, parameters ...string) {
		t.Helper()
		if _, code := by.call(action, parameters...); code != want {
			t.Errorf("%s %v: got %q, want %q", action, parameters, code, want)
		}
	}
	id := func(o object) string { return o["NetworkInterfaceIds"].([]any)[0].(string) }
	status := func() string {
		return by.must("DescribeInstances", "InstanceIds", `["i-1"]`)["Instances"].(object)["Instance"].([]any)[0].(object)["Status"].(string)
	}
	interfaces := func(parameters ...string) []any {
		return by.must("DescribeNetworkInterfaces", parameters...)["NetworkInterfaceSets"].(object)["NetworkInterfaceSet"].([]any)
	}
	refused("MissingParameter", "AttachNetworkInterface", "InstanceId", "i-1")
	refused("InvalidParameter.Count", "AssignPrivateIpAddresses", "NetworkInterfaceId", "x", "Count", "3")
	refused("InstanceIdNotFound", "StopInstance", "InstanceId", "i-2")
	refused("IncorrectInstanceStatus", "StartInstance", "InstanceId", "i-1")
	primary := cloud.Interfaces("i-1")[0]
	refused("InvalidParameter.NetworkInterfaceId", "AssignPrivateIpAddresses", "NetworkInterfaceId", primary.ID)
	create := func() string {
		return id(by.must("CreateNetworkInterface", "VSwitchId", "vsw-1", "SecurityGroupIds", `["sg-1"]`, "Name", "n"))
	}
	first := create()
	refused("IncorrectInstanceStatus", "AttachNetworkInterface", "NetworkInterfaceId", first, "InstanceId", "i-1")
	by.must("StopInstance", "InstanceId", "i-1", "ForceStop", "false")
	refused("IncorrectInstanceStatus", "AttachNetworkInterface", "NetworkInterfaceId", first, "InstanceId", "i-1")
	for _, want := range []string{Stopping, Stopping, Stopped, Stopped} {
		if got := status(); got != want {
			t.Errorf("the instance is %s, want %s", got, want)
		}
	}
	for n := range 9 {
		next := first
		if n > 0 {
			next = create()
		}
		by.must("AttachNetworkInterface", "NetworkInterfaceId", next, "InstanceId", "i-1")
	}
	refused("EniPerInstanceLimitExceeded", "AttachNetworkInterface", "NetworkInterfaceId", create(), "InstanceId", "i-1")
	refused("InvalidOperation.InvalidEniState", "AttachNetworkInterface", "NetworkInterfaceId", first, "InstanceId", "i-1")
	refused("IncorrectInstanceStatus", "StartInstance", "InstanceId", "i-1")
	for _, want := range []string{Attaching, Attaching, "In_use"} {
		if got := interfaces("NetworkInterfaceIds.1", first)[0].(object)["Status"]; got != want {
			t.Errorf("the interface is %s, want %s", got, want)
		}
	}
	interfaces("InstanceId", "i-1", "PageSize", "50")
	interfaces("InstanceId", "i-1", "PageSize", "50")
	interfaces("InstanceId", "i-1", "PageSize", "50")
	by.must("StartInstance", "InstanceId", "i-1")
	for range MostAddresses {
		by.must("AssignPrivateIpAddresses", "NetworkInterfaceId", first)
	}
	refused("QuotaExceeded.PrivateIpAddress", "AssignPrivateIpAddresses", "NetworkInterfaceId", first)
	a := cloud.Interfaces("i-1")[1].Addresses[3].String()
	by.must("UnassignPrivateIpAddresses", "NetworkInterfaceId", first, "PrivateIpAddress.1", a)
	refused("InvalidIp.IpUnassigned", "UnassignPrivateIpAddresses", "NetworkInterfaceId", first, "PrivateIpAddress.1", a)
	if again := cloud.Give(first).String(); again == a {
		t.Errorf("%s came back at once", a)
	}
	cloud.Limit("vsw-1", 0)
	other := cloud.Interfaces("i-1")[2].ID
	refused("InvalidVSwitchId.IpNotEnough", "AssignPrivateIpAddresses", "NetworkInterfaceId", other)
}

// Lists come in pages of at most 50, whatever the caller asks for.
func TestPages(t *testing.T) {
	cloud, by := newCloud(t)
	for n := range 12 {
		i := fmt.Sprint("i-", n+2)
		cloud.AddInstance(i, "vsw-1", "sg-1")
		for range 4 {
			cloud.Bind(i)
		}
	}
	for i, want := range []int{50, 11, 0} {
		o := by.must("DescribeNetworkInterfaces", "PageSize", "100", "PageNumber", fmt.Sprint(i+1))
		got := len(o["NetworkInterfaceSets"].(object)["NetworkInterfaceSet"].([]any))
		if got != want || o["TotalCount"] != 61.0 {
			t.Errorf("a page of %d of %v, want %d of 61", got, o["TotalCount"], want)
		}
	}
}

// Every fault that a test can ask for.
func TestFaults(t *testing.T) {
	cloud, by := newCloud(t)
	n := cloud.Bind("i-1")
	with := func(f Fault) { cloud.SetFaults(func(Call) Fault { return f }) }
	count := func() int { return len(cloud.Interfaces("i-1")[1].Addresses) }
	for _, test := range []struct {
		fault   Fault
		want    string
		applied int
	}{
		{Fault{}, "", 1},
		{Fault{Lose: true}, "broken", 1},
		{Fault{Break: true}, "broken", 0},
		{Fault{Code: "Throttling.User"}, "Throttling.User", 0},
		{Fault{Status: 503}, "503", 0},
		{Fault{Code: "ServiceUnavailable", Status: 503}, "ServiceUnavailable", 0},
	} {
		with(test.fault)
		before := count()
		if _, code := by.call("AssignPrivateIpAddresses", "NetworkInterfaceId", n.ID); code != test.want || count()-before != test.applied {
			t.Errorf("%+v: got %q and %d addresses, want %q and %d", test.fault, code, count()-before, test.want, test.applied)
		}
	}
	shows := func() int {
		o := by.must("DescribeNetworkInterfaces", "NetworkInterfaceIds.1", n.ID)
		return len(o["NetworkInterfaceSets"].(object)["NetworkInterfaceSet"].([]any)[0].(object)["PrivateIpSets"].(object)["PrivateIpSet"].([]any)) - 1
	}
	with(Fault{Stale: 1})
	if got := shows(); got != 1 {
		t.Errorf("a stale list shows %d addresses, want 1", got)
	}
	with(Fault{})
	if got := shows(); got != 2 {
		t.Errorf("a list shows %d addresses, want 2", got)
	}
	with(Fault{Hang: true})
	hung := make(chan string, 1)
	go func() {
		_, code := by.call("AssignPrivateIpAddresses", "NetworkInterfaceId", n.ID)
		hung <- code
	}()
	for deadline := time.Now().Add(time.Minute); count() != 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a call that hangs was not carried out")
		}
	}
	if len(hung) > 0 {
		t.Error("a call that hangs was answered")
	}
}
