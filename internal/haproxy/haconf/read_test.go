package haconf

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func env(values ...string) lookup {
	return func(name string) (string, truth) {
		for i := 0; i < len(values); i += 2 {
			if values[i] == name {
				return values[i+1], yes
			}
		}
		return "", no
	}
}

func TestWordsAreCutAsHAProxyCutsThem(t *testing.T) {
	e := env("A", "one", "LIST", " two  words ", "EMPTY", "", "_U", "under")
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", nil}, {"   \t ", nil}, {"# only a comment", nil}, {"a b\tc", []string{"a", "b", "c"}}, {"a # b", []string{"a"}}, {"a#b c", []string{"a"}},
		{`a\#b "c#d" '#'`, []string{"a#b", "c#d", "#"}}, {"a b\r", []string{"a", "b"}}, {`a\ b c`, []string{"a b", "c"}},
		{`"a b" 'c d'`, []string{"a b", "c d"}}, {`a"b c"d'e f'g`, []string{"ab cde fg"}}, {`"" ''`, []string{"", ""}},
		{`"it's" 'say "x"'`, []string{"it's", `say "x"`}}, {`\"a\' b`, []string{`"a'`, "b"}}, {`'a\b' "a\"b"`, []string{`a\b`, `a"b`}},
		{`\t\n\r`, []string{"\t\n\r"}}, {`\x41\x7a`, []string{"Az"}}, {`\1 \a`, []string{`\1`, `\a`}}, {`a \`, []string{"a", `\`}},
		{`$A "$A" "${A}" '$A' "\$A" \$A`, []string{"$A", "one", "one", "$A", "$A", `\$A`}}, {`"x${A}y" "$A/b"`, []string{"xoney", "one/b"}},
		{`"${NONE-dflt}" "${A-dflt}" "${NONE}" "${EMPTY-x}"`, []string{"dflt", "one", "", ""}}, {`"$_U"`, []string{"under"}},
		{`"${LIST[*]}" z`, []string{"two", "words", "z"}}, {`"${NONE[*]}" z`, []string{"z"}}, {`a "${EMPTY[*]}"`, []string{"a"}},
	} {
		got, err := split(c.line, e)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.line, got, err, c.want)
		}
	}
	for _, line := range []string{`"a`, `'a`, `\x4`, `\xzz`, `"${A"`, `"${A[1]}"`, `"$1"`, `"$"`, `"${A x}"`, strings.Repeat("a ", 65)} {
		if got, err := split(line, e); err == nil {
			t.Errorf("%s: %q, want an error", line, got)
		}
	}
}

func TestAQuotedWordIsReadAsThatWord(t *testing.T) {
	for _, word := range []string{"", "plain", "/a b", `a"b`, "it's", `\`, "$A", "#x", "a\tb", "ü", "a\nb"} {
		if got, err := split(Quote(word), env("A", "one")); err != nil || len(got) != 1 || got[0] != word {
			t.Errorf("%q is written %s and read as %q, %v", word, Quote(word), got, err)
		}
	}
}

func TestConditions(t *testing.T) {
	e := func(name string) (string, truth) {
		if name == "LOST" {
			return "", maybe
		}
		return env("A", "one")(name)
	}
	for _, c := range []struct {
		text string
		want truth
	}{
		{"", no}, {"1", yes}, {"0", no}, {"!0", yes}, {"! ! 1", yes}, {"defined(A)", yes}, {"defined(B)", no}, {"defined(LOST)", maybe},
		{"streq(a,a)", yes}, {"streq(a,b)", no}, {"strneq(a,b)", yes}, {`streq("a,b",'a,b')`, yes}, {`streq(a\ b,"a b")`, yes}, {"strstr(abc,b)", yes},
		{"1 && 0", no}, {"1 || 0", yes}, {"0 && 0 || 1", yes}, {"1 || 0 && 0", yes}, {"(1 || 0) && 0", no}, {"!(1 && 0)", yes},
		{"version_atleast(3.0)", yes}, {"version_atleast(3.0.12)", no}, {"version_before(3.2-dev1)", yes}, {"version_atleast(2.6-dev0)", yes},
		{"feature(OPENSSL)", maybe}, {"feature(QUIC) && 0", no}, {"feature(QUIC) || 1", yes}, {"!feature(QUIC)", maybe}, {"enabled(POLL)", maybe},
	} {
		if got, err := evaluate(c.text, e, "3.0.11-1+deb13u4"); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"(", "(1", "1)", "&&", "1 &&", "1 1", "streq(a", "!", "1 & 1", strings.Repeat("(", 5000)} {
		if got, err := evaluate(text, e, ""); err == nil {
			t.Errorf("%.20s: %v, want an error", text, got)
		}
	}
	if got, _ := evaluate("version_atleast(1.0)", e, ""); got != maybe {
		t.Errorf("a version that is not known: %v", got)
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"3.0.11", "3.0", 1}, {"3.0", "3.0.0", 0}, {"2.10", "2.9", 1}, {"3.2-dev5", "3.2", -1}, {"3.2-dev5", "3.2-dev4", 1}, {"3.2-dev5", "3.1.9", 1}} {
		if got := compareVersions(c.a, c.b); (got > 0) != (c.want > 0) || (got < 0) != (c.want < 0) {
			t.Errorf("%s against %s: %d", c.a, c.b, got)
		}
	}
}

// write puts files into a folder of its own; DIR in them is that folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readText(t *testing.T, text string, o Options) *Config {
	t.Helper()
	dir := write(t, map[string]string{"haproxy.cfg": text})
	return Read([]string{filepath.Join(dir, "haproxy.cfg")}, o)
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{":443", "tcp 0.0.0.0 443-443"}, {"*:443", "tcp 0.0.0.0 443-443"}, {"0.0.0.0:443", "tcp 0.0.0.0 443-443"}, {":::443", "tcp :: 443-443"},
		{"[::]:443", "tcp :: 443-443"}, {"::1:443", "tcp ::1 443-443"}, {"[2001:db8::1]:8443", "tcp 2001:db8::1 8443-8443"},
		{"192.0.2.1:80-89", "tcp 192.0.2.1 80-89"}, {"ipv4@:1", "tcp 0.0.0.0 1-1"}, {"ipv6@:1", "tcp :: 1-1"}, {"ipv6@*:1", "tcp :: 1-1"}, {"ipv6@::1:1", "tcp ::1 1-1"},
		{"tcp4@1.2.3.4:5", "tcp 1.2.3.4 5-5"}, {"stream+ipv4@1.2.3.4:5", "tcp 1.2.3.4 5-5"}, {"mptcp@1.2.3.4:5", "tcp 1.2.3.4 5-5"},
		{"quic4@:443", "quic 0.0.0.0 443-443"}, {"quic6@[::1]:443", "quic ::1 443-443"}, {"quic+ip@:443", "quic 0.0.0.0 443-443"},
		{"/run/x.sock", "unix /run/x.sock"}, {"unix@/run/x.sock", "unix /run/x.sock"}, {"uxst@/run/x.sock", "unix /run/x.sock"}, {"unix@x.sock", "unix x.sock"},
		{"abns@name", "abns"}, {"abnsz@name", "abns"}, {"fd@3", "fd"}, {"sockpair@4", "sockpair"}, {"rhttp@be/srv", "rhttp"}, {"uxdg@/run/x", "dgram"}, {"udp@:53", "dgram"},
		{"www.example.org:443", "tcp www.example.org 443-443"}, {"$HOST:443", "tcp 192.0.2.7 443-443"}, {"${HOST}:443", "tcp 192.0.2.7 443-443"}, {"192.0.2.1:$PORT", "tcp 192.0.2.1 8443-8443"},
	} {
		cfg := readText(t, "frontend f\n  bind "+c.text+" ssl crt x\n", Options{Env: func(name string) (string, bool) {
			value, set := env("HOST", "192.0.2.7", "PORT", "8443")(name)
			return value, set == yes
		}})
		if len(cfg.Problems) > 0 || len(cfg.Binds) != 1 || len(cfg.Binds[0].Addresses) != 1 {
			t.Errorf("%s: %+v", c.text, cfg)
			continue
		}
		a := cfg.Binds[0].Addresses[0]
		got := string(a.Kind)
		switch {
		case a.Kind == Unix:
			got += " " + a.Path
		case a.Host != "":
			got += fmt.Sprintf(" %s %d-%d", a.Host, a.Port, a.LastPort)
		case a.IP.IsValid():
			got += fmt.Sprintf(" %s %d-%d", a.IP, a.Port, a.LastPort)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
	}
	for _, text := range []string{"192.0.2.1", ":", ":0", ":65536", ":9-8", ":http", "[::1]", "$NONE", "ipv4@::1:443", "ipv6@1.2.3.4:443", "a b:1"} {
		cfg := readText(t, "frontend f\n  bind "+Quote(text)+" ssl crt x\n", Options{Env: func(string) (string, bool) { return "", false }})
		if len(cfg.Problems) == 0 || len(cfg.Binds[0].Addresses) != 0 {
			t.Errorf("%s: %+v, %v", text, cfg.Binds[0].Addresses, cfg.Problems)
		}
	}
}

func TestABindLineIsReadWithAllThatIsOnIt(t *testing.T) {
	c := readText(t, `global
  crt-base /etc/certs
  unix-bind prefix /jail mode 600
  stats socket /run/a.sock mode 660 level admin expose-fd listeners
  stats socket ipv4@127.0.0.1:9999
  ssl-default-bind-options ssl-min-ver TLSv1.3
  chroot /var/empty
  master-worker
  tune.bufsize 32768
frontend web
  stats uri /x
  bind 192.0.2.1:443,[2001:db8::1]:443,/x.sock name crt ssl crt a.pem crt /abs/b.pem crt dir/ crt @store/c default-crt d.pem strict-sni alpn h2,http/1.1
  bind :444 v4v6 accept-proxy interface eth0 ssl crt a.pem ssl-min-ver TLSv1.2 verify required ca-verify-file /ca.pem ca-file /ca.pem
  bind :445
listen l
  bind :446 ssl crt a.pem no-tlsv12 accept-netscaler-cip 0x1234 transparent namespace blue
`, Options{})
	if len(c.Problems) > 0 {
		t.Fatal(c.Problems)
	}
	if c.Chroot != "/var/empty" || !c.MasterWorker || c.Bufsize != 32768 {
		t.Errorf("%+v", c)
	}
	if len(c.Sockets) != 2 || c.Sockets[0].Address.Path != "/run/a.sock" || c.Sockets[0].Level != "admin" || !c.Sockets[0].ExposeFD || c.Sockets[1].Level != "operator" || c.Sockets[1].ExposeFD {
		t.Errorf("sockets: %+v", c.Sockets)
	}
	if len(c.Binds) != 4 {
		t.Fatalf("%d binds", len(c.Binds))
	}
	b := c.Binds[0]
	want := []Crt{{"/etc/certs/a.pem", "/etc/certs/a.pem"}, {"/abs/b.pem", "/abs/b.pem"}, {"/etc/certs/dir", "/etc/certs/dir"}, {"@store/c", ""}, {"/etc/certs/d.pem", "/etc/certs/d.pem"}}
	if !reflect.DeepEqual(b.Crts, want) || !b.SSL || !b.StrictSNI || !b.NoTLS12 || len(b.Addresses) != 3 || b.Addresses[2].Path != "/jail/x.sock" || b.String() != "frontend web" {
		t.Errorf("%+v\n%+v", b, b.Crts)
	}
	if got := strings.Join(b.Arguments, " "); got != "ssl crt a.pem crt /abs/b.pem crt dir/ crt @store/c default-crt d.pem" {
		t.Errorf("arguments: %s", got)
	}
	if b = c.Binds[1]; !b.V4V6 || !b.AcceptProxy || b.Interface != "eth0" || b.NoTLS12 || b.ClientCertificate != "required" {
		t.Errorf("%+v", b)
	}
	if b = c.Binds[2]; b.SSL || len(b.Crts) != 0 {
		t.Errorf("%+v", b)
	}
	if b = c.Binds[3]; b.Kind != "listen" || !b.NoTLS12 || !b.NetScaler || !b.Transparent || b.Namespace != "blue" {
		t.Errorf("%+v", b)
	}
}

func TestSectionsAndDefaults(t *testing.T) {
	c := readText(t, `defaults
  disabled
frontend off
  bind :1 ssl crt a
defaults on
  mode http
frontend a
  bind :2 ssl crt a
defaults off2 from on
  disabled
frontend b from on
  bind :3 ssl crt a
frontend c
  bind :4 ssl crt a
frontend d from off2
  enabled
  bind :5 ssl crt a
frontend e from on
  bind :6 ssl crt a
  disabled
peers p
  bind :7 ssl crt a
log-forward l
  bind :8
backend x
  server s 127.0.0.1:1 ssl crt a
frontend from
  bind :9 ssl crt a
`, Options{})
	if len(c.Problems) > 0 {
		t.Fatal(c.Problems)
	}
	var got []string
	for _, b := range c.Binds {
		got = append(got, fmt.Sprintf("%s %t", b, b.Disabled))
	}
	want := "frontend off true; frontend a false; frontend b false; frontend c true; frontend d false; frontend e true; peers p false; log-forward l false; frontend from true"
	if strings.Join(got, "; ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, "; "), want)
	}
}

func TestRulesThatComeBeforeTheHandshakeAreSeen(t *testing.T) {
	c := readText(t, `defaults strict
  tcp-request connection reject if { src_conn_rate gt 20 }
defaults
frontend a
  bind :1
  tcp-request connection expect-proxy layer4
frontend b
  bind :2
  tcp-request connection expect-proxy layer4 if { src 10.0.0.0/8 }
frontend c from strict
  bind :3
frontend d
  bind :4
  tcp-request connection accept
  tcp-request content reject if FALSE
frontend e
  tcp-request connection silent-drop unless { src 192.0.2.0/24 }
  bind :5
`, Options{})
	var got []string
	for _, b := range c.Binds {
		got = append(got, fmt.Sprintf("%s %t %t", b.Name, b.AcceptProxy, b.Guarded))
	}
	if want := "a true false; b false true; c false true; d false false; e false true"; strings.Join(got, "; ") != want || len(c.Problems) > 0 {
		t.Errorf("%s\nwant %s\n%v", strings.Join(got, "; "), want, c.Problems)
	}
}

func TestConditionalBlocks(t *testing.T) {
	c := readText(t, `.if defined(A)
frontend a
  bind :1 ssl crt a
.elif streq("$A","")
frontend b
  bind :2 ssl crt a
  .if 1
  bind :3 ssl crt a
  .else
  bind "$WHO:4"
  .endif
.else
frontend c
  bind :5 ssl crt a
.endif
.notice "hello"
frontend d
.if feature(QUIC)
  bind :6 ssl crt a
.elif 1
  bind :7 ssl crt a
.else
  bind :8 ssl crt a
.endif
  bind :9 ssl crt a
`, Options{Env: func(string) (string, bool) { return "", false }})
	var got []string
	for _, b := range c.Binds {
		got = append(got, fmt.Sprintf("%s%s %t", b.Name, b.Addresses[0], b.Maybe))
	}
	if want := "b:2 false; b:3 false; d:6 true; d:7 true; d:9 false"; strings.Join(got, "; ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, "; "), want)
	}
	if len(c.Problems) != 1 || c.Problems[0].Line != 18 {
		t.Errorf("problems: %v", c.Problems)
	}
	for _, text := range []string{".else\n", ".if 1\n", ".if (\n.endif\n", ".if 1\n.else\n.else\n.endif\n", "bind :1\n"} {
		if c := readText(t, text, Options{}); len(c.Problems) == 0 {
			t.Errorf("%q: no problem", text)
		}
	}
}

func TestTheEnvironmentIsWhatTheConfigurationMakesOfIt(t *testing.T) {
	const text = `global
  setenv A own
  presetenv B preset
  presetenv A kept
  setenv C c
  unsetenv C
frontend f
  bind "/$A" ssl crt "$B" crt "${C-none}"
  bind "/$OUT" ssl crt "$OUT"
global
  resetenv A
frontend g
  bind "/x" ssl crt "$A$OUT" crt "$.FILE" crt "$.LINE" crt "$.SECTION"
`
	c := readText(t, text, Options{Env: func(name string) (string, bool) { return "outer", name == "OUT" || name == "B" }})
	if len(c.Problems) > 0 || len(c.Binds) != 3 || !c.Variables {
		t.Fatalf("%+v", c)
	}
	if b := c.Binds[0]; b.Addresses[0].Path != "/own" || b.Crts[0].Name != "outer" || b.Crts[1].Name != "none" {
		t.Errorf("%+v", b)
	}
	if b := c.Binds[1]; b.Addresses[0].Path != "/outer" || b.Crts[0].Name != "outer" {
		t.Errorf("%+v", b)
	}
	if b := c.Binds[2]; b.Crts[0].Name != "own" || b.Crts[1].Name != c.Files[0] || b.Crts[2].Name != "13" || b.Crts[3].Name != "frontend" {
		t.Errorf("%+v", b)
	}
	if c := readText(t, text, Options{}); len(c.Problems) == 0 {
		t.Error("an environment that is not known: no problem")
	}
	if c := readText(t, "global\n  setenv A a\nfrontend f\n  bind /$A\n", Options{}); len(c.Problems) > 0 || c.Variables {
		t.Errorf("what the configuration sets itself: %+v", c)
	}
}

func TestSeveralFilesAndFolders(t *testing.T) {
	dir := write(t, map[string]string{
		"1.cfg": "global\n  crt-base DIR/certs\ndefaults\n  disabled\n", "conf/b.cfg": "frontend b\n  bind :2 ssl crt b\n", "conf/a.cfg": "defaults\nfrontend a\n  bind :1 ssl crt a\n",
		"conf/.hidden.cfg": "frontend h\n  bind :3\n", "conf/c.conf": "frontend c\n  bind :4\n", "conf/d.cfg/x": "", "3.cfg": "  bind :5\n",
	})
	c := Read([]string{dir + "/1.cfg", dir + "/conf", dir + "/3.cfg", dir + "/none.cfg"}, Options{})
	if want := []string{dir + "/1.cfg", dir + "/conf/a.cfg", dir + "/conf/b.cfg", dir + "/3.cfg", dir + "/none.cfg"}; !reflect.DeepEqual(c.Files, want) {
		t.Errorf("files: %q", c.Files)
	}
	if len(c.Binds) != 2 || c.Binds[0].Crts[0].Name != dir+"/certs/a" || c.Binds[0].Disabled || c.Binds[1].Disabled || c.Binds[1].File != dir+"/conf/b.cfg" || c.Binds[1].Line != 2 {
		t.Errorf("%+v", c.Binds)
	}
	// A section does not go on in the next file, and what is not there is said.
	if len(c.Problems) != 2 || c.Problems[0].File != dir+"/3.cfg" || c.Problems[1].File != dir+"/none.cfg" {
		t.Errorf("%v", c.Problems)
	}
}

func TestWhatCannotBeReadIsSaidAndTheRestIsRead(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct{ text, want string }{
		"no line feed":   {"frontend f\n  bind :1 ssl crt a", "no line feed"},
		"quote":          {"frontend f\n  bind :2 ssl crt \"a\n  bind :1 ssl crt a\n", "quote"},
		"unknown option": {"frontend f\n  bind :1 ssl tomorrow crt a\n", "tomorrow"},
		"no value":       {"frontend f\n  bind :1 ssl crt a crt\n", "without its value"},
		"no address":     {"frontend f\n  bind\n  bind :1 ssl crt a\n", "without an address"},
		"a long line":    {"frontend f\n  description " + long + "\n  bind :1 ssl crt a crt-list /none/" + long + "\n", "name too long"},
		"a folder":       {"frontend f\n  bind :1 ssl crt a crt-list /\n", "not a regular file"},
		"an empty list":  {"frontend f\n  bind :1 ssl crt a crt-list \"\"\n", "absolute path"},
		"relative list":  {"frontend f\n  bind :1 ssl crt a crt-list x.list\n", "absolute path"},
		"lost defaults":  {"frontend f from nowhere\n  bind :1 ssl crt a\n", "nowhere"},
	} {
		got := readText(t, c.text, Options{})
		if len(got.Problems) != 1 || !strings.Contains(got.Problems[0].Text, c.want) {
			t.Errorf("%s: problems %.300q", name, got.Problems)
		}
		if len(got.Binds) == 0 || len(got.Binds[len(got.Binds)-1].Crts) != 1 {
			t.Errorf("%s: the bind is lost: %+v", name, got.Binds)
		}
	}
	c := readText(t, "frontend f\n  bind :1 ssl crt a\n  bind \x00:2\n  bind :3\n", Options{})
	if len(c.Binds) != 1 || len(c.Problems) != 1 || c.Problems[0].Line != 3 {
		t.Errorf("NUL: %+v", c)
	}
	c = readText(t, "frontend f\r\n  bind :1 ssl crt a\r\n", Options{})
	if len(c.Problems) > 0 || len(c.Binds) != 1 || c.Binds[0].Crts[0].Name != "a" {
		t.Errorf("CR LF: %+v", c)
	}
	c = readText(t, strings.Repeat("\"\n", 1000), Options{})
	if n := len(c.Problems); n != maxProblems+1 {
		t.Errorf("%d problems", n)
	}
}

func TestCrtListsAndStores(t *testing.T) {
	dir := write(t, map[string]string{
		"haproxy.cfg": `global
  crt-base DIR/base
crt-store web
  crt-base DIR/store
  load crt "a.pem" alias one key a.key
  load crt b.pem
crt-store
  load crt c.pem
  load crt /abs/d.pem alias four
frontend f
  bind :1 ssl crt-list DIR/list crt @web/one
  bind :2 ssl crt-list DIR/list
  bind :3 ssl
  ssl-f-use crt used.pem sigalgs x
  bind :4
`,
		"list": "# comment\n\nx.pem\n/abs/y.pem [alpn h2 ssl-min-ver TLSv1.2] *.example.org !www.example.org\n@web/one\r\nz.pem foo.test\n[x]\nq.pem [\n\tw.pem[ciphers X]sni\n",
	})
	c := Read([]string{dir + "/haproxy.cfg"}, Options{})
	want := []Stored{{"@web/one", dir + "/store/a.pem"}, {"@web/b.pem", dir + "/store/b.pem"}, {dir + "/base/c.pem", dir + "/base/c.pem"}, {"@/four", "/abs/d.pem"}}
	if !reflect.DeepEqual(c.Stored, want) {
		t.Errorf("%+v", c.Stored)
	}
	if len(c.Lists) != 2 || c.Binds[0].Lists[0] != c.Binds[1].Lists[0] {
		t.Fatalf("%+v", c.Lists)
	}
	var got []string
	for _, e := range c.Lists[0].Entries {
		got = append(got, fmt.Sprintf("%d %s %q %q", e.Line, strings.ReplaceAll(e.Name, dir, "DIR"), e.Options, e.Filters))
	}
	wantEntries := []string{`3 DIR/base/x.pem [] []`, `4 /abs/y.pem ["alpn" "h2" "ssl-min-ver" "TLSv1.2"] ["*.example.org" "!www.example.org"]`, `5 @web/one [] []`,
		`6 DIR/base/z.pem [] ["foo.test"]`, `9 DIR/base/w.pem ["ciphers" "X"] ["sni"]`}
	if !reflect.DeepEqual(got, wantEntries) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if len(c.Problems) != 2 || c.Problems[0].Line != 7 || c.Problems[1].Line != 8 || c.Problems[0].File != dir+"/list" {
		t.Errorf("%v", c.Problems)
	}
	if b := c.Binds[2]; len(b.Lists) != 1 || b.Lists[0].Name != "@f" || b.Lists[0].Entries[0].Name != dir+"/base/used.pem" {
		t.Errorf("ssl-f-use: %+v", b)
	}
	if len(c.Binds[0].Lists) != 2 || len(c.Binds[3].Lists) != 0 {
		t.Errorf("ssl-f-use on other binds: %+v", c.Binds)
	}
}

func TestDefaultPathTellsWhereRelativePathsBegin(t *testing.T) {
	for mode, want := range map[string]string{"config": "DIR/conf/certs", "parent": "DIR/certs", "origin /srv": "/srv/certs", "current": "certs"} {
		dir := write(t, map[string]string{"conf/haproxy.cfg": "global\n  default-path " + mode + "\nfrontend f\n  bind :1 ssl crt certs/\n"})
		c := Read([]string{dir + "/conf/haproxy.cfg"}, Options{})
		if got := strings.ReplaceAll(c.Binds[0].Crts[0].Path, dir, "DIR"); got != want || c.Binds[0].Crts[0].Name != "certs" {
			t.Errorf("%s: %s", mode, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"", "frontend f\n  bind :443 ssl crt a\n", ".if defined(A)\n.elif !(1&&0)\n.else\n.endif\n", "global\n setenv A \"${B-x}\"\n resetenv A\n",
		"crt-store x\n load crt a alias b\n", "frontend f\n bind :1 ssl crt-list /l crt-list \"$ODD\" crt \"$ODD\"\n", "listen l\n bind [::]:1-2,unix@/x,$A ssl crt \"${A[*]}\"\n ssl-f-use crt x\n", "defaults d from e\n disabled\n\x00", "global\n default-path config\n stats socket /a level admin\n"} {
		f.Add([]byte(seed), []byte("x.pem [alpn h2] *.a !b\n"))
	}
	f.Fuzz(func(t *testing.T, text, list []byte) {
		r := newReader(Options{Env: func(name string) (string, bool) { return name + " x", len(name)%2 == 0 }, Version: "3.0.1"})
		r.load = func(path string) ([]byte, error) { // no file of this host is read
			switch path {
			case "/c":
				return text, nil
			case "/l":
				return list, nil
			}
			return nil, os.ErrNotExist
		}
		r.list("/l")
		r.file("/c")
		r.finish()
		for _, b := range r.c.Binds {
			if b.Section == nil || b.Line == 0 {
				t.Errorf("a bind of nowhere: %+v", b)
			}
			for _, a := range b.Addresses {
				if a.Kind == TCP && (a.Port < 1 || a.LastPort < a.Port || a.LastPort > 65535 || a.Host == "" == !a.IP.IsValid()) {
					t.Errorf("an address that is none: %+v", a)
				}
			}
			for _, w := range b.Arguments {
				if words, err := split(w, r.env); err != nil || len(words) > 1 {
					t.Errorf("an argument that is not one word: %q", w)
				}
			}
		}
		if len(r.c.Problems) > maxProblems+1 {
			t.Errorf("%d problems", len(r.c.Problems))
		}
	})
}
