package haproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// reason is why the run time does not do and HAProxy must be reloaded for a bundle.
type reason string

// The reasons, as the report gives them.
const (
	reasonName     reason = "its name cannot be addressed at run time"
	reasonNew      reason = "no list of the running HAProxy takes it: its `crt FILE` or crt-list is new"
	reasonTooLarge reason = "it exceeds what HAProxy's tune.bufsize takes at run time"
	reasonHidden   reason = "another certificate hides it, which a reload puts in order"
	reasonSocket   reason = "HAProxy has no runtime socket that lets certsync change certificates"
	reasonUnclear  reason = "an answer of HAProxy's runtime socket was empty or late"
)

// The kinds of errReload: the same words, told apart.
var (
	errNoList   = fmt.Errorf("%w", errReload)
	errTooLarge = fmt.Errorf("%w", errReload)
)

// errHidden: HAProxy has the bundle, and clients get another one that covers the same name.
var errHidden = errors.New("which HAProxy has as")

// reasonFor is why a target whose bundle is on disk only needs a reload, "" where that would not help: no HAProxy runs.
func reasonFor(cause error, v *view, running bool) reason {
	switch {
	case errors.Is(cause, errNoList):
		return reasonNew
	case errors.Is(cause, errTooLarge):
		return reasonTooLarge
	case errors.Is(cause, errReload):
		return reasonName
	case errors.Is(cause, cluster.ErrNotRunning):
		if running || !v.placement.Served.IsZero() {
			return reasonSocket
		}
		return ""
	case errors.Is(cause, errLevel):
		return reasonSocket
	case errors.Is(cause, errUnclear):
		return reasonUnclear
	}
	return reasonName
}

// waiting is a target that a reload may bring in service.
type waiting struct {
	view
	undo   undo
	reason reason
	// otherwise is how the target ends where there is no reload, or one that failed; err says so.
	otherwise func(ctx context.Context, err error) cluster.Placement
}

// key names the bundle and its place.
func (w *waiting) key() string {
	return digest([]byte(w.real + "\n" + w.Bundle.Fingerprint().String()))[:16]
}

// later is a target whose bundle is on disk and that HAProxy cannot take at run time.
func (a *activation) later(ctx context.Context, v view, u undo, cause error) cluster.Placement {
	placed := a.onDisk(ctx, v, cause)
	v.placement = placed
	why := reasonFor(cause, &v, a.masterServes(ctx, cause))
	switch {
	case why == "" || ctx.Err() != nil:
		return placed
	case !a.p.reloads():
		placed.Hint = strings.TrimPrefix(placed.Hint+"; certsync reloads HAProxy by itself where haproxy.master_socket or haproxy.reload is set", "; ")
		return placed
	case placed.Proof == cluster.Proven && (v.memoryErr != nil || len(v.entries) == 0):
		// A HAProxy that is to be reloaded for every change has nothing to be mended.
		placed.Outcome, placed.Error, placed.Hint = cluster.Unchanged, "", ""
		if len(u) > 0 {
			placed.Outcome = cluster.Done
		}
		return placed
	}
	a.waiting = append(a.waiting, waiting{view: v, undo: u, reason: why, otherwise: func(_ context.Context, err error) cluster.Placement {
		hint := placed.Hint
		if h := cluster.HintOf(err); h != "" {
			hint = h
		}
		return failure(v, cluster.DiskOnly, cluster.WithHint(fmt.Errorf("%s: %w", placed.Error, err), "%s", hint))
	}})
	return placed
}

// masterServes tells whether a HAProxy whose runtime socket nobody listens on runs all the same. It is asked once.
func (a *activation) masterServes(ctx context.Context, cause error) bool {
	if a.p.master == nil || !errors.Is(cause, cluster.ErrNotRunning) {
		return false
	}
	if a.masterUp == nil {
		w, err := a.p.master.workers(ctx, 0)
		up := err == nil && w.serving() > 0
		a.masterUp = &up
	}
	return *a.masterUp
}

// hold is a target that is in HAProxy's memory, or may be, and that is undone unless a reload helps.
func (a *activation) hold(ctx context.Context, v view, u undo, why reason, cause error) cluster.Placement {
	if !a.p.reloads() || ctx.Err() != nil {
		return a.undo(ctx, v, u, cause)
	}
	a.waiting = append(a.waiting, waiting{view: v, undo: u, reason: why, otherwise: func(ctx context.Context, err error) cluster.Placement {
		return a.undo(ctx, v, u, fmt.Errorf("%w: %w", cause, err))
	}})
	return failure(v, cluster.Failure, cause)
}

// hides tells that a reload may help where a handshake shows something else.
func (a *activation) hides(cause error) bool { return errors.Is(cause, errHidden) && a.p.reloads() }

