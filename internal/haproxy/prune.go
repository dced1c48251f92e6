package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// leftover is a bundle file of a slot that is no longer configured.
type leftover struct {
	view
	// lists are HAProxy's names of the lists that each entry is in, with the numbers of its lines.
	lists map[string]map[string][]int
	// err is why it has to stay.
	err error
}

// Prune tells what this HAProxy has of slots that are no longer configured, and, where remove is true, takes it away: out
// of HAProxy's memory, out of the crt-list, off the disk; a copy of each file is kept beside the journal. gone are the
// slots, with all bundles that are held of them as Known; kept are the targets that are configured, whose files are not
// touched. What certsync did not write stays, and what HAProxy cannot let go, with its file, since the next start would
// fail without it: a leftover's Error says so. Killed at any step it is finished by the next call.
func (p *Proxy) Prune(ctx context.Context, gone, kept []cluster.Target, remove bool) ([]cluster.Leftover, error) {
	if remove {
		release, err := p.takeTurn(ctx)
		if err != nil {
			return nil, fmt.Errorf("prune on HAProxy %s: %w", p.config.Name, err)
		}
		defer release()
		p.journal.sweep()
	}
	a := &activation{survey: p.firstSurvey(ctx), swept: map[string]bool{}, files: map[string]bool{}}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range kept {
		a.files[p.file(t)] = true
		if real, err := destination(p.file(t)); err == nil {
			a.files[real] = true
		}
	}
	if remove && a.err == nil {
		if err := errors.Join(a.recover(ctx), a.wait(ctx)); err != nil {
			return nil, fmt.Errorf("prune on HAProxy %s: %w", p.config.Name, err)
		}
	}
	leftovers, err := a.leftovers(ctx, gone)
	if err != nil {
		return nil, fmt.Errorf("prune on HAProxy %s: %w", p.config.Name, err)
	}
	out := make([]cluster.Leftover, 0, len(leftovers))
	for _, l := range leftovers {
		if remove && l.err == nil {
			l.err = a.remove(ctx, &l)
		}
		out = append(out, a.tell(l, remove))
	}
	return out, ctx.Err()
}

// takeTurn waits for the other callers of this process, then for the other processes.
func (p *Proxy) takeTurn(ctx context.Context) (release func(), err error) {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	unlock, err := p.journal.lock(ctx, p.config.Wait)
	if err != nil {
		<-p.turn
		return nil, err
	}
	return func() { unlock(); <-p.turn }, nil
}

// tell is what a caller gets to know of a leftover.
func (a *activation) tell(l leftover, removed bool) cluster.Leftover {
	out := cluster.Leftover{Slot: l.Slot, Proxy: a.p.config.Name, File: l.path, OnDisk: l.data != nil || l.diskErr != nil && !isMissing(l.diskErr)}
	for _, e := range l.entries {
		out.Memory = append(out.Memory, e.name)
	}
	if file := a.p.config.CrtList; file != "" {
		if lines, err := a.p.list.read(file); err == nil && lines.has[l.path] {
			out.CrtList = file
		}
	}
	if l.err != nil {
		out.Error, out.Hint = strings.ReplaceAll(l.err.Error(), "\n", "; "), cluster.HintOf(l.err)
	} else if removed {
		out.Removed, out.OnDisk, out.Memory, out.CrtList = true, false, nil, ""
	}
	return out
}

// leftovers are the files that certsync wrote for slots that are gone: by what is in them, or, where they are not there
// any more or hold something else now, by their names.
func (a *activation) leftovers(ctx context.Context, gone []cluster.Target) ([]leftover, error) {
	paths, err := a.p.journal.ownedPaths()
	if err != nil {
		return nil, err
	}
	var out []leftover
	for _, path := range paths {
		if a.files[path] {
			continue
		}
		l := leftover{view: view{path: path, real: path, who: a.who}}
		l.lookOnDisk()
		if i := slices.IndexFunc(gone, func(t cluster.Target) bool { return holds(t, l.disk) }); i >= 0 {
			l.Target = gone[i]
		} else if i := slices.IndexFunc(gone, func(t cluster.Target) bool { return a.mayLieAt(t, path, l.disk) }); i >= 0 {
			l.Target = gone[i]
			if l.disk != nil {
				l.err = cluster.WithHint(fmt.Errorf("%s holds %s, which is not certsync's", path, cert.Describe(l.disk.Leaf())), "remove it by hand, if it is not wanted")
			}
		} else {
			continue
		}
		a.examine(ctx, &l)
		out = append(out, l)
	}
	return out, nil
}

// holds tells whether b is one of the bundles that are held of a slot.
func holds(t cluster.Target, b *cert.Bundle) bool {
	return b != nil && slices.ContainsFunc(t.Known, func(k *cert.Bundle) bool { return k != nil && k.Fingerprint() == b.Fingerprint() })
}

// mayLieAt tells whether a path is one of those that a slot's bundle has in the bundle folder.
func (a *activation) mayLieAt(t cluster.Target, path string, b *cert.Bundle) bool {
	base := filepath.Join(a.p.config.BundleDir, t.Slot.Name+".pem")
	return path == base+"."+string(t.Slot.Algorithm) || path == base && (b == nil || b.Algorithm() == t.Slot.Algorithm)
}

