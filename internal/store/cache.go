package store

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
)

// cache is what was read of files and folders that have not changed since, by their path below dir. It holds names and
// dates only, and of the records what Records gives: never a bundle. Store.mu guards it. Each part is bounded by what
// lies in its folder: what is gone is dropped at the next look.
//
// It is trusted where the ID of the file is the same (package fileid says what that sees): writes of other processes
// are seen too.
type cache struct {
	folders   map[string]folder
	summaries map[string]summary
	entries   map[string]map[string]entry // by folder, then by name
}

// folder is what a folder of generations holds: names of folders, or generations.
type folder struct {
	id    fileid.ID
	names []string
	held  []cert.Generation
}

// summary is that of a bundle's file that was whole.
type summary struct {
	id fileid.ID
	cert.Summary
}

// entry is a record that has a file of its own.
type entry struct {
	id    fileid.ID
	value any
}

// listing is one walk over the folders of generations: those that have not changed are not read again.
type listing struct {
	s         *Store
	old, next map[string]folder
	found     []finding
}

func (s *Store) newListing() *listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &listing{s: s, old: s.cache.folders, next: make(map[string]folder, len(s.cache.folders))}
}

// end keeps what was learned for the next walk. all is what it found.
func (l *listing) end(all []cert.Generation) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.cache.folders = l.next
	if len(l.s.cache.summaries) <= len(all) {
		return
	}
	held := make(map[string]bool, len(all))
	for _, g := range all {
		held[bundlePath(g)] = true
	}
	for rel := range l.s.cache.summaries {
		if !held[rel] {
			delete(l.s.cache.summaries, rel)
		}
	}
}

// folder is what the folder at rel holds, as read tells where it has changed. What lies there and does not belong there
// is looked at each time.
func (l *listing) folder(rel string, read func() (folder, []finding, error)) (folder, error) {
	now := time.Now() // of the host: file systems know no other
	id := fileid.ID{}
	if info, err := os.Lstat(l.s.path(rel)); err == nil && info.IsDir() {
		id = fileid.Of(info)
	}
	if f, ok := l.old[rel]; ok && !id.IsZero() && f.id == id {
		l.next[rel] = f
		return f, nil
	}
	f, found, err := read()
	if err != nil {
		return folder{}, err
	}
	l.found = append(l.found, found...)
	if f.id = id; len(found) == 0 && id.Settled(now) {
		l.next[rel] = f
	}
	return f, nil
}

func (l *listing) folders(rel string, fit func(string) bool) ([]string, error) {
	f, err := l.folder(rel, func() (folder, []finding, error) {
		names, found, err := l.s.listFolders(rel, fit)
		return folder{names: names}, found, err
	})
	return f.names, err
}

func (l *listing) slot(slot cert.Slot) ([]cert.Generation, error) {
	f, err := l.folder(slotFolder(slot), func() (folder, []finding, error) {
		held, found, err := l.s.listSlot(slot)
		return folder{held: slices.Clip(held)}, found, err
	})
	return f.held, err
}

// Summary is what is asked of a generation's bundle again and again. The file is read, and checked as Bundle does, where
// it has changed since the last time; where it cannot be read, or is bad, the error is that of Bundle.
func (s *Store) Summary(ctx context.Context, g cert.Generation) (cert.Summary, error) {
	if err := checkSlot(g.Slot); err != nil {
		return cert.Summary{}, err
	}
	rel := bundlePath(g)
	s.mu.Lock()
	known, ok := s.cache.summaries[rel]
	s.mu.Unlock()
	now := time.Now()
	id := s.lstat(rel)
	if ok && !id.IsZero() && known.id == id {
		return known.Summary, ctx.Err()
	}
	b, err := s.Bundle(ctx, g)
	if err != nil {
		return cert.Summary{}, err
	}
	out := b.Summary()
	if id.Settled(now) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cache.summaries[rel] = summary{id, out}
	}
	return out, nil
}

// lstat is the ID of the regular file at rel; zero where there is none.
func (s *Store) lstat(rel string) fileid.ID {
	info, err := os.Lstat(s.path(rel))
	if err != nil || !info.Mode().IsRegular() {
		return fileid.ID{}
	}
	return fileid.Of(info)
}

// remembered finds a record whose file has not changed since it was read.
func remembered[T any](old map[string]entry, e fs.DirEntry) (v T, id fileid.ID, ok bool) {
	info, err := e.Info()
	if err != nil || !info.Mode().IsRegular() {
		return v, fileid.ID{}, false
	}
	id = fileid.Of(info)
	known, there := old[e.Name()]
	if !there || id.IsZero() || known.id != id {
		return v, id, false
	}
	v, ok = known.value.(T)
	return v, id, ok
}

// private gives a caller its own copy of a record that is remembered: what it changes of it is its own affair.
func private[T any](v T) T {
	if o, ok := any(v).(cluster.Order); ok {
		o.Records = slices.Clone(o.Records)
		return any(o).(T)
	}
	return v
}
