package alarm

import (
	"maps"
	"slices"
	"time"

	"certsync/internal/cluster"
)

const (
	// remindEvery is how often what is urgent is told again.
	remindEvery = 24 * time.Hour
	// flapSpan and flapMost: what comes up more than flapMost times within flapSpan is told once, and then not until it
	// has stayed as it is for flapSpan.
	flapSpan = time.Hour
	flapMost = 3
	// handover is how long a node waits for the MASTER to go on with an alarm that is over here.
	handover = 30 * time.Minute
	// remembered is how long an alarm is kept after its end was told, for nodes that hear of it later.
	remembered = 24 * time.Hour
)

// Result is what Step gives.
type Result struct {
	Book cluster.AlarmBook
	// Standing are the alarms that stand, whoever told of them, sorted.
	Standing []cluster.Alarm
	// Message is to be told now; it may be empty.
	Message Message
	// Wake is when to look again though nothing happened; zero for never.
	Wake time.Time
}

// Step takes what was seen into the book, and says what is to be told. It is pure. Where the pass was interrupted it
// must not be asked: half a report says little.
func Step(before cluster.AlarmBook, seen Seen) Result {
	s := step{judgement: judge(seen, &before), entries: map[cluster.AlarmID]cluster.AlarmEntry{}, message: Message{Node: seen.Node, Time: seen.Now}}
	for _, e := range before.Entries {
		e.Rises = slices.DeleteFunc(slices.Clone(e.Rises), func(t time.Time) bool { return seen.Now.Sub(t) >= flapSpan })
		s.entries[e.ID()] = e
	}
	s.hear(before)
	s.wake = s.next
	here := map[cluster.AlarmID]bool{}
	for _, c := range s.candidates {
		if !here[c.ID()] {
			here[c.ID()] = true
			s.stands(c)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.entries), compareIDs) {
		if !here[id] {
			s.missing(id, s.entries[id])
		}
	}
	return s.result(before)
}

// step is one Step under way.
type step struct {
	*judgement
	entries map[cluster.AlarmID]cluster.AlarmEntry
	heard   map[string][]cluster.AlarmEntry
	message Message
	wake    time.Time
}

func compareIDs(a, b cluster.AlarmID) int {
	alarm := func(id cluster.AlarmID) cluster.Alarm {
		return cluster.Alarm{Kind: id.Kind, Slot: id.Slot, Node: id.Node, Subject: id.Subject}
	}
	return alarm(a).Compare(alarm(b))
}

// again has Step called at t.
func (s *step) again(t time.Time) {
	if s.wake.IsZero() || t.Before(s.wake) {
		s.wake = t
	}
}

// shared tells the alarms that several nodes see. The others are a node's own affair, and told by itself.
func shared(a cluster.Alarm) bool {
	switch a.Kind {
	case cluster.AlarmConfiguration, cluster.AlarmNoPass, cluster.AlarmState,
		cluster.AlarmOtherConfiguration, cluster.AlarmOtherVersion, cluster.AlarmClock: // the last three name the other node
		return false
	}
	return true
}

// mutual tells those that each of two nodes has of the other.
func mutual(a cluster.Alarm) bool {
	switch a.Kind {
	case cluster.AlarmOtherConfiguration, cluster.AlarmOtherVersion, cluster.AlarmClock:
		return true
	}
	return false
}

// hear remembers what the peers told. The speaker goes on with it: what they told stands or is over by its own judgement.
func (s *step) hear(before cluster.AlarmBook) {
	s.heard = maps.Clone(before.Heard)
	if s.heard == nil {
		s.heard = map[string][]cluster.AlarmEntry{}
	}
	for _, n := range s.peers {
		if n.Node != s.Node && n.Alarms != nil {
			s.heard[n.Node] = n.Alarms.Entries
		}
	}
	if len(s.peers) > 0 {
		maps.DeleteFunc(s.heard, func(node string, _ []cluster.AlarmEntry) bool { return s.peers[node].Node == "" })
	}
	if !s.speaks() {
		return
	}
	for _, peer := range slices.Sorted(maps.Keys(s.heard)) {
		for _, e := range s.heard[peer] {
			if shared(e.Alarm) && e.Ended.IsZero() && !e.Told.IsZero() {
				s.adopt(peer, e)
			}
		}
	}
}

