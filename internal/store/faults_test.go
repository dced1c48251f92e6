package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/cluster"
)

// journal records what a store does to the disk, and what would be lost in a power cut.
type journal struct {
	ops []string
	// unsynced are files that were written and folders that were changed since their last sync.
	unsynced map[string]bool
}

// watch makes s tell j what it does.
func (j *journal) watch(s *Store) {
	j.unsynced = map[string]bool{}
	base := func(path string) string {
		if strings.Contains(filepath.Base(path), tempPrefix) {
			return "temporary"
		}
		rel, err := filepath.Rel(s.dir, path)
		if err != nil {
			return path
		}
		return rel
	}
	s.disk = disk{
		write: func(f *os.File, data []byte) (int, error) {
			j.ops = append(j.ops, "write "+base(f.Name()))
			j.unsynced[f.Name()] = true
			return f.Write(data)
		},
		sync: func(f *os.File) error {
			j.ops = append(j.ops, "sync "+base(f.Name()))
			delete(j.unsynced, f.Name())
			return nil
		},
		rename: func(from, to string) error {
			j.ops = append(j.ops, "rename "+base(from)+" "+base(to))
			if j.unsynced[from] {
				j.ops = append(j.ops, "RENAMED BEFORE SYNC")
			}
			j.unsynced[filepath.Dir(to)] = true
			return os.Rename(from, to)
		},
		remove: func(path string) error {
			j.ops = append(j.ops, "remove "+base(path))
			return os.Remove(path)
		},
	}
}

func (j *journal) check(t *testing.T, what string) {
	t.Helper()
	if slices.Contains(j.ops, "RENAMED BEFORE SYNC") {
		t.Errorf("%s renamed what it had not synced: %q", what, j.ops)
	}
	if len(j.unsynced) > 0 {
		t.Errorf("%s returned before it was durable: %v of %q", what, j.unsynced, j.ops)
	}
}

func TestWhatReturnedIsOnTheDisk(t *testing.T) {
	s := fresh(t)
	var j journal
	j.watch(s)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	j.check(t, "Keep")
	file := bundlePath(k.Generation)
	want := []string{"sync generations", "sync generations/example.org", "write temporary", "sync temporary", "rename temporary " + file,
		"sync " + filepath.Dir(file), "sync generations/example.org", "sync generations"}
	if !slices.Equal(j.ops, want) {
		t.Errorf("Keep did %q\nwant %q", j.ops, want)
	}
	r := allRecords(t)
	merge(t, s, r)
	j.check(t, "Merge")
	// The record of another process that died before it was durable must be so when this one says it is held.
	for what, again := range map[string]func(){"Keep": func() { keep(t, s, k) }, "Merge": func() { merge(t, s, r) }} {
		j.ops = nil
		again()
		if what == "Keep" && !slices.Contains(j.ops, "sync "+filepath.Dir(file)) ||
			what == "Merge" && !(slices.Contains(j.ops, "sync .") && slices.Contains(j.ops, "sync orders") && slices.Contains(j.ops, "sync accounts")) {
			t.Errorf("%s of what is held did %q: it may not be durable", what, j.ops)
		}
	}
}

func TestAFailedStepLeavesTheOldStateAndNamesPathAndCause(t *testing.T) {
	old, next := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow)
	first, second := allRecords(t), allRecords(t)
	second.Orders[0] = first.Orders[0]
	second.Orders[0].Step = cluster.StepOrdered
	steps := map[string]func(d *disk, fail func() error){
		"write": func(d *disk, fail func() error) {
			real := d.write
			d.write = func(f *os.File, data []byte) (int, error) {
				if err := fail(); err != nil {
					n, _ := real(f, data[:len(data)/2])
					return n, &fs.PathError{Op: "write", Path: f.Name(), Err: err}
				}
				return real(f, data)
			}
		},
		"sync": func(d *disk, fail func() error) {
			d.sync = func(f *os.File) error { return fail() }
		},
		"rename": func(d *disk, fail func() error) {
			real := d.rename
			d.rename = func(from, to string) error {
				if err := fail(); err != nil {
					return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
				}
				return real(from, to)
			}
		},
	}
	for step, install := range steps {
		for n := 1; ; n++ {
			s := fresh(t)
			keep(t, s, old)
			merge(t, s, first)
			calls := 0
			install(&s.disk, func() error {
				if calls++; calls == n {
					return syscall.ENOSPC
				}
				return nil
			})
			errKeep := s.Keep(t.Context(), next)
			errMerge := s.Merge(t.Context(), second)
			if calls < n {
				break // every call of the step had its turn
			}
			failed := errors.Join(errKeep, errMerge)
			if failed == nil || errKeep != nil && errMerge != nil || !errors.Is(failed, syscall.ENOSPC) {
				t.Fatalf("%s %d failed: Keep %v, Merge %v; want one of them", step, n, errKeep, errMerge)
			}
			if !strings.Contains(failed.Error(), s.dir) || strings.Contains(failed.Error(), tempPrefix) {
				t.Errorf("%s %d failed: %v: it must name the path and not the temporary file", step, n, failed)
			}
			if _, err := s.Bundle(t.Context(), old.Generation); err != nil {
				t.Errorf("%s %d failed: the old generation: %v", step, n, err)
			}
			if r := records(t, s); len(r.Orders) != 1 || len(r.Ledger) != 1 || len(r.Accounts) == 0 {
				t.Errorf("%s %d failed: records %s", step, n, asJSON(t, r))
			}
			if left, err := os.ReadDir(s.path(tempName)); err != nil || len(left) != 0 {
				t.Errorf("%s %d failed: left in tmp: %v (%v)", step, n, left, err)
			}
			keep(t, s, next)
			merge(t, s, second)
			wantGenerations(t, s, old, next)
			if r := records(t, s); r.Orders[0].Step != cluster.StepOrdered {
				t.Errorf("%s %d failed: after a second try: %s", step, n, asJSON(t, r))
			}
			noProblems(t, s)
		}
	}
}

