//go:build failpoint

package haproxy_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

func TestContractAKillInAReloadMakesNoStorm(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, step := range []string{"haproxy.reload.temp", "haproxy.reload.synced", "haproxy.reload_recorded", "haproxy.reloaded", "haproxy.reload_recorded#2"} {
			if b.version != "" && os.Getenv("CERTSYNC_TEST_FULL") == "" && step != "haproxy.reloaded" {
				continue
			}
			t.Run(step, func(t *testing.T) { killedInReload(t, b, step) })
		}
	})
}

func killedInReload(t *testing.T, b backend, step string) {
	s, configure := newFile(t, b, (*site).startMaster)
	tgt := target(generation(t), "example")
	tgt.Path = s.path("bundles/example.pem")
	s.put("next.pem", tgt.Bundle.PEM())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), "CERTSYNC_TEST_CRASH="+s.dir, "CERTSYNC_TEST_MASTER="+s.path("master.sock"), "CERTSYNC_FAILPOINT="+step)
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	s.mustCheck()
	before := s.pid()
	clock := newClock()
	p := s.proxy(configure, func(c *haproxy.Config) { c.ReloadInterval, c.Now = 0, clock.now })
	got := s.activate(p, tgt)
	switch recorded := s.log().Time; {
	case step == "haproxy.reloaded" || step == "haproxy.reload_recorded#2":
		want(t, got, cluster.Unchanged, cluster.Proven)
	case step == "haproxy.reload_recorded":
		if got.Outcome != cluster.DiskOnly || s.pid() != before || recorded.IsZero() {
			t.Fatalf("reloaded again at once: outcome %q: %s", got.Outcome, describe(got))
		}
		clock.forward(time.Minute + time.Second)
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	default: // before the record: as if nothing had been
		want(t, got, cluster.Done, cluster.Proven)
	}
	s.mustCheck()
}
