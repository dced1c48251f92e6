package reconcile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

const (
	// orderLife is how long an order counts as open before the CA's "expires" is known: Let's Encrypt's is 7 days.
	orderLife = 7 * 24 * time.Hour
	// lastWordsTimeout bounds the writes that are made after the caller gave up: what was obtained is kept, and how it
	// ended recorded.
	lastWordsTimeout = 30 * time.Second
	// mostClaimed bounds what a peer's word is worth to a node that holds nothing, and cannot tell a jump: the sequences
	// of a slot must not be used up by a lie.
	mostClaimed = 1 << 40
)

// obtain gets a new generation for one slot, and gives the one that is to be in service: the new one, or, where none
// could be had, the newest there was. Everything that it does at the CA is on disk, here and at the reachable peers,
// before it is done.
func (p *pass) obtain(ctx context.Context, c candidate) cert.Generation {
	begun := p.pace.begun()
	kept, resumed, err := p.order(ctx, c)
	p.heed(begun, !kept.IsZero(), err)
	p.row(c.slot, func(row *cluster.CertificateReport) {
		row.Resumed = resumed
		if !kept.IsZero() {
			row.Newest, row.Ordered = kept, true
		}
	})
	if err != nil {
		p.tell("obtain", c.slot, "", "failed: %v", err)
		p.failIssue(ctx, c.slot, err)
		return c.newest
	}
	p.tell("keep", c.slot, "", "generation %d (%s), valid until %s", kept.Sequence, kept.Fingerprint.Short(), kept.NotAfter.Format(time.DateOnly))
	return kept
}

// failIssue writes why no certificate could be had into the report: put off, where the CA said when it may be asked.
func (p *pass) failIssue(ctx context.Context, slot cert.Slot, err error) {
	if putOff, ok := errors.AsType[*cluster.PutOffError](err); ok {
		p.putOff(slot, putOff)
		if hint := cluster.HintOf(err); hint != "" {
			p.row(slot, func(row *cluster.CertificateReport) { row.Hint = hint })
		}
		return
	}
	issue, ok := errors.AsType[*cluster.IssueError](err)
	if ok && issue.RetryAfter {
		p.putOff(slot, &cluster.PutOffError{Until: issue.NextTry, Cause: err.Error()})
		return
	}
	outcome, err := failure(ctx, err)
	p.fail(slot, outcome, err)
	if ok {
		p.row(slot, func(row *cluster.CertificateReport) {
			row.NextTry = issue.NextTry
			if row.Hint == "" {
				row.Hint = issue.Hint
			}
		})
	}
}

// order drives one order from where it is to a kept generation.
func (p *pass) order(ctx context.Context, c candidate) (kept cert.Generation, resumed bool, err error) {
	if err := p.fence(ctx); err != nil {
		return kept, false, err
	}
	if err := p.clockAllows(ctx, c); err != nil {
		return kept, false, err
	}
	order, renews, err := p.takeUp(ctx, c)
	if err != nil {
		return kept, false, err
	}
	resumed = order.URL != ""
	if g, ok := p.keptAlready(ctx, order); ok {
		return g, true, p.recordIssued(ctx, order)
	}
	attempt := cluster.Attempt{ID: randomID(), Node: p.Settings.Node, Slot: c.slot, Directory: order.Directory, Domains: order.Domains,
		Profile: order.Profile, Order: order.ID, Resumed: resumed, Renews: renews, Time: p.Now().UTC()}
	if err := p.record(ctx, cluster.Records{Orders: []cluster.Order{order}, Ledger: []cluster.Attempt{attempt}}); err != nil {
		return kept, resumed, fmt.Errorf("record the attempt: %w", err)
	}
	failpoint.Hit("reconcile.recorded")
	bundle, order, err := p.drive(ctx, order)
	if err != nil {
		return kept, resumed, errors.Join(err, p.recordFailure(ctx, order, attempt, err))
	}
	failpoint.Hit("reconcile.issued")
	kept, err = p.keep(ctx, order, attempt, bundle)
	return kept, resumed, err
}

