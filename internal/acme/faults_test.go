package acme_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/challenge"

	"certsync/internal/acme"
	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// at lets a hook answer one endpoint.
func at(endpoint lab.Endpoint, answer func(http.ResponseWriter, *http.Request)) lab.Hook {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if lab.EndpointOf(r) != endpoint {
			return false
		}
		answer(w, r)
		return true
	}
}

// obtain tries one certificate.
func (w *world) obtain(c *acme.Client) (cluster.Order, *journal, error) {
	o := w.order(cert.EC256, "example.org")
	j := &journal{}
	_, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	return o, j, err
}

// every is each endpoint that an order needs.
var every = []lab.Endpoint{lab.EndpointDirectory, lab.EndpointNewNonce, lab.EndpointNewOrder, lab.EndpointAuthorization,
	lab.EndpointChallenge, lab.EndpointFinalize, lab.EndpointOrder, lab.EndpointCertificate}

func TestCAThatHangsIsGivenUp(t *testing.T) {
	for _, endpoint := range every {
		t.Run(string(endpoint), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.registered()
			w.cfg.Timeout = 300 * time.Millisecond
			w.ca.SetHook(at(endpoint, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			o, j, err := w.obtain(w.client())
			issue := issueError(t, err)
			if issue.Dead || !strings.Contains(issue.Cause, "no answer within 300ms") {
				t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
			}
			w.checkClean()
			w.ca.SetHook(nil)
			w.cfg.Timeout = 0
			b, err := w.client().Obtain(w.ctx(), w.account, j.last(o), j.checkpoint)
			if err != nil {
				t.Fatalf("afterwards, from %s: %v", j.last(o).Step, err)
			}
			w.checkBundle(b, o)
			if n := w.ca.Counts().Orders; n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
		})
	}
}

func TestRetryAfterIsKept(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		status int
		header string
		want   time.Time
	}{
		"429, seconds":       {http.StatusTooManyRequests, "3600", now.Add(time.Hour)},
		"429, date":          {http.StatusTooManyRequests, "Wed, 25 Nov 2026 12:00:00 GMT", now.Add(24 * time.Hour)},
		"429, a month":       {http.StatusTooManyRequests, "2592000", now.Add(8 * 24 * time.Hour)},
		"429, past date":     {http.StatusTooManyRequests, "Wed, 25 Nov 2020 12:00:00 GMT", time.Time{}},
		"429, junk":          {http.StatusTooManyRequests, "soon", time.Time{}},
		"429, negative":      {http.StatusTooManyRequests, "-5", time.Time{}},
		"429, nothing":       {http.StatusTooManyRequests, "", time.Time{}},
		"503, seconds":       {http.StatusServiceUnavailable, "120", now.Add(2 * time.Minute)},
		"500 has no meaning": {http.StatusInternalServerError, "120", time.Time{}},
	} {
		for _, endpoint := range every {
			t.Run(name+" at "+string(endpoint), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.registered()
				w.cfg.Now = func() time.Time { return now }
				w.ca.SetHook(at(endpoint, func(rw http.ResponseWriter, _ *http.Request) {
					if test.header != "" {
						rw.Header().Set("Retry-After", test.header)
					}
					lab.Problem(rw, test.status, "rateLimited", "too many certificates (5) already issued")
				}))
				_, _, err := w.obtain(w.client())
				issue := issueError(t, err)
				if test.status == http.StatusInternalServerError {
					return // the type says rateLimited; what counts is that there is an error
				}
				if issue.Dead || !issue.NextTry.Equal(test.want) || issue.RetryAfter == test.want.IsZero() {
					t.Errorf("%q: next try %s (Retry-After %t), dead %t; want %s", issue.Cause, issue.NextTry, issue.RetryAfter, issue.Dead, test.want)
				}
				if endpoint == lab.EndpointNewNonce {
					return // it is asked by HEAD: there is no document
				}
				if !strings.Contains(issue.Cause, "rateLimited: too many certificates") || !strings.Contains(issue.Hint, "rate limit") {
					t.Errorf("cause %q, hint %q", issue.Cause, issue.Hint)
				}
			})
		}
	}
}

