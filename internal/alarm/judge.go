package alarm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// How long something must last before it is an alarm: what mends itself within that time is none.
const (
	unreachableAfter = 15 * time.Minute
	differsAfter     = time.Hour
	noMasterAfter    = 5 * time.Minute
	twoMastersAfter  = time.Minute
	notReadyAfter    = 5 * time.Minute
	noPassAfter      = 5 * time.Minute
	clockAfter       = 10 * time.Minute
	missingAfter     = time.Hour
	// failedAfter is for a certificate that has most of its life left: the next try may go well.
	failedAfter = 5 * time.Minute
	// deference is how much longer a node waits with what the MASTER sees too.
	deference = 15 * time.Minute
)

const (
	// clockOff is how far two nodes' clocks may be apart, and clockFar when that is urgent.
	clockOff = 2 * time.Minute
	clockFar = time.Hour
)

// Seen is all that Step looks at.
type Seen struct {
	Now time.Time
	// Node is this node.
	Node string
	// Report is the last pass's that could be made.
	Report cluster.Report
	// NoOrders tells that the pass ordered nothing, and so says nothing of failed orders.
	NoOrders bool
	// Failure is why the last pass could not be made at all, and Hint its mend; "" where it could.
	Failure, Hint string
	// Configuration is why a changed configuration did not take over; "" where none is refused.
	Configuration string
	// Silence is how long a MASTER that answers may make no pass; 0 where that is not known.
	Silence time.Duration
}

// candidate is something that is wrong, and an alarm once it was so for after.
type candidate struct {
	cluster.Alarm
	after time.Duration
}

// judgement is what is wrong at an instant.
type judgement struct {
	Seen
	book       *cluster.AlarmBook
	candidates []candidate
	// next is when the time alone makes another candidate; zero where it does not.
	next time.Time
	// speaker is the node that speaks for all: the MASTER that answers, by name the first of several; "" where none does.
	speaker string
	self    cluster.NodeStatus
	peers   map[string]cluster.NodeStatus
	slots   map[cert.Slot]cluster.CertificateReport
	// told are the slots of which a candidate says why they are not in service on a node, and the HAProxies that do not run.
	told map[string]bool
}

// judge finds what is wrong, by the report and the clock.
func judge(seen Seen, book *cluster.AlarmBook) *judgement {
	j := &judgement{Seen: seen, book: book, peers: map[string]cluster.NodeStatus{}, slots: map[cert.Slot]cluster.CertificateReport{}, told: map[string]bool{}}
	if seen.Configuration != "" {
		j.add(cluster.Alarm{Kind: cluster.AlarmConfiguration, Severity: cluster.Warning, Node: seen.Node,
			Text: "the changed configuration was refused, and the one before is in use: " + firstLine(seen.Configuration), Hint: "run certsync check there"}, 0)
	}
	if seen.Failure != "" || len(seen.Report.Nodes) == 0 {
		if seen.Failure != "" {
			j.add(cluster.Alarm{Kind: cluster.AlarmNoPass, Severity: cluster.Urgent, Node: seen.Node, Text: "no pass can be made: " + firstLine(seen.Failure),
				Hint: cmp.Or(seen.Hint, "see the daemon's log there")}, noPassAfter)
		}
		return j
	}
	j.self = seen.Report.Nodes[0]
	for _, n := range seen.Report.Nodes {
		j.peers[n.Node] = n
		if n.Reachable && n.Role == cluster.Master && (j.speaker == "" || n.Node < j.speaker) {
			j.speaker = n.Node
		}
	}
	for _, c := range seen.Report.Certificates {
		j.slots[c.Slot] = c
	}
	j.masters()
	for _, n := range seen.Report.Nodes[1:] {
		j.peer(n)
	}
	for _, n := range seen.Report.Nodes {
		j.placements(n)
	}
	for _, c := range seen.Report.Certificates {
		j.certificate(c)
	}
	j.readiness()
	j.others()
	return j
}

func (j *judgement) add(a cluster.Alarm, after time.Duration) {
	j.candidates = append(j.candidates, candidate{a, after})
}

// at notes an instant at which the time alone may make a candidate.
func (j *judgement) at(t time.Time) {
	if t.After(j.Now) && (j.next.IsZero() || t.Before(j.next)) {
		j.next = t
	}
}

// speaks tells that what several nodes see is this node's to tell.
func (j *judgement) speaks() bool { return j.speaker == j.Node }

