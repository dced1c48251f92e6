package alarm

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

const day = 24 * time.Hour

func TestAPairThatWorksIsSilentForAYear(t *testing.T) {
	for _, life := range []time.Duration{90 * day, 160 * time.Hour, 12 * time.Hour} {
		w := newWorld(t, life)
		w.until(t0.Add(min(365*day, 60*life)))
		w.wants()
	}
}

func TestTheBackupRaisesTheAlarmWhenTheMasterDiesSilently(t *testing.T) {
	w := newWorld(t, 90*day)
	w.until(t0.Add(10 * day))
	w.node["a"].down = true
	w.until(t0.Add(10*day + 7*time.Hour))
	w.wants("b new no_master urgent", "b new unreachable warning")
	if text := w.node["b"].last.Standing[0].Text; !strings.Contains(text, "a was MASTER when last heard, at 2026-12-0") || !strings.Contains(text, "no answer from a") {
		t.Errorf("it does not say who was MASTER: %s", text)
	}
	w.until(w.due())
	for _, line := range w.texts() {
		if line != "b still no_master urgent" {
			t.Errorf("told: %s", line)
		}
	}
	late := w.due().Add(grace(w.newest, w.due()))
	w.until(late.Add(-time.Minute))
	w.texts()
	w.until(late.Add(time.Minute))
	if got := w.texts(); !slices.Contains(got, "b new renewal_overdue warning") {
		t.Errorf("told when the renewal is overdue: %q", got)
	}
	w.until(w.newest.NotAfter.Add(-day))
	if got := w.texts(); !slices.Contains(got, "b worse renewal_overdue urgent") {
		t.Errorf("told under a tenth of the lifetime: %q", got)
	}
	w.until(w.newest.NotAfter.Add(time.Hour))
	got := w.texts()
	if !slices.Contains(got, "b new expired urgent") || slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, "resolved") }) {
		t.Errorf("told at the expiry: %q", got)
	}
}

func TestARenewalThatTheMasterDoesNotMakeIsToldByTheBackupAlone(t *testing.T) {
	for name, c := range map[string]struct {
		life time.Duration
		late time.Duration // after it was due
	}{
		"90 days": {90 * day, 108*time.Hour + deference}, "6 days": {160 * time.Hour, 8*time.Hour + deference}, "an hour": {time.Hour, 5*time.Minute + 72*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.life)
			w.until(t0.Add(2 * time.Minute))
			w.renews = false
			w.node["a"].next = t0.Add(1000 * day) // it answers, and its daemon is dead
			w.node["b"].seen = func(s *Seen) { s.Silence = 0 }
			w.until(w.due().Add(c.late - time.Second))
			w.wants()
			w.until(w.due().Add(c.late + time.Second))
			w.wants("b new renewal_overdue warning")
			if a := w.node["b"].last.Standing[0]; !strings.Contains(a.Text, "a is MASTER") || !strings.Contains(a.Hint, "certsync issue example.org") {
				t.Errorf("alarm: %+v", a)
			}
		})
	}
}

func TestAMasterThatAnswersAndMakesNoPassIsSilent(t *testing.T) {
	w := newWorld(t, 90*day)
	w.until(t0.Add(day))
	w.node["a"].next = t0.Add(1000 * day)
	w.until(w.node["a"].book.Judged.Add(13*time.Hour + deference - time.Second))
	w.wants()
	w.until(w.now.Add(2 * time.Second))
	w.wants("b new master_silent urgent")
}

func TestWhatTheMasterToldIsNotToldByTheBackup(t *testing.T) {
	w := newWorld(t, 90*day)
	w.renews = false
	w.node["a"].change = func(r *cluster.Report) {
		if !w.now.Before(w.due()) {
			r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.PutOff, "dns: SERVFAIL"
		}
	}
	w.until(w.due().Add(20 * day))
	got := w.texts()
	for _, line := range got {
		if strings.HasPrefix(line, "b ") {
			t.Errorf("told twice: %s", line)
		}
	}
	if !slices.Contains(got, "a new failed warning") || !slices.Contains(got, "a new renewal_overdue warning") {
		t.Errorf("told: %q", got)
	}
	if all := w.node["b"].last.Standing; len(all) != 2 {
		t.Errorf("the BACKUP does not know what stands: %+v", all)
	}
	w.issue()
	w.node["a"].change = nil
	w.until(w.now.Add(day))
	w.wants("a resolved failed warning", "a resolved renewal_overdue warning")
}

