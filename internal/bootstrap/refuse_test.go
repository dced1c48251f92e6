package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certsync/internal/bootstrap/bootstraptest"
	"certsync/internal/carp"
	"certsync/internal/cluster"
)

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range all {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

// refusals are settings and hosts that would do harm. Each is refused by the plan, and nothing at all is applied.
var refusals = map[string]struct {
	change func(w *world)
	why    string
	mend   string
}{
	"a password that FreeBSD cuts": {
		func(w *world) { w.password("a234567890123456789b") }, "longer than 19", "openssl rand",
	},
	"a password that hangs the boot":    {func(w *world) { w.password("a-b") }, "dash", "openssl rand"},
	"a password that the shell runs":    {func(w *world) { w.password("$(reboot)") }, "evaluated by the shell", "openssl rand"},
	"an empty password":                 {func(w *world) { w.password("") }, "empty", "openssl rand"},
	"a password_file that is not there": {func(w *world) { w.Password = ReadPassword; w.set.VHIDs[0].PasswordFile = filepath.Join(w.root, "none") }, "no such file", "create it"},
	"a password_file that others read": {func(w *world) {
		w.write("pass", "secret1\n", 0o644)
		w.Password = ReadPassword
		w.set.VHIDs[0].PasswordFile = filepath.Join(w.root, "pass")
	}, "others than its owner", "chmod 0600"},
	"no password_file":                   {func(w *world) { w.set.VHIDs[0].PasswordFile = "" }, "no password_file", "mode 0600"},
	"a vhid of 0":                        {func(w *world) { w.set.VHIDs[0].ID = 0 }, "not 1 to 255", "carp.vhids"},
	"a vhid of 256":                      {func(w *world) { w.set.VHIDs[0].ID = 256 }, "not 1 to 255", "carp.vhids"},
	"an advskew of 255":                  {func(w *world) { w.set.VHIDs[0].AdvSkew = 255 }, "not 0 to 254", "nodes"},
	"an advskew below 0":                 {func(w *world) { w.set.VHIDs[0].AdvSkew = -1 }, "not 0 to 254", "nodes"},
	"an advbase of 0":                    {func(w *world) { w.set.VHIDs[0].AdvBase = 0 }, "not 1 to 255", "carp.vhids"},
	"no addresses":                       {func(w *world) { w.set.VHIDs[0].Addresses = nil }, "no addresses", "carp.vhids"},
	"two families under one vhid":        {func(w *world) { w.set.VHIDs[0].Addresses = prefixes("192.0.2.10/32", "2001:db8::9/128") }, "one vhid", "of its own"},
	"an interface that is not there":     {func(w *world) { w.set.VHIDs[0].Interface = "em7" }, "no interface em7 (it has em0, lo0)", "nodes[].interfaces"},
	"the loopback interface":             {func(w *world) { w.set.VHIDs[0].Interface = "lo0" }, "loopback", "carp.vhids"},
	"an interface that cannot have CARP": {func(w *world) { w.kernel.Load().NoCARP("em0") }, "cannot have CARP", "carp.vhids"},
	"an address in no network":           {func(w *world) { w.set.VHIDs[0].Addresses = prefixes("198.51.100.10/24") }, "in no network of em0", "198.51.100.10/32"},
	"a mask that conflicts":              {func(w *world) { w.set.VHIDs[0].Addresses = prefixes("192.0.2.10/25") }, "conflicts with the network of 192.0.2.11/24", "192.0.2.10/32"},
	"a wider mask that conflicts":        {func(w *world) { w.set.VHIDs[1].Addresses = prefixes("2001:db8::10/32") }, "conflicts", "2001:db8::10/128"},
	"an address of another interface": {
		func(w *world) {
			w.kernel = bootstraptest.New(map[string][]string{"em0": {"192.0.2.11/24", "2001:db8::11/64"}, "em1": {"192.0.2.10/32"}})
			w.Kernel = w.kernel.Carp()
		}, "em1 has 192.0.2.10/32 already", "take it away",
	},
	"a vhid of another host": {
		func(w *world) {
			w.kernel.Heard["em0"] = []carp.Advert{{From: netip.MustParseAddr("192.0.2.77"), VHID: 1, AdvBase: 1}}
		},
		"192.0.2.77", "take a vhid that is free",
	},
	"unicast on FreeBSD 13": {
		func(w *world) { w.kernel.Release = 1302001; w.set.VHIDs[0].Peer = netip.MustParseAddr("192.0.2.12") }, "FreeBSD 14", "multicast",
	},
	"a securelevel that keeps carp out": {func(w *world) { w.kernel.SecureLevel = 1 }, "kern.securelevel is 1", "carp_load=YES"},
	"carp on the loader's black list": {
		func(w *world) { w.write("boot/loader.conf", "module_blacklist=\"drm, carp\"\n", 0o644) }, "passes carp over", "module_blacklist",
	},
	"a later file that says NO": {
		func(w *world) { w.write("boot/loader.conf.local", "carp_load=\"NO\"\n", 0o644) }, "read after /boot/loader.conf", "/boot/loader.conf.local",
	},
	"an alias that ends the list": {
		func(w *world) { w.write("etc/rc.conf.local", "ifconfig_em0_alias0=\"\"\n", 0o644) }, "ends the list", "take the line out",
	},
	"an alias that the shell computes": {
		func(w *world) {
			w.write("etc/rc.conf.local", "ifconfig_em0_alias0=\"inet vhid 1 pass $(cat /x) alias 192.0.2.10/32\"\n", 0o644)
		}, "cannot be told", "plainly",
	},
	"the vhid in a list of aliases": {
		func(w *world) {
			w.write("etc/rc.conf.local", "ifconfig_em0_aliases=\"inet 192.0.2.9/32 inet vhid 1 pass other 192.0.2.10/32\"\n", 0o644)
		}, "ifconfig_em0_aliases", "ifconfig_em0_alias0",
	},
	"the vhid on the interface's own line": {
		func(w *world) {
			w.write("etc/rc.conf.local", "ifconfig_em0=\"inet vhid 1 pass other 192.0.2.10/32\"\n", 0o644)
		}, "ifconfig_em0", "alias of its own",
	},
	"a bundle_group that is not there": {func(w *world) { w.set.HAProxy[0].BundleGroup = "nobody" }, "bundle_group", "leave it out"},
	"a file in a folder's place":       {func(w *world) { w.write("var/db/certsync", "x", 0o644) }, "a folder has to be there", "move the file away"},
}

func (w *world) password(text string) {
	w.Host.Password = func(string) (cluster.Secret, error) { return cluster.Secret(text), nil }
}

func TestWhatWouldDoHarmIsRefusedAndNothingIsDone(t *testing.T) {
	for name, r := range refusals {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "fresh-13", em0())
			r.change(w)
			before, kernel := w.tree(), w.kernelText()
			p := w.plan()
			err := p.Err()
			if err == nil || !strings.Contains(err.Error(), r.why) || !strings.Contains(cluster.HintOf(err), r.mend) {
				t.Fatalf("error %v, hint %q; want %q and %q in\n%s", err, cluster.HintOf(err), r.why, r.mend, text(t, p))
			}
			if _, err := w.Apply(t.Context(), w.set, p, true); err == nil || !strings.Contains(err.Error(), r.why) {
				t.Errorf("apply: %v; want the same refusal", err)
			}
			sameTree(t, before, w.tree())
			if w.kernelText() != kernel || len(w.kernel.Calls) > 0 || strings.Contains(strings.Join(w.commands.Calls, " "), "pw ") {
				t.Errorf("something was done: %q %q", w.kernel.Calls, w.commands.Calls)
			}
		})
	}
}

