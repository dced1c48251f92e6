package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"certsync/internal/cluster"
)

// Target is where messages are sent to.
type Target interface {
	// Name is fit for a log; Key is the same for the same place, over changes of the configuration.
	Name() string
	Key() string
	// Send sends a message. It obeys ctx, and has a deadline of its own.
	Send(ctx context.Context, subject, text string) error
}

const (
	// maxQueued is how many messages wait for a target; where there are more, the oldest goes.
	maxQueued = 16
	// flushTime is what is left to the messages that wait when the daemon, or a target, ends.
	flushTime = 2 * time.Second
)

// sendPauses are the pauses between the tries to send a message; then it is given up.
var sendPauses = []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute}

// letter is a message on its way to a target.
type letter struct {
	subject, text string
	ids           []cluster.AlarmID
}

// outbox sends messages in the background, each target by itself: one that hangs delays no other, and no pass.
type outbox struct {
	log    *slog.Logger
	pauses []time.Duration
	// delivered is told what reached a target.
	delivered func([]cluster.AlarmID)

	lanes  sync.WaitGroup
	mu     sync.Mutex
	open   map[string]*lane
	closed bool
}

// lane is one target's way out.
type lane struct {
	Target
	end  context.CancelFunc
	kick chan struct{}
	// The outbox's mu guards these. lost counts the messages that never went.
	queue []letter
	lost  int
}

func newOutbox(log *slog.Logger, delivered func([]cluster.AlarmID)) *outbox {
	return &outbox{log: log, pauses: sendPauses, delivered: delivered, open: map[string]*lane{}}
}

// follow has messages go to these targets from now on. What waits for one that is still there goes on waiting.
func (o *outbox) follow(ctx context.Context, targets []Target) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	before := o.open
	o.open = make(map[string]*lane, len(targets))
	for _, t := range targets {
		if _, twice := o.open[t.Key()]; twice {
			continue
		}
		if l := before[t.Key()]; l != nil {
			o.open[t.Key()] = l
			delete(before, t.Key())
			continue
		}
		l := &lane{Target: t, kick: make(chan struct{}, 1)}
		var own context.Context
		own, l.end = context.WithCancel(ctx)
		o.open[t.Key()] = l
		o.lanes.Go(func() { o.run(own, l) })
	}
	for _, l := range before {
		l.end()
	}
}

// post gives a message to every target, and tells whether there is one.
func (o *outbox) post(m letter) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.open {
		if l.queue = append(l.queue, m); len(l.queue) > maxQueued {
			l.queue = l.queue[1:]
			l.lost++
			o.log.Warn("a notification is dropped: too many wait", "target", l.Name())
		}
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
	return len(o.open) > 0
}

// wait returns when every target's goroutine has ended, flushTime after their context at the latest.
func (o *outbox) wait() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.lanes.Wait()
}

// run sends what waits for a target until ctx ends, and what is left then within flushTime.
func (o *outbox) run(ctx context.Context, l *lane) {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(flushTime, cancel) })
	defer stop()
	for {
		select {
		case <-ctx.Done():
			o.flush(sending, l)
			return
		case <-l.kick:
		}
		for ctx.Err() == nil {
			m, ok := o.take(l)
			if !ok {
				break
			}
			if !o.send(ctx, sending, l, m) {
				o.putBack(l, m)
			}
		}
	}
}

// flush tries what waits once more, as long as the target takes it.
func (o *outbox) flush(ctx context.Context, l *lane) {
	for m, ok := o.take(l); ok; m, ok = o.take(l) {
		if err := o.try(ctx, l, m); err != nil {
			o.log.Warn("notifications were not sent before the end", "target", l.Name(), "error", err)
			return
		}
	}
}

// send sends a message, or gives it up after so many tries. It reports false where ctx ended before.
func (o *outbox) send(ctx, sending context.Context, l *lane, m letter) bool {
	for i := 0; ; i++ {
		err := o.try(sending, l, m)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case i >= len(o.pauses):
			o.log.Error("a notification is given up", "target", l.Name(), "error", err, "hint", cluster.HintOf(err))
			o.lose(l)
			return true
		}
		o.log.Warn("a notification was not sent, and is tried again", "target", l.Name(), "error", err, "in", o.pauses[i])
		select {
		case <-ctx.Done():
			return false
		case <-time.After(o.pauses[i]):
		}
	}
}

// try sends a message once, with how many before it never went.
func (o *outbox) try(ctx context.Context, l *lane, m letter) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("mistake in certsync: %v", v)
		}
	}()
	o.mu.Lock()
	lost := l.lost
	o.mu.Unlock()
	text := m.text
	if lost > 0 {
		text = fmt.Sprintf("%s\nEarlier messages that could not be sent: %d. certsync status shows what stands.\n", text, lost)
	}
	if err := l.Send(ctx, m.subject, text); err != nil {
		return err
	}
	o.mu.Lock()
	l.lost -= lost
	o.mu.Unlock()
	o.delivered(m.ids)
	return nil
}

// take takes the message that waits longest.
func (o *outbox) take(l *lane) (m letter, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(l.queue) == 0 {
		return letter{}, false
	}
	m, l.queue = l.queue[0], l.queue[1:]
	return m, true
}

// putBack has a message wait again, before all others.
func (o *outbox) putBack(l *lane, m letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.queue = append([]letter{m}, l.queue...)
}

// lose counts a message that never went.
func (o *outbox) lose(l *lane) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.lost++
}
