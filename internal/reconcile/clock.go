package reconcile

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Clock is an Issuer that tells what time it is there.
type Clock interface {
	// Ahead is by how much the CA's clock is ahead of this node's, as its last answer told; known is false where none did,
	// or this node's clock was set since.
	Ahead() (ahead time.Duration, known bool)
	// AskTime has the CA answer something, so that Ahead is known.
	AskTime(ctx context.Context) error
}

const (
	// clockTolerance is how far a clock may be wrong without a word. Within it nothing goes wrong: public CAs date their
	// certificates an hour back, because clients' clocks are.
	clockTolerance = time.Hour
	// dateTolerance is how far the machines of one CA may differ.
	dateTolerance = time.Minute

	// setTheClock is the mend.
	setTheClock = "set the clock: `service ntpd onestart` (FreeBSD; ntpd_sync_on_start=YES where it is far out), or your system's time service"
)

// caAhead is by how much the CA's clock is ahead of this node's, where it is known: it is asked where no answer told.
// Only the MASTER asks. What the question came to is known for the rest of the pass.
func (p *pass) caAhead(ctx context.Context) (ahead time.Duration, known bool, err error) {
	clock, ok := p.Issuer.(Clock)
	if !ok || p.seen.Role != cluster.Master {
		return 0, false, nil
	}
	p.clockTurn.Lock()
	defer p.clockTurn.Unlock()
	if ahead, known = clock.Ahead(); known || p.clockAsked {
		return ahead, known, p.clockErr
	}
	if err := p.fence(ctx); err != nil {
		return 0, false, nil // whoever goes on comes to the fence, too
	}
	limited, cancel := context.WithTimeout(ctx, cmp.Or(p.askWithin, askTimeout))
	defer cancel()
	if mistake := safely(func() { err = clock.AskTime(limited) }); mistake != nil {
		err = mistake
	}
	p.clockAsked = ctx.Err() == nil
	if p.clockAsked {
		p.clockErr = err
	}
	ahead, known = clock.Ahead()
	return ahead, known, err
}

// apartText says how far a clock is out, for a person.
func apartText(ahead time.Duration) string {
	if ahead > 0 {
		return fmt.Sprintf("%s behind", clockDuration(ahead))
	}
	return fmt.Sprintf("%s ahead of", clockDuration(-ahead))
}

// clockDuration is for a reader: years, days, or hours and minutes.
func clockDuration(d time.Duration) string {
	const year = 365 * 24 * time.Hour
	switch {
	case d >= 2*year:
		return fmt.Sprintf("%d years", d/year)
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// clockAllows refuses an order where this node's clock is so far out that what it records would count nowhere: nothing is
// sent to the CA, and nothing recorded. It puts a renewal off that only a clock that is ahead makes due.
func (p *pass) clockAllows(ctx context.Context, c candidate) error {
	ahead, known, err := p.caAhead(ctx)
	switch {
	case !known:
		return p.suspectClock(err)
	case ahead.Abs() > cluster.MaxSkew:
		return cluster.WithHint(fmt.Errorf("clock: this node's is %s the CA's: nothing is ordered, since no other node would take what it records",
			apartText(ahead)), setTheClock)
	case c.dueAt.IsZero() || -ahead <= clockTolerance || !p.Now().Add(ahead).Before(c.dueAt):
		return nil
	}
	return cluster.WithHint(&cluster.PutOffError{Until: c.dueAt.Add(-ahead),
		Cause: fmt.Sprintf("by the CA's clock it is not due: this node's clock is %s it", apartText(ahead))}, setTheClock)
}

// suspectClock refuses an order where the CA does not tell its time, and something else speaks against this node's clock:
// the CA's own certificate is not valid at this time, or a peer has quite another time.
func (p *pass) suspectClock(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return cluster.WithHint(fmt.Errorf("clock: at this node's time the CA's own certificate is not valid, so nothing is ordered: %w", err), setTheClock)
	}
	for _, v := range p.peers {
		if apart, ok := v.clockAhead(); ok && apart.Abs() > cluster.MaxSkew {
			return cluster.WithHint(fmt.Errorf("clock: this node's is %s that of %s, and the CA does not tell which is right: nothing is ordered",
				apartText(apart), v.Name()), setTheClock)
		}
	}
	return nil
}

// clockAhead is by how much the peer's clock is ahead of this node's, where it can be asked and says.
func (v *peerView) clockAhead() (time.Duration, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ahead, v.err == nil && !v.inventory.Time.IsZero()
}

// tellClocks warns of clocks that are wrong: a peer's, and on the MASTER this node's, by the CA's last answer.
func (p *pass) tellClocks() {
	for _, v := range p.peers {
		if apart, ok := v.clockAhead(); ok && apart.Abs() > clockTolerance {
			p.warn("the clock of this node is %s that of %s: one of them is wrong; %s", apartText(apart), v.Name(), setTheClock)
		}
	}
	clock, ok := p.Issuer.(Clock)
	if !ok || p.seen.Role != cluster.Master {
		return
	}
	if ahead, known := clock.Ahead(); known && ahead.Abs() > clockTolerance {
		p.warn("the clock of this node is %s the CA's; %s", apartText(ahead), setTheClock)
	}
}

// ripe leaves out the generations that are not valid yet, by the CA's clock where that is known, and that were not
// released before: clients would refuse them. They are staged, and released when they are.
func (p *pass) ripe(ctx context.Context, wanted []cert.Generation, released map[cert.Slot]cert.Generation) []cert.Generation {
	var out []cert.Generation
	for _, g := range wanted {
		if same(g, released[g.Slot]) || p.valid(ctx, g) {
			out = append(out, g)
		}
	}
	return out
}

// valid tells whether a generation is valid by now; what is older than any clock is wrong by needs no question. One that
// is not is reported, with where its slot stands.
func (p *pass) valid(ctx context.Context, g cert.Generation) bool {
	if p.Now().Sub(g.NotBefore) >= cluster.MaxSkew {
		return true
	}
	ahead, known, _ := p.caAhead(ctx)
	now, whose := p.Now(), "this node's clock"
	if known {
		now, whose = now.Add(ahead), "the CA's clock"
	}
	if !g.NotBefore.After(now.Add(dateTolerance)) {
		return true
	}
	err := cluster.WithHint(fmt.Errorf("generation %s is valid from %s on, and by %s it is %s: it is not put in service before",
		g.Fingerprint.Short(), g.NotBefore.UTC().Format(time.RFC3339), whose, now.UTC().Format(time.RFC3339)),
		"wait until then, or, where this node's clock is wrong, %s", setTheClock)
	p.fail(g.Slot, cluster.Waiting, err)
	p.tell("activate", g.Slot, p.Settings.Node, "held back: %v", err)
	placements, failed := p.inspect(ctx, []cert.Slot{g.Slot})
	if failed != nil {
		p.warnUnlessEnded(ctx, "%v", failed)
	}
	for i := range placements {
		placements[i].Outcome = cluster.Waiting
	}
	p.place(p.Settings.Node, placements...)
	return false
}