func TestARefusalShowsNoPassword(t *testing.T) {
	for _, bad := range []string{"a-b-Geheim-9", "$(Geheim)", "GeheimGeheimGeheimGeheim"} {
		w := newWorld(t, "fresh-13", em0())
		w.password(bad)
		p := w.plan()
		if s := text(t, p) + p.Err().Error() + cluster.HintOf(p.Err()); strings.Contains(s, "Geheim") {
			t.Errorf("the password is in\n%s", s)
		}
	}
}

func TestThePeersAdvertisementsAreNoRefusal(t *testing.T) {
	for name, heard := range map[string][]carp.Advert{
		"the other node's":       {{From: netip.MustParseAddr("192.0.2.12"), VHID: 1, AdvBase: 1}},
		"another vhid's":         {{From: netip.MustParseAddr("192.0.2.77"), VHID: 9, AdvBase: 1}},
		"one of another segment": {{From: netip.MustParseAddr("192.0.2.77"), VHID: 1, VLAN: 7, AdvBase: 1}},
	} {
		w := newWorld(t, "fresh-13", em0())
		w.kernel.Heard["em0"] = heard
		if err := w.plan().Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListeningEndsWithTheTimeOfAdvertisements(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.kernel.Deaf = true
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	listen := w.Kernel.Adverts
	w.Kernel.Adverts = func(ctx context.Context, name string, each func(carp.Advert) bool) error {
		if at, ok := ctx.Deadline(); !ok || time.Until(at) > 4*time.Second {
			t.Errorf("deadline %v %t; want 3 * advbase and a second", at, ok)
		}
		calls++
		cancel()
		return listen(ctx, name, each)
	}
	if _, err := w.Plan(ctx, w.set); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it listened: %v", err)
	}
	if calls != 1 {
		t.Errorf("it listened %d times to one interface with two vhids", calls)
	}
}

func TestASegmentThatCannotBeHeardIsSaid(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.Kernel.Adverts = func(context.Context, string, func(carp.Advert) bool) error { return errors.New("no bpf here") }
	s := step(t, w.plan(), "em0 vhid 1 in the segment")
	if s.State != Note || !strings.Contains(s.Found, "no bpf here") {
		t.Errorf("%+v", s)
	}
}

func TestLinuxIsRefusedClearly(t *testing.T) {
	w := newWorld(t, "fresh-14", nil)
	w.OS = "linux"
	_, err := w.Plan(t.Context(), w.set)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(cluster.HintOf(err), "--root") {
		t.Errorf("plan on Linux: %v (%s)", err, cluster.HintOf(err))
	}
	if _, err := w.Revert(t.Context(), true); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("revert on Linux: %v", err)
	}
}

