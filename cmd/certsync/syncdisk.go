package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
	"certsync/internal/reconcile"
	"certsync/internal/store"
)

// diskDeadline is how long sync --disk may take where --deadline does not say: a boot waits for it.
const diskDeadline = 20 * time.Second

// syncOptions are the flags of sync.
type syncOptions struct {
	disk, asJSON bool
	deadline     time.Duration
}

func (a *app) syncCommand() *cobra.Command {
	var o syncOptions
	cmd := &cobra.Command{
		Use:   "sync",
		Short: "bring every node in line, without an order",
		Long: `sync makes one pass that asks nothing of the CA: it adopts what the peers have, and puts the newest generation of every
certificate in service: on the MASTER on every node, elsewhere here, as far as the MASTER released it. Where the daemon
runs, it does the work.

With --disk it does only what HAProxy needs before it starts, on this node: each certificate's file holds the newest
generation of this node's store that was released. It asks no peer, no HAProxy and no CA, writes only files that are
missing, torn or earlier, and ends after --deadline. The rc.d script runs it at boot, before HAProxy. While the daemon
runs there is nothing for it to do, and it says so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.disk:
				return a.syncDisk(cmd.Context(), o)
			case cmd.Flags().Changed("deadline"):
				return cluster.WithHint(cluster.Usage(errors.New("sync: --deadline is for --disk")), "use certsync sync --disk --deadline %s", o.deadline)
			}
			return a.doAndPrint(cmd.Context(), distribute.Job{Kind: distribute.Sync}, o.asJSON)
		},
	}
	cmd.Flags().BoolVar(&o.disk, "disk", false, "only write this node's bundle files, before HAProxy starts")
	cmd.Flags().DurationVar(&o.deadline, "deadline", diskDeadline, "how long --disk may take")
	cmd.Flags().BoolVar(&o.asJSON, "json", false, "print JSON lines")
	return cmd
}

func (a *app) syncDisk(ctx context.Context, o syncOptions) error {
	if o.deadline <= 0 {
		return cluster.Usage(fmt.Errorf("sync: --deadline %s: it must be more than nothing", o.deadline))
	}
	ctx, cancel := context.WithTimeout(ctx, o.deadline)
	defer cancel()
	w, err := a.wireDisk()
	if err != nil {
		return err
	}
	defer w.close()
	release, err := w.store.LockActor(ctx, "sync --disk")
	if errors.Is(err, cluster.ErrBusy) {
		return cluster.WithHint(err, "the daemon keeps the files in line while it runs; certsync sync has it make a pass now")
	}
	if err != nil {
		return err
	}
	defer release()
	done, err := w.node.OnDisk(ctx)
	if err != nil {
		return err
	}
	if o.asJSON {
		err = newProgress(a, true).json("disk", done)
	} else {
		a.printDiskSync(done)
	}
	if code := diskCode(done); err == nil && code != exitDone {
		return &exitError{code: code}
	}
	return err
}

// wireDisk builds what sync --disk needs: the store and the bundle files. There may be no CARP, no network and no HAProxy
// yet, and none is looked for.
func (a *app) wireDisk() (*wiring, error) {
	cfg, self, err := a.load()
	if err != nil {
		return nil, err
	}
	if err := dropPrivileges(cfg.StateDir); err != nil {
		return nil, err
	}
	w := &wiring{config: cfg}
	if w.store, err = store.Open(cfg.StateDir, store.Options{}); err != nil {
		return nil, fmt.Errorf("state in %s: %w", cfg.StateDir, err)
	}
	settings, err := settingsOf(cfg, self)
	if err != nil {
		return nil, err
	}
	w.node = &reconcile.Node{Settings: settings, Store: w.store, Now: time.Now}
	return w, w.wireProxies()
}

// diskCode is the exit code: what failed makes it 4 where other files are right, and 1 where none is.
func diskCode(d cluster.DiskSync) int {
	failed := func(pl cluster.Placement) bool {
		return pl.Outcome != cluster.Unchanged && pl.Outcome != cluster.DiskOnly
	}
	switch {
	case !slices.ContainsFunc(d.Placements, failed):
		return exitDone
	case slices.ContainsFunc(d.Placements, func(pl cluster.Placement) bool { return !failed(pl) }):
		return exitPartly
	}
	return exitFailed
}

// mostFailures is how many files that failed are told one by one: of thousands, on a full disk, each says the same.
const mostFailures = 10

func (a *app) printDiskSync(d cluster.DiskSync) {
	count := map[cluster.Outcome]int{}
	told := 0
	for _, pl := range d.Placements {
		count[pl.Outcome]++
		switch pl.Outcome {
		case cluster.Unchanged:
		case cluster.DiskOnly:
			fmt.Fprintf(a.stdout, "wrote %s: %s of %s\n", pl.File, pl.Disk.Fingerprint.Short(), pl.Slot)
		default:
			if told++; told <= mostFailures {
				a.printError(cluster.WithHint(errors.New(pl.Error), "%s", pl.Hint))
			}
		}
	}
	if told > mostFailures {
		a.printError(fmt.Errorf("%d more like these", told-mostFailures))
	}
	for _, slot := range d.Missing {
		fmt.Fprintf(a.stderr, "certsync: warning: %s: this node's store has no certificate of it yet\n", slot)
	}
	for _, p := range d.Problems {
		fmt.Fprintf(a.stderr, "certsync: warning: %s: %s\n", d.Node, p)
	}
	fmt.Fprintf(a.stdout, "%d of %d bundle files right on disk: %d written\n",
		count[cluster.Unchanged]+count[cluster.DiskOnly], len(d.Placements), count[cluster.DiskOnly])
}
