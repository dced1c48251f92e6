package certtest_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

func TestIssueGivesWhatIsAskedFor(t *testing.T) {
	ca := certtest.NewCA(t)
	now := time.Now()
	plain := ca.Issue(t, certtest.Options{})
	if err := plain.Verify(cert.Want{Domains: []string{"example.org", "*.example.org"}, KeyType: cert.EC256, Now: now, Roots: ca.Roots()}); err != nil {
		t.Errorf("the zero options: %v", err)
	}
	if plain.Leaf().Subject.CommonName != "" || len(plain.Chain()) != 0 {
		t.Errorf("the zero options: subject %s, chain of %d", plain.Leaf().Subject, len(plain.Chain()))
	}
	from := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	own := ca.Issue(t, certtest.Options{Domains: []string{"a.org"}, CommonName: "a.org", KeyType: cert.EC384, NotBefore: from, NotAfter: from.Add(time.Hour), Chain: true, Root: true, Padding: 20_000})
	if err := own.Verify(cert.Want{Domains: []string{"a.org"}, KeyType: cert.EC384, Now: from.Add(time.Minute), Roots: ca.Roots()}); err != nil {
		t.Errorf("own options: %v", err)
	}
	if !own.Leaf().NotBefore.Equal(from) || own.Leaf().Subject.CommonName != "a.org" || len(own.PEM()) < 20_000 {
		t.Errorf("own options: %s from %s, %d bytes", own.Leaf().Subject, own.Leaf().NotBefore, len(own.PEM()))
	}
	if !slices.Equal(own.Chain(), []*x509.Certificate{ca.Intermediate(), ca.Root()}) {
		t.Errorf("the chain is %d certificates", len(own.Chain()))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.RootPEM()) {
		t.Fatal("RootPEM is no certificate")
	}
	if err := own.Verify(cert.Want{Roots: roots}); err != nil {
		t.Errorf("held against RootPEM: %v", err)
	}
	if err := own.Verify(cert.Want{Roots: certtest.NewCA(t).Roots()}); err == nil {
		t.Error("trusted by another CA")
	}
}

type failure struct{ message string }

func (*failure) Helper()                        {}
func (f *failure) Fatalf(s string, args ...any) { f.message = fmt.Sprintf(s, args...) }

func TestIssueFailsTheTestWhereTheCertificateIsNoLeaf(t *testing.T) {
	var f failure
	ca := certtest.NewCA(t)
	if b := ca.Issue(&f, certtest.Options{IsCA: true}); b != nil || f.message == "" {
		t.Errorf("a CA as leaf: %v, %q", b, f.message)
	}
	key, err := cert.EC256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ca.Sign(key.Public(), certtest.Options{IsCA: true}); err != nil || !got[0].IsCA {
		t.Errorf("Sign refused what a test may want: %v", err)
	}
}