func TestANewMasterResolvesWhatTheOneBeforeTold(t *testing.T) {
	w := newWorld(t, 90*day)
	w.node["a"].change = func(r *cluster.Report) {
		r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Failure, "ca: down"
	}
	w.until(t0.Add(day))
	w.wants("a new failed warning")
	w.node["a"].down, w.node["b"].role = true, cluster.Master
	w.until(w.now.Add(7 * time.Hour))
	w.wants("b resolved failed warning", "b new unreachable warning")

	// The old MASTER comes back as BACKUP: its own book has the alarm still, and it must not tell of its end again.
	w.node["a"].down, w.node["a"].role, w.node["a"].change, w.node["a"].next = false, cluster.Backup, nil, w.now
	w.until(w.now.Add(2 * day))
	w.wants("b resolved unreachable warning")
}

func TestAnAlarmThatOnlyItsDeadNodeKnewOfIsResolvedOnce(t *testing.T) {
	w := newWorld(t, 90*day)
	w.until(t0.Add(2 * time.Minute))
	w.node["b"].next = t0.Add(30 * day) // it makes no pass while a tells
	w.node["a"].change = func(r *cluster.Report) {
		r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Failure, "ca: down"
	}
	w.until(t0.Add(12 * time.Hour))
	w.wants("a new failed warning")
	w.node["a"].down, w.node["b"].role, w.node["b"].next = true, cluster.Master, w.now
	w.until(w.now.Add(7 * time.Hour))
	w.wants("b new unreachable warning")
	w.node["a"].down, w.node["a"].role, w.node["a"].change, w.node["a"].next = false, cluster.Backup, nil, w.now
	w.until(w.now.Add(2 * day))
	got := w.texts()
	if n := len(slices.DeleteFunc(slices.Clone(got), func(l string) bool { return !strings.HasSuffix(l, "resolved failed warning") })); n != 1 {
		t.Errorf("the end was told %d times: %q", n, got)
	}
}

func TestWhatMendsItselfInTimeIsNoAlarm(t *testing.T) {
	w := newWorld(t, 90*day)
	w.until(t0.Add(day))
	w.deaf = true
	w.node["a"].next, w.node["b"].next = w.now, w.now
	w.until(w.now.Add(14 * time.Minute))
	w.deaf = false
	w.until(w.now.Add(day))
	w.wants()
}

func TestUrgentAlarmsAreToldAgainEachDayAndWarningsAreNot(t *testing.T) {
	w := newWorld(t, 90*day)
	w.node["a"].change = func(r *cluster.Report) {
		r.Nodes[0].Placements[0].Running = false
		r.Nodes[1].Digest = "other"
	}
	w.until(t0.Add(3*day + time.Hour))
	w.wants("a new haproxy_down urgent", "a new other_configuration warning", "a still haproxy_down urgent", "a still haproxy_down urgent", "a still haproxy_down urgent")
}

func TestWhatComesAndGoesIsToldOnceWithItsNumber(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	bad := false
	m.change = func(r *cluster.Report) {
		if bad {
			r.Nodes[0].Placements[0].Outcome, r.Nodes[0].Placements[0].Error = cluster.RolledBack, "refused"
		}
	}
	for range 20 {
		for _, bad = range []bool{true, false} {
			m.next = w.now.Add(time.Minute)
			w.until(m.next)
		}
	}
	got := w.texts()
	want := []string{"a new rolled_back warning", "a resolved rolled_back warning", "a new rolled_back warning", "a resolved rolled_back warning",
		"a new rolled_back warning", "a resolved rolled_back warning", "a flapping rolled_back warning"}
	if !slices.Equal(got, want) {
		t.Errorf("told: %q", got)
	}
	w.until(w.now.Add(59 * time.Minute))
	w.wants()
	w.until(w.now.Add(2 * time.Minute))
	w.wants("a resolved rolled_back warning")

	for range 4 {
		for _, bad = range []bool{true, false, true} {
			m.next = w.now.Add(time.Minute)
			w.until(m.next)
		}
	}
	w.texts()
	w.until(w.now.Add(2 * time.Hour))
	w.wants("a new rolled_back warning")
}

