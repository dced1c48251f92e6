package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"certsync/internal/bootstrap/sysfile"
)

// kldstat prints the files in the kernel, one a line (kldstat(8)).
const kldstat = "/sbin/kldstat"

// moduleAtBoot is carp.ko in loader.conf. A kld_list in rc.conf that has it, or a kernel with carp built in, counts.
func (p *planner) moduleAtBoot(ctx context.Context) error {
	if len(p.set.VHIDs) == 0 {
		return nil
	}
	s := Step{Name: "carp.ko at boot", Want: `carp_load="YES" in ` + sysfile.LoaderConf}
	if p.jail.Jailed {
		s.State, s.OnHost, s.Found = Unsupported, true, "a jail has no boot loader"
		s.Why = "do it on the jail's host, where that is not done yet"
		s.Commands = []string{command("sysrc", "-f", sysfile.LoaderConf, "carp_load=YES")}
		p.add(s)
		return nil
	}
	v, err := p.host.Tree.Loader()
	if err != nil {
		return fmt.Errorf("read loader.conf: %w", err)
	}
	list, err := p.rcValue("kld_list", "kld")
	if err != nil {
		return err
	}
	e := v.Get("carp_load")
	blacklist, blacklisted := v.Blacklisted("carp")
	switch {
	case sysfile.HasWord(list, "carp") || sysfile.HasWord(list, "carp.ko"):
		s.State, s.Found = OK, "kld_list in rc.conf has carp"
	case p.builtIn(ctx):
		s.State, s.Found = OK, "built into the kernel"
	case blacklisted:
		s.State, s.Found = Blocked, fmt.Sprintf("module_blacklist has carp (%s:%d)", blacklist.File, blacklist.Line)
		s.Why, s.Mend = "the loader passes carp over, whatever carp_load says", "take carp out of module_blacklist"
	case e.Doubt != "":
		s.State, s.Found = Note, "carp_load cannot be told: "+e.Doubt
	case e.Set && strings.EqualFold(e.Value, "YES"):
		s.State, s.Found = OK, fmt.Sprintf("carp_load is YES (%s:%d)", e.File, e.Line)
	case e.Set && overrides(v, e):
		s.State, s.Found = Blocked, fmt.Sprintf("carp_load is %s (%s:%d)", e.Value, e.File, e.Line)
		s.Why, s.Mend = "that file is read after "+sysfile.LoaderConf+", and wins", fmt.Sprintf("take the line out of %s", e.File)
	default:
		s.State, s.Found = Change, "carp_load is not set"
		if e.Set {
			s.Found = fmt.Sprintf("carp_load is %s (%s:%d)", e.Value, e.File, e.Line)
		}
		if err := p.setPlain(&s, sysfile.LoaderConf, sysfile.Loader, "carp_load", "YES"); err != nil {
			return err
		}
	}
	p.add(s)
	return nil
}

// overrides tells that the file which decides is none that comes before loader.conf.
func overrides(v *sysfile.View, e sysfile.Effective) bool {
	return e.File != sysfile.LoaderConf && !v.ReadsAfter(sysfile.LoaderConf, e.File) && !strings.HasPrefix(e.File, "/boot/defaults/")
}

// builtIn tells that carp is in the kernel itself: it is there, and no file of the kernel is carp.ko. Where kldstat does
// not say so plainly, it is not taken for built in.
func (p *planner) builtIn(ctx context.Context) bool {
	if !p.loaded || p.host.Image {
		return false
	}
	out, err := p.host.Run(ctx, []string{kldstat})
	return err == nil && strings.Contains(string(out), " kernel") && !strings.Contains(string(out), "carp.ko")
}

