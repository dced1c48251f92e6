package configs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"certsync/internal/cert"
	"certsync/internal/config"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
	"certsync/internal/lab"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// lines are those of a file that are neither empty nor comments.
func lines(t *testing.T, path string) []string {
	t.Helper()
	return slices.DeleteFunc(strings.Split(read(t, path), "\n"), func(l string) bool {
		return strings.TrimSpace(l) == "" || strings.HasPrefix(l, "#")
	})
}

// devdMatches tells whether devd would act on an event: each variable of the rule as an extended regular expression that
// is anchored at both ends and does not mind case (devd.conf(5)).
func devdMatches(t *testing.T, rule, event string) bool {
	t.Helper()
	have := map[string]string{}
	for _, word := range strings.Fields(strings.TrimPrefix(event, "!")) {
		key, value, _ := strings.Cut(word, "=")
		have[key] = value
	}
	matches := regexp.MustCompile(`(?m)^\s*match\s+"(\w+)"\s+"([^"]+)";$`).FindAllStringSubmatch(rule, -1)
	if len(matches) != 3 {
		t.Fatalf("%d match lines, want 3", len(matches))
	}
	for _, m := range matches {
		if !regexp.MustCompile(`(?i)^(?:` + m[2] + `)$`).MatchString(have[m[1]]) {
			return false
		}
	}
	return true
}

func TestDevdRuleMatchesEveryRecordedEventOfCARPAndNoOther(t *testing.T) {
	rule := read(t, "devd/certsync.conf")
	count := 0
	for _, event := range lines(t, "testdata/devd.events") {
		carp := strings.HasPrefix(event, "!system=CARP ")
		if carp {
			count++
		}
		if devdMatches(t, rule, event) != carp {
			t.Errorf("%q: it matches %v, want %v", event, !carp, carp)
		}
	}
	if count < 6 {
		t.Errorf("only %d events of CARP are recorded", count)
	}
	if !devdMatches(t, rule, "!system=CARP subsystem=7@em0.10 type=INIT") {
		t.Error("an interface with a dot in its name does not match")
	}
	if n := strings.Count(rule, "{") + strings.Count(rule, "}"); n != 2 || !strings.Contains(rule, "\n};\n") {
		t.Errorf("%d braces, want one notify block that ends with `};`", n)
	}
	if !strings.Contains(rule, `action "/usr/local/sbin/certsync event";`) {
		t.Error("it does not run certsync event")
	}
}

// newsyslog.conf(5): logfilename [owner:group] mode count size when flags.
func TestNewsyslogTurnsOverTheFileThatSyslogWrites(t *testing.T) {
	all := lines(t, "newsyslog/certsync.conf")
	if len(all) != 1 {
		t.Fatalf("%d lines", len(all))
	}
	form := regexp.MustCompile(`^(/\S+)\s+[a-z]+:[a-z]+\s+([0-7]{3})\s+\d+\s+(?:\d+|\*)\s+(?:\d+|\*|@T\d\d|\$\S+)\s+[BCDGJNRTUXZ]+$`)
	m := form.FindStringSubmatch(all[0])
	if m == nil {
		t.Fatalf("%q is no line of newsyslog.conf", all[0])
	}
	if m[2] != "640" {
		t.Errorf("mode %s", m[2])
	}
	want := []string{"!certsync", "*.*\t\t\t\t\t\t" + m[1], "!*"}
	if got := lines(t, "syslog/certsync.conf"); !slices.Equal(got, want) {
		t.Errorf("syslog.conf has %q, want %q", got, want)
	}
	if rc := read(t, "rc.d/certsync"); !strings.Contains(rc, " -S -T ${name} ") {
		t.Error("the service does not log under that name")
	}
}

