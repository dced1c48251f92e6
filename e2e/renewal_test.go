package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/lab"
)

// A CA that suggests an earlier renewal (RFC 9773) is listened to: the MASTER asks, the order says what it replaces, and
// every node serves the new certificate. Killed between the answer and the order, the next run goes on from the answer.
func TestACertificateIsRenewedWhenTheCASuggestsIt(t *testing.T) {
	l := newLab(t, lab.Options{})
	master, backup := l.Nodes[0], l.Nodes[1]
	issue(t, master)
	first := newest(t, l)

	calm := reconcile(t, master) // asks for the first time
	leaf := l.CA.Leaves()[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if at := calm.Certificates[0].RenewAt; at.Before(leaf.NotBefore.Add(life/2)) || at.After(leaf.NotAfter.Add(-life/4)) || !calm.Next.After(time.Now()) {
		t.Errorf("to be renewed at %s, next look at %s: %s", at, calm.Next, asJSON(calm))
	}
	if n := l.CA.Counts().Requests[lab.EndpointRenewalInfo]; n != 1 {
		t.Errorf("the CA was asked %d times, want once", n)
	}
	if again := reconcile(t, master); !again.Certificates[0].RenewAt.Equal(calm.Certificates[0].RenewAt) {
		t.Errorf("another run would renew at %s, want %s", again.Certificates[0].RenewAt, calm.Certificates[0].RenewAt)
	}

	// When the MASTER asks again it hears that the certificate is to be replaced at once.
	window := fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q},"explanationURL":"https://ca.test/incident"}`,
		time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if err := l.CA.SetRenewalInfo(leaf, window); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes { // as if the CA's Retry-After had passed
		if err := os.Remove(filepath.Join(n.StateDir, "renewals.json")); err != nil {
			t.Fatal(err)
		}
	}
	r, err := master.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT=reconcile.asked"}, "issue", "--json")
	if err != nil {
		t.Fatal(err)
	}
	if r.Signal != syscall.SIGKILL {
		t.Fatalf("certsync was not killed where the CA had answered (exit code %d)\n%s", r.Code, r.Stderr)
	}
	wantServed(t, first, master, backup)
	wantOrders(t, l, 1)

	renewed := reconcile(t, master)
	row := renewed.Certificates[0]
	if !row.Ordered || !strings.Contains(row.Due, "https://ca.test/incident") {
		t.Errorf("ordered %t, due for %q", row.Ordered, row.Due)
	}
	wantOrders(t, l, 2)
	second := newest(t, l)
	if second == first {
		t.Fatal("no new certificate")
	}
	wantServed(t, second, master, backup)
	wantSound(t, master, backup)
	wantNoTXT(t, l)
	if n := l.CA.Counts().Requests[lab.EndpointRenewalInfo]; n != 2 {
		t.Errorf("the CA was asked %d times, want twice: the answer before the kill counts", n)
	}
	reconcile(t, master)
	wantOrders(t, l, 2)
}
