package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

const (
	// inventoryTimeout bounds what a pass waits for a peer that does not answer.
	inventoryTimeout = 15 * time.Second
	// fetchTimeout bounds one transfer of bundles from or to a peer.
	fetchTimeout = 2 * time.Minute
	// acknowledgeTimeout bounds the wait for peers to have a record before the work that it announces.
	acknowledgeTimeout = 5 * time.Second
	// adoptRounds bounds how often a peer is asked for the next newest where what it sent was refused: a peer that
	// makes generations up would otherwise keep a pass busy for as long as it likes.
	adoptRounds = 4
)

// adopt asks every peer for its inventory, side by side, and takes over what is newer: records first, then
// generations, then the releases of these. A peer that cannot be asked is noted and delays nothing else. The MASTER
// then gives each what it lacks of the records, so that whoever is MASTER next knows of them.
func (p *pass) adopt(ctx context.Context) {
	p.peers = make([]*peerView, len(p.Peers))
	for i, peer := range p.Peers {
		p.peers[i] = &peerView{Peer: peer, now: p.Now}
	}
	p.eachPeer(func(v *peerView) { v.ask(ctx) })
	for _, v := range p.peers {
		if err := v.unreachable(); err != nil {
			p.tell("adopt", cert.Slot{}, v.Name(), "%v", err)
			continue
		}
		p.welcome(ctx, v)
	}
	if p.adoptGenerations(ctx) {
		for _, v := range p.peers {
			p.take(ctx, v, cluster.Records{Releases: v.inv().Releases, Renewals: v.inv().Renewals, Revocations: v.inv().Revocations})
		}
	}
	if p.seen.Role == cluster.Master {
		p.eachPeer(func(v *peerView) { p.level(ctx, v) })
	}
}

// eachPeer does something with the peers side by side.
func (p *pass) eachPeer(do func(*peerView)) {
	var wg sync.WaitGroup
	for _, v := range p.peers {
		wg.Go(func() {
			if err := safely(func() { do(v) }); err != nil {
				p.warn("%s: %v", v.Name(), err)
			}
		})
	}
	wg.Wait()
}

// welcome looks at the configuration of a peer that answers, and takes its records.
func (p *pass) welcome(ctx context.Context, v *peerView) {
	inv := v.inv()
	if inv.Digest != p.Settings.Digest {
		p.warn("%s runs another configuration (acme, dns or certificates): make the files the same", v.Name())
	}
	p.take(ctx, v, inv.Records)
}

// take merges a peer's records. Mostly there is nothing new in them, and nothing to write.
func (p *pass) take(ctx context.Context, v *peerView, records cluster.Records) {
	if ours, err := p.Store.Records(ctx); err == nil && nothingNew(records, ours) {
		return
	}
	if err := p.Node.Record(ctx, v.Name(), records); err != nil {
		p.warnUnlessEnded(ctx, "records of %s: %v", v.Name(), err)
	}
}

// level gives a peer the records that it lacks: it may have been down when they were made.
func (p *pass) level(ctx context.Context, v *peerView) {
	if !v.reachable() {
		return
	}
	ours, err := p.Store.Records(ctx)
	if err != nil {
		p.warnUnlessEnded(ctx, "records held: %v", err)
		return
	}
	theirs := setOf(v.inv().Generations)
	ours.Renewals = slices.DeleteFunc(slices.Clone(ours.Renewals), func(r cluster.RenewalInfo) bool {
		return r.Node == v.Name() || !theirs.has(r.Generation) // it takes none of its own word, and none of what it lacks
	})
	ours.Revocations = slices.DeleteFunc(slices.Clone(ours.Revocations), func(r cluster.Revocation) bool { return !theirs.has(r.Generation) })
	if lacking := lacks(ours, v.inv().Records, p.Now()); !reflect.DeepEqual(lacking, cluster.Records{}) {
		p.send(ctx, v, lacking)
	}
}

// lacks are the kinds of records in which a peer would change by what is held here.
func lacks(ours, theirs cluster.Records, now time.Time) (out cluster.Records) {
	changes := func(with, without any) bool { return !reflect.DeepEqual(with, without) }
	if !within(ours.Accounts, theirs.Accounts, accountKey) && changes(cluster.MergeAccounts(theirs.Accounts, ours.Accounts), cluster.MergeAccounts(theirs.Accounts, nil)) {
		out.Accounts = ours.Accounts
	}
	if !within(ours.Orders, theirs.Orders, orderKey) && changes(cluster.MergeOrders(theirs.Orders, ours.Orders), cluster.MergeOrders(theirs.Orders, nil)) {
		out.Orders = ours.Orders
	}
	if !within(ours.Ledger, theirs.Ledger, attemptKey) && changes(cluster.MergeLedger(theirs.Ledger, ours.Ledger, now), cluster.MergeLedger(theirs.Ledger, nil, now)) {
		out.Ledger = ours.Ledger
	}
	if !within(ours.Tombstones, theirs.Tombstones, tombstoneKey) && changes(cluster.MergeTombstones(theirs.Tombstones, ours.Tombstones), cluster.MergeTombstones(theirs.Tombstones, nil)) {
		out.Tombstones = ours.Tombstones
	}
	if changes(cluster.MergeRenewals(theirs.Renewals, ours.Renewals), cluster.MergeRenewals(theirs.Renewals, nil)) {
		out.Renewals = ours.Renewals
	}
	if changes(cluster.MergeRevocations(theirs.Revocations, ours.Revocations), cluster.MergeRevocations(theirs.Revocations, nil)) {
		out.Revocations = ours.Revocations
	}
	return out
}