// adopt takes an alarm that a peer told into the book, unless the book knows better.
func (s *step) adopt(peer string, e cluster.AlarmEntry) {
	if e.Kind == cluster.AlarmUnreachable && e.Node == s.Node && !s.peers[peer].Reachable {
		return // which that peer alone can tell the end of
	}
	mine, known := s.entries[e.ID()]
	if known && (mine.Ended.IsZero() || !e.Told.After(mine.Ended)) {
		return
	}
	s.entries[e.ID()] = cluster.AlarmEntry{Alarm: e.Alarm, By: peer, Told: e.Told, Rises: mine.Rises}
}

// speakers is what the speaker, where that is another node, told of an alarm; ok is false where it did not. A node that
// tells nothing of alarms has none.
func (s *step) speakers(a cluster.Alarm) (e cluster.AlarmEntry, ok bool) {
	n := s.peers[s.speaker]
	if s.speaks() || n.Alarms == nil {
		return e, false
	}
	i := slices.IndexFunc(n.Alarms.Entries, func(e cluster.AlarmEntry) bool { return e.ID() == a.ID() && !e.Told.IsZero() })
	if i < 0 {
		return e, false
	}
	return n.Alarms.Entries[i], true
}

// covered tells that the speaker told as much of an alarm as this node would: the same, or as bad a one of the same
// certificate; or, of what two nodes have of each other, its side of it.
func (s *step) covered(a cluster.Alarm) bool {
	n := s.peers[s.speaker]
	if s.speaker == "" || s.speaks() || n.Alarms == nil {
		return false
	}
	return slices.ContainsFunc(n.Alarms.Entries, func(e cluster.AlarmEntry) bool {
		if e.Told.IsZero() || !e.Ended.IsZero() {
			return false
		}
		asBad := e.Severity == cluster.Urgent || a.Severity != cluster.Urgent
		switch {
		case mutual(a):
			return e.Kind == a.Kind && e.Node == s.Node
		case !shared(a):
			return false
		case a.Slot.Name != "":
			return e.Slot == a.Slot && asBad
		}
		return e.ID() == a.ID() && asBad
	})
}

// waitFor is how long a candidate must last here: longer for what is the speaker's to tell.
func (s *step) waitFor(c candidate) time.Duration {
	if s.speaker == "" || s.speaks() || !shared(c.Alarm) && !mutual(c.Alarm) {
		return c.after
	}
	wait := deference
	if g := s.slots[c.Slot].Newest; !g.IsZero() {
		wait = min(wait, g.Lifetime()/50)
	}
	return c.after + wait
}

// stands takes a candidate into the book.
func (s *step) stands(c candidate) {
	if s.covered(c.Alarm) {
		delete(s.entries, c.ID())
		return
	}
	e, known := s.entries[c.ID()]
	if !known || !e.Ended.IsZero() && !e.EndTold.IsZero() || !e.Ended.IsZero() && e.Flaps > 0 || e.Told.IsZero() && !e.Ended.IsZero() {
		e = cluster.AlarmEntry{Alarm: c.Alarm, Rises: e.Rises, Flaps: e.Flaps}
		e.Since = s.Now
	}
	severity := e.Severity
	since := e.Since
	e.Alarm, e.Ended, e.EndTold = c.Alarm, time.Time{}, time.Time{}
	e.Since = since
	if due := since.Add(s.waitFor(c)); e.Told.IsZero() && s.Now.Before(due) {
		s.again(due)
	} else {
		e = s.tell(e, severity)
	}
	s.entries[c.ID()] = e
}

