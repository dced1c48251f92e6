package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// request is a pass that a local command asks for.
type request struct {
	ctx      context.Context
	job      distribute.Job
	progress func(cluster.Progress)
	done     chan outcome
}

// outcome is how a pass ended.
type outcome struct {
	report cluster.Report
	err    error
	// readiness is what the pass found of each node; none where nobody wants to know.
	readiness []cluster.Readiness
}

// run is a pass under way; request is nil where nobody asked for it.
type run struct {
	site    *tenancy
	reasons []Reason
	request *request
	job     distribute.Job
	began   instant
	told    bool // that it lasts
}

// errEnding is what a command is told that asks a daemon which ends.
var errEnding = errors.New("the daemon is ending")

// loop begins passes and takes their results, one at a time, until ctx ends and the pass under way with it.
func (d *Daemon) loop(ctx context.Context) {
	defer d.close()
	for ctx.Err() == nil {
		now := d.clock()
		d.gather(ctx, now)
		if d.running == nil {
			d.beginNext(ctx, now)
		}
		timer := time.NewTimer(d.pause(now))
		select {
		case <-ctx.Done():
		case <-d.kick:
		case r := <-d.requests:
			d.enqueue(r)
		case o := <-d.done:
			d.passEnded(o)
		case <-timer.C:
		}
		timer.Stop()
	}
}

// close ends the pass under way, and tells those whose turn never came.
func (d *Daemon) close() {
	close(d.ended)
	if d.running != nil {
		d.passEnded(<-d.done)
	}
	for _, r := range d.queue {
		r.done <- outcome{err: errEnding}
	}
}

// gather takes what was heard since the last time, and looks at the clocks.
func (d *Daemon) gather(ctx context.Context, now instant) {
	d.mu.Lock()
	heard, reload := d.heard, d.reload
	d.heard, d.reload = map[Reason]bool{}, false
	broken := d.status.Configuration != ""
	watchAt := d.watchAt
	d.watchAt = nil
	d.mu.Unlock()
	if watchAt != nil {
		d.scheduler.watch(now, *watchAt)
	}
	if reload || broken && now.up-d.triedAt >= againTime {
		d.reread(ctx, now, reload)
	}
	d.tellLong(now)
	d.lookAtPosture(now)
	for reason := range heard {
		d.scheduler.wake(reason, now)
	}
	d.scheduler.look(now)
	next := d.scheduler.upcoming(now)
	d.update(func(s *distribute.DaemonStatus) { s.Next = next.UTC() })
}

// tellLong tells once of a pass that lasts: every call in it has a deadline of its own, but there may be very many.
func (d *Daemon) tellLong(now instant) {
	if r := d.running; r != nil && !r.told && now.up-r.began.up >= longTime {
		r.told = true
		d.log.Warn("a pass is under way for long; what comes meanwhile waits", "reasons", strings.Join(texts(r.reasons), " "), "since", r.began.wall.UTC())
	}
}

// pause is how long the loop has nothing to do by itself.
func (d *Daemon) pause(now instant) time.Duration {
	if d.running != nil {
		return d.posture.wait(now, heartbeat)
	}
	return d.posture.wait(now, d.scheduler.wait(now))
}

// beginNext begins the pass whose turn it is, if any: what a command asks for comes first, a person waits for it.
func (d *Daemon) beginNext(ctx context.Context, now instant) {
	for len(d.queue) > 0 {
		r := d.queue[0]
		d.queue = d.queue[1:]
		if r.ctx.Err() == nil { // else nobody waits for it any more
			d.begins(ctx, now, []Reason{Asked}, r)
			return
		}
	}
	if reasons := d.scheduler.take(now); len(reasons) > 0 {
		d.begins(ctx, now, reasons, nil)
	}
}

func (d *Daemon) begins(ctx context.Context, now instant, reasons []Reason, r *request) {
	t := d.use()
	job := jobFor(reasons, r)
	d.running = &run{site: t, reasons: reasons, request: r, job: job, began: now}
	d.mu.Lock()
	d.status.Passing = texts(reasons)
	if r != nil {
		d.sink = r.progress
	}
	d.mu.Unlock()
	d.side.Go(func() { d.done <- d.pass(ctx, t, job) })
}

// jobFor is what a pass is to do. One that only looks again at what was not in service makes no orders: when those may be
// tried again is not its to say.
func jobFor(reasons []Reason, r *request) distribute.Job {
	switch {
	case r != nil:
		return r.job
	case slices.Equal(reasons, []Reason{Settle}):
		return distribute.Job{Kind: distribute.Sync}
	}
	return distribute.Job{}
}

// pass makes one. A panic in it that nothing further down made a certificate's failure is this pass's.
func (d *Daemon) pass(ctx context.Context, t *tenancy, job distribute.Job) (o outcome) {
	begun := d.clock().wall.UTC()
	defer func() {
		if v := recover(); v != nil {
			err := d.panicked("pass", v)
			o = outcome{report: cluster.Report{Node: t.Node, Start: begun, End: d.clock().wall.UTC(), Outcome: cluster.Failure,
				Warnings: []string{err.Error()}}, err: err}
		}
	}()
	o.report, o.err = t.Pass(ctx, job)
	if job.Kind != distribute.Prune {
		o.readiness = t.readiness(ctx, o, d.clock().wall.UTC())
	}
	return o
}

