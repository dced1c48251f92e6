package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// renewed has n generations of one certificate issued, a day between each two, and gives them from the oldest.
func renewed(w *world, n int) []cert.Generation {
	w.Helper()
	var out []cert.Generation
	for range n {
		w.advance(day)
		w.hosts[0].issue("example.org")
		out = append(out, w.hosts[0].newest(slot))
	}
	w.advance(day)
	return out
}

func (h *host) rollBack(c Choice) (cluster.Report, error) {
	h.w.Helper()
	return h.pass(context.Background(), Wanted{Rollback: &c, MasterOnly: true, NoOrders: true})
}

// back is a rollback that must be made.
func (h *host) back(generation string) cluster.Report {
	h.w.Helper()
	report, err := h.rollBack(Choice{Name: "example.org", Generation: generation})
	if err != nil {
		h.w.Fatalf("rollback on %s: %v", h.name, err)
	}
	return report
}

// wantBundle wants every host to hold and serve the bundle of g as the newest, under one sequence.
func (w *world) wantBundle(g cert.Generation, sequence uint64) {
	w.Helper()
	w.inService(g.Slot, sequence)
	if got := w.hosts[0].newest(g.Slot); got.Fingerprint != g.Fingerprint {
		w.Errorf("the newest is %d (%s), want the bundle of %d (%s)", got.Sequence, got.Fingerprint.Short(), g.Sequence, g.Fingerprint.Short())
	}
}

func TestARollbackPutsTheGenerationBeforeInServiceOnEveryNode(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(3)
		all := renewed(w, 3)
		w.events = nil
		report := w.hosts[0].back("")
		w.wantBundle(all[1], 4)
		w.orders(3, 3)
		if got, want := strings.Join(w.eventsOf("activate"), ", "), "activate proxy2 example.org (ecdsa), activate proxy3 example.org (ecdsa), activate proxy1 example.org (ecdsa)"; got != want {
			t.Errorf("activations: %s, want the BACKUPs first: %s", got, want)
		}
		row := rowOf(t, report, slot)
		if report.Outcome != cluster.Done || !same(row.RolledBackFrom, all[2]) || row.Newest.Sequence != 4 || len(report.Warnings) > 0 {
			t.Errorf("report: %s, row %+v, warnings %q", report.Outcome, row, report.Warnings)
		}
		// No pass of any node undoes it.
		for _, h := range []*host{w.hosts[1], w.hosts[0], w.hosts[2], w.hosts[0]} {
			if _, err := h.pass(context.Background(), Wanted{}); err != nil {
				t.Error(err)
			}
		}
		w.wantBundle(all[1], 4)
		w.orders(3, 3)
	})
}

func TestARollbackGoesToTheGenerationThatIsNamed(t *testing.T) {
	w := newWorld(t, 2)
	all := renewed(w, 4)
	w.hosts[0].back("1")
	w.wantBundle(all[0], 5)
	// Of the two that hold this bundle by now the name means the same; it is the newest already, and nothing is done.
	for _, name := range []string{"1", "5", all[0].Fingerprint.String(), strings.ToUpper(all[0].Fingerprint.Short())} {
		w.hosts[0].back(name)
		w.wantBundle(all[0], 5)
	}
	w.hosts[0].back(all[2].Fingerprint.Short())
	w.wantBundle(all[2], 6)
	w.hosts[0].back("") // what was the newest before
	w.wantBundle(all[0], 7)
	w.orders(4, 4)
}

func TestWhatCannotBeRolledBackToIsToldBeforeAnythingChanges(t *testing.T) {
	w := newWorld(t, 2)
	renewed(w, 2)
	before := w.hosts[0].newest(slot)
	for _, test := range []struct {
		choice Choice
		code   error
		hint   string
	}{
		{Choice{Name: "nope"}, cluster.ErrUsage, "example.org"},
		{Choice{Name: "example.org", Generation: "7"}, cluster.ErrUsage, "2 ("},
		{Choice{Name: "example.org", Generation: "deadbeef"}, cluster.ErrUsage, "2 ("},
		{Choice{Name: "example.org", Generation: "abc"}, cluster.ErrUsage, "at least 4 digits"},
		{Choice{Name: "example.org", Generation: "-1"}, cluster.ErrUsage, "--list"},
		{Choice{Name: "example.org", Generation: "../../etc"}, cluster.ErrUsage, "--list"},
		{Choice{Name: "example.org", Algorithm: cert.RSA}, cluster.ErrUsage, "--key-type"},
	} {
		_, err := w.hosts[0].rollBack(test.choice)
		if !errors.Is(err, test.code) || !strings.Contains(cluster.HintOf(err), test.hint) {
			t.Errorf("%+v: %v, hint %q", test.choice, err, cluster.HintOf(err))
		}
	}
	if _, err := w.hosts[1].rollBack(Choice{Name: "example.org"}); !errors.Is(err, cluster.ErrNotMaster) {
		t.Errorf("on a BACKUP: %v", err)
	}
	if now := w.hosts[0].newest(slot); !same(now, before) || len(w.hosts[0].records().Ledger) != 2 {
		t.Errorf("generation %d is the newest, want %d; ledger %+v", now.Sequence, before.Sequence, w.hosts[0].records().Ledger)
	}
}

