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

// matrixRow is where a certificate stands on a node, or with one of its HAProxies.
type matrixRow struct {
	slot                                    cert.Slot
	node, proxy                             string
	role, issued, disk, memory, served, end string
}

// printMatrix prints a line for each certificate, node and HAProxy: issued, on disk, in memory, served, and how long that
// lasts and until it is renewed.
func printMatrix(w io.Writer, nodes []cluster.NodeStatus, renewals map[cert.Slot]time.Time, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "CERTIFICATE\tNODE\tROLE\tISSUED\tON DISK\tIN MEMORY\tSERVED\tLEFT\tRENEWAL")
	for _, r := range matrixRows(nodes, now) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.slot, r.node, r.role, r.issued, r.disk, r.memory, r.served, r.end, renewal(renewals[r.slot], now))
	}
}

func matrixRows(nodes []cluster.NodeStatus, now time.Time) []matrixRow {
	var rows []matrixRow
	for _, slot := range matrixSlots(nodes) {
		for _, n := range nodes {
			r := matrixRow{slot: slot, node: n.Node, role: n.Role.String(), disk: "-", memory: "-", served: "-", end: "-"}
			if !n.Reachable {
				rows = append(rows, matrixRow{slot: slot, node: n.Node, role: "-", issued: "unreachable"})
				continue
			}
			r.issued = issued(n, slot, nodes)
			lines := placementsOf(n, slot)
			if len(lines) == 0 {
				r.issued = heldOf(n, slot).Fingerprint.Short()
				rows = append(rows, r)
			}
			for _, pl := range lines {
				if pl.Proxy != "" { // else the node could do nothing for it, and was not looked at
					r.proxy, r.disk, r.memory, r.served, r.end = pl.Proxy, sighting(pl.Disk), memory(pl), served(pl), left(pl, now)
				}
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// renewal says in how long a certificate is renewed.
func renewal(at, now time.Time) string {
	switch {
	case at.IsZero():
		return "-"
	case at.After(now):
		return "in " + span(at.Sub(now))
	}
	return "due"
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
	if !at.After(now) {
		return "EXPIRED"
	}
	return span(at.Sub(now))
}

// span is a time for a person, to the day or to the minute.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d < time.Minute:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// moment is an instant for a person, with how far from now it is.
func moment(at, now time.Time) string {
	if at.IsZero() {
		return "at no known time"
	}
	text := at.UTC().Format(time.RFC3339)
	if at.After(now) {
		return text + " (in " + span(at.Sub(now)) + ")"
	}
	return text + " (" + span(now.Sub(at)) + " ago)"
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
