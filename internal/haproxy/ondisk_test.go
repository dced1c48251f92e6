package haproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// offline is a site whose HAProxy does not run, and a Proxy that fails the test where it connects to anything.
func offline(t *testing.T, change ...func(*haproxy.Config)) (*site, *haproxy.Proxy) {
	t.Helper()
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	return s, s.proxy(append(change, func(c *haproxy.Config) {
		c.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
			t.Errorf("it connects to %s", address)
			return nil, errors.New("nothing is to be connected to")
		}
	})...)
}

// always is the standing of whatever lies there.
func always(s cluster.Standing) func(cluster.Target, *cert.Bundle) cluster.Standing {
	return func(cluster.Target, *cert.Bundle) cluster.Standing { return s }
}

// onDisk writes one target for a start.
func (s *site) onDisk(p *haproxy.Proxy, standing cluster.Standing, targets ...cluster.Target) []cluster.Placement {
	s.t.Helper()
	out, err := p.OnDisk(context.Background(), targets, always(standing))
	if err != nil || len(out) != len(targets) {
		s.t.Fatalf("OnDisk: %d placements, %v", len(out), err)
	}
	for _, pl := range out {
		if pl.Proof != cluster.NoProof || pl.Running || !pl.Memory.IsZero() || !pl.Served.IsZero() {
			s.t.Errorf("it tells of HAProxy, which it did not ask: %+v", pl)
		}
	}
	return out
}

