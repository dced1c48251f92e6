package distribute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// fakeLocal is a node with its state in memory: it keeps what it is given, and gives it back.
type fakeLocal struct {
	node string

	mu         sync.Mutex
	kept       []cluster.Kept
	records    cluster.Records
	released   []cluster.Release
	calls      []string
	batches    []int
	from       map[string]bool
	err        error                                // every call fails with it
	stageError func(cluster.Kept) error             // one generation fails with it
	wait       func(context.Context) error          // before every call
	fetchError func(i int, g cert.Generation) error // before the i-th bundle
}

func newFake(node string) *fakeLocal { return &fakeLocal{node: node, from: map[string]bool{}} }

func (f *fakeLocal) enter(ctx context.Context, call, from string) error {
	if f.wait != nil {
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if from != "" {
		f.from[from] = true
	}
	return f.err
}

func (f *fakeLocal) Inventory(ctx context.Context) (cluster.Inventory, error) {
	if err := f.enter(ctx, "inventory", ""); err != nil {
		return cluster.Inventory{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := cluster.Inventory{API: cluster.API, Version: "1.2.3", Node: f.node, Role: cluster.Backup,
		Time: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC), Digest: "abc", Records: f.records}
	for _, k := range f.kept {
		i.Generations = append(i.Generations, k.Generation)
	}
	return i, nil
}

func (f *fakeLocal) Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error {
	if err := f.enter(ctx, "fetch", ""); err != nil {
		return err
	}
	for i, g := range generations {
		if f.fetchError != nil {
			if err := f.fetchError(i, g); err != nil {
				return err
			}
		}
		if k, ok := f.find(g); ok {
			if err := each(k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fakeLocal) find(g cert.Generation) (cluster.Kept, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.kept {
		if k.Generation == g {
			return k, true
		}
	}
	return cluster.Kept{}, false
}

func (f *fakeLocal) Stage(ctx context.Context, from string, kept []cluster.Kept) ([]cluster.StageResult, error) {
	if err := f.enter(ctx, "stage", from); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches = append(f.batches, len(kept))
	var results []cluster.StageResult
	for _, k := range kept {
		r := cluster.StageResult{Generation: k.Generation}
		if f.stageError != nil {
			if err := f.stageError(k); err != nil {
				r.Error, r.Hint = err.Error(), cluster.HintOf(err)
			}
		}
		if r.Error == "" && !slices.ContainsFunc(f.kept, func(o cluster.Kept) bool { return o.Generation == k.Generation }) {
			f.kept = append(f.kept, k)
		}
		results = append(results, r)
	}
	return results, nil
}

func (f *fakeLocal) Record(ctx context.Context, from string, r cluster.Records) error {
	if err := f.enter(ctx, "record", from); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records.Accounts = append(f.records.Accounts, r.Accounts...)
	f.records.Orders = cluster.MergeOrders(f.records.Orders, r.Orders)
	f.records.Ledger = cluster.MergeLedger(f.records.Ledger, r.Ledger, time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC))
	f.records.Tombstones = cluster.MergeTombstones(f.records.Tombstones, r.Tombstones)
	f.records.Releases = cluster.MergeReleases(f.records.Releases, r.Releases)
	f.records.Renewals = cluster.MergeRenewals(f.records.Renewals, r.Renewals)
	f.records.Revocations = cluster.MergeRevocations(f.records.Revocations, r.Revocations)
	return nil
}

func (f *fakeLocal) Release(ctx context.Context, from string, releases []cluster.Release) ([]cluster.Placement, error) {
	if err := f.enter(ctx, "release", from); err != nil {
		return nil, err
	}
	var out []cluster.Placement
	for _, r := range releases {
		if _, ok := f.find(r.Generation); !ok {
			return nil, fmt.Errorf("release %s: it is not held here", r.Generation.Fingerprint.Short())
		}
		f.mu.Lock()
		f.released = append(f.released, r)
		f.mu.Unlock()
		out = append(out, cluster.Placement{Slot: r.Generation.Slot, Proxy: "/etc/haproxy.conf", Running: true, Pid: 7, Proof: cluster.Proven,
			Disk: cluster.Sighting{Fingerprint: r.Generation.Fingerprint}, Outcome: cluster.Done})
	}
	return out, nil
}

func (f *fakeLocal) CARP(ctx context.Context) (cluster.CARP, error) {
	if err := f.enter(ctx, "carp", ""); err != nil {
		return cluster.CARP{}, err
	}
	return cluster.CARP{Node: f.node, Role: cluster.Backup, Source: "netlink", VHIDs: []cluster.VHID{{Interface: "em0\x1b[31m", ID: 1,
		Role: cluster.Backup, AdvBase: 1, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}}}}, nil
}

func (f *fakeLocal) Status(ctx context.Context) (cluster.NodeStatus, error) {
	if err := f.enter(ctx, "status", ""); err != nil {
		return cluster.NodeStatus{}, err
	}
	return cluster.NodeStatus{Node: f.node, Role: cluster.Backup, Reachable: true, Problems: []string{"a \x1b[31mred\x1b[0m file"},
		Placements: []cluster.Placement{{Slot: cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}, Proxy: "p", File: "/f", Proof: cluster.NoProof}}}, nil
}

func (f *fakeLocal) snapshot() ([]cluster.Kept, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.kept), slices.Clone(f.calls)
}

func (f *fakeLocal) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept, f.calls, f.batches = nil, nil, nil
}

