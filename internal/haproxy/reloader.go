package haproxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"certsync/internal/cluster"
)

// errNotReloaded: a reload was asked for and did not happen, or cannot be seen to have.
var errNotReloaded = errors.New("HAProxy was not reloaded")

// failGrace is how long HAProxy's Pid may still change after a reload was said to have failed: what says so is not
// trusted alone, and a master or a service may say so too early.
const failGrace = 2 * time.Second

// reloader makes one reload.
type reloader struct {
	p *Proxy
	// way is what it goes by, in words.
	way string
	// master is nil where the reload goes by the command.
	master *master
	// before is what the master told before it.
	before workers
	// pid is the Pid of HAProxy before it, 0 where nobody tells; byRuntime says that the runtime socket tells.
	pid       int
	byRuntime bool
}

// reloads tells whether certsync can reload HAProxy at all.
func (p *Proxy) reloads() bool { return p.master != nil || len(p.config.Reload) > 0 }

// reloader finds the way of a reload: the master socket where it answers, else the command. known is what `show info`
// told of the process, zero where it did not.
func (p *Proxy) reloader(ctx context.Context, known process) (*reloader, error) {
	r := &reloader{p: p, pid: known.Pid, byRuntime: known.Pid > 0}
	var masterErr error
	if p.master != nil {
		w, err := p.master.workers(ctx, p.config.Wait)
		if err == nil {
			r.way, r.master, r.before = "the master socket", p.master, w
			if r.pid == 0 {
				r.pid = w.serving()
			}
			return r, nil
		}
		masterErr = err
	}
	if len(p.config.Reload) == 0 {
		return nil, fmt.Errorf("%w: %w", errNotReloaded, masterErr)
	}
	r.way = "its command"
	return r, nil
}

// serving is the worker that serves: the current one, else the newest of the old, which 3.2 lists first.
func (w workers) serving() int {
	if w.pid == 0 && len(w.old) > 0 {
		return w.old[0]
	}
	return w.pid
}

// do asks for the reload and returns when HAProxy's Pid has changed: only that proves it, since the old worker answers
// until the new one is ready. Where nobody tells the Pid it returns 0 when the command has ended: then handshakes must
// tell.
func (r *reloader) do(ctx context.Context) (pid int, err error) {
	limited, cancel := context.WithTimeout(ctx, r.p.config.ReloadTimeout)
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- r.ask(limited) }()
	pid, failed, ok := r.await(limited, asked)
	switch {
	case ok:
		return pid, nil
	case limited.Err() == nil:
		return 0, fmt.Errorf("%w: %w", errNotReloaded, failed)
	case ctx.Err() != nil:
		return 0, errors.Join(fmt.Errorf("%w: %w", errNotReloaded, ctx.Err()), failed)
	}
	still := "not known"
	if r.pid > 0 {
		still = fmt.Sprintf("still %d", r.pid)
	}
	err = fmt.Errorf("%w: by %s: its Pid is %s after %s", errNotReloaded, r.way, still, r.p.config.ReloadTimeout)
	if failed != nil {
		err = fmt.Errorf("%w: %w", err, failed)
	}
	return 0, cluster.WithHint(err, "see HAProxy's log, and reload it by hand; where its start takes longer, certsync sees it at the next pass")
}

// ask makes the request and waits for its end. nil means that nothing is known against it.
func (r *reloader) ask(ctx context.Context) error {
	if r.master == nil {
		output, err := run(ctx, r.p.config.Reload)
		if err != nil {
			return cluster.WithHint(fmt.Errorf("%w: %s", err, quote(output)), "run it by hand as certsync's user: %s", strings.Join(r.p.config.Reload, " "))
		}
		return nil
	}
	v, said, err := r.master.reload(ctx)
	switch {
	case err != nil:
		return err
	case v == refused:
		return cluster.WithHint(fmt.Errorf("its master says: %s", said), "mend that, or reload HAProxy by hand")
	case v == silent:
		return r.watchFailures(ctx)
	}
	return nil
}

// watchFailures is for 2.6, which does not answer: its master counts the reload, as failed where it was.
func (r *reloader) watchFailures(ctx context.Context) error {
	for {
		w, err := r.master.workers(ctx, r.p.config.ReloadTimeout)
		switch {
		case ctx.Err() != nil, err != nil:
			return nil // what is not known speaks for nothing: the Pid decides
		case w.reloads > r.before.reloads && w.failed > 0:
			return cluster.WithHint(errors.New("its master counts it as failed, and does not say why"),
				"see HAProxy's log for its [ALERT] lines: `haproxy -c` passed, so that an address to bind is the likely reason")
		case w.reloads > r.before.reloads:
			return nil
		}
		if sleep(ctx, 100*time.Millisecond) != nil {
			return nil
		}
	}
}

// await looks at the Pid until it has changed (ok; also where nobody tells it and the request has ended well), until the
// request has failed, or until ctx ends.
func (r *reloader) await(ctx context.Context, asked <-chan error) (pid int, failed error, ok bool) {
	var giveUp <-chan time.Time
	done := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		if pid = r.look(ctx); pid > 0 && r.pid > 0 && pid != r.pid {
			if !done && r.master == nil {
				<-asked // the command may have more to do; it ends with ctx
			}
			return pid, nil, true
		}
		if done && r.pid == 0 {
			return 0, failed, failed == nil
		}
		ticking := asked
		if done {
			ticking = nil
		}
		select {
		case failed = <-ticking:
			if done = true; failed != nil {
				giveUp = time.After(failGrace)
			}
		case <-giveUp:
			return 0, failed, false
		case <-time.After(pause):
		case <-ctx.Done():
			if !done {
				failed = <-asked // it ends with ctx
			}
			return 0, failed, false
		}
	}
}

// look is HAProxy's Pid now, 0 where nobody tells: its runtime socket may be gone for a moment.
func (r *reloader) look(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	if r.byRuntime {
		info, _ := r.p.runtime.showInfo(ctx)
		return info.Pid
	}
	if r.master == nil {
		return 0
	}
	w, _ := r.master.showProc(ctx)
	return w.serving()
}

// lingering counts the earlier workers that go on with open connections; 0 where no master tells. For a moment after a
// reload the master may still tell of the time before it.
func (r *reloader) lingering(ctx context.Context) int {
	if r.master == nil {
		return 0
	}
	for begin := time.Now(); ; {
		w, err := r.master.workers(ctx, r.p.config.Wait)
		if err == nil && w.pid != 0 && w.pid != r.before.serving() {
			return len(w.old)
		}
		if err != nil || time.Since(begin) > failGrace || sleep(ctx, 50*time.Millisecond) != nil {
			return 0
		}
	}
}
