package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"certsync/internal/bootstrap/sysfile"
)

// The files of rc.d/netif's own variables, which only root reads: the password must not stand in rc.conf (0644).
const (
	rcConfD    = "/etc/rc.conf.d"
	netifFile  = "/etc/rc.conf.d/netif"
	netifShare = "/etc/rc.conf.d/netif/certsync"
)

// view is what rc(8) ends up with for services. Files that this user may not read are left out, and partial says so.
func (p *planner) view(services ...string) (v *sysfile.View, partial bool, err error) {
	v, err = p.host.Tree.RC(services...)
	if errors.Is(err, fs.ErrPermission) && p.host.Getuid() != 0 {
		partial = true
		v, err = p.host.Tree.RC()
	}
	if err != nil {
		err = fmt.Errorf("read rc.conf: %w", err)
	}
	return v, partial, err
}

// rcValue is a variable of rc.conf as a service sees it; "" where it is not set.
func (p *planner) rcValue(key, service string) (string, error) {
	v, _, err := p.view(service)
	if err != nil {
		return "", err
	}
	return v.Get(key).Value, nil
}

// readRC reads what rc.d/netif does.
func (p *planner) readRC() (err error) {
	p.rc, p.rcPartial, err = p.view("network", "netif")
	return err
}

// line is a variable of rc.conf that gives an interface an address under a vhid.
type line struct {
	key  string
	from sysfile.Effective
	alias
}

// lines are those of an interface that are about vhid v.
func (p *planner) lines(v VHID) []line {
	var out []line
	for _, key := range p.rc.Keys("ifconfig_" + rcName(v.Interface)) {
		e := p.rc.Get(key)
		if a := parseAlias(e.Value); e.Set && a.vhid == v.ID && ofInterface(key, v.Interface) {
			out = append(out, line{key, e, a})
		}
	}
	return out
}

// ofInterface tells ifconfig_em0_alias3 from ifconfig_em0_5_alias3, which is of em0.5.
func ofInterface(key, iface string) bool {
	rest := strings.TrimPrefix(key, "ifconfig_"+rcName(iface))
	if rest == "" || rest == "_ipv6" {
		return true
	}
	_, ok := aliasNumber(key, iface)
	return ok
}

func aliasNumber(key, iface string) (int, bool) {
	digits, ok := strings.CutPrefix(key, "ifconfig_"+rcName(iface)+"_alias")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 0
}

// nextAlias is the number after those that are there, the ones of this plan included.
func (p *planner) nextAlias(iface string) int {
	next := p.aliases[iface]
	for _, key := range p.rc.Keys("ifconfig_" + rcName(iface) + "_alias") {
		if n, ok := aliasNumber(key, iface); ok && n >= next {
			next = n + 1
		}
	}
	p.aliases[iface] = next + 1
	return next
}

// checkLines refuses what cannot be told or would keep a new alias from being read.
func (p *planner) checkLines(v VHID) *problem {
	for _, key := range p.rc.Keys("ifconfig_" + rcName(v.Interface)) {
		e := p.rc.Get(key)
		_, isAlias := aliasNumber(key, v.Interface)
		switch {
		case key == "ifconfig_"+rcName(v.Interface)+"_aliases" && strings.Contains(" "+e.Value+" ", fmt.Sprintf(" vhid %d ", v.ID)):
			return problemf("move it to a variable of its own, such as "+strings.TrimSuffix(key, "es")+"0", "%s:%d has the vhid in %s, among other addresses", e.File, e.Line, key)
		case !ofInterface(key, v.Interface):
		case e.Doubt != "":
			return problemf("write the value plainly", "%s cannot be told: %s", key, e.Doubt)
		case isAlias && e.Set && strings.TrimSpace(e.Value) == "":
			return problemf("take the line out", "%s:%d sets %s to nothing, which ends the list of aliases for rc.d/netif", e.File, e.Line, key)
		}
	}
	return nil
}

// netif is the file for lines with passwords.
func (p *planner) netif() (string, error) {
	s, err := p.host.Tree.Stat(netifFile)
	if err == nil && s.Kind == sysfile.Folder {
		return netifShare, nil
	}
	return netifFile, err
}

