package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/lab"
)

// What is measured with many certificates.
const (
	// fleetLoad is the rate of new connections while certificates change, a second.
	fleetLoad = 200
	// fleetKept is the number of connections that stay open all the while.
	fleetKept = 200
)

// traffic counts what goes over the connections to HAProxy.
type traffic struct{ runtime, tls, bytes atomic.Int64 }

// dial is a haproxy.DialFunc that counts.
func (t *traffic) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if network != "unix" {
		t.tls.Add(1)
		return conn, nil
	}
	t.runtime.Add(1)
	return &counted{conn, t}, nil
}

type counted struct {
	net.Conn
	t *traffic
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.t.bytes.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.t.bytes.Add(int64(n))
	return n, err
}

// passFigures are those of one pass.
type passFigures struct {
	took                     time.Duration
	commands, bytes, shaken  int64
	heap                     uint64
	outcome                  cluster.Outcome
	certificatesInThisReport int
}

// fleetBench measures a node with many certificates.
func fleetBench(ctx context.Context, o options, out io.Writer) error {
	if err := passes(ctx, o, out); err != nil {
		return fmt.Errorf("passes with nothing to do: %w", err)
	}
	for _, changed := range []int{o.changed, 1} {
		if err := changes(ctx, o, out, changed); err != nil {
			return fmt.Errorf("%d of %d changed: %w", changed, o.changed, err)
		}
	}
	return nil
}

