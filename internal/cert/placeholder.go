package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// PlaceholderName is the file of the placeholder in an empty bundle folder. HAProxy refuses `crt DIR/` of an empty
// folder; it loads the files in the order of their names, and the first is what it shows to a client that asks for no
// name it has. No certificate of the configuration can have this name: '+' is not among its characters.
const PlaceholderName = "zz+certsync-placeholder.pem"

// PlaceholderDomain is in the placeholder's certificate; no client asks for it (RFC 2606).
const PlaceholderDomain = "placeholder.certsync.invalid"

// placeholderLife is so long that HAProxy starts on a host that waits for its first certificate.
const placeholderLife = 10 * 365 * 24 * time.Hour

// NewPlaceholder is a self-signed certificate with a new key, as one PEM. It is no generation: no store knows it.
func NewPlaceholder(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the placeholder's key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make the placeholder: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: PlaceholderDomain, Organization: []string{"certsync placeholder"}},
		DNSNames:     []string{PlaceholderDomain},
		NotBefore:    now.Add(-time.Hour).UTC(), NotAfter: now.Add(placeholderLife).UTC(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the placeholder: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the placeholder: %w", err)
	}
	bundle, err := New(key, leaf)
	if err != nil {
		return nil, fmt.Errorf("make the placeholder: %w", err)
	}
	return bundle.PEM(), nil
}

// IsPlaceholder tells whether a PEM is a placeholder, made here or by the commands that bootstrap prints.
func IsPlaceholder(pem []byte) bool {
	b, err := Parse(pem)
	if err != nil {
		return false
	}
	leaf := b.Leaf()
	return leaf.Subject.CommonName == PlaceholderDomain && leaf.Issuer.CommonName == PlaceholderDomain
}
