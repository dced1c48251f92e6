package haproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

// kept are the contents of a folder of the journal.
func (s *site) kept(kind string) [][]byte {
	s.t.Helper()
	paths, err := filepath.Glob(s.path("journal/" + kind + "/*"))
	if err != nil {
		s.t.Fatal(err)
	}
	var out [][]byte
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			s.t.Fatal(err)
		}
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
			s.t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
		out = append(out, data)
	}
	return out
}

func TestAFileThatCertsyncDidNotWriteIsNotOverwritten(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	byHand := append([]byte("# by hand\n"), generation(t).PEM()...)
	s.put("bundles/example.pem", byHand)
	s.start()
	tgt := target(generation(t), "example")
	got := s.activate(s.proxy(), tgt)
	if got.Outcome != cluster.Failure || !strings.Contains(got.Hint, "bundle: "+s.path("bundles/example.pem")) {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	if !bytes.Equal(s.take("bundles/example.pem"), byHand) {
		t.Error("it was overwritten")
	}

	// Named in the configuration it may be replaced, and is kept.
	tgt.Path = s.path("bundles/example.pem")
	want(t, s.activate(s.proxy(), tgt), cluster.Done, cluster.Proven)
	if o := s.kept("originals"); len(o) != 1 || !bytes.Equal(o[0], byHand) {
		t.Errorf("%d originals kept", len(o))
	}
	// From then on it is ours, and the original stays the first one.
	second := target(generation(t), "example")
	want(t, s.activate(s.proxy(), second), cluster.Done, cluster.Proven)
	if o := s.kept("originals"); len(o) != 1 || !bytes.Equal(o[0], byHand) {
		t.Errorf("after a second time %d originals are kept", len(o))
	}
	if p := s.kept("previous"); len(p) != 1 || !bytes.Equal(p[0], tgt.Bundle.PEM()) {
		t.Errorf("%d previous bundles kept, not the last one", len(p))
	}
}

func TestAFileThatHoldsAKnownGenerationIsOurs(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	// The journal is empty, as after the loss of state_dir.
	want(t, s.activate(s.proxy(), target(generation(t), "example", old)), cluster.Done, cluster.Proven)
}

func TestARollBackRestoresTheOriginalAsItWas(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	byHand := append([]byte("# by hand\n"), generation(t).PEM()...)
	s.put("bundles/example.pem", byHand)
	if err := os.Chmod(s.path("bundles/example.pem"), 0o640); err != nil {
		t.Fatal(err)
	}
	s.start()
	tgt := target(generation(t), "example")
	tgt.Path = s.path("bundles/example.pem")
	got := s.activate(s.proxy(func(c *haproxy.Config) { c.Verify = []string{s.path("other.sock")} }), tgt)
	want(t, got, cluster.RolledBack, cluster.Disproven)
	if info, err := os.Stat(tgt.Path); err != nil || info.Mode().Perm() != 0o640 || !bytes.Equal(s.take("bundles/example.pem"), byHand) {
		t.Errorf("it is not as it was (%v, %v)", info, err)
	}
}

func TestBundlesAreForTheOwnerOnly(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	s.put("bundles/first.pem", s.other.PEM())
	s.start()
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	tgt := target(generation(t), "example")
	got := s.activate(s.proxy(), tgt)
	if info, err := os.Stat(got.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(s.path("journal")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("journal: mode %v, %v", info.Mode(), err)
	}

	if err := os.Chmod(got.File, 0o644); err != nil {
		t.Fatal(err)
	}
	if seen := s.inspect(s.proxy(), tgt); !strings.Contains(seen.Disk.Note, "mode 0644: others can read") {
		t.Errorf("an open file is not told: %+v", seen.Disk)
	}
	want(t, s.activate(s.proxy(), tgt), cluster.Done, cluster.Proven)
	if info, err := os.Stat(got.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAGroupMayReadBundlesWhereConfigured(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	s.put("bundles/first.pem", s.other.PEM())
	s.start()
	group := ownGroup(t)
	got := s.activate(s.proxy(func(c *haproxy.Config) { c.BundleGroup = group }), target(generation(t), "example"))
	want(t, got, cluster.Done, cluster.Proven)
	if info, err := os.Stat(got.File); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got = s.activate(s.proxy(func(c *haproxy.Config) { c.BundleGroup = "no-such-group-here" }), target(generation(t), "another"))
	if got.Outcome != cluster.Failure || !strings.Contains(got.Hint, "bundle_group") {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
}

func TestWhatAKilledWriterLeftIsSwept(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	s.put("bundles/first.pem", s.other.PEM())
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	s.put(fmt.Sprintf("bundles/.certsync-%d-1", dead.Process.Pid), []byte("half a key"))
	s.put(fmt.Sprintf("bundles/.certsync-%d-1", os.Getpid()), []byte("being written"))
	s.put("bundles/.hidden", []byte("somebody's"))
	s.start()
	want(t, s.activate(s.proxy(), target(generation(t), "example")), cluster.Done, cluster.Proven)
	left, err := filepath.Glob(s.path("bundles/.*"))
	if err != nil || len(left) != 2 || filepath.Base(left[1]) != ".hidden" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestABundleFolderThatIsMissingIsNamed(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/elsewhere/")
	s.start()
	got := s.activate(s.proxy(func(c *haproxy.Config) { c.BundleDir = s.path("nowhere") }), target(generation(t), "example"))
	if got.Outcome != cluster.Failure || !strings.Contains(got.Hint, "make the folder "+s.path("nowhere")) {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
}

func TestAFolderOrPipeInTheBundlesPlaceIsAnError(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/elsewhere/")
	s.start()
	if err := os.Mkdir(s.path("bundles/folder.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(s.path("bundles/pipe.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"folder", "pipe"} {
		tgt := target(generation(t), name)
		tgt.Path = s.path("bundles/" + name + ".pem")
		if got := s.activate(s.proxy(), tgt); got.Outcome != cluster.Failure || !strings.Contains(got.Error, "replace") {
			t.Errorf("%s: outcome %q: %s", name, got.Outcome, describe(got))
		}
	}
}

func TestAnotherCertsyncIsWaitedForAndThenReported(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	inside, release := make(chan struct{}), make(chan struct{})
	first := true
	w := &wire{before: func(command string) bool {
		if strings.HasPrefix(command, "commit") && first {
			first = false
			close(inside)
			<-release
		}
		return true
	}}
	tgt := target(generation(t), "example", old)
	done := make(chan cluster.Placement)
	go func() {
		out, err := s.proxy(w.use).Activate(context.Background(), []cluster.Target{tgt})
		if err != nil || len(out) != 1 {
			close(done)
			return
		}
		done <- out[0]
	}()
	<-inside
	if _, err := s.proxy().Activate(context.Background(), []cluster.Target{tgt}); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("a second certsync: %v", err)
	}
	if seen := s.inspect(s.proxy(), tgt); seen.Served.Fingerprint != old.Fingerprint() {
		t.Errorf("Inspect under the lock: %s", describe(seen))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.proxy().Activate(ctx, []cluster.Target{tgt}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled certsync: %v", err)
	}
	close(release)
	if got := <-done; got.Outcome != cluster.Done {
		t.Errorf("the first certsync: outcome %q: %s", got.Outcome, describe(got))
	}
}

func TestACancelledActivationIsUndone(t *testing.T) {
	for _, at := range []string{"set ssl cert", "show ssl cert *", "commit"} {
		s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
		s.start()
		ctx, cancel := context.WithCancel(context.Background())
		w := &wire{before: func(command string) bool {
			if strings.HasPrefix(command, at) {
				cancel()
			}
			return true
		}}
		tgt := target(generation(t), "example", old)
		out, err := s.proxy(w.use).Activate(ctx, []cluster.Target{tgt})
		if err != nil {
			t.Fatal(err)
		}
		seen := s.inspect(s.proxy(), tgt)
		if list := s.command("show ssl cert\n"); strings.Contains(list, "# transaction") {
			t.Errorf("%s: a transaction is open: %s", at, list)
		}
		// A commit that was sent may be done: then all of it is.
		all := out[0].Outcome == cluster.Unproven && seen.Proof == cluster.Proven && seen.Disk.Fingerprint == tgt.Bundle.Fingerprint()
		none := out[0].Outcome == cluster.Failure && seen.Served.Fingerprint == old.Fingerprint() && seen.Disk.Fingerprint == old.Fingerprint()
		if !all && !none {
			t.Errorf("%s: outcome %q: %s", at, out[0].Outcome, describe(seen))
		}
	}
}

func TestADamagedJournalIsNotTrustedAndANewerOneIsLeftAlone(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	want(t, s.activate(s.proxy(), target(generation(t), "example", old)), cluster.Done, cluster.Proven)
	dead := false
	w := &wire{before: func(command string) bool { dead = dead || strings.HasPrefix(command, "commit "); return !dead }}
	s.activate(s.proxy(w.use), target(generation(t), "example"))
	files, err := filepath.Glob(s.path("journal/transaction-*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the journal has %v, %v", files, err)
	}
	s.command("abort ssl cert " + s.path("bundles/example.pem") + "\n")
	for _, text := range []string{"", "{", "null", `{"version":1}`, "\x00\x00"} {
		if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.activate(s.proxy(), target(generation(t), "example")); got.Outcome != cluster.Done {
			t.Errorf("with %q in the journal: outcome %q: %s", text, got.Outcome, describe(got))
		}
	}
	newer := []byte(`{"version":99,"name":"x","sha1":"y"}`)
	if err := os.WriteFile(files[0], newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.proxy().Activate(context.Background(), []cluster.Target{target(generation(t), "example")}); !errors.Is(err, cluster.ErrNewerFormat) {
		t.Errorf("with a newer journal: %v", err)
	}
	if data, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(data, newer) {
		t.Errorf("the newer journal was touched (%v)", err)
	}
}

func TestNewTellsAllThatIsWrong(t *testing.T) {
	_, err := haproxy.New(haproxy.Config{Name: "x", BundleDir: "/certs", JournalDir: "/certs/journal", RuntimeSocket: "sock", Verify: []string{"*:443", "127.0.0.1:443", "[::1]:443", "unix@/x", "/x", "unix@x", "localhost"}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range []string{"journal's folder", `"sock"`, `"*:443"`, `"x"`, `"localhost"`} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s is not told: %v", text, err)
		}
	}
	for _, text := range []string{`"127.0.0.1:443"`, `"[::1]:443"`, `"/x"`} {
		if strings.Contains(err.Error(), text) {
			t.Errorf("%s is refused: %v", text, err)
		}
	}
	if _, err := haproxy.New(haproxy.Config{}); err == nil || !strings.Contains(err.Error(), "bundle_dir") || !strings.Contains(err.Error(), "runtime_socket") {
		t.Errorf("an empty configuration: %v", err)
	}
}

func TestAnExpiredOrFutureBundleIsNotWritten(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/elsewhere/")
	s.start()
	now := time.Now()
	for name, o := range map[string]certtest.Options{
		"expired":       {NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(-time.Minute)},
		"not yet valid": {NotBefore: now.Add(48 * time.Hour), NotAfter: now.Add(96 * time.Hour)},
	} {
		o.Domains = domains
		got := s.activate(s.proxy(), target(issue(t, o), "example"))
		if got.Outcome != cluster.Failure || !strings.Contains(got.Error, name) {
			t.Errorf("%s: outcome %q: %s", name, got.Outcome, describe(got))
		}
		if _, err := os.Stat(got.File); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it was written (%v)", name, err)
		}
	}
}

func TestInspectWithoutABundleTellsWhatIsThere(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	slot := cert.Slot{Name: "example", Algorithm: cert.ECDSA}
	got := s.inspect(s.proxy(), cluster.Target{Slot: slot, Domains: domains})
	if got.Disk.Fingerprint != old.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() || got.Served.Fingerprint != old.Fingerprint() || got.Proof != cluster.NoProof {
		t.Errorf("%s", describe(got))
	}
	// A certificate that is not at hand has its SHA-1 only.
	s.put("bundles/example.pem", []byte("junk"))
	got = s.inspect(s.proxy(), cluster.Target{Slot: slot, Domains: domains})
	if !got.Memory.Fingerprint.IsZero() || got.Memory.SHA1 != old.SHA1() || got.Disk.Note == "" {
		t.Errorf("%s", describe(got))
	}
	got = s.inspect(s.proxy(), cluster.Target{Slot: cert.Slot{Name: "none", Algorithm: cert.ECDSA}, Domains: []string{"none.test"}})
	if got.Disk.Note != "no file" || got.Memory.Note != "not in HAProxy's memory" {
		t.Errorf("%s", describe(got))
	}
}

func TestARelativeNameIsNeverGuessed(t *testing.T) {
	s := newSite(t, fakeBackend, "crt sub/example.pem")
	if err := os.Mkdir(s.path("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	theirs := generation(t)
	s.put("sub/example.pem", theirs.PEM())
	s.start()
	// A file of the same name elsewhere, which HAProxy does not mean.
	if err := os.MkdirAll(s.path("mine/sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	ours := generation(t)
	s.put("mine/sub/example.pem", ours.PEM())
	tgt := target(generation(t), "example", ours)
	tgt.Path = s.path("mine/sub/example.pem")
	got := s.activate(s.proxy(), tgt)
	if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "cannot be told") || !strings.Contains(got.Hint, "absolute path") {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
	if got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || got.Served.Fingerprint != theirs.Fingerprint() {
		t.Errorf("%s", describe(got))
	}
}

func TestWhatHAProxysOwnACMELooksAfterIsLeftAlone(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	s.server.(*haproxytest.Fake).Answer(func(command string) (string, bool) {
		return "# certificate\tsection\tstate\n" + s.path("bundles/example.pem") + "\tLE\tScheduled\n\n", command == "acme status"
	})
	got := s.activate(s.proxy(), target(generation(t), "example", old))
	if got.Outcome != cluster.Failure || !strings.Contains(got.Error, "own ACME client") || got.Disk.Fingerprint != old.Fingerprint() {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
}

// A HAProxy that is replaced in the middle, as by a reload: its successor knows nothing of the transaction.
func TestAReloadInTheMiddleIsAFailureThatTheNextPassMends(t *testing.T) {
	s, old := withOld(t, fakeBackend, "crt DIR/bundles/")
	s.start()
	reloaded := false
	w := &wire{before: func(command string) bool {
		if strings.HasPrefix(command, "commit") && !reloaded {
			reloaded = true
			s.restart()
		}
		return true
	}}
	tgt := target(generation(t), "example", old)
	if got := s.activate(s.proxy(w.use), tgt); got.Outcome == cluster.Done && got.Proof != cluster.Proven {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
	got := s.activate(s.proxy(), tgt)
	if got.Outcome != cluster.Done && got.Outcome != cluster.Unchanged {
		t.Errorf("the next pass: outcome %q: %s", got.Outcome, describe(got))
	}
	s.wantServed(got, tgt.Bundle)
}

func TestAFileThatHoldsTheWantedBundleIsMendedWhenItIsSpoilt(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		wanted := generation(t)
		s.put("bundles/example.pem", wanted.PEM()) // put there by hand, or by a certsync whose state was lost
		s.start()
		p := s.proxy()
		want(t, s.activate(p, target(wanted, "example")), cluster.Unchanged, cluster.Proven)
		s.put("bundles/example.pem", []byte("spoilt\n"))
		want(t, s.activate(p, target(wanted, "example")), cluster.Done, cluster.Proven)
		if got := s.take("bundles/example.pem"); !bytes.Equal(got, wanted.PEM()) {
			t.Errorf("the file holds %q", got)
		}
	})
}
