package reconcile

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func rowOf(t tb, r cluster.Report, s cert.Slot) cluster.CertificateReport {
	t.Helper()
	for _, row := range r.Certificates {
		if row.Slot == s {
			return row
		}
	}
	t.Fatalf("no row for %s", s)
	return cluster.CertificateReport{}
}

func statusOf(t tb, r cluster.Report, node string) cluster.NodeStatus {
	t.Helper()
	for _, n := range r.Nodes {
		if n.Node == node {
			return n
		}
	}
	t.Fatalf("no status of %s", node)
	return cluster.NodeStatus{}
}

// inService checks that every host holds and serves one generation with the sequence given.
func (w *world) inService(s cert.Slot, sequence uint64) {
	w.Helper()
	want := w.hosts[0].newest(s)
	if want.Sequence != sequence {
		w.Errorf("%s holds generation %d of %s, want %d", w.hosts[0].name, want.Sequence, s, sequence)
	}
	for _, h := range w.hosts {
		if g := h.newest(s); !same(g, want) {
			w.Errorf("%s holds generation %d (%s), want %d (%s)", h.name, g.Sequence, g.Fingerprint.Short(), want.Sequence, want.Fingerprint.Short())
		}
		if fp := h.proxy.serves(s); fp != want.Fingerprint {
			w.Errorf("%s serves %s, want %s", h.name, fp.Short(), want.Fingerprint.Short())
		}
	}
}

func (w *world) orders(newOrders, issued int) {
	w.Helper()
	n, i, _ := w.ca.counts()
	if n != newOrders || i != issued {
		w.Errorf("the CA had %d new orders and issued %d, want %d and %d", n, i, newOrders, issued)
	}
}

func TestFirstIssueIsInServiceOnEveryNode(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(3)
		report := w.hosts[0].issue()
		w.inService(slot, 1)
		w.orders(1, 1)
		if got, want := strings.Join(w.eventsOf("activate"), ", "), "activate proxy2 example.org (ecdsa), activate proxy3 example.org (ecdsa), activate proxy1 example.org (ecdsa)"; got != want {
			t.Errorf("activations: %s, want %s", got, want)
		}
		row := rowOf(t, report, slot)
		if report.Outcome != cluster.Done || !row.Ordered || row.Newest.Sequence != 1 || row.Error != "" {
			t.Errorf("report: %s, row %+v", report.Outcome, row)
		}
		for _, h := range w.hosts {
			if s := statusOf(t, report, h.name); len(s.Held) != 1 || !same(s.Held[0], row.Newest) || len(s.Placements) != 1 || s.Placements[0].Proof != cluster.Proven {
				t.Errorf("status of %s: %+v", h.name, s)
			}
		}
		if len(w.hosts[2].records().Accounts) != 1 || len(w.hosts[2].records().Ledger) == 0 {
			t.Errorf("proxy3 lacks the account or the ledger: %+v", w.hosts[2].records())
		}
		if w.ca.left() != 0 {
			t.Errorf("%d TXT values are left", w.ca.left())
		}
	})
}

func TestASecondPassFindsNothingToDo(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	m := w.hosts[0].disk.Store.(*memory)
	m.reads = 0
	report := w.hosts[0].issue()
	if report.Outcome != cluster.Unchanged || len(report.Warnings) > 0 {
		t.Errorf("outcome %s, warnings %q", report.Outcome, report.Warnings)
	}
	w.orders(1, 1)
	if l := w.hosts[0].links["proxy2"]; l.count("stage") != 1 {
		t.Errorf("staged %d times, want once", l.count("stage"))
	}
	if m.reads > 4 {
		t.Errorf("%d reads of one bundle in a pass without work", m.reads)
	}
}

func TestOnlyTheMasterIssues(t *testing.T) {
	w := newWorld(t, 2)
	_, err := w.hosts[1].pass(context.Background(), Wanted{MasterOnly: true})
	if !errors.Is(err, cluster.ErrNotMaster) || cluster.HintOf(err) == "" {
		t.Errorf("issue on a BACKUP: %v, hint %q", err, cluster.HintOf(err))
	}
	if _, err := w.hosts[1].pass(context.Background(), Wanted{}); err != nil {
		t.Errorf("a pass on a BACKUP: %v", err)
	}
	w.hosts[0].roleErr = errors.New("no carp(4)")
	if _, err := w.hosts[0].pass(context.Background(), Wanted{}); err == nil {
		t.Error("a role that cannot be read is taken for MASTER")
	}
	w.orders(0, 0)
}

