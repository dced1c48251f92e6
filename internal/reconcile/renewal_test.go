package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// lifetimes are those of real and coming certificates, and of the shortest that make sense.
var lifetimes = []time.Duration{5 * time.Minute, time.Hour, day, 160 * time.Hour, 10 * day, 45 * day, 90 * day, 398 * day}

// living is a generation that was issued at noon.
func living(life time.Duration) cert.Generation {
	return cert.Generation{Slot: slot, Sequence: 1, NotBefore: noon, NotAfter: noon.Add(life), Fingerprint: cert.Fingerprint{1}}
}

func genGeneration(t *rapid.T) cert.Generation {
	return living(rapid.SampledFrom(lifetimes).Draw(t, "lifetime"))
}

// genWindow is any window around the life of g, also one that is none.
func genWindow(t *rapid.T, g cert.Generation) cluster.RenewalInfo {
	life := int64(g.Lifetime())
	start := noon.Add(time.Duration(rapid.Int64Range(-life, 2*life).Draw(t, "start")))
	return cluster.RenewalInfo{Generation: g, CertID: rapid.StringMatching(`[a-z]{1,8}\.[a-z]{1,8}`).Draw(t, "certificate ID"), Directory: "D", Node: "proxy1",
		Time: noon, Start: start, End: start.Add(time.Duration(rapid.Int64Range(-life/10, life).Draw(t, "length"))), Again: noon.Add(6 * time.Hour)}
}

func TestEveryNodeDrawsTheSameInstantFromAWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGeneration(t)
		info := genWindow(t, g)
		at := RenewAt(g, info)
		if info.Suggested() {
			if drawn := instantIn(info); drawn.Before(info.Start) || !drawn.Before(info.End) {
				t.Fatalf("%s is not in the window from %s to %s", drawn, info.Start, info.End)
			}
			if at.After(info.Start) && !at.Before(info.End) {
				t.Fatalf("%s is after the window from %s to %s", at, info.Start, info.End)
			}
		} else if !at.Equal(renewByLifetime(g)) {
			t.Fatalf("without a window it is due at %s, want %s", at, renewByLifetime(g))
		}
		if at.After(lastMoment(g)) {
			t.Fatalf("%s is too late for what expires at %s", at, g.NotAfter)
		}
		// Another node has the record by way of JSON, in its zone, and asked at another time.
		data, err := json.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		var other cluster.RenewalInfo
		if err := json.Unmarshal(data, &other); err != nil {
			t.Fatal(err)
		}
		zone := time.FixedZone("elsewhere", 3600)
		other.Start, other.End = other.Start.In(zone), other.End.In(zone)
		other.Node, other.Time, other.Revision = "proxy2", noon.Add(time.Minute), 7
		if again := RenewAt(g, other); !again.Equal(at) {
			t.Fatalf("one node draws %s, another %s", at, again)
		}
	})
}

func TestTheInstantsAreSpreadEvenly(t *testing.T) {
	const n, parts = 10_000, 10
	var counts [parts]int
	start, length := noon, 40*time.Hour
	for i := range n {
		at := instantIn(cluster.RenewalInfo{CertID: fmt.Sprintf("authority.%d", i), Start: start, End: start.Add(length)})
		counts[int(at.Sub(start)*parts/length)]++
	}
	for i, c := range counts { // each of 10 is 1,000 with a standard deviation of 30
		if c < 850 || c > 1150 {
			t.Errorf("part %d of the window has %d of %d instants", i, c, n)
		}
	}
}

func TestAWindowThatMovesIsDrawnFromAnew(t *testing.T) {
	info := cluster.RenewalInfo{CertID: "a.b", Start: noon, End: noon.Add(day)}
	moved := info
	moved.Start, moved.End = noon.Add(time.Second), noon.Add(day+time.Second)
	if a, b := instantIn(info).Sub(info.Start), instantIn(moved).Sub(moved.Start); a == b {
		t.Errorf("both windows have their instant %s after their start", a)
	}
}

