package carp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

func TestAPasswordIsTakenOnlyWhereFreeBSDTakesItWhole(t *testing.T) {
	for _, good := range []string{"a", "secret", "A_9", "0123456789abcdefghi", "ABCDEFGHIJKLMNOPQRS", "tuvwxyz_0123456789"} {
		if err := CheckPassword(cluster.Secret(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, words := range map[string]string{
		"":                     "empty",
		"0123456789abcdefghij": "19 characters",
		"q-z":                  "dash",
		"3-4x":                 "dash",
		"xyzzy pass":           "blank",
		"xyzzy\n":              "line break",
		"xyzzy\r\n":            "line break",
		"xyzzy\x00":            "control character",
		"pässw":                "ASCII",
		"$(touch /tmp/x)":      "shell",
		"`id`":                 "shell",
		"xyzzy'":               "shell",
		"xyzzy\"":              "shell",
		"xyz.zy":               "shell",
		"xyzzy\\":              "shell",
		"@xyzzy":               "shell",
		"xyzzy[":               "shell",
		"{xyzzy":               "shell",
		"xyzzy:":               "shell",
	} {
		err := CheckPassword(cluster.Secret(bad))
		if err == nil || !strings.Contains(err.Error(), words) || cluster.HintOf(err) == "" {
			t.Errorf("%q: %v, hint %q; want %q", bad, err, cluster.HintOf(err), words)
			continue
		}
		if trimmed := strings.TrimSpace(bad); trimmed != "" && strings.Contains(err.Error()+cluster.HintOf(err), trimmed) || strings.Contains(err.Error(), "xyz") {
			t.Errorf("%q is shown: %v", bad, err)
		}
	}
}

// goodSettings are settings that every kernel takes.
func goodSettings() Settings {
	return Settings{VHID: 1, AdvBase: 1, AdvSkew: 100, Password: cluster.Secret("secret")}
}

// TestWhatTheKernelWouldHalfDoIsRefusedBeforeAnyCall: the kernel makes the vhid first and looks at advskew then.
func TestWhatTheKernelWouldHalfDoIsRefusedBeforeAnyCall(t *testing.T) {
	with := func(change func(*Settings)) Settings {
		s := goodSettings()
		change(&s)
		return s
	}
	for name, s := range map[string]Settings{
		"vhid 0":              with(func(s *Settings) { s.VHID = 0 }),
		"vhid -1":             with(func(s *Settings) { s.VHID = -1 }),
		"vhid 256":            with(func(s *Settings) { s.VHID = 256 }),
		"vhid 2^32+1":         with(func(s *Settings) { s.VHID = 1<<32 + 1 }),
		"advbase 0":           with(func(s *Settings) { s.AdvBase = 0 }),
		"advbase 256":         with(func(s *Settings) { s.AdvBase = 256 }),
		"advskew -1":          with(func(s *Settings) { s.AdvSkew = -1 }),
		"advskew 255":         with(func(s *Settings) { s.AdvSkew = 255 }),
		"a long password":     with(func(s *Settings) { s.Password = cluster.Secret("0123456789abcdefghij") }),
		"a password with a -": with(func(s *Settings) { s.Password = cluster.Secret("a-b") }),
		"a multicast peer":    with(func(s *Settings) { s.Peer = carpGroup }),
		"no host as peer":     with(func(s *Settings) { s.Peer = netip.IPv4Unspecified() }),
		"a peer with a zone":  with(func(s *Settings) { s.Peer = netip.MustParseAddr("fe80::1%em0") }),
		"a mapped peer":       with(func(s *Settings) { s.Peer = netip.MustParseAddr("::ffff:192.0.2.1") }),
	} {
		b := newBox(t)
		if err := b.kernel().SetVHID("em0", s); !errors.Is(err, cluster.ErrUsage) || len(b.log) != 0 {
			t.Errorf("%s: %v, %v", name, err, b.log)
		}
	}
	for _, iface := range []string{"", "sixteen_letters_", "em0\x00", "em 0", "../em0", "em0\n"} {
		b := newBox(t)
		k := b.kernel()
		if err := k.SetVHID(iface, goodSettings()); !errors.Is(err, cluster.ErrUsage) || len(b.log) != 0 {
			t.Errorf("interface %q: %v, %v", iface, err, b.log)
		}
		if err := k.AddAddress(iface, netip.MustParsePrefix("192.0.2.10/32"), 1); !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("interface %q: %v", iface, err)
		}
		if err := k.RemoveAddress(iface, netip.MustParsePrefix("192.0.2.10/32")); !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("interface %q: %v", iface, err)
		}
		if err := k.Adverts(t.Context(), iface, nil); !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("interface %q: %v", iface, err)
		}
	}
	if err := checkInterface("fifteen_letters"); err != nil {
		t.Error(err)
	}
}

func TestAnAddressThatNoHostCanHaveIsRefusedBeforeAnyCall(t *testing.T) {
	for _, p := range []netip.Prefix{
		{},
		netip.PrefixFrom(netip.MustParseAddr("192.0.2.10"), 33),
		netip.PrefixFrom(netip.MustParseAddr("192.0.2.10"), -1),
		netip.MustParsePrefix("192.0.2.10/0"),
		netip.MustParsePrefix("2001:db8::10/0"),
		netip.MustParsePrefix("0.0.0.0/32"),
		netip.MustParsePrefix("::/128"),
		netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("224.0.0.18/32"),
		netip.MustParsePrefix("ff02::12/128"),
		netip.MustParsePrefix("127.0.0.1/32"),
		netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("::ffff:192.0.2.10/128"),
	} {
		b := newBox(t)
		k := b.kernel()
		if err := k.SetVHID("em0", goodSettings()); err != nil {
			t.Fatal(err)
		}
		done := len(b.log)
		if err := k.AddAddress("em0", p, 1); !errors.Is(err, cluster.ErrUsage) || len(b.log) != done {
			t.Errorf("%v: %v, %v", p, err, b.log)
		}
		if err := k.RemoveAddress("em0", p); !errors.Is(err, cluster.ErrUsage) || len(b.log) != done {
			t.Errorf("%v: %v, %v", p, err, b.log)
		}
	}
	for _, vhid := range []int{-1, 256, 1 << 32} {
		if err := newBox(t).kernel().AddAddress("em0", netip.MustParsePrefix("192.0.2.10/32"), vhid); !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("vhid %d: %v", vhid, err)
		}
	}
}
