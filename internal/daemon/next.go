package daemon

import (
	"slices"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/reconcile"
)

// NextOf is when the next thing is due by a report: the earliest allowed try or renewal of its certificates after the
// report's end; zero where it tells of none. What was due and not done has no instant of its own here: that the daemon
// wakes at one would be a try that no ledger allowed.
func NextOf(r cluster.Report) time.Time {
	var next time.Time
	for _, row := range r.Certificates {
		at := row.NextTry
		if at.IsZero() && !row.Newest.IsZero() {
			at = reconcile.RenewAt(row.Newest)
		}
		if at.After(r.End) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// allPlaced tells that, by a report, every node that could be asked has in service what it should have, or cannot prove
// it: what is not may be by a next look, without anything that would wake the daemon.
func allPlaced(r cluster.Report) bool {
	return !slices.ContainsFunc(r.Nodes, func(n cluster.NodeStatus) bool {
		return slices.ContainsFunc(n.Placements, func(pl cluster.Placement) bool {
			switch pl.Outcome {
			case cluster.DiskOnly, cluster.Waiting, cluster.RolledBack, cluster.Failure:
				return true
			}
			return false
		})
	})
}
