package reconcile

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func TestAPeerThatIsDownIsALineInTheReportAndAdoptsLater(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(3)
		w.cut(1, true)
		report := w.hosts[0].issue()
		if s := statusOf(t, report, "proxy2"); s.Reachable || s.Error == "" {
			t.Errorf("status %+v", s)
		}
		row := rowOf(t, report, slot)
		if row.Outcome != cluster.Skipped || !row.Ordered || report.Outcome != cluster.Skipped {
			t.Errorf("row %+v", row)
		}
		for _, i := range []int{0, 2} {
			if w.hosts[i].proxy.serves(slot) != row.Newest.Fingerprint {
				t.Errorf("%s does not serve it", w.hosts[i].name)
			}
		}
		w.cut(1, false)
		if r := w.hosts[0].issue(); r.Outcome != cluster.Done {
			t.Errorf("outcome %s", r.Outcome)
		}
		w.inService(slot, 1)
		w.orders(1, 1)
		if len(w.hosts[1].records().Accounts) != 1 {
			t.Error("a peer that was down does not get the account")
		}
	})
}

func TestAPeerThatComesBackDuringTheOrderGetsTheGenerationBeforeAnyNodeServesIt(t *testing.T) {
	w := newWorld(t, 2)
	w.cut(1, true)
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "finalize" {
			w.cut(1, false)
			time.Sleep(2 * time.Millisecond) // longer than patience times what the refusal took
		}
		return nil
	}
	if r := w.hosts[0].issue(); r.Outcome != cluster.Done {
		t.Errorf("outcome %s, warnings %q", r.Outcome, r.Warnings)
	}
	w.inService(slot, 1) // everywhereFirst looked at the order of things
}

func TestAPeerThatDoesNotAcknowledgeARecordIsWaitedForOnce(t *testing.T) {
	w := newWorld(t, 2)
	l := w.hosts[0].links["proxy2"]
	l.hang = map[string]bool{"record": true}
	report := w.hosts[0].issue()
	if n := l.count("record"); n != 1 {
		t.Errorf("%d records were waited for, want 1", n)
	}
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "proxy2 did not acknowledge") {
		t.Errorf("warnings %q", report.Warnings)
	}
	w.inService(slot, 1)
}

func TestAPeerThatHangsIsLostForThePassOnly(t *testing.T) {
	for _, method := range []string{"stage", "release", "fetch", "inventory"} {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t, 2)
			w.hosts[0].issue()
			w.advance(70 * day)
			l := w.hosts[0].links["proxy2"]
			l.hang = map[string]bool{method: true}
			if method == "fetch" {
				// Something to fetch: proxy2 issued meanwhile.
				w.cut(0, true)
				w.master(1)
				w.hosts[1].issue()
				w.master(0)
				w.cut(0, false)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			report, err := w.hosts[0].pass(ctx, Wanted{MasterOnly: true})
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if err == nil && report.Outcome == cluster.Done {
				t.Errorf("outcome %s although the peer hung", report.Outcome)
			}
			l.set(func() { l.hang = nil })
			w.hosts[0].issue()
			w.inService(slot, 2)
			w.orders(2, 2)
		})
	}
}

func TestAPeerWithAFullDiskHoldsNothingUp(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(2)
		w.hosts[0].issue()
		w.hosts[1].disk.setFull(true)
		report := w.hosts[0].issue("example.org")
		row := rowOf(t, report, slot)
		if row.Outcome != cluster.Failure || !strings.Contains(row.Error, "proxy2") || !strings.Contains(row.Error, "no space") {
			t.Errorf("row %+v", row)
		}
		if w.hosts[0].proxy.serves(slot) != row.Newest.Fingerprint {
			t.Error("the MASTER does not serve the new one")
		}
		s := statusOf(t, report, "proxy2")
		if len(s.Placements) != 1 || s.Placements[0].Proxy == "" || s.Placements[0].Served.IsZero() || s.Placements[0].Outcome != cluster.Failure {
			t.Errorf("placements of proxy2: %+v", s.Placements)
		}
		if len(s.Held) != 1 || s.Held[0].Sequence != 1 {
			t.Errorf("held by proxy2: %+v", s.Held)
		}
		w.hosts[1].disk.setFull(false)
		report = w.hosts[0].issue()
		w.inService(slot, 2)
		if s := statusOf(t, report, "proxy2"); report.Outcome != cluster.Done || len(s.Placements) != 1 || s.Held[0].Sequence != 2 {
			t.Errorf("outcome %s, status %+v", report.Outcome, s)
		}
	})
}

