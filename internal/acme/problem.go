package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/go-acme/lego/v4/acme"

	"certsync/internal/cluster"
)

// maxCause is the longest cause of an error, in bytes.
const maxCause = 600

// problemPrefix is what the types of RFC 8555 section 6.7 begin with.
const problemPrefix = "urn:ietf:params:acme:error:"

// The types of problems that are decided upon; RFC 8555 section 6.7, RFC 9773 section 7.4 and draft-ietf-acme-profiles.
const (
	accountDoesNotExist     = problemPrefix + "accountDoesNotExist"
	alreadyReplaced         = problemPrefix + "alreadyReplaced"
	badNonce                = problemPrefix + "badNonce"
	externalAccountRequired = problemPrefix + "externalAccountRequired"
	orderNotReady           = problemPrefix + "orderNotReady"
	rateLimited             = problemPrefix + "rateLimited"
	userActionRequired      = problemPrefix + "userActionRequired"
)

// hints are the mends of the problems that a person can do something about.
var hints = map[string]string{
	accountDoesNotExist:                  "register the ACME account again: the CA does not know it any more",
	externalAccountRequired:              "set acme.eab.key_id and acme.eab.hmac_key_file: this CA wants an account of its own first",
	rateLimited:                          "wait, and ask for fewer certificates: this is a rate limit of the CA",
	userActionRequired:                   "read and agree to the CA's new terms of service, at the address it gives",
	problemPrefix + "badCSR":             "choose another key type: the CA refuses the key or the names",
	problemPrefix + "badPublicKey":       "choose another key type: the CA refuses the key",
	problemPrefix + "caa":                "let this CA issue in the CAA records of the domain",
	problemPrefix + "dns":                "check the zone's name servers and its DNSSEC: the CA's look-up failed",
	problemPrefix + "invalidContact":     "correct acme.email",
	problemPrefix + "invalidProfile":     "set acme.profile to one that the CA offers",
	problemPrefix + "rejectedIdentifier": "the CA does not issue for this name: take it out of domains",
	problemPrefix + "unauthorized":       "check that the DNS provider publishes the TXT value where the CA looks, and longer than the propagation takes",
	problemPrefix + "unsupportedContact": "correct acme.email",
}

// passing are the problems after which the same order may be tried again.
var passing = map[string]bool{accountDoesNotExist: true, badNonce: true, externalAccountRequired: true, orderNotReady: true,
	rateLimited: true, userActionRequired: true, problemPrefix + "serverInternal": true}

// issueError makes an error of one line, with the mend where there is one.
func issueError(cause string, err error, hint string) *cluster.IssueError {
	cause = oneLine(cause)
	if err == nil {
		err = errors.New(cause)
	}
	if hint != "" {
		err = cluster.WithHint(err, "%s", hint)
	}
	return &cluster.IssueError{Cause: cause, Hint: hint, Err: err}
}

// failed turns the error of a request into an IssueError, or tells that ctx ended it.
func (s *session) failed(ctx context.Context, op, url string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, contextError(ctx))
	}
	res := s.http.result(url)
	if strings.Contains(err.Error(), "generating nonce") {
		// jose drops the error's chain; what is known of it is what the transport saw.
		res = s.http.result(s.dir.NewNonceURL)
	}
	problem := res.problem
	if p, ok := errors.AsType[*acme.ProblemDetails](err); ok {
		problem = p
	}
	switch {
	case problem != nil && problem.Type == refusedNonce:
		problem.Type = badNonce
		fallthrough
	case problem != nil:
		return problemFailure(op, problem, res.retryAfter, s.client.cfg.Now())
	case res.err != nil:
		return networkFailure(op, res.err)
	}
	return networkFailure(op, err)
}

