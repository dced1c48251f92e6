package store

import (
	"fmt"
	"os"
	"syscall"

	"certsync/internal/cluster"
)

// checkFolder refuses a folder that belongs to another user than this process, or that others can write to: whoever can
// write to state_dir can replace keys.
func checkFolder(path string) error {
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
		return cluster.WithHint(err, "run certsync as the user that owns %s, or give the folder and all in it to uid %d with chown -R", path, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return cluster.WithHint(fmt.Errorf("%s has mode %04o: others can write to it", path, mode), "chmod 0700 %s", path)
	}
	return nil
}
