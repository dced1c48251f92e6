package cluster

import (
	"time"

	"certsync/internal/cert"
)

// Outcome is how a step ended for one slot on one node.
type Outcome string

// The outcomes, from the best to the worst; Worse compares them.
const (
	// Unchanged: the newest generation was already in service.
	Unchanged Outcome = "unchanged"
	// Done: brought in service and seen in a handshake.
	Done Outcome = "done"
	// Unproven: in HAProxy's memory, but no handshake could be tried.
	Unproven Outcome = "unproven"
	// DiskOnly: the bundle is on disk and no HAProxy runs to serve it.
	DiskOnly Outcome = "disk_only"
	// Waiting: held back by the canary: another node serves the wrong thing.
	Waiting Outcome = "waiting"
	// Skipped: the node could not be reached.
	Skipped Outcome = "skipped"
	// PutOff: a rate limit or back-off forbids the attempt.
	PutOff Outcome = "put_off"
	// RolledBack: HAProxy refused it or served another one; the previous bundle is in service again.
	RolledBack Outcome = "rolled_back"
	// Failure: it failed, and the previous state stands.
	Failure Outcome = "failed"
)

var outcomeRank = map[Outcome]int{Unchanged: 0, Done: 1, Unproven: 2, DiskOnly: 3, Waiting: 4, Skipped: 5, PutOff: 6, RolledBack: 7, Failure: 8}

// Worse is the worse of two outcomes.
func Worse(a, b Outcome) Outcome {
	if outcomeRank[b] > outcomeRank[a] {
		return b
	}
	return a
}

// Sighting is a certificate as it was seen somewhere. Fingerprint is zero where only the SHA-1 could be had (HAProxy's
// memory, for a bundle that is not among those known); all zero where nothing was there.
type Sighting struct {
	Fingerprint cert.Fingerprint `json:"fingerprint,omitzero"`
	SHA1        string           `json:"sha1,omitempty"`
	NotAfter    time.Time        `json:"not_after,omitzero"`
	// Note says what else there is to say: "no file", "not in HAProxy's memory", why the handshake failed.
	Note string `json:"note,omitempty"`
}

// IsZero tells that no certificate was seen.
func (s Sighting) IsZero() bool { return s.Fingerprint.IsZero() && s.SHA1 == "" }

// Proof tells what is known of what a node serves.
type Proof string

// The proofs.
const (
	// Proven: a fresh handshake with this node's HAProxy showed the wanted leaf.
	Proven Proof = "proven"
	// Disproven: a fresh handshake showed another one, or failed.
	Disproven Proof = "disproven"
	// NoProof: no handshake could be tried (unproven).
	NoProof Proof = "unproven"
)

// Placement is where one slot stands with one HAProxy of a node.
type Placement struct {
	Slot cert.Slot `json:"slot"`
	// Proxy names the HAProxy: the `config` of its entry.
	Proxy string `json:"proxy"`
	// Running tells whether its runtime socket answered; Pid is HAProxy's.
	Running bool `json:"running"`
	Pid     int  `json:"pid,omitempty"`
	// File is the bundle's path; Disk, Memory and Served are what was seen there, in HAProxy's memory, in a handshake.
	File   string   `json:"file"`
	Disk   Sighting `json:"disk"`
	Memory Sighting `json:"memory"`
	Served Sighting `json:"served"`
	Proof  Proof    `json:"proof"`
	// Outcome, Error and Hint tell what an activation did; Outcome is "" where nothing was to be done or tried.
	Outcome Outcome `json:"outcome,omitempty"`
	Error   string  `json:"error,omitempty"`
	Hint    string  `json:"hint,omitempty"`
}

// NodeStatus is what one node knows of its own slots.
type NodeStatus struct {
	Node string    `json:"node"`
	Role Role      `json:"role"`
	Time time.Time `json:"time"`
	// Version is certsync's; Digest is the configuration's (see Inventory).
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"`
	// Reachable is false where the node could not be asked; Error then says why.
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty"`
	Hint      string `json:"hint,omitempty"`
	// Held are the newest generations in the node's store.
	Held       []cert.Generation `json:"held,omitempty"`
	Placements []Placement       `json:"placements,omitempty"`
	// Problems are the state files that were set aside, and other things that a person must look at.
	Problems []string `json:"problems,omitempty"`
}

// CertificateReport is what a pass found and did for one slot.
type CertificateReport struct {
	Slot    cert.Slot `json:"slot"`
	Domains []string  `json:"domains,omitempty"`
	// Newest is the newest generation known of the slot after the pass.
	Newest cert.Generation `json:"newest,omitzero"`
	// Due says why a new generation was needed, "" where none was.
	Due     string  `json:"due,omitempty"`
	Outcome Outcome `json:"outcome"`
	// Ordered tells that a new generation was obtained in this pass; Resumed that its order was taken up.
	Ordered bool   `json:"ordered,omitempty"`
	Resumed bool   `json:"resumed,omitempty"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
	// NextTry is when an attempt is allowed again, where it is put off.
	NextTry time.Time `json:"next_try,omitzero"`
}

// Report is what a pass found and did.
type Report struct {
	Node  string    `json:"node"`
	Role  Role      `json:"role"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// Outcome is the worst over all certificates and nodes.
	Outcome      Outcome             `json:"outcome"`
	Certificates []CertificateReport `json:"certificates"`
	// Nodes has this node first, then the peers as configured.
	Nodes    []NodeStatus `json:"nodes"`
	Warnings []string     `json:"warnings,omitempty"`
}

// Progress is one line of what a pass is doing, for a terminal, a log, or the stream back to a command.
type Progress struct {
	Slot cert.Slot `json:"slot,omitzero"`
	Node string    `json:"node,omitempty"`
	// Step is the flow's: adopt, due, fence, obtain, keep, stage, activate, report.
	Step string `json:"step"`
	// Message is one line for a person.
	Message string `json:"message"`
}
