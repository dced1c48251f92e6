package carp

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// helper writes a program that stands for doas, and gives what is to run it.
func helper(t *testing.T, script string) *doer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "doas")
	ok(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700)) //nolint:gosec // it is run
	return &doer{helpers: [][]string{{filepath.Join(t.TempDir(), "none"), "-n"}, {path, "-n"}}, timeout: 10 * time.Second}
}

func TestTheCommandIsOneOfTwoToTheLetter(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("HETZNER_API_TOKEN", "secret")
	d := helper(t, `{ printf '%s\n' "$*"; pwd; env; } >>`+out+`; echo "net.inet.carp.demotion: 0 -> 240"`)
	ok(t, d.write(t.Context(), DemotionStep))
	ok(t, d.write(t.Context(), -DemotionStep))
	data, err := os.ReadFile(out)
	ok(t, err)
	text := string(data)
	for _, want := range []string{"-n /sbin/sysctl net.inet.carp.demotion=240\n/\n", "-n /sbin/sysctl net.inet.carp.demotion=-240\n/\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %s", want, text)
		}
	}
	if strings.Contains(text, "secret") {
		t.Errorf("the environment: %s", text)
	}
}

func TestACommandThatDoesNotSayWhatItDidIsAnError(t *testing.T) {
	for script, want := range map[string]string{
		`echo "doas: Operation not permitted" >&2; exit 1`: "Operation not permitted",
		`exit 0`: "it said \"\" and not what it changed",
		`echo "sysctl: unknown oid 'net.inet.carp.demotion'" >&2; exit 1`:                  "unknown oid",
		`echo "net.inet.carp.demotion: 0"; echo "sysctl: Operation not permitted"; exit 1`: "exit status 1",
	} {
		if err := helper(t, script).write(t.Context(), DemotionStep); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	refused := helper(t, "exit 1").write(t.Context(), DemotionStep)
	if !strings.Contains(cluster.HintOf(refused), "bootstrap --apply") {
		t.Errorf("hint %q", cluster.HintOf(refused))
	}
	none := (&doer{}).write(t.Context(), DemotionStep)
	if none == nil || !strings.Contains(cluster.HintOf(none), "pkg install doas") {
		t.Errorf("%v, hint %q", none, cluster.HintOf(none))
	}
}

// A command that is root's cannot be killed: it may do its work after it was given up.
func TestWhileACommandGoesOnNoOtherIsBegun(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	d := helper(t, `echo run >>`+runs+`; echo "net.inet.carp.demotion: 0 -> 240"`)
	d.last = make(chan struct{}) // one that goes on
	if err := d.write(t.Context(), DemotionStep); !errors.Is(err, errGoesOn) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(runs); err == nil {
		t.Error("another was begun")
	}
	close(d.last)
	ok(t, d.write(t.Context(), DemotionStep))
}

func TestACommandThatHangsIsGivenUp(t *testing.T) {
	d := helper(t, `exec sleep 60`)
	d.timeout = 200 * time.Millisecond
	err := d.write(t.Context(), DemotionStep)
	if err == nil {
		t.Fatal("no error")
	}
	<-d.last // it was killed
}
