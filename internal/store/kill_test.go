package store

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// places are the failpoints of a write.
var places = []string{"store.temp", "store.written", "store.rename", "store.renamed"}

// cleanAfterKill asserts what must hold whenever a process was killed: every file is whole, nothing had to be set
// aside, and no temporary file is left behind the next change.
func cleanAfterKill(t *testing.T, s *Store) {
	t.Helper()
	for _, g := range generations(t, s) {
		if _, err := s.Bundle(t.Context(), g); err != nil {
			t.Errorf("Bundle: %v", err)
		}
	}
	records(t, s)
	noProblems(t, s)
	merge(t, s, cluster.Records{})
	if left, err := os.ReadDir(s.path(tempName)); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v (%v)", left, err)
	}
}

func TestAKeepKilledAnywhereLeavesTheOldOrTheNew(t *testing.T) {
	k1, k2 := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow)
	fresher := issue(t, "new.example.org", 1, testNow)
	for _, c := range []struct {
		kept  cluster.Kept
		point string
	}{
		{k2, "store.temp"}, {k2, "store.written"}, {k2, "store.rename"}, {k2, "store.renamed"},
		{fresher, "store.mkdir"}, {fresher, "store.mkdir#2"}, {fresher, "store.temp"}, {fresher, "store.renamed"},
	} {
		t.Run(c.kept.Generation.Name+"_"+c.point, func(t *testing.T) {
			s := fresh(t)
			keep(t, s, k1)
			args := []string{"keep", c.kept.Generation.Name, strconv.FormatUint(c.kept.Generation.Sequence, 10), bundleOnDisk(t, c.kept)}
			if !killed(t, child(t, c.point, s.dir, args...)) {
				t.Fatal("the child passed the failpoint alive")
			}
			want := []cluster.Kept{k1}
			if c.point == "store.renamed" {
				want = append(want, c.kept)
			}
			wantGenerations(t, s, want...)
			cleanAfterKill(t, s)
			if killed(t, child(t, "", s.dir, args...)) {
				t.Fatal("the second run was killed")
			}
			wantGenerations(t, s, k1, c.kept)
			cleanAfterKill(t, s)
		})
	}
}

func TestAKeepKilledWhileItDropsOldOnesLosesNoNewOne(t *testing.T) {
	s := fresh(t)
	s.keep = 8
	var all []cluster.Kept
	for i := range uint64(9) {
		all = append(all, issue(t, "example.org", i+1, testNow))
	}
	keep(t, s, all[:8]...)
	// The child keeps 5, so four must go.
	args := []string{"keep", "example.org", "9", bundleOnDisk(t, all[8])}
	if !killed(t, child(t, "store.remove#2", s.dir, args...)) {
		t.Fatal("the child passed the failpoint alive")
	}
	wantGenerations(t, s, all[1:]...)
	cleanAfterKill(t, s)
}