// problemFailure tells a problem document and its subproblems, and when the CA allows another try.
func problemFailure(op string, p *acme.ProblemDetails, retryAfter string, now time.Time) *cluster.IssueError {
	err := issueError(op+": "+describeProblem(p), p, problemHint(p))
	err.Throttled = p.HTTPStatus == http.StatusTooManyRequests || p.Type == rateLimited
	if p.HTTPStatus != http.StatusTooManyRequests && p.HTTPStatus != http.StatusServiceUnavailable && p.Type != rateLimited {
		return err
	}
	if at := parseRetryAfter(retryAfter, now); !at.IsZero() {
		err.NextTry, err.RetryAfter = at, true
		if latest := now.Add(cluster.MaxRetryAfter); at.After(latest) {
			err.NextTry = latest
		}
	}
	return err
}

func describeProblem(p *acme.ProblemDetails) string {
	text := p.Detail
	if kind := strings.TrimPrefix(p.Type, problemPrefix); kind != "" && kind != "about:blank" {
		text = strings.TrimSuffix(kind+": "+p.Detail, ": ")
	}
	for _, sub := range p.SubProblems {
		text += fmt.Sprintf("; %s: %s: %s", sub.Identifier.Value, strings.TrimPrefix(sub.Type, problemPrefix), sub.Detail)
	}
	if p.Type == userActionRequired && p.Instance != "" {
		text += " (" + p.Instance + ")"
	}
	if text == "" {
		text = statusText(p.HTTPStatus)
	}
	return text
}

func problemHint(p *acme.ProblemDetails) string {
	if hint := hints[p.Type]; hint != "" {
		return hint
	}
	for _, sub := range p.SubProblems {
		if hint := hints[sub.Type]; hint != "" {
			return hint
		}
	}
	if p.HTTPStatus == http.StatusTooManyRequests {
		return hints[rateLimited]
	}
	return ""
}

// permanent tells that the CA will answer the same to the same order: asking again is no use.
func permanent(err error) bool {
	p, ok := errors.AsType[*acme.ProblemDetails](err)
	return ok && !passing[p.Type] && p.HTTPStatus >= 400 && p.HTTPStatus < 500 && p.HTTPStatus != http.StatusTooManyRequests &&
		p.HTTPStatus != http.StatusRequestTimeout
}

// transient tells that a read may be repeated at once: the network or the CA's front end failed.
func transient(err error) bool {
	issue, ok := errors.AsType[*cluster.IssueError](err)
	if !ok || issue.RetryAfter {
		return false
	}
	p, ok := errors.AsType[*acme.ProblemDetails](err)
	return !ok || p.HTTPStatus >= 500
}

func problemType(err error) string {
	if p, ok := errors.AsType[*acme.ProblemDetails](err); ok {
		return p.Type
	}
	return ""
}

// networkFailure tells that the CA could not be asked, or was not understood.
func networkFailure(op string, err error) *cluster.IssueError {
	hint := ""
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // its text begins with method and URL, which op says in words
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		hint = "set acme.ca_file to the root of a private CA"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		hint = "compare this host's clock first (`date`, ntpd); where it is right, the CA's own certificate is not valid"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		hint = "check the host name in acme.directory and this host's resolver"
	}
	return issueError(op+": "+err.Error(), err, hint)
}

// oneLine makes text fit for one line of a log: control characters become spaces, and what is too long is cut.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxCause {
		text = strings.ToValidUTF8(text[:maxCause], "") + "…"
	}
	return text
}

// secretNames are the parts of an environment variable's name that say that its value is a secret.
var secretNames = []string{"KEY", "TOKEN", "SECRET", "PASS", "PWD", "AUTH", "CREDENTIAL", "LOGIN"}

// redact takes the secrets of a provider's settings out of its error: some quote the URL that they asked.
func redact(text string, env map[string]string) string {
	for name, value := range env {
		for _, part := range secretNames {
			if len(value) >= 4 && strings.Contains(strings.ToUpper(name), part) {
				text = strings.ReplaceAll(text, value, "[redacted]")
				text = strings.ReplaceAll(text, url.QueryEscape(value), "[redacted]")
			}
		}
	}
	return text
}