// offer is a generation that a peer has.
type offer struct {
	generation cert.Generation
	peer       *peerView
}

// adoptGenerations fetches, for each slot, the newest generation that any peer has and that this node lacks; where it
// is refused here (a lie, a foreign chain), the next newest. It tells whether anything was adopted.
func (p *pass) adoptGenerations(ctx context.Context) (adopted bool) {
	held, records, err := p.readable(ctx)
	if err != nil {
		p.warnUnlessEnded(ctx, "%v", err)
		return false
	}
	var mu sync.Mutex
	for range adoptRounds {
		wanted := p.offers(held, records.Tombstones)
		if len(wanted) == 0 {
			break
		}
		p.eachPeer(func(v *peerView) {
			kept := p.fetch(ctx, v, wanted[v])
			mu.Lock()
			defer mu.Unlock()
			held, adopted = append(held, kept...), adopted || len(kept) > 0
		})
	}
	return adopted
}

// readable is what is held, after a look at the newest bundle of each configured slot: the store sets a torn one aside,
// and then it is no longer held, and can be adopted or obtained anew.
func (p *pass) readable(ctx context.Context) ([]cert.Generation, cluster.Records, error) {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return nil, records, err
	}
	newest := newestBySlot(held, records.Tombstones)
	for _, c := range p.Settings.Certificates {
		for _, slot := range c.Slots() {
			for g := newest[slot]; !g.IsZero(); g = cluster.Newest(held, records.Tombstones, slot) {
				if _, err := p.Store.Summary(ctx, g); err == nil || ctx.Err() != nil {
					break
				}
				again, err := p.Store.Generations(ctx)
				if err != nil || contains(again, g) {
					break // not torn: it cannot be read now, and is not to be replaced for that
				}
				held = again
			}
		}
	}
	return held, records, nil
}

// offers are, for each configured slot, the newest generation offered that is newer than those held, by the peer that
// offers it. Each offer of a peer is tried once.
func (p *pass) offers(held []cert.Generation, tombstones []cluster.Tombstone) map[*peerView][]cert.Generation {
	best := map[cert.Slot]offer{}
	configured, newest, revoked := p.Settings.catalog(), newestBySlot(held, tombstones), revokedSet(tombstones)
	for _, v := range p.peers {
		if !v.reachable() {
			continue
		}
		for _, g := range v.inv().Generations {
			if !configured.configured(g.Slot) || revoked[g.Fingerprint] {
				continue
			}
			if g.Newer(newest[g.Slot]) && g.Newer(best[g.Slot].generation) && !v.wasTried(g) {
				best[g.Slot] = offer{g, v}
			}
		}
	}
	out := map[*peerView][]cert.Generation{}
	for _, o := range best {
		o.peer.try(o.generation)
		out[o.peer] = append(out[o.peer], o.generation)
	}
	for _, generations := range out {
		slices.SortFunc(generations, func(a, b cert.Generation) int { return cmp.Or(a.Slot.Compare(b.Slot), a.Compare(b)) })
	}
	return out
}

// fetch takes generations from a peer, each checked as if it came from a stranger, and gives those that are now held.
func (p *pass) fetch(ctx context.Context, v *peerView, generations []cert.Generation) []cert.Generation {
	if len(generations) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	var kept []cert.Generation
	start := time.Now()
	asked := setOf(generations)
	door, err := p.door(ctx)
	if err != nil {
		p.warnUnlessEnded(ctx, "%v", err)
		return nil
	}
	err = v.Fetch(ctx, generations, func(k cluster.Kept) error {
		g := k.Generation
		if !asked.has(g) {
			return fmt.Errorf("a generation that was not asked for: %s of %s", g.Fingerprint.Short(), g.Slot)
		}
		if err := door.admit(ctx, k); err != nil {
			p.warnUnlessEnded(ctx, "generation %s of %s from %s: %v", g.Fingerprint.Short(), g.Slot, v.Name(), err)
			return nil
		}
		kept = append(kept, g)
		p.tell("adopt", g.Slot, v.Name(), "adopted generation %d (%s) from %s", g.Sequence, g.Fingerprint.Short(), v.Name())
		return nil
	})
	if err != nil {
		p.warnUnlessEnded(ctx, "fetch from %s: %v", v.Name(), err)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			v.lose(start, err)
		}
	}
	return kept
}
