package sysfile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"certsync/internal/cluster"
)

// MaxSize is the largest file that is read or written, in bytes: no file that this package is for comes near it.
const MaxSize = 1 << 20

// The errors of what lies in a tree. A path where nothing is gives fs.ErrNotExist.
var (
	// ErrOutside: a link leads out of the tree.
	ErrOutside = errors.New("leads out of the tree")
	// ErrNotFile: something that is no regular file lies in the place of one.
	ErrNotFile = errors.New("not a regular file")
	// ErrNotFolder: something that is no folder lies in the place of one.
	ErrNotFolder = errors.New("not a folder")
	// ErrTooLarge: the file is larger than MaxSize.
	ErrTooLarge = errors.New("too large")
)

// Tree is a host's files, or an image's. Paths are those of the host itself, absolute and clean, with slashes. Links are
// followed as the host would, its root being Root; where Root is a folder, one that leads out of it by .. is refused.
// Nothing outside Root is read or written, whoever moves files meanwhile. A Tree may be copied, and used by several
// goroutines.
type Tree struct {
	// Root is the folder; "" or "/" is the host itself.
	Root string
	// steps are for tests: each makes a step of a write fail.
	steps *steps
}

// Kind is what lies at a path.
type Kind string

// The kinds.
const (
	Absent Kind = "absent"
	Plain  Kind = "file"
	Folder Kind = "folder"
)

// Owner is a user and a group by number.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// State is what lies at a path: enough to put it back. The data may be secret: it prints without, and only its JSON has
// them.
type State struct {
	// Path is as the caller gave it.
	Path string `json:"path"`
	Kind Kind   `json:"kind"`
	// Mode are the permissions, with setuid, setgid and sticky, as package fs has them.
	Mode  fs.FileMode `json:"mode,omitempty"`
	Owner Owner       `json:"owner"`
	// Data is the content of a file, and Sum its SHA-256 in hex.
	Data []byte `json:"data,omitempty"`
	Sum  string `json:"sum,omitempty"`
}

// String tells the path, the kind, the mode and the owner.
func (s State) String() string {
	if s.Kind == Absent {
		return s.Path + ": absent"
	}
	return fmt.Sprintf("%s: %s %v %d:%d", s.Path, s.Kind, s.Mode, s.Owner.UID, s.Owner.GID)
}

