package reconcile

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Node is this node's own part: its store and its HAProxies. It is what the peer API serves (distribute.Local), and
// trusts nothing that comes from a peer.
type Node struct {
	Settings Settings
	Roles    Roles
	Store    Store
	Proxies  []Proxy
	// Now is the clock.
	Now func() time.Time

	// earlierBundles are those that were read once, by fingerprint: they only name what is seen, and never change.
	earlierBundles sync.Map
}

// Inventory tells what this node holds.
func (n *Node) Inventory(ctx context.Context) (cluster.Inventory, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return cluster.Inventory{}, err
	}
	// A role that cannot be read is Unknown; the inventory is given all the same, since a peer may need what is held.
	seen := n.Roles.View(ctx)
	return cluster.Inventory{API: cluster.API, Version: n.Settings.Version, Node: n.Settings.Node, Role: seen.Role,
		Time: n.Now().UTC(), Digest: n.Settings.Digest, Generations: held, Records: records}, nil
}

// Fetch gives the bundles of generations that are held. Those that are not, or cannot be read, are left out: one bad
// file costs no other generation its way to a peer.
func (n *Node) Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error {
	for _, g := range generations {
		bundle, err := n.Store.Bundle(ctx, g)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue // the store tells of it in Problems
		}
		if err := each(cluster.Kept{Generation: g, Bundle: bundle}); err != nil {
			return err
		}
	}
	return nil
}

// Stage makes generations durable, each by itself: what is wrong with one is told in its result and stops no other.
func (n *Node) Stage(ctx context.Context, _ string, kept []cluster.Kept) ([]cluster.StageResult, error) {
	results := make([]cluster.StageResult, 0, len(kept))
	for _, k := range kept {
		result := cluster.StageResult{Generation: k.Generation}
		if err := n.admit(ctx, k); err != nil {
			result.Error, result.Hint = err.Error(), cluster.HintOf(err)
		}
		results = append(results, result)
	}
	return results, nil
}

// admit checks a generation that a peer offers and keeps it. One that is held already is no error (the store makes sure
// that it is durable, and whole); one that is older than the newest held is ErrStale.
func (n *Node) admit(ctx context.Context, k cluster.Kept) error {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return err
	}
	if !contains(held, k.Generation) {
		newest := cluster.Newest(held, records.Tombstones, k.Generation.Slot)
		if err := n.Settings.check(k, newest, records.Tombstones, n.Now()); err != nil {
			return err
		}
	}
	return n.Store.Keep(ctx, k)
}

// check is what a generation from elsewhere must stand before it is kept. It is pure but for the system's roots.
func (s Settings) check(k cluster.Kept, newest cert.Generation, tombstones []cluster.Tombstone, now time.Time) error {
	g := k.Generation
	c, ok := s.certificate(g.Name)
	if !ok || c.keyType(g.Algorithm) == "" {
		return errNotConfigured(g.Slot)
	}
	if want := k.Bundle.Generation(g.Name, g.Sequence); want.Slot != g.Slot || want.Compare(g) != 0 || !want.NotAfter.Equal(g.NotAfter) {
		return fmt.Errorf("%s: the bundle is not the generation that it is said to be", g.Slot)
	}
	if cluster.Revoked(tombstones, g.Fingerprint) {
		return fmt.Errorf("generation %s of %s: %w", g.Fingerprint.Short(), g.Slot, cluster.ErrRevoked)
	}
	if !g.Newer(newest) {
		return fmt.Errorf("generation %s of %s: %w: sequence %d, this node holds %d (%s)", g.Fingerprint.Short(), g.Slot,
			cluster.ErrStale, g.Sequence, newest.Sequence, newest.Fingerprint.Short())
	}
	if err := cluster.CheckJump(newest, g, now); err != nil {
		return err
	}
	return s.checkBundle(c, k.Bundle, now)
}

