package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestKubeconfigComesLate(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	c := newClient(t, path, hasty)
	c.until(t, "nothing", func(_ World, err error) bool {
		return err != nil && strings.Contains(err.Error(), path) && strings.Contains(err.Error(), "wait until the program that writes it")
	})
	mustWrite(t, path, "half a fi: [")
	mustWrite(t, path, kubeconfigOf(s.URL, ""))
	c.untilIs(t, "n1")
}

func TestKubeconfigReplaced(t *testing.T) {
	s, c := known(t)
	path := c.source.options.Kubeconfig
	mustWrite(t, path, "nonsense")
	p := c.untilProblem(t, all, badKubeconfig)
	if !strings.Contains(p.Next, "the earlier connection stays") {
		t.Errorf("got %s", p)
	}
	s.put(kindNode, apiNode(t, "n3", "192.0.2.13", "10.10.3.0/24")) // which goes on
	c.untilProblem(t, "n1 n2 n3 BGPPeer/lan Secret/bgp=secret", badKubeconfig)
	mustWrite(t, path, kubeconfigOf(s.URL, ""))
	c.untilIs(t, "n1 n2 n3 BGPPeer/lan Secret/bgp=secret")

	other := newAPIServer(t)
	other.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	mustWrite(t, path, kubeconfigOf(other.URL, ""))
	if w := c.untilIs(t, "n1"); w.Source != "API server "+other.URL {
		t.Errorf("got %q", w.Source)
	}
	waitFor(t, "the old server left alone", func() bool { return s.watches() == 0 })
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(longest); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not seen: " + what)
		}
		<-time.After(time.Millisecond)
	}
}

// A token file is read again when it changes.
func TestTokenFileRotates(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	wanted := "one"
	s.fails(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer "+wanted {
			return false
		}
		status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return true
	})
	dir := t.TempDir()
	token, path := filepath.Join(dir, "token"), filepath.Join(dir, "kubeconfig")
	mustWrite(t, token, "one")
	secure := secured(t, s) // credentials are sent over TLS only
	mustWrite(t, path, kubeconfigOf(secure.URL, "tokenFile: "+token))
	trust(t, path, secure)
	c := newClient(t, path, hasty)
	c.untilIs(t, "n1")
	s.mu.Lock()
	wanted = "two"
	s.mu.Unlock()
	s.cut()
	c.untilProblem(t, "n1", unauthorized)
	mustWrite(t, token, "two")
	c.untilIs(t, "n1")
	s.fails(nil)
}

// A client certificate file that is replaced, as a kubelet does, is used at once.
func TestClientCertificateRotates(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	var mu sync.Mutex
	seen := map[string]int{}
	s.fails(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		seen[r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.Proto]++
		return false
	})
	saw := func(what string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return seen[what] > 0
		}
	}
	secure := secured(t, s)
	dir := t.TempDir()
	pem, path := filepath.Join(dir, "client.pem"), filepath.Join(dir, "kubeconfig")
	mustWrite(t, pem, certificate(t, "first"))
	mustWrite(t, path, kubeconfigOf(secure.URL, "client-certificate: client.pem, client-key: client.pem"))
	trust(t, path, secure)
	c := newClient(t, path, hasty)
	c.untilIs(t, "n1")
	waitFor(t, "a request with the first certificate", saw("first HTTP/2.0"))
	s.asked()
	mustWrite(t, pem+".new", certificate(t, "second"))
	mustRename(t, pem+".new", pem)
	waitFor(t, "a request with the second certificate", saw("second HTTP/2.0"))
	for _, r := range s.asked() {
		if strings.HasPrefix(r, "list nodes") && !strings.HasSuffix(r, " n1") { // it is the same server, which says its version
			t.Errorf("asked to %s again", r)
		}
	}
}

// The API server gets a certificate of another authority, and then one that this node's clock calls expired, as a clock
// does that is an hour ahead: each time the problem names the next step, and the present files end it.
func TestServerCertificateRotates(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	var mu sync.Mutex
	var present tls.Certificate
	secure := httptest.NewUnstartedServer(s)
	secure.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		return &tls.Config{Certificates: []tls.Certificate{present}}, nil
	}}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(func() { s.shut(secure) })
	path := filepath.Join(t.TempDir(), "kubeconfig")
	rotate := func(until time.Time) (ca string) {
		ca = serverCertificate(t, until)
		pair, err := tls.X509KeyPair([]byte(ca), []byte(ca))
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		present = pair
		mu.Unlock()
		secure.CloseClientConnections()
		return ca
	}
	trusts := func(ca string) {
		text := base64.StdEncoding.EncodeToString([]byte(ca))
		mustWrite(t, path, strings.Replace(kubeconfigOf(secure.URL, ""), "{server:", "{certificate-authority-data: "+text+", server:", 1))
	}
	trusts(rotate(time.Now().Add(time.Hour)))
	c := newClient(t, path, hasty)
	c.untilIs(t, "n1")
	ca := rotate(time.Now().Add(time.Hour))
	if p := c.untilProblem(t, "n1", APIServerUnreachable); !strings.Contains(p.Next, "the certificate authority that signed") || !strings.Contains(p.Next, path) {
		t.Errorf("another authority: %s", p)
	}
	trusts(ca)
	c.untilIs(t, "n1")
	ca = rotate(time.Now().Add(-time.Minute))
	trusts(ca)
	c.until(t, "the advice to look at the clock", func(w World, err error) bool {
		return err == nil && len(w.Problems) == 1 && w.Problems[0].Reason == APIServerUnreachable && strings.Contains(w.Problems[0].Next, "compare this node's clock with the server's")
	})
	trusts(rotate(time.Now().Add(time.Hour)))
	c.untilIs(t, "n1")
}