func TestRenewAt(t *testing.T) {
	window := func(g cert.Generation, start, length time.Duration) cluster.RenewalInfo {
		return cluster.RenewalInfo{Generation: g, CertID: "a.b", Start: noon.Add(start), End: noon.Add(start + length)}
	}
	classic, short, hour := living(90*day), living(160*time.Hour), living(time.Hour)
	another := classic
	another.Sequence++
	for what, c := range map[string]struct {
		g        cert.Generation
		info     cluster.RenewalInfo
		from, to time.Duration // after noon
	}{
		"no window, 90 days":        {classic, cluster.RenewalInfo{}, 60 * day, 60 * day},
		"no window, 10 days":        {living(10 * day), cluster.RenewalInfo{}, 160 * time.Hour, 160 * time.Hour},
		"no window, under 10 days":  {short, cluster.RenewalInfo{}, 80 * time.Hour, 80 * time.Hour},
		"no window, an hour":        {hour, cluster.RenewalInfo{}, 30 * time.Minute, 30 * time.Minute},
		"a window":                  {classic, window(classic, 58*day, 2*day), 58 * day, 60 * day},
		"a window, 6 days":          {short, window(short, 70*time.Hour, time.Hour), 70 * time.Hour, 71 * time.Hour},
		"a window, an hour":         {hour, window(hour, 20*time.Minute, time.Minute), 20 * time.Minute, 21 * time.Minute},
		"a window that is past":     {classic, window(classic, -2*time.Hour, time.Second), -2 * time.Hour, -2*time.Hour + time.Second},
		"a window after the expiry": {classic, window(classic, 100*day, day), 81 * day, 81 * day},
		"a window of no length":     {classic, window(classic, 10*day, 0), 60 * day, 60 * day},
		"a window that is reversed": {classic, window(classic, 10*day, -time.Hour), 60 * day, 60 * day},
		"another generation's":      {classic, window(another, 10*day, day), 60 * day, 60 * day},
		"a window for ever":         {classic, window(classic, 0, 1<<62), 0, 81 * day},
	} {
		at := RenewAt(c.g, c.info)
		if at.Before(noon.Add(c.from)) || at.After(noon.Add(c.to)) {
			t.Errorf("%s: due %s after the issue, want from %s to %s", what, at.Sub(noon), c.from, c.to)
		}
	}
	if at := RenewAt(cert.Generation{}, cluster.RenewalInfo{}); !at.IsZero() {
		t.Errorf("nothing is due at %s", at)
	}
}

func TestTheCAIsAskedAgainWhenItWantsToBe(t *testing.T) {
	for what, c := range map[string]struct {
		life, retryAfter time.Duration
		from, to         time.Duration
	}{
		"it does not say":                 {90 * day, 0, 6 * time.Hour, 6*time.Hour + askGrid},
		"it does not say, an hour's life": {time.Hour, 0, 6 * time.Minute, 6 * time.Minute},
		"it does not say, 5 minutes":      {5 * time.Minute, 0, time.Minute, time.Minute},
		"at once":                         {90 * day, time.Second, time.Minute, time.Minute},
		"in ten minutes":                  {90 * day, 10 * time.Minute, 10 * time.Minute, 10 * time.Minute},
		"in six hours":                    {90 * day, 6 * time.Hour, 6 * time.Hour, 6*time.Hour + askGrid},
		"in a day":                        {90 * day, day, day, day},
		"in a year":                       {398 * day, 365 * day, day, day},
		"in the past":                     {90 * day, -time.Hour, 6 * time.Hour, 6*time.Hour + askGrid},
	} {
		for _, now := range []time.Time{noon, noon.Add(17*time.Minute + 3*time.Second)} {
			at := askAgain(now, c.retryAfter, living(c.life)).Sub(now)
			if at < c.from || at > c.to {
				t.Errorf("%s: asked again after %s, want from %s to %s", what, at, c.from, c.to)
			}
		}
	}
}