func TestOneRefusedGenerationDelaysNoOther(t *testing.T) {
	other := certificate("example.net", []string{"example.net"}, cert.EC256)
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.cut(1, true)
	w.hosts[0].issue()
	w.cut(1, false)
	w.lax = true
	w.hosts[1].Settings.Certificates = []Certificate{other} // it does not want example.org
	w.hosts[1].Node.Settings = w.hosts[1].Settings
	report := w.hosts[0].issue()
	w.inService(other.Slots()[0], 1)
	if row := rowOf(t, report, slot); row.Outcome != cluster.Failure || !strings.Contains(row.Error, "not in this node's configuration") {
		t.Errorf("row %+v", row)
	}
}

func TestAnAnswerThatSaysNothingIsNoProofOfStaging(t *testing.T) {
	w := newWorld(t, 2)
	l := w.hosts[0].links["proxy2"]
	l.stage = func([]cluster.Kept) ([]cluster.StageResult, error) { return nil, nil }
	row := rowOf(t, w.hosts[0].issue(), slot)
	if row.Outcome != cluster.Failure || !strings.Contains(row.Error, "says nothing") {
		t.Errorf("row %+v", row)
	}
	if l.count("release") != 0 {
		t.Error("a generation is released on a node that does not hold it")
	}
}

func TestAnAnswerThatSaysNothingIsNoProofOfActivation(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[1].Node.Proxies, w.hosts[1].Proxies = nil, nil // it activates nothing, and says so by saying nothing
	row := rowOf(t, w.hosts[0].issue(), slot)
	if row.Outcome != cluster.Skipped || !strings.Contains(row.Error, "proxy2") {
		t.Errorf("row %+v", row)
	}
}

// A MASTER with an empty disk cannot have a peer's generation (its CA is another): its own must be later even so.
func TestANewMasterGoesOnFromTheSequenceOfItsPeers(t *testing.T) {
	w := newWorld(t, 2)
	foreign := certtest.NewCA(t).Issue(t, certtest.Options{NotBefore: w.Now()})
	g := foreign.Generation(slot.Name, 7)
	if err := w.hosts[1].disk.Store.Keep(context.Background(), cluster.Kept{Generation: g, Bundle: foreign}); err != nil {
		t.Fatal(err)
	}
	w.hosts[0].issue()
	w.inService(slot, 8)
}

func TestAPassThatIsToldToEndSaysWhatItDidNotDo(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	ctx, cancel := context.WithCancel(context.Background())
	w.hosts[0].links["proxy2"].lie = func(*cluster.Inventory) { cancel() }
	report, err := w.hosts[0].pass(ctx, Wanted{MasterOnly: true})
	if err == nil && (report.Outcome != cluster.Interrupted || !report.Interrupted) {
		t.Errorf("outcome %s of a pass that was cancelled at its begin", report.Outcome)
	}
	w.hosts[0].links["proxy2"].lie = nil
	if r := w.hosts[0].issue(); r.Outcome != cluster.Unchanged {
		t.Errorf("outcome %s", r.Outcome)
	}
}

