package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/store"
)

// many is how many certificates a test of scale has.
func many() int {
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" {
		return 10000
	}
	return 1000
}

// newFleet is a pair with n certificates, which the MASTER's store holds.
func newFleet(t testing.TB, n int) *world {
	t.Helper()
	var w *world
	open := func() Store {
		s, err := store.Open(t.TempDir(), store.Options{Now: func() time.Time { return w.clock() }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var cs []Certificate
	for i := range n {
		name := fmt.Sprintf("n%05d.example", i)
		cs = append(cs, certificate(name, []string{name}, cert.EC256))
	}
	w = makeWorld(t, 2, open, withCertificates(cs...), func(made *world, _ *Settings) { w = made })
	key, err := cert.EC256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		b := w.ca.signer.Issue(t, certtest.Options{Domains: c.Domains, Key: key, NotBefore: w.Now(), NotAfter: w.Now().Add(90 * day)})
		if err := w.hosts[0].disk.Store.Keep(context.Background(), cluster.Kept{Generation: b.Generation(c.Name, 1), Bundle: b}); err != nil {
			t.Fatal(err)
		}
	}
	w.large = true
	for _, h := range w.hosts {
		h.proxy.remembers, h.acknowledgeWithin = true, time.Minute // thousands of records
	}
	return w
}

// cost is what a pass asked for.
type cost struct {
	bundles, merges     int64
	calls               map[string]int
	activated, reported int
}

// cheap runs a pass of a process that lives on, and counts what it asked for.
func (w *world) cheap(t testing.TB, want cluster.Outcome) cost {
	t.Helper()
	l := w.hosts[0].links["proxy2"]
	l.set(func() { l.calls = nil })
	w.mu.Lock()
	w.events = nil
	w.mu.Unlock()
	c := cost{calls: map[string]int{}}
	for _, h := range w.hosts {
		h.disk.bundles.Store(0)
		h.disk.merges = func(cluster.Records) error { c.merges++; return nil }
	}
	report, err := w.hosts[0].Pass(context.Background(), Wanted{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Outcome != want || len(report.Warnings) > 0 {
		t.Fatalf("outcome %s, want %s, warnings %q", report.Outcome, want, report.Warnings)
	}
	for _, h := range w.hosts {
		c.bundles += h.disk.bundles.Load()
	}
	for _, call := range l.calls {
		c.calls[call]++
	}
	c.activated = len(w.eventsOf("activate proxy2"))
	c.reported = len(report.Certificates)
	for _, n := range report.Nodes {
		if len(n.Placements) != c.reported || len(n.Held) != c.reported {
			t.Fatalf("%s: %d placements, %d held, of %d", n.Node, len(n.Placements), len(n.Held), c.reported)
		}
	}
	return c
}

func TestPassesOverManyWithNothingToDoReadNoBundleReleaseNoneAndHoldNoMemory(t *testing.T) {
	n := many()
	w := newFleet(t, n)
	w.hosts[0].issue()
	for _, c := range w.hosts[0].Settings.Certificates {
		w.inServiceOn(c.Slots()[0])
	}
	w.cheap(t, cluster.Unchanged)
	c := w.cheap(t, cluster.Unchanged)
	if c.bundles != 0 || c.merges != 0 {
		t.Errorf("%d bundles are read, %d times something is recorded", c.bundles, c.merges)
	}
	if got, want := fmt.Sprint(c.calls), "map[inventory:1 status:1]"; got != want {
		t.Errorf("the peer is asked %s, want %s", got, want)
	}
	if c.activated != 0 || c.reported != n {
		t.Errorf("%d slots are activated on the peer, %d of %d reported", c.activated, c.reported, n)
	}

	before := heap()
	for range 8 {
		w.cheap(t, cluster.Unchanged)
	}
	if after := heap(); after > before+2<<20 {
		t.Errorf("the heap grew from %d to %d bytes in 8 passes", before, after)
	}

	// What drifted on the peer, and only that, is released again.
	drifted := w.hosts[0].Settings.Certificates[n/2].Slots()[0]
	w.hosts[1].proxy.set(func() { delete(w.hosts[1].proxy.memory, drifted) })
	if c := w.cheap(t, cluster.Done); c.activated != 1 || c.calls["release"] != 1 || c.bundles > 2 {
		t.Errorf("%d slots are activated on the peer in %d releases, %d bundles read", c.activated, c.calls["release"], c.bundles)
	}
	w.inServiceOn(drifted)
}

// heap is what is in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// inServiceOn checks that all hosts serve what the first one holds.
func (w *world) inServiceOn(s cert.Slot) {
	w.Helper()
	for _, h := range w.hosts {
		if h.proxy.serves(s).IsZero() {
			w.Fatalf("%s does not serve %s", h.name, s)
		}
	}
}

// The peer API takes 64 MiB in a body: what 10,000 slots need stays well below.
func TestInventoryAndStatusOfManyFitThePeerAPI(t *testing.T) {
	const n = 300
	w := newFleet(t, n)
	w.hosts[0].issue()
	inventory, err := w.hosts[1].Node.Inventory(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	status, err := w.hosts[1].Node.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]any{"inventory": inventory, "status": status} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if of10000 := len(data) / n * 10000; of10000 > 32<<20 {
			t.Errorf("the %s of 10,000 slots has %d bytes", what, of10000)
		} else {
			t.Logf("the %s of 10,000 slots has %d bytes", what, of10000)
		}
	}
}

// An old status counts for nothing that it does not say: whatever is not as an activation would leave it is released.
func TestOnlyAPlacementThatIsWhollyRightNeedsNoRelease(t *testing.T) {
	b := certtest.NewCA(t).Issue(t, certtest.Options{})
	g := b.Generation("example.org", 3)
	seen := cluster.Sighting{Fingerprint: g.Fingerprint}
	good := cluster.Placement{Slot: g.Slot, Proxy: "haproxy.cfg", Running: true, Disk: seen, Memory: seen, Served: seen, Proof: cluster.Proven}
	if !inService(good, g) {
		t.Error("one that is right needs a release")
	}
	unproven := good
	unproven.Served, unproven.Proof = cluster.Sighting{Note: "unproven: connect: connection refused"}, cluster.NoProof
	if !inService(unproven, g) {
		t.Error("one that cannot be proven needs a release")
	}
	for name, change := range map[string]func(*cluster.Placement){
		"the node could not be asked": func(pl *cluster.Placement) { pl.Proxy = "" },
		"HAProxy does not run":        func(pl *cluster.Placement) { pl.Running = false },
		"no file":                     func(pl *cluster.Placement) { pl.Disk = cluster.Sighting{Note: "no file"} },
		"another file":                func(pl *cluster.Placement) { pl.Disk.Fingerprint = cert.Fingerprint{1} },
		"a file that others can read": func(pl *cluster.Placement) { pl.Disk.Note = "mode 0644: others can read the private key" },
		"another memory":              func(pl *cluster.Placement) { pl.Memory.Fingerprint = cert.Fingerprint{1} },
		"unused in memory":            func(pl *cluster.Placement) { pl.Memory.Note = "it is Unused in HAProxy's memory" },
		"a handshake shows another":   func(pl *cluster.Placement) { pl.Proof = cluster.Disproven },
		"something is wrong with it":  func(pl *cluster.Placement) { pl.Error = "its bundle cannot be read" },
	} {
		pl := good
		change(&pl)
		if inService(pl, g) {
			t.Errorf("%s: it needs no release", name)
		}
	}
}

// A peer that answers everything but its status is brought in line by releases, as before there was a status.
func TestAPeerThatDoesNotTellItsStatusIsGivenAll(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	l := w.hosts[0].links["proxy2"]
	l.set(func() { l.status = func() error { return fmt.Errorf("status: not part of the peer API") } })
	w.hosts[1].proxy.set(func() { delete(w.hosts[1].proxy.memory, slot) })
	if r := w.hosts[0].issue(); r.Outcome != cluster.Done {
		t.Errorf("outcome %s", r.Outcome)
	}
	w.inService(slot, 1)
}

// BenchmarkNoopPass is a pass of a pair over certificates that are in service; HAProxy is a fake that costs nothing.
func BenchmarkNoopPass(b *testing.B) {
	w := newFleet(b, many())
	w.hosts[0].issue()
	w.cheap(b, cluster.Unchanged)
	b.ReportAllocs()
	var c cost
	for b.Loop() {
		c = w.cheap(b, cluster.Unchanged)
	}
	b.ReportMetric(float64(c.bundles), "bundles/op")
}
