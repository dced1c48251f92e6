package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// Forget drops all generations of a slot, and its releases: durably when it returns nil, also where nothing is held. What
// was attempted for it and what was revoked stays known: rate limits and tombstones outlive a certificate. Killed in
// between it leaves fewer generations, the newest among them, and a second call drops those.
func (s *Store) Forget(ctx context.Context, slot cert.Slot) error {
	err := checkSlot(slot)
	if err == nil {
		err = s.change(ctx, "forget "+slot.Name, func() error { return s.forgetLocked(slot) })
	}
	if err != nil {
		return fmt.Errorf("forget %s: %w", slot, err)
	}
	return nil
}

// forgetLocked is Forget with store.lock held. The releases go first: a generation that is issued later, under a name that
// is configured again, begins a new count, and one that is older than a release is never activated.
func (s *Store) forgetLocked(slot cert.Slot) error {
	if err := s.forgetReleases(slot); err != nil {
		return err
	}
	held, found, err := s.listSlot(slot)
	if err != nil {
		return err
	}
	s.moveAside(found)
	for _, g := range held {
		if err := s.removeFile(bundlePath(g)); err != nil {
			return err
		}
	}
	failpoint.Hit("store.forgotten")
	return s.removeFolders(slot)
}

func (s *Store) forgetReleases(slot cert.Slot) error {
	releases, found, err := readList[cluster.Release](s, releasesName)
	if err != nil {
		return err
	}
	s.moveAside(found)
	left := slices.DeleteFunc(slices.Clone(releases.items), func(r cluster.Release) bool { return r.Generation.Slot == slot })
	return writeList(s, releasesName, releases, left, len(left) < len(releases.items))
}

// removeFolders removes what a slot's generations lay in, and makes that durable; folders that hold anything else stay.
func (s *Store) removeFolders(slot cert.Slot) error {
	folder := slotFolder(slot)
	for _, rel := range []string{folder, filepath.Dir(folder)} {
		err := s.disk.remove(s.path(rel))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove %s: %w", s.path(rel), cause(err))
		}
		if errors.Is(err, unix.ENOTEMPTY) {
			return s.syncFolder(rel)
		}
	}
	return s.syncFolder(generationsName)
}