// takeUp is the order to drive, and as what the CA will count its certificate: the open one, or a new one with a key of
// its own. What else is open for the slot, or for the same names and nobody's any more, ends here.
func (p *pass) takeUp(ctx context.Context, c candidate) (cluster.Order, cluster.Renews, error) {
	order, renews, err := p.openOrNew(ctx, c)
	if err != nil {
		return cluster.Order{}, "", err
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		return cluster.Order{}, "", fmt.Errorf("records held: %w", err)
	}
	if ended := p.orders(records).givenUp(c.slot, c.identifiers(), order.ID); len(ended) > 0 {
		return order, renews, p.record(ctx, cluster.Records{Orders: ended})
	}
	return order, renews, nil
}

func (p *pass) openOrNew(ctx context.Context, c candidate) (cluster.Order, cluster.Renews, error) {
	records, err := p.Store.Records(ctx)
	if err != nil {
		return cluster.Order{}, "", fmt.Errorf("records held: %w", err)
	}
	if c.order != nil {
		order := *c.order
		if order.Node != p.Settings.Node { // that it is taken up the CA's adapter tells
			p.tell("obtain", c.slot, "", "order %s was begun on %s", order.ID[:min(8, len(order.ID))], order.Node)
		}
		order.Node = p.Settings.Node
		return order, renewsOf(records.Ledger, order.ID), nil
	}
	all := p.orders(records)
	if other, ok := all.inTheWay(c.slot, c.identifiers()); ok {
		return cluster.Order{}, "", all.wait(other, p.byHand(c.slot))
	}
	replaces := p.replaces(ctx, c)
	if c.renews == cluster.RenewsInWindow && replaces == "" {
		c.renews = cluster.RenewsNames
	}
	if err := p.budget.take(c.certificate.Domains, c.renews, p.Now()); err != nil {
		return cluster.Order{}, "", err
	}
	account, err := p.accountKey(ctx)
	if err != nil {
		return cluster.Order{}, "", err
	}
	order, err := newOrder(c.slot, c.certificate, c.keyType, account, p.Settings.Node, p.Now())
	order.Replaces = replaces
	return order, c.renews, err
}

// replaces is the identifier of the certificate that an order renews (RFC 9773 section 5), "" where there is none, or
// where another CA gave it.
func (p *pass) replaces(ctx context.Context, c candidate) string {
	if c.newest.IsZero() || c.elsewhere {
		return ""
	}
	bundle, err := p.Store.Bundle(ctx, c.newest)
	if err != nil {
		return "" // the order is made without; the pass warned of the bundle
	}
	id, err := bundle.RenewalID()
	if err != nil {
		return "" // so the CA cannot know it by one either
	}
	return id
}

// renewsOf is what was said of an order's first attempt.
func renewsOf(ledger []cluster.Attempt, order string) cluster.Renews {
	i := slices.IndexFunc(ledger, func(a cluster.Attempt) bool { return a.Order == order })
	if i < 0 {
		return cluster.RenewsNothing
	}
	return ledger[i].Renews
}

// newOrder is an order that is planned, with a key of its own.
func newOrder(slot cert.Slot, c Certificate, k cert.KeyType, account cluster.Account, node string, now time.Time) (cluster.Order, error) {
	key, err := k.Generate()
	if err != nil {
		return cluster.Order{}, fmt.Errorf("key of %s: %w", slot, err)
	}
	keyPEM, err := cert.EncodeKey(key)
	if err != nil {
		return cluster.Order{}, fmt.Errorf("key of %s: %w", slot, err)
	}
	now = now.UTC()
	return cluster.Order{ID: randomID(), Slot: slot, Domains: cert.NormalDomains(c.Domains), KeyType: k, Profile: c.Profile,
		Directory: account.Directory, Account: account.Thumbprint, Key: keyPEM, Step: cluster.StepPlanned, Node: node,
		Created: now, Expires: now.Add(orderLife)}, nil
}

// registration lets one of the certificates that are obtained side by side make the account, and the others know how
// that went.
type registration struct {
	mu  sync.Mutex
	err error // the CA's refusal: it is asked once a pass
}