// masters looks for too many of them, for none, and for one that does nothing.
func (j *judgement) masters() {
	var masters, away []string
	for _, n := range j.Report.Nodes {
		switch {
		case !n.Reachable:
			away = append(away, n.Node)
		case n.Role == cluster.Master:
			masters = append(masters, n.Node)
		}
	}
	switch {
	case len(masters) > 1:
		slices.Sort(masters)
		j.add(cluster.Alarm{Kind: cluster.AlarmTwoMasters, Severity: cluster.Urgent,
			Text: strings.Join(masters, " and ") + " are both MASTER: clients reach either",
			Hint: "see that the nodes hear each other's CARP advertisements: certsync carp status on both"}, twoMastersAfter)
	case len(masters) == 0:
		after := noMasterAfter
		if len(away) > 0 {
			after = unreachableAfter
		}
		j.add(cluster.Alarm{Kind: cluster.AlarmNoMaster, Severity: cluster.Urgent, Text: j.noMaster(away),
			Hint: "until there is one, no certificate is renewed: certsync carp status shows each node's view"}, after)
	case masters[0] != j.Node:
		j.silence(j.peers[masters[0]])
	}
}

// noMaster says that none is heard, and who it was.
func (j *judgement) noMaster(away []string) string {
	text := fmt.Sprintf("%s is %s, and no node that answers is MASTER", j.Node, j.self.Role)
	if len(away) > 0 {
		text += "; no answer from " + strings.Join(away, ", ")
	}
	if last := j.lastMaster(); last != "" {
		text += "; " + last
	}
	return text
}

// lastMaster says who was MASTER; "" where none was heard of.
func (j *judgement) lastMaster() string {
	if j.book.Master == "" {
		return ""
	}
	return fmt.Sprintf("%s was MASTER when last heard, at %s", j.book.Master, stamp(j.book.MasterSeen))
}

// silence looks whether a MASTER that answers makes passes: sshd answers for a daemon that is dead.
func (j *judgement) silence(master cluster.NodeStatus) {
	if master.Alarms == nil || master.Alarms.Judged.IsZero() || j.Silence <= 0 {
		return
	}
	last := master.Alarms.Judged
	if over := last.Add(j.Silence); j.Now.Before(over) {
		j.at(over)
		return
	}
	j.add(cluster.Alarm{Kind: cluster.AlarmSilent, Severity: cluster.Urgent, Node: master.Node,
		Text: fmt.Sprintf("%s is MASTER and has made no pass since %s: no certificate is renewed", master.Node, stamp(last)),
		Hint: "see that certsync runs there: service certsync status"}, 0)
}

// peer looks at how a peer fits this node.
func (j *judgement) peer(n cluster.NodeStatus) {
	if !n.Reachable {
		j.add(cluster.Alarm{Kind: cluster.AlarmUnreachable, Severity: cluster.Warning, Node: n.Node,
			Text: fmt.Sprintf("%s cannot reach %s: %s", j.Node, n.Node, cmp.Or(firstLine(n.Error), "no answer")),
			Hint: cmp.Or(n.Hint, "see that the host is up, and that ssh to it works for the service user")}, unreachableAfter)
		return
	}
	if n.Digest != j.self.Digest {
		j.add(cluster.Alarm{Kind: cluster.AlarmOtherConfiguration, Severity: cluster.Warning, Node: n.Node,
			Text: fmt.Sprintf("%s runs another configuration (acme, dns or certificates) than %s", n.Node, j.Node),
			Hint: "make the configuration files the same, then: service certsync reload"}, differsAfter)
	}
	if n.Version != j.self.Version && n.Version != "" {
		j.add(cluster.Alarm{Kind: cluster.AlarmOtherVersion, Severity: cluster.Warning, Node: n.Node,
			Text: fmt.Sprintf("%s runs certsync %s, %s runs %s", n.Node, n.Version, j.Node, j.self.Version), Hint: "upgrade the older one"}, differsAfter)
	}
	j.clock(n)
}

// clock compares a peer's clock with this one's: it was read during the pass.
func (j *judgement) clock(n cluster.NodeStatus) {
	off := max(j.Report.Start.Sub(n.Time), n.Time.Sub(j.Report.End))
	if n.Time.IsZero() || j.Report.Start.IsZero() || off < clockOff {
		return
	}
	way := "behind"
	if n.Time.After(j.Report.End) {
		way = "ahead of"
	}
	severity := cluster.Warning
	if off >= clockFar {
		severity = cluster.Urgent
	}
	j.add(cluster.Alarm{Kind: cluster.AlarmClock, Severity: severity, Node: n.Node,
		Text: fmt.Sprintf("the clock of %s is %s %s that of %s", n.Node, span(off), way, j.Node), Hint: "run ntpd or chronyd on both hosts"}, clockAfter)
}

// visible tells that the report has where certificates stand on a node: the MASTER looks at all, the others at themselves.
func (j *judgement) visible(node string) bool {
	return node == j.Node || j.Report.Role == cluster.Master && j.peers[node].Reachable
}

