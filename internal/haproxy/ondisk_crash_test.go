//go:build failpoint

package haproxy_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// crashOnDisk is the process that is killed while it writes for HAProxy's next start.
func crashOnDisk(p *haproxy.Proxy, b *cert.Bundle) error {
	out, err := p.OnDisk(context.Background(), []cluster.Target{target(b, "example")}, always(cluster.Earlier))
	if err != nil {
		return err
	}
	return errors.New("it was not killed: " + string(out[0].Outcome) + " " + out[0].Error)
}

// A host that loses its power while it boots: HAProxy starts with the old bundle or with the new one, and the next boot
// ends what this one began.
func TestOnDiskAKillAtAnyStepLeavesOldOrNew(t *testing.T) {
	for _, step := range []string{"haproxy.original.temp", "haproxy.previous.synced", "haproxy.own.temp", "haproxy.own.synced", "haproxy.temp", "haproxy.synced", "haproxy.written"} {
		t.Run(step, func(t *testing.T) {
			s, p := offline(t)
			old, next := generation(t), generation(t)
			s.put("bundles/example.pem", old.PEM())
			s.put("next.pem", next.PEM())
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			child := exec.CommandContext(ctx, os.Args[0])
			child.Env = append(os.Environ(), "CERTSYNC_TEST_CRASH="+s.dir, "CERTSYNC_TEST_ONDISK=1", "CERTSYNC_FAILPOINT="+step)
			out, err := child.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%v: %s", err, out)
			}
			s.mustCheck()
			if data := s.take("bundles/example.pem"); !bytes.Equal(data, old.PEM()) && !bytes.Equal(data, next.PEM()) {
				t.Error("the file is neither the old bundle nor the new one")
			}
			s.onDisk(p, cluster.Earlier, target(next, "example"))
			if !bytes.Equal(s.take("bundles/example.pem"), next.PEM()) {
				t.Error("after the next boot it is not the new bundle")
			}
			s.mustCheck()
			for _, pattern := range []string{"bundles/.certsync-*", "journal/.certsync-*", "journal/*/.certsync-*"} {
				if left, _ := filepath.Glob(s.path(pattern)); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			}
		})
	}
}