func TestWhoIsMasterIsAskedOfThePeersWhereTheRoleDoesNotSay(t *testing.T) {
	w := newWorld(t, 3)
	backup := w.hosts[2]
	backup.nameless = true
	for _, ask := range []func() error{
		func() error { _, err := backup.pass(context.Background(), Wanted{MasterOnly: true}); return err },
		func() error { _, err := backup.DryRun(context.Background(), backup.Issuer, nil); return err },
	} {
		if err := ask(); !errors.Is(err, cluster.ErrNotMaster) || cluster.HintOf(err) != "run it on proxy1" {
			t.Errorf("%v, hint %q", err, cluster.HintOf(err))
		}
	}
	w.hosts[0].role = cluster.Backup
	if _, err := backup.pass(context.Background(), Wanted{MasterOnly: true}); !errors.Is(err, cluster.ErrNotMaster) || !strings.Contains(err.Error(), "no peer that answers is MASTER") {
		t.Errorf("nobody is MASTER: %v", err)
	}
	w.orders(0, 0)
}

func TestAnUnknownNameIsAUsageError(t *testing.T) {
	w := newWorld(t, 1)
	_, err := w.hosts[0].pass(context.Background(), Wanted{Names: []string{"nope"}})
	if !errors.Is(err, cluster.ErrUsage) || !strings.Contains(cluster.HintOf(err), "example.org") {
		t.Errorf("error %v, hint %q", err, cluster.HintOf(err))
	}
}

// A demotion at any reading of the role ends the work at the CA there; the next MASTER goes on with the same order.
func TestDemotionAtEveryCheckpointLeavesOneOrderToTheNextMaster(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		whole := false
		for at := 2; !whole; at++ {
			w := world(2)
			a := w.hosts[0]
			a.mu.Lock()
			a.flipAt = at
			a.mu.Unlock()
			report := a.issue()
			a.mu.Lock()
			whole = a.role == cluster.Master
			a.mu.Unlock()
			if report.Outcome == cluster.Done {
				w.inService(slot, 1) // the demotion came when all was done
			} else if report.Outcome != cluster.NotMaster {
				t.Errorf("outcome %s", report.Outcome)
			}
			w.master(1)
			w.hosts[1].issue()
			w.inService(slot, 1)
			w.orders(1, 1)
			if t.Failed() {
				t.Fatalf("demoted at reading %d", at)
			}
			if at > 60 {
				t.Fatal("the role is read without end")
			}
		}
	})
}

// kill -9 at every effect of the flow: the second run goes on with the order, and there is never a second one.
func TestKilledAtEveryEffectTheNextRunResumes(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		for _, next := range []int{0, 1} {
			whole := false
			stride := 1
			for at := 1; !whole; at += stride {
				w := world(2)
				a := w.hosts[0]
				if _, ok := a.disk.Store.(*memory); !ok {
					stride = 5 // each fsync counts there; the effects are the same
				}
				a.mu.Lock()
				a.killAt = at
				a.mu.Unlock()
				_, _ = a.pass(context.Background(), Wanted{Names: []string{"example.org"}, MasterOnly: true})
				whole = a.effects < at
				w.master(next)
				w.hosts[next].issue()
				w.inService(slot, 1)
				w.orders(1, 1)
				w.hosts[next].issue()
				w.orders(1, 1)
				if w.ca.left() != 0 {
					t.Errorf("%d TXT values are left", w.ca.left())
				}
				if t.Failed() {
					t.Fatalf("killed at effect %d, then a run on %s", at, w.hosts[next].name)
				}
				if at > 300 {
					t.Fatal("the flow has no end")
				}
			}
		}
	})
}