func TestOnlyRootApplies(t *testing.T) {
	w := newWorld(t, "fresh-14", em0())
	w.kernel.Root = false
	w.Getuid = func() int { return 1001 }
	p := w.plan()
	golden(t, "unprivileged", w.anonymous(text(t, p)))
	before := w.tree()
	if _, err := w.Apply(t.Context(), w.set, p, true); err == nil || !strings.Contains(err.Error(), "only root") {
		t.Errorf("apply: %v", err)
	}
	if _, err := w.Revert(t.Context(), true); err == nil || !strings.Contains(err.Error(), "only root") {
		t.Errorf("revert: %v", err)
	}
	sameTree(t, before, w.tree())
}

func TestWhatIsHiddenFromAUserIsSaidAndNotGuessed(t *testing.T) {
	w := newWorld(t, "by-hand", running())
	w.kernel.Root = false
	w.Getuid = func() int { return 1001 }
	w.Host.Password = func(string) (cluster.Secret, error) { return nil, os.ErrPermission }
	p := w.plan()
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	if s := step(t, p, "em0 vhid 1 now"); s.State != OK || !strings.Contains(s.Found, "not compared") {
		t.Errorf("now: %+v", s)
	}
	if s := step(t, p, "em0 vhid 1 at boot"); s.State != Note || !strings.Contains(s.Found, "without root") {
		t.Errorf("at boot: %+v", s)
	}
}

