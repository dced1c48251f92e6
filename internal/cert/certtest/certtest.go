package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"certsync/internal/cert"
)

// TB is the part of testing.TB that is used here.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Options says what a certificate is to be. The zero value is a leaf for example.org and *.example.org with an
// ec256 key, signed by the root, valid from an hour ago for 90 days.
type Options struct {
	// Domains are the DNS names; nil means example.org and *.example.org.
	Domains []string
	// CommonName is the subject's; "" leaves it out, as the profiles tlsserver and shortlived of Let's Encrypt do.
	CommonName string
	// KeyType is that of a new key; "" means ec256.
	KeyType cert.KeyType
	// Key is used instead of a new one.
	Key crypto.Signer
	// NotBefore and NotAfter are cut to seconds; zero means an hour ago, and NotBefore + 90 days.
	NotBefore, NotAfter time.Time
	// Chain signs by the intermediate, which then follows the leaf in the bundle.
	Chain bool
	// Root appends the root to the chain, as some CAs do.
	Root bool
	// IsCA makes the certificate a CA's, which is no leaf: Issue fails, Sign does not.
	IsCA bool
	// Padding is the length in bytes of an extension without meaning, for bundles over HAProxy's tune.bufsize.
	Padding int
}

// CA is a root and one intermediate below it, valid from 2000 to 2100. It is safe for concurrent use.
type CA struct {
	root, intermediate       *x509.Certificate
	rootKey, intermediateKey crypto.Signer
}

// New makes a CA with new keys.
func New() (*CA, error) {
	c := &CA{}
	var err error
	if c.root, c.rootKey, err = authority("Root", nil, nil); err != nil {
		return nil, err
	}
	if c.intermediate, c.intermediateKey, err = authority("Intermediate", c.root, c.rootKey); err != nil {
		return nil, err
	}
	return c, nil
}

// NewCA is New for a test, which it fails where that fails.
func NewCA(tb TB) *CA {
	tb.Helper()
	c, err := New()
	if err != nil {
		tb.Fatalf("make a test CA: %v", err)
	}
	return c
}

// authority makes a CA certificate; a nil parent means that it signs itself.
func authority(name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial keeps two test CAs of one process from having the same subject.
		Subject:               pkix.Name{Organization: []string{"certsync test"}, CommonName: fmt.Sprintf("Test %s %x", name, serial.Bytes()[:4])},
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	c, err := sign(template, parent, key.Public(), parentKey)
	return c, key, err
}

func sign(template, parent *x509.Certificate, pub crypto.PublicKey, parentKey crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, parentKey)
	if err != nil {
		return nil, fmt.Errorf("sign a test certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// newSerial is a random positive number of exactly 16 bytes.
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// Make issues a bundle.
func (c *CA) Make(o Options) (*cert.Bundle, error) {
	key := o.Key
	if key == nil {
		var err error
		if key, err = keyType(o).Generate(); err != nil {
			return nil, err
		}
	}
	certificates, err := c.Sign(key.Public(), o)
	if err != nil {
		return nil, err
	}
	return cert.New(key, certificates...)
}

// Issue is Make for a test, which it fails where that fails.
func (c *CA) Issue(tb TB, o Options) *cert.Bundle {
	tb.Helper()
	b, err := c.Make(o)
	if err != nil {
		tb.Fatalf("issue a test certificate: %v", err)
	}
	return b
}

func keyType(o Options) cert.KeyType {
	if o.KeyType == "" {
		return cert.EC256
	}
	return o.KeyType
}

// Sign makes a certificate for a public key and gives it with its chain, the leaf first. It checks nothing, so that a
// test can have what package cert refuses.
func (c *CA) Sign(pub crypto.PublicKey, o Options) ([]*x509.Certificate, error) {
	template, err := leafTemplate(o)
	if err != nil {
		return nil, err
	}
	parent, parentKey := c.root, c.rootKey
	if o.Chain {
		parent, parentKey = c.intermediate, c.intermediateKey
	}
	leaf, err := sign(template, parent, pub, parentKey)
	if err != nil {
		return nil, err
	}
	out := []*x509.Certificate{leaf}
	if o.Chain {
		out = append(out, c.intermediate)
	}
	if o.Root {
		out = append(out, c.root)
	}
	return out, nil
}

func leafTemplate(o Options) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: o.CommonName},
		DNSNames:              slices.Clone(o.Domains),
		NotBefore:             o.NotBefore,
		NotAfter:              o.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  o.IsCA,
	}
	if o.Domains == nil {
		template.DNSNames = []string{"example.org", "*.example.org"}
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	template.NotBefore = template.NotBefore.UTC().Truncate(time.Second)
	if template.NotAfter.IsZero() {
		template.NotAfter = template.NotBefore.Add(90 * 24 * time.Hour)
	}
	if o.IsCA {
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	if o.Padding > 0 {
		// 1.3.6.1.4.1.32473 is the arc for examples (RFC 5612).
		id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}
		template.ExtraExtensions = []pkix.Extension{{Id: id, Value: make([]byte, o.Padding)}}
	}
	return template, nil
}

// Root is the root's certificate.
func (c *CA) Root() *x509.Certificate { return c.root }

// Intermediate is the certificate between the root and leaves issued with Options.Chain.
func (c *CA) Intermediate() *x509.Certificate { return c.intermediate }

// Roots is a new pool that holds the root alone.
func (c *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.root)
	return pool
}

// RootPEM is the root's certificate in PEM, as for acme.ca_file.
func (c *CA) RootPEM() []byte { return CertificatePEM(c.root) }

// CertificatePEM is one certificate in PEM.
func CertificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
