package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// finish makes the report: this node first, then the peers as configured. It looks at this node also where the pass was
// told to end.
func (p *pass) finish(ctx context.Context) cluster.Report {
	ended := ctx.Err() != nil
	p.report.Interrupted = ended
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inventoryTimeout)
	defer cancel()
	p.report.Nodes = append(p.report.Nodes, p.ownStatus(ctx))
	for _, v := range p.peers {
		p.report.Nodes = append(p.report.Nodes, p.peerStatus(ctx, v, ended))
	}
	if err := p.plan(ctx); err != nil {
		p.warn("when to look again: %v", err)
	}
	p.tellClocks()
	p.judgeRows()
	p.judgeRevocations(ctx)
	p.report.End = p.Now().UTC()
	return p.report
}

// ownStatus has what the activations saw, and a look at the slots that none touched.
func (p *pass) ownStatus(ctx context.Context) cluster.NodeStatus {
	problem := p.lookAtSelf(ctx)
	status := p.identity(ctx) // after the look, which may have set torn files aside
	held, records, err := p.heldAndRecords(ctx)
	if problem = cmp.Or(err, problem); problem != nil {
		status.Problems = append(status.Problems, problem.Error())
	}
	slots := p.slots(held)
	status.Held = newestOf(held, records.Tombstones, slots)
	status.Unconfigured = p.Settings.catalog().unconfigured(slots)
	status.Placements = p.sortedPlacements(p.Settings.Node)
	return status
}

// lookAtSelf inspects the slots of this node that no activation saw.
func (p *pass) lookAtSelf(ctx context.Context) error {
	held, err := p.Store.Generations(ctx)
	if err != nil {
		return fmt.Errorf("generations held: %w", err)
	}
	unseen := slices.DeleteFunc(p.slots(held), func(slot cert.Slot) bool { return p.placed(p.Settings.Node, slot) })
	placements, err := p.inspect(ctx, unseen)
	p.place(p.Settings.Node, placements...)
	return err
}

// newestOf are the newest generations of slots.
func newestOf(held []cert.Generation, tombstones []cluster.Tombstone, slots []cert.Slot) []cert.Generation {
	var out []cert.Generation
	newest := newestBySlot(held, tombstones)
	for _, slot := range slots {
		if g := newest[slot]; !g.IsZero() {
			out = append(out, g)
		}
	}
	return out
}

// peerStatus is what the pass knows of a peer: its inventory, with what it was given since, and what it answered. Where
// it could not do something for a slot it is asked where that stands now.
func (p *pass) peerStatus(ctx context.Context, v *peerView, ended bool) cluster.NodeStatus {
	inv := v.inv()
	status := cluster.NodeStatus{Node: v.Name(), Reachable: v.reachable(), Role: inv.Role, Time: inv.Time, Version: inv.Version, Digest: inv.Digest,
		Held: newestOf(inv.Generations, inv.Tombstones, p.slots(inv.Generations)), Alarms: inv.Alarms}
	if err := v.unreachable(); err != nil {
		status.Error, status.Hint = oneLine(err.Error()), cluster.HintOf(err)
	} else if !ended {
		p.lookAt(ctx, v)
	}
	if inv.Digest == p.Settings.Digest { // else what it wants is not known here
		status.Unconfigured = p.Settings.catalog().unconfigured(p.slots(inv.Generations))
	}
	status.Placements = p.sortedPlacements(v.Name())
	return status
}

// lookAt fills in where the slots stand that a peer could do nothing for; why it could not stays.
func (p *pass) lookAt(ctx context.Context, v *peerView) {
	bare := slices.DeleteFunc(p.sortedPlacements(v.Name()), func(pl cluster.Placement) bool { return pl.Proxy != "" })
	if len(bare) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	seen, err := v.Status(ctx)
	if err != nil {
		return // the reasons are told; this would have been a look only
	}
	stands := placedBySlot(seen.Placements)
	for _, b := range bare {
		for _, pl := range stands[b.Slot] {
			if pl.Proxy != "" {
				pl.Outcome, pl.Error, pl.Hint = b.Outcome, b.Error, b.Hint
				p.place(v.Name(), pl)
			}
		}
	}
}

func (p *pass) placed(node string, slot cert.Slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.placements[node][slot]) > 0
}

func (p *pass) sortedPlacements(node string) []cluster.Placement {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []cluster.Placement
	for _, slot := range slices.SortedFunc(maps.Keys(p.placements[node]), cert.Slot.Compare) {
		out = append(out, p.placements[node][slot]...)
	}
	return out
}

// judgeRows gives each certificate, and the pass, the worst outcome over the nodes. A peer that was not reached is
// Skipped for every certificate; a node's own failure is said in its certificate's line too.
func (p *pass) judgeRows() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Outcome = cluster.Unchanged
	for slot, row := range p.rows {
		own := row.Error != ""
		for _, status := range p.report.Nodes {
			if !status.Reachable && !row.Newest.IsZero() {
				worsen(row, own, cluster.Skipped, status.Error, status.Hint)
			}
			for _, pl := range p.placements[status.Node][slot] {
				if pl.Outcome != "" {
					worsen(row, own, pl.Outcome, NodeError(status.Node, pl), pl.Hint)
				}
			}
		}
		p.report.Outcome = cluster.Worse(p.report.Outcome, row.Outcome)
		p.report.Certificates = append(p.report.Certificates, *row)
	}
	slices.SortFunc(p.report.Certificates, func(a, b cluster.CertificateReport) int { return a.Slot.Compare(b.Slot) })
}

// worsen gives a row a node's outcome where that is the worse, with its error; an error of the certificate's own stays.
func worsen(row *cluster.CertificateReport, own bool, outcome cluster.Outcome, text, hint string) {
	worse := cluster.Worse(row.Outcome, outcome)
	if !own && text != "" && (row.Error == "" || worse != row.Outcome) {
		row.Error, row.Hint = text, hint
	}
	row.Outcome = worse
}

// NodeError is a placement's error with its node's name, "" where there is none: how a row tells of it.
func NodeError(node string, pl cluster.Placement) string {
	if pl.Error == "" {
		return ""
	}
	return fmt.Sprintf("%s: %s", node, pl.Error)
}
