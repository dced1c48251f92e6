package reconcile

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestFailuresBackOff(t *testing.T) {
	classic, hour := living(90*day), living(time.Hour)
	for what, c := range map[string]struct {
		n     int
		g     cert.Generation
		left  time.Duration
		floor time.Duration
		want  time.Duration // and up to a tenth more
	}{
		"the first":                       {1, classic, 30 * day, 0, time.Minute},
		"the second":                      {2, classic, 30 * day, 0, 10 * time.Minute},
		"the third":                       {3, classic, 30 * day, 0, 100 * time.Minute},
		"the fourth":                      {4, classic, 30 * day, 0, day},
		"the hundredth":                   {100, classic, 30 * day, 0, day},
		"none yet, the fourth":            {4, cert.Generation{}, 0, 0, day},
		"five days left":                  {9, classic, 5 * day, 0, 12 * time.Hour},
		"an hour left":                    {9, classic, time.Hour, 0, 6 * time.Minute},
		"a minute left":                   {9, classic, time.Minute, 0, time.Minute},
		"an hour left, 5 failures allow":  {9, classic, time.Hour, 15 * time.Minute, 15 * time.Minute},
		"expired":                         {9, classic, -day, 0, 15 * time.Minute},
		"an hour's life, half of it left": {2, hour, 30 * time.Minute, 0, 3 * time.Minute},
		"an hour's life, expired":         {9, hour, -day, 0, 6 * time.Minute},
		"an hour's life, a minute left":   {9, hour, time.Minute, 0, 36 * time.Second},
		"no failure counts as the first":  {0, classic, 30 * day, 0, time.Minute},
	} {
		got := backoff(c.n, c.g, c.g.NotAfter.Add(-c.left), c.floor, "seed")
		if got < c.want || got > c.want+c.want/10 {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
	if a, b := backoff(4, classic, noon, 0, "a"), backoff(4, classic, noon, 0, "b"); a == b {
		t.Errorf("two attempts have the same pause, %s", a)
	}
	if a, b := backoff(4, classic, noon, 0, "a"), backoff(4, classic, noon, 0, "a"); a != b {
		t.Errorf("one attempt has two pauses, %s and %s", a, b)
	}
}

func TestAPauseIsATenthOfTheLifeLeftAtMost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGeneration(t)
		left := time.Duration(rapid.Int64Range(1, int64(g.Lifetime())).Draw(t, "left"))
		n := rapid.IntRange(1, 40).Draw(t, "failures")
		pause := backoff(n, g, g.NotAfter.Add(-left), 0, rapid.String().Draw(t, "seed"))
		if pause <= 0 || pause > max(left/10, min(time.Minute, g.Lifetime()/100), time.Second) {
			t.Fatalf("a pause of %s with %s left of %s", pause, left, g.Lifetime())
		}
		if most := day + day/10; pause > most {
			t.Fatalf("a pause of %s", pause)
		}
	})
}

func TestARetryAfterIsNeverShortened(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pause := time.Duration(rapid.Int64Range(0, int64(2*day)).Draw(t, "pause"))
		theirs := time.Duration(rapid.Int64Range(1, int64(8*day)).Draw(t, "Retry-After"))
		at, retryAfter := nextTry(&cluster.IssueError{NextTry: noon.Add(theirs), RetryAfter: true}, pause, noon)
		a := cluster.Attempt{Time: noon, NextTry: at, RetryAfter: retryAfter}
		if a.Allowed().Before(noon.Add(theirs)) && theirs > pause || a.Allowed().Before(noon.Add(min(pause, cluster.MaxBackoff))) {
			t.Fatalf("allowed after %s; the CA wants %s, the back-off %s", a.Allowed().Sub(noon), theirs, pause)
		}
	})
	if at, theirs := nextTry(nil, time.Minute, noon); !at.Equal(noon.Add(time.Minute)) || theirs {
		t.Errorf("without a word of the CA: %s", at.Sub(noon))
	}
}

// attemptAt is an entry of the ledger for the only slot.
func attemptAt(id string, at time.Duration, end cluster.End) cluster.Attempt {
	return cluster.Attempt{ID: id, Node: "proxy1", Slot: slot, Directory: "D", Order: id, Time: noon.Add(at), End: end}
}

func pastOf(entries ...cluster.Attempt) history {
	return chronicleOf(cluster.Records{Ledger: cluster.MergeLedger(entries, nil, noon)}, "D", noon.Add(day)).of(slot)
}

