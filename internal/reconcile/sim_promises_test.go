package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// What the simulation looks at, at each step: s.mu is held in all of it.

// releases looks at promise 4: what a MASTER releases is on the disk of every node that it could rely on reaching since
// its pass began, or something newer is.
func (s *simulation) releases(p *simProcess, r cluster.Release) {
	n, g := p.n, r.Generation
	if r.Node != n.name || s.released[keyOf(g)] {
		return // it comes from a peer, or comes back
	}
	s.released[keyOf(g)] = true
	s.tell("%s releases %s of %s", n.name, nameOf(g), g.Slot.Name)
	for _, m := range s.nodes {
		if m == n || !n.reaches(m, p.began) || n.other {
			continue
		}
		held, _ := m.disk.Generations(context.Background())
		if !contains(held, g) && !m.newest(g.Slot).Newer(g) && !cluster.Revoked(m.records().Tombstones, g.Fingerprint) {
			s.violate("everywhere before anywhere", "%s releases %s of %s, and %s, which it reaches, has it not on disk", n.name, nameOf(g), g.Slot.Name, m.name)
		}
	}
}

// activates looks at what may go into a HAProxy: what was released, and is not revoked; in a MASTER's pass, only after
// the BACKUPs that it could rely on, and not where one of them refuses it. (Who becomes MASTER in a BACKUP's pass ends that
// as one: with what was released.)
func (s *simulation) activates(p *simProcess, t cluster.Target, served bool) {
	n, g := p.n, t.Generation
	if !s.released[keyOf(g)] {
		s.violate("everywhere before anywhere", "%s activates %s of %s, which nobody released", n.name, nameOf(g), g.Slot.Name)
	}
	if cluster.Revoked(n.records().Tombstones, g.Fingerprint) {
		s.violate("revoked", "%s activates %s of %s, of which it knows that it is revoked", n.name, nameOf(g), g.Slot.Name)
	}
	has := n.proxy.memory[g.Slot].generation
	if served || !p.master || n.role != cluster.Master || p.began.IsZero() || !g.Newer(has) || g.Fingerprint == has.Fingerprint {
		return
	}
	for _, m := range s.nodes {
		if m == n || m.role == cluster.Master || !n.reaches(m, p.began) || n.other || !m.proxy.trouble.Before(p.began) || !m.proxy.running {
			continue
		}
		theirs := m.proxy.memory[g.Slot].generation
		switch {
		case !g.Newer(theirs), g.Fingerprint == theirs.Fingerprint: // two nodes may each keep the certificate of one order
		case m.newest(g.Slot).Newer(g): // of two MASTERs the other staged a newer one there, and this one's release is stale
		case !m.proxy.rejects:
			s.violate("the canary", "%s activates %s of %s, and %s, which it reaches, serves %s still", n.name, nameOf(g), g.Slot.Name, m.name, nameOf(theirs))
		case !has.IsZero() && has.Left(n.clock()) > has.Lifetime()/10 && n.proxy.running:
			s.violate("the canary", "%s activates %s of %s, which %s rejects, and serves %s, which is good still", n.name, nameOf(g), g.Slot.Name, m.name, nameOf(has))
		}
	}
}

// replace puts a bundle in place of another: never an older one in place of a newer, unless that is revoked.
func (s *simulation) replace(n *simNode, what string, where map[cert.Slot]simPlaced, t cluster.Target) {
	old := where[t.Slot].generation
	if old.Newer(t.Generation) && !cluster.Revoked(n.records().Tombstones, old.Fingerprint) {
		s.violate("never older", "the %s of %s's HAProxy went back from %s to %s of %s", what, n.name, nameOf(old), nameOf(t.Generation), t.Slot.Name)
	}
	where[t.Slot] = simPlaced{t.Bundle, t.Generation}
	s.tell("%s has %s of %s in its %s", n.name, nameOf(t.Generation), t.Slot.Name, what)
}

// ordersAgain looks at promise 7: what is ordered is on disk, and no order is begun while another of the slot, of which
// the node knew when its pass began, can be taken up.
func (s *simulation) ordersAgain(p *simProcess, o cluster.Order) {
	n := p.n
	i := slices.IndexFunc(n.records().Orders, func(held cluster.Order) bool { return held.ID == o.ID })
	if i < 0 {
		s.violate("orders on disk", "%s makes order %s for %s, which is not on its disk", n.name, o.ID, o.Slot.Name)
		return
	}
	for _, m := range s.nodes {
		if m != n && (p.began.IsZero() || !n.reaches(m, p.began) || s.clocked) {
			continue
		}
		for _, other := range m.records().Orders {
			if other.ID != o.ID && other.Slot == o.Slot && other.End == cluster.Open && p.open[other.ID] && !s.clocked && s.canGoOn(o, other) {
				s.violate("orders taken up", "%s makes order %s for %s, and order %s (%s), at step %s on %s's disk, can be taken up", n.name, o.ID, o.Slot.Name,
					other.ID, other.URL, other.Step, m.name)
			}
		}
	}
}

