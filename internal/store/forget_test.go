package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func forget(t *testing.T, s *Store, name string) {
	t.Helper()
	if err := s.Forget(t.Context(), cert.Slot{Name: name, Algorithm: cert.ECDSA}); err != nil {
		t.Fatalf("Forget: %v", err)
	}
}

func release(k cluster.Kept) cluster.Records {
	return cluster.Records{Releases: []cluster.Release{{Generation: k.Generation, Node: "proxy1", Time: testNow}}}
}

func TestForgetDropsASlotAndNothingElse(t *testing.T) {
	s := fresh(t)
	a1, a2, b := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow), issue(t, "example.net", 1, testNow)
	keep(t, s, a1, a2, b)
	for _, k := range []cluster.Kept{a2, b} {
		merge(t, s, release(k))
	}
	merge(t, s, cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: a1.Generation.Fingerprint, Name: a1.Generation.Name, Time: testNow}}})
	forget(t, s, "example.org")
	wantGenerations(t, s, b)
	r := records(t, s)
	if len(r.Releases) != 1 || r.Releases[0].Generation != b.Generation || len(r.Tombstones) != 1 {
		t.Errorf("records: %s", asJSON(t, r))
	}
	if _, err := os.Stat(s.path("generations/example.org")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its folder is still there (%v)", err)
	}
	noProblems(t, s)

	forget(t, s, "example.org") // a second time
	forget(t, s, "never.there")
	wantGenerations(t, s, b)

	// The name may come back, with a count of its own.
	again := issue(t, "example.org", 1, testNow)
	keep(t, s, again)
	merge(t, s, release(again))
	wantGenerations(t, s, b, again)
}

func TestForgetLeavesTheOtherKeyType(t *testing.T) {
	s := fresh(t)
	ecdsa := issue(t, "example.org", 1, testNow)
	b := testCA().Issue(t, certtest.Options{Domains: []string{"example.org"}, KeyType: cert.RSA2048, NotBefore: testNow.Add(-1), Chain: true})
	rsa := cluster.Kept{Generation: b.Generation("example.org", 1), Bundle: b}
	keep(t, s, ecdsa, rsa)
	forget(t, s, "example.org")
	wantGenerations(t, s, rsa)
	noProblems(t, s)
}

func TestForgetRefusesWhatIsNoSlot(t *testing.T) {
	s := fresh(t)
	for _, slot := range []cert.Slot{{}, {Name: "..", Algorithm: cert.ECDSA}, {Name: "a/b", Algorithm: cert.ECDSA}, {Name: "example.org", Algorithm: "../ecdsa"}} {
		if err := s.Forget(context.Background(), slot); err == nil {
			t.Errorf("%q: no error", slot)
		}
	}
}

func TestForgetTellsADiskThatFails(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	system := s.disk
	s.disk.remove = func(string) error { return errors.New("input/output error") }
	if err := s.Forget(t.Context(), k.Generation.Slot); err == nil {
		t.Error("no error")
	}
	s.disk = system
	wantGenerations(t, s, k)
	forget(t, s, "example.org")
	wantGenerations(t, s)
}

func TestAForgetKilledAnywhereIsFinishedByTheNext(t *testing.T) {
	for _, point := range []string{"store.temp", "store.renamed", "store.remove", "store.remove#2", "store.forgotten"} {
		t.Run(point, func(t *testing.T) {
			s := fresh(t)
			k1, k2, other := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow), issue(t, "example.net", 1, testNow)
			keep(t, s, k1, k2, other)
			merge(t, s, release(k2))
			if !killed(t, child(t, point, s.dir, "forget", "example.org")) {
				t.Fatal("the child passed the failpoint alive")
			}
			cleanAfterKill(t, s)
			for _, r := range records(t, s).Releases {
				if len(generations(t, s)) < 3 && r.Generation.Slot == k1.Generation.Slot {
					t.Error("a release is left of generations that are gone")
				}
			}
			if killed(t, child(t, "", s.dir, "forget", "example.org")) {
				t.Fatal("the second run was killed")
			}
			wantGenerations(t, s, other)
			cleanAfterKill(t, s)
		})
	}
}
