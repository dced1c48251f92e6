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
	// Wake is when the caller makes the next pass, where it is not woken at Report.Next; zero where it is.
	Wake time.Time
	// Node is this node; Place its place among the nodes of the configuration, from 0; Apart tells that a peer cannot be
	// reached, which may be MASTER too.
	Node  string
	Place int
	Apart bool
	// Forced tells that a person asked for a new generation, ByHand that a person asked for that or for the pass.
	Forced, ByHand bool
	// Condemned is the latest generation that is revoked or to be revoked; zero where none is.
	Condemned cluster.Revocation
	// StillDue is why the slot was found to be due in this pass, where nothing came of that; "" before.
	StillDue string
	// Domains and KeyType are the configuration's.
	Domains []string
	KeyType cert.KeyType
	// Profile and Directory are what the CA is asked under.
	Profile, Directory string
	// Newest is the newest generation known, zero where there is none; Bundle tells of its bundle, and is zero where that
	// cannot be read.
	Newest cert.Generation
	Bundle cert.Summary
	// Renewal is what is known of when the CA wants Newest to be renewed; zero where nothing is.
	Renewal cluster.RenewalInfo
	// Released is the generation that was released last; it is later than Newest only where the store lost it.
	Released cert.Generation
	// Issued is the ledger's last entry that led to a certificate; zero where none is remembered.
	Issued cluster.Attempt
	// Earlier is when the certificate before that was ordered; zero where none is remembered.
	Earlier time.Time
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
	// Next is when something is to be done for the slot: now, where it is due and allowed; else the instant at which it
	// will be, or at which the CA is to be asked for its window. Zero where there is none.
	Next time.Time
}

// Due tells whether a slot needs a new generation at f.Now, and when there is something to be done next. It is pure.
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
	switch allowed := f.PutOff.Allowed(); {
	case v.Reason == "":
		v.Next = earliest(f.dueAt(), f.askAt())
	case f.Now.Before(allowed):
		v.Until, v.Next = allowed, allowed
	default:
		v.Next = f.Now
	}
	return v
}

func dueByItself(f Facts) string {
	switch {
	case f.Order != nil:
		return "an order is under way, at step " + f.Order.Step.String()
	case replacementDue(f.Condemned, f.Newest) != "":
		return replacementDue(f.Condemned, f.Newest)
	case f.Forced:
		return "asked for"
	case f.StillDue != "":
		return f.StillDue
	case f.Released.Newer(f.Newest):
		return fmt.Sprintf("generation %s, which was released, is lost", f.Released.Fingerprint.Short())
	case f.Newest.IsZero():
		return ""
	case f.ripe():
		return f.age()
	}
	return ""
}

// agesAt is when the newest generation is due, where nothing but its age makes a new one due; else zero.
func (f Facts) agesAt() time.Time {
	at := f.dueAt()
	if at.IsZero() || f.Now.Before(at) || f.Order != nil || f.ByHand || f.Released.Newer(f.Newest) || byConfiguration(f) != "" {
		return time.Time{}
	}
	return at
}

// age says how far the newest generation is, and, where the CA wants it renewed earlier than its lifetime does, that.
func (f Facts) age() string {
	text := fmt.Sprintf("%s of %s left", shortDuration(f.Newest.Left(f.Now)), shortDuration(f.Newest.Lifetime()))
	if info := f.ownWord(); info.Suggested() {
		text += fmt.Sprintf("; the CA suggests a renewal between %s and %s", info.Start.UTC().Format(time.RFC3339), info.End.UTC().Format(time.RFC3339))
		if info.Explanation != "" {
			text += ", see " + info.Explanation
		}
	}
	return text
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
	if !f.sameNames() {
		return fmt.Sprintf("its names are [%s], the configuration's [%s]", strings.Join(f.Bundle.Domains, " "),
			strings.Join(cert.NormalDomains(f.Domains), " "))
	}
	if have := f.Bundle.KeyType; have != f.KeyType {
		return fmt.Sprintf("its key type is %s, the configuration's %s", have, f.KeyType)
	}
	return ""
}

