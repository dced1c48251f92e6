package acme_test

import (
	"context"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"certsync/internal/acme"
	"certsync/internal/lab"
)

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\r\n\tc": "a b c", "\x1b[31mred\x07": "[31mred", "": "", "  x  ": "x", "żółw": "żółw", "a\u2028b": "a b",
	} {
		if got := acme.OneLine(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := acme.OneLine(strings.Repeat("ż", 5000)); len(got) > 610 || !strings.HasSuffix(got, "…") {
		t.Errorf("a long text becomes %d bytes", len(got))
	}
}

func TestRedactTakesSecretsOut(t *testing.T) {
	env := map[string]string{"X_API_TOKEN": "t0k3n+/value", "X_ENDPOINT": "https://api.example", "X_KEY": "ab"}
	got := acme.Redact("GET https://api.example?k=t0k3n%2B%2Fvalue: t0k3n+/value is bad, ab", env)
	if want := "GET https://api.example?k=[redacted]: [redacted] is bad, ab"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "-1", "99999999999999999999", "Wed, 25 Nov 2026 12:00:00 GMT", "Wednesday, 25-Nov-26 12:00:00 GMT", "1.5"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		if at := acme.ParseRetryAfter(value, now); !at.IsZero() && !at.After(now) {
			t.Errorf("%q gives %s, which is not after now", value, at)
		}
	})
}

func TestZoneServersAreThoseOfTheNearestZone(t *testing.T) {
	d, err := lab.NewDNS(lab.DNSOptions{Zones: []string{"example.org", "sub.example.org"}, Hosts: map[string]string{"ns.sub.example.org": "192.0.2.53"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for name, want := range map[string]string{"_acme-challenge.example.org.": "{ns.example.org [127.0.0.1:53]}", "_acme-challenge.www.sub.example.org.": "{ns.sub.example.org [192.0.2.53:53]}"} {
		servers, err := acme.ZoneServers(ctx, []string{"127.0.0.1:1", d.Address()}, name)
		if err != nil || len(servers) != 1 {
			t.Errorf("%s: %v, %v", name, servers, err)
			continue
		}
		if got := acme.ShowServer(servers[0]); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if _, err := acme.ZoneServers(ctx, []string{d.Address()}, "_acme-challenge.example.com."); err == nil || !strings.Contains(err.Error(), "REFUSED") {
		t.Errorf("a zone that nobody serves: %v, want REFUSED", err)
	}
}

func TestResolversOfOneCallAreNotChangedByAnother(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leave, err := acme.EnterResolvers(ctx, []string{"192.0.2.1:53"})
	if err != nil {
		t.Fatal(err)
	}
	leaveToo, err := acme.EnterResolvers(ctx, []string{"192.0.2.1:53"})
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()
	if _, err := acme.EnterResolvers(short, []string{"192.0.2.2:53"}); err == nil {
		t.Error("other resolvers were let in")
	}
	leave()
	leaveToo()
	last, err := acme.EnterResolvers(ctx, []string{"192.0.2.2:53"})
	if err != nil {
		t.Fatal(err)
	}
	last()
}

func TestSystemResolversHavePorts(t *testing.T) {
	for _, r := range acme.SystemResolvers() {
		if !strings.HasSuffix(r, ":53") {
			t.Errorf("resolver %q", r)
		}
	}
}
