package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"certsync/internal/failpoint"
)

// maxFile is the largest file that is written or read, in bytes. What is larger is none of ours.
const maxFile = 64 << 20

// tempPrefix marks a temporary file as ours, to be removed where a kill left it.
const tempPrefix = ".certsync-"

// disk is what changes files; a test replaces a field to make that step fail.
type disk struct {
	write  func(f *os.File, data []byte) (int, error)
	sync   func(f *os.File) error
	rename func(from, to string) error
	remove func(path string) error
}

func systemDisk() disk {
	return disk{write: (*os.File).Write, sync: (*os.File).Sync, rename: os.Rename, remove: os.Remove}
}

// writeFile replaces the file at rel, or makes it, with mode 0600: whole or not at all. It is durable once syncFolder
// of its folder returned. Only one that holds store.lock may call it.
func (s *Store) writeFile(rel string, data []byte) (err error) {
	if len(data) > maxFile {
		return fmt.Errorf("write %s: %d bytes, at most %d are kept", s.path(rel), len(data), maxFile)
	}
	temp, err := os.CreateTemp(s.path(tempName), tempPrefix+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: temporary file: %w", s.path(rel), cause(err))
	}
	failpoint.Hit("store.temp")
	err = s.fill(temp, data)
	if e := temp.Close(); err == nil {
		err = e
	}
	if err == nil {
		failpoint.Hit("store.rename")
		err = s.disk.rename(temp.Name(), s.path(rel))
	}
	if err != nil {
		_ = s.disk.remove(temp.Name())
		return fmt.Errorf("write %s: %w", s.path(rel), cause(err))
	}
	failpoint.Hit("store.renamed")
	return nil
}

func (s *Store) fill(temp *os.File, data []byte) error {
	if _, err := s.disk.write(temp, data); err != nil {
		return err
	}
	failpoint.Hit("store.written")
	return s.disk.sync(temp)
}

// removeFile drops the file at rel; one that is gone already is no error.
func (s *Store) removeFile(rel string) error {
	failpoint.Hit("store.remove")
	if err := s.disk.remove(s.path(rel)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", s.path(rel), cause(err))
	}
	return nil
}

// syncFolder makes the entries of a folder durable.
func (s *Store) syncFolder(rel string) error { return s.syncPath(s.path(rel)) }

func (s *Store) syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", path, cause(err))
	}
	err = s.disk.sync(f)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", path, cause(err))
	}
	return nil
}

// sweep removes the temporary files that a kill left; with store.lock held nobody writes any. One that cannot be
// removed is tried again at the next change.
func (s *Store) sweep() {
	entries, err := os.ReadDir(s.path(tempName))
	if err != nil {
		return // the change itself will fail and say why
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = s.disk.remove(filepath.Join(s.path(tempName), e.Name()))
		}
	}
}

// errForeign is the cause where what lies at a path is no file of ours.
var errForeign = errors.New("foreign")

// readFile reads the regular file at rel, and tells which one it was, so that it is that one and no later one which is
// set aside where the content is bad.
func (s *Store) readFile(rel string) ([]byte, fs.FileInfo, error) {
	path := s.path(rel)
	// O_NONBLOCK: the open of a FIFO would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		info, e := os.Lstat(path)
		if e != nil {
			return nil, nil, e
		}
		return nil, info, err
	}
	defer func(f fs.File) { _ = f.Close() }(f)
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, info, fmt.Errorf("read %s: not a regular file: %w", path, errForeign)
	case info.Size() > maxFile:
		return nil, info, fmt.Errorf("read %s: %d bytes, at most %d are read: %w", path, info.Size(), maxFile, errForeign)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	return data, info, err
}

// badForGood tells that err will come again at every try: the file itself is bad. Any other error (no descriptors
// left, a signal) says nothing of the file.
func badForGood(err error) bool {
	for _, e := range []error{errForeign, unix.EACCES, unix.EPERM, unix.ELOOP, unix.EMLINK, unix.EIO, unix.EISDIR, unix.ENXIO, unix.EOPNOTSUPP, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// cause is err without the path that package os puts before it: the message names the path that matters.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
