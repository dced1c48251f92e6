package haproxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// temporaryPrefix begins the names of files being written, before the writer's process ID and something random. HAProxy
// loads every file of a `crt DIR` whose name has no leading dot.
const temporaryPrefix = ".certsync-"

// FileName is the name of the bundle file of t in the bundle folder: NAME.pem, or NAME.pem.ecdsa and NAME.pem.rsa where
// the certificate has both families.
func FileName(t cluster.Target) string {
	return t.Slot.Name + ".pem" + familySuffix(t)
}

func familySuffix(t cluster.Target) string {
	if t.Both {
		return "." + string(t.Slot.Algorithm)
	}
	return ""
}

// file is the path of t's bundle: its own `bundle` path (with the suffix of its family where it has both), else
// FileName in the bundle folder.
func (p *Proxy) file(t cluster.Target) string {
	if t.Path != "" {
		return t.Path + familySuffix(t)
	}
	return filepath.Join(p.config.BundleDir, FileName(t))
}

// readBundle reads and parses a bundle file. A file that is too large is not read.
func readBundle(path string) (data []byte, bundle *cert.Bundle, err error) {
	data, err = readFile(path)
	if err != nil {
		return nil, nil, err
	}
	bundle, err = cert.Parse(data)
	if err != nil {
		err = fmt.Errorf("bundle %s: %w", path, err)
	}
	return data, bundle, err
}

func readFile(path string) ([]byte, error) {
	// A named pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read bundle %s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, cert.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	return data, nil
}

// destination follows symbolic links, also one whose target does not exist yet: the file is replaced where it is, and
// the link, whose name may be the one that HAProxy knows, stays.
func destination(path string) (string, error) {
	for range 32 {
		target, err := os.Readlink(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EINVAL):
			return path, nil
		case err != nil:
			return "", fmt.Errorf("follow the link: %w", err)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return "", fmt.Errorf("follow the link %s: %w", path, syscall.ELOOP)
}

// access is who may read a bundle file.
type access struct {
	mode fs.FileMode
	gid  int // -1 leaves the group as it comes
}

var private = access{mode: 0o600, gid: -1}

// access is that of the bundle files. Where there is no such group, which a write tells, a group's own may stay.
func (p *Proxy) access() access {
	who, err := groupAccess(p.config.BundleGroup)
	if err != nil {
		return access{mode: 0o640, gid: -1}
	}
	return who
}

func groupAccess(group string) (access, error) {
	if group == "" {
		return private, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return access{}, cluster.WithHint(fmt.Errorf("bundle_group: %w", err), "name a group of this host under haproxy.bundle_group, or leave it out")
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return access{}, fmt.Errorf("bundle_group %s: group ID %q: %w", group, g.Gid, err)
	}
	return access{mode: 0o640, gid: gid}, nil
}

// writeFile replaces path by data so that a reader finds the old file or the new one whole, at every instant, also
// after a power cut: a temporary file in the same folder, fsync, rename, fsync of the folder.
func writeFile(path string, data []byte, a access, step string) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, fmt.Sprintf("%s%d-*", temporaryPrefix, os.Getpid()))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	failpoint.Hit(step + ".temp")
	// Before there is anything to read in it. CreateTemp made it 0600.
	if a.gid >= 0 {
		if err = f.Chown(-1, a.gid); err != nil {
			return cluster.WithHint(err, "add certsync's user to the group that haproxy.bundle_group names")
		}
	}
	if err = f.Chmod(a.mode); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	failpoint.Hit(step + ".synced")
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// removeFile removes path for good; that it is not there is as good.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// sweep removes the temporary files that a killed certsync left in dir: they hold private keys. Those of a process that
// lives are being written, perhaps for another HAProxy that has the same folder.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), temporaryPrefix); ok && e.Type().IsRegular() {
			owner, _, _ := strings.Cut(rest, "-")
			if pid, err := strconv.Atoi(owner); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// keep puts aside what is at path, before it is replaced: as the original, once, where certsync did not write it; and
// as the previous bundle.
func (j *journal) keep(path string, data []byte, ours bool) error {
	if !ours {
		original := j.kept("originals", path)
		if _, err := os.Lstat(original); errors.Is(err, fs.ErrNotExist) {
			if err := writeFile(original, data, private, "haproxy.original"); err != nil {
				return err
			}
		}
	}
	previous := j.kept("previous", path)
	if old, err := os.ReadFile(previous); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return writeFile(previous, data, private, "haproxy.previous")
}

// previous is the bundle that was at path before the last write, if it is a bundle.
func (j *journal) previous(path string) *cert.Bundle {
	_, b, err := readBundle(j.kept("previous", path))
	if err != nil {
		return nil
	}
	return b
}

// kept is where a copy of path lies. The digest keeps apart files of one name in different folders.
func (j *journal) kept(kind, path string) string {
	return filepath.Join(j.dir, kind, digest([]byte(path))[:12]+"-"+filepath.Base(path))
}
