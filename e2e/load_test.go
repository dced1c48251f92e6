package e2e

import (
	"testing"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// TestRenewalsUnderLoadAreNotNoticed renews again and again under a steady load of new connections and open ones on
// both nodes. Promise 6: no failed handshake, no broken connection; promise 2: no client is ever taken back.
func TestRenewalsUnderLoadAreNotNoticed(t *testing.T) {
	rate, renewals := 100.0, 5
	whole := full() && !raced
	if whole {
		rate, renewals = 500, 20
	}
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		l := newLab(t, lab.Options{HAProxy: haproxy})
		disk := startWatch(t.Context(), l.Nodes...)
		pids := haproxyPids(t, l)
		load := lab.StartLoad(t.Context(), lab.LoadOptions{Addresses: l.TLSAddresses(), ServerName: domain, Rate: rate, KeepAlive: 10,
			Timeout: patience})
		issued := []cert.Fingerprint{l.Old[name].Fingerprint()}
		for range renewals {
			issue(t, l.Nodes[0])
			issued = append(issued, newest(t, l))
			wantServed(t, newest(t, l), l.Nodes...)
		}
		stats := load.Stop()
		disk.end(t)
		if err := stats.Err(); err != nil {
			t.Errorf("clients noticed: %v", err)
		}
		wantOrders(t, l, renewals)
		for _, n := range l.Nodes {
			wantInOrder(t, n, stats.Seen[n.TLSAddress], issued)
		}
		if now := haproxyPids(t, l); now[0] != pids[0] || now[1] != pids[1] {
			t.Errorf("HAProxy was reloaded or restarted: pids %v, before %v", now, pids)
		}
		made := float64(stats.Made) / stats.Elapsed.Seconds()
		t.Logf("%d handshakes (%.0f a second), %d requests on kept connections, %d renewals in %s", stats.Made, made, stats.Requests, renewals, stats.Elapsed)
		if whole && made < rate*0.9 {
			t.Errorf("the load was %.0f handshakes a second, want %.0f: it proves less than it claims", made, rate)
		}
	})
}

// wantInOrder wants the clients of a node to have met every leaf, in the order of their issue.
func wantInOrder(t *testing.T, n *lab.Node, seen []lab.Leaf, issued []cert.Fingerprint) {
	t.Helper()
	next := 0
	for _, leaf := range seen {
		for next < len(issued) && issued[next] != leaf.Fingerprint {
			next++
		}
		if next == len(issued) {
			t.Errorf("%s showed %s out of the order of issue", n.Name, leaf.Fingerprint.Short())
			return
		}
	}
	if len(seen) < 2 {
		t.Errorf("the clients of %s met %d leaves of %d: the load proves nothing", n.Name, len(seen), len(issued))
	}
}

func haproxyPids(t *testing.T, l *lab.Lab) []int {
	t.Helper()
	var pids []int
	for _, n := range l.Nodes {
		pid, err := n.HAProxyPid(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