// accountKey is the directory's account. A new one's key is on disk, here and at the peers, before the CA hears of it.
func (p *pass) accountKey(ctx context.Context) (cluster.Account, error) {
	p.account.mu.Lock()
	defer p.account.mu.Unlock()
	records, err := p.Store.Records(ctx)
	if err != nil {
		return cluster.Account{}, fmt.Errorf("records held: %w", err)
	}
	if account, ok := cluster.PreferredAccount(records.Accounts, p.Issuer.Directory()); ok {
		return account, nil
	}
	account, err := cluster.NewAccount(p.Issuer.Directory(), p.Settings.Email, p.Now())
	if err != nil {
		return cluster.Account{}, err
	}
	if err := p.record(ctx, cluster.Records{Accounts: []cluster.Account{account}}); err != nil {
		return cluster.Account{}, fmt.Errorf("record the account: %w", err)
	}
	failpoint.Hit("reconcile.account")
	return account, nil
}

// registered is the account of an order, registered at the CA where it is not yet: once for all.
func (p *pass) registered(ctx context.Context, order cluster.Order) (cluster.Account, error) {
	p.account.mu.Lock()
	defer p.account.mu.Unlock()
	records, err := p.Store.Records(ctx)
	if err != nil {
		return cluster.Account{}, fmt.Errorf("records held: %w", err)
	}
	account, ok := p.orders(records).account(order)
	switch {
	case !ok:
		return account, errNoKey
	case account.URL != "":
		return account, nil
	case p.account.err != nil:
		return account, p.account.err
	}
	if err := p.fence(ctx); err != nil {
		return account, err
	}
	p.tell("obtain", cert.Slot{}, "", "registering the account at %s", account.Directory)
	if account, err = p.Issuer.Register(ctx, account); err != nil {
		p.account.err = fmt.Errorf("account: %w", err)
		return account, p.account.err
	}
	failpoint.Hit("reconcile.registered")
	if err := p.record(ctx, cluster.Records{Accounts: []cluster.Account{account}}); err != nil {
		return account, fmt.Errorf("record the account: %w", err)
	}
	return account, nil
}

// keptAlready finds the generation that an order already led to: the process died between keeping it and saying so.
// The order's key is in no other bundle.
func (p *pass) keptAlready(ctx context.Context, order cluster.Order) (cert.Generation, bool) {
	if order.Step < cluster.StepFinalizing {
		return cert.Generation{}, false
	}
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return cert.Generation{}, false
	}
	key, err := cert.ParseKey(order.Key)
	if err != nil {
		return cert.Generation{}, false
	}
	for _, g := range held {
		if g.Slot != order.Slot || cluster.Revoked(records.Tombstones, g.Fingerprint) {
			continue
		}
		if b, err := p.Store.Bundle(ctx, g); err == nil && b.HasKey(key.Public()) {
			return cluster.Newest(held, records.Tombstones, g.Slot), true
		}
	}
	return cert.Generation{}, false
}

// recordIssued says of an order whose certificate is kept that it ended, and of its attempts.
func (p *pass) recordIssued(ctx context.Context, order cluster.Order) error {
	records, err := p.Store.Records(ctx)
	if err != nil {
		return fmt.Errorf("records held: %w", err)
	}
	order.End = cluster.Issued
	var attempts []cluster.Attempt
	for _, a := range records.Ledger {
		if a.Order == order.ID && a.End == cluster.Open {
			a.End = cluster.Issued
			attempts = append(attempts, a)
		}
	}
	return p.record(ctx, cluster.Records{Orders: []cluster.Order{order}, Ledger: attempts})
}

// drive lets the CA's adapter do the order's steps, each behind a checkpoint, for as long as this node is MASTER.
func (p *pass) drive(ctx context.Context, order cluster.Order) (*cert.Bundle, cluster.Order, error) {
	ctx, cancel := p.whileMaster(ctx)
	defer cancel()
	latest := order
	account, err := p.registered(ctx, order)
	if err != nil {
		return nil, latest, demoted(ctx, err)
	}
	var mu sync.Mutex
	checkpoint := func(ctx context.Context, o cluster.Order) error {
		mu.Lock()
		defer mu.Unlock()
		if err := p.checkpoint(ctx, o); err != nil {
			return err
		}
		latest = o
		return nil
	}
	var bundle *cert.Bundle
	if mistake := safely(func() { bundle, err = p.Issuer.Obtain(ctx, account, order, checkpoint) }); mistake != nil {
		err = mistake // a failed attempt, with a back-off as any other
	}
	mu.Lock()
	defer mu.Unlock()
	return bundle, latest, demoted(ctx, err)
}

