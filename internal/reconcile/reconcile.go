package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Reconciler runs passes on one node.
type Reconciler struct {
	*Node
	// Peers are the other nodes, in the order of the configuration.
	Peers []Peer
	// Issuer is the CA of the configuration.
	Issuer Issuer
	// Progress is told what a pass is doing; it may be nil, and is called from several goroutines.
	Progress func(cluster.Progress)

	// pace is how many orders are driven at once.
	pace pace
	// acknowledgeWithin is acknowledgeTimeout, or what a test sets instead.
	acknowledgeWithin time.Duration
	// askWithin is askTimeout, or what a test sets instead.
	askWithin time.Duration
}

// Wanted is what a pass is asked for beyond what is due by itself.
type Wanted struct {
	// Names are the certificates to obtain now, due or not.
	Names []string
	// MasterOnly makes a pass on a node that is not MASTER an error (`certsync issue`), instead of one that only
	// adopts and activates.
	MasterOnly bool
	// NoOrders makes a pass that only adopts and activates, on the MASTER too (`certsync sync`).
	NoOrders bool
	// Rollback is what to put back in service (`certsync rollback`), nil for nothing. It goes with NoOrders.
	Rollback *Choice
	// Revoke is what to revoke at the CA, with a replacement first (`certsync revoke`); nil for nothing.
	Revoke *Revoke
	// Wake is when the caller makes the next pass, whatever the report says; zero where it makes one at Report.Next. What
	// comes due before Wake is renewed now.
	Wake time.Time
}

// Pass brings every certificate on every node in line once: THE FLOW. Its error says that no pass could be made at all
// (not MASTER, the store is unreadable, an unknown name); what failed for one certificate or one node is in the report.
func (r *Reconciler) Pass(ctx context.Context, wanted Wanted) (cluster.Report, error) {
	p, err := r.begin(ctx, wanted)
	if err != nil {
		return cluster.Report{}, err
	}
	p.adopt(ctx)
	if err := errors.Join(p.rollBack(ctx), p.condemn(ctx)); err != nil { // what a person asked for
		return cluster.Report{}, cmp.Or(ended(ctx), err)
	}
	p.revoke(ctx, true)
	due, settled, err := p.due(ctx)
	if err != nil {
		return cluster.Report{}, cmp.Or(ended(ctx), err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := safely(func() { p.bring(ctx, settled...) }); err != nil { // stage, activate
			p.failAll(ctx, settled, err)
		}
	})
	p.concurrently(due, func(c candidate) {
		p.bring(ctx, p.obtain(ctx, c)) // fence, obtain, keep; stage, activate
	})
	wg.Wait()
	p.sweep(ctx)
	p.revoke(ctx, false)
	return p.finish(ctx), nil
}

// pass is one run: what it knows and what it did.
type pass struct {
	*Reconciler
	wanted Wanted
	seen   cluster.Seen
	peers  []*peerView
	// forced are the names to obtain now.
	forced map[string]bool
	// condemned are the revocations that a person asked for in this pass.
	condemned []cluster.Revocation

	account registration
	budget  *budget
	// clockTurn guards clockAsked, that the CA was asked for its time, and clockErr, what kept it from telling.
	clockTurn  sync.Mutex
	clockAsked bool
	clockErr   error
	// unrecorded is what the CA said in this pass of renewals, where it could not be written down.
	unrecorded []cluster.RenewalInfo

	mu         sync.Mutex
	report     cluster.Report
	rows       map[cert.Slot]*cluster.CertificateReport
	placements map[string]map[cert.Slot][]cluster.Placement // by node; those of a slot sorted by their proxies' names
}

