package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func (h *host) revokes(w Revoke) (cluster.Report, error) {
	h.w.Helper()
	w.Name = slot.Name
	return h.pass(context.Background(), Wanted{Revoke: &w, MasterOnly: true})
}

// revocation is what a report has of the one revocation.
func revocation(t tb, r cluster.Report) cluster.RevocationReport {
	t.Helper()
	if len(r.Revocations) != 1 {
		t.Fatalf("%d revocations in the report, want 1", len(r.Revocations))
	}
	return r.Revocations[0]
}

// revokeNow is a revocation whose report is wanted.
func (h *host) revoked(w Revoke) cluster.RevocationReport {
	h.w.Helper()
	report, err := h.revokes(w)
	if err != nil {
		h.w.Fatalf("revoke on %s: %v", h.name, err)
	}
	return revocation(h.w, report)
}

func (c *fakeCA) wantRevoked(generations ...cert.Generation) {
	c.w.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	distinct := map[cert.Fingerprint]bool{}
	for _, r := range c.revoked {
		distinct[r.fingerprint] = true
	}
	if len(distinct) != len(generations) {
		c.w.Errorf("the CA has revoked %d, want %d", len(distinct), len(generations))
	}
	for _, g := range generations {
		if !distinct[g.Fingerprint] {
			c.w.Errorf("the CA has not revoked generation %d (%s)", g.Sequence, g.Fingerprint.Short())
		}
	}
}

// buried wants a tombstone on each of the hosts, and that no way leads back.
func (w *world) buried(g cert.Generation, hosts ...*host) {
	w.Helper()
	for _, h := range hosts {
		if !cluster.Revoked(h.records().Tombstones, g.Fingerprint) {
			w.Errorf("%s has no tombstone of generation %d (%s)", h.name, g.Sequence, g.Fingerprint.Short())
		}
		if h.proxy.serves(g.Slot) == g.Fingerprint {
			w.Errorf("%s serves generation %d (%s), which is revoked", h.name, g.Sequence, g.Fingerprint.Short())
		}
	}
}

func (w *world) passOf(h *host) cluster.Report {
	w.Helper()
	report, err := h.pass(context.Background(), Wanted{})
	if err != nil {
		w.Fatalf("pass on %s: %v", h.name, err)
	}
	return report
}

func TestARevocationPutsAReplacementInServiceFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(3)
		first := renewed(w, 1)[0]
		w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
			if step == "revoke" {
				w.inService(slot, 2) // by then
			}
			return nil
		}
		report, err := w.hosts[0].revokes(Revoke{Reason: "keyCompromise"})
		if err != nil {
			t.Fatal(err)
		}
		r := revocation(t, report)
		if r.Outcome != cluster.Done || !r.Revoked || !r.Tombstone || !same(r.Generation, first) || r.Replacement.Sequence != 2 || report.Outcome != cluster.Done {
			t.Errorf("%s: %+v", report.Outcome, r)
		}
		w.inService(slot, 2)
		w.orders(2, 2)
		w.ca.wantRevoked(first)
		w.buried(first, w.hosts...)
		if got := w.ca.revoked[0]; got.reason != cluster.KeyCompromise || got.account == "" {
			t.Errorf("revoked as %+v", got)
		}
		for _, h := range w.hosts {
			if all := h.records().Revocations; len(all) != 1 || all[0].End != cluster.RevocationDone {
				t.Errorf("%s has the revocations %+v", h.name, all)
			}
		}
		// It is over: nothing is revoked or ordered again, and nobody goes back to it.
		if report := w.passOf(w.hosts[0]); len(report.Revocations) > 0 || report.Outcome != cluster.Unchanged {
			t.Errorf("the next pass: %s, %+v", report.Outcome, report.Revocations)
		}
		w.orders(2, 2)
		for _, generation := range []string{"", "1"} {
			if _, err := w.hosts[0].rollBack(Choice{Name: slot.Name, Generation: generation}); err == nil || generation != "" && !errors.Is(err, cluster.ErrRevoked) {
				t.Errorf("rollback to %q: %v", generation, err)
			}
		}
		if len(w.ca.revoked) != 1 {
			t.Errorf("the CA was told %d times", len(w.ca.revoked))
		}
	})
}

