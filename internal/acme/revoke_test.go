package acme_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// The reason reaches the CA, and what it has revoked already is no error: an answer may have been lost.
func TestARevocationReachesTheCAOnceAndForAll(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	for _, reason := range []cluster.Reason{cluster.Superseded, cluster.KeyCompromise, cluster.Unspecified} {
		b, _ := w.issued(c)
		for range 2 {
			if err := c.Revoke(w.ctx(), w.account, b, reason); err != nil {
				t.Fatalf("%s: %v", reason, err)
			}
		}
		want, _ := reason.Code()
		code, given, revoked := w.ca.Revoked(b.Leaf())
		if !revoked || given != (reason != cluster.Unspecified) || code != want {
			t.Errorf("%s: revoked %t, for the reason %d (given %t)", reason, revoked, code, given)
		}
	}
	if n := w.ca.Counts().Requests[lab.EndpointRevokeCert]; n != 6 {
		t.Errorf("%d requests, want 6: each signed once", n)
	}
}

// An account that the certificate is not of, or none at all, is no reason to leave it valid: who has its key may revoke it.
func TestWhoHasTheKeyMayRevokeWhateverTheAccount(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	first, _ := w.issued(c)
	second, _ := w.issued(c)
	other, err := cluster.NewAccount(w.ca.Directory(), "", time.Now())
	if err == nil {
		other, err = c.Register(w.ctx(), other)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(w.ctx(), other, first, cluster.Superseded); err != nil {
		t.Error(err)
	}
	if err := c.Revoke(w.ctx(), cluster.Account{}, second, cluster.Superseded); err != nil {
		t.Error(err)
	}
	for i, b := range []*cert.Bundle{first, second} {
		if _, _, revoked := w.ca.Revoked(b.Leaf()); !revoked {
			t.Errorf("certificate %d is not revoked", i+1)
		}
	}
}

func TestARevocationThatFailsTellsWhetherItIsWorthATry(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	b, _ := w.issued(c)
	for _, test := range []struct {
		status     int
		kind       string
		dead, hint bool
	}{
		{http.StatusBadRequest, "badRevocationReason", true, true}, {http.StatusForbidden, "unauthorized", true, true},
		{http.StatusInternalServerError, "serverInternal", false, false}, {http.StatusTooManyRequests, "rateLimited", false, true},
	} {
		w.ca.SetHook(at(lab.EndpointRevokeCert, func(out http.ResponseWriter, _ *http.Request) {
			lab.Problem(out, test.status, test.kind, "no")
		}))
		err := c.Revoke(w.ctx(), w.account, b, cluster.Superseded)
		issue, ok := errors.AsType[*cluster.IssueError](err)
		if !ok || issue.Dead != test.dead || (issue.Hint != "") != test.hint || !strings.HasPrefix(issue.Cause, "revoke: "+test.kind) {
			t.Errorf("%s: %v, %+v", test.kind, err, issue)
		}
	}
	w.ca.SetHook(nil)
	if _, _, revoked := w.ca.Revoked(b.Leaf()); revoked {
		t.Error("it is revoked")
	}
	if err := c.Revoke(w.ctx(), w.account, b, "whim"); err == nil {
		t.Error("an unknown reason was taken")
	}
}

func TestADirectoryWithoutRevocationIsTold(t *testing.T) {
	for entry, unsupported := range map[string]bool{"": true, `,"revokeCert":"http://ca.test/revoke"`: false} {
		w := newWorld(t)
		c := w.registered()
		b, _ := w.issued(c)
		w.ca.SetHook(at(lab.EndpointDirectory, func(out http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(out, `{"newNonce":"https://%[1]s/nonce-plz","newAccount":"https://%[1]s/sign-me-up","newOrder":"https://%[1]s/order-plz"%[2]s}`, r.Host, entry)
		}))
		err := w.client().Revoke(w.ctx(), w.account, b, cluster.Superseded)
		if err == nil || errors.Is(err, errors.ErrUnsupported) != unsupported {
			t.Errorf("%q: %v", entry, err)
		}
	}
}