// examine finds a leftover in HAProxy, and what is in the way of its removal.
func (a *activation) examine(ctx context.Context, l *leftover) {
	block := func(err error) {
		if l.err == nil {
			l.err = err
		}
	}
	if l.diskErr != nil && !isMissing(l.diskErr) && l.data == nil {
		block(cluster.WithHint(fmt.Errorf("%s cannot be read: %w", l.path, l.diskErr), "remove it by hand"))
	}
	if a.err != nil {
		block(cluster.WithHint(fmt.Errorf("HAProxy cannot be asked whether it needs the file: %w", a.err), "start HAProxy, then run it again (%s)", cluster.HintOf(a.err)))
		return
	}
	var err error
	if l.entries, err = a.find(ctx, &l.view); err != nil {
		block(err)
		return
	}
	if err := errors.Join(a.linked(l), a.relativeLine(l)); err != nil {
		block(err)
	}
	for _, e := range l.entries {
		if err := a.mayDrop(ctx, l, e); err != nil {
			block(err)
		}
	}
}

// linked refuses a file that is reached by a link: with its end gone HAProxy would not start.
func (a *activation) linked(l *leftover) error {
	names := []string{filepath.Join(a.p.config.BundleDir, l.Slot.Name+".pem")}
	for _, e := range l.entries {
		names = append(names, e.name)
	}
	for _, name := range names {
		if info, err := os.Lstat(name); err != nil || info.Mode().Type() != fs.ModeSymlink {
			continue
		}
		if end, err := destination(name); err == nil && end == l.real {
			return cluster.WithHint(fmt.Errorf("%s is a link to %s", name, l.path), "remove the link, reload HAProxy, then run it again")
		}
	}
	return nil
}

// mayDrop refuses what HAProxy has of a leftover and must keep, or that is not certsync's to take away.
func (a *activation) mayDrop(ctx context.Context, l *leftover, e entry) error {
	if a.managed == nil {
		names, err := a.p.runtime.managed(ctx)
		if err != nil {
			return err
		}
		a.managed = append([]string{}, names...)
	}
	if slices.Contains(a.managed, e.name) {
		return cluster.WithHint(fmt.Errorf("%s is looked after by HAProxy's own ACME client", e.name), "leave it to HAProxy, or take it out of its `acme` section")
	}
	if e.SHA1 != "" && l.bySHA1(e.SHA1) == nil {
		return cluster.WithHint(fmt.Errorf("HAProxy has a certificate as %s (SHA-1 %s) that is not certsync's", e.name, e.SHA1), "remove it by hand, if it is not wanted")
	}
	lists, err := a.listsNaming(ctx, e.name)
	if err != nil {
		return err
	}
	if l.lists == nil {
		l.lists = map[string]map[string][]int{}
	}
	l.lists[e.name] = lists
	if e.Status == "Used" && len(lists) == 0 {
		return cluster.WithHint(fmt.Errorf("a bind line names it: %w at run time", errStays), "take `crt %s` off the bind line and reload HAProxy, then run it again", e.name)
	}
	return a.mayUnlist(l.path, lists)
}

// mayUnlist refuses where a list names the file that certsync may not write: HAProxy would not start without the file.
func (a *activation) mayUnlist(path string, lists map[string][]int) error {
	for list := range lists {
		switch file := a.p.config.CrtList; {
		case meansDir(list, filepath.Dir(path)):
		case file == "" || !a.meansFile(list, file):
			return cluster.WithHint(fmt.Errorf("the crt-list %s names it: HAProxy would not start without it", list), "take its line out of %s and reload HAProxy, then run it again", list)
		case !writable(file):
			return listHint(fmt.Errorf("crt_list %s: %w", file, fs.ErrPermission), file)
		}
	}
	return nil
}

// listsNaming are HAProxy's names of the lists that a certificate is in, with the numbers of its lines.
func (a *activation) listsNaming(ctx context.Context, name string) (map[string][]int, error) {
	if a.lists == nil {
		all, err := a.p.runtime.showLists(ctx)
		if err != nil {
			return nil, err
		}
		lists := map[string]map[string][]int{}
		for _, list := range all {
			if lists[list], err = a.p.runtime.showList(ctx, list); err != nil {
				return nil, err
			}
		}
		a.lists = lists
	}
	out := map[string][]int{}
	for list, lines := range a.lists {
		if numbers := lines[name]; len(numbers) > 0 {
			out[list] = numbers
		}
	}
	return out, nil
}

