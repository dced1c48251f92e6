package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// restoration is an earlier generation that is to become the newest of its slot.
type restoration struct {
	slot     cert.Slot
	from, to cert.Generation
	bundle   *cert.Bundle
}

// rollBack makes the earlier generations that a person asked for the newest of their slots: the bundle is the same, the
// sequence is the highest known plus one, and what follows is the way of any new generation. All of them are chosen before
// the first is kept.
func (p *pass) rollBack(ctx context.Context) error {
	if p.wanted.Rollback == nil {
		return nil
	}
	c := *p.wanted.Rollback
	if _, ok := p.Settings.certificate(c.Name); !ok {
		return p.Settings.unknownName(c.Name)
	}
	shelves, err := p.shelves(ctx, c)
	if err != nil {
		return err
	}
	var plan []restoration
	met := false
	for _, s := range shelves {
		r, found, err := p.earlier(ctx, c, s)
		if err != nil {
			return err
		}
		met = met || found
		if r.bundle != nil {
			plan = append(plan, r)
		}
	}
	if !met {
		return unknown(c, shelves)
	}
	for _, r := range plan {
		if err := p.restore(ctx, r); err != nil {
			return cluster.WithHint(fmt.Errorf("put generation %s of %s back: %w", r.to.Fingerprint.Short(), r.slot, err),
				"mend that, then: certsync rollback %s --to %s", c.Name, r.to.Fingerprint.Short())
		}
	}
	return nil
}

// shelves are those of the slots that c means, of the configured ones.
func (p *pass) shelves(ctx context.Context, c Choice) ([]shelf, error) {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := p.Settings.slots(c, nil)
	if err != nil {
		return nil, err
	}
	var out []shelf
	for _, slot := range slots {
		out = append(out, p.shelf(slot, held, records))
	}
	return out, nil
}

// earlier is what a rollback puts in place of the newest generation of a slot; without a bundle where that is done already,
// and only to be brought in service. found is false where c names a generation that the slot has not.
func (p *pass) earlier(ctx context.Context, c Choice, s shelf) (r restoration, found bool, err error) {
	if c.Generation == "" {
		r, err = p.lastGood(ctx, s)
		return r, true, err
	}
	g, err := s.find(c)
	switch {
	case err != nil || g.IsZero():
		return restoration{}, false, err
	case g.Fingerprint == s.newest.Fingerprint:
		p.tell("rollback", s.slot, "", "generation %d (%s) is the newest already", s.newest.Sequence, g.Fingerprint.Short())
		return restoration{}, true, nil
	}
	bundle, err := p.sound(ctx, s, g)
	if err != nil {
		return restoration{}, true, cluster.WithHint(fmt.Errorf("generation %d (%s) of %s cannot be put back: %w", g.Sequence, g.Fingerprint.Short(), s.slot, err),
			"see certsync rollback %s --list", c.Name)
	}
	return restoration{s.slot, s.newest, g, bundle}, true, nil
}

// lastGood is the newest generation before the newest that is sound and has all the names of the configuration. A rollback
// that was cut off before its release is gone on with: it would be undone otherwise.
func (p *pass) lastGood(ctx context.Context, s shelf) (restoration, error) {
	if s.cutOff() {
		p.tell("rollback", s.slot, "", "generation %d (%s) was put back before and not released: it goes on", s.newest.Sequence, s.newest.Fingerprint.Short())
		return restoration{}, nil
	}
	var against []string
	tried := map[cert.Fingerprint]bool{s.newest.Fingerprint: true}
	for _, g := range slices.Backward(s.held) {
		if tried[g.Fingerprint] {
			continue
		}
		tried[g.Fingerprint] = true
		bundle, err := p.sound(ctx, s, g)
		if err == nil {
			err = p.covers(s.slot, bundle)
		}
		if err == nil {
			return restoration{s.slot, s.newest, g, bundle}, nil
		}
		against = append(against, fmt.Sprintf("%d (%s): %s", g.Sequence, g.Fingerprint.Short(), oneLine(err.Error())))
	}
	if len(against) == 0 {
		against = []string{"no other is held"}
	}
	return restoration{}, cluster.WithHint(fmt.Errorf("%s: no earlier generation can be put back: %s", s.slot, strings.Join(against, "; ")),
		"obtain a new one: certsync issue %s", s.slot.Name)
}

// cutOff tells that the newest generation is one that was put back and not yet released.
func (s shelf) cutOff() bool {
	return !s.newest.IsZero() && !same(s.newest, s.released) && slices.ContainsFunc(s.held, func(g cert.Generation) bool {
		return g.Fingerprint == s.newest.Fingerprint && s.newest.Newer(g)
	})
}

