package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
)

// Reason says why a certificate is revoked, by its name in RFC 5280 section 5.3.1.
type Reason string

// The reasons that a subscriber may give for a server's certificate (CA/Browser Forum's Baseline Requirements, section
// 7.2.2; the others are the CA's own). Not every CA takes each.
const (
	// Unspecified gives no reason, and none is then published.
	Unspecified Reason = "unspecified"
	// KeyCompromise: somebody else has, or may have, the private key.
	KeyCompromise        Reason = "keyCompromise"
	AffiliationChanged   Reason = "affiliationChanged"
	Superseded           Reason = "superseded"
	CessationOfOperation Reason = "cessationOfOperation"
)

var reasonCodes = map[Reason]uint{Unspecified: 0, KeyCompromise: 1, AffiliationChanged: 3, Superseded: 4, CessationOfOperation: 5}

// Reasons lists all of them, by their codes.
func Reasons() []Reason {
	return []Reason{Unspecified, KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation}
}

// ParseReason reads a name in any case; "" is Unspecified. Another one is ErrUsage.
func ParseReason(name string) (Reason, error) {
	if name == "" {
		return Unspecified, nil
	}
	var names []string
	for _, r := range Reasons() {
		if strings.EqualFold(name, string(r)) {
			return r, nil
		}
		names = append(names, string(r))
	}
	return "", WithHint(Usage(fmt.Errorf("reason %.60q: no reason for a revocation", name)), "use one of: %s", strings.Join(names, ", "))
}

// Code is the CRLReason of RFC 5280 section 5.3.1; false where r is none of Reasons.
func (r Reason) Code() (uint, bool) {
	code, ok := reasonCodes[r]
	return code, ok
}

// RevocationEnd is how a Revocation ended; "" while it is open.
type RevocationEnd string

// The ends of a revocation.
const (
	// RevocationOpen: it is to be gone on with.
	RevocationOpen RevocationEnd = ""
	// RevocationGivenUp: no replacement could be had, and so nothing was revoked.
	RevocationGivenUp RevocationEnd = "given_up"
	// RevocationRefused: the CA will not do it; the tombstone stays.
	RevocationRefused RevocationEnd = "refused"
	// RevocationDone: the CA has revoked it.
	RevocationDone RevocationEnd = "revoked"
)

var revocationRank = map[RevocationEnd]int{RevocationOpen: 1, RevocationGivenUp: 2, RevocationRefused: 3, RevocationDone: 4}

// Revocation is a person's word that a certificate is to be revoked at its CA. It is recorded before anything is done,
// so that whoever is MASTER goes on with it after a kill: a replacement in service first, unless AtOnce; then the tombstone;
// then the CA is told; then End.
type Revocation struct {
	Generation cert.Generation `json:"generation"`
	Reason     Reason          `json:"reason"`
	// Directory is that of the CA that is to be told.
	Directory string `json:"directory"`
	// AtOnce tells that it is not to wait for a replacement.
	AtOnce bool `json:"at_once,omitempty"`
	// Node was asked for it, at Time by its clock.
	Node string    `json:"node"`
	Time time.Time `json:"time"`
	// Revision counts the changes of the record: it orders them, which the clocks of two nodes do not.
	Revision uint64        `json:"revision"`
	End      RevocationEnd `json:"end,omitempty"`
	// Tries counts how often the CA was told and did not answer that it is done; Problem is what came of the last, and
	// NextTry when the next is made.
	Tries   int       `json:"tries,omitempty"`
	Problem string    `json:"problem,omitempty"`
	NextTry time.Time `json:"next_try,omitzero"`
}

// Open tells that the revocation is to be gone on with at now: a certificate that has expired no CA revokes.
func (r Revocation) Open(now time.Time) bool {
	return r.End == RevocationOpen && now.Before(r.Generation.NotAfter)
}

// Forgotten tells that the record may be dropped at now: its certificate has expired by every clock.
func (r Revocation) Forgotten(now time.Time) bool {
	return now.After(r.Generation.NotAfter.Add(MaxSkew))
}

// String names the certificate and the reason.
func (r Revocation) String() string {
	return fmt.Sprintf("revocation of generation %s of %s (%s)", r.Generation.Fingerprint.Short(), r.Generation.Slot, r.Reason)
}

// MergeRevocations keeps, for each fingerprint, the record that got furthest: what the CA has revoked stays revoked; else
// the latest revision counts, so that what was given up can be asked for again.
func MergeRevocations(a, b []Revocation) []Revocation {
	all := map[cert.Fingerprint]Revocation{}
	for _, r := range slices.Concat(a, b) {
		if old, ok := all[r.Generation.Fingerprint]; ok && compareRevocations(old, r) >= 0 {
			continue
		}
		r.Generation.NotBefore, r.Generation.NotAfter = utc(r.Generation.NotBefore), utc(r.Generation.NotAfter)
		r.Time, r.NextTry = utc(r.Time), utc(r.NextTry)
		all[r.Generation.Fingerprint] = r
	}
	out := make([]Revocation, 0, len(all))
	for _, r := range all {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Revocation) int {
		return cmp.Or(a.Generation.Slot.Compare(b.Generation.Slot), a.Generation.Compare(b.Generation))
	})
	return out
}

// compareRevocations is total over every field but the fingerprint.
func compareRevocations(a, b Revocation) int {
	return cmp.Or(compareBool(a.End == RevocationDone, b.End == RevocationDone), cmp.Compare(a.Revision, b.Revision),
		cmp.Compare(revocationRank[a.End], revocationRank[b.End]), cmp.Compare(a.End, b.End), cmp.Compare(a.Tries, b.Tries),
		a.NextTry.Compare(b.NextTry), a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node), compareBool(a.AtOnce, b.AtOnce),
		cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Directory, b.Directory), cmp.Compare(a.Problem, b.Problem),
		a.Generation.Slot.Compare(b.Generation.Slot), a.Generation.Compare(b.Generation), a.Generation.NotAfter.Compare(b.Generation.NotAfter))
}

// SoundReleases are the releases but those of revoked fingerprints: such a one would hide that of the generation which is
// the newest then.
func SoundReleases(releases []Release, tombstones []Tombstone) []Release {
	if len(releases) == 0 || len(tombstones) == 0 {
		return releases
	}
	revoked := make(map[cert.Fingerprint]bool, len(tombstones))
	for _, t := range tombstones {
		revoked[t.Fingerprint] = true
	}
	return slices.DeleteFunc(slices.Clone(releases), func(r Release) bool { return revoked[r.Generation.Fingerprint] })
}

// RevocationReport is what a pass did for a revocation.
type RevocationReport struct {
	Generation cert.Generation `json:"generation"`
	Reason     Reason          `json:"reason"`
	// Replacement is the generation that is in service instead; zero where there is none.
	Replacement cert.Generation `json:"replacement,omitzero"`
	// Tombstone tells that no node adopts, activates or rolls back to it any more; Revoked that the CA has revoked it.
	Tombstone bool `json:"tombstone"`
	Revoked   bool `json:"revoked"`
	// Outcome is Done where it is revoked, Waiting where a node still serves it, PutOff where NextTry says when it is gone
	// on with, NotMaster or Interrupted where another pass goes on with it, Failure where nothing does by itself.
	Outcome Outcome   `json:"outcome"`
	Error   string    `json:"error,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	NextTry time.Time `json:"next_try,omitzero"`
}
