package haproxy_test

import (
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// Whoever restarts a HAProxy that hangs must get the new certificate.
func TestContractAHangingHAProxyGetsTheBundleOnDisk(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		if b.version == "" {
			return // the fake has no process of its own to stop
		}
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		quick := func(c *haproxy.Config) {
			c.ProbeTimeout, c.InspectTimeout = 300*time.Millisecond, 500*time.Millisecond
			c.CommandTimeout = time.Hour
		}
		p := s.proxy(quick)
		tgt := target(generation(t), "example", old)
		pid := s.inspect(p, tgt).Pid
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Before the site's own clean-up, which waits for its end.
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })

		// Inspect ends by itself, although the command would wait for an hour.
		if seen := s.inspect(p, tgt); !seen.Running || !strings.Contains(seen.Memory.Note, "no answer for") || seen.Disk.Fingerprint != old.Fingerprint() {
			t.Errorf("inspect: running %t, %s", seen.Running, describe(seen))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		defer cancel()
		out, err := p.Activate(ctx, []cluster.Target{tgt})
		if err != nil {
			t.Fatal(err)
		}
		got := out[0]
		if got.Outcome != cluster.DiskOnly || !got.Running || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || !strings.Contains(got.Error, "no answer for") || got.Hint == "" {
			t.Errorf("outcome %q, running %t: %s", got.Outcome, got.Running, describe(got))
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		s.restart()
		want(t, s.activate(s.proxy(), tgt), cluster.Unchanged, cluster.Proven)
	})
}

func TestContractADeniedSocketGetsTheBundleOnDisk(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		p := s.proxy(func(c *haproxy.Config) {
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if strings.HasSuffix(address, "admin.sock") {
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.EACCES)}
				}
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
		})
		tgt := target(generation(t), "example", old)
		got := s.activate(p, tgt)
		if got.Outcome != cluster.DiskOnly || !got.Running || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || got.Served.Fingerprint != old.Fingerprint() ||
			!strings.Contains(got.Error, "permission denied") || !strings.Contains(got.Hint, "group") || strings.Contains(got.Hint, "restart certsync") {
			t.Errorf("outcome %q, running %t: %s", got.Outcome, got.Running, describe(got))
		}
		s.restart()
		// What it starts with is right, and yet the next bundle could not be loaded.
		if got := s.activate(p, tgt); got.Outcome != cluster.DiskOnly || got.Proof != cluster.Proven || got.Error == "" {
			t.Errorf("after a restart: outcome %q: %s", got.Outcome, describe(got))
		}
	})
}

// A certificate that changed its key types while no HAProxy ran: the file of before is loaded too at the start.
func TestContractAnEarlierFileDoesNotHideWhatCameWhileHAProxyWasDown(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		p := s.proxy()
		if got := s.activate(p, target(generation(t), "example")); got.Outcome != cluster.DiskOnly {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		tgt := target(generation(t), "example")
		tgt.Both = true
		if got := s.activate(p, tgt); got.Outcome != cluster.DiskOnly {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		s.start()
		got := s.activate(p, tgt)
		want(t, got, cluster.Unchanged, cluster.Proven)
		s.wantServed(got, tgt.Bundle)
	})
}