// A proxy or a CA's front end answers errors in HTML.
func TestErrorThatIsNoProblemDocument(t *testing.T) {
	for _, body := range []string{"", "<html>\n<h1>502</h1>\n" + strings.Repeat("x", 5000), `"text"`, `[]`, `{}`, "{"} {
		for _, endpoint := range every {
			t.Run(fmt.Sprintf("%.10q at %s", body, endpoint), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.registered()
				w.ca.SetHook(at(endpoint, func(rw http.ResponseWriter, _ *http.Request) {
					rw.Header().Set("Content-Type", "text/html")
					rw.WriteHeader(http.StatusBadGateway)
					_, _ = io.WriteString(rw, body)
				}))
				o, _, err := w.obtain(w.client())
				issue := issueError(t, err)
				if issue.Dead || !strings.Contains(issue.Cause, "HTTP 502 Bad Gateway") || len(issue.Cause) > 700 {
					t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
				}
				w.checkQuiet(o, err)
			})
		}
	}
}

// A 200 with nonsense in it.
func TestAnswerThatIsNonsense(t *testing.T) {
	for _, body := range []string{"", "<html>", "null", "[1,2]", "{}", strings.Repeat("a", 2<<20)} {
		for _, endpoint := range every[2:] {
			t.Run(fmt.Sprintf("%.10q at %s", body, endpoint), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.registered()
				w.ca.SetHook(at(endpoint, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, body) }))
				limit := time.Minute
				if endpoint == lab.EndpointChallenge {
					limit = 5 * time.Second // it waits for as long as it may
				}
				ctx, cancel := context.WithTimeout(w.ctx(), limit)
				defer cancel()
				j := &journal{}
				_, err := w.client().Obtain(ctx, w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
				if endpoint == lab.EndpointChallenge && errors.Is(err, context.DeadlineExceeded) {
					return // what counts is what the authorization says, and it stays pending
				}
				if issue := issueError(t, err); len(issue.Cause) > 700 {
					t.Errorf("a cause of %d bytes", len(issue.Cause))
				}
			})
		}
	}
}

func TestMalformedDirectory(t *testing.T) {
	for body, want := range map[string]string{
		"":                           "not a JSON object",
		"<html>":                     "not a JSON object",
		"[]":                         "not a JSON object",
		"null":                       "newNonce",
		"{}":                         "not an https URL",
		`{"newNonce":7}`:             "not a JSON object",
		`{"newNonce":"https://x/n"}`: "not an https URL",
		strings.Repeat("{", 2<<20):   "more than",
		`{"newNonce":"http://x/n","newAccount":"https://x/a","newOrder":"https://x/o"}`: "newNonce",
	} {
		t.Run(fmt.Sprintf("%.20q", body), func(t *testing.T) {
			w := newWorld(t)
			w.registered()
			w.ca.SetHook(at(lab.EndpointDirectory, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, body) }))
			c := w.client()
			_, j, err := w.obtain(c)
			issue := issueError(t, err)
			if want == "newNonce" && body == "null" {
				want = "not an https URL"
			}
			if !strings.Contains(issue.Cause, want) || !strings.Contains(issue.Cause, "acme directory https://") {
				t.Errorf("cause %q, want %q", issue.Cause, want)
			}
			if len(j.orders) != 0 {
				t.Error("a checkpoint was asked")
			}
			w.ca.SetHook(nil)
			if _, _, err := w.obtain(c); err != nil {
				t.Errorf("afterwards: %v; a bad directory was kept", err)
			}
		})
	}
}

