package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// deadline ends a demo that hangs; it takes seconds once certsync is built.
const deadline = 10 * time.Minute

// errInterrupted is the cause of a demo ended by a signal.
var errInterrupted = errors.New("interrupted")

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the command's.
type options struct {
	binary, haproxy string
	rate            float64
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.binary, "certsync", "", "the certsync `binary`; default: built from the source in the current folder")
	flags.StringVar(&o.haproxy, "haproxy", "", "the HAProxy `binary`; default: the earliest found")
	flags.Float64Var(&o.rate, "rate", 100, "new TLS connections a second, over both nodes")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := untilSignal(context.Background())
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()

	s := &story{options: o, out: &narrator{w: stdout}}
	err := errors.Join(s.tell(ctx), s.close())
	switch {
	case err == nil:
		s.out.last(s.summary())
		return 0
	case errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(stderr, "demo: interrupted; everything it started is stopped")
		return 130
	}
	fmt.Fprintf(stderr, "demo: FAILED: %v\n", err)
	return 1
}

// untilSignal gives a context that SIGINT, SIGTERM or SIGHUP ends with errInterrupted as its cause. A second signal
// ends the process at once.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case <-signals:
			signal.Stop(signals)
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}
