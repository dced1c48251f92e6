package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"certsync/internal/failpoint"
	"certsync/internal/fileid"
)

// finding is a file that is not what it should be, or a thing where no such thing belongs.
type finding struct {
	rel string
	// info is that of the very file that was read: a writer may have put a good one in its place since.
	info fs.FileInfo
	// kind is one word for the name in aside/: torn, unreadable or foreign.
	kind string
	err  error
}

// The kinds of findings.
const (
	torn       = "torn"
	unreadable = "unreadable"
	foreign    = "foreign"
)

// unreadableFile is the finding of a file whose read failed for good.
func unreadableFile(rel string, info fs.FileInfo, err error) finding {
	kind := unreadable
	if errors.Is(err, errForeign) {
		kind = foreign
	}
	return finding{rel: rel, info: info, kind: kind, err: err}
}

// foreignEntry is the finding of a thing that a folder of ours lists and that has no business there; ok is false where
// it is gone already.
func foreignEntry(folder string, e fs.DirEntry) (f finding, ok bool) {
	info, err := e.Info()
	if err != nil {
		return finding{}, false
	}
	return finding{rel: filepath.Join(folder, e.Name()), info: info, kind: foreign, err: errForeign}, true
}

// setAside moves findings of a read to aside/. That takes store.lock, because only with it held the file found cannot
// be replaced by a good one between the look and the move. Where it cannot be had the findings stay where they are,
// unused, and Problems tells of them.
func (s *Store) setAside(ctx context.Context, found []finding) {
	if len(found) == 0 {
		return
	}
	err := s.locked(ctx, "set files aside", s.asideWait, func() error {
		if err := s.checkFormat(); err != nil {
			return err
		}
		s.moveAside(found)
		return nil
	})
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range found {
			s.stuck[f.rel] = f
		}
	}
}

// moveAside is setAside with store.lock held.
func (s *Store) moveAside(found []finding) {
	for _, f := range found {
		if !s.lies(f) {
			continue
		}
		failpoint.Hit("store.aside")
		name := fmt.Sprintf("%s-%s-%s-%s", s.now().UTC().Format(fileTime), strings.ToLower(rand.Text()[:8]), f.kind,
			printable(strings.ReplaceAll(f.rel, string(filepath.Separator), "_")))
		err := s.disk.rename(s.path(f.rel), filepath.Join(s.path(asideName), name))
		s.mu.Lock()
		if err != nil {
			s.stuck[f.rel] = f
		} else {
			delete(s.stuck, f.rel)
			s.reasons[name] = fmt.Sprintf("%s was %s: %v", s.path(f.rel), f.kind, f.err)
		}
		s.mu.Unlock()
	}
}

// lies tells whether the very file of f is still where it was found.
func (s *Store) lies(f finding) bool {
	now, err := os.Lstat(s.path(f.rel))
	return err == nil && fileid.Of(now) == fileid.Of(f.info)
}

// Problems lists, in words for a person, what was set aside and what could not be, for as long as it lies there; and
// why the state cannot be read, where it cannot. It looks at everything but the content of the generations.
func (s *Store) Problems(ctx context.Context) []string {
	if err := s.checkFormat(); err != nil {
		return []string{err.Error()}
	}
	var out []string
	_, found, err := s.readRecords(ctx)
	if err != nil {
		out = append(out, fmt.Sprintf("the records cannot be read: %v", err))
	}
	s.setAside(ctx, found)
	_, found, err = s.listAll(ctx)
	if err != nil {
		out = append(out, fmt.Sprintf("the generations cannot be listed: %v", err))
	}
	s.setAside(ctx, found)
	return append(out, s.lying()...)
}

// lying describes the files in aside/ and those that could not be moved there.
func (s *Store) lying() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	entries, err := os.ReadDir(s.path(asideName))
	if err != nil {
		out = append(out, fmt.Sprintf("list the files set aside: %v", err))
	}
	byKind := map[string][]string{}
	for _, e := range entries {
		kind, _ := partsOfAside(e.Name())
		byKind[kind] = append(byKind[kind], e.Name())
	}
	for kind, names := range byKind {
		out = append(out, s.describeKind(kind, names)...)
	}
	for rel, f := range s.stuck {
		if !s.lies(f) {
			delete(s.stuck, rel)
			continue
		}
		out = append(out, fmt.Sprintf("%s is %s: %v; it is not used, and could not be set aside", s.path(rel), f.kind, f.err))
	}
	slices.Sort(out)
	return out
}

// mostDescribed is how many files of one kind are described one by one.
const mostDescribed = 3

// describeKind tells of the files of one kind in aside/, whose names are sorted and so from the earliest to the latest.
func (s *Store) describeKind(kind string, names []string) (out []string) {
	if n := len(names); n > mostDescribed {
		last := filepath.Join(s.path(asideName), names[n-1])
		if kind == "" {
			return []string{fmt.Sprintf("%d files in %s are none of certsync's, one of them %s; they are not used: look at them, then remove them", n, filepath.Dir(last), last)}
		}
		return []string{fmt.Sprintf("%d %s files were set aside, the last as %s; they are not used: look at them, then remove them", n, kind, last)}
	}
	for _, name := range names {
		out = append(out, s.describeAside(name)+": look at it, then remove it")
	}
	return out
}

// describeAside tells why a file lies in aside/, or, where another process put it there, what its name says.
func (s *Store) describeAside(name string) string {
	path := filepath.Join(s.path(asideName), name)
	if reason, ok := s.reasons[name]; ok {
		return fmt.Sprintf("%s; it is not used and was set aside as %s", reason, path)
	}
	if kind, at := partsOfAside(name); kind != "" {
		return fmt.Sprintf("a %s file was set aside at %s as %s; it is not used", kind, at.Format(time.RFC3339), path)
	}
	return fmt.Sprintf("%s is none of certsync's; it is not used", path)
}

// partsOfAside are what the name of a file in aside/ says; kind is "" where certsync did not name it.
func partsOfAside(name string) (kind string, at time.Time) {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) < 4 {
		return "", time.Time{}
	}
	at, err := time.Parse(fileTime, parts[0])
	if err != nil {
		return "", time.Time{}
	}
	return parts[2], at
}
