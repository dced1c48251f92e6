package fileid

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// settle waits until a change of the file must show.
func settle(t *testing.T, path string) ID {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if id := Stat(path); id.Settled(time.Now()) {
			return id
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never settles", path)
		}
	}
}

func TestEveryChangeOfASettledFileShows(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"other content of the same size, its mtime put back": func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte("efgh"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(path, info.ModTime(), info.ModTime())
		},
		"another mode": func(path string) error { return os.Chmod(path, 0o644) },
		"another file in its place": func(path string) error {
			write(t, path+".new", "abcd")
			return os.Rename(path+".new", path)
		},
		"removed": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			write(t, path, "abcd")
			before := settle(t, path)
			if again := Stat(path); again != before {
				t.Fatalf("an unchanged file: %+v, then %+v", before, again)
			}
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			if after := Stat(path); after == before {
				t.Errorf("it does not show: %+v", after)
			}
		})
	}
}

func TestAChangeOfAFoldersEntriesShows(t *testing.T) {
	dir := t.TempDir()
	before := settle(t, dir)
	write(t, filepath.Join(dir, "new"), "")
	if Stat(dir) == before {
		t.Error("a new entry does not show")
	}
}

func TestWhatCannotBeTrustedIsNotSettled(t *testing.T) {
	now := time.Unix(1_800_000_000, 7)
	for name, id := range map[string]ID{
		"no file":                      {},
		"just written":                 {ino: 1, ctime: now.Add(-10 * time.Millisecond).UnixNano()},
		"whole seconds, a second ago":  {ino: 1, ctime: now.Truncate(time.Second).Add(-time.Second).UnixNano()},
		"changed in the future":        {ino: 1, ctime: now.Add(time.Hour).UnixNano()},
		"changed at this very instant": {ino: 1, ctime: now.UnixNano()},
	} {
		if id.Settled(now) {
			t.Errorf("%s: settled", name)
		}
	}
	if !(ID{ino: 1, ctime: now.Add(-time.Second).UnixNano()}).Settled(now) {
		t.Error("a file of a second ago is not settled")
	}
}