func TestAnAmbiguousNameOfAGenerationIsRefused(t *testing.T) {
	g := func(sequence uint64, first ...byte) cert.Generation {
		return cert.Generation{Slot: slot, Sequence: sequence, Fingerprint: cert.Fingerprint(append(first, make([]byte, 32-len(first))...))}
	}
	s := shelf{slot: slot, held: []cert.Generation{g(1, 0xab, 0xcd, 1), g(2, 0xab, 0xcd, 2), g(3, 0x12, 0x34, 5), g(1234, 0x99), g(1235, 0xab, 0xcd, 1)}}
	for name, want := range map[string]uint64{"1": 1, "abcd01": 1235, "ABCD02": 2, "3": 3, "12340": 3, "7777": 0, "abce": 0} {
		got, err := s.find(Choice{Generation: name})
		if err != nil || got.Sequence != want {
			t.Errorf("%s is %d, want %d: %v", name, got.Sequence, want, err)
		}
	}
	for _, name := range []string{"abcd", "1234"} { // the digits of one, and the number of another
		if _, err := s.find(Choice{Generation: name}); !errors.Is(err, cluster.ErrUsage) || !strings.Contains(err.Error(), "any of") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARollbackPassesOverWhatNoNodeWouldTake(t *testing.T) {
	w := newWorld(t, 2)
	all := renewed(w, 3)
	for _, c := range []string{all[1].Fingerprint.Short()} {
		if err := w.hosts[0].Store.Merge(context.Background(), cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: all[1].Fingerprint, Name: slot.Name, Time: w.Now()}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.hosts[0].rollBack(Choice{Name: slot.Name, Generation: c}); !errors.Is(err, cluster.ErrRevoked) {
			t.Errorf("to a revoked one: %v", err)
		}
	}
	w.hosts[0].back("")
	w.wantBundle(all[0], 4)

	// An expired one is none to go back to, by its name neither.
	w.advance(89 * day)
	w.hosts[0].issue("example.org")
	_, err := w.hosts[0].rollBack(Choice{Name: slot.Name, Generation: all[0].Fingerprint.Short()})
	if err == nil || errors.Is(err, cluster.ErrUsage) || cluster.HintOf(err) == "" {
		t.Errorf("to an expired one: %v", err)
	}
	w.advance(2 * day)
	if _, err := w.hosts[0].rollBack(Choice{Name: slot.Name}); err == nil || !strings.Contains(err.Error(), "no earlier generation") ||
		cluster.HintOf(err) != "obtain a new one: certsync issue example.org" {
		t.Errorf("where none is sound: %v, hint %q", err, cluster.HintOf(err))
	}
}

func TestARollbackWantsTheNamesOfTheConfiguration(t *testing.T) {
	w := newWorld(t, 2, withCertificates(certificate("example.org", []string{"example.org"}, cert.EC256)))
	first := renewed(w, 1)[0]
	for _, h := range w.hosts {
		h.Settings.Certificates = []Certificate{wildcard}
	}
	renewed(w, 1)
	if _, err := w.hosts[0].rollBack(Choice{Name: slot.Name}); err == nil || !strings.Contains(err.Error(), "it lacks *.example.org") {
		t.Errorf("to one with fewer names: %v", err)
	}
	// Who names it gets it, and is told that it does not last.
	report := w.hosts[0].back("1")
	w.wantBundle(first, 3)
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "its names are [example.org]") {
		t.Errorf("warnings %q", report.Warnings)
	}
	// Names that the configuration has no more no peer would take.
	for _, h := range w.hosts {
		h.Settings.Certificates = []Certificate{certificate("example.org", []string{"www.example.org"}, cert.EC256)}
	}
	if _, err := w.hosts[0].rollBack(Choice{Name: slot.Name, Generation: "2"}); !errors.Is(err, cert.ErrNames) {
		t.Errorf("to one with other names: %v", err)
	}
}

// An earlier certificate is mostly due. Renewed at once it would be what was rolled back from: that waits for a day, and a
// person's order does not.
func TestARollbackHoldsItsRenewalBackForADay(t *testing.T) {
	for _, byHand := range []bool{false, true} {
		w := newWorld(t, 2)
		w.hosts[0].issue()
		first := w.hosts[0].newest(slot)
		w.advance(61 * day)
		w.hosts[0].issue()
		w.orders(2, 2)
		w.advance(time.Hour)
		report := w.hosts[0].back("")
		w.wantBundle(first, 3)
		until := w.Now().Add(day).UTC()
		if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], until.Format(time.RFC3339)) {
			t.Errorf("warnings %q, want when the renewal comes", report.Warnings)
		}
		for range 3 {
			w.advance(7 * time.Hour)
			report, err := w.hosts[0].pass(context.Background(), Wanted{})
			if err != nil {
				t.Fatal(err)
			}
			if row := rowOf(t, report, slot); row.Outcome != cluster.PutOff || !row.NextTry.Equal(until) || !strings.Contains(row.Error, "certsync rollback") || !report.Next.Equal(until) {
				t.Errorf("row %+v, next %s, want it put off until %s", row, report.Next, until)
			}
		}
		w.wantBundle(first, 3)
		w.orders(2, 2)
		w.master(1) // who has it from the ledger
		if byHand {
			w.hosts[1].issue("example.org")
		} else if w.advance(4 * time.Hour); true {
			if _, err := w.hosts[1].pass(context.Background(), Wanted{}); err != nil {
				t.Fatal(err)
			}
		}
		w.orders(3, 3)
		w.inService(slot, 4)
	}
}

