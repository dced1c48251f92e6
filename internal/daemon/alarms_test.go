package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// recipient is a Target, and what it was sent; err is its answer, and wait, where it is set, what it waits for.
type recipient struct {
	name string
	mu   sync.Mutex
	got  []string
	err  error
	wait chan struct{}
}

func (r *recipient) Name() string { return r.name }
func (r *recipient) Key() string  { return r.name }

func (r *recipient) Send(ctx context.Context, subject, text string) error {
	r.mu.Lock()
	wait, err := r.wait, r.err
	r.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, subject+"\n"+text)
	return nil
}

func (r *recipient) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *recipient) messages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// shelf is where the book of alarms is kept.
type shelf struct {
	mu      sync.Mutex
	book    cluster.AlarmBook
	writes  int
	readErr error
}

func (s *shelf) read(context.Context) (cluster.AlarmBook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book, s.readErr
}

func (s *shelf) keep(_ context.Context, book cluster.AlarmBook) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book = book
	s.writes++
	return nil
}

func (s *shelf) unsent() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.book.Entries {
		if e.Unsent {
			n++
		}
	}
	return n
}

// rejected is the report of a pass after which HAProxy refused a bundle; sound that of one after which all is well.
func rejected() cluster.Report {
	r := sound()
	r.Nodes[0].Placements[0].Outcome, r.Nodes[0].Placements[0].Error = cluster.RolledBack, "unable to load"
	return r
}

func sound() cluster.Report {
	now := time.Now()
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	g := cert.Generation{Slot: slot, Sequence: 1, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(2000 * time.Hour)}
	g.Fingerprint[0] = 1
	s := cluster.Sighting{Fingerprint: g.Fingerprint, NotBefore: g.NotBefore, NotAfter: g.NotAfter}
	return cluster.Report{Node: "proxy1", Role: cluster.Master, Start: now, End: now, Outcome: cluster.Unchanged,
		Certificates: []cluster.CertificateReport{{Slot: slot, Newest: g, Outcome: cluster.Unchanged}},
		Nodes: []cluster.NodeStatus{{Node: "proxy1", Role: cluster.Master, Reachable: true, Time: now, Placements: []cluster.Placement{
			{Slot: slot, Proxy: "haproxy.conf", Running: true, Disk: s, Memory: s, Served: s, Proof: cluster.Proven}}}}}
}

// alarmed is a plant with these targets, whose passes end with the report that give gives.
func alarmed(t *testing.T, books *shelf, give func() cluster.Report, targets ...Target) *plant {
	return newPlant(t, func(p *plant) {
		p.d.outbox.pauses = []time.Duration{time.Millisecond, time.Millisecond}
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) { return give(), nil }
		p.change = func(s *Site) { s.Alarms, s.KeepAlarms, s.Notify = books.read, books.keep, targets }
	})
}

func TestAnAlarmIsToldOnceAndItsEndToo(t *testing.T) {
	var mu sync.Mutex
	report := rejected()
	give := func() cluster.Report { mu.Lock(); defer mu.Unlock(); return report }
	who, books := &recipient{name: "ntfy"}, &shelf{}
	p := alarmed(t, books, give, who)
	p.eventually("the alarm is told", func() bool { return len(who.messages()) == 1 })
	if m := who.messages()[0]; !strings.Contains(m, "example.org (ecdsa): on proxy1: unable to load") {
		t.Errorf("message: %s", m)
	}
	p.eventually("that it arrived is kept", func() bool { return books.unsent() == 0 })
	status, err := p.client().Status(t.Context())
	must(t, err)
	if all := status.Daemon.Alarms; len(all) != 1 || all[0].Kind != cluster.AlarmRolledBack {
		t.Errorf("alarms in the status: %+v", all)
	}
	p.d.Wake(t.Context())
	p.wantsPass()
	p.idle()
	mu.Lock()
	report = sound()
	mu.Unlock()
	p.d.Wake(t.Context())
	p.wantsPass()
	p.eventually("the end is told", func() bool { return len(who.messages()) == 2 })
	if m := who.messages()[1]; !strings.Contains(m, "Resolved:") {
		t.Errorf("message: %s", m)
	}
	p.logs("alarm, resolved")
}

func TestATargetThatHangsDelaysNeitherPassesNorOthers(t *testing.T) {
	hangs, works := &recipient{name: "hangs", wait: make(chan struct{})}, &recipient{name: "works"}
	p := alarmed(t, &shelf{}, rejected, hangs, works)
	p.eventually("the other is told", func() bool { return len(works.messages()) == 1 })
	p.d.Wake(t.Context())
	p.wantsPass()
	p.idle()
	if n := len(hangs.messages()); n != 0 {
		t.Errorf("the one that hangs got %d messages", n)
	}
	close(hangs.wait)
	p.eventually("the one that hung is told", func() bool { return len(hangs.messages()) == 1 })
}

