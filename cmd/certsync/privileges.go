package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"certsync/internal/cluster"
)

// dropPrivileges makes a process that runs as root the service user: the owner of state_dir, with that user's groups,
// before any state is opened, so that no file comes to belong to root. Where the folder is root's, root it stays.
func dropPrivileges(stateDir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return cluster.WithHint(fmt.Errorf("state_dir %s: %w", stateDir, fs.ErrNotExist),
			"make it, owned by the service user: install -d -o certsync -g certsync -m 0700 %s", stateDir)
	}
	if err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return become(stateDir, int(owner.Uid))
}

func become(stateDir string, uid int) error {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return cluster.WithHint(fmt.Errorf("state_dir %s belongs to uid %d: no such user", stateDir, uid), "chown it to the service user")
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("group of %s: %w", u.Username, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("groups of %s: %w", u.Username, err)
	}
	groups := make([]int, 0, len(ids))
	for _, id := range ids {
		g, err := strconv.Atoi(id)
		if err != nil {
			return fmt.Errorf("groups of %s: %w", u.Username, err)
		}
		groups = append(groups, g)
	}
	// The groups first: they cannot be changed any more once the user is.
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("become %s: groups: %w", u.Username, err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("become %s: group: %w", u.Username, err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("become %s: user: %w", u.Username, err)
	}
	return os.Setenv("HOME", u.HomeDir)
}
