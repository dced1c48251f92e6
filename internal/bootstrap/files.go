package bootstrap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/cluster"
)

// file is a system file as the plan would leave it.
type file struct {
	sysfile.State
	// now is the content after the steps so far.
	now []byte
	// changed tells that a step so far makes it, or changes it.
	changed bool
	// denied tells that this user may not read it.
	denied bool
}

func (f *file) exists() bool { return f.Kind == sysfile.Plain || f.changed }

func (f *file) mode() fs.FileMode { return f.Mode }

// open gives a file as the plan would leave it so far.
func (p *planner) open(name string) (*file, error) {
	if f := p.files[name]; f != nil {
		return f, nil
	}
	s, err := p.host.Tree.Stat(name)
	f := &file{State: s, now: s.Data}
	switch {
	case errors.Is(err, fs.ErrPermission) && p.host.Getuid() != 0:
		f.denied = true
	case err != nil:
		return nil, err
	case s.Kind == sysfile.Folder:
		return nil, fmt.Errorf("read %s: %w", name, sysfile.ErrNotFile)
	}
	p.files[name] = f
	return f, nil
}

// endsOpen tells that the last line of a file has no newline.
func (p *planner) endsOpen(name string) bool {
	f, err := p.open(name)
	return err == nil && len(f.Data) > 0 && f.Data[len(f.Data)-1] != '\n'
}

