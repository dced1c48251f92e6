package sysfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"certsync/internal/failpoint"
)

// How says how a file or a folder is made.
type How struct {
	// Mode are the permissions of one that is made, whatever the umask; 0 is 0644, and 0755 for a folder. What is there
	// keeps its own.
	Mode fs.FileMode
	// Owner is that of one that is made; nil leaves it to the system. What is there keeps its own.
	Owner *Owner
	// NoBackup: no FILE.certsync-orig is left. It is for files that are certsync's own.
	NoBackup bool
}

// Change is what was done at a path.
type Change struct {
	Before State `json:"before"`
	After  State `json:"after"`
	// Backup is the path of the backup that was made, or "": one is made once.
	Backup string `json:"backup,omitempty"`
}

// Changed tells whether anything was.
func (c Change) Changed() bool { return !c.Before.Same(c.After) }

// backupSuffix is that of the file as it was before certsync's first edit.
const backupSuffix = ".certsync-orig"

// tempPrefix and tempSuffix are those of a file that is being written. The dot keeps rc(8) and the loader from reading it.
const (
	tempPrefix = ".certsync-"
	tempSuffix = ".tmp"
)

// BackupPath is where the backup of the file at p is: beside it, or beside the link at p, where it is one. rc(8) reads every file of a folder rc.conf.d/NAME but
// those whose names begin with a dot: there it does.
func BackupPath(p string) string {
	dir, name := path.Split(p)
	if path.Base(path.Dir(path.Dir(p))) == "rc.conf.d" {
		name = "." + name
	}
	return dir + name + backupSuffix
}

// steps are those of a write that a test makes fail; a nil one is the system's.
type steps struct {
	write  func(f *os.File, data []byte) (int, error)
	sync   func(f *os.File) error
	rename func(root *os.Root, from, to string) error
	chown  func(f *os.File, uid, gid int) error
}

func (t *Tree) write(f *os.File, data []byte) (int, error) {
	if t.steps != nil && t.steps.write != nil {
		return t.steps.write(f, data)
	}
	return f.Write(data)
}

func (t *Tree) sync(f *os.File) error {
	if t.steps != nil && t.steps.sync != nil {
		return t.steps.sync(f)
	}
	return f.Sync()
}

func (t *Tree) rename(root *os.Root, from, to string) error {
	if t.steps != nil && t.steps.rename != nil {
		return t.steps.rename(root, from, to)
	}
	return root.Rename(from, to)
}

func (t *Tree) chown(f *os.File, uid, gid int) error {
	if t.steps != nil && t.steps.chown != nil {
		return t.steps.chown(f, uid, gid)
	}
	return f.Chown(uid, gid)
}

// Write makes data the content of the file at path, or makes the file: whole or not at all, and durable once it returned.
// A link in its place stays, and what it leads to is written. The folder must be there. Where the file has that content
// already it is not touched. ACLs and flags (chflags(1)) are not carried over.
func (t *Tree) Write(path string, data []byte, how How) (Change, error) {
	var c Change
	err := t.within("write", path, func(r *place) (err error) {
		c, err = t.put(r, data, how)
		return err
	})
	return c, err
}

func (t *Tree) put(r *place, data []byte, how How) (Change, error) {
	if len(data) > MaxSize {
		return Change{}, fmt.Errorf("%w: %d bytes, at most %d are written", ErrTooLarge, len(data), MaxSize)
	}
	before, err := r.state()
	if err == nil && before.Kind == Folder {
		err = ErrNotFile
	}
	if err != nil {
		return Change{}, err
	}
	c := Change{Before: before, After: before}
	if before.Kind == Plain && bytes.Equal(before.Data, data) {
		return c, nil
	}
	mode, owner := how.modeOr(0o644), how.Owner
	if before.Kind == Plain {
		mode, owner = before.Mode, &before.Owner
	}
	if err := folderThere(r.root, path.Dir(r.rel)); err != nil {
		return c, err
	}
	t.sweep(r.root, path.Dir(r.rel))
	if before.Kind == Plain && !how.NoBackup {
		made, err := t.backup(r, before)
		if err != nil {
			return c, fmt.Errorf("leave a backup: %w", cause(err))
		}
		if made {
			c.Backup = BackupPath(r.path)
		}
	}
	if err := t.replace(r.root, r.rel, data, mode, owner); err != nil {
		return c, err
	}
	r.info, err = r.root.Lstat(r.rel)
	if err != nil {
		return c, err
	}
	c.After, err = r.state()
	return c, err
}

