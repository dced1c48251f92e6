package store

import (
	"errors"
	"fmt"
	"time"

	"certsync/internal/cluster"
)

// maxText is the longest that a text of a record may be, in bytes; nobody's own is near it.
const maxText = 4096

// vet parts the records that can be kept from those that cannot, with the reason for each. A peer's are not trusted:
// names become paths here.
func vet(in cluster.Records, now time.Time) (good cluster.Records, refused []error) {
	latest := now.Add(cluster.MaxSkew)
	good.Accounts = pick(in.Accounts, &refused, vetAccount)
	good.Orders = pick(in.Orders, &refused, func(o cluster.Order) error { return vetOrder(o, latest) })
	good.Ledger = pick(in.Ledger, &refused, func(a cluster.Attempt) error { return vetAttempt(a, latest) })
	good.Tombstones = pick(in.Tombstones, &refused, vetTombstone)
	good.Releases = pick(in.Releases, &refused, vetRelease)
	good.Renewals = pick(in.Renewals, &refused, func(r cluster.RenewalInfo) error { return vetRenewal(r, latest) })
	good.Revocations = pick(in.Revocations, &refused, func(r cluster.Revocation) error { return vetRevocation(r, latest) })
	return good, refused
}

// pick is the entries that check has nothing against.
func pick[T any](in []T, refused *[]error, check func(T) error) (out []T) {
	for _, v := range in {
		if err := check(v); err != nil {
			*refused = append(*refused, err)
			continue
		}
		out = append(out, v)
	}
	return out
}

func vetAccount(a cluster.Account) error {
	if !safeName(a.Thumbprint) {
		return fmt.Errorf("account %.60q: no thumbprint", a.Thumbprint)
	}
	if a.Directory == "" || len(a.Directory)+len(a.URL)+len(a.Email) > maxText {
		return fmt.Errorf("account %s: no directory, or a text of more than %d bytes", a.Thumbprint, maxText)
	}
	return a.Check()
}

func vetOrder(o cluster.Order, latest time.Time) error {
	if !safeName(o.ID) {
		return fmt.Errorf("order %.60q: the ID is no file name", o.ID)
	}
	if err := checkSlot(o.Slot); err != nil {
		return fmt.Errorf("order %s: %w", o.ID, err)
	}
	if err := vetTime(o.Created, latest); err != nil {
		return fmt.Errorf("order %s: %w", o.ID, err)
	}
	return o.Check()
}

func vetAttempt(a cluster.Attempt, latest time.Time) error {
	if a.ID == "" || a.Node == "" || len(a.ID) > maxName || len(a.Node) > maxName {
		return fmt.Errorf("attempt %.60q of %.60q: no ID or no node", a.ID, a.Node)
	}
	if err := checkSlot(a.Slot); err != nil {
		return fmt.Errorf("attempt %.60q: %w", a.ID, err)
	}
	if len(a.Problem) > maxText {
		return fmt.Errorf("attempt %.60q: a problem of %d bytes", a.ID, len(a.Problem))
	}
	if err := vetTime(a.Time, latest); err != nil {
		return fmt.Errorf("attempt %.60q of %.60q: %w", a.ID, a.Node, err)
	}
	return nil
}

func vetTombstone(t cluster.Tombstone) error {
	if t.Fingerprint.IsZero() {
		return errors.New("tombstone without a fingerprint")
	}
	if len(t.Name)+len(t.Reason) > maxText {
		return fmt.Errorf("tombstone of %s: texts of more than %d bytes", t.Fingerprint.Short(), maxText)
	}
	return nil
}

func vetRelease(r cluster.Release) error {
	if r.Generation.IsZero() {
		return errors.New("release without a generation")
	}
	if err := checkSlot(r.Generation.Slot); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if len(r.Node) > maxName {
		return fmt.Errorf("release of %s: a node's name of %d bytes", r.Generation.Slot, len(r.Node))
	}
	return nil
}

func vetRenewal(r cluster.RenewalInfo, latest time.Time) error {
	if r.Generation.IsZero() {
		return errors.New("renewal information of no generation")
	}
	if err := checkSlot(r.Generation.Slot); err != nil {
		return fmt.Errorf("renewal information: %w", err)
	}
	if len(r.Node) > maxName || len(r.CertID)+len(r.Directory)+len(r.Explanation)+len(r.Problem) > maxText {
		return fmt.Errorf("renewal information of %s: texts of more than %d bytes", r.Generation.Slot, maxText)
	}
	if err := vetTime(r.Time, latest); err != nil {
		return fmt.Errorf("renewal information of %s: %w", r.Generation.Slot, err)
	}
	return nil
}

func vetRevocation(r cluster.Revocation, latest time.Time) error {
	if r.Generation.IsZero() {
		return errors.New("revocation of no generation")
	}
	if err := checkSlot(r.Generation.Slot); err != nil {
		return fmt.Errorf("revocation: %w", err)
	}
	if _, ok := r.Reason.Code(); !ok || len(r.Node) > maxName || len(r.Directory)+len(r.Problem) > maxText {
		return fmt.Errorf("revocation of %s: an unknown reason, or texts of more than %d bytes", r.Generation.Slot, maxText)
	}
	if err := vetTime(r.Time, latest); err != nil {
		return fmt.Errorf("revocation of %s: %w", r.Generation.Slot, err)
	}
	return nil
}

// vetTime refuses an entry of the future, whether it is this clock or the other that is wrong.
func vetTime(t, latest time.Time) error {
	if t.After(latest) {
		return fmt.Errorf("dated %s, more than %s after this node's clock", t.UTC().Format(time.RFC3339), cluster.MaxSkew)
	}
	return nil
}