func TestARestartTellsNothingAgainButWhatReachedNobody(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	m.change = func(r *cluster.Report) { r.Nodes[0].Problems = []string{"ledger.json was torn"} }
	w.until(t0.Add(time.Hour))
	w.wants("a new state warning")
	restart := func() {
		t.Helper()
		data, err := json.Marshal(m.book)
		if err != nil {
			t.Fatal(err)
		}
		m.book = cluster.AlarmBook{}
		if err := json.Unmarshal(data, &m.book); err != nil {
			t.Fatal(err)
		}
		m.book = Restarted(m.book)
		m.next = w.now
		w.until(w.now.Add(time.Minute))
	}
	restart()
	w.wants("a new state warning")
	m.book = Delivered(m.book, []cluster.AlarmID{m.last.Standing[0].ID()})
	restart()
	w.wants()
	m.change = nil
	m.next = w.now
	w.until(w.now.Add(time.Minute))
	w.wants("a resolved state warning")
	restart()
	w.wants("a resolved state warning")
	m.book = Delivered(m.book, m.last.Message.IDs())
	restart()
	w.wants()
}

func TestAPassWithoutOrdersDoesNotResolveAFailedOrder(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	m.change = func(r *cluster.Report) {
		r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Failure, "ca: down"
	}
	w.until(t0.Add(10 * time.Minute))
	w.wants("a new failed warning")
	m.change, m.seen, m.next = nil, func(s *Seen) { s.NoOrders = true }, w.now
	w.until(w.now.Add(time.Minute))
	w.wants()
	m.seen, m.next = nil, w.now
	w.until(w.now.Add(time.Minute))
	w.wants("a resolved failed warning")
}

func TestANodeThatCannotBeAskedIsNotSaidToBeWellAgain(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	m.change = func(r *cluster.Report) {
		if r.Nodes[1].Reachable {
			r.Nodes[1].Placements[0].Running = false
		}
	}
	w.until(t0.Add(time.Hour))
	w.wants("a new haproxy_down urgent")
	w.node["b"].down = true
	m.next = w.now
	w.until(w.now.Add(time.Hour))
	w.wants("a new unreachable warning")
	w.node["b"].down, m.change = false, nil
	m.next, w.node["b"].next = w.now, w.now
	w.until(w.now.Add(time.Hour))
	w.wants("a resolved haproxy_down urgent", "a resolved unreachable warning")
}

func TestAFailedPassTellsOfThatAndOfNothingElse(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	m.change = func(r *cluster.Report) { r.Nodes[0].Problems = []string{"ledger.json was torn"} }
	w.until(t0.Add(time.Hour))
	w.wants("a new state warning")
	m.seen = func(s *Seen) {
		s.Report, s.Failure, s.Hint = cluster.Report{}, "role: no such interface", "see carp status"
	}
	m.next = w.now
	w.until(w.now.Add(time.Hour))
	w.wants("a new no_pass urgent")
	m.seen, m.next = nil, w.now
	w.until(w.now.Add(time.Hour))
	w.wants("a resolved no_pass urgent")
}

