package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// testNow is the clock of the tests.
var testNow = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func clock() time.Time { return testNow }

// testCA is made once: every test can use the same.
var testCA = sync.OnceValue(func() *certtest.CA {
	ca, err := certtest.New()
	if err != nil {
		panic(err)
	}
	return ca
})

// issue makes a generation of name, valid from notBefore for 90 days.
func issue(t testing.TB, name string, sequence uint64, notBefore time.Time) cluster.Kept {
	t.Helper()
	b := testCA().Issue(t, certtest.Options{NotBefore: notBefore, Chain: true})
	return cluster.Kept{Generation: b.Generation(name, sequence), Bundle: b}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Now: clock})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

// fresh is a new store in a folder of its own. It does not wait for the disk, which matters in a power cut only;
// faults_test.go tells what is synced when, and the child processes do wait.
func fresh(t testing.TB) *Store {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "state"))
	s.disk.sync = func(*os.File) error { return nil }
	return s
}

func keep(t testing.TB, s *Store, kept ...cluster.Kept) {
	t.Helper()
	for _, k := range kept {
		if err := s.Keep(t.Context(), k); err != nil {
			t.Fatalf("Keep: %v", err)
		}
	}
}

func merge(t testing.TB, s *Store, r cluster.Records) {
	t.Helper()
	if err := s.Merge(t.Context(), r); err != nil {
		t.Fatalf("Merge: %v", err)
	}
}

func records(t testing.TB, s *Store) cluster.Records {
	t.Helper()
	r, err := s.Records(t.Context())
	if err != nil {
		t.Fatalf("Records: %v", err)
	}
	return r
}

func generations(t testing.TB, s *Store) []cert.Generation {
	t.Helper()
	all, err := s.Generations(t.Context())
	if err != nil {
		t.Fatalf("Generations: %v", err)
	}
	return all
}

func wantGenerations(t testing.TB, s *Store, want ...cluster.Kept) {
	t.Helper()
	have := generations(t, s)
	if len(have) != len(want) {
		t.Fatalf("%d generations are held, want %d: %v", len(have), len(want), have)
	}
	for _, k := range want {
		if !slices.Contains(have, k.Generation) {
			t.Errorf("%v is not held", k.Generation)
			continue
		}
		b, err := s.Bundle(t.Context(), k.Generation)
		if err != nil {
			t.Errorf("Bundle: %v", err)
		} else if string(b.PEM()) != string(k.Bundle.PEM()) {
			t.Errorf("the bundle of %v came back changed", k.Generation)
		}
	}
}

func noProblems(t testing.TB, s *Store) {
	t.Helper()
	if p := s.Problems(t.Context()); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
}

// newOrder is an open order of name with a key of its own.
func newOrder(t testing.TB, id, name string) cluster.Order {
	t.Helper()
	key, err := cert.EC256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := cert.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Order{ID: id, Slot: cert.Slot{Name: name, Algorithm: cert.ECDSA}, Domains: []string{name}, KeyType: cert.EC256,
		Directory: "https://ca.test/directory", Account: "account", Key: pem, Step: cluster.StepPlanned, Node: "proxy1",
		Created: testNow, Expires: testNow.Add(7 * 24 * time.Hour)}
}

func newAccount(t testing.TB, directory string, created time.Time) cluster.Account {
	t.Helper()
	a, err := cluster.NewAccount(directory, "ops@example.org", created)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newAttempt(id, name string) cluster.Attempt {
	return cluster.Attempt{ID: id, Node: "proxy1", Slot: cert.Slot{Name: name, Algorithm: cert.ECDSA}, Directory: "https://ca.test/directory",
		Domains: []string{name}, Order: "o-" + id, Time: testNow}
}

// allRecords has one of everything.
func allRecords(t testing.TB) cluster.Records {
	t.Helper()
	a := newAccount(t, "https://ca.test/directory", testNow)
	o := newOrder(t, "order1", "example.org")
	o.Account = a.Thumbprint
	k := issue(t, "example.org", 7, testNow)
	return cluster.Records{Accounts: []cluster.Account{a}, Orders: []cluster.Order{o},
		Ledger:     []cluster.Attempt{newAttempt("a1", "example.org")},
		Tombstones: []cluster.Tombstone{{Fingerprint: issue(t, "x", 1, testNow).Generation.Fingerprint, Name: "x", Time: testNow, Reason: "keyCompromise"}},
		Releases:   []cluster.Release{{Generation: k.Generation, Node: "proxy1", Time: testNow}},
		Renewals: []cluster.RenewalInfo{{Generation: k.Generation, CertID: "aYhb.AIdl", Directory: a.Directory, Start: testNow, End: testNow.Add(time.Hour),
			Node: "proxy1", Time: testNow, Revision: 1, Again: testNow.Add(6 * time.Hour)}},
		Revocations: []cluster.Revocation{{Generation: k.Generation, Reason: cluster.KeyCompromise, Directory: a.Directory, Node: "proxy1",
			Time: testNow, Revision: 1}}}
}

// files lists every file and folder under dir with what identifies a version of it.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		out[rel] = fmt.Sprintf("%v inode %d %d bytes %v", info.Mode(), info.Sys().(*syscall.Stat_t).Ino, info.Size(), info.ModTime())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEverythingIsInPrivateFilesAndFolders(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s := fresh(t)
	keep(t, s, issue(t, "example.org", 1, testNow))
	merge(t, s, allRecords(t))
	count := 0
	for name, version := range files(t, s.dir) {
		want := "-rw------- "
		if strings.HasPrefix(version, "d") {
			want = "drwx------ "
		}
		if !strings.HasPrefix(version, want) {
			t.Errorf("%s: %s, want %s", name, version, want)
		}
		count++
	}
	if count < 15 {
		t.Errorf("%d files and folders were looked at: something was not written", count)
	}
}

