package bootstrap

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/carp"
)

// The files of doas(1) and sudo(8) from ports; neither is in FreeBSD's base.
const (
	doas      = "/usr/local/bin/doas"
	doasConf  = "/usr/local/etc/doas.conf"
	sudo      = "/usr/local/bin/sudo"
	sudoers   = "/usr/local/etc/sudoers.d/certsync"
	visudo    = "/usr/local/sbin/visudo"
	haproxyIn = "/usr/local/sbin/haproxy"
)

// rootCommands are the command lines that the service may run as root: these, to the letter, and no other.
func (s Settings) rootCommands() [][]string {
	var out [][]string
	for _, x := range s.HAProxy {
		if plainPath(x.Config) {
			out = append(out, []string{haproxyIn, "-c", "-f", x.Config})
		}
	}
	out = append(out, []string{"/usr/sbin/service", "haproxy", "reload"})
	if s.DemoteUnready {
		raise, giveBack := carp.DemotionCommands()
		out = append(out, raise, giveBack)
	}
	return out
}

// plainPath tells that neither doas nor sudo acts on a character of the path: a blank would make two arguments of it, a
// star one that matches others.
func plainPath(path string) bool {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./"
	return strings.Trim(path, plain) == ""
}

// privileges are the rules of doas, of sudo, or of both, whichever are installed.
func (p *planner) privileges(context.Context) error {
	hasDoas, err := p.host.Tree.Exists(doas)
	if err != nil {
		return err
	}
	hasSudo, err := p.host.Tree.Exists(sudo)
	if err != nil {
		return err
	}
	if hasDoas {
		if err := p.doasRules(); err != nil {
			return err
		}
	}
	if hasSudo {
		if err := p.sudoRules(); err != nil {
			return err
		}
	}
	for _, x := range p.set.HAProxy {
		if !plainPath(x.Config) {
			p.add(Step{Name: "rule for " + x.Config, State: Note, Found: "none is written: its path has characters that doas and sudo act on",
				Mend: "rename it to letters, digits, dot, dash and underscore"})
		}
	}
	if !hasDoas && !hasSudo {
		why := "without one certsync cannot check or reload HAProxy"
		if p.set.DemoteUnready {
			why += ", and the demotion is not its to set"
		}
		p.add(Step{Name: "rules for root", State: Note, Found: "neither doas nor sudo is installed", Why: why,
			Mend: "pkg install doas, and run it again"})
	}
	return nil
}

// doasRules are lines of doas.conf(5), where the last rule that matches counts: they stand at the end.
func (p *planner) doasRules() error {
	s := Step{Name: "doas rules", Want: fmt.Sprintf("%d fixed command lines for %s", len(p.set.rootCommands()), p.set.User)}
	f, err := p.open(doasConf)
	if err != nil {
		return err
	}
	if f.denied {
		s.State, s.Found = Note, "cannot be told without root"
		p.add(s)
		return nil
	}
	have := strings.Split(string(f.now), "\n")
	var missing []string
	for _, argv := range p.set.rootCommands() {
		if rule := doasRule(p.set.User, argv); !slices.ContainsFunc(have, func(l string) bool { return strings.TrimSpace(l) == rule }) {
			missing = append(missing, rule)
			s.Commands = append(s.Commands, appendLine(doasConf, rule, p.endsOpen(doasConf)))
		}
	}
	s.State, s.Found = OK, "all there"
	if len(missing) > 0 {
		s.State, s.Found = Change, fmt.Sprintf("%d of them missing in %s", len(missing), doasConf)
		p.include(&s, p.addLines(f, doasConf, missing))
	}
	p.add(s)
	return nil
}

func doasRule(user string, argv []string) string {
	return fmt.Sprintf("permit nopass %s as root cmd %s args %s", user, argv[0], strings.Join(argv[1:], " "))
}

// addLines puts lines at the end of a file.
func (p *planner) addLines(f *file, name string, lines []string) *fileChange {
	e := sysfile.Edit{Key: name, Line: strings.Count(string(f.now), "\n") + 1, After: lines}
	content := string(f.now)
	if content != "" && !strings.HasSuffix(content, "\n") {
		content += "\n"
		e.NewlineAdded = true
		e.Line++
	}
	return p.replace(f, name, []byte(content+strings.Join(lines, "\n")+"\n"), 0, e)
}

// sudoRules are a file of their own in sudoers.d, which only root may write, and which visudo(8) judges first: sudo
// refuses everything while a file there is wrong.
func (p *planner) sudoRules() error {
	s := Step{Name: "sudo rules", Want: fmt.Sprintf("%d fixed command lines for %s", len(p.set.rootCommands()), p.set.User)}
	content := sudoersText(p.set)
	f, err := p.open(sudoers)
	if err != nil {
		return err
	}
	switch {
	case f.denied:
		s.State, s.Found = Note, "cannot be told without root"
	case f.Kind == sysfile.Plain && string(f.now) == content && f.Mode == 0o440:
		s.State, s.Found = OK, "all there"
	default:
		s.State, s.Found = Change, "not in "+sudoers
		if f.Kind == sysfile.Plain {
			s.Found = sudoers + " is another"
		}
		s.Commands = []string{script("umask 227; printf '%%s' %s > %s && visudo -cf %s", quote(content), sudoers, sudoers)}
		c := p.replace(f, sudoers, []byte(content), 0)
		c.Mode, c.User, c.Group, c.validate = 0o440, rootUser, rootGroup, validSudoers
		p.include(&s, c)
	}
	p.add(s)
	return nil
}

func sudoersText(set Settings) string {
	var b strings.Builder
	b.WriteString("# Written by certsync bootstrap: what the service may do as root.\n")
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`, "=", `\=`)
	for _, argv := range set.rootCommands() {
		fmt.Fprintf(&b, "%s ALL=(root) NOPASSWD: %s %s\n", set.User, argv[0], escape.Replace(strings.Join(argv[1:], " ")))
	}
	return b.String()
}

// validSudoers asks visudo, where there is one, about a copy outside of sudoers.d.
func validSudoers(ctx context.Context, h *Host, content []byte) error {
	if h.Image {
		return nil
	}
	if there, err := h.Tree.Exists(visudo); err != nil || !there {
		return err
	}
	f, err := os.CreateTemp("", "certsync-sudoers-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return h.run(ctx, []string{visudo, "-cf", f.Name()})
}