// tell says of an alarm that stands what is new about it.
func (s *step) tell(e cluster.AlarmEntry, before cluster.Severity) cluster.AlarmEntry {
	to := (*[]cluster.AlarmEntry)(nil)
	switch {
	case e.Told.IsZero():
		return s.rise(e)
	case e.Flaps > 0:
		return s.calm(e, e.Rises)
	case e.Severity != before && e.Severity == cluster.Urgent:
		to = &s.message.Worse
	case e.Severity != before:
		to = &s.message.Better
	case e.Severity == cluster.Urgent && s.Now.Sub(e.Told) >= remindEvery:
		to = &s.message.Still
	}
	if to != nil {
		e.Told, e.Unsent = s.Now, true
		*to = append(*to, e)
	}
	if e.Severity == cluster.Urgent {
		s.again(e.Told.Add(remindEvery))
	}
	return e
}

// rise tells of an alarm that came up, or, where it did so too often, of that.
func (s *step) rise(e cluster.AlarmEntry) cluster.AlarmEntry {
	e.By, e.Told = s.Node, s.Now
	e.Rises = append(e.Rises, s.Now)
	switch {
	case e.Flaps > 0:
		return s.calm(e, e.Rises)
	case len(e.Rises) > flapMost:
		e.Flaps, e.Unsent = len(e.Rises), true
		s.message.Flapping = append(s.message.Flapping, e)
		s.again(s.Now.Add(flapSpan))
		return e
	}
	e.Unsent = true
	s.message.New = append(s.message.New, e)
	if e.Severity == cluster.Urgent {
		s.again(s.Now.Add(remindEvery))
	}
	return e
}

// calm ends the silence over an alarm that has not come or gone for flapSpan, and tells how it stands.
func (s *step) calm(e cluster.AlarmEntry, rises []time.Time) cluster.AlarmEntry {
	last := e.Ended
	for _, t := range rises {
		if t.After(last) {
			last = t
		}
	}
	if until := last.Add(flapSpan); s.Now.Before(until) && !last.IsZero() {
		s.again(until)
		return e
	}
	e.Flaps = 0
	if e.Ended.IsZero() {
		e.Told, e.Unsent = s.Now, true
		s.message.New = append(s.message.New, e)
		return e
	}
	return s.resolve(e)
}

func (s *step) resolve(e cluster.AlarmEntry) cluster.AlarmEntry {
	e.EndTold, e.Unsent = s.Now, true
	s.message.Resolved = append(s.message.Resolved, e)
	return e
}

// missing looks at an entry of which there is no candidate.
func (s *step) missing(id cluster.AlarmID, e cluster.AlarmEntry) {
	switch theirs, listed := s.speakers(e.Alarm); {
	case !e.EndTold.IsZero():
		if s.Now.Sub(e.EndTold) >= remembered {
			delete(s.entries, id)
		}
		return
	case e.Told.IsZero() && s.blind(e.Alarm):
		return
	case e.Told.IsZero():
		s.forget(id, e)
		return
	case s.superseded(e.Alarm):
		delete(s.entries, id)
		return
	case listed && shared(e.Alarm) && (theirs.Ended.IsZero() || theirs.Ended.After(e.Told)):
		delete(s.entries, id) // it goes on there, or its end was told there
		return
	case s.blind(e.Alarm):
		return
	}
	if e.Ended.IsZero() {
		e.Ended = s.Now
	}
	switch {
	case e.Flaps > 0:
		e = s.calm(e, e.Rises)
	case s.passedOn(e):
		s.again(e.Ended.Add(handover))
	default:
		e = s.resolve(e)
	}
	s.entries[id] = e
}