// serverCertificate is a certificate of 127.0.0.1 in PEM, signed by itself, with its key.
func serverCertificate(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	return inPEM(t, form, key)
}

// A kubeconfig may name a command that gives the credentials. If the command fails, the problem says so.
func TestExecCredentialPlugin(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	s.fails(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer secret" {
			return false
		}
		status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return true
	})
	secure := secured(t, s)
	dir := t.TempDir()
	path, token := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "token")
	const plugin = `exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, interactiveMode: Never, args: [-c, "exec cat %s 2>/dev/null"]}`
	mustWrite(t, path, kubeconfigOf(secure.URL, fmt.Sprintf(plugin, token)))
	trust(t, path, secure)
	c := newClient(t, path, hasty)
	c.until(t, "the error of the command", func(_ World, err error) bool {
		return err != nil && strings.Contains(err.Error(), "getting credentials: ") && strings.Contains(err.Error(), "user.exec in "+path)
	})
	mustWrite(t, token, `{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "secret"}}`)
	c.untilIs(t, "n1")
}

// secured is the same server behind TLS and HTTP/2, which asks for a client certificate.
func secured(t *testing.T, s *apiServer) *httptest.Server {
	t.Helper()
	secure := httptest.NewUnstartedServer(s)
	secure.EnableHTTP2 = true
	secure.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(func() { s.shut(secure) })
	return secure
}

// trust adds the server's certificate to the kubeconfig.
func trust(t *testing.T, path string, s *httptest.Server) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	mustWrite(t, path, strings.Replace(string(text), "{server:", "{certificate-authority-data: "+ca+", server:", 1))
}

// certificate is one in PEM, with its key.
func certificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}, key)
}

// inPEM is a certificate that its own key has signed, and the key.
func inPEM(t *testing.T, form *x509.Certificate, key *ecdsa.PrivateKey) string {
	t.Helper()
	cert, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}))
}