// The same with the peer off the network, so that the order is on one disk only.
func TestKilledAloneTheNextRunOnTheSameNodeResumes(t *testing.T) {
	whole := false
	for at := 1; !whole; at++ {
		w := newWorld(t, 2)
		w.cut(1, true)
		a := w.hosts[0]
		a.mu.Lock()
		a.killAt = at
		a.mu.Unlock()
		_, _ = a.pass(context.Background(), Wanted{MasterOnly: true})
		whole = a.effects < at
		w.cut(1, false)
		a.issue()
		w.inService(slot, 1)
		w.orders(1, 1)
		if t.Failed() {
			t.Fatalf("killed at effect %d", at)
		}
	}
}

func TestKilledBetweenKeepAndTheOrdersEndThereIsNoSecondCertificate(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	a.disk.merges = func(r cluster.Records) error {
		if slices.ContainsFunc(r.Orders, func(o cluster.Order) bool { return o.End == cluster.Issued }) {
			a.mu.Lock()
			a.dead = true
			a.mu.Unlock()
			return errKilled
		}
		return nil
	}
	a.issue()
	first := a.newest(slot)
	a.disk.merges = nil
	row := rowOf(t, a.issue("example.org"), slot)
	w.inService(slot, 1)
	w.orders(1, 1)
	if !same(row.Newest, first) || !row.Ordered {
		t.Errorf("row %+v", row)
	}
	for _, attempt := range a.records().Ledger {
		if attempt.End != cluster.Issued {
			t.Errorf("attempt %+v did not end", attempt)
		}
	}
}

func TestDemotedAfterTheDownloadTheGenerationIsKept(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	a.disk.merges = func(r cluster.Records) error {
		if slices.ContainsFunc(r.Orders, func(o cluster.Order) bool { return o.Step == cluster.StepDownloading && o.End == cluster.Open }) {
			defer func() { // once the checkpoint has passed
				w.ca.set(func() {
					w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
						if step == "download" {
							w.master(1)
						}
						return nil
					}
				})
			}()
		}
		return nil
	}
	report := a.issue()
	if a.newest(slot).Sequence != 1 || report.Outcome != cluster.NotMaster {
		t.Errorf("kept %+v, outcome %s", a.newest(slot), report.Outcome)
	}
	if len(w.eventsOf("activate")) > 0 {
		t.Errorf("a demoted node distributes: %q", w.eventsOf("activate"))
	}
	a.disk.merges = nil
	w.ca.set(func() { w.ca.fault = nil })
	w.hosts[1].issue()
	w.inService(slot, 1)
	w.orders(1, 1)
}

func TestADemotionWhileTheCAHangsEndsTheOrderSoon(t *testing.T) {
	w := newWorld(t, 2)
	w.ca.fault = func(ctx context.Context, step string, _ cluster.Order) error {
		if step != "challenge" {
			return nil
		}
		w.master(1)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	report := w.hosts[0].issue()
	if row := rowOf(t, report, slot); row.Outcome != cluster.NotMaster || !strings.Contains(row.Error, "not MASTER") {
		t.Errorf("row %+v", row)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.hosts[1].issue()
	w.inService(slot, 1)
	w.orders(1, 1)
}

func TestAStaleMasterAdoptsBeforeItDecides(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(2)
		w.hosts[0].issue()
		w.cut(0, true)
		w.master(1)
		w.advance(70 * day)
		w.hosts[1].issue()
		w.orders(2, 2)
		w.cut(0, false)
		w.master(0)
		report := w.hosts[0].issue()
		w.orders(2, 2)
		w.inService(slot, 2)
		if row := rowOf(t, report, slot); row.Due != "" || row.Outcome != cluster.Done {
			t.Errorf("row %+v", row)
		}
	})
}

func TestABackupActivatesInOnePassWhatWasReleased(t *testing.T) {
	w := newWorld(t, 2)
	w.cut(1, true)
	w.hosts[0].issue()
	w.cut(1, false)
	report, err := w.hosts[1].pass(context.Background(), Wanted{})
	if err != nil {
		t.Fatal(err)
	}
	w.inService(slot, 1)
	if report.Outcome != cluster.Done {
		t.Errorf("outcome %s", report.Outcome)
	}
}

