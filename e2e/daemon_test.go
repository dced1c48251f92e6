package e2e

import (
	"os"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// startDaemon runs `certsync run` on a node; the test ends it in an orderly way.
func startDaemon(t *testing.T, n *lab.Node) *lab.Running {
	t.Helper()
	d, err := n.StartCertsync("run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			d.Signal(syscall.SIGTERM)
			t.Logf("%s:\n%s", n.Name, d.Wait().Stderr)
		}
	})
	return d
}

// endDaemon ends it by SIGTERM and wants it to end well.
func endDaemon(t *testing.T, n *lab.Node, d *lab.Running) {
	t.Helper()
	d.Signal(syscall.SIGTERM)
	if err := d.Wait().Err(); err != nil {
		t.Errorf("the daemon of %s: %v", n.Name, err)
	}
}

// eventually waits until something holds that the daemons do by themselves.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// serve tells whether every node shows the leaf.
func serve(t *testing.T, want cert.Fingerprint, nodes ...*lab.Node) bool {
	for _, n := range nodes {
		if have, err := n.Handshake(t.Context(), domain); err != nil || have != want {
			return false
		}
	}
	return true
}

// TestDaemons: a pair that keeps itself in line, with nobody running a command but where the story says so.
func TestDaemons(t *testing.T) {
	l := newLab(t, lab.Options{})
	one, two := l.Nodes[0], l.Nodes[1]
	both := []*lab.Node{one, two}
	daemons := []*lab.Running{startDaemon(t, one), startDaemon(t, two)}

	eventually(t, "the MASTER's daemon obtains what is due, and both serve it", func() bool {
		return len(l.CA.Leaves()) == 1 && serve(t, newest(t, l), both...)
	})
	wantOrders(t, l, 1)

	// A command is done by the daemon, and the peer's part by the other daemon.
	issue(t, one)
	wantServed(t, newest(t, l), both...)
	wantOrders(t, l, 2)
	certsync(t, two, []string{"issue"}, 3)
	certsync(t, two, []string{"renew"})

	// The BACKUP is away for a renewal. When it is back nobody has to ask for anything.
	two.StopSSH()
	issue(t, one, 4)
	if err := two.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer that is back is brought in line", func() bool { return serve(t, newest(t, l), both...) })
	wantOrders(t, l, 3)

	// A bundle that somebody removed is put back.
	if err := os.Remove(two.BundleFile(name)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bundle is there again", func() bool { _, err := two.Bundle(name); return err == nil })
	wantSound(t, both...)

	// HAProxy is down for a renewal, and its start is noticed.
	two.KillHAProxy()
	issue(t, one, 4)
	if err := two.StartHAProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "HAProxy serves what came while it was down", func() bool { return serve(t, newest(t, l), both...) })
	wantOrders(t, l, 4)

	// The daemon of the MASTER dies, and with it the host as far as anybody can tell; the other becomes MASTER.
	daemons[0].Signal(syscall.SIGKILL)
	daemons[0].Wait()
	one.StopSSH()
	if err := l.SetMaster(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new MASTER issues", func() bool {
		r, err := two.Certsync(t.Context(), "issue", name)
		return err == nil && r.Err(4) == nil
	})
	wantOrders(t, l, 5)
	wantServed(t, newest(t, l), two)

	// The old one comes back and adopts, and orders nothing.
	if err := one.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	daemons[0] = startDaemon(t, one)
	eventually(t, "the old MASTER adopts", func() bool { return serve(t, newest(t, l), both...) })
	wantOrders(t, l, 5)
	wantNoTXT(t, l)
	for i, n := range both {
		endDaemon(t, n, daemons[i])
	}
}
