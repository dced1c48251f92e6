package bootstraptest

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

// host is a kernel with CARP, and vhid 1 that is MASTER.
func host() (*Kernel, *carp.Kernel) {
	k := New(map[string][]string{"em0": {"192.0.2.11/24"}, "lo0": {"127.0.0.1/8"}}).Load()
	k.Set("em0", carp.Settings{VHID: 1, AdvBase: 1, Password: cluster.Secret("secret")}, "192.0.2.100/32")
	return k, k.Carp()
}

var (
	first  = netip.MustParsePrefix("192.0.2.100/32")
	second = netip.MustParsePrefix("192.0.2.101/32")
)

// TestAnyChangeOfAddressesIsAFailover holds what was seen on 13.2 and 15.1, both of what costs and of what does not.
func TestAnyChangeOfAddressesIsAFailover(t *testing.T) {
	for name, c := range map[string]struct {
		change func(k *carp.Kernel) error
		cost   int
	}{
		"adding it again":    {func(k *carp.Kernel) error { return k.AddAddress("em0", first, 1) }, 1},
		"adding another":     {func(k *carp.Kernel) error { return k.AddAddress("em0", second, 1) }, 1},
		"making it plain":    {func(k *carp.Kernel) error { return k.AddAddress("em0", first, 0) }, 1},
		"removing it":        {func(k *carp.Kernel) error { return k.RemoveAddress("em0", first) }, 1},
		"advskew, password":  {func(k *carp.Kernel) error { return k.SetVHID("em0", carp.Settings{VHID: 1, AdvBase: 1, AdvSkew: 9}) }, 0},
		"a plain address":    {func(k *carp.Kernel) error { return k.AddAddress("em0", second, 0) }, 0},
		"another vhid alone": {func(k *carp.Kernel) error { return k.SetVHID("em0", carp.Settings{VHID: 9, AdvBase: 1}) }, 0},
	} {
		k, c2 := host()
		if err := c.change(c2); err != nil || k.Failovers != c.cost {
			t.Errorf("%s: %d failovers, %v", name, k.Failovers, err)
		}
	}
}

func TestAVHIDLivesByItsAddresses(t *testing.T) {
	k, c := host()
	if err := c.AddAddress("em0", second, 97); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("an address of a vhid that is not there: %v", err)
	}
	if err := errors.Join(c.SetVHID("em0", carp.Settings{VHID: 50, AdvBase: 1})); err != nil || k.Role("em0", 50) != cluster.Init {
		t.Errorf("an unknown vhid that is set: %v, %v", k.Role("em0", 50), err)
	}
	if err := k.Unload(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unload beside a vhid without an address: %v", err)
	}
	if err := errors.Join(c.AddAddress("em0", second, 50), c.RemoveAddress("em0", second)); err != nil {
		t.Error(err)
	}
	if _, err := c.VHID("em0", 50); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the last address went, and the vhid is there: %v", err)
	}
	if err := errors.Join(c.AddAddress("em0", first, 0)); err != nil || k.Role("em0", 1) != cluster.Init {
		t.Errorf("made plain, its vhid is %v, %v", k.Role("em0", 1), err)
	}
}

func TestABackupBecomesMasterInItsTime(t *testing.T) {
	k, c := host()
	if err := c.AddAddress("em0", second, 1); err != nil {
		t.Fatal(err)
	}
	k.Advance(2 * time.Second)
	if k.Role("em0", 1) != cluster.Backup {
		t.Errorf("after 2 s %v", k.Role("em0", 1))
	}
	k.Advance(time.Second)
	if k.Role("em0", 1) != cluster.Master {
		t.Errorf("after 3 s %v", k.Role("em0", 1))
	}
}

func TestWhoMayNotChangeGetsEPERM(t *testing.T) {
	for name, c := range map[string]struct {
		as         func(k *Kernel)
		load, sets error
	}{
		"root":        {func(*Kernel) {}, nil, nil},
		"a user":      {func(k *Kernel) { k.Root = false }, syscall.EPERM, syscall.EPERM},
		"securelevel": {func(k *Kernel) { k.SecureLevel = 1 }, syscall.EPERM, nil},
		"a VNET jail": {func(k *Kernel) { k.Jail = carp.Jail{Jailed: true, VNET: true} }, syscall.EPERM, nil},
		"a jail":      {func(k *Kernel) { k.Jail = carp.Jail{Jailed: true} }, syscall.EPERM, syscall.EPERM},
		"no carp.ko":  {func(k *Kernel) { k.NoFile = true }, syscall.ENOENT, nil},
	} {
		unloaded := New(map[string][]string{"em0": nil})
		c.as(unloaded)
		if err := unloaded.Carp().LoadModule(); !errors.Is(err, c.load) {
			t.Errorf("%s: load: %v", name, err)
		}
		k, calls := host()
		c.as(k)
		for what, err := range map[string]error{
			"vhid":   calls.SetVHID("em0", carp.Settings{VHID: 1, AdvBase: 1}),
			"add":    calls.AddAddress("em0", second, 1),
			"sysctl": calls.SetSysctl("net.inet.carp.preempt", 1),
			"remove": calls.RemoveAddress("em0", first),
			"load":   nil,
		} {
			if what != "load" && !errors.Is(err, c.sets) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if err := calls.LoadModule(); err != nil {
			t.Errorf("%s: loaded already: %v", name, err)
		}
	}
}

func TestKeysAreCutAndToldToRootOnly(t *testing.T) {
	k, c := host()
	if err := c.SetVHID("em0", carp.Settings{VHID: 1, AdvBase: 1, Password: cluster.Secret("0123456789abcdefghij")}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.VHID("em0", 1); err != nil || string(s.Password) != "0123456789abcdefghi" {
		t.Errorf("the key has %d characters, %v", len(s.Password), err)
	}
	k.Root = false
	if s, err := c.VHID("em0", 1); err != nil || len(s.Password) != 0 {
		t.Errorf("a user sees %d characters, %v", len(s.Password), err)
	}
}

func TestDemotionIsAddedTo(t *testing.T) {
	_, c := host()
	err := errors.Join(c.SetSysctl("net.inet.carp.demotion", 240), c.SetSysctl("net.inet.carp.demotion", 240), c.SetSysctl("net.inet.carp.demotion", -240))
	if n, e := c.Sysctl("net.inet.carp.demotion"); n != 240 || err != nil || e != nil {
		t.Errorf("%d, %v, %v", n, err, e)
	}
}

func TestWhatCannotBeReadSaysWhy(t *testing.T) {
	_, c := host()
	for name, want := range map[string]error{"em7": carp.ErrNoInterface, "lo0": carp.ErrNoCARP} {
		if _, err := c.VHID(name, 1); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty := New(map[string][]string{"em0": nil}).Carp()
	if _, err := empty.VHID("em0", 1); !errors.Is(err, carp.ErrNoModule) {
		t.Errorf("carp not loaded: %v", err)
	}
	if _, err := empty.Sysctl("net.inet.carp.log"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sysctl without carp: %v", err)
	}
}

func TestADeafSegmentEndsWithTheContext(t *testing.T) {
	k, c := host()
	k.Deaf = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Adverts(ctx, "em0", func(carp.Advert) bool { return true }); err != nil {
		t.Error(err)
	}
}
