package bootstrap

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/cluster"
)

// RecordPath is the file that holds what was applied. Root acts on it, so it lies in a folder that only root writes to,
// not in state_dir, where the service's user could put a link in its place.
const RecordPath = "/var/db/certsync-bootstrap.json"

// recordFormat is that of the record; another is not touched.
const recordFormat = 1

// record is what was applied to a host, the oldest first. It has what a vhid's password was: mode 0600, root's.
type record struct {
	Format int    `json:"format"`
	Node   string `json:"node"`
	// Folders were made to hold the record, the outermost first.
	Folders []string `json:"folders,omitempty"`
	Entries []entry  `json:"entries"`

	path string
	// there tells that the file is.
	there bool
}

// loadRecord reads the record; one without entries where there is none. Only a file that root wrote, and nobody else can
// write, is believed.
func (h *Host) loadRecord() (*record, error) {
	r := &record{Format: recordFormat, path: RecordPath}
	if h.isLink(r.path) {
		err := fmt.Errorf("read the record: %s is a link: root would write where it leads", r.path)
		return nil, cluster.WithHint(err, "remove it: certsync makes no links there")
	}
	s, err := h.Tree.Stat(r.path)
	if err != nil {
		return nil, fmt.Errorf("read the record: %w", err)
	}
	if s.Kind == sysfile.Absent {
		return r, nil
	}
	if uid := os.Geteuid(); s.Kind != sysfile.Plain || s.Owner.UID != uid || s.Mode&0o177 != 0 {
		err := fmt.Errorf("read the record: %s: not a file that only uid %d could write", s, uid)
		return nil, cluster.WithHint(err, "look at it; where it is none of certsync's, move it away")
	}
	r.there = true
	d := json.NewDecoder(bytes.NewReader(s.Data))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("read the record %s: it is not what certsync wrote", r.path)
	}
	switch {
	case r.Format != recordFormat:
		return nil, fmt.Errorf("read the record %s: format %d: %w", r.path, r.Format, cluster.ErrNewerFormat)
	case slices.ContainsFunc(r.Entries, func(e entry) bool { return e.action() == nil }):
		return nil, fmt.Errorf("read the record %s: it has an entry that is not known", r.path)
	}
	return r, nil
}

// remember reads which files certsync made: those have no original to keep a backup of. Only root can read the record.
func (p *planner) remember() error {
	if p.host.Getuid() != 0 && !p.host.Image {
		return nil
	}
	r, err := p.host.loadRecord()
	if errors.Is(err, sysfile.ErrNotFolder) {
		return nil // the step of the folder says so
	}
	if err != nil {
		return err
	}
	for _, e := range r.Entries {
		if e.File != nil && !e.File.Existed {
			p.ours[e.File.Path] = true
		}
	}
	return nil
}

// isLink tells that a link lies at a path of the tree.
func (h *Host) isLink(name string) bool {
	info, err := os.Lstat(filepath.Join(cmp.Or(h.Tree.Root, "/"), name))
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// save writes the record: it is durable when save returns.
func (r *record) save(h *Host) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	if _, err := h.Tree.Write(r.path, append(data, '\n'), sysfile.How{Mode: 0o600, NoBackup: true}); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}

// begin makes the folder of the record, and remembers that it did.
func (r *record) begin(h *Host) error {
	for at := path.Dir(r.path); at != "/"; at = path.Dir(at) {
		there, err := h.Tree.Exists(at)
		if err != nil {
			return fmt.Errorf("make the folder of the record: %w", err)
		}
		if there {
			break
		}
		r.Folders = append([]string{at}, r.Folders...)
	}
	for _, name := range r.Folders {
		if _, err := h.Tree.MkdirAll(name, sysfile.How{Mode: 0o755}); err != nil {
			return fmt.Errorf("make the folder of the record: %w", err)
		}
	}
	return r.save(h)
}

// end removes the record and the folders that were made for it, where they are empty.
func (r *record) end(h *Host) (left []string, err error) {
	if _, err := h.Tree.Remove(r.path); err != nil {
		return nil, fmt.Errorf("remove the record: %w", err)
	}
	for _, name := range slices.Backward(r.Folders) {
		names, err := h.Tree.List(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return left, err
		case len(names) > 0:
			return append(left, fmt.Sprintf("%s is kept: it is not empty", name)), nil
		}
		if _, err := h.Tree.Remove(name); err != nil {
			return left, err
		}
	}
	return left, nil
}
