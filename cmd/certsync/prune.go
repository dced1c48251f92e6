package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
)

// pruneTimeout bounds what is waited for the peers' configurations, which are compared only.
const pruneTimeout = 5 * time.Second

func (a *app) pruneCommand() *cobra.Command {
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use:   "prune [NAME...]",
		Short: "remove what is no longer configured from this node",
		Long: `prune shows what this node has of certificates, or key types, that are no longer configured: their bundle files, what
HAProxy has of them in its memory and in its crt-list, and their generations in the store. It changes nothing without
--yes. With it they are removed, in this order; a copy of each file is kept in the state folder. What certsync did not
write is left alone, and so is what HAProxy cannot let go without a reload, with its file: then the mend is told, and the
exit code is 4 where something else was removed.

Each node is pruned by itself, since no node may delete on another: run it on each.`,
		RunE: func(cmd *cobra.Command, names []string) error { return a.prune(cmd.Context(), names, yes, asJSON) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove it, instead of showing it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

func (a *app) prune(ctx context.Context, names []string, yes, asJSON bool) error {
	w, err := a.wire(nil)
	if err != nil {
		return err
	}
	defer w.close()
	a.warnOfOtherConfigurations(ctx, w)
	var pruning cluster.Pruning
	if yes {
		pruning, err = w.pruneNow(ctx, names)
	} else {
		pruning, err = w.node.Prune(ctx, names, false)
	}
	if err != nil {
		return err
	}
	if asJSON {
		if err := newProgress(a, true).json("prune", pruning); err != nil {
			return err
		}
	} else {
		a.printPruning(pruning, names)
	}
	if code := pruneCode(pruning); code != exitDone {
		return &exitError{code: code}
	}
	return nil
}

// pruneNow has it done by the daemon of this machine, or here where none runs: one actor a machine.
func (w *wiring) pruneNow(ctx context.Context, names []string) (cluster.Pruning, error) {
	socket := filepath.Join(w.config.RunDir, config.LocalSocket)
	report, err := distribute.NewLocalClient(socket).Do(ctx, distribute.Job{Kind: distribute.Prune, Names: names}, nil)
	switch {
	case errors.Is(err, distribute.ErrNoDaemon):
	case err != nil:
		return cluster.Pruning{}, err
	case report.Pruned == nil:
		return cluster.Pruning{}, fmt.Errorf("the daemon on %s: %w: it answered a prune with something else", socket, distribute.ErrForm)
	default:
		return *report.Pruned, nil
	}
	release, err := w.store.LockActor(ctx, "prune")
	if err != nil {
		return cluster.Pruning{}, err
	}
	defer release()
	return w.node.Prune(ctx, names, true)
}

// prune is the job of the daemon.
func (w *wiring) prune(ctx context.Context, names []string) (cluster.Report, error) {
	report := cluster.Report{Node: w.node.Settings.Node, Start: time.Now().UTC()}
	pruning, err := w.node.Prune(ctx, names, true)
	report.End, report.Pruned = time.Now().UTC(), &pruning
	return report, err
}

// warnOfOtherConfigurations names the peers that run another configuration: there a certificate may still be wanted that
// is missing here only because this node's file was edited.
func (a *app) warnOfOtherConfigurations(ctx context.Context, w *wiring) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	other := make([]bool, len(w.peers))
	var wg sync.WaitGroup
	for i, p := range w.peers {
		wg.Go(func() {
			inv, err := p.Inventory(ctx)
			other[i] = err == nil && inv.Digest != w.node.Settings.Digest
		})
	}
	wg.Wait()
	for i, p := range w.peers {
		if other[i] {
			fmt.Fprintf(a.stderr, "certsync: warning: %s runs another configuration (acme, dns or certificates): see that what is pruned here is meant to be gone on every node\n", p.Name())
		}
	}
}

// pruneCode is the exit code: a plan is done; what could not be removed failed, or is done in part.
func pruneCode(p cluster.Pruning) int {
	if !p.Done {
		return exitDone
	}
	left := slices.ContainsFunc(p.Slots, func(s cluster.PrunedSlot) bool { return !s.Removed })
	any := slices.ContainsFunc(p.Slots, func(s cluster.PrunedSlot) bool {
		return s.Removed || slices.ContainsFunc(s.Leftovers, func(l cluster.Leftover) bool { return l.Removed })
	})
	switch {
	case !left:
		return exitDone
	case any:
		return exitPartly
	}
	return exitFailed
}

func (a *app) printPruning(p cluster.Pruning, names []string) {
	for _, s := range p.Slots {
		a.printPruned(p, s)
	}
	for _, name := range names {
		if !slices.ContainsFunc(p.Slots, func(s cluster.PrunedSlot) bool { return s.Slot.Name == name }) {
			fmt.Fprintf(a.stdout, "%s: nothing of it is held on %s\n", name, p.Node)
		}
	}
	switch {
	case len(p.Slots) == 0:
		fmt.Fprintf(a.stdout, "nothing to do: all that %s holds is configured\n", p.Node)
	case !p.Done:
		fmt.Fprintf(a.stdout, "nothing was changed: certsync prune --yes removes it from %s; run it on each node\n", p.Node)
	}
}

// printPruned prints what there is, or was, of a slot, and why something of it stays.
func (a *app) printPruned(p cluster.Pruning, s cluster.PrunedSlot) {
	for _, l := range s.Leftovers {
		if !l.Removed {
			fmt.Fprintf(a.stdout, "%s: %s: %s\n", s.Slot, p.Node, strings.Join(placesOf(l), ", "))
		} else {
			fmt.Fprintf(a.stdout, "%s: %s: removed %s\n", s.Slot, p.Node, l.File)
		}
		a.printPruneError(s, l.Error, l.Hint)
	}
	if s.Removed {
		fmt.Fprintf(a.stdout, "%s: %s: removed %d generations from the store\n", s.Slot, p.Node, len(s.Generations))
	} else {
		var held []string
		for _, g := range s.Generations {
			held = append(held, g.Fingerprint.Short())
		}
		fmt.Fprintf(a.stdout, "%s: %s: %d generations in the store: %s\n", s.Slot, p.Node, len(held), strings.Join(held, ", "))
	}
	a.printPruneError(s, s.Error, s.Hint)
}

func (a *app) printPruneError(s cluster.PrunedSlot, text, hint string) {
	if text != "" {
		a.printError(cluster.WithHint(fmt.Errorf("%s: stays: %w", s.Slot, errors.New(text)), "%s", hint))
	}
}

// placesOf are the places in which a leftover is.
func placesOf(l cluster.Leftover) []string {
	file := "file " + l.File
	if !l.OnDisk {
		file += " (not there any more)"
	}
	places := []string{file}
	for _, name := range l.Memory {
		places = append(places, "HAProxy's memory as "+name)
	}
	if l.CrtList != "" {
		places = append(places, "a line of "+l.CrtList)
	}
	return places
}