// Killed anywhere, it is finished by the next pass of whoever is MASTER then: one replacement, one order, one certificate
// revoked. Run again, it goes on with what it began, and does not take the replacement for what is to be revoked.
func TestARevocationThatIsKilledAnywhereIsFinished(t *testing.T) {
	for next, stride := range map[string]int{"the next pass": 1, "run again": 3, "the other node": 2} {
		t.Run(next, func(t *testing.T) {
			whole := false
			for at := 1; !whole; at += stride {
				w := newWorld(t, 2)
				first := renewed(w, 1)[0]
				a := w.hosts[0]
				a.mu.Lock()
				a.killAt = at
				a.mu.Unlock()
				_, _ = a.revokes(Revoke{})
				whole = a.effects < at
				by := a
				if next == "the other node" {
					w.master(1)
					by = w.hosts[1]
				}
				begun := len(a.records().Revocations) > 0 // the other node hears of it, too
				switch {
				case next == "run again" && !cluster.Revoked(a.records().Tombstones, first.Fingerprint):
					if r := a.revoked(Revoke{}); r.Outcome != cluster.Done || !same(r.Generation, first) {
						t.Errorf("%+v", r)
					}
					begun = true
				default:
					w.passOf(by)
				}
				if begun {
					w.passOf(w.hosts[0])
					w.passOf(w.hosts[1])
					w.inService(slot, 2)
					w.orders(2, 2)
					w.ca.wantRevoked(first)
					w.buried(first, w.hosts...)
				} else {
					w.inService(slot, 1)
					w.orders(1, 1)
					w.ca.wantRevoked()
				}
				if t.Failed() || at > 200 {
					t.Fatalf("killed at effect %d", at)
				}
			}
		})
	}
}

// A demotion at any reading of the role leaves the rest to the next MASTER.
func TestARevocationGoesOnWithTheNextMaster(t *testing.T) {
	whole := false
	for at := 2; !whole; at++ {
		w := newWorld(t, 2)
		first := renewed(w, 1)[0]
		a := w.hosts[0]
		a.mu.Lock()
		a.flipAt = at
		a.mu.Unlock()
		_, err := a.revokes(Revoke{})
		a.mu.Lock()
		whole = a.role == cluster.Master
		a.mu.Unlock()
		if err != nil && !errors.Is(err, cluster.ErrNotMaster) {
			t.Errorf("error %v", err)
		}
		w.master(1)
		begun := len(w.hosts[1].records().Revocations) > 0
		w.passOf(w.hosts[1])
		if begun {
			w.inService(slot, 2)
			w.orders(2, 2)
			w.ca.wantRevoked(first)
			w.buried(first, w.hosts...)
		} else {
			w.inService(slot, 1)
		}
		if t.Failed() || at > 100 {
			t.Fatalf("demoted at reading %d", at)
		}
	}
}

func TestWithoutAReplacementNothingIsRevokedAndThatIsItsEnd(t *testing.T) {
	for _, test := range []struct {
		fault error
		want  cluster.Outcome
	}{{errOutage, cluster.Failure}, {nil, cluster.PutOff}} {
		w := newWorld(t, 2)
		first := renewed(w, 1)[0]
		fault := test.fault
		if fault == nil {
			fault = retryAfter(w, time.Hour)
		}
		w.ca.fault = failAt("newOrder", fault)
		r := w.hosts[0].revoked(Revoke{Reason: "superseded"})
		if r.Outcome != test.want || r.Tombstone || r.Revoked || !strings.Contains(r.Error, "nothing was revoked") || !strings.Contains(r.Hint, "--now") {
			t.Errorf("%+v", r)
		}
		w.ca.fault = nil
		w.advance(2 * day)
		w.passOf(w.hosts[0]) // takes the order up that was left open
		w.inService(slot, 2)
		w.ca.wantRevoked()
		if slices.ContainsFunc(w.hosts, func(h *host) bool { return len(h.records().Tombstones) > 0 }) {
			t.Error("there is a tombstone")
		}
		// Asked for again, it is done, and not to the certificate that came meanwhile.
		if r := w.hosts[0].revoked(Revoke{}); r.Outcome != cluster.Done || r.Reason != cluster.Superseded {
			t.Errorf("again: %+v", r)
		}
		w.ca.wantRevoked(first)
		w.orders(2, 2)
	}
}