// reload brings in service, by one reload for all, what could not be at run time.
func (a *activation) reload(ctx context.Context, out []cluster.Placement) {
	if len(a.waiting) == 0 {
		return
	}
	at := make(map[cert.Slot]int, len(out)) // thousands may wait
	for i, pl := range out {
		at[pl.Slot] = i
	}
	for i, pl := range a.reloadAll(ctx) {
		if where, asked := at[a.waiting[i].Slot]; asked {
			out[where] = pl
		}
	}
}

// reloadAll gives a placement for each of a.waiting: permission, check, record, reload, and a look at what came of it.
func (a *activation) reloadAll(ctx context.Context) []cluster.Placement {
	log, err := a.p.journal.reloadLog(a.p.config.Now())
	if err != nil {
		return a.without(ctx, err)
	}
	r, err := a.p.reloader(ctx, a.process)
	if err != nil {
		return a.without(ctx, err)
	}
	if log.settle(a.p.config.Now(), r.pid, a.p.state()) {
		if err := a.p.journal.saveReloadLog(log); err != nil {
			return a.without(ctx, err)
		}
	}
	if held := a.putOff(ctx, log); held != nil {
		return held
	}
	if err := a.p.checkConfiguration(ctx); err != nil {
		return a.notChecked(ctx, log, r, err)
	}
	pid, err := a.make(ctx, &log, r)
	if err != nil {
		return a.notReloaded(ctx, log, r, err)
	}
	return a.judge(ctx, log, r, pid)
}

// without ends all targets that wait, without a reload.
func (a *activation) without(ctx context.Context, err error) []cluster.Placement {
	out := make([]cluster.Placement, 0, len(a.waiting))
	for _, w := range a.waiting {
		out = append(out, w.otherwise(ctx, err))
	}
	return out
}