func TestOnlyFailuresSinceTheLastSuccessCount(t *testing.T) {
	elsewhere := attemptAt("elsewhere", 4*time.Hour, cluster.Failed)
	elsewhere.Directory = "E"
	other := attemptAt("other", 4*time.Hour, cluster.Failed)
	other.Slot.Algorithm = cert.RSA
	future := attemptAt("future", 3*day, cluster.Failed)
	h := pastOf(attemptAt("1", 0, cluster.Failed), attemptAt("2", time.Hour, cluster.Issued), attemptAt("3", 2*time.Hour, cluster.Failed),
		attemptAt("4", 3*time.Hour, cluster.Canceled), attemptAt("5", 4*time.Hour, cluster.Failed), attemptAt("6", 5*time.Hour, cluster.Open), elsewhere, other, future)
	if n := h.failures("5"); n != 1 {
		t.Errorf("%d failures beside the given one, want 1", n)
	}
	if h.issued.ID != "2" {
		t.Errorf("issued last: %q", h.issued.ID)
	}
}

func TestWhatEndsEachProcessThatTriesIsNotTriedWithoutEnd(t *testing.T) {
	var entries []cluster.Attempt
	for i := range 6 {
		at := time.Duration(i) * time.Minute
		h := pastOf(entries...)
		put := h.putOff(living(90*day), noon.Add(at), false)
		if n := len(entries); n <= forgivenCuts && !put.NextTry.IsZero() || n > forgivenCuts && put.Allowed().Sub(entries[n-1].Time) < time.Minute {
			t.Errorf("after %d attempts without an end the next is allowed at %s", n, put.Allowed())
		}
		if byHand := h.putOff(living(90*day), noon.Add(at), true); !byHand.NextTry.IsZero() {
			t.Errorf("a person has to wait until %s", byHand.NextTry)
		}
		entries = append(entries, attemptAt(fmt.Sprint(i), at, cluster.Open))
	}
}

func TestAPersonWaitsForTheCAOnly(t *testing.T) {
	ours, theirs := attemptAt("ours", 0, cluster.Failed), attemptAt("theirs", time.Minute, cluster.Failed)
	ours.NextTry = noon.Add(day)
	theirs.NextTry, theirs.RetryAfter = noon.Add(time.Hour), true
	h := pastOf(ours, theirs)
	if put := h.putOff(cert.Generation{}, noon, false); put.ID != "ours" {
		t.Errorf("the daemon waits for %q", put.ID)
	}
	if put := h.putOff(cert.Generation{}, noon, true); put.ID != "theirs" {
		t.Errorf("a person waits for %q", put.ID)
	}
	if put := pastOf(theirs, attemptAt("success", time.Hour, cluster.Issued)).putOff(cert.Generation{}, noon, true); !put.NextTry.IsZero() {
		t.Error("a person waits for what was said before the last success")
	}
}

// attempts are when tries were made, from the ledger.
func (h *host) attempts(since time.Time) []time.Duration {
	var out []time.Duration
	for _, a := range h.records().Ledger {
		out = append(out, a.Time.Sub(since))
	}
	return out
}

