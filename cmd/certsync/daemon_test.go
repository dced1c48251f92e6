package main

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// storyTime is how long a story waits for what must come.
const storyTime = 30 * time.Second

// background are the processes that a story started, by name.
type background map[string]*exec.Cmd

// startBackground starts a program whose output goes to the file NAME.log: begin NAME COMMAND [ARG...].
func startBackground(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: begin NAME COMMAND [ARG...]")
	}
	log, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), log, log
	ts.Check(cmd.Start())
	ts.Value(backgroundKey{}).(background)[args[0]] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill() // no error that matters: it may have ended
		_ = cmd.Wait()
	})
}

type backgroundKey struct{}

func process(ts *testscript.TestScript, name string) *exec.Cmd {
	cmd, ok := ts.Value(backgroundKey{}).(background)[name]
	if !ok {
		ts.Fatalf("%s was not begun", name)
	}
	return cmd
}

// sendSignal sends one: signal HUP|TERM|KILL|STOP|CONT NAME.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if neg || len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal HUP|TERM|KILL|STOP|CONT NAME")
	}
	ts.Check(process(ts, args[1]).Process.Signal(signals[args[0]]))
}

// awaitEnd waits until a program has ended, and holds its exit code: ends CODE NAME.
func awaitEnd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ends CODE NAME")
	}
	cmd, ended := process(ts, args[1]), make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else {
			ts.Check(err)
		}
		if strconv.Itoa(code) != args[0] {
			ts.Fatalf("%s exited %d, want %s\n%s", args[1], code, args[0], ts.ReadFile(args[1]+".log"))
		}
	case <-time.After(storyTime):
		_ = cmd.Process.Kill()
		<-ended
		ts.Fatalf("%s does not end\n%s", args[1], ts.ReadFile(args[1]+".log"))
	}
}

// await waits until a file is there and, where an expression is given, matches it: await FILE [REGEXP].
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await FILE [REGEXP]")
	}
	want := regexp.MustCompile("")
	if len(args) == 2 {
		want = regexp.MustCompile("(?m)" + args[1])
	}
	for deadline := time.Now().Add(storyTime); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if _, lost := os.Lstat(ts.MkAbs(args[0])); lost == nil && (len(args) == 1 || err == nil && want.Match(text)) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come to match %q:\n%s", args[0], args[1:], text)
		}
	}
}