// What a peer makes up is refused, told, and delays nothing; its true generations are still adopted.
func TestAPeerThatLies(t *testing.T) {
	foreign := certtest.NewCA(t)
	for name, lie := range map[string]struct {
		bundle   func(w *world) certtest.Options
		ca       *certtest.CA
		sequence uint64
		warning  string
	}{
		"a forged sequence": {func(w *world) certtest.Options { return certtest.Options{} }, nil, 1 << 40, "too far ahead"},
		"foreign names":     {func(w *world) certtest.Options { return certtest.Options{Domains: []string{"evil.example"}} }, nil, 9, "evil.example"},
		"another CA":        {func(w *world) certtest.Options { return certtest.Options{} }, foreign, 9, "trusted root"},
		"expired": {func(w *world) certtest.Options {
			return certtest.Options{NotBefore: w.Now().Add(-9 * day), NotAfter: w.Now().Add(-day)}
		}, nil, 9, "expired"},
		"from the future": {func(w *world) certtest.Options { return certtest.Options{NotBefore: w.Now().Add(30 * time.Hour)} }, nil, 9, "not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			w.hosts[0].issue()
			o := lie.bundle(w)
			if o.NotBefore.IsZero() {
				o.NotBefore = w.Now()
			}
			ca := lie.ca
			if ca == nil {
				ca = w.ca.signer
			}
			b := ca.Issue(t, o)
			g := b.Generation(slot.Name, lie.sequence)
			l := w.hosts[0].links["proxy2"]
			l.lie = func(i *cluster.Inventory) { i.Generations = append(i.Generations, g) }
			l.fetch = func(wanted []cert.Generation, each func(cluster.Kept) error) error {
				return each(cluster.Kept{Generation: wanted[0], Bundle: b})
			}
			report := w.hosts[0].issue()
			w.inService(slot, 1)
			if report.Outcome != cluster.Unchanged || len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], lie.warning) {
				t.Errorf("outcome %s, warnings %q", report.Outcome, report.Warnings)
			}
			// A new issue is still the newest of all.
			w.hosts[0].issue("example.org")
			if g := w.hosts[0].newest(slot); g.Sequence < 2 || g.Sequence > 1000 {
				t.Errorf("sequence %d after the lie", g.Sequence)
			}
		})
	}
}

func TestAPeerThatSendsWhatWasNotAskedForOrIsNotWhatItSays(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	b := w.ca.signer.Issue(t, certtest.Options{NotBefore: w.Now()})
	claimed := b.Generation(slot.Name, 5)
	l := w.hosts[0].links["proxy2"]
	l.lie = func(i *cluster.Inventory) { i.Generations = append(i.Generations, claimed) }
	for name, sent := range map[string]cluster.Kept{
		"not asked for":         {Generation: b.Generation(slot.Name, 6), Bundle: b},
		"another bundle for it": {Generation: claimed, Bundle: w.ca.signer.Issue(t, certtest.Options{NotBefore: w.Now()})},
	} {
		l.fetch = func(_ []cert.Generation, each func(cluster.Kept) error) error { return each(sent) }
		if r := w.hosts[0].issue(); len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "proxy2") {
			t.Errorf("%s: warnings %q", name, r.Warnings)
		}
		w.inService(slot, 1)
	}
}

func TestAPeerThatMakesUpAThousandGenerationsIsNotAskedForEach(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	b := w.ca.signer.Issue(t, certtest.Options{Domains: []string{"evil.example"}, NotBefore: w.Now()})
	l := w.hosts[0].links["proxy2"]
	l.lie = func(i *cluster.Inventory) {
		for s := uint64(2); s < 1000; s++ {
			i.Generations = append(i.Generations, b.Generation(slot.Name, s))
		}
	}
	l.fetch = func(wanted []cert.Generation, each func(cluster.Kept) error) error {
		return each(cluster.Kept{Generation: wanted[0], Bundle: b})
	}
	w.hosts[0].issue()
	if n := l.count("fetch"); n > 10 {
		t.Errorf("%d fetches", n)
	}
	w.inService(slot, 1)
}

func TestANodeThatSaysItIsAnotherIsNotListenedTo(t *testing.T) {
	w := newWorld(t, 2)
	w.lax = true
	w.hosts[0].links["proxy2"].lie = func(i *cluster.Inventory) { i.Node = "proxy7" }
	report := w.hosts[0].issue()
	if s := statusOf(t, report, "proxy2"); s.Reachable || s.Hint == "" {
		t.Errorf("status %+v", s)
	}
	if !w.hosts[1].newest(slot).IsZero() {
		t.Error("it was given a private key")
	}
}