func TestTheInterfaceOfTheSSHSessionWantsYes(t *testing.T) {
	for connection, warned := range map[string]bool{
		"198.51.100.7 51022 192.0.2.11 22":          true,
		"2001:db8:7::1 51022 2001:db8::11 22":       true,
		"198.51.100.7 51022 ::ffff:192.0.2.11 22":   true,
		"198.51.100.7 51022 127.0.0.1 22":           false,
		"198.51.100.7 51022 203.0.113.9 22":         false,
		"nonsense":                                  false,
		"":                                          false,
		"198.51.100.7 51022 not-an-address 22":      false,
		"fe80::1%em0 51022 fe80::2%em0 22":          false,
		"198.51.100.7 51022 192.0.2.11 22 and more": false,
	} {
		w := newWorld(t, "fresh-13", em0())
		w.SSHConnection = connection
		p := w.plan()
		if got := len(p.Warnings()) > 0; got != warned {
			t.Errorf("%q: warned %t", connection, got)
		}
		before := w.tree()
		_, err := w.Apply(t.Context(), w.set, p, false)
		if warned {
			if !errors.Is(err, cluster.ErrUsage) || !strings.Contains(cluster.HintOf(err), "--yes") || !strings.Contains(err.Error(), "SSH") {
				t.Errorf("%q: without yes: %v", connection, err)
			}
			sameTree(t, before, w.tree())
		} else if err != nil {
			t.Errorf("%q: %v", connection, err)
		}
	}
}

func TestThePlanAsJSONHasNoPasswordAndEveryStep(t *testing.T) {
	for name, host := range hosts {
		w := host(t)
		p := w.plan()
		data, err := json.Marshal(p)
		w.must(err)
		w.noSecret(name, string(data))
		var back struct {
			Steps []map[string]any `json:"steps"`
		}
		w.must(json.Unmarshal(data, &back))
		if len(back.Steps) != len(p.Steps) {
			t.Errorf("%s: %d steps in JSON, %d in the plan", name, len(back.Steps), len(p.Steps))
		}
		for _, s := range back.Steps {
			if s["name"] == "" || s["state"] == "" {
				t.Errorf("%s: %v", name, s)
			}
		}
	}
}

func TestACommandNeverHasThePassword(t *testing.T) {
	for name, host := range hosts {
		w := host(t)
		for _, s := range w.plan().Steps {
			w.noSecret(name, strings.Join(s.Commands, "\n"))
			for _, c := range s.Commands {
				if strings.Contains(c, " pass ") && !strings.Contains(c, "$(cat ") {
					t.Errorf("%s: %s", name, c)
				}
			}
		}
		if name != "image" {
			w.apply()
			w.noSecret(name+"'s commands", strings.Join(w.commands.Calls, "\n"))
		}
	}
}

func TestNothingIsWrittenOutsideOfATree(t *testing.T) {
	w := newWorld(t, "fresh-14", nil)
	w.Image, w.OS = true, "linux"
	outside := t.TempDir()
	w.must(os.Remove(filepath.Join(w.root, "etc/sysctl.conf")))
	w.must(os.Symlink("../../../../../../../../../.."+outside+"/sysctl.conf", filepath.Join(w.root, "etc/sysctl.conf")))
	if p, err := w.Plan(t.Context(), w.set); err == nil {
		_, err = w.Apply(t.Context(), w.set, p, true)
		if err == nil {
			t.Error("a link that leads out of the tree was taken")
		}
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside is %v (%v)", names, err)
	}
}

func TestATreeKnowsItsName(t *testing.T) {
	for content, want := range map[string]string{
		"hostname=\"proxy1.example.org\"\n": "proxy1.example.org",
		"hostname=proxy2\n":                 "proxy2",
		"hostname=$(hostname)\n":            "",
		"#hostname=x\n":                     "",
	} {
		w := newWorld(t, "fresh-14", nil)
		w.write("etc/rc.conf", content, 0o644)
		got, err := Hostname(w.Tree)
		if got != want || (err != nil) != (want == "") || err != nil && cluster.HintOf(err) == "" {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
}

func TestAPasswordFileIsReadAsGiven(t *testing.T) {
	p := filepath.Join(t.TempDir(), "pass")
	for content, want := range map[string]string{"secret1": "secret1", "secret1\n": "secret1", "secret1\r\n": "secret1", "secret1\n\n": "secret1\n", " a": " a"} {
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadPassword(p)
		if err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("%q: %d bytes, %v", content, len(got), err)
		}
	}
}