// At once: the CA is told before anything is ordered, and the earlier generation, or nothing, is what there is until then.
func TestARevocationAtOnceWaitsForNothing(t *testing.T) {
	for _, generations := range []int{1, 2} {
		w := newWorld(t, 2)
		all := renewed(w, generations)
		last := all[generations-1]
		w.ca.fault = failAt("newOrder", errOutage)
		report, err := w.hosts[0].revokes(Revoke{Reason: "keyCompromise", AtOnce: true})
		if err != nil {
			t.Fatal(err)
		}
		if r := revocation(t, report); r.Outcome != cluster.Done || !r.Revoked || r.Replacement.IsZero() != (generations == 1) {
			t.Errorf("%+v", r)
		}
		w.ca.wantRevoked(last)
		row := rowOf(t, report, slot)
		if row.Ordered || row.Due == "" || row.Error == "" {
			t.Errorf("row %+v", row)
		}
		warned := slices.ContainsFunc(report.Warnings, func(s string) bool { return strings.Contains(s, "no replacement") })
		if warned != (generations == 1) {
			t.Errorf("warnings %q", report.Warnings)
		}
		if generations == 2 {
			w.inService(slot, 1)
			w.buried(last, w.hosts...)
		}
		// As soon as the CA gives one, it is replaced.
		w.ca.fault = nil
		w.advance(time.Hour)
		w.passOf(w.hosts[0])
		w.inService(slot, uint64(generations)+1)
		w.buried(last, w.hosts...)
		w.orders(generations+1, generations+1)
	}
}

// The CA does not answer: the tombstone stands, it is told again by back-off, by whoever is MASTER, and not in between.
func TestACAThatDoesNotRevokeIsAskedAgain(t *testing.T) {
	w := newWorld(t, 2)
	first := renewed(w, 1)[0]
	asked := 0
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "revoke" {
			asked++
			return &cluster.IssueError{Cause: "revoke: out of order"}
		}
		return nil
	}
	report, err := w.hosts[0].revokes(Revoke{})
	if err != nil {
		t.Fatal(err)
	}
	r := revocation(t, report)
	if r.Outcome != cluster.Failure || !r.Tombstone || r.Revoked || !r.NextTry.After(w.Now()) || report.Next.After(r.NextTry) {
		t.Errorf("next %s: %+v", report.Next, r)
	}
	w.inService(slot, 2)
	w.buried(first, w.hosts...)
	report = w.passOf(w.hosts[0])
	if r := revocation(t, report); r.Outcome != cluster.PutOff || asked != 1 || len(report.Warnings) != 1 {
		t.Errorf("asked %d times: %+v, warnings %q", asked, r, report.Warnings)
	}
	w.master(1)
	w.advance(2 * time.Minute)
	if r := revocation(t, w.passOf(w.hosts[1])); r.Outcome != cluster.Failure || asked != 2 || r.NextTry.Sub(w.Now()) < 10*time.Minute {
		t.Errorf("asked %d times: %+v", asked, r)
	}
	w.ca.fault = nil
	w.advance(20 * time.Minute)
	if r := revocation(t, w.passOf(w.hosts[1])); r.Outcome != cluster.Done {
		t.Errorf("%+v", r)
	}
	w.ca.wantRevoked(first)
	w.orders(2, 2)
}

func TestACAThatWillNotRevokeIsNotAskedAgainByItself(t *testing.T) {
	w := newWorld(t, 2)
	first := renewed(w, 1)[0]
	w.ca.fault = failAt("revoke", &cluster.IssueError{Cause: "badRevocationReason", Dead: true, Hint: "give another reason"})
	if r := w.hosts[0].revoked(Revoke{Reason: "superseded"}); r.Outcome != cluster.Failure || !r.Tombstone || r.Hint != "give another reason" {
		t.Errorf("%+v", r)
	}
	w.ca.fault = nil
	w.advance(2 * day)
	if report := w.passOf(w.hosts[0]); len(report.Revocations) > 0 {
		t.Errorf("%+v", report.Revocations)
	}
	w.ca.wantRevoked()
	// By its name it can be asked for again; without, it would be the replacement that is meant.
	if r := w.hosts[0].revoked(Revoke{Choice: Choice{Generation: first.Fingerprint.Short()}, Reason: "cessationOfOperation"}); r.Outcome != cluster.Done {
		t.Errorf("%+v", r)
	}
	w.ca.wantRevoked(first)
	w.inService(slot, 2)
	w.orders(2, 2)
}

