package sysfile

import (
	"fmt"
	"io/fs"
	"path"
)

// MkdirAll makes the folder at path, and those above it that are missing, each with how's mode and owner. It gives those
// that were made, the outermost first; a folder that is there keeps its mode and owner: see Chmod and Chown.
func (t *Tree) MkdirAll(p string, how How) ([]Change, error) {
	if !path.IsAbs(p) || path.Clean(p) != p {
		return nil, fmt.Errorf("make folder %s: %w: not an absolute, clean path", printable(p), fs.ErrInvalid)
	}
	var missing []string
	for at := p; ; at = path.Dir(at) {
		s, err := t.Stat(at)
		if err != nil {
			return nil, err
		}
		if s.Kind == Plain {
			return nil, fmt.Errorf("make folder %s: %s: %w", t.name(p), t.name(at), ErrNotFolder)
		}
		if s.Kind == Folder {
			break
		}
		missing = append([]string{at}, missing...)
	}
	var made []Change
	for _, at := range missing {
		c, err := t.mkdir(at, how)
		if err != nil {
			return made, err
		}
		made = append(made, c)
	}
	return made, nil
}

func (t *Tree) mkdir(p string, how How) (Change, error) {
	c := Change{Before: State{Path: p, Kind: Absent}}
	err := t.within("make folder", p, func(r *place) error {
		if err := r.root.Mkdir(r.rel, 0o700); err != nil {
			return err
		}
		err := t.dress(r, how)
		if err == nil {
			err = t.syncFolder(r.root, path.Dir(r.rel))
		}
		if err == nil {
			c.After, err = r.again()
		}
		if err != nil {
			_ = r.root.Remove(r.rel)
		}
		return err
	})
	return c, err
}

// dress gives a folder that was just made its owner and mode.
func (t *Tree) dress(r *place, how How) error {
	f, err := r.root.Open(r.rel)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if how.Owner != nil {
		if err := t.chown(f, how.Owner.UID, how.Owner.GID); err != nil {
			return fmt.Errorf("give it to %d:%d: %w", how.Owner.UID, how.Owner.GID, cause(err))
		}
	}
	return f.Chmod(how.modeOr(0o755))
}

// again looks at the place anew.
func (r *place) again() (State, error) {
	info, err := r.root.Lstat(r.rel)
	if err != nil {
		return State{Path: r.path}, err
	}
	r.info = info
	return r.state()
}

// Remove takes away the file, or the empty folder, at path. One that is not there is no error. A link there is refused:
// it is none of ours.
func (t *Tree) Remove(p string) (Change, error) {
	c := Change{Before: State{Path: p, Kind: Absent}, After: State{Path: p, Kind: Absent}}
	err := t.within("remove", p, func(r *place) error {
		if r.info == nil {
			return nil
		}
		if err := t.notLinked(r); err != nil {
			return err
		}
		before, err := r.state()
		if err != nil {
			return err
		}
		c.Before, c.After = before, before
		if err := r.root.Remove(r.rel); err != nil {
			return err
		}
		c.After = State{Path: p, Kind: Absent}
		return t.syncFolder(r.root, path.Dir(r.rel))
	})
	return c, err
}

// notLinked fails where the last part of the path is itself a link.
func (t *Tree) notLinked(r *place) error {
	dir, _, err := resolve(r.root, path.Dir(r.path), t.host())
	if err != nil {
		return err
	}
	info, err := r.root.Lstat(path.Join(dir, path.Base(r.path)))
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		err = fmt.Errorf("%w: it is a link", ErrNotFile)
	}
	return err
}

// Chmod gives the file or the folder at path the permissions; nothing is touched where it has them.
func (t *Tree) Chmod(p string, mode fs.FileMode) (Change, error) {
	mode &= modeBits
	return t.adjust("change the mode of", p, func(r *place, s State) error {
		if s.Mode == mode {
			return nil
		}
		return r.root.Chmod(r.rel, mode)
	})
}

// Chown gives the file or the folder at path its owner and group; nothing is touched where it has them. A change of owner
// takes setuid and setgid away from a file, as chown(2) does.
func (t *Tree) Chown(p string, owner Owner) (Change, error) {
	return t.adjust("change the owner of", p, func(r *place, s State) error {
		if s.Owner == owner {
			return nil
		}
		return r.root.Chown(r.rel, owner.UID, owner.GID)
	})
}

func (t *Tree) adjust(what, p string, adjust func(*place, State) error) (Change, error) {
	var c Change
	err := t.within(what, p, func(r *place) error {
		before, err := r.state()
		if err == nil && before.Kind == Absent {
			err = fs.ErrNotExist
		}
		if err != nil {
			return err
		}
		c.Before, c.After = before, before
		if err := adjust(r, before); err != nil {
			return err
		}
		c.After, err = r.again()
		return err
	})
	return c, err
}

// Restore puts back what was at s.Path: nothing (a file, or a folder that is empty, is removed), the file with its
// content, mode and owner, or the folder with its mode and owner. No backup is made. The caller sees to it that what lies
// there now is certsync's to replace.
func (t *Tree) Restore(s State) error {
	var err error
	how := How{Mode: s.Mode, Owner: &s.Owner, NoBackup: true}
	if how.Mode == 0 { // which How takes for the usual one
		how.Mode = 0o600
	}
	switch s.Kind {
	case Absent:
		_, err = t.Remove(s.Path)
		return err
	case Plain:
		_, err = t.Write(s.Path, s.Data, how)
	case Folder:
		_, err = t.MkdirAll(s.Path, how)
	default:
		return fmt.Errorf("restore %s: %w: kind %q", printable(s.Path), fs.ErrInvalid, s.Kind)
	}
	if err == nil {
		_, err = t.Chown(s.Path, s.Owner)
	}
	if err == nil {
		_, err = t.Chmod(s.Path, s.Mode)
	}
	return err
}
