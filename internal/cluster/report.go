package cluster

import (
	"cmp"
	"maps"
	"slices"
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
	// DiskOnly: the bundle is on disk, and HAProxy does not run, cannot be asked, or must be reloaded to serve it.
	DiskOnly Outcome = "disk_only"
	// Waiting: held back: by the canary (another node serves the wrong thing), or by a peer with another configuration.
	Waiting Outcome = "waiting"
	// Skipped: the node could not be reached.
	Skipped Outcome = "skipped"
	// PutOff: a rate limit or back-off forbids the attempt.
	PutOff Outcome = "put_off"
	// NotMaster: it was not done, or not to its end, because this node is not MASTER any more.
	NotMaster Outcome = "not_master"
	// Interrupted: it was not done, or not to its end, because the pass was told to end.
	Interrupted Outcome = "interrupted"
	// RolledBack: HAProxy refused it or served another one; the previous bundle is in service again.
	RolledBack Outcome = "rolled_back"
	// Failure: it failed, and the previous state stands.
	Failure Outcome = "failed"
)

// Outcomes are all of them, from the best to the worst.
func Outcomes() []Outcome {
	return slices.SortedFunc(maps.Keys(outcomeRank), func(a, b Outcome) int { return cmp.Compare(outcomeRank[a], outcomeRank[b]) })
}

var outcomeRank = map[Outcome]int{Unchanged: 1, Done: 2, Unproven: 3, DiskOnly: 4, Waiting: 5, Skipped: 6, PutOff: 7,
	NotMaster: 8, Interrupted: 9, RolledBack: 10, Failure: 11}

// Worse is the worse of two outcomes. "" (nothing was to be done) is the best; one that is not known, as a newer peer
// may send, is the worst: it must not pass for good.
func Worse(a, b Outcome) Outcome {
	rank := func(o Outcome) int {
		r, known := outcomeRank[o]
		if !known && o != "" {
			return len(outcomeRank) + 1
		}
		return r
	}
	if cmp.Or(cmp.Compare(rank(b), rank(a)), cmp.Compare(b, a)) > 0 {
		return b
	}
	return a
}

// Sighting is a certificate as it was seen somewhere. Fingerprint is zero where only the SHA-1 could be had (HAProxy's
// memory, for a bundle that is not among those known); all zero where nothing was there.
type Sighting struct {
	Fingerprint cert.Fingerprint `json:"fingerprint,omitzero"`
	SHA1        string           `json:"sha1,omitempty"`
	NotBefore   time.Time        `json:"not_before,omitzero"`
	NotAfter    time.Time        `json:"not_after,omitzero"`
	// Seen is when the handshake was made that showed it; where there are many certificates, not in every pass.
	Seen time.Time `json:"seen,omitzero"`
	// Note says what else there is to say: "no file", "not in HAProxy's memory", why the handshake failed.
	Note string `json:"note,omitempty"`
}

// IsZero tells that no certificate was seen.
func (s Sighting) IsZero() bool { return s.Fingerprint.IsZero() && s.SHA1 == "" }

// Expiring tells that what was seen has less than a tenth of its lifetime left at now, or none. The lifetime is known
// only where NotBefore was seen; without it only an expired certificate is.
func (s Sighting) Expiring(now time.Time) bool {
	if s.NotAfter.IsZero() {
		return false
	}
	left := s.NotAfter.Sub(now)
	return left <= 0 || !s.NotBefore.IsZero() && left < s.NotAfter.Sub(s.NotBefore)/10
}

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
	// Running is false where no HAProxy listens on the runtime socket; one that hangs or refuses us runs. Pid is
	// HAProxy's, where it said.
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
	// Reloaded is why HAProxy was reloaded for it, "" where it was not.
	Reloaded string `json:"reloaded,omitempty"`
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
	// Unconfigured are the slots of Held that the node's configuration does not want. They have placements only where
	// their name is no longer configured: the path of another algorithm's bundle may be a configured slot's by now.
	Unconfigured []cert.Slot `json:"unconfigured,omitempty"`
	// Problems are the state files that were set aside, and other things that a person must look at.
	Problems []string `json:"problems,omitempty"`
	// Alarms are those that a peer said in its inventory that it told of; nil where it did not say. They are for whoever made
	// the pass, and go no further.
	Alarms *AlarmBook `json:"-"`
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
	Ordered bool `json:"ordered,omitempty"`
	Resumed bool `json:"resumed,omitempty"`
	// RolledBackFrom is the generation that was the newest before this pass put an earlier one back; zero elsewhere.
	RolledBackFrom cert.Generation `json:"rolled_back_from,omitzero"`

	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	// NextTry is when an attempt is allowed again, where it is put off.
	NextTry time.Time `json:"next_try,omitzero"`
	// RenewAt is when Newest is to be renewed; Explanation is the URL of the CA's page that says why it wants it then.
	RenewAt     time.Time `json:"renew_at,omitzero"`
	Explanation string    `json:"explanation_url,omitempty"`
	// Next is when something is to be done for the slot by itself: an order, the next try, a question to the CA. Zero on
	// a node that is not MASTER.
	Next time.Time `json:"next,omitzero"`
}

// Report is what a pass found and did.
type Report struct {
	Node  string    `json:"node"`
	Role  Role      `json:"role"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// Outcome is the worst over all certificates and nodes.
	Outcome Outcome `json:"outcome"`
	// Interrupted tells that the pass was told to end before it was done.
	Interrupted  bool                `json:"interrupted,omitempty"`
	Certificates []CertificateReport `json:"certificates"`
	// Nodes has this node first, then the peers as configured.
	Nodes    []NodeStatus `json:"nodes"`
	Warnings []string     `json:"warnings,omitempty"`
	// Revocations are those that were asked for and had not ended before this pass.
	Revocations []RevocationReport `json:"revocations,omitempty"`
	// Budgets are those of the warnings that tell of a limit of the CA which is nearly spent: WHAT: TEXT.
	Budgets []string `json:"budgets,omitempty"`
	// Next is the earliest Next of the certificates: when a pass is to be made without anything having happened. Zero
	// where none is.
	Next time.Time `json:"next,omitzero"`
	// Pruned is what a prune removed, where this is the report of one; then nothing else is in it.
	Pruned *Pruning `json:"pruned,omitempty"`
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