func TestProblemDocumentBecomesCauseAndHint(t *testing.T) {
	for name, test := range map[string]struct {
		endpoint    lab.Endpoint
		status      int
		document    string
		cause, hint string
		dead        bool
	}{
		"caa": {lab.EndpointFinalize, 403, `{"type":"urn:ietf:params:acme:error:caa","detail":"CAA record for example.org prevents issuance"}`,
			"caa: CAA record for example.org prevents issuance", "CAA records", true},
		"subproblems": {lab.EndpointNewOrder, 400, `{"type":"urn:ietf:params:acme:error:compound","detail":"Errors\nduring validation",
			"subproblems":[{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"forbidden by policy","identifier":{"type":"dns","value":"bad.example.org"}}]}`,
			"compound: Errors during validation; bad.example.org: rejectedIdentifier: forbidden by policy", "does not issue for this name", true},
		"new terms": {lab.EndpointNewOrder, 403, `{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Terms changed","instance":"https://ca.example/tos"}`,
			"Terms changed (https://ca.example/tos)", "terms of service", false},
		"forgotten account": {lab.EndpointNewOrder, 400, `{"type":"urn:ietf:params:acme:error:accountDoesNotExist","detail":"no such account"}`,
			"accountDoesNotExist", "register the ACME account again", false},
		"bad key":      {lab.EndpointFinalize, 400, `{"type":"urn:ietf:params:acme:error:badCSR","detail":"weak key"}`, "badCSR: weak key", "another key type", true},
		"internal":     {lab.EndpointFinalize, 500, `{"type":"urn:ietf:params:acme:error:serverInternal","detail":"oops"}`, "serverInternal: oops", "", false},
		"unknown type": {lab.EndpointFinalize, 418, `{"type":"https://ca.example/teapot","detail":"short and stout"}`, "https://ca.example/teapot: short and stout", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.registered()
			w.ca.SetHook(at(test.endpoint, func(rw http.ResponseWriter, _ *http.Request) {
				rw.WriteHeader(test.status)
				_, _ = io.WriteString(rw, test.document)
			}))
			o, _, err := w.obtain(w.client())
			issue := issueError(t, err)
			if !strings.Contains(issue.Cause, test.cause) || !strings.Contains(issue.Hint, test.hint) || issue.Dead != test.dead {
				t.Errorf("cause %q, hint %q, dead %t; want %q, %q, %t", issue.Cause, issue.Hint, issue.Dead, test.cause, test.hint, test.dead)
			}
			if cluster.HintOf(err) != issue.Hint {
				t.Errorf("HintOf gives %q, want %q", cluster.HintOf(err), issue.Hint)
			}
			w.checkQuiet(o, err)
			w.checkClean()
		})
	}
}

// A look at an order that fails for the network's sake is repeated; one failure must not cost a certificate.
func TestPollSurvivesASingleFailure(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var n atomic.Int32
	w.ca.SetHook(func(rw http.ResponseWriter, r *http.Request) bool {
		if lab.EndpointOf(r) != lab.EndpointOrder || n.Add(1) > 2 {
			return false
		}
		rw.WriteHeader(http.StatusBadGateway)
		return true
	})
	if _, _, err := w.obtain(c); err != nil {
		t.Error(err)
	}
	if n.Load() < 3 {
		t.Errorf("the order was looked at %d times, want again after each failure", n.Load())
	}
}

func TestOrderThatIsNotReadyYetIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var once sync.Once
	w.ca.SetHook(func(rw http.ResponseWriter, r *http.Request) bool {
		answered := false
		if lab.EndpointOf(r) == lab.EndpointFinalize {
			once.Do(func() {
				lab.Problem(rw, http.StatusForbidden, "orderNotReady", "the order is pending")
				answered = true
			})
		}
		return answered
	})
	if _, _, err := w.obtain(c); err != nil {
		t.Fatal(err)
	}
	if n := w.ca.Counts().Finalized; n != 1 {
		t.Errorf("finalised %d times", n)
	}
}

