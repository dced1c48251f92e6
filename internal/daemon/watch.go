package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"certsync/internal/fileid"
)

// Watched is a file or folder whose change wakes the daemon.
type Watched struct {
	Reason Reason
	// Path is a file, which may be missing, or a symbolic link to one; or a folder.
	Path string
	// Folder tells that a change of any file in the folder counts.
	Folder bool
}

const (
	// quietTime is how long nothing is told before a change counts: an editor truncates, writes and renames. quietMost is
	// the longest that this puts a change off.
	quietTime = 250 * time.Millisecond
	quietMost = 2 * time.Second
	// lookTime is how often the files are looked at whatever is told: a link further up may have been exchanged, and some
	// file systems tell nothing.
	lookTime = 5 * time.Second
	// mostFiles is how many files a folder may have to be watched by kqueue, which opens each of them (kqueue(2),
	// EVFILT_VNODE); the time of one that has more is looked at instead.
	mostFiles = 200
)

// watcher tells of changes of files. What the system tells is a hint only, and leads to a look at the files themselves:
// so the rename of an editor, the exchange of a symbolic link and a folder that is made anew are all the same to it.
type watcher struct {
	// changed is called from run's goroutine, and must not wait for it.
	changed func(Watched)
	log     *slog.Logger
	// quiet, quietMost, look and mostFiles are the constants, or what a test sets; mostFiles 0 is no limit.
	quiet, quietMost, look time.Duration
	mostFiles              int
	// next hands over what is to be watched.
	next chan following

	// The rest is run's own.
	events  *fsnotify.Watcher
	watched map[Watched]fileid.ID
	touched map[string]bool // folders of which something was told
	warned  map[string]bool // folders that could not be watched, as told
}

func newWatcher(log *slog.Logger, changed func(Watched)) *watcher {
	w := &watcher{changed: changed, log: log, quiet: quietTime, quietMost: quietMost, look: lookTime, next: make(chan following),
		watched: map[Watched]fileid.ID{}, touched: map[string]bool{}, warned: map[string]bool{}}
	if runtime.GOOS != "linux" {
		w.mostFiles = mostFiles
	}
	return w
}

// remember notes what files are like before run runs, for it to tell of what changes until then.
func (w *watcher) remember(watched ...Watched) {
	for _, k := range watched {
		w.watched[k] = fileid.Stat(k.Path)
	}
}

// following is what is to be watched from the time on at which begun is closed.
type following struct {
	watched []Watched
	begun   chan struct{}
}

// follow replaces what is watched, while run runs: any change after it returns is told.
func (w *watcher) follow(ctx context.Context, watched []Watched) {
	f := following{watched, make(chan struct{})}
	select {
	case w.next <- f:
	case <-ctx.Done():
		return
	}
	select {
	case <-f.begun:
	case <-ctx.Done():
	}
}

// run watches until ctx ends. It works without the system's notifications too, only later.
func (w *watcher) run(ctx context.Context) {
	var told <-chan fsnotify.Event
	var failed <-chan error
	events, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("changes of files are found by looking only", "error", err, "every", w.look)
	} else {
		w.events, told, failed = events, events.Events, events.Errors
		defer events.Close()
	}
	poll := time.NewTicker(w.look)
	defer poll.Stop()
	var pause burst
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-w.next:
			w.replace(f.watched)
			close(f.begun)
		case e := <-told:
			w.note(e)
			pause.heard(w.quiet, w.quietMost)
		case err := <-failed:
			// An overflow: what changed is not known.
			w.log.Debug("notifications of files were lost", "error", err)
			w.touchAll()
			pause.heard(w.quiet, w.quietMost)
		case <-pause.over:
			pause = burst{}
			w.compare()
		case <-poll.C:
			if pause.over == nil {
				w.compare()
			}
		}
	}
}

// burst is a run of notifications: it is over when none came for a while, or when it has gone on for long.
type burst struct {
	began time.Time
	over  <-chan time.Time
}

func (b *burst) heard(quiet, most time.Duration) {
	if b.over == nil {
		b.began = time.Now()
	}
	b.over = time.After(min(quiet, max(0, most-time.Since(b.began))))
}

// note remembers the folder that something was told of.
func (w *watcher) note(e fsnotify.Event) {
	w.touched[filepath.Dir(e.Name)] = true
}

func (w *watcher) touchAll() {
	for k := range w.watched {
		w.touched[resolved(k.folder())] = true
	}
}

// folder is where the watched file lies, or the watched folder.
func (k Watched) folder() string {
	if k.Folder {
		return k.Path
	}
	return filepath.Dir(k.Path)
}

// replace takes over what is to be watched. What was watched before keeps what was seen of it: a change that came
// meanwhile is found.
func (w *watcher) replace(watched []Watched) {
	next := map[Watched]fileid.ID{}
	for _, k := range watched {
		seen, known := w.watched[k]
		if !known {
			seen = fileid.Stat(k.Path)
		}
		next[k] = seen
	}
	w.watched = next
	w.subscribe()
	w.compare()
}

// compare looks at everything and tells what changed.
func (w *watcher) compare() {
	var changed []Watched
	for k, before := range w.watched {
		now := fileid.Stat(k.Path)
		if now != before || k.Folder && w.touched[resolved(k.Path)] {
			changed = append(changed, k)
		}
		w.watched[k] = now
	}
	clear(w.touched)
	w.subscribe()
	slices.SortFunc(changed, func(a, b Watched) int { return strings.Compare(a.Path, b.Path) })
	for _, k := range changed {
		w.changed(k)
	}
}

// subscribe has the system tell of the folders in question, and of no other.
func (w *watcher) subscribe() {
	if w.events == nil {
		return
	}
	wanted, have := w.folders(), w.events.WatchList()
	for _, dir := range have {
		if !slices.Contains(wanted, dir) {
			_ = w.events.Remove(dir)
		}
	}
	for _, dir := range wanted {
		if slices.Contains(have, dir) {
			continue
		}
		if err := w.events.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !w.warned[dir] {
			w.warned[dir] = true
			w.log.Warn("changes in a folder are found by looking only", "folder", dir, "error", err, "every", w.look)
		}
	}
}

// folders are those that the watched files lie in, by name and behind symbolic links.
func (w *watcher) folders() []string {
	var out []string
	add := func(dir string) {
		if dir = resolved(dir); dir != "" && !slices.Contains(out, dir) && !w.crowded(dir) {
			out = append(out, dir)
		}
	}
	for k := range w.watched {
		add(k.folder())
		if target := resolved(k.Path); target != "" && !k.Folder {
			add(filepath.Dir(target))
		}
	}
	return out
}

// crowded tells that a folder has too many files to be watched.
func (w *watcher) crowded(dir string) bool {
	if w.mostFiles == 0 {
		return false
	}
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(w.mostFiles + 1)
	return (err == nil || errors.Is(err, io.EOF)) && len(names) > w.mostFiles
}

// resolved is a path without symbolic links, "" where it leads nowhere.
func resolved(path string) string {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return target
}
