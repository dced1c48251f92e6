package cert_test

import (
	"slices"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

func TestAPlaceholderIsABundleThatIsKnownAsOne(t *testing.T) {
	now := time.Now()
	pem, err := cert.NewPlaceholder(now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cert.Parse(pem)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.IsPlaceholder(pem) || b.Leaf().NotAfter.Before(now.AddDate(9, 0, 0)) || !slices.Equal(b.Domains(), []string{"placeholder.certsync.invalid"}) {
		t.Errorf("valid until %s for %q", b.Leaf().NotAfter, b.Domains())
	}
	again, err := cert.NewPlaceholder(now)
	if err != nil || string(again) == string(pem) {
		t.Errorf("two placeholders have one key: %v", err)
	}
}

func TestWhatIsNoPlaceholderIsNotTakenForOne(t *testing.T) {
	ca, err := certtest.New()
	if err != nil {
		t.Fatal(err)
	}
	for name, pem := range map[string][]byte{"nothing": nil, "nonsense": []byte("nonsense"),
		"a bundle": ca.Issue(t, certtest.Options{Domains: []string{"placeholder.certsync.invalid"}, Chain: true}).PEM()} {
		if cert.IsPlaceholder(pem) {
			t.Errorf("%s is taken for a placeholder", name)
		}
	}
}