// A server that takes the request and says nothing, or stops in the middle of a list, is left.
// World never waits for it.
func TestServerHangs(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"before its answer": func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"in its middle": func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, `{"kind":"NodeList","items":[`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		},
		"in the middle of an error": func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"kind":"Status",`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
			s.fails(fault)
			p := hasty
			p.dial, p.answer, p.silence = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
			c := newClient(t, s.kubeconfig(t), p)
			c.until(t, "nothing", func(_ World, err error) bool { return err != nil && strings.Contains(err.Error(), "list ") })
			s.fails(nil)
			c.untilIs(t, "n1")
		})
	}
}

// swallower is a network between client and server that can lose every packet without a word.
type swallower struct {
	net.Listener
	mu   sync.Mutex
	lost bool
	open []net.Conn
}

func newSwallower(t *testing.T, to string) *swallower {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &swallower{Listener: l}
	t.Cleanup(func() {
		l.Close()
		for _, c := range n.open {
			c.Close()
		}
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			n.mu.Lock()
			n.open = append(n.open, in, out)
			n.mu.Unlock()
			go n.carry(in, out)
			go n.carry(out, in)
		}
	}()
	return n
}

func (n *swallower) carry(from, to net.Conn) {
	packet := make([]byte, 64<<10)
	for {
		size, err := from.Read(packet)
		n.mu.Lock()
		lost := n.lost
		n.mu.Unlock()
		switch {
		case err != nil && !lost:
			to.Close()
			return
		case err != nil:
			return // and the connection stays, as nobody says otherwise
		case !lost:
			_, _ = to.Write(packet[:size])
		}
	}
}

func (n *swallower) lose(lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = lost
	if !lost { // the path is back; what was sent meanwhile is not
		for _, c := range n.open {
			c.Close()
		}
		n.open = nil
	}
}

// A WAN that swallows packets leaves the connection open at both ends. It is noticed by pings.
func TestHalfOpenConnection(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	secure := secured(t, s)
	wan := newSwallower(t, secure.Listener.Addr().String())
	path := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, path, kubeconfigOf("https://"+wan.Addr().String(), ""))
	trust(t, path, secure)
	p := hasty
	p.ping, p.dial, p.answer = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	c := newClient(t, path, p)
	c.untilIs(t, "n1")
	wan.lose(true)
	s.put(kindNode, apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24"))
	c.untilProblem(t, "n1", APIServerUnreachable)
	wan.lose(false)
	c.untilIs(t, "n1 n2")
}

// The status that kubelets keep writing wakes nobody.
func TestHeartbeatsDoNotWake(t *testing.T) {
	s, c := known(t)
	for i := range 50 {
		n := apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24")
		n["metadata"].(map[string]any)["annotations"] = map[string]any{"beat": fmt.Sprint(i)}
		status := n["status"].(map[string]any)
		status["images"] = []any{map[string]any{"names": []any{fmt.Sprint("image", i)}}}
		for _, condition := range status["conditions"].([]any) {
			condition.(map[string]any)["lastHeartbeatTime"] = fmt.Sprintf("2026-11-22T03:00:%02dZ", i)
		}
		status["conditions"].([]any)[0].(map[string]any)["status"] = []string{"True", "False"}[i%2]
		s.put(kindNode, n)
		p := apiPeer(t, "lan", `"n1"`)
		p["status"] = map[string]any{"conditions": []any{map[string]any{"type": fmt.Sprint("C", i)}}}
		s.put(kindPeer, p)
	}
	c.mu.Lock()
	before := c.calls
	c.mu.Unlock()
	s.put(kindNode, apiNode(t, "n3", "192.0.2.13", "10.10.3.0/24"))
	c.untilIs(t, "n1 n2 n3 BGPPeer/lan Secret/bgp=secret")
	c.mu.Lock()
	defer c.mu.Unlock()
	// The heartbeats may still have been on their way when the calls were first counted.
	if c.calls != before+1 || before > 12 {
		t.Errorf("called %d times up to the heartbeats, %d times in all", before, c.calls)
	}
}

// Watch leaves no goroutine and no connection behind.
func TestWatchEndsWhole(t *testing.T) {
	s, first := known(t)
	first.stop()
	s.CloseClientConnections()
	waitFor(t, "idle server", func() bool { return s.watches() == 0 })
	before := stacks()
	for range 5 {
		c := newClient(t, first.source.options.Kubeconfig, hasty)
		c.untilIs(t, all)
		c.stop()
	}
	waitFor(t, "idle server", func() bool { return s.watches() == 0 })
	deadline := time.Now().Add(longest)
	for after := stacks(); after > before; after = stacks() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines of ours before, %d after", before, after)
		}
		<-time.After(time.Millisecond)
	}
}

// stacks counts the goroutines that are not of the test's own server.
func stacks() int {
	text := make([]byte, 4<<20)
	n := 0
	for _, stack := range strings.Split(string(text[:runtime.Stack(text, true)]), "\n\n") {
		if !strings.Contains(stack, "net/http.(*conn).serve") && !strings.Contains(stack, "net/http.(*Server).Serve") &&
			!strings.Contains(stack, "backgroundRead") {
			n++
		}
	}
	return n
}

// Libraries write to no log: World returns their errors.
func TestSilentOnStderr(t *testing.T) {
	if os.Getenv("EDGEWAY_TEST_FLAPPING") != "" {
		flap(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSilentOnStderr$")
	cmd.Env = append(os.Environ(), "EDGEWAY_TEST_FLAPPING=1")
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = io.Discard, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err, stderr.String())
	}
	if stderr.Len() > 0 {
		t.Errorf("got on stderr:\n%s", stderr.String())
	}
}

// flap runs a client against a server that is there and away in turns, with credentials that come and go.
func flap(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24"))
	dir := t.TempDir()
	token, path := filepath.Join(dir, "token"), filepath.Join(dir, "kubeconfig")
	mustWrite(t, token, "one")
	secure := secured(t, s) // credentials are sent over TLS only
	mustWrite(t, path, kubeconfigOf(secure.URL, "tokenFile: "+token))
	trust(t, path, secure)
	c := newClient(t, path, hasty)
	c.untilIs(t, "n1")
	for _, fault := range []func(http.ResponseWriter, *http.Request) bool{
		dropped, answers(http.StatusUnauthorized, "Unauthorized", "Unauthorized"), answers(http.StatusInternalServerError, "", "no"), dropped,
		func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Warning", `299 - "deprecated"`)
			fmt.Fprint(w, "garbage")
			return true
		},
	} {
		_ = os.Remove(token) // and the token cannot be renewed meanwhile
		s.fails(fault)
		s.cut()
		c.until(t, "n1 with a problem", func(w World, err error) bool { return err == nil && len(w.Problems) > 0 })
		mustWrite(t, token, "one")
		s.fails(nil)
		c.untilIs(t, "n1")
	}
}
