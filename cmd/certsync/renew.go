package main

import (
	"github.com/spf13/cobra"

	"certsync/internal/distribute"
)

func (a *app) renewCommand() *cobra.Command {
	return a.jobCommand(distribute.Renew, "make one pass: obtain what is due, bring every node in line", `renew makes one pass, as the daemon does: on the MASTER it obtains what is due, and puts the newest generation of every
certificate in service on every node; elsewhere it adopts and activates what the MASTER released, and exits 0. Where
the daemon runs, it does the work.`)
}

// jobCommand is a command that is one pass and takes no names.
func (a *app) jobCommand(kind distribute.JobKind, short, long string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   string(kind),
		Short: short,
		Long:  long,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.doAndPrint(cmd.Context(), distribute.Job{Kind: kind}, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}
