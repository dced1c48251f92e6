package store

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func TestAGenerationComesBackAsItWasKept(t *testing.T) {
	s := fresh(t)
	var want []cluster.Kept
	for _, o := range []certtest.Options{{}, {Chain: true}, {KeyType: cert.RSA2048, Chain: true, Root: true}, {KeyType: cert.EC384}, {Padding: 60000}} {
		b := testCA().Issue(t, o)
		want = append(want, cluster.Kept{Generation: b.Generation("example.org", uint64(len(want)+1)), Bundle: b})
	}
	keep(t, s, want...)
	wantGenerations(t, s, want...)
	wantGenerations(t, open(t, s.dir), want...)
	noProblems(t, s)
}

func TestKeepingAGenerationTwiceWritesNothing(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	before := files(t, s.dir)
	keep(t, s, k)
	keep(t, open(t, s.dir), k)
	after := files(t, s.dir)
	for _, m := range []map[string]string{before, after} {
		delete(m, "store.lock")
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

func TestOneBundleMayBeTwoGenerations(t *testing.T) {
	// A roll-back gives an earlier bundle a new sequence.
	s := fresh(t)
	old, next := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow)
	back := cluster.Kept{Generation: old.Bundle.Generation("example.org", 3), Bundle: old.Bundle}
	keep(t, s, old, next, back)
	wantGenerations(t, s, old, next, back)
	if newest := cluster.Newest(generations(t, s), nil, old.Generation.Slot); newest != back.Generation {
		t.Errorf("the newest is %v, want %v", newest, back.Generation)
	}
}

func TestKeepRefusesABundleThatIsNotTheGenerations(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	other := issue(t, "example.org", 1, testNow)
	change := map[string]func(*cluster.Kept){
		"no bundle":            func(k *cluster.Kept) { k.Bundle = nil },
		"another bundle":       func(k *cluster.Kept) { k.Bundle = other.Bundle },
		"another fingerprint":  func(k *cluster.Kept) { k.Generation.Fingerprint[0] ^= 1 },
		"no fingerprint":       func(k *cluster.Kept) { k.Generation.Fingerprint = cert.Fingerprint{} },
		"another algorithm":    func(k *cluster.Kept) { k.Generation.Algorithm = cert.RSA },
		"an unknown algorithm": func(k *cluster.Kept) { k.Generation.Algorithm = "../../x" },
		"another notBefore":    func(k *cluster.Kept) { k.Generation.NotBefore = testNow.Add(time.Second) },
		"another notAfter":     func(k *cluster.Kept) { k.Generation.NotAfter = testNow },
		"no name":              func(k *cluster.Kept) { k.Generation.Name = "" },
		"a path for a name":    func(k *cluster.Kept) { k.Generation.Name = "../../../etc" },
		"a hidden name":        func(k *cluster.Kept) { k.Generation.Name = ".ssh" },
		"a name with a NUL":    func(k *cluster.Kept) { k.Generation.Name = "a\x00b" },
		"a name of 5,000":      func(k *cluster.Kept) { k.Generation.Name = strings.Repeat("a", 5000) },
	}
	for what, f := range change {
		bad := k
		f(&bad)
		if err := s.Keep(t.Context(), bad); err == nil {
			t.Errorf("%s was kept", what)
		}
	}
	if held := generations(t, s); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
	noProblems(t, s)
}

func TestKeepTakesAGenerationWhoseTimesAreNotInUTC(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	zone := time.FixedZone("somewhere", 3600)
	away := k
	away.Generation.NotBefore, away.Generation.NotAfter = k.Generation.NotBefore.In(zone), k.Generation.NotAfter.In(zone)
	keep(t, s, away, k)
	wantGenerations(t, s, k)
}

func TestKeepRefusesARevokedFingerprint(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	merge(t, s, cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: k.Generation.Fingerprint, Time: testNow}}})
	if err := s.Keep(t.Context(), k); !errors.Is(err, cluster.ErrRevoked) {
		t.Errorf("Keep: %v, want ErrRevoked", err)
	}
	again := cluster.Kept{Generation: k.Bundle.Generation("other.org", 9), Bundle: k.Bundle}
	if err := s.Keep(t.Context(), again); !errors.Is(err, cluster.ErrRevoked) {
		t.Errorf("Keep under another name: %v, want ErrRevoked", err)
	}
	if held := generations(t, s); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
}

