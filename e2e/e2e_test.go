package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// name is the certificate that the lab's nodes have; domain is asked for in handshakes.
const (
	name   = "example.org"
	domain = "www.example.org"
)

// patience is what a client waits before it counts a failure: with less, a machine that builds something else at the
// same time would look like an outage.
const patience = 30 * time.Second

// branches are the HAProxies that certsync supports and is tried on.
var branches = []string{"2.6", "3.0", "3.2"}

// binary is certsync built with failpoints, made once by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "certsync-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if binary, err = lab.Build(ctx, dir, "fewproviders", "failpoint"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// full tells whether the full figures are asked for.
func full() bool { return os.Getenv("CERTSYNC_TEST_FULL") == "1" }

// missing skips a test whose real part is not here; under CI=true that is a failure, so that no green run hides it.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%v (under CI=true this is a failure; scripts/deps.sh installs it)", err)
	}
	t.Skip(err)
}

// onEachHAProxy runs a test on each branch.
func onEachHAProxy(t *testing.T, test func(t *testing.T, haproxy string)) {
	for _, branch := range branches {
		t.Run("HAProxy_"+branch, func(t *testing.T) {
			h, err := lab.FindHAProxy(t.Context(), branch)
			if err != nil {
				missing(t, err)
			}
			test(t, h.Path)
		})
	}
}

// newLab starts a lab that ends with the test.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Binary = binary
	l, err := lab.New(t.Context(), o)
	if errors.Is(err, lab.ErrNoHAProxy) {
		missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// certsync runs it on n and fails the test where it does not end with one of codes.
func certsync(t *testing.T, n *lab.Node, args []string, codes ...int) lab.Result {
	t.Helper()
	r, err := n.Certsync(t.Context(), args...)
	if err == nil {
		err = r.Err(codes...)
	}
	if err != nil {
		t.Fatalf("on %s: %v", n.Name, err)
	}
	return r
}

// issue runs `certsync issue` for the lab's certificate and gives its report.
func issue(t *testing.T, n *lab.Node, codes ...int) cluster.Report {
	t.Helper()
	return report(t, certsync(t, n, []string{"issue", name, "--json"}, codes...))
}

// reconcile runs `certsync issue` without a name: what is not due is not ordered, but brought in service.
func reconcile(t *testing.T, n *lab.Node, codes ...int) cluster.Report {
	t.Helper()
	return report(t, certsync(t, n, []string{"issue", "--json"}, codes...))
}

// report is the one that certsync printed.
func report(t *testing.T, r lab.Result) cluster.Report {
	t.Helper()
	out, err := lab.ParseReport(r.Stdout)
	if err != nil {
		t.Fatalf("%v: %v\n%s", r.Args, err, r.Stdout)
	}
	return out
}

// nodeIn is what a report says of a node.
func nodeIn(t *testing.T, r cluster.Report, n *lab.Node) cluster.NodeStatus {
	t.Helper()
	i := slices.IndexFunc(r.Nodes, func(s cluster.NodeStatus) bool { return s.Node == n.Name })
	if i < 0 {
		t.Fatalf("the report has no node %s: %s", n.Name, asJSON(r))
	}
	return r.Nodes[i]
}

func asJSON(v any) string {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// wantServed wants every node to show the leaf.
func wantServed(t *testing.T, want cert.Fingerprint, nodes ...*lab.Node) {
	t.Helper()
	wantServedFor(t, domain, want, nodes...)
}

func wantServedFor(t *testing.T, domain string, want cert.Fingerprint, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		have, err := n.Handshake(t.Context(), domain)
		if err != nil {
			t.Error(err)
		} else if have != want {
			t.Errorf("%s serves %s, want %s", n.Name, have.Short(), want.Short())
		}
	}
}

// newest is the last certificate that the CA issued.
func newest(t *testing.T, l *lab.Lab) cert.Fingerprint {
	t.Helper()
	leaves := l.CA.Leaves()
	if len(leaves) == 0 {
		t.Fatal("the CA issued nothing")
	}
	return lab.FingerprintOf(leaves[len(leaves)-1])
}

// wantOrders wants the CA to have handed out so many distinct orders.
func wantOrders(t *testing.T, l *lab.Lab, want int) {
	t.Helper()
	if have := l.CA.Counts().Orders; have != want {
		t.Errorf("the CA handed out %d orders, want %d", have, want)
	}
}

// wantSound wants HAProxy to start from the disk as it is, and the bundle there to be whole.
func wantSound(t *testing.T, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.CheckHAProxyConfig(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := n.Bundle(name); err != nil {
			t.Error(err)
		}
	}
}

// wantNoTXT wants the DNS to be as clean as before.
func wantNoTXT(t *testing.T, l *lab.Lab) {
	t.Helper()
	for at, values := range l.DNS.AllRecords() {
		t.Errorf("TXT values left at %s: %q", at, values)
	}
}