// passes compares a pass that has seen everything before with the first one, which looks at everything.
func passes(ctx context.Context, o options, out io.Writer) (err error) {
	var t traffic
	f, err := lab.NewFleet(ctx, lab.FleetOptions{Size: o.fleet, HAProxy: o.haproxy, Adapt: func(c *haproxy.Config) { c.Dial = t.dial }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	first, err := onePass(ctx, f, &t)
	if err != nil {
		return err
	}
	var took []time.Duration
	var bytes, heaps []float64
	var last passFigures
	for range o.rounds {
		if last, err = onePass(ctx, f, &t); err != nil {
			return err
		}
		took, bytes, heaps = append(took, last.took), append(bytes, float64(last.bytes)), append(heaps, float64(last.heap))
	}
	fmt.Fprintf(out, "\n%d certificates, passes with nothing to do: %d after the first, medians\n", o.fleet, o.rounds)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\ttime\tasked of HAProxy\tcommands\thandshakes\theap\n")
	fmt.Fprintf(w, "first pass\t%s\t%d KiB\t%d\t%d\t%d MiB\n", first.took.Round(time.Millisecond), first.bytes>>10, first.commands, first.shaken, first.heap>>20)
	fmt.Fprintf(w, "the others\t%s\t%.0f KiB\t%d\t%d\t%.0f MiB\n", median(took).Round(time.Millisecond), median(bytes)/1024, last.commands, last.shaken, median(heaps)/(1<<20))
	fmt.Fprintf(w, "ratio\t%.4f\t%.4f\t\t\t%.2f\n", float64(median(took))/float64(first.took), median(bytes)/float64(first.bytes), median(heaps)/float64(first.heap))
	return w.Flush()
}

func onePass(ctx context.Context, f *lab.Fleet, t *traffic) (passFigures, error) {
	t.runtime.Store(0)
	t.tls.Store(0)
	t.bytes.Store(0)
	start := time.Now()
	report, err := f.Pass(ctx)
	p := passFigures{took: time.Since(start), commands: t.runtime.Load(), bytes: t.bytes.Load(), shaken: t.tls.Load(), outcome: report.Outcome,
		certificatesInThisReport: len(report.Certificates)}
	if err != nil {
		return p, err
	}
	if p.outcome != cluster.Unchanged && p.outcome != cluster.Done || p.certificatesInThisReport != len(f.Names) {
		return p, fmt.Errorf("the pass over %d certificates ended as %q", p.certificatesInThisReport, p.outcome)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p.heap = m.HeapAlloc
	return p, nil
}

// way is a way to bring new generations in service.
type way struct {
	name string
	do   func(ctx context.Context, f *lab.Fleet, names []string) error
}

// ways are certsync's, and what one does without it: write the files, reload.
func ways() []way {
	return []way{
		{"at run time", func(ctx context.Context, f *lab.Fleet, _ []string) error {
			report, err := f.Pass(ctx)
			if err == nil && report.Outcome != cluster.Done && report.Outcome != cluster.Unchanged {
				err = fmt.Errorf("the pass ended as %q", report.Outcome)
			}
			return err
		}},
		{"one reload", func(ctx context.Context, f *lab.Fleet, names []string) error {
			for _, name := range names {
				if err := f.Write(name); err != nil {
					return err
				}
			}
			return f.Reload(ctx)
		}},
	}
}

// wayFigures are those of one way in one round.
type wayFigures struct {
	took   time.Duration
	lost   int
	grown  float64 // KiB
	broken int
}

// changes compares the ways, in turn in each round, each on a fleet of its own.
func changes(ctx context.Context, o options, out io.Writer, changed int) (err error) {
	all := ways()
	figures := make([][]wayFigures, len(all))
	for range o.rounds {
		for i, w := range all {
			one, err := change(ctx, o, w, changed)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			figures[i] = append(figures[i], one)
		}
	}
	fmt.Fprintf(out, "\n%d of %d certificates changed, under %d new connections a second and with %d kept open: %d rounds, medians\n",
		changed, o.changed, fleetLoad, fleetKept, o.rounds)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\ttime\ttime / reload\tmemory kept\tmemory / reload\thandshakes lost\tkept connections broken\n")
	for i, one := range all {
		var took []time.Duration
		var ratios, grown, memory []float64
		lost, broken := 0, 0
		for round, f := range figures[i] {
			reload := figures[len(all)-1][round]
			took, grown = append(took, f.took), append(grown, f.grown)
			ratios = append(ratios, float64(f.took)/float64(reload.took))
			memory = append(memory, f.grown/cmp.Or(reload.grown, 1))
			lost, broken = lost+f.lost, broken+f.broken
		}
		fmt.Fprintf(w, "%s\t%s\t%.4f\t%.1f MiB\t%.3f\t%d\t%d\n", one.name, median(took).Round(100*time.Microsecond), median(ratios), median(grown)/1024, median(memory), lost, broken)
	}
	return w.Flush()
}

func change(ctx context.Context, o options, w way, changed int) (out wayFigures, err error) {
	f, err := lab.NewFleet(ctx, lab.FleetOptions{Size: o.changed, HAProxy: o.haproxy})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Pass(ctx); err != nil { // certsync has seen them all, as a daemon has
		return out, err
	}
	names := f.Names[:changed]
	load := lab.StartLoad(ctx, lab.LoadOptions{Addresses: []string{f.Address}, ServerName: names[0], Rate: fleetLoad, KeepAlive: fleetKept, Pause: time.Second})
	defer load.Stop()
	if err := settled(ctx, load); err != nil {
		return out, err
	}
	before, err := f.Memory()
	if err != nil {
		return out, err
	}
	if err := f.Renew(ctx, names...); err != nil {
		return out, err
	}
	start := time.Now()
	if err := w.do(ctx, f, names); err != nil {
		return out, err
	}
	out.took = time.Since(start)
	after, err := f.Memory()
	if err != nil {
		return out, err
	}
	out.grown = float64(after - before)
	want := f.Newest[names[0]].Fingerprint
	err = await(ctx, func() bool { return shows(load.Stats().Seen[f.Address], want) })
	if err != nil {
		return out, fmt.Errorf("no client was shown the new certificate of %s: %w", names[0], err)
	}
	stats := load.Stop()
	out.lost, out.broken = stats.Failed, stats.Broken
	return out, nil
}

func shows(seen []lab.Leaf, want cert.Fingerprint) bool {
	for _, leaf := range seen {
		if leaf.Fingerprint == want {
			return true
		}
	}
	return false
}

// settled waits until the kept connections are open and have been used.
func settled(ctx context.Context, load *lab.Load) error {
	if err := await(ctx, func() bool { return load.Stats().Requests >= fleetKept }); err != nil {
		return fmt.Errorf("the load did not begin: %w", err)
	}
	return nil
}

// await waits for a condition, for a minute at most.
func await(ctx context.Context, met func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !met() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}
