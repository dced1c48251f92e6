package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/daemon"
	"certsync/internal/distribute"
	"certsync/internal/reconcile"
)

// keepsHangup marks a command that a hangup does not end.
const keepsHangup = "keeps-hangup"

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "the daemon: keeps every certificate on every node in line",
		Long: `run makes a pass whenever there may be something to do: at its start, at the times of renew.schedule, when a
certificate is due, when CARP gives this node another role, when a peer is back, and when the configuration, the files
that it names, a bundle or HAProxy's socket changes. On the MASTER a pass obtains what is due and puts it in service
everywhere; elsewhere it adopts and activates what the MASTER released.

It stays in the foreground and writes one line for each event of note to standard error: daemon(8) and systemd make a
service of that. SIGHUP reads the configuration again, as its change does; one that is wrong is told, and the one before
goes on. SIGTERM ends it within 5 seconds. While it runs, certsync issue and the like are done by it.`,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{keepsHangup: ""},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.runDaemon(cmd.Context()) },
	}
}

func (a *app) runDaemon(ctx context.Context) error {
	path, err := filepath.Abs(a.configPath)
	if err != nil {
		return fmt.Errorf("configuration %s: %w", a.configPath, err)
	}
	a.configPath = path
	return daemon.New(daemon.Options{
		ConfigPath: a.configPath,
		Load:       a.site,
		Hangups:    a.hangups,
		Log:        slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
		Version:    versionText(),
	}).Run(ctx)
}

// site reads the configuration, checks it as certsync check does, and builds what the daemon works with.
func (a *app) site(progress func(cluster.Progress)) (*daemon.Site, error) {
	w, err := a.wire(progress)
	if err != nil {
		return nil, err
	}
	site, err := w.site(a.configPath)
	if err != nil {
		w.close()
		return nil, err
	}
	return site, nil
}

func (w *wiring) site(configPath string) (*daemon.Site, error) {
	if err := errors.Join(checkFiles(w.config), w.config.CheckSecrets()); err != nil {
		return nil, cluster.Usage(err)
	}
	schedule, err := config.ParseSchedule(w.config.Renew.Schedule)
	if err != nil {
		return nil, cluster.Usage(err)
	}
	r, err := w.reconciler(false)
	if err != nil {
		return nil, err
	}
	demoter, err := w.demoter()
	if err != nil {
		return nil, err
	}
	told, err := targets(w.config)
	if err != nil {
		return nil, err
	}
	s := &daemon.Site{Node: w.node.Settings.Node, StateDir: w.config.StateDir, RunDir: w.config.RunDir, Schedule: schedule,
		Watched: w.watched(configPath), Listen: w.config.Listen,
		Lock: func(ctx context.Context) (func(), error) { return w.store.LockActor(ctx, "run") },
		Pass: func(ctx context.Context, job distribute.Job) (cluster.Report, error) {
			if job.Kind == distribute.Prune {
				return w.prune(ctx, job.Names)
			}
			return r.Pass(ctx, wantedOf(job))
		},
		Status: w.statuses, WatchRole: w.roles.Watch, WakeRole: w.wakeRole, Answers: w.answers, PeerAPI: w.handler(), Close: w.close,
		Demoter: demoter, DemoteUnready: w.config.CARP.DemoteUnready,
		Alarms: w.store.Alarms, KeepAlarms: w.store.KeepAlarms}
	for _, t := range told {
		s.Notify = append(s.Notify, t)
	}
	for _, p := range w.peers {
		s.Peers = append(s.Peers, p.Name())
	}
	return s, nil
}

// wantedOf is the pass that a job is; a renewal, and what the daemon does by itself, is the plain one.
func wantedOf(job distribute.Job) reconcile.Wanted {
	choice := reconcile.Choice{Algorithm: job.Algorithm, Generation: job.Generation}
	if len(job.Names) == 1 { // else a pass with a choice of no name says that there is none
		choice.Name = job.Names[0]
	}
	switch job.Kind {
	case distribute.Rollback:
		return reconcile.Wanted{MasterOnly: true, NoOrders: true, Rollback: &choice}
	case distribute.Revoke:
		return reconcile.Wanted{MasterOnly: true, Revoke: &reconcile.Revoke{Choice: choice, All: job.All, Reason: job.Reason, AtOnce: job.AtOnce}}
	}
	return reconcile.Wanted{Names: job.Names, MasterOnly: job.Kind == distribute.Issue, NoOrders: job.Kind == distribute.Sync}
}

// watched are the files whose change the daemon answers to.
func (w *wiring) watched(configPath string) []daemon.Watched {
	c := w.config
	files := []string{configPath, c.ACME.CAFile, c.ACME.EAB.HMACKeyFile, c.DNS.EnvFile, c.SSH.KeyFile, c.SSH.KnownHosts}
	for _, one := range c.Certificates {
		files = append(files, one.DNS.EnvFile)
	}
	files = append(files, c.NotifyFiles()...)
	slices.Sort(files)
	var out []daemon.Watched
	for _, f := range slices.Compact(files) {
		if f != "" {
			out = append(out, daemon.Watched{Reason: daemon.Configuration, Path: f})
		}
	}
	for _, h := range c.HAProxy {
		out = append(out, daemon.Watched{Reason: daemon.Bundles, Path: h.BundleDir, Folder: true},
			daemon.Watched{Reason: daemon.Proxy, Path: h.RuntimeSocket})
		if h.CrtList != "" {
			out = append(out, daemon.Watched{Reason: daemon.Bundles, Path: h.CrtList})
		}
	}
	for _, one := range c.Certificates {
		out = append(out, ownBundles(one)...)
	}
	return out
}

// ownBundles are the files of a certificate that has a path of its own.
func ownBundles(c config.Certificate) []daemon.Watched {
	if c.Bundle == "" {
		return nil
	}
	if !c.Both() {
		return []daemon.Watched{{Reason: daemon.Bundles, Path: c.Bundle}}
	}
	var out []daemon.Watched
	for _, k := range c.KeyTypes {
		out = append(out, daemon.Watched{Reason: daemon.Bundles, Path: c.Bundle + "." + string(k.Algorithm())})
	}
	return out
}

// wakeRole has the role read again; the configuration's is read at each question anyway.
func (w *wiring) wakeRole() {
	if wakes, ok := w.roles.(interface{ Wake() }); ok {
		wakes.Wake()
	}
}

// answers asks a peer the cheapest question there is.
func (w *wiring) answers(ctx context.Context, peer string) error {
	for _, p := range w.peers {
		if p.Name() == peer {
			_, err := p.CARP(ctx)
			return err
		}
	}
	return cluster.ErrUnreachable
}