func TestAMergeKilledAnywhereLeavesWholeFilesAndIsTakenUpAgain(t *testing.T) {
	first := allRecords(t)
	first.Releases = nil
	second := allRecords(t)
	second.Orders[0] = first.Orders[0]
	second.Orders[0].Step = cluster.StepFinalizing
	second.Ledger[0].End = cluster.Issued
	second.Accounts = nil
	second.Renewals[0].Generation, second.Renewals[0].Revision = first.Renewals[0].Generation, 2
	second.Revocations[0].Generation, second.Revocations[0].Revision = first.Revocations[0].Generation, 2
	file := filepath.Join(t.TempDir(), "records.json")
	if err := os.WriteFile(file, []byte(asJSON(t, second)), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := fresh(t)
	merge(t, whole, first)
	merge(t, whole, second)
	want := asJSON(t, records(t, whole))
	const writes = 6 // tombstones, revocations, ledger, order, releases, renewals
	for n := 1; n <= writes; n++ {
		for _, place := range places {
			point := fmt.Sprintf("%s#%d", place, n)
			t.Run(point, func(t *testing.T) {
				s := fresh(t)
				merge(t, s, first)
				if !killed(t, child(t, point, s.dir, "merge", file)) {
					t.Fatal("the child passed the failpoint alive")
				}
				r := records(t, s)
				if len(r.Accounts) != 1 || len(r.Orders) != 1 || len(r.Ledger) != 1 || len(r.Tombstones) < 1 {
					t.Errorf("after the kill: %s", asJSON(t, r))
				}
				cleanAfterKill(t, s)
				if killed(t, child(t, "", s.dir, "merge", file)) {
					t.Fatal("the second run was killed")
				}
				if have := asJSON(t, records(t, s)); have != want {
					t.Errorf("have %s\nwant %s", have, want)
				}
				cleanAfterKill(t, s)
			})
		}
	}
	s := fresh(t)
	merge(t, s, first)
	if killed(t, child(t, fmt.Sprintf("store.temp#%d", writes+1), s.dir, "merge", file)) {
		t.Errorf("the merge makes more than %d writes: the test misses some", writes)
	}
}

func TestAKillBeforeTheFirstFormatFileLeavesAStateThatOpens(t *testing.T) {
	for _, place := range places {
		dir := filepath.Join(t.TempDir(), "state")
		if !killed(t, child(t, place, dir, "read")) {
			t.Fatal("the child passed the failpoint alive")
		}
		s := open(t, dir)
		keep(t, s, issue(t, "example.org", 1, testNow))
		cleanAfterKill(t, s)
	}
}

func TestAKillWhileAFileIsSetAsideLosesNothing(t *testing.T) {
	s := fresh(t)
	if err := os.WriteFile(s.path("ledger.json"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !killed(t, child(t, "store.aside", s.dir, "read")) {
		t.Fatal("the child passed the failpoint alive")
	}
	records(t, s)
	if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "set aside as") {
		t.Errorf("problems: %q", p)
	}
}

// TestProcessesKilledAtAnyTimeLoseNothingThatTheySaidWasDurable runs several processes at once on one state and kills
// some of them in the middle. What a process announced had returned from Keep or Merge.
func TestProcessesKilledAtAnyTimeLoseNothingThatTheySaidWasDurable(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "state"), Options{}) // the children have the real clock
	if err != nil {
		t.Fatal(err)
	}
	var bundles []string
	kept := map[uint64]cluster.Kept{}
	for i := range uint64(DefaultKeep) {
		b := testCA().Issue(t, certtest.Options{})
		kept[i+1] = cluster.Kept{Generation: b.Generation("x", i+1), Bundle: b}
		bundles = append(bundles, bundleOnDisk(t, kept[i+1]))
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	said := map[string][]string{} // by process
	const processes = 6
	for p := range processes {
		name := fmt.Sprintf("p%d", p)
		cmd := child(t, "", s.dir, append([]string{"storm", name, "30"}, bundles...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				mu.Lock()
				said[name] = append(said[name], lines.Text())
				n := len(said[name])
				mu.Unlock()
				if p%2 == 0 && n == 3+4*p {
					_ = cmd.Process.Kill() // somewhere in the next changes
				}
			}
			if err := cmd.Wait(); err != nil && (p%2 == 1 || !diedOfKill(err)) {
				t.Errorf("process %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	held := map[string]bool{}
	for _, a := range records(t, s).Ledger {
		held["attempt "+a.ID] = true
	}
	for _, g := range generations(t, s) {
		held[fmt.Sprintf("generation %d of %s", g.Sequence, g.Name)] = true
	}
	for name, lines := range said {
		for _, line := range lines {
			if strings.HasPrefix(line, "generation") {
				line += " of " + name
			}
			if !held[line] {
				t.Errorf("%s said %q, and it is not held", name, line)
			}
		}
	}
	if n := len(said["p1"]); n != 30+DefaultKeep {
		t.Errorf("a process that was not killed made %d changes", n)
	}
	cleanAfterKill(t, s)
}

func TestLeftoverTemporariesOfOthersAreNotRemoved(t *testing.T) {
	s := fresh(t)
	for _, name := range []string{".certsync-1", "mine"} {
		if err := os.WriteFile(filepath.Join(s.path(tempName), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keep(t, s, issue(t, "example.org", 1, testNow))
	left, err := os.ReadDir(s.path(tempName))
	if err != nil || len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("tmp holds %v (%v), want mine only", left, err)
	}
}
