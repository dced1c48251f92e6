package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/reconcile"
)

// statusTimeout bounds how long a node is waited for.
const statusTimeout = 20 * time.Second

func (a *app) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "what each node has issued, on disk, in HAProxy's memory, and served",
		Long: `status asks every node where it stands and prints a line for each certificate and node: the newest generation
that the node's store holds (issued), the bundle file (on disk), the runtime API's answer (in memory), the leaf that
a fresh TLS handshake showed (served, or unproven where none could be tried), the time left of it, and when it is to be
renewed. Then whether each node would serve everything if it took over now, and what the daemon of this node is doing.
It changes nothing. It exits 0 where every node has the newest generation in line, and 4 where one does not or cannot be
asked.

With --watch it goes on until it is interrupted, and looks every 5 s: a terminal is drawn anew, elsewhere what changed is
printed, a line each.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source := a.statusSource()
			defer source.close()
			if watch {
				return a.statusWatch(cmd.Context(), source, asJSON)
			}
			return a.status(cmd.Context(), source, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch an object a line")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on, and tell what changes")
	return cmd
}

func (a *app) status(ctx context.Context, source *statusSource, asJSON bool) error {
	s, err := source.ask(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(s); err != nil {
			return err
		}
	} else {
		a.printStatus(s)
	}
	if !inLine(s.Nodes) {
		return &exitError{code: exitPartly}
	}
	return nil
}

// mostGapsPrinted is how many gaps of a node are told; their number is told in any case.
const mostGapsPrinted = 5

func (a *app) printStatus(s statusReport) {
	printMatrix(a.stdout, s.Nodes, s.renewals(), s.Time)
	for _, r := range s.Readiness {
		fmt.Fprintf(a.stdout, "%s: %s\n", r.Node, r.Verdict(len(s.Certificates)))
		for _, gap := range r.Gaps[:min(len(r.Gaps), mostGapsPrinted)] {
			fmt.Fprintf(a.stdout, "  %s: %s\n", placeOf(gap), gap.Why)
		}
		if more := len(r.Gaps) - mostGapsPrinted; more > 0 {
			fmt.Fprintf(a.stdout, "  and %d more\n", more)
		}
	}
	a.printDaemon(s)
	a.printNodes(s.Nodes)
	a.printConfigurations(s.Nodes)
}

// placeOf names a gap's certificate, and the HAProxy where it is one's alone.
func placeOf(gap cluster.Gap) string {
	if gap.Proxy == "" {
		return gap.Slot.String()
	}
	return gap.Slot.String() + " in " + gap.Proxy
}

// printDaemon tells what the daemon is doing, and on standard error what is wrong with that.
func (a *app) printDaemon(s statusReport) {
	d := s.Daemon
	if d == nil {
		fmt.Fprintln(a.stdout, "daemon: none runs on this node")
		return
	}
	fmt.Fprintf(a.stdout, "daemon: %s, process %d, since %s\n", d.Version, d.Pid, moment(d.Started, s.Time))
	fmt.Fprintf(a.stdout, "passes: %s; next %s\n", d.passes(s.Time), moment(d.Next, s.Time))
	if d.Page != "" {
		fmt.Fprintf(a.stdout, "page: %s\n", d.Page)
	}
	for _, wrong := range []struct{ what, text, hint string }{
		{"no pass could be made", d.Error, d.Hint},
		{"the configuration was refused, the one before is in use", d.Configuration, d.ConfigurationHint},
		{"the status page is not where it should be", d.PageError, d.PageHint},
	} {
		if wrong.text != "" {
			a.printError(cluster.WithHint(errors.New(prefixLines(wrong.what+": ", wrong.text)), "%s", wrong.hint))
		}
	}
	for _, alarm := range d.Alarms {
		fmt.Fprintf(a.stderr, "certsync: alarm: %s, since %s: %s\n", alarm.Severity, moment(alarm.Since, s.Time), alarm.Text)
		if alarm.Hint != "" {
			fmt.Fprintf(a.stderr, "certsync: hint: %s\n", alarm.Hint)
		}
	}
}

// prefixLines puts a prefix before each line of a text, for one error a line.
func prefixLines(prefix, text string) string {
	return prefix + strings.ReplaceAll(text, "\n", "\n"+prefix)
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
