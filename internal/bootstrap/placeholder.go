package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/cert"
)

// placeholder puts a self-signed certificate into an empty bundle folder. It is no generation: no store knows it.
func (p *planner) placeholder(context.Context) error {
	var done []string
	for _, x := range p.set.HAProxy {
		if slices.Contains(done, x.BundleDir) {
			continue
		}
		done = append(done, x.BundleDir)
		s, err := p.placeholderIn(x)
		if err != nil {
			return err
		}
		p.add(s)
	}
	return nil
}

func (p *planner) placeholderIn(x HAProxy) (Step, error) {
	s := Step{Name: "placeholder in " + x.BundleDir, Want: cert.PlaceholderName}
	names, err := p.host.Tree.List(x.BundleDir)
	denied := errors.Is(err, fs.ErrPermission) && p.host.Getuid() != 0
	if err != nil && !denied && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, sysfile.ErrNotFolder) {
		return s, err
	}
	loaded := slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
	name := path.Join(x.BundleDir, cert.PlaceholderName)
	switch {
	case denied:
		s.State, s.Found = Note, "cannot be told without root"
	case len(loaded) == 1 && loaded[0] == cert.PlaceholderName:
		s.State, s.Found = OK, "there, until the first certificate"
	case len(loaded) > 0:
		s.State, s.Found = OK, fmt.Sprintf("%d files: none is needed", len(loaded))
	case err == nil && !p.userThere && p.host.Getuid() == 0, err != nil && !p.made[x.BundleDir]:
		s.State, s.Found, s.Why = Unsupported, "the folder is empty", fmt.Sprintf("there is no user %s yet", p.set.User)
		s.Commands = placeholderCommands(name, p.set.User, x.BundleGroup)
	default:
		s.State, s.Found = Change, "the folder is empty: HAProxy would not start with it"
		s.Commands = placeholderCommands(name, p.set.User, x.BundleGroup)
		content, err := cert.NewPlaceholder(p.host.Now())
		if err != nil {
			return s, err
		}
		c := &fileChange{Path: name, BeforeSum: sum(nil), AfterSum: sum(content), Own: true, Mode: 0o600, User: p.set.User, Group: p.set.User, content: content}
		if x.BundleGroup != "" {
			c.Mode, c.Group = 0o640, x.BundleGroup
		}
		s.actions = []action{c}
	}
	return s, nil
}

func placeholderCommands(name, user, group string) []string {
	out := []string{
		script("umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=%s -keyout %s -out %s",
			cert.PlaceholderDomain, quote(name), quote(name)),
	}
	if group == "" {
		return append(out, command("chown", user, name))
	}
	return append(out, command("chown", user+":"+group, name), command("chmod", "0640", name))
}