// checkBundle wants names that the configuration has for the certificate (a subset: one that was issued before a name
// was added is better than none), dates that hold, and a chain that leads to a root.
func (s Settings) checkBundle(c Certificate, b *cert.Bundle, now time.Time) error {
	var errs []error
	for _, d := range b.Domains() {
		if !slices.Contains(c.Domains, d) {
			errs = append(errs, fmt.Errorf("%w: %s is not among the configured names of %s", cert.ErrNames, d, c.Name))
		}
	}
	if len(b.Domains()) == 0 {
		errs = append(errs, fmt.Errorf("%w: it has none", cert.ErrNames))
	}
	errs = append(errs, b.Verify(cert.Want{Now: now, NotBeforeSkew: cluster.MaxSkew}), s.checkChain(b))
	return errors.Join(errs...)
}

// checkChain wants a chain that leads to the system's roots or those of the configuration.
func (s Settings) checkChain(b *cert.Bundle) error {
	roots := s.Roots
	if roots == nil {
		var err error
		if roots, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("the system's roots: %w", err)
		}
	}
	return cluster.WithHint(b.Verify(cert.Want{Roots: roots}), "for a private or staging CA, put its root certificate into the file of acme.ca_file on every node")
}

// Record merges a peer's records. Those that claim to be from the future, and keys that are not what is said of them,
// are left out, and told in the error; the others are merged even so. A release and what a CA said of a renewal count
// only for a generation that is held here: they are offered again. What this node heard from the CA itself no peer has
// better.
func (n *Node) Record(ctx context.Context, _ string, records cluster.Records) error {
	held, err := n.Store.Generations(ctx)
	if err != nil {
		return fmt.Errorf("generations held: %w", err)
	}
	records, ignored := credible(records, n.Now())
	has := among(held)
	records.Releases = slices.DeleteFunc(slices.Clone(records.Releases), func(r cluster.Release) bool { return !has(r.Generation) })
	records.Renewals = slices.DeleteFunc(slices.Clone(records.Renewals), func(r cluster.RenewalInfo) bool {
		return r.Node == n.Settings.Node || !has(r.Generation)
	})
	return errors.Join(n.Store.Merge(ctx, records), ignored)
}

// credible are the records that are not refused for what they say of themselves, and the error that counts the others.
func credible(records cluster.Records, now time.Time) (cluster.Records, error) {
	var first error
	count := 0
	refuse := func(err error) bool {
		if err == nil {
			return false
		}
		if count++; first == nil {
			first = err
		}
		return true
	}
	early := func(what string, t time.Time) error {
		if t.After(now.Add(cluster.MaxSkew)) {
			return fmt.Errorf("%s is dated %s, in the future", what, t.UTC().Format(time.RFC3339))
		}
		return nil
	}
	records.Ledger = slices.DeleteFunc(slices.Clone(records.Ledger), func(a cluster.Attempt) bool {
		return refuse(early(fmt.Sprintf("attempt %.40q", a.ID), a.Time))
	})
	records.Accounts = slices.DeleteFunc(slices.Clone(records.Accounts), func(a cluster.Account) bool { return refuse(a.Check()) })
	records.Orders = slices.DeleteFunc(slices.Clone(records.Orders), func(o cluster.Order) bool {
		return refuse(cmp.Or(early(fmt.Sprintf("order %.40q", o.ID), o.Created), o.Check()))
	})
	records.Renewals = slices.DeleteFunc(slices.Clone(records.Renewals), func(r cluster.RenewalInfo) bool {
		return refuse(early(fmt.Sprintf("renewal information of %.300q", r.Generation.Slot.String()), r.Time))
	})
	if count == 0 {
		return records, nil
	}
	return records, fmt.Errorf("%d ignored, the first: %w", count, first)
}

// Release takes the MASTER's word that generations may be activated, and activates them. A release of an earlier
// generation than the newest held changes nothing and is told as stale.
func (n *Node) Release(ctx context.Context, from string, releases []cluster.Release) ([]cluster.Placement, error) {
	refused := n.Record(ctx, from, cluster.Records{Releases: releases})
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	var activate []cert.Generation
	var out []cluster.Placement
	for _, r := range releases {
		g := r.Generation
		err := n.Settings.releasable(g, cluster.Newest(held, records.Tombstones, g.Slot))
		if err == nil && !same(releasedOf(records, g.Slot), g) {
			err = fmt.Errorf("release of generation %s of %s could not be recorded: %w", g.Fingerprint.Short(), g.Slot, cmp.Or(refused, cluster.ErrStale))
		}
		if err != nil {
			out = append(out, failedPlacement(g.Slot, cluster.Failure, err))
			continue
		}
		activate = append(activate, g)
	}
	return append(out, n.activate(ctx, activate)...), nil
}

