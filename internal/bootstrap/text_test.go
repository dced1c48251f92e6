package bootstrap

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"certsync/internal/cluster"
	"certsync/internal/config"
)

func TestAliasesAreReadAsIfconfigReadsThem(t *testing.T) {
	p := netip.MustParsePrefix
	for value, want := range map[string]alias{
		"inet vhid 1 advskew 100 pass S alias 192.0.2.10/32":                           {vhid: 1, advBase: 1, advSkew: 100, password: cluster.Secret("S"), address: p("192.0.2.10/32")},
		"inet 192.0.2.10 netmask 255.255.255.255 vhid 1 advbase 2":                     {vhid: 1, advBase: 2, address: p("192.0.2.10/32")},
		"inet vhid 7 pass x alias 192.0.2.10 netmask 0xffffff00 broadcast 192.0.2.255": {vhid: 7, advBase: 1, password: cluster.Secret("x"), address: p("192.0.2.10/24")},
		"inet6 vhid 2 pass S alias 2001:db8::10 prefixlen 128":                         {vhid: 2, advBase: 1, password: cluster.Secret("S"), address: p("2001:db8::10/128")},
		"inet6 2001:db8::10/64":                           {advBase: 1, address: p("2001:db8::10/64")},
		"inet vhid 1 peer 192.0.2.12 alias 192.0.2.10/32": {vhid: 1, advBase: 1, peer: netip.MustParseAddr("192.0.2.12"), address: p("192.0.2.10/32")},
	} {
		got := parseAlias(value)
		if got.odd || !got.same(want) || got.bare != want.address.Addr() {
			t.Errorf("%q is %+v", value, got)
		}
	}
	for _, value := range []string{
		"DHCP", "inet vhid x 192.0.2.10/32", "inet vhid", "inet 192.0.2.10 netmask 255.0.255.0", "inet 192.0.2.10 netmask 0xff", "netmask 255.255.255.0 192.0.2.10",
		"inet 192.0.2.10/32 vhid 1 state master", "inet 192.0.2.10/32 mtu 9000", "inet 192.0.2.10/33", "inet6 2001:db8::10 prefixlen many",
	} {
		if got := parseAlias(value); !got.odd {
			t.Errorf("%q is understood: %+v", value, got)
		}
	}
}

// TestAnAliasThatWasWrittenIsReadBack: whatever certsync writes into rc.conf it finds right the next time.
func TestAnAliasThatWasWrittenIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
		if rapid.Bool().Draw(t, "six") {
			addr = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))).Unmap()
		}
		v := VHID{ID: rapid.IntRange(1, 255).Draw(t, "vhid"), AdvBase: rapid.IntRange(1, 255).Draw(t, "base"), AdvSkew: rapid.IntRange(0, 254).Draw(t, "skew")}
		if rapid.Bool().Draw(t, "unicast") {
			v.Peer = addr.Next()
			if !v.Peer.IsValid() || v.Peer.Is4() != addr.Is4() {
				v.Peer = addr
			}
		}
		pass := rapid.StringMatching(`[A-Za-z0-9_]{1,19}`).Draw(t, "pass")
		want := v.alias(netip.PrefixFrom(addr, rapid.IntRange(0, addr.BitLen()).Draw(t, "bits")), cluster.Secret(pass))
		if got := parseAlias(want.text(pass)); !got.same(want) {
			t.Fatalf("%q is read as %+v", want.text(pass), got)
		}
	})
}

func FuzzParseAlias(f *testing.F) {
	for _, seed := range []string{"inet vhid 1 advskew 100 pass S alias 192.0.2.10/32", "inet6 vhid 2 alias 2001:db8::1 prefixlen 64", "netmask", "inet netmask 0xffffffff", "vhid -1 pass"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		a := parseAlias(value)
		if a.address.IsValid() && a.address.Addr() != a.bare {
			t.Errorf("%q: %v and %v", value, a.address, a.bare)
		}
		if a.same(alias{advBase: 1, odd: true}) {
			t.Errorf("%q is the same as what is not understood", value)
		}
	})
}

