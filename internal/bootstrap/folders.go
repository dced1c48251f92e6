package bootstrap

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"certsync/internal/bootstrap/sysfile"
)

// folder is one that certsync needs.
type folder struct {
	name, path, user, group string
	// mode is that of a new one; need and never are the bits that one which is there must have, and must not.
	mode, need, never fs.FileMode
	// keepOwner leaves the owner of one that is there.
	keepOwner bool
}

// wantedFolders are those of the configuration. What root reads must not be the service's to exchange: the folder of the
// configuration is root's.
func (p *planner) wantedFolders() []folder {
	u := p.set.User
	out := []folder{
		{name: "configuration folder", path: p.set.ConfigDir, user: rootUser, group: u, mode: 0o750, never: 0o022, keepOwner: true},
		{name: "state_dir", path: p.set.StateDir, user: u, group: u, mode: 0o700, need: 0o700, never: 0o077},
		{name: "run_dir", path: p.set.RunDir, user: u, group: u, mode: 0o750, need: 0o700, never: 0o022},
	}
	for _, x := range p.set.HAProxy {
		f := folder{name: "bundle_dir", path: x.BundleDir, user: u, group: u, mode: 0o750, need: 0o700, never: 0o022}
		if x.BundleGroup != "" {
			f.group, f.need = x.BundleGroup, 0o750
		}
		if !slices.ContainsFunc(out, func(o folder) bool { return o.path == f.path }) {
			out = append(out, f)
		}
	}
	return out
}

// folders are the steps of the folders, with their owners and modes.
func (p *planner) folders(context.Context) error {
	for _, f := range p.wantedFolders() {
		s, err := p.folder(f)
		if err != nil {
			return err
		}
		p.add(s)
	}
	return nil
}

func (p *planner) folder(f folder) (Step, error) {
	s := Step{Name: f.name + " " + f.path}
	have, err := p.host.Tree.Stat(f.path)
	if err != nil {
		return s, err
	}
	mode, user, group := f.mode, f.user, f.group
	switch have.Kind {
	case sysfile.Plain:
		s.State, s.Found, s.Why, s.Mend = Blocked, "a file", "a folder has to be there", "move the file away, or name another folder in the configuration"
		return s, nil
	case sysfile.Folder:
		mode = have.Mode&^f.never | f.need
		if f.keepOwner {
			user, group = "", ""
		}
	}
	s.Found, s.Want = p.describe(have), fmt.Sprintf("%s, mode %04o", ownerText(user, group), mode.Perm())
	if right, err := p.right(have, mode, user, group); err != nil || right {
		s.State = OK
		return s, err
	}
	s.State = Change
	s.Commands = folderCommands(f.path, mode, user, group)
	if user != "" && !p.userThere && p.host.Getuid() == 0 {
		s.State, s.Why = Unsupported, fmt.Sprintf("there is no user %s yet", p.set.User)
		return s, nil
	}
	p.makeFolders(&s, path.Dir(f.path))
	p.made[f.path] = true
	s.actions = append(s.actions, &folderChange{Path: f.path, Mode: mode, User: user, Group: group})
	return s, nil
}

func folderCommands(name string, mode fs.FileMode, user, group string) []string {
	if user == "" {
		return []string{command("chmod", fmt.Sprintf("%04o", mode.Perm()), name)}
	}
	return []string{command("install", "-d", "-o", user, "-g", group, "-m", fmt.Sprintf("%04o", mode.Perm()), name)}
}

func ownerText(user, group string) string {
	if user == "" {
		return "owner as it is"
	}
	return user + ":" + group
}

// right tells that a folder is as it should be. The owner counts where this process could change it.
func (p *planner) right(have sysfile.State, mode fs.FileMode, user, group string) (bool, error) {
	if have.Kind != sysfile.Folder || have.Mode != mode {
		return false, nil
	}
	if user == "" || p.host.Image && p.host.Getuid() != 0 {
		return true, nil
	}
	a, err := p.host.account(user)
	if err != nil || a == nil {
		return false, err
	}
	g, err := p.host.group(group)
	if err != nil || g == nil {
		return false, err
	}
	return have.Owner == sysfile.Owner{UID: a.uid, GID: g.gid}, nil
}

// describe tells a folder by the names of its owners.
func (p *planner) describe(s sysfile.State) string {
	if s.Kind != sysfile.Folder {
		return "not there"
	}
	return fmt.Sprintf("%s:%s, mode %04o", p.userName(s.Owner.UID), p.groupName(s.Owner.GID), s.Mode.Perm())
}

func (p *planner) userName(uid int) string {
	all, _ := p.host.records("/etc/passwd", 7) // the number does where they cannot be read
	for _, f := range all {
		if f[2] == fmt.Sprint(uid) {
			return f[0]
		}
	}
	return fmt.Sprint(uid)
}

func (p *planner) groupName(gid int) string {
	all, _ := p.host.records("/etc/group", 4)
	for _, f := range all {
		if f[2] == fmt.Sprint(gid) {
			return f[0]
		}
	}
	return fmt.Sprint(gid)
}