func TestAMessageIsTriedAgainAndThenGivenUp(t *testing.T) {
	who, books := &recipient{name: "ntfy", err: errors.New("notify ntfy: 500")}, &shelf{}
	p := alarmed(t, books, rejected, who)
	p.logs("a notification was not sent, and is tried again")
	p.logs("a notification is given up")
	if books.unsent() != 1 {
		t.Error("what reached nobody is kept as told")
	}
	who.set(func() { who.err = nil })
	p.d.outbox.post(letter{subject: "next", text: "text\n"})
	p.eventually("the next one goes", func() bool { return len(who.messages()) == 1 })
	if m := who.messages()[0]; !strings.Contains(m, "Earlier messages that could not be sent: 1") {
		t.Errorf("message: %s", m)
	}
}

func TestWhatReachedNobodyIsToldAfterARestartAndTheRestIsNot(t *testing.T) {
	who, books := &recipient{name: "ntfy"}, &shelf{}
	first := alarmed(t, books, rejected, who)
	first.eventually("the alarm is told, and that is kept", func() bool { return len(who.messages()) == 1 && books.unsent() == 0 })
	first.stop()
	must(t, <-first.ended)
	first.ended <- nil
	second := alarmed(t, books, rejected, who)
	second.idle()
	second.eventually("the pass is looked at", func() bool {
		s, err := second.client().Status(t.Context())
		return err == nil && len(s.Daemon.Alarms) == 1
	})
	if n := len(who.messages()); n != 1 {
		t.Errorf("told %d times", n)
	}
	second.stop()
	must(t, <-second.ended)
	second.ended <- nil
	books.mu.Lock()
	books.book.Entries[0].Unsent = true
	books.mu.Unlock()
	third := alarmed(t, books, rejected, who)
	third.eventually("what reached nobody is told", func() bool { return len(who.messages()) == 2 })
}

func TestTheEndWaitsALittleForAMessageUnderWay(t *testing.T) {
	who, books := &recipient{name: "slow", wait: make(chan struct{})}, &shelf{}
	p := alarmed(t, books, rejected, who)
	p.eventually("the alarm is kept", func() bool { return books.unsent() == 1 })
	p.stop()
	close(who.wait)
	must(t, <-p.ended)
	p.ended <- nil
	if len(who.messages()) != 1 || books.unsent() != 0 {
		t.Errorf("%d messages, %d unsent: the end did not wait, or did not keep that it went", len(who.messages()), books.unsent())
	}
}

func TestTheEndIsInTimeAlsoWithATargetThatHangs(t *testing.T) {
	who, books := &recipient{name: "hangs", wait: make(chan struct{})}, &shelf{}
	p := alarmed(t, books, rejected, who)
	p.eventually("the alarm is kept", func() bool { return books.unsent() == 1 })
	p.stop()
	must(t, <-p.ended)
	p.ended <- nil
	if strings.Contains(p.log.String(), "ended before") {
		t.Error("the message held the daemon up")
	}
	if books.unsent() != 1 {
		t.Error("what was never sent is kept as told")
	}
}

func TestAnAlarmThatTheClockMakesLeadsToAPass(t *testing.T) {
	give := func() cluster.Report {
		r := sound()
		r.Nodes = append(r.Nodes, cluster.NodeStatus{Node: "proxy2", Error: "no route"})
		return r
	}
	var minutes sync.Mutex
	ahead := time.Duration(0)
	who := &recipient{name: "ntfy"}
	p := newPlant(t, func(p *plant) {
		system := systemClock()
		p.d.clock = func() instant {
			minutes.Lock()
			defer minutes.Unlock()
			now := system()
			return instant{now.wall.Add(ahead), now.up + ahead}
		}
		books := &shelf{}
		p.answers["proxy2"] = errors.New("no route")
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) { return give(), nil }
		p.change = func(s *Site) { s.Alarms, s.KeepAlarms, s.Notify = books.read, books.keep, []Target{who} }
	})
	p.idle()
	p.noPass("nothing is an alarm yet")
	if n := len(who.messages()); n != 0 {
		t.Fatalf("%d messages at once", n)
	}
	minutes.Lock()
	ahead = 16 * time.Minute
	minutes.Unlock()
	p.d.nudge()
	p.wantsPass()
	p.logs("reasons=watch")
	p.eventually("it is told", func() bool {
		return len(who.messages()) == 1 && strings.Contains(who.messages()[0], "cannot reach proxy2")
	})
}

