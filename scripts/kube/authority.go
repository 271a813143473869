package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority signs the certificates of one control plane.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey
}

// validity is far longer than a test.
const validity = 30 * 24 * time.Hour

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	template := template(pkix.Name{CommonName: "edgeway-test"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return &authority{cert: cert, certPEM: pemOf("CERTIFICATE", der), key: key}, nil
}

func template(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // rand.Reader does not fail
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// client returns the certificate of a user. Kubernetes takes the common name as the user's name and the
// organizations as the user's groups.
func (a *authority) client(user string, groups []string) (cert, key []byte, err error) {
	t := template(pkix.Name{CommonName: user, Organization: groups})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.sign(t)
}

// server returns the certificate of a server with these addresses and names.
func (a *authority) server(addrs []net.IP, names []string) (cert, key []byte, err error) {
	t := template(pkix.Name{CommonName: apiServer})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.IPAddresses, t.DNSNames = addrs, names
	return a.sign(t)
}

func (a *authority) sign(t *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", t.Subject.CommonName, err)
	}
	return pemOf("CERTIFICATE", der), keyPEM, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	return key, pemOf("EC PRIVATE KEY", der), nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// auditPolicy logs every request when it is answered. A watch is also logged when it begins.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`

func (c *ControlPlane) writeFiles() (err error) {
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	addrs := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, c.o.Addr.AsSlice()}
	for _, cidr := range c.o.ServiceCIDRs {
		first, _, err := net.ParseCIDR(cidr)
		if err != nil {
			return fmt.Errorf("service CIDR: %w", err)
		}
		first[len(first)-1]++ // the Service "kubernetes" has the first address
		addrs = append(addrs, first)
	}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	cert, key, err := c.ca.server(addrs, names)
	if err != nil {
		return err
	}
	_, accounts, err := newKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": c.ca.certPEM, "apiserver.crt": cert, "apiserver.key": key, "accounts.key": accounts,
		"audit-policy.yaml": []byte(auditPolicy), "audit.log": nil,
	}
	for name, text := range files {
		if err := os.WriteFile(c.file(name), text, 0o600); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
	}
	return nil
}