func TestInterfacesInTheNamesOfVariables(t *testing.T) {
	for iface, want := range map[string]string{"em0": "em0", "em0.10": "em0_10", "vtnet-a": "vtnet_a", "x/y+z": "x_y_z"} {
		if got := rcName(iface); got != want {
			t.Errorf("%s is %s", iface, got)
		}
	}
	for key, want := range map[string]bool{
		"ifconfig_em0": true, "ifconfig_em0_ipv6": true, "ifconfig_em0_alias0": true, "ifconfig_em0_alias12": true,
		"ifconfig_em0_5": false, "ifconfig_em0_5_alias0": false, "ifconfig_em01": false, "ifconfig_em0_alias": false, "ifconfig_em0_aliases": false,
	} {
		if got := ofInterface(key, "em0"); got != want {
			t.Errorf("%s of em0: %t", key, got)
		}
	}
}

func TestPFIsJudgedByItsLastMatchingRule(t *testing.T) {
	const blocks, passes, unsure = "blocks", "passes", "unsure"
	for rules, want := range map[string]string{
		"":                                                passes,
		"pass all":                                        passes,
		"block all":                                       blocks,
		"block all\npass quick proto carp":                passes,
		"block all\npass proto 112":                       passes,
		"pass quick proto carp\nblock all":                passes,
		"pass proto carp\nblock all":                      blocks,
		"block quick all\npass proto carp":                blocks,
		"block all # pass proto carp":                     blocks,
		"block in on em1 all":                             passes,
		"block in on { em1, em0 } all":                    blocks,
		"block out all":                                   passes,
		"block in proto tcp all":                          passes,
		"block in proto { tcp carp }":                     blocks,
		"block in \\\n  on em0 all":                       blocks,
		"set skip on em0\nblock all":                      passes,
		"set skip on { lo0 em0 }\nblock all":              passes,
		"block in on $ext all":                            unsure,
		"block in on egress":                              unsure,
		"block in from 10.0.0.0/8 to any":                 unsure,
		"block all\nanchor \"ftp/*\"":                     unsure,
		"block inet6 all":                                 passes,
		"block inet all":                                  blocks,
		"block drop log in":                               blocks,
		"block all\npass in on em0 proto carp keep state": passes,
	} {
		v := judgePF(rules, packet{"em0", "in", "inet"})
		got := passes
		switch {
		case v.blocks:
			got = blocks
		case v.unsure:
			got = unsure
		}
		if got != want {
			t.Errorf("%q: %s, want %s", rules, got, want)
		}
	}
}

func FuzzJudgePF(f *testing.F) {
	for _, seed := range []string{"block in on { em0 all\n", "pass quick proto carp", "block \\\n\\\n", "set skip on", "pass from { <t> !10.0.0.0/8 } to"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rules string) {
		v := judgePF(rules, packet{"em0", "in", "inet"})
		if v.blocks && (v.unsure || v.line < 1 || v.line > strings.Count(rules, "\n")+1) {
			t.Errorf("%q: %+v", rules, v)
		}
		if got := judgePF(rules+"\npass in quick\n", packet{"em0", "in", "inet"}); got.blocks && !v.blocks {
			t.Errorf("%q: passes, and blocks with another pass after it", rules)
		}
	})
}

// TestCommandsMeanToTheShellWhatTheySay runs what would be copied, with harmless programs.
func TestCommandsMeanToTheShellWhatTheySay(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		argv := rapid.SliceOfN(rapid.StringMatching(`[ -~\n]{0,12}`), 1, 4).Draw(t, "argv")
		out, err := exec.Command(sh, "-c", command(append([]string{"printf", `%s\0`, "-"}, argv...)...)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")[1:]; !slices.Equal(got, argv) {
			t.Fatalf("%q became %q", argv, got)
		}
	})
}

