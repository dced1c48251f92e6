package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Facts is all that Due looks at for one slot.
type Facts struct {
	Now time.Time
	// Forced tells that a person asked for a new generation.
	Forced bool
	// Domains and KeyType are the configuration's.
	Domains []string
	KeyType cert.KeyType
	// Profile and Directory are what the CA is asked under.
	Profile, Directory string
	// Newest is the newest generation known, zero where there is none; Bundle tells of its bundle, and is zero where that
	// cannot be read.
	Newest cert.Generation
	Bundle cert.Summary
	// Released is the generation that was released last; it is later than Newest only where the store lost it.
	Released cert.Generation
	// Issued is the ledger's last entry that led to a certificate; zero where none is remembered.
	Issued cluster.Attempt
	// Order is the open order of the slot, nil where there is none.
	Order *cluster.Order
	// PutOff is the ledger's entry that forbids an attempt for now; zero where none does.
	PutOff cluster.Attempt
	// OtherConfig names the reachable peers that run another configuration.
	OtherConfig []string
}

// Verdict is what Due found.
type Verdict struct {
	// Reason says why a new generation is due; "" where none is.
	Reason string
	// Until is when an attempt is allowed, where one is due and the ledger forbids it now.
	Until time.Time
	// Held says what would be due, were it not for peers that run another configuration: they would refuse it, or hold
	// what theirs does not want.
	Held string
}

// Due tells whether a slot needs a new generation at f.Now. It is pure.
func Due(f Facts) Verdict {
	var v Verdict
	v.Reason = dueByItself(f)
	if v.Reason == "" {
		wanted := byConfiguration(f)
		if wanted != "" && len(f.OtherConfig) > 0 {
			v.Held = fmt.Sprintf("%s, but %s runs another configuration", wanted, strings.Join(f.OtherConfig, ", "))
		} else {
			v.Reason = wanted
		}
	}
	if v.Reason != "" && f.Now.Before(f.PutOff.Allowed()) {
		v.Until = f.PutOff.Allowed()
	}
	return v
}

func dueByItself(f Facts) string {
	switch {
	case f.Order != nil:
		return "an order is under way, at step " + f.Order.Step.String()
	case f.Forced:
		return "asked for"
	case f.Released.Newer(f.Newest):
		return fmt.Sprintf("generation %s, which was released, is lost", f.Released.Fingerprint.Short())
	case f.Newest.IsZero():
		return ""
	case !f.Now.Before(RenewAt(f.Newest)):
		return fmt.Sprintf("%s of %s left", shortDuration(f.Newest.Left(f.Now)), shortDuration(f.Newest.Lifetime()))
	}
	return ""
}

// byConfiguration says what the configuration asks for that is not there: a certificate at all, or another one.
func byConfiguration(f Facts) string {
	if f.Newest.IsZero() {
		return "none was issued yet"
	}
	return differs(f)
}

// differs says in what the newest bundle is not what the configuration wants. A bundle does not say under which profile
// and at which directory it was ordered: the ledger does, for as long as it remembers.
func differs(f Facts) string {
	switch i := f.Issued; {
	case f.Bundle.IsZero():
		return ""
	case i.ID != "" && i.Directory != f.Directory:
		return fmt.Sprintf("it was issued by %s, the configuration's directory is %s", i.Directory, f.Directory)
	case i.ID != "" && i.Profile != f.Profile:
		return fmt.Sprintf("its profile is %q, the configuration's %q", i.Profile, f.Profile)
	}
	if have, want := f.Bundle.Domains, cert.NormalDomains(f.Domains); !slices.Equal(have, want) {
		return fmt.Sprintf("its names are [%s], the configuration's [%s]", strings.Join(have, " "), strings.Join(want, " "))
	}
	if have := f.Bundle.KeyType; have != f.KeyType {
		return fmt.Sprintf("its key type is %s, the configuration's %s", have, f.KeyType)
	}
	return ""
}

// RenewAt is when a generation is due where the CA gives no renewal information: when a third of its lifetime is left,
// or half, where the lifetime is under 10 days (Let's Encrypt's advice for both).
func RenewAt(g cert.Generation) time.Time {
	life := g.Lifetime()
	if life < 10*24*time.Hour {
		return g.NotAfter.Add(-life / 2)
	}
	return g.NotAfter.Add(-life / 3)
}

