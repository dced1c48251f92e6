package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"certsync/internal/cluster"
)

// brief makes the waits of a store short.
func brief(s *Store) *Store {
	s.storeWait, s.actorWait, s.asideWait = 100*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	return s
}

func TestOneActorAtATime(t *testing.T) {
	a := brief(fresh(t))
	b := brief(open(t, a.dir))
	release, err := a.LockActor(t.Context(), "certsync run")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{a, b} {
		_, err := s.LockActor(t.Context(), "certsync issue")
		if !errors.Is(err, cluster.ErrBusy) {
			t.Errorf("a second actor: %v, want ErrBusy", err)
		}
		if want := fmt.Sprintf("process %d (certsync run)", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %q, want it to name %q", err, want)
		}
	}
	release()
	again, err := b.LockActor(t.Context(), "certsync issue")
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	release() // of one that is released: it must not let go of the other's
	if _, err := a.LockActor(t.Context(), "x"); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("after a second call of release: %v, want ErrBusy", err)
	}
	again()
}

func TestAnActorThatLetsGoInTimeIsWaitedFor(t *testing.T) {
	s := fresh(t)
	release, err := s.LockActor(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	s.actorWait = 30 * time.Second
	got := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		again, err := s.LockActor(t.Context(), "second")
		if err == nil {
			again()
		}
		got <- err
	}()
	<-started
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestLocksObeyTheirContext(t *testing.T) {
	s := fresh(t)
	release, err := s.LockActor(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	lock, err := takeLock(t.Context(), s.path(storeLockName), "a test")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	s.actorWait, s.storeWait = time.Hour, time.Hour
	k, r := issue(t, "example.org", 1, testNow), allRecords(t)
	for what, call := range map[string]func(context.Context) error{
		"LockActor": func(ctx context.Context) error { _, err := s.LockActor(ctx, "second"); return err },
		"Keep":      func(ctx context.Context) error { return s.Keep(ctx, k) },
		"Merge":     func(ctx context.Context) error { return s.Merge(ctx, r) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		err := call(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cluster.ErrBusy) {
			t.Errorf("%s with a deadline: %v", what, err)
		}
		if strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Errorf("%s with a deadline tells of our clock: %v", what, err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s that is canceled: %v", what, err)
		}
	}
}

func TestAChangeThatCannotHaveTheStoreLockIsBusyAndReadsGoOn(t *testing.T) {
	s := brief(fresh(t))
	k := issue(t, "example.org", 1, testNow)
	keep(t, s, k)
	lock, err := takeLock(t.Context(), s.path(storeLockName), "something slow")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	for what, err := range map[string]error{"Keep": s.Keep(t.Context(), issue(t, "example.org", 2, testNow)), "Merge": s.Merge(t.Context(), allRecords(t))} {
		if !errors.Is(err, cluster.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (something slow)", os.Getpid())) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantGenerations(t, s, k)
	if r := records(t, s); len(r.Orders) != 0 {
		t.Errorf("records: %v", r)
	}
	noProblems(t, s)
	// A bad file cannot be set aside now. It is told and not trusted, and set aside later.
	if err := os.WriteFile(s.path("ledger.json"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := records(t, s); len(r.Ledger) != 0 {
		t.Errorf("records: %v", r)
	}
	if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "could not be set aside") {
		t.Errorf("problems: %q", p)
	}
	lock.release()
	if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "was set aside as") {
		t.Errorf("problems: %q", p)
	}
}

func TestTheKernelReleasesTheActorLockOfAKilledProcess(t *testing.T) {
	s := fresh(t)
	cmd, grandchild := startActor(t, s.dir)
	brief(s)
	_, err := s.LockActor(t.Context(), "test")
	if !errors.Is(err, cluster.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (child of a test)", cmd.Process.Pid)) {
		t.Fatalf("while the child holds it: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); !diedOfKill(err) {
		t.Fatalf("the child: %v", err)
	}
	// What the child started lives on, and must not have inherited the lock.
	if err := syscall.Kill(grandchild, 0); err != nil {
		t.Fatalf("the grandchild is gone: %v", err)
	}
	release, err := s.LockActor(t.Context(), "test")
	if err != nil {
		t.Fatalf("after the child was killed: %v", err)
	}
	release()
}

func TestALockFileThatWasRemovedByHandExcludesStill(t *testing.T) {
	s := brief(fresh(t))
	if err := os.Remove(s.path(actorLockName)); err != nil {
		t.Fatal(err)
	}
	release, err := s.LockActor(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := s.LockActor(t.Context(), "second"); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("a second actor: %v", err)
	}
	// A lock on a file that has another one's place is none.
	f, err := openLock(s.path(storeLockName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := os.Remove(s.path(storeLockName)); err != nil {
		t.Fatal(err)
	}
	if sameAsOpen(f, s.path(storeLockName)) {
		t.Error("a removed lock file counts as the one at its path")
	}
	keep(t, s, issue(t, "example.org", 1, testNow))
}

func TestWhatIsWrittenInALockFileIsNotTrusted(t *testing.T) {
	s := brief(fresh(t))
	f, err := os.OpenFile(s.path(actorLockName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"", "x", "\x1b[31mred\n", "12 \x1b[31mred\nmore", strings.Repeat("9", 1000), "12 " + strings.Repeat("a", 1000)} {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		_, err := s.LockActor(t.Context(), "test")
		if !errors.Is(err, cluster.ErrBusy) || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 500 {
			t.Errorf("%q: %q", content, err)
		}
	}
}

func TestManyGoroutinesOfTwoStoresLoseNothing(t *testing.T) {
	a := fresh(t)
	b := open(t, a.dir)
	a.keep, b.keep = 100, 100
	const each = 8
	var wg sync.WaitGroup
	var want []cluster.Kept
	for i, s := range []*Store{a, b} {
		for j := range each {
			name := fmt.Sprintf("n%d-%d.example.org", i, j)
			k, shared := issue(t, name, 1, testNow), issue(t, "shared.example.org", uint64(1+i*each+j), testNow)
			want = append(want, k, shared)
			attempt, order := newAttempt(name, name), newOrder(t, name, name)
			wg.Go(func() {
				for _, k := range []cluster.Kept{k, shared, k} {
					if err := s.Keep(t.Context(), k); err != nil {
						t.Error(err)
					}
				}
				for range 2 {
					if err := s.Merge(t.Context(), cluster.Records{Ledger: []cluster.Attempt{attempt}, Orders: []cluster.Order{order}}); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				for range 5 {
					if _, err := s.Records(t.Context()); err != nil {
						t.Error(err)
					}
					if _, err := s.Generations(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	wantGenerations(t, a, want...)
	if r := records(t, b); len(r.Ledger) != 2*each || len(r.Orders) != 2*each {
		t.Errorf("%d attempts and %d orders, want %d each", len(r.Ledger), len(r.Orders), 2*each)
	}
	noProblems(t, a)
}