// TestEachFault has for each what the MASTER tells of it, and after how long.
func TestEachFaultIsToldByItsKind(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*cluster.Report)
		seen   func(*Seen)
		after  time.Duration
		want   []string
	}{
		"rolled back on a peer": {change: func(r *cluster.Report) {
			r.Nodes[1].Placements[0].Outcome, r.Nodes[1].Placements[0].Error = cluster.RolledBack, "refused"
			r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.RolledBack, "b does not serve generation 01: refused; a goes on"
		}, want: []string{"a new held_back warning", "a new rolled_back warning"}},
		"held back": {change: func(r *cluster.Report) {
			r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Waiting, "b does not serve it"
		}, want: []string{"a new held_back warning"}},
		"not obtained": {change: func(r *cluster.Report) {
			r.Certificates[0].Newest, r.Certificates[0].Outcome, r.Certificates[0].Error = cert.Generation{}, cluster.Failure, "ca: down"
		}, want: []string{"a new failed urgent"}},
		"none yet": {change: func(r *cluster.Report) { r.Certificates[0].Newest = cert.Generation{} }, after: time.Hour, want: []string{"a new no_certificate urgent"}},
		"a failure on a peer": {change: func(r *cluster.Report) {
			r.Nodes[1].Placements[0].Outcome, r.Nodes[1].Placements[0].Error = cluster.Failure, "disk full"
			r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Failure, "b: disk full"
		}, want: []string{"a new failed warning"}},
		"not ready": {change: func(r *cluster.Report) { r.Nodes[1].Placements[0].Memory.Fingerprint[0]++ }, after: notReadyAfter, want: []string{"a new not_ready warning"}},
		"fails if it took over": {change: func(r *cluster.Report) {
			r.Nodes[1].Placements[0].Memory = cluster.Sighting{Note: "not in HAProxy's memory"}
			r.Nodes[1].Placements[0].Served = cluster.Sighting{Note: "the handshake failed"}
		}, after: notReadyAfter, want: []string{"a new not_ready urgent"}},
		"no HAProxy": {change: func(r *cluster.Report) { r.Nodes[1].Placements[0].Running = false }, after: notReadyAfter, want: []string{"a new haproxy_down urgent"}},
		"unreachable": {change: func(r *cluster.Report) { r.Nodes[1] = cluster.NodeStatus{Node: "b", Error: "no route"} }, after: unreachableAfter,
			want: []string{"a new unreachable warning"}},
		"another configuration": {change: func(r *cluster.Report) { r.Nodes[1].Digest = "x" }, after: differsAfter, want: []string{"a new other_configuration warning"}},
		"another version":       {change: func(r *cluster.Report) { r.Nodes[1].Version = "2" }, after: differsAfter, want: []string{"a new other_version warning"}},
		"two MASTERs":           {change: func(r *cluster.Report) { r.Nodes[1].Role = cluster.Master }, after: twoMastersAfter, want: []string{"a new two_masters urgent"}},
		"no MASTER": {change: func(r *cluster.Report) { r.Role, r.Nodes[0].Role = cluster.Init, cluster.Init }, after: noMasterAfter,
			want: []string{"a new no_master urgent"}},
		"a clock ahead":          {change: func(r *cluster.Report) { r.Nodes[1].Time = r.End.Add(3 * time.Minute) }, after: clockAfter, want: []string{"a new clock warning"}},
		"a clock far behind":     {change: func(r *cluster.Report) { r.Nodes[1].Time = r.Start.Add(-2 * time.Hour) }, after: clockAfter, want: []string{"a new clock urgent"}},
		"a clock a little ahead": {change: func(r *cluster.Report) { r.Nodes[1].Time = r.End.Add(time.Minute) }},
		"a budget": {change: func(r *cluster.Report) { r.Budgets = []string{"the names of example.org: 4 of the 5 are used"} },
			want: []string{"a new budget warning"}},
		"state set aside":         {change: func(r *cluster.Report) { r.Nodes[0].Problems = []string{"torn"} }, after: notReadyAfter, want: []string{"a new state warning"}},
		"a refused configuration": {seen: func(s *Seen) { s.Configuration = "certsync.yaml:3: no" }, want: []string{"a new configuration_refused warning"}},
		"expired": {change: func(r *cluster.Report) {
			r.Certificates[0].Newest.NotBefore, r.Certificates[0].Newest.NotAfter = t0.Add(-20*day), t0.Add(-time.Hour)
		}, want: []string{"a new expired urgent"}},
		"overdue": {change: func(r *cluster.Report) { r.Certificates[0].RenewAt = t0.Add(-10 * day) }, want: []string{"a new renewal_overdue warning"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 90*day)
			w.until(t0)
			m := w.node["a"]
			m.change, m.seen, m.next = c.change, c.seen, t0.Add(time.Second)
			w.node["b"].next = t0.Add(1000 * day)
			if c.after > 0 {
				w.until(t0.Add(c.after))
				w.wants()
			}
			w.until(t0.Add(c.after + time.Second))
			w.wants(c.want...)
			for _, a := range m.last.Standing {
				if a.Text == "" || a.Since.IsZero() {
					t.Errorf("alarm without a text or an instant: %+v", a)
				}
			}
			m.change, m.seen, m.next = nil, nil, w.now
			w.until(w.now.Add(time.Second))
			if got := w.texts(); len(got) != len(c.want) || slices.ContainsFunc(got, func(l string) bool { return !strings.HasPrefix(l, "a resolved ") }) {
				t.Errorf("told when it was over: %q", got)
			}
			if len(m.last.Standing) != 0 {
				t.Errorf("still stands: %+v", m.last.Standing)
			}
		})
	}
}