// smallDisk is a file system of 64 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", dir).CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("mount a tmpfs: %v: %s", err, out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir
}

// fill writes to the disk until it is full.
func fill(t *testing.T, dir string) (filler string) {
	t.Helper()
	filler = filepath.Join(dir, "filler")
	err := os.WriteFile(filler, make([]byte, 1<<20), 0o600)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	return filler
}

func TestAFullDiskLeavesTheOldStateReadable(t *testing.T) {
	disk := smallDisk(t)
	s := open(t, filepath.Join(disk, "state"))
	old, next, elsewhere := issue(t, "example.org", 1, testNow), issue(t, "example.org", 2, testNow), issue(t, "new.example.org", 1, testNow)
	keep(t, s, old)
	r := allRecords(t)
	merge(t, s, r)
	filler := fill(t, disk)
	more := allRecords(t)
	for _, s := range []*Store{s, open(t, s.dir)} {
		for what, err := range map[string]error{
			"Keep": s.Keep(t.Context(), next), "Keep of a new name": s.Keep(t.Context(), elsewhere), "Merge": s.Merge(t.Context(), more),
		} {
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.dir) || cluster.HintOf(err) != "make room on the file system of "+s.dir {
				t.Errorf("%s on a full disk: %v", what, err)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("%s shows a key: %v", what, err)
			}
		}
		wantGenerations(t, s, old)
		if have := records(t, s); asJSON(t, have) != asJSON(t, r) {
			t.Errorf("records on a full disk: %s", asJSON(t, have))
		}
		noProblems(t, s)
		release, err := s.LockActor(t.Context(), "test")
		if err != nil {
			t.Fatalf("LockActor on a full disk: %v", err)
		}
		release()
		if left, err := os.ReadDir(s.path(tempName)); err != nil || len(left) != 0 {
			t.Errorf("left in tmp: %v (%v)", left, err)
		}
	}
	// Setting aside takes no room.
	if err := os.Truncate(s.path("ledger.json"), 10); err != nil {
		t.Fatal(err)
	}
	records(t, s)
	if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "was set aside as") {
		t.Errorf("problems on a full disk: %q", p)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	keep(t, s, next, elsewhere)
	merge(t, s, r)
	wantGenerations(t, s, old, next, elsewhere)
}

func TestADiskThatFillsUpByItselfLosesNothing(t *testing.T) {
	disk := smallDisk(t)
	s := open(t, filepath.Join(disk, "state"))
	var held []cluster.Kept
	for i := range 100 {
		k := issue(t, fmt.Sprintf("n%d.example.org", i), 1, testNow)
		err := s.Keep(t.Context(), k)
		if err == nil {
			held = append(held, k)
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if len(held) < 2 || len(held) == 100 {
		t.Fatalf("%d were kept on a disk of 64 KiB", len(held))
	}
	wantGenerations(t, s, held...)
	noProblems(t, s)
}

func TestANewStateOnAFullDiskIsAnErrorThatNamesIt(t *testing.T) {
	disk := smallDisk(t)
	dir := filepath.Join(disk, "state")
	filler := fill(t, disk)
	if _, err := Open(dir, Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Open on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	keep(t, open(t, dir), issue(t, "example.org", 1, testNow))
}

func TestAFailureThatSaysNothingOfTheFileDoesNotSetItAside(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	r := allRecords(t)
	merge(t, s, r)
	before := files(t, s.dir)
	func() {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		none := limit
		none.Cur = 3
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
				t.Fatal(err)
			}
		}()
		if _, found, err := readList[cluster.Attempt](s, ledgerName); !errors.Is(err, syscall.EMFILE) || len(found) > 0 {
			t.Errorf("without descriptors: %v, %v", found, err)
		}
		if _, err := s.Bundle(t.Context(), k.Generation); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Bundle without descriptors: %v", err)
		}
		if err := s.Merge(t.Context(), r); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Merge without descriptors: %v", err)
		}
	}()
	if after := files(t, s.dir); !reflect.DeepEqual(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	noProblems(t, s)
}

