package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// minimal is the shortest configuration; its lines are counted on in the tests.
const minimal = `nodes:
  - {name: proxy1, address: 192.0.2.11}
  - {name: proxy2, address: "2001:db8::12"}
dns: {provider: hetzner}
certificates:
  - {name: example.org, domains: [example.org, "*.example.org"]}
carp: {role: static:proxy1}
`

// edit replaces one piece of minimal.
func edit(t *testing.T, old, new string) string {
	t.Helper()
	if strings.Count(minimal, old) != 1 {
		t.Fatalf("%q is not once in the minimal configuration", old)
	}
	return strings.Replace(minimal, old, new, 1)
}

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("certsync.yaml", []byte(text))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, text)
	}
	return c
}

// messages are the lines of the error on text.
func messages(t *testing.T, text string) []string {
	t.Helper()
	c, err := Parse("certsync.yaml", []byte(text))
	if err == nil {
		t.Fatalf("accepted:\n%s", text)
	}
	if c != nil {
		t.Error("a configuration came with the error")
	}
	if !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("not a usage error: %v", err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestMinimalConfigurationGetsEveryDefault(t *testing.T) {
	c := mustParse(t, minimal)
	want := Default()
	want.file = "certsync.yaml"
	want.Nodes = []Node{{Name: "proxy1", Address: "192.0.2.11", Port: 22}, {Name: "proxy2", Address: "2001:db8::12", Port: 22}}
	want.ACME.Staging = "https://acme-staging-v02.api.letsencrypt.org/directory"
	want.DNS.Provider = "hetzner"
	want.Certificates = []Certificate{{Name: "example.org", Domains: []string{"example.org", "*.example.org"}, KeyTypes: []cert.KeyType{cert.EC256}, DNS: want.DNS}}
	want.HAProxy = []HAProxy{{Config: "/usr/local/etc/haproxy.conf", BundleDir: "/usr/local/etc/haproxy/certs", RuntimeSocket: "/var/run/haproxy.sock"}}
	want.CARP.Role = "static:proxy1"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestEveryOptionIsRead(t *testing.T) {
	c := mustParse(t, `
node: b
nodes: [{name: a, address: Proxy.Example.ORG, port: 2222, advskew: 7, interfaces: {em0: igb0.10}}, {name: b, address: 127.0.0.1}, {name: c, address: 127.0.0.1, port: 23, advskew: 254}]
acme:
  directory: https://ca.example.org/dir
  staging: https://ca.example.org/staging
  email: ops@example.org
  key_types: [rsa4096, ec384]
  profile: shortlived
  ca_file: /etc/ca.pem
  eab: {key_id: 0123, hmac_key_file: /etc/eab.key}
dns:
  provider: rfc2136
  env_file: /etc/dns.env
  resolvers: [192.0.2.53, "2001:db8::53", "[2001:db8::53]", "[2001:db8::53]:5353", ns.example.org, "NS.example.org:54"]
  propagation: {check: false, timeout: 90s, interval: 250ms, sequence: 1m}
certificates:
  - {name: One, domains: [WWW.Example.ORG., xn--mnchen-3ya.example], key_types: [rsa2048, ec256], bundle: /x//y/../one.pem}
  - {name: two, domains: ["*.example.net"], dns: {provider: exec, propagation: {timeout: 3s}}}
haproxy:
  - {config: /a.cfg, bundle_dir: /certs/, bundle_group: ssl, crt_list: /list, runtime_socket: /a.sock, verify: ["127.0.0.1:8443", "[::1]:8443", unix@/v.sock, /w.sock, "localhost:1"]}
  - {config: /b.cfg, runtime_socket: /b.sock, config_more: [/conf.d/, /c.cfg], master_socket: /m//b.sock, reload: [/sbin/r, -a b], check: [/sbin/c]}
carp:
  role: static:c
  settle: 500ms
  preempt: false
  vhids: [{interface: em0, vhid: 9, advbase: 2, addresses: [192.0.2.10/24, 192.0.2.11/32], password_file: /p//q}, {interface: em1, vhid: 9, addresses: ["2001:DB8::10/128"]}]
ssh: {user: cs, key_file: /k, known_hosts: /h}
renew: {concurrency: 7}
state_dir: /s
run_dir: /r
`)
	checks := []struct{ got, want any }{
		{c.Node, "b"},
		{c.Nodes, []Node{{"a", "proxy.example.org", 2222, 7, map[string]string{"em0": "igb0.10"}}, {"b", "127.0.0.1", 22, 0, nil}, {"c", "127.0.0.1", 23, 254, nil}}},
		{c.ACME, ACME{"https://ca.example.org/dir", "https://ca.example.org/staging", "ops@example.org",
			[]cert.KeyType{cert.RSA4096, cert.EC384}, "shortlived", "/etc/ca.pem", EAB{"0123", "/etc/eab.key"}}},
		{c.DNS, DNS{"rfc2136", "/etc/dns.env",
			[]string{"192.0.2.53:53", "[2001:db8::53]:53", "[2001:db8::53]:53", "[2001:db8::53]:5353", "ns.example.org:53", "ns.example.org:54"},
			Propagation{false, 90 * time.Second, 250 * time.Millisecond, time.Minute}}},
		{c.Certificates[0].Name, "One"},
		{c.Certificates[0].Domains, []string{"www.example.org", "xn--mnchen-3ya.example"}},
		{c.Certificates[0].KeyTypes, []cert.KeyType{cert.RSA2048, cert.EC256}},
		{c.Certificates[0].Bundle, "/x/one.pem"},
		{c.Certificates[0].Both(), true},
		{c.Certificates[0].DNS, c.DNS},
		{c.Certificates[0].Slots(), []cert.Slot{{Name: "One", Algorithm: cert.RSA}, {Name: "One", Algorithm: cert.ECDSA}}},
		{c.Certificates[1].KeyTypes, c.ACME.KeyTypes},
		{c.Certificates[1].DNS, DNS{"exec", "/etc/dns.env", c.DNS.Resolvers, Propagation{false, 3 * time.Second, 250 * time.Millisecond, time.Minute}}},
		{c.HAProxy[0], HAProxy{Config: "/a.cfg", BundleDir: "/certs", BundleGroup: "ssl", CrtList: "/list", RuntimeSocket: "/a.sock",
			Verify: []string{"127.0.0.1:8443", "[::1]:8443", "unix@/v.sock", "/w.sock", "localhost:1"}}},
		{c.HAProxy[1], HAProxy{Config: "/b.cfg", BundleDir: "/usr/local/etc/haproxy/certs", RuntimeSocket: "/b.sock",
			ConfigMore: []string{"/conf.d", "/c.cfg"}, MasterSocket: "/m/b.sock", Reload: []string{"/sbin/r", "-a b"}, Check: []string{"/sbin/c"}}},
		{c.Virtual(), []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::10")}},
		{c.HAProxy[1].Files(), []string{"/b.cfg", "/conf.d", "/c.cfg"}},
		{c.SSH, SSH{"cs", "/k", "/h"}},
		{c.Renew.Concurrency, 7},
		{c.StateDir, "/s"}, {c.RunDir, "/r"},
		{c.CARP, CARP{"static:c", 500 * time.Millisecond, false, false, []VHID{
			{"em0", 9, 2, []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("192.0.2.11/32")}, "/p/q", ""},
			{"em1", 9, 1, []netip.Prefix{netip.MustParsePrefix("2001:db8::10/128")}, "", ""}}}},
		{c.VHIDsOf(c.Nodes[0])[0].Interface, "igb0.10"}, {c.VHIDsOf(c.Nodes[0])[1].Interface, "em1"}, {c.VHIDsOf(c.Nodes[1])[0].Interface, "em0"},
	}
	for _, check := range checks {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("got  %+v\nwant %+v", check.got, check.want)
		}
	}
}

// mistakes are configurations with one mistake each, and all that is to be said of it.
var mistakes = []struct {
	name, old, new, want string
}{
	{"unknown key", "dns: {provider", "dns: {provder", `4: dns: unknown key "provder"; the nearest is "provider"` + "\n" + `4: dns.provider: missing: the name of one of lego's DNS providers`},
	{"unknown key at the top", "carp: {", "acmee: {}\ncarp: {", `7: unknown key "acmee"; the nearest is "acme"`},
	{"letters swapped", "domains: [example.org", "key_tpyes: [], domains: [example.org", `6: certificates[0]: unknown key "key_tpyes"; the nearest is "key_types"`},
	{"key in the wrong place", "carp: {", "email: a@b.org\ncarp: {", `7: unknown key "email"; did you mean acme.email?`},
	{"key of a later version", "carp: {", "drills: []\ncarp: {", `7: unknown key "drills"; the nearest is "dns" (known here: acme, carp, certificates, dns, haproxy, listen, node, nodes, notify, renew, run_dir, ssh, state_dir)`},
	{"a URL without a scheme", "carp: {", "notify: [hooks.example.org/t0psecret]\ncarp: {", `7: notify[0]: not a URL such as ntfy://ntfy.sh/TOPIC, or file:PATH`},
	{"a URL of the web", "carp: {", "notify: ['https://hooks.example.org/t0psecret']\ncarp: {", `7: notify[0]: https is none of the notification services; a webhook is generic+https://HOST/PATH`},
	{"a URL of an unknown service", "carp: {", "notify: ['t0psecret://example.org/t0psecret']\ncarp: {", "7: notify[0]: its scheme is none of the notification services: bark, discord, generic, googlechat, gotify, hangouts, ifttt, join, lark, matrix, mattermost, notifiarr, ntfy, opsgenie, pagerduty, pushbullet, pushover, rocketchat, signal, slack, smtp, teams, telegram, wecom, zulip"},
	{"a URL that is none", "carp: {", "notify: ['ntfy://%t0psecret']\ncarp: {", `7: notify[0]: not a URL such as ntfy://ntfy.sh/TOPIC, or file:PATH`},
	{"a relative file of URLs", "carp: {", "notify: [file:notify.txt]\ncarp: {", `7: notify[0]: file: wants the absolute path of a file, as in file:/usr/local/etc/certsync/notify`},
	{"a bundle over the file of URLs", "carp: {", "notify: [file:/usr/local/etc/haproxy/certs/example.org.pem]\ncarp: {", `6: certificates[0].bundle: writes the file of notify, /usr/local/etc/haproxy/certs/example.org.pem`},
	{"key of a later version inside", "carp: {", "renew: {currency: x}\ncarp: {", `7: renew: unknown key "currency"; the nearest is "concurrency" (known here: concurrency, schedule)`},
	{"vhids that are keys", "carp: {", "carp: {vhids: {a: b}, ", `7: carp.vhids: want a list, found keys with values`},
	{"unknown key of a vhid", "carp: {", "carp: {vhids: [{inteface: em0, vhid: 1, addresses: [192.0.2.10/32]}], ", "7: carp.vhids[0]: unknown key \"inteface\"; the nearest is \"interface\"\n7: carp.vhids[0].interface: missing: the interface that carries the address, such as em0"},
	{"address without mask", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10]}], ", "7: carp.vhids[0].addresses[0]: want an address with its prefix length, such as 192.0.2.10/32, found text"},
	{"no addresses", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1}], ", "7: carp.vhids[0].addresses: none: name at least one"},
	{"both families in a vhid", "carp: {", `carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32, "2001:db8::10/128"]}], `, "7: carp.vhids[0].addresses[1]: 2001:db8::10/128: another family than 192.0.2.10/32: give each family a vhid of its own"},
	{"an address that nobody can share", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [127.0.0.1/8]}], ", "7: carp.vhids[0].addresses[0]: 127.0.0.1/8: not an address that hosts can share"},
	{"one address under two vhids", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32]}, {interface: em0, vhid: 2, addresses: [192.0.2.10/24]}], ", `7: carp.vhids[1].addresses[0]: "192.0.2.10": carp.vhids[0] (line 7) has it too`},
	{"vhid 0", "carp: {", "carp: {vhids: [{interface: em0, addresses: [192.0.2.10/32]}], ", "7: carp.vhids[0].vhid: 0: not between 1 and 255"},
	{"vhid 256", "carp: {", "carp: {vhids: [{interface: em0, vhid: 256, addresses: [192.0.2.10/32]}], ", "7: carp.vhids[0].vhid: 256: not between 1 and 255"},
	{"vhid twice", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32]}, {interface: em0, vhid: 1, addresses: [192.0.2.11/32]}], ", `7: carp.vhids[1].vhid: "1 on em0": carp.vhids[0] (line 7) has it too`},
	{"advbase", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, advbase: 0, addresses: [192.0.2.10/32]}], ", "7: carp.vhids[0].advbase: 0: not between 1 and 255"},
	{"interface", "carp: {", "carp: {vhids: [{interface: \"em0; reboot\", vhid: 1, addresses: [192.0.2.10/32]}], ", `7: carp.vhids[0].interface: "em0; reboot": not the name of an interface`},
	{"long interface", "carp: {", "carp: {vhids: [{interface: abcdefghijklmnop, vhid: 1, addresses: [192.0.2.10/32]}], ", `7: carp.vhids[0].interface: "abcdefghijklmnop": not the name of an interface`},
	{"password in place of its file", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32], password_file: hush}], ", "7: carp.vhids[0].password_file: not an absolute path"},
	{"peer", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32], peer: 192.0.2.12}], ", `7: carp.vhids[0].peer: "192.0.2.12": not "nodes" (unicast to the other node), or "" (multicast)`},
	{"unicast to another family", "carp: {", "carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32], peer: nodes}], ", `7: carp.vhids[0].peer: unicast goes to an address of the vhid's family, and proxy2 has 2001:db8::12`},
	{"settle", "carp: {", "carp: {settle: 6m, ", "7: carp.settle: 6m0s: not between 0s and 5m0s"},
	{"key twice", "carp: {", "dns: {provider: x}\ncarp: {", "7: dns: given twice, first on line 4"},
	{"merge key", "carp: {role", "carp: {<<: {role: x}, role", "7: carp: merge keys (<<) are not read: write the values out"},
	{"key that is a list", "carp: {role", "carp: {[a]: b, role", "7: carp: want a plain key, found a list"},
	{"text for a list", `domains: [example.org, "*.example.org"]`, "domains: example.org", "6: certificates[0].domains: want a list, found text"},
	{"text for keys", "dns: {provider: hetzner}", "dns: hetzner", "4: dns: want keys with values, found text"},
	{"list for text", "provider: hetzner", "provider: [hetzner]", "4: dns.provider: want text, found a list"},
	{"truth for text", "provider: hetzner", "provider: true", "4: dns.provider: want text, found true or false (in quotes it is text)"},
	{"text for a number", "carp: {", "renew: {concurrency: many}\ncarp: {", "7: renew.concurrency: want a whole number, found text"},
	{"fraction", "carp: {", "renew: {concurrency: 1.5}\ncarp: {", "7: renew.concurrency: want a whole number, found a number"},
	{"huge number", "carp: {", "renew: {concurrency: 99999999999999999999}\ncarp: {", "7: renew.concurrency: want a whole number, found a number"},
	{"number in quotes", "carp: {", "renew: {concurrency: \"5\"}\ncarp: {", "7: renew.concurrency: want a whole number, found text"},
	{"text for truth", "hetzner}", "hetzner, propagation: {check: yes}}", "4: dns.propagation.check: want true or false, found text"},
	{"duration without unit", "hetzner}", "hetzner, propagation: {timeout: 120}}", "4: dns.propagation.timeout: want a duration with a unit, such as 90s or 2m, found a number"},
	{"own tag", "provider: hetzner", "provider: !secret hetzner", `4: dns.provider: want text, found a value with the tag "!secret"`},
	{"binary", "provider: hetzner", "provider: !!binary aGV0", `4: dns.provider: want text, found a value with the tag "!!binary"`},
	{"nothing in a list", `[example.org, "*.`, `[example.org, ~, "*.`, "6: certificates[0].domains[1]: nothing there"},

	{"no nodes", minimal[:strings.Index(minimal, "dns:")], "nodes: []\n", "1: nodes: none: name every node of the pair, this one too"},
	{"node without a name", "name: proxy2, ", "", "3: nodes[1].name: missing"},
	{"node with a slash", "proxy2", "proxy/2", `3: nodes[1].name: "proxy/2": a name has letters, digits, dot, dash and underscore only`},
	{"node that looks like an option", "proxy2", "-v", `3: nodes[1].name: "-v": a name has no leading dash: it would be taken for an option`},
	{"node twice", "proxy2", "Proxy1", `3: nodes[1].name: "proxy1": nodes[0] (line 2) has it too`},
	{"node without an address", ", address: 192.0.2.11", "", "2: nodes[0].address: missing: an IP address or a host name"},
	{"address twice", "192.0.2.11", "2001:DB8:0::12", `3: nodes[1].address: "2001:db8::12 port 22": nodes[0] (line 2) has it too`},
	{"address with a port", "192.0.2.11", "192.0.2.11:22", `2: nodes[0].address: "192.0.2.11:22": not an IP address or a host name; IPv6 without brackets, and the port under its own key`},
	{"address that is none", "192.0.2.11", "192.0.2.256", `2: nodes[0].address: "192.0.2.256": not an IP address or a host name: the last label is a number`},
	{"address of all hosts", "192.0.2.11", "0.0.0.0", "2: nodes[0].address: 0.0.0.0: not the address of a host"},
	{"port", "192.0.2.11", "192.0.2.11, port: 65536", "2: nodes[0].port: 65536: not between 1 and 65535"},
	{"advskew", "192.0.2.11", "192.0.2.11, advskew: 255", "2: nodes[0].advskew: 255: not between 0 and 254"},
	{"interfaces that are a list", "192.0.2.11", "192.0.2.11, interfaces: [em0]", "2: nodes[0].interfaces: want keys with values, found a list"},
	{"an interface that no vhid has", "192.0.2.11", "192.0.2.11, interfaces: {em0: igb0}", `2: nodes[0].interfaces.em0: no entry of carp.vhids has the interface "em0"`},
	{"an interface twice", "192.0.2.11", "192.0.2.11, interfaces: {em0: igb0, em0: igb1}", "2: nodes[0].interfaces.em0: given twice\n2: nodes[0].interfaces.em0: no entry of carp.vhids has the interface \"em0\""},
	{"node that is not there", "carp: {", "node: proxy3\ncarp: {", `7: node: "proxy3": not one of the nodes (proxy1, proxy2)`},

	{"directory", "carp: {", "acme: {directory: letsencrpyt}\ncarp: {", `7: acme.directory: "letsencrpyt": not letsencrypt, letsencrypt-staging, zerossl, google, or a URL`},
	{"directory over http", "carp: {", "acme: {directory: \"http://127.0.0.1/dir\"}\ncarp: {", "7: acme.directory: ACME goes over https only (RFC 8555 section 6.1): for a private CA set ca_file to its root"},
	{"directory with a password", "carp: {", "acme: {directory: \"https://me:hush@ca.example.org/\"}\ncarp: {", "7: acme.directory: a directory's URL has no user, password or fragment"},
	{"dry run in production", "carp: {", "acme: {staging: letsencrypt}\ncarp: {", "7: acme.staging: a dry run there would count against the limits of a CA in production"},
	{"email", "carp: {", "acme: {email: \"Ops <ops@example.org>\"}\ncarp: {", `7: acme.email: "Ops <ops@example.org>": not an address like ops@example.org`},
	{"key type", "carp: {", "acme: {key_types: [rsa2048, ec257]}\ncarp: {", `7: acme.key_types[1]: "ec257": not one of ec256, ec384, rsa2048, rsa3072, rsa4096`},
	{"two of a family", "carp: {", "acme: {key_types: [ec256, rsa2048, ec384]}\ncarp: {", "7: acme.key_types[2]: ec384 after ec256: HAProxy holds one ecdsa certificate under a name"},
	{"profile", "carp: {", "acme: {profile: \"a b\"}\ncarp: {", `7: acme.profile: "a b": a profile's name has letters, digits, dot, dash and underscore`},
	{"half an account binding", "carp: {", "acme: {eab: {key_id: x}}\ncarp: {", "7: acme.eab: key_id and hmac_key_file belong together: give both or none"},
	{"binding with a line break", "carp: {", "acme: {eab: {key_id: \"x\\ny\", hmac_key_file: /k}}\ncarp: {", "7: acme.eab.key_id: has characters that are no text"},
	{"empty directory", "carp: {", "acme: {directory: \"\"}\ncarp: {", "7: acme.directory: missing"},
	{"directory without host", "carp: {", "acme: {directory: \"https:///x\"}\ncarp: {", "7: acme.directory: not a URL"},
	{"zerossl without binding", "carp: {", "acme: {directory: zerossl}\ncarp: {", "7: acme.eab: this CA makes accounts only with an external account binding: give key_id and hmac_key_file"},
	{"google without binding", "carp: {", "acme: {directory: google}\ncarp: {", "7: acme.eab: this CA makes accounts only with an external account binding: give key_id and hmac_key_file"},
	{"key in place of its file", "carp: {", "acme: {eab: {key_id: x, hmac_key_file: aHVzaA}}\ncarp: {", "7: acme.eab.hmac_key_file: not an absolute path"},

	{"no provider", "dns: {provider: hetzner}\n", "", "1: dns.provider: missing: the name of one of lego's DNS providers"},
	{"provider", "hetzner", "\"a b\"", `4: dns.provider: "a b": a provider's name has letters, digits and dashes`},
	{"resolver", "hetzner}", "hetzner, resolvers: [\"192.0.2.53:x\"]}", `4: dns.resolvers[0]: port "x": not between 1 and 65535`},
	{"resolver that is a URL", "hetzner}", "hetzner, resolvers: [\"https://dns.example.org/\"]}", `4: dns.resolvers[0]: "https://dns.example.org/": not host or host:port`},
	{"timeout", "hetzner}", "hetzner, propagation: {timeout: 0s}}", "4: dns.propagation.timeout: 0s: not between 1s and 24h0m0s"},
	{"negative interval", "hetzner}", "hetzner, propagation: {interval: -1s}}", "4: dns.propagation.interval: -1s: not between 10ms and 1h0m0s"},
	{"negative sequence", "hetzner}", "hetzner, propagation: {sequence: -1s}}", "4: dns.propagation.sequence: -1s: not between 0s and 24h0m0s"},
	{"certificate without provider", `"*.example.org"]`, `"*.example.org"], dns: {provider: ""}`, "6: certificates[0].dns.provider: missing: leave the key out for the provider of dns"},
	{"certificate's dns", `"*.example.org"]`, `"*.example.org"], dns: {propagation: {timeout: 1ms}}`, "6: certificates[0].dns.propagation.timeout: 1ms: not between 1s and 24h0m0s"},

	{"no certificates", minimal[strings.Index(minimal, "certificates:"):strings.Index(minimal, "carp:")], "certificates:\n", "5: certificates: none: name at least one"},
	{"certificate without a name", "name: example.org, ", "", "6: certificates[0].name: missing"},
	{"certificate without names", `[example.org, "*.example.org"]`, "[]", "6: certificates[0].domains: none: name at least one"},
	{"leading dot", "name: example.org", "name: .example", `6: certificates[0].name: ".example": a name has no leading dot`},
	{"path in a name", "name: example.org", "name: ../x", `6: certificates[0].name: "../x": a name has letters, digits, dot, dash and underscore only`},
	{"name of a wildcard", "name: example.org", `name: "*.example.org"`, `6: certificates[0].name: "*.example.org": a name has letters, digits, dot, dash and underscore only`},
	{"name of a key", "name: example.org", "name: example.KEY", `6: certificates[0].name: "example.KEY": HAProxy reads the suffix .key as something else`},
	{"name with pem", "name: example.org", "name: example.pem", `6: certificates[0].name: "example.pem": the file gets its .pem by itself: leave it out`},
	{"name that looks like an option", "name: example.org", "name: -v", `6: certificates[0].name: "-v": a name has no leading dash: it would be taken for an option`},
	{"hidden bundle", `"*.example.org"]`, `"*.example.org"], bundle: /x/.y.pem`, `6: certificates[0].bundle: ".y.pem": not the name of a file, or one with a leading dot, which HAProxy passes over`},
	{"bundle that is the root", `"*.example.org"]`, `"*.example.org"], bundle: /../`, `6: certificates[0].bundle: "/": not the name of a file, or one with a leading dot, which HAProxy passes over`},
	{"long bundle", `"*.example.org"]`, `"*.example.org"], bundle: /x/` + strings.Repeat("y", 129), "6: certificates[0].bundle: a file's name longer than 128 characters"},
	{"path with a line break", `"*.example.org"]`, `"*.example.org"], bundle: "/x\ny"`, "6: certificates[0].bundle: a path with characters that are no text"},
	{"long name", "name: example.org", "name: " + strings.Repeat("x", 129), "6: certificates[0].name: longer than 128 characters"},
	{"name twice", "carp: {", "  - {name: EXAMPLE.org, domains: [example.net]}\ncarp: {", `7: certificates[1].name: "example.org": certificates[0] (line 6) has it too`},
	{"domain twice", `"*.example.org"`, "Example.org.", `6: certificates[0].domains[1]: "example.org": certificates[0].domains[0] (line 6) has it too`},
	{"bundle with a suffix", `"*.example.org"]`, `"*.example.org"], bundle: /x/y.ocsp`, `6: certificates[0].bundle: "y.ocsp": HAProxy reads the suffix .ocsp as something else`},
	{"relative bundle", `"*.example.org"]`, `"*.example.org"], bundle: y.pem`, "6: certificates[0].bundle: not an absolute path"},
	{"one bundle for two", "carp: {", "  - {name: b, domains: [b.org], bundle: /usr/local/etc/haproxy/CERTS/../certs/example.org.pem}\ncarp: {", "7: certificates[1].bundle: writes the file of certificates[0], /usr/local/etc/haproxy/certs/example.org.pem"},
	{"bundles of one stem", "carp: {", "  - {name: b, domains: [b.org], key_types: [ec256, rsa2048], bundle: /usr/local/etc/haproxy/certs/example.org.pem}\ncarp: {", "7: certificates[1].bundle: writes the file of certificates[0], /usr/local/etc/haproxy/certs/example.org.pem"},
	{"second bundle over a key", `"*.example.org"]`, `"*.example.org"], key_types: [ec256, rsa2048], bundle: /x}` + "\nssh: {key_file: /x.rsa", "6: certificates[0].bundle: writes the file of ssh.key_file, /x.rsa"},
	{"bundle over haproxy.conf", `"*.example.org"]`, `"*.example.org"], bundle: /usr/local/etc/haproxy.conf`, "6: certificates[0].bundle: writes the file of haproxy[0].config, /usr/local/etc/haproxy.conf"},
	{"bundle over the SSH key", `"*.example.org"]`, `"*.example.org"], bundle: /usr/local/etc/certsync/id_ed25519`, "6: certificates[0].bundle: writes the file of ssh.key_file, /usr/local/etc/certsync/id_ed25519"},

	{"relative folder", "carp: {", "haproxy: [{bundle_dir: certs}]\ncarp: {", "7: haproxy[0].bundle_dir: not an absolute path"},
	{"empty socket", "carp: {", "haproxy: [{runtime_socket: \"\"}]\ncarp: {", "7: haproxy[0].runtime_socket: missing"},
	{"long socket", "carp: {", "haproxy: [{runtime_socket: /" + strings.Repeat("x", 103) + "}]\ncarp: {", "7: haproxy[0].runtime_socket: a unix socket's path has at most 103 bytes on FreeBSD, and this one 104"},
	{"long run_dir", "carp: {", "run_dir: /" + strings.Repeat("x", 89) + "\ncarp: {", "7: run_dir: a unix socket's path has at most 103 bytes on FreeBSD, and this one 104"},
	{"one HAProxy twice", "carp: {", "haproxy: [{}, {runtime_socket: /b}]\ncarp: {", `7: haproxy[1].config: "/usr/local/etc/haproxy.conf": haproxy[0] (line 7) has it too`},
	{"one socket twice", "carp: {", "haproxy: [{}, {config: /b}]\ncarp: {", `7: haproxy[1].runtime_socket: "/var/run/haproxy.sock": haproxy[0] (line 7) has it too`},
	{"one folder, two groups", "carp: {", "haproxy: [{}, {config: /b, runtime_socket: /b, bundle_group: www}]\ncarp: {", `7: haproxy[1].bundle_group: "www": another entry gives the same bundle_dir to ""`},
	{"group", "carp: {", "haproxy: [{bundle_group: \"a b\"}]\ncarp: {", `7: haproxy[0].bundle_group: "a b": not the name of an account`},
	{"long master socket", "carp: {", "haproxy: [{master_socket: /" + strings.Repeat("x", 103) + "}]\ncarp: {", "7: haproxy[0].master_socket: a unix socket's path has at most 103 bytes on FreeBSD, and this one 104"},
	{"master socket that is the other one", "carp: {", "haproxy: [{master_socket: /var/run/haproxy.sock}]\ncarp: {", `7: haproxy[0].master_socket: "/var/run/haproxy.sock": haproxy[0] (line 7) has it too`},
	{"relative further file", "carp: {", "haproxy: [{config_more: [conf.d]}]\ncarp: {", "7: haproxy[0].config_more[0]: not an absolute path"},
	{"reload in words for a shell", "carp: {", "haproxy: [{reload: [service haproxy reload]}]\ncarp: {", `7: haproxy[0].reload: "service haproxy reload": the first is the absolute path of a program, which is run without a shell: [/usr/sbin/service, haproxy, reload]`},
	{"check with a line break", "carp: {", "haproxy: [{check: [/bin/x, \"a\\nb\"]}]\ncarp: {", "7: haproxy[0].check: an argument that is no text, or longer than 1 KiB"},
	{"bundle over the master socket", "carp: {", "  - {name: b, domains: [b.org], bundle: /m.sock}\nhaproxy: [{master_socket: /m.sock}]\ncarp: {", "7: certificates[1].bundle: writes the file of haproxy[0].master_socket, /m.sock"},
	{"bundle over a further file", "carp: {", "  - {name: b, domains: [b.org], bundle: /etc/more.cfg}\nhaproxy: [{config_more: [/etc/more.cfg]}]\ncarp: {", "7: certificates[1].bundle: writes the file of haproxy[0].config_more[0], /etc/more.cfg"},
	{"verify without port", "carp: {", "haproxy: [{verify: [127.0.0.1]}]\ncarp: {", `7: haproxy[0].verify[0]: "127.0.0.1": not host:port, [v6]:port, unix@/path or /path`},
	{"verify without address", "carp: {", "haproxy: [{verify: [\":443\"]}]\ncarp: {", `7: haproxy[0].verify[0]: ":443": name an address to connect to, such as 127.0.0.1:8443: missing: an IP address or a host name`},
	{"verify a wildcard", "carp: {", "haproxy: [{verify: [\"0.0.0.0:443\"]}]\ncarp: {", `7: haproxy[0].verify[0]: "0.0.0.0:443": name an address to connect to, such as 127.0.0.1:8443: 0.0.0.0: not the address of a host`},
	{"verify port 0", "carp: {", "haproxy: [{verify: [\"[::1]:0\"]}]\ncarp: {", `7: haproxy[0].verify[0]: port "0": not between 1 and 65535`},
	{"verify a long socket", "carp: {", "haproxy: [{verify: [/" + strings.Repeat("x", 103) + "]}]\ncarp: {", "7: haproxy[0].verify[0]: a unix socket's path has at most 103 bytes on FreeBSD, and this one 104"},
	{"verify a relative socket", "carp: {", "haproxy: [{verify: [unix@x.sock]}]\ncarp: {", `7: haproxy[0].verify[0]: "unix@x.sock": not the absolute path of a unix socket`},
	{"state among the bundles", "carp: {", "state_dir: /usr/local/etc/haproxy/certs\ncarp: {", "1: haproxy[0].bundle_dir: the same folder as state_dir: each needs one of its own"},
	{"listen without a port", "carp: {", "listen: 127.0.0.1\ncarp: {", `7: listen: "127.0.0.1": not HOST:PORT, such as 127.0.0.1:9180 or [::1]:9180`},
	{"listen on everything", "carp: {", "listen: 0.0.0.0:9180\ncarp: {", `7: listen: "0.0.0.0:9180": ` + notLoopback},
	{"listen on no host", "carp: {", "listen: \":9180\"\ncarp: {", `7: listen: ":9180": the host is not a loopback address: use 127.0.0.1 or [::1]`},
	{"listen on a virtual address", "carp: {", "listen: \"[2001:db8::10]:9180\"\ncarp: {", `7: listen: "[2001:db8::10]:9180": ` + notLoopback},
	{"listen on an interface", "carp: {", "listen: \"[::1%lo0]:9180\"\ncarp: {", `7: listen: "[::1%lo0]:9180": ` + notLoopback},
	{"listen on a name", "carp: {", "listen: proxy1:9180\ncarp: {", `7: listen: "proxy1:9180": the host is not a loopback address: use 127.0.0.1 or [::1]`},
	{"listen on port 0", "carp: {", "listen: 127.0.0.1:0\ncarp: {", `7: listen: "127.0.0.1:0": the port is not between 1 and 65535`},
	{"listen on a named port", "carp: {", "listen: 127.0.0.1:http\ncarp: {", `7: listen: "127.0.0.1:http": the port is not between 1 and 65535`},
	{"one folder for both", "carp: {", "run_dir: /var/db/certsync\ncarp: {", "7: run_dir: the same folder as state_dir: each needs one of its own"},

	{"no carp", "carp: {role: static:proxy1}", "", "1: carp.vhids: none: role auto reads the role from them; without CARP, set role to static:NODE, where NODE is to be MASTER"},
	{"role auto without vhids", "static:proxy1", "auto", "7: carp.vhids: none: role auto reads the role from them; without CARP, set role to static:NODE, where NODE is to be MASTER"},
	{"no role", "{role: static:proxy1}", "{role: \"\"}", `7: carp.role: "": not auto or static:NODE`},
	{"role", "static:proxy1", "master", `7: carp.role: "master": not auto or static:NODE`},
	{"nothing to demote in", "{role: static:proxy1}", "{role: static:proxy1, demote_unready: true}", `7: carp.demote_unready: true with role "static:proxy1": there is no CARP to demote a node in`},
	{"a demotion that nobody follows", "{role: static:proxy1}", "{preempt: false, demote_unready: true, vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32]}]}", `7: carp.demote_unready: true with preempt off: the others leave a demoted MASTER where it is; turn preempt on`},
	{"role of nobody", "static:proxy1", "static:proxy3", `7: carp.role: "proxy3": not one of the nodes (proxy1, proxy2)`},
	{"user", "carp: {", "ssh: {user: -oProxyCommand}\ncarp: {", `7: ssh.user: "-oProxyCommand": not the name of an account`},
	{"empty user", "carp: {", "ssh: {user: \"\"}\ncarp: {", "7: ssh.user: missing"},
	{"key file", "carp: {", "ssh: {key_file: ~/.ssh/id}\ncarp: {", "7: ssh.key_file: not an absolute path"},
	{"concurrency", "carp: {", "renew: {concurrency: 0}\ncarp: {", "7: renew.concurrency: 0: not between 1 and 1000"},
	{"much concurrency", "carp: {", "renew: {concurrency: 1001}\ncarp: {", "7: renew.concurrency: 1001: not between 1 and 1000"},
}

