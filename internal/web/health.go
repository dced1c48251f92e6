package web

import (
	"fmt"
	"time"

	"certsync/internal/cluster"
)

// Problem is why this node is not healthy: what is wrong, where, and what to do.
type Problem struct {
	What  string `json:"what"`
	Where string `json:"where,omitempty"`
	Mend  string `json:"mend,omitempty"`
}

// Health is the answer of /healthz.
type Health struct {
	Healthy bool         `json:"healthy"`
	Node    string       `json:"node"`
	Role    cluster.Role `json:"role"`
	// Time is this host's; LastPass is when the last pass ended.
	Time     time.Time `json:"time"`
	LastPass time.Time `json:"last_pass,omitzero"`
	// Problems are the first mostProblems; More is how many further ones there are.
	Problems []Problem `json:"problems"`
	More     int       `json:"more,omitempty"`
}

// mostProblems is how many are told: where everything is down, every certificate says so.
const mostProblems = 20

// look is the mend where nothing better is known.
const look = "certsync status tells where every node stands, and certsync renew tries again"

// Health judges this node, and this node only: it is healthy where the daemon works, the node is ready to serve every
// configured certificate, MASTER or not, and nothing that it serves is near its end. Another node's troubles, and a
// configuration that was refused, are alarms, and no reason to take this node out of service.
func (v View) Health() Health { return newIndex(v).health() }

func (x index) health() Health {
	h := Health{Node: x.Node, Role: x.Role, Time: x.Now.UTC(), Problems: []Problem{}}
	if x.Last != nil {
		h.LastPass = x.Last.End.UTC()
	}
	x.problems(func(p Problem) {
		if len(h.Problems) < mostProblems {
			h.Problems = append(h.Problems, p)
		} else {
			h.More++
		}
	})
	h.Healthy = len(h.Problems) == 0
	return h
}

// problems tells why this node is not healthy, what concerns all certificates first.
func (x index) problems(tell func(Problem)) {
	x.daemonProblems(tell)
	if x.Last == nil {
		return
	}
	for _, r := range x.readiness {
		for _, gap := range r.Gaps {
			if r.Node == x.Node {
				tell(x.gapProblem(gap))
			}
		}
	}
	for _, row := range x.Last.Certificates {
		x.endProblems(row, tell)
	}
}

// daemonProblems are those of the passes.
func (x index) daemonProblems(tell func(Problem)) {
	switch {
	case x.Error != "":
		tell(Problem{What: "no pass could be made: " + x.Error, Where: "daemon", Mend: orLook(x.Hint)})
	case x.Last == nil:
		tell(Problem{What: "the first pass has not ended yet", Where: "daemon", Mend: "wait for it; the daemon's log tells what it does"})
	}
	if x.Overdue > 0 {
		tell(Problem{What: fmt.Sprintf("a full pass should have ended %s ago", words(x.Overdue)), Where: "daemon",
			Mend: "see the daemon's log; restart it where it hangs: service certsync restart"})
	}
}

func (x index) gapProblem(gap cluster.Gap) Problem {
	p := Problem{What: gap.Why, Where: gap.Slot.String()}
	if gap.Proxy != "" {
		p.Where += " in " + gap.Proxy
	}
	for _, placed := range x.placed[x.Node][gap.Slot] {
		if placed.Proxy == gap.Proxy && placed.Hint != "" {
			p.Mend = placed.Hint
		}
	}
	p.Mend = orLook(p.Mend)
	return p
}

// endProblems tells of what this node serves of a slot and has less than a tenth of its lifetime left.
func (x index) endProblems(row cluster.CertificateReport, tell func(Problem)) {
	for _, placed := range x.placed[x.Node][row.Slot] {
		s := shown(placed)
		if !s.Expiring(x.Now) {
			continue
		}
		what := "what is served expired " + words(x.Now.Sub(s.NotAfter)) + " ago"
		if left := s.NotAfter.Sub(x.Now); left > 0 {
			what = fmt.Sprintf("what is served is valid for %s more, of %s", words(left), words(s.NotAfter.Sub(s.NotBefore)))
		}
		if row.Error != "" {
			what += ": " + row.Error
		}
		tell(Problem{What: what, Where: row.Slot.String() + " in " + placed.Proxy, Mend: orLook(row.Hint)})
	}
}

func orLook(mend string) string {
	if mend == "" {
		return look
	}
	return mend
}

// words is a duration for a person, rounded down to what matters.
func words(d time.Duration) string {
	switch d = d.Abs(); {
	case d < 2*time.Second:
		return "a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}