func TestTheLayoutIsTheDocumentedOne(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 42, testNow)
	keep(t, s, k)
	r := allRecords(t)
	merge(t, s, r)
	have := files(t, s.dir)
	for _, want := range []string{
		"format", "actor.lock", "store.lock", "ledger.json", "tombstones.json", "releases.json", "orders/order1.json", "tmp", "aside",
		"generations/example.org/ecdsa/00000000000000000042-20261124T090000Z-20270222T090000Z-" + k.Generation.Fingerprint.String() + ".pem",
	} {
		if have[want] == "" {
			t.Errorf("%s is missing", want)
		}
	}
	accounts, err := filepath.Glob(filepath.Join(s.dir, "accounts", r.Accounts[0].Thumbprint+"-*.json"))
	if err != nil || len(accounts) != 1 {
		t.Errorf("the account's files are %q (%v), want one", accounts, err)
	}
	format, err := os.ReadFile(s.path("format"))
	if err != nil || string(format) != "{\"format\":1}\n" {
		t.Errorf("the format file is %q (%v)", format, err)
	}
}

func TestOpenMakesMissingParents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "db", "certsync")
	keep(t, open(t, dir), issue(t, "example.org", 1, testNow))
	if n := len(generations(t, open(t, dir))); n != 1 {
		t.Errorf("%d generations after a second Open, want 1", n)
	}
}

func TestOpenRefusesWhatOthersCanWriteTo(t *testing.T) {
	for _, mode := range []fs.FileMode{0o770, 0o702, 0o777} {
		for _, sub := range []string{".", "generations", "orders", "accounts", "tmp", "aside"} {
			dir := filepath.Join(t.TempDir(), "state")
			open(t, dir)
			if err := os.Chmod(filepath.Join(dir, sub), mode); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, Options{})
			if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, sub)) || !strings.Contains(err.Error(), "others can write") {
				t.Errorf("%s with mode %o: error %v", sub, mode, err)
			}
			if !strings.HasPrefix(cluster.HintOf(err), "chmod ") {
				t.Errorf("%s with mode %o: hint %q", sub, mode, cluster.HintOf(err))
			}
		}
	}
}

func TestOpenClosesFoldersThatOthersCanRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	open(t, dir)
	if err := os.Chmod(filepath.Join(dir, "orders"), 0o755); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if info, err := os.Stat(filepath.Join(dir, "orders")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("orders: %v, %v; want mode 0700", info.Mode(), err)
	}
}

// On a file system that is mounted read-only a needless chmod would fail, and `status` with it.
func TestOpenChangesNoFolderThatIsAsItShouldBe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	changed := func(name string) unix.Timespec {
		var stat unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &stat); err != nil {
			t.Fatal(err)
		}
		return stat.Ctim
	}
	open(t, dir)
	before := changed("generations")
	for tick := changed("tmp"); tick == before; tick = changed("tmp") { // until the file system's clock has moved on
		if err := os.Chmod(filepath.Join(dir, "tmp"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if after := changed("generations"); after != before {
		t.Errorf("generations is changed by an Open at %v, was at %v", after, before)
	}
}

func TestOpenSaysItsFolderOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	open(t, dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || strings.Count(err.Error(), dir) != 1 {
		t.Errorf("error %v", err)
	}
}

func TestOpenRefusesTheStateOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "chown needs root")
	}
	dir := filepath.Join(t.TempDir(), "state")
	open(t, dir)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), "belongs to uid 65534") || cluster.HintOf(err) != "run it as "+userName(65534) {
		t.Errorf("error %v, hint %q", err, cluster.HintOf(err))
	}
	if after := files(t, dir); !reflect.DeepEqual(before, after) {
		t.Error("the refused state was changed")
	}
}

func TestOpenRefusesWhatIsNoFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil || !strings.Contains(err.Error(), "is not a folder") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Open(filepath.Join(file, "state"), Options{}); err == nil {
		t.Error("a folder below a file was opened")
	}
	state := filepath.Join(dir, "state")
	open(t, state)
	if err := os.Remove(filepath.Join(state, "orders")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "orders"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(state, Options{}); err == nil || !strings.Contains(err.Error(), "orders is not a folder") {
		t.Errorf("a file in the place of orders: %v", err)
	}
}

