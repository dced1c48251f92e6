package cluster

import (
	"cmp"
	"slices"
	"time"

	"certsync/internal/cert"
)

// Suggestion is what a CA answers when it is asked when a certificate should be renewed (RFC 9773 section 4.2).
type Suggestion struct {
	// Start and End are the window; Start lies before End.
	Start, End time.Time
	// Explanation is the URL of a page that says why it is this window, for a person; "" where there is none.
	Explanation string
	// RetryAfter is after which time the CA wants to be asked again; zero where it did not say.
	RetryAfter time.Duration
}

// The bounds of a CA's Retry-After for renewal information: below, it would be asked all the time; above, a window that
// was moved (a revocation of many) would be heard of too late. (RFC 9773 section 4.3.2.)
const (
	MinAskAgain = time.Minute
	MaxAskAgain = 24 * time.Hour
)

// RenewalInfo is what the CA said of when a generation should be renewed. Only the MASTER asks; the others have it from
// the inventories, so that whoever is MASTER next knows of it.
type RenewalInfo struct {
	Generation cert.Generation `json:"generation"`
	// CertID is the certificate's identifier at the CA (cert.Bundle.RenewalID); "" where it has none.
	CertID string `json:"cert_id,omitempty"`
	// Directory is that of the CA that was asked.
	Directory string `json:"directory"`
	// Start and End are the window that the CA suggested; both zero where it suggested none.
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// Explanation is the URL of a page that says why, for a person; "" where there is none.
	Explanation string `json:"explanation_url,omitempty"`
	// Node asked last, at Time by its clock. Revision counts the askings: it orders the answers, which the clocks of
	// two nodes do not.
	Node     string    `json:"node"`
	Time     time.Time `json:"time"`
	Revision uint64    `json:"revision"`
	// Again is when the CA is to be asked again.
	Again time.Time `json:"again"`
	// Problem is why the last question was not answered with a window; "" where it was.
	Problem string `json:"problem,omitempty"`
}

// Suggested tells that there is a window. One that ends where it begins or before is none (RFC 9773 section 4.2).
func (r RenewalInfo) Suggested() bool { return r.Start.Before(r.End) }

// Within tells that now lies in the window, in which CAs do not count a renewal against their limits.
func (r RenewalInfo) Within(now time.Time) bool {
	return r.Suggested() && !now.Before(r.Start) && now.Before(r.End)
}

// AskAgain is Again, and MaxAskAgain after Time at most: what a peer says must not silence the question.
func (r RenewalInfo) AskAgain() time.Time {
	if latest := r.Time.Add(MaxAskAgain); r.Again.After(latest) {
		return latest
	}
	return r.Again
}

// Forgotten tells that the record may be dropped at now: its generation has expired, and no node whose clock is behind
// asks for it any more.
func (r RenewalInfo) Forgotten(now time.Time) bool {
	return now.After(r.Generation.NotAfter.Add(MaxSkew))
}

// MergeRenewals keeps, for each slot, the record of the newest generation, and of one generation's the last asking: a
// record goes with its generation.
func MergeRenewals(a, b []RenewalInfo) []RenewalInfo {
	all := map[cert.Slot]RenewalInfo{}
	for _, r := range slices.Concat(a, b) {
		if old, ok := all[r.Generation.Slot]; ok && compareRenewals(old, r) >= 0 {
			continue
		}
		r.Generation.NotBefore, r.Generation.NotAfter = utc(r.Generation.NotBefore), utc(r.Generation.NotAfter)
		r.Start, r.End, r.Time, r.Again = utc(r.Start), utc(r.End), utc(r.Time), utc(r.Again)
		all[r.Generation.Slot] = r
	}
	out := make([]RenewalInfo, 0, len(all))
	for _, r := range all {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b RenewalInfo) int { return a.Generation.Slot.Compare(b.Generation.Slot) })
	return out
}

// compareRenewals is total over every field but the slot.
func compareRenewals(a, b RenewalInfo) int {
	return cmp.Or(a.Generation.Compare(b.Generation), cmp.Compare(a.Revision, b.Revision), a.Time.Compare(b.Time),
		cmp.Compare(a.Node, b.Node), a.Start.Compare(b.Start), a.End.Compare(b.End), a.Again.Compare(b.Again),
		cmp.Compare(a.CertID, b.CertID), cmp.Compare(a.Directory, b.Directory), cmp.Compare(a.Explanation, b.Explanation),
		cmp.Compare(a.Problem, b.Problem), a.Generation.NotAfter.Compare(b.Generation.NotAfter))
}

// Renews says as what a CA counts an attempt's certificate against its limits.
type Renews string

const (
	// RenewsNothing: the CA gave no certificate of exactly these names before, as far as is known.
	RenewsNothing Renews = ""
	// RenewsNames: it gave one of exactly these names.
	RenewsNames Renews = "names"
	// RenewsInWindow: it replaces one in the window that the CA suggested, and counts against no limit.
	RenewsInWindow Renews = "in_window"
)
