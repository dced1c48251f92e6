package cluster

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"certsync/internal/cert"
)

// API is the version of the peer API. Versions N and N-1 work together.
const API = 1

// Tombstone marks a revoked fingerprint: never adopted, activated or rolled back to.
type Tombstone struct {
	Fingerprint cert.Fingerprint `json:"fingerprint"`
	Name        string           `json:"name"`
	Time        time.Time        `json:"time"`
	Reason      string           `json:"reason,omitempty"`
}

// Release is the MASTER's stored word that a generation may be activated.
type Release struct {
	Generation cert.Generation `json:"generation"`
	// Node is the MASTER that released it.
	Node string    `json:"node"`
	Time time.Time `json:"time"`
}

// Records are the small things that nodes replicate: everything but the bundles.
type Records struct {
	Accounts   []Account   `json:"accounts,omitempty"`
	Orders     []Order     `json:"orders,omitempty"`
	Ledger     []Attempt   `json:"ledger,omitempty"`
	Tombstones []Tombstone `json:"tombstones,omitempty"`
	Releases   []Release   `json:"releases,omitempty"`
	// Renewals are what the CA said of when generations should be renewed, one for each slot.
	Renewals []RenewalInfo `json:"renewals,omitempty"`
	// Revocations are those that were asked for, one for each fingerprint.
	Revocations []Revocation `json:"revocations,omitempty"`
}

// String counts the records.
func (r Records) String() string {
	return fmt.Sprintf("%d accounts, %d orders, %d attempts, %d tombstones, %d releases, %d renewals, %d revocations", len(r.Accounts), len(r.Orders), len(r.Ledger),
		len(r.Tombstones), len(r.Releases), len(r.Renewals), len(r.Revocations))
}

// Format prints String for every verb, see Account.Format.
func (r Records) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// LogValue counts the records: their JSON would show keys.
func (r Records) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("accounts", len(r.Accounts)), slog.Int("orders", len(r.Orders)), slog.Int("ledger", len(r.Ledger)),
		slog.Int("tombstones", len(r.Tombstones)), slog.Int("releases", len(r.Releases)),
		slog.Int("renewals", len(r.Renewals)), slog.Int("revocations", len(r.Revocations)))
}

// Inventory is what a node tells its peers of itself.
type Inventory struct {
	API     int    `json:"api"`
	Version string `json:"version"`
	Node    string `json:"node"`
	Role    Role   `json:"role"`
	// Time is the node's clock.
	Time time.Time `json:"time"`
	// Digest is that of the configuration's acme, dns and certificates.
	Digest string `json:"digest"`
	// Generations are those held, every one of every slot.
	Generations []cert.Generation `json:"generations,omitempty"`
	// Alarms are those that the node told of; nil from one that does not say.
	Alarms *AlarmBook `json:"alarms,omitempty"`
	Records
}

// String names the node and counts the rest.
func (i Inventory) String() string {
	return fmt.Sprintf("inventory of %s (%s): %d generations, %s", i.Node, i.Role, len(i.Generations), i.Records)
}

// Format prints String for every verb, see Account.Format.
func (i Inventory) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// LogValue names the node and counts the rest: the JSON of the records would show keys.
func (i Inventory) LogValue() slog.Value {
	return slog.GroupValue(slog.String("node", i.Node), slog.String("role", i.Role.String()), slog.String("version", i.Version),
		slog.Int("generations", len(i.Generations)), slog.Any("records", i.Records))
}

// Newest is the newest of the generations of slot that has no tombstone; the zero Generation where there is none.
func Newest(generations []cert.Generation, tombstones []Tombstone, slot cert.Slot) cert.Generation {
	var best cert.Generation
	for _, g := range generations {
		if g.Slot == slot && !Revoked(tombstones, g.Fingerprint) && g.Newer(best) {
			best = g
		}
	}
	return best
}

// Revoked tells whether fingerprint has a tombstone.
func Revoked(tombstones []Tombstone, fingerprint cert.Fingerprint) bool {
	return slices.ContainsFunc(tombstones, func(t Tombstone) bool { return t.Fingerprint == fingerprint })
}

// MergeTombstones is the union by fingerprint; the earliest entry of each stays.
func MergeTombstones(a, b []Tombstone) []Tombstone {
	compare := func(a, b Tombstone) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason))
	}
	all := map[cert.Fingerprint]Tombstone{}
	for _, t := range slices.Concat(a, b) {
		if old, ok := all[t.Fingerprint]; !ok || compare(t, old) < 0 {
			t.Time = utc(t.Time)
			all[t.Fingerprint] = t
		}
	}
	out := make([]Tombstone, 0, len(all))
	for _, t := range all {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Tombstone) int {
		return cmp.Compare(a.Fingerprint.String(), b.Fingerprint.String())
	})
	return out
}

// MergeReleases keeps the newest release of each slot, and of one generation's the earliest.
func MergeReleases(a, b []Release) []Release {
	all := map[cert.Slot]Release{}
	for _, r := range slices.Concat(a, b) {
		old, ok := all[r.Generation.Slot]
		c := cmp.Or(r.Generation.Compare(old.Generation), -r.Time.Compare(old.Time), cmp.Compare(r.Node, old.Node),
			r.Generation.NotAfter.Compare(old.Generation.NotAfter))
		if !ok || c > 0 {
			r.Time = utc(r.Time)
			r.Generation.NotBefore, r.Generation.NotAfter = utc(r.Generation.NotBefore), utc(r.Generation.NotAfter)
			all[r.Generation.Slot] = r
		}
	}
	out := make([]Release, 0, len(all))
	for _, r := range all {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Release) int { return a.Generation.Slot.Compare(b.Generation.Slot) })
	return out
}

// CheckJump refuses a generation from a peer whose sequence is more than 1,000, plus one a minute since the newest
// generation held, ahead of it: a forged one would otherwise outrank every later issue for ever. A node that holds
// none takes any.
func CheckJump(held, offered cert.Generation, now time.Time) error {
	if held.IsZero() || offered.Sequence <= held.Sequence {
		return nil
	}
	allowed := uint64(1000)
	if age := now.Sub(held.NotBefore); age > 0 {
		allowed += uint64(age / time.Minute)
	}
	if offered.Sequence-held.Sequence > allowed {
		return fmt.Errorf("generation %s of %s: sequence %d after %d: %w (at most %d)", offered.Fingerprint.Short(), offered.Slot,
			offered.Sequence, held.Sequence, ErrJump, allowed)
	}
	return nil
}
