package cluster

import (
	"fmt"
	"time"

	"certsync/internal/cert"
)

// Readiness is how a node would do if it took over: ready is a node that has the newest generation of each slot on disk
// and in the memory of each of its HAProxies, and whose handshakes show it or could not be tried.
type Readiness struct {
	Node string `json:"node"`
	Role Role   `json:"role"`
	// Known is false where the node could not be asked, or was not: then Gaps says nothing.
	Known bool  `json:"known"`
	Gaps  []Gap `json:"gaps,omitempty"`
}

// Ready tells that nothing is known to be missing, on a node that could be asked.
func (r Readiness) Ready() bool { return r.Known && len(r.Gaps) == 0 }

// Count is how many slots the node does not serve as it should, and of how many of those clients would get nothing valid.
// A slot counts once, however many HAProxies lack it.
func (r Readiness) Count() (lacking, failing int) {
	fails := map[cert.Slot]bool{}
	for _, gap := range r.Gaps {
		fails[gap.Slot] = fails[gap.Slot] || gap.Fails
	}
	for _, f := range fails {
		if f {
			failing++
		}
	}
	return len(fails), failing
}

// Verdict is a line for a person on a node that has so many certificates to serve.
func (r Readiness) Verdict(certificates int) string {
	lacking, failing := r.Count()
	switch {
	case !r.Known:
		return "not known: it was not asked, or did not answer"
	case lacking == 0:
		return "ready: it would serve all " + countOf(certificates)
	case failing == 0:
		return "not ready: it would serve an earlier one of " + countOf(lacking)
	case failing == lacking:
		return "not ready: " + countOf(failing) + " would fail"
	}
	return fmt.Sprintf("not ready: %s would fail, and %d more would be an earlier one", countOf(failing), lacking-failing)
}

func countOf(n int) string {
	if n == 1 {
		return "1 certificate"
	}
	return fmt.Sprintf("%d certificates", n)
}

// Gap is a slot that a node does not serve as it should.
type Gap struct {
	Slot cert.Slot `json:"slot"`
	// Proxy names the HAProxy, "" where it is the same for all.
	Proxy   string   `json:"proxy,omitempty"`
	Domains []string `json:"domains,omitempty"`
	// Why is one line for a person.
	Why string `json:"why"`
	// Fails tells that clients would not get a valid certificate; else it is an earlier one that is valid still, as far
	// as was seen.
	Fails bool `json:"fails,omitempty"`
}

// Readiness is that of each node of the report, in its order, at its end. Slots that are not configured do not count.
func (r Report) Readiness() []Readiness { return r.ReadinessAt(r.End) }

// ReadinessAt is Readiness at now: what was seen then may have expired since.
func (r Report) ReadinessAt(now time.Time) []Readiness {
	out := make([]Readiness, len(r.Nodes))
	for i, n := range r.Nodes {
		// A BACKUP asks its peers for what they hold, and not for where it stands with their HAProxies.
		asked := n.Reachable && (len(n.Placements) > 0 || len(r.Certificates) == 0)
		out[i] = Readiness{Node: n.Node, Role: n.Role, Known: asked}
		if asked {
			out[i].Gaps = n.gaps(r.Certificates, now)
		}
	}
	return out
}

func (n NodeStatus) gaps(certificates []CertificateReport, now time.Time) []Gap {
	placed := make(map[cert.Slot][]Placement, len(n.Placements))
	for _, p := range n.Placements {
		placed[p.Slot] = append(placed[p.Slot], p)
	}
	var out []Gap
	for _, c := range certificates {
		gap := Gap{Slot: c.Slot, Domains: c.Domains, Fails: true}
		switch {
		case c.Newest.IsZero():
			gap.Why = "no certificate was issued yet"
			out = append(out, gap)
			continue
		case now.After(c.Newest.NotAfter):
			gap.Why = fmt.Sprintf("generation %s, the newest, has expired", c.Newest.Fingerprint.Short())
			out = append(out, gap)
			continue
		case len(placed[c.Slot]) == 0:
			gap.Why = "it is configured for no HAProxy there"
			out = append(out, gap)
			continue
		}
		for _, p := range placed[c.Slot] {
			if gap.Why, gap.Fails = p.gap(c.Newest, now); gap.Why != "" {
				gap.Proxy = p.Proxy
				out = append(out, gap)
			}
		}
	}
	return out
}

// gap says what keeps a HAProxy from serving the generation, "" where nothing does, and whether it then serves nothing
// that is valid at now.
func (p Placement) gap(newest cert.Generation, now time.Time) (why string, fails bool) {
	valid := func(s Sighting) bool { return !s.IsZero() && !s.NotAfter.IsZero() && !now.After(s.NotAfter) }
	short := newest.Fingerprint.Short()
	serves := valid(p.Memory) || valid(p.Served)
	switch {
	case p.Proxy == "": // the node could do nothing for it, and none of its HAProxies was looked at
		return "it could not be put in service: " + p.Error, false
	case !p.Running:
		return "HAProxy does not run", true
	case p.Disk.Fingerprint != newest.Fingerprint:
		return fmt.Sprintf("its file is not generation %s (%s)", short, orNote(p.Disk)), !serves
	case p.Memory.Fingerprint != newest.Fingerprint:
		return fmt.Sprintf("HAProxy's memory does not hold generation %s (%s)", short, orNote(p.Memory)), !serves
	case p.Memory.Note != "": // it belongs to no bind
		return p.Memory.Note, !valid(p.Served)
	case p.Proof == Disproven:
		return fmt.Sprintf("a handshake does not show generation %s (%s)", short, orNote(p.Served)), !valid(p.Served)
	}
	return "", false
}

// orNote is what was seen, in a few words.
func orNote(s Sighting) string {
	switch {
	case s.Note != "":
		return s.Note
	case !s.Fingerprint.IsZero():
		return "it is " + s.Fingerprint.Short()
	case s.SHA1 != "":
		return "it is an unknown one, SHA-1 " + s.SHA1
	}
	return "nothing is there"
}
