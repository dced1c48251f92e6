package sysfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/cluster"
)

// testTree is a tree in a folder of the test's own, beside which lies what must never be touched.
type testTree struct {
	*Tree
	t testing.TB
}

// newTree makes one with /etc, /boot and a folder beside it, called outside.
func newTree(t testing.TB) *testTree {
	t.Helper()
	base := t.TempDir()
	tree := &testTree{Tree: &Tree{Root: filepath.Join(base, "root")}, t: t}
	for _, dir := range []string{"root/etc", "root/boot", "outside"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "outside/secret"), []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		data, err := os.ReadFile(filepath.Join(base, "outside/secret"))
		entries, _ := os.ReadDir(filepath.Join(base, "outside"))
		if err != nil || string(data) != "outside" || len(entries) != 1 {
			t.Errorf("outside the tree: %q, %v, %v", data, err, entries)
		}
	})
	return tree
}

func (tree *testTree) real(path string) string { return filepath.Join(tree.Root, path) }

func (tree *testTree) file(path, text string, mode fs.FileMode) {
	tree.t.Helper()
	if err := os.MkdirAll(filepath.Dir(tree.real(path)), 0o755); err != nil {
		tree.t.Fatal(err)
	}
	if err := os.WriteFile(tree.real(path), []byte(text), 0o600); err != nil {
		tree.t.Fatal(err)
	}
	if err := os.Chmod(tree.real(path), mode); err != nil {
		tree.t.Fatal(err)
	}
}

func (tree *testTree) link(target, path string) {
	tree.t.Helper()
	if err := os.Symlink(target, tree.real(path)); err != nil {
		tree.t.Fatal(err)
	}
}

func (tree *testTree) read(path string) string {
	tree.t.Helper()
	data, err := os.ReadFile(tree.real(path))
	if err != nil {
		tree.t.Fatal(err)
	}
	return string(data)
}

func (tree *testTree) wantFile(path, text string, mode fs.FileMode) {
	tree.t.Helper()
	if got := tree.read(path); got != text {
		tree.t.Errorf("%s: %q, want %q", path, got, text)
	}
	info, err := os.Lstat(tree.real(path))
	if err != nil || info.Mode() != mode {
		tree.t.Errorf("%s: %v (%v), want %v", path, info.Mode(), err, mode)
	}
}

func (tree *testTree) wantNothing(path string) {
	tree.t.Helper()
	if _, err := os.Lstat(tree.real(path)); !errors.Is(err, fs.ErrNotExist) {
		tree.t.Errorf("%s is there (%v)", path, err)
	}
}

func (tree *testTree) wantNames(path string, names ...string) {
	tree.t.Helper()
	got, err := tree.List(path)
	if err != nil || !slices.Equal(got, names) {
		tree.t.Errorf("%s has %q (%v), want %q", path, got, err, names)
	}
}

// write is Write of what must succeed.
func (tree *testTree) write(path, text string, how How) Change {
	tree.t.Helper()
	c, err := tree.Write(path, []byte(text), how)
	if err != nil {
		tree.t.Fatal(err)
	}
	return c
}

func TestAWriteKeepsModeAndOwner(t *testing.T) {
	for _, mode := range []fs.FileMode{0o600, 0o444, 0o640, 0o755, 0o644 | fs.ModeSetgid, 0} {
		tree := newTree(t)
		tree.file("/etc/x", "old", mode)
		if os.Getuid() == 0 {
			if err := os.Chown(tree.real("/etc/x"), 1001, 1002); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(tree.real("/etc/x"), mode); err != nil {
				t.Fatal(err)
			}
		}
		if mode == 0 && os.Getuid() != 0 {
			continue // its content cannot be read
		}
		before, err := tree.Stat("/etc/x")
		if err != nil {
			t.Fatal(err)
		}
		c := tree.write("/etc/x", "new", How{Mode: 0o777, Owner: &Owner{}})
		tree.wantFile("/etc/x", "new", mode)
		tree.wantFile("/etc/x.certsync-orig", "old", mode)
		for _, p := range []string{"/etc/x", "/etc/x.certsync-orig"} {
			if s, err := tree.Stat(p); err != nil || s.Owner != before.Owner {
				t.Errorf("%s belongs to %v (%v), want %v", p, s.Owner, err, before.Owner)
			}
		}
		if !c.Changed() || !c.Before.Same(before) || string(c.After.Data) != "new" || c.After.Mode != mode || c.Backup != "/etc/x.certsync-orig" {
			t.Errorf("%v to %v, %s", c.Before, c.After, c.Backup)
		}
	}
}