// failedPlacement tells what became of a slot on a node whose HAProxies were not asked, or did not answer.
func failedPlacement(slot cert.Slot, outcome cluster.Outcome, err error) cluster.Placement {
	return cluster.Placement{Slot: slot, Proof: cluster.NoProof, Outcome: outcome, Error: oneLine(err.Error()), Hint: cluster.HintOf(err)}
}

func (s Settings) releasable(released, newest cert.Generation) error {
	switch {
	case s.displaced(released.Slot):
		return errNotConfigured(released.Slot) // it would go to the path of the slot that is configured
	case newest.IsZero() || released.Newer(newest):
		return fmt.Errorf("generation %s of %s is not held here: stage it first", released.Fingerprint.Short(), released.Slot)
	case newest.Newer(released):
		return fmt.Errorf("release of generation %s of %s: %w: this node holds %s", released.Fingerprint.Short(), released.Slot,
			cluster.ErrStale, newest.Fingerprint.Short())
	}
	return nil
}

// activate brings generations in service with every HAProxy of this node. One whose bundle cannot be read changes
// nothing: what an earlier one would replace may be later than that.
func (n *Node) activate(ctx context.Context, generations []cert.Generation) []cluster.Placement {
	var targets []cluster.Target
	var out []cluster.Placement
	held, _ := n.Store.Generations(ctx) // for the names of earlier ones only; where that fails, Bundle says so
	for _, g := range generations {
		bundle, err := n.Store.Bundle(ctx, g)
		if err != nil {
			out = append(out, failedPlacement(g.Slot, cluster.Failure, fmt.Errorf("generation %s: %w", g.Fingerprint.Short(), err)))
			continue
		}
		targets = append(targets, n.Settings.target(g.Slot, bundle, n.earlier(ctx, held, g)))
	}
	return append(out, n.eachProxy(ctx, targets, cluster.Failure, func(p Proxy) ([]cluster.Placement, error) { return p.Activate(ctx, targets) })...)
}

// inspect tells where slots stand with every HAProxy of this node, beside the newest generation that can be read. A slot
// of which there is none has a target without a bundle, so that what is in place can be told. One that is displaced is
// left out: what lies at its path is another slot's.
func (n *Node) inspect(ctx context.Context, slots []cert.Slot) ([]cluster.Placement, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	var targets []cluster.Target
	for _, slot := range slots {
		if n.Settings.displaced(slot) {
			continue
		}
		newest, bundle := n.newestReadable(ctx, held, records.Tombstones, slot)
		targets = append(targets, n.Settings.target(slot, bundle, n.earlier(ctx, held, newest)))
	}
	return n.eachProxy(ctx, targets, "", func(p Proxy) ([]cluster.Placement, error) { return p.Inspect(ctx, targets) }), nil
}

// eachProxy asks the HAProxies side by side: one that hangs delays no other. What one does not answer for has a
// placement with the outcome given, which names it by its place in the configuration.
func (n *Node) eachProxy(ctx context.Context, targets []cluster.Target, outcome cluster.Outcome, ask func(Proxy) ([]cluster.Placement, error)) []cluster.Placement {
	if len(targets) == 0 {
		return nil
	}
	placements := make([][]cluster.Placement, len(n.Proxies))
	var wg sync.WaitGroup
	for i, p := range n.Proxies {
		wg.Go(func() {
			answered, err := ask(p)
			if err != nil {
				outcome := outcome
				if outcome != "" {
					outcome, err = failure(ctx, err)
				}
				answered = append(answered, unanswered(targets, answered, fmt.Sprintf("haproxy[%d]", i), outcome, err)...)
			}
			placements[i] = answered
		})
	}
	wg.Wait()
	return slices.Concat(placements...)
}

func unanswered(targets []cluster.Target, answered []cluster.Placement, proxy string, outcome cluster.Outcome, err error) []cluster.Placement {
	var out []cluster.Placement
	for _, t := range targets {
		if !slices.ContainsFunc(answered, func(pl cluster.Placement) bool { return pl.Slot == t.Slot }) {
			pl := failedPlacement(t.Slot, outcome, err)
			pl.Proxy = proxy
			out = append(out, pl)
		}
	}
	return out
}

