package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// Pruner is a Proxy that tells what it has of slots that are no longer configured, and takes that away where remove is
// true. gone has those slots, with all bundles that are held of them as Known; kept are the targets that stay.
type Pruner interface {
	Prune(ctx context.Context, gone, kept []cluster.Target, remove bool) ([]cluster.Leftover, error)
}

// Prune tells what this node has of slots that are no longer configured, of all or of the certificates named, and removes
// it where remove is true: from each HAProxy and from disk, then from the store. What a HAProxy cannot let go keeps its
// generations, so that it is told and tried again. A name that is configured, with all that is held of it, is an error of
// usage; one of which nothing is held is none, since it is what a second run finds.
func (n *Node) Prune(ctx context.Context, names []string, remove bool) (cluster.Pruning, error) {
	held, err := n.Store.Generations(ctx)
	if err != nil {
		return cluster.Pruning{}, fmt.Errorf("generations held: %w", err)
	}
	slots, err := n.prunable(held, names)
	if err != nil {
		return cluster.Pruning{}, err
	}
	out := cluster.Pruning{Node: n.Settings.Node, Done: remove, Slots: []cluster.PrunedSlot{}}
	var gone []cluster.Target
	for _, slot := range slots {
		of := slices.DeleteFunc(slices.Clone(held), func(g cert.Generation) bool { return g.Slot != slot })
		gone = append(gone, cluster.Target{Slot: slot, Known: n.bundles(ctx, of)})
		out.Slots = append(out.Slots, cluster.PrunedSlot{Slot: slot, Generations: of})
	}
	if len(gone) == 0 {
		return out, nil
	}
	leftovers, failed := n.pruneProxies(ctx, gone, remove)
	for i := range out.Slots {
		s := &out.Slots[i]
		s.Leftovers = slices.DeleteFunc(slices.Clone(leftovers), func(l cluster.Leftover) bool { return l.Slot != s.Slot })
		n.forget(ctx, s, failed, remove)
	}
	return out, nil
}

// forget drops a slot from the store, once no HAProxy has anything of it.
func (n *Node) forget(ctx context.Context, s *cluster.PrunedSlot, failed error, remove bool) {
	err := failed
	if err == nil && remove && !slices.ContainsFunc(s.Leftovers, func(l cluster.Leftover) bool { return !l.Removed }) {
		failpoint.Hit("reconcile.pruned")
		err = n.Store.Forget(ctx, s.Slot)
		s.Removed = err == nil
	}
	if err != nil {
		s.Error, s.Hint = oneLine(err.Error()), cluster.HintOf(err)
	}
}

// pruneProxies asks each HAProxy of this node in turn: two may have one bundle folder.
func (n *Node) pruneProxies(ctx context.Context, gone []cluster.Target, remove bool) ([]cluster.Leftover, error) {
	var out []cluster.Leftover
	var errs []error
	kept := n.Settings.targets()
	for _, p := range n.Proxies {
		pruner, ok := p.(Pruner)
		if !ok {
			continue
		}
		leftovers, err := pruner.Prune(ctx, gone, kept, remove)
		out = append(out, leftovers...)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// prunable are the slots held that the configuration does not want, of the names given or of all.
func (n *Node) prunable(held []cert.Generation, names []string) ([]cert.Slot, error) {
	slots := n.Settings.catalog().unconfigured(slotsOf(held))
	slices.SortFunc(slots, cert.Slot.Compare)
	slots = slices.Compact(slots)
	if len(names) == 0 {
		return slots, nil
	}
	for _, name := range names {
		_, configured := n.Settings.certificate(name)
		if configured && !slices.ContainsFunc(slots, func(s cert.Slot) bool { return s.Name == name }) {
			return nil, cluster.WithHint(cluster.Usage(fmt.Errorf("certificate %q: it is in the configuration", name)),
				"take it out of the configuration first, on every node; what can be pruned now: %s", namesOf(slots))
		}
	}
	return slices.DeleteFunc(slots, func(s cert.Slot) bool { return !slices.Contains(names, s.Name) }), nil
}

func namesOf(slots []cert.Slot) string {
	var names []string
	for _, s := range slots {
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// bundles are those of generations that can be read; one that cannot only leaves its file unknown, which then stays.
func (n *Node) bundles(ctx context.Context, generations []cert.Generation) []*cert.Bundle {
	var out []*cert.Bundle
	for _, g := range generations {
		if b, err := n.Store.Bundle(ctx, g); err == nil {
			out = append(out, b)
		}
	}
	return out
}

// targets are all that the configuration wants, without their bundles.
func (s Settings) targets() []cluster.Target {
	var out []cluster.Target
	for _, c := range s.Certificates {
		for _, slot := range c.Slots() {
			out = append(out, cluster.Target{Slot: slot, Domains: c.Domains, Path: c.Path, Both: len(c.KeyTypes) > 1})
		}
	}
	return out
}

// watchful is a Proxy that tells what will do harm at HAProxy's next start, or at the next change of a certificate.
type watchful interface {
	Hazards(ctx context.Context, targets []cluster.Target) []cluster.Hazard
}

// hazards are those of this node's HAProxies, asked side by side, a line each; where several have one bundle folder,
// each line once.
func (n *Node) hazards(ctx context.Context) []string {
	targets := n.Settings.targets()
	found := make([][]cluster.Hazard, len(n.Proxies))
	var wg sync.WaitGroup
	for i, p := range n.Proxies {
		if w, ok := p.(watchful); ok {
			wg.Go(func() { found[i] = w.Hazards(ctx, targets) })
		}
	}
	wg.Wait()
	var out []string
	for _, h := range slices.Concat(found...) {
		if line := oneLine(h.String()); !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}
