package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// printMatrix prints a line for each certificate, node and HAProxy: issued, on disk, in memory, served.
func printMatrix(w io.Writer, nodes []cluster.NodeStatus, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "CERTIFICATE\tNODE\tROLE\tISSUED\tON DISK\tIN MEMORY\tSERVED\tLEFT")
	for _, slot := range matrixSlots(nodes) {
		for _, n := range nodes {
			if !n.Reachable {
				fmt.Fprintf(t, "%s\t%s\t%s\tunreachable\t\t\t\t\n", slot, n.Node, "-")
				continue
			}
			lines := placementsOf(n, slot)
			if len(lines) == 0 {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t-\t-\t-\t-\n", slot, n.Node, n.Role, heldOf(n, slot).Fingerprint.Short())
			}
			for _, pl := range lines {
				if pl.Proxy == "" { // the node could do nothing for it, and was not looked at
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t-\t-\t-\t-\n", slot, n.Node, n.Role, issued(n, slot, nodes))
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", slot, n.Node, n.Role, issued(n, slot, nodes), sighting(pl.Disk),
					memory(pl), served(pl), left(pl, now))
			}
		}
	}
}

// matrixSlots are all slots of which any node holds or places something.
func matrixSlots(nodes []cluster.NodeStatus) []cert.Slot {
	var slots []cert.Slot
	for _, n := range nodes {
		for _, g := range n.Held {
			slots = append(slots, g.Slot)
		}
		for _, pl := range n.Placements {
			slots = append(slots, pl.Slot)
		}
	}
	slices.SortFunc(slots, cert.Slot.Compare)
	return slices.Compact(slots)
}

func placementsOf(n cluster.NodeStatus, slot cert.Slot) []cluster.Placement {
	var out []cluster.Placement
	for _, pl := range n.Placements {
		if pl.Slot == slot {
			out = append(out, pl)
		}
	}
	slices.SortFunc(out, func(a, b cluster.Placement) int { return cmp.Compare(a.Proxy, b.Proxy) })
	return out
}

func heldOf(n cluster.NodeStatus, slot cert.Slot) cert.Generation {
	for _, g := range n.Held {
		if g.Slot == slot {
			return g
		}
	}
	return cert.Generation{}
}

// newestOf is the newest generation of a slot that any node holds.
func newestOf(nodes []cluster.NodeStatus, slot cert.Slot) cert.Generation {
	var best cert.Generation
	for _, n := range nodes {
		if g := heldOf(n, slot); g.Newer(best) {
			best = g
		}
	}
	return best
}

func issued(n cluster.NodeStatus, slot cert.Slot, nodes []cluster.NodeStatus) string {
	g := heldOf(n, slot)
	switch {
	case g.IsZero():
		return "none"
	case newestOf(nodes, slot).Newer(g):
		return g.Fingerprint.Short() + " old"
	}
	return g.Fingerprint.Short()
}

// sighting is the short fingerprint, or what was seen instead.
func sighting(s cluster.Sighting) string {
	switch {
	case !s.Fingerprint.IsZero():
		return s.Fingerprint.Short()
	case s.SHA1 != "":
		return "other"
	case strings.HasPrefix(s.Note, "unreadable"):
		return "unreadable"
	}
	return "none"
}

func memory(pl cluster.Placement) string {
	switch {
	case !pl.Running:
		return "not running"
	case pl.Memory.IsZero() && pl.Memory.Note != "":
		return "unknown"
	}
	return sighting(pl.Memory)
}

func served(pl cluster.Placement) string {
	switch pl.Proof {
	case cluster.Proven:
		return sighting(pl.Served)
	case cluster.Disproven:
		return sighting(pl.Served) + " WRONG"
	}
	switch {
	case !pl.Served.IsZero():
		return sighting(pl.Served)
	case !pl.Running:
		return "-"
	}
	return "unproven"
}

// left is the time left of what is served, or else of what is on disk.
func left(pl cluster.Placement, now time.Time) string {
	at := pl.Served.NotAfter
	if at.IsZero() {
		at = pl.Disk.NotAfter
	}
	if at.IsZero() {
		return "-"
	}
	d := at.Sub(now)
	switch {
	case d <= 0:
		return "EXPIRED"
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return d.Round(time.Minute).String()
}

// inLine tells that every node could be asked, and has the newest generation of every configured slot on disk and in
// memory, the handshake right or unproven.
func inLine(nodes []cluster.NodeStatus) bool {
	for _, slot := range matrixSlots(nodes) {
		if slices.Contains(nodes[0].Unconfigured, slot) {
			continue
		}
		newest := newestOf(nodes, slot)
		for _, n := range nodes {
			if !n.Reachable || newest.IsZero() || heldOf(n, slot).Compare(newest) != 0 {
				return false
			}
			for _, pl := range placementsOf(n, slot) {
				if !placedRight(pl, newest.Fingerprint) {
					return false
				}
			}
		}
	}
	return !slices.ContainsFunc(nodes, func(n cluster.NodeStatus) bool { return !n.Reachable })
}

// placedRight tells that a HAProxy has a generation on disk, readable for nobody else, and in memory, and that no
// handshake showed another.
func placedRight(pl cluster.Placement, fingerprint cert.Fingerprint) bool {
	return pl.Disk.Fingerprint == fingerprint && pl.Disk.Note == "" && pl.Memory.Fingerprint == fingerprint && pl.Proof != cluster.Disproven
}