func TestKeepRefusesAJump(t *testing.T) {
	s := fresh(t)
	keep(t, s, issue(t, "example.org", 5, testNow))
	if err := s.Keep(t.Context(), issue(t, "example.org", math.MaxUint64, testNow)); !errors.Is(err, cluster.ErrJump) {
		t.Errorf("Keep: %v, want ErrJump", err)
	}
	keep(t, s, issue(t, "example.org", 1005, testNow))
	keep(t, s, issue(t, "other.org", math.MaxUint64, testNow)) // a node that holds none takes any
}

func TestABoundedNumberIsKeptAndNeverFewerThanTheNewest(t *testing.T) {
	s := fresh(t)
	var all []cluster.Kept
	for i := range uint64(12) {
		all = append(all, issue(t, "example.org", i+1, testNow))
	}
	bystander := issue(t, "other.org", 1, testNow)
	keep(t, s, bystander)
	keep(t, s, all...)
	wantGenerations(t, s, append([]cluster.Kept{bystander}, all[7:]...)...)
	noProblems(t, s)
}

func TestWhatAReleaseNamesIsNotDropped(t *testing.T) {
	s := fresh(t)
	var all []cluster.Kept
	for i := range uint64(9) {
		all = append(all, issue(t, "example.org", i+1, testNow))
	}
	keep(t, s, all[0])
	merge(t, s, cluster.Records{Releases: []cluster.Release{{Generation: all[0].Generation, Node: "proxy1", Time: testNow}}})
	keep(t, s, all[1:]...)
	wantGenerations(t, s, append([]cluster.Kept{all[0]}, all[4:]...)...)
	// Once another is released the first may go.
	merge(t, s, cluster.Records{Releases: []cluster.Release{{Generation: all[8].Generation, Node: "proxy1", Time: testNow}}})
	last := issue(t, "example.org", 10, testNow)
	keep(t, s, last)
	wantGenerations(t, s, append([]cluster.Kept{last}, all[5:]...)...)
}

func TestRevokedOnesDoNotPushOutTheOnesThatCanBeUsed(t *testing.T) {
	s := fresh(t)
	good := issue(t, "example.org", 1, testNow)
	keep(t, s, good)
	for i := range uint64(8) {
		k := issue(t, "example.org", i+2, testNow)
		keep(t, s, k)
		merge(t, s, cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: k.Generation.Fingerprint, Time: testNow}}})
	}
	r := records(t, s)
	if newest := cluster.Newest(generations(t, s), r.Tombstones, good.Generation.Slot); newest != good.Generation {
		t.Errorf("the newest sound one is %v, want %v", newest, good.Generation)
	}
	if n := len(generations(t, s)); n > DefaultKeep+1 {
		t.Errorf("%d are kept", n)
	}
}

func TestAnOlderGenerationFillsAGapAndIsNeverTheNewest(t *testing.T) {
	s := fresh(t)
	k := map[uint64]cluster.Kept{}
	for i := range uint64(8) {
		k[i] = issue(t, "example.org", i, testNow)
	}
	keep(t, s, k[3], k[7], k[5], k[4])
	if newest := cluster.Newest(generations(t, s), nil, k[7].Generation.Slot); newest != k[7].Generation {
		t.Errorf("the newest is %v", newest)
	}
	keep(t, s, k[6])
	if err := s.Keep(t.Context(), k[2]); !errors.Is(err, cluster.ErrStale) {
		t.Errorf("one older than all that are kept: %v, want ErrStale", err)
	}
	wantGenerations(t, s, k[3], k[4], k[5], k[6], k[7])
}