func TestWhatAnAnswerLeaves(t *testing.T) {
	g := living(90 * day)
	asked := cluster.RenewalInfo{Node: "proxy1", Directory: "D", Time: noon}
	ours := cluster.RenewalInfo{Generation: g, CertID: "a.b", Node: "proxy1", Directory: "D", Start: noon.Add(50 * day), End: noon.Add(51 * day), Explanation: "https://why", Revision: 4}
	peers := ours
	peers.Node = "proxy2"
	before := ours
	before.Generation.Sequence, before.Generation.Fingerprint = 0, cert.Fingerprint{9}
	answer := cluster.Suggestion{Start: noon.Add(day), End: noon.Add(2 * day), Explanation: "https://new", RetryAfter: time.Hour}
	dead := &cluster.IssueError{Cause: "unknown certificate", Dead: true}
	limited := &cluster.IssueError{Cause: "slow down", RetryAfter: true, NextTry: noon.Add(2 * time.Hour)}
	for what, c := range map[string]struct {
		last     cluster.RenewalInfo
		err      error
		start    time.Duration // of the window that stays; 0 for none
		again    time.Duration
		revision uint64
	}{
		"an answer":                           {cluster.RenewalInfo{}, nil, day, time.Hour, 1},
		"an answer after another":             {ours, nil, day, time.Hour, 5},
		"an answer after a peer's":            {peers, nil, day, time.Hour, 5},
		"an answer after another generation":  {before, nil, day, time.Hour, 1},
		"the CA does not know it":             {ours, dead, 0, 6 * time.Hour, 5},
		"the CA is silent":                    {ours, context.DeadlineExceeded, 50 * day, 6 * time.Hour, 5},
		"the CA is silent to a peer's word":   {peers, context.DeadlineExceeded, 0, 6 * time.Hour, 5},
		"the CA is silent, and was before":    {cluster.RenewalInfo{}, context.DeadlineExceeded, 0, 6 * time.Hour, 1},
		"the CA is silent of another":         {before, context.DeadlineExceeded, 0, 6 * time.Hour, 1},
		"the CA wants to be left alone":       {ours, limited, 50 * day, 2 * time.Hour, 5},
		"the CA has no such thing":            {cluster.RenewalInfo{}, fmt.Errorf("no: %w", errors.ErrUnsupported), 0, day, 1},
		"the CA has no such thing any more":   {ours, fmt.Errorf("no: %w", errors.ErrUnsupported), 0, day, 5},
		"the CA answers nonsense, not for us": {peers, &cluster.IssueError{Cause: "no window"}, 0, 6 * time.Hour, 5},
	} {
		r := answered(c.last, g, "a.b", answer, c.err, asked)
		window := c.start
		if window != 0 && !r.Start.Equal(noon.Add(window)) || window == 0 && r.Suggested() {
			t.Errorf("%s: the window begins at %s", what, r.Start)
		}
		if again := r.Again.Sub(noon); again < c.again || again > c.again+askGrid {
			t.Errorf("%s: asked again after %s, want %s", what, again, c.again)
		}
		silent := answered(c.last, g, "", answer, context.DeadlineExceeded, asked)
		if silent.Suggested() && !RenewAt(g, silent).Equal(RenewAt(g, c.last)) {
			t.Errorf("%s: a question that is not answered moves the renewal from %s to %s", what, RenewAt(g, c.last), RenewAt(g, silent))
		}
		if r.Revision != c.revision || !same(r.Generation, g) || r.Node != "proxy1" || r.CertID != "a.b" || (r.Problem == "") != (c.err == nil) {
			t.Errorf("%s: %+v", what, r)
		}
		if (c.start == day) != (r.Explanation == "https://new") {
			t.Errorf("%s: explained by %q", what, r.Explanation)
		}
	}
}

func TestDueGivesTheNextInstant(t *testing.T) {
	g, hour := living(90*day), living(time.Hour)
	asked := func(g cert.Generation, again time.Duration) cluster.RenewalInfo {
		return cluster.RenewalInfo{Generation: g, Node: "proxy1", Directory: "D", Time: noon.Add(again - time.Hour), Again: noon.Add(again)}
	}
	window := func(node string, start time.Duration) cluster.RenewalInfo {
		r := asked(g, 60*day)
		r.Node, r.Start, r.End = node, noon.Add(start), noon.Add(start+1)
		return r
	}
	facts := func(now time.Duration, change func(*Facts)) Facts {
		f := Facts{Now: noon.Add(now), Node: "proxy1", Directory: "D", Newest: g, Renewal: asked(g, now+6*time.Hour)}
		change(&f)
		return f
	}
	for what, c := range map[string]struct {
		facts Facts
		due   bool
		next  time.Duration // after noon; negative: none
	}{
		"nothing there":                      {facts(0, func(f *Facts) { f.Newest, f.Renewal = cert.Generation{}, cluster.RenewalInfo{} }), true, 0},
		"nothing there, and peers differ":    {facts(0, func(f *Facts) { f.Newest, f.OtherConfig = cert.Generation{}, []string{"proxy2"} }), false, -1},
		"fresh, never asked":                 {facts(day, func(f *Facts) { f.Renewal = cluster.RenewalInfo{} }), false, day},
		"fresh, asked":                       {facts(day, func(f *Facts) {}), false, day + 6*time.Hour},
		"due before the next question":       {facts(60*day-time.Hour, func(f *Facts) {}), false, 60 * day},
		"due":                                {facts(60*day, func(f *Facts) {}), true, 60 * day},
		"due, and the CA wants it":           {facts(30*day, func(f *Facts) { f.Renewal = window("proxy1", 30*day-time.Hour) }), true, 30 * day},
		"the CA wants it soon":               {facts(30*day, func(f *Facts) { f.Renewal = window("proxy1", 31*day) }), false, 31 * day},
		"a peer says that the CA wants it":   {facts(30*day, func(f *Facts) { f.Renewal = window("proxy2", 29*day) }), false, 29 * day},
		"a peer says that it wants it later": {facts(60*day, func(f *Facts) { f.Renewal = window("proxy2", 80*day) }), true, 60 * day},
		"expired, never asked":               {facts(91*day, func(f *Facts) { f.Renewal = cluster.RenewalInfo{} }), true, 91 * day},
		"put off":                            {facts(60*day, func(f *Facts) { f.PutOff = cluster.Attempt{Time: f.Now, NextTry: f.Now.Add(time.Hour)} }), true, 60*day + time.Hour},
		"an order under way, and put off": {facts(day, func(f *Facts) {
			f.Order, f.PutOff = &cluster.Order{}, cluster.Attempt{Time: f.Now, NextTry: f.Now.Add(time.Hour)}
		}), true, day + time.Hour},
		"still due after the pass": {facts(day, func(f *Facts) { f.StillDue = "asked for" }), true, day},
		"an hour's life":           {facts(0, func(f *Facts) { f.Newest, f.Renewal = hour, asked(hour, day) }), false, 30 * time.Minute},
		"before the caller wakes":  {facts(60*day-time.Hour, func(f *Facts) { f.Wake = f.Now.Add(2 * time.Hour) }), true, 60*day - time.Hour},
		"after the caller wakes":   {facts(60*day-3*time.Hour, func(f *Facts) { f.Wake = f.Now.Add(2 * time.Hour) }), false, 60 * day},
		"just issued, and the CA says at once": {facts(time.Minute, func(f *Facts) {
			f.Renewal, f.Issued = window("proxy1", -time.Hour), cluster.Attempt{ID: "i", Directory: "D", Time: noon}
		}), true, time.Minute},
		"just issued again, and the CA says at once": {facts(time.Minute, func(f *Facts) {
			f.Renewal, f.Issued = window("proxy1", -time.Hour), cluster.Attempt{ID: "i", Directory: "D", Time: noon}
			f.Earlier = noon.Add(-time.Minute)
		}), false, 2*time.Hour - time.Minute},
		"another CA gave it": {facts(day, func(f *Facts) {
			f.Renewal, f.Issued = cluster.RenewalInfo{}, cluster.Attempt{ID: "i", Directory: "E", Time: noon}
		}), false, 60 * day},
		"another CA suggested it": {facts(day, func(f *Facts) { f.Renewal = window("proxy1", 30*day); f.Renewal.Directory = "E" }), false, 30 * day},
	} {
		v := Due(c.facts)
		if (v.Reason != "") != c.due {
			t.Errorf("%s: due for %q, want due %t", what, v.Reason, c.due)
		}
		switch {
		case c.next < 0 && !v.Next.IsZero(), c.next >= 0 && !v.Next.Equal(noon.Add(c.next)):
			t.Errorf("%s: next %s after noon, want %s", what, v.Next.Sub(noon), c.next)
		case v.Reason != "" && v.Next.Before(c.facts.Now):
			t.Errorf("%s: the next instant lies in the past", what)
		}
	}
}

