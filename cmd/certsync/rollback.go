package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
	"certsync/internal/reconcile"
)

func (a *app) rollbackCommand() *cobra.Command {
	var to, keyType string
	var list, asJSON bool
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "put an earlier generation of a certificate back in service everywhere",
		Long: `rollback puts the generation before the newest back in service on every node, the BACKUPs first, as issue does with a new
one; with --to, that of a sequence or of the first digits of a fingerprint, as --list shows them. It takes one that is
valid, not revoked and, without --to, has all configured names. The bundle is the same and its sequence a new one, so that
every node, one that was away too, takes it for the newest. A certificate with several key types is rolled back in all of
them, unless --key-type names one. It asks nothing of the CA.

Only the MASTER does it; elsewhere it exits 3 and says who is. Where the daemon runs, it does the work. The renewal of what
was put back is held off for a day, or a tenth of the life that it has left: mend the cause until then.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			algorithm, err := parseAlgorithm(keyType)
			if err != nil {
				return err
			}
			if list && to != "" {
				return cluster.Usage(errors.New("rollback: --list changes nothing, and --to has no use with it"))
			}
			if list {
				return a.listHeld(cmd.Context(), reconcile.Choice{Name: names[0], Algorithm: algorithm}, asJSON)
			}
			return a.doAndPrint(cmd.Context(), distribute.Job{Kind: distribute.Rollback, Names: names, Algorithm: algorithm, Generation: to}, asJSON)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the generation: its sequence, or the first digits of its fingerprint")
	cmd.Flags().StringVar(&keyType, "key-type", "", "this key type only: ecdsa or rsa, or one as in the configuration")
	cmd.Flags().BoolVar(&list, "list", false, "show the generations that this node holds, and change nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

// parseAlgorithm is the signature family of what --key-type names; "" is all.
func parseAlgorithm(keyType string) (cert.Algorithm, error) {
	if keyType == "" {
		return "", nil
	}
	algorithm := cert.KeyType(keyType).Algorithm()
	if algorithm == "" {
		algorithm = cert.Algorithm(keyType)
	}
	if algorithm != cert.ECDSA && algorithm != cert.RSA {
		return "", cluster.WithHint(cluster.Usage(fmt.Errorf("--key-type %q: no key type", keyType)), "use one of: ecdsa, rsa")
	}
	return algorithm, nil
}

// listHeld shows what this node holds of a certificate.
func (a *app) listHeld(ctx context.Context, c reconcile.Choice, asJSON bool) error {
	w, err := a.wire(nil)
	if err != nil {
		return err
	}
	defer w.close()
	held, err := w.node.Held(ctx, c)
	if err != nil {
		return err
	}
	if asJSON {
		out := newProgress(a, true)
		for _, h := range held {
			if err := out.json("generation", h); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CERTIFICATE\tSEQUENCE\tGENERATION\tFROM\tUNTIL\tSTATE")
	for _, h := range held {
		g := h.Generation
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", g.Slot, g.Sequence, g.Fingerprint.Short(), g.NotBefore.UTC().Format(time.RFC3339),
			g.NotAfter.UTC().Format(time.RFC3339), stateOf(h))
	}
	return t.Flush()
}

// stateOf is what there is to say of a generation, for a table.
func stateOf(h reconcile.Shelved) string {
	var out []string
	for _, s := range []struct {
		is   bool
		text string
	}{{h.Current, "current"}, {h.Released, "released"}, {h.Revoked, "revoked"}, {h.ToBeRevoked, "to be revoked"}, {h.Expired, "expired"}} {
		if s.is {
			out = append(out, s.text)
		}
	}
	if len(out) == 0 {
		return "earlier"
	}
	return strings.Join(out, ", ")
}

func (a *app) revokeCommand() *cobra.Command {
	var job distribute.Job
	var keyType string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "revoke a certificate at the CA, with a replacement in service first",
		Long: `revoke obtains a certificate with a new key, puts it in service on every node that can be reached, and then has the CA
revoke the one before. From then on no node adopts, activates or rolls back to that, a node that was away neither. With
--generation another than the newest is revoked, with --all every one that is held and has not expired: after a break-in,
each of their keys may be known.

Where no replacement can be had, nothing is revoked, and where a node that can be reached does not serve it, not yet.
--now revokes at once, and replaces afterwards: until then the nodes go back to the earlier generation, and where there is
none, browsers that look for revocations refuse what is served. --reason keyCompromise is for a key that somebody else has,
or may have; others are superseded, cessationOfOperation, affiliationChanged.

What was begun is finished by the next pass on the MASTER, also after a kill or a failover. Only the MASTER does it;
elsewhere it exits 3 and says who is. Where the daemon runs, it does the work.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			algorithm, err := parseAlgorithm(keyType)
			if err != nil {
				return err
			}
			if _, err := cluster.ParseReason(job.Reason); err != nil {
				return err
			}
			if job.All && job.Generation != "" {
				return cluster.Usage(errors.New("revoke: --all and --generation do not go together"))
			}
			job.Kind, job.Names, job.Algorithm = distribute.Revoke, names, algorithm
			if job.AtOnce {
				fmt.Fprintf(a.stderr, "certsync: warning: %s is revoked before anything replaces it\n", names[0])
			}
			return a.doAndPrint(cmd.Context(), job, asJSON)
		},
	}
	cmd.Flags().StringVar(&job.Generation, "generation", "", "revoke this one: its sequence, or the first digits of its fingerprint (see rollback --list)")
	cmd.Flags().BoolVar(&job.All, "all", false, "revoke every generation that is held")
	cmd.Flags().StringVar(&job.Reason, "reason", "", "keyCompromise, superseded, cessationOfOperation, affiliationChanged or unspecified (the default)")
	cmd.Flags().BoolVar(&job.AtOnce, "now", false, "revoke at once, although nothing replaces it yet")
	cmd.Flags().StringVar(&keyType, "key-type", "", "this key type only: ecdsa or rsa, or one as in the configuration")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

// revocationCode is the exit code of what became of a revocation.
func revocationCode(r cluster.RevocationReport) int {
	switch r.Outcome {
	case cluster.Done:
		return exitDone
	case cluster.Waiting:
		return exitPartly
	case cluster.PutOff:
		return exitPutOff
	case cluster.NotMaster:
		return exitNotMaster
	}
	return exitFailed
}

// printRevocations prints a line for each: what was done to standard output, what was not to standard error.
func (a *app) printRevocations(revocations []cluster.RevocationReport) {
	for _, r := range revocations {
		what := fmt.Sprintf("%s: generation %s", r.Generation.Slot, r.Generation.Fingerprint.Short())
		switch {
		case r.Revoked && r.Replacement.IsZero():
			fmt.Fprintf(a.stdout, "%s is revoked, and nothing replaces it yet\n", what)
		case r.Revoked:
			fmt.Fprintf(a.stdout, "%s is revoked; %s is in its place\n", what, r.Replacement.Fingerprint.Short())
		default:
			a.printError(cluster.WithHint(fmt.Errorf("%s: not revoked: %w", what, errors.New(r.Error)), "%s", r.Hint))
			if r.Tombstone {
				fmt.Fprintf(a.stderr, "certsync: %s has a tombstone: no node goes back to it\n", what)
			}
			if !r.NextTry.IsZero() {
				fmt.Fprintf(a.stderr, "certsync: %s: the next try is allowed at %s\n", r.Generation.Slot, r.NextTry.UTC().Format(time.RFC3339))
			}
		}
	}
}
