package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
)

// settled waits until a change of every file below dir must show.
func settled(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		young := ""
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if !fileid.Stat(path).Settled(time.Now()) {
				young = path
			}
			return err
		})
		if err == nil && young == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not settle: %v", young, err)
		}
	}
}

func summaries(t *testing.T, s *Store, held []cert.Generation) {
	t.Helper()
	for _, g := range held {
		if _, err := s.Summary(context.Background(), g); err != nil {
			t.Fatalf("summary of %s: %v", g.Slot, err)
		}
	}
}

func keepMany(t *testing.T, s *Store, n int) []cert.Generation {
	t.Helper()
	var out []cert.Generation
	for i := range n {
		k := keptOf(t, fmt.Sprintf("n%d.example.org", i), 1)
		keep(t, s, k)
		out = append(out, k.Generation)
	}
	return out
}

func keptOf(t *testing.T, name string, sequence uint64) cluster.Kept {
	t.Helper()
	b := testCA().Issue(t, certtest.Options{Domains: []string{name}})
	return cluster.Kept{Generation: b.Generation(name, sequence), Bundle: b}
}

func TestASummaryIsThatOfTheBundleAndReadsAnUnchangedFileOnce(t *testing.T) {
	s := fresh(t)
	held := keepMany(t, s, 3)
	settled(t, s.dir)
	summaries(t, s, held)
	b, err := s.Bundle(context.Background(), held[0])
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Summary(context.Background(), held[0])
	if err != nil || got.SHA1 != b.SHA1() || got.KeyType != b.KeyType() || fmt.Sprint(got.Domains) != fmt.Sprint(b.Domains()) {
		t.Errorf("%+v, %v", got, err)
	}
	// Where the format is not known nothing is read.
	if err := os.Remove(s.path(formatName)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bundle(context.Background(), held[0]); err == nil {
		t.Fatal("a state without a format is read")
	}
	summaries(t, s, held)
}

func TestASummaryOfAFileThatChangedIsReadAgain(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"torn": func(path string) error { return os.Truncate(path, 100) },
		"another content of the same size, its mtime put back": func(path string) error {
			info, err := os.Stat(path)
			if err == nil {
				err = os.WriteFile(path, make([]byte, info.Size()), 0o600)
			}
			if err == nil {
				err = os.Chtimes(path, info.ModTime(), info.ModTime())
			}
			return err
		},
		"removed": os.Remove,
		"replaced by a link": func(path string) error {
			if err := os.Rename(path, path+".away"); err != nil {
				return err
			}
			return os.Symlink(path+".away", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			held := keepMany(t, s, 2)
			settled(t, s.dir)
			summaries(t, s, held)
			if err := change(s.path(bundlePath(held[0]))); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Summary(context.Background(), held[0]); err == nil {
				t.Errorf("a summary of it: %+v", got)
			}
			if _, err := s.Summary(context.Background(), held[1]); err != nil {
				t.Errorf("the other: %v", err)
			}
			for _, g := range generations(t, s) {
				if g == held[0] {
					t.Error("it is listed still")
				}
			}
		})
	}
}

func TestListsSeeWhatAnotherProcessDoes(t *testing.T) {
	s := fresh(t)
	other, err := Open(s.dir, Options{Now: s.now})
	if err != nil {
		t.Fatal(err)
	}
	keepMany(t, s, 3)
	settled(t, s.dir)
	generations(t, s)
	if n := len(s.cache.folders); n != 1+3+3 {
		t.Errorf("%d folders are remembered, want the one of all, and two for each name", n)
	}
	more := keptOf(t, "n1.example.org", 2)
	keep(t, other, more)
	keep(t, other, keptOf(t, "new.example.org", 1))
	if n := len(generations(t, s)); n != 5 {
		t.Errorf("%d generations, want 5", n)
	}
	if err := os.Remove(s.path(bundlePath(more.Generation))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.path(filepath.Join(generationsName, "n2.example.org"))); err != nil {
		t.Fatal(err)
	}
	settled(t, s.dir)
	if n := len(generations(t, s)); n != 3 {
		t.Errorf("%d generations, want 3", n)
	}
	if n := len(s.cache.folders); n != 1+3+3 {
		t.Errorf("%d folders are remembered", n)
	}
}

func TestOrdersSeeWhatAnotherProcessDoesAndAreNotSharedWithCallers(t *testing.T) {
	s := fresh(t)
	other, err := Open(s.dir, Options{Now: s.now})
	if err != nil {
		t.Fatal(err)
	}
	o := newOrder(t, "o1", "example.org")
	o.Records = []cluster.Record{{Domain: "example.org", Token: "t", Value: "v"}}
	merge(t, s, cluster.Records{Orders: []cluster.Order{o, newOrder(t, "o2", "example.net")}})
	settled(t, s.dir)
	for range 2 {
		for _, o := range records(t, s).Orders {
			for i := range o.Records {
				o.Records[i].Removed = true
			}
		}
	}
	if len(s.cache.entries[ordersName]) != 2 {
		t.Errorf("%d orders are remembered", len(s.cache.entries[ordersName]))
	}
	for _, o := range records(t, s).Orders {
		for _, r := range o.Records {
			if r.Removed {
				t.Error("what a caller did to its copy is in the store's")
			}
		}
	}
	o.Step = cluster.StepPresenting
	merge(t, other, cluster.Records{Orders: []cluster.Order{o}})
	for _, got := range records(t, s).Orders {
		if got.ID == o.ID && got.Step != cluster.StepPresenting {
			t.Errorf("%s is at step %s still", got.ID, got.Step)
		}
	}
	if err := os.Remove(s.path(filepath.Join(ordersName, orderFile(o)))); err != nil {
		t.Fatal(err)
	}
	if n := len(records(t, s).Orders); n != 1 || len(s.cache.entries[ordersName]) != 1 {
		t.Errorf("%d orders, %d remembered", n, len(s.cache.entries[ordersName]))
	}
}

func TestSummariesOfWhatIsGoneAreForgotten(t *testing.T) {
	s := fresh(t)
	held := keepMany(t, s, 4)
	settled(t, s.dir)
	summaries(t, s, held)
	for _, g := range held[1:] {
		if err := os.RemoveAll(s.path(filepath.Join(generationsName, g.Name))); err != nil {
			t.Fatal(err)
		}
	}
	generations(t, s)
	if n := len(s.cache.summaries); n != 1 {
		t.Errorf("%d summaries are remembered of 1 generation", n)
	}
	if _, err := s.Summary(context.Background(), held[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the summary of what is gone: %v", err)
	}
}
