package alarm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cluster"
)

// maxLines bounds what one heading of a message lists.
const maxLines = 20

// Message is what a person is told after a pass.
type Message struct {
	// Node tells it, at Time by its clock.
	Node string
	Time time.Time
	// New are alarms that came up; Worse and Better changed their severity; Still stand for days and are urgent;
	// Resolved are over; Flapping come and go, and are not told again until they have not for an hour.
	New, Worse, Better, Still, Resolved, Flapping []cluster.AlarmEntry
}

// Empty tells that there is nothing to be told.
func (m Message) Empty() bool { return len(m.all()) == 0 }

func (m Message) all() []cluster.AlarmEntry {
	return slices.Concat(m.New, m.Worse, m.Flapping, m.Still, m.Better, m.Resolved)
}

// IDs are those of the alarms in it, for Delivered.
func (m Message) IDs() []cluster.AlarmID {
	var ids []cluster.AlarmID
	for _, e := range m.all() {
		ids = append(ids, e.ID())
	}
	return ids
}

// Subject is one line: the node, how many alarms of what kind, and what the first says.
func (m Message) Subject() string {
	urgent, warnings := 0, 0
	for _, e := range slices.Concat(m.New, m.Worse, m.Flapping, m.Still, m.Better) {
		if e.Severity == cluster.Urgent {
			urgent++
		} else {
			warnings++
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{urgent, "urgent"}, {warnings, "warning"}, {len(m.Resolved), "resolved"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	subject := fmt.Sprintf("certsync on %s: %s", m.Node, strings.Join(parts, ", "))
	if all := m.all(); len(all) == 1 {
		subject += ": " + about(all[0].Alarm)
	}
	return subject
}

// Text is the message: under a heading each, what is wrong, since when, and the mend.
func (m Message) Text() string {
	var b strings.Builder
	for _, part := range []struct {
		heading string
		entries []cluster.AlarmEntry
	}{
		{"New:", m.New}, {"Worse:", m.Worse}, {"Comes and goes, and is told again when it has not for an hour:", m.Flapping},
		{"Still so:", m.Still}, {"Better:", m.Better}, {"Resolved:", m.Resolved},
	} {
		m.write(&b, part.heading, part.entries)
	}
	fmt.Fprintf(&b, "Told by %s at %s.\n", m.Node, stamp(m.Time))
	return b.String()
}

func (m Message) write(b *strings.Builder, heading string, entries []cluster.AlarmEntry) {
	if len(entries) == 0 {
		return
	}
	fmt.Fprintln(b, heading)
	for i, e := range entries {
		if i == maxLines {
			fmt.Fprintf(b, "- and %d more: certsync status shows them\n", len(entries)-i)
			break
		}
		line(b, e)
	}
	fmt.Fprintln(b)
}

// line is one alarm: what, since when or how long, and the mend while it stands.
func line(b *strings.Builder, e cluster.AlarmEntry) {
	switch {
	case !e.Ended.IsZero() && e.Flaps == 0:
		fmt.Fprintf(b, "- %s\n  (from %s, for %s)\n", describe(e.Alarm), stamp(e.Since), span(e.Ended.Sub(e.Since)))
		return
	case e.Severity == cluster.Urgent:
		fmt.Fprintf(b, "- URGENT: %s\n", describe(e.Alarm))
	default:
		fmt.Fprintf(b, "- %s\n", describe(e.Alarm))
	}
	if e.Flaps > 0 {
		fmt.Fprintf(b, "  %d times within an hour\n", e.Flaps)
	} else {
		fmt.Fprintf(b, "  since %s\n", stamp(e.Since))
	}
	if e.Hint != "" {
		fmt.Fprintf(b, "  hint: %s\n", e.Hint)
	}
}

// describe is an alarm in a line, with the certificate that it concerns.
func describe(a cluster.Alarm) string {
	if a.Slot.Name == "" {
		return a.Text
	}
	return fmt.Sprintf("%s: %s", a.Slot, a.Text)
}

// about is what an alarm is of, in few words.
func about(a cluster.Alarm) string {
	what := strings.ReplaceAll(string(a.Kind), "_", " ")
	switch {
	case a.Slot.Name != "":
		return a.Slot.Name + " " + what
	case a.Node != "":
		return a.Node + " " + what
	}
	return what
}

// stamp is an instant for a reader.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// span is a duration for a reader: in days, hours or minutes, whichever says enough.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", max(0, d/time.Second))
}

// few names some of many, each once.
func few(names []string) string {
	const most = 5
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// firstLine is a text fit for a line of a message.
func firstLine(text string) string {
	const most = 500
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