func TestTheReasonTellsOfTheCAsWish(t *testing.T) {
	g := living(90 * day)
	f := Facts{Now: noon.Add(3 * day), Node: "proxy1", Directory: "D", Newest: g, Renewal: cluster.RenewalInfo{Generation: g, Node: "proxy1", Directory: "D",
		Start: noon, End: noon.Add(day), Explanation: "https://ca.test/incident", Again: noon.Add(4 * day), Time: noon}}
	if v := Due(f); !strings.Contains(v.Reason, "the CA suggests a renewal between 2026-11-24T12:00:00Z and 2026-11-25T12:00:00Z") || !strings.Contains(v.Reason, "https://ca.test/incident") {
		t.Errorf("reason %q", v.Reason)
	}
}

func TestInASplitBrainTheNodesStagger(t *testing.T) {
	classic, short := living(90*day), living(160*time.Hour)
	for what, c := range map[string]struct {
		g      cert.Generation
		place  int
		change func(*Facts)
		wait   time.Duration // after the instant at which it is due otherwise
	}{
		"the first node":            {classic, 0, func(*Facts) {}, 0},
		"the second node":           {classic, 1, func(*Facts) {}, time.Hour},
		"the third node":            {classic, 2, func(*Facts) {}, 2 * time.Hour},
		"6 days, the second":        {short, 1, func(*Facts) {}, time.Hour},
		"an hour, the second":       {living(time.Hour), 1, func(*Facts) {}, 36 * time.Second},
		"the peers can be reached":  {classic, 1, func(f *Facts) { f.Apart = false }, 0},
		"a person asks":             {classic, 1, func(f *Facts) { f.ByHand = true }, 0},
		"the hundredth node":        {classic, 1000, func(*Facts) {}, 21 * day},
		"6 days, the hundredth":     {short, 100, func(*Facts) {}, 64 * time.Hour},
		"a window, the second node": {classic, 1, func(f *Facts) { f.Renewal = windowOf(f.Newest, 60*day) }, time.Hour},
	} {
		f := Facts{Node: "proxy1", Directory: "D", Newest: c.g, Place: c.place, Apart: true}
		c.change(&f)
		at := renewByLifetime(c.g).Add(c.wait)
		f.Now = at.Add(-1)
		if v := Due(f); v.Reason != "" {
			t.Errorf("%s: due for %q before it waited %s", what, v.Reason, c.wait)
		}
		if f.Now = at.Add(1); Due(f).Reason == "" {
			t.Errorf("%s: not due after it waited %s", what, c.wait)
		}
	}
	f := Facts{Now: noon.Add(day), Node: "proxy1", Directory: "D", Newest: classic, Place: 9, Apart: true}
	for what, change := range map[string]func(*Facts){
		"an order under way": func(f *Facts) { f.Order = &cluster.Order{} }, "asked for": func(f *Facts) { f.Forced = true },
		"nothing there": func(f *Facts) { f.Newest = cert.Generation{} },
		"lost":          func(f *Facts) { f.Released = classic; f.Released.Sequence++ },
	} {
		f := f
		change(&f)
		if Due(f).Reason == "" {
			t.Errorf("%s: it waits", what)
		}
	}
}

