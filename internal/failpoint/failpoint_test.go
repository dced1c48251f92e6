package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// build makes the program of testdata/hit.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	program := filepath.Join(t.TempDir(), "hit")
	args := append(append([]string{"build", "-o", program}, flags...), "./testdata/hit")
	if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return program
}

// run passes a, b, a, b, a and tells what was printed and how the process ended.
func run(t *testing.T, program, failpoint string) (printed string, killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "a", "b", "a", "b", "a")
	cmd.Env = []string{"CERTSYNC_FAILPOINT=" + failpoint}
	out, err := cmd.Output()
	printed = strings.Join(strings.Fields(string(out)), "")
	if err == nil {
		return printed, false
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: %v, want SIGKILL", failpoint, err)
	}
	return printed, true
}

func TestTheNamedPlaceKillsUnderTheBuildTag(t *testing.T) {
	program := build(t, "-tags", "failpoint")
	for failpoint, want := range map[string]string{"a": "", "b": "a", "a#1": "", "a#2": "ab", "b#2": "aba", "a#3": "abab"} {
		if printed, killed := run(t, program, failpoint); !killed || printed != want {
			t.Errorf("%s: printed %q, killed %t; want %q and killed", failpoint, printed, killed, want)
		}
	}
	for _, failpoint := range []string{"", "c", "a#4", "a#0", "a#", "#", "A", "a#2x", "aa"} {
		if printed, killed := run(t, program, failpoint); killed || printed != "ababa" {
			t.Errorf("%q: printed %q, killed %t; want all", failpoint, printed, killed)
		}
	}
}

func TestWithoutTheBuildTagNothingKills(t *testing.T) {
	program := build(t)
	if printed, killed := run(t, program, "a"); killed || printed != "ababa" {
		t.Errorf("printed %q, killed %t", printed, killed)
	}
}
