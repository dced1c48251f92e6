package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"certsync/internal/cluster"
)

// The pauses between two tries for a lock.
const (
	lockPauseMin = time.Millisecond
	lockPauseMax = 25 * time.Millisecond
)

// fileLock is a flock(2) that is held. The kernel releases it when the descriptor is closed, and so when the process
// dies; children do not inherit the descriptor (O_CLOEXEC).
type fileLock struct {
	file *os.File
	once sync.Once
}

// createLock makes a lock's file, so that a full disk later keeps nobody from locking.
func createLock(path string) error {
	f, err := openLock(path)
	if errors.Is(err, unix.EROFS) {
		if _, missing := os.Lstat(path); missing == nil {
			return nil // the state can be looked at; a change tells of it
		}
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func openLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600) // package os adds O_CLOEXEC
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, cause(err))
	}
	return f, nil
}

// takeLock takes the lock of path for what, and waits for it until ctx ends; it tries at least once.
func takeLock(ctx context.Context, path, what string) (*fileLock, error) {
	for pause := lockPauseMin; ; pause = min(2*pause, lockPauseMax) {
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, notHad(ctx, path, "")
		}
		lock, err := tryLock(path)
		if err != nil {
			return nil, err
		}
		if lock != nil {
			lock.describe(what)
			return lock, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, notHad(ctx, path, holder(path))
		}
	}
}

// notHad is the error of a wait for the lock of path that ended with ctx: who holds it, where the time was up.
func notHad(ctx context.Context, path, holder string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("lock %s: %w", path, contextError(ctx))
	}
	return &busyError{fmt.Sprintf("lock %s: held by %s: %v", path, holder, cluster.ErrBusy), contextError(ctx)}
}

// busyError is cluster.ErrBusy and the end of the wait; that its time was up is not worth a word to a person.
type busyError struct {
	text string
	end  error
}

func (e *busyError) Error() string   { return e.text }
func (e *busyError) Unwrap() []error { return []error{cluster.ErrBusy, e.end} }

// contextError is why ctx ended: its error and, where it has one, its cause.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// tryLock is nil where another one holds the lock.
func tryLock(path string) (*fileLock, error) {
	f, err := openLock(path)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, f.Close()
	case err != nil:
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: flock: %w", path, err)
	}
	if !sameAsOpen(f, path) {
		// Somebody removed the file by hand between the two calls: a lock on it excludes nobody.
		return nil, f.Close()
	}
	return &fileLock{file: f}, nil
}

func sameAsOpen(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(open, named)
}

// describe writes who holds the lock into its file, for the message of those who wait. It is informative only: that it
// fails (a full disk) changes nothing, and nobody decides by it.
func (l *fileLock) describe(what string) {
	_ = l.file.Truncate(0)
	_, _ = l.file.WriteAt([]byte(fmt.Sprintf("%d %s\n", os.Getpid(), what)), 0)
}

// release lets go of the lock; a second call does nothing.
func (l *fileLock) release() {
	l.once.Do(func() {
		_ = l.file.Truncate(0)
		_ = l.file.Close()
	})
}

// holder describes who holds the lock of path, by what describe wrote.
func holder(path string) string {
	const unknown = "another certsync process"
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return unknown
	}
	defer func(f fs.File) { _ = f.Close() }(f)
	data, err := io.ReadAll(io.LimitReader(f, 200))
	if err != nil {
		return unknown
	}
	var pid int
	line, _, _ := strings.Cut(string(data), "\n")
	number, what, _ := strings.Cut(line, " ")
	if _, err := fmt.Sscanf(number, "%d", &pid); err != nil {
		return unknown
	}
	return fmt.Sprintf("process %d (%s)", pid, printable(what))
}
