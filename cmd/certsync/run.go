package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/config"
)

// The exit codes of every command; README.md tells them to users.
const (
	exitDone      = 0 // done, or nothing to do
	exitFailed    = 1
	exitUsage     = 2 // arguments or configuration
	exitNotMaster = 3
	exitPartly    = 4 // done on some nodes only, or on disk only
	exitPutOff    = 5 // a rate limit or a back-off
)

// app is one call of the program.
type app struct {
	// stdin and stdout can be closed because serve-peer's session is made of them.
	stdin      io.ReadCloser
	stdout     io.WriteCloser
	stderr     io.Writer
	configPath string
	// hangups tells of each SIGHUP.
	hangups chan os.Signal
	// started tells that the arguments were right: an error before it is one of usage.
	started bool
}

// run is the whole program but for the exit.
func run(args []string, stdin io.ReadCloser, stdout io.WriteCloser, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A reader of our output that goes away (`| head`) must not end an order, or HAProxy's transaction, in the middle.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, hangups: make(chan os.Signal, 1)}
	signal.Notify(a.hangups, syscall.SIGHUP)
	root := a.root()
	root.SetArgs(args)
	return a.exit(root.ExecuteContext(ctx))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "certsync",
		Short: "wildcard certificates on a pair of HAProxy hosts behind CARP",
		Long: `certsync obtains wildcard certificates by DNS-01 on the CARP MASTER, copies them to every node, puts them in
service with each node's running HAProxy, and proves by a TLS handshake that they are served.

Exit codes: 0 done or nothing to do; 1 failed; 2 usage or configuration; 3 not MASTER; 4 done on some nodes only, or on
disk only; 5 put off by a rate limit or a back-off.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRun:  func(cmd *cobra.Command, _ []string) { a.begin(cmd) },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Args:              cobra.NoArgs,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().StringVarP(&a.configPath, "config", "c", config.DefaultPath, "the configuration file")
	root.AddCommand(a.runCommand(), a.issueCommand(), a.renewCommand(), a.syncCommand(), a.statusCommand(), a.pruneCommand(), a.rollbackCommand(), a.revokeCommand(), a.bootstrapCommand(), a.carpCommand(), a.eventCommand(), a.checkCommand(), a.notifyCommand(), a.versionCommand(), a.servePeerCommand())
	return root
}

// begin is called when the arguments are right. A hangup ends every command but the daemon, which has another use for it.
func (a *app) begin(cmd *cobra.Command) {
	a.started = true
	if _, keeps := cmd.Annotations[keepsHangup]; keeps {
		return
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	cmd.SetContext(ctx)
	go func() {
		select {
		case <-a.hangups:
			cancel()
		case <-ctx.Done():
		}
	}()
}

// exitError gives an exit code of its own to an error; a nil err is an end without a message.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exit prints err as the design wants errors, and gives its code.
func (a *app) exit(err error) int {
	if err == nil {
		return exitDone
	}
	if coded, ok := errors.AsType[*exitError](err); ok {
		if coded.err != nil {
			a.printError(coded.err)
		}
		return coded.code
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.stderr, "certsync: error: interrupted")
		return exitFailed
	}
	a.printError(err)
	var putOff *cluster.PutOffError
	switch {
	case !a.started, errors.Is(err, cluster.ErrUsage):
		if !a.started {
			fmt.Fprintln(a.stderr, "certsync: hint: see certsync --help")
		}
		return exitUsage
	case errors.Is(err, cluster.ErrNotMaster):
		return exitNotMaster
	case errors.As(err, &putOff):
		return exitPutOff
	}
	return exitFailed
}

// printError prints an error a line; one that joins several prints each, with its own hint.
func (a *app) printError(err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only the outermost is a list of lines
		if all := many.Unwrap(); strings.Count(err.Error(), "\n") >= len(all)-1 && len(all) > 1 {
			for _, e := range all {
				a.printError(e)
			}
			return
		}
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		fmt.Fprintf(a.stderr, "certsync: error: %s\n", line)
	}
	if hint := cluster.HintOf(err); hint != "" {
		fmt.Fprintf(a.stderr, "certsync: hint: %s\n", hint)
	}
}