func windowOf(g cert.Generation, start time.Duration) cluster.RenewalInfo {
	return cluster.RenewalInfo{Generation: g, Node: "proxy1", Directory: "D", Time: noon, Again: noon.Add(day), Start: noon.Add(start), End: noon.Add(start + 1)}
}

// Whatever the CA suggests, the peers say and the network does, a certificate of which a tenth is left is due.
func TestNothingPutsARenewalOffForTooLong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGeneration(t)
		f := Facts{Node: rapid.SampledFrom([]string{"proxy1", "proxy2"}).Draw(t, "node"), Directory: "D", Newest: g, Renewal: genWindow(t, g),
			Place: rapid.IntRange(0, 50).Draw(t, "place"), Apart: rapid.Bool().Draw(t, "apart"),
			Issued:  cluster.Attempt{ID: "i", Directory: "D", Time: noon},
			Earlier: noon.Add(time.Duration(rapid.Int64Range(-int64(day), int64(day)).Draw(t, "earlier")))}
		f.Now = lastMoment(g).Add(time.Duration(rapid.Int64Range(0, int64(g.Lifetime())).Draw(t, "later")))
		if v := Due(f); v.Reason == "" {
			t.Fatalf("not due with %s of %s left", g.Left(f.Now), g.Lifetime())
		}
		f.Now = noon.Add(time.Duration(rapid.Int64Range(0, int64(g.Lifetime())).Draw(t, "now")))
		v := Due(f)
		if v.Next.IsZero() || v.Next.After(lastMoment(g)) && v.Next.After(f.Now) {
			t.Fatalf("at %s the next look is at %s; it expires at %s", f.Now, v.Next, g.NotAfter)
		}
		if v.Reason == "" && !v.Next.After(f.Now) && f.askAt().After(f.Now) {
			t.Fatalf("at %s nothing is to be done, and the next look is at %s", f.Now, v.Next)
		}
	})
}

// suggests lets the CA answer each question with a window that begins and ends so long after now.
func (w *world) suggests(start, end, retryAfter time.Duration) {
	w.ca.set(func() {
		w.ca.renewals = func(context.Context, string) (cluster.Suggestion, error) {
			return cluster.Suggestion{Start: w.Now().Add(start), End: w.Now().Add(end), RetryAfter: retryAfter}, nil
		}
	})
}

func (w *world) asked() int {
	w.ca.mu.Lock()
	defer w.ca.mu.Unlock()
	return len(w.ca.asked)
}

// tick is a pass of a daemon.
func (h *host) tick() cluster.Report {
	h.w.Helper()
	report, err := h.pass(context.Background(), Wanted{})
	if err != nil {
		h.w.Fatalf("pass on %s: %v", h.name, err)
	}
	return report
}

func TestOnlyTheMasterAsksAndTheBackupsKnow(t *testing.T) {
	onBoth(t, func(t *testing.T, world func(int, ...option) *world) {
		w := world(3)
		w.suggests(20*day, 21*day, 6*time.Hour)
		a, b := w.hosts[0], w.hosts[1]
		report := a.tick()
		if !report.Next.After(w.Now()) || report.Next.After(w.Now().Add(2*time.Minute)) {
			t.Errorf("next %s: a new certificate is to be asked for soon", report.Next)
		}
		w.advance(report.Next.Sub(w.Now()))
		report = a.tick() // asks
		if n := w.asked(); n != 1 {
			t.Fatalf("the CA was asked %d times, want once", n)
		}
		for _, h := range w.hosts {
			all := h.records().Renewals
			if len(all) != 1 || all[0].Node != "proxy1" || !all[0].Suggested() || !same(all[0].Generation, h.newest(slot)) {
				t.Errorf("%s knows %+v", h.name, all)
			}
		}
		row := rowOf(t, report, slot)
		if row.RenewAt.Before(w.Now().Add(20*day)) || row.RenewAt.After(w.Now().Add(21*day)) || !report.Next.Equal(row.Next) || row.Next.Sub(w.Now()) < 6*time.Hour || row.Next.Sub(w.Now()) > 7*time.Hour {
			t.Errorf("renewal at %s, next %s, of all %s", row.RenewAt, row.Next, report.Next)
		}
		backup := b.tick()
		if r := rowOf(t, backup, slot); !r.RenewAt.Equal(row.RenewAt) || !r.Next.IsZero() || !backup.Next.IsZero() {
			t.Errorf("the BACKUP expects the renewal at %s, want %s; its next is %s", r.RenewAt, row.RenewAt, backup.Next)
		}
		w.master(1)
		again := b.tick() // takes over, and goes by what it knows
		if r := rowOf(t, again, slot); w.asked() != 1 || !r.RenewAt.Equal(row.RenewAt) || !r.Next.Equal(row.Next) {
			t.Errorf("asked %d times; the new MASTER renews at %s and looks again at %s, want %s and %s", w.asked(), r.RenewAt, r.Next, row.RenewAt, row.Next)
		}
		w.orders(1, 1)
	})
}

