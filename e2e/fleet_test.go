package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// fleetSize is how many certificates a node of a fleet has. The race detector has no room for thousands of handshakes
// on two cores: with it there are few, and the whole is run without it.
func fleetSize() int {
	switch {
	case raced:
		return 200
	case full():
		return 10_000
	}
	return 1_000
}

// soakSize is how many certificates those have over which passes are made again and again: each change has all of them
// looked at, which would be millions of handshakes for the full size of a fleet.
func soakSize() int { return min(fleetSize(), 1_000) }

// newFleet starts a fleet that ends with the test.
func newFleet(t *testing.T, o lab.FleetOptions) *lab.Fleet {
	t.Helper()
	f, err := lab.NewFleet(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close the fleet: %v", err)
		}
	})
	return f
}

// pass runs a pass, and fails the test where its outcome is none of those allowed.
func pass(t *testing.T, f *lab.Fleet, allowed ...cluster.Outcome) cluster.Report {
	t.Helper()
	report, err := f.Pass(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Certificates) != len(f.Names) {
		t.Fatalf("the report is of %d certificates, want %d", len(report.Certificates), len(f.Names))
	}
	if !slices.Contains(allowed, report.Outcome) {
		t.Fatalf("the pass ended as %q, want one of %q: %s", report.Outcome, allowed, worst(report))
	}
	return report
}

// worst is the first certificate that has the outcome of the whole.
func worst(r cluster.Report) string {
	for _, c := range r.Certificates {
		if c.Outcome == r.Outcome {
			return fmt.Sprintf("%s: %s (%s)", c.Slot, c.Error, c.Hint)
		}
	}
	return "no certificate's"
}

// wantOnDisk wants the newest generation in a certificate's file.
func wantOnDisk(t *testing.T, f *lab.Fleet, name string) {
	t.Helper()
	data, err := os.ReadFile(f.BundleFile(name))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := cert.Parse(data); err != nil || b.Fingerprint() != f.Newest[name].Fingerprint {
		t.Fatalf("%s is not the newest generation (%v)", f.BundleFile(name), err)
	}
}

// heap is what this process has in use, in bytes, after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestManyPassesKeepMemoryFlat: pass after pass over many certificates, of which some are renewed and some are broken by
// hand, neither certsync nor HAProxy grows.
func TestManyPassesKeepMemoryFlat(t *testing.T) {
	passes := 30
	if full() {
		passes = 300
	}
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		f := newFleet(t, lab.FleetOptions{Size: soakSize(), HAProxy: haproxy})
		pid, err := f.Pid(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pass(t, f, cluster.Unchanged)
		var heapThen uint64
		var haproxyThen int
		for i := range passes {
			work(t, f, i)
			if i == passes/5 {
				heapThen, haproxyThen = heap(), residentOf(t, pid)
			}
		}
		heapNow, haproxyNow := heap(), residentOf(t, pid)
		t.Logf("certsync's heap: %d KiB after %d passes, %d KiB after %d; HAProxy: %d KiB, %d KiB", heapThen>>10, passes/5, heapNow>>10, passes, haproxyThen, haproxyNow)
		if limit := heapThen + heapThen/10 + 4<<20; heapNow > limit {
			t.Errorf("certsync's heap grew from %d to %d KiB", heapThen>>10, heapNow>>10)
		}
		if limit := haproxyThen + haproxyThen/10 + 8<<10; haproxyNow > limit {
			t.Errorf("HAProxy grew from %d to %d KiB", haproxyThen, haproxyNow)
		}
		if now, err := f.Pid(t.Context()); err != nil || now != pid {
			t.Errorf("HAProxy was restarted: Pid %d, before %d (%v)", now, pid, err)
		}
	})
}

// work is the i-th pass of a long life: some certificates are renewed, or one's file is spoilt by hand, or nothing
// happened.
func work(t *testing.T, f *lab.Fleet, i int) {
	t.Helper()
	first := 7 * i % (len(f.Names) - 5)
	some := f.Names[first : first+5]
	switch i % 10 {
	case 0:
		if err := f.Renew(t.Context(), some...); err != nil {
			t.Fatal(err)
		}
		pass(t, f, cluster.Done)
	case 5:
		if err := os.WriteFile(f.BundleFile(some[0]), []byte("spoilt by hand\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pass(t, f, cluster.Done)
	default:
		pass(t, f, cluster.Unchanged)
	}
	for _, name := range some {
		wantOnDisk(t, f, name)
	}
}

func residentOf(t *testing.T, pid int) int {
	t.Helper()
	kib, err := lab.Resident(pid)
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("no proc file system here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// TestClientsNoticeNothingOfAFleetsChanges: certificates are renewed at run time, files are spoilt and mended, HAProxy is
// reloaded, and a file that breaks a reload lies in the folder for a while: no handshake fails, and no client is taken back.
func TestClientsNoticeNothingOfAFleetsChanges(t *testing.T) {
	want := 1_500
	if full() {
		want = 10_000
	}
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		f := newFleet(t, lab.FleetOptions{Size: fleetSize(), HAProxy: haproxy})
		pass(t, f, cluster.Unchanged)
		load := lab.StartLoad(t.Context(), lab.LoadOptions{Addresses: []string{f.Address}, ServerName: f.Names[0], Rate: 200, KeepAlive: 10, Timeout: patience})
		defer load.Stop()
		stray := filepath.Join(f.Certs, "stray.pem")
		rounds := 0
		for ; load.Stats().Made < want; rounds++ {
			if t.Context().Err() != nil {
				t.Fatal("out of time")
			}
			if err := f.Renew(t.Context(), f.Names[:3]...); err != nil {
				t.Fatal(err)
			}
			pass(t, f, cluster.Done)
			if err := os.WriteFile(stray, []byte("junk"), 0o600); err != nil {
				t.Fatal(err)
			}
			work(t, f, 5)
			if err := os.Remove(stray); err != nil {
				t.Fatal(err)
			}
			if rounds%5 == 0 {
				if err := f.Reload(t.Context()); err != nil {
					t.Fatal(err)
				}
				pass(t, f, cluster.Unchanged, cluster.Done)
			}
		}
		stats := load.Stop()
		// A kept connection ends with the worker that was replaced: HAProxy answers its request and closes it.
		if stats.Failed > 0 || len(stats.Backwards()) > 0 {
			t.Errorf("clients noticed: %v", stats.Err())
		}
		if rounds == 0 {
			t.Error("nothing was changed under the load")
		}
		t.Logf("%d handshakes in %s, %d rounds of changes", stats.Made, stats.Elapsed, rounds)
	})
}
