package cluster

import (
	"cmp"
	"slices"
	"time"

	"certsync/internal/cert"
)

// AlarmKind says what an alarm is about. With the slot, the node and the subject it is the alarm's identity.
type AlarmKind string

// The kinds of alarms.
const (
	// AlarmExpired: clients are, or would be, shown a certificate that has expired.
	AlarmExpired AlarmKind = "expired"
	// AlarmOverdue: a certificate was not renewed when it was due.
	AlarmOverdue AlarmKind = "renewal_overdue"
	// AlarmMissing: a configured certificate was never obtained.
	AlarmMissing AlarmKind = "no_certificate"
	// AlarmFailed: obtaining a certificate, or putting it in service, failed.
	AlarmFailed AlarmKind = "failed"
	// AlarmRolledBack: a node's HAProxy refused a generation, or served another one; the earlier is in service again.
	AlarmRolledBack AlarmKind = "rolled_back"
	// AlarmHeldBack: a generation is not in service anywhere yet because a node serves the wrong thing (the canary).
	AlarmHeldBack AlarmKind = "held_back"
	// AlarmNotReady: a node would not serve every certificate as it should if it took over.
	AlarmNotReady AlarmKind = "not_ready"
	// AlarmNoHAProxy: no HAProxy runs on a node.
	AlarmNoHAProxy AlarmKind = "haproxy_down"
	// AlarmUnreachable: a node cannot be asked.
	AlarmUnreachable AlarmKind = "unreachable"
	// AlarmOtherConfiguration: a node runs another configuration.
	AlarmOtherConfiguration AlarmKind = "other_configuration"
	// AlarmOtherVersion: a node runs another version of certsync.
	AlarmOtherVersion AlarmKind = "other_version"
	// AlarmSilent: the MASTER answers, and makes no passes.
	AlarmSilent AlarmKind = "master_silent"
	// AlarmTwoMasters: more than one node says that it is MASTER.
	AlarmTwoMasters AlarmKind = "two_masters"
	// AlarmNoMaster: no node says that it is MASTER, or none that can be heard.
	AlarmNoMaster AlarmKind = "no_master"
	// AlarmClock: a node's clock is far from this one's.
	AlarmClock AlarmKind = "clock"
	// AlarmConfiguration: a changed configuration was refused; the one before is in use.
	AlarmConfiguration AlarmKind = "configuration_refused"
	// AlarmState: state files were set aside, or something else on a node that a person must look at.
	AlarmState AlarmKind = "state"
	// AlarmBudget: a limit of the CA is nearly spent.
	AlarmBudget AlarmKind = "budget"
	// AlarmNoPass: no pass could be made.
	AlarmNoPass AlarmKind = "no_pass"
)

// Severity is how bad an alarm is.
type Severity string

// The severities. What is Urgent breaks a service, or soon will: it is told again every day while it stands.
const (
	Warning Severity = "warning"
	Urgent  Severity = "urgent"
)

// Alarm is something that stands and that a person must know of.
type Alarm struct {
	Kind     AlarmKind `json:"kind"`
	Severity Severity  `json:"severity"`
	// Slot and Node are what it concerns, as far as it concerns one.
	Slot cert.Slot `json:"slot,omitzero"`
	Node string    `json:"node,omitempty"`
	// Subject tells alarms of one kind apart that have no slot and node to do so: a problem's text, a budget's name.
	Subject string `json:"subject,omitempty"`
	// Since is when it was first seen, by the clock of the node that raised it.
	Since time.Time `json:"since"`
	// Text says what is wrong, and Hint what to do, in a line each.
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// AlarmID is what makes two alarms the same.
type AlarmID struct {
	Kind    AlarmKind
	Slot    cert.Slot
	Node    string
	Subject string
}

// ID is the alarm's identity: its severity and text may change while it stands.
func (a Alarm) ID() AlarmID { return AlarmID{a.Kind, a.Slot, a.Node, a.Subject} }

// Compare orders alarms: urgent ones first, then by kind, slot, node and subject.
func (a Alarm) Compare(b Alarm) int {
	return cmp.Or(-compareBool(a.Severity == Urgent, b.Severity == Urgent), cmp.Compare(a.Kind, b.Kind), a.Slot.Compare(b.Slot),
		cmp.Compare(a.Node, b.Node), cmp.Compare(a.Subject, b.Subject))
}

// AlarmEntry is what a node remembers of an alarm.
type AlarmEntry struct {
	Alarm
	// By is the node that told of it first, Told when it was told last; both zero where nobody was told yet.
	By   string    `json:"by,omitempty"`
	Told time.Time `json:"told,omitzero"`
	// Ended is when it was found not to stand any more, EndTold when that was told; zero while it stands.
	Ended   time.Time `json:"ended,omitzero"`
	EndTold time.Time `json:"end_told,omitzero"`
	// Rises are when it came up, as far as that is not long ago; Flaps is how many of them were told as one coming and
	// going, 0 where it does not.
	Rises []time.Time `json:"rises,omitempty"`
	Flaps int         `json:"flaps,omitempty"`
	// Unsent tells that what was to be told has not reached anybody yet.
	Unsent bool `json:"unsent,omitempty"`
}

// AlarmBook is what a node remembers of alarms, over a restart too; its peers have it from the inventory.
type AlarmBook struct {
	// Judged is when the node's daemon last looked for alarms, after a pass.
	Judged  time.Time    `json:"judged,omitzero"`
	Entries []AlarmEntry `json:"entries,omitempty"`
	// Master is the node that was last heard to be MASTER, and MasterSeen when.
	Master     string    `json:"master,omitempty"`
	MasterSeen time.Time `json:"master_seen,omitzero"`
	// Heard are the told alarms of each peer, as of when it last answered. It is not in an inventory.
	Heard map[string][]AlarmEntry `json:"heard,omitempty"`
}

// MaxTold bounds the entries of AlarmBook.Public.
const MaxTold = 1000

// Public is what peers are told of a book: the entries that were told, the urgent ones first.
func (b AlarmBook) Public() AlarmBook {
	out := AlarmBook{Judged: b.Judged, Master: b.Master, MasterSeen: b.MasterSeen}
	for _, e := range b.Entries {
		if !e.Told.IsZero() {
			out.Entries = append(out.Entries, e)
		}
	}
	slices.SortStableFunc(out.Entries, func(a, b AlarmEntry) int { return a.Compare(b.Alarm) })
	out.Entries = out.Entries[:min(len(out.Entries), MaxTold)]
	return out
}