// demoted is err, or the demotion that caused it.
func demoted(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, cluster.ErrNotMaster) {
		return cause
	}
	return err
}

// checkpoint is what must hold before an order's next step: this node is MASTER, no other open record drives the CA's
// order, and the record is on disk, here and at the peers that can be reached.
func (p *pass) checkpoint(ctx context.Context, o cluster.Order) error {
	if err := p.fence(ctx); err != nil {
		return err
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		return fmt.Errorf("records held: %w", err)
	}
	if err := p.orders(records).taken(o); err != nil {
		return err
	}
	if err := p.record(ctx, cluster.Records{Orders: []cluster.Order{o}}); err != nil {
		return fmt.Errorf("record order %s before step %s: %w", o.ID, o.Step, err)
	}
	failpoint.Hit("order." + o.Step.String())
	return nil
}

// keep makes the generation durable, then says that the order and the attempt ended. It is done also by a node that
// was demoted meanwhile, or told to end: what was obtained is kept and offered.
func (p *pass) keep(ctx context.Context, order cluster.Order, attempt cluster.Attempt, bundle *cert.Bundle) (cert.Generation, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordsTimeout)
	defer cancel()
	slot := order.Slot
	if err := bundle.Verify(cert.Want{Domains: order.Domains, KeyType: order.KeyType}); err != nil {
		p.warn("%s: the certificate that the CA gave: %v", slot, err)
	}
	if err := p.Settings.checkChain(bundle); err != nil {
		p.warn("%s: the certificate that the CA gave: %v (%s)", slot, err, cluster.HintOf(err))
	}
	sequence, err := p.nextSequence(ctx, slot)
	if err != nil {
		return cert.Generation{}, err
	}
	g := bundle.Generation(slot.Name, sequence)
	if g.Slot != slot {
		return cert.Generation{}, fmt.Errorf("the CA gave a certificate of %s for %s", g.Slot, slot)
	}
	if err := p.Store.Keep(ctx, cluster.Kept{Generation: g, Bundle: bundle}); err != nil {
		return cert.Generation{}, fmt.Errorf("keep generation %s: %w", g.Fingerprint.Short(), err)
	}
	failpoint.Hit("reconcile.kept")
	order.End, attempt.End = cluster.Issued, cluster.Issued
	if attempt.Renews == cluster.RenewsInWindow && order.Replaces == "" {
		attempt.Renews = cluster.RenewsNames // the CA did not take it for a replacement
	}
	p.checkAge(ctx, g, &attempt)
	if err := p.record(ctx, cluster.Records{Orders: []cluster.Order{order}, Ledger: []cluster.Attempt{attempt}}); err != nil {
		p.warn("%s: record that order %s ended: %v", slot, order.ID, err)
	}
	return g, nil
}

// nextSequence is the highest sequence known of a slot, here or at a peer, plus one. What a peer says that no node
// would take over counts for nothing.
func (p *pass) nextSequence(ctx context.Context, slot cert.Slot) (uint64, error) {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return 0, err
	}
	var known []cert.Generation
	for _, r := range records.Releases {
		known = append(known, r.Generation)
	}
	newest := cluster.Newest(held, nil, slot)
	for _, v := range p.peers {
		for _, g := range v.inv().Generations {
			if cluster.CheckJump(newest, g, p.Now()) == nil && g.Sequence < mostClaimed {
				known = append(known, g)
			}
		}
	}
	highest := uint64(0)
	for _, g := range slices.Concat(held, known) {
		if g.Slot == slot {
			highest = max(highest, g.Sequence)
		}
	}
	if highest == math.MaxUint64 {
		return 0, fmt.Errorf("sequence of %s: %d is the last that there is", slot, highest)
	}
	return highest + 1, nil
}