func TestSystemdUnitIsRightForSystemd(t *testing.T) {
	need(t, "systemd-analyze")
	// The program, and the user, are not on this machine.
	dir := t.TempDir()
	program := filepath.Join(dir, "certsync")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(read(t, "systemd/certsync.service"), "/usr/local/sbin/certsync", program)
	text = strings.ReplaceAll(text, "file:///usr/local/share/doc/certsync/README.md", "https://example.org/")
	unit := filepath.Join(dir, "certsync.service")
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v: %s", err, out)
	}
	// A key that is misspelt is only warned of: the check above sees it.
	broken := filepath.Join(dir, "broken.service")
	if err := os.WriteFile(broken, []byte(strings.Replace(text, "ProtectSystem=", "ProtectSytem=", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", broken).CombinedOutput(); err == nil && !strings.Contains(string(out), dir) {
		t.Errorf("a misspelt key passes: %s", out)
	}
}

func TestSystemdUnitStartsBeforeHAProxyAndWithoutRights(t *testing.T) {
	unit := lines(t, "systemd/certsync.service")
	for _, want := range []string{"Before=haproxy.service", "ExecStartPre=-/usr/local/sbin/certsync sync --disk --deadline 20s", "User=certsync",
		"NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
		"ExecReload=/bin/kill -HUP $MAINPID", "RuntimeDirectory=certsync"} {
		if !slices.Contains(unit, want) {
			t.Errorf("no line %s", want)
		}
	}
}

// shippedHAProxy writes haproxy.cfg for this machine: the folders are dir's, and what else FreeBSD has is replaced.
func shippedHAProxy(t *testing.T, dir string) (path string) {
	t.Helper()
	text := read(t, "haproxy.cfg")
	replace := func(from, to string) {
		t.Helper()
		if !strings.Contains(text, from) {
			t.Errorf("haproxy.cfg has no %q", from)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	replace("/usr/local/etc/haproxy/certs/", dir+"/certs/")
	replace("/var/run/haproxy.sock", dir+"/haproxy.sock")
	replace("user www\n", "")
	replace("\tgroup www\n", "")
	replace(" group www", "") // the socket's
	if err := os.Mkdir(filepath.Join(dir, "certs"), 0o700); err != nil {
		t.Fatal(err)
	}
	placeholder, err := cert.NewPlaceholder(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "haproxy.conf")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "certs", cert.PlaceholderName), placeholder, 0o600), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHAProxyTakesTheShippedConfiguration(t *testing.T) {
	for _, version := range haproxytest.Versions() {
		t.Run(version, func(t *testing.T) {
			b, ok := haproxytest.Find(version)
			if !ok {
				const hint = "HAProxy %s is not installed: run scripts/deps.sh"
				if os.Getenv("CI") == "true" {
					t.Fatalf(hint, version)
				}
				t.Skipf(hint, version)
			}
			dir := t.TempDir()
			path := shippedHAProxy(t, dir)
			out, err := exec.Command(b.Path, "-c", "-f", path).CombinedOutput()
			if err != nil || strings.Contains(strings.ToLower(string(out)), "warning") {
				t.Errorf("%v: %s", err, out)
			}
			// The check is none if it passes without the certificates.
			if err := os.RemoveAll(filepath.Join(dir, "certs")); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(b.Path, "-c", "-f", path).CombinedOutput(); err == nil {
				t.Errorf("without its certificates it passes: %s", out)
			}
		})
	}
}

// On a BACKUP, where no virtual address may be asked, certsync finds the bind to prove the node by; and the two shipped
// files are about the same addresses, sockets and folders.
func TestCertsyncFindsTheBindToProveANodeByInTheShippedConfiguration(t *testing.T) {
	c, err := config.Load("certsync.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text, h := read(t, "haproxy.cfg"), c.HAProxy[0]
	for _, want := range []string{"stats socket " + h.RuntimeSocket + " mode 660 group www level admin expose-fd listeners", " crt " + h.BundleDir + "/ "} {
		if !strings.Contains(text, want) {
			t.Errorf("haproxy.cfg has no %q", want)
		}
	}
	dir := t.TempDir()
	p, err := haproxy.New(haproxy.Config{Name: h.Config, BundleDir: filepath.Join(dir, "certs"), RuntimeSocket: filepath.Join(dir, "haproxy.sock"),
		JournalDir: filepath.Join(dir, "journal"), Files: []string{shippedHAProxy(t, dir)}, Virtual: c.Virtual(), Master: func() bool { return false },
		Addresses: func() ([]netip.Addr, error) {
			return append(c.Virtual(), netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("127.0.0.1")), nil
		},
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no HAProxy runs") }})
	if err != nil {
		t.Fatal(err)
	}
	found, err := p.Discovered(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range found.Binds {
		got = append(got, fmt.Sprintf("%s virtual=%v probe=%s", b.Address, b.Virtual, b.Probe))
	}
	want := []string{"192.0.2.10:443 virtual=true probe=", "[2001:db8::10]:443 virtual=true probe=", "127.0.0.1:8443 virtual=false probe=127.0.0.1:8443"}
	if !slices.Equal(got, want) || len(found.Problems) > 0 || found.Mend != "" {
		t.Errorf("found %q, want %q; problems %v, mend %q", got, want, found.Problems, found.Mend)
	}
	if len(c.Virtual()) != 2 {
		t.Errorf("the shipped configurations have other virtual addresses: %v", c.Virtual())
	}
}

// sshd(8) reads the line so, and the command is one that certsync has.
func TestAuthorizedKeysLineAllowsOneCommandOnly(t *testing.T) {
	all := lines(t, "ssh/authorized_keys")
	if len(all) != 1 {
		t.Fatalf("%d lines", len(all))
	}
	key, err := lab.NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.Signer().PublicKey())))
	line := strings.Replace(all[0], "ssh-ed25519 AAAA...", public, 1)
	_, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(rest) > 0 {
		t.Fatalf("%q: %v", line, err)
	}
	want := []string{"restrict", `command="/usr/local/sbin/certsync serve-peer --node proxy1"`}
	if !slices.Equal(options, want) || comment != "proxy1" {
		t.Errorf("options %q, comment %q", options, comment)
	}
}