// A node that can be reached and does not serve the replacement holds the revocation up; one that is away does not, and
// takes tombstone and replacement when it is back.
func TestWhoHoldsARevocationUp(t *testing.T) {
	t.Run("one that refuses", func(t *testing.T) {
		w := newWorld(t, 2)
		first := renewed(w, 1)[0]
		w.hosts[1].proxy.set(func() { w.hosts[1].proxy.rejects = true })
		report, err := w.hosts[0].revokes(Revoke{})
		if err != nil {
			t.Fatal(err)
		}
		if r := revocation(t, report); r.Outcome != cluster.Waiting || r.Tombstone || report.Next.IsZero() || !strings.Contains(r.Hint, "--now") {
			t.Errorf("next %s: %+v", report.Next, r)
		}
		w.ca.wantRevoked()
		w.hosts[1].proxy.set(func() { w.hosts[1].proxy.rejects = false })
		if r := revocation(t, w.passOf(w.hosts[0])); r.Outcome != cluster.Done {
			t.Errorf("%+v", r)
		}
		w.ca.wantRevoked(first)
		w.inService(slot, 2)
		w.orders(2, 2)
	})
	t.Run("one that is away", func(t *testing.T) {
		w := newWorld(t, 3)
		w.lax = true
		first := renewed(w, 1)[0]
		w.cut(2, true)
		report, err := w.hosts[0].revokes(Revoke{})
		if err != nil {
			t.Fatal(err)
		}
		if r := revocation(t, report); r.Outcome != cluster.Done || report.Outcome != cluster.Skipped {
			t.Errorf("%s: %+v", report.Outcome, r)
		}
		w.ca.wantRevoked(first)
		w.buried(first, w.hosts[:2]...)
		w.cut(2, false)
		w.passOf(w.hosts[2])
		w.inService(slot, 2)
		w.buried(first, w.hosts...)
	})
	t.Run("none where HAProxy is down", func(t *testing.T) {
		w := newWorld(t, 2)
		first := renewed(w, 1)[0]
		w.hosts[1].proxy.set(func() { w.hosts[1].proxy.down = true })
		w.hosts[0].revoked(Revoke{})
		w.ca.wantRevoked(first)
		w.hosts[1].proxy.start()
		w.inService(slot, 2)
	})
}

// Scenario: a node that was away for the revocation put the revoked certificate back meanwhile, and released it. Its higher
// sequence is worth nothing, its own neither.
func TestARollbackToWhatTheOtherSideRevokedIsWorthNothing(t *testing.T) {
	w := newWorld(t, 2)
	w.lax = true
	all := renewed(w, 2)
	w.cut(1, true)
	if r := w.hosts[0].revoked(Revoke{Choice: Choice{Generation: "1"}}); r.Outcome != cluster.Done {
		t.Fatalf("%+v", r)
	}
	w.hosts[1].mu.Lock()
	w.hosts[1].role = cluster.Master
	w.hosts[1].mu.Unlock()
	w.hosts[1].back("1")
	w.hosts[1].mu.Lock()
	w.hosts[1].role = cluster.Backup
	w.hosts[1].mu.Unlock()
	if fp := w.hosts[1].proxy.serves(slot); fp != all[0].Fingerprint {
		t.Fatalf("the other side serves %s", fp.Short())
	}
	w.cut(1, false)
	w.passOf(w.hosts[0])
	w.passOf(w.hosts[1])
	w.inService(slot, 2)
	w.buried(all[0], w.hosts...)
	if got := w.hosts[0].held(t, slot); len(got) != 2 {
		t.Errorf("the revoked one was adopted: %s", listed(got))
	}
}