// placements looks at what the activations on a node came to.
func (j *judgement) placements(n cluster.NodeStatus) {
	if !j.visible(n.Node) {
		return
	}
	down := map[string]bool{}
	for _, pl := range n.Placements {
		kind := cluster.AlarmFailed
		switch {
		case pl.Proxy != "" && !pl.Running:
			if !down[pl.Proxy] {
				j.noProxy(n.Node, pl.Proxy)
			}
			down[pl.Proxy] = true
			j.told[place(n.Node, pl.Slot)] = true
			continue
		case pl.Outcome == cluster.RolledBack:
			kind = cluster.AlarmRolledBack
		case pl.Outcome != cluster.Failure:
			continue
		}
		j.told[place(n.Node, pl.Slot)] = true
		j.add(cluster.Alarm{Kind: kind, Severity: j.severity(pl.Slot), Slot: pl.Slot, Node: n.Node, Subject: pl.Proxy,
			Text: fmt.Sprintf("on %s: %s", n.Node, cmp.Or(firstLine(pl.Error), "it could not be put in service")), Hint: pl.Hint}, 0)
	}
}

func (j *judgement) noProxy(node, proxy string) {
	j.add(cluster.Alarm{Kind: cluster.AlarmNoHAProxy, Severity: cluster.Urgent, Node: node, Subject: proxy,
		Text: fmt.Sprintf("on %s no HAProxy runs (%s)", node, proxy), Hint: "start it there: service haproxy start"}, notReadyAfter)
}

// place is a slot on a node, as a key.
func place(node string, slot cert.Slot) string { return node + " " + slot.String() }

// severity is that of what is wrong with a slot: urgent where under a tenth of the life is left, or nothing is.
func (j *judgement) severity(slot cert.Slot) cluster.Severity {
	g := j.slots[slot].Newest
	if g.IsZero() || g.Left(j.Now) < g.Lifetime()/10 {
		return cluster.Urgent
	}
	return cluster.Warning
}

// certificate looks at one slot: what became of it in the pass, and how old it is.
func (j *judgement) certificate(c cluster.CertificateReport) {
	failed := j.failed(c)
	if c.Newest.IsZero() {
		if !failed {
			j.add(cluster.Alarm{Kind: cluster.AlarmMissing, Severity: cluster.Urgent, Slot: c.Slot, Text: "no certificate was obtained yet",
				Hint: j.renewHint(c)}, missingAfter)
		}
		return
	}
	j.age(c)
}

// failed tells of an order that failed or must not be made yet, and of what is held back.
func (j *judgement) failed(c cluster.CertificateReport) bool {
	text := firstLine(c.Error)
	switch {
	case c.Outcome == cluster.Waiting && !c.Newest.IsZero(), c.Outcome == cluster.RolledBack && j.Report.Role == cluster.Master && !j.isPlacements(c):
		j.add(cluster.Alarm{Kind: cluster.AlarmHeldBack, Severity: j.severity(c.Slot), Slot: c.Slot, Text: "held back: " + text, Hint: c.Hint}, 0)
	case c.Outcome == cluster.Failure && !j.isPlacements(c), c.Outcome == cluster.PutOff, c.Outcome == cluster.Waiting:
		if !c.NextTry.IsZero() {
			text += "; the next try is at " + stamp(c.NextTry)
		}
		after := time.Duration(0)
		if g := c.Newest; !g.IsZero() && j.severity(c.Slot) == cluster.Warning {
			after = min(failedAfter, g.Lifetime()/100)
		}
		a := cluster.Alarm{Kind: cluster.AlarmFailed, Severity: j.severity(c.Slot), Slot: c.Slot, Text: text, Hint: cmp.Or(c.Hint, j.renewHint(c))}
		if j.Report.Role != cluster.Master { // it is this node's own then: orders are the MASTER's
			a.Node, a.Text = j.Node, fmt.Sprintf("on %s: %s", j.Node, text)
		}
		j.add(a, after)
		return true
	}
	return false
}

// isPlacements tells that a row's error is that of a node, which is told by itself.
func (j *judgement) isPlacements(c cluster.CertificateReport) bool {
	for _, n := range j.Report.Nodes {
		for _, pl := range n.Placements {
			if pl.Slot == c.Slot && pl.Error != "" && c.Error == n.Node+": "+pl.Error {
				return true
			}
		}
	}
	return c.Error == ""
}