// edit plans one change of a key in a file.
func (p *planner) edit(name string, syntax sysfile.Syntax, how func(*sysfile.File) (sysfile.Edit, error)) (*fileChange, error) {
	f, err := p.open(name)
	if err != nil {
		return nil, err
	}
	if f.denied {
		return &fileChange{Path: name, denied: true}, nil
	}
	parsed, err := sysfile.Parse(syntax, f.now)
	if err != nil {
		return nil, fmt.Errorf("%s %w", name, err)
	}
	edit, err := how(parsed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p.replace(f, name, parsed.Bytes(), syntax, edit), nil
}

// replace plans new content for a file.
func (p *planner) replace(f *file, name string, content []byte, syntax sysfile.Syntax, edits ...sysfile.Edit) *fileChange {
	c := &fileChange{Path: name, Existed: f.exists(), Syntax: syntax, Edits: edits, content: content, before: f.now}
	c.Own = f.Kind == sysfile.Absent || p.ours[name]
	c.BeforeSum, c.AfterSum = sum(f.now), sum(content)
	f.now, f.changed = content, true
	return c
}

// include puts the change of a file into a step, with the folders that are missing above it.
func (p *planner) include(s *Step, c *fileChange) {
	if c.denied {
		s.Found += " (" + c.Path + " cannot be read without root)"
		return
	}
	if c.BeforeSum == c.AfterSum && c.Existed {
		return
	}
	p.makeFolders(s, path.Dir(c.Path))
	s.Diff += sysfile.Diff(c.before, c.content, c.Path, nil)
	s.actions = append(s.actions, c)
}

// makeFolders adds the folders above a file that are missing, as root's.
func (p *planner) makeFolders(s *Step, dir string) {
	for _, name := range p.missingFolders(dir) {
		s.actions = append(s.actions, &folderChange{Path: name, Mode: 0o755, User: rootUser, Group: rootGroup})
	}
}

func (p *planner) missingFolders(dir string) []string {
	var out []string
	for ; dir != "/" && !p.above[dir]; dir = path.Dir(dir) {
		if there, err := p.host.Tree.Exists(dir); err != nil || there {
			break
		}
		p.above[dir] = true
		out = append(out, dir)
	}
	slices.Reverse(out)
	return out
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// fileChange replaces the content of a file, or makes one.
type fileChange struct {
	Path    string `json:"path"`
	Existed bool   `json:"existed"`
	// BeforeSum and AfterSum are the SHA-256 of the content.
	BeforeSum string `json:"before_sum"`
	AfterSum  string `json:"after_sum"`
	// Edits undo the change where somebody else edited the file since; with Syntax 0 they are lines.
	Syntax sysfile.Syntax `json:"syntax,omitempty"`
	Edits  []sysfile.Edit `json:"edits,omitempty"`
	// Mode is given to the file; 0 leaves that of one that is there. ModeBefore is the one that it had.
	Mode       fs.FileMode `json:"mode,omitempty"`
	ModeBefore fs.FileMode `json:"mode_before,omitempty"`
	// User and Group own a file that is made.
	User  string `json:"user,omitempty"`
	Group string `json:"group,omitempty"`
	// Backup is the copy that the change leaves beside the file; "" where there was one, or none is wanted.
	Backup string `json:"backup,omitempty"`
	// Own tells that the file is certsync's alone, and has no backup.
	Own bool `json:"own,omitempty"`

	content, before []byte
	denied          bool
	// validate, where it is set, judges the content before it takes its place.
	validate func(ctx context.Context, h *Host, content []byte) error
}

func (*fileChange) touches() string { return "" }

func (c *fileChange) look(h *Host) (bool, error) {
	s, err := h.Tree.Stat(c.Path)
	if err != nil {
		return false, err
	}
	c.ModeBefore = s.Mode
	if s.Kind == sysfile.Plain && s.Sum == c.AfterSum && (c.Mode == 0 || s.Mode == c.Mode) {
		return false, nil
	}
	if existed := s.Kind == sysfile.Plain; existed != c.Existed || existed && s.Sum != c.BeforeSum {
		return false, cluster.WithHint(fmt.Errorf("%s was changed since the plan was made", c.Path), "run it again")
	}
	c.Backup = ""
	if c.Existed && !c.Own {
		there, err := h.Tree.Exists(sysfile.BackupPath(c.Path))
		if err != nil {
			return false, err
		}
		if !there {
			c.Backup = sysfile.BackupPath(c.Path)
		}
	}
	return true, nil
}

func (c *fileChange) do(ctx context.Context, h *Host) error {
	if c.validate != nil {
		if err := c.validate(ctx, h, c.content); err != nil {
			return err
		}
	}
	owner, err := h.owner(c.User, c.Group)
	if err != nil {
		return err
	}
	// Before there is a password in it.
	if c.Existed && c.Mode != 0 {
		if _, err := h.Tree.Chmod(c.Path, c.Mode); err != nil {
			return err
		}
	}
	_, err = h.Tree.Write(c.Path, c.content, sysfile.How{Mode: c.Mode, Owner: owner, NoBackup: c.Own})
	return err
}

func (c *fileChange) verify(h *Host) error {
	s, err := h.Tree.Stat(c.Path)
	switch {
	case err != nil:
		return err
	case s.Sum != c.AfterSum:
		return fmt.Errorf("%s does not hold what was written", c.Path)
	case c.Mode != 0 && s.Mode != c.Mode:
		return fmt.Errorf("%s has mode %04o, not %04o", c.Path, s.Mode, c.Mode)
	}
	return nil
}

func (c *fileChange) undo(_ context.Context, h *Host) (string, error) {
	s, err := h.Tree.Stat(c.Path)
	if err != nil {
		return "", err
	}
	left, err := c.undoContent(h, s)
	if err != nil || left != "" {
		return left, err
	}
	if c.Existed && c.Mode != 0 && s.Kind == sysfile.Plain && s.Mode == c.Mode {
		if _, err := h.Tree.Chmod(c.Path, c.ModeBefore); err != nil {
			return "", err
		}
	}
	return "", c.dropBackup(h)
}

// undoContent takes the lines out that were put in, and nothing else.
func (c *fileChange) undoContent(h *Host, s sysfile.State) (left string, err error) {
	switch {
	case !c.Existed && s.Kind == sysfile.Absent, c.Existed && s.Sum == c.BeforeSum:
		return "", nil
	case s.Kind != sysfile.Plain:
		return c.Path + " is gone", nil
	case !c.Existed && s.Sum == c.AfterSum:
		_, err := h.Tree.Remove(c.Path)
		return "", err
	case len(c.Edits) == 0:
		return c.Path + " was changed since", nil
	}
	data, err := c.without(s.Data)
	if err != nil {
		return fmt.Sprintf("%s: %v", c.Path, err), nil
	}
	if !c.Existed && len(data) == 0 {
		_, err = h.Tree.Remove(c.Path)
		return "", err
	}
	_, err = h.Tree.Write(c.Path, data, sysfile.How{NoBackup: true})
	return "", err
}

// without is the content with the edits undone, the last one first.
func (c *fileChange) without(data []byte) ([]byte, error) {
	if c.Syntax == 0 {
		return withoutLines(data, c.Edits)
	}
	f, err := sysfile.Parse(c.Syntax, data)
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(c.Edits) {
		if err := f.Undo(e); err != nil {
			return nil, err
		}
	}
	return f.Bytes(), nil
}

// withoutLines takes out, from a file that is no list of variables, the lines that were added at its end.
func withoutLines(data []byte, edits []sysfile.Edit) ([]byte, error) {
	text := string(data)
	for _, e := range slices.Backward(edits) {
		added := strings.Join(e.After, "\n") + "\n"
		at := strings.LastIndex("\n"+text, "\n"+added)
		if at < 0 {
			return nil, sysfile.ErrChanged
		}
		rest := text[at+len(added):]
		text = text[:at]
		if e.NewlineAdded && rest == "" {
			text = strings.TrimSuffix(text, "\n")
		}
		text += rest
	}
	return []byte(text), nil
}

// dropBackup removes the backup that the change left, where the file is again what the backup holds.
func (c *fileChange) dropBackup(h *Host) error {
	if c.Backup == "" {
		return nil
	}
	backup, err := h.Tree.Stat(c.Backup)
	if err != nil || backup.Kind != sysfile.Plain {
		return err
	}
	now, err := h.Tree.Stat(c.Path)
	if err != nil || now.Sum != backup.Sum {
		return err
	}
	_, err = h.Tree.Remove(c.Backup)
	return err
}

// folderChange makes a folder, or gives it its mode and owner.
type folderChange struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"`
	// User and Group are names; "" leaves the owner as it comes.
	User   string        `json:"user,omitempty"`
	Group  string        `json:"group,omitempty"`
	Before sysfile.State `json:"before"`
	After  sysfile.State `json:"after"`
}

func (*folderChange) touches() string { return "" }

func (c *folderChange) look(h *Host) (needed bool, err error) {
	if c.Before, err = h.Tree.Stat(c.Path); err != nil {
		return false, err
	}
	c.After = sysfile.State{Path: c.Path, Kind: sysfile.Folder, Mode: c.Mode, Owner: c.Before.Owner}
	owner, err := h.owner(c.User, c.Group)
	if err != nil {
		return false, err
	}
	if owner != nil {
		c.After.Owner = *owner
	}
	return !c.Before.Same(c.After), nil
}

func (c *folderChange) do(_ context.Context, h *Host) error {
	owner, err := h.owner(c.User, c.Group)
	if err != nil {
		return err
	}
	if _, err := h.Tree.MkdirAll(c.Path, sysfile.How{Mode: c.Mode, Owner: owner}); err != nil {
		return err
	}
	if owner != nil {
		if _, err := h.Tree.Chown(c.Path, *owner); err != nil {
			return err
		}
	}
	_, err = h.Tree.Chmod(c.Path, c.Mode)
	return err
}

func (c *folderChange) verify(h *Host) error {
	s, err := h.Tree.Stat(c.Path)
	if err != nil {
		return err
	}
	if c.Before.Kind == sysfile.Absent && c.User == "" {
		c.After.Owner = s.Owner
	}
	owner, err := h.owner(c.User, c.Group)
	if err != nil {
		return err
	}
	if s.Kind != sysfile.Folder || s.Mode != c.Mode || owner != nil && s.Owner != *owner {
		return fmt.Errorf("%s is not what was made of it: %s", c.Path, s)
	}
	return nil
}

func (c *folderChange) undo(_ context.Context, h *Host) (string, error) {
	s, err := h.Tree.Stat(c.Path)
	switch {
	case err != nil:
		return "", err
	case s.Kind == sysfile.Absent, s.Same(c.Before):
		return "", nil
	case c.Before.Kind != sysfile.Absent && !s.Same(c.After):
		return c.Path + " has another mode or owner now, which certsync did not give it", nil
	case c.Before.Kind != sysfile.Absent:
		return "", h.Tree.Restore(c.Before)
	}
	names, err := h.Tree.List(c.Path)
	if err != nil {
		return "", err
	}
	if len(names) > 0 {
		return fmt.Sprintf("%s is kept: it is not empty", c.Path), nil
	}
	_, err = h.Tree.Remove(c.Path)
	return "", err
}