func TestBothKeyTypesAreRolledBackUnlessOneIsNamed(t *testing.T) {
	both := certificate("example.org", []string{"example.org"}, cert.EC256, cert.RSA2048)
	rsa := cert.Slot{Name: "example.org", Algorithm: cert.RSA}
	w := newWorld(t, 2, withCertificates(both))
	renewed(w, 2)
	w.hosts[0].back("")
	w.inService(slot, 3)
	w.inService(rsa, 3)
	if _, err := w.hosts[0].rollBack(Choice{Name: "example.org", Algorithm: cert.RSA}); err != nil {
		t.Fatal(err)
	}
	w.inService(slot, 3)
	w.inService(rsa, 4)
	// A fingerprint is of one of them, and a sequence of both.
	w.hosts[0].back(w.hosts[0].newest(slot).Fingerprint.Short())
	w.inService(rsa, 4)
	w.hosts[0].back("2")
	w.inService(slot, 4)
	w.inService(rsa, 4) // it is that bundle already
	// Where one of two cannot be put back, none is.
	if err := w.hosts[0].Store.Merge(context.Background(), cluster.Records{Tombstones: []cluster.Tombstone{
		{Fingerprint: w.hosts[0].held(t, rsa)[0].Fingerprint, Name: "example.org", Time: w.Now()}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hosts[0].rollBack(Choice{Name: "example.org", Generation: "1"}); !errors.Is(err, cluster.ErrRevoked) {
		t.Errorf("with a revoked one: %v", err)
	}
	w.inService(slot, 4)
}

func (h *host) held(t tb, s cert.Slot) []cert.Generation {
	t.Helper()
	held, err := h.Store.Generations(context.Background())
	if err != nil {
		t.Fatalf("%v", err)
	}
	held = slices.DeleteFunc(held, func(g cert.Generation) bool { return g.Slot != s })
	slices.SortFunc(held, cert.Generation.Compare)
	return held
}

// Killed anywhere, a rollback is either not begun or finished by the next pass; run again, it goes to the same bundle.
func TestARollbackThatIsKilledAnywhereIsNotUndone(t *testing.T) {
	whole := false
	for at := 1; !whole; at++ {
		for _, again := range []bool{true, false} {
			w := newWorld(t, 2)
			all := renewed(w, 2)
			a := w.hosts[0]
			a.mu.Lock()
			a.killAt = at
			a.mu.Unlock()
			_, _ = a.rollBack(Choice{Name: "example.org"})
			whole = a.effects < at
			begun := a.newest(slot).Sequence == 3
			released := slices.ContainsFunc(a.records().Releases, func(r cluster.Release) bool { return r.Generation.Sequence == 3 })
			if again && !released {
				a.back("")
				w.wantBundle(all[0], 3)
			} else if _, err := a.pass(context.Background(), Wanted{}); err != nil {
				t.Fatal(err)
			} else if begun {
				w.wantBundle(all[0], 3)
			} else {
				w.wantBundle(all[1], 2)
			}
			w.orders(2, 2)
			if t.Failed() || at > 60 {
				t.Fatalf("killed at effect %d, run again: %t", at, again)
			}
		}
	}
}

// Scenario: a split brain, a rollback on one side. It heals by the order of generations, whichever side speaks first: a
// rollback beats what was there, ties with an issue on the other side are broken by the rest, and two issues beat it.
func TestARollbackOnOneSideOfASplitBrainHealsByTheOrder(t *testing.T) {
	for issues := range 3 {
		for first := range 2 {
			t.Run(fmt.Sprintf("%d issues, node %d first", issues, first+1), func(t *testing.T) {
				w := newWorld(t, 2)
				w.lax = true // each side reaches nobody
				all := renewed(w, 2)
				w.cut(1, true)
				w.hosts[1].mu.Lock()
				w.hosts[1].role = cluster.Master
				w.hosts[1].mu.Unlock()
				w.hosts[0].back("")
				want := w.hosts[0].newest(slot)
				if want.Fingerprint != all[0].Fingerprint || want.Sequence != 3 {
					t.Fatalf("the rollback is %d (%s)", want.Sequence, want.Fingerprint.Short())
				}
				for range issues {
					w.advance(time.Hour)
					w.hosts[1].issue("example.org")
				}
				if issues > 0 {
					want = w.hosts[1].newest(slot) // of a tie, the later notBefore
				}
				w.cut(1, false)
				w.master(first)
				for _, i := range []int{first, 1 - first, first} {
					if _, err := w.hosts[i].pass(context.Background(), Wanted{}); err != nil {
						t.Fatal(err)
					}
				}
				w.inService(slot, want.Sequence)
				if got := w.hosts[0].newest(slot); !same(got, want) {
					t.Errorf("healed to %d (%s), want %d (%s)", got.Sequence, got.Fingerprint.Short(), want.Sequence, want.Fingerprint.Short())
				}
				w.orders(2+issues, 2+issues)
			})
		}
	}
}

func TestANodeThatIsAwayAdoptsTheRollback(t *testing.T) {
	w := newWorld(t, 3)
	w.lax = true
	all := renewed(w, 2)
	w.cut(2, true)
	report := w.hosts[0].back("")
	if report.Outcome != cluster.Skipped {
		t.Errorf("outcome %s", report.Outcome)
	}
	w.cut(2, false)
	if _, err := w.hosts[2].pass(context.Background(), Wanted{}); err != nil {
		t.Fatal(err)
	}
	w.wantBundle(all[0], 3)
}

// A BACKUP that refuses what was put back holds the MASTER back, as with any new generation.
func TestARollbackWaitsForTheCanary(t *testing.T) {
	w := newWorld(t, 2)
	all := renewed(w, 2)
	w.hosts[1].proxy.set(func() { w.hosts[1].proxy.rejects = true })
	report := w.hosts[0].back("")
	if report.Outcome != cluster.RolledBack || w.hosts[0].proxy.serves(slot) != all[1].Fingerprint {
		t.Errorf("outcome %s, the MASTER serves %s", report.Outcome, w.hosts[0].proxy.serves(slot).Short())
	}
}

func TestWhatIsHeldIsToldOnAnyNode(t *testing.T) {
	w := newWorld(t, 2)
	all := renewed(w, 3)
	w.hosts[0].back("1")
	if err := w.hosts[1].Store.Merge(context.Background(), cluster.Records{
		Tombstones:  []cluster.Tombstone{{Fingerprint: all[1].Fingerprint, Name: slot.Name, Time: w.Now()}},
		Revocations: []cluster.Revocation{{Generation: all[2], Reason: cluster.Superseded, Time: w.Now(), Revision: 1}}}); err != nil {
		t.Fatal(err)
	}
	held, err := w.hosts[1].Held(context.Background(), Choice{Name: slot.Name})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, h := range held {
		told = append(told, fmt.Sprintf("%d %t %t %t %t %t", h.Generation.Sequence, h.Current, h.Released, h.Revoked, h.ToBeRevoked, h.Expired))
	}
	want := "4 true true false false false; 3 false false false true false; 2 false false true false false; 1 false false false false false"
	if got := strings.Join(told, "; "); got != want {
		t.Errorf("held are %s, want %s", got, want)
	}
	if _, err := w.hosts[1].Held(context.Background(), Choice{Name: "nope"}); !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("of an unknown name: %v", err)
	}
}
