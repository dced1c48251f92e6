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
	// Alarms reads what the node's daemon remembers of alarms; nil where the peers are not to be told.
	Alarms func(ctx context.Context) (cluster.AlarmBook, error)
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
		Time: n.Now().UTC(), Digest: n.Settings.Digest, Generations: held, Alarms: n.alarms(ctx), Records: records}, nil
}

// alarms are what the peers are told of alarms. A book that cannot be read keeps nothing else from them.
func (n *Node) alarms(ctx context.Context) *cluster.AlarmBook {
	if n.Alarms == nil {
		return nil
	}
	book, err := n.Alarms(ctx)
	if err != nil {
		return nil
	}
	public := book.Public()
	return &public
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
	door, err := n.door(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]cluster.StageResult, 0, len(kept))
	for _, k := range kept {
		result := cluster.StageResult{Generation: k.Generation}
		if err := door.admit(ctx, k); err != nil {
			result.Error, result.Hint = err.Error(), cluster.HintOf(err)
		}
		results = append(results, result)
	}
	return results, nil
}

// door is what generations from elsewhere come in by: what is held, as of its making and with what it let in since.
type door struct {
	n          *Node
	held       generationSet
	newest     map[cert.Slot]cert.Generation
	tombstones []cluster.Tombstone
}

func (n *Node) door(ctx context.Context) (*door, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	return &door{n, setOf(held), newestBySlot(held, records.Tombstones), records.Tombstones}, nil
}