func TestRevokedGenerationsAreNeitherAdoptedNorStaged(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(2)
		w.hosts[0].issue()
		w.cut(0, true)
		w.master(1)
		w.hosts[1].issue("example.org")
		bad := w.hosts[1].newest(slot)
		tombstone := cluster.Tombstone{Fingerprint: bad.Fingerprint, Name: slot.Name, Time: w.Now()}
		if err := w.hosts[0].disk.Store.Merge(context.Background(), cluster.Records{Tombstones: []cluster.Tombstone{tombstone}}); err != nil {
			t.Fatal(err)
		}
		w.cut(0, false)
		w.master(0)
		w.hosts[0].issue()
		if g := w.hosts[0].newest(slot); g.Sequence != 1 {
			t.Errorf("adopted %+v", g)
		}
		held, _ := w.hosts[1].disk.Bundle(context.Background(), bad)
		results, err := w.hosts[0].Stage(context.Background(), "proxy2", []cluster.Kept{{Generation: bad, Bundle: held}})
		if err != nil || len(results) != 1 || !strings.Contains(results[0].Error, "revoked") {
			t.Errorf("staging a revoked one: %+v, %v", results, err)
		}
		w.hosts[0].issue("example.org") // later than the revoked one
		w.inService(slot, 3)
	})
}

func TestRecordsFromTheFutureAndFalseKeysAreIgnoredAndTold(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	far := w.Now().Add(30 * day)
	o, err := newOrder(slot, wildcard, cert.EC256, cluster.Account{Directory: w.ca.directory, Thumbprint: "x"}, "proxy2", far)
	if err != nil {
		t.Fatal(err)
	}
	wrong := o
	wrong.ID, wrong.Created, wrong.KeyType = "wrong", w.Now(), cert.EC384
	account, err := cluster.NewAccount(w.ca.directory, "", w.Now().Add(-900*day))
	if err != nil {
		t.Fatal(err)
	}
	account.Thumbprint = "forged"
	w.hosts[0].links["proxy2"].lie = func(i *cluster.Inventory) {
		i.Ledger = append(i.Ledger, cluster.Attempt{ID: "f", Node: "proxy2", Slot: slot, Directory: w.ca.directory, Time: far, NextTry: far.Add(day)})
		i.Orders = append(i.Orders, o, wrong)
		i.Accounts = append(i.Accounts, account)
	}
	report := w.hosts[0].issue("example.org")
	if rowOf(t, report, slot).Newest.Sequence != 2 {
		t.Errorf("a lie kept the renewal away: %+v", report.Certificates)
	}
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "4 ignored") {
		t.Errorf("warnings %q", report.Warnings)
	}
	r := w.hosts[0].records()
	if len(r.Accounts) != 1 || slices.ContainsFunc(r.Orders, func(x cluster.Order) bool { return x.ID == o.ID || x.ID == "wrong" }) ||
		slices.ContainsFunc(r.Ledger, func(a cluster.Attempt) bool { return a.ID == "f" }) {
		t.Errorf("records %+v", r)
	}
}

func TestAForgedReleaseOfWhatIsNotHeldHoldsNoOtherBack(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	forged := w.ca.signer.Issue(t, certtest.Options{NotBefore: w.Now()}).Generation(slot.Name, 900)
	placements, err := w.hosts[1].Release(context.Background(), "proxy1", []cluster.Release{{Generation: forged, Node: "proxy1", Time: w.Now()}})
	if err != nil || len(placements) != 1 || placements[0].Outcome != cluster.Failure || !strings.Contains(placements[0].Error, "not held") {
		t.Errorf("%+v, %v", placements, err)
	}
	w.hosts[0].issue("example.org")
	w.inService(slot, 2)
}

