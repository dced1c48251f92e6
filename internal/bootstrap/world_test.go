package bootstrap

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"certsync/internal/bootstrap/bootstraptest"
	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/carp"
	"certsync/internal/cluster"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// thePassword is that of every vhid; no output may have it.
const thePassword = "secret1"

// world is a host: a tree, a kernel, the commands beside it.
type world struct {
	*Host
	t        *testing.T
	root     string
	kernel   *bootstraptest.Kernel
	commands *bootstraptest.Commands
	set      Settings
}

// ids are those of the accounts: real ones where the test may give files away, else all are the test's own.
func ids() map[string]string {
	if os.Geteuid() == 0 {
		return map[string]string{"{ROOT}": "0", "{WHEEL}": "0", "{WWW}": "80"}
	}
	uid, gid := strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid())
	return map[string]string{"{ROOT}": uid, "{WHEEL}": gid, "{WWW}": gid}
}

// newWorld lays out the base tree and the one named over it. Root asks.
func newWorld(t *testing.T, tree string, kernel *bootstraptest.Kernel) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), kernel: kernel}
	w.lay("testdata/base.txtar")
	w.lay("testdata/trees/" + tree + ".txtar")
	w.commands = &bootstraptest.Commands{Root: w.root, Kernel: kernel, UID: 1001, GID: 1001}
	if os.Geteuid() != 0 {
		w.commands.UID, w.commands.GID = os.Geteuid(), os.Getegid()
	}
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	w.Host = &Host{
		Tree: &sysfile.Tree{Root: w.root}, OS: "freebsd", Run: w.commands.Run,
		Getuid: func() int { return 0 }, Now: func() time.Time { return now },
		Password: func(string) (cluster.Secret, error) { return cluster.Secret(thePassword), nil },
	}
	if kernel != nil {
		w.Kernel = kernel.Carp()
	}
	w.set = settings("em0")
	return w
}

// lay writes the files of an archive, and follows the lines of its comment: `mode PATH 0600`, `nonewline PATH`.
func (w *world) lay(name string) {
	w.t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	for from, to := range ids() {
		data = bytes.ReplaceAll(data, []byte(from), []byte(to))
	}
	a := txtar.Parse(data)
	for _, f := range a.Files {
		w.write(f.Name, string(f.Data), 0o644)
	}
	for line := range strings.Lines(string(a.Comment)) {
		switch f := strings.Fields(line); {
		case len(f) == 3 && f[0] == "mode":
			mode, err := strconv.ParseUint(f[2], 8, 32)
			if err != nil {
				w.t.Fatal(err)
			}
			w.must(os.Chmod(filepath.Join(w.root, f[1]), fs.FileMode(mode)))
		case len(f) == 2 && f[0] == "nonewline":
			w.write(f[1], strings.TrimSuffix(w.read(f[1]), "\n"), 0o644)
		}
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, content string, mode fs.FileMode) {
	w.t.Helper()
	p := filepath.Join(w.root, name)
	w.must(os.MkdirAll(filepath.Dir(p), 0o755))
	w.must(os.WriteFile(p, []byte(content), mode))
	w.must(os.Chmod(p, mode))
}

func (w *world) read(name string) string {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.root, name))
	w.must(err)
	return string(data)
}

// settings are the two vhids of the tests, one for each family.
func settings(iface string) Settings {
	return Settings{
		Node: "proxy1", Preempt: true, DemoteUnready: true, User: "certsync",
		VHIDs: []VHID{
			{Interface: iface, ID: 1, AdvBase: 1, AdvSkew: 100, PasswordFile: "/usr/local/etc/certsync/carp.pass",
				Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}},
			{Interface: iface, ID: 2, AdvBase: 1, AdvSkew: 100, PasswordFile: "/usr/local/etc/certsync/carp.pass",
				Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::10/128")}},
		},
		Own: []netip.Addr{netip.MustParseAddr("192.0.2.11")}, Others: []netip.Addr{netip.MustParseAddr("192.0.2.12")},
		ConfigDir: "/usr/local/etc/certsync", StateDir: "/var/db/certsync", RunDir: "/var/run/certsync",
		HAProxy: []HAProxy{{Config: "/usr/local/etc/haproxy.conf", BundleDir: "/usr/local/etc/haproxy/certs", BundleGroup: "www"}},
	}
}

// em0 is the kernel of a host with one interface.
func em0() *bootstraptest.Kernel {
	return bootstraptest.New(map[string][]string{"em0": {"192.0.2.11/24", "2001:db8::11/64"}, "lo0": {"127.0.0.1/8"}})
}

// running is the kernel of a host where CARP runs as the settings want it.
func running() *bootstraptest.Kernel {
	k := em0().Load()
	k.Set("em0", carp.Settings{VHID: 1, AdvBase: 1, AdvSkew: 100, Password: cluster.Secret(thePassword)}, "192.0.2.10/32")
	k.Set("em0", carp.Settings{VHID: 2, AdvBase: 1, AdvSkew: 100, Password: cluster.Secret(thePassword)}, "2001:db8::10/128")
	c := k.Carp()
	_ = c.SetSysctl("net.inet.carp.preempt", 1)
	_ = c.SetSysctl("net.inet.carp.log", 2)
	k.Calls = nil
	return k
}

func (w *world) plan() *Plan {
	w.t.Helper()
	p, err := w.Plan(context.Background(), w.set)
	w.must(err)
	w.noSecret("the plan", fmt.Sprintf("%s%+v", text(w.t, p), p.Steps))
	return p
}

func (w *world) apply() *Result {
	w.t.Helper()
	r, err := w.Apply(context.Background(), w.set, w.plan(), true)
	w.must(err)
	return r
}

func (w *world) revert() *Result {
	w.t.Helper()
	r, err := w.Revert(context.Background(), true)
	w.must(err)
	return r
}

func text(t *testing.T, p *Plan) string {
	t.Helper()
	var b strings.Builder
	if err := p.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (w *world) noSecret(what, text string) {
	w.t.Helper()
	if strings.Contains(text, thePassword) {
		w.t.Errorf("%s has the password:\n%s", what, text)
	}
}

// step finds one by its name.
func step(t *testing.T, p *Plan, name string) Step {
	t.Helper()
	for _, s := range p.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no step %q in\n%s", name, text(t, p))
	return Step{}
}

// tree lists every file and folder with mode, owner and content; no two trees with a difference give the same.
func (w *world) tree() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	w.must(filepath.WalkDir(w.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.root, p)
		if err != nil {
			return err
		}
		out["/"+rel], err = describePath(p)
		return err
	}))
	return out
}

func describePath(p string) (string, error) {
	info, err := os.Lstat(p)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	text := fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
	if info.Mode().IsRegular() {
		data, err := os.ReadFile(p)
		return text + "\n" + string(data), err
	}
	return text, nil
}

// sameTree fails where two states of a tree differ.
func sameTree(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, was := range before {
		if is, ok := after[name]; !ok {
			t.Errorf("%s is gone", name)
		} else if is != was {
			t.Errorf("%s:\n%s\nbecame\n%s", name, was, is)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}

// golden compares text with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\n%s", path, sysfile.Diff(want, []byte(got), path, func(l string) string { return l }))
	}
}
