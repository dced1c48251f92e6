package haproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

// fleet is a site with many certificates, all in service.
type fleet struct {
	*site
	proxy   *haproxy.Proxy
	targets []cluster.Target
	bundles []*cert.Bundle
	wire    wire
	opens   func() int
	loads   atomic.Int64
	shakes  atomic.Int64
	now     time.Time
}

// many is how many certificates a test of scale has.
func many(b backend) int {
	n := 1000
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" && !raced {
		n = 10000
	}
	if b.version != "" {
		n /= 5 // its start takes 2 to 4 ms for each
	}
	return n
}

// few runs a test of what does not depend on HAProxy's version on the fake and on one HAProxy; on each in `make test-full`.
func few(t *testing.T, test func(t *testing.T, b backend)) {
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" {
		each(t, test)
		return
	}
	eachOf(t, []string{"3.2"}, test)
}

// newFleet has n certificates, called n0000 and so on. What is looked at again in each pass is at least sample.
func newFleet(t testing.TB, b backend, n, sample int) *fleet {
	t.Helper()
	f := &fleet{site: newSite(t, b, "crt DIR/bundles/"), now: time.Now()}
	for i := range n {
		name := fmt.Sprintf("n%05d", i)
		bundle := issue(t, certtest.Options{Domains: []string{name + ".test"}})
		f.put("bundles/"+name+".pem", bundle.PEM())
		f.bundles = append(f.bundles, bundle)
		f.targets = append(f.targets, f.target(name, bundle))
	}
	f.start()
	f.settle()
	f.opens = opens(t, f.site.bundles)
	f.proxy = f.site.proxy(func(c *haproxy.Config) {
		c.Sample, c.Dial, c.Wait = sample, f.dial, 5*time.Second
		c.Now = func() time.Time { return f.now }
	})
	return f
}

// target is one as reconcile makes it: without the bundle, which is loaded where it is needed.
func (f *fleet) target(name string, b *cert.Bundle, known ...*cert.Bundle) cluster.Target {
	g := b.Generation(name, 1)
	return cluster.Target{Slot: g.Slot, Generation: g, Domains: b.Domains(), Load: func(context.Context) (*cert.Bundle, []*cert.Bundle, error) {
		f.loads.Add(1)
		return b, known, nil
	}}
}

func (f *fleet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if strings.HasSuffix(address, "tls.sock") {
		f.shakes.Add(1)
	}
	return f.wire.dial(ctx, network, address)
}

// settle waits until a change of any bundle file must show.
func (f *fleet) settle() {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.site.bundles, "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	settle(f.t, files...)
}

