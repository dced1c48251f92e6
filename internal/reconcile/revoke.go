package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// revokeTimeout bounds what a pass waits for a CA to revoke one certificate.
const revokeTimeout = 2 * time.Minute

// waitForNodes is when a revocation is looked at again that waits for a node to serve the replacement.
const waitForNodes = 10 * time.Minute

// Revoker is an Issuer that revokes.
type Revoker interface {
	// Revoke has the CA revoke the bundle's leaf. One that is revoked already is no error. errors.ErrUnsupported where the
	// CA offers no revocation; an IssueError is Dead where it would answer the same again.
	Revoke(ctx context.Context, account cluster.Account, bundle *cert.Bundle, reason cluster.Reason) error
}

// Revoke is a revocation that a person asks for.
type Revoke struct {
	// Choice is what to revoke; where it names no generation, those whose revocation was asked for before and is not done,
	// else the newest of each slot.
	Choice
	// All means every generation of the slots that is neither revoked nor expired.
	All bool
	// Reason is the name of a cluster.Reason; "" is unspecified, or what was given before.
	Reason string
	// AtOnce revokes before there is a replacement.
	AtOnce bool
}

// errNoReplacement is the end of a revocation for which no other certificate could be had.
var errNoReplacement = errors.New("no replacement could be obtained, and so nothing was revoked")

// condemn records the revocations that a person asked for, here and at the peers, before anything is done: whoever is
// MASTER then goes on with them. The slots whose newest generation is among them become due (Facts.Condemned), and their
// open orders are not taken up any more (orders.live): who has the key of the certificate may have those of the orders.
func (p *pass) condemn(ctx context.Context) error {
	if p.wanted.Revoke == nil {
		return nil
	}
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return err
	}
	asked, err := p.asked(*p.wanted.Revoke, held, records)
	if err != nil || len(asked) == 0 {
		return err
	}
	p.condemned = asked
	if err := p.fence(ctx); err != nil {
		return err
	}
	if err := p.record(ctx, cluster.Records{Revocations: asked}); err != nil {
		return fmt.Errorf("record the revocation: %w", err)
	}
	failpoint.Hit("reconcile.condemned")
	return nil
}

// asked are the records of what a person asked to be revoked. What is revoked already is left out.
func (p *pass) asked(w Revoke, held []cert.Generation, records cluster.Records) ([]cluster.Revocation, error) {
	reason, err := cluster.ParseReason(w.Reason)
	if err != nil {
		return nil, err
	}
	slots, err := p.Settings.slots(w.Choice, held)
	if err != nil {
		return nil, err
	}
	configured, past := p.Settings.catalog(), chronicleOf(records, p.Issuer.Directory(), p.Now())
	var out []cluster.Revocation
	var shelves []shelf
	met := false
	for _, slot := range slots {
		s := p.shelf(slot, held, records)
		shelves = append(shelves, s)
		targets, err := s.targets(w, p.Now())
		if err != nil {
			return nil, err
		}
		met = met || len(targets) > 0
		for _, g := range targets {
			if err := p.revocable(w, s, g, configured, past.of(slot)); err != nil {
				return nil, err
			}
			asked := cluster.Revocation{Generation: g, Reason: reason, AtOnce: w.AtOnce, Revision: 1, Directory: p.Issuer.Directory(),
				Node: p.Settings.Node, Time: p.Now().UTC()}
			if r, open := s.after(asked, w.Reason != ""); open {
				out = append(out, r)
			} else {
				p.tell("revoke", slot, "", "generation %d (%s) is revoked already", g.Sequence, g.Fingerprint.Short())
			}
		}
	}
	switch {
	case met:
	case w.Generation != "":
		return nil, unknown(w.Choice, shelves)
	default:
		return nil, cluster.Usage(fmt.Errorf("%s: nothing of it is held that could be revoked", w.Name))
	}
	return out, nil
}

// targets are the generations of one slot that w means.
func (s shelf) targets(w Revoke, now time.Time) ([]cert.Generation, error) {
	var out []cert.Generation
	add := func(g cert.Generation) {
		if !g.IsZero() && !slices.ContainsFunc(out, func(o cert.Generation) bool { return o.Fingerprint == g.Fingerprint }) {
			out = append(out, g)
		}
	}
	switch {
	case w.Generation != "":
		g, err := s.find(w.Choice)
		if err != nil {
			return nil, err
		}
		add(g)
	case w.All:
		for _, g := range slices.Backward(s.held) {
			if now.Before(g.NotAfter) {
				add(g)
			}
		}
	default:
		for _, r := range s.revocations {
			if r.Open(now) || r.End == cluster.RevocationGivenUp && now.Before(r.Generation.NotAfter) {
				add(r.Generation) // else a second run would revoke what came in its place meanwhile
			}
		}
		if len(out) == 0 {
			add(s.newest)
		}
	}
	return out, nil
}