func TestABackupDoesNotActivateWhatWasNotReleased(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	a.disk.merges = func(r cluster.Records) error {
		if len(r.Releases) > 0 {
			return errDiskFull
		}
		return nil
	}
	report := a.issue()
	if row := rowOf(t, report, slot); row.Outcome != cluster.Failure || !strings.Contains(row.Error, "release") {
		t.Errorf("row %+v", row)
	}
	if _, err := w.hosts[1].pass(context.Background(), Wanted{}); err != nil {
		t.Fatal(err)
	}
	if w.hosts[1].newest(slot).IsZero() || len(w.eventsOf("activate")) > 0 {
		t.Errorf("held %+v, activations %q", w.hosts[1].newest(slot), w.eventsOf("activate"))
	}
}

// That an order is taken up the CA's adapter tells; where it was begun only the flow knows.
func TestWhereAnOrderWasBegunIsToldIfThatIsAnotherNode(t *testing.T) {
	for i, want := range []int{0, 1} {
		w := newWorld(t, 2)
		w.ca.fault = failAt("finalize", errOutage)
		w.hosts[0].issue()
		w.ca.set(func() { w.ca.fault = nil })
		w.master(i)
		var mu sync.Mutex
		told := 0
		w.hosts[i].Progress = func(l cluster.Progress) {
			mu.Lock()
			defer mu.Unlock()
			if strings.Contains(l.Message, "was begun on proxy1") {
				told++
			}
		}
		w.hosts[i].issue()
		w.inService(slot, 1)
		if told != want {
			t.Errorf("%s tells it %d times, want %d", w.hosts[i].name, told, want)
		}
	}
}