// settle waits until a change of any of the files must show.
func settle(t testing.TB, files ...string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for _, path := range files {
		for !fileid.Stat(path).Settled(time.Now()) {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not settle", path)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// effort is what one pass cost.
type effort struct {
	opens, loads, shakes, lists int
	// asked are the names whose fingerprints HAProxy was asked for.
	asked []string
	// commands are all.
	commands int
}

func (f *fleet) activateAll(ctx context.Context) ([]cluster.Placement, effort) {
	f.t.Helper()
	f.reset()
	out, err := f.proxy.Activate(ctx, f.targets)
	if err != nil {
		f.t.Fatal(err)
	}
	return out, f.effort()
}

func (f *fleet) inspectAll() ([]cluster.Placement, effort) {
	f.t.Helper()
	f.reset()
	out, err := f.proxy.Inspect(context.Background(), f.targets)
	if err != nil {
		f.t.Fatal(err)
	}
	return out, f.effort()
}

func (f *fleet) reset() {
	f.opens()
	f.loads.Store(0)
	f.shakes.Store(0)
	f.wire.mu.Lock()
	defer f.wire.mu.Unlock()
	f.wire.seen = nil
}

func (f *fleet) effort() effort {
	f.wire.mu.Lock()
	defer f.wire.mu.Unlock()
	e := effort{opens: f.opens(), loads: int(f.loads.Load()), shakes: int(f.shakes.Load()), commands: len(f.wire.seen)}
	for _, c := range f.wire.seen {
		if c == "show ssl cert" {
			e.lists++
		} else if name, ok := strings.CutPrefix(c, "show ssl cert "); ok {
			e.asked = append(e.asked, name)
		}
	}
	return e
}

// pass wants every target in service, and nothing changed.
func (f *fleet) pass() effort {
	f.t.Helper()
	out, e := f.activateAll(context.Background())
	f.wantAll(out, cluster.Unchanged)
	if c := f.wire.changing(); len(c) > 0 {
		f.t.Fatalf("a pass over what is in service changes something: %q", c)
	}
	return e
}

func (f *fleet) wantAll(out []cluster.Placement, o cluster.Outcome) {
	f.t.Helper()
	if len(out) != len(f.targets) {
		f.t.Fatalf("%d placements of %d targets", len(out), len(f.targets))
	}
	for i, pl := range out {
		if pl.Slot != f.targets[i].Slot || pl.Outcome != o || pl.Proof != cluster.Proven || pl.Served.Fingerprint != f.targets[i].Generation.Fingerprint {
			f.t.Fatalf("%s: outcome %q, %s, want %q\n%s", pl.Slot, pl.Outcome, pl.Proof, o, describe(pl))
		}
	}
}

// heap is what is in use, without what the test itself recorded.
func (f *fleet) heap() uint64 {
	f.reset()
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// wantQuiet fails where a pass read a file or a bundle, or asked for more than a sample.
func (f *fleet) wantQuiet(e effort, sample int) {
	f.t.Helper()
	if e.opens != 0 || e.loads != 0 {
		f.t.Errorf("%d bundle files are opened and %d bundles loaded", e.opens, e.loads)
	}
	if len(e.asked) > sample || e.shakes > sample {
		f.t.Errorf("%d fingerprints and %d handshakes, for a sample of %d", len(e.asked), e.shakes, sample)
	}
	if e.lists != 1 || e.commands > sample+5 {
		f.t.Errorf("%d lists, %d commands", e.lists, e.commands)
	}
}

func TestASecondPassOpensNoBundleAsksASampleThatGoesRoundAndHoldsNoMemory(t *testing.T) {
	inTurn(t, haproxytest.Versions(), func(t *testing.T, b backend) {
		n := many(b)
		f := newFleet(t, b, n, 0)
		if e := f.pass(); e.loads != n || e.shakes != n {
			t.Errorf("the first pass loads %d and makes %d handshakes, want %d each", e.loads, e.shakes, n)
		}
		sample := max(50, n/20)
		asked := map[string]bool{}
		rounds := (n + sample - 1) / sample
		f.pass()
		before := f.heap()
		for range rounds {
			e := f.pass()
			f.wantQuiet(e, sample)
			if e.shakes != len(e.asked) {
				t.Errorf("%d fingerprints are asked for, %d handshakes made", len(e.asked), e.shakes)
			}
			for _, name := range e.asked {
				asked[name] = true
			}
		}
		if len(asked) != n {
			t.Errorf("after %d passes %d of %d were looked at", rounds, len(asked), n)
		}
		if after := f.heap(); after > before+1<<20 {
			t.Errorf("the heap grew from %d to %d bytes in %d passes", before, after, rounds)
		}
	})
}

func TestAllAreLookedAtAgainAfterAChangeAndNoFileIsRead(t *testing.T) {
	const n, sample = 120, 10
	for name, change := range map[string]func(f *fleet){
		"HAProxy was started anew": func(f *fleet) {
			f.restart()
			if fake, ok := f.server.(*haproxytest.Fake); ok {
				fake.Pid(os.Getpid() + 1) // a fake's is that of the test
			}
		},
		"its list has another certificate": func(f *fleet) {
			if reply := f.command("new ssl cert " + f.path("bundles/by-hand.pem") + "\n"); !strings.Contains(reply, "New empty") {
				f.t.Fatal(reply)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			few(t, func(t *testing.T, b backend) {
				f := newFleet(t, b, n, sample)
				f.pass()
				f.wantQuiet(f.pass(), sample)
				change(f)
				e := f.pass()
				if len(e.asked) != n || e.shakes != n {
					t.Errorf("%d fingerprints and %d handshakes, want all %d", len(e.asked), e.shakes, n)
				}
				if e.opens != 0 || e.loads != 0 {
					t.Errorf("%d files are opened, %d bundles loaded", e.opens, e.loads)
				}
				f.wantQuiet(f.pass(), sample)
			})
		})
	}
}

// Its lines say what HAProxy loads at its next start: who knows them reads the bundles beside them.
func TestAfterAChangeOfTheCrtListAllAreLookedAtAsForTheFirstTime(t *testing.T) {
	const n, sample = 60, 5
	f := newFleet(t, fakeBackend, n, sample)
	f.proxy = f.site.proxy(func(c *haproxy.Config) { c.Sample, c.Dial, c.CrtList = sample, f.dial, f.path("extra.list") })
	f.pass()
	f.wantQuiet(f.pass(), sample)
	f.put("extra.list", []byte("# nothing\n"))
	if e := f.pass(); e.loads != n || len(e.asked) != n || e.shakes != n {
		t.Errorf("%d are loaded, %d fingerprints asked for, %d handshakes made; want %d each", e.loads, len(e.asked), e.shakes, n)
	}
}

func TestAllAreLookedAtAgainAfterAChangeOfOurs(t *testing.T) {
	few(t, func(t *testing.T, b backend) {
		const n, sample = 60, 5
		f := newFleet(t, b, n, sample)
		f.pass()
		renewed := issue(t, certtest.Options{Domains: []string{"n00007.test"}})
		f.targets[7] = f.target("n00007", renewed, f.bundles[7])
		out, e := f.activateAll(context.Background())
		if out[7].Outcome != cluster.Done || e.loads != 1 {
			t.Errorf("outcome %s, %d bundles loaded, want 1\n%s", out[7].Outcome, e.loads, describe(out[7]))
		}
		f.settle()
		if e := f.pass(); len(e.asked) != n || e.loads != 1 || e.shakes != n {
			t.Errorf("%d fingerprints, %d handshakes, %d loaded; want all %d, and the new one loaded", len(e.asked), e.shakes, e.loads, n)
		}
		f.wantQuiet(f.pass(), sample)
	})
}

func TestWhatChangesBehindOurBackIsFound(t *testing.T) {
	const n, sample, at = 60, 6, 37
	for name, c := range map[string]struct {
		change func(f *fleet, path string, old *cert.Bundle)
		passes int
	}{
		"a file overwritten, its mtime put back": {func(f *fleet, path string, old *cert.Bundle) {
			info, err := os.Stat(path)
			if err == nil {
				err = os.WriteFile(path, old.PEM(), 0o600)
			}
			if err == nil {
				err = os.Chtimes(path, info.ModTime(), info.ModTime())
			}
			if err != nil {
				f.t.Fatal(err)
			}
		}, 1},
		"a file removed": {func(f *fleet, path string, _ *cert.Bundle) {
			if err := os.Remove(path); err != nil {
				f.t.Fatal(err)
			}
		}, 1},
		"a file that others can read": {func(f *fleet, path string, _ *cert.Bundle) {
			if err := os.Chmod(path, 0o644); err != nil {
				f.t.Fatal(err)
			}
		}, 1},
		"an old certificate put back by hand": {func(f *fleet, path string, old *cert.Bundle) {
			f.command("set ssl cert " + path + " <<\n" + string(old.PEM()) + "\n")
			if reply := f.command("commit ssl cert " + path + "\n"); !strings.Contains(reply, "Success!") {
				f.t.Fatal(reply)
			}
		}, n / sample},
		"taken out of HAProxy's memory": {func(f *fleet, path string, _ *cert.Bundle) {
			f.command("del ssl crt-list " + f.site.bundles + " " + path + "\n")
			if reply := f.command("del ssl cert " + path + "\n"); !strings.Contains(reply, "deleted!") {
				f.t.Fatal(reply)
			}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			few(t, func(t *testing.T, b backend) {
				f := newFleet(t, b, n, sample)
				f.pass()
				f.pass()
				old := issue(t, certtest.Options{Domains: f.bundles[at].Domains()})
				target := f.targets[at]
				target.Load = func(context.Context) (*cert.Bundle, []*cert.Bundle, error) {
					return f.bundles[at], []*cert.Bundle{old}, nil
				}
				f.targets[at] = target
				c.change(f, f.path("bundles/n00037.pem"), old)
				for pass := 1; ; pass++ {
					out, _ := f.activateAll(context.Background())
					if out[at].Outcome == cluster.Done {
						break
					}
					if out[at].Outcome != cluster.Unchanged || pass >= c.passes {
						t.Fatalf("pass %d of at most %d: outcome %s\n%s", pass, c.passes, out[at].Outcome, describe(out[at]))
					}
				}
				f.site.wantServed(f.inspect(f.proxy, f.targets[at]), f.bundles[at])
				if info, err := os.Stat(f.path("bundles/n00037.pem")); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("its file: %v, %v", info, err)
				}
			})
		})
	}
}

func TestAnExpiredBundleIsNotInServiceByMemory(t *testing.T) {
	f := newFleet(t, fakeBackend, 60, 5)
	f.pass()
	f.now = f.bundles[0].Leaf().NotAfter.Add(time.Hour)
	out, _ := f.activateAll(context.Background())
	for _, pl := range out {
		if pl.Outcome != cluster.Failure || !strings.Contains(pl.Error, "expired") {
			t.Fatalf("%s: %s, %q", pl.Slot, pl.Outcome, pl.Error)
		}
	}
}

func TestInspectTellsWhenItSaw(t *testing.T) {
	few(t, func(t *testing.T, b backend) {
		const n, sample = 60, 5
		f := newFleet(t, b, n, sample)
		first := f.now
		f.pass()
		f.now = f.now.Add(time.Hour)
		out, e := f.inspectAll()
		f.wantAll(out, "")
		f.wantQuiet(e, sample)
		again := 0
		for _, pl := range out {
			switch {
			case pl.Served.Seen.Equal(f.now):
				again++
			case !pl.Served.Seen.Equal(first):
				t.Errorf("%s was seen at %s", pl.Slot, pl.Served.Seen)
			}
		}
		if again != sample {
			t.Errorf("%d were seen again, want %d", again, sample)
		}
		// Where HAProxy does not answer nothing is said from memory.
		f.stop()
		if out, _ := f.inspectAll(); slices.ContainsFunc(out, func(pl cluster.Placement) bool { return pl.Running || pl.Proof == cluster.Proven }) {
			t.Error("a HAProxy that is down is said to run")
		}
	})
}

// Whoever asks for the status decides by it whether an activation is needed.
func TestInspectTellsWhatAnActivationWouldMend(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	old, b := issue(t, certtest.Options{}), issue(t, certtest.Options{})
	both := target(old, "example", b)
	both.Both = true
	now := target(b, "example", old)
	for _, tgt := range []cluster.Target{both, now} { // HAProxy does not run: no file is removed
		if pl := s.proxyActivate(tgt); pl.Outcome != cluster.DiskOnly {
			t.Fatalf("outcome %s\n%s", pl.Outcome, describe(pl))
		}
	}
	if pl := s.inspect(s.proxy(), now); pl.Disk.Note != "" {
		t.Errorf("nothing is wrong with it: %q", pl.Disk.Note)
	}
	bare, err := cert.New(b.Key(), b.Leaf())
	if err != nil {
		t.Fatal(err)
	}
	s.put("bundles/example.pem", bare.PEM())
	if pl := s.inspect(s.proxy(), now); pl.Disk.Fingerprint != b.Fingerprint() || pl.Disk.Note != "its chain is not as issued" {
		t.Errorf("without its chain: %+v", pl.Disk)
	}
	s.put("bundles/example.pem", b.PEM())
	s.put("bundles/example.pem.ecdsa", old.PEM())
	if pl := s.inspect(s.proxy(), now); !strings.Contains(pl.Disk.Note, "example.pem.ecdsa, an earlier file of this certificate") {
		t.Errorf("beside an earlier file: %+v", pl.Disk)
	}
}

// proxyActivate activates without asking whether HAProxy could start.
func (s *site) proxyActivate(tgt cluster.Target) cluster.Placement {
	s.t.Helper()
	out, err := s.proxy().Activate(context.Background(), []cluster.Target{tgt})
	if err != nil {
		s.t.Fatal(err)
	}
	return out[0]
}

func TestABundleThatCannotBeLoadedIsToldAndChangesNothing(t *testing.T) {
	f := newFleet(t, fakeBackend, 3, 0)
	f.targets[1].Load = func(context.Context) (*cert.Bundle, []*cert.Bundle, error) {
		return nil, nil, errors.New("read the bundle: input/output error")
	}
	out, _ := f.activateAll(context.Background())
	if out[0].Outcome != cluster.Unchanged || out[2].Outcome != cluster.Unchanged {
		t.Errorf("the others: %s, %s", out[0].Outcome, out[2].Outcome)
	}
	if out[1].Outcome != cluster.Failure || !strings.Contains(out[1].Error, "input/output error") || len(f.wire.changing()) > 0 {
		t.Errorf("outcome %s, %q, changes %q", out[1].Outcome, out[1].Error, f.wire.changing())
	}
	if out, _ := f.inspectAll(); !strings.Contains(out[1].Error, "input/output error") || out[1].Disk.IsZero() {
		t.Errorf("inspected: %s", describe(out[1]))
	}
}

// The first pass after a new Pid has no time to look at all: the next one begins with what was left out.
func TestWhatADeadlineLeftOutComesFirst(t *testing.T) {
	const n, sample, reached = 120, 10, 40
	f := newFleet(t, fakeBackend, n, sample)
	f.pass()
	f.server.(*haproxytest.Fake).Pid(os.Getpid() + 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var left atomic.Int64
	left.Store(reached)
	f.wire.before = func(c string) bool {
		if strings.HasPrefix(c, "show ssl cert ") && left.Add(-1) == 0 {
			cancel()
		}
		return true
	}
	out, _ := f.activateAll(ctx)
	f.wire.before = nil
	missing := map[string]bool{}
	for i, pl := range out {
		if pl.Outcome != cluster.Unchanged {
			missing[f.path("bundles/"+f.targets[i].Slot.Name+".pem")] = true
			if pl.Outcome != cluster.Failure || !strings.Contains(pl.Error, "canceled") {
				t.Errorf("%s: %s, %q", pl.Slot, pl.Outcome, pl.Error)
			}
		}
	}
	if len(missing) < n-reached-16 || len(missing) == n {
		t.Fatalf("%d of %d were not reached", len(missing), n)
	}
	e := f.pass()
	for i, name := range e.asked {
		if !missing[name] && i < len(missing)-16 {
			t.Errorf("%s, which was looked at, comes before what was not", name)
		}
		delete(missing, name)
	}
	if len(missing) > 0 || e.loads != 0 {
		t.Errorf("%d were not looked at again; %d bundles are loaded", len(missing), e.loads)
	}
}

func TestWhatCannotBeProvenIsTriedAtEachPass(t *testing.T) {
	const n, sample = 60, 5
	f := newFleet(t, fakeBackend, n, sample)
	socket := f.path("tls.sock")
	if err := os.Rename(socket, socket+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out, e := f.activateAll(context.Background())
		for _, pl := range out {
			if pl.Outcome != cluster.Unproven || pl.Proof != cluster.NoProof {
				t.Fatalf("%s: %s, %s", pl.Slot, pl.Outcome, pl.Proof)
			}
		}
		if e.shakes > 8 {
			t.Errorf("an address where nobody listens is tried %d times", e.shakes)
		}
	}
	if err := os.Rename(socket+".away", socket); err != nil {
		t.Fatal(err)
	}
	if e := f.pass(); e.loads != 0 || e.opens != 0 || e.shakes != n {
		t.Errorf("%d loaded, %d opened, %d handshakes; want none, and all %d proven", e.loads, e.opens, e.shakes, n)
	}
	f.wantQuiet(f.pass(), sample)
}

func TestSlotsThatAreGoneAreForgotten(t *testing.T) {
	f := newFleet(t, fakeBackend, 60, 5)
	f.pass()
	all := f.targets
	f.targets = all[:40]
	f.wantQuiet(f.pass(), 5)
	f.targets = all
	if e := f.pass(); e.loads != 20 {
		t.Errorf("%d are loaded, want the 20 that had been gone", e.loads)
	}
	// A call for a few says nothing of the others.
	f.targets = all[:3]
	f.pass()
	f.targets = all
	f.wantQuiet(f.pass(), 5)
}

func TestInspectAndActivateSideBySide(t *testing.T) {
	f := newFleet(t, fakeBackend, 60, 10)
	f.pass()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			out, err := f.proxy.Inspect(context.Background(), f.targets)
			if err != nil || slices.ContainsFunc(out, func(pl cluster.Placement) bool { return pl.Proof != cluster.Proven }) {
				t.Errorf("inspect: %v", err)
			}
		})
		wg.Go(func() {
			out, err := f.proxy.Activate(context.Background(), f.targets)
			if err != nil || slices.ContainsFunc(out, func(pl cluster.Placement) bool { return pl.Outcome != cluster.Unchanged }) {
				t.Errorf("activate: %v", err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkNoopPass is a pass over certificates that are all in service with a real HAProxy.
func BenchmarkNoopPass(b *testing.B) {
	f := newRealFleet(b)
	f.pass()
	f.pass()
	b.ReportAllocs()
	var e effort
	for b.Loop() {
		e = f.pass()
	}
	b.ReportMetric(float64(e.commands), "commands/op")
	b.ReportMetric(float64(e.shakes), "handshakes/op")
	b.ReportMetric(float64(e.opens), "opens/op")
}

// BenchmarkLookAtAll is the pass that looks at all again, as after a new Pid.
func BenchmarkLookAtAll(b *testing.B) {
	f := newRealFleet(b)
	f.pass()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		f.command(fmt.Sprintf("new ssl cert %s\n", f.path(fmt.Sprintf("bundles/by-hand-%d.pem", i))))
		b.StartTimer()
		if e := f.pass(); e.shakes != len(f.targets) {
			b.Fatalf("%d handshakes", e.shakes)
		}
	}
}

func newRealFleet(b *testing.B) *fleet {
	const version = "3.2"
	binary, ok := haproxytest.Find(version)
	if !ok {
		b.Skipf("HAProxy %s is not installed: run scripts/deps.sh", version)
	}
	return newFleet(b, realBackend(binary), 5*many(realBackend(binary)), 0)
}