// vhidAtBoot is the step of rc.conf: one alias for each address.
func (p *planner) vhidAtBoot(v VHID) error {
	have := p.lines(v)
	s := Step{Name: v.name() + " at boot", State: Change, Found: foundLines(have), Want: v.String()}
	hidden := p.rcPartial || p.password(v.PasswordFile).hidden
	bad := p.checkLines(v)
	switch {
	case p.sharesStack(), hidden:
		s.Commands = p.aliasCommands(v, netifFile, p.aliasKeys(v, v.Addresses), v.Addresses)
		s.State, s.Found = Note, "cannot be told without root"
		if p.sharesStack() {
			s.State, s.OnHost, s.Found = Unsupported, true, "rc.conf of the jail's host"
		}
	case bad != nil:
		s.State, s.Why, s.Mend = Blocked, bad.why, bad.mend
	default:
		if err := p.aliasActions(&s, v, have); err != nil {
			return err
		}
		if len(s.actions) == 0 && s.State == Change {
			s.State = OK
		}
	}
	p.add(s)
	if s.State != OK {
		return nil
	}
	return p.openPasswords(v, have)
}

// openPasswords says where everybody can read a vhid's password. The line is right, and somebody else's: it stays.
func (p *planner) openPasswords(v VHID, have []line) error {
	for _, l := range have {
		f, err := p.open(l.from.File)
		if err != nil {
			return err
		}
		if f.Kind == sysfile.Plain && f.Mode&0o004 != 0 && len(l.password) > 0 {
			p.add(Step{Name: v.name() + " password", State: Note, Found: fmt.Sprintf("%s:%d has it, where everybody can read it (mode %04o)", l.from.File, l.from.Line, f.Mode.Perm()),
				Mend: "take the line out there, and run it again: it is then written to a file of mode 0600"})
			break
		}
	}
	return nil
}

func foundLines(have []line) string {
	if len(have) == 0 {
		return "not in rc.conf"
	}
	words := make([]string, len(have))
	for i, l := range have {
		words[i] = fmt.Sprintf("%s in %s: advbase %d advskew %d, %s", l.key, l.from.File, l.advBase, l.advSkew, l.address)
	}
	return strings.Join(words, "; ")
}

// aliasActions edits what differs: a line that only root reads in its place, any other by one of the same name in a file
// that is read later, so that the password is nowhere else than in a file of root's.
func (p *planner) aliasActions(s *Step, v VHID, have []line) error {
	file, err := p.netif()
	if err != nil {
		return err
	}
	have = slices.Clone(have)
	secret := p.password(v.PasswordFile).secret
	var missing []netip.Prefix
	for _, address := range v.Addresses {
		want := v.alias(address, secret)
		at := slices.IndexFunc(have, func(l line) bool { return l.bare == address.Addr() })
		if at < 0 {
			missing = append(missing, address)
			continue
		}
		l := have[at]
		have = slices.Delete(have, at, at+1)
		if l.same(want) {
			continue
		}
		if err := p.rewrite(s, v, l, want, file); err != nil || s.State == Blocked {
			return err
		}
	}
	for _, l := range have {
		if err := p.dropLine(s, v, l); err != nil || s.State == Blocked {
			return err
		}
	}
	keys := p.aliasKeys(v, missing)
	s.Commands = append(s.Commands, p.aliasCommands(v, file, keys, missing)...)
	for i, address := range missing {
		if err := p.setSecret(s, file, keys[i], v.alias(address, secret).text(string(secret))); err != nil {
			return err
		}
	}
	return nil
}

// rewrite makes a line of the vhid what it should be.
func (p *planner) rewrite(s *Step, v VHID, l line, want alias, file string) error {
	if _, isAlias := aliasNumber(l.key, v.Interface); !isAlias {
		s.State, s.Why = Blocked, fmt.Sprintf("%s:%d has the vhid in %s, and not as carp.vhids has it", l.from.File, l.from.Line, l.key)
		s.Mend = "move it to an alias of its own, or take it out"
		return nil
	}
	f, err := p.open(l.from.File)
	if err != nil {
		return err
	}
	if f.mode().Perm()&0o077 == 0 {
		file = l.from.File
	}
	s.Commands = append(s.Commands, appendSecret(file, l.key+`="`+want.text("@")+`"`, v.PasswordFile, p.endsOpen(file)))
	return p.setSecret(s, file, l.key, want.text(string(want.password)))
}

// dropLine takes a line out that gives the vhid an address which it is not to have: the two hosts would differ.
func (p *planner) dropLine(s *Step, v VHID, l line) error {
	change, err := p.edit(l.from.File, sysfile.Shell, func(f *sysfile.File) (sysfile.Edit, error) { return f.Unset(l.key) })
	if err != nil {
		s.State, s.Why = Blocked, fmt.Sprintf("%s:%d gives vhid %d %s, which carp.vhids has not: %v", l.from.File, l.from.Line, v.ID, l.bare, err)
		s.Mend = "take the line out"
		return nil
	}
	s.Commands = append(s.Commands, command("sysrc", "-f", l.from.File, "-x", l.key))
	p.include(s, change)
	return nil
}

