package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// Format is the number of the layout that this certsync writes.
const Format = 1

// DefaultKeep is how many generations of a slot are kept.
const DefaultKeep = 5

const (
	storeWait = 30 * time.Second // for store.lock; a change takes milliseconds
	actorWait = 2 * time.Second  // for actor.lock; a daemon that is being restarted takes that long to let go
	asideWait = 2 * time.Second  // for store.lock, by a read that found a bad file
)

// sweepEvery is how often at least a Merge looks for orders and accounts that may be dropped.
const sweepEvery = time.Hour

// The files and folders of state_dir.
const (
	formatName      = "format"
	actorLockName   = "actor.lock"
	storeLockName   = "store.lock"
	generationsName = "generations"
	accountsName    = "accounts"
	ordersName      = "orders"
	tempName        = "tmp"
	asideName       = "aside"
	ledgerName      = "ledger.json"
	tombstonesName  = "tombstones.json"
	releasesName    = "releases.json"
	renewalsName    = "renewals.json"
	revocationsName = "revocations.json"
)

// Options of Open. The zero value is fit for use.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Keep is how many generations of a slot are kept; 0 is DefaultKeep.
	Keep int
}

// Store is the durable state under one state_dir. It is safe for concurrent use, by other processes too.
type Store struct {
	dir  string
	now  func() time.Time
	keep int
	disk disk

	storeWait, actorWait, asideWait time.Duration

	// turn is held by the goroutine that changes something: those of one process queue here and only one of them
	// polls store.lock.
	turn chan struct{}
	// swept is when this process last went through all orders in a Merge; only who holds turn looks at it.
	swept time.Time

	mu sync.Mutex
	// stuck are the bad files that could not be moved to aside/, by path; reasons are why files in aside/ lie there,
	// where this process put them.
	stuck   map[string]finding
	reasons map[string]string
	// decoded are the lists that were read last, by file.
	decoded map[string]any
	// cache is what was read of the other files.
	cache cache
}

// Open opens the state under dir and creates what is missing. It refuses a dir that belongs to another user than this
// process, or that others can write to, and returns cluster.ErrNewerFormat for the state of a newer certsync.
func Open(dir string, opts Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", dir, err)
	}
	s := &Store{
		dir: abs, now: opts.Now, keep: opts.Keep, disk: systemDisk(),
		storeWait: storeWait, actorWait: actorWait, asideWait: asideWait,
		turn: make(chan struct{}, 1), stuck: map[string]finding{}, reasons: map[string]string{}, decoded: map[string]any{},
		cache: cache{summaries: map[string]summary{}, entries: map[string]map[string]entry{}},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.keep <= 0 {
		s.keep = DefaultKeep
	}
	if err := s.prepare(); err != nil {
		return nil, s.roomHint(err) // every one of them names its path
	}
	return s, nil
}

// prepare checks dir and makes what is missing in it. The format comes first: newer state is not touched.
func (s *Store) prepare() error {
	if err := s.makeRoot(); err != nil {
		return err
	}
	if err := checkFolder(s.dir, func(owner int) string { return "run it as " + orRoot(owner) }); err != nil {
		return err
	}
	err := s.checkFormat()
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	for _, name := range []string{generationsName, accountsName, ordersName, tempName, asideName} {
		if err := s.makeFolder(name); err != nil {
			return err
		}
	}
	for _, name := range []string{actorLockName, storeLockName} {
		if err := createLock(s.path(name)); err != nil {
			return err
		}
	}
	if !missing {
		return nil
	}
	return s.locked(context.Background(), "open", s.storeWait, s.writeFormat)
}

// writeFormat marks the state as this format, unless another process just did.
func (s *Store) writeFormat() error {
	if err := s.checkFormat(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := encode(formatFile{Format: Format})
	if err != nil {
		return err
	}
	if err := s.writeFile(formatName, data); err != nil {
		return err
	}
	return s.syncFolder(".")
}

// path is where rel lies.
func (s *Store) path(rel string) string { return filepath.Join(s.dir, rel) }

type formatFile struct {
	Format int `json:"format"`
}

// checkFormat refuses state of another format. Its error is fs.ErrNotExist where the state has none.
func (s *Store) checkFormat() error {
	data, _, err := s.readFile(formatName)
	if err != nil {
		return err
	}
	format, err := formatOf(data)
	switch {
	case err != nil:
		// What the format is cannot be told, and so nothing may be touched.
		err = fmt.Errorf("read %s: %w", s.path(formatName), err)
		return cluster.WithHint(err, `if no newer certsync has run on this host, write {"format":%d} into %s`, Format, s.path(formatName))
	case format > Format:
		return newer(s.path(formatName), format)
	}
	return nil
}

func newer(path string, format int) error {
	err := fmt.Errorf("read %s: format %d, this certsync knows %d: %w", path, format, Format, cluster.ErrNewerFormat)
	return cluster.WithHint(err, "upgrade certsync on this node")
}

// change runs f with store.lock held.
func (s *Store) change(ctx context.Context, what string, f func() error) error {
	return s.locked(ctx, what, s.storeWait, func() error {
		if err := s.checkFormat(); err != nil {
			return err
		}
		s.sweep()
		return f()
	})
}

// locked runs f with store.lock held, for which it waits at most wait.
func (s *Store) locked(ctx context.Context, what string, wait time.Duration, f func() error) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return notHad(ctx, s.path(storeLockName), "another change of this process")
	}
	defer func() { <-s.turn }()
	lock, err := takeLock(ctx, s.path(storeLockName), what)
	if err != nil {
		return err
	}
	defer lock.release()
	return s.roomHint(f())
}

// roomHint adds the mend to the error of a full disk.
func (s *Store) roomHint(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return cluster.WithHint(err, "make room on the file system of %s", s.dir)
	}
	return err
}

// LockActor takes the actor lock: one daemon or changing command a machine. what says to others what its holder does
// (a command's name). Where another process holds it for longer than two seconds or ctx allows, the error is
// cluster.ErrBusy and names that process. release may be called more than once.
func (s *Store) LockActor(ctx context.Context, what string) (release func(), err error) {
	if err := s.checkFormat(); err != nil {
		return nil, fmt.Errorf("lock the actor: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.actorWait)
	defer cancel()
	lock, err := takeLock(ctx, s.path(actorLockName), what)
	if err != nil {
		return nil, cluster.WithHint(err, "wait until it is done, or stop it")
	}
	return lock.release, nil
}

// makeRoot makes state_dir, and what is missing above it.
func (s *Store) makeRoot() error {
	var missing []string
	for p := s.dir; ; p = filepath.Dir(p) {
		_, err := os.Stat(p)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			return err
		}
		missing = append(missing, p)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.syncPath(filepath.Dir(missing[i])); err != nil {
			return err
		}
	}
	return nil
}

// makeFolder makes a folder of ours, whose parent exists.
func (s *Store) makeFolder(rel string) error {
	path := s.path(rel)
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		return s.syncPath(filepath.Dir(path))
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	if err := checkFolder(path, func(int) string { return fmt.Sprintf("chown -R %s %s", userName(os.Geteuid()), path) }); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() == 0o700 {
		return err // a file system that is mounted read-only may be looked at
	}
	// One that was made by hand, or came from a backup, may be open to other readers.
	return os.Chmod(path, 0o700)
}
