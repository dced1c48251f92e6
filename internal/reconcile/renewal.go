package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

const (
	// askTimeout bounds what a pass waits for the CA's renewal information: whoever is not told of a window goes by the
	// lifetime.
	askTimeout = 10 * time.Second
	// askFailures is after how many questions without an answer a pass asks no more.
	askFailures = 3
	// askUsually is when a CA is asked again that did not say when, or did not answer (RFC 9773 section 4.3.3: six hours).
	askUsually = 6 * time.Hour
	// askGrid brings the questions for many certificates together in few passes.
	askGrid = 10 * time.Minute
	// hurry is the least time on the average between two renewals at the CA's suggestion, a tenth of the lifetime at most:
	// a CA that always suggests the past is not asked for one certificate after the other.
	hurry = time.Hour
)

// RenewAt is when a generation is due: at the instant that is drawn from the window that the CA suggests, where it does,
// and no later than when a tenth of the lifetime is left; else by the lifetime alone. Every node computes the same.
func RenewAt(g cert.Generation, info cluster.RenewalInfo) time.Time {
	if g.IsZero() {
		return time.Time{}
	}
	if !info.Suggested() || !same(info.Generation, g) {
		return renewByLifetime(g)
	}
	return earliest(instantIn(info), lastMoment(g))
}

// renewByLifetime is when a third of the lifetime is left, or half, where the lifetime is under 10 days (Let's Encrypt's
// advice for both).
func renewByLifetime(g cert.Generation) time.Time {
	life := g.Lifetime()
	if life < 10*24*time.Hour {
		return g.NotAfter.Add(-life / 2)
	}
	return g.NotAfter.Add(-life / 3)
}

// lastMoment is when a tenth of the lifetime is left: nothing puts a renewal off any longer.
func lastMoment(g cert.Generation) time.Time { return g.NotAfter.Add(-g.Lifetime() / 10) }

// instantIn is an instant in the window (RFC 9773 section 4.2: uniformly at random), drawn from the certificate and the
// window, so that every node and every restart agrees on it, and a window that moves draws anew.
func instantIn(info cluster.RenewalInfo) time.Time {
	seed := fmt.Sprintf("%s %s %s", info.CertID, info.Start.UTC().Format(time.RFC3339Nano), info.End.UTC().Format(time.RFC3339Nano))
	return info.Start.Add(drawn(seed, info.End.Sub(info.Start)))
}