func (r *Reconciler) begin(ctx context.Context, wanted Wanted) (*pass, error) {
	seen, err := r.Roles.Role(ctx)
	if err != nil {
		return nil, cmp.Or(ended(ctx), fmt.Errorf("role: %w", err))
	}
	if wanted.MasterOnly && seen.Role != cluster.Master {
		return nil, r.refusal(ctx, seen)
	}
	p := &pass{Reconciler: r, wanted: wanted, seen: seen, forced: map[string]bool{},
		rows: map[cert.Slot]*cluster.CertificateReport{}, placements: map[string]map[cert.Slot][]cluster.Placement{}}
	p.report = cluster.Report{Node: r.Settings.Node, Role: seen.Role, Start: r.Now().UTC()}
	configured := r.Settings.catalog()
	for _, name := range wanted.Names {
		if _, ok := configured[name]; !ok {
			return nil, r.Settings.unknownName(name)
		}
		p.forced[name] = true
	}
	for _, c := range r.Settings.Certificates {
		for _, slot := range c.Slots() {
			p.rows[slot] = &cluster.CertificateReport{Slot: slot, Domains: c.Domains, Outcome: cluster.Unchanged}
		}
	}
	return p, nil
}

// masterTimeout bounds the search for who is MASTER instead of this node.
const masterTimeout = 5 * time.Second

// refusal is the error of what only the MASTER does, and says who is: where the source of the role does not know, the
// peers are asked.
func (r *Reconciler) refusal(ctx context.Context, seen cluster.Seen) error {
	if seen.Master == "" {
		seen.Master = r.masterAmongPeers(ctx)
	}
	if seen.Master == "" {
		return cluster.WithHint(fmt.Errorf("this node is %s, and no peer that answers is MASTER: %w", seen.Role, cluster.ErrNotMaster),
			"see what certsync carp status says")
	}
	return notMaster(seen)
}

func (r *Reconciler) masterAmongPeers(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, masterTimeout)
	defer cancel()
	is := make([]bool, len(r.Peers))
	var wg sync.WaitGroup
	for i, peer := range r.Peers {
		wg.Go(func() {
			inv, err := peer.Inventory(ctx)
			is[i] = err == nil && inv.Role == cluster.Master
		})
	}
	wg.Wait()
	if i := slices.Index(is, true); i >= 0 {
		return r.Peers[i].Name()
	}
	return ""
}

// notMaster is the error of a node that may not do what only the MASTER does.
func notMaster(seen cluster.Seen) error {
	if seen.Master == "" {
		return fmt.Errorf("this node is %s: %w", seen.Role, cluster.ErrNotMaster)
	}
	return cluster.WithHint(fmt.Errorf("this node is %s, %s is MASTER: %w", seen.Role, seen.Master, cluster.ErrNotMaster),
		"run it on %s", seen.Master)
}

// fence reads the role again: only a node that is MASTER now goes on. Where ctx ended nothing is said of the role.
func (r *Reconciler) fence(ctx context.Context) error {
	var seen cluster.Seen
	var err error
	if mistake := safely(func() { seen, err = r.Roles.Role(ctx) }); mistake != nil {
		err = mistake // also in whileMaster, where nobody else would catch it
	}
	if ended := ended(ctx); ended != nil {
		return ended
	}
	if err != nil {
		return fmt.Errorf("role: %w: %w", cluster.ErrNotMaster, err)
	}
	if seen.Role != cluster.Master {
		return notMaster(seen)
	}
	return nil
}

// whileMaster gives a context that ends, with ErrNotMaster as its cause, soon after this node stopped being MASTER.
func (r *Reconciler) whileMaster(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(rolePoll)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := r.fence(ctx); err != nil && ctx.Err() == nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}

// rolePoll is how often the role is read while an order is under way; a demotion cancels it within a second.
const rolePoll = 300 * time.Millisecond

// ended is why ctx ended: the demotion that ended it, or context.Canceled or context.DeadlineExceeded whatever its cause
// (a signal's text is none that callers can match); nil while it goes on.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, cluster.ErrNotMaster) {
		return cause
	}
	return ctx.Err()
}

