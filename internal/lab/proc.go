package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to end after SIGTERM before its group is killed.
const stopGrace = 5 * time.Second

// tailSize is how much of a process's output is kept for messages, in bytes.
const tailSize = 64 << 10

// tail keeps the last tailSize bytes written to it. It is safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = slices.Delete(t.buf, 0, over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// process is a child that runs until it is stopped, the leader of a process group of its own, so that a Ctrl-C at the
// terminal does not reach it behind our back and its own children end with it.
type process struct {
	cmd    *exec.Cmd
	output *tail
	done   chan struct{}
	err    error // from Wait; read after done
}

// startProcess starts name with env and nothing on standard input. Its standard error goes to output, and its standard
// output to stdout, or to output too where that is nil.
func startProcess(name string, args, env []string, stdout io.Writer) (*process, error) {
	p := &process{cmd: exec.Command(name, args...), output: &tail{}, done: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = stdout, p.output
	if stdout == nil {
		p.cmd.Stdout = p.output
	}
	p.cmd.SysProcAttr = groupAttr()
	p.cmd.WaitDelay = stopGrace
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// pid is the leader's process ID.
func (p *process) pid() int { return p.cmd.Process.Pid }

// alive tells whether the leader has not been reaped.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop ends the group with SIGTERM, and with SIGKILL what is left of it after stopGrace.
func (p *process) stop() { p.end(syscall.SIGTERM, stopGrace) }

// kill ends the group at once, as a crash would.
func (p *process) kill() { p.end(syscall.SIGKILL, 0) }

func (p *process) end(sig syscall.Signal, grace time.Duration) {
	if p.alive() {
		signalGroup(p.pid(), sig)
		select {
		case <-p.done:
		case <-time.After(grace):
		}
	}
	// The leader may have left children behind, whether it obeyed or not.
	signalGroup(p.pid(), syscall.SIGKILL)
	<-p.done
}

// signalGroup signals every process of the group that leader leads or led; a group without members is no matter.
func signalGroup(leader int, sig syscall.Signal) {
	if leader > 1 {
		_ = syscall.Kill(-leader, sig)
	}
}

// Result is how a command ended.
type Result struct {
	// Args are the command's, without the program's name.
	Args []string
	// Code is the exit code, or -1 where a signal ended it.
	Code int
	// Signal is what ended it, or 0.
	Signal syscall.Signal
	Stdout []byte
	Stderr []byte
	// Took is the time from the start to the end.
	Took time.Duration
}

// Err is nil where the command ended with one of codes, or with 0 where none is given; else it quotes its errors.
func (r Result) Err(codes ...int) error {
	if len(codes) == 0 {
		codes = []int{0}
	}
	if r.Signal == 0 && slices.Contains(codes, r.Code) {
		return nil
	}
	ended := fmt.Sprintf("exit code %d", r.Code)
	if r.Signal != 0 {
		ended = r.Signal.String()
	}
	return fmt.Errorf("%s: %s, want exit code %s\n%s%s", strings.Join(r.Args, " "), ended, joinInts(codes), r.Stderr, r.Stdout)
}

func joinInts(ns []int) string {
	var out []string
	for _, n := range ns {
		out = append(out, fmt.Sprint(n))
	}
	return strings.Join(out, " or ")
}

// runCommand runs name to its end and collects what it says. When ctx ends, the group gets SIGTERM, so that the command
// can clean up, and SIGKILL stopGrace later. The error is non-nil only where the command could not be run or ctx ended;
// an exit code is in the Result.
func runCommand(ctx context.Context, name string, args, env []string, dir string) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = env, dir
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = groupAttr()
	cmd.Cancel = func() error {
		signalGroup(cmd.Process.Pid, syscall.SIGTERM)
		return nil
	}
	cmd.WaitDelay = stopGrace
	start := time.Now()
	err := cmd.Run()
	if cmd.Process != nil {
		signalGroup(cmd.Process.Pid, syscall.SIGKILL)
	}
	r := resultOf(cmd, args, stdout.Bytes(), stderr.Bytes(), time.Since(start))
	switch _, exited := errors.AsType[*exec.ExitError](err); {
	case ctx.Err() != nil:
		return r, fmt.Errorf("run %s %s: %w", name, strings.Join(args, " "), context.Cause(ctx))
	case err != nil && !exited:
		return r, fmt.Errorf("run %s %s: %w", name, strings.Join(args, " "), err)
	}
	return r, nil
}

// resultOf is the result of a command that was waited for.
func resultOf(cmd *exec.Cmd, args []string, stdout, stderr []byte, took time.Duration) Result {
	r := Result{Args: args, Stdout: stdout, Stderr: stderr, Took: took, Code: -1}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			r.Signal = status.Signal()
		}
	}
	return r
}

// baseEnv is the environment that the lab's children get: what a program needs to run, and nothing that a developer's
// shell may hold by chance (a proxy, a CERTSYNC_ or provider variable).
func baseEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "USER", "XDG_CACHE_HOME", "GOCACHE", "GOMODCACHE", "GOPATH", "GOFLAGS", "GOPROXY",
		"GOTOOLCHAIN", "GOROOT", "GOCOVERDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
