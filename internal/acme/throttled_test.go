package acme

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/acme"

	"certsync/internal/cluster"
)

func TestWhoIsAskedTooOftenIsUnderstood(t *testing.T) {
	for text, want := range map[string]bool{
		// In the words of lego's providers.
		`hetzner: failed to add record: unexpected status code: [status code: 429] body: {"message":"too many"}`: true,
		"cloudflare: HTTP status 429 Too Many Requests":                                                          true,
		"cloudflare: error 971: Consider throttling your request speed":                                          true,
		"route53: ThrottlingException: Rate exceeded":                                                            true,
		"desec: rate-limited":                  true,
		"digitalocean: 429 too many":           true,
		"dnsimple: quota: rate limit exceeded": true,
		"hetzner: unexpected status code: [status code: 401] body: unauthorized":      false,
		"rfc2136: dial tcp 192.0.2.53:429: connection refused":                        false,
		"hetzner: record 429 is not there":                                            false,
		"inwx: (2400) Command failed":                                                 false,
		"pdns: the zone example.org has serial 2026042901, expected status Validated": false,
	} {
		issue, ok := errors.AsType[*cluster.IssueError](providerError(text))
		if !ok || issue.Throttled != want || issue.Hint == "" {
			t.Errorf("%s: %+v", text, issue)
		}
	}
	for _, x := range []struct {
		kind   string
		status int
		want   bool
	}{
		{rateLimited, http.StatusForbidden, true},
		{"about:blank", http.StatusTooManyRequests, true},
		{"about:blank", http.StatusServiceUnavailable, false},
		{problemPrefix + "rejectedIdentifier", http.StatusBadRequest, false},
	} {
		got := problemFailure("new order", &acme.ProblemDetails{Type: x.kind, HTTPStatus: x.status}, "", time.Now())
		if got.Throttled != x.want {
			t.Errorf("%+v: %+v", x, got)
		}
	}
}
