package daemon

import (
	"time"

	"certsync/internal/cluster"
	"certsync/internal/reconcile"
)

// NextOf is when the next thing is due by a report: the earliest allowed try or renewal of its certificates; zero where
// it tells of none. On a MASTER it may be past: what is due was not done, and no instant is named for the next try.
// Elsewhere only the MASTER can do what is due already, and it is not waited for here.
func NextOf(r cluster.Report) time.Time {
	var next time.Time
	for _, row := range r.Certificates {
		at := row.NextTry
		if at.IsZero() && !row.Newest.IsZero() {
			at = reconcile.RenewAt(row.Newest)
		}
		if at.IsZero() || r.Role != cluster.Master && !at.After(r.End) {
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}