func TestLinesAddedByHandAreThoseOfThePlan(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "fresh-13", em0())
	w.write("pass", "secret1\n", 0o600)
	w.write("open", "no newline", 0o600)
	w.write("closed", "a line\n", 0o600)
	line := `ifconfig_em0_alias0="inet vhid 1 pass @ alias 192.0.2.10/32"`
	for name, commands := range map[string][]string{
		"open":   {appendLine(w.root+"/open", "a=1", true), appendSecret(w.root+"/open", line, w.root+"/pass", false)},
		"closed": {appendSecret(w.root+"/closed", line, w.root+"/pass", false), appendLine(w.root+"/closed", "100%", false)},
	} {
		for _, c := range commands {
			if out, err := exec.Command(sh, "-c", c).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", c, err, out)
			}
		}
		want := map[string]string{
			"open":   "no newline\na=1\n" + strings.Replace(line, "@", "secret1", 1) + "\n",
			"closed": "a line\n" + strings.Replace(line, "@", "secret1", 1) + "\n100%\n",
		}[name]
		if got := w.read(name); got != want {
			t.Errorf("%s is\n%q\nwant\n%q", name, got, want)
		}
	}
}

func TestTheConfigurationGivesTheSettings(t *testing.T) {
	c := config.Default()
	c.Nodes = []config.Node{
		{Name: "proxy1", Address: "192.0.2.11", AdvSkew: 0},
		{Name: "proxy2", Address: "192.0.2.12", AdvSkew: 100, Interfaces: map[string]string{"em0": "igb0"}},
	}
	c.CARP.VHIDs = []config.VHID{{Interface: "em0", ID: 1, AdvBase: 1, Addresses: prefixes("192.0.2.10/32"), PasswordFile: "/p", Peer: "nodes"}}
	c.HAProxy = []config.HAProxy{{Config: "/h", BundleDir: "/b", BundleGroup: "www"}}
	s := SettingsOf(c, c.Nodes[1], "/usr/local/etc/certsync/certsync.yaml")
	v := s.VHIDs[0]
	if v.Interface != "igb0" || v.AdvSkew != 100 || v.Peer.String() != "192.0.2.11" || v.PasswordFile != "/p" || v.family() != "inet" {
		t.Errorf("vhid %+v", v)
	}
	if s.Node != "proxy2" || !s.Preempt || s.User != "certsync" || s.ConfigDir != "/usr/local/etc/certsync" || s.HAProxy[0] != (HAProxy{"/h", "/b", "www"}) {
		t.Errorf("%+v", s)
	}
	if list(s.Own) != "192.0.2.12" || list(s.Others) != "192.0.2.11" {
		t.Errorf("own %v, others %v", s.Own, s.Others)
	}
}

func TestOnlyWhoMayDemoteGetsTheRulesForIt(t *testing.T) {
	set := settings("em0")
	for _, demote := range []bool{true, false} {
		set.DemoteUnready = demote
		text := sudoersText(set)
		for _, argv := range set.rootCommands() {
			text += doasRule(set.User, argv) + "\n"
		}
		for _, line := range []string{
			`certsync ALL=(root) NOPASSWD: /sbin/sysctl net.inet.carp.demotion\=240` + "\n",
			`certsync ALL=(root) NOPASSWD: /sbin/sysctl net.inet.carp.demotion\=-240` + "\n",
			"permit nopass certsync as root cmd /sbin/sysctl args net.inet.carp.demotion=240\n",
			"permit nopass certsync as root cmd /sbin/sysctl args net.inet.carp.demotion=-240\n",
		} {
			if strings.Contains(text, line) != demote {
				t.Errorf("demote_unready %t: %q in\n%s", demote, line, text)
			}
		}
		if n := strings.Count(text, "sysctl"); n != map[bool]int{true: 4, false: 0}[demote] {
			t.Errorf("demote_unready %t: %d lines of sysctl in\n%s", demote, n, text)
		}
	}
}