func TestAFileThatIsMadeHasTheModeAndOwnerGivenWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	tree := newTree(t)
	me := Owner{UID: os.Getuid(), GID: os.Getgid()}
	if me.UID == 0 {
		me = Owner{UID: 1001, GID: 1002}
	}
	tree.write("/etc/open", "x", How{})
	tree.write("/etc/closed", "y", How{Mode: 0o604, Owner: &me})
	tree.wantFile("/etc/open", "x", 0o644)
	tree.wantFile("/etc/closed", "y", 0o604)
	if s, err := tree.Stat("/etc/closed"); err != nil || s.Owner != me {
		t.Errorf("%v (%v)", s.Owner, err)
	}
	tree.wantNames("/etc", "closed", "open")
}

func TestTheBackupIsOfBeforeTheFirstEditAndStays(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "first", 0o600)
	if c := tree.write("/etc/rc.conf", "second", How{}); c.Backup == "" {
		t.Error("no backup")
	}
	if c := tree.write("/etc/rc.conf", "third", How{}); c.Backup != "" {
		t.Errorf("a second backup: %s", c.Backup)
	}
	tree.wantFile("/etc/rc.conf.certsync-orig", "first", 0o600)
	if c := tree.write("/etc/other", "a", How{}); c.Backup != "" {
		t.Errorf("a backup of nothing: %s", c.Backup)
	}
	if c := tree.write("/etc/other", "b", How{NoBackup: true}); c.Backup != "" {
		t.Errorf("an unwanted backup: %s", c.Backup)
	}
	tree.wantNames("/etc", "other", "rc.conf", "rc.conf.certsync-orig")
}

// rc(8) reads every file of rc.conf.d/NAME/ whose name has no dot before it, in the order of the names: an old password
// in a backup would win.
func TestABackupIsNotReadByRC(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf.d/netif/certsync", "k=old\n", 0o600)
	c := tree.write("/etc/rc.conf.d/netif/certsync", "k=new\n", How{})
	if want := "/etc/rc.conf.d/netif/.certsync.certsync-orig"; c.Backup != want {
		t.Errorf("the backup is %s, want %s", c.Backup, want)
	}
	v, err := tree.RC("netif")
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Get("k"); !got.Is("new") {
		t.Errorf("%+v", got)
	}
}

func TestTheSameContentIsNotWrittenAgain(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "same", 0o644)
	before, err := os.Stat(tree.real("/etc/rc.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if c := tree.write("/etc/rc.conf", "same", How{}); c.Changed() || c.Backup != "" {
		t.Errorf("%v to %v, %s", c.Before, c.After, c.Backup)
	}
	after, err := os.Stat(tree.real("/etc/rc.conf"))
	if err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the file was replaced (%v)", err)
	}
	tree.wantNames("/etc", "rc.conf")
}

