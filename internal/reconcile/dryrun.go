package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Rehearsal is what a dry run found for one slot.
type Rehearsal struct {
	Slot cert.Slot
	// Issuer names who signed the certificate that the staging CA gave, for a person.
	Issuer string
	Took   time.Duration
	Err    error
}

// DryRun obtains the named certificates (all, where names is empty) from another CA, the staging one, and keeps
// nothing: no generation, no order, no account. It proves the DNS credentials, the names and the CA's willingness.
func (r *Reconciler) DryRun(ctx context.Context, staging Issuer, names []string) ([]Rehearsal, error) {
	seen, err := r.Roles.Role(ctx)
	switch {
	case err != nil:
		return nil, cmp.Or(ended(ctx), fmt.Errorf("role: %w", err))
	case seen.Role != cluster.Master:
		return nil, r.refusal(ctx, seen)
	}
	chosen, err := r.Settings.chosen(names)
	if err != nil {
		return nil, err
	}
	account, err := cluster.NewAccount(staging.Directory(), r.Settings.Email, r.Now())
	if err != nil {
		return nil, err
	}
	if account, err = staging.Register(ctx, account); err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	var out []Rehearsal
	for _, c := range chosen {
		for _, k := range c.KeyTypes {
			out = append(out, r.rehearse(ctx, staging, account, c, k))
		}
	}
	return out, nil
}

func (s Settings) chosen(names []string) ([]Certificate, error) {
	if len(names) == 0 {
		return s.Certificates, nil
	}
	var out []Certificate
	for _, name := range names {
		c, ok := s.certificate(name)
		if !ok {
			return nil, s.unknownName(name)
		}
		out = append(out, c)
	}
	return out, nil
}

// rehearse drives one order at the staging CA, for as long as this node is MASTER.
func (r *Reconciler) rehearse(ctx context.Context, staging Issuer, account cluster.Account, c Certificate, k cert.KeyType) (result Rehearsal) {
	result.Slot = cert.Slot{Name: c.Name, Algorithm: k.Algorithm()}
	start := time.Now()
	defer func() { result.Took = time.Since(start) }()
	order, err := newOrder(result.Slot, c, k, account, r.Settings.Node, r.Now())
	if err != nil {
		result.Err = err
		return result
	}
	master, cancel := r.whileMaster(ctx)
	defer cancel()
	bundle, err := staging.Obtain(master, account, order, func(ctx context.Context, o cluster.Order) error {
		return r.fence(ctx)
	})
	if err != nil {
		result.Err = demoted(master, err)
		return result
	}
	result.Issuer = bundle.Leaf().Issuer.String()
	return result
}