func TestOneCertificateThatHangsDelaysNoOther(t *testing.T) {
	other := certificate("example.net", []string{"example.net"}, cert.EC256)
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.ca.fault = hangAt("challenge", "example.org")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	otherSlot := other.Slots()[0]
	go func() { // ends the pass as soon as the other is in service
		for w.hosts[0].proxy.serves(otherSlot).IsZero() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	report, err := w.hosts[0].pass(ctx, Wanted{MasterOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	w.inService(otherSlot, 1)
	if row := rowOf(t, report, slot); row.Outcome != cluster.Interrupted || row.Error != "interrupted" || !report.Interrupted {
		t.Errorf("the hanging one: %+v, of an interrupted pass: %t", row, report.Interrupted)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.hosts[0].issue()
	w.inService(slot, 1)
	w.orders(2, 2)
}

func TestAFailedRenewalStillBringsTheNodesInLine(t *testing.T) {
	w := newWorld(t, 2)
	w.cut(1, true)
	w.hosts[0].issue()
	w.cut(1, false)
	w.advance(70 * day)
	w.ca.fault = failAt("newOrder", errOutage)
	row := rowOf(t, w.hosts[0].issue(), slot)
	w.inService(slot, 1)
	if row.Outcome != cluster.Failure || row.Ordered || !strings.Contains(row.Error, errOutage.Error()) {
		t.Errorf("row %+v", row)
	}
}

func TestTwoKeyTypesGoOneAfterTheOther(t *testing.T) {
	both := certificate("example.org", []string{"example.org"}, cert.EC256, cert.RSA2048)
	w := newWorld(t, 2, withCertificates(both))
	w.hosts[0].issue()
	for _, s := range both.Slots() {
		w.inService(s, 1)
	}
	w.orders(2, 2)
}

func TestTwoCertificatesOfTheSameNamesAreNeverTwoOrdersAtATime(t *testing.T) {
	twin := wildcard
	twin.Name = "twin"
	w := newWorld(t, 2, withCertificates(wildcard, twin))
	w.hosts[0].issue()
	w.inService(slot, 1)
	w.inService(twin.Slots()[0], 1)
	w.orders(2, 2)
}

// The first order's challenge fails and stays pending at the CA: the twin must not get it with its own key.
func TestAnOpenOrderOfTheSameNamesIsNotTakenOver(t *testing.T) {
	twin := wildcard
	twin.Name = "twin"
	w := newWorld(t, 2, withCertificates(wildcard, twin))
	w.ca.fault = failAt("challenge", errOutage)
	report := w.hosts[0].issue()
	w.orders(1, 0)
	if row := rowOf(t, report, twin.Slots()[0]); row.Outcome != cluster.Failure || !strings.Contains(row.Error, "example.org (ecdsa)") {
		t.Errorf("row of the twin: %+v", row)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.hosts[0].issue()
	w.inService(slot, 1)
	w.inService(twin.Slots()[0], 1)
	w.orders(2, 2)
}

func TestAPutOffOrderPutsTheOthersOfItsNamesOffToo(t *testing.T) {
	twin := wildcard
	twin.Name = "twin"
	w := newWorld(t, 2, withCertificates(wildcard, twin))
	w.ca.fault = failAt("challenge", retryAfter(w, 3*time.Hour))
	until := w.Now().Add(3 * time.Hour)
	report := w.hosts[0].issue()
	for _, s := range []cert.Slot{slot, twin.Slots()[0]} {
		if row := rowOf(t, report, s); row.Outcome != cluster.PutOff || !row.NextTry.Equal(until) {
			t.Errorf("row %+v", row)
		}
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.advance(2 * time.Hour)
	report = w.hosts[0].issue("example.org", "twin")
	w.orders(1, 0)
	if row := rowOf(t, report, twin.Slots()[0]); row.Outcome != cluster.PutOff {
		t.Errorf("row %+v", row)
	}
	w.advance(2 * time.Hour)
	w.hosts[0].issue()
	w.inService(slot, 1)
	w.orders(2, 2)
}

// Two nodes that were apart drove one order of the CA's, each with its own key: one of the two records wins, and no CSR
// goes to it with the other's key once that is known.
func TestTwoRecordsOfOneOrderAreResolved(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue() // makes the account that both have
	w.advance(70 * day)
	w.ca.fault = failAt("challenge", errOutage)
	w.cut(1, true)
	w.hosts[0].issue()
	w.master(1)
	w.hosts[1].issue()
	w.cut(1, false)
	w.ca.set(func() { w.ca.fault = nil })
	w.orders(2, 1)
	w.master(0)
	w.hosts[0].issue()
	w.inService(slot, 2)
	w.orders(2, 2)
	w.hosts[0].issue()
	w.orders(2, 2)
}

func TestAnOrderWhoseURLBelongsToAnotherSlotEndsAndTheNextPassMakesItsOwn(t *testing.T) {
	twin := wildcard
	twin.Name = "twin"
	w := newWorld(t, 1, withCertificates(wildcard, twin))
	a := w.hosts[0]
	w.ca.fault = failAt("challenge", errOutage)
	a.issue()
	// The twin's record of the same order, as a node that was apart would bring it.
	var mine cluster.Order
	for _, o := range a.records().Orders {
		if o.Slot == slot {
			mine = o
		}
	}
	theirs, err := newOrder(twin.Slots()[0], twin, cert.EC256, cluster.Account{Directory: mine.Directory, Thumbprint: mine.Account}, "proxy2", mine.Created.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	theirs.URL, theirs.Step = mine.URL, mine.Step
	if err := a.disk.Store.Merge(context.Background(), cluster.Records{Orders: []cluster.Order{theirs}}); err != nil {
		t.Fatal(err)
	}
	w.ca.set(func() { w.ca.fault = nil })
	a.issue()
	a.issue()
	w.inService(slot, 1)
	w.inService(twin.Slots()[0], 1)
	w.orders(2, 2)
}

func TestAChangeOfKeyTypeSupersedesTheOpenOrder(t *testing.T) {
	w := newWorld(t, 2)
	w.ca.fault = failAt("challenge", errOutage)
	w.hosts[0].issue()
	w.ca.set(func() { w.ca.fault = nil })
	changed := certificate("example.org", wildcard.Domains, cert.EC384)
	for _, h := range w.hosts {
		h.Settings.Certificates = []Certificate{changed}
	}
	w.hosts[0].issue()
	w.inService(slot, 1)
	w.orders(1, 1) // the CA hands the pending one out again, and nothing was sent to it
	b, err := w.hosts[0].disk.Bundle(context.Background(), w.hosts[0].newest(slot))
	if err != nil || b.KeyType() != cert.EC384 {
		t.Errorf("bundle %v, %v", b, err)
	}
	w.hosts[0].issue()
	w.orders(1, 1)
}

func TestTheAccountIsMadeOnceAndReused(t *testing.T) {
	var cs []Certificate
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		cs = append(cs, certificate(n, []string{n + ".example"}, cert.EC256))
	}
	w := newWorld(t, 2, withCertificates(cs...))
	var arrived sync.WaitGroup
	arrived.Add(len(cs))
	w.ca.fault = func(ctx context.Context, step string, _ cluster.Order) error {
		if step != "challenge" {
			return nil
		}
		arrived.Done()
		arrived.Wait() // for all six: they go side by side, or the test hangs
		return nil
	}
	w.hosts[0].issue()
	w.ca.set(func() { w.ca.fault = nil })
	w.master(1)
	w.hosts[1].issue("a", "b")
	if _, issued, registrations := w.ca.counts(); registrations != 1 || issued != 8 {
		t.Errorf("%d accounts, %d certificates", registrations, issued)
	}
	if w.ca.most != len(cs) {
		t.Errorf("at most %d orders were driven at a time, want %d", w.ca.most, len(cs))
	}
}

func TestAnAccountThatTheCARefusesIsAskedForOnceAPass(t *testing.T) {
	w := newWorld(t, 1, withCertificates(certificate("a", []string{"a.example"}, cert.EC256), certificate("b", []string{"b.example"}, cert.EC256)))
	asked := 0
	refusal := retryAfter(w, time.Hour)
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "register" {
			asked++
			return refusal
		}
		return nil
	}
	report := w.hosts[0].issue()
	w.hosts[0].issue()
	if asked != 1 || report.Outcome != cluster.PutOff {
		t.Errorf("asked %d times, outcome %s", asked, report.Outcome)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.advance(2 * time.Hour)
	w.hosts[0].issue()
	if _, issued, registrations := w.ca.counts(); issued != 2 || registrations != 1 {
		t.Errorf("%d certificates, %d accounts", issued, registrations)
	}
}

func TestTXTValuesOfEndedOrdersAreSweptAndOfOpenOnesNot(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "challenge" {
			a.mu.Lock()
			a.dead = true
			a.mu.Unlock()
			return errKilled
		}
		return nil
	}
	a.issue()
	if w.ca.left() != 1 {
		t.Fatalf("%d TXT values after the kill, want 1", w.ca.left())
	}
	w.ca.set(func() { w.ca.fault = failAt("present", errOutage) })
	a.issue() // the order stays open: its value is not swept
	if w.ca.left() != 1 {
		t.Errorf("%d TXT values while the order is open, want 1", w.ca.left())
	}
	w.advance(7*day + time.Hour)
	w.ca.set(func() { w.ca.fault = failAt("newOrder", errOutage) })
	a.issue()
	if w.ca.left() != 0 {
		t.Errorf("%d TXT values after the order lapsed", w.ca.left())
	}
}

func TestARateLimitIsKeptAcrossPassesAndNodes(t *testing.T) {
	w := newWorld(t, 2)
	w.ca.fault = failAt("newOrder", retryAfter(w, 6*time.Hour))
	until := w.Now().Add(6 * time.Hour)
	w.hosts[0].issue()
	w.ca.set(func() { w.ca.fault = nil })
	w.master(1)
	row := rowOf(t, w.hosts[1].issue("example.org"), slot)
	w.orders(0, 0)
	if row.Outcome != cluster.PutOff || !row.NextTry.Equal(until) || !strings.Contains(row.Error, "too many requests") {
		t.Errorf("row %+v", row)
	}
}

func TestASlotThatIsPutOffIsStillBroughtInLine(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.advance(70 * day)
	w.ca.fault = failAt("newOrder", retryAfter(w, 6*time.Hour))
	w.hosts[0].issue()
	w.hosts[1].proxy.set(func() { delete(w.hosts[1].proxy.memory, slot) })
	row := rowOf(t, w.hosts[0].issue(), slot)
	w.inService(slot, 1)
	if row.Outcome != cluster.PutOff || row.NextTry.IsZero() {
		t.Errorf("row %+v", row)
	}
}

func TestADeadOrderIsNotTakenUpAgain(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.fault = failAt("challenge", &cluster.IssueError{Cause: "unauthorized: no TXT value", Dead: true, Hint: "look at the zone"})
	row := rowOf(t, w.hosts[0].issue(), slot)
	if row.Hint != "look at the zone" || row.Outcome != cluster.Failure {
		t.Errorf("row %+v", row)
	}
	if o := w.hosts[0].records().Orders; len(o) != 1 || o[0].End != cluster.Failed || o[0].Problem == "" {
		t.Errorf("orders %+v", o)
	}
}

func TestAFullDiskOfTheOwnNodeSendsNothingToTheCA(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].disk.setFull(true)
	row := rowOf(t, w.hosts[0].issue(), slot)
	w.orders(0, 0)
	if _, _, registrations := w.ca.counts(); registrations != 0 || row.Outcome != cluster.Failure || !strings.Contains(row.Error, "no space") {
		t.Errorf("%d accounts, row %+v", registrations, row)
	}
}

func TestADryRunKeepsNothing(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	out, err := a.DryRun(context.Background(), &dryCA{issuer{w.ca, a}}, nil)
	if err != nil || len(out) != 1 || out[0].Err != nil || !strings.Contains(out[0].Issuer, "Test Intermediate") {
		t.Fatalf("%+v, %v", out, err)
	}
	r := a.records()
	if len(r.Accounts)+len(r.Orders)+len(r.Ledger) > 0 || !a.newest(slot).IsZero() || len(w.eventsOf("")) > 0 {
		t.Errorf("kept: %+v, events %q", r, w.events)
	}
	if _, err := a.DryRun(context.Background(), a.Issuer, []string{"nope"}); !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("unknown name: %v", err)
	}
	if _, err := w.hosts[1].DryRun(context.Background(), a.Issuer, nil); !errors.Is(err, cluster.ErrNotMaster) {
		t.Errorf("on a BACKUP: %v", err)
	}
}

// dryCA registers an account that is on no disk, which is an error elsewhere.
type dryCA struct{ issuer }

func (d *dryCA) Register(_ context.Context, a cluster.Account) (cluster.Account, error) {
	a.URL = "https://staging.test/account/1"
	return a, nil
}

// lateProxy is a HAProxy whose turn comes late: something is done before it.
type lateProxy struct {
	Proxy
	before func()
}

func (p *lateProxy) Activate(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	if before := p.before; before != nil {
		p.before = nil
		before()
	}
	for _, t := range targets {
		if _, err := t.Loaded(ctx); err != nil {
			return []cluster.Placement{failedPlacement(t.Slot, cluster.Failure, err)}, nil
		}
	}
	return p.Proxy.Activate(ctx, targets)
}

// Found by the simulation: a pass went on with what was newest when it looked, and took back what a peer had put in service
// since.
func TestAPassDoesNotTakeBackWhatAPeerReleasedWhileItWaitedForItsTurn(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	late := &lateProxy{Proxy: w.hosts[1].proxy, before: func() { w.hosts[0].issue("example.org") }}
	w.hosts[1].Node.Proxies = []Proxy{late}
	w.hosts[1].tick()
	w.inService(slot, 2) // the fake HAProxy looks that nothing goes back on the way
	if late.before != nil {
		t.Error("nothing was released meanwhile")
	}
	if r := w.hosts[1].tick(); r.Outcome != cluster.Unchanged {
		t.Errorf("outcome %s after it", r.Outcome)
	}
}

// Two MASTERs that reach one another: what one releases while the other asks the CA is not lost there, and stays.
func TestAPassGoesOnWithWhatAPeerReleasedWhileItAskedTheCA(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.hosts[1].role = cluster.Master
	asked := false
	w.ca.set(func() {
		w.ca.renewals = func(context.Context, string) (cluster.Suggestion, error) {
			if !asked {
				asked = true
				w.hosts[0].issue("example.org")
			}
			return cluster.Suggestion{Start: w.Now().Add(60 * day), End: w.Now().Add(61 * day)}, nil
		}
	})
	report := w.hosts[1].tick()
	w.inService(slot, 2)
	if row := rowOf(t, report, slot); row.Error != "" || !asked {
		t.Errorf("the report says %q (asked: %v)", row.Error, asked)
	}
}
