package cert_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"testing"
	"time"

	"certsync/internal/cert"
)

func TestRenewalIDIsThatOfRFC9773(t *testing.T) {
	authority, err := hex.DecodeString("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, serial, want string
		authority          []byte
	}{
		{"the example of section 4.1, whose first bit is set", "87654321", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", authority},
		{"a serial number whose first bit is not set", "07654321", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.B2VDIQ", authority},
		{"no authority", "07654321", "", nil},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial, _ := new(big.Int).SetString(c.serial, 16)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial, DNSNames: []string{"example.org"},
			NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, SubjectKeyId: c.authority}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := cert.New(key, leaf)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := bundle.RenewalID(); id != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", c.what, id, err, c.want)
		}
	}
}
