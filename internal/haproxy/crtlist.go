package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
	"certsync/internal/fileid"
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
		return nil, listHint(fmt.Errorf("crt_list: %w", err), path)
	}
	if listed(before, name) {
		return nil, nil
	}
	after := bytes.Clone(before)
	if len(after) > 0 && after[len(after)-1] != '\n' {
		after = append(after, '\n')
	}
	if err := replaceFile(real, append(after, name+"\n"...), "haproxy.crtlist"); err != nil {
		return nil, listHint(fmt.Errorf("crt_list: %w", err), path)
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

// listHint says what to do about a crt-list that is gone or cannot be written.
func listHint(err error, path string) error {
	switch {
	case isMissing(err):
		return cluster.WithHint(err, "write it again: `show ssl crt-list %s` on HAProxy's runtime socket prints its lines", path)
	case errors.Is(err, fs.ErrPermission):
		return cluster.WithHint(err, "let certsync's user write %s and its folder", path)
	}
	return folderHint(err, path)
}

// listLines are the first words of a crt-list's lines, comments left out: files.
type listLines struct {
	// absolute are paths, relative ones begin at HAProxy's crt-base or its working folder.
	absolute, relative []string
	has                map[string]bool
}

func linesOf(content []byte) listLines {
	l := listLines{has: map[string]bool{}}
	for line := range bytes.Lines(content) {
		words := strings.Fields(string(line))
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], "@") || l.has[words[0]]:
			continue
		case filepath.IsAbs(words[0]):
			l.absolute = append(l.absolute, words[0])
		default:
			l.relative = append(l.relative, words[0])
		}
		l.has[words[0]] = true
	}
	return l
}

// name tells whether a line may stand for what HAProxy calls name: the same, or an end of it after a crt-base.
func (l listLines) name(name string) bool {
	return l.has[name] || slices.ContainsFunc(l.relative, func(word string) bool { return endsIn(name, word) })
}

// crtList remembers the lines of a crt-list for as long as the file is as it was. The zero value is ready.
type crtList struct {
	mu   sync.Mutex
	path string
	// id was the file's when it was read, at.
	id    fileid.ID
	at    time.Time
	lines listLines
}

func (c *crtList) read(path string) (listLines, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, id := time.Now(), fileid.Stat(path)
	if c.path == path && c.id == id && id.Settled(c.at) {
		return c.lines, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return listLines{}, err
	}
	c.path, c.id, c.at, c.lines = path, id, at, linesOf(content)
	return c.lines, nil
}

// unlisted tells that HAProxy has v's certificate from the crt-list of the configuration, and that the file does not
// name it any more: the next start would lose it. HAProxy is asked only where no line names it.
func (a *activation) unlisted(ctx context.Context, v *view) bool {
	file := a.p.config.CrtList
	if file == "" || v.memoryErr != nil || len(v.entries) == 0 {
		return false
	}
	lines, _ := a.p.list.read(file) // one that cannot be read names nothing
	if lines.name(v.path) || lines.name(v.real) || slices.ContainsFunc(v.entries, func(e entry) bool { return lines.name(e.name) }) {
		return false
	}
	if a.running == nil {
		a.running = a.runningList(ctx, file)
	}
	return slices.ContainsFunc(v.entries, func(e entry) bool { return a.running[e.name] })
}

// runningList are the names that HAProxy has from a crt-list file; none where it does not use the file, or cannot be
// asked.
func (a *activation) runningList(ctx context.Context, file string) map[string]bool {
	names := map[string]bool{}
	lists, err := a.p.runtime.showLists(ctx)
	if err != nil {
		return names
	}
	for _, list := range lists {
		if !a.meansFile(list, file) {
			continue
		}
		lines, err := a.p.runtime.showList(ctx, list)
		if err != nil {
			continue
		}
		for name := range lines {
			names[name] = true
		}
	}
	return names
}

// meansFile tells whether HAProxy's name of a list is that of a crt-list file.
func (a *activation) meansFile(list, file string) bool {
	want, ok := a.names.real(file)
	if !filepath.IsAbs(list) {
		return endsIn(file, list) || ok && endsIn(want, list)
	}
	path, named := a.names.real(list)
	return ok && named && path == want
}