func TestALinkInsideTheTreeIsFollowedAndKept(t *testing.T) {
	for name, links := range map[string][][2]string{
		"beside":       {{"rc.conf.real", "/etc/rc.conf"}},
		"absolute":     {{"/etc/rc.conf.real", "/etc/rc.conf"}},
		"up and down":  {{"../etc/./rc.conf.real", "/etc/rc.conf"}},
		"twice":        {{"/boot/there", "/etc/rc.conf"}, {"../etc/rc.conf.real", "/boot/there"}},
		"of a folder":  {{"/boot/etc", "/etc/sub"}, {"../etc", "/boot/etc"}},
		"not yet made": {{"rc.conf.new", "/etc/rc.conf"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree := newTree(t)
			tree.file("/etc/rc.conf.real", "old", 0o640)
			path, target := "/etc/rc.conf", "/etc/rc.conf.real"
			if name == "of a folder" {
				path = "/etc/sub/rc.conf.real"
			}
			for _, l := range links {
				tree.link(l[0], l[1])
			}
			mode := fs.FileMode(0o640)
			if name == "not yet made" {
				target, mode = "/etc/rc.conf.new", 0o644
				if there, err := tree.Exists(path); err != nil || there {
					t.Errorf("it is there: %t (%v)", there, err)
				}
			} else if data, err := tree.Read(path); err != nil || string(data) != "old" {
				t.Errorf("%q (%v)", data, err)
			}
			c := tree.write(path, "new", How{})
			if name != "not yet made" {
				if c.Backup != path+".certsync-orig" {
					t.Errorf("the backup is %s", c.Backup)
				}
				if s, err := tree.Stat(c.Backup); err != nil || string(s.Data) != "old" || s.Mode != mode {
					t.Errorf("%v, %v", s, err)
				}
			}
			tree.wantFile(target, "new", mode)
			for _, l := range links {
				if got, err := os.Readlink(tree.real(l[1])); err != nil || got != l[0] {
					t.Errorf("the link %s leads to %q (%v)", l[1], got, err)
				}
			}
		})
	}
}

func TestNothingOutsideTheTreeIsReadOrWritten(t *testing.T) {
	for name, target := range map[string]string{
		"relative file": "../../outside/secret", "relative new file": "../../outside/new", "far up": "../../../../../../../../etc/passwd",
		"through a link": "up/outside/secret", "up twice": "up/up/outside/secret",
	} {
		t.Run(name, func(t *testing.T) {
			tree := newTree(t)
			tree.link("../..", "/etc/up")
			tree.link(target, "/etc/rc.conf")
			if data, err := tree.Read("/etc/rc.conf"); !errors.Is(err, ErrOutside) {
				t.Errorf("Read: %q, %v", data, err)
			}
			if c, err := tree.Write("/etc/rc.conf", []byte("x"), How{}); !errors.Is(err, ErrOutside) {
				t.Errorf("Write: %v, %v", c.After, err)
			}
			if _, err := tree.Remove("/etc/rc.conf"); !errors.Is(err, ErrOutside) {
				t.Errorf("Remove: %v", err)
			}
			if _, err := tree.Chmod("/etc/rc.conf", 0o777); !errors.Is(err, ErrOutside) {
				t.Errorf("Chmod: %v", err)
			}
			if _, err := tree.MkdirAll("/etc/up/outside/made", How{}); !errors.Is(err, ErrOutside) {
				t.Errorf("MkdirAll: %v", err)
			}
		})
	}
}

// An image's absolute links begin at its own root, as they will for the host that boots it.
func TestAnAbsoluteLinkBeginsAtTheRootOfTheTree(t *testing.T) {
	tree := newTree(t)
	outside := filepath.Join(filepath.Dir(tree.Root), "outside")
	tree.link(filepath.Join(outside, "secret"), "/etc/rc.conf")
	tree.link(outside, "/etc/rc.conf.d")
	if data, err := tree.Read("/etc/rc.conf"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read: %q, %v", data, err)
	}
	if _, err := tree.Write("/etc/rc.conf", []byte("x"), How{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write: %v", err)
	}
	if _, err := tree.Write("/etc/rc.conf.d/netif", []byte("x"), How{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write: %v", err)
	}
}

func TestLinksInACircleEnd(t *testing.T) {
	tree := newTree(t)
	tree.link("b", "/etc/a")
	tree.link("a", "/etc/b")
	tree.link("c/c/c", "/etc/c")
	for _, path := range []string{"/etc/a", "/etc/c"} {
		if _, err := tree.Read(path); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%v", err)
		}
		if _, err := tree.Write(path, nil, How{}); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%v", err)
		}
	}
}