// moduleNow is carp.ko in the running kernel.
func (p *planner) moduleNow(context.Context) error {
	if len(p.set.VHIDs) == 0 || !p.live() {
		return nil
	}
	s := Step{Name: "carp.ko now", Want: "loaded", Found: "not loaded", Commands: []string{command("kldload", "-n", "carp")}}
	level, err := p.host.Kernel.SecureLevel()
	if err != nil {
		return fmt.Errorf("read kern.securelevel: %w", err)
	}
	switch {
	case p.loaded:
		s.State, s.Found, s.Commands = OK, "loaded", nil
	case p.jail.Jailed:
		s.State, s.OnHost, s.Why = Unsupported, true, "no module can be loaded from inside a jail"
	case level > 0:
		s.State, s.Commands = Blocked, nil
		s.Why = fmt.Sprintf("kern.securelevel is %d: no module can be loaded until the next boot", level)
		s.Mend = "sysrc -f /boot/loader.conf carp_load=YES, restart the host, and run it again"
	default:
		s.State, p.loading = Change, true
		s.actions = []action{&moduleChange{}}
	}
	p.add(s)
	return nil
}

// logLevel is net.inet.carp.log: only at 2 does the kernel log that another host has another set of addresses, which
// makes both MASTER.
const logLevel = 2

// sysctls are those of CARP, now and at boot.
func (p *planner) sysctls(context.Context) error {
	if len(p.set.VHIDs) == 0 {
		return nil
	}
	preempt := 0
	if p.set.Preempt {
		preempt = 1
	}
	at, err := p.host.Tree.Sysctl("carp")
	if err != nil && !(errors.Is(err, fs.ErrPermission) && p.host.Getuid() != 0) {
		return fmt.Errorf("read sysctl.conf: %w", err)
	}
	for _, want := range []struct {
		name           string
		value, initial int
		enough         func(int) bool
	}{
		{"net.inet.carp.preempt", preempt, 0, func(n int) bool { return n == preempt }},
		{"net.inet.carp.log", logLevel, 1, func(n int) bool { return n >= logLevel }},
	} {
		if err := p.sysctlNow(want.name, want.value, want.enough); err != nil {
			return err
		}
		if at == nil {
			continue
		}
		if err := p.sysctlAtBoot(at.Get(want.name), want.name, want.value, want.initial, want.enough); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) sysctlNow(name string, value int, enough func(int) bool) error {
	if !p.live() {
		return nil
	}
	s := Step{Name: name + " now", Want: strconv.Itoa(value), Commands: []string{command("sysctl", fmt.Sprintf("%s=%d", name, value))}}
	now, err := p.host.Kernel.Sysctl(name)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read %s: %w", name, err)
	case !there:
		s.Found = "not there while carp is not loaded"
	default:
		s.Found = strconv.Itoa(now)
	}
	switch {
	case there && enough(now):
		s.State, s.Commands = OK, nil
	case p.sharesStack():
		s.State, s.OnHost, s.Why = Unsupported, true, "the network is the jail's host's"
	case !there && !p.loading:
		s.State, s.Commands, s.Why = Unsupported, nil, "carp is not loaded, and cannot be loaded from here"
	default:
		s.State, s.actions = Change, []action{&sysctlChange{Name: name, After: value}}
	}
	p.add(s)
	return nil
}

func (p *planner) sysctlAtBoot(e sysfile.Effective, name string, value, initial int, enough func(int) bool) error {
	s := Step{Name: name + " at boot", Want: strconv.Itoa(value)}
	set, err := strconv.Atoi(e.Value)
	switch {
	case p.sharesStack():
		s.State, s.OnHost, s.Found = Unsupported, true, "a sysctl of the jail's host"
		s.Commands = []string{appendLine(sysfile.SysctlConf, fmt.Sprintf("%s=%d", name, value), false)}
	case e.Doubt != "":
		s.State, s.Found = Note, "cannot be told: "+e.Doubt
	case e.Set && err == nil && enough(set):
		s.State, s.Found = OK, fmt.Sprintf("%d (%s:%d)", set, e.File, e.Line)
	case !e.Set && enough(initial):
		s.State, s.Found = OK, fmt.Sprintf("%d, FreeBSD's default", initial)
	default:
		s.State, s.Found = Change, fmt.Sprintf("not set (FreeBSD's default is %d)", initial)
		if e.Set {
			s.Found = fmt.Sprintf("%s (%s:%d)", e.Value, e.File, e.Line)
		}
		if err := p.setPlain(&s, fileOr(e, sysfile.SysctlConf), sysfile.Sysctl, name, strconv.Itoa(value)); err != nil {
			return err
		}
	}
	p.add(s)
	return nil
}