// recordFailure writes how the attempt ended. The caller's context may be dead: the record has its own time.
func (p *pass) recordFailure(ctx context.Context, order cluster.Order, attempt cluster.Attempt, cause error) error {
	attempt.End, attempt.Problem = cluster.Failed, oneLine(cause.Error())
	if outcome, _ := failure(ctx, cause); outcome != cluster.Failure || errors.Is(cause, context.Canceled) {
		attempt.End = cluster.Canceled
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordsTimeout)
	defer cancel()
	if errors.Is(cause, cluster.ErrOrderTaken) {
		// Its key went nowhere; the next try makes a new order once the other has ended.
		order.End, order.Problem = cluster.Failed, oneLine(cause.Error())
	}
	issue, ok := errors.AsType[*cluster.IssueError](cause)
	if ok && issue.Dead {
		order.End, order.Problem = cluster.Failed, oneLine(issue.Cause)
	}
	if attempt.End == cluster.Failed {
		attempt.NextTry, attempt.RetryAfter = nextTry(issue, p.pause(ctx, attempt), p.Now())
	} else if ok {
		attempt.NextTry, attempt.RetryAfter = issue.NextTry, issue.RetryAfter
	}
	if err := p.record(ctx, cluster.Records{Orders: []cluster.Order{order}, Ledger: []cluster.Attempt{attempt}}); err != nil {
		return fmt.Errorf("record how the attempt ended: %w", err)
	}
	return nil
}

// pause is the back-off of an attempt that failed now. Where the past cannot be read it is a first failure.
func (p *pass) pause(ctx context.Context, attempt cluster.Attempt) time.Duration {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		held, records = nil, cluster.Records{}
	}
	past := chronicleOf(records, attempt.Directory, p.Now()).of(attempt.Slot)
	newest := cluster.Newest(held, records.Tombstones, attempt.Slot)
	return backoff(past.failures(attempt.ID)+1, newest, p.Now(), known[attempt.Directory].pause, attempt.ID)
}

// checkAge holds the next renewal back where a certificate is due as soon as it was obtained: this host's clock or the
// CA's is wrong, and the next one would be due as well.
func (p *pass) checkAge(ctx context.Context, g cert.Generation, attempt *cluster.Attempt) {
	now := p.Now()
	if now.Before(renewByLifetime(g)) {
		return
	}
	p.warn("%s: the certificate that the CA gave is due for renewal already (valid from %s to %s, and it is %s here): compare this host's clock",
		g.Slot, g.NotBefore.Format(time.RFC3339), g.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	n := 1
	if records, err := p.Store.Records(ctx); err == nil {
		n += chronicleOf(records, attempt.Directory, now).of(g.Slot).dueAtOnce()
	}
	attempt.NextTry = now.Add(min(backoff(n, cert.Generation{}, now, 0, attempt.ID), max(g.Lifetime()/3, time.Second))).UTC()
}

// record writes records to this node's disk, and gives them to the peers that are reachable, for 5 s at most. Only the
// own disk's error is one: a peer that does not acknowledge delays nothing.
func (p *pass) record(ctx context.Context, records cluster.Records) error {
	if err := p.Store.Merge(ctx, records); err != nil {
		return err
	}
	p.eachPeer(func(v *peerView) {
		if v.hears() {
			p.send(ctx, v, records)
		}
	})
	return nil
}

// send gives records to a peer, for acknowledgeTimeout at most. One that let that pass is not waited for again.
func (p *pass) send(ctx context.Context, v *peerView, records cluster.Records) {
	limited, cancel := context.WithTimeout(ctx, p.acknowledge())
	defer cancel()
	err := v.Record(limited, records)
	switch {
	case err == nil || ctx.Err() != nil:
	case limited.Err() != nil:
		v.setDeaf()
		p.warn("%s did not acknowledge a record within %s: a node that takes over may have to make an order again", v.Name(), p.acknowledge())
	default:
		p.warn("%s did not take a record: %v", v.Name(), err)
	}
}

// acknowledge is how long a peer may take to have a record.
func (r *Reconciler) acknowledge() time.Duration {
	if r.acknowledgeWithin > 0 {
		return r.acknowledgeWithin
	}
	return acknowledgeTimeout
}

// randomID names orders and attempts: 128 random bits in base 32.
func randomID() string { return rand.Text() }