// TestTheNewestSurvivesEveryOrderOfArrival: whatever comes in whatever order, the newest ones are what is held.
func TestTheNewestSurvivesEveryOrderOfArrival(t *testing.T) {
	var pool []cluster.Kept
	for i := range 10 {
		pool = append(pool, issue(t, "example.org", uint64(i/2+1), testNow.Add(time.Duration(i)*time.Hour)))
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := fresh(t)
		s.keep = rapid.IntRange(1, 4).Draw(rt, "keep")
		arrivals := rapid.SliceOfN(rapid.SampledFrom(pool), 1, 12).Draw(rt, "arrivals")
		var newest cert.Generation
		for _, k := range arrivals {
			if err := s.Keep(t.Context(), k); err != nil && !errors.Is(err, cluster.ErrStale) {
				rt.Fatalf("Keep: %v", err)
			}
			if k.Generation.Newer(newest) {
				newest = k.Generation
			}
			held := generations(t, s)
			if newestOf(held) != newest || len(held) > s.keep {
				rt.Fatalf("held %v, the newest must be %v", held, newest)
			}
		}
	})
}

func TestBundleOfWhatIsNotHeld(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	if _, err := s.Bundle(t.Context(), k.Generation); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Bundle: %v, want fs.ErrNotExist", err)
	}
	k.Generation.Name = "../../etc/passwd"
	if _, err := s.Bundle(t.Context(), k.Generation); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Bundle of a path: %v", err)
	}
	noProblems(t, s)
}

// damage are ways in which a bundle's file can be wrong.
func damage(t *testing.T, k cluster.Kept) map[string][]byte {
	pem := k.Bundle.PEM()
	other := issue(t, "example.org", 1, testNow)
	flipped := append([]byte(nil), pem...)
	flipped[100] ^= 1
	out := map[string][]byte{
		"empty": nil, "zeros": make([]byte, len(pem)), "flipped": flipped, "other": other.Bundle.PEM(),
		"no key": k.Bundle.CertificatesPEM(), "key only": k.Bundle.KeyPEM(), "huge": make([]byte, 2<<20),
		"other key": append(k.Bundle.CertificatesPEM(), other.Bundle.KeyPEM()...),
	}
	return out
}

func TestATornGenerationIsSetAsideAndTheOthersStayUsable(t *testing.T) {
	k1, k2 := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow)
	for what, content := range damage(t, k2) {
		t.Run(what, func(t *testing.T) {
			s := fresh(t)
			keep(t, s, k1, k2)
			if err := os.WriteFile(s.path(bundlePath(k2.Generation)), content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := s.Bundle(t.Context(), k2.Generation)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("Bundle: %v", err)
			}
			if strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("the error shows the content: %v", err)
			}
			wantGenerations(t, s, k1)
			for _, s := range []*Store{s, open(t, s.dir)} {
				if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "aside/") || !strings.Contains(p[0], "torn") {
					t.Errorf("problems: %q", p)
				}
			}
			keep(t, s, k2) // from a peer, say
			wantGenerations(t, s, k1, k2)
		})
	}
}

