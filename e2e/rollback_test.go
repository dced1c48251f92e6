package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// killedAt runs certsync on n and wants it to be killed at a place.
func killedAt(t *testing.T, n *lab.Node, place string, args ...string) {
	t.Helper()
	r, err := n.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT=" + place}, args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Signal != syscall.SIGKILL {
		t.Fatalf("certsync %s was not killed at %s (exit code %d)\n%s", strings.Join(args, " "), place, r.Code, r.Stderr)
	}
}

// wantTombstone wants each node to know on its disk that a certificate is revoked.
func wantTombstone(t *testing.T, revoked cert.Fingerprint, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		data, err := os.ReadFile(filepath.Join(n.StateDir, "tombstones.json"))
		if err != nil || !strings.Contains(string(data), revoked.String()) {
			t.Errorf("%s has no tombstone of %s: %v", n.Name, revoked.Short(), err)
		}
	}
}

// An earlier certificate is put back on both nodes, also by a command that was killed in between; it is then revoked while
// the BACKUP is away, by a command that is killed before the CA hears of it. The next pass finishes it, and no node goes back.
func TestARollbackAndARevocationOutliveKillsAndABackupThatIsAway(t *testing.T) {
	l := newLab(t, lab.Options{})
	master, backup := l.Nodes[0], l.Nodes[1]
	issue(t, master)
	first := newest(t, l)
	issue(t, master)
	wantServed(t, newest(t, l), master, backup)

	certsync(t, backup, []string{"rollback", name}, 3)
	killedAt(t, master, "reconcile.restored", "rollback", name)
	certsync(t, master, []string{"rollback", name}, 0)
	wantServed(t, first, master, backup)
	wantOrders(t, l, 2)

	backup.StopSSH()
	killedAt(t, master, "reconcile.buried", "revoke", name, "--reason", "keyCompromise")
	third := newest(t, l)
	wantServed(t, third, master)
	wantServed(t, first, backup)
	leaf := l.CA.Leaves()[0]
	if _, _, revoked := l.CA.Revoked(leaf); revoked {
		t.Fatal("the CA has revoked it before anybody told it to")
	}
	if err := backup.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	finished := report(t, certsync(t, master, []string{"renew", "--json"}, 0))
	if r := finished.Revocations; len(r) != 1 || !r[0].Revoked || r[0].Generation.Fingerprint != first || r[0].Replacement.Fingerprint != third {
		t.Errorf("revocations: %s", asJSON(r))
	}
	if reason, given, revoked := l.CA.Revoked(leaf); !revoked || !given || reason != 1 {
		t.Errorf("at the CA: revoked %t for the reason %d (given %t), want 1", revoked, reason, given)
	}
	wantServed(t, third, master, backup)
	wantTombstone(t, first, master, backup)
	wantOrders(t, l, 3)

	// Whoever is MASTER, nobody goes back to it.
	certsync(t, master, []string{"rollback", name, "--to", first.Short()}, 1)
	if err := l.SetMaster(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	certsync(t, backup, []string{"rollback", name, "--to", first.Short()}, 1)
	wantServed(t, third, master, backup)
	wantSound(t, master, backup)
	wantNoTXT(t, l)
}
