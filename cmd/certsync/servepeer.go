package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
)

func (a *app) servePeerCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "serve-peer --node NAME",
		Short: "answer one peer on standard input and output (sshd runs it)",
		Long: `serve-peer is the forced command of a peer's SSH key: it serves the peer API on standard input and output, joined
to the daemon's socket where one runs. In the authorized_keys of the service user:

  restrict,command="/usr/local/sbin/certsync serve-peer --node proxy1" ssh-ed25519 AAAA... proxy1

NAME is the peer that the key belongs to.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.servePeer(cmd.Context(), node) },
	}
	cmd.Flags().StringVar(&node, "node", "", "the peer that the key belongs to")
	return cmd
}

func (a *app) servePeer(ctx context.Context, node string) error {
	if node == "" {
		return cluster.WithHint(cluster.Usage(errors.New("serve-peer: --node is missing")),
			"in authorized_keys, name the host that the key belongs to: certsync serve-peer --node proxy1")
	}
	cfg, self, err := a.load()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(cfg.Peers(self.Name), func(n config.Node) bool { return n.Name == node }) {
		return cluster.WithHint(cluster.Usage(fmt.Errorf("--node %s: not a peer of %s in %s", node, self.Name, a.configPath)),
			"in authorized_keys, --node names the host that the key belongs to")
	}
	if err := dropPrivileges(cfg.StateDir); err != nil {
		return err
	}
	session := distribute.Stdio(a.stdin, a.stdout)
	err = distribute.Join(ctx, session, filepath.Join(cfg.RunDir, config.PeerSocket), node)
	if !errors.Is(err, distribute.ErrNoDaemon) {
		return err
	}
	w, err := a.wire(nil)
	if err != nil {
		return err
	}
	defer w.close()
	return distribute.ServeConn(ctx, session, distribute.AsNode(node, w.handler()))
}
