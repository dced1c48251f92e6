package haproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// journal is what must outlive a killed certsync: which bundle files are ours, and which transaction we opened. It is a
// folder, used under its lock only:
//
//	lock                 flock(2) of whoever is changing this HAProxy; the kernel releases it on death
//	owned/               a file for each bundle file that certsync wrote, holding its path
//	transaction-ID.json  the transaction that certsync has open in the HAProxy with that socket
//	reload-ID.json       the last reload of it, and what that did not bring in service
//	originals/           what stood where certsync wrote for the first time, kept for good
//	previous/            what stood there before the last write
type journal struct {
	dir, id string
}

func newJournal(dir, socket string) *journal {
	return &journal{dir: dir, id: digest([]byte(socket))[:12]}
}

// lock takes the lock, waiting for another certsync for at most wait.
func (j *journal) lock(ctx context.Context, wait time.Duration) (unlock func(), err error) {
	for _, dir := range []string{"owned", "originals", "previous"} {
		if err := os.MkdirAll(filepath.Join(j.dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(j.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("journal: lock %s: %w", f.Name(), err)
		}
		if sleep(ctx, pause) != nil {
			_ = f.Close()
			if errors.Is(context.Cause(ctx), context.Canceled) {
				return nil, fmt.Errorf("journal: lock %s: %w", f.Name(), context.Canceled)
			}
			return nil, fmt.Errorf("journal: lock %s: %w: another certsync is changing HAProxy", f.Name(), cluster.ErrBusy)
		}
	}
}

// journalVersion is the format of the transaction's file.
const journalVersion = 1

// sweep removes the temporary files that a killed certsync left in the journal.
func (j *journal) sweep() {
	for _, dir := range []string{"", "owned", "originals", "previous"} {
		sweep(filepath.Join(j.dir, dir))
	}
}

// owns tells whether certsync wrote the file at path once.
func (j *journal) owns(path string) bool {
	data, err := os.ReadFile(j.kept("owned", path))
	return err == nil && string(data) == path+"\n"
}

// own records that the file at path is certsync's. It is called before the first write to it.
func (j *journal) own(path string) error {
	if j.owns(path) {
		return nil
	}
	return writeFile(j.kept("owned", path), []byte(path+"\n"), private, "haproxy.own")
}

// disown forgets path, where the write was undone and nothing of ours is left there.
func (j *journal) disown(path string) error {
	return removeFile(j.kept("owned", path))
}

// transaction is one of ours that was begun.
type transaction struct {
	Version int `json:"version"`
	// Pid is HAProxy's: a transaction ends with its process.
	Pid  int    `json:"pid"`
	Name string `json:"name"`
	// SHA1 is that of the leaf that was to be loaded: what is open under Name with another one is not ours.
	SHA1 string    `json:"sha1"`
	Time time.Time `json:"time"`
}

func (j *journal) transactionFile() string {
	return filepath.Join(j.dir, "transaction-"+j.id+".json")
}

// begun reads the transaction that a killed certsync left; ok is false where there is none. What cannot be read is none:
// a transaction that is not known for ours is somebody else's.
func (j *journal) begun() (t transaction, ok bool, err error) {
	data, err := os.ReadFile(j.transactionFile())
	if errors.Is(err, fs.ErrNotExist) {
		return transaction{}, false, nil
	}
	if err != nil {
		return transaction{}, false, fmt.Errorf("journal: %w", err)
	}
	if json.Unmarshal(data, &t) != nil || t.Name == "" || t.SHA1 == "" {
		return transaction{}, false, nil
	}
	if t.Version > journalVersion {
		return transaction{}, false, fmt.Errorf("journal: %s: version %d: %w", j.transactionFile(), t.Version, cluster.ErrNewerFormat)
	}
	return t, true, nil
}

// begin is called before the first set. It does not fsync: HAProxy does not outlive a power cut any more than the file.
func (j *journal) begin(t transaction) error {
	t.Version = journalVersion
	data, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	temporary := filepath.Join(j.dir, fmt.Sprintf("%s%d-transaction", temporaryPrefix, os.Getpid()))
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := os.Rename(temporary, j.transactionFile()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// end is called once the transaction is committed or aborted.
func (j *journal) end() error {
	if err := os.Remove(j.transactionFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
