package cert_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"sync"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

// testCA is one CA for all tests of the package: making one is what costs.
var testCA = sync.OnceValues(certtest.New)

func ca(t testing.TB) *certtest.CA {
	t.Helper()
	c, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keyOf is one key of each type, the same at each call.
var keyOf = func() map[cert.KeyType]func() (crypto.Signer, error) {
	out := map[cert.KeyType]func() (crypto.Signer, error){}
	for _, k := range cert.KeyTypes() {
		out[k] = sync.OnceValues(k.Generate)
	}
	return out
}()

func key(t testing.TB, k cert.KeyType) crypto.Signer {
	t.Helper()
	signer, err := keyOf[k]()
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// keyForms is the key in every form that a tool may write.
func keyForms(t testing.TB, signer crypto.Signer) map[string][]byte {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{"PKCS#8": block("PRIVATE KEY", pkcs8)}
	switch k := signer.(type) {
	case *rsa.PrivateKey:
		out["PKCS#1"] = block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k))
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		out["SEC 1"] = block("EC PRIVATE KEY", der)
	}
	return out
}

// parts are the pieces of one bundle with a chain: leaf, intermediate and key.
type parts struct{ leaf, intermediate, key []byte }

func newParts(t testing.TB) parts {
	t.Helper()
	signer := key(t, cert.EC256)
	certificates, err := ca(t).Sign(signer.Public(), certtest.Options{Chain: true})
	if err != nil {
		t.Fatal(err)
	}
	return parts{certtest.CertificatePEM(certificates[0]), certtest.CertificatePEM(certificates[1]), keyForms(t, signer)["PKCS#8"]}
}

func (p parts) bundle() []byte { return bytes.Join([][]byte{p.leaf, p.intermediate, p.key}, nil) }

func concat(pieces ...[]byte) []byte { return bytes.Join(pieces, nil) }
