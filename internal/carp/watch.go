package carp

import (
	"context"
	"reflect"
	"sync"
	"time"

	"certsync/internal/cluster"
)

const (
	// echo is how long after an event the state is read once more. Seen on 13.2 and 15.1: an interface that goes down
	// tells of its addresses up to 30 ms before its vhids are in INIT.
	echo = 100 * time.Millisecond
	// breather is the least time between two readings that events cause, so that a storm of them (a router's table)
	// costs no more than a hundred readings a second.
	breather = 10 * time.Millisecond
)

// Watch hands each the view that there is and every one that differs from the one before, until the context ends or
// the Auto is closed. each is called from this goroutine only, and not while it runs; what comes and goes meanwhile is
// not shown, the last state always is.
func (a *Auto) Watch(ctx context.Context, each func(cluster.CARP)) {
	if a.watching(ctx) != nil {
		return
	}
	var shown *cluster.CARP
	for {
		news := a.nextNews()
		view := a.View(ctx)
		if ctx.Err() != nil || a.life.Err() != nil {
			return
		}
		if shown == nil || !reflect.DeepEqual(*shown, view) {
			each(view)
			shown = &view
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		case <-a.life.Done():
			return
		}
	}
}

// watching starts the watching where it has not begun, and returns when every source of events was tried: who connects
// after the state was read misses what came between.
func (a *Auto) watching(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !a.start() {
		return ErrClosed
	}
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.life.Done():
		return ErrClosed
	}
}

// start is false once the Auto is closed.
func (a *Auto) start() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.begin.Do(func() {
		var tried sync.WaitGroup
		for i, s := range a.read.sources {
			tried.Add(1)
			a.running.Go(func() {
				l := listener{source: s, tell: a.tell, state: func(err error) { a.trouble(i, err) }, tried: sync.OnceFunc(tried.Done)}
				l.run(a.life)
			})
		}
		a.running.Go(func() {
			tried.Wait()
			close(a.ready)
			a.watch()
		})
	})
	return true
}

// watch reads the state at every event, once more soon after it, and at every poll, and passes the news on.
func (a *Auto) watch() {
	poll := time.NewTicker(a.poll)
	defer poll.Stop()
	again := time.NewTimer(a.poll)
	defer again.Stop()
	for {
		// What look found is noted; Role and Watch read for themselves what they return.
		_, _, _ = a.look(a.life)
		a.publish()
		if !sleep(a.life, breather) {
			return
		}
		select {
		case <-a.life.Done():
			return
		case <-poll.C:
		case <-again.C:
		case <-a.wakes:
			again.Reset(echo)
		}
	}
}

// tell takes what an event said.
func (a *Auto) tell(n notice) {
	if n == moved {
		a.settle.broken()
	}
	select {
	case a.wakes <- struct{}{}:
	default: // a reading is due already
	}
}

// nextNews is closed when the state was looked at again.
func (a *Auto) nextNews() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.news
}

func (a *Auto) publish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.news)
	a.news = make(chan struct{})
}

func (a *Auto) trouble(i int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.troubles[i] = err
}

// sleep is false where the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
