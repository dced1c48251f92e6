package carp

import (
	"errors"
	"fmt"

	"certsync/internal/cluster"
)

// moduleName is what modfind(2) and kldload(2) know carp by. (modfind of "carp.ko" finds nothing: that is the file.)
const moduleName = "carp"

// moduleLoaded asks modfind(2), which anybody may, in a jail too.
func (c *calls) moduleLoaded() (bool, error) {
	switch err := c.modfind(moduleName); {
	case err == nil:
		return true, nil
	case errors.Is(err, enoent):
		return false, nil
	default:
		return false, fmt.Errorf("look for the module carp: %w", err)
	}
}

// loadModule asks first: at securelevel 1, and in a jail, kldload(2) is EPERM even where carp is loaded.
func (c *calls) loadModule() error {
	if loaded, err := c.moduleLoaded(); loaded || err != nil {
		return err
	}
	if err := c.kldload(moduleName); err != nil && !errors.Is(err, eexist) {
		return c.loadError(err)
	}
	loaded, err := c.moduleLoaded()
	if err == nil && !loaded {
		err = fmt.Errorf("load carp.ko: the kernel said that it did: %w", ErrNoModule)
	}
	return err
}

// loadError finds out why the kernel said no. A question that fails leaves the plain meaning.
func (c *calls) loadError(err error) error {
	jail, _ := c.jail()
	level, _ := c.sysctlInt("kern.securelevel")
	return moduleError(err, jail, level)
}

// moduleError is the meaning of an errno of kldload(2).
func moduleError(err error, jail Jail, secureLevel int) error {
	const onHost = "on the host, outside of any jail, run `kldload carp` now and `sysrc -f /boot/loader.conf carp_load=YES` for every boot"
	say := func(why string) error { return fmt.Errorf("load carp.ko: %s: %w", why, err) }
	switch {
	case errors.Is(err, eperm) && jail.Jailed:
		return cluster.WithHint(say("no jail may load a module"), onHost)
	case errors.Is(err, eperm) && secureLevel > 0:
		return cluster.WithHint(say(fmt.Sprintf("kern.securelevel is %d, and above 0 nobody may load a module", secureLevel)),
			"run `sysrc -f /boot/loader.conf carp_load=YES` and reboot: the loader comes before the securelevel")
	case errors.Is(err, eperm):
		return cluster.WithHint(say("only root may load a module"), "run it as root: `kldload carp`")
	case errors.Is(err, enoent):
		return cluster.WithHint(say("no such file in kern.module_path"),
			"look for /boot/kernel/carp.ko; a kernel of your own needs it among its modules, or `device carp` in its configuration")
	case errors.Is(err, enoexec):
		return cluster.WithHint(say("it was built for another kernel than the one that runs"),
			"after an upgrade, reboot; else install kernel and modules of one version. `dmesg | tail` has the kernel's words")
	}
	return fmt.Errorf("load carp.ko: %w", err)
}
