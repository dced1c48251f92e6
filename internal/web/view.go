package web

import (
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// View is what is rendered: what the daemon knows at one instant.
type View struct {
	Now time.Time
	// Node is this one; Role is its role as it was seen last.
	Node    string
	Role    cluster.Role
	Version string
	Pid     int
	// Started is when the daemon began.
	Started time.Time
	// Passing has the reasons of the pass that is under way.
	Passing []string
	// Last is the report of the last pass, nil before the first has ended; it is not changed. Error tells why no pass could
	// be made after it, and Hint the mend.
	Last        *cluster.Report
	Error, Hint string
	// Next is when the next pass is made, as far as is known now.
	Next time.Time
	// Overdue is for how long a full pass should have ended; 0 where none should.
	Overdue time.Duration
	// Configuration tells why the configuration file, as it is now, has not taken over, and ConfigurationHint the mend.
	Configuration, ConfigurationHint string
	Alarms                           []cluster.Alarm
	Counts                           Counts
}

// Counts are what the daemon did since it began.
type Counts struct {
	// Passes have ended; FailedPasses could not be made.
	Passes, FailedPasses uint64
	// Issued are certificates that were obtained, Resumed those of them whose order was taken up; FailedOrders counts how
	// often one was due and a pass failed to obtain it.
	Issued, Resumed, FailedOrders uint64
}

// Count adds what a pass did.
func (c *Counts) Count(report cluster.Report, err error) {
	c.Passes++
	if err != nil {
		c.FailedPasses++
	}
	for _, row := range report.Certificates {
		switch {
		case row.Ordered:
			c.Issued++
			if row.Resumed {
				c.Resumed++
			}
		case row.Due != "" && row.Outcome == cluster.Failure:
			c.FailedOrders++
		}
	}
}

// index finds what a report says of a slot on a node.
type index struct {
	View
	// readiness is that of each node at Now.
	readiness []cluster.Readiness
	placed    map[string]map[cert.Slot][]cluster.Placement
}

func newIndex(v View) index {
	x := index{View: v, placed: map[string]map[cert.Slot][]cluster.Placement{}}
	if v.Last == nil {
		return x
	}
	x.readiness = v.Last.ReadinessAt(v.Now)
	for _, n := range v.Last.Nodes {
		of := make(map[cert.Slot][]cluster.Placement, len(n.Placements))
		for _, p := range n.Placements {
			of[p.Slot] = append(of[p.Slot], p)
		}
		x.placed[n.Node] = of
	}
	return x
}

// rows are the certificates of the last report, none before there is one.
func (x index) rows() []cluster.CertificateReport {
	if x.Last == nil {
		return nil
	}
	return x.Last.Certificates
}

func (x index) nodes() []cluster.NodeStatus {
	if x.Last == nil {
		return nil
	}
	return x.Last.Nodes
}

// shown is what clients of a HAProxy are shown, as far as is known: what a handshake showed, else what is in its memory.
func shown(p cluster.Placement) cluster.Sighting {
	switch {
	case !p.Running:
		return cluster.Sighting{}
	case p.Proof == cluster.Proven || p.Proof == cluster.Disproven:
		return p.Served
	}
	return p.Memory
}

// runway is the part of its lifetime that is left of what this node serves of a slot, the least over its HAProxies: from
// 1 (fresh) to 0, which also means that nothing is served.
func (x index) runway(row cluster.CertificateReport) float64 {
	placements := x.placed[x.Node][row.Slot]
	if len(placements) == 0 {
		return 0
	}
	least := 1.0
	for _, p := range placements {
		s := shown(p)
		if s.NotBefore.IsZero() { // HAProxy tells of a bundle that nobody knows only when it ends
			s.NotBefore = s.NotAfter.Add(-row.Newest.Lifetime())
		}
		least = min(least, cert.Generation{NotBefore: s.NotBefore, NotAfter: s.NotAfter}.Runway(x.Now))
	}
	return least
}
