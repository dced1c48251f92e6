package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"certsync/internal/cluster"
)

// nameIndex finds HAProxy's name for a file. Names are strings of HAProxy's configuration (crt-base prepended), not
// paths: links are kept, `./` is kept, `crt DIR/` gives DIR/NAME, and what is relative stays relative to a folder that
// is not known here.
type nameIndex struct {
	// byPath has the names by the real path of the file that they mean on this host.
	byPath map[string][]string
	// adrift are the names that mean no path on this host: relative ones, and those of another file system (a jail).
	adrift []string
	// aliases are the names of crt-stores, @STORE/ALIAS; nil once they are in byPath.
	aliases []string
	// mu guards dirs, which handshakes may need that are made side by side.
	mu   sync.Mutex
	dirs map[string]string
}

func indexNames(names []string) *nameIndex {
	x := &nameIndex{byPath: map[string][]string{}, dirs: map[string]string{}}
	for _, name := range names {
		if strings.HasPrefix(name, "@") {
			x.aliases = append(x.aliases, name)
			continue
		}
		if path, ok := x.real(name); ok {
			x.byPath[path] = append(x.byPath[path], name)
		} else {
			x.adrift = append(x.adrift, name)
		}
	}
	return x
}

// real is the path without links that name means; ok is false where it is relative or its folder does not exist.
func (x *nameIndex) real(name string) (path string, ok bool) {
	if !filepath.IsAbs(name) {
		return "", false
	}
	for range 32 {
		dir, ok := x.realDir(filepath.Dir(name))
		if !ok {
			return "", false
		}
		path = filepath.Join(dir, filepath.Base(name))
		if name, _ = destination(path); name == path || name == "" {
			return path, true
		}
	}
	return "", false
}

// realDir remembers: thousands of bundles lie in one folder.
func (x *nameIndex) realDir(dir string) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	real, ok := x.dirs[dir]
	if !ok {
		real, _ = filepath.EvalSymlinks(dir)
		x.dirs[dir] = real
	}
	return real, real != ""
}

// resolveAliases asks, once, which files the certificates of crt-stores come from. HAProxy tells from 3.2 on (without the
// crt-store's crt-base), and its configuration always; the name of one without an alias of its own holds its path:
// @STORE/PATH.
func (s *survey) resolveAliases(ctx context.Context) error {
	for _, name := range s.names.aliases {
		_, file, _ := strings.Cut(name, "/")
		file = "/" + file
		l, err := s.p.runtime.showCert(ctx, name, false)
		if err != nil && !errors.Is(err, errUnknownName) {
			return err
		}
		if filepath.IsAbs(l.File) {
			file = l.File
		} else if stored := s.stored(ctx, name); stored != "" {
			file = stored
		}
		if path, ok := s.names.real(file); ok {
			s.names.byPath[path] = append(s.names.byPath[path], name)
		}
	}
	s.names.aliases = nil
	return nil
}

// find lists the certificates in HAProxy's memory that were loaded from v's file. Several names may mean one file: each
// is a certificate of its own to HAProxy. An error says that the name cannot be told for certain.
func (s *survey) find(ctx context.Context, v *view) ([]entry, error) {
	var entries []entry
	if err := s.resolveAliases(ctx); err != nil {
		return nil, err
	}
	if path, ok := s.names.real(v.path); ok {
		for _, name := range s.names.byPath[path] {
			l, err := s.p.runtime.showCert(ctx, name, false)
			if errors.Is(err, errUnknownName) {
				continue // deleted since it was listed
			}
			if err != nil {
				return nil, err
			}
			entries = append(entries, entry{name, l})
		}
	}
	if len(entries) > 0 {
		return entries, nil
	}
	return s.findAdrift(ctx, v)
}

// findAdrift looks among the names whose folder is not known: the name must be an end of the file's path, and what
// HAProxy loaded under it must be a bundle that this file is known to have held. Any doubt is an error, never a guess.
func (s *survey) findAdrift(ctx context.Context, v *view) ([]entry, error) {
	var proven []entry
	var doubtful []string
	for _, name := range s.names.adrift {
		if !endsIn(v.path, name) && !endsIn(v.real, name) {
			continue
		}
		l, err := s.p.runtime.showCert(ctx, name, false)
		if err != nil {
			return nil, err
		}
		if l.SHA1 != "" && v.bySHA1(l.SHA1) != nil {
			proven = append(proven, entry{name, l})
		} else {
			doubtful = append(doubtful, name)
		}
	}
	const hint = "write the file's absolute path in HAProxy's configuration (or an absolute crt-base), and reload HAProxy"
	switch {
	case len(proven) == 1:
		return proven, nil
	case len(proven) > 1:
		return nil, cluster.WithHint(fmt.Errorf("HAProxy has several certificates that may be %s: %s and %s", v.path, proven[0].name, proven[1].name), hint)
	case len(doubtful) > 0:
		return nil, cluster.WithHint(fmt.Errorf("HAProxy has a certificate called %s; whether that is %s cannot be told, because it is none that this file is known to have held", doubtful[0], v.path), hint)
	}
	return nil, nil
}

// endsIn tells whether name, without what cannot be resolved at its beginning, is an end of path.
func endsIn(path, name string) bool {
	name = filepath.Clean(name)
	for strings.HasPrefix(name, "../") {
		name = name[len("../"):]
	}
	return strings.HasSuffix(path, "/"+strings.TrimPrefix(name, "/"))
}

// place is where a new bundle can be added at run time.
type place struct {
	// list is HAProxy's name of the crt-list.
	list string
	// name is what HAProxy is to call the certificate.
	name string
	// file is the crt-list file that needs a line for it, "" where list is the folder of a `crt DIR`.
	file string
	// readOnly is the crt-list file of the configuration where it cannot be written.
	readOnly string
}

// placeFor finds the list that can take v: the crt-list file of the configuration where that is HAProxy's and can be
// written, else the `crt DIR` of the bundle's folder. ok is false where there is none.
func (s *survey) placeFor(ctx context.Context, v *view) (p place, ok bool, err error) {
	lists, err := s.p.runtime.showLists(ctx)
	if err != nil {
		return place{}, false, err
	}
	if file := s.p.config.CrtList; file != "" && writable(file) {
		want, _ := s.names.real(file)
		for _, list := range lists {
			if path, ok := s.names.real(list); ok && path == want {
				return place{list: list, name: v.path, file: file}, true, nil
			}
		}
		// HAProxy does not use it yet: the line is for its next start.
		return place{name: v.path, file: file}, false, nil
	}
	p.readOnly = s.p.config.CrtList
	want, _ := s.names.realDir(filepath.Dir(v.path))
	for _, list := range lists {
		if dir, ok := s.names.realDir(list); ok && filepath.IsAbs(list) && dir == want {
			// 2.6 wants the name to begin with the list's.
			return place{list: list, name: list + "/" + filepath.Base(v.path)}, true, nil
		}
	}
	return p, false, nil
}

// isMissing tells whether err says that there is no file.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
