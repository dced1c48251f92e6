package main

import (
	"context"
	"errors"
	"path/filepath"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
)

// do has a job done by the daemon of this machine, or here where none runs: one actor a machine.
func (a *app) do(ctx context.Context, job distribute.Job, out *progress) (cluster.Report, error) {
	defer out.end()
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return cluster.Report{}, err
	}
	report, err := distribute.NewLocalClient(filepath.Join(cfg.RunDir, config.LocalSocket)).Do(ctx, job, out.tell)
	switch {
	case errors.Is(err, distribute.ErrNoDaemon):
		return a.doHere(ctx, job, out)
	case ctx.Err() != nil:
		return report, cluster.WithHint(errLeft, "see what it does in its log, and with certsync status")
	}
	return report, err
}

// errLeft is the end of a command that was interrupted while the daemon worked for it.
var errLeft = errors.New("interrupted: if the daemon has begun, it goes on")

// doHere is do without a daemon.
func (a *app) doHere(ctx context.Context, job distribute.Job, out *progress) (cluster.Report, error) {
	w, err := a.wire(out.tell)
	if err != nil {
		return cluster.Report{}, err
	}
	defer w.close()
	release, err := w.store.LockActor(ctx, string(job.Kind))
	if err != nil {
		return cluster.Report{}, err
	}
	defer release()
	r, err := w.reconciler(false)
	if err != nil {
		return cluster.Report{}, err
	}
	return r.Pass(ctx, wantedOf(job))
}

// doAndPrint is a whole command: the job, its report, and the exit code that it means.
func (a *app) doAndPrint(ctx context.Context, job distribute.Job, asJSON bool) error {
	out := newProgress(a, asJSON)
	report, err := a.do(ctx, job, out)
	if err != nil {
		return err
	}
	if asJSON {
		if err := out.json("report", report); err != nil {
			return err
		}
	} else {
		a.printReport(report)
	}
	if code := reportCode(report); code != exitDone {
		return &exitError{code: code}
	}
	return nil
}
