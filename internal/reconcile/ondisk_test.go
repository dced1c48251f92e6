package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/store"
)

// boot is a host before HAProxy starts: a store, a bundle folder, and nothing else that could be asked.
type boot struct {
	t     testing.TB
	ca    *certtest.CA
	now   time.Time
	certs string
	store *store.Store
	node  *Node
}

func newBoot(t testing.TB, certificates ...Certificate) *boot {
	t.Helper()
	ca, err := certtest.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := &boot{t: t, ca: ca, now: time.Now().Truncate(time.Second), certs: filepath.Join(dir, "certs")}
	if err := os.Mkdir(b.certs, 0o700); err != nil {
		t.Fatal(err)
	}
	if b.store, err = store.Open(filepath.Join(dir, "state"), store.Options{Now: b.clock}); err != nil {
		t.Fatal(err)
	}
	b.node = &Node{Settings: Settings{Node: "proxy1", Certificates: certificates, Roots: ca.Roots()}, Store: b.store, Now: b.clock}
	b.proxy("haproxy.cfg", filepath.Join(dir, "state", "haproxy"))
	return b
}

func (b *boot) clock() time.Time { return b.now }

// proxy adds a HAProxy, which does not run.
func (b *boot) proxy(name, journal string) {
	b.t.Helper()
	p, err := haproxy.New(haproxy.Config{Name: name, BundleDir: b.certs, RuntimeSocket: "/nowhere/" + name + ".sock", JournalDir: journal, Now: b.clock,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			b.t.Error("something is connected to")
			return nil, errors.New("nothing is to be connected to")
		}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.node.Proxies = append(b.node.Proxies, p)
}

// issue makes a bundle for example.org that is valid for 90 days from age ago.
func (b *boot) issue(age time.Duration, o certtest.Options) *cert.Bundle {
	b.t.Helper()
	if o.Domains == nil {
		o.Domains = wildcard.Domains
	}
	o.NotBefore, o.NotAfter = b.now.Add(-age), b.now.Add(90*day-age)
	return b.ca.Issue(b.t, o)
}

// keep stores a bundle under a sequence, and releases it where released is true.
func (b *boot) keep(bundle *cert.Bundle, sequence uint64, released bool) cert.Generation {
	b.t.Helper()
	g := bundle.Generation(wildcard.Name, sequence)
	if err := b.store.Keep(context.Background(), cluster.Kept{Generation: g, Bundle: bundle}); err != nil {
		b.t.Fatal(err)
	}
	if released {
		b.merge(cluster.Records{Releases: []cluster.Release{{Generation: g, Node: "proxy1", Time: b.now}}})
	}
	return g
}

func (b *boot) merge(r cluster.Records) {
	b.t.Helper()
	if err := b.store.Merge(context.Background(), r); err != nil {
		b.t.Fatal(err)
	}
}

func (b *boot) file() string { return filepath.Join(b.certs, "example.org.pem") }

func (b *boot) put(bundle *cert.Bundle) {
	b.t.Helper()
	if err := os.WriteFile(b.file(), bundle.PEM(), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *boot) onDisk() cluster.DiskSync {
	b.t.Helper()
	done, err := b.node.OnDisk(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return done
}

// want runs it and holds what lies there then.
func (b *boot) want(o cluster.Outcome, bundle *cert.Bundle) {
	b.t.Helper()
	done := b.onDisk()
	if len(done.Placements) != 1 || done.Placements[0].Outcome != o {
		b.t.Fatalf("%+v, want the outcome %s", done, o)
	}
	if data, err := os.ReadFile(b.file()); err != nil || !bytes.Equal(data, bundle.PEM()) {
		b.t.Errorf("another bundle lies there than %s (%v)", bundle, err)
	}
}

func TestOnDiskIsWhatWasReleasedLast(t *testing.T) {
	b := newBoot(t, wildcard)
	first, second, third := b.issue(3*day, certtest.Options{}), b.issue(2*day, certtest.Options{}), b.issue(day, certtest.Options{})
	b.keep(first, 1, true)
	b.want(cluster.DiskOnly, first)
	b.keep(second, 2, true)
	b.want(cluster.DiskOnly, second)
	b.want(cluster.Unchanged, second)
	// The peers may not have it yet: a failover to them would take the clients back.
	b.keep(third, 3, false)
	b.want(cluster.Unchanged, second)
	if err := os.Remove(b.file()); err != nil {
		t.Fatal(err)
	}
	b.want(cluster.DiskOnly, second)
}

func TestOnDiskIsTheNewestWhereNothingReleasedIsFit(t *testing.T) {
	b := newBoot(t, wildcard)
	only := b.issue(day, certtest.Options{})
	b.keep(only, 2, false)
	b.want(cluster.DiskOnly, only)

	b = newBoot(t, wildcard)
	first, second := b.issue(80*day, certtest.Options{}), b.issue(day, certtest.Options{})
	b.keep(first, 1, true)
	b.keep(second, 2, false)
	b.want(cluster.DiskOnly, first)
	b.now = b.now.Add(2 * day) // under a tenth of its lifetime is left
	b.want(cluster.DiskOnly, second)
}

func TestOnDiskALaterBundleStaysWhateverTheStoreSays(t *testing.T) {
	b := newBoot(t, wildcard)
	first, second, third := b.issue(3*day, certtest.Options{}), b.issue(2*day, certtest.Options{}), b.issue(day, certtest.Options{})
	b.keep(first, 1, true)
	b.keep(second, 2, false)
	b.want(cluster.DiskOnly, first)
	b.put(second) // held, and not released
	b.want(cluster.Unchanged, second)
	b.put(third) // not held: the state came back from a backup
	b.want(cluster.Unchanged, third)
	b.put(first)
	b.want(cluster.Unchanged, first)
}

func TestOnDiskALostReleaseIsNotReplacedByAnEarlierBundle(t *testing.T) {
	b := newBoot(t, wildcard)
	// The later sequence has the earlier date, as after a rollback: only the record of the release tells.
	earlier, released := b.issue(2*day, certtest.Options{}), b.issue(3*day, certtest.Options{})
	b.keep(earlier, 1, false)
	b.keep(released, 2, true)
	b.want(cluster.DiskOnly, released)
	lost, err := filepath.Glob(filepath.Join(b.certs, "../state/generations/example.org/ecdsa/*"))
	if err != nil || len(lost) != 2 {
		t.Fatalf("%q, %v", lost, err)
	}
	for _, path := range lost {
		if data, err := os.ReadFile(path); err == nil && bytes.Equal(data, released.PEM()) {
			if err := os.WriteFile(path, data[:len(data)/2], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.want(cluster.Unchanged, released)
	if done := b.onDisk(); len(done.Problems) != 1 {
		t.Errorf("problems %q, want the torn file told", done.Problems)
	}
	// With nothing there an earlier one is better than none: HAProxy may not start without the file.
	if err := os.Remove(b.file()); err != nil {
		t.Fatal(err)
	}
	b.want(cluster.DiskOnly, earlier)
}

func TestOnDiskARevokedBundleGivesWayToTheNewestThatIsNot(t *testing.T) {
	b := newBoot(t, wildcard)
	first, second := b.issue(2*day, certtest.Options{}), b.issue(day, certtest.Options{})
	b.keep(first, 1, true)
	g := b.keep(second, 2, true)
	b.want(cluster.DiskOnly, second)
	b.merge(cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: g.Fingerprint, Name: slot.Name, Time: b.now}}})
	b.want(cluster.DiskOnly, first)
}

func TestOnDiskARollbackCounts(t *testing.T) {
	b := newBoot(t, wildcard)
	first, second := b.issue(2*day, certtest.Options{}), b.issue(day, certtest.Options{})
	b.keep(first, 1, true)
	b.keep(second, 2, true)
	b.want(cluster.DiskOnly, second)
	b.keep(first, 3, true)
	b.want(cluster.DiskOnly, first)
	b.want(cluster.Unchanged, first)
}

func TestOnDiskWhatCannotBeALaterBundleIsReplaced(t *testing.T) {
	b := newBoot(t, wildcard)
	other, err := certtest.New()
	if err != nil {
		t.Fatal(err)
	}
	newest := b.issue(2*day, certtest.Options{})
	b.keep(newest, 1, true)
	for name, bundle := range map[string]*cert.Bundle{
		"foreign names":      b.issue(day, certtest.Options{Domains: []string{"example.org", "evil.test"}}),
		"earlier":            b.issue(3*day, certtest.Options{}),
		"another CA's":       other.Issue(t, certtest.Options{Domains: wildcard.Domains}),
		"expired":            b.ca.Issue(t, certtest.Options{Domains: wildcard.Domains, NotBefore: b.now.Add(-day), NotAfter: b.now.Add(-time.Minute)}),
		"from the future":    b.ca.Issue(t, certtest.Options{Domains: wildcard.Domains, NotBefore: b.now.Add(48 * time.Hour)}),
		"another key's type": b.issue(day, certtest.Options{KeyType: cert.RSA2048}),
	} {
		t.Run(name, func(t *testing.T) {
			b.onDisk() // the file is certsync's
			b.put(bundle)
			b.want(cluster.DiskOnly, newest)
		})
	}
}

func TestOnDiskTheFileOfAKeyTypeThatIsNotWantedAnyMoreIsReplaced(t *testing.T) {
	b := newBoot(t, certificate(wildcard.Name, wildcard.Domains, cert.RSA2048))
	before, now := b.issue(day, certtest.Options{}), b.issue(2*day, certtest.Options{KeyType: cert.RSA2048})
	b.keep(before, 1, true)
	b.keep(now, 1, true)
	b.put(before)
	b.want(cluster.DiskOnly, now)
}

func TestOnDiskWithNothingStoredIsNoFailure(t *testing.T) {
	b := newBoot(t, wildcard)
	if done := b.onDisk(); len(done.Placements) != 0 || len(done.Missing) != 1 || done.Missing[0] != slot || done.Node != "proxy1" {
		t.Errorf("%+v", done)
	}
}

func TestOnDiskEachHAProxyIsToldOf(t *testing.T) {
	b := newBoot(t, wildcard)
	b.proxy("second.cfg", filepath.Join(b.certs, "../state/second"))
	b.keep(b.issue(day, certtest.Options{}), 1, true)
	done := b.onDisk()
	if len(done.Placements) != 2 || done.Placements[0].Proxy == done.Placements[1].Proxy {
		t.Fatalf("%+v", done.Placements)
	}
	for _, pl := range done.Placements {
		if pl.Error != "" || pl.Disk.Note != "" {
			t.Errorf("%+v", pl)
		}
	}
}

// A boot must not wait for it: what is right is read, and nothing is written.
func TestOnDiskOverManyIsQuickAndWritesNothingThatIsRight(t *testing.T) {
	n := many() / 5
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" {
		n = many()
	}
	var all []Certificate
	for i := range n {
		all = append(all, certificate(fmt.Sprintf("n%05d.example", i), []string{fmt.Sprintf("n%05d.example", i)}, cert.EC256))
	}
	b := newBoot(t, all...)
	key, err := cert.EC256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		// Two generations each: the earlier ones need not be read.
		for sequence := range uint64(2) {
			bundle := b.issue(time.Duration(2-sequence)*day, certtest.Options{Domains: c.Domains, Key: key})
			if err := b.store.Keep(context.Background(), cluster.Kept{Generation: bundle.Generation(c.Name, sequence+1), Bundle: bundle}); err != nil {
				t.Fatal(err)
			}
		}
	}
	count := func() map[cluster.Outcome]int {
		got := map[cluster.Outcome]int{}
		for _, pl := range b.onDisk().Placements {
			got[pl.Outcome]++
		}
		return got
	}
	if got := count(); got[cluster.DiskOnly] != n {
		t.Fatalf("at first %v", got)
	}
	before, err := os.Stat(b.certs)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if got := count(); got[cluster.Unchanged] != n {
		t.Fatalf("then %v", got)
	}
	t.Logf("%d certificates that are right: %v", n, time.Since(start))
	if after, err := os.Stat(b.certs); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("something was written in the folder (%v)", err)
	}
}