// revocable refuses what this node's CA cannot revoke, or what nothing can replace.
func (p *pass) revocable(w Revoke, s shelf, g cert.Generation, configured catalog, past history) error {
	what := fmt.Sprintf("generation %d (%s) of %s", g.Sequence, g.Fingerprint.Short(), s.slot)
	switch {
	case !p.Now().Before(g.NotAfter):
		return cluster.Usage(fmt.Errorf("%s: it has expired, and no CA revokes it then", what))
	case !configured.configured(s.slot) && !w.AtOnce:
		return cluster.WithHint(cluster.Usage(fmt.Errorf("%s: it is not in the configuration, and so nothing can replace it", what)),
			"revoke it without a replacement: certsync revoke %s --now", w.Name)
	case past.issued.ID != "" && past.issued.Directory != p.Issuer.Directory():
		return cluster.WithHint(cluster.Usage(fmt.Errorf("%s: it was issued by %s, and the configuration's directory is %s", what,
			past.issued.Directory, p.Issuer.Directory())), "obtain one from that first: certsync issue %s; then revoke the old one by the means of the CA that issued it", w.Name)
	}
	return nil
}

// after is a revocation that is asked for after what was recorded of it before; open is false where that is done. One that
// is open keeps its time: an order that was made since is its replacement's.
func (s shelf) after(r cluster.Revocation, reasoned bool) (_ cluster.Revocation, open bool) {
	i := slices.IndexFunc(s.revocations, func(o cluster.Revocation) bool { return o.Generation.Fingerprint == r.Generation.Fingerprint })
	if i < 0 {
		return r, true
	}
	before := s.revocations[i]
	r.Revision, r.Generation = before.Revision+1, before.Generation
	if !reasoned {
		r.Reason = before.Reason
	}
	if before.End == cluster.RevocationOpen {
		r.AtOnce, r.Time, r.Node = r.AtOnce || before.AtOnce, before.Time, before.Node
	}
	return r, before.End != cluster.RevocationDone
}

// mayOrder tells whether this pass may order something for a slot: one that is made for a revocation replaces what is
// revoked, and nothing else.
func (p *pass) mayOrder(slot cert.Slot) bool {
	asked := func(r cluster.Revocation) bool { return r.Generation.Slot == slot }
	return p.seen.Role == cluster.Master && !p.wanted.NoOrders && (p.wanted.Revoke == nil || slices.ContainsFunc(p.condemned, asked))
}

// concerns tells whether this pass goes on with a revocation: one that a person asked for has no other in hand, whose
// replacement it may not order.
func (p *pass) concerns(r cluster.Revocation) bool {
	asked := func(a cluster.Revocation) bool { return a.Generation.Fingerprint == r.Generation.Fingerprint }
	return p.wanted.Revoke == nil || slices.ContainsFunc(p.condemned, asked)
}

// condemnedBySlot is the latest generation of each slot that is revoked or to be revoked.
func condemnedBySlot(revocations []cluster.Revocation, now time.Time) map[cert.Slot]cluster.Revocation {
	out := map[cert.Slot]cluster.Revocation{}
	for _, r := range revocations {
		if r.End != cluster.RevocationGivenUp && now.Before(r.Generation.NotAfter) && r.Generation.Newer(out[r.Generation.Slot].Generation) {
			out[r.Generation.Slot] = r
		}
	}
	return out
}

// replacementDue says why a slot needs another generation than its newest, where r is the latest that is revoked or to be.
func replacementDue(r cluster.Revocation, newest cert.Generation) string {
	switch {
	case r.Generation.IsZero():
		return ""
	case newest.Fingerprint == r.Generation.Fingerprint: // put back, maybe, by a node that was apart
		return fmt.Sprintf("generation %s is to be revoked, and replaced first", newest.Fingerprint.Short())
	case newest.Newer(r.Generation):
		return ""
	}
	return fmt.Sprintf("generation %s is revoked", r.Generation.Fingerprint.Short())
}