// Format prints String by any verb.
func (s State) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue is String.
func (s State) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Same tells whether o is the same in kind, mode, owner and content.
func (s State) Same(o State) bool {
	if s.Kind == Absent || o.Kind == Absent {
		return s.Kind == o.Kind
	}
	return s.Kind == o.Kind && s.Mode == o.Mode && s.Owner == o.Owner && s.Sum == o.Sum
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Read gives the content of the file at path. It fails with fs.ErrNotExist, ErrNotFile, ErrTooLarge or ErrOutside.
func (t *Tree) Read(path string) ([]byte, error) {
	var data []byte
	err := t.within("read", path, func(r *place) error {
		s, err := r.state()
		data = s.Data
		if err == nil && s.Kind == Absent {
			err = fs.ErrNotExist
		} else if err == nil && s.Kind == Folder {
			err = ErrNotFile
		}
		return err
	})
	return data, err
}

// Stat tells what lies at path, links followed; Absent is no error.
func (t *Tree) Stat(path string) (State, error) {
	var s State
	err := t.within("look at", path, func(r *place) (err error) {
		s, err = r.state()
		return err
	})
	return s, err
}

// Exists tells whether a file or a folder lies at path, links followed.
func (t *Tree) Exists(path string) (bool, error) {
	found := false
	err := t.within("look at", path, func(r *place) error {
		found = r.info != nil
		return nil
	})
	return found, err
}

// List gives the names in the folder at path, sorted. It fails with fs.ErrNotExist or ErrNotFolder.
func (t *Tree) List(path string) ([]string, error) {
	var names []string
	err := t.within("list", path, func(r *place) error {
		if r.info == nil {
			return fs.ErrNotExist
		}
		if !r.info.IsDir() {
			return ErrNotFolder
		}
		entries, err := fs.ReadDir(r.root.FS(), r.rel)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	return names, err
}

// name is where path lies, for a person: the path on this machine.
func (t *Tree) name(path string) string {
	if t.host() {
		return path
	}
	return filepath.Join(t.Root, filepath.FromSlash(path))
}

func (t *Tree) host() bool { return t.Root == "" || filepath.Clean(t.Root) == "/" }

// place is a path of a tree, found.
type place struct {
	root *os.Root
	// path is as the caller gave it; rel is the same without links, as os.Root takes it.
	path, rel string
	// info is what lies there, or nil.
	info fs.FileInfo
}

// within finds path and hands it to do; what is the operation, for errors.
func (t *Tree) within(what, path string, do func(*place) error) error {
	err := t.open(path, do)
	if err == nil {
		return nil
	}
	return mend(fmt.Errorf("%s %s: %w", what, t.name(path), cause(err)))
}

func (t *Tree) open(name string, do func(*place) error) error {
	if !path.IsAbs(name) || path.Clean(name) != name {
		return fmt.Errorf("%w: not an absolute, clean path", fs.ErrInvalid)
	}
	dir := t.Root
	if dir == "" {
		dir = "/"
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the root: %w", cause(err))
	}
	defer func() { _ = root.Close() }()
	p := &place{root: root, path: name}
	if p.rel, p.info, err = resolve(root, name, t.host()); err != nil {
		return err
	}
	return do(p)
}

// mostLinks is how many links a path may go through, as in FreeBSD (MAXSYMLINKS).
const mostLinks = 32

// resolve follows the links of name in the tree, and tells where it leads and what is there (nil: nothing, in a folder
// that may itself not be there). os.Root takes no absolute links; here they begin at the root, as for the host itself.
func resolve(root *os.Root, name string, host bool) (rel string, info fs.FileInfo, err error) {
	at, links := ".", 0
	rest := strings.Split(strings.Trim(name, "/"), "/")
	if _, err := root.Lstat(at); err != nil {
		return "", nil, err
	}
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch {
		case part == "" || part == ".":
			continue
		case part == ".." && at == "." && !host:
			return "", nil, ErrOutside
		case part == "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err = root.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			return unfound(next, rest)
		}
		if err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			if len(rest) > 0 && !info.IsDir() {
				return "", nil, fmt.Errorf("/%s: %w", at, ErrNotFolder)
			}
			continue
		}
		if links++; links > mostLinks {
			return "", nil, syscall.ELOOP
		}
		target, err := root.Readlink(next)
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	info, err = root.Lstat(at)
	return at, info, err
}

// unfound is where a path leads whose part next is not there.
func unfound(next string, rest []string) (string, fs.FileInfo, error) {
	for _, part := range rest {
		if part == ".." {
			return "", nil, fs.ErrNotExist
		}
		next = path.Join(next, part)
	}
	return next, nil, nil
}

// state reads what lies at the place.
func (r *place) state() (State, error) {
	s := State{Path: r.path, Kind: Absent}
	switch {
	case r.info == nil:
		return s, nil
	case r.info.IsDir():
		s.Kind, s.Mode, s.Owner = Folder, modeOf(r.info), ownerOf(r.info)
		return s, nil
	case !r.info.Mode().IsRegular():
		return State{Path: r.path}, ErrNotFile
	}
	data, info, err := readRegular(r.root, r.rel)
	if err != nil {
		return State{Path: r.path}, err
	}
	s.Kind, s.Mode, s.Owner, s.Data, s.Sum = Plain, modeOf(info), ownerOf(info), data, sumOf(data)
	return s, nil
}

// readRegular reads the regular file at rel, which has no links in it.
func readRegular(root *os.Root, rel string) ([]byte, fs.FileInfo, error) {
	// O_NONBLOCK: the open of a FIFO would wait for a writer.
	f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if info, e := root.Lstat(rel); e == nil && !info.Mode().IsRegular() {
			return nil, nil, ErrNotFile
		}
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, ErrNotFile
	case info.Size() > MaxSize:
		return nil, nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, info.Size(), MaxSize)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(data) > MaxSize {
		err = ErrTooLarge
	}
	return data, info, err
}

const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

func modeOf(info fs.FileInfo) fs.FileMode { return info.Mode() & modeBits }

func ownerOf(info fs.FileInfo) Owner {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Owner{}
	}
	return Owner{UID: int(st.Uid), GID: int(st.Gid)}
}

// cause is err without the path that package os puts before it: the message names the path that matters.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok && err == error(e) {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok && err == error(e) {
		return e.Err
	}
	return err
}

// mend adds what to do about the errors that a person can mend.
func mend(err error) error {
	switch {
	case errors.Is(err, syscall.EROFS):
		return cluster.WithHint(err, "mount the file system for writing first, as `mount -uw` does")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return cluster.WithHint(err, "free some space there; the file is as it was")
	case errors.Is(err, syscall.EPERM):
		return cluster.WithHint(err, "run as root; where that is so, see `ls -lo` for the flags schg and uchg, and `sysctl kern.securelevel`")
	case errors.Is(err, syscall.EACCES):
		return cluster.WithHint(err, "run as root")
	}
	return err
}
