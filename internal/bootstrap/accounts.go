package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"certsync/internal/bootstrap/sysfile"
)

const (
	rootUser  = "root"
	rootGroup = "wheel"
	// shell is sshd's: it runs a forced command through the login shell, and nologin(8) refuses it.
	shell = "/bin/sh"
	pw    = "/usr/sbin/pw"
)

// account is a line of passwd(5).
type account struct {
	uid, gid    int
	home, shell string
}

// group is a line of group(5).
type group struct {
	name    string
	gid     int
	members []string
}

// records are the lines of a file of colons with at least n fields; none where it is not there.
func (h *Host) records(path string, n int) ([][]string, error) {
	data, err := h.Tree.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out [][]string
	for line := range strings.SplitSeq(string(data), "\n") {
		if fields := strings.Split(line, ":"); len(fields) >= n && !strings.HasPrefix(line, "#") {
			out = append(out, fields)
		}
	}
	return out, nil
}

// account finds a user; nil where there is none.
func (h *Host) account(name string) (*account, error) {
	all, err := h.records("/etc/passwd", 7)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		uid, errU := strconv.Atoi(f[2])
		gid, errG := strconv.Atoi(f[3])
		if f[0] == name && errU == nil && errG == nil {
			return &account{uid: uid, gid: gid, home: f[5], shell: f[6]}, nil
		}
	}
	return nil, nil
}

// group finds a group; nil where there is none.
func (h *Host) group(name string) (*group, error) {
	all, err := h.records("/etc/group", 4)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if gid, err := strconv.Atoi(f[2]); f[0] == name && err == nil {
			return &group{name: name, gid: gid, members: strings.Split(f[3], ",")}, nil
		}
	}
	return nil, nil
}

// owner looks a user and a group up. It is nil, which leaves the owner as it comes, for no names, and where this process
// may not give files away.
func (h *Host) owner(userName, groupName string) (*sysfile.Owner, error) {
	if userName == "" || h.Getuid() != 0 {
		return nil, nil
	}
	a, err := h.account(userName)
	if err == nil && a == nil && userName == rootUser {
		a = &account{}
	}
	if err == nil && a == nil {
		err = fmt.Errorf("there is no user %s", userName)
	}
	if err != nil {
		return nil, err
	}
	g, err := h.group(groupName)
	if err == nil && g == nil && groupName == rootGroup {
		g = &group{}
	}
	if err == nil && g == nil {
		err = fmt.Errorf("there is no group %s", groupName)
	}
	if err != nil {
		return nil, err
	}
	return &sysfile.Owner{UID: a.uid, GID: g.gid}, nil
}

// user is the step of the service's user, and those of the groups that it has to be in.
func (p *planner) user(context.Context) error {
	a, err := p.host.account(p.set.User)
	if err != nil {
		return err
	}
	s := Step{Name: "user " + p.set.User, Want: fmt.Sprintf("home %s, shell %s, no password", p.set.StateDir, shell)}
	switch {
	case a == nil:
		s.Found = "no such user"
		p.newUser(&s)
	case a.shell == shell || strings.HasPrefix(a.shell, "/bin/") || strings.HasPrefix(a.shell, "/usr/local/bin/"):
		s.State, s.Found = OK, fmt.Sprintf("uid %d, home %s, shell %s", a.uid, a.home, a.shell)
		p.userThere = true
	default:
		s.State, s.Found, s.Why = Change, "shell "+a.shell, "sshd runs a forced command through the login shell, and this one refuses it"
		s.Commands = []string{command("pw", "usermod", p.set.User, "-s", shell)}
		p.userThere = true
		p.byPW(&s, &accountChange{User: p.set.User, Shell: shell})
	}
	p.add(s)
	return p.memberships()
}

func (p *planner) newUser(s *Step) {
	s.State = Change
	c := &accountChange{User: p.set.User, Home: p.set.StateDir, Shell: shell}
	if g, err := p.host.group(p.set.User); err == nil && g != nil {
		c.InGroup = g.name
	}
	s.Commands = []string{command(append([]string{"pw"}, c.add()[1:]...)...)}
	p.byPW(s, c)
	p.userThere = s.State == Change
}

// byPW gives the step to pw(8), which a tree has not: there it is the package that makes the user.
func (p *planner) byPW(s *Step, c *accountChange) {
	if !p.host.Image {
		s.actions = append(s.actions, c)
		return
	}
	s.State, s.Mend = Unsupported, "install certsync's package into the tree, which makes the user, and run it again"
}

