package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
)

// hazardsTimeout is how long Hazards asks a HAProxy: it comes after a look at everything else, which a HAProxy that hangs
// has made wait already.
const hazardsTimeout = 3 * time.Second

// Hazards tells what lies about this HAProxy that certsync does not touch, because it is not its own, and that will do
// harm at the next start or at the next change: files of the bundle folder that HAProxy cannot load, or may show instead
// of a target's; lines of the crt-list that name nothing; a bundle folder that everybody can write; a transaction that
// somebody left open. targets are all that are configured; their bundles are not looked at. It changes nothing and takes
// no lock. Of a folder that did not change since the last call nothing is read. What cannot be found out is left out:
// the placements tell of a HAProxy that cannot be asked.
func (p *Proxy) Hazards(ctx context.Context, targets []cluster.Target) []cluster.Hazard {
	ctx, cancel := context.WithTimeout(ctx, min(p.config.InspectTimeout, hazardsTimeout))
	defer cancel()
	// Thousands of targets are gone through only where something strange lies there.
	files := sync.OnceValue(func() map[string]bool {
		files := make(map[string]bool, len(targets))
		for _, t := range targets {
			files[p.file(t)] = true
		}
		return files
	})
	out := slices.Concat(p.openTransaction(ctx), p.openFolder(), p.danglingLines(files))
	if u := p.folderUse(ctx); u != notLoaded {
		out = append(out, p.strays(ctx, u, files, targets)...)
	}
	return out
}

func (p *Proxy) hazard(path, hint, format string, args ...any) cluster.Hazard {
	return cluster.Hazard{Proxy: p.config.Name, Path: path, Problem: fmt.Sprintf(format, args...), Hint: hint}
}

// openBriefly is how long a transaction must stay open to be told: a commit by hand takes no longer.
const openBriefly = 300 * time.Millisecond

// openTransaction is the transaction that stands in the way of every other: what a killed certsync left, or somebody
// else's. One that another certsync of this host is making at this moment is none.
func (p *Proxy) openTransaction(ctx context.Context) []cluster.Hazard {
	open, err := p.runtime.open(ctx)
	if err != nil || open == "" || p.journal.held() {
		return nil
	}
	if sleep(ctx, openBriefly) != nil {
		return nil
	}
	if again, err := p.runtime.open(ctx); err != nil || again != open {
		return nil
	}
	worker, err := p.runtime.showInfo(ctx)
	if err != nil {
		return nil
	}
	if t, ok, err := p.journal.begun(); err == nil && ok && t.Name == open && t.Pid == worker.Pid {
		return []cluster.Hazard{p.hazard("", "the next pass aborts it, unless somebody committed to it since",
			"a certsync that was killed left its transaction on %s open in HAProxy", open)}
	}
	err = foreign(open)
	return []cluster.Hazard{p.hazard("", cluster.HintOf(err), "%v: certsync can change no certificate while it is", err)}
}

// openFolder is a bundle folder that everybody on the host can write: a file put there is loaded, or breaks a start.
func (p *Proxy) openFolder() []cluster.Hazard {
	dir := p.config.BundleDir
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil // where a bundle is to be written there, its placement tells
	case !info.IsDir():
		return []cluster.Hazard{p.hazard(dir, "make it a folder, writable for certsync's user", "it is no folder, but bundle_dir names it")}
	case info.Mode().Perm()&0o002 != 0:
		return []cluster.Hazard{p.hazard(dir, "chmod o-w "+dir, "mode %04o: everybody on this host can put certificates there, or take them away", info.Mode().Perm())}
	}
	return nil
}

// danglingLines are the lines of the crt-list that HAProxy will not start with. files are configured: what is missing
// of them is written.
func (p *Proxy) danglingLines(files func() map[string]bool) []cluster.Hazard {
	file := p.config.CrtList
	if file == "" {
		return nil
	}
	lines, err := p.list.read(file)
	if isMissing(err) {
		return []cluster.Hazard{p.hazard(file, fmt.Sprintf("write it again: `show ssl crt-list %s` on HAProxy's runtime socket prints its lines", file),
			"the crt-list is gone: HAProxy will not start where a bind line names it")}
	}
	var out []cluster.Hazard
	for _, path := range lines.absolute {
		if !loadable(path) && !files()[path] {
			out = append(out, p.hazard(file, "take the line out", "it names %s, which does not exist: HAProxy will not start where a bind line names the list", path))
		}
	}
	return out
}

// loadable tells whether `crt path` finds any file: path, or one for each key type (HAProxy's Configuration Manual, `crt`).
func loadable(path string) bool {
	return slices.ContainsFunc([]string{"", ".ecdsa", ".rsa", ".dsa"}, func(suffix string) bool {
		_, err := os.Stat(path + suffix)
		return err == nil
	})
}