// every names each call and makes it.
func every(t *testing.T, s *Store, k cluster.Kept) map[string]error {
	t.Helper()
	out := map[string]error{}
	_, out["Generations"] = s.Generations(t.Context())
	_, out["Bundle"] = s.Bundle(t.Context(), k.Generation)
	out["Keep"] = s.Keep(t.Context(), k)
	_, out["Records"] = s.Records(t.Context())
	out["Merge"] = s.Merge(t.Context(), allRecords(t))
	out["Forget"] = s.Forget(t.Context(), k.Generation.Slot)
	_, out["LockActor"] = s.LockActor(t.Context(), "test")
	_, out["Open"] = Open(s.dir, Options{})
	return out
}

func TestNewerStateIsRefusedUntouchedByEveryCall(t *testing.T) {
	for _, content := range []string{`{"format":2}`, `{"format":99,"new":true}` + "\n"} {
		s := fresh(t)
		k := issue(t, "example.org", 1, testNow)
		keep(t, s, k)
		// A file that today's rules would set aside may be the newer certsync's.
		if err := os.WriteFile(s.path("orders/strange"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path("format"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		before := files(t, s.dir)
		for call, err := range every(t, s, k) {
			if !errors.Is(err, cluster.ErrNewerFormat) {
				t.Errorf("%s on %s: %v, want ErrNewerFormat", call, content, err)
			}
			if cluster.HintOf(err) == "" {
				t.Errorf("%s on %s: no hint", call, content)
			}
		}
		if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "newer certsync") {
			t.Errorf("Problems on %s: %q", content, p)
		}
		// The store lock's file is written by each that holds it.
		after := files(t, s.dir)
		for _, m := range []map[string]string{before, after} {
			delete(m, "store.lock")
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("newer state was changed:\nbefore %v\nafter %v", before, after)
		}
	}
}

func TestAFormatThatCannotBeReadIsRefused(t *testing.T) {
	for _, content := range []string{"", "{", `{"format":0}`, `{"format":"x"}`, `{}`, "\x00\x00\x00"} {
		s := fresh(t)
		if err := os.WriteFile(s.path("format"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for call, err := range every(t, s, issue(t, "example.org", 1, testNow)) {
			if err == nil || !strings.Contains(err.Error(), s.path("format")) {
				t.Errorf("%s on the format %q: %v", call, content, err)
			}
			if cluster.HintOf(err) == "" {
				t.Errorf("%s on the format %q: no hint", call, content)
			}
		}
	}
}

func TestStateThatVanishedIsAnErrorAndNotAnEmptyState(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	calls := every(t, s, k)
	delete(calls, "Open")
	for call, err := range calls {
		if err == nil {
			t.Errorf("%s succeeded without a state_dir", call)
		}
	}
}

func TestTwoStoresOnOneFolderSeeEachOther(t *testing.T) {
	a := fresh(t)
	b := open(t, a.dir)
	k1, k2 := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow)
	keep(t, a, k1)
	wantGenerations(t, b, k1)
	keep(t, b, k2)
	wantGenerations(t, a, k1, k2)
	merge(t, b, cluster.Records{Ledger: []cluster.Attempt{newAttempt("a1", "example.org")}})
	merge(t, a, cluster.Records{Ledger: []cluster.Attempt{newAttempt("a2", "example.org")}})
	for _, s := range []*Store{a, b} {
		if n := len(records(t, s).Ledger); n != 2 {
			t.Errorf("%d attempts, want 2", n)
		}
	}
}

func TestACallWhoseContextEndedDoesNothing(t *testing.T) {
	s := fresh(t)
	keep(t, s, issue(t, "other.org", 1, testNow))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := issue(t, "example.org", 1, testNow)
	before := files(t, s.dir)
	if err := s.Keep(ctx, k); !errors.Is(err, context.Canceled) {
		t.Errorf("Keep: %v", err)
	}
	if err := s.Merge(ctx, allRecords(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Merge: %v", err)
	}
	if _, err := s.Generations(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Generations: %v", err)
	}
	if _, err := s.Records(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Records: %v", err)
	}
	if _, err := s.Bundle(ctx, k.Generation); !errors.Is(err, context.Canceled) {
		t.Errorf("Bundle: %v", err)
	}
	if err := s.Forget(ctx, cert.Slot{Name: "other.org", Algorithm: cert.ECDSA}); !errors.Is(err, context.Canceled) {
		t.Errorf("Forget: %v", err)
	}
	if _, err := s.LockActor(ctx, "test"); !errors.Is(err, context.Canceled) {
		t.Errorf("LockActor: %v", err)
	}
	if after := files(t, s.dir); !reflect.DeepEqual(before, after) {
		t.Error("something was changed")
	}
}

// skip skips on a laptop; under CI a part that is not tested is a failure.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s (under CI nothing is skipped)", why)
	}
	t.Skip(why)
}