// earliest is the earliest of the instants that are not zero; zero where all are.
func earliest(instants ...time.Time) time.Time {
	var first time.Time
	for _, t := range instants {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// later is the later of two instants.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// ownWord is the CA's word as this node heard it. A window that a peer tells of is no reason for an order by itself: the
// CA is asked first.
func (f Facts) ownWord() cluster.RenewalInfo {
	if f.Renewal.Node != f.Node {
		return cluster.RenewalInfo{}
	}
	return f.Renewal
}

// dueAt is when the newest generation is due on this node; zero where there is none.
func (f Facts) dueAt() time.Time {
	at := f.dueAlone()
	if at.IsZero() {
		return at
	}
	return at.Add(f.stagger(at))
}

// dueAlone is dueAt, were this node the only one that could be MASTER.
func (f Facts) dueAlone() time.Time {
	info := f.ownWord()
	at := RenewAt(f.Newest, info)
	if info.Suggested() && !f.Earlier.IsZero() {
		at = later(at, earliest(f.Earlier.Add(2*min(hurry, f.Newest.Lifetime()/10)), lastMoment(f.Newest)))
	}
	return at
}

// stagger is how much longer a node waits while it cannot reach a peer, which may be MASTER as well and renew: node i, i
// times as long. What is lost, asked for, or under way does not wait, nor what has less than a tenth of its life left.
func (f Facts) stagger(at time.Time) time.Duration {
	if !f.Apart || f.ByHand {
		return 0
	}
	wait := time.Duration(f.Place) * min(time.Hour, f.Newest.Lifetime()/100)
	return max(0, min(wait, lastMoment(f.Newest).Sub(at)))
}

// waits tells that the newest generation would be due, could every peer be reached.
func (f Facts) waits() bool {
	alone := f.dueAlone()
	return !alone.IsZero() && !f.Now.Before(alone) && f.Now.Before(f.dueAt())
}

// ripe tells that the newest generation is due now, or would be before anybody looks again (RFC 9773 section 4.2).
func (f Facts) ripe() bool {
	at := f.dueAt()
	return !at.IsZero() && (!f.Now.Before(at) || at.Before(f.Wake))
}

// askAt is when the CA is to be asked for the newest generation's window: at once, where it never was; then when it
// wants to be, and where a peer asked, also when the window makes it due. Zero: an expired one is never asked for.
func (f Facts) askAt() time.Time {
	switch info := f.Renewal; {
	case f.Newest.IsZero() || !f.Now.Before(f.Newest.NotAfter) || f.elsewhere():
		return time.Time{}
	case !same(info.Generation, f.Newest):
		return f.Now
	case info.Suggested() && info.Directory != f.Directory: // the CA that gave it is not the one that can be asked
		return time.Time{}
	case info.Node != f.Node && info.Suggested():
		return earliest(info.AskAgain(), RenewAt(f.Newest, info))
	default:
		return info.AskAgain()
	}
}

// renews says as what the CA will count a certificate that is ordered at f.Now.
func (f Facts) renews() cluster.Renews {
	switch {
	case f.Newest.IsZero() || !f.sameNames() || f.elsewhere():
		return cluster.RenewsNothing
	case f.ownWord().Within(f.Now) && f.Renewal.Directory == f.Directory:
		return cluster.RenewsInWindow
	}
	return cluster.RenewsNames
}

// elsewhere tells that another directory than the configuration's gave the newest certificate, as far as the ledger
// remembers.
func (f Facts) elsewhere() bool { return f.Issued.ID != "" && f.Issued.Directory != f.Directory }

// ask lets the CA say of each of the newest generations when it should be renewed, where it is time to ask; records the
// answers, and notes them in past. Only the MASTER asks, and it waits askTimeout at most.
func (p *pass) ask(ctx context.Context, newest []cert.Generation, past chronicle) {
	if p.seen.Role != cluster.Master || p.wanted.NoOrders {
		return
	}
	q := questions{pass: p, past: past, begun: p.pace.begun()}
	q.pick(newest)
	if len(q.open) == 0 || p.fence(ctx) != nil {
		return
	}
	master, cancel := p.whileMaster(ctx)
	defer cancel()
	master, end := context.WithTimeoutCause(master, cmp.Or(p.askWithin, askTimeout), errSilent)
	defer end()
	q.ask(master)
	if len(q.answers) == 0 {
		return
	}
	if err := p.record(ctx, cluster.Records{Renewals: q.answers}); err != nil {
		p.warnUnlessEnded(ctx, "record when certificates should be renewed: %v", err)
		p.unrecorded = q.answers
	}
	failpoint.Hit("reconcile.asked")
	for _, a := range q.answers { // also where a peer's record claims to be later
		past.hear(a)
	}
}

// errSilent is that a CA which is asked for renewal information answers nothing.
var errSilent = errors.New("the CA does not answer")

// questions are those of one pass to the CA.
type questions struct {
	*pass
	past chronicle
	open []cert.Generation
	// begun is when the questions were, for the pace.
	begun int

	mu       sync.Mutex
	answers  []cluster.RenewalInfo
	failures int
	// all is an answer that holds for every question: the CA gives no such information, or cannot be asked.
	all error
}

// pick finds the generations that the CA is to be asked for now.
func (q *questions) pick(newest []cert.Generation) {
	base := q.surroundings()
	for _, g := range newest {
		f := base.of(g, q.past.of(g.Slot))
		if at := f.askAt(); !at.IsZero() && !f.Now.Before(at) {
			q.open = append(q.open, g)
		}
	}
}

// ask asks side by side. What ctx leaves unasked is asked for in the next pass; where the CA answered nothing at all, that
// is the answer.
func (q *questions) ask(ctx context.Context) {
	var wg sync.WaitGroup
	places := make(chan struct{}, q.pace.limit(q.Settings.Concurrency))
	for _, g := range q.open {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := safely(func() { q.one(ctx, g) }); err != nil {
				q.heard(g, "", cluster.Suggestion{}, err)
			}
		})
	}
	wg.Wait()
	if len(q.answers) == 0 && errors.Is(context.Cause(ctx), errSilent) {
		q.all = errSilent
		for _, g := range q.open {
			q.heard(g, "", cluster.Suggestion{}, errSilent)
		}
	}
	if q.all != nil && !errors.Is(q.all, errors.ErrUnsupported) {
		q.warn("the CA does not say when certificates should be renewed: %s; until it does, their lifetime decides", oneLine(q.all.Error()))
	}
}

func (q *questions) one(ctx context.Context, g cert.Generation) {
	if ctx.Err() != nil {
		return
	}
	if err := q.forAll(); err != nil {
		q.heard(g, "", cluster.Suggestion{}, err)
		return
	}
	var s cluster.Suggestion
	id, err := q.certID(ctx, g, q.past.of(g.Slot).renewal)
	if err == nil {
		s, err = q.Issuer.RenewalInfo(ctx, id)
	}
	if err != nil && ctx.Err() != nil {
		return // out of time, told to end, or not MASTER any more: that says nothing of this one
	}
	q.heard(g, id, s, err)
}

// certID is the certificate's identifier at the CA.
func (q *questions) certID(ctx context.Context, g cert.Generation, last cluster.RenewalInfo) (string, error) {
	if same(last.Generation, g) && last.Node == q.Settings.Node && last.CertID != "" {
		return last.CertID, nil
	}
	bundle, err := q.Store.Bundle(ctx, g)
	if err != nil {
		return "", &cluster.IssueError{Cause: err.Error(), Dead: true, Err: err}
	}
	id, err := bundle.RenewalID()
	if err != nil {
		return "", &cluster.IssueError{Cause: err.Error(), Dead: true, Err: err}
	}
	return id, nil
}

