package haconf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cert/certtest"
	"certsync/internal/haproxy/haproxytest"
)

// each runs a test on every HAProxy that scripts/deps.sh installs.
func each(t *testing.T, test func(t *testing.T, b haproxytest.Binary)) {
	for _, version := range haproxytest.Versions() {
		t.Run("HAProxy_"+version, func(t *testing.T) {
			b, ok := haproxytest.Find(version)
			if !ok {
				const hint = "HAProxy %s is not installed: run scripts/deps.sh"
				if os.Getenv("CI") == "true" {
					t.Fatalf(hint, version)
				}
				t.Skipf(hint, version)
			}
			test(t, b)
		})
	}
}

// start runs HAProxy with the configuration file or folder at path; its stats socket is DIR/admin.sock.
func start(t *testing.T, b haproxytest.Binary, path, dir string) (ask func(command string) []string) {
	t.Helper()
	socket := filepath.Join(dir, "admin.sock")
	server, err := b.Start(context.Background(), path, dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return func(command string) []string {
		t.Helper()
		reply, err := haproxytest.Command(socket, command+"\n")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimRight(reply, "\n"), "\n")
	}
}

// shortDir is a folder whose sockets' paths are short enough for FreeBSD.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hac")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// wordLines are words that end a line; HAProxy and split must read the same.
var wordLines = []string{
	`plain`, `a#b`, `a\#b`, `"c d"`, `'c d'`, `c\ d`, `a"b c"d'e f'g`, `"it's"`, `'say "x"'`, `\"a\'`, `'a\b'`, `"a\"b"`, `a\tb`, `\x41\x7a`, `\1\a`, `a\\`,
	`"$A"`, `"${A}x"`, `'$A'`, `"\$A"`, `$A`, `\$A`, `"${NONE-dflt}"`, `"${A-dflt}"`, `"x${NONE}y"`, `"${A}"'$A'"${A}"`, `"a#b"`, `"$A/b"`, `x"${NONE-}"y`, `"${NONE-a b}"`,
}

func TestHAProxyReadsTheSameWords(t *testing.T) {
	each(t, func(t *testing.T, b haproxytest.Binary) {
		dir := shortDir(t)
		var text strings.Builder
		fmt.Fprintf(&text, "global\n  stats socket %s/admin.sock level admin\n  setenv A one\n", dir)
		for i, w := range wordLines {
			fmt.Fprintf(&text, "  setenv T%d %s # comment\n  setenv U%d %s\r\n", i, w, i, w)
		}
		path := filepath.Join(dir, "c.cfg")
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		got := start(t, b, path, dir)("show env")
		for i, w := range wordLines {
			words, err := split("setenv x "+w, env("A", "one"))
			if err != nil || len(words) != 3 {
				t.Errorf("%s: %q, %v", w, words, err)
				continue
			}
			for _, name := range []string{"T", "U"} {
				if want := fmt.Sprintf("%s%d=%s", name, i, words[2]); !slices.Contains(got, want) {
					t.Errorf("%s: HAProxy has not %q but %q", w, want, slices.DeleteFunc(slices.Clone(got), func(l string) bool {
						return !strings.HasPrefix(l, fmt.Sprintf("%s%d=", name, i))
					}))
				}
			}
		}
	})
}

var conditions = []string{
	`1`, `0`, `!0`, `! ! 1`, `defined(A)`, `defined(NONE)`, `streq(a,a)`, `streq("$A",one)`, `streq("$A","two")`, `strneq(a,b)`, `streq("a b","a b")`, `1 && 0`, `1 || 0`,
	`0 && 0 || 1`, `1 || 0 && 0`, `(1 || 0) && 0`, `!(1 && 0)`, `version_atleast(2.6)`, `version_atleast(2.6.0)`, `version_before(3.0)`, `version_atleast(3.1)`, `version_before(9.9)`,
	`version_atleast(2.6-dev0)`, `defined(A) && streq("${A}",one)`, `( ( 1 ) )`, `streq(,)`, `streq("$NONE",)`,
}