func TestKeepReplacesATornFileOfTheSameGeneration(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	for what, content := range damage(t, k) {
		keep(t, s, k)
		if err := os.WriteFile(s.path(bundlePath(k.Generation)), content, 0o600); err != nil {
			t.Fatal(err)
		}
		keep(t, s, k)
		if _, err := s.Bundle(t.Context(), k.Generation); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantAside(t, s, len(damage(t, k)), torn)
}

// TestABundleCutAnywhereIsNeverTrusted cuts the file at each byte.
func TestABundleCutAnywhereIsNeverTrusted(t *testing.T) {
	s := fresh(t)
	b := testCA().Issue(t, certtest.Options{})
	k := cluster.Kept{Generation: b.Generation("example.org", 1), Bundle: b}
	pem := b.PEM()
	path := filepath.Join(s.dir, bundlePath(k.Generation))
	keep(t, s, k)
	for n := range len(pem) - 1 { // without the last newline it is whole
		if err := os.WriteFile(path, pem[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := s.readBundle(t.Context(), k.Generation); err == nil || len(found) != 1 {
			t.Fatalf("cut at %d of %d: error %v, findings %d", n, len(pem), err, len(found))
		}
	}
}

func TestForeignThingsAmongTheGenerationsAreSetAside(t *testing.T) {
	k := issue(t, "example.org", 3, testNow)
	name := bundleFile(k.Generation)
	for _, rel := range []string{
		"README", ".DS_Store", "example.org/notes.txt", "example.org/ecdsa/" + name + ".bak", "example.org/ecdsa/.swp",
		"example.org/ecdsa/3" + name, "example.org/ecdsa/" + strings.ToUpper(name[:100]) + name[100:], "example.org/ecdsa/0.pem",
		"example.org/ecdsa/" + strings.Replace(name, "T090000Z", "T090000.5Z", 1),
	} {
		s := fresh(t)
		keep(t, s, k)
		path := filepath.Join(s.dir, "generations", rel)
		if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		wantGenerations(t, s, k)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s lies there still (%v)", rel, err)
		}
		if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "foreign") {
			t.Errorf("%s: problems %q", rel, p)
		}
	}
	for _, rel := range []string{"not a name", ".hidden", "example.org/ed25519", "example.org/ecdsa/" + strings.Replace(name, "3-", "4-", 1)} {
		s := fresh(t)
		keep(t, s, k)
		if err := os.MkdirAll(filepath.Join(s.dir, "generations", rel, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		wantGenerations(t, s, k)
		if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "foreign") {
			t.Errorf("folder %s: problems %q", rel, p)
		}
	}
}

func TestAFileInTheWayOfASlotIsSetAside(t *testing.T) {
	for _, rel := range []string{"example.org", "example.org/ecdsa"} {
		s := fresh(t)
		path := filepath.Join(s.dir, "generations", rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		k := issue(t, "example.org", 1, testNow)
		keep(t, s, k)
		wantGenerations(t, s, k)
		if p := s.Problems(t.Context()); len(p) != 1 {
			t.Errorf("%s: problems %q", rel, p)
		}
	}
}

func TestASymlinkIsNotFollowed(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	path := s.path(bundlePath(k.Generation))
	elsewhere := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.Rename(path, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bundle(t.Context(), k.Generation); err == nil {
		t.Error("the bundle behind the symlink was trusted")
	}
	if held := generations(t, s); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Errorf("the file behind the symlink: %v", err)
	}
}

func TestHalfMadeSlotsAreNoProblem(t *testing.T) {
	s := fresh(t)
	for _, rel := range []string{"a.org", "b.org/ecdsa"} {
		if err := os.MkdirAll(filepath.Join(s.dir, "generations", rel), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if held := generations(t, s); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
	noProblems(t, s)
	k := issue(t, "b.org", 1, testNow)
	keep(t, s, k)
	wantGenerations(t, s, k)
}

// wantAside wants n files in aside/, more than are described one by one, told in one line.
func wantAside(t *testing.T, s *Store, n int, kind string) {
	t.Helper()
	entries, err := os.ReadDir(s.path(asideName))
	if err != nil || len(entries) != n || n <= mostDescribed {
		t.Errorf("%d files are set aside, want %d, more than %d (%v)", len(entries), n, mostDescribed, err)
	}
	p := s.Problems(t.Context())
	if len(p) != 1 || !strings.HasPrefix(p[0], fmt.Sprintf("%d %s files were set aside", n, kind)) || !strings.HasSuffix(p[0], "look at them, then remove them") {
		t.Errorf("problems %q", p)
	}
}
