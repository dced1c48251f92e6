package daemon

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// logPass has a line for a pass, and for each thing that it did or found and the one before did not.
func (d *Daemon) logPass(r *run, now instant, o outcome) {
	reasons := strings.Join(texts(r.reasons), " ")
	if o.err != nil {
		d.logError("no pass could be made", o.err, "reasons", reasons)
		return
	}
	level := slog.LevelInfo
	if o.report.Outcome == d.outcome && slices.Equal(r.reasons, []Reason{Settle}) {
		level = slog.LevelDebug // nothing new, every few minutes
	}
	d.outcome = o.report.Outcome
	d.log.Log(context.Background(), level, "pass", "reasons", reasons, "role", o.report.Role.String(), "outcome", string(o.report.Outcome),
		"certificates", len(o.report.Certificates), "took", (now.up - r.began.up).Round(time.Millisecond))
	told := map[string]bool{}
	for _, row := range o.report.Certificates {
		if !row.RolledBackFrom.IsZero() {
			d.log.Warn("rolled back", "certificate", row.Slot.String(), "generation", row.Newest.Fingerprint.Short(), "from", row.RolledBackFrom.Fingerprint.Short())
		}
		if row.Ordered {
			d.log.Info("obtained", "certificate", row.Slot.String(), "generation", row.Newest.Fingerprint.Short(), "until", row.Newest.NotAfter.UTC())
		} else if row.Outcome == cluster.Done {
			d.log.Info("brought in line", "certificate", row.Slot.String(), "generation", row.Newest.Fingerprint.Short())
		}
		if row.Error != "" {
			args := []any{"certificate", row.Slot.String(), "outcome", string(row.Outcome)}
			if !row.NextTry.IsZero() {
				args = append(args, "next_try", row.NextTry.UTC())
			}
			d.warnOnce(told, row.Slot.String()+": "+row.Error, append(args, "hint", row.Hint)...)
		}
	}
	for _, rev := range o.report.Revocations {
		if rev.Revoked {
			d.log.Warn("revoked", "certificate", rev.Generation.Slot.String(), "generation", rev.Generation.Fingerprint.Short(), "reason", string(rev.Reason))
		} else if r.job.Kind == distribute.Revoke { // else it is among the warnings
			d.warnOnce(told, rev.Generation.Slot.String()+": not revoked: "+rev.Error, "outcome", string(rev.Outcome), "hint", rev.Hint)
		}
	}
	for _, n := range o.report.Nodes {
		for _, problem := range n.Problems {
			d.warnOnce(told, problem, "node", n.Node)
		}
	}
	for _, warning := range o.report.Warnings {
		d.warnOnce(told, warning)
	}
	d.told = told
}

// warnOnce writes what the pass before did not tell.
func (d *Daemon) warnOnce(told map[string]bool, text string, args ...any) {
	if !d.told[text] && !told[text] {
		d.log.Warn(text, args...)
	}
	told[text] = true
}

// logError has a line for each line of the error, the last with its mend.
func (d *Daemon) logError(what string, err error, args ...any) {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		more := append([]any{"error", line}, args...)
		if hint := cluster.HintOf(err); hint != "" && i == len(lines)-1 {
			more = append(more, "hint", hint)
		}
		d.log.Error(what, more...)
	}
}

func texts(reasons []Reason) []string {
	out := make([]string, 0, len(reasons))
	for _, r := range reasons {
		out = append(out, string(r))
	}
	return out
}