func TestHAProxyJudgesConditionsTheSame(t *testing.T) {
	each(t, func(t *testing.T, b haproxytest.Binary) {
		dir := shortDir(t)
		var text strings.Builder
		fmt.Fprintf(&text, "global\n  stats socket %s/admin.sock level admin\n  setenv A one\n", dir)
		for i, c := range conditions {
			fmt.Fprintf(&text, ".if %s\n  setenv C%d yes\n.else\n  setenv C%d no\n.endif\n", c, i, i)
			fmt.Fprintf(&text, ".if 0\n  setenv D%d \"$NONE\"\n.elif %s\n  setenv D%d yes\n  .if 1\n  setenv D%d inner\n  .else\n  .endif\n.else\n  setenv D%d no\n.endif\n", i, c, i, i, i)
		}
		path := filepath.Join(dir, "c.cfg")
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		got := start(t, b, path, dir)("show env")
		r := newReader(Options{Env: func(string) (string, bool) { return "", false }, Version: b.Version + ".11"})
		r.file(path)
		if len(r.c.Problems) > 0 {
			t.Errorf("%v", r.c.Problems)
		}
		for i, c := range conditions {
			for _, name := range []string{fmt.Sprintf("C%d", i), fmt.Sprintf("D%d", i)} {
				if want := name + "=" + r.set[name].value; !slices.Contains(got, want) {
					t.Errorf("%s of %s: HAProxy does not say %s", name, c, want)
				}
			}
		}
	})
}

// loaded are HAProxy's names of the certificates that the configuration loads.
func loaded(t *testing.T, c *Config) (names, lists []string) {
	t.Helper()
	add := func(list *[]string, name string) {
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	file := func(crt Crt) {
		if _, err := os.Stat(crt.Path); err == nil || crt.Path == "" {
			add(&names, crt.Name)
			return
		}
		for _, family := range []string{".ecdsa", ".rsa"} {
			if _, err := os.Stat(crt.Path + family); err == nil {
				add(&names, crt.Name+family)
			}
		}
	}
	for _, s := range c.Stored {
		add(&names, s.Name)
	}
	for _, b := range c.Binds {
		for _, crt := range b.Crts {
			entries, err := os.ReadDir(crt.Path)
			if err != nil {
				file(crt)
				continue
			}
			add(&lists, crt.Name)
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), ".") && filepath.Ext(e.Name()) != ".key" {
					add(&names, crt.Name+"/"+e.Name())
				}
			}
		}
		for _, l := range b.Lists {
			add(&lists, l.Name)
			for _, e := range l.Entries {
				file(e.Crt)
			}
		}
	}
	slices.Sort(names)
	slices.Sort(lists)
	return names, lists
}

