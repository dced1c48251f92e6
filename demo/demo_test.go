package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/lab"
)

// needHAProxy skips where there is none; under CI=true that is a failure.
func needHAProxy(t *testing.T) {
	t.Helper()
	if _, err := lab.FindHAProxy(t.Context(), ""); errors.Is(err, lab.ErrNoHAProxy) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v (under CI=true this is a failure; scripts/deps.sh installs it)", err)
		}
		t.Skip(err)
	}
}

// emptyTemp gives the demo a temporary folder of its own, and fails the test where it leaves something there.
func emptyTemp(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "demo-") // short enough for the lab to use it
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("the demo left %s", e.Name())
		}
		_ = os.RemoveAll(dir)
	})
}

// onText calls a function once, when what was written holds a text.
type onText struct {
	bytes.Buffer
	text string
	then func()
}

func (o *onText) Write(p []byte) (int, error) {
	n, err := o.Buffer.Write(p)
	if o.then != nil && strings.Contains(o.String(), o.text) {
		o.then()
		o.then = nil
	}
	return n, err
}

var lastLine = regexp.MustCompile(`\ndemo: [1-9]\d* handshakes, 0 failed, 2 orders, [1-9]\d* requests on open connections, 0 connections broken\n$`)

func TestDemoEndsWellAndLeavesNothing(t *testing.T) {
	needHAProxy(t)
	binary, err := lab.Build(t.Context(), t.TempDir(), "fewproviders")
	if err != nil {
		t.Fatal(err)
	}
	emptyTemp(t)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-certsync", binary}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, stderr.String(), stdout.String())
	}
	if !lastLine.MatchString(stdout.String()) {
		t.Errorf("it does not end with its summary:\n%s", stdout.String())
	}
	if stderr.Len() > 0 {
		t.Errorf("standard error has %q", stderr.String())
	}
}

func TestDemoFailsWithTheStepThatFails(t *testing.T) {
	needHAProxy(t)
	emptyTemp(t)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-certsync", "/bin/false"}, &stdout, &stderr); code != 1 {
		t.Errorf("exit code %d with a certsync that fails", code)
	}
	if got := stderr.String(); !strings.HasPrefix(got, "demo: FAILED: step 3 (The MASTER renews): ") || !strings.Contains(got, "exit code 1, want 0") {
		t.Errorf("it does not say what failed and why: %q", got)
	}
	if lastLine.MatchString(stdout.String()) {
		t.Error("it ends with the summary of success")
	}
}

func TestDemoCleansUpWhenInterrupted(t *testing.T) {
	needHAProxy(t)
	hangs := filepath.Join(t.TempDir(), "certsync")
	if err := os.WriteFile(hangs, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil { //nolint:gosec // it is a script
		t.Fatal(err)
	}
	emptyTemp(t)
	stdout := &onText{text: "certsync issue", then: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
	var stderr bytes.Buffer
	if code := run([]string{"-certsync", hangs}, stdout, &stderr); code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, stderr.String())
	}
	if strings.Contains(stdout.String(), "\ndemo: ") {
		t.Error("it ends with the summary of success")
	}
}

func TestDemoRefusesWrongArguments(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-nonsense"}, &stdout, &stderr); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
}

func TestNarratorWrapsAndSetsApart(t *testing.T) {
	var out bytes.Buffer
	n := &narrator{w: &out}
	n.begin("Title", strings.Repeat("word ", 40))
	n.quote([]byte("said\n\n  by a program\n"))
	for line := range strings.Lines(out.String()) {
		if len(line) > 105 {
			t.Errorf("a line of %d characters: %q", len(line), line)
		}
	}
	if got := out.String(); !strings.Contains(got, "\n1. Title\n") || !strings.Contains(got, "   | said\n   |   by a program\n") {
		t.Errorf("got %q", got)
	}
}