// use tells whether the running HAProxy loaded the bundle folder as `crt DIR`.
type use int

const (
	useUnknown use = iota
	isLoaded
	notLoaded
)

func (p *Proxy) folderUse(ctx context.Context) use {
	lists, err := p.runtime.showLists(ctx)
	if err != nil {
		return useUnknown
	}
	if slices.ContainsFunc(lists, func(list string) bool { return meansDir(list, p.config.BundleDir) }) {
		return isLoaded
	}
	return notLoaded
}

// meansDir tells whether HAProxy's name of a list is that of a folder; a relative one is taken for it where it is an end
// of its path.
func meansDir(list, dir string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	if !filepath.IsAbs(list) {
		return endsIn(filepath.Clean(dir), list) || endsIn(real, list)
	}
	named, err := filepath.EvalSymlinks(list)
	return err == nil && named == real
}

// stray is a file of the bundle folder that is not certsync's, as it was when it was read.
type stray struct {
	// file and key were the file and the private key beside it (zero where there is none) when it was read, at.
	file, key fileid.ID
	at        time.Time
	// problem says why HAProxy cannot load it, "" where it can.
	problem string
	// unreadable tells that certsync cannot look.
	unreadable bool
	// names are those that HAProxy shows it for, to clients of family.
	names  []string
	family cert.Algorithm
}

// folder remembers what was seen of the bundle folder. The zero value is ready.
type folder struct {
	mu sync.Mutex
	// listed is when foreign was made, at which dir and owned were the folders.
	listed     time.Time
	dir, owned fileid.ID
	// foreign are the names of the files that HAProxy loads and that the journal does not know, sorted.
	foreign []string
	strays  map[string]stray
}

// strays are the files of the bundle folder that will break HAProxy's next start, or may be shown instead of a target's.
func (p *Proxy) strays(ctx context.Context, u use, files func() map[string]bool, targets []cluster.Target) []cluster.Hazard {
	f := &p.folder
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.list(p.config.BundleDir, p.journal); err != nil {
		return nil // there is none, or the placements tell
	}
	const hint = "move it out of the folder"
	covered := sync.OnceValue(func() covering { return coverage(targets) })
	seen := map[string]stray{}
	var out []cluster.Hazard
	for _, name := range f.foreign {
		path := filepath.Join(p.config.BundleDir, name)
		if files()[path] {
			continue // its placement tells of it
		}
		s := look(path, f.strays[name])
		seen[name] = s
		switch {
		case s.unreadable:
			if !p.hasLoaded(ctx, path) {
				out = append(out, p.hazard(path, hint+", or let certsync's user read it", "certsync cannot read it: whether HAProxy starts with it is not known"))
			}
		case s.problem != "" && u == isLoaded:
			out = append(out, p.hazard(path, hint, "HAProxy will not start with it: %s", s.problem))
		case s.problem != "":
			out = append(out, p.hazard(path, hint, "HAProxy will not start with it if it loads the folder: %s", s.problem))
		default:
			if name, slot := covered().by(s); slot.Name != "" {
				out = append(out, p.hazard(path, hint, "it is for %s too, as %s: HAProxy shows clients one of the two, and after its next start that may be this one", name, slot))
			}
		}
	}
	f.strays = seen
	return p.fewOf(out)
}

// mostStrays is how many strays are told one by one: a folder that was mixed up says little more with each.
const mostStrays = 20

func (p *Proxy) fewOf(strays []cluster.Hazard) []cluster.Hazard {
	more := len(strays) - mostStrays
	if more <= 0 {
		return strays
	}
	return append(strays[:mostStrays:mostStrays], p.hazard(p.config.BundleDir, "move them out of the folder", "%d more of its files are in HAProxy's way like these", more))
}

// list brings foreign up to date. The listing is taken again only where one of the folders changed since, or changed so
// shortly before it that a later change may have left the same time.
func (f *folder) list(dir string, j *journal) error {
	now := time.Now()
	at, owned := fileid.Stat(dir), fileid.Stat(filepath.Join(j.dir, "owned")) // the latter is not there before the first activation
	if f.dir == at && f.owned == owned && at.Settled(f.listed) && (owned.IsZero() || owned.Settled(f.listed)) {
		return nil
	}
	ours, _ := namesIn(filepath.Join(j.dir, "owned"))
	known := make(map[string]bool, len(ours))
	for _, name := range ours {
		known[name] = true
	}
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	var foreign []string
	for _, name := range names {
		if !skipped(name) && !known[filepath.Base(j.kept("owned", filepath.Join(dir, name)))] {
			foreign = append(foreign, name)
		}
	}
	slices.Sort(foreign)
	f.foreign, f.dir, f.owned, f.listed = foreign, at, owned, now
	return nil
}