// folderThere fails where the folder of a file that is to be made is not there.
func folderThere(root *os.Root, dir string) error {
	if _, err := root.Lstat(dir); err != nil {
		return fmt.Errorf("the folder /%s: %w", dir, cause(err))
	}
	return nil
}

func (h How) modeOr(standard fs.FileMode) fs.FileMode {
	if h.Mode == 0 {
		return standard
	}
	return h.Mode & modeBits
}

// backup keeps the file as it is now, if there is no backup yet.
func (t *Tree) backup(r *place, now State) (made bool, err error) {
	beside := BackupPath(r.path)
	dir, _, err := resolve(r.root, path.Dir(beside), t.host())
	if err != nil {
		return false, err
	}
	rel := path.Join(dir, path.Base(beside))
	if _, err := r.root.Lstat(rel); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	err = t.temporary(r.root, path.Dir(rel), now.Data, now.Mode, &now.Owner, func(temp string) error {
		failpoint.Hit("sysfile.backup")
		// Link, unlike Rename, never replaces.
		if err := r.root.Link(temp, rel); err != nil {
			return err
		}
		return r.root.Remove(temp)
	})
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// replace puts data in the place of the file at rel.
func (t *Tree) replace(root *os.Root, rel string, data []byte, mode fs.FileMode, owner *Owner) error {
	return t.temporary(root, path.Dir(rel), data, mode, owner, func(temp string) error {
		failpoint.Hit("sysfile.rename")
		if err := t.rename(root, temp, rel); err != nil {
			return err
		}
		failpoint.Hit("sysfile.renamed")
		return nil
	})
}

// temporary writes data into a file of the folder, hands its name to place, which gives it its own, and makes the folder
// durable. Where anything fails the temporary file is gone.
func (t *Tree) temporary(root *os.Root, dir string, data []byte, mode fs.FileMode, owner *Owner, place func(temp string) error) error {
	name := path.Join(dir, tempPrefix+strings.ToLower(rand.Text()[:12])+tempSuffix)
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// The lock tells sweep that somebody writes this file. Closing it at the end releases it.
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	failpoint.Hit("sysfile.temp")
	err = t.fill(f, data, mode, owner)
	if err == nil {
		err = place(name)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = root.Remove(name)
		return cause(err)
	}
	return t.syncFolder(root, dir)
}

// fill writes and syncs a temporary file. The owner comes before the mode: a change of owner takes setuid away, and the
// content must not be open to the owner's group before the group is right.
func (t *Tree) fill(f *os.File, data []byte, mode fs.FileMode, owner *Owner) error {
	if _, err := t.write(f, data); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if owner != nil && ownerOf(info) != *owner {
		if err := t.chown(f, owner.UID, owner.GID); err != nil {
			return fmt.Errorf("give it to %d:%d: %w", owner.UID, owner.GID, cause(err))
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	failpoint.Hit("sysfile.written")
	return t.sync(f)
}

// syncFolder makes the entries of a folder durable.
func (t *Tree) syncFolder(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the folder: %w", cause(err))
	}
	err = t.sync(f)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync the folder: %w", cause(err))
	}
	return nil
}

// sweep removes the temporary files that a kill left in the folder: those of ours that nobody holds a lock on.
func (t *Tree) sweep(root *os.Root, dir string) {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return // the write itself will fail and say why
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) && strings.HasSuffix(e.Name(), tempSuffix) && e.Type().IsRegular() {
			removeUnlocked(root, path.Join(dir, e.Name()))
		}
	}
}

func removeUnlocked(root *os.Root, name string) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		_ = root.Remove(name)
	}
}