func TestARefusedConfigurationIsAnAlarm(t *testing.T) {
	who := &recipient{name: "ntfy"}
	p := alarmed(t, &shelf{}, sound, who)
	p.idle()
	p.set(func() { p.loadErr = errors.New("certsync.yaml:3: unknown key \"nodse\"") })
	write(t, p.file, "broken")
	p.eventually("it is told", func() bool { return len(who.messages()) == 1 && strings.Contains(who.messages()[0], "certsync.yaml:3") })
	p.set(func() { p.loadErr = nil })
	write(t, p.file, "sound")
	p.eventually("its end is told", func() bool { return len(who.messages()) == 2 })
}

func TestABookThatCannotBeReadYetTellsNothingTwice(t *testing.T) {
	who, books := &recipient{name: "ntfy"}, &shelf{readErr: errors.New("no memory")}
	p := alarmed(t, books, rejected, who)
	p.logs("what was told of alarms cannot be read")
	if n := len(who.messages()); n != 0 {
		t.Errorf("%d messages", n)
	}
	books.mu.Lock()
	books.readErr = nil
	books.mu.Unlock()
	p.d.Wake(t.Context())
	p.wantsPass()
	p.eventually("it is told", func() bool { return len(who.messages()) == 1 })
}

func TestAQueueThatIsFullDropsTheOldestAndSaysSo(t *testing.T) {
	log := &lockedBuffer{}
	o := newOutbox(slog.New(slog.NewTextHandler(log, nil)), func([]cluster.AlarmID) {})
	who := &recipient{name: "ntfy", wait: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	o.follow(ctx, []Target{who, who})
	const sent = maxQueued + 5
	for range sent {
		o.post(letter{subject: "s", text: "t\n"})
	}
	close(who.wait)
	for deadline := time.Now().Add(patience); len(who.messages()) < maxQueued; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages came", len(who.messages()))
		}
	}
	cancel()
	o.wait()
	n, lost := len(who.messages()), 0
	for _, m := range who.messages() {
		if strings.Contains(m, "could not be sent") {
			lost++
		}
	}
	if n >= sent || lost == 0 || !strings.Contains(log.String(), "too many wait") {
		t.Errorf("%d of %d messages came, %d tell of lost ones\n%s", n, sent, lost, log)
	}
	if o.follow(t.Context(), []Target{&recipient{name: "late"}}); o.post(letter{}) && len(o.open) != 1 {
		t.Error("a target was taken after the end")
	}
}

func TestAnotherConfigurationKeepsWhatWaitsForItsTargets(t *testing.T) {
	o := newOutbox(slog.New(slog.NewTextHandler(io.Discard, nil)), func([]cluster.AlarmID) {})
	stays, goes := &recipient{name: "stays", wait: make(chan struct{})}, &recipient{name: "goes"}
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); o.wait() }()
	o.follow(ctx, []Target{stays, goes})
	o.post(letter{subject: "first", text: "t"})
	again := &recipient{name: "stays"}
	o.follow(ctx, []Target{again})
	o.post(letter{subject: "second", text: "t"})
	close(stays.wait)
	for deadline := time.Now().Add(patience); len(stays.messages()) < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("messages: %q", stays.messages())
		}
	}
	if len(goes.messages()) > 1 || len(again.messages()) > 0 {
		t.Errorf("messages went astray: %q, %q", goes.messages(), again.messages())
	}
}

func TestAMastersSilenceIsMeasuredByTheSchedule(t *testing.T) {
	for spec, want := range map[string]time.Duration{"17 */6 * * *": 13 * time.Hour, "@every 10m": 80 * time.Minute, "0 8 * * 1-5": 2*72*time.Hour + time.Hour} {
		b := newBench(t, spec)
		if got := silence(b.schedule, b.now.wall); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

func TestTheInstantOfAnAlarmWakesOnce(t *testing.T) {
	b := newBench(t, "@every 24h")
	b.watch(b.now, b.now.wall.Add(10*time.Minute))
	if got := b.upcoming(b.now); !got.Equal(b.now.wall.Add(10 * time.Minute)) {
		t.Errorf("the next pass is at %s", got)
	}
	b.pass(10*time.Minute - time.Second)
	b.wants(t)
	if got := b.wait(b.now); got != time.Second {
		t.Errorf("it waits %s", got)
	}
	b.pass(time.Second)
	b.wants(t, Watch)
	b.pass(time.Hour)
	b.wants(t)
	b.watch(b.now, b.now.wall.Add(-time.Hour)) // an instant that is past must not make passes without end
	b.wants(t)
	b.pass(dueGap)
	b.wants(t, Watch)
	b.watch(b.now, b.now.wall.Add(time.Minute))
	b.watch(b.now, time.Time{})
	b.pass(time.Hour)
	b.wants(t)
}