func TestAFailedOrderIsToldBesideAFailureOnAPeer(t *testing.T) {
	w := newWorld(t, 90*day)
	w.node["a"].change = func(r *cluster.Report) {
		r.Nodes[1].Placements = []cluster.Placement{{Slot: slot, Proxy: "p", Running: true, Outcome: cluster.Failure, Error: "disk full"}}
		r.Certificates[0].Outcome, r.Certificates[0].Error = cluster.Failure, "ca: down"
	}
	w.until(t0)
	w.wants("a new failed warning")
	w.until(t0.Add(10 * time.Minute))
	w.wants("a new failed warning")
	if all := w.node["a"].last.Standing; len(all) != 2 || all[0].Node == all[1].Node {
		t.Errorf("standing: %+v", all)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

func TestTheMessageSaysWhatWhereSinceWhenAndTheMend(t *testing.T) {
	w := newWorld(t, 90*day)
	m := w.node["a"]
	w.until(t0)
	m.next = t0.Add(time.Minute)
	m.change = func(r *cluster.Report) {
		r.Nodes[1].Placements[0].Outcome, r.Nodes[1].Placements[0].Error = cluster.RolledBack, "HAProxy: set ssl cert: unable to load"
		r.Nodes[1].Placements[0].Hint = "see HAProxy's log on b"
		r.Nodes[0].Placements[0].Running = false
		r.Nodes[0].Placements[0].Proxy = "/usr/local/etc/haproxy.conf"
		r.Nodes[1].Digest = "x"
	}
	var b strings.Builder
	write := func() {
		for _, m := range w.told {
			b.WriteString(m.Subject() + "\n\n" + m.Text() + "----\n")
		}
		w.told = nil
	}
	w.until(t0.Add(day + 10*time.Minute))
	write()
	m.change, m.next = nil, w.now
	w.until(w.now.Add(time.Minute))
	write()
	golden := filepath.Join("testdata", "messages.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("messages:\n%s\nwant those of %s (-update writes them)", b.String(), golden)
	}
}

func TestAMessageOfThousandsIsShort(t *testing.T) {
	m := Message{Node: "a", Time: t0}
	for range 10_000 {
		m.New = append(m.New, cluster.AlarmEntry{Alarm: cluster.Alarm{Kind: cluster.AlarmFailed, Severity: cluster.Urgent, Slot: slot, Text: "x", Since: t0}})
	}
	text := m.Text()
	if n := strings.Count(text, "\n"); n > 80 || !strings.Contains(text, "and 9980 more") || !strings.Contains(m.Subject(), "10000 urgent") {
		t.Errorf("%d lines: %s: %.500s", n, m.Subject(), text)
	}
}