func TestARenewalHappensAtTheInstantAndSaysWhatItReplaces(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	first := follow(w, a, 2)
	w.suggests(20*day, 21*day, 6*time.Hour)
	w.advance(day) // the record that the CA has no such thing lasts a day
	plan := rowOf(t, a.tick(), slot).RenewAt
	if plan.Before(w.Now().Add(20*day)) || plan.After(w.Now().Add(21*day)) {
		t.Fatalf("planned for %s", plan)
	}
	w.ca.set(func() {
		w.ca.renewals = func(context.Context, string) (cluster.Suggestion, error) {
			return cluster.Suggestion{Start: plan.Add(-time.Hour), End: plan.Add(time.Hour)}, nil
		}
	})
	old, err := a.Store.Bundle(context.Background(), a.newest(slot))
	if err != nil {
		t.Fatal(err)
	}
	id, err := old.RenewalID()
	if err != nil {
		t.Fatal(err)
	}
	report := first
	for range 1000 {
		if n, _, _ := w.ca.counts(); n > 1 {
			break
		}
		w.advance(max(0, report.Next.Sub(w.Now())))
		report = a.tick()
	}
	w.inService(slot, 2)
	w.orders(2, 2)
	at := a.newest(slot).NotBefore
	if planned := instantIn(cluster.RenewalInfo{CertID: id, Start: plan.Add(-time.Hour), End: plan.Add(time.Hour)}); at.Sub(planned).Abs() > time.Second {
		t.Errorf("renewed at %s, want at %s", at, planned)
	}
	if !slices.Equal(w.ca.replaced, []string{"", id}) {
		t.Errorf("the orders replaced %q, want nothing and %q", w.ca.replaced, id)
	}
	ledger := a.records().Ledger
	if last := ledger[len(ledger)-1]; last.Renews != cluster.RenewsInWindow {
		t.Errorf("the renewal counts as %q, want as one in the window", last.Renews)
	}
}

// follow makes n passes, each at the instant that the one before told.
func follow(w *world, h *host, n int) cluster.Report {
	w.Helper()
	report := h.tick()
	for range n - 1 {
		if report.Next.IsZero() {
			w.Fatalf("%s has nothing to do any more", h.name)
		}
		w.advance(max(0, report.Next.Sub(w.Now())))
		report = h.tick()
	}
	return report
}

func TestACAThatAlwaysSuggestsThePastIsNotAskedForOneAfterTheOther(t *testing.T) {
	w := newWorld(t, 1)
	w.suggests(-2*time.Hour, -time.Hour, time.Minute)
	report := w.hosts[0].tick()
	end := w.Now().Add(day)
	for n := 0; w.Now().Before(end) && n < 100; n, _, _ = w.ca.counts() {
		w.advance(max(time.Second, report.Next.Sub(w.Now())))
		report = w.hosts[0].tick()
	}
	if n, _, _ := w.ca.counts(); n < 2 || n > 26 {
		t.Errorf("%d orders in a day", n)
	}
}

func TestAPeersWindowIsNoReasonForAnOrderByItself(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	follow(w, a, 2)
	revision := uint64(1 << 60)
	forged := func(node string) func(*cluster.Inventory) {
		revision += 1 << 20 // whatever the node asked since
		return func(i *cluster.Inventory) {
			i.Renewals = []cluster.RenewalInfo{{Generation: a.newest(slot), CertID: "a.b", Directory: w.ca.directory, Node: node, Time: w.Now(), Revision: revision,
				Start: w.Now().Add(-2 * time.Hour), End: w.Now().Add(-time.Hour), Again: w.Now().Add(9000 * time.Hour)}}
		}
	}
	w.suggests(20*day, 21*day, 6*time.Hour)
	for _, node := range []string{"proxy2", "proxy1", "proxy9"} {
		w.advance(2 * time.Hour)
		a.links["proxy2"].lie = forged(node)
		a.tick()
		a.tick()
		w.orders(1, 1)
	}
	if w.asked() == 0 {
		t.Error("the CA itself was not asked")
	}
}

