package store

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

	"certsync/internal/cluster"
)

// childProgram builds testdata/child once for all tests; "" and the reason where it cannot be.
var childProgram = sync.OnceValues(func() (string, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(programs, 0o755); err != nil { // a test runs it as another user
		return "", err
	}
	program := filepath.Join(programs, "child")
	out, err := exec.Command(tool, "build", "-tags", "failpoint", "-o", program, "./testdata/child").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build ./testdata/child: %w\n%s", err, out)
	}
	return program, nil
})

// programs is the folder of what is built, removed at the end.
var programs string

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "certsync-store-*"); err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(programs) }()
	return m.Run()
}

// child is a command of another process on dir, killed at failpoint ("" for none).
func child(t *testing.T, failpoint, dir string, args ...string) *exec.Cmd {
	t.Helper()
	program, err := childProgram()
	if errors.Is(err, exec.ErrNotFound) {
		skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{dir}, args...)...)
	cmd.Env = append(os.Environ(), "CERTSYNC_FAILPOINT="+failpoint)
	cmd.Stderr = os.Stderr
	return cmd
}

// killed runs the command and tells whether SIGKILL ended it; any other failure fails the test.
func killed(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	err := cmd.Run()
	if err == nil {
		return false
	}
	if !diedOfKill(err) {
		t.Fatalf("%v: %v", cmd.Args[2:], err)
	}
	return true
}

func diedOfKill(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// bundleOnDisk writes the bundle for a child to read.
func bundleOnDisk(t *testing.T, k cluster.Kept) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(path, k.Bundle.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startActor starts a child that holds the actor lock, and gives the pid of the process that the child started.
func startActor(t *testing.T, dir string) (cmd *exec.Cmd, grandchild int) {
	t.Helper()
	cmd = child(t, "", dir, "actor")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "locked ") {
		t.Fatalf("the child says %q (%v)", lines.Text(), lines.Err())
	}
	if _, err := fmt.Sscanf(lines.Text(), "locked %d", &grandchild); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if p, err := os.FindProcess(grandchild); err == nil {
			_ = p.Kill()
		}
	})
	return cmd, grandchild
}
