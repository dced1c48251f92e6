package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"certsync/internal/lab"
)

// The certificate that every contender gets.
const (
	apex     = "example.org"
	wildcard = "*.example.org"
	asked    = "www.example.org"
)

// settle bounds how long the nodes may take to serve what a contender said is done.
const settle = 30 * time.Second

// contender is a way to get a certificate and have both nodes serve it.
type contender interface {
	name() string
	// prepare makes what is there once and for all: an account, a configuration.
	prepare(ctx context.Context) error
	// renew gets a new certificate and puts it in service on both nodes.
	renew(ctx context.Context) error
	lab() *lab.Lab
	close() error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

type options struct {
	rounds                  int
	certsync, lego, haproxy string
	verbose                 bool
	fleet, changed          int
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 10, "how often each contender renews")
	flags.StringVar(&o.certsync, "certsync", "", "the certsync `binary`; default: built from the source in the current folder")
	flags.StringVar(&o.lego, "lego", "", "the lego `binary`; default: lego in the PATH, else it is left out")
	flags.StringVar(&o.haproxy, "haproxy", "", "the HAProxy `binary`; default: the earliest found")
	flags.IntVar(&o.fleet, "fleet", 0, "instead, measure a node with this `number` of certificates")
	flags.IntVar(&o.changed, "changed", 1000, "with -fleet: how many certificates the HAProxy has of which all, or one, change")
	flags.BoolVar(&o.verbose, "v", false, "print every measurement")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.fleet > 0 {
		return fleetBench(ctx, o, out)
	}
	if os.Geteuid() != 0 {
		return errors.New("the benchmark needs root: sshd and uacme's mount namespace do")
	}
	contenders, err := start(ctx, o, out)
	defer func() {
		for _, c := range contenders {
			err = errors.Join(err, c.close())
		}
	}()
	if err != nil {
		return err
	}
	took, err := measure(ctx, o, contenders, out)
	if err != nil {
		return err
	}
	print(out, contenders, took)
	return nil
}

// start makes the contenders that this machine has the programs for.
func start(ctx context.Context, o options, out io.Writer) ([]contender, error) {
	var contenders []contender
	for _, c := range []struct {
		needs []string
		make  func(context.Context, options) (contender, error)
	}{
		{[]string{"/usr/sbin/sshd"}, newCertsync},
		{[]string{"/usr/sbin/sshd", "scp", "unshare", "uacme", "nsupdate"}, newUacme},
		{[]string{"/usr/sbin/sshd", "scp", cmp.Or(o.lego, "lego")}, newLego},
	} {
		if missing := lacking(c.needs); missing != "" {
			fmt.Fprintf(out, "left out, for lack of %s: one that needs %v\n", missing, c.needs)
			continue
		}
		made, err := c.make(ctx, o)
		if err != nil {
			return contenders, err
		}
		contenders = append(contenders, made)
		if err := made.prepare(ctx); err != nil {
			return contenders, fmt.Errorf("%s: %w", made.name(), err)
		}
	}
	return contenders, nil
}

// lacking is the first of the programs that is not here.
func lacking(programs []string) string {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return p
		}
	}
	return ""
}

// measure lets the contenders take turns; who begins a round changes. A first round, which is not counted, warms the
// caches and makes certsync's account.
func measure(ctx context.Context, o options, contenders []contender, out io.Writer) ([][]time.Duration, error) {
	took := make([][]time.Duration, len(contenders))
	for round := range o.rounds + 1 {
		for i := range contenders {
			at := (i + round) % len(contenders)
			d, err := once(ctx, contenders[at])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", contenders[at].name(), err)
			}
			if round == 0 {
				continue
			}
			took[at] = append(took[at], d)
			if o.verbose {
				fmt.Fprintf(out, "round %d: %s: %s\n", round, contenders[at].name(), d.Round(time.Millisecond))
			}
		}
	}
	return took, nil
}

// once is the time from a contender's start until both nodes show the new leaf.
func once(ctx context.Context, c contender) (time.Duration, error) {
	l := c.lab()
	issued := len(l.CA.Leaves())
	begun := time.Now()
	if err := c.renew(ctx); err != nil {
		return 0, err
	}
	leaves := l.CA.Leaves()
	if len(leaves) != issued+1 {
		return 0, fmt.Errorf("the CA issued %d certificates, want 1", len(leaves)-issued)
	}
	want := lab.FingerprintOf(leaves[issued])
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, n := range l.Nodes {
		for {
			have, err := n.Handshake(ctx, asked)
			if err == nil && have == want {
				break
			}
			if ctx.Err() != nil {
				return 0, fmt.Errorf("%s serves %s, want %s: %w", n.Name, have.Short(), want.Short(), errors.Join(err, ctx.Err()))
			}
			time.Sleep(time.Millisecond)
		}
	}
	return time.Since(begun), nil
}

// print shows the medians, and how many times certsync's each is in the median of the paired ratios.
func print(out io.Writer, contenders []contender, took [][]time.Duration) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nONE CERTIFICATE, FROM START TO SERVED ON BOTH NODES\tMEDIAN\tMIN\tMAX\tPAIRED RATIO")
	for i, c := range contenders {
		var ratios []float64
		for round, d := range took[i] {
			ratios = append(ratios, float64(d)/float64(took[0][round]))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f\n", c.name(), median(took[i]).Round(time.Millisecond), slices.Min(took[i]).Round(time.Millisecond),
			slices.Max(took[i]).Round(time.Millisecond), median(ratios))
	}
	_ = w.Flush()
}

// median is the middle of the values, the lower one where there are two.
func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}