// The keys of orders that were open when the certificate was condemned may be known to the same who has its own.
func TestTheReplacementHasAKeyThatIsNewerThanTheRevocation(t *testing.T) {
	w := newWorld(t, 2)
	renewed(w, 1)
	w.ca.fault = failAt("challenge", errOutage)
	w.hosts[0].issue("example.org") // leaves an open order
	old := w.hosts[0].records().Orders
	key, err := cert.ParseKey(old[len(old)-1].Key)
	if err != nil {
		t.Fatal(err)
	}
	w.ca.fault = nil
	w.advance(time.Second)
	if r := w.hosts[0].revoked(Revoke{}); r.Outcome != cluster.Done {
		t.Fatalf("%+v", r)
	}
	b, err := w.hosts[0].Store.Bundle(context.Background(), w.hosts[0].newest(slot))
	if err != nil || b.HasKey(key.Public()) {
		t.Errorf("the replacement has the key of the open order, or none: %v", err)
	}
	w.inService(slot, 2)
}

func TestEverythingThatIsHeldCanBeRevoked(t *testing.T) {
	w := newWorld(t, 2)
	all := renewed(w, 3)
	report, err := w.hosts[0].revokes(Revoke{All: true, Reason: "keyCompromise"})
	if err != nil || len(report.Revocations) != 3 {
		t.Fatalf("%v: %+v", err, report.Revocations)
	}
	w.ca.wantRevoked(all...)
	w.inService(slot, 4)
	w.orders(4, 4)
	// And only once.
	report, err = w.hosts[0].revokes(Revoke{Choice: Choice{Generation: "1"}})
	if err != nil || len(report.Revocations) != 0 || len(w.ca.revoked) != 3 {
		t.Errorf("%v: %+v, the CA was told %d times", err, report.Revocations, len(w.ca.revoked))
	}
	w.orders(4, 4)
}

func TestOnlyWhatIsRevokedIsReplaced(t *testing.T) {
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.hosts[0].issue()
	w.advance(80 * day) // both are due
	if r := w.hosts[0].revoked(Revoke{}); r.Outcome != cluster.Done {
		t.Errorf("%+v", r)
	}
	w.inService(slot, 2)
	w.inService(otherSlot, 1)
}

// A revocation that was cut off is not given up because a person then revokes something else.
func TestARevocationLeavesAnotherThatIsUnderWayAlone(t *testing.T) {
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.hosts[0].issue()
	first, second := w.hosts[0].newest(slot), w.hosts[0].newest(otherSlot)
	w.advance(time.Hour)
	open := cluster.Revocation{Generation: second, Reason: cluster.Superseded, Directory: w.ca.directory, Node: "proxy1", Time: w.Now(), Revision: 1}
	if err := w.hosts[0].Store.Merge(context.Background(), cluster.Records{Revocations: []cluster.Revocation{open}}); err != nil {
		t.Fatal(err)
	}
	if r := w.hosts[0].revoked(Revoke{}); r.Outcome != cluster.Done || !same(r.Generation, first) {
		t.Errorf("%+v", r)
	}
	w.ca.wantRevoked(first)
	if r := revocation(t, w.passOf(w.hosts[0])); r.Outcome != cluster.Done || !same(r.Generation, second) {
		t.Errorf("%+v", r)
	}
	w.ca.wantRevoked(first, second)
	w.inService(otherSlot, 2)
}

func TestWhatCannotBeRevokedIsToldBeforeAnythingChanges(t *testing.T) {
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.hosts[0].issue()
	w.advance(time.Hour)
	for what, test := range map[string]struct {
		revoke Revoke
		hint   string
	}{
		"a reason":       {Revoke{Choice: Choice{Name: slot.Name}, Reason: "whim"}, "keyCompromise"},
		"a name":         {Revoke{Choice: Choice{Name: "nope"}}, "example.org"},
		"a generation":   {Revoke{Choice: Choice{Name: slot.Name, Generation: "9"}}, "held are"},
		"a key type":     {Revoke{Choice: Choice{Name: slot.Name, Algorithm: cert.RSA}}, "--key-type"},
		"no replacement": {Revoke{Choice: Choice{Name: other.Name}}, "--now"},
	} {
		for _, h := range w.hosts {
			h.Settings.Certificates = []Certificate{wildcard}
		}
		_, err := w.hosts[0].pass(context.Background(), Wanted{Revoke: &test.revoke, MasterOnly: true})
		if !errors.Is(err, cluster.ErrUsage) || !strings.Contains(cluster.HintOf(err), test.hint) {
			t.Errorf("%s: %v, hint %q", what, err, cluster.HintOf(err))
		}
	}
	if _, err := w.hosts[1].revokes(Revoke{}); !errors.Is(err, cluster.ErrNotMaster) {
		t.Errorf("on a BACKUP: %v", err)
	}
	w.ca.wantRevoked()
	if n := len(w.hosts[0].records().Revocations); n != 0 {
		t.Errorf("%d revocations are recorded", n)
	}
	// What is no longer configured needs no replacement.
	report, err := w.hosts[0].pass(context.Background(), Wanted{Revoke: &Revoke{Choice: Choice{Name: other.Name}, AtOnce: true}, MasterOnly: true})
	if err != nil || revocation(t, report).Outcome != cluster.Done {
		t.Errorf("%v: %+v", err, report.Revocations)
	}
	w.advance(90 * day)
	if _, err := w.hosts[0].revokes(Revoke{}); !errors.Is(err, cluster.ErrUsage) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired one: %v", err)
	}
}

