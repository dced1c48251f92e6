package acme_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"certsync/internal/acme"
	"certsync/internal/cert"
	"certsync/internal/lab"
)

// issued is a certificate of the world's CA, with its identifier.
func (w *world) issued(c *acme.Client) (*cert.Bundle, string) {
	w.t.Helper()
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := b.RenewalID()
	if err != nil {
		w.t.Fatal(err)
	}
	return b, id
}

func TestRenewalInfoIsTheCAsWindow(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	b, id := w.issued(c)
	s, err := c.RenewalInfo(w.ctx(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Start.Before(s.End) || s.Start.Before(b.Leaf().NotBefore) || s.End.After(b.Leaf().NotAfter) {
		t.Errorf("a window from %s to %s for a life from %s to %s", s.Start, s.End, b.Leaf().NotBefore, b.Leaf().NotAfter)
	}
	if s.RetryAfter != 6*time.Hour || s.Explanation != "" {
		t.Errorf("Retry-After %s, explanation %q; Pebble sends 6 h and none", s.RetryAfter, s.Explanation)
	}
	if n := w.ca.Counts().Requests[lab.EndpointRenewalInfo]; n != 1 {
		t.Errorf("%d requests, want one", n)
	}
}

func TestRenewalInfoThatTheCAChanges(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	b, id := w.issued(c)
	window := func(start, end, more string) string {
		return fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}%s}`, start, end, more)
	}
	for _, test := range []struct {
		what, body  string
		explanation string
		good        bool
	}{
		{"a window in the past, with an explanation", window("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", `,"explanationURL":"https://ca.test/incident"`), "https://ca.test/incident", true},
		{"a zone", window("2026-01-01T02:00:00+02:00", "2026-01-01T02:00:01+02:00", ""), "", true},
		{"an explanation that is no web page", window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", `,"explanationURL":"javascript:alert(1)"`), "", true},
		{"an explanation with control characters", window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", `,"explanationURL":"https://ca.test/\u001b[2J"`), "", true},
		{"an explanation that is a book", window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", `,"explanationURL":"https://ca.test/`+strings.Repeat("x", 5000)+`"`), "", true},
		{"end before start", window("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", ""), "", false},
		{"end is start", window("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z", ""), "", false},
		{"no window", `{}`, "", false},
		{"half a window", `{"suggestedWindow":{"end":"2026-01-02T00:00:00Z"}}`, "", false},
		{"no date", window("soon", "later", ""), "", false},
		{"no JSON", "<html>", "", false},
		{"null", "null", "", false},
	} {
		if err := w.ca.SetRenewalInfo(b.Leaf(), test.body); err != nil {
			t.Fatal(err)
		}
		s, err := c.RenewalInfo(w.ctx(), id)
		if test.good {
			if err != nil || s.Explanation != test.explanation || s.Start.Location() != time.UTC || !s.Start.Before(s.End) {
				t.Errorf("%s: %+v, %v", test.what, s, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: %+v is taken for an answer", test.what, s)
			continue
		}
		if issue := issueError(t, err); issue.Dead || issue.RetryAfter {
			t.Errorf("%s: dead %t, Retry-After %t: it counts as no answer at all", test.what, issue.Dead, issue.RetryAfter)
		}
	}
}

func TestRenewalInfoOfACertificateThatTheCADoesNotKnowIsDead(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	_, id := w.issued(c)
	authority, _, _ := strings.Cut(id, ".")
	for _, unknown := range []string{authority + ".AQ", "no-dot", "AQ.AQ", "../../dir", "a/b?c#d"} {
		_, err := c.RenewalInfo(w.ctx(), unknown)
		if err == nil {
			t.Errorf("%s: it has an answer", unknown)
			continue
		}
		if issue := issueError(t, err); !issue.Dead {
			t.Errorf("%s: %v is not dead", unknown, err)
		}
	}
}

func TestRenewalInfoOfACAInTrouble(t *testing.T) {
	w := newWorld(t)
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	w.cfg.Now, w.cfg.Timeout = func() time.Time { return now }, 200*time.Millisecond
	c := w.client()
	for _, test := range []struct {
		what   string
		answer http.HandlerFunc
		retry  time.Duration
	}{
		{"it hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 0},
		{"it breaks", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", http.StatusBadGateway) }, 0},
		{"too many questions", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "120")
			lab.Problem(w, http.StatusTooManyRequests, "rateLimited", "slow down")
		}, 2 * time.Minute},
		{"it is under repair", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "Tue, 24 Nov 2026 13:00:00 GMT")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, time.Hour},
		{"it sends elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		}, 0},
		{"it talks without end", func(w http.ResponseWriter, _ *http.Request) {
			for range 3 << 10 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		}, 0},
	} {
		w.ca.SetHook(at(lab.EndpointRenewalInfo, test.answer))
		_, err := c.RenewalInfo(w.ctx(), "AQ.AQ")
		if err == nil {
			t.Errorf("%s: an answer", test.what)
			continue
		}
		issue := issueError(t, err)
		if issue.Dead || issue.RetryAfter != (test.retry > 0) || test.retry > 0 && !issue.NextTry.Equal(now.Add(test.retry)) {
			t.Errorf("%s: %v, dead %t, next try %s", test.what, err, issue.Dead, issue.NextTry)
		}
	}
}

func TestRenewalInfoThatTheCADoesNotGive(t *testing.T) {
	w := newWorld(t)
	for what, test := range map[string]struct {
		entry       string
		unsupported bool
	}{
		"none":     {"", true},
		"http":     {`,"renewalInfo":"http://ca.test/ari"`, false},
		"relative": {`,"renewalInfo":"/ari"`, false},
	} {
		w.ca.SetHook(at(lab.EndpointDirectory, func(out http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(out, `{"newNonce":"https://%[1]s/nonce-plz","newAccount":"https://%[1]s/sign-me-up","newOrder":"https://%[1]s/order-plz"%[2]s}`, r.Host, test.entry)
		}))
		_, err := w.client().RenewalInfo(w.ctx(), "AQ.AQ")
		if err == nil || errors.Is(err, errors.ErrUnsupported) != test.unsupported {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := w.ca.Counts().Requests[lab.EndpointRenewalInfo]; n != 0 {
		t.Errorf("%d requests for what is not there", n)
	}
}

// To a CA without renewal information an order says nothing of what it replaces.
func TestReplacesIsNotSentToACAWithoutRenewalInfo(t *testing.T) {
	w := newWorld(t)
	w.ca.SetHook(at(lab.EndpointDirectory, func(out http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(out, `{"newNonce":"https://%[1]s/nonce-plz","newAccount":"https://%[1]s/sign-me-up","newOrder":"https://%[1]s/order-plz"}`, r.Host)
	}))
	c := w.registered()
	var j journal
	o := w.order(cert.EC256, both...)
	o.Replaces = "AQ.AQ"
	if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
		t.Fatal(err)
	}
	for _, recorded := range j.orders {
		if recorded.Replaces != "" {
			t.Errorf("at step %s the order replaces %q", recorded.Step, recorded.Replaces)
		}
	}
	if n := w.ca.Counts().Requests[lab.EndpointNewOrder]; n != 1 {
		t.Errorf("%d requests for the order, want 1: a refused one was repeated", n)
	}
}

// The identifier that is computed here is the one that the CA means: it takes a renewal for one, once.
func TestARenewalIsToldByItsIdentifier(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	_, id := w.issued(c)
	for i, want := range []string{id, ""} { // the second time the CA says alreadyReplaced, and is asked without
		o := w.order(cert.EC256, both...)
		o.Replaces = id
		var j journal
		if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
			t.Fatal(err)
		}
		if got := j.last(o).Replaces; got != want {
			t.Errorf("renewal %d replaces %q, want %q", i+1, got, want)
		}
	}
	if _, err := c.RenewalInfo(w.ctx(), id); err != nil {
		t.Errorf("of what was replaced: %v", err)
	}
}
