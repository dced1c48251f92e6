package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gone tells whether no process of the group is left.
func gone(leader int) bool { return errors.Is(syscall.Kill(-leader, 0), syscall.ESRCH) }

func TestRunCommandTellsHowACommandEnded(t *testing.T) {
	r, err := runCommand(t.Context(), "/bin/sh", []string{"-c", "echo out; echo err >&2; exit 4"}, baseEnv(), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 4 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
		t.Errorf("got %+v", r)
	}
	if err := r.Err(4); err != nil {
		t.Errorf("4 was wanted: %v", err)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "exit code 4") || !strings.Contains(err.Error(), "err\n") {
		t.Errorf("want the code and the errors in: %v", err)
	}
	r, err = runCommand(t.Context(), "/bin/sh", []string{"-c", "kill -9 $$"}, baseEnv(), "")
	if err != nil || r.Signal != syscall.SIGKILL || r.Err(0, -1) == nil {
		t.Errorf("killed by itself: %+v, %v", r, err)
	}
	if _, err = runCommand(t.Context(), filepath.Join(t.TempDir(), "none"), nil, baseEnv(), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
}

func TestRunCommandLeavesNoProcessWhenItsContextEnds(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if data, _ := os.ReadFile(pidFile); strings.HasSuffix(string(data), "\n") {
				break
			}
		}
		cancel()
	}()
	// The grandchild ignores SIGTERM and holds the output open.
	script := fmt.Sprintf("(trap '' TERM; sleep 60) & echo $$ > %s; wait", pidFile)
	if _, err := runCommand(ctx, "/bin/sh", []string{"-c", script}, baseEnv(), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("want the context's end, got %v", err)
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the group to be gone", func() bool { return gone(pid) })
}

func TestStopEndsAProcessThatIgnoresSIGTERMWithItsChildren(t *testing.T) {
	p, err := startProcess("/bin/sh", []string{"-c", "echo started; sleep 60 & sleep 60"}, baseEnv(), nil)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the output", func() bool { return strings.Contains(p.output.String(), "started") })
	if !p.alive() {
		t.Fatal("it ended by itself")
	}
	p.kill()
	if p.alive() {
		t.Error("alive after kill")
	}
	await(t, "the group to be gone", func() bool { return gone(p.pid()) })
	p.stop() // a second end is no matter
}

func TestTailKeepsTheEnd(t *testing.T) {
	var l tail
	for i := range 20000 {
		_, _ = fmt.Fprintf(&l, "line %d\n", i)
	}
	if s := l.String(); len(s) != tailSize || !strings.HasSuffix(s, "line 19999\n") {
		t.Errorf("%d bytes kept, ending in %q", len(s), s[len(s)-20:])
	}
}

func TestChildrenGetNoVariableOfTheShellByChance(t *testing.T) {
	t.Setenv("CERTSYNC_FAILPOINT", "x")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	for _, e := range baseEnv() {
		if strings.HasPrefix(e, "CERTSYNC_") || strings.HasPrefix(e, "HTTPS_PROXY") {
			t.Errorf("the environment has %s", e)
		}
	}
}