// remove takes a leftover away: memory, crt-list, file. Where HAProxy cannot let it go it has it as before.
func (a *activation) remove(ctx context.Context, l *leftover) error {
	a.sweep(filepath.Dir(l.real))
	if l.data != nil {
		if err := a.p.journal.keep(l.real, l.data, true); err != nil {
			return fmt.Errorf("keep a copy: %w", err)
		}
		failpoint.Hit("haproxy.prune.kept")
	}
	for _, e := range l.entries {
		if err := a.letGo(ctx, l, e); err != nil {
			return err
		}
	}
	failpoint.Hit("haproxy.prune.unloaded")
	if err := a.unlistOnDisk(l); err != nil {
		return err
	}
	failpoint.Hit("haproxy.prune.unlisted")
	if err := a.keepLoadable(l.real); err != nil {
		return err
	}
	if err := removeFile(l.real); err != nil {
		return folderHint(err, l.real)
	}
	failpoint.Hit("haproxy.prune.removed")
	return a.p.journal.disown(l.real)
}

// letGo takes one entry of a leftover out of HAProxy's memory.
func (a *activation) letGo(ctx context.Context, l *leftover, e entry) error {
	var lists []string
	for list, numbers := range l.lists[e.name] {
		lists = append(lists, list)
		// HAProxy takes out one of several lines only by its number; the last goes by the name alone.
		for _, number := range slices.Backward(numbers[1:]) {
			if err := a.p.runtime.delLine(ctx, list, e.name, number); err != nil && !errors.Is(err, cluster.ErrRejected) {
				return err
			}
		}
	}
	b := l.bySHA1(e.SHA1)
	if b == nil { // an empty store, which a killed certsync left
		return a.p.runtime.delCert(ctx, e.name)
	}
	var u undo
	err := a.drop(ctx, e, lists, b, &u)
	if errors.Is(err, errStays) {
		return cluster.WithHint(fmt.Errorf("%s is the certificate that a bind shows to clients that ask for no name it has: %w", e.name, err),
			"move %s away, take its line out of every crt-list and configuration that names it, and reload HAProxy; then run it again", l.path)
	}
	if err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.p.config.UndoTimeout)
		defer cancel()
		for _, f := range slices.Backward(u) {
			err = errors.Join(err, f(undoCtx))
		}
	}
	return err
}

// named are the words by which a line of the crt-list may name a leftover.
func (l *leftover) named() []string {
	words := []string{l.path}
	for _, e := range l.entries {
		words = append(words, e.name)
	}
	return words
}

// relativeLine refuses a leftover that the crt-list names by an end of its path: which lines mean it cannot be told for
// certain, and with one left HAProxy would not start without the file.
func (a *activation) relativeLine(l *leftover) error {
	file := a.p.config.CrtList
	if file == "" {
		return nil
	}
	lines, _ := a.p.list.read(file) // a list that is not there names nothing
	for _, word := range lines.relative {
		if !slices.Contains(l.named(), word) && slices.ContainsFunc(l.named(), func(name string) bool { return endsIn(name, word) }) {
			return cluster.WithHint(fmt.Errorf("a line of the crt-list %s may mean it: %s", file, word), "take the line out if it does, or write it with the whole path, then run it again")
		}
	}
	return nil
}

// unlistOnDisk takes the lines of a leftover out of the crt-list of the configuration, with their options and filters.
func (a *activation) unlistOnDisk(l *leftover) error {
	file := a.p.config.CrtList
	if file == "" {
		return nil
	}
	real, err := destination(file)
	if err != nil {
		return fmt.Errorf("crt_list: %w", err)
	}
	before, err := os.ReadFile(real)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("crt_list: %w", err)
	}
	a.sweep(filepath.Dir(real))
	var after []byte
	for line := range strings.Lines(string(before)) {
		if words := strings.Fields(line); len(words) == 0 || !slices.Contains(l.named(), words[0]) {
			after = append(after, line...)
		}
	}
	if len(after) == len(before) {
		return nil
	}
	if err := replaceFile(real, after, "haproxy.crtlist"); err != nil {
		return listHint(fmt.Errorf("crt_list: %w", err), file)
	}
	return nil
}

// keepLoadable puts the placeholder into the bundle folder where path is the last file that HAProxy loads from it: it
// refuses to start with an empty `crt DIR/`.
func (a *activation) keepLoadable(path string) error {
	dir := filepath.Clean(a.p.config.BundleDir)
	if filepath.Dir(path) != dir {
		return nil
	}
	names, err := namesIn(dir)
	if err != nil {
		return fmt.Errorf("list the bundle folder: %w", err)
	}
	if slices.ContainsFunc(names, func(name string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Mode().IsRegular() && !skipped(name) && name != filepath.Base(path)
	}) {
		return nil
	}
	placeholder, err := cert.NewPlaceholder(a.p.config.Now())
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, cert.PlaceholderName), placeholder, a.who, "haproxy.placeholder")
}

// ownedPaths are the files that certsync wrote, sorted.
func (j *journal) ownedPaths() ([]string, error) {
	names, err := namesIn(filepath.Join(j.dir, "owned"))
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var paths []string
	for _, name := range names {
		if strings.HasPrefix(name, temporaryPrefix) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(j.dir, "owned", name))
		if err != nil && !isMissing(err) {
			return nil, fmt.Errorf("journal: %w", err)
		}
		path, ok := strings.CutSuffix(string(data), "\n")
		if ok && filepath.Base(j.kept("owned", path)) == name {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths, nil
}