func TestCertificateThatWasNotAskedForIsRefused(t *testing.T) {
	other := newWorld(t)
	_, j, err := other.obtain(other.registered())
	if err != nil || len(j.orders) == 0 {
		t.Fatal(err)
	}
	leaf := other.ca.Leaves()[0]
	for name, body := range map[string]string{
		"another leaf": pemOf(leaf.Raw),
		"junk":         "junk",
		"nothing":      "",
		"a key":        "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n",
		"cut":          pemOf(leaf.Raw)[:100],
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.registered()
			w.ca.SetHook(at(lab.EndpointCertificate, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, body) }))
			o, j, err := w.obtain(c)
			issue := issueError(t, err)
			if name == "another leaf" && !(issue.Dead && strings.Contains(issue.Cause, "another key")) {
				t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
			}
			w.checkClean()
			w.ca.SetHook(nil)
			if name != "another leaf" { // what could not be read can be read again
				if _, err := c.Obtain(w.ctx(), w.account, j.last(o), j.checkpoint); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRegister(t *testing.T) {
	w := newWorld(t)
	first := w.registered().Directory()
	if first != w.ca.Directory() {
		t.Errorf("directory %q", first)
	}
	again := w.account
	again.URL = ""
	found, err := w.client().Register(w.ctx(), again)
	if err != nil || found.URL != w.account.URL {
		t.Errorf("the same key gives account %q (%v), want %q", found.URL, err, w.account.URL)
	}
	if n := w.ca.Counts().NewAccounts; n != 1 {
		t.Errorf("%d accounts were made, want 1", n)
	}
	elsewhere := w.account
	elsewhere.Directory = "https://example.com/dir"
	if _, err := w.client().Register(w.ctx(), elsewhere); err == nil {
		t.Error("an account of another directory was registered")
	}
}

func TestRegisterWithoutEmail(t *testing.T) {
	w := newWorld(t)
	w.account.Email = ""
	w.registered()
	w.account.Email = "not an address"
	w.account.Key = nil
	fresh, err := cluster.NewAccount(w.ca.Directory(), "no-address", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.client().Register(w.ctx(), fresh)
	if issue := issueError(t, err); !strings.Contains(issue.Hint, "acme.email") {
		t.Errorf("%q, hint %q", issue.Cause, issue.Hint)
	}
}

func TestExternalAccountBinding(t *testing.T) {
	const hmac = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTAxMjM"
	bound := func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) { ca.EAB = map[string]string{"kid-1": hmac} }
	t.Run("bound", func(t *testing.T) {
		w := newWorld(t, bound)
		w.cfg.EAB = acme.EAB{KeyID: "kid-1", HMAC: cluster.Secret(hmac + "=\n")}
		c := w.registered()
		if _, _, err := w.obtain(c); err != nil {
			t.Error(err)
		}
	})
	for name, eab := range map[string]acme.EAB{"missing": {}, "unknown": {KeyID: "kid-2", HMAC: cluster.Secret(hmac)},
		"wrong key": {KeyID: "kid-1", HMAC: cluster.Secret("d3Jvbmc" + hmac[7:])}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, bound)
			w.cfg.EAB = eab
			_, err := w.client().Register(w.ctx(), w.account)
			issue := issueError(t, err)
			if name == "missing" && !strings.Contains(issue.Hint, "acme.eab.key_id") {
				t.Errorf("hint %q", issue.Hint)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, issue, issue), hmac) {
				t.Errorf("the HMAC key is in the error: %v", err)
			}
			if n := w.ca.Counts().NewAccounts; n != 0 {
				t.Errorf("%d accounts were made", n)
			}
		})
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	good := acme.Config{Directory: "https://ca.example/dir", DNS: func(string) (acme.DNSConfig, error) { return acme.DNSConfig{}, nil },
		Provider: func(string, map[string]string) (challenge.Provider, error) { return nil, errors.New("none") }}
	if _, err := acme.New(good); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*acme.Config){
		"http":            func(c *acme.Config) { c.Directory = "http://ca.example/dir" },
		"no URL":          func(c *acme.Config) { c.Directory = "letsencrypt" },
		"no provider":     func(c *acme.Config) { c.Provider = nil },
		"no dns":          func(c *acme.Config) { c.DNS = nil },
		"no such ca_file": func(c *acme.Config) { c.CAFile = "/nonexistent/ca.pem" },
		"empty ca_file":   func(c *acme.Config) { c.CAFile = empty },
		"half an EAB":     func(c *acme.Config) { c.EAB.KeyID = "kid" },
		"EAB of junk":     func(c *acme.Config) { c.EAB = acme.EAB{KeyID: "kid", HMAC: cluster.Secret("not base64!")} },
	} {
		cfg := good
		change(&cfg)
		_, err := acme.New(cfg)
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "not base64!") {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

func TestUnknownRootHintsAtCAFile(t *testing.T) {
	w := newWorld(t)
	w.cfg.CAFile = ""
	_, err := w.client().Register(w.ctx(), w.account)
	if issue := issueError(t, err); !strings.Contains(issue.Hint, "acme.ca_file") {
		t.Errorf("%q, hint %q", issue.Cause, issue.Hint)
	}
}

func TestCAThatIsDown(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	_ = w.ca.Close()
	_, _, err := w.obtain(c) // on the connection that was open
	if issue := issueError(t, err); issue.Dead {
		t.Errorf("%q is dead", issue.Cause)
	}
	_, _, err = w.obtain(w.client())
	if issue := issueError(t, err); issue.Dead || !strings.Contains(issue.Cause, "connection refused") {
		t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
	}
}
