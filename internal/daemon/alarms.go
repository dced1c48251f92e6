package daemon

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/robfig/cron/v3"

	"certsync/internal/alarm"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

const (
	// keepTime bounds the writing of the book of alarms.
	keepTime = 5 * time.Second
	// keepEvery is how often the book is written where nothing in it changed but when it was looked at.
	keepEvery = 10 * time.Minute
)

// keeper has what the alarms are judged from, until its goroutine takes it: a store that is slow delays no pass.
type keeper struct {
	mu        sync.Mutex
	seen      *alarm.Seen // the latest
	delivered []cluster.AlarmID
	kick      chan struct{}

	// The goroutine's own.
	read bool
	book cluster.AlarmBook
	kept cluster.AlarmBook // as it is on disk
}

func newKeeper() *keeper { return &keeper{kick: make(chan struct{}, 1)} }

// put gives the goroutine something to do.
func (k *keeper) put(change func()) {
	k.mu.Lock()
	change()
	k.mu.Unlock()
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func (k *keeper) take() (seen *alarm.Seen, delivered []cluster.AlarmID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen, delivered = k.seen, k.delivered
	k.seen, k.delivered = nil, nil
	return seen, delivered
}

// look hands what a pass told to the keeper of the alarms. What was cut off tells too little, and what a command could
// not do is its user's to know.
func (d *Daemon) look(r *run, o outcome, now instant) {
	if o.report.Interrupted || o.err != nil && (r.request != nil || errors.Is(o.err, context.Canceled)) {
		return
	}
	switch r.job.Kind {
	case "", distribute.Renew, distribute.Sync, distribute.Issue:
	default:
		return // not a pass over all certificates
	}
	seen := alarm.Seen{Now: now.wall, Node: r.site.Node, Report: o.report, NoOrders: r.job.Kind == distribute.Sync,
		Silence: silence(d.scheduler.schedule, now.wall)}
	if o.err != nil {
		seen.Failure, seen.Hint = o.err.Error(), cluster.HintOf(o.err)
	}
	d.mu.Lock()
	seen.Configuration = d.status.Configuration
	d.mu.Unlock()
	d.keeper.put(func() { d.keeper.seen = &seen })
}

// watchesAlarms tells that alarms are looked for, which is done after each pass.
func (d *Daemon) watchesAlarms() bool {
	t := d.use()
	defer d.leave(t)
	return t.Alarms != nil
}

// silence is how long a MASTER with the same schedule may make no pass: twice the longest pause of the next days, and an
// hour.
func silence(schedule cron.Schedule, now time.Time) time.Duration {
	const looks = 10
	longest := time.Duration(0)
	for t, i := schedule.Next(now), 0; i < looks && !t.IsZero(); i++ {
		next := schedule.Next(t)
		longest, t = max(longest, next.Sub(t)), next
	}
	return 2*longest + time.Hour
}

// keepAlarms judges what it is given until ctx ends, and then notes what the outbox got rid of.
func (d *Daemon) keepAlarms(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			d.outbox.wait()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, delivered := d.keeper.take()
			d.noteDelivered(last, delivered)
			return
		case <-d.keeper.kick:
		}
		seen, delivered := d.keeper.take()
		d.noteDelivered(ctx, delivered)
		if seen != nil {
			d.judge(ctx, *seen)
		}
	}
}

// judge takes what was seen into the book, and has told what is new. A panic in it is a mistake, and ends no daemon.
func (d *Daemon) judge(ctx context.Context, seen alarm.Seen) {
	defer func() {
		if v := recover(); v != nil {
			_ = d.panicked("alarms", v)
		}
	}()
	t := d.use()
	defer d.leave(t)
	if t.Alarms == nil || !d.readBook(ctx, t) {
		return
	}
	r := alarm.Step(d.keeper.book, seen)
	d.keeper.book = r.Book
	d.logMessage(r.Message)
	posted := r.Message.Empty() || d.outbox.post(letter{subject: r.Message.Subject(), text: r.Message.Text(), ids: r.Message.IDs()})
	if !posted {
		d.keeper.book = alarm.Delivered(d.keeper.book, r.Message.IDs()) // there is nobody to tell
	}
	d.keep(ctx, t)
	d.mu.Lock()
	d.status.Alarms = r.Standing
	d.watchAt = &r.Wake
	d.mu.Unlock()
	d.nudge()
}

// readBook reads the book once. Where it cannot be read yet, nothing is judged: all that stands would be told again.
func (d *Daemon) readBook(ctx context.Context, t *tenancy) bool {
	if d.keeper.read {
		return true
	}
	book, err := t.Alarms(ctx)
	if err != nil {
		d.log.Warn("what was told of alarms cannot be read; they are looked at after the next pass", "error", err, "hint", cluster.HintOf(err))
		return false
	}
	d.keeper.kept, d.keeper.book, d.keeper.read = book, alarm.Restarted(book), true
	return true
}

// noteDelivered marks what reached somebody.
func (d *Daemon) noteDelivered(ctx context.Context, ids []cluster.AlarmID) {
	if len(ids) == 0 {
		return
	}
	t := d.use()
	defer d.leave(t)
	d.keeper.book = alarm.Delivered(d.keeper.book, ids)
	d.keep(ctx, t)
}

// keep writes the book where it changed. What cannot be written is told again after a restart.
func (d *Daemon) keep(ctx context.Context, t *tenancy) {
	book := d.keeper.book
	same := book
	same.Judged, same.MasterSeen = d.keeper.kept.Judged, d.keeper.kept.MasterSeen
	if reflect.DeepEqual(same, d.keeper.kept) && book.Judged.Sub(d.keeper.kept.Judged).Abs() < keepEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	if err := t.KeepAlarms(ctx, book); err != nil {
		if ctx.Err() == nil || !errors.Is(err, context.Canceled) {
			d.log.Warn("what was told of alarms cannot be kept: a restart tells it again", "error", err, "hint", cluster.HintOf(err))
		}
		return
	}
	d.keeper.kept = book
}

// logMessage has a line for each alarm of a message.
func (d *Daemon) logMessage(m alarm.Message) {
	for _, part := range []struct {
		log     func(string, ...any)
		what    string
		entries []cluster.AlarmEntry
	}{
		{d.log.Warn, "alarm", m.New}, {d.log.Warn, "alarm, worse", m.Worse}, {d.log.Warn, "alarm, comes and goes", m.Flapping},
		{d.log.Warn, "alarm, still", m.Still}, {d.log.Info, "alarm, better", m.Better}, {d.log.Info, "alarm, resolved", m.Resolved},
	} {
		for _, e := range part.entries {
			part.log(part.what, "kind", string(e.Kind), "severity", string(e.Severity), "certificate", slotText(e.Alarm), "node", e.Node, "text", e.Text,
				"hint", e.Hint)
		}
	}
}

func slotText(a cluster.Alarm) string {
	if a.Slot.Name == "" {
		return ""
	}
	return fmt.Sprint(a.Slot)
}