func TestANodeThatWasAwayHearsOfTheWindow(t *testing.T) {
	for what, c := range map[string]struct {
		awayFrom int // the pass
		back     func(w *world)
	}{
		"it adopts the generation and the window with it":           {1, func(w *world) { w.hosts[1].tick() }},
		"it has the generation, and the MASTER gives it the window": {2, func(w *world) { w.hosts[0].tick() }},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 2)
			w.suggests(20*day, 21*day, 6*time.Hour)
			for pass := 1; pass <= 2; pass++ {
				w.cut(1, pass >= c.awayFrom)
				w.hosts[0].tick()
				w.advance(time.Minute)
			}
			if n := len(w.hosts[1].records().Renewals); n != 0 || w.asked() != 1 {
				t.Fatalf("the BACKUP knows %d windows already, and the CA was asked %d times", n, w.asked())
			}
			w.cut(1, false)
			c.back(w)
			if all := w.hosts[1].records().Renewals; len(all) != 1 || !same(all[0].Generation, w.hosts[1].newest(slot)) {
				t.Errorf("the BACKUP knows %+v", all)
			}
			if w.asked() != 1 {
				t.Errorf("the CA was asked %d times", w.asked())
			}
		})
	}
}

func TestACAThatIsSilentDelaysNothing(t *testing.T) {
	names := []string{"a.example", "b.example", "c.example", "d.example", "e.example", "f.example"}
	var cs []Certificate
	for _, n := range names {
		cs = append(cs, certificate(n, []string{n}, cert.EC256))
	}
	w := newWorld(t, 1, withCertificates(cs...), func(_ *world, s *Settings) { s.Concurrency = 1 })
	a := w.hosts[0]
	a.askWithin = 50 * time.Millisecond
	a.tick()
	w.ca.set(func() {
		w.ca.renewals = func(ctx context.Context, _ string) (cluster.Suggestion, error) {
			<-ctx.Done()
			return cluster.Suggestion{}, ctx.Err()
		}
	})
	w.advance(2 * time.Minute)
	start := time.Now()
	report := a.tick()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the pass took %s", took)
	}
	if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "their lifetime decides") {
		t.Errorf("warnings %q, want one for all", report.Warnings)
	}
	if n := len(a.records().Renewals); n != len(names) {
		t.Errorf("%d of %d are noted as asked for", n, len(names))
	}
	if next := report.Next.Sub(w.Now()); next < 6*time.Hour || next > 7*time.Hour {
		t.Errorf("asked again after %s", next)
	}
}

// A CA that is too slow for all questions of a pass is asked for the others in the next one.
func TestQuestionsThatAPassDoesNotComeToAreAskedInTheNext(t *testing.T) {
	var cs []Certificate
	for i := range 6 {
		n := fmt.Sprintf("n%d.example", i)
		cs = append(cs, certificate(n, []string{n}, cert.EC256))
	}
	w := newWorld(t, 1, withCertificates(cs...), func(_ *world, s *Settings) { s.Concurrency = 1 })
	a := w.hosts[0]
	a.tick()
	answers := 0
	w.ca.set(func() {
		w.ca.renewals = func(ctx context.Context, _ string) (cluster.Suggestion, error) {
			if answers++; answers%3 == 0 {
				<-ctx.Done()
				return cluster.Suggestion{}, ctx.Err()
			}
			return cluster.Suggestion{Start: w.Now().Add(20 * day), End: w.Now().Add(21 * day)}, nil
		}
	})
	a.askWithin = 300 * time.Millisecond
	for pass, want := range []int{2, 4, 6} {
		w.advance(time.Minute)
		report := a.tick()
		answered := 0
		for _, r := range a.records().Renewals {
			if r.Suggested() {
				answered++
			}
		}
		if answered != want || len(report.Warnings) > 0 {
			t.Errorf("after pass %d %d are answered, want %d; warnings %q", pass+1, answered, want, report.Warnings)
		}
		if next := report.Next.Sub(w.Now()); (next == time.Minute) != (want < 6) {
			t.Errorf("after pass %d the next is %s away", pass+1, next)
		}
	}
}

func TestAnOutageEndsTheQuestionsOfAPass(t *testing.T) {
	var cs []Certificate
	for i := range 40 {
		n := fmt.Sprintf("n%d.example", i)
		cs = append(cs, certificate(n, []string{n}, cert.EC256))
	}
	w := newWorld(t, 1, withCertificates(cs...), func(_ *world, s *Settings) { s.Concurrency = 2 })
	w.hosts[0].tick()
	w.ca.set(func() {
		w.ca.renewals = func(context.Context, string) (cluster.Suggestion, error) { return cluster.Suggestion{}, errOutage }
	})
	w.advance(2 * time.Minute)
	w.hosts[0].tick()
	if n := w.asked(); n < askFailures || n > askFailures+2 {
		t.Errorf("the CA was asked %d times while it was down", n)
	}
}

