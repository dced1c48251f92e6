package cluster

import (
	"cmp"
	"slices"
	"time"

	"certsync/internal/cert"
)

// KeepAttempts is how long the ledger remembers.
const KeepAttempts = 30 * 24 * time.Hour

// The furthest ahead that a next try counts: what lies further is a mistake or a lie, and must not silence renewals.
const (
	MaxBackoff    = 48 * time.Hour
	MaxRetryAfter = 8 * 24 * time.Hour
	// MaxSkew is how far in the future an entry may have been written before it is ignored.
	MaxSkew = 24 * time.Hour
)

// Attempt is an entry of the ledger: one try at an order, written before it is made and again when it ended.
type Attempt struct {
	// ID is random; entries are joined by (Node, ID).
	ID        string    `json:"id"`
	Node      string    `json:"node"`
	Slot      cert.Slot `json:"slot"`
	Directory string    `json:"directory"`
	Domains   []string  `json:"domains"`
	// Profile is the ACME profile that was asked for, "" for the CA's default.
	Profile string `json:"profile,omitempty"`
	// Order is the ID of the order; Resumed tells that it was taken up and not new.
	Order   string `json:"order"`
	Resumed bool   `json:"resumed,omitempty"`
	// Renews says as what the CA counts the certificate, where one comes of it.
	Renews Renews    `json:"renews,omitempty"`
	Time   time.Time `json:"time"`
	End    End       `json:"end,omitempty"`
	// Problem is the cause of a failure, in the CA's or provider's words, cut to a line.
	Problem string `json:"problem,omitempty"`
	// NextTry is when the next attempt for this slot is allowed; zero where nothing forbids it.
	NextTry time.Time `json:"next_try,omitzero"`
	// RetryAfter tells that NextTry is the CA's Retry-After, which is never shortened.
	RetryAfter bool `json:"retry_after,omitempty"`
}

// Allowed is the instant before which a may not be tried again, bounded by MaxBackoff or MaxRetryAfter from its
// writing.
func (a Attempt) Allowed() time.Time {
	limit := MaxBackoff
	if a.RetryAfter {
		limit = MaxRetryAfter
	}
	if latest := a.Time.Add(limit); a.NextTry.After(latest) {
		return latest
	}
	return a.NextTry
}

// NextTry is the latest Allowed over the ledger's entries for slot at directory since its last success, the success
// among them, and that entry. Entries from more than MaxSkew in the future of now are ignored.
func NextTry(ledger []Attempt, slot cert.Slot, directory string, now time.Time) (Attempt, bool) {
	var last Attempt
	var success time.Time
	for _, a := range ledger {
		if a.Slot == slot && a.Directory == directory && a.End == Issued && a.Time.After(success) && !a.Time.After(now.Add(MaxSkew)) {
			success = a.Time
		}
	}
	found := false
	for _, a := range ledger {
		if a.Slot != slot || a.Directory != directory || a.Time.After(now.Add(MaxSkew)) || a.NextTry.IsZero() {
			continue
		}
		if !a.Time.After(success) && (a.End != Issued || a.Time.Before(success)) {
			continue
		}
		if !found || cmp.Or(a.Allowed().Compare(last.Allowed()), compareAttempts(a, last)) > 0 {
			last, found = a, true
		}
	}
	return last, found
}

// MergeLedger is the union of two ledgers by (Node, ID), an ended entry before an open one, sorted by time. Entries
// older than KeepAttempts at now are dropped.
func MergeLedger(a, b []Attempt, now time.Time) []Attempt {
	type key struct{ node, id string }
	all := map[key]Attempt{}
	for _, e := range slices.Concat(a, b) {
		if now.Sub(e.Time) > KeepAttempts {
			continue
		}
		k := key{e.Node, e.ID}
		if old, ok := all[k]; ok && compareAttempts(old, e) >= 0 {
			continue
		}
		e.Time, e.NextTry = utc(e.Time), utc(e.NextTry)
		all[k] = e
	}
	out := make([]Attempt, 0, len(all))
	for _, e := range all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Attempt) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// compareAttempts is total over every field: an ended entry before an open one, then the longer back-off.
func compareAttempts(a, b Attempt) int {
	return cmp.Or(cmp.Compare(a.End, b.End), a.NextTry.Compare(b.NextTry), compareBool(a.RetryAfter, b.RetryAfter),
		a.Time.Compare(b.Time), cmp.Compare(a.Problem, b.Problem), cmp.Compare(a.Order, b.Order),
		compareBool(a.Resumed, b.Resumed), a.Slot.Compare(b.Slot), cmp.Compare(a.Directory, b.Directory),
		slices.Compare(a.Domains, b.Domains), cmp.Compare(a.Profile, b.Profile), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID),
		cmp.Compare(a.Renews, b.Renews))
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