// newestReadable is the newest generation of a slot whose bundle can be read. The store sets a torn one aside and says
// so in Problems; one bad file costs its own slot one generation, and no other slot anything.
func (n *Node) newestReadable(ctx context.Context, held []cert.Generation, tombstones []cluster.Tombstone, slot cert.Slot) (cert.Generation, *cert.Bundle) {
	for {
		newest := cluster.Newest(held, tombstones, slot)
		if newest.IsZero() {
			return newest, nil
		}
		bundle, err := n.Store.Bundle(ctx, newest)
		if err == nil {
			return newest, bundle
		}
		held = slices.DeleteFunc(slices.Clone(held), func(g cert.Generation) bool { return same(g, newest) })
	}
}

// earlier are the bundles of a slot's other generations, for naming what is seen; one that cannot be read is left out,
// since only a name is lost by it.
func (n *Node) earlier(ctx context.Context, held []cert.Generation, newest cert.Generation) []*cert.Bundle {
	var out []*cert.Bundle
	for _, g := range held {
		if g.Slot != newest.Slot || same(g, newest) {
			continue
		}
		if b, ok := n.earlierBundles.Load(g.Fingerprint); ok {
			out = append(out, b.(*cert.Bundle))
			continue
		}
		if b, err := n.Store.Bundle(ctx, g); err == nil {
			n.earlierBundles.Store(g.Fingerprint, b)
			out = append(out, b)
		}
	}
	return out
}

// Status tells where every slot stands on this node: those of the configuration, and those that are held and no longer
// configured.
func (n *Node) Status(ctx context.Context) (cluster.NodeStatus, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	slots := n.slots(held)
	var newest []cert.Generation
	for _, slot := range slots {
		if g, bundle := n.newestReadable(ctx, held, records.Tombstones, slot); bundle != nil {
			newest = append(newest, g)
		}
	}
	placements, problem := n.inspect(ctx, slots)
	status := n.identity(ctx) // after the looks, which may have set torn files aside
	if problem != nil {
		status.Problems = append(status.Problems, problem.Error())
	}
	status.Held, status.Placements = newest, placements
	status.Unconfigured = n.Settings.unconfigured(slotsOf(newest))
	return status, nil
}

func slotsOf(generations []cert.Generation) []cert.Slot {
	var out []cert.Slot
	for _, g := range generations {
		out = append(out, g.Slot)
	}
	return out
}

// identity is a status without slots.
func (n *Node) identity(ctx context.Context) cluster.NodeStatus {
	status := cluster.NodeStatus{Node: n.Settings.Node, Time: n.Now().UTC(), Version: n.Settings.Version,
		Digest: n.Settings.Digest, Reachable: true, Problems: n.Store.Problems(ctx)}
	seen := n.Roles.View(ctx)
	if seen.Error != "" {
		status.Problems = append(status.Problems, "role: "+seen.Error)
	}
	status.Role = seen.Role
	return status
}

// CARP tells what this node sees of its virtual addresses.
func (n *Node) CARP(ctx context.Context) (cluster.CARP, error) {
	seen := n.Roles.View(ctx)
	seen.Node, seen.Time = n.Settings.Node, n.Now().UTC()
	return seen, context.Cause(ctx)
}

func (n *Node) heldAndRecords(ctx context.Context) ([]cert.Generation, cluster.Records, error) {
	held, err := n.Store.Generations(ctx)
	if err != nil {
		return nil, cluster.Records{}, fmt.Errorf("generations held: %w", err)
	}
	records, err := n.Store.Records(ctx)
	if err != nil {
		return nil, cluster.Records{}, fmt.Errorf("records held: %w", err)
	}
	return held, records, nil
}

// slots are those of the configuration, in its order, then those that are only held.
func (n *Node) slots(held []cert.Generation) []cert.Slot {
	var slots []cert.Slot
	for _, c := range n.Settings.Certificates {
		slots = append(slots, c.Slots()...)
	}
	configured := len(slots)
	for _, g := range held {
		if !slices.Contains(slots, g.Slot) {
			slots = append(slots, g.Slot)
		}
	}
	slices.SortFunc(slots[configured:], cert.Slot.Compare)
	return slots
}