func TestACAThatIsDownForDaysIsNotStormed(t *testing.T) {
	w := newWorld(t, 2)
	w.ca.fault = failAt("newOrder", errOutage)
	a, b := w.hosts[0], w.hosts[1]
	start := w.Now()
	report := a.tick()
	if report.Outcome != cluster.Failure {
		t.Errorf("outcome %s", report.Outcome)
	}
	for w.Now().Sub(start) < 3*day {
		if report.Next.IsZero() {
			t.Fatal("it is given up")
		}
		if got := rowOf(t, report, slot); got.Next != report.Next {
			t.Errorf("next %s, of the certificate %s", report.Next, got.Next)
		}
		w.advance(report.Next.Sub(w.Now()))
		report = a.tick()
	}
	got := a.attempts(start)
	want := []time.Duration{0, time.Minute, 11 * time.Minute, 111 * time.Minute, 111*time.Minute + day, 111*time.Minute + 2*day, 111*time.Minute + 3*day}
	if len(got) < 6 || len(got) > 7 {
		t.Fatalf("attempts after %v", got)
	}
	for i, at := range got {
		if at < want[i] || at > want[i]+want[i]/9 {
			t.Errorf("attempt %d after %s, want %s", i+1, at, want[i])
		}
	}
	// The other node takes over, and its first pass is not a new beginning; nor is one that was not asked to be early.
	w.master(1)
	if r := rowOf(t, b.tick(), slot); r.Outcome != cluster.PutOff || !r.NextTry.After(w.Now()) || r.Hint == "" || r.Error == "" {
		t.Errorf("the new MASTER: %s, next try %s, %q (%q)", r.Outcome, r.NextTry, r.Error, r.Hint)
	}
	if n := len(b.attempts(start)); n != len(got) {
		t.Errorf("%d attempts, want %d", n, len(got))
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.advance(day + 3*time.Hour)
	b.tick()
	w.inService(slot, 1)
	w.orders(1, 1)
}

func TestAPersonNeedNotWaitForABackOff(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.fault = failAt("present", errOutage)
	for range 3 {
		w.hosts[0].issue()
	}
	w.ca.set(func() { w.ca.fault = nil })
	if r := w.hosts[0].tick(); r.Outcome != cluster.PutOff {
		t.Errorf("a daemon's pass: %s", r.Outcome)
	}
	if r := w.hosts[0].issue(); r.Outcome != cluster.Done {
		t.Errorf("a person's pass: %s", r.Outcome)
	}
	w.orders(1, 1)
}

func TestACancelledAttemptIsTakenUpAtOnce(t *testing.T) {
	w := newWorld(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "present" {
			cancel()
			return context.Canceled
		}
		return nil
	}
	report, err := w.hosts[0].pass(ctx, Wanted{})
	if err != nil {
		t.Fatal(err)
	}
	if next := report.Next.Sub(w.Now()); next <= 0 || next > time.Minute {
		t.Errorf("the next pass is %s away", next)
	}
	w.ca.set(func() { w.ca.fault = nil })
	if r := w.hosts[0].tick(); r.Outcome != cluster.Done {
		t.Errorf("outcome %s", r.Outcome)
	}
	w.orders(1, 1)
}

func TestADiskThatIsFullIsNotTriedWithoutPause(t *testing.T) {
	w := newWorld(t, 1)
	w.hosts[0].disk.setFull(true)
	report := w.hosts[0].tick()
	if next := report.Next.Sub(w.Now()); next < time.Minute {
		t.Errorf("the next pass is %s away", next)
	}
	w.orders(0, 0)
}

func TestARetryAfterOfTheCAIsTheNextInstant(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "newOrder" {
			return retryAfter(w, 5*day)
		}
		return nil
	}
	report := w.hosts[0].tick()
	if next := report.Next.Sub(w.Now()); next != 5*day || report.Outcome != cluster.PutOff {
		t.Errorf("the next pass is %s away, outcome %s", next, report.Outcome)
	}
}

// A clock in 2099, or one that is two hours ahead of certificates that live an hour: each new one has expired already.
func TestAClockThatIsAheadOrdersNoFlood(t *testing.T) {
	for _, c := range []struct {
		ahead, life, span time.Duration
		most              int
	}{
		{73 * 365 * day, 90 * day, 10 * day, 14},
		{2 * time.Hour, time.Hour, 6 * time.Hour, 22},
	} {
		w := newWorld(t, 1)
		w.ca.lifetime, w.ca.behind = c.life, c.ahead
		h := w.hosts[0]
		report := h.tick()
		if len(report.Warnings) == 0 {
			t.Error("nothing is said of the clock")
		}
		for end := w.Now().Add(c.span); w.Now().Before(end); {
			if n, _, _ := w.ca.counts(); n > c.most {
				t.Fatalf("%d orders in %s", n, w.Now().Sub(end.Add(-c.span)))
			}
			if report.Next.IsZero() {
				t.Fatal("it is given up")
			}
			w.advance(max(time.Second, report.Next.Sub(w.Now())))
			report = h.tick()
		}
		if n, _, _ := w.ca.counts(); n < 4 || n > c.most {
			t.Errorf("%d orders in %s, want at most %d", n, c.span, c.most)
		}
	}
}

func TestAnErrorThatIsNoneOfTheCAsBacksOffToo(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.fault = failAt("present", errors.New("provider panicked"))
	report := w.hosts[0].tick()
	if next := report.Next.Sub(w.Now()); next < time.Minute || next > 2*time.Minute {
		t.Errorf("the next pass is %s away", next)
	}
	if r := rowOf(t, report, slot); !r.NextTry.IsZero() || !r.Next.Equal(report.Next) {
		t.Errorf("the row says %s and %s", r.NextTry, r.Next)
	}
}