// putOff gives the placements where no reload is allowed now: each target failed too lately, or HAProxy was reloaded too
// lately. nil means that one is.
func (a *activation) putOff(ctx context.Context, log reloadLog) []cluster.Placement {
	now := a.p.config.Now()
	if !slices.ContainsFunc(a.waiting, func(w waiting) bool {
		f, failed := log.Failed[w.key()]
		at, again := f.next()
		return !failed || again && !now.Before(at)
	}) {
		out := make([]cluster.Placement, 0, len(a.waiting))
		for _, w := range a.waiting {
			out = append(out, a.heldBack(ctx, w, log.Failed[w.key()]))
		}
		return out
	}
	if at := log.Time.Add(a.p.config.ReloadInterval); now.Before(at) {
		return a.without(ctx, fmt.Errorf("the reload is put off until %s, since HAProxy was reloaded at %s", clock(at), clock(log.Time)))
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// heldBack is a target that a reload did not bring in service, and that is not tried again yet.
func (a *activation) heldBack(ctx context.Context, w waiting, f reloadFailure) cluster.Placement {
	at, again := f.next()
	until := "is not tried again with this HAProxy and this configuration"
	if again {
		until = "is not tried again before " + clock(at)
	}
	err := cluster.WithHint(fmt.Errorf("a reload %s, since at %s: %s", until, clock(f.Time), f.Error),
		"mend that, and reload HAProxy by hand or run certsync again: another configuration and another HAProxy are tried at once")
	if f.Refused {
		return a.takeBack(ctx, w, err)
	}
	return w.otherwise(ctx, err)
}

// takeBack undoes what this call did for a target, before any reload.
func (a *activation) takeBack(ctx context.Context, w waiting, err error) cluster.Placement {
	if len(w.undo) == 0 {
		return w.otherwise(ctx, err)
	}
	return a.undo(ctx, w.view, w.undo, fmt.Errorf("activate %s: %s: %w", w.Slot, w.reason, err))
}

// notChecked ends the targets where HAProxy would not start, or where that is not known.
func (a *activation) notChecked(ctx context.Context, log reloadLog, r *reloader, err error) []cluster.Placement {
	bad, isRefused := errors.AsType[*refusedError](err)
	if !isRefused {
		return a.without(ctx, err)
	}
	out := make([]cluster.Placement, 0, len(a.waiting))
	for _, w := range a.waiting {
		log.fail(w.key(), reloadFailure{Pid: r.pid, Time: a.p.config.Now().UTC(), Refused: true, Error: err.Error()})
		out = append(out, a.refused(ctx, w, bad, err))
	}
	return a.saved(log, out)
}

// refused is a target whose check failed: its file goes back. One that HAProxy names goes back also where an earlier call
// wrote it, and counts as rejected: it speaks against the bundle, anything else against the configuration.
func (a *activation) refused(ctx context.Context, w waiting, bad *refusedError, err error) cluster.Placement {
	if !bad.blames(w.path) && !bad.blames(w.real) {
		return a.takeBack(ctx, w, err)
	}
	if b := w.previous; len(w.undo) == 0 && b != nil && b.Fingerprint() != w.Bundle.Fingerprint() {
		w.undo.add(func(context.Context) error { return replaceFile(w.real, b.PEM(), "haproxy.undo") })
	}
	return a.takeBack(ctx, w, fmt.Errorf("%w: %w", cluster.ErrRejected, err))
}

// saved records how the last attempt ended. That it cannot be is told with every target: the next attempt may come too
// early then.
func (a *activation) saved(log reloadLog, out []cluster.Placement) []cluster.Placement {
	err := a.p.journal.saveReloadLog(log)
	for i := range out {
		if err != nil && out[i].Error != "" {
			out[i].Error += "; " + err.Error()
		}
	}
	return out
}

// make records the reload, makes it, and proves that it happened.
func (a *activation) make(ctx context.Context, log *reloadLog, r *reloader) (pid int, err error) {
	log.Time, log.Way, log.Pid, log.NewPid, log.Result, log.OldWorkers, log.Reasons = a.p.config.Now().UTC(), r.way, r.pid, 0, "", 0, nil
	for _, w := range a.waiting {
		if !slices.Contains(log.Reasons, string(w.reason)) {
			log.Reasons = append(log.Reasons, string(w.reason))
		}
	}
	if err := a.p.journal.saveReloadLog(*log); err != nil {
		return 0, err
	}
	if pid, err = r.do(ctx); err != nil {
		return 0, err
	}
	failpoint.Hit("haproxy.reloaded")
	// A transaction ends with its process; where its record stays, its Pid says so.
	_ = a.p.journal.end()
	a.pending, a.size, a.managed, a.running, a.lists = nil, 0, nil, nil, nil
	log.NewPid, log.Result = pid, reloadResult
	return pid, nil
}

// notReloaded ends the targets where the reload failed. The files stay: HAProxy would start with them.
func (a *activation) notReloaded(ctx context.Context, log reloadLog, r *reloader, err error) []cluster.Placement {
	log.Result = err.Error()
	for _, w := range a.waiting {
		if ctx.Err() == nil {
			log.fail(w.key(), reloadFailure{Pid: r.pid, Time: a.p.config.Now().UTC(), Error: err.Error()})
		}
	}
	return a.saved(log, a.without(ctx, err))
}

// judge looks at each target after a reload.
func (a *activation) judge(ctx context.Context, log reloadLog, r *reloader, pid int) []cluster.Placement {
	edited := a.p.editedSince(a.process.Start)
	views := a.lookAgain(ctx, pid)
	log.OldWorkers = r.lingering(ctx)
	out := make([]cluster.Placement, len(views))
	lost := map[int]error{}
	for i := range views {
		w := &a.waiting[i]
		why := string(w.reason)
		if edited != "" {
			why += "; that took in " + edited + " too, which had changed since HAProxy began"
		}
		if log.OldWorkers > 0 {
			why += fmt.Sprintf("; %d earlier workers go on with open connections", log.OldWorkers)
		}
		views[i].placement.Reloaded = why
		var err error
		if out[i], err = a.arrival(ctx, &views[i], pid); err == nil || ctx.Err() != nil {
			delete(log.Failed, w.key())
			continue
		}
		log.fail(w.key(), reloadFailure{Pid: pid, Time: a.p.config.Now().UTC(), Once: w.reason == reasonHidden || pid == 0, Error: err.Error()})
		if out[i].Outcome == cluster.Failure {
			lost[i] = err
		}
	}
	a.takeBackReloaded(ctx, &log, views, out, lost)
	return a.saved(log, out)
}

// lookAgain surveys HAProxy anew and looks at each target until it is in service, or it is certain that it is not.
func (a *activation) lookAgain(ctx context.Context, pid int) []view {
	views := make([]view, len(a.waiting))
	wait := a.p.config.ReloadSettle
	if pid == 0 { // nothing but a handshake tells that the new process serves
		wait = a.p.config.ReloadTimeout
	}
	begin := time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		a.survey = a.p.survey(ctx)
		open := 0
		for i, w := range a.waiting {
			if views[i].path == "" || !views[i].certain(time.Since(begin)) {
				views[i] = a.look(ctx, w.Target)
				views[i].previous = w.before()
				a.handshake(ctx, &views[i])
				if !views[i].certain(time.Since(begin)) {
					open++
				}
			}
		}
		if open == 0 || time.Since(begin) > wait || sleep(ctx, pause) != nil {
			return views
		}
	}
}

// before is the bundle that the file held before this call, as far as it is known.
func (w *waiting) before() *cert.Bundle {
	if w.previous != nil {
		return w.previous
	}
	return w.disk
}

// certain tells that another look after a reload would show nothing else.
func (v *view) certain(waited time.Duration) bool {
	switch {
	case v.placement.Proof == cluster.Proven:
		return v.memoryErr != nil || len(v.entries) == 0 || v.memoryRight()
	case v.memoryErr != nil:
		return false
	}
	return waited > time.Second && (len(v.entries) == 0 || v.placement.Proof == cluster.NoProof && v.memoryRight())
}

// arrival is how a target stands after a reload. Outcome Failure means that it is to be taken back.
func (a *activation) arrival(ctx context.Context, v *view, pid int) (cluster.Placement, error) {
	v.placement.Error, v.placement.Hint = "", ""
	absent := v.memoryErr == nil && len(v.entries) == 0
	inMemory := v.memoryErr != nil || v.memoryRight()
	switch {
	case v.placement.Proof == cluster.Proven && (inMemory || absent):
		v.placement.Outcome = cluster.Done
		a.retireOthers(ctx, v)
		return v.placement, nil
	case ctx.Err() != nil:
		err := fmt.Errorf("activate %s: HAProxy was reloaded, and whether it serves the bundle is not known: %w", v.Slot, ctx.Err())
		return failure(*v, cluster.DiskOnly, err), err
	case absent:
		err := cluster.WithHint(fmt.Errorf("HAProxy was reloaded, and does not have it: no bind line names %s, its folder, or a list that has it", v.path),
			"name it on a bind line (`crt %s`, or its folder)", v.path)
		return failure(*v, cluster.DiskOnly, fmt.Errorf("activate %s: bundle is on disk only: %w", v.Slot, err)), err
	case v.placement.Proof == cluster.NoProof && inMemory && pid > 0:
		v.placement.Outcome = cluster.Unproven
		return v.placement, nil
	case v.placement.Proof == cluster.NoProof && v.memoryErr != nil:
		err := cluster.WithHint(fmt.Errorf("HAProxy was told to reload, and neither its Pid nor a handshake can tell whether it did: %s", v.placement.Served.Note),
			"set haproxy.verify, or give certsync the runtime socket or the master socket")
		return failure(*v, cluster.DiskOnly, fmt.Errorf("activate %s: %w", v.Slot, err)), err
	case !inMemory:
		err := fmt.Errorf("%w: after a reload HAProxy has a certificate with SHA-1 %s, not %s", cluster.ErrRejected, v.entries[0].SHA1, v.Bundle.SHA1())
		return failure(*v, cluster.Failure, err), err
	}
	err := fmt.Errorf("after a reload: %w", a.disproven(ctx, *v))
	return failure(*v, cluster.Failure, err), err
}

// takeBackReloaded brings back what was there before, for the targets that a reload brought into HAProxy and clients did
// not get: the files, and HAProxy's memory at run time where that can be. Where it cannot, HAProxy is reloaded once more.
// That one does not wait for the interval: it would leave clients with what failed, and there is one at most for each.
func (a *activation) takeBackReloaded(ctx context.Context, log *reloadLog, views []view, out []cluster.Placement, lost map[int]error) {
	differs := false
	for i, cause := range lost {
		v := views[i]
		out[i] = a.undo(ctx, v, a.waiting[i].undo, cause)
		unknown := v.memoryErr != nil
		if unknown {
			out[i].Memory = cluster.Sighting{Note: v.memoryErr.Error()}
		}
		differs = differs || len(a.waiting[i].undo) > 0 && (unknown || out[i].Memory.SHA1 != out[i].Disk.SHA1)
	}
	if !differs {
		return
	}
	err := a.reloadBack(ctx, log)
	for i := range lost {
		v := a.look(ctx, a.waiting[i].Target)
		a.handshake(ctx, &v)
		out[i].Memory, out[i].Served, out[i].Proof, out[i].Pid = v.placement.Memory, v.placement.Served, v.placement.Proof, v.placement.Pid
		if err != nil {
			out[i].Outcome = cluster.Failure
			out[i].Error += fmt.Sprintf("; HAProxy has it still, since the reload that takes it back failed: %v", err)
		}
	}
}

// reloadBack is the reload after the files went back.
func (a *activation) reloadBack(ctx context.Context, log *reloadLog) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.p.config.CheckTimeout+a.p.config.ReloadTimeout)
	defer cancel()
	if err := a.p.checkConfiguration(ctx); err != nil {
		return err
	}
	r, err := a.p.reloader(ctx, a.process)
	if err != nil {
		return err
	}
	pid, err := a.make(ctx, log, r)
	if err != nil {
		return err
	}
	for key, f := range log.Failed { // they hold for the HAProxy that runs now
		f.Pid = pid
		log.Failed[key] = f
	}
	a.survey = a.p.survey(ctx)
	return nil
}