// A peer's word of a revocation counts only for what is held here, and cannot silence one.
func TestAPeersRevocationsAreCheckedAsAStrangers(t *testing.T) {
	w := newWorld(t, 2)
	first := renewed(w, 1)[0]
	foreign := first
	foreign.Fingerprint[0] ^= 1
	good := cluster.Revocation{Generation: first, Reason: cluster.Superseded, Directory: w.ca.directory, Node: "proxy2", Time: w.Now(), Revision: 1}
	for what, change := range map[string]func(*cluster.Revocation){
		"of what is not held": func(r *cluster.Revocation) { r.Generation = foreign },
		"of the future":       func(r *cluster.Revocation) { r.Time = w.Now().Add(40 * day) },
		"the last revision":   func(r *cluster.Revocation) { r.Revision = 1 << 63 },
		"tried in a year":     func(r *cluster.Revocation) { r.NextTry = w.Now().Add(365 * day) },
	} {
		r := good
		change(&r)
		_ = w.hosts[0].Record(context.Background(), "proxy2", cluster.Records{Revocations: []cluster.Revocation{r}})
		if n := len(w.hosts[0].records().Revocations); n != 0 {
			t.Errorf("%s: taken", what)
		}
	}
	if err := w.hosts[0].Record(context.Background(), "proxy2", cluster.Records{Revocations: []cluster.Revocation{good}}); err != nil || len(w.hosts[0].records().Revocations) != 1 {
		t.Errorf("a sound one is refused: %v", err)
	}
}

func TestWhyASlotNeedsAnotherGenerationThanACondemnedOne(t *testing.T) {
	g := func(sequence uint64, b byte) cert.Generation {
		return cert.Generation{Slot: slot, Sequence: sequence, Fingerprint: cert.Fingerprint{b}}
	}
	for _, test := range []struct {
		condemned, newest cert.Generation
		want              string
	}{
		{cert.Generation{}, g(1, 1), ""}, {g(1, 1), g(1, 1), "to be revoked"}, {g(1, 1), g(2, 2), ""}, {g(2, 2), g(1, 1), "is revoked"},
		{g(2, 2), cert.Generation{}, "is revoked"}, {g(1, 1), g(5, 1), "to be revoked"},
	} {
		got := replacementDue(cluster.Revocation{Generation: test.condemned}, test.newest)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%d condemned, %d newest: %q, want %q", test.condemned.Sequence, test.newest.Sequence, got, test.want)
		}
	}
}

// A revocation that cannot be made for what this node is, and not for what the CA says, ends as refused.
func TestARevocationThatThisNodeCannotMakeIsTold(t *testing.T) {
	for _, err := range []error{fmt.Errorf("revoke: %w", errors.ErrUnsupported), fmt.Errorf("revoke: %w", fs.ErrNotExist)} {
		w := newWorld(t, 1)
		renewed(w, 1)
		w.ca.fault = failAt("revoke", err)
		if r := w.hosts[0].revoked(Revoke{}); r.Outcome != cluster.Failure || !strings.Contains(r.Error, "not asked again") || r.Hint == "" {
			t.Errorf("%+v", r)
		}
		if all := w.hosts[0].records().Revocations; all[0].End != cluster.RevocationRefused {
			t.Errorf("%+v", all)
		}
	}
}