// setSecret sets a variable with a password in a file of mode 0600.
func (p *planner) setSecret(s *Step, file, key, value string) error {
	change, err := p.edit(file, sysfile.Shell, func(f *sysfile.File) (sysfile.Edit, error) { return f.Set(key, value) })
	if err != nil {
		return err
	}
	change.Mode = 0o600
	p.include(s, change)
	return nil
}

// aliasKeys are the variables of new lines, one for each address.
func (p *planner) aliasKeys(v VHID, missing []netip.Prefix) []string {
	keys := make([]string, len(missing))
	for i := range missing {
		keys[i] = fmt.Sprintf("ifconfig_%s_alias%d", rcName(v.Interface), p.nextAlias(v.Interface))
	}
	return keys
}

func (p *planner) aliasCommands(v VHID, file string, keys []string, missing []netip.Prefix) []string {
	var out []string
	for i, a := range missing {
		out = append(out, appendSecret(file, keys[i]+`="`+v.alias(a, nil).text("@")+`"`, v.PasswordFile, p.endsOpen(file)))
	}
	return out
}

// ipv6AtBoot sets ifconfig_IF_ipv6 where an inet6 alias needs it: rc.d/netif skips the alias else (seen on 15.1).
func (p *planner) ipv6AtBoot() error {
	var done []string
	for _, v := range p.set.VHIDs {
		if len(v.Addresses) == 0 || v.family() != "inet6" || slices.Contains(done, v.Interface) || p.sharesStack() {
			continue
		}
		done = append(done, v.Interface)
		key := "ifconfig_" + rcName(v.Interface) + "_ipv6"
		const value = "inet6 auto_linklocal"
		s := Step{Name: v.Interface + " IPv6 at boot", Want: key + `="` + value + `"`}
		e := p.rc.Get(key)
		switch {
		case e.Doubt != "":
			s.State, s.Found = Note, key+" cannot be told: "+e.Doubt
		case strings.TrimSpace(e.Value) != "":
			s.State, s.Found = OK, fmt.Sprintf("%s is set in %s", key, e.File)
		default:
			s.State, s.Found, s.Why = Change, key+" is not set", "rc.d/netif skips an inet6 alias without it"
			if err := p.setPlain(&s, fileOr(e, sysfile.RCConf), sysfile.Shell, key, value); err != nil {
				return err
			}
		}
		p.add(s)
	}
	return nil
}

// fileOr is the file that decides now, else the usual one.
func fileOr(e sysfile.Effective, usual string) string {
	if e.File != "" && !strings.HasPrefix(e.File, "/etc/defaults/") && !strings.HasPrefix(e.File, "/boot/defaults/") {
		return e.File
	}
	return usual
}

// setPlain sets a key in a file, and gives the command that does the same.
func (p *planner) setPlain(s *Step, file string, syntax sysfile.Syntax, key, value string) error {
	change, err := p.edit(file, syntax, func(f *sysfile.File) (sysfile.Edit, error) { return f.Set(key, value) })
	if err != nil {
		return err
	}
	if syntax == sysfile.Sysctl {
		s.Commands = append(s.Commands, appendLine(file, key+"="+value, p.endsOpen(file)))
	} else {
		s.Commands = append(s.Commands, command("sysrc", "-f", file, key+"="+value))
	}
	p.include(s, change)
	return nil
}

// service enables certsync in rc.conf.
func (p *planner) service(context.Context) error {
	s := Step{Name: "service", Want: `certsync_enable="YES"`}
	v, _, err := p.view("certsync")
	if err != nil {
		return err
	}
	e := v.Get("certsync_enable")
	switch {
	case e.Doubt != "":
		s.State, s.Found = Note, "certsync_enable cannot be told: "+e.Doubt
	case isYes(e.Value):
		s.State, s.Found = OK, fmt.Sprintf("enabled in %s", e.File)
	default:
		s.State, s.Found = Change, "not enabled"
		if e.Set {
			s.Found = fmt.Sprintf("certsync_enable is %s in %s", e.Value, e.File)
		}
		if err := p.setPlain(&s, fileOr(e, sysfile.RCConf), sysfile.Shell, "certsync_enable", "YES"); err != nil {
			return err
		}
	}
	p.add(s)
	return p.haproxyService()
}

// haproxyService is HAProxy's own line: said, never changed.
func (p *planner) haproxyService() error {
	enabled, err := p.rcValue("haproxy_enable", "haproxy")
	if err != nil {
		return err
	}
	if isYes(enabled) {
		p.add(Step{Name: "HAProxy's service", State: OK, Found: "enabled"})
		return nil
	}
	p.add(Step{Name: "HAProxy's service", State: Note, Found: "haproxy_enable is not YES", Mend: "sysrc haproxy_enable=YES"})
	return nil
}
