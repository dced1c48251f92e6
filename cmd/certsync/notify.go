package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
)

func (a *app) notifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "notify",
		Short: "the notifications of alarms",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "test",
		Short: "send a test message to each of `notify`",
		Long: `test sends a message to each service of the configuration's notify, from this node, and says for each whether the
service took it. It exits 0 where each did, and 1 where one did not, or where nobody is to be notified.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.testNotify(cmd.Context()) },
	})
	return cmd
}

func (a *app) testNotify(ctx context.Context) error {
	cfg, self, err := a.load()
	if err != nil {
		return err
	}
	if err := dropPrivileges(cfg.StateDir); err != nil {
		return err
	}
	all, err := targets(cfg)
	if err != nil {
		return cluster.Usage(err)
	}
	if len(all) == 0 {
		return cluster.WithHint(errors.New("nobody is to be notified"), "name URLs, or file:PATH, under notify in %s", a.configPath)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "an unnamed host"
	}
	subject := fmt.Sprintf("certsync on %s: a test", self.Name)
	text := fmt.Sprintf("This is a test of certsync's notifications, from %s (%s). Nothing is wrong.\n", self.Name, host)
	failures := make([]error, len(all))
	var wg sync.WaitGroup
	for i, t := range all {
		wg.Go(func() { failures[i] = t.Send(ctx, subject, text) })
	}
	wg.Wait()
	failed := false
	for i, t := range all {
		if failures[i] != nil {
			failed = true
			a.printError(failures[i])
			continue
		}
		fmt.Fprintf(a.stdout, "%s: sent\n", t.Name())
	}
	if failed {
		return &exitError{code: exitFailed}
	}
	return nil
}
