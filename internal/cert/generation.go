package cert

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// Fingerprint is the SHA-256 of a leaf's DER encoding. The zero value means none.
type Fingerprint [sha256.Size]byte

// String is 64 lower-case hexadecimal digits, or "" for the zero value.
func (f Fingerprint) String() string {
	if f.IsZero() {
		return ""
	}
	return hex.EncodeToString(f[:])
}

// Short is the first 8 digits, enough to tell generations apart for a reader; never for a comparison.
func (f Fingerprint) Short() string {
	if f.IsZero() {
		return "-"
	}
	return hex.EncodeToString(f[:4])
}

// IsZero tells that there is no fingerprint.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// MarshalText implements encoding.TextMarshaler.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	*f = Fingerprint{}
	if len(text) == 0 {
		return nil
	}
	if len(text) != hex.EncodedLen(len(f)) {
		return fmt.Errorf("fingerprint %.80q: %d characters, want %d hexadecimal digits", text, len(text), hex.EncodedLen(len(f)))
	}
	if _, err := hex.Decode(f[:], text); err != nil {
		return fmt.Errorf("fingerprint %q: %w", text, err)
	}
	return nil
}

// Slot is a place for one bundle: a certificate's name and a signature family. Generations are ordered within a slot.
type Slot struct {
	Name      string    `json:"name"`
	Algorithm Algorithm `json:"algorithm"`
}

// String is for logs and messages: "example.org (ecdsa)".
func (s Slot) String() string { return s.Name + " (" + string(s.Algorithm) + ")" }

// Compare orders slots by name, then algorithm, for stable output.
func (s Slot) Compare(o Slot) int {
	return cmp.Or(cmp.Compare(s.Name, o.Name), cmp.Compare(s.Algorithm, o.Algorithm))
}

// Generation is one issued bundle of a slot: what nodes tell each other of it without the bundle itself.
type Generation struct {
	Slot
	// Sequence grows by one with each issue or roll-back; it is what makes a roll-back to an older bundle newer.
	Sequence uint64 `json:"sequence"`
	// NotBefore and NotAfter are the leaf's, in UTC with whole seconds.
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Fingerprint is the leaf's.
	Fingerprint Fingerprint `json:"fingerprint"`
}

// IsZero tells that there is no generation.
func (g Generation) IsZero() bool { return g.Fingerprint.IsZero() }

// Compare orders the generations of one slot by (sequence, notBefore, fingerprint): negative where g is the older.
// notBefore breaks the tie of two nodes that both issued in a split brain; the fingerprint breaks that of a CA whose
// notBefore is midnight (ZeroSSL). Zero only where both are the same generation.
func (g Generation) Compare(o Generation) int {
	return cmp.Or(
		cmp.Compare(g.Sequence, o.Sequence),
		g.NotBefore.Compare(o.NotBefore),
		bytes.Compare(g.Fingerprint[:], o.Fingerprint[:]),
	)
}

// Newer tells whether g is later than o in the order of Compare. Any generation is newer than none.
func (g Generation) Newer(o Generation) bool {
	switch {
	case g.IsZero():
		return false
	case o.IsZero():
		return true
	}
	return g.Compare(o) > 0
}

// Lifetime is the time from NotBefore to NotAfter.
func (g Generation) Lifetime() time.Duration { return g.NotAfter.Sub(g.NotBefore) }

// Left is the time from now to NotAfter; negative once the certificate expired.
func (g Generation) Left(now time.Time) time.Duration { return g.NotAfter.Sub(now) }

// Runway is the part of the lifetime that is left at now, from 1 (fresh) to 0 (expired).
func (g Generation) Runway(now time.Time) float64 {
	life := g.Lifetime()
	if life <= 0 {
		return 0
	}
	return min(1, max(0, float64(g.Left(now))/float64(life)))
}
