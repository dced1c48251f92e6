package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
	"certsync/internal/reconcile"
)

// statusReport is what certsync status prints.
type statusReport struct {
	Time time.Time `json:"time"`
	// Daemon is what this node's daemon tells of itself, nil where none runs.
	Daemon *daemonInfo `json:"daemon"`
	// Certificates are those that are configured; what the last pass said of one is there only where a daemon runs.
	Certificates []cluster.CertificateReport `json:"certificates"`
	// Nodes are as they answered now, this one first.
	Nodes     []cluster.NodeStatus `json:"nodes"`
	Readiness []cluster.Readiness  `json:"readiness"`
}

// daemonInfo is the daemon's status without what the report tells anew.
type daemonInfo struct {
	distribute.DaemonStatus
	Last *lastPass `json:"last,omitempty"`
}

// lastPass is the head of a report.
type lastPass struct {
	Role        cluster.Role    `json:"role"`
	Start       time.Time       `json:"start"`
	End         time.Time       `json:"end"`
	Outcome     cluster.Outcome `json:"outcome"`
	Interrupted bool            `json:"interrupted,omitempty"`
	Warnings    []string        `json:"warnings,omitempty"`
}

func newDaemonInfo(d distribute.DaemonStatus) *daemonInfo {
	info := &daemonInfo{DaemonStatus: d}
	if r := d.Last; r != nil {
		info.Last = &lastPass{Role: r.Role, Start: r.Start, End: r.End, Outcome: r.Outcome, Interrupted: r.Interrupted, Warnings: r.Warnings}
	}
	return info
}

// passes tells of the last one, and of one that is under way.
func (d *daemonInfo) passes(now time.Time) string {
	text := "none has ended yet"
	if d.Last != nil {
		text = fmt.Sprintf("last %s, %s", moment(d.Last.End, now), strings.ReplaceAll(string(d.Last.Outcome), "_", " "))
	}
	if len(d.Passing) > 0 {
		text += fmt.Sprintf("; one is under way (%s)", strings.Join(d.Passing, " "))
	}
	return text
}

// renewals are when each certificate is to be renewed, where that is known.
func (s statusReport) renewals() map[cert.Slot]time.Time { return renewalsOf(s.Certificates) }

func renewalsOf(rows []cluster.CertificateReport) map[cert.Slot]time.Time {
	out := make(map[cert.Slot]time.Time, len(rows))
	for _, row := range rows {
		out[row.Slot] = row.RenewAt
	}
	return out
}

// statusSource asks the daemon where every node stands, or, where none runs, every node itself.
type statusSource struct {
	app    *app
	daemon *distribute.LocalClient
	own    *wiring // made when it is first needed
}

func (a *app) statusSource() *statusSource {
	// Also with a broken configuration: the daemon goes on with the one before, and says what is wrong with this one.
	return &statusSource{app: a, daemon: distribute.NewLocalClient(filepath.Join(config.RunDirOf(a.configPath), config.LocalSocket))}
}

func (s *statusSource) close() {
	if s.own != nil {
		s.own.close()
	}
}

func (s *statusSource) ask(ctx context.Context) (statusReport, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout+askTime)
	defer cancel()
	local, err := s.daemon.Status(ctx)
	switch {
	case errors.Is(err, distribute.ErrNoDaemon):
		return s.askNodes(ctx)
	case err != nil:
		return statusReport{}, err
	}
	rows := s.configured()
	if last := local.Daemon.Last; last != nil && len(last.Certificates) > 0 {
		rows = last.Certificates
	}
	report := newStatusReport(rows, local.Nodes)
	report.Daemon = newDaemonInfo(local.Daemon)
	return report, nil
}

// askTime is what the daemon may take beside what it waits for the nodes.
const askTime = 5 * time.Second

// configured are the certificates of the configuration file, none where it is wrong.
func (s *statusSource) configured() []cluster.CertificateReport {
	cfg, err := config.Load(s.app.configPath)
	if err != nil {
		return nil // what is wrong with it is the daemon's to tell
	}
	var rows []cluster.CertificateReport
	for _, c := range cfg.Certificates {
		for _, slot := range c.Slots() {
			rows = append(rows, cluster.CertificateReport{Slot: slot, Domains: cert.NormalDomains(c.Domains)})
		}
	}
	return rows
}

// askNodes is ask without a daemon: when something is renewed is what this node's store leads to.
func (s *statusSource) askNodes(ctx context.Context) (statusReport, error) {
	if s.own == nil {
		own, err := s.app.wire(nil)
		if err != nil {
			return statusReport{}, err
		}
		s.own = own
	}
	nodes := s.own.statuses(ctx)
	if ctx.Err() != nil {
		return statusReport{}, ctx.Err()
	}
	report := newStatusReport(s.configured(), nodes)
	records, err := s.own.store.Records(ctx)
	if err != nil {
		return statusReport{}, err
	}
	said := map[cert.Slot]cluster.RenewalInfo{}
	for _, info := range records.Renewals {
		said[info.Generation.Slot] = info
	}
	for i := range report.Certificates {
		row := &report.Certificates[i]
		row.RenewAt = reconcile.RenewAt(row.Newest, said[row.Slot]).Round(0).UTC()
	}
	return report, nil
}

// newStatusReport judges the nodes as they answered. rows are not changed.
func newStatusReport(rows []cluster.CertificateReport, nodes []cluster.NodeStatus) statusReport {
	newest := map[cert.Slot]cert.Generation{}
	for _, n := range nodes {
		for _, g := range n.Held {
			if g.Newer(newest[g.Slot]) {
				newest[g.Slot] = g
			}
		}
	}
	s := statusReport{Time: time.Now().UTC(), Certificates: make([]cluster.CertificateReport, 0, len(rows)), Nodes: nodes}
	for _, row := range rows {
		if g := newest[row.Slot]; g.Compare(row.Newest) != 0 {
			row.Newest, row.RenewAt, row.Explanation = g, time.Time{}, "" // which were the earlier one's
		}
		s.Certificates = append(s.Certificates, row)
	}
	s.Readiness = cluster.Report{Certificates: s.Certificates, Nodes: nodes, End: s.Time}.Readiness()
	return s
}