// sameNames tells that the newest bundle, as far as it can be read, has the configuration's names.
func (f Facts) sameNames() bool {
	return !f.Bundle.IsZero() && slices.Equal(f.Bundle.Domains, cert.NormalDomains(f.Domains))
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
	past        history
	// renews is as what the CA will count a new order's certificate.
	renews cluster.Renews
	// elsewhere tells that another directory than the configuration's gave the newest certificate.
	elsewhere bool
	// dueAt is when the newest generation comes due, where nothing but that asks for a new one; else zero.
	dueAt time.Time
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
	heads := newestBySlot(held, records.Tombstones)
	var all []candidate
	var newest []cert.Generation
	for _, c := range p.Settings.Certificates {
		for _, slot := range c.Slots() {
			cand := candidate{slot: slot, certificate: c, keyType: c.keyType(slot.Algorithm), newest: heads[slot]}
			p.row(slot, func(row *cluster.CertificateReport) { row.Newest = cand.newest })
			all, newest = append(all, cand), append(newest, cand.newest)
		}
	}
	past := chronicleOf(records, p.Issuer.Directory(), p.Now())
	p.ask(ctx, newest, past)
	p.budget = newBudget(p.Issuer.Directory(), records, p.Now())
	base := p.surroundings()
	for _, cand := range all {
		cand.past = past.of(cand.slot)
		if p.mayOrder(cand.slot) && p.judge(ctx, &cand, know, base) {
			due = append(due, cand)
		} else {
			settled = append(settled, cand.newest)
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
	revocations []cluster.Revocation
	orders      map[cert.Slot][]cluster.Order
	released    map[cert.Slot]cert.Generation
	condemned   map[cert.Slot]cluster.Revocation
}

func (p *pass) know(records cluster.Records) knowledge {
	k := knowledge{accounts: records.Accounts, revocations: records.Revocations, orders: map[cert.Slot][]cluster.Order{},
		released: releasedBySlot(records), condemned: condemnedBySlot(records.Revocations, p.Now())}
	for _, o := range records.Orders {
		k.orders[o.Slot] = append(k.orders[o.Slot], o)
	}
	return k
}

// judge gathers the facts of one slot and writes the verdict into the report.
func (p *pass) judge(ctx context.Context, c *candidate, know knowledge, base Facts) bool {
	f := p.facts(ctx, c, know, base)
	c.order, c.renews, c.elsewhere, c.dueAt = f.Order, f.renews(), f.elsewhere(), f.agesAt()
	v := Due(f)
	if v.Held != "" {
		p.hold(c, v.Held)
	}
	if v.Reason == "" {
		if f.waits() {
			p.tell("due", c.slot, "", "due, and put off until %s: a peer cannot be reached, and may be MASTER too", f.dueAt().UTC().Format(time.RFC3339))
		}
		return false
	}
	p.tell("due", c.slot, "", "%s", v.Reason)
	p.row(c.slot, func(row *cluster.CertificateReport) { row.Due = v.Reason })
	if !v.Until.IsZero() {
		p.putOff(c.slot, &cluster.PutOffError{Until: v.Until, Cause: cmp.Or(f.PutOff.Problem, "the last try failed")})
		if !f.PutOff.RetryAfter {
			p.row(c.slot, func(row *cluster.CertificateReport) {
				row.Hint = fmt.Sprintf("it is tried again then; once the cause is mended: certsync issue %s", c.slot.Name)
			})
		}
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

func (p *pass) facts(ctx context.Context, c *candidate, know knowledge, base Facts) Facts {
	f := base.of(c.newest, c.past)
	f.Domains, f.KeyType, f.Profile = c.certificate.Domains, c.keyType, c.certificate.Profile
	f.Forced, f.ByHand, f.Wake = p.forced[c.slot.Name], p.byHand(c.slot), p.wanted.Wake
	f.Released, f.Condemned = know.released[c.slot], know.condemned[c.slot]
	f.PutOff = c.past.putOff(c.newest, f.Now, f.ByHand)
	if !c.newest.IsZero() {
		var err error
		if f.Bundle, err = p.Store.Summary(ctx, c.newest); err != nil {
			p.warn("generation %s of %s: %v", c.newest.Fingerprint.Short(), c.slot, err)
		}
	}
	records := cluster.Records{Accounts: know.accounts, Orders: know.orders[c.slot], Revocations: know.revocations}
	ours := orders{Settings{Certificates: []Certificate{c.certificate}}, f.Directory, records, f.Now}
	if o, ok := ours.toTakeUp(c.slot); ok {
		f.Order = &o
	}
	return f
}

// byHand tells that a person asked for the pass, or for the slot.
func (p *pass) byHand(slot cert.Slot) bool {
	return p.wanted.MasterOnly || p.forced[slot.Name]
}

// surroundings are the facts that are the same for every slot.
func (p *pass) surroundings() Facts {
	return Facts{Now: p.Now(), Node: p.Settings.Node, Place: p.Settings.Place, Apart: p.apart(), Directory: p.Issuer.Directory(),
		OtherConfig: p.otherConfig()}
}

// of are the facts with those of a slot that the records tell.
func (f Facts) of(newest cert.Generation, past history) Facts {
	f.Newest, f.Renewal, f.Issued, f.Earlier = newest, past.renewal, past.issued, past.earlier
	return f
}

// apart tells that a peer cannot be reached.
func (p *pass) apart() bool {
	return slices.ContainsFunc(p.peers, func(v *peerView) bool { return !v.reachable() })
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