func TestReleasesThatAreStaleOrOfAnUnknownSlotChangeNothing(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	old := w.hosts[1].newest(slot)
	w.hosts[0].issue("example.org")
	unknown := old
	unknown.Slot = cert.Slot{Name: "unknown", Algorithm: cert.RSA}
	placements, err := w.hosts[1].Release(context.Background(), "proxy1",
		[]cluster.Release{{Generation: old, Time: w.Now()}, {Generation: unknown, Time: w.Now()}})
	if err != nil || len(placements) != 2 || !strings.Contains(placements[0].Error, "older than what is held") || !strings.Contains(placements[1].Error, "not held") {
		t.Errorf("%+v, %v", placements, err)
	}
	w.inService(slot, 2)
}

func TestAnotherConfigurationOnAPeerIsToldAndNothingIsRenewedForIt(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.hosts[0].Settings.Certificates = []Certificate{certificate("example.org", []string{"example.org", "*.example.org", "new.example"}, cert.EC256)}
	w.hosts[0].Settings.Digest = "edited"
	report := w.hosts[0].issue()
	w.orders(1, 1)
	if len(report.Warnings) != 2 || !strings.Contains(strings.Join(report.Warnings, "\n"), "not renewed for that") {
		t.Errorf("warnings %q", report.Warnings)
	}
	w.hosts[1].Settings.Certificates, w.hosts[1].Settings.Digest = w.hosts[0].Settings.Certificates, "edited"
	w.hosts[1].Node.Settings = w.hosts[1].Settings
	w.hosts[0].issue()
	w.inService(slot, 2)
}

// The peer would refuse what its configuration does not want: the MASTER alone would serve it.
func TestAKeyTypeThatOnlyTheMasterHasIsNotOrderedUnlessAskedFor(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	rsa := cert.Slot{Name: "example.org", Algorithm: cert.RSA}
	w.hosts[0].Settings.Certificates = []Certificate{certificate("example.org", []string{"example.org", "*.example.org"}, cert.EC256, cert.RSA2048)}
	w.hosts[0].Settings.Digest = "edited"
	report := w.hosts[0].issue()
	w.orders(1, 1)
	row := rowOf(t, report, rsa)
	if row.Outcome != cluster.Waiting || !strings.Contains(row.Error, "none was issued yet, but proxy2 runs another configuration") || row.Hint == "" {
		t.Errorf("row %+v", row)
	}
	if other := rowOf(t, report, slot); other.Outcome != cluster.Unchanged {
		t.Errorf("the slot that both want: %+v", other)
	}
	w.lax = true // the peer refuses it: what a person insists on
	report = w.hosts[0].issue("example.org")
	if row := rowOf(t, report, rsa); !row.Ordered || row.Hint != "make the configuration the same on every node" {
		t.Errorf("asked for: %+v", row)
	}
}

// After ec256 -> rsa2048 both bundles have one path: the held ecdsa slot is told, and nothing is compared with that path.
func TestAnAlgorithmThatIsNoLongerConfiguredIsToldAndNotLookedAt(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	gone := certificate("gone.example", []string{"gone.example"}, cert.EC256)
	for _, h := range w.hosts {
		b := w.ca.signer.Issue(t, certtest.Options{Domains: gone.Domains, NotBefore: w.Now(), NotAfter: w.Now().Add(90 * day)})
		if err := h.disk.Store.Keep(context.Background(), cluster.Kept{Generation: b.Generation(gone.Name, 1), Bundle: b}); err != nil {
			t.Fatal(err)
		}
		h.Settings.Certificates = []Certificate{certificate("example.org", []string{"example.org", "*.example.org"}, cert.RSA2048)}
		h.Node.Settings = h.Settings
	}
	report := w.hosts[0].issue()
	own, err := w.hosts[0].Node.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	rsa, goneSlot := cert.Slot{Name: "example.org", Algorithm: cert.RSA}, gone.Slots()[0]
	for from, s := range map[string]cluster.NodeStatus{"status": own, "the pass": report.Nodes[0], "the pass, of the peer": report.Nodes[1]} {
		if !slices.Equal(s.Unconfigured, []cert.Slot{slot, goneSlot}) {
			t.Errorf("%s: unconfigured %v", from, s.Unconfigured)
		}
		if len(s.Held) != 3 {
			t.Errorf("%s: held %v", from, s.Held)
		}
		for _, pl := range s.Placements {
			if pl.Slot == slot {
				t.Errorf("%s looks for %s: %+v", from, slot, pl)
			}
		}
	}
	if !slices.Equal(placedSlots(own), []cert.Slot{rsa, goneSlot}) || !slices.Equal(placedSlots(report.Nodes[0]), []cert.Slot{rsa, goneSlot}) {
		t.Errorf("placements %v, and of the pass %v", placedSlots(own), placedSlots(report.Nodes[0]))
	}
}