// canGoOn tells that an order of the same names can be gone on with at the CA.
func (s *simulation) canGoOn(o, other cluster.Order) bool {
	at := s.ca.orders[other.URL]
	return at != nil && !at.dead && time.Now().Before(other.Expires) && other.Identifiers() == o.Identifiers() && other.Directory == o.Directory
}

// finalizes looks at what a CSR needs: the order's key and its URL are on this node's disk.
func (s *simulation) finalizes(p *simProcess, o cluster.Order) {
	for _, held := range p.n.records().Orders {
		if held.ID == o.ID && held.URL == o.URL && slices.Equal(held.Key, o.Key) {
			return
		}
	}
	s.violate("orders on disk", "%s sends a CSR to %s, and its disk has no order with that URL and key", p.n.name, o.URL)
}

// apart says in what the cluster is not in line: "" where every node has the same newest generation on disk and in
// HAProxy's memory, knows the same tombstones, and serves nothing that is revoked.
func (s *simulation) apart() string {
	for _, n := range s.nodes[1:] {
		if ours, theirs := len(s.nodes[0].records().Tombstones), len(n.records().Tombstones); ours != theirs {
			return fmt.Sprintf("%s knows %d tombstones, %s %d", n.name, theirs, s.nodes[0].name, ours)
		}
	}
	for _, slot := range s.slots() {
		if s.foreign(slot) {
			continue
		}
		newest := s.nodes[0].newest(slot)
		for _, n := range s.nodes {
			switch g, file, memory := n.newest(slot), n.proxy.files[slot].generation, n.proxy.memory[slot].generation; {
			case g.IsZero():
				return fmt.Sprintf("%s has no generation of %s", n.name, slot.Name)
			case !same(g, newest):
				return fmt.Sprintf("%s has %s of %s on disk, %s %s", n.name, nameOf(g), slot.Name, s.nodes[0].name, nameOf(newest))
			case file.Fingerprint != g.Fingerprint:
				return fmt.Sprintf("%s's bundle of %s is %s, not %s", n.name, slot.Name, nameOf(file), nameOf(g))
			case memory.Fingerprint != g.Fingerprint:
				return fmt.Sprintf("%s serves %s of %s, not %s", n.name, nameOf(memory), slot.Name, nameOf(g))
			case s.revoked(g):
				return fmt.Sprintf("%s serves %s of %s, which is revoked", n.name, nameOf(g), slot.Name)
			}
		}
	}
	return ""
}

// foreign tells that a node which is not MASTER holds a generation with names that the configuration has not, or no more:
// it was alone with another configuration. Nobody takes it over (docs/decisions/0005), it is valid and served where it is,
// and a peer's word is no reason for an order: the next renewal outranks it.
func (s *simulation) foreign(slot cert.Slot) bool {
	return slices.ContainsFunc(s.nodes, func(n *simNode) bool {
		g := n.newest(slot)
		bundle, err := n.disk.Bundle(context.Background(), g)
		if n.role == cluster.Master || err != nil {
			return false
		}
		c, _ := n.settings().certificate(slot.Name)
		return slices.ContainsFunc(bundle.Domains(), func(d string) bool { return !slices.Contains(c.Domains, d) })
	})
}

// revoked tells that any node knows a tombstone for a generation.
func (s *simulation) revoked(g cert.Generation) bool {
	return slices.ContainsFunc(s.nodes, func(n *simNode) bool { return cluster.Revoked(n.records().Tombstones, g.Fingerprint) })
}

// expired says which slot has no certificate in service that is valid, "" where all have.
func (s *simulation) expired() string {
	for _, slot := range s.slots() {
		for _, n := range s.nodes {
			if g := n.proxy.memory[slot].generation; g.IsZero() || !time.Now().Before(g.NotAfter) {
				return fmt.Sprintf("%s serves %s of %s, valid until %s", n.name, nameOf(g), slot.Name, g.NotAfter.Format(time.RFC3339))
			}
		}
	}
	return ""
}

// allowedAt is until when the CA's word, or a back-off, may keep the MASTER from an order. What is further ahead than a
// back-off ever is was written by a clock that was off, and counts for nothing.
func (s *simulation) allowedAt() time.Time {
	at := time.Now().Add(26 * time.Hour)
	for _, until := range s.ca.forbidden {
		at = later(at, until.Add(time.Hour))
	}
	recent := 0
	for _, issue := range s.ca.counted {
		if time.Since(issue.at) < 7*day {
			recent++
		}
	}
	if recent >= 5 {
		at = later(at, time.Now().Add(7*day+time.Hour))
	}
	return at
}