func TestWhatIsNoFileIsRefusedAndLeft(t *testing.T) {
	tree := newTree(t)
	if err := syscall.Mkfifo(tree.real("/etc/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(tree.real("/etc")) // the path of a socket must be short
	l, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, path := range []string{"/etc/fifo", "/etc/sock", "/etc", "/"} {
		if _, err := tree.Read(path); !errors.Is(err, ErrNotFile) {
			t.Errorf("Read of %s: %v", path, err)
		}
		if _, err := tree.Write(path, []byte("x"), How{}); !errors.Is(err, ErrNotFile) {
			t.Errorf("Write of %s: %v", path, err)
		}
		if there, err := tree.Exists(path); err != nil || !there {
			t.Errorf("Exists of %s: %t, %v", path, there, err)
		}
	}
	tree.file("/etc/file", "x", 0o644)
	if _, err := tree.Read("/etc/file/x"); !errors.Is(err, ErrNotFolder) {
		t.Errorf("%v", err)
	}
	if _, err := tree.List("/etc/file"); !errors.Is(err, ErrNotFolder) {
		t.Errorf("%v", err)
	}
	tree.wantNames("/etc", "fifo", "file", "sock")
}

func TestAPathThatIsNotAbsoluteAndCleanIsRefused(t *testing.T) {
	tree := newTree(t)
	for _, path := range []string{"", "etc", "./etc", "/etc/", "/etc/../x", "//etc", "/etc/./x"} {
		if _, err := tree.Write(path, nil, How{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Write of %q: %v", path, err)
		}
		if _, err := tree.MkdirAll(path, How{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("MkdirAll of %q: %v", path, err)
		}
	}
	if _, err := (&Tree{Root: filepath.Join(tree.Root, "none")}).Read("/etc/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no root: %v", err)
	}
}

func TestAFileOverTheLimitIsRefusedAndLeft(t *testing.T) {
	tree := newTree(t)
	large := strings.Repeat("x", MaxSize)
	tree.file("/etc/most", large, 0o644)
	tree.file("/etc/more", large+"x", 0o644)
	if data, err := tree.Read("/etc/most"); err != nil || len(data) != MaxSize {
		t.Errorf("%d, %v", len(data), err)
	}
	if _, err := tree.Read("/etc/more"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := tree.Write("/etc/more", []byte("x"), How{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := tree.Write("/etc/most", []byte(large+"x"), How{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	tree.wantNames("/etc", "more", "most")
}

func TestAWriteThatFailsLeavesTheOldFileAndSaysWhy(t *testing.T) {
	cut := func(f *os.File, data []byte) (int, error) {
		n, _ := f.Write(data[:len(data)/2])
		return n, &fs.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
	}
	for name, c := range map[string]struct {
		steps steps
		hint  string
		cause error
	}{
		"disk full":   {steps{write: cut}, "free some space", syscall.ENOSPC},
		"quota":       {steps{sync: func(*os.File) error { return syscall.EDQUOT }}, "free some space", syscall.EDQUOT},
		"read-only":   {steps{rename: func(*os.Root, string, string) error { return syscall.EROFS }}, "mount -uw", syscall.EROFS},
		"a flag":      {steps{rename: func(*os.Root, string, string) error { return syscall.EPERM }}, "schg", syscall.EPERM},
		"not allowed": {steps{write: func(*os.File, []byte) (int, error) { return 0, syscall.EACCES }}, "run as root", syscall.EACCES},
		"disk broken": {steps{sync: func(*os.File) error { return syscall.EIO }}, "", syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			tree := newTree(t)
			tree.file("/etc/rc.conf", "old", 0o640)
			tree.steps = &c.steps
			for _, path := range []string{"/etc/rc.conf", "/etc/new"} {
				change, err := tree.Write(path, []byte("new content"), How{NoBackup: true})
				if !errors.Is(err, c.cause) || !strings.HasPrefix(err.Error(), "write "+tree.real(path)+": ") || !strings.Contains(cluster.HintOf(err), c.hint) {
					t.Errorf("%v; hint %q", err, cluster.HintOf(err))
				}
				if change.Changed() {
					t.Errorf("a change: %v to %v", change.Before, change.After)
				}
			}
			tree.wantFile("/etc/rc.conf", "old", 0o640)
			tree.wantNames("/etc", "rc.conf")
		})
	}
}

func TestAnOwnerThatCannotBeKeptStopsTheWrite(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "old", 0o640)
	tree.steps = &steps{chown: func(*os.File, int, int) error { return syscall.EPERM }}
	_, err := tree.Write("/etc/x", []byte("new"), How{Owner: &Owner{UID: 12345, GID: 12345}})
	if !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "give it to 12345:12345") {
		t.Errorf("%v", err)
	}
	tree.wantNames("/etc", "rc.conf")
}

func TestABackupThatFailsStopsTheWrite(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "old", 0o640)
	writes := 0
	tree.steps = &steps{write: func(f *os.File, data []byte) (int, error) {
		if writes++; writes == 1 {
			return 0, syscall.ENOSPC
		}
		return f.Write(data)
	}}
	if _, err := tree.Write("/etc/rc.conf", []byte("new"), How{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "leave a backup") {
		t.Errorf("%v", err)
	}
	tree.wantFile("/etc/rc.conf", "old", 0o640)
	tree.wantNames("/etc", "rc.conf")
}

func TestAMissingFolderIsSaid(t *testing.T) {
	tree := newTree(t)
	_, err := tree.Write("/usr/local/etc/x", []byte("new"), How{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the folder /usr/local/etc: ") {
		t.Errorf("%v", err)
	}
	tree.wantNothing("/usr")
}

func TestTemporaryFilesOfAKilledWriteGoAndOthersStay(t *testing.T) {
	tree := newTree(t)
	for _, name := range []string{".certsync-abc.tmp", ".certsync-busy.tmp", ".certsync-x", "certsync-abc.tmp"} {
		tree.file("/etc/"+name, "x", 0o600)
	}
	if err := os.Mkdir(tree.real("/etc/.certsync-dir.tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tree.real("/etc/.certsync-busy.tmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	tree.write("/etc/rc.conf", "x", How{})
	tree.wantNames("/etc", ".certsync-busy.tmp", ".certsync-dir.tmp", ".certsync-x", "certsync-abc.tmp", "rc.conf")
}

func TestFoldersAreMadeWithTheirModeAndToldInOrder(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	tree := newTree(t)
	made, err := tree.MkdirAll("/usr/local/etc/certsync", How{Mode: 0o750})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, c := range made {
		paths = append(paths, c.After.Path)
		if c.Before.Kind != Absent || c.After.Kind != Folder || c.After.Mode != 0o750 {
			t.Errorf("%v to %v", c.Before, c.After)
		}
	}
	if want := []string{"/usr", "/usr/local", "/usr/local/etc", "/usr/local/etc/certsync"}; !slices.Equal(paths, want) {
		t.Errorf("made %q", paths)
	}
	if again, err := tree.MkdirAll("/usr/local/etc/certsync", How{Mode: 0o700}); err != nil || len(again) != 0 {
		t.Errorf("made %v again (%v)", again, err)
	}
	tree.file("/etc/file", "x", 0o644)
	for _, path := range []string{"/etc/file", "/etc/file/x/y"} {
		if _, err := tree.MkdirAll(path, How{}); !errors.Is(err, ErrNotFolder) {
			t.Errorf("%s: %v", path, err)
		}
	}
	tree.steps = &steps{chown: func(*os.File, int, int) error { return syscall.EPERM }}
	if _, err := tree.MkdirAll("/var/db", How{Owner: &Owner{UID: 99, GID: 99}}); !errors.Is(err, syscall.EPERM) {
		t.Errorf("%v", err)
	}
	tree.wantNothing("/var")
}

func TestModeAndOwnerChangeOnlyWhereTheyDiffer(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/x", "x", 0o644)
	if c, err := tree.Chmod("/etc/x", 0o600); err != nil || !c.Changed() || c.Before.Mode != 0o644 || c.After.Mode != 0o600 {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	tree.wantFile("/etc/x", "x", 0o600)
	if c, err := tree.Chmod("/etc/x", 0o600); err != nil || c.Changed() {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	if c, err := tree.Chmod("/etc", 0o700); err != nil || !c.Changed() {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	s, err := tree.Stat("/etc/x")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := tree.Chown("/etc/x", s.Owner); err != nil || c.Changed() {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	if os.Getuid() == 0 {
		if c, err := tree.Chown("/etc/x", Owner{UID: 1001, GID: 1002}); err != nil || c.After.Owner != (Owner{UID: 1001, GID: 1002}) {
			t.Errorf("%v to %v, %v", c.Before, c.After, err)
		}
	}
	if _, err := tree.Chmod("/etc/none", 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := tree.Chown("/etc/none", Owner{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestRemoveTakesFilesAndEmptyFoldersOnly(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/d/x", "x", 0o640)
	tree.link("d/x", "/etc/l")
	if _, err := tree.Remove("/etc/d"); err == nil {
		t.Error("a folder with a file in it was removed")
	}
	if _, err := tree.Remove("/etc/l"); !errors.Is(err, ErrNotFile) {
		t.Errorf("a link: %v", err)
	}
	if c, err := tree.Remove("/etc/d/x"); err != nil || !c.Changed() || string(c.Before.Data) != "x" || c.After.Kind != Absent {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	if c, err := tree.Remove("/etc/d/x"); err != nil || c.Changed() {
		t.Errorf("%v to %v, %v", c.Before, c.After, err)
	}
	if _, err := tree.Remove("/etc/d"); err != nil {
		t.Error(err)
	}
	tree.wantNames("/etc", "l")
}

func TestRestorePutsBackWhatWasThere(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf", "old", 0o640)
	tree.file("/etc/closed", "old", 0o640)
	if os.Getuid() == 0 {
		if err := os.Chmod(tree.real("/etc/closed"), 0); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := func() (all []State) {
		for _, p := range []string{"/etc", "/etc/rc.conf", "/etc/closed", "/usr", "/usr/local", "/usr/local/x", "/boot"} {
			s, err := tree.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return all
	}
	before := snapshot()
	var done []Change
	do := func(c Change, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, c)
	}
	do(tree.Write("/etc/rc.conf", []byte("new"), How{NoBackup: true}))
	do(tree.Chmod("/etc/rc.conf", 0o600))
	do(tree.Remove("/etc/closed"))
	do(tree.Chmod("/etc", 0o700))
	do(tree.Remove("/boot"))
	made, err := tree.MkdirAll("/usr/local", How{})
	if err != nil {
		t.Fatal(err)
	}
	done = append(done, made...)
	do(tree.Write("/usr/local/x", []byte("x"), How{}))
	for _, c := range slices.Backward(done) {
		// By way of the record that a revert reads.
		data, err := json.Marshal(c.Before)
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		if err := tree.Restore(s); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range snapshot() {
		if !s.Same(before[i]) || string(s.Data) != string(before[i].Data) {
			t.Errorf("%v %q, was %v %q", s, s.Data, before[i], before[i].Data)
		}
	}
	if err := tree.Restore(State{Path: "/etc/x", Kind: "device"}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestStatesAndEditsPrintWithoutTheirText(t *testing.T) {
	s := State{Path: "/etc/x", Kind: Plain, Mode: 0o600, Data: []byte("Carp1"), Sum: sumOf([]byte("Carp1"))}
	e := Edit{Key: "k", Line: 3, Before: []string{"pass Carp1"}, After: []string{"pass Carp1"}}
	c := Change{Before: s, After: s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		text := fmt.Sprintf(verb+verb+verb+verb+verb, s, &s, e, &e, c)
		if strings.Contains(text, "Carp1") || strings.Contains(text, "4361727031") || strings.Contains(text, "67, 97") || strings.Contains(text, "0x43") {
			t.Errorf("%s: %s", verb, text)
		}
	}
	if s.LogValue().String() != s.String() || e.LogValue().String() != e.String() {
		t.Error("the log has another text")
	}
}

func TestTheHostItselfIsATree(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../../.."+dir+"/y", filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{"", "/", "//"} {
		tree := Tree{Root: root}
		if _, err := tree.Write(filepath.Join(dir, "x"), []byte(root+"!"), How{NoBackup: true}); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "y")); err != nil || string(data) != root+"!" {
			t.Errorf("%q, %v", data, err)
		}
	}
	if _, err := (&Tree{}).Read(filepath.Join(dir, "z")); err == nil || !strings.HasPrefix(err.Error(), "read "+dir+"/z: ") {
		t.Errorf("%v", err)
	}
}