// checkWhole fails where something kept is not whole or not among wanted, and counts what is kept.
func (f *fakeLocal) checkWhole(t *testing.T, wanted []cluster.Kept) int {
	t.Helper()
	kept, _ := f.snapshot()
	for _, k := range kept {
		if err := checkKept(k); err != nil {
			t.Fatalf("half stored: %v", err)
		}
		if !slices.ContainsFunc(wanted, func(w cluster.Kept) bool { return w.Generation == k.Generation }) {
			t.Fatalf("generation %v was never offered", k.Generation)
		}
	}
	return len(kept)
}

var testCA = sync.OnceValue(func() *certtest.CA {
	ca, err := certtest.New()
	if err != nil {
		panic(err)
	}
	return ca
})

// makeKept makes n generations of n names.
func makeKept(t testing.TB, n int) []cluster.Kept {
	t.Helper()
	var out []cluster.Kept
	for i := range n {
		name := fmt.Sprintf("c%d.example.org", i)
		b := testCA().Issue(t, certtest.Options{Domains: []string{name}, Chain: true})
		out = append(out, cluster.Kept{Generation: b.Generation(name, uint64(i+1)), Bundle: b})
	}
	return out
}

func generationsOf(kept []cluster.Kept) []cert.Generation {
	var out []cert.Generation
	for _, k := range kept {
		out = append(out, k.Generation)
	}
	return out
}

func makeRecords(t testing.TB) cluster.Records {
	t.Helper()
	key, err := cert.EC256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := cert.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	g := cert.Generation{Slot: slot, Sequence: 3, NotBefore: at, NotAfter: at.Add(time.Hour), Fingerprint: cert.Fingerprint{1, 2}}
	return cluster.Records{
		Accounts: []cluster.Account{{Directory: "https://ca.test/dir", URL: "https://ca.test/acct/1", Email: "ops@example.org", Created: at, Thumbprint: "abc_-", Key: pem}},
		Orders: []cluster.Order{{ID: "o1", Slot: slot, Domains: []string{"*.example.org", "example.org"}, KeyType: cert.EC256, Profile: "p",
			Directory: "https://ca.test/dir", Account: "abc_-", Key: pem, Replaces: "r", URL: "https://ca.test/order/1", Step: cluster.StepPresenting,
			Records: []cluster.Record{{Domain: "example.org", Token: "t", FQDN: "_acme-challenge.example.org.", Value: "v", Removed: true}},
			Node:    "proxy1", Created: at, Expires: at.Add(time.Hour), End: cluster.Failed, Problem: "no"}},
		Ledger: []cluster.Attempt{{ID: "a1", Node: "proxy1", Slot: slot, Directory: "https://ca.test/dir", Domains: []string{"example.org"}, Order: "o1",
			Resumed: true, Renews: cluster.RenewsNames, Time: at, End: cluster.Failed, Problem: "no", NextTry: at.Add(time.Minute), RetryAfter: true}},
		Tombstones: []cluster.Tombstone{{Fingerprint: cert.Fingerprint{9}, Name: "example.org", Time: at, Reason: "key compromise"}},
		Releases:   []cluster.Release{{Generation: g, Node: "proxy1", Time: at}},
		Renewals: []cluster.RenewalInfo{{Generation: g, CertID: "aYhb.AIdl", Directory: "https://ca.test/dir", Start: at, End: at.Add(time.Minute),
			Explanation: "https://ca.test/why", Node: "proxy1", Time: at, Revision: 2, Again: at.Add(time.Hour), Problem: "no"}},
		Revocations: []cluster.Revocation{{Generation: g, Reason: cluster.KeyCompromise, Directory: "https://ca.test/dir", AtOnce: true, Node: "proxy1",
			Time: at, Revision: 2, End: cluster.RevocationRefused, Tries: 1, Problem: "no", NextTry: at.Add(time.Hour)}},
	}
}

// pipePeer is a client of handler over net.Pipe, each connection served as serve-peer does.
func pipePeer(t *testing.T, handler http.Handler, change ...func(*PeerConfig)) *Peer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	cfg := PeerConfig{Name: "proxy2", Node: "proxy1", Dial: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		serving.Go(func() {
			if err := ServeConn(ctx, far, handler); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("ServeConn: %v", err)
			}
		})
		return near, nil
	}}
	for _, c := range change {
		c(&cfg)
	}
	p := NewPeer(cfg)
	t.Cleanup(func() {
		_ = p.Close()
		cancel()
		serving.Wait()
	})
	return p
}

func newPair(t *testing.T) (*fakeLocal, *Peer) {
	t.Helper()
	fake := newFake("proxy2")
	return fake, pipePeer(t, AsNode("proxy1", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})))
}

// socketPath is a path for a socket that is not there yet.
func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "peer.sock")
}

// startDaemon listens on a socket and answers as a daemon does.
func startDaemon(t *testing.T, path string, handler http.Handler) (stop func()) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, handler) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}