func placedSlots(s cluster.NodeStatus) []cert.Slot {
	var out []cert.Slot
	for _, pl := range s.Placements {
		out = append(out, pl.Slot)
	}
	return out
}

// Its path is the configured slot's: a release by a MASTER with another configuration must not put it there.
func TestAHeldSlotThatIsNoLongerConfiguredIsNotActivated(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	b := w.hosts[1].Node
	b.Settings.Certificates = []Certificate{certificate("example.org", []string{"example.org", "*.example.org"}, cert.RSA2048)}
	before := w.hosts[1].proxy.activations
	placements, err := b.Release(context.Background(), "proxy1", []cluster.Release{{Generation: w.hosts[1].newest(slot), Node: "proxy1", Time: w.Now()}})
	if err != nil || len(placements) != 1 || placements[0].Outcome != cluster.Failure || !strings.Contains(placements[0].Error, "not in this node's configuration") {
		t.Errorf("placements %+v, %v", placements, err)
	}
	if w.hosts[1].proxy.activations != before {
		t.Error("it is activated")
	}
}

func TestTheFirstStatusAfterATornBundleTellsOfIt(t *testing.T) {
	w := newWorld(t, 1)
	w.hosts[0].issue()
	w.hosts[0].issue("example.org")
	m := w.hosts[0].disk.Store.(*memory)
	m.torn = map[cert.Fingerprint]bool{w.hosts[0].newest(slot).Fingerprint: true}
	status, err := w.hosts[0].Node.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Held) != 1 || status.Held[0].Sequence != 1 || !slices.Contains(status.Problems, "a torn file was set aside") {
		t.Errorf("held %v, problems %q", status.Held, status.Problems)
	}
}

