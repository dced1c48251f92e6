package reconcile

import (
	"context"
	"fmt"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Starter is a Proxy whose bundle files can be made right for HAProxy's next start, without asking HAProxy. standing tells
// how a bundle that lies there compares with a target's; Load of the targets gives no Known.
type Starter interface {
	OnDisk(ctx context.Context, targets []cluster.Target, standing func(cluster.Target, *cert.Bundle) cluster.Standing) ([]cluster.Placement, error)
}

// OnDisk makes the bundle files of this node right for HAProxy's next start, from what the store holds: no peer, no HAProxy
// and no CA is asked, nor the role, so that it works before any of them is there. A file that holds something later than
// the store's stays. One that it cannot write is told in its placement and stops no other.
func (n *Node) OnDisk(ctx context.Context) (cluster.DiskSync, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return cluster.DiskSync{}, err
	}
	out := cluster.DiskSync{Node: n.Settings.Node}
	s := n.stock(held, records)
	var targets []cluster.Target
	for _, c := range n.Settings.Certificates {
		for _, slot := range c.Slots() {
			g, summary := n.forStart(ctx, s, slot)
			if g.IsZero() {
				out.Missing = append(out.Missing, slot)
				continue
			}
			targets = append(targets, n.startTarget(c, slot, g, summary))
		}
	}
	out.Placements = n.eachProxy(ctx, targets, cluster.Failure, func(p Proxy) ([]cluster.Placement, error) {
		if starter, ok := p.(Starter); ok {
			return starter.OnDisk(ctx, targets, s.standing)
		}
		return nil, fmt.Errorf("write to disk: %T cannot", p)
	})
	out.Problems = n.Store.Problems(ctx)
	return out, nil
}

// startTarget is a slot as HAProxy is to find it on disk.
func (n *Node) startTarget(c Certificate, slot cert.Slot, g cert.Generation, summary cert.Summary) cluster.Target {
	return cluster.Target{Slot: slot, Generation: g, Domains: summary.Domains, Path: c.Path, Both: len(c.KeyTypes) > 1,
		Load: func(ctx context.Context) (*cert.Bundle, []*cert.Bundle, error) { return n.load(ctx, g, nil) }}
}

// forStart is the generation that a slot's file is to hold when HAProxy starts, zero where none can be read: the newest that
// was released; one that was not only where no other is fit, since what peers may not have yet would be taken back from
// the clients at the next failover. Fit is what has a tenth of its lifetime left.
func (n *Node) forStart(ctx context.Context, s *stock, slot cert.Slot) (cert.Generation, cert.Summary) {
	newest, summary := n.newestReadable(ctx, s.held[slot], s.tombstones, slot)
	released := s.released[slot]
	if released.IsZero() || same(released, newest) || !newest.Newer(released) {
		return newest, summary
	}
	if (cluster.Sighting{NotBefore: released.NotBefore, NotAfter: released.NotAfter}).Expiring(n.Now()) {
		return newest, summary
	}
	if before, err := n.Store.Summary(ctx, released); err == nil {
		return released, before
	}
	return newest, summary
}

// stock is what is known of the bundles that may lie on disk.
type stock struct {
	n          *Node
	held       map[cert.Slot][]cert.Generation
	released   map[cert.Slot]cert.Generation
	tombstones []cluster.Tombstone
	revoked    map[cert.Fingerprint]bool
	// known has the latest generation of each bundle that is held, or was released, by its certificate's name.
	known map[bundleKey]cert.Generation
}

type bundleKey struct {
	name        string
	fingerprint cert.Fingerprint
}

func (n *Node) stock(held []cert.Generation, records cluster.Records) *stock {
	s := &stock{n: n, held: bySlot(held), released: releasedBySlot(records), tombstones: records.Tombstones,
		revoked: revokedSet(records.Tombstones), known: make(map[bundleKey]cert.Generation, len(held))}
	for _, r := range records.Releases {
		s.know(r.Generation)
	}
	for _, g := range held {
		s.know(g)
	}
	return s
}

func (s *stock) know(g cert.Generation) {
	k := bundleKey{g.Name, g.Fingerprint}
	if last := s.known[k]; last.IsZero() || g.Newer(last) {
		s.known[k] = g
	}
}

// standing tells how a bundle that lies at a target's path compares with the generation that is to be there. One that
// nothing is known of, and that this node would take from a peer, is later where it was issued later: the store may have
// lost it, or come back from a backup.
func (s *stock) standing(t cluster.Target, there *cert.Bundle) cluster.Standing {
	if s.revoked[there.Fingerprint()] {
		return cluster.Earlier
	}
	g, known := s.known[bundleKey{t.Slot.Name, there.Fingerprint()}]
	switch {
	case known && g.Slot != t.Slot:
		return cluster.Earlier // it had the path before, when the certificate had other key types
	case known && g.Newer(t.Generation):
		return cluster.Later
	case known:
		return cluster.Earlier
	case s.credible(t, there):
		return cluster.Later
	}
	return cluster.Strange
}

// credible tells that a bundle which is not held is a later one of the slot, as far as can be told without its sequence.
func (s *stock) credible(t cluster.Target, there *cert.Bundle) bool {
	c, ok := s.n.Settings.certificate(t.Slot.Name)
	return ok && there.Algorithm() == t.Slot.Algorithm && there.Leaf().NotBefore.After(t.Generation.NotBefore) &&
		s.n.Settings.checkBundle(c, there, s.n.Now()) == nil
}