func TestEachMistakeIsToldOnceWithItsLine(t *testing.T) {
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			want := strings.Split("certsync.yaml:"+strings.ReplaceAll(m.want, "\n", "\ncertsync.yaml:"), "\n")
			if got := messages(t, edit(t, m.old, m.new)); !slices.Equal(got, want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
		})
	}
}

func TestAllMistakesAreToldAtOnceInTheOrderOfTheFile(t *testing.T) {
	got := messages(t, `carp: {role: static:c}
renew: {concurrency: 0}
nodes: [{name: a, address: a.example.org, prot: 1}]
certificates:
  - {name: x, domains: [a b], key_types: [ec257]}
  - {name: x, domains: [example.org]}
dns: {provider: [], resolvers: [":"], propagation: {timeout: 1}}
`)
	want := []string{
		"certsync.yaml:1: carp.role: \"c\": not one of the nodes (a)",
		"certsync.yaml:2: renew.concurrency: 0",
		`certsync.yaml:3: nodes[0]: unknown key "prot"; the nearest is "port"`,
		`certsync.yaml:5: certificates[0].domains[0]: "a b"`,
		`certsync.yaml:5: certificates[0].key_types[0]: "ec257"`,
		"certsync.yaml:6: certificates[1].name:",
		"certsync.yaml:7: dns.provider: want text",
		"certsync.yaml:7: dns.propagation.timeout: want a duration",
		"certsync.yaml:7: dns.resolvers[0]: missing",
	}
	if len(got) != len(want) {
		t.Fatalf("%d errors, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("error %d is %q, want %q...", i, got[i], want[i])
		}
	}
}

