package store

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"certsync/internal/cluster"
)

// checkFolder refuses a folder that belongs to another user than this process, or that others can write to: whoever can
// write to state_dir can replace keys. mend is the hint for a folder of another owner.
func checkFolder(path string, mend func(owner int) string) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&os.ModeSymlink != 0 {
		info, err = os.Stat(path)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int64(stat.Uid) != int64(os.Geteuid()) {
		err := fmt.Errorf("%s belongs to uid %d, and this process runs as uid %d", path, stat.Uid, os.Geteuid())
		return cluster.WithHint(err, "%s", mend(int(stat.Uid)))
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return cluster.WithHint(fmt.Errorf("%s has mode %04o: others can write to it", path, mode), "chmod 0700 %s", path)
	}
	return nil
}

// userName is the name of a uid, or the number where it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// orRoot names whom to run as where state_dir belongs to owner. Run by root, certsync becomes the owner by itself.
func orRoot(owner int) string {
	if owner == 0 || os.Geteuid() == 0 {
		return userName(owner)
	}
	return userName(owner) + ", or as root"
}
