package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

const (
	// carpTimeout bounds how long a peer is waited for, carpPoll is how often the peers are asked while watching: each
	// question is a session of sshd there.
	carpTimeout = 10 * time.Second
	carpPoll    = 5 * time.Second
)

func (a *app) carpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "carp",
		Short: "the role of this node, and the virtual addresses",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.carpStatusCommand())
	return cmd
}

func (a *app) carpStatusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "each virtual host as each node sees it",
		Long: `status prints a line for each vhid and node: interface, role, advbase, advskew and addresses, this node's first and
then the peers' view of theirs, and what does not fit: two MASTERs, none, families on different hosts, hosts that differ
in what they must agree on. It changes nothing. It exits 0 where all is well, and 4 where something does not fit or a
peer cannot be asked.

With --watch it goes on until it is interrupted, and prints again whenever something changed: this node's part at once,
the peers' every 5 s.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.carpWatch(cmd.Context(), asJSON)
			}
			return a.carpStatus(cmd.Context(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch an object a line")
	cmd.Flags().BoolVar(&watch, "watch", false, "print again at every change")
	return cmd
}

// carpReport is what carp status prints.
type carpReport struct {
	Time time.Time `json:"time"`
	// Nodes has this node first.
	Nodes    []cluster.CARP `json:"nodes"`
	Findings []carp.Finding `json:"findings"`
}

func newCARPReport(nodes []cluster.CARP) carpReport {
	peers := map[string]cluster.CARP{}
	for _, n := range nodes[1:] {
		view := n
		if notAsked(n) {
			view = cluster.CARP{}
		}
		peers[n.Node] = view
	}
	findings := carp.Compare(nodes[0].Node, nodes[0], peers)
	if findings == nil {
		findings = []carp.Finding{}
	}
	return carpReport{Time: time.Now().UTC(), Nodes: nodes, Findings: findings}
}

// notAsked tells that nothing is known of a node.
func notAsked(n cluster.CARP) bool { return n.Error != "" && n.Source == "" && len(n.VHIDs) == 0 }

// wrong tells that something does not fit, or a node could not be asked.
func (r carpReport) wrong() bool {
	return slices.ContainsFunc(r.Findings, func(f carp.Finding) bool { return !f.Warning }) ||
		slices.ContainsFunc(r.Nodes, func(n cluster.CARP) bool { return n.Error != "" })
}

func (a *app) carpStatus(ctx context.Context, asJSON bool) error {
	w, err := a.wireCARP()
	if err != nil {
		return err
	}
	defer w.close()
	own, err := w.node.CARP(ctx)
	if err != nil {
		return err
	}
	report := newCARPReport(append([]cluster.CARP{own}, w.peersCARP(ctx)...))
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return err
		}
	} else {
		printCARP(a.stdout, report.Nodes)
		a.printFindings(report)
	}
	if report.wrong() {
		return &exitError{code: exitPartly}
	}
	return nil
}

// printCARP prints a line for each vhid and node.
func printCARP(w io.Writer, nodes []cluster.CARP) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NODE\tINTERFACE\tVHID\tROLE\tADVBASE\tADVSKEW\tADDRESSES\tPREEMPT\tDEMOTION")
	for _, n := range nodes {
		switch {
		case notAsked(n):
			fmt.Fprintf(t, "%s\t-\t-\tunreachable\t\t\t\t\t\n", n.Node)
			continue
		case len(n.VHIDs) == 0:
			fmt.Fprintf(t, "%s\t-\t-\t%s (%s)\t\t\t\t\t\n", n.Node, n.Role, cmp.Or(n.Source, "unknown"))
		}
		for _, v := range n.VHIDs {
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, v.Interface, v.ID, v.Role, number(v.AdvBase, v.AdvBase != 0),
				optional(v.AdvSkew), addresses(v), onOff(n.Preempt), optional(n.Demotion))
		}
	}
}

func number(n int, known bool) string {
	if !known {
		return "-"
	}
	return strconv.Itoa(n)
}

func optional(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

func onOff(b *bool) string {
	switch {
	case b == nil:
		return "-"
	case *b:
		return "on"
	}
	return "off"
}

func addresses(v cluster.VHID) string {
	all := make([]string, 0, len(v.Addresses))
	for _, p := range v.Addresses {
		all = append(all, p.String())
	}
	return cmp.Or(strings.Join(all, " "), "-")
}

// printFindings tells on standard error what could not be read, and what does not fit.
func (a *app) printFindings(r carpReport) {
	for _, n := range r.Nodes {
		if n.Error != "" && len(n.VHIDs) == 0 { // else it is among the findings
			a.printError(cluster.WithHint(errors.New(n.Error), "%s", n.Hint))
		}
	}
	for _, f := range r.Findings {
		if !f.Warning {
			a.printError(cluster.WithHint(errors.New(f.Error), "%s", f.Hint))
			continue
		}
		fmt.Fprintf(a.stderr, "certsync: warning: %s\n", f.Error)
		if f.Hint != "" {
			fmt.Fprintf(a.stderr, "certsync: hint: %s\n", f.Hint)
		}
	}
}

// peersCARP asks the peers side by side, in the order of the configuration.
func (w *wiring) peersCARP(ctx context.Context) []cluster.CARP {
	ctx, cancel := context.WithTimeout(ctx, carpTimeout)
	defer cancel()
	out := make([]cluster.CARP, len(w.peers))
	var wg sync.WaitGroup
	for i, p := range w.peers {
		wg.Go(func() {
			seen, err := p.CARP(ctx)
			if err != nil {
				seen = cluster.CARP{Node: p.Name(), Error: err.Error(), Hint: cluster.HintOf(err)}
			}
			out[i] = seen
		})
	}
	wg.Wait()
	return out
}

// carpWatch prints this node's view at every change, with the peers' as they last were.
func (a *app) carpWatch(ctx context.Context, asJSON bool) error {
	w, err := a.wireCARP()
	if err != nil {
		return err
	}
	defer w.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &carpPrinter{app: a, asJSON: asJSON, cancel: cancel, peers: make([]cluster.CARP, len(w.peers))}
	for i, peer := range w.peers {
		p.peers[i] = cluster.CARP{Node: peer.Name(), Error: "not asked yet"}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if len(w.peers) > 0 {
		wg.Go(func() { p.pollPeers(ctx, w) })
	}
	w.roles.Watch(ctx, func(seen cluster.CARP) {
		seen.Node, seen.Time = w.node.Settings.Node, time.Now().UTC()
		p.own(seen)
	})
	return p.end()
}

// carpPrinter prints what changed. Its methods are called from two goroutines.
type carpPrinter struct {
	app    *app
	asJSON bool
	cancel context.CancelFunc

	mu    sync.Mutex
	self  *cluster.CARP
	peers []cluster.CARP
	asked bool
	err   error
}

func (p *carpPrinter) own(seen cluster.CARP) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self = &seen
	p.print()
}

// pollPeers asks the peers at once, and then at each interval.
func (p *carpPrinter) pollPeers(ctx context.Context, w *wiring) {
	tick := time.NewTicker(carpPoll)
	defer tick.Stop()
	for {
		seen := w.peersCARP(ctx)
		if ctx.Err() != nil {
			return
		}
		p.theirs(seen)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *carpPrinter) theirs(seen []cluster.CARP) {
	p.mu.Lock()
	defer p.mu.Unlock()
	same := p.asked
	for i := range seen {
		then, now := p.peers[i], seen[i]
		then.Time, now.Time = time.Time{}, time.Time{}
		same = same && reflect.DeepEqual(then, now)
	}
	p.peers, p.asked = seen, true
	if !same && p.self != nil {
		p.print()
	}
}

// print tells everything as it is known now. Where nobody reads any more the watching ends.
func (p *carpPrinter) print() {
	nodes := []cluster.CARP{*p.self}
	if p.asked {
		nodes = append(nodes, p.peers...)
	}
	report := newCARPReport(nodes)
	var err error
	if p.asJSON {
		err = json.NewEncoder(p.app.stdout).Encode(report)
	} else {
		_, err = fmt.Fprintf(p.app.stdout, "%s\n", report.Time.Format(time.RFC3339Nano))
		printCARP(p.app.stdout, nodes)
		p.app.printFindings(report)
	}
	if err != nil {
		p.err = err
		p.cancel()
	}
}

func (p *carpPrinter) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
