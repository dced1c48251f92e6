package carp

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

func TestThisKernelAnswersTheQuestions(t *testing.T) {
	k, err := SystemKernel()
	if err != nil {
		t.Fatal(err)
	}
	if release, err := k.Release(); err != nil || release < 1300000 {
		t.Errorf("release %d, %v", release, err)
	}
	if level, err := k.SecureLevel(); err != nil || level < -1 || level > 3 {
		t.Errorf("securelevel %d, %v", level, err)
	}
	if jail, err := k.Jail(); err != nil || jail.VNET && !jail.Jailed {
		t.Errorf("%+v, %v", jail, err)
	}
	if _, err := k.Sysctl("net.inet.carp.no_such_name"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	loaded, err := k.ModuleLoaded()
	if err != nil {
		t.Error(err)
	}
	if _, err := k.Sysctl("net.inet.carp.preempt"); loaded != (err == nil) {
		t.Errorf("carp is loaded: %v; its sysctl: %v", loaded, err)
	}
}

// TestAVHIDOnThisKernel makes vhid 213 on the interface that CERTSYNC_CARP_INTERFACE names (an epair or a tap that is
// up), with an address of either family one after the other, and takes them away again.
func TestAVHIDOnThisKernel(t *testing.T) {
	iface := os.Getenv("CERTSYNC_CARP_INTERFACE")
	if iface == "" || os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CERTSYNC_CARP_INTERFACE is not set, or this is not root")
		}
		t.Skip("needs root, and CERTSYNC_CARP_INTERFACE")
	}
	k, err := SystemKernel()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.LoadModule(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"203.0.113.213/32", "2001:db8:213::1/128"} {
		t.Run(strings.ReplaceAll(text, "/", "_"), func(t *testing.T) { vhidStory(t, k, iface, netip.MustParsePrefix(text)) })
	}
	if err := k.SetVHID("nosuchif0", Settings{VHID: 213, AdvBase: 1}); !errors.Is(err, ErrNoInterface) {
		t.Error(err)
	}
	if err := k.SetVHID("lo0", Settings{VHID: 213, AdvBase: 1}); !errors.Is(err, ErrNoCARP) {
		t.Error(err)
	}
}

func vhidStory(t *testing.T, k *Kernel, iface string, address netip.Prefix) {
	s := Settings{VHID: 213, AdvBase: 1, AdvSkew: 7, Password: cluster.Secret("0123456789abcdefghi")}
	if err := k.AddAddress(iface, address, s.VHID); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("an address before its vhid: %v", err)
	}
	if err := k.SetVHID(iface, s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.RemoveAddress(iface, address); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	if err := k.AddAddress(iface, address, s.VHID); err != nil {
		t.Fatal(err)
	}
	waitMaster(t, k, iface, s.VHID)
	// What is there already, and a change of the parameters, leave it MASTER.
	s.AdvSkew, s.Password = 0, cluster.Secret("secret")
	if err := errors.Join(k.AddAddress(iface, address, s.VHID), k.SetVHID(iface, s)); err != nil {
		t.Error(err)
	}
	if state, err := k.VHID(iface, s.VHID); err != nil || state.Role != cluster.Master {
		t.Errorf("%+v, %v; want MASTER", state, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seen := false
	err := k.Adverts(ctx, iface, func(a Advert) bool {
		seen = a.VHID == s.VHID && a.Matches(s.Password, []netip.Prefix{address})
		return !seen
	})
	if err != nil || !seen {
		t.Errorf("its own advert: %v, %v", seen, err)
	}
	if err := k.RemoveAddress(iface, address); err != nil {
		t.Error(err)
	}
	if state, err := k.VHID(iface, s.VHID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%+v, %v; want it gone with its last address", state, err)
	}
	if err := k.RemoveAddress(iface, address); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func waitMaster(t *testing.T, k *Kernel, iface string, vhid int) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); <-tick.C {
		if state, err := k.VHID(iface, vhid); err != nil {
			t.Fatal(err)
		} else if state.Role == cluster.Master {
			return
		}
	}
	t.Fatalf("vhid %d of %s is not MASTER; is the interface up?", vhid, iface)
}
