package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must come; quiet is how long for what must not.
const (
	patience = 20 * time.Second
	quiet    = 300 * time.Millisecond
)

// watching is a watcher at work, and what it told.
type watching struct {
	*watcher
	t    *testing.T
	ctx  context.Context
	told chan Watched
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// watch follows what is given. Looking without being told is off, unless look sets it.
func watch(t *testing.T, look time.Duration, watched ...Watched) *watching {
	t.Helper()
	t.Parallel()
	w := &watching{t: t, told: make(chan Watched, 100), log: &lockedBuffer{}}
	w.watcher = newWatcher(slog.New(slog.NewTextHandler(w.log, nil)), func(k Watched) { w.told <- k })
	w.quiet, w.quietMost, w.look = 20*time.Millisecond, 200*time.Millisecond, look
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); w.run(w.ctx) }()
	t.Cleanup(func() { cancel(); <-over })
	w.follow(w.ctx, watched)
	return w
}

// never is a poll that does not come within a test: what is found then was told.
const never = time.Hour

func (w *watching) wants(path string) {
	w.t.Helper()
	select {
	case k := <-w.told:
		if k.Path != path {
			w.t.Fatalf("told of %s, want %s", k.Path, path)
		}
	case <-time.After(patience):
		w.t.Fatalf("not told of %s", path)
	}
}

// settles waits until nothing more is told: a change may be told in two parts.
func (w *watching) settles() {
	for {
		select {
		case <-w.told:
		case <-time.After(quiet):
			return
		}
	}
}

func (w *watching) silent(why string) {
	w.t.Helper()
	select {
	case k := <-w.told:
		w.t.Fatalf("told of %s: %s", k.Path, why)
	case <-time.After(quiet):
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryWayToSaveAFileIsSeen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "certsync.yaml")
	write(t, path, "one")
	w := watch(t, never, Watched{Configuration, path, false})
	w.silent("nothing changed")
	for i, save := range []func(text string){
		func(text string) { write(t, path, text) }, // in place
		func(text string) { // vim: the old file is moved away, a new one written
			must(t, os.Rename(path, path+"~"))
			write(t, path, text)
			must(t, os.Remove(path+"~"))
		},
		func(text string) { // sed -i, and any careful program
			write(t, filepath.Join(dir, ".tmp"), text)
			must(t, os.Rename(filepath.Join(dir, ".tmp"), path))
		},
		func(text string) { must(t, os.Remove(path)); write(t, path, text) },
		func(string) { must(t, os.Chmod(path, 0o640)) },
		func(string) { must(t, os.Remove(path)) },
		func(text string) { write(t, path, text) }, // it is there again
	} {
		save(fmt.Sprintf("text %d", i))
		w.wants(path)
		w.settles()
	}
	write(t, filepath.Join(dir, "another"), "x")
	w.silent("another file of the folder changed")
}

func TestAChangeInPartsIsToldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "certsync.yaml")
	write(t, path, "")
	w := watch(t, never, Watched{Configuration, path, false})
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	for range 10 {
		_, err := f.WriteString("part\n")
		must(t, err)
	}
	w.wants(path)
	w.silent("a burst of writes is one change")
}

func TestAnExchangedSymbolicLinkIsSeen(t *testing.T) {
	dir := t.TempDir()
	// As configuration management and container mounts do it: the file is a link through ..data, which is exchanged.
	for _, v := range []string{"v1", "v2", "v3"} {
		must(t, os.Mkdir(filepath.Join(dir, v), 0o755))
		write(t, filepath.Join(dir, v, "certsync.yaml"), v)
	}
	data, path := filepath.Join(dir, "..data"), filepath.Join(dir, "certsync.yaml")
	must(t, os.Symlink("v1", data))
	must(t, os.Symlink("..data/certsync.yaml", path))
	w := watch(t, never, Watched{Configuration, path, false})
	exchange := func(link, target string) {
		must(t, os.Symlink(target, link+".new"))
		must(t, os.Rename(link+".new", link))
	}
	exchange(data, "v2")
	w.wants(path)
	write(t, filepath.Join(dir, "v2", "certsync.yaml"), "edited behind the link")
	w.wants(path)
	w.settles()
	write(t, filepath.Join(dir, "v1", "certsync.yaml"), "the link is elsewhere by now")
	w.silent("a file that is not ours any more changed")
	exchange(path, "v3/certsync.yaml")
	w.wants(path)
}