// superseded tells that another alarm of the same certificate says more: it is not over for that.
func (s *step) superseded(a cluster.Alarm) bool {
	if a.Kind != cluster.AlarmOverdue && a.Kind != cluster.AlarmMissing {
		return false
	}
	return slices.ContainsFunc(s.candidates, func(c candidate) bool {
		return c.Slot == a.Slot && (c.Kind == cluster.AlarmExpired || c.Kind == cluster.AlarmFailed)
	})
}

// passedOn tells that the end of an alarm is left to the speaker for now, which may not have heard of the alarm yet.
func (s *step) passedOn(e cluster.AlarmEntry) bool {
	return s.speaker != "" && !s.speaks() && shared(e.Alarm) && s.peers[s.speaker].Alarms != nil && s.Now.Before(e.Ended.Add(handover))
}

// forget drops what was no alarm yet; how often it was one lately is kept.
func (s *step) forget(id cluster.AlarmID, e cluster.AlarmEntry) {
	if len(e.Rises) == 0 {
		delete(s.entries, id)
		return
	}
	if e.Ended.IsZero() {
		e.Ended = s.Now
		s.entries[id] = e
	}
}

func (s *step) result(before cluster.AlarmBook) Result {
	book := cluster.AlarmBook{Judged: s.Now.UTC(), Master: before.Master, MasterSeen: before.MasterSeen, Heard: s.heard}
	if s.Failure != "" {
		book.Judged = before.Judged // no pass was made
	}
	if s.speaker != "" {
		book.Master, book.MasterSeen = s.speaker, s.Now.UTC()
	}
	r := Result{Message: s.message, Wake: s.wake}
	for _, e := range s.entries {
		book.Entries = append(book.Entries, e)
		if !e.Told.IsZero() && e.Ended.IsZero() {
			r.Standing = append(r.Standing, e.Alarm)
		}
	}
	slices.SortFunc(book.Entries, func(a, b cluster.AlarmEntry) int { return a.Compare(b.Alarm) })
	r.Standing = append(r.Standing, s.elsewhere()...)
	slices.SortFunc(r.Standing, cluster.Alarm.Compare)
	for _, part := range []*[]cluster.AlarmEntry{&r.Message.New, &r.Message.Worse, &r.Message.Better, &r.Message.Still, &r.Message.Resolved, &r.Message.Flapping} {
		slices.SortFunc(*part, func(a, b cluster.AlarmEntry) int { return a.Compare(b.Alarm) })
	}
	r.Book = book
	return r
}

// elsewhere are the alarms that peers told and this node did not.
func (s *step) elsewhere() []cluster.Alarm {
	var out []cluster.Alarm
	known := map[cluster.AlarmID]bool{}
	for _, peer := range slices.Sorted(maps.Keys(s.heard)) {
		for _, e := range s.heard[peer] {
			mine := s.entries[e.ID()]
			if s.peers[peer].Reachable && !e.Told.IsZero() && e.Ended.IsZero() && mine.Told.IsZero() && !known[e.ID()] {
				known[e.ID()] = true
				out = append(out, e.Alarm)
			}
		}
	}
	return out
}

// Delivered notes in a book that a message reached somebody.
func Delivered(book cluster.AlarmBook, ids []cluster.AlarmID) cluster.AlarmBook {
	sent := map[cluster.AlarmID]bool{}
	for _, id := range ids {
		sent[id] = true
	}
	book.Entries = slices.Clone(book.Entries)
	for i := range book.Entries {
		if sent[book.Entries[i].ID()] {
			book.Entries[i].Unsent = false
		}
	}
	return book
}

// Restarted is a book as it was kept, at the daemon's start: what was to be told and reached nobody is told again.
func Restarted(book cluster.AlarmBook) cluster.AlarmBook {
	book.Entries = slices.Clone(book.Entries)
	for i := range book.Entries {
		e := &book.Entries[i]
		switch {
		case !e.Unsent:
		case e.Ended.IsZero():
			e.Told, e.Flaps = time.Time{}, 0
		default:
			e.EndTold = time.Time{}
		}
		e.Unsent = false
	}
	return book
}
