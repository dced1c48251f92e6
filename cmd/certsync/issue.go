package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
	"certsync/internal/reconcile"
)

func (a *app) issueCommand() *cobra.Command {
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "issue [NAME...]",
		Short: "obtain certificates now and put them in service everywhere",
		Long: `issue runs the whole flow once on the MASTER: it adopts what the peers have, obtains what is due, and the named
certificates whether due or not, and puts the newest generation of every certificate in service on every node, the
BACKUPs first. A killed order is taken up again. Elsewhere than on the MASTER it exits 3 and says who is. Where the daemon runs, it
does the work, and goes on with it if this command is interrupted.

With --dry-run the CA's staging directory is asked instead and nothing is kept: it proves the DNS credentials and the
CA's willingness.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if dryRun {
				return a.dryRun(cmd.Context(), names, asJSON)
			}
			return a.issue(cmd.Context(), names, asJSON)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "ask the CA's staging directory; keep nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

func (a *app) issue(ctx context.Context, names []string, asJSON bool) error {
	return a.doAndPrint(ctx, distribute.Job{Kind: distribute.Issue, Names: names}, asJSON)
}

// reportCode is the exit code of a pass: the gravest of its certificates'. A pass that was interrupted failed.
func reportCode(r cluster.Report) int {
	if r.Interrupted {
		return exitFailed
	}
	gravity := []int{exitDone, exitPutOff, exitPartly, exitNotMaster, exitFailed}
	code := exitDone
	graver := func(c int) {
		if slices.Index(gravity, c) > slices.Index(gravity, code) {
			code = c
		}
	}
	for _, row := range r.Certificates {
		graver(rowCode(row, r))
	}
	for _, revocation := range r.Revocations {
		graver(revocationCode(revocation))
	}
	return code
}

func rowCode(row cluster.CertificateReport, r cluster.Report) int {
	if row.Due != "" && !row.Ordered {
		switch row.Outcome {
		case cluster.PutOff:
			return exitPutOff
		case cluster.NotMaster:
			return exitNotMaster
		case cluster.Unchanged:
		default:
			return exitFailed
		}
	}
	inService, onDisk, lacking := tally(row, r)
	switch {
	case !lacking:
		return exitDone
	case inService || onDisk:
		return exitPartly
	}
	return exitFailed
}

// tally tells whether any node has a slot's newest generation in service, any has it on disk only, and any lacks it.
func tally(row cluster.CertificateReport, r cluster.Report) (inService, onDisk, lacking bool) {
	for _, node := range r.Nodes {
		if !node.Reachable {
			lacking = true
		}
		for _, pl := range node.Placements {
			if pl.Slot != row.Slot {
				continue
			}
			switch pl.Outcome {
			case cluster.Unchanged, cluster.Done, cluster.Unproven:
				inService = true
			case cluster.DiskOnly:
				onDisk, lacking = true, true
			case "": // looked at only
				if placedRight(pl, row.Newest.Fingerprint) {
					inService = true
				} else {
					lacking = true
				}
			default:
				lacking = true
			}
		}
	}
	return inService, onDisk, lacking
}

// printReport prints the matrix and what is to be said, results to standard output and the rest to standard error.
func (a *app) printReport(r cluster.Report) {
	printMatrix(a.stdout, r.Nodes, renewalsOf(r.Certificates), r.End)
	for _, w := range r.Warnings {
		fmt.Fprintf(a.stderr, "certsync: warning: %s\n", w)
	}
	told := a.printNodes(r.Nodes)
	for _, row := range r.Certificates {
		if row.Error != "" && !told[row.Error] {
			a.printError(cluster.WithHint(fmt.Errorf("%s: %s: %s", row.Slot, strings.ReplaceAll(string(row.Outcome), "_", " "), row.Error), "%s", row.Hint))
		}
		if !row.NextTry.IsZero() {
			fmt.Fprintf(a.stderr, "certsync: %s: the next try is allowed at %s\n", row.Slot, row.NextTry.UTC().Format(time.RFC3339))
		}
	}
	a.printRevocations(r.Revocations)
	fmt.Fprintln(a.stdout, summary(r))
}

// summary is one sentence for the person who has to trust it.
func summary(r cluster.Report) string {
	if r.Interrupted {
		return "interrupted: certsync status tells where every node stands; run it again to go on"
	}
	var obtained, adopted, back, failed []string
	whole := 0
	for _, row := range r.Certificates {
		_, _, lacking := tally(row, r)
		if row.Ordered {
			obtained = append(obtained, row.Slot.String())
		} else if !row.RolledBackFrom.IsZero() {
			back = append(back, fmt.Sprintf("%s from %s to %s", row.Slot, row.RolledBackFrom.Fingerprint.Short(), row.Newest.Fingerprint.Short()))
		} else if row.Due != "" {
			failed = append(failed, row.Slot.String())
		} else if row.Outcome == cluster.Done {
			adopted = append(adopted, row.Slot.String())
		}
		if !lacking && !row.Newest.IsZero() {
			whole++
		}
	}
	s := fmt.Sprintf("%d of %d in service on every node", whole, len(r.Certificates))
	if n := unproven(r); n > 0 {
		s += fmt.Sprintf(" (%d unproven: no handshake could be tried)", n)
	}
	if len(obtained) > 0 {
		s += "; obtained " + strings.Join(obtained, ", ")
	}
	if len(back) > 0 {
		s += "; rolled back " + strings.Join(back, ", ")
	}
	if len(adopted) > 0 {
		s += "; brought in line " + strings.Join(adopted, ", ")
	}
	if len(failed) > 0 {
		s += "; not renewed, though due: " + strings.Join(failed, ", ")
	}
	if len(obtained)+len(adopted)+len(back)+len(failed)+len(r.Revocations) == 0 && whole == len(r.Certificates) {
		s += "; nothing to do"
	}
	return s
}

// unproven counts the certificates that a node has in memory without a handshake to prove it.
func unproven(r cluster.Report) int {
	slots := map[cert.Slot]bool{}
	for _, n := range r.Nodes {
		for _, pl := range n.Placements {
			if pl.Outcome == cluster.Unproven {
				slots[pl.Slot] = true
			}
		}
	}
	return len(slots)
}

func (a *app) dryRun(ctx context.Context, names []string, asJSON bool) error {
	out := newProgress(a, asJSON)
	w, err := a.wire(out.tell)
	if err != nil {
		return err
	}
	defer w.close()
	r, err := w.reconciler(true)
	if err != nil {
		return err
	}
	results, err := r.DryRun(ctx, r.Issuer, names)
	out.end()
	if err != nil {
		return putOff(err)
	}
	var errs []error
	for _, res := range results {
		if err := a.printRehearsal(out, r.Issuer.Directory(), res, asJSON); err != nil {
			errs = append(errs, putOff(fmt.Errorf("%s: %w", res.Slot, err)))
		}
	}
	return errors.Join(errs...)
}

// printRehearsal prints one result of a dry run, and gives its error.
func (a *app) printRehearsal(out *progress, directory string, res reconcile.Rehearsal, asJSON bool) error {
	if asJSON {
		line := map[string]any{"slot": res.Slot, "directory": directory, "issuer": res.Issuer, "seconds": res.Took.Seconds()}
		if res.Err != nil {
			line["error"] = res.Err.Error()
		}
		return errors.Join(res.Err, out.json("rehearsal", line))
	}
	if res.Err == nil {
		fmt.Fprintf(a.stdout, "%s: %s gave a certificate of %q in %s; nothing was kept\n", res.Slot, directory, res.Issuer,
			res.Took.Round(time.Millisecond))
	}
	return res.Err
}

// putOff makes an error that holds the CA's Retry-After one of a put-off, which has an exit code of its own.
func putOff(err error) error {
	issue, ok := errors.AsType[*cluster.IssueError](err)
	if !ok {
		return err
	}
	if issue.RetryAfter {
		return &cluster.PutOffError{Until: issue.NextTry, Cause: err.Error()}
	}
	if issue.Hint != "" {
		return cluster.WithHint(err, "%s", issue.Hint)
	}
	return err
}
