package alarm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

var (
	t0   = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	slot = cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
)

const schedule = 6 * time.Hour

// world is a pair of nodes with one certificate, and what each tells.
type world struct {
	t   *testing.T
	now time.Time
	// node has each node by its name; deaf tells that the two cannot reach each other over SSH.
	node map[string]*member
	deaf bool
	// newest is what is issued; renews tells that a MASTER renews it when it is due.
	newest cert.Generation
	life   time.Duration
	renews bool
	// told are all messages, in their order.
	told []Message
}

// member is a node of the world.
type member struct {
	name string
	role cluster.Role
	down bool
	// change alters the reports of its passes.
	change func(*cluster.Report)
	seen   func(*Seen)
	knows  cert.Generation
	book   cluster.AlarmBook
	last   Result
	next   time.Time
}

func newWorld(t *testing.T, life time.Duration) *world {
	w := &world{t: t, now: t0, life: life, renews: true, node: map[string]*member{
		"a": {name: "a", role: cluster.Master, next: t0}, "b": {name: "b", role: cluster.Backup, next: t0.Add(time.Minute)}}}
	w.issue()
	return w
}

// issue makes a new generation.
func (w *world) issue() {
	g := cert.Generation{Slot: slot, Sequence: w.newest.Sequence + 1, NotBefore: w.now, NotAfter: w.now.Add(w.life)}
	g.Fingerprint[0] = byte(g.Sequence)
	w.newest = g
}

func (w *world) due() time.Time { return w.newest.NotAfter.Add(-w.life / 3) }

// until lets time go by: passes at the schedule, and when the last result asked for one.
func (w *world) until(at time.Time) {
	w.t.Helper()
	for range 100_000 {
		var first *member
		for _, name := range []string{"a", "b"} {
			if m := w.node[name]; !m.down && (first == nil || m.next.Before(first.next)) {
				first = m
			}
		}
		if first == nil || first.next.After(at) {
			w.now = at
			return
		}
		w.now = first.next
		w.pass(first)
	}
	w.t.Fatal("passes without end")
}

func (w *world) pass(m *member) {
	other := w.node["a"]
	if m.name == "a" {
		other = w.node["b"]
	}
	reaches := !w.deaf && !other.down
	if m.role == cluster.Master && w.renews && !w.now.Before(w.due()) {
		w.issue()
	}
	if m.role == cluster.Master || reaches {
		m.knows = w.newest
	}
	seen := Seen{Now: w.now, Node: m.name, Report: w.report(m, other, reaches), Silence: 2*schedule + time.Hour}
	if m.seen != nil {
		m.seen(&seen)
	}
	m.last = Step(m.book, seen)
	m.book = m.last.Book
	if !m.last.Message.Empty() {
		w.told = append(w.told, m.last.Message)
	}
	m.next = w.now.Add(schedule)
	if wake := m.last.Wake; !wake.IsZero() {
		if !wake.After(w.now) {
			w.t.Fatalf("%s is to look again at %s, which is past", m.name, wake)
		}
		if wake.Before(m.next) {
			m.next = wake
		}
	}
	if m.role == cluster.Master && w.renews && w.due().Before(m.next) {
		m.next = w.due()
	}
}

func (w *world) report(m, other *member, reaches bool) cluster.Report {
	placed := func(g cert.Generation) []cluster.Placement {
		s := cluster.Sighting{Fingerprint: g.Fingerprint, NotBefore: g.NotBefore, NotAfter: g.NotAfter}
		return []cluster.Placement{{Slot: slot, Proxy: "haproxy.conf", Running: true, Disk: s, Memory: s, Served: s, Proof: cluster.Proven}}
	}
	r := cluster.Report{Node: m.name, Role: m.role, Start: w.now, End: w.now, Outcome: cluster.Unchanged,
		Certificates: []cluster.CertificateReport{{Slot: slot, Domains: []string{"example.org"}, Newest: m.knows, Outcome: cluster.Unchanged}},
		Nodes: []cluster.NodeStatus{{Node: m.name, Role: m.role, Time: w.now, Version: "1", Digest: "d", Reachable: true, Placements: placed(m.knows)},
			{Node: other.name, Error: "ssh: no route to host"}}}
	if reaches {
		public := other.book.Public()
		r.Nodes[1] = cluster.NodeStatus{Node: other.name, Role: other.role, Time: w.now, Version: "1", Digest: "d", Reachable: true, Alarms: &public}
		if m.role == cluster.Master {
			r.Nodes[1].Placements = placed(m.knows)
		}
	}
	if m.change != nil {
		m.change(&r)
	}
	return r
}

// texts are the messages since the last call, one line for each alarm: NODE HEADING KIND [SEVERITY].
func (w *world) texts() []string {
	var out []string
	for _, m := range w.told {
		for _, part := range []struct {
			heading string
			entries []cluster.AlarmEntry
		}{{"new", m.New}, {"worse", m.Worse}, {"flapping", m.Flapping}, {"still", m.Still}, {"better", m.Better}, {"resolved", m.Resolved}} {
			for _, e := range part.entries {
				out = append(out, fmt.Sprintf("%s %s %s %s", m.Node, part.heading, e.Kind, e.Severity))
			}
		}
	}
	w.told = nil
	return out
}

func (w *world) wants(want ...string) {
	w.t.Helper()
	if got := w.texts(); !slices.Equal(got, want) {
		w.t.Errorf("at %s (%s after the start) told:\n\t%s\nwant:\n\t%s", w.now.Format(time.DateTime), w.now.Sub(t0), strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
