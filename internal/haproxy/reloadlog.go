package haproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// reloadLog is what outlives certsync of its reloads, as reload-ID.json in the journal's folder: so that neither a crash
// nor a restart makes them more frequent, and none is repeated for what the last one did not bring in service.
type reloadLog struct {
	Version int `json:"version"`
	// Time is when the last one was begun; Way, Pid (before it), NewPid and Reasons tell of it. Result is "" while it is
	// under way, "reloaded" where it happened, else the error.
	Time    time.Time `json:"time,omitzero"`
	Way     string    `json:"way,omitempty"`
	Pid     int       `json:"pid,omitempty"`
	NewPid  int       `json:"new_pid,omitempty"`
	Reasons []string  `json:"reasons,omitempty"`
	Result  string    `json:"result,omitempty"`
	// OldWorkers are those that went on with open connections after it.
	OldWorkers int `json:"old_workers,omitempty"`
	// State is a digest of HAProxy's configuration files and of the names in the bundle folder: Failed holds for it.
	State string `json:"state,omitempty"`
	// Failed are the bundles that were not brought in service, by what they are and where they belong.
	Failed map[string]reloadFailure `json:"failed,omitempty"`
}

// reloadFailure is a bundle that a reload, or the check before it, did not bring in service.
type reloadFailure struct {
	// Pid is HAProxy's after it: another HAProxy is a new beginning.
	Pid  int       `json:"pid"`
	Time time.Time `json:"time"`
	// Count is how many times in a row.
	Count int `json:"count"`
	// Once tells that the same again would end the same.
	Once bool `json:"once,omitempty"`
	// Refused tells that `haproxy -c` failed: the file does not stay.
	Refused bool   `json:"refused,omitempty"`
	Error   string `json:"error"`
}

// reloadLogVersion is the format of the file.
const reloadLogVersion = 1

// reloadResult is that of a reload that happened.
const reloadResult = "reloaded"

// retryAfter is how long a bundle is left alone that was not brought in service for the nth time.
func retryAfter(n int) time.Duration {
	steps := []time.Duration{time.Minute, 10 * time.Minute, 100 * time.Minute}
	if n <= len(steps) {
		return steps[max(n, 1)-1]
	}
	return 24 * time.Hour
}

func (j *journal) reloadFile() string { return filepath.Join(j.dir, "reload-"+j.id+".json") }

// reloadLog reads the log. One that cannot be read counts as a reload made now: too few are better than a storm.
func (j *journal) reloadLog(now time.Time) (reloadLog, error) {
	data, err := os.ReadFile(j.reloadFile())
	if errors.Is(err, fs.ErrNotExist) {
		return reloadLog{}, nil
	}
	if err != nil {
		return reloadLog{}, fmt.Errorf("journal: %w", err)
	}
	var l reloadLog
	if json.Unmarshal(data, &l) != nil || l.Version < 1 {
		l = reloadLog{Time: now, Result: "not known: " + j.reloadFile() + " was damaged"}
		return l, j.saveReloadLog(l)
	}
	if l.Version > reloadLogVersion {
		return reloadLog{}, fmt.Errorf("journal: %s: version %d: %w", j.reloadFile(), l.Version, cluster.ErrNewerFormat)
	}
	return l, nil
}

// saveReloadLog makes the log durable.
func (j *journal) saveReloadLog(l reloadLog) error {
	l.Version = reloadLogVersion
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := writeFile(j.reloadFile(), append(data, '\n'), private, "haproxy.reload"); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	failpoint.Hit("haproxy.reload_recorded")
	return nil
}

// settle takes the clock's jumps out of the log, and the failures that do not hold any more: of another HAProxy process,
// or of a configuration that has changed since. A time in the future counts as now.
func (l *reloadLog) settle(now time.Time, pid int, state string) (changed bool) {
	if l.Time.After(now) {
		l.Time, changed = now, true
	}
	for key, f := range l.Failed {
		switch {
		case f.Pid != pid || l.State != state:
			delete(l.Failed, key)
		case f.Time.After(now):
			f.Time, changed = now, true
			l.Failed[key] = f
		}
	}
	l.State = state
	return changed
}

// next is when a bundle may be tried again: the zero time means at once; ok is false where it may not.
func (f reloadFailure) next() (at time.Time, ok bool) {
	return f.Time.Add(retryAfter(f.Count)), !f.Once
}

// fail notes that a bundle was not brought in service.
func (l *reloadLog) fail(key string, f reloadFailure) {
	if l.Failed == nil {
		l.Failed = map[string]reloadFailure{}
	}
	f.Count = l.Failed[key].Count + 1
	l.Failed[key] = f
}

// state digests what a reload depends on beside the bundles: the configuration's files, the crt-list, and which files
// lie in the bundle folder.
func (p *Proxy) state() string {
	var b bytes.Buffer
	for _, path := range append(p.configFiles(), p.config.CrtList) {
		if path != "" {
			fmt.Fprintf(&b, "%q %s\n", path, contentDigest(path))
		}
	}
	entries, _ := os.ReadDir(p.config.BundleDir)
	for _, e := range entries {
		if e.Name()[0] != '.' {
			fmt.Fprintf(&b, "%q\n", e.Name())
		}
	}
	return digest(b.Bytes())
}

// configFiles are the files of HAProxy's configuration. Of a folder it reads the *.cfg, in order of their names
// (Management Manual, `-f`).
func (p *Proxy) configFiles() []string {
	var files []string
	for _, f := range p.config.Files {
		if info, err := os.Stat(f); err == nil && info.IsDir() {
			inside, _ := filepath.Glob(filepath.Join(f, "*.cfg"))
			files = append(files, inside...)
			continue
		}
		files = append(files, f)
	}
	return files
}

// contentDigest is "" for what cannot be read.
func contentDigest(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxList))
	if err != nil {
		return ""
	}
	return digest(data)
}

// editedSince is a file of HAProxy's configuration that was changed after start, "" where none was or start is not known.
func (p *Proxy) editedSince(start time.Time) string {
	for _, f := range p.configFiles() {
		// A start is told in whole seconds.
		if info, err := os.Stat(f); err == nil && !start.IsZero() && info.ModTime().After(start.Add(time.Second)) {
			return f
		}
	}
	return ""
}