func namesIn(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return f.Readdirnames(-1)
}

// skipped tells whether HAProxy passes over a file of a `crt DIR` (HAProxy's Configuration Manual, `crt`).
func skipped(name string) bool {
	return strings.HasPrefix(name, ".") || slices.Contains([]string{".key", ".issuer", ".ocsp", ".sctl"}, filepath.Ext(name))
}

// look judges a file, unless it is as it was.
func look(path string, before stray) stray {
	at := time.Now()
	info, err := os.Stat(path)
	if err != nil {
		if _, gone := os.Lstat(path); gone != nil {
			return stray{}
		}
		return stray{problem: "it is a link to a file that does not exist"}
	}
	s := stray{file: fileid.Of(info), key: fileid.Stat(path + keyPart), at: at}
	if s.file == before.file && s.key == before.key && s.file.Settled(before.at) && (s.key.IsZero() || s.key.Settled(before.at)) {
		return before
	}
	if !info.Mode().IsRegular() {
		return s // HAProxy passes over folders, pipes and sockets
	}
	data, err := readFile(path)
	switch {
	case isMissing(err):
		return stray{}
	case err != nil:
		s.unreadable = true
	case len(data) <= cert.MaxSize:
		s.judge(path, data)
	}
	return s
}

// hasLoaded tells whether the running HAProxy has a certificate of this path.
func (p *Proxy) hasLoaded(ctx context.Context, path string) bool {
	l, err := p.runtime.showCerts(ctx)
	return err == nil && slices.ContainsFunc(l.names, func(name string) bool { return name == path || endsIn(path, name) })
}

// covering are the names that the targets' certificates are for.
type covering map[cert.Slot]cert.Slot

func coverage(targets []cluster.Target) covering {
	c := covering{}
	for _, t := range targets {
		for _, d := range t.Domains {
			c[cert.Slot{Name: strings.ToLower(d), Algorithm: t.Slot.Algorithm}] = t.Slot
		}
	}
	return c
}

// by is the first name of a stray that a target of its family has too.
func (c covering) by(s stray) (name string, slot cert.Slot) {
	for _, n := range s.names {
		if slot, ok := c[cert.Slot{Name: n, Algorithm: s.family}]; ok {
			return n, slot
		}
	}
	return "", cert.Slot{}
}

// wrongMode says what is wrong with a bundle file's mode or group, "" where nothing is. The file is then written anew.
func wrongMode(info os.FileInfo, who access) string {
	mode := info.Mode().Perm()
	switch {
	case mode&0o007 != 0:
		return fmt.Sprintf("mode %04o: others can read the private key", mode)
	case mode&0o030 != 0 || mode&0o040&^who.mode != 0:
		return fmt.Sprintf("mode %04o: its group can read the private key, or write it", mode)
	case who.gid >= 0 && (mode&0o040 == 0 || !inGroup(info, who.gid)):
		return fmt.Sprintf("mode %04o: the group of haproxy.bundle_group cannot read it", mode)
	case mode&0o400 == 0:
		return fmt.Sprintf("mode %04o: its owner cannot read it", mode)
	}
	return ""
}

func inGroup(info os.FileInfo, gid int) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return !ok || int(stat.Gid) == gid
}

// held tells whether a certsync holds the lock at this moment.
func (j *journal) held() bool {
	f, err := os.Open(filepath.Join(j.dir, "lock"))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// isAnothers tells whether v's path is a link to what is another certificate's bundle: to write there would put v's in
// its place.
func (a *activation) isAnothers(v *view) bool {
	if v.real == v.path {
		return false
	}
	if a.files[v.real] {
		return true
	}
	return v.disk != nil && a.p.journal.owns(v.real) &&
		!slices.ContainsFunc(v.disk.Domains(), func(d string) bool { return slices.Contains(v.Bundle.Domains(), d) })
}

// disentangle leaves another target's certificate alone, whose path somebody made a link to v's file: HAProxy loaded it
// when it was a file of its own.
func (a *activation) disentangle(v *view) {
	n := len(v.entries)
	v.entries = slices.DeleteFunc(v.entries, func(e entry) bool {
		name := filepath.Clean(e.name)
		return name != v.path && name != v.real && a.files[name]
	})
	if len(v.entries) < n {
		v.placement.Memory = cluster.Sighting{Note: "not in HAProxy's memory"}
		if len(v.entries) > 0 {
			v.placement.Memory = v.memorySighting()
		}
	}
}