func TestACAWithoutRenewalInfoIsAskedDaily(t *testing.T) {
	w := newWorld(t, 2)
	report := follow(w, w.hosts[0], 2)
	if next := report.Next.Sub(w.Now()); next != day || len(report.Warnings) > 0 {
		t.Errorf("asked again after %s, warnings %q", next, report.Warnings)
	}
	if r := w.hosts[1].records().Renewals; len(r) != 1 || r[0].Suggested() || r[0].Problem == "" {
		t.Errorf("the BACKUP knows %+v", r)
	}
}

func TestADemotionWhileTheCAIsAskedLeavesNoAnswer(t *testing.T) {
	w := newWorld(t, 2)
	a := w.hosts[0]
	a.tick()
	w.ca.set(func() {
		w.ca.renewals = func(ctx context.Context, _ string) (cluster.Suggestion, error) {
			w.master(1)
			<-ctx.Done()
			return cluster.Suggestion{}, context.Cause(ctx)
		}
	})
	w.advance(2 * time.Minute)
	a.tick()
	if n := len(a.records().Renewals); n != 0 {
		t.Errorf("%d answers of a CA that was not listened to", n)
	}
}

// 6 days and an hour: followed from report to report, each is renewed in time, and not more often than it should be.
func TestShortLivesAreRenewedInTime(t *testing.T) {
	for _, life := range []time.Duration{time.Hour, 160 * time.Hour} {
		for _, ari := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, suggested %t", life, ari), func(t *testing.T) {
				w := newWorld(t, 2)
				w.ca.lifetime = life
				if ari {
					w.ca.renewals = func(_ context.Context, _ string) (cluster.Suggestion, error) {
						g := w.hosts[0].newest(slot)
						return cluster.Suggestion{Start: g.NotBefore.Add(life / 2), End: g.NotBefore.Add(life * 55 / 100), RetryAfter: life / 20}, nil
					}
				}
				a := w.hosts[0]
				report := a.tick()
				for range 2000 {
					if a.newest(slot).Sequence > 10 {
						break
					}
					next := report.Next.Sub(w.Now())
					if next <= 0 || next > life*6/10 {
						t.Fatalf("the next pass is %s away", next)
					}
					w.advance(next)
					if left := a.newest(slot).Left(w.Now()); left < life*44/100 {
						t.Fatalf("%s of %s left", left, life)
					}
					report = a.tick()
				}
				w.inService(slot, 11)
				w.orders(11, 11)
			})
		}
	}
}

func TestTwoMastersThatAreApartOrderOneAfterTheOther(t *testing.T) {
	w := newWorld(t, 2)
	w.lax = true
	a, b := w.hosts[0], w.hosts[1]
	a.tick()
	b.tick()
	w.advance(60 * day)
	w.cut(1, true)
	b.mu.Lock()
	b.role = cluster.Master
	b.mu.Unlock()
	report := b.tick()
	w.orders(1, 1)
	if row := rowOf(t, report, slot); row.Due != "" || !row.Next.Equal(w.Now().Add(time.Minute)) && !row.Next.Equal(w.Now().Add(time.Hour)) {
		t.Errorf("due for %q, next %s after now", row.Due, row.Next.Sub(w.Now()))
	}
	a.tick()
	w.orders(2, 2)
	w.advance(59 * time.Minute)
	b.tick()
	w.orders(2, 2)
	w.cut(1, false) // healed in time
	b.tick()
	w.advance(2 * time.Minute)
	b.tick()
	w.orders(2, 2)
	w.cut(1, true)
	w.advance(60*day - 61*time.Minute)
	b.tick()
	w.orders(2, 2)
	w.advance(time.Hour)
	b.tick() // apart for good: it renews by itself
	w.orders(3, 3)
}

// Found by the simulation: what the CA said and a full disk could not hold was asked for again each minute.
func TestAFullDiskIsNoReasonToAskTheCAEachMinute(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.suggests(60*day, 62*day, 6*time.Hour)
	w.hosts[0].disk.setFull(true)
	report := w.hosts[0].tick()
	if next := report.Next.Sub(w.Now()); next < 5*time.Hour {
		t.Errorf("the next pass is %s away", next)
	}
	w.hosts[0].disk.setFull(false)
	w.hosts[0].tick() // woken by something else: now the answer is written down
	asked := w.asked()
	w.advance(time.Hour)
	w.hosts[0].tick()
	if again := w.asked() - asked; again != 0 || asked < 2 {
		t.Errorf("the CA was asked %d times, and %d times again though its word is on disk", asked, again)
	}
}