// asNobody runs the command as another user where the test runs as root, to whom every file is readable.
func asNobody(t *testing.T, cmd *exec.Cmd, dir string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	const nobody = 65534
	if err := os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755); err != nil { // the top of t.TempDir
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

func TestAFileThatMayNotBeReadIsSetAside(t *testing.T) {
	s := fresh(t)
	r := allRecords(t)
	merge(t, s, r)
	for _, file := range []string{"ledger.json", "orders/order1.json"} {
		if err := os.Chmod(s.path(file), 0); err != nil {
			t.Fatal(err)
		}
	}
	if killed(t, asNobody(t, child(t, "", s.dir, "read"), s.dir)) {
		t.Fatal("killed")
	}
	have := records(t, s)
	if len(have.Ledger) != 0 || len(have.Orders) != 0 || len(have.Accounts) != 1 || len(have.Tombstones) != 1 {
		t.Errorf("records: %s", asJSON(t, have))
	}
	p := s.Problems(t.Context())
	if len(p) != 2 || !strings.Contains(p[0], "unreadable") {
		t.Errorf("problems: %q", p)
	}
	// For as long as they lie there, and no longer.
	lying, err := filepath.Glob(s.path("aside/*"))
	if err != nil || len(lying) != 2 {
		t.Fatalf("aside: %q (%v)", lying, err)
	}
	for _, path := range lying {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	noProblems(t, s)
}

func TestABadFileThatCannotBeMovedIsNotTrustedAndTold(t *testing.T) {
	s := fresh(t)
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	merge(t, s, allRecords(t))
	s.disk.rename = func(from, to string) error { return syscall.EXDEV }
	for _, file := range []string{"ledger.json", bundlePath(k.Generation)} {
		if err := os.WriteFile(s.path(file), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if r := records(t, s); len(r.Ledger) != 0 || len(r.Orders) != 1 {
			t.Errorf("records: %s", asJSON(t, r))
		}
		if _, err := s.Bundle(t.Context(), k.Generation); err == nil {
			t.Error("the torn bundle is trusted")
		}
		p := s.Problems(t.Context())
		if len(p) != 2 || !strings.Contains(p[0]+p[1], s.path("ledger.json")) || !strings.Contains(p[0], "could not be set aside") {
			t.Errorf("problems: %q", p)
		}
	}
	s.disk.rename = os.Rename
	merge(t, s, allRecords(t))
	keep(t, s, k)
	if p := s.Problems(t.Context()); len(p) != 2 || strings.Contains(p[0]+p[1], "could not be") {
		t.Errorf("problems: %q", p)
	}
}

func TestAGoodFileThatCameInBetweenIsNotSetAside(t *testing.T) {
	s := fresh(t)
	if err := os.WriteFile(s.path("ledger.json"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, found, err := s.readRecords(t.Context())
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	// Another process mends it between the read and the move.
	merge(t, open(t, s.dir), cluster.Records{Ledger: []cluster.Attempt{newAttempt("a1", "example.org")}})
	s.setAside(t.Context(), found)
	if n := len(records(t, s).Ledger); n != 1 {
		t.Errorf("%d attempts, want 1: the good file was set aside", n)
	}
}

func TestAListThatGrewTooLargeIsRefusedAndTheOldOneStands(t *testing.T) {
	s := fresh(t)
	merge(t, s, cluster.Records{Ledger: []cluster.Attempt{newAttempt("a1", "example.org")}})
	var many []cluster.Attempt
	for i := range maxFile / maxText {
		a := newAttempt(fmt.Sprint("b", i), "example.org")
		a.Problem = strings.Repeat("x", maxText)
		many = append(many, a)
	}
	if err := s.Merge(t.Context(), cluster.Records{Ledger: many}); err == nil || !strings.Contains(err.Error(), "ledger.json") {
		t.Errorf("Merge: %v", err)
	}
	if n := len(records(t, s).Ledger); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
}