func TestAMistakeInABlockNamesTheLineOfItsKey(t *testing.T) {
	got := messages(t, `nodes:
  - name: a
    address: a.example.org
  - name:
      - b
    address: b.example.org

carp:
  # a comment
  role: static:b

dns:

  propagation:
    timeout: 1m
certificates:
  - name: x
    domains:

      - "*"
`)
	want := []string{
		"certsync.yaml:4: nodes[1].name: want text, found a list",
		"certsync.yaml:12: dns.provider: missing: the name of one of lego's DNS providers",
		`certsync.yaml:20: certificates[0].domains[0]: "*": a wildcard is the whole first label, as in *.example.org`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTruthIsReadInEverySpelling(t *testing.T) {
	for text, want := range map[string]bool{"true": true, "True": true, "TRUE": true, "false": false, "False": false} {
		if got := mustParse(t, edit(t, "hetzner}", "hetzner, propagation: {check: "+text+"}}")).DNS.Propagation.Check; got != want {
			t.Errorf("%s was read as %t", text, got)
		}
	}
}

func TestWhatIsSoundIsAccepted(t *testing.T) {
	for name, text := range map[string]string{
		"a provider for each certificate": strings.Replace(edit(t, "dns: {provider: hetzner}\n", ""), `.org"]`, `.org"], dns: {provider: x}`, 1),
		"HAProxies that share a folder":   edit(t, "carp: {", "haproxy: [{}, {config: /b, runtime_socket: /b}]\ncarp: {"),
		"a domain under its wildcard":     edit(t, `"*.example.org"`, `"*.example.org", www.example.org`),
		"one domain in two certificates":  edit(t, "carp: {", "  - {name: b, domains: [example.org]}\ncarp: {"),
		"both kinds of key":               edit(t, `"*.example.org"]`, `"*.example.org"], key_types: [rsa2048, ec256], bundle: /x/y.pem`),
		"a single host":                   edit(t, `  - {name: proxy2, address: "2001:db8::12"}`+"\n", ""),
		"zerossl with its binding":        edit(t, "carp: {", "acme: {directory: zerossl, eab: {key_id: x, hmac_key_file: /k}}\ncarp: {"),
		"the longest socket":              edit(t, "carp: {", "haproxy: [{runtime_socket: /"+strings.Repeat("x", 102)+"}]\ncarp: {"),
		"the longest run_dir":             edit(t, "carp: {", "run_dir: /"+strings.Repeat("x", 88)+"\ncarp: {"),
		"nothing after a key":             edit(t, "carp: {", "acme:\nssh: {user: }\nhaproxy: ~\ncarp: {"),
		"a BOM and CRLF":                  "\ufeff" + strings.ReplaceAll(minimal, "\n", "\r\n"),
		"as JSON":                         `{"nodes":[{"name":"a","address":"b"}],"dns":{"provider":"x"},"certificates":[{"name":"a","domains":["a.org"]}],"carp":{"role":"static:a"}}`,
		"a document's mark":               "---\n" + minimal + "...\n",
	} {
		if _, err := Parse("f", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatACertificateInheritsIsToldWrongOnce(t *testing.T) {
	text := edit(t, "dns: {provider: hetzner}", "dns: {provider: hetzner, env_file: x, resolvers: [a b], propagation: {interval: 0s}}\nacme: {key_types: [dsa]}")
	if got := messages(t, text); len(got) != 4 {
		t.Errorf("%d errors, want 4:\n%s", len(got), strings.Join(got, "\n"))
	}
}

func TestErrorsCanBeTakenApart(t *testing.T) {
	_, err := Parse("x.yaml", []byte(edit(t, "hetzner}", "hetzner, x: 1, y: 2}")))
	all, ok := errors.AsType[Errors](err)
	if !ok || len(all) != 2 {
		t.Fatalf("%T %v, want two Errors", err, err)
	}
	one, ok := errors.AsType[*Error](fmt.Errorf("wrapped: %w", err))
	if !ok || one.File != "x.yaml" || one.Line != 4 || one.Path != "dns" {
		t.Errorf("the first is %+v", one)
	}
}

func TestTextThatIsNoConfigurationIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "certsync.yaml:1: empty: "},
		"comments only":      {"# nothing\n", "certsync.yaml:1: empty: "},
		"null":               {"---\n~\n", "certsync.yaml:1: empty: "},
		"text":               {"hello", "certsync.yaml:1: want keys with values, found text"},
		"a list":             {"- a\n", "certsync.yaml:1: want keys with values, found a list"},
		"two documents":      {minimal + "---\nx: 1\n", "certsync.yaml:8: a second YAML document"},
		"two documents, bad": {minimal + "---\nx: [\n", "certsync.yaml:"},
		"latin-1":            {"nodes:\n# caf\xe9\n", "certsync.yaml:2: not UTF-8 text"},
		"utf-16":             {"\xff\xfen\x00o\x00", "certsync.yaml:1: not UTF-8 text"},
		"NUL":                {"nodes:\n \x00\n", "certsync.yaml:2: not UTF-8 text"},
		"tab":                {"nodes:\n\t- x\n", "certsync.yaml:2: not YAML: "},
		"open bracket":       {"nodes: [\n", "certsync.yaml:"},
		"unknown alias":      {"\nnodes: *x\n", "certsync.yaml:2: not YAML: unknown anchor 'x' referenced"},
		"too large":          {strings.Repeat("#", MaxSize+1), "certsync.yaml: larger than 4096 KiB"},
		"deep":               {strings.Repeat("[", 100_000), "certsync.yaml"},
		"deep block":         {strings.Repeat("- ", 100_000), "certsync.yaml"},
		"JSON with a tab":    {"{\"a\":\t1}", `certsync.yaml:1: unknown key "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			got := messages(t, c.text)
			if !strings.HasPrefix(got[0], c.want) {
				t.Errorf("got %.300q, want %q...", got, c.want)
			}
		})
	}
}

func TestAYAMLErrorNamesTheLineWhereItIs(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1\nb: [1, 2\nc: 3\n": "f:2: not YAML: did not find expected ',' or ']'",
		"a: 1\nb: {x: 1\nc: 3\n": "f:2: not YAML: did not find expected ',' or '}'",
		"a: 1\n  b: 2\n":         "f:2: not YAML: mapping values are not allowed",
		"a: 1\nb: c: d\n":        "f:2: not YAML: mapping values are not allowed",
		"a: 1\nb: @x\n":          "f:2: not YAML: found character that cannot start any token",
		"a:\n - 1\n c: 2\n":      "f:2: not YAML: did not find expected '-' indicator",
		"a: \"\\q\"\n":           "f:1: not YAML: found unknown escape character",
		"nodes: [}\n":            "f:1: not YAML: did not find expected node content",
		"\n\nnodes: [}\n":        "f:3: not YAML: did not find expected node content",
		"\n\na: &x [*y]\n":       "f:3: not YAML: unknown anchor 'y' referenced",
	} {
		_, err := Parse("f", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestAliasesAreRead(t *testing.T) {
	c := mustParse(t, edit(t, "carp: {", `haproxy:
  - {bundle_dir: &dir /certs, verify: &v ["127.0.0.1:1"]}
  - {config: /b, runtime_socket: /b, bundle_dir: *dir, verify: *v}
carp: {`))
	if h := c.HAProxy[1]; h.BundleDir != "/certs" || !slices.Equal(h.Verify, []string{"127.0.0.1:1"}) {
		t.Errorf("the second entry is %+v", h)
	}
}

func TestAnAliasThatIsWrongNamesTheLineOfItsUse(t *testing.T) {
	got := messages(t, edit(t, "carp: {", "state_dir: &x relative\nrun_dir: *x\ncarp: {"))
	want := []string{"certsync.yaml:7: state_dir: not an absolute path", "certsync.yaml:8: run_dir: not an absolute path"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAliasesThatMultiplyAreRefused(t *testing.T) {
	domains := "[" + strings.Repeat("a.org,", 2000) + "]"
	var b strings.Builder
	b.WriteString("certificates:\n  - {name: a, domains: &d " + domains + "}\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "  - {name: a%d, domains: *d}\n", i)
	}
	got := messages(t, b.String())
	if !strings.Contains(strings.Join(got, "\n"), "more than 200000 values: aliases that multiply") {
		t.Errorf("got %.500q", got)
	}
	lol := "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\nnodes: *d\n"
	if got := messages(t, lol); len(got) > maxErrors+1 {
		t.Errorf("%d errors", len(got))
	}
	if got := messages(t, "nodes: &n [*n, *n]\n"); len(got) > maxErrors+1 {
		t.Errorf("%d errors", len(got))
	}
}

func TestManyMistakesAreCutOff(t *testing.T) {
	got := messages(t, strings.Repeat("{}: 1\n", 100)+strings.Repeat("x", 1000)+": 1\n"+strings.Repeat("k: 1\n", 200_000))
	if len(got) != maxErrors+1 || !strings.Contains(got[maxErrors], "and more than these 100 errors") {
		t.Errorf("%d errors, the last: %.200q", len(got), got[len(got)-1])
	}
}

func TestNoErrorShowsASecretInTheWrongPlace(t *testing.T) {
	const hush = "hush-hush-hush"
	for _, text := range []string{
		"acme: {eab: " + hush + "}", "acme: {eab: {hmac_key_file: " + hush + "}}", "acme: {eab: {hmac_key: " + hush + "}}",
		"acme: {eab: {hmac_key_file: [" + hush + "]}}", "dns: {env_file: HETZNER_API_KEY=" + hush + "}", "dns: {env: {KEY: " + hush + "}}",
		"ssh: {key_file: " + hush + "}", "acme: {directory: \"https://u:" + hush + "@x/\"}", "acme: {directory: \"https://u:" + hush + "@x:y/\"}",
	} {
		for _, line := range messages(t, text) {
			if strings.Contains(line, hush) {
				t.Errorf("%s: %s", text, line)
			}
		}
	}
}

func TestDomainsAreBroughtToOneForm(t *testing.T) {
	label := strings.Repeat("a", 63)
	for in, want := range map[string]string{
		"example.org": "example.org", "EXAMPLE.org": "example.org", "example.org.": "example.org", "*.Example.org": "*.example.org",
		"xn--mnchen-3ya.example": "xn--mnchen-3ya.example", "a-b.1c.example": "a-b.1c.example", "1.2.3.example": "1.2.3.example", label + ".org": label + ".org",
	} {
		if got, err := normalDomain(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "missing", ".": "empty label", "..": "empty label", "a..org": "empty label", ".org": "empty label", "a.org..": "empty label", "*": "wildcard", "*.": "wildcard",
		"*.*.org": "wildcard", "a.*.org": "wildcard", "*a.org": "wildcard", "a*.org": "wildcard", "192.0.2.1": "IP address", "::1": "IP address", "[::1]": "IP address",
		"1.2.3": "last label is a number", "a_b.org": "letters, digits and hyphens", "a b.org": "letters, digits and hyphens", "-a.org": "hyphen", "a-.org": "hyphen",
		"a.org\n": "letters", "a.org:443": "letters", "https://a.org": "letters", label + "a.org": "longer than 63", strings.Repeat("a.", 126) + "org": "longer than 253",
		"münchen.example": `"xn--mnchen-3ya.example"`, "*.MÜNCHEN.example": `"*.xn--mnchen-3ya.example"`, "a\u200b.org": "A-label", "a\u0378.org": "A-label form (xn--...)", "\u212a.org": "A-label",
		"*." + strings.Repeat("a.", 125) + "org": "longer than 253",
	} {
		if got, err := normalDomain(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestSelfIsFoundByNodeOrByTheHostsName(t *testing.T) {
	two := []Node{{Name: "proxy1"}, {Name: "proxy2.example.org"}, {Name: "proxy2"}}
	for _, c := range []struct{ node, hostname, want string }{
		{"", "proxy1", "proxy1"}, {"", "PROXY1", "proxy1"}, {"", "proxy1.example.org", "proxy1"}, {"proxy2", "proxy1", "proxy2"},
		{"", "proxy2.example.org", "proxy2.example.org"}, {"", "proxy2.example.net", "proxy2"}, {"", "proxy2", "proxy2"},
		{"", "proxy3", ""}, {"", "", ""}, {"", "1.proxy1", ""}, {"", ".", ""},
	} {
		got, err := (&Config{Node: c.node, Nodes: two, file: "f"}).Self(c.hostname)
		if got.Name != c.want || (err == nil) != (c.want != "") {
			t.Errorf("node %q, host name %q: %q, %v; want %q", c.node, c.hostname, got.Name, err, c.want)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, cluster.ErrUsage) || !strings.Contains(err.Error(), "proxy1, proxy2.example.org, proxy2") || !strings.Contains(cluster.HintOf(err), "node:") {
			t.Errorf("error %v, hint %q", err, cluster.HintOf(err))
		}
	}
}

func TestPeersAreAllOthers(t *testing.T) {
	c := mustParse(t, minimal)
	if got := c.Peers("proxy1"); len(got) != 1 || got[0].Name != "proxy2" {
		t.Errorf("peers of proxy1: %v", got)
	}
	if len(c.Nodes) != 2 {
		t.Errorf("Peers changed the nodes: %v", c.Nodes)
	}
}

func TestDirectoriesHaveNames(t *testing.T) {
	for name, want := range map[string][2]string{
		"letsencrypt":              {"https://acme-v02.api.letsencrypt.org/directory", "https://acme-staging-v02.api.letsencrypt.org/directory"},
		"letsencrypt-staging":      {"https://acme-staging-v02.api.letsencrypt.org/directory", "https://acme-staging-v02.api.letsencrypt.org/directory"},
		"zerossl":                  {"https://acme.zerossl.com/v2/DV90", ""},
		"google":                   {"https://dv.acme-v02.api.pki.goog/directory", "https://dv.acme-v02.test-api.pki.goog/directory"},
		"https://ca.example.org/x": {"https://ca.example.org/x", ""},
	} {
		staging, ok := StagingURL(name)
		if got := DirectoryURL(name); got != want[0] || staging != want[1] || ok != (want[1] != "") {
			t.Errorf("%s: %s, %s, %t; want %s", name, got, staging, ok, want)
		}
	}
}

func TestDigestTellsWhatIsIssuedAndNothingElse(t *testing.T) {
	base := mustParse(t, minimal).Digest()
	if len(base) != 64 {
		t.Fatalf("digest %q is not a SHA-256", base)
	}
	for name, text := range map[string]string{
		"other order of keys":   "carp: {role: static:proxy1}\ncertificates: [{domains: ['*.example.org', EXAMPLE.org.], name: example.org}]\ndns: {provider: hetzner}\nnodes: [{name: proxy1, address: a}]",
		"defaults written out":  edit(t, "hetzner}", "hetzner, resolvers: [], propagation: {check: true, timeout: 120s}}\nacme: {directory: letsencrypt, key_types: [ec256], eab: {}}"),
		"directory as URL":      edit(t, "carp: {", "acme: {directory: \"https://acme-v02.api.letsencrypt.org/directory\", staging: letsencrypt-staging}\ncarp: {"),
		"inherited written out": edit(t, `"*.example.org"]`, `"*.example.org"], key_types: [ec256], dns: {provider: hetzner}`),
		"no key types":          edit(t, "carp: {", "acme: {key_types: []}\ncarp: {"),
		"a bundle of its own":   edit(t, `"*.example.org"]`, `"*.example.org"], bundle: /x.pem`),
		"other nodes and paths": edit(t, "carp: {", "node: proxy2\nstate_dir: /x\nrenew: {concurrency: 3}\nhaproxy: [{bundle_dir: /y}]\ncarp: {"),
	} {
		if got := mustParse(t, text).Digest(); got != base {
			t.Errorf("%s: another digest", name)
		}
	}
	seen := map[string]string{base: "minimal"}
	for name, text := range map[string]string{
		"directory":        edit(t, "carp: {", "acme: {directory: letsencrypt-staging}\ncarp: {"),
		"profile":          edit(t, "carp: {", "acme: {profile: shortlived}\ncarp: {"),
		"key types":        edit(t, "carp: {", "acme: {key_types: [rsa2048]}\ncarp: {"),
		"own key types":    edit(t, `"*.example.org"]`, `"*.example.org"], key_types: [rsa2048]`),
		"two key types":    edit(t, `"*.example.org"]`, `"*.example.org"], key_types: [rsa2048, ec256]`),
		"provider":         edit(t, "hetzner", "rfc2136"),
		"own provider":     edit(t, `"*.example.org"]`, `"*.example.org"], dns: {provider: rfc2136}`),
		"domain":           edit(t, `"*.example.org"`, "www.example.org"),
		"fewer domains":    edit(t, `, "*.example.org"`, ""),
		"name":             edit(t, "name: example.org", "name: example.net"),
		"one more":         edit(t, "carp: {", "  - {name: b, domains: [b.org]}\ncarp: {"),
		"email":            edit(t, "carp: {", "acme: {email: a@b.org}\ncarp: {"),
		"propagation":      edit(t, "hetzner}", "hetzner, propagation: {check: false}}"),
		"resolvers":        edit(t, "hetzner}", "hetzner, resolvers: [a]}"),
		"other resolvers":  edit(t, "hetzner}", "hetzner, resolvers: [a, b]}"),
		"joined resolvers": edit(t, "hetzner}", "hetzner, resolvers: [a-b]}"),
	} {
		got := mustParse(t, text).Digest()
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[got] = name
	}
}

// A version with more options must give the same digest for a configuration that does not use them: while the nodes of
// a pair run different versions, nothing but the issued would be renewed.
func TestDigestLinesStay(t *testing.T) {
	text := edit(t, `"*.example.org"]`, `"*.example.org"], key_types: [rsa2048, ec256], dns: {resolvers: [b, a]}`)
	got := mustParse(t, text).digestLines()
	want := []string{
		`certificates["example.org"].dns.resolvers=["b:53" "a:53"]`,
		`certificates["example.org"].domains=["*.example.org" "example.org"]`,
		`certificates["example.org"].key_types=["ec256" "rsa2048"]`,
		`certificates["example.org"].name="example.org"`,
		`dns.provider="hetzner"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLoadTellsWhyAFileCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, MaxSize+1); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "no such file",
		dir:                             "not a regular file",
		fifo:                            "not a regular file",
		big:                             "larger than 4096 KiB",
	} {
		_, err := Load(path)
		if err == nil || !strings.HasPrefix(err.Error(), "read configuration "+path+": ") || !strings.Contains(err.Error(), want) || !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	_, err := Load(filepath.Join(dir, "none.yaml"))
	if cluster.HintOf(err) == "" {
		t.Error("no hint for a configuration that is missing")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	if shipped, err := os.ReadFile(shippedPath); err == nil {
		f.Add(shipped)
	}
	for _, m := range mistakes {
		f.Add([]byte(strings.Replace(minimal, m.old, m.new, 1)))
	}
	f.Add([]byte("nodes: &n [*n]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			if !errors.Is(err, cluster.ErrUsage) || c != nil {
				t.Errorf("error %v with configuration %v", err, c)
			}
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f:") {
					t.Errorf("an error's line without the file: %q", line)
				}
			}
			return
		}
		if len(c.Nodes) == 0 || len(c.Certificates) == 0 || len(c.HAProxy) == 0 || c.DNS.Provider == "" && c.Certificates[0].DNS.Provider == "" {
			t.Errorf("accepted without what must be there: %+v", c)
		}
		for _, one := range c.Certificates {
			if len(one.KeyTypes) == 0 || len(one.KeyTypes) > 2 || len(one.Domains) == 0 || filepath.Base(one.Name) != one.Name {
				t.Errorf("accepted certificate %+v", one)
			}
		}
		if _, err := c.Self(c.Nodes[0].Name); err != nil {
			t.Errorf("no self: %v", err)
		}
		again, err := Parse("f", data)
		if err != nil || again.Digest() != c.Digest() || !reflect.DeepEqual(again, c) {
			t.Errorf("not the same the second time: %v", err)
		}
	})
}
