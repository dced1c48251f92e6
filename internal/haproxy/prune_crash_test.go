//go:build failpoint

package haproxy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// crashPrune is the process that is killed while it prunes.
func crashPrune(p *haproxy.Proxy, b *cert.Bundle) error {
	out, err := p.Prune(context.Background(), []cluster.Target{gone(target(b, "example"))}, nil, true)
	if err != nil {
		return err
	}
	return fmt.Errorf("it was not killed: %+v", out)
}

var pruneCrashes = map[string][]string{
	"in a folder":   {"haproxy.previous.synced", "haproxy.prune.kept", "haproxy.prune.unloaded", "haproxy.prune.removed"},
	"in a crt-list": {"haproxy.prune.unloaded", "haproxy.crtlist.temp", "haproxy.crtlist.synced", "haproxy.prune.unlisted", "haproxy.prune.removed"},
	"the last one":  {"haproxy.placeholder.temp", "haproxy.placeholder.synced", "haproxy.prune.removed"},
}

func TestContractAPruneKilledAtAnyStepIsFinishedByTheNext(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for scenario, steps := range pruneCrashes {
			for _, step := range steps {
				// What happens on disk is the same on all; the real ones see all steps in the full run.
				if b.version != "" && os.Getenv("CERTSYNC_TEST_FULL") == "" && !slices.Contains([]string{"haproxy.prune.unloaded", "haproxy.prune.unlisted"}, step) {
					continue
				}
				t.Run(scenario+" "+step, func(t *testing.T) { pruneKilledAt(t, b, scenario, step) })
			}
		}
	})
}

func pruneKilledAt(t *testing.T, b backend, scenario, step string) {
	s := newSite(t, b, map[bool]string{false: "crt DIR/bundles/", true: "crt-list DIR/list"}[scenario == "in a crt-list"])
	first := "bundles/first.pem"
	s.put(first, issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
	s.put("list", []byte(s.path(first)+"\n"))
	s.start()
	crtList := ""
	if scenario == "in a crt-list" {
		crtList = s.path("list")
	}
	p, tgt := s.proxy(func(c *haproxy.Config) { c.CrtList = crtList }), target(generation(t), "example")
	want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	s.put("next.pem", tgt.Bundle.PEM())
	if scenario == "the last one" { // on disk: what HAProxy has in memory keeps the folder loaded until its next start
		if err := os.Remove(s.path(first)); err != nil {
			t.Fatal(err)
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), "CERTSYNC_TEST_CRASH="+s.dir, "CERTSYNC_TEST_PRUNE=1", "CERTSYNC_TEST_CRTLIST="+crtList, "CERTSYNC_FAILPOINT="+step)
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	s.mustCheck()

	again := s.prune(p, true, nil, gone(tgt))
	if len(again) != 1 || !again[0].Removed {
		t.Fatalf("the second run: %+v", again)
	}
	s.gone("bundles/example.pem")
	s.wantCopy(tgt.Bundle)
	if list := string(s.take("list")); strings.Contains(list, "example") {
		t.Errorf("the list is %q", list)
	}
	for _, pattern := range []string{".certsync-*", "bundles/.certsync-*", "journal/.certsync-*", "journal/*/.certsync-*"} {
		if left, _ := filepath.Glob(s.path(pattern)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	s.restart()
}