// A signal is no word about the role, and the errors can be told apart by their sentinels.
func TestAPassThatASignalEndsIsNotSaidToBeDemoted(t *testing.T) {
	w := newWorld(t, 2)
	h := w.hosts[0]
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("interrupt signal received"))
	h.roleErr = errors.New("read the role: interrupt signal received")
	if err := h.fence(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrNotMaster) {
		t.Errorf("fence: %v", err)
	}
	if _, err := h.pass(ctx, Wanted{MasterOnly: true}); !errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrNotMaster) {
		t.Errorf("pass: %v", err)
	}
	h.roleErr = nil
	report, err := h.pass(ctx, Wanted{MasterOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	row := rowOf(t, report, slot)
	if row.Outcome != cluster.Interrupted || row.Error != "interrupted" || !report.Interrupted {
		t.Errorf("row %+v, interrupted %t", row, report.Interrupted)
	}
	if s := statusOf(t, report, "proxy2"); s.Error != "interrupted" {
		t.Errorf("the peer's error %q", s.Error)
	}
	if len(report.Warnings) > 0 {
		t.Errorf("warnings %q", report.Warnings)
	}
}

func TestAPassThatIsToldToEndWarnsOfNothingThatFailsForIt(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		h := world(2).hosts[0]
		p, err := h.begin(context.Background(), Wanted{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.adopt(ctx)
		p.sweep(ctx)
		if len(p.report.Warnings) > 0 {
			t.Errorf("warnings %q", p.report.Warnings)
		}
	})
}

func TestATornBundleIsAdoptedAnewAndNothingGoesBack(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.hosts[0].issue("example.org")
	m := w.hosts[0].disk.Store.(*memory)
	newest := w.hosts[0].newest(slot)
	m.torn = map[cert.Fingerprint]bool{newest.Fingerprint: true}
	w.hosts[0].issue()
	w.inService(slot, 2)
	w.orders(2, 2)

	// With the peer away there is nobody to have it from: what is in service stays, until a new one is there.
	w.cut(1, true)
	m.torn = map[cert.Fingerprint]bool{newest.Fingerprint: true}
	w.ca.fault = failAt("newOrder", errOutage)
	report := w.hosts[0].issue()
	if w.hosts[0].proxy.serves(slot) != newest.Fingerprint {
		t.Error("HAProxy went back to an earlier generation")
	}
	if row := rowOf(t, report, slot); row.Outcome != cluster.Failure || !strings.Contains(row.Due, "lost") {
		t.Errorf("row %+v", row)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.hosts[0].issue()
	w.cut(1, false)
	w.hosts[0].issue()
	w.inService(slot, 3)
}

func TestABundleThatCannotBeReadForNowCostsNoOrder(t *testing.T) {
	w := newWorld(t, 1)
	w.hosts[0].issue()
	w.hosts[0].disk.Store.(*memory).stuck = map[cert.Fingerprint]bool{w.hosts[0].newest(slot).Fingerprint: true}
	report := w.hosts[0].issue()
	w.orders(1, 1)
	if row := rowOf(t, report, slot); row.Outcome != cluster.Failure || !strings.Contains(row.Error, "input/output error") {
		t.Errorf("row %+v", row)
	}
}

func TestATornBundleOfAPeerCostsTheOthersNothing(t *testing.T) {
	other := certificate("example.net", []string{"example.net"}, cert.EC256)
	w := newWorld(t, 2, withCertificates(other, wildcard))
	w.cut(1, true)
	w.hosts[0].issue()
	w.cut(1, false)
	m := w.hosts[0].disk.Store.(*memory)
	m.stuck = map[cert.Fingerprint]bool{w.hosts[0].newest(other.Slots()[0]).Fingerprint: true}
	if _, err := w.hosts[1].pass(context.Background(), Wanted{}); err != nil {
		t.Fatal(err)
	}
	w.inService(slot, 1)
}

func TestStatusTellsWhereEachSlotStands(t *testing.T) {
	gone := certificate("gone.example", []string{"gone.example"}, cert.EC256)
	w := newWorld(t, 1, withCertificates(gone, wildcard))
	w.hosts[0].issue()
	w.hosts[0].Settings.Certificates = []Certificate{wildcard, certificate("new.example", []string{"new.example"}, cert.EC256)}
	w.hosts[0].Node.Settings = w.hosts[0].Settings
	status, err := w.hosts[0].Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var slots []string
	for _, pl := range status.Placements {
		slots = append(slots, pl.Slot.Name)
	}
	if strings.Join(slots, " ") != "example.org new.example gone.example" || len(status.Held) != 2 || status.Role != cluster.Master {
		t.Errorf("slots %v, status %+v", slots, status)
	}
	if _, err := w.hosts[0].Status(context.Background()); err != nil || w.hosts[0].proxy.activations != 2 {
		t.Errorf("a status activates: %d, %v", w.hosts[0].proxy.activations, err)
	}
}

func TestWhatIsNoLongerConfiguredIsNotAdopted(t *testing.T) {
	gone := certificate("gone.example", []string{"gone.example"}, cert.EC256)
	w := newWorld(t, 2, withCertificates(gone, wildcard))
	w.cut(1, true)
	w.hosts[0].issue()
	w.cut(1, false)
	w.hosts[1].Settings.Certificates = []Certificate{wildcard}
	if _, err := w.hosts[1].pass(context.Background(), Wanted{}); err != nil {
		t.Fatal(err)
	}
	if !w.hosts[1].newest(gone.Slots()[0]).IsZero() || w.hosts[1].newest(slot).IsZero() {
		t.Error("want example.org and nothing else")
	}
}