// memberships are the groups of the bundles: only a member may give a file to its group.
func (p *planner) memberships() error {
	var done []string
	for _, x := range p.set.HAProxy {
		if x.BundleGroup == "" || slices.Contains(done, x.BundleGroup) {
			continue
		}
		done = append(done, x.BundleGroup)
		s := Step{Name: "group " + x.BundleGroup, Want: p.set.User + " in it"}
		g, err := p.host.group(x.BundleGroup)
		if err != nil {
			return err
		}
		a, err := p.host.account(p.set.User)
		if err != nil {
			return err
		}
		switch {
		case g == nil:
			s.State, s.Found, s.Why = Blocked, "no such group", "haproxy.bundle_group names it"
			s.Mend = "name a group of this host under haproxy.bundle_group, or leave it out"
		case slices.Contains(g.members, p.set.User) || a != nil && a.gid == g.gid:
			s.State, s.Found = OK, p.set.User+" is in it"
		default:
			s.State, s.Found = Change, p.set.User+" is not in it"
			s.Commands = []string{command("pw", "groupmod", g.name, "-m", p.set.User)}
			p.byPW(&s, &accountChange{User: p.set.User, Group: g.name})
		}
		p.add(s)
	}
	return nil
}

// accountChange makes a user, changes its shell, or puts it into a group: by pw(8), which knows the databases.
type accountChange struct {
	User string `json:"user"`
	Home string `json:"home,omitempty"`
	// InGroup is the primary group of a new user, where it is there; else pw makes one of the user's name.
	InGroup string `json:"in_group,omitempty"`
	// Shell with Home is a new user's; without, it is changed, and was ShellBefore.
	Shell       string `json:"shell,omitempty"`
	ShellBefore string `json:"shell_before,omitempty"`
	// Group is the one to be a member of.
	Group string `json:"group,omitempty"`
}

func (*accountChange) touches() string { return "" }

// add is pw's command for a new user: `-h -` is a password that nothing matches (pw(8)).
func (c *accountChange) add() []string {
	argv := []string{pw, "useradd", c.User, "-c", "certsync", "-d", c.Home, "-s", c.Shell, "-h", "-"}
	if c.InGroup != "" {
		argv = append(argv, "-g", c.InGroup)
	}
	return argv
}

// is tells whether the change is there.
func (c *accountChange) is(h *Host) (bool, error) {
	if c.Group != "" {
		g, err := h.group(c.Group)
		return g != nil && slices.Contains(g.members, c.User), err
	}
	a, err := h.account(c.User)
	return a != nil && (c.Home != "" || a.shell == c.Shell), err
}

func (c *accountChange) look(h *Host) (bool, error) {
	if a, err := h.account(c.User); err != nil {
		return false, err
	} else if a != nil {
		c.ShellBefore = a.shell
	}
	is, err := c.is(h)
	return !is, err
}

func (c *accountChange) do(ctx context.Context, h *Host) error {
	argv := c.add()
	switch {
	case c.Group != "":
		argv = []string{pw, "groupmod", c.Group, "-m", c.User}
	case c.Home == "":
		argv = []string{pw, "usermod", c.User, "-s", c.Shell}
	}
	return h.run(ctx, argv)
}

// run is Run, with what the command said in the error.
func (h *Host) run(ctx context.Context, argv []string) error {
	out, err := h.Run(ctx, argv)
	if err == nil {
		return nil
	}
	if said := strings.TrimSpace(string(out)); said != "" {
		return fmt.Errorf("%s: %w: %.500s", command(argv...), err, said)
	}
	return fmt.Errorf("%s: %w", command(argv...), err)
}

func (c *accountChange) verify(h *Host) error {
	is, err := c.is(h)
	if err == nil && !is {
		err = fmt.Errorf("pw said nothing, and %s is not as it should be", c.User)
	}
	return err
}

func (c *accountChange) undo(ctx context.Context, h *Host) (string, error) {
	is, err := c.is(h)
	if err != nil || !is {
		return "", err
	}
	switch {
	case c.Group != "":
		return "", h.run(ctx, []string{pw, "groupmod", c.Group, "-d", c.User})
	case c.Home == "":
		return "", h.run(ctx, []string{pw, "usermod", c.User, "-s", c.ShellBefore})
	}
	return "", h.run(ctx, []string{pw, "userdel", c.User})
}
