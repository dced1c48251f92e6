package sysfile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// programs is the folder of what is built, removed at the end.
var programs string

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "certsync-sysfile-*"); err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(programs) }()
	return m.Run()
}

// childProgram builds testdata/child once for all tests.
var childProgram = sync.OnceValues(func() (string, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	program := filepath.Join(programs, "child")
	out, err := exec.Command(tool, "build", "-tags", "failpoint", "-o", program, "./testdata/child").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build ./testdata/child: %w\n%s", err, out)
	}
	return program, nil
})

// child is a write in another process, killed at failpoint ("" for none).
func child(t *testing.T, failpoint string, args ...string) *exec.Cmd {
	t.Helper()
	program, err := childProgram()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "CERTSYNC_FAILPOINT="+failpoint)
	cmd.Stderr = os.Stderr
	return cmd
}

func diedOfKill(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func TestAWriteKilledAnywhereLeavesTheOldOrTheNew(t *testing.T) {
	for _, c := range []struct {
		point, want string
		// backup: it is there after the kill already.
		backup bool
	}{
		{"sysfile.temp", "old\n", false}, {"sysfile.written", "old\n", false}, // of the backup
		{"sysfile.backup", "old\n", false},
		{"sysfile.temp#2", "old\n", true}, {"sysfile.written#2", "old\n", true}, {"sysfile.rename", "old\n", true},
		{"sysfile.renamed", "new\n", true},
	} {
		t.Run(c.point, func(t *testing.T) {
			tree := newTree(t)
			tree.file("/etc/rc.conf", "old\n", 0o640)
			if err := child(t, c.point, tree.Root, "/etc/rc.conf", "new\n").Run(); !diedOfKill(err) {
				t.Fatalf("the child passed the failpoint alive: %v", err)
			}
			tree.wantFile("/etc/rc.conf", c.want, 0o640)
			if c.backup {
				tree.wantFile("/etc/rc.conf.certsync-orig", "old\n", 0o640)
			} else {
				tree.wantNothing("/etc/rc.conf.certsync-orig")
			}
			if err := child(t, "", tree.Root, "/etc/rc.conf", "newer\n").Run(); err != nil {
				t.Fatal(err)
			}
			tree.wantFile("/etc/rc.conf", "newer\n", 0o640)
			tree.wantFile("/etc/rc.conf.certsync-orig", "old\n", 0o640)
			tree.wantNames("/etc", "rc.conf", "rc.conf.certsync-orig")
		})
	}
}

func TestAWriterKilledAtAnyMomentLeavesAWholeFile(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "old\n", 0o644)
	for round := range 10 {
		cmd := child(t, "", tree.Root, "/etc/rc.conf", "-")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 2+round && lines.Scan(); n++ {
		}
		_ = cmd.Process.Kill() // somewhere in the write that it announced
		for lines.Scan() {
		}
		if err := cmd.Wait(); !diedOfKill(err) {
			t.Fatal(err)
		}
		text := tree.read("/etc/rc.conf")
		first, _, _ := strings.Cut(text, "\n")
		if first += "\n"; text != strings.Repeat(first, len(text)/len(first)) || len(text) < 1<<16-len(first) {
			t.Fatalf("the file has %d bytes and begins with %q", len(text), first)
		}
	}
	if _, err := tree.Write("/etc/rc.conf", []byte("new\n"), How{}); err != nil {
		t.Fatal(err)
	}
	tree.wantNames("/etc", "rc.conf", "rc.conf.certsync-orig")
	tree.wantFile("/etc/rc.conf.certsync-orig", "old\n", 0o644)
}