// revoke goes on with the open revocations, each once in a pass: with those that wait for nothing before anything is
// ordered (atOnce), with the others when their replacements are in service. Only the MASTER does.
func (p *pass) revoke(ctx context.Context, atOnce bool) {
	if p.seen.Role != cluster.Master || p.wanted.NoOrders {
		return
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		p.warnUnlessEnded(ctx, "records held: %v", err)
		return
	}
	for _, r := range records.Revocations {
		done := slices.ContainsFunc(p.report.Revocations, func(o cluster.RevocationReport) bool { return o.Generation.Fingerprint == r.Generation.Fingerprint })
		if done || !r.Open(p.Now()) || !p.concerns(r) || atOnce && !r.AtOnce {
			continue
		}
		var out cluster.RevocationReport
		if err := safely(func() { out = p.goOn(ctx, r) }); err != nil {
			out = revocationReport(r, cluster.Failure, err)
		}
		p.report.Revocations = append(p.report.Revocations, out)
	}
}

func revocationReport(r cluster.Revocation, outcome cluster.Outcome, err error) cluster.RevocationReport {
	out := cluster.RevocationReport{Generation: r.Generation, Reason: r.Reason, Outcome: outcome}
	if err != nil {
		out.Error, out.Hint = oneLine(err.Error()), cluster.HintOf(err)
	}
	return out
}

// goOn does what is to be done next for an open revocation: a replacement in service first, unless it is not to wait for
// one; the tombstone; the CA.
func (p *pass) goOn(ctx context.Context, r cluster.Revocation) cluster.RevocationReport {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return revocationReport(r, cluster.Failure, err)
	}
	buried := cluster.Revoked(records.Tombstones, r.Generation.Fingerprint)
	if !buried && !r.AtOnce {
		if newest := cluster.Newest(held, records.Tombstones, r.Generation.Slot); newest.Fingerprint == r.Generation.Fingerprint || !newest.Newer(r.Generation) {
			return p.notReplaced(ctx, r)
		}
		if err := p.everywhereReplaced(ctx, r); err != nil {
			p.wakeAt(p.Now().Add(waitForNodes))
			return revocationReport(r, cluster.Waiting, err)
		}
	}
	out, err := p.mayAsk(r)
	if err == nil {
		err = p.bury(ctx, r, buried)
	}
	switch {
	case err == nil:
		return p.tellCA(ctx, r)
	case out.Outcome == "":
		outcome, err := failure(ctx, err)
		out = revocationReport(r, outcome, err)
	}
	out.Tombstone = buried
	return out
}

// mayAsk is an error, with the report that it means, where the CA is not to be asked in this pass.
func (p *pass) mayAsk(r cluster.Revocation) (cluster.RevocationReport, error) {
	if r.Directory != p.Issuer.Directory() {
		err := cluster.WithHint(fmt.Errorf("it was asked for at %s, and the configuration's directory is %s", r.Directory, p.Issuer.Directory()),
			"set acme.directory to that, or revoke it by that CA's own means")
		return revocationReport(r, cluster.Waiting, err), err
	}
	if p.wanted.Revoke == nil && p.Now().Before(r.NextTry) {
		err := &cluster.PutOffError{Until: r.NextTry, Cause: r.Problem}
		out := revocationReport(r, cluster.PutOff, err)
		out.NextTry = r.NextTry
		p.wakeAt(r.NextTry)
		return out, err
	}
	return cluster.RevocationReport{}, nil
}

// bury records the tombstone: from here on no node adopts, activates or rolls back to the certificate. It comes before the
// CA is told, or a kill in between would leave nodes that may go back to a revoked one.
func (p *pass) bury(ctx context.Context, r cluster.Revocation, buried bool) error {
	if err := p.fence(ctx); err != nil || buried {
		return err
	}
	t := cluster.Tombstone{Fingerprint: r.Generation.Fingerprint, Name: r.Generation.Name, Time: p.Now().UTC(), Reason: string(r.Reason)}
	if err := p.record(ctx, cluster.Records{Tombstones: []cluster.Tombstone{t}}); err != nil {
		return fmt.Errorf("record the tombstone: %w", err)
	}
	p.tell("revoke", r.Generation.Slot, "", "generation %d (%s) has a tombstone: no node goes back to it", r.Generation.Sequence, r.Generation.Fingerprint.Short())
	failpoint.Hit("reconcile.buried")
	return nil
}

