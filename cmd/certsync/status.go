package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/reconcile"
)

// statusTimeout bounds how long a node is waited for.
const statusTimeout = 20 * time.Second

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "what each node has issued, on disk, in HAProxy's memory, and served",
		Long: `status asks every node where it stands and prints a line for each certificate and node: the newest generation
that the node's store holds (issued), the bundle file (on disk), the runtime API's answer (in memory), and the leaf that
a fresh TLS handshake showed (served, or unproven where none could be tried). It changes nothing. It exits 0 where every
node has the newest generation in line, and 4 where one does not or cannot be asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) status(ctx context.Context, asJSON bool) error {
	w, err := a.wire(nil)
	if err != nil {
		return err
	}
	defer w.close()
	nodes := w.statuses(ctx)
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(struct {
			Nodes []cluster.NodeStatus `json:"nodes"`
		}{nodes}); err != nil {
			return err
		}
	} else {
		a.printStatus(nodes)
	}
	if !inLine(nodes) {
		return &exitError{code: exitPartly}
	}
	return nil
}

func (a *app) printStatus(nodes []cluster.NodeStatus) {
	printMatrix(a.stdout, nodes, time.Now())
	a.printNodes(nodes)
	a.printConfigurations(nodes)
}

// printNodes prints what is wrong on each node, with the mend, and gives the errors that it printed.
func (a *app) printNodes(nodes []cluster.NodeStatus) map[string]bool {
	told := map[string]bool{}
	tell := func(text, hint string) {
		if text != "" && !told[text] {
			told[text] = true
			a.printError(cluster.WithHint(errors.New(text), "%s", hint))
		}
	}
	for _, n := range nodes {
		if !n.Reachable {
			tell(n.Error, n.Hint)
		}
		for _, problem := range n.Problems {
			fmt.Fprintf(a.stderr, "certsync: warning: %s: %s\n", n.Node, problem)
		}
		for _, pl := range n.Placements {
			tell(reconcile.NodeError(n.Node, pl), pl.Hint)
			if pl.Error == "" {
				a.printNotes(n.Node, pl)
			}
		}
	}
	return told
}

// printNotes tells why a placement is not in line, or unproven, where no error says it.
func (a *app) printNotes(node string, pl cluster.Placement) {
	if pl.Proxy == "" {
		return
	}
	for _, part := range []struct {
		what string
		cluster.Sighting
		wrong bool
	}{
		{"on disk, " + pl.File, pl.Disk, pl.Disk.Note != ""},
		{"in memory", pl.Memory, pl.Memory.Fingerprint.IsZero()},
		{"served", pl.Served, pl.Proof != cluster.Proven},
	} {
		if part.wrong && part.Note != "" {
			fmt.Fprintf(a.stderr, "certsync: warning: %s: %s: %s: %s\n", node, pl.Slot, part.what, part.Note)
		}
	}
	if pl.Hint != "" {
		fmt.Fprintf(a.stderr, "certsync: hint: %s\n", pl.Hint)
	}
}

// printConfigurations warns of nodes whose configuration is not this node's, and of certificates that are held and no
// longer configured.
func (a *app) printConfigurations(nodes []cluster.NodeStatus) {
	for _, n := range nodes {
		if n.Reachable && n.Digest != nodes[0].Digest {
			fmt.Fprintf(a.stderr, "certsync: warning: %s runs another configuration (acme, dns or certificates): make the files the same\n", n.Node)
		}
	}
	for _, slot := range nodes[0].Unconfigured {
		fmt.Fprintf(a.stderr, "certsync: warning: %s is held and not configured any more: it is not renewed; certsync prune removes it\n", slot)
	}
}

// statuses asks this node and all peers side by side, this node first.
func (w *wiring) statuses(ctx context.Context) []cluster.NodeStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	out := make([]cluster.NodeStatus, 1+len(w.peers))
	var wg sync.WaitGroup
	ask := func(i int, name string, status func(context.Context) (cluster.NodeStatus, error)) {
		wg.Go(func() {
			s, err := status(ctx)
			if err != nil {
				s = cluster.NodeStatus{Node: name, Error: err.Error(), Hint: cluster.HintOf(err)}
			}
			out[i] = s
		})
	}
	ask(0, w.node.Settings.Node, w.node.Status)
	for i, p := range w.peers {
		ask(i+1, p.Name(), p.Status)
	}
	wg.Wait()
	return out
}