// sound gives the bundle of a generation that may be put back: every node would take it.
func (p *pass) sound(ctx context.Context, s shelf, g cert.Generation) (*cert.Bundle, error) {
	switch {
	case s.tombs[g.Fingerprint]:
		return nil, cluster.ErrRevoked
	case s.condemned[g.Fingerprint]:
		return nil, fmt.Errorf("it is to be revoked: %w", cluster.ErrRevoked)
	}
	bundle, err := p.Store.Bundle(ctx, g)
	if err != nil {
		return nil, err
	}
	c, _ := p.Settings.certificate(s.slot.Name)
	if err := p.Settings.checkBundle(c, bundle, p.Now()); err != nil {
		return nil, err
	}
	return bundle, nil
}

// covers wants a bundle to have all the names of the configuration.
func (p *pass) covers(slot cert.Slot, bundle *cert.Bundle) error {
	c, _ := p.Settings.certificate(slot.Name)
	names := bundle.Domains()
	if lacking := slices.DeleteFunc(slices.Clone(c.Domains), func(d string) bool { return slices.Contains(names, d) }); len(lacking) > 0 {
		return fmt.Errorf("%w: it lacks %s", cert.ErrNames, strings.Join(lacking, " "))
	}
	return nil
}

// restore keeps an earlier bundle as the newest generation, checked as if it came from a peer. That its renewal waits is
// recorded first: killed in between, a renewal comes a day late at the most, and the rollback is not undone.
func (p *pass) restore(ctx context.Context, r restoration) error {
	if err := p.fence(ctx); err != nil {
		return err
	}
	until, err := p.holdRenewal(ctx, r)
	if err != nil {
		return err
	}
	failpoint.Hit("reconcile.held")
	sequence, err := p.nextSequence(ctx, r.slot)
	if err != nil {
		return err
	}
	g := r.bundle.Generation(r.slot.Name, sequence)
	door, err := p.door(ctx)
	if err != nil {
		return err
	}
	if err := door.admit(ctx, cluster.Kept{Generation: g, Bundle: r.bundle}); err != nil {
		return err
	}
	failpoint.Hit("reconcile.restored")
	p.row(r.slot, func(row *cluster.CertificateReport) { row.RolledBackFrom = r.from })
	p.tell("rollback", r.slot, "", "generation %d is the bundle of %d (%s) again, valid until %s", g.Sequence, r.to.Sequence, g.Fingerprint.Short(),
		g.NotAfter.Format(time.DateOnly))
	if reason := p.soonRenewed(ctx, r, g); reason != "" {
		p.warn("%s: generation %s is due for renewal: %s; that waits until %s, and then ends the rollback, as certsync issue does at any time: mend the cause until then",
			r.slot, g.Fingerprint.Short(), reason, until.Format(time.RFC3339))
	}
	return nil
}

// holdRenewal puts the renewal of what is put back off by a day, but by no more than a tenth of the life that it has left:
// an earlier certificate is mostly due, and renewed at once it would be what was rolled back from. It is an entry of the
// ledger, so that every node knows of it; what a person asks for by `certsync issue` does not wait.
func (p *pass) holdRenewal(ctx context.Context, r restoration) (time.Time, error) {
	now := p.Now().UTC()
	c, _ := p.Settings.certificate(r.slot.Name)
	until := now.Add(min(dailyStep, longestPause(r.to, now)))
	entry := cluster.Attempt{ID: randomID(), Node: p.Settings.Node, Slot: r.slot, Directory: p.Issuer.Directory(), Domains: c.Domains,
		Profile: c.Profile, Time: now, End: cluster.Canceled, NextTry: until,
		Problem: fmt.Sprintf("generation %s was put back by certsync rollback", r.to.Fingerprint.Short())}
	if err := p.record(ctx, cluster.Records{Ledger: []cluster.Attempt{entry}}); err != nil {
		return until, fmt.Errorf("record that its renewal waits: %w", err)
	}
	return until, nil
}

// soonRenewed says why g, which was put back, would be renewed as soon as that is allowed; "" where it would not be.
func (p *pass) soonRenewed(ctx context.Context, r restoration, g cert.Generation) string {
	c, _ := p.Settings.certificate(r.slot.Name)
	f := Facts{Now: p.Now(), Newest: g, Bundle: r.bundle.Summary(), Domains: c.Domains, KeyType: c.keyType(r.slot.Algorithm)}
	if reason := differs(f); reason != "" {
		return reason
	}
	if !f.Now.Before(renewByLifetime(g)) {
		return f.age()
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		return ""
	}
	if o, ok := p.orders(records).toTakeUp(r.slot); ok {
		return "an order is under way, at step " + o.Step.String()
	}
	return ""
}