// notReplaced is how a revocation stands whose certificate is still the newest. Where a person waits for it and the pass was
// not cut off, it ends here: nothing is revoked later behind that person's back. What was cut off goes on by itself.
func (p *pass) notReplaced(ctx context.Context, r cluster.Revocation) cluster.RevocationReport {
	var row cluster.CertificateReport
	p.row(r.Generation.Slot, func(at *cluster.CertificateReport) { row = *at })
	why := cmp.Or(row.Error, "none was ordered")
	atOnce := fmt.Sprintf("to revoke it at once, although nothing replaces it: certsync revoke %s --now", r.Generation.Name)
	switch {
	case row.Outcome == cluster.NotMaster || row.Outcome == cluster.Interrupted || ctx.Err() != nil:
		return revocationReport(r, cluster.Worse(cluster.NotMaster, row.Outcome),
			fmt.Errorf("nothing is revoked yet: %s; the next pass on the MASTER goes on with it", cmp.Or(row.Error, "interrupted")))
	case p.wanted.Revoke == nil:
		return revocationReport(r, cluster.Worse(cluster.Waiting, row.Outcome),
			cluster.WithHint(fmt.Errorf("nothing is revoked yet, a replacement comes first: %s", why), "%s", atOnce))
	}
	out := revocationReport(r, cluster.Failure, cluster.WithHint(fmt.Errorf("%w: %s", errNoReplacement, why), "mend that and run it again; %s", atOnce))
	if row.Outcome == cluster.PutOff {
		out.Outcome, out.NextTry = cluster.PutOff, row.NextTry
	}
	r.End, r.Problem = cluster.RevocationGivenUp, out.Error
	if err := p.revised(ctx, r); err != nil {
		p.warn("%s: %v", r, err)
	}
	return out
}

// everywhereReplaced is the error of a node that can be reached and has not come to the replacement: what it serves is not
// revoked. A node that cannot be reached holds nothing up: it takes the tombstone and the replacement when it is back.
func (p *pass) everywhereReplaced(ctx context.Context, r cluster.Revocation) error {
	slot := r.Generation.Slot
	own := p.at(p.Settings.Node, slot)
	if len(own) == 0 {
		var err error
		if own, err = p.inspect(ctx, []cert.Slot{slot}); err != nil {
			return fmt.Errorf("nothing is revoked yet: what %s serves: %w", p.Settings.Node, err)
		}
	}
	node, why := p.Settings.Node, keeps(own, r.Generation.Fingerprint)
	for _, v := range p.peers {
		if why == "" && v.reachable() {
			node, why = v.Name(), keeps(p.at(v.Name(), slot), r.Generation.Fingerprint)
		}
	}
	if why == "" {
		return nil
	}
	return cluster.WithHint(fmt.Errorf("nothing is revoked yet: %s does not serve the replacement: %s", node, why),
		"see to %s: then it goes on by itself, or by certsync revoke %[2]s; to revoke it all the same: certsync revoke %[2]s --now", node, slot.Name)
}

// keeps says why a node with these placements still serves a certificate, or would after a restart; "" where it does not.
func keeps(placements []cluster.Placement, fingerprint cert.Fingerprint) string {
	for _, pl := range placements {
		still := pl.Disk.Fingerprint == fingerprint || pl.Memory.Fingerprint == fingerprint || pl.Served.Fingerprint == fingerprint
		switch pl.Outcome {
		case cluster.Skipped:
		case cluster.Done, cluster.Unchanged, cluster.Unproven, cluster.DiskOnly, "":
			if still {
				return cmp.Or(pl.Error, "it still has the certificate that is to be revoked")
			}
		default:
			return cmp.Or(pl.Error, string(pl.Outcome))
		}
	}
	return ""
}

