package daemon

import (
	"slices"

	"certsync/internal/cluster"
)

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
