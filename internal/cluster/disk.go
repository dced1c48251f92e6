package cluster

import "certsync/internal/cert"

// Standing is how a bundle that lies at a target's path compares with the one that the target wants.
type Standing int

// The standings.
const (
	// Strange: nothing is known of it; it is certsync's only where certsync wrote that file, or was given it.
	Strange Standing = iota
	// Earlier: it is of the same certificate, and earlier or revoked: it gives way.
	Earlier
	// Later: it is of the same certificate, and later: it stays.
	Later
)

// DiskSync is what a node has on disk for HAProxy's next start, and what was written of it.
type DiskSync struct {
	Node string `json:"node"`
	// Placements tell of each slot that the store has a bundle of, for each HAProxy: Unchanged where the right file was
	// there, DiskOnly where it was written. Memory and handshakes are not looked at.
	Placements []Placement `json:"placements"`
	// Missing are the configured slots that the store has no bundle of.
	Missing []cert.Slot `json:"missing,omitempty"`
	// Problems are the state files that were set aside.
	Problems []string `json:"problems,omitempty"`
}