// shortDuration is for a reader: days where it is days.
func shortDuration(d time.Duration) string {
	if d >= 48*time.Hour || d <= -48*time.Hour {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return d.Round(time.Second).String()
}

// candidate is a slot that is due.
type candidate struct {
	slot        cert.Slot
	certificate Certificate
	keyType     cert.KeyType
	order       *cluster.Order
	newest      cert.Generation
}

func (c candidate) identifiers() string {
	return cluster.Order{Domains: c.certificate.Domains}.Identifiers()
}

// due judges every configured slot, from the records as they stand after adopt, and gives the newest generations of
// those that need no new one. On a node that is not MASTER nothing is ever due. An open order comes before a new one of
// the same identifiers.
func (p *pass) due(ctx context.Context) (due []candidate, settled []cert.Generation, err error) {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return nil, nil, err
	}
	know := p.know(records)
	newest := newestBySlot(held, records.Tombstones)
	for _, c := range p.Settings.Certificates {
		for _, slot := range c.Slots() {
			cand := candidate{slot: slot, certificate: c, keyType: c.keyType(slot.Algorithm), newest: newest[slot]}
			p.row(slot, func(row *cluster.CertificateReport) { row.Newest = cand.newest })
			if p.seen.Role == cluster.Master && !p.wanted.NoOrders && p.judge(ctx, &cand, know) {
				due = append(due, cand)
			} else {
				settled = append(settled, cand.newest)
			}
		}
	}
	slices.SortStableFunc(due, func(a, b candidate) int {
		switch {
		case a.order != nil && b.order == nil:
			return -1
		case a.order == nil && b.order != nil:
			return 1
		}
		return 0
	})
	return due, settled, nil
}

// knowledge is what the records say, by slot.
type knowledge struct {
	accounts    []cluster.Account
	orders      map[cert.Slot][]cluster.Order
	ledger      map[cert.Slot][]cluster.Attempt // each sorted by time
	released    map[cert.Slot]cert.Generation
	otherConfig []string
}

func (p *pass) know(records cluster.Records) knowledge {
	k := knowledge{accounts: records.Accounts, orders: map[cert.Slot][]cluster.Order{}, ledger: map[cert.Slot][]cluster.Attempt{},
		released: releasedBySlot(records), otherConfig: p.otherConfig()}
	for _, o := range records.Orders {
		k.orders[o.Slot] = append(k.orders[o.Slot], o)
	}
	for _, a := range records.Ledger {
		k.ledger[a.Slot] = append(k.ledger[a.Slot], a)
	}
	return k
}

// judge gathers the facts of one slot and writes the verdict into the report.
func (p *pass) judge(ctx context.Context, c *candidate, know knowledge) bool {
	f := p.facts(ctx, c, know)
	c.order = f.Order
	v := Due(f)
	if v.Held != "" {
		p.hold(c, v.Held)
	}
	if v.Reason == "" {
		return false
	}
	p.tell("due", c.slot, "", "%s", v.Reason)
	p.row(c.slot, func(row *cluster.CertificateReport) { row.Due = v.Reason })
	if !v.Until.IsZero() {
		p.putOff(c.slot, &cluster.PutOffError{Until: v.Until, Cause: cmp.Or(f.PutOff.Problem, "the last try failed")})
		return false
	}
	return true
}

// hold reports what is not ordered because peers run another configuration. A slot of which there is nothing waits, and
// must not pass for good; one that has a certificate goes on with that.
func (p *pass) hold(c *candidate, held string) {
	if c.newest.IsZero() {
		p.fail(c.slot, cluster.Waiting, cluster.WithHint(errors.New(held),
			"make the configuration the same on every node, or name it to obtain it now: certsync issue %s", c.slot.Name))
		return
	}
	p.warn("%s: %s: not renewed for that until all nodes have the same configuration", c.slot, held)
}

func (p *pass) facts(ctx context.Context, c *candidate, know knowledge) Facts {
	f := Facts{Now: p.Now(), Domains: c.certificate.Domains, KeyType: c.keyType, Profile: c.certificate.Profile,
		Directory: p.Issuer.Directory(), Newest: c.newest, Forced: p.forced[c.slot.Name], OtherConfig: know.otherConfig, Released: know.released[c.slot]}
	if !c.newest.IsZero() {
		var err error
		if f.Bundle, err = p.Store.Summary(ctx, c.newest); err != nil {
			p.warn("generation %s of %s: %v", c.newest.Fingerprint.Short(), c.slot, err)
		}
	}
	ours := orders{Settings{Certificates: []Certificate{c.certificate}}, f.Directory, cluster.Records{Accounts: know.accounts, Orders: know.orders[c.slot]}, f.Now}
	if o, ok := ours.toTakeUp(c.slot); ok {
		f.Order = &o
	}
	if a, ok := cluster.NextTry(know.ledger[c.slot], c.slot, f.Directory, f.Now); ok {
		f.PutOff = a
	}
	for _, a := range know.ledger[c.slot] {
		if a.End == cluster.Issued {
			f.Issued = a
		}
	}
	return f
}

// putOff writes into the report until when an attempt is forbidden, and why.
func (p *pass) putOff(slot cert.Slot, err *cluster.PutOffError) {
	p.row(slot, func(row *cluster.CertificateReport) {
		row.Outcome, row.NextTry, row.Error = cluster.PutOff, err.Until, oneLine(err.Cause)
		row.Hint = "wait until then: the CA counts tries that come earlier"
	})
}

// otherConfig names the reachable peers whose configuration differs in acme, dns or certificates.
func (p *pass) otherConfig() []string {
	var names []string
	for _, v := range p.peers {
		if v.reachable() && v.digest() != p.Settings.Digest {
			names = append(names, v.Name())
		}
	}
	return names
}