// admit checks a generation that a peer offers and keeps it. One that is held already is no error (the store makes sure
// that it is durable, and whole); one that is older than the newest held is ErrStale.
func (d *door) admit(ctx context.Context, k cluster.Kept) error {
	g := k.Generation
	if !d.held.has(g) {
		if err := d.n.Settings.check(k, d.newest[g.Slot], d.tombstones, d.n.Now()); err != nil {
			return err
		}
	}
	if err := d.n.Store.Keep(ctx, k); err != nil {
		return err
	}
	d.held[keyOf(g)] = true
	if g.Newer(d.newest[g.Slot]) {
		d.newest[g.Slot] = g
	}
	return nil
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
// are left out, and told in the error; the others are merged even so. A release, a revocation and what a CA said of a renewal count
// only for a generation that is held here: they are offered again. What this node heard from the CA itself no peer has
// better.
func (n *Node) Record(ctx context.Context, _ string, records cluster.Records) error {
	held, err := n.Store.Generations(ctx)
	if err != nil {
		return fmt.Errorf("generations held: %w", err)
	}
	records, ignored := credible(records, n.Now())
	here := setOf(held)
	records.Releases = slices.DeleteFunc(slices.Clone(records.Releases), func(r cluster.Release) bool { return !here.has(r.Generation) })
	records.Renewals = slices.DeleteFunc(slices.Clone(records.Renewals), func(r cluster.RenewalInfo) bool {
		return r.Node == n.Settings.Node || !here.has(r.Generation)
	})
	records.Revocations = slices.DeleteFunc(slices.Clone(records.Revocations), func(r cluster.Revocation) bool { return !here.has(r.Generation) })
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
	records.Revocations = slices.DeleteFunc(slices.Clone(records.Revocations), func(r cluster.Revocation) bool {
		return refuse(cmp.Or(early(r.String(), r.Time), unlikely(r, now)))
	})
	if count == 0 {
		return records, nil
	}
	return records, fmt.Errorf("%d ignored, the first: %w", count, first)
}

// unlikely refuses what would silence a revocation: a revision that leaves no later one, a next try far away.
func unlikely(r cluster.Revocation, now time.Time) error {
	switch {
	case r.Revision >= mostClaimed:
		return fmt.Errorf("%s: revision %d", r, r.Revision)
	case r.NextTry.After(now.Add(cluster.MaxRetryAfter)):
		return fmt.Errorf("%s: it is to be tried again at %s", r, r.NextTry.UTC().Format(time.RFC3339))
	}
	return nil
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
	newest, released, configured := newestBySlot(held, records.Tombstones), releasedBySlot(records), n.Settings.catalog()
	for _, r := range releases {
		g := r.Generation
		err := configured.releasable(g, newest[g.Slot])
		if err == nil && !same(released[g.Slot], g) {
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

func (c catalog) releasable(released, newest cert.Generation) error {
	switch {
	case c.displaced(released.Slot):
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
	if len(generations) == 0 {
		return nil
	}
	var targets []cluster.Target
	var out []cluster.Placement
	// For the names of earlier ones, where a bundle is loaded; that they cannot be listed costs a name.
	held := sync.OnceValue(func() map[cert.Slot][]cert.Generation {
		held, _ := n.Store.Generations(ctx)
		return bySlot(held)
	})
	to := aim{n, n.Settings.catalog(), held}
	for _, g := range generations {
		summary, err := n.Store.Summary(ctx, g)
		if err != nil {
			out = append(out, failedPlacement(g.Slot, cluster.Failure, fmt.Errorf("generation %s: %w", g.Fingerprint.Short(), err)))
			continue
		}
		targets = append(targets, to.target(g.Slot, g, summary))
	}
	return append(out, n.eachProxy(ctx, targets, cluster.Failure, func(p Proxy) ([]cluster.Placement, error) {
		return p.Activate(ctx, n.latest(targets))
	})...)
}

// latest are targets whose bundles are not read where a later generation was released meanwhile. A pass goes on with what
// was newest when it looked, and a peer may have had a later one put in service since. A HAProxy's adapter loads while it
// is its turn to change that HAProxy, and whoever comes with a later generation has recorded its release before: so what
// is seen here, once for the turn, holds for all of it.
func (n *Node) latest(targets []cluster.Target) []cluster.Target {
	var once sync.Once
	var released map[cert.Slot]cert.Generation
	var unread error
	out := slices.Clone(targets)
	for i, t := range targets {
		out[i].Load = func(ctx context.Context) (*cert.Bundle, []*cert.Bundle, error) {
			once.Do(func() {
				records, err := n.Store.Records(ctx)
				released, unread = releasedBySlot(records), err
			})
			if unread != nil {
				return nil, nil, fmt.Errorf("records held: %w", unread)
			}
			if last := released[t.Slot]; last.Newer(t.Generation) {
				return nil, nil, fmt.Errorf("generation %s: %w: %s was released meanwhile", t.Generation.Fingerprint.Short(), cluster.ErrStale, last.Fingerprint.Short())
			}
			return t.Load(ctx)
		}
	}
	return out
}

// inspect tells where slots stand with every HAProxy of this node, beside the newest generation that can be read. A slot
// of which there is none has a target without a bundle, so that what is in place can be told. One that is displaced is
// left out: what lies at its path is another slot's.
func (n *Node) inspect(ctx context.Context, slots []cert.Slot) ([]cluster.Placement, error) {
	if len(slots) == 0 {
		return nil, nil
	}
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	return n.inspectHeld(ctx, held, records, slots), nil
}

// inspectHeld is inspect with what is held.
func (n *Node) inspectHeld(ctx context.Context, held []cert.Generation, records cluster.Records, slots []cert.Slot) []cluster.Placement {
	var targets []cluster.Target
	of := bySlot(held)
	to := aim{n, n.Settings.catalog(), func() map[cert.Slot][]cert.Generation { return of }}
	for _, slot := range slots {
		if to.configured.displaced(slot) {
			continue
		}
		newest, summary := n.newestReadable(ctx, of[slot], records.Tombstones, slot)
		targets = append(targets, to.target(slot, newest, summary))
	}
	return n.eachProxy(ctx, targets, "", func(p Proxy) ([]cluster.Placement, error) { return p.Inspect(ctx, targets) })
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
			var answered []cluster.Placement
			var err error
			if mistake := safely(func() { answered, err = ask(p) }); mistake != nil {
				err = mistake
			}
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
	told := placedBySlot(answered)
	for _, t := range targets {
		if len(told[t.Slot]) == 0 {
			pl := failedPlacement(t.Slot, outcome, err)
			pl.Proxy = proxy
			out = append(out, pl)
		}
	}
	return out
}

// aim makes targets: slots as HAProxy should have them.
type aim struct {
	n          *Node
	configured catalog
	held       func() map[cert.Slot][]cert.Generation
}

// target is a slot as it should be: g in service, whose bundle has what summary says; zero where there is none. The
// bundles are read where the adapter needs them.
func (a aim) target(slot cert.Slot, g cert.Generation, summary cert.Summary) cluster.Target {
	t := cluster.Target{Slot: slot, Generation: g}
	if c, ok := a.configured[slot.Name]; ok {
		t.Domains, t.Path, t.Both = c.Domains, c.Path, len(c.KeyTypes) > 1
	}
	t.Load = func(ctx context.Context) (*cert.Bundle, []*cert.Bundle, error) {
		return a.n.load(ctx, g, a.held()[slot])
	}
	if !g.IsZero() {
		// What is served is asked for under the names that the bundle has: a name that was just added to the
		// configuration is served only by the next generation.
		t.Domains = summary.Domains
	}
	return t
}

// load reads the bundle of g, nil where g is zero, and those of the slot's other generations, for naming what is seen:
// one of these that cannot be read is left out, since only a name is lost by it.
func (n *Node) load(ctx context.Context, g cert.Generation, held []cert.Generation) (bundle *cert.Bundle, known []*cert.Bundle, err error) {
	if !g.IsZero() {
		if bundle, err = n.Store.Bundle(ctx, g); err != nil {
			return nil, nil, fmt.Errorf("generation %s: %w", g.Fingerprint.Short(), err)
		}
	}
	for _, h := range held {
		if same(h, g) {
			continue
		}
		if b, err := n.Store.Bundle(ctx, h); err == nil {
			known = append(known, b)
		}
	}
	return bundle, known, nil
}

// newestReadable is the newest generation of a slot whose bundle can be read. The store sets a torn one aside and says
// so in Problems; one bad file costs its own slot one generation, and no other slot anything.
func (n *Node) newestReadable(ctx context.Context, held []cert.Generation, tombstones []cluster.Tombstone, slot cert.Slot) (cert.Generation, cert.Summary) {
	for {
		newest := cluster.Newest(held, tombstones, slot)
		if newest.IsZero() {
			return newest, cert.Summary{}
		}
		summary, err := n.Store.Summary(ctx, newest)
		if err == nil {
			return newest, summary
		}
		held = slices.DeleteFunc(slices.Clone(held), func(g cert.Generation) bool { return same(g, newest) })
	}
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
	of := bySlot(held)
	for _, slot := range slots {
		if g, _ := n.newestReadable(ctx, of[slot], records.Tombstones, slot); !g.IsZero() {
			newest = append(newest, g)
		}
	}
	placements := n.inspectHeld(ctx, held, records, slots)
	status := n.identity(ctx) // after the looks, which may have set torn files aside
	status.Held, status.Placements = newest, placements
	status.Unconfigured = n.Settings.catalog().unconfigured(slotsOf(newest))
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
	status.Problems = append(status.Problems, n.hazards(ctx)...)
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
	listed := make(map[cert.Slot]bool, len(slots))
	for _, s := range slots {
		listed[s] = true
	}
	for _, g := range held {
		if !listed[g.Slot] {
			listed[g.Slot] = true
			slots = append(slots, g.Slot)
		}
	}
	slices.SortFunc(slots[configured:], cert.Slot.Compare)
	return slots
}