func TestALinkFarUpIsFoundByLooking(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		must(t, os.Mkdir(filepath.Join(dir, v), 0o755))
		write(t, filepath.Join(dir, v, "certsync.yaml"), v)
	}
	must(t, os.Symlink("v1", filepath.Join(dir, "etc")))
	path := filepath.Join(dir, "etc", "certsync.yaml")
	w := watch(t, 20*time.Millisecond, Watched{Configuration, path, false})
	must(t, os.Symlink("v2", filepath.Join(dir, "new")))
	must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "etc")))
	w.wants(path)
}

func TestEveryFileOfABundleFolderCounts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.pem"), "one")
	w := watch(t, never, Watched{Bundles, dir, true})
	w.silent("nothing changed")
	for _, change := range []func(){
		func() { write(t, filepath.Join(dir, "a.pem"), "two") },
		func() { write(t, filepath.Join(dir, "b.pem"), "new") },
		func() { must(t, os.Chmod(filepath.Join(dir, "a.pem"), 0)) },
		func() { must(t, os.Rename(filepath.Join(dir, "b.pem"), filepath.Join(dir, "a.pem"))) },
		func() { must(t, os.Remove(filepath.Join(dir, "a.pem"))) },
	} {
		change()
		w.wants(dir)
		w.settles()
	}
}

func TestAFolderThatIsMadeAnewIsWatchedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	must(t, os.Mkdir(dir, 0o755))
	w := watch(t, 50*time.Millisecond, Watched{Bundles, dir, true})
	must(t, os.RemoveAll(dir))
	w.wants(dir)
	w.settles()
	must(t, os.Mkdir(dir, 0o755))
	w.wants(dir)
	w.settles()
	write(t, filepath.Join(dir, "a.pem"), "x")
	w.wants(dir)
}

// kqueue opens every file of a watched folder.
func TestALargeFolderIsNotWatchedButItsTimeIsLookedAt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 4 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.pem", i)), "x")
	}
	limited := &watching{t: t, told: make(chan Watched, 100), log: &lockedBuffer{}}
	limited.watcher = newWatcher(slog.New(slog.DiscardHandler), func(k Watched) { limited.told <- k })
	limited.mostFiles, limited.quiet, limited.quietMost, limited.look = 5, 20*time.Millisecond, 200*time.Millisecond, 20*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); limited.run(ctx) }()
	stopped := sync.OnceFunc(func() { cancel(); <-over })
	t.Cleanup(stopped)
	limited.follow(ctx, []Watched{{Bundles, dir, true}})
	for i := range 4 {
		write(t, filepath.Join(dir, fmt.Sprintf("new%d.pem", i)), "x")
		limited.wants(dir)
		limited.settles()
	}
	stopped()
	if !limited.crowded(dir) || len(limited.folders()) != 0 {
		t.Errorf("8 files of 5: crowded %v, folders %q", limited.crowded(dir), limited.folders())
	}
}

func TestHAProxysSocketThatComesAndGoesIsSeen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "haproxy.sock")
	w := watch(t, never, Watched{Proxy, path, false})
	for range 3 {
		l, err := net.Listen("unix", path)
		must(t, err)
		w.wants(path)
		w.settles()
		// A reload binds a new socket under another name and moves it.
		other, err := net.Listen("unix", path+".new")
		must(t, err)
		must(t, os.Rename(path+".new", path))
		w.wants(path)
		w.settles()
		other.(*net.UnixListener).SetUnlinkOnClose(false)
		other.Close()
		l.Close()
		_ = os.Remove(path)
		w.wants(path)
		w.settles()
	}
}

func TestWhatIsWatchedCanBeReplaced(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	write(t, a, "x")
	write(t, b, "x")
	w := watch(t, never, Watched{Configuration, a, false})
	w.follow(w.ctx, []Watched{{Configuration, b, false}})
	write(t, a, "changed")
	w.silent("it is not watched any more")
	write(t, b, "changed")
	w.wants(b)
	// What changed while nobody looked is found when it is watched on.
	w.follow(w.ctx, []Watched{{Configuration, b, false}})
	w.silent("nothing changed")
}

func TestAStormIsToldWhileItGoesOn(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, never, Watched{Bundles, dir, true})
	deadline := time.Now().Add(patience)
	for i, told := 0, 0; told < 2; i++ {
		write(t, filepath.Join(dir, "a.pem"), fmt.Sprint(i))
		select {
		case <-w.told:
			told++
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("told %d times in %s of changes", told, patience)
		}
	}
}
