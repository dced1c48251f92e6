package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// orders is what the records say of the orders at the configured CA, at one instant.
type orders struct {
	settings  Settings
	directory string
	records   cluster.Records
	now       time.Time
}

func (p *pass) orders(records cluster.Records) orders {
	return orders{p.Settings, p.Issuer.Directory(), records, p.Now()}
}

// live tells whether an order will be taken up: it is open and not expired, it is what the configuration wants of its
// slot at this CA, the key of its account is held, it is not older than a revocation, and no later order of the slot has
// led to a certificate already.
func (s orders) live(o cluster.Order) bool {
	c, ok := s.settings.certificate(o.Slot.Name)
	if !ok || o.Lapsed(s.now) || o.Directory != s.directory || o.Profile != c.Profile || o.KeyType != c.keyType(o.Slot.Algorithm) ||
		!slices.Equal(cert.NormalDomains(o.Domains), cert.NormalDomains(c.Domains)) {
		return false
	}
	if _, ok := s.account(o); !ok || s.condemned(o) {
		return false
	}
	return !slices.ContainsFunc(s.records.Orders, func(later cluster.Order) bool {
		return later.Slot == o.Slot && later.Directory == o.Directory && later.End == cluster.Issued && later.Created.After(o.Created)
	})
}

// condemned tells that a certificate of the order's slot was asked to be revoked after the order was made: who has that
// one's key may have the order's.
func (s orders) condemned(o cluster.Order) bool {
	return slices.ContainsFunc(s.records.Revocations, func(r cluster.Revocation) bool {
		return r.Generation.Slot == o.Slot && r.End != cluster.RevocationGivenUp && o.Created.Before(r.Time)
	})
}

// account is the one that an order belongs to.
func (s orders) account(o cluster.Order) (cluster.Account, bool) {
	i := slices.IndexFunc(s.records.Accounts, func(a cluster.Account) bool { return a.Thumbprint == o.Account && a.Directory == o.Directory })
	if i < 0 {
		return cluster.Account{}, false
	}
	return s.records.Accounts[i], true
}

// toTakeUp is the order of a slot to go on with. Two nodes that were apart may each have made one.
func (s orders) toTakeUp(slot cert.Slot) (cluster.Order, bool) {
	var best cluster.Order
	found := false
	for _, o := range s.records.Orders {
		if o.Slot == slot && s.live(o) && (!found || goesFirst(o, best)) {
			best, found = o, true
		}
	}
	return best, found
}

// goesFirst tells which of two records has the better claim to an order: the one that got further, since its CSR may
// have been sent; then the earlier.
func goesFirst(a, b cluster.Order) bool {
	return cmp.Or(cmp.Compare(b.Step, a.Step), a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) < 0
}

// inTheWay is the live order of another slot for the same identifiers: the CA would hand it out again for a new one.
func (s orders) inTheWay(slot cert.Slot, identifiers string) (cluster.Order, bool) {
	i := slices.IndexFunc(s.records.Orders, func(o cluster.Order) bool {
		return o.Slot != slot && o.Identifiers() == identifiers && s.live(o)
	})
	if i < 0 {
		return cluster.Order{}, false
	}
	return s.records.Orders[i], true
}

// wait is the error of a slot that needs a new order while another slot's for the same identifiers is open. A person is
// told to see to that one, unless the CA itself put it off.
func (s orders) wait(other cluster.Order, byHand bool) error {
	cause := fmt.Sprintf("the order of %s for the same names is under way", other.Slot)
	if a, ok := cluster.NextTry(s.records.Ledger, other.Slot, s.directory, s.now); ok && a.Allowed().After(s.now) && (a.RetryAfter || !byHand) {
		return &cluster.PutOffError{Until: a.Allowed(), Cause: cause + ", and put off"}
	}
	return cluster.WithHint(fmt.Errorf("%s: %w", cause, cluster.ErrOrderTaken), "see to %s first, then run it again", other.Slot)
}

// givenUp are the open orders that nobody will take up any more, ended: those of the slot but the one that is driven,
// and those of the same identifiers that are not what the configuration wants. The CA may hand such an order out again,
// and it then belongs to the new record.
func (s orders) givenUp(slot cert.Slot, identifiers, driven string) []cluster.Order {
	var ended []cluster.Order
	for _, o := range s.records.Orders {
		if o.ID == driven || o.Lapsed(s.now) || o.Directory != s.directory {
			continue
		}
		if o.Slot == slot || o.Identifiers() == identifiers && !s.live(o) {
			o.End, o.Problem = cluster.Failed, "given up: another order of these names is driven, or the configuration asks for none"
			ended = append(ended, o)
		}
	}
	return ended
}

// taken is the error of an order of the CA's to which another open record has the better claim: a CSR goes only to an
// order that was recorded with its key.
func (s orders) taken(o cluster.Order) error {
	if o.URL == "" {
		return nil
	}
	for _, other := range s.records.Orders {
		if other.ID != o.ID && other.URL == o.URL && !other.Lapsed(s.now) && goesFirst(other, o) {
			return fmt.Errorf("order %s for %s: %w (of %s, begun on %s)", o.URL, o.Slot, cluster.ErrOrderTaken, other.Slot, other.Node)
		}
	}
	return nil
}

// toClean are the orders that are over and left TXT values in the DNS. One whose value an open order shares waits: a CA
// gives the same token again for an authorization that it gives again.
func (s orders) toClean() []cluster.Order {
	shared := func(r cluster.Record) bool {
		return slices.ContainsFunc(s.records.Orders, func(o cluster.Order) bool {
			return !o.Lapsed(s.now) && slices.ContainsFunc(o.Records, func(q cluster.Record) bool { return q.Domain == r.Domain && q.Value == r.Value })
		})
	}
	return slices.DeleteFunc(slices.Clone(s.records.Orders), func(o cluster.Order) bool {
		return !o.Lapsed(s.now) || o.Directory != s.directory || !slices.ContainsFunc(o.Records, left) ||
			slices.ContainsFunc(o.Records, func(r cluster.Record) bool { return left(r) && shared(r) })
	})
}

func left(r cluster.Record) bool { return !r.Removed }

// sweep removes the TXT values that orders left behind which ended, or expired, without their driver removing them: a
// kill, a provider that hung. Only the MASTER does, and only values that the order's record names.
func (p *pass) sweep(ctx context.Context) {
	if p.seen.Role != cluster.Master {
		return
	}
	records, err := p.Store.Records(ctx)
	if err != nil {
		p.warnUnlessEnded(ctx, "records held: %v", err)
		return
	}
	all := p.orders(records)
	for _, o := range all.toClean() {
		account, ok := all.account(o)
		if !ok || p.fence(ctx) != nil {
			continue
		}
		cleaned, err := p.Issuer.CleanUp(ctx, account, o)
		if err != nil {
			p.warnUnlessEnded(ctx, "%s: TXT values of order %s: %v", o.Slot, o.ID, err)
		}
		if slices.Equal(cleaned.Records, o.Records) {
			continue
		}
		if err := p.record(ctx, cluster.Records{Orders: []cluster.Order{cleaned}}); err != nil {
			p.warnUnlessEnded(ctx, "%s: record of order %s: %v", o.Slot, o.ID, err)
		}
	}
}

// errNoKey: the order's account is not among those held.
var errNoKey = errors.New("the key of the order's account is not held here")