// tellCA has the CA revoke the certificate, and records what came of it.
func (p *pass) tellCA(ctx context.Context, r cluster.Revocation) cluster.RevocationReport {
	p.tell("revoke", r.Generation.Slot, "", "asking %s to revoke generation %d (%s): %s", r.Directory, r.Generation.Sequence, r.Generation.Fingerprint.Short(), r.Reason)
	err := p.askRevocation(ctx, r)
	if err == nil {
		failpoint.Hit("reconcile.revoked")
		p.tell("revoke", r.Generation.Slot, "", "the CA has revoked generation %d (%s)", r.Generation.Sequence, r.Generation.Fingerprint.Short())
		r.End, r.Problem, r.NextTry = cluster.RevocationDone, "", time.Time{}
		out := revocationReport(r, cluster.Done, nil)
		out.Tombstone, out.Revoked = true, true
		if err := p.revised(ctx, r); err != nil {
			p.warn("%s: %v", r, err) // the CA says so again when it is asked again
		}
		return out
	}
	outcome, err := failure(ctx, err)
	if outcome != cluster.Failure {
		out := revocationReport(r, outcome, err)
		out.Tombstone = true
		return out
	}
	return p.notRevoked(ctx, r, err)
}

// notRevoked records that the CA did not revoke, and when it is asked again, unless it will never do it.
func (p *pass) notRevoked(ctx context.Context, r cluster.Revocation, err error) cluster.RevocationReport {
	issue, _ := errors.AsType[*cluster.IssueError](err)
	r.Tries, r.Problem = r.Tries+1, oneLine(err.Error())
	out := revocationReport(r, cluster.Failure, err)
	out.Tombstone = true
	if issue != nil {
		out.Hint = issue.Hint
	}
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) || issue != nil && issue.Dead {
		r.End, r.NextTry = cluster.RevocationRefused, time.Time{}
		out.Error += "; it is not asked again"
		out.Hint = cmp.Or(out.Hint, "mend that, then: certsync revoke "+r.Generation.Name+" --generation "+r.Generation.Fingerprint.Short())
	} else {
		r.NextTry, _ = nextTry(issue, backoff(r.Tries, cert.Generation{}, p.Now(), 0, r.Generation.Fingerprint.String()), p.Now())
		out.NextTry = r.NextTry
		p.wakeAt(r.NextTry)
	}
	if err := p.revised(ctx, r); err != nil {
		p.warn("%s: %v", r, err)
	}
	return out
}

// askRevocation is the request, for as long as this node is MASTER.
func (p *pass) askRevocation(ctx context.Context, r cluster.Revocation) error {
	revoker, ok := p.Issuer.(Revoker)
	if !ok {
		return fmt.Errorf("revoke: %w", errors.ErrUnsupported)
	}
	bundle, err := p.Store.Bundle(ctx, r.Generation)
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		return fmt.Errorf("records held: %w", err)
	}
	account, _ := cluster.PreferredAccount(records.Accounts, r.Directory) // without one, the certificate's key signs
	master, cancel := p.whileMaster(ctx)
	defer cancel()
	limited, end := context.WithTimeout(master, revokeTimeout)
	defer end()
	return demoted(master, revoker.Revoke(limited, account, bundle, r.Reason))
}

// revised records a change of a revocation, also where the pass was told to end.
func (p *pass) revised(ctx context.Context, r cluster.Revocation) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordsTimeout)
	defer cancel()
	r.Revision++
	if err := p.record(ctx, cluster.Records{Revocations: []cluster.Revocation{r}}); err != nil {
		return fmt.Errorf("record how it stands: %w", err)
	}
	return nil
}

// wakeAt has the report say that there is something to be done at an instant.
func (p *pass) wakeAt(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Next = earliest(p.report.Next, at)
}

// judgeRevocations gives each revocation what is in service instead, and the pass their worst outcome.
func (p *pass) judgeRevocations(ctx context.Context) {
	if len(p.report.Revocations) == 0 {
		return
	}
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		p.warn("%v", err)
	}
	newest, configured := newestBySlot(held, records.Tombstones), p.Settings.catalog()
	for i := range p.report.Revocations {
		r := &p.report.Revocations[i]
		if g := newest[r.Generation.Slot]; g.Fingerprint != r.Generation.Fingerprint && configured.configured(g.Slot) {
			r.Replacement = g // what is not configured any more nothing brings in service
		}
		p.report.Outcome = cluster.Worse(p.report.Outcome, r.Outcome)
		if r.Tombstone && r.Replacement.IsZero() {
			p.warn("%s: generation %s has no replacement: where HAProxy has it, it goes on being served, and who checks for revocation refuses it",
				r.Generation.Slot, r.Generation.Fingerprint.Short())
		}
		if r.Error != "" && p.wanted.Revoke == nil { // who asked reads the revocation itself
			p.warn("%s: revocation of generation %s: %s", r.Generation.Slot, r.Generation.Fingerprint.Short(), r.Error)
		}
	}
}
