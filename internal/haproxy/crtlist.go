package haproxy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// writable tells whether a file can be replaced: it is there, and its folder can be written.
func writable(path string) bool {
	real, err := destination(path)
	if err != nil {
		return false
	}
	const w = 2 // access(2)'s W_OK
	return syscall.Access(real, w) == nil && syscall.Access(filepath.Dir(real), w) == nil
}

// listed tells whether a crt-list file has a line for name (HAProxy's Configuration Manual, `crt-list`: the first word
// of a line that is neither empty nor a comment).
func listed(content []byte, name string) bool {
	for line := range bytes.Lines(content) {
		if words := strings.Fields(string(line)); len(words) > 0 && words[0] == name {
			return true
		}
	}
	return false
}

// addLine adds name to a crt-list file, so that HAProxy loads it at its next start too. undo takes it out again; nil
// where the line was there.
func addLine(path, name string) (undo func() error, err error) {
	if strings.ContainsAny(name, " \t\n\r#[]!\"'\\$") {
		return nil, cluster.WithHint(fmt.Errorf("crt_list %s: the path %q cannot stand in a crt-list", path, name), "choose a bundle path of letters, digits and ._-/")
	}
	real, err := destination(path)
	if err != nil {
		return nil, fmt.Errorf("crt_list: %w", err)
	}
	before, err := os.ReadFile(real)
	if err != nil {
		return nil, fmt.Errorf("crt_list: %w", err)
	}
	if listed(before, name) {
		return nil, nil
	}
	after := bytes.Clone(before)
	if len(after) > 0 && after[len(after)-1] != '\n' {
		after = append(after, '\n')
	}
	if err := replaceFile(real, append(after, name+"\n"...), "haproxy.crtlist"); err != nil {
		return nil, fmt.Errorf("crt_list: %w", err)
	}
	failpoint.Hit("haproxy.listed_on_disk")
	return func() error { return removeLine(real, name) }, nil
}

// removeLine takes out the line that addLine wrote; what else was changed since stays.
func removeLine(path, name string) error {
	before, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("crt_list: %w", err)
	}
	if err := replaceFile(path, without(before, name), "haproxy.crtlist"); err != nil {
		return fmt.Errorf("crt_list: %w", err)
	}
	return nil
}

// without is a crt-list's content without the lines that are name and nothing else.
func without(content []byte, name string) []byte {
	var after []byte
	for line := range bytes.Lines(content) {
		if string(bytes.TrimSpace(line)) != name {
			after = append(after, line...)
		}
	}
	return after
}

// replaceFile replaces a file and keeps its mode and, as far as we may, its owner.
func replaceFile(path string, data []byte, step string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := writeFile(path, data, access{mode: info.Mode().Perm(), gid: -1}, step); err != nil {
		return err
	}
	keepOwner(path, info)
	return nil
}

// keepOwner gives a file the owner that it had, as far as we may.
func keepOwner(path string, before os.FileInfo) {
	if owner, ok := before.Sys().(*syscall.Stat_t); ok {
		_ = os.Lchown(path, int(owner.Uid), int(owner.Gid))
	}
}