func (q *questions) forAll() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

// heard keeps an answer, and notes what holds for all.
func (q *questions) heard(g cert.Generation, id string, s cluster.Suggestion, err error) {
	asked := cluster.RenewalInfo{Node: q.Settings.Node, Directory: q.Issuer.Directory(), Time: q.Now().UTC()}
	answer := answered(q.past.of(g.Slot).renewal, g, id, s, err, asked)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.answers = append(q.answers, answer)
	if err == nil {
		return
	}
	q.heed(q.begun, false, err)
	issue, ok := errors.AsType[*cluster.IssueError](err)
	switch {
	case errors.Is(err, errors.ErrUnsupported) || ok && issue.RetryAfter:
		q.all = err
	case !ok || !issue.Dead:
		if q.failures++; q.failures >= askFailures {
			q.all = err
		}
	}
}

// answered is the record of a question for g with the identifier id ("" where it did not come to that), after last; asked
// has who asked whom, and when. It is pure.
func answered(last cluster.RenewalInfo, g cert.Generation, id string, s cluster.Suggestion, err error, asked cluster.RenewalInfo) cluster.RenewalInfo {
	r := asked
	r.Generation, r.CertID, r.Revision = g, id, 1
	ours := false
	if same(last.Generation, g) {
		r.Revision, ours = last.Revision+1, last.Node == asked.Node
		r.CertID = cmp.Or(id, last.CertID)
	}
	if err == nil {
		r.Start, r.End, r.Explanation = s.Start, s.End, s.Explanation
		r.Again = askAgain(r.Time, s.RetryAfter, g)
		return r
	}
	r.Problem, r.Again = oneLine(err.Error()), askAgain(r.Time, 0, g)
	issue, ok := errors.AsType[*cluster.IssueError](err)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		r.Problem, r.Again = "the CA gives no renewal information", r.Time.Add(cluster.MaxAskAgain)
	case ok && issue.RetryAfter:
		r.Again = askAgain(r.Time, issue.NextTry.Sub(r.Time), g)
		fallthrough
	case !ok || !issue.Dead:
		if ours { // what the CA said before stands until it says something else
			r.Start, r.End, r.Explanation = last.Start, last.End, last.Explanation
		}
	}
	return r
}

// askAgain is when the CA is asked again: after its Retry-After, from a minute to a day; without one, after six hours, or
// a tenth of a shorter life. Long pauses end together.
func askAgain(now time.Time, retryAfter time.Duration, g cert.Generation) time.Time {
	if retryAfter <= 0 {
		retryAfter = min(askUsually, g.Lifetime()/10)
	}
	at := now.Add(min(max(retryAfter, cluster.MinAskAgain), cluster.MaxAskAgain))
	if together := at.Truncate(askGrid).Add(askGrid); retryAfter >= 6*askGrid && !together.After(now.Add(cluster.MaxAskAgain)) {
		return together
	}
	return at
}

// plan writes into the report when each certificate is to be renewed, and, on the MASTER, when there is something to do
// next.
func (p *pass) plan(ctx context.Context) error {
	held, records, err := p.heldAndRecords(ctx)
	if err != nil {
		return err
	}
	all, newest, base := chronicleOf(records, p.Issuer.Directory(), p.Now()), newestBySlot(held, records.Tombstones), p.surroundings()
	for _, a := range p.unrecorded { // a full disk is no reason to ask the CA again as soon as may be
		all.hear(a)
	}
	for _, c := range p.Settings.Certificates {
		for _, slot := range c.Slots() {
			f := base.of(newest[slot], all.of(slot))
			f.PutOff = all.of(slot).putOff(f.Newest, f.Now, false)
			p.row(slot, func(row *cluster.CertificateReport) { p.planRow(row, f) })
		}
	}
	if p.seen.Role == cluster.Master {
		for _, warning := range newBudget(p.Issuer.Directory(), records, p.Now()).warnings(p.Settings.Certificates) {
			p.report.Budgets = append(p.report.Budgets, warning)
			p.warn("%s", warning)
		}
	}
	return nil
}

// planRow is plan for one slot; p.mu is held.
func (p *pass) planRow(row *cluster.CertificateReport, f Facts) {
	row.RenewAt = RenewAt(f.Newest, f.Renewal).Round(0).UTC()
	if same(f.Renewal.Generation, f.Newest) {
		row.Explanation = f.Renewal.Explanation
	}
	if p.seen.Role != cluster.Master {
		return
	}
	if !row.Ordered {
		f.StillDue = row.Due
	}
	v := Due(f)
	if v.Next.IsZero() {
		return
	}
	row.Next = later(later(v.Next, row.NextTry), f.Now.Add(breath(f.Newest))).Round(0).UTC()
	p.report.Next = earliest(p.report.Next, row.Next)
}

// breath is the least time between two passes for the sake of one certificate, whatever makes it due: a minute, or a
// hundredth of a short life.
func breath(g cert.Generation) time.Duration {
	if g.IsZero() {
		return time.Minute
	}
	return min(time.Minute, max(g.Lifetime()/100, time.Second))
}