// failure is how a step of the pass of ctx ended that failed with err, and what there is to say of it: it failed, or was
// cut off by a demotion, or because the pass was told to end.
func failure(ctx context.Context, err error) (cluster.Outcome, error) {
	switch {
	case errors.Is(err, cluster.ErrNotMaster):
		return cluster.NotMaster, err
	case ctx.Err() == nil || !errors.Is(err, ctx.Err()) && !errors.Is(err, context.Cause(ctx)):
		return cluster.Failure, err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return cluster.Interrupted, errOutOfTime
	}
	return cluster.Interrupted, errInterrupted
}

// The errors of what was not done because the pass was told to end.
var (
	errInterrupted = errors.New("interrupted")
	errOutOfTime   = errors.New("interrupted: out of time")
)

// concurrently runs the candidates side by side, at most Settings.Concurrency at once, and fewer where the CA or the DNS
// provider asked for that; those of one set of identifiers one after the other, because a CA hands the same pending order
// out for the same set again.
func (p *pass) concurrently(due []candidate, do func(candidate)) {
	groups := map[string][]candidate{}
	var order []string
	for _, c := range due {
		k := c.identifiers()
		if _, ok := groups[k]; !ok {
			order = append(order, k)
		}
		groups[k] = append(groups[k], c)
	}
	var wg sync.WaitGroup
	for _, k := range order {
		p.pace.enter(p.Settings.Concurrency)
		wg.Go(func() {
			defer p.pace.leave()
			for _, c := range groups[k] {
				if err := safely(func() { do(c) }); err != nil {
					p.fail(c.slot, cluster.Failure, err)
				}
			}
		})
	}
	wg.Wait()
}

// tell reports progress.
func (r *Reconciler) tell(step string, slot cert.Slot, node, format string, args ...any) {
	if r.Progress != nil {
		r.Progress(cluster.Progress{Step: step, Slot: slot, Node: node, Message: fmt.Sprintf(format, args...)})
	}
}

// warn adds a line to the report that a person should read; what would be said at every step of every order is said
// once.
func (p *pass) warn(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.report.Warnings, line) {
		p.report.Warnings = append(p.report.Warnings, line)
	}
}

// warnUnlessEnded is warn for what fails: not where it does because the pass was told to end.
func (p *pass) warnUnlessEnded(ctx context.Context, format string, args ...any) {
	if ctx.Err() == nil {
		p.warn(format, args...)
	}
}

// row changes the report of one slot.
func (p *pass) row(slot cert.Slot, change func(*cluster.CertificateReport)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	row, ok := p.rows[slot]
	if !ok {
		row = &cluster.CertificateReport{Slot: slot, Outcome: cluster.Unchanged}
		p.rows[slot] = row
	}
	change(row)
}

// fail puts an outcome and its cause into the report of one slot. The first cause stays: what follows from it says less.
func (p *pass) fail(slot cert.Slot, outcome cluster.Outcome, err error) {
	p.row(slot, func(row *cluster.CertificateReport) {
		row.Outcome = cluster.Worse(row.Outcome, outcome)
		if row.Error == "" {
			row.Error, row.Hint = oneLine(err.Error()), cluster.HintOf(err)
		}
	})
}

// place records where slots stand on a node. A placement without a proxy says that the node could not be asked for a
// slot; it goes when the node tells.
func (p *pass) place(node string, placements ...cluster.Placement) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.placements[node] == nil {
		p.placements[node] = map[cert.Slot][]cluster.Placement{}
	}
	for _, pl := range placements {
		others := slices.DeleteFunc(p.placements[node][pl.Slot], func(old cluster.Placement) bool { return old.Proxy == pl.Proxy || old.Proxy == "" })
		others = append(others, pl)
		slices.SortFunc(others, func(a, b cluster.Placement) int { return cmp.Compare(a.Proxy, b.Proxy) })
		p.placements[node][pl.Slot] = others
	}
}

// at is where a slot stands on a node, as far as is known.
func (p *pass) at(node string, slot cert.Slot) []cluster.Placement {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.placements[node][slot])
}

// oneLine makes the text of an error fit for a report: joined errors are on a line each.
func oneLine(text string) string {
	const most = 1000
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