func TestOnDiskMendsEveryKindOfSpoiltFile(t *testing.T) {
	newest := generation(t)
	pem := newest.PEM()
	leaf := bytes.Index(pem, []byte("-----END CERTIFICATE-----")) + len("-----END CERTIFICATE-----\n")
	for name, c := range map[string]struct {
		spoil func(s *site, path string)
		// strange tells that nothing says that the file was certsync's.
		strange bool
	}{
		"missing":         {spoil: func(_ *site, path string) { _ = os.Remove(path) }},
		"missing, first":  {spoil: func(s *site, path string) { _ = os.Remove(path); _ = os.RemoveAll(s.path("journal")) }},
		"empty":           {spoil: func(s *site, _ string) { s.put("bundles/example.pem", nil) }},
		"torn in the key": {spoil: func(s *site, _ string) { s.put("bundles/example.pem", pem[:len(pem)-40]) }},
		"without its key": {spoil: func(s *site, _ string) { s.put("bundles/example.pem", newest.CertificatesPEM()) }},
		"without its chain": {spoil: func(s *site, _ string) {
			s.put("bundles/example.pem", append(bytes.Clone(pem[:leaf]), newest.KeyPEM()...))
		}},
		"another's key": {spoil: func(s *site, _ string) {
			s.put("bundles/example.pem", append(newest.CertificatesPEM(), generation(t).KeyPEM()...))
		}},
		"zeroes": {spoil: func(s *site, _ string) { s.put("bundles/example.pem", make([]byte, len(pem))) }},
		"huge":   {spoil: func(s *site, _ string) { s.put("bundles/example.pem", make([]byte, 2<<20)) }},
		"open to others": {spoil: func(s *site, path string) {
			if err := os.Chmod(path, 0o644); err != nil {
				s.t.Fatal(err)
			}
		}},
		"earlier": {spoil: func(s *site, _ string) { s.put("bundles/example.pem", generation(t).PEM()) }},
		"a foreign one put over ours": {strange: true, spoil: func(s *site, _ string) {
			s.put("bundles/example.pem", issue(t, certtest.Options{Domains: []string{"foreign.test"}}).PEM())
		}},
		"a link to nowhere": {spoil: func(s *site, path string) {
			_ = os.Remove(path)
			if err := os.Symlink(s.path("elsewhere/example.pem"), path); err != nil {
				s.t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := offline(t)
			tgt := target(newest, "example")
			if got := s.onDisk(p, cluster.Strange, tgt)[0]; got.Outcome != cluster.DiskOnly {
				t.Fatalf("an empty folder: outcome %q: %s", got.Outcome, describe(got))
			}
			c.spoil(s, s.path("bundles/example.pem"))
			standing := cluster.Earlier
			if c.strange {
				standing = cluster.Strange
			}
			got := s.onDisk(p, standing, tgt)[0]
			if got.Outcome != cluster.DiskOnly || got.Error != "" || got.Disk.Fingerprint != newest.Fingerprint() || got.Disk.Note != "" {
				t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
			}
			if !bytes.Equal(s.take("bundles/example.pem"), pem) {
				t.Error("the file is not the bundle")
			}
			if info, err := os.Stat(s.path("bundles/example.pem")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v, want mode 0600", info.Mode(), err)
			}
			s.mustCheck()
			if got := s.onDisk(p, cluster.Strange, tgt)[0]; got.Outcome != cluster.Unchanged {
				t.Errorf("a second time: outcome %q: %s", got.Outcome, describe(got))
			}
		})
	}
}

func TestOnDiskLeavesAFileThatIsRightAlone(t *testing.T) {
	s, p := offline(t)
	tgt := target(generation(t), "example")
	s.onDisk(p, cluster.Strange, tgt)
	before, err := os.Stat(s.path("bundles/example.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.onDisk(p, cluster.Earlier, tgt)
	after, err := os.Stat(s.path("bundles/example.pem"))
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("it was written again (%v)", err)
	}
}

func TestOnDiskNeverReplacesALaterBundle(t *testing.T) {
	s, p := offline(t)
	later := generation(t)
	s.put("bundles/example.pem", later.PEM())
	got := s.onDisk(p, cluster.Later, target(generation(t), "example"))[0]
	if got.Outcome != cluster.Unchanged || got.Disk.Fingerprint != later.Fingerprint() || got.Disk.Note == "" {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
	if !bytes.Equal(s.take("bundles/example.pem"), later.PEM()) {
		t.Error("it was replaced")
	}
}

func TestOnDiskDoesNotTouchWhatIsNotCertsyncs(t *testing.T) {
	theirs := issue(t, certtest.Options{Domains: domains})
	for name, prepare := range map[string]func(s *site){
		"a bundle": func(s *site) { s.put("bundles/example.pem", theirs.PEM()) },
		"a text":   func(s *site) { s.put("bundles/example.pem", []byte("notes\n")) },
		"a folder": func(s *site) { _ = os.Mkdir(s.path("bundles/example.pem"), 0o700) },
		"a link": func(s *site) {
			s.put("elsewhere/theirs.pem", theirs.PEM())
			s.link("elsewhere/theirs.pem", "bundles/example.pem")
		},
		"an outlaw": func(s *site) { s.link("bundles/second.pem", "bundles/example.pem") },
	} {
		t.Run(name, func(t *testing.T) {
			s, p := offline(t)
			second := target(issue(t, certtest.Options{Domains: []string{"second.test"}}), "second")
			s.onDisk(p, cluster.Strange, second)
			prepare(s)
			first := target(generation(t), "example")
			out := s.onDisk(p, cluster.Strange, first, second)
			if out[0].Outcome != cluster.Failure || out[0].Hint == "" {
				t.Errorf("outcome %q: %s", out[0].Outcome, describe(out[0]))
			}
			if out[1].Outcome != cluster.Unchanged {
				t.Errorf("the other one: outcome %q: %s", out[1].Outcome, describe(out[1]))
			}
			if data, err := os.ReadFile(s.path("bundles/example.pem")); err == nil && bytes.Equal(data, first.Bundle.PEM()) {
				t.Error("it was replaced")
			}
			if !bytes.Equal(s.take("bundles/second.pem"), second.Bundle.PEM()) {
				t.Error("the other certificate's file was replaced")
			}
		})
	}
}

func TestOnDiskReplacesAForeignFileThatTheConfigurationNamesAndKeepsACopy(t *testing.T) {
	s, p := offline(t)
	theirs := generation(t)
	s.put("bundles/example.pem", theirs.PEM())
	tgt := target(generation(t), "example")
	tgt.Path = s.path("bundles/example.pem")
	if got := s.onDisk(p, cluster.Strange, tgt)[0]; got.Outcome != cluster.DiskOnly {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	if o := s.kept("originals"); len(o) != 1 || !bytes.Equal(o[0], theirs.PEM()) {
		t.Errorf("%d originals kept", len(o))
	}
}

// A clock that is not set, or a pair that was off for months: HAProxy must start all the same.
func TestOnDiskWritesWhatHasExpiredOnlyWhereThereIsNothing(t *testing.T) {
	now := time.Now()
	for name, o := range map[string]certtest.Options{
		"expired":       {NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(-time.Minute)},
		"not yet valid": {NotBefore: now.Add(48 * time.Hour), NotAfter: now.Add(96 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			o.Domains = domains
			tgt := target(issue(t, o), "example")
			s, p := offline(t)
			if got := s.onDisk(p, cluster.Strange, tgt)[0]; got.Outcome != cluster.DiskOnly {
				t.Errorf("no file: outcome %q: %s", got.Outcome, describe(got))
			}
			valid := generation(t)
			s.put("bundles/example.pem", valid.PEM())
			if got := s.onDisk(p, cluster.Earlier, tgt)[0]; got.Outcome != cluster.Failure || !strings.Contains(got.Error, name) {
				t.Errorf("a valid one there: outcome %q: %s", got.Outcome, describe(got))
			}
			if !bytes.Equal(s.take("bundles/example.pem"), valid.PEM()) {
				t.Error("a valid bundle was replaced")
			}
		})
	}
}

func TestOnDiskRemovesWhatAKilledCertsyncLeft(t *testing.T) {
	s, p := offline(t)
	tgt := target(generation(t), "example")
	s.onDisk(p, cluster.Strange, tgt)
	// The highest process ID is none: Linux's are below 2^22, FreeBSD's below 100,000.
	const gone = ".certsync-2147483647-1"
	mine := fmt.Sprintf(".certsync-%d-1", os.Getpid())
	for _, name := range []string{"bundles/" + gone, "journal/" + gone, "journal/previous/" + gone, "bundles/" + mine} {
		s.put(name, tgt.Bundle.PEM()[:100])
	}
	s.onDisk(p, cluster.Strange, tgt)
	for _, name := range []string{"bundles/" + gone, "journal/" + gone, "journal/previous/" + gone} {
		if _, err := os.Lstat(s.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there still (%v)", name, err)
		}
	}
	if _, err := os.Lstat(s.path("bundles/" + mine)); err != nil {
		t.Errorf("what a process that lives is writing was removed: %v", err)
	}
}

func TestOnDiskGivesAnEarlierNameOfTheCertificateTheSameBundle(t *testing.T) {
	s, p := offline(t)
	old := target(generation(t), "example")
	s.onDisk(p, cluster.Strange, old)
	// It has both key types now: HAProxy would load example.pem too, and may show it.
	both := target(generation(t), "example")
	both.Both = true
	if got := s.onDisk(p, cluster.Earlier, both)[0]; got.Outcome != cluster.DiskOnly || got.File != s.path("bundles/example.pem.ecdsa") {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	for _, name := range []string{"bundles/example.pem", "bundles/example.pem.ecdsa"} {
		if !bytes.Equal(s.take(name), both.Bundle.PEM()) {
			t.Errorf("%s has another bundle", name)
		}
	}
	if got := s.onDisk(p, cluster.Earlier, both)[0]; got.Outcome != cluster.Unchanged {
		t.Errorf("a second time: outcome %q: %s", got.Outcome, describe(got))
	}
}

func TestOnDiskTakesThePlaceholdersPlace(t *testing.T) {
	s, p := offline(t)
	placeholder, err := cert.NewPlaceholder(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.put("bundles/"+cert.PlaceholderName, placeholder)
	s.onDisk(p, cluster.Strange, target(generation(t), "example"))
	if _, err := os.Stat(s.path("bundles/" + cert.PlaceholderName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the placeholder: %v, want it gone", err)
	}
	s.mustCheck()
}

func TestOnDiskEndsWithItsContextAndTellsWhatIsNotDone(t *testing.T) {
	s, p := offline(t)
	ctx, cancel := context.WithCancel(context.Background())
	first, second := target(generation(t), "first"), target(generation(t), "second")
	second.Slot.Name = "first" // so that they go one after the other
	second.Path = s.path("bundles/second.pem")
	load := second.Bundle
	second.Bundle, second.Load = nil, func(context.Context) (*cert.Bundle, []*cert.Bundle, error) {
		cancel()
		return load, nil, nil
	}
	out, err := p.OnDisk(ctx, []cluster.Target{first, second}, always(cluster.Strange))
	if err != nil {
		t.Fatal(err)
	}
	if out[0].Outcome != cluster.DiskOnly || out[1].Outcome != cluster.Interrupted || out[1].Error == "" {
		t.Errorf("outcomes %q and %q", out[0].Outcome, out[1].Outcome)
	}
	if _, err := os.Stat(s.path("bundles/second.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was not to be done any more: %v", err)
	}
}

func TestOnDiskTellsAFolderThatCannotBeWrittenAndABundleThatCannotBeRead(t *testing.T) {
	s, p := offline(t)
	torn := target(generation(t), "torn")
	torn.Bundle, torn.Load = nil, func(context.Context) (*cert.Bundle, []*cert.Bundle, error) { return nil, nil, errors.New("it is torn") }
	nowhere := target(generation(t), "nowhere")
	nowhere.Path = filepath.Join(s.dir, "no-such-folder", "nowhere.pem")
	out := s.onDisk(p, cluster.Strange, torn, nowhere, target(generation(t), "sound"))
	if out[0].Outcome != cluster.Failure || !strings.Contains(out[0].Error, "it is torn") {
		t.Errorf("torn: outcome %q: %s", out[0].Outcome, describe(out[0]))
	}
	if out[1].Outcome != cluster.Failure || !strings.Contains(out[1].Hint, "no-such-folder") {
		t.Errorf("nowhere: outcome %q: %s", out[1].Outcome, describe(out[1]))
	}
	if out[2].Outcome != cluster.DiskOnly {
		t.Errorf("sound: outcome %q: %s", out[2].Outcome, describe(out[2]))
	}
}

func TestOnDiskWaitsForTheOneWhoChangesHAProxyAndThenSaysSo(t *testing.T) {
	s, p := offline(t)
	s.onDisk(p, cluster.Strange)
	lock, err := os.OpenFile(s.path("journal/lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := p.OnDisk(context.Background(), []cluster.Target{target(generation(t), "example")}, always(cluster.Strange)); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("%v, want it busy", err)
	}
}