// panicked makes a panic an error; where it was goes into the log.
func (d *Daemon) panicked(what string, v any) error {
	d.log.Error("panic", "in", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	return cluster.WithHint(fmt.Errorf("%s: mistake in certsync: %v", what, v), "report it, with the stack in the daemon's log")
}

// passEnded takes a pass's result, and gives it to who asked.
func (d *Daemon) passEnded(o outcome) {
	r, now := d.running, d.clock()
	d.running = nil
	if r.job.Kind == distribute.Prune {
		d.pruned(r, now, o)
		return
	}
	switch {
	case r.job.Kind == distribute.Rollback || r.job.Kind == distribute.Revoke:
		d.scheduler.wake(Asked, now) // what is due now a pass of the daemon's own finds out, and goes on where this was cut off
	case r.job.Kind != distribute.Sync && (r.request == nil || o.err == nil): // else it says nothing of what is due
		d.scheduler.ended(now, o.report.Next, o.err != nil)
	}
	d.judgePosture(o)
	d.scheduler.placed(now, allPlaced(o.report) && !d.posture.open())
	next := d.scheduler.upcoming(now).UTC()
	d.mu.Lock()
	d.sink = nil
	d.noteEnd(o, next)
	if isFull(r.job, o) {
		d.noteFull(now)
	}
	d.mu.Unlock()
	d.logPass(r, now, o)
	d.look(r, o, now)
	if r.request != nil {
		r.request.done <- o
	}
	d.leave(r.site)
}

// pruned is passEnded for a prune, which tells nothing of what is in service.
func (d *Daemon) pruned(r *run, now instant, o outcome) {
	d.mu.Lock()
	d.sink, d.status.Passing = nil, nil
	d.mu.Unlock()
	took := (now.up - r.began.up).Round(time.Millisecond)
	if o.err != nil {
		d.log.Warn("prune", "error", o.err, "took", took)
	} else {
		d.log.Info("prune", "slots", len(o.report.Pruned.Slots), "took", took)
	}
	r.request.done <- o
	d.leave(r.site)
}

// noteEnd writes a pass's result into the status. d.mu is held.
func (d *Daemon) noteEnd(o outcome, next time.Time) {
	d.status.Passing, d.status.Next = nil, next
	d.status.Error, d.status.Hint = textOf(o.err), cluster.HintOf(o.err)
	d.counts.Count(o.report, o.err)
	if o.err == nil || !o.report.End.IsZero() { // else there is no report
		d.status.Last = &o.report
	}
	if len(o.report.Nodes) > 0 {
		d.away = map[string]bool{}
		for _, n := range o.report.Nodes {
			d.away[n.Node] = !n.Reachable
		}
	}
}

// Do implements distribute.Actor.
func (d *Daemon) Do(ctx context.Context, job distribute.Job, progress func(cluster.Progress)) (cluster.Report, error) {
	r := &request{ctx: ctx, job: job, progress: progress, done: make(chan outcome, 1)}
	select {
	case d.requests <- r:
	case <-d.ended:
		return cluster.Report{}, errEnding
	case <-ctx.Done():
		return cluster.Report{}, ctx.Err()
	}
	select {
	case o := <-r.done:
		return o.report, o.err
	case <-ctx.Done():
		return cluster.Report{}, ctx.Err()
	}
}

func (d *Daemon) enqueue(r *request) {
	if d.running != nil || len(d.queue) > 0 {
		r.progress(cluster.Progress{Step: "wait", Message: "a pass is under way; this one comes after it"})
	}
	d.queue = append(d.queue, r)
}

// reread has the configuration file as it is now take over, where it is sound and needs no restart. asked tells that it
// changed, or that a person asked: why it does not take over is then told again.
func (d *Daemon) reread(ctx context.Context, now instant, asked bool) {
	d.triedAt = now.up
	site, err := d.load()
	if err == nil {
		if err = d.fits(site); err != nil {
			site.Close()
		}
	}
	if err != nil {
		d.refuse(err, asked)
		return
	}
	d.update(func(s *distribute.DaemonStatus) { s.Configuration, s.ConfigurationHint = "", "" })
	d.scheduler.follow(site.Node, site.Schedule, now)
	d.watcher.follow(ctx, d.watched(site))
	d.enter(ctx, site)
	d.followDemotion(site)
	d.scheduler.wake(Configuration, now)
	d.log.Info("the configuration took over", "file", d.options.ConfigPath)
}

// fits refuses what only a restart can change. The rest of such a file does not take over either: half a configuration
// is one that nobody wrote.
func (d *Daemon) fits(site *Site) error {
	t := d.use()
	defer d.leave(t)
	for _, o := range []struct{ name, is, was string }{
		{"state_dir", site.StateDir, t.StateDir}, {"run_dir", site.RunDir, t.RunDir}, {"node", site.Node, t.Node},
	} {
		if o.is != o.was {
			return cluster.WithHint(fmt.Errorf("%s: %s is now %s, was %s: that needs a restart", d.options.ConfigPath, o.name, o.is, o.was),
				"restart certsync: service certsync restart")
		}
	}
	return nil
}

// refuse tells why the configuration does not take over: where nobody asked, once.
func (d *Daemon) refuse(err error, asked bool) {
	var before string
	d.update(func(s *distribute.DaemonStatus) {
		before, s.Configuration, s.ConfigurationHint = s.Configuration, err.Error(), cluster.HintOf(err)
	})
	if before != err.Error() && d.watchesAlarms() {
		d.wake(Watch)
	}
	if asked || before != err.Error() {
		d.logError("the configuration is not taken over, the one before goes on", err)
	}
}
