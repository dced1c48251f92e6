package web

import (
	"io"

	"certsync/internal/cluster"
)

// WriteMetrics writes the view in Prometheus' text format, a sample at a time: how many certificates there are does not
// matter to the memory that it takes.
func WriteMetrics(w io.Writer, v View) error {
	x, e := newIndex(v), newExposition(w)
	x.daemonMetrics(e)
	x.passMetrics(e)
	x.nodeMetrics(e)
	x.certificateMetrics(e)
	return e.end()
}

func (x index) daemonMetrics(e *exposition) {
	e.one("certsync_build_info", gauge, "The version of certsync; always 1.", 1, "version", x.Version)
	e.instant("certsync_start_timestamp_seconds", "When the daemon began.", x.Started)
	e.one("certsync_healthy", gauge, "1 where /healthz says that this node is healthy.", number(x.health().Healthy))
	e.family("certsync_role", gauge, "This node's role, as CARP has it: 1 for the one that it has.")
	for _, role := range []cluster.Role{cluster.Unknown, cluster.Init, cluster.Backup, cluster.Master} {
		e.sample(number(role == x.Role), "role", role.String())
	}
	e.one("certsync_configuration_ok", gauge, "0 where the configuration file, as it is now, was refused and the one before is in use.",
		number(x.Configuration == ""))
	e.family("certsync_alarms", gauge, "The alarms that stand, by severity.")
	for _, severity := range []cluster.Severity{cluster.Warning, cluster.Urgent} {
		n := 0
		for _, a := range x.Alarms {
			n += int(number(a.Severity == severity))
		}
		e.sample(float64(n), "severity", string(severity))
	}
}

func (x index) passMetrics(e *exposition) {
	e.one("certsync_pass_ok", gauge, "0 where the last pass could not be made.", number(x.Error == ""))
	e.one("certsync_pass_overdue_seconds", gauge, "For how long a full pass should have ended; 0 where none should.", max(0, x.Overdue.Seconds()))
	e.instant("certsync_next_pass_timestamp_seconds", "When the next pass is made, as far as is known.", x.Next)
	if last := x.Last; last != nil {
		e.instant("certsync_last_pass_timestamp_seconds", "When the last pass ended.", last.End)
		e.one("certsync_last_pass_duration_seconds", gauge, "How long the last pass took.", max(0, last.End.Sub(last.Start).Seconds()))
		e.family("certsync_last_pass_outcome", gauge, "The worst outcome of the last pass over all certificates and nodes: 1 for the one that it is.")
		for _, outcome := range cluster.Outcomes() {
			e.sample(number(outcome == last.Outcome), "outcome", string(outcome))
		}
		e.one("certsync_last_pass_warnings", gauge, "How many warnings the last pass had.", float64(len(last.Warnings)))
	}
	e.one("certsync_passes_total", counter, "Passes that ended since the daemon began.", float64(x.Counts.Passes))
	e.one("certsync_failed_passes_total", counter, "Passes that could not be made since the daemon began.", float64(x.Counts.FailedPasses))
	e.one("certsync_issued_certificates_total", counter, "Certificates that this node obtained since the daemon began.", float64(x.Counts.Issued))
	e.one("certsync_resumed_orders_total", counter, "Those of them whose order was taken up and not new.", float64(x.Counts.Resumed))
	e.one("certsync_failed_orders_total", counter, "How often a certificate was due and a pass failed to obtain it, since the daemon began.", float64(x.Counts.FailedOrders))
}

func (x index) nodeMetrics(e *exposition) {
	each := func(name, help string, value func(cluster.NodeStatus, cluster.Readiness) (float64, bool)) {
		e.family(name, gauge, help)
		for i, n := range x.nodes() {
			if v, ok := value(n, x.readiness[i]); ok {
				e.sample(v, "node", n.Node)
			}
		}
	}
	each("certsync_node_reachable", "1 where the last pass could ask the node.", func(n cluster.NodeStatus, _ cluster.Readiness) (float64, bool) {
		return number(n.Reachable), true
	})
	each("certsync_node_master", "1 where the node said that it is MASTER.", func(n cluster.NodeStatus, _ cluster.Readiness) (float64, bool) {
		return number(n.Role == cluster.Master), n.Reachable
	})
	each("certsync_node_ready", "1 where the node would serve every certificate as it should if it took over now; none where that is not known.",
		func(_ cluster.NodeStatus, r cluster.Readiness) (float64, bool) { return number(r.Ready()), r.Known })
	each("certsync_node_unready_certificates", "Certificates that the node does not serve as it should; none where that is not known.",
		func(_ cluster.NodeStatus, r cluster.Readiness) (float64, bool) {
			lacking, _ := r.Count()
			return float64(lacking), r.Known
		})
	each("certsync_node_failing_certificates", "Those of them of which it serves nothing valid; none where that is not known.",
		func(_ cluster.NodeStatus, r cluster.Readiness) (float64, bool) {
			_, failing := r.Count()
			return float64(failing), r.Known
		})
	each("certsync_node_unproven_certificates", "Certificates for which no handshake could be tried; none where that is not known.",
		func(n cluster.NodeStatus, r cluster.Readiness) (float64, bool) {
			return float64(unproven(n)), r.Known
		})
}

func unproven(n cluster.NodeStatus) int {
	slots := map[string]bool{}
	for _, p := range n.Placements {
		if p.Running && p.Proof == cluster.NoProof {
			slots[p.Slot.String()] = true
		}
	}
	return len(slots)
}

func (x index) certificateMetrics(e *exposition) {
	each := func(name, help string, value func(cluster.CertificateReport) (float64, bool)) {
		e.family(name, gauge, help)
		for _, row := range x.rows() {
			if v, ok := value(row); ok {
				e.sample(v, "certificate", row.Slot.Name, "algorithm", string(row.Slot.Algorithm))
			}
		}
	}
	each("certsync_certificate_not_before_timestamp_seconds", "From when the newest generation is valid.", func(row cluster.CertificateReport) (float64, bool) {
		return seconds(row.Newest.NotBefore), !row.Newest.IsZero()
	})
	each("certsync_certificate_not_after_timestamp_seconds", "Until when the newest generation is valid.", func(row cluster.CertificateReport) (float64, bool) {
		return seconds(row.Newest.NotAfter), !row.Newest.IsZero()
	})
	each("certsync_certificate_renew_at_timestamp_seconds", "When the newest generation is to be renewed.", func(row cluster.CertificateReport) (float64, bool) {
		return seconds(row.RenewAt), !row.RenewAt.IsZero()
	})
	each("certsync_certificate_runway_ratio", "The part of its lifetime that is left of what this node serves, from 1 to 0; 0 where it serves nothing.",
		func(row cluster.CertificateReport) (float64, bool) { return x.runway(row), true })
	each("certsync_certificate_failing", "1 where the last pass has an error for the certificate.", func(row cluster.CertificateReport) (float64, bool) {
		return number(row.Error != ""), true
	})
	each("certsync_certificate_next_try_timestamp_seconds", "When the next try is allowed, where one is put off.", func(row cluster.CertificateReport) (float64, bool) {
		return seconds(row.NextTry), !row.NextTry.IsZero()
	})
}