// age looks at the time left of the newest generation that this node knows of.
func (j *judgement) age(c cluster.CertificateReport) {
	g := c.Newest
	due := dueAt(c)
	late, tenth := due.Add(grace(g, due)), g.NotAfter.Add(-g.Lifetime()/10)
	for _, t := range []time.Time{late, tenth, g.NotAfter} {
		j.at(t)
	}
	alarm := cluster.Alarm{Kind: cluster.AlarmOverdue, Severity: j.severity(c.Slot), Slot: c.Slot, Hint: j.renewHint(c)}
	switch {
	case !j.Now.Before(g.NotAfter):
		alarm.Kind, alarm.Text = cluster.AlarmExpired, fmt.Sprintf("expired at %s, and no later generation is known", stamp(g.NotAfter))
	case !j.Now.Before(late), !j.Now.Before(tenth):
		alarm.Text = fmt.Sprintf("was to be renewed at %s; %s of %s left", stamp(due), span(g.Left(j.Now)), span(g.Lifetime()))
	default:
		return
	}
	switch last := j.lastMaster(); {
	case j.speaker != "" && !j.speaks():
		alarm.Text += fmt.Sprintf("; %s is MASTER", j.speaker)
	case j.speaker == "" && last != "":
		alarm.Text += "; no MASTER is heard, " + last
	case j.speaker == "":
		alarm.Text += "; no MASTER is heard"
	}
	j.add(alarm, 0)
}

// dueAt is when a certificate is to be renewed: as the report says, or when a third of its lifetime is left.
func dueAt(c cluster.CertificateReport) time.Time {
	if !c.RenewAt.IsZero() {
		return c.RenewAt
	}
	return c.Newest.NotAfter.Add(-c.Newest.Lifetime() / 3)
}

// grace is how long after it was due a renewal may take, with a few retries: an hour or a twentieth of the lifetime, and
// a quarter of what was left at most, which counts for those that live for hours.
func grace(g cert.Generation, due time.Time) time.Duration {
	return max(0, min(max(time.Hour, g.Lifetime()/20), g.NotAfter.Sub(due)/4))
}

func (j *judgement) renewHint(c cluster.CertificateReport) string {
	master := cmp.Or(j.speaker, "the MASTER")
	return fmt.Sprintf("see the log of certsync on %s; once the cause is mended, there: certsync issue %s", master, c.Slot.Name)
}

// readiness looks for nodes that would not serve as they should if they took over.
func (j *judgement) readiness() {
	for _, r := range j.Report.Readiness() {
		if !j.visible(r.Node) || !r.Known {
			continue
		}
		var names []string
		var why string
		fails := false
		for _, gap := range r.Gaps {
			if g := j.slots[gap.Slot].Newest; g.IsZero() || !j.Now.Before(g.NotAfter) || j.told[place(r.Node, gap.Slot)] {
				continue // the same everywhere, or told by itself
			}
			names, fails, why = append(names, gap.Slot.Name), fails || gap.Fails, cmp.Or(why, gap.Why)
		}
		if len(names) == 0 {
			continue
		}
		a := cluster.Alarm{Kind: cluster.AlarmNotReady, Severity: cluster.Warning, Node: r.Node,
			Text: fmt.Sprintf("%s would serve an earlier certificate of %s: %s", r.Node, few(names), why), Hint: "see certsync status; to try again: certsync sync"}
		if fails {
			a.Severity, a.Text = cluster.Urgent, fmt.Sprintf("%s would fail for %s: %s", r.Node, few(names), why)
		}
		j.add(a, notReadyAfter)
	}
}

// others are what this node tells of itself, and the CA's limits.
func (j *judgement) others() {
	for _, problem := range j.self.Problems {
		problem = firstLine(problem)
		j.add(cluster.Alarm{Kind: cluster.AlarmState, Severity: cluster.Warning, Node: j.Node, Subject: problem,
			Text: fmt.Sprintf("on %s: %s", j.Node, problem), Hint: "see certsync status there"}, notReadyAfter)
	}
	for _, budget := range j.Report.Budgets {
		what, _, _ := strings.Cut(budget, ": ")
		j.add(cluster.Alarm{Kind: cluster.AlarmBudget, Severity: cluster.Warning, Subject: what, Text: budget,
			Hint: "order no more by hand than is needed until then"}, 0)
	}
}

// blind tells that the report cannot say whether an alarm stands.
func (j *judgement) blind(a cluster.Alarm) bool {
	own := a.Kind == cluster.AlarmConfiguration || a.Kind == cluster.AlarmNoPass
	if own {
		return false
	}
	if len(j.peers) == 0 {
		return true
	}
	n, known := j.peers[a.Node]
	switch a.Kind {
	case cluster.AlarmNotReady, cluster.AlarmNoHAProxy, cluster.AlarmRolledBack:
		return known && !j.visible(a.Node)
	case cluster.AlarmFailed:
		if a.Node != "" {
			return known && !j.visible(a.Node)
		}
		return j.NoOrders || j.Report.Role != cluster.Master
	case cluster.AlarmHeldBack, cluster.AlarmBudget:
		return j.Report.Role != cluster.Master
	case cluster.AlarmOtherConfiguration, cluster.AlarmOtherVersion, cluster.AlarmClock, cluster.AlarmSilent:
		return known && !n.Reachable
	}
	return false
}