func TestHAProxyLoadsWhatIsReadFromItsConfiguration(t *testing.T) {
	ca, err := certtest.New()
	if err != nil {
		t.Fatal(err)
	}
	pem := string(ca.Issue(t, certtest.Options{Domains: []string{"example.test"}}).PEM())
	each(t, func(t *testing.T, b haproxytest.Binary) {
		dir := shortDir(t)
		files := map[string]string{"conf/10-global.cfg": `global
  stats socket DIR/admin.sock level admin
  crt-base DIR/base
  setenv NAME d
defaults
  timeout client 1s
  timeout server 1s
  timeout connect 1s
  mode http
`, "conf/20.cfg": `frontend a
  bind unix@DIR/1.sock ssl crt a.pem crt DIR/bundles/// crt "${NAME}.pem" crt fam
  bind unix@DIR/2.sock ssl crt-list DIR/list crt "with space.pem"
`, "conf/ignored.conf": "nonsense\n", "conf/.hidden.cfg": "nonsense\n",
			"list": "# a comment\nl.pem\nDIR/base/a.pem [alpn h2 ssl-min-ver TLSv1.2] *.example.test !www.example.test\n\nfam2 example.test\r\n"}
		for _, name := range []string{"base/a.pem", "base/d.pem", "base/fam.ecdsa", "base/fam.rsa", "base/fam2.ecdsa", "base/l.pem", "base/with space.pem", "bundles/one.pem", "bundles/two", "bundles/.tmp", "store/s.pem", "store/t.pem"} {
			files[name] = pem
		}
		if b.Version != "2.6" {
			files["conf/05-store.cfg"] = "crt-store web\n  crt-base DIR/store\n  load crt s.pem alias s\n  load crt t.pem\n"
			files["conf/20.cfg"] += "listen b\n  bind DIR/3.sock ssl crt @web/s crt @web/t.pem\n"
		}
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ask := start(t, b, filepath.Join(dir, "conf"), dir)
		c := Read([]string{filepath.Join(dir, "conf")}, Options{Env: func(string) (string, bool) { return "", false }})
		if len(c.Problems) > 0 {
			t.Fatalf("%v", c.Problems)
		}
		names, lists := loaded(t, c)
		has := slices.DeleteFunc(ask("show ssl cert"), func(l string) bool { return l == "" || strings.HasPrefix(l, "#") })
		slices.Sort(has)
		if !slices.Equal(has, names) {
			t.Errorf("certificates: HAProxy has\n%s\nand from the configuration come\n%s", strings.Join(has, "\n"), strings.Join(names, "\n"))
		}
		has = slices.DeleteFunc(ask("show ssl crt-list"), func(l string) bool { return l == "" })
		slices.Sort(has)
		if !slices.Equal(has, lists) {
			t.Errorf("lists: HAProxy has\n%s\nand from the configuration come\n%s", strings.Join(has, "\n"), strings.Join(lists, "\n"))
		}
		shown := strings.Join(ask("show ssl crt-list "+dir+"/list"), "\n")
		for _, e := range c.Lists[0].Entries {
			if want := strings.Join(e.Filters, " "); want != "" && !strings.Contains(shown, want) {
				t.Errorf("the filters %q are not in HAProxy's list:\n%s", want, shown)
			}
		}
	})
}

func TestHAProxyRefusesWhatIsSaidToBeRefused(t *testing.T) {
	each(t, func(t *testing.T, b haproxytest.Binary) {
		for name, text := range map[string]string{
			"no line feed": "frontend f\n  bind :1",
			"NUL":          "frontend f\n  bind :1\x00\n",
			"quote":        "frontend f\n  bind \":1\n",
			"hex":          "frontend f\n  bind \\x4\n",
			"brace":        "frontend f\n  bind \"${A\"\n",
			"words":        "frontend f\n  bind " + strings.Repeat("x ", 64) + "\n",
			"no port":      "frontend f\n  bind 127.0.0.1\n",
			"port":         "frontend f\n  bind :65536\n",
			"range":        "frontend f\n  bind :9-8\n",
			"family":       "frontend f\n  bind ipv4@::1:443\n",
			"option":       "frontend f\n  bind :1 tomorrow\n",
			"no value":     "frontend f\n  bind :1 ssl crt\n",
			"in defaults":  "  bind :1\n",
			"defaults":     "frontend f from nowhere\n  bind :1\n",
			"else":         ".else\n",
			"left out":     ".if 0\n  bind \"x\n.endif\n",
			"open if":      ".if 1\n",
			"condition":    ".if (\n.endif\n",
		} {
			dir := shortDir(t)
			path := filepath.Join(dir, "c.cfg")
			if err := os.WriteFile(path, []byte("defaults\n  timeout client 1s\n"+text), 0o600); err != nil {
				t.Fatal(err)
			}
			c := Read([]string{path}, Options{Env: func(string) (string, bool) { return "", false }})
			if err := b.Check(path, dir); err == nil || len(c.Problems) == 0 {
				t.Errorf("%s: HAProxy says %v, and here the problems are %v", name, err, c.Problems)
			}
		}
	})
}
