package haproxy

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/cluster"
)

func TestEachFaultOfAFolderHasItsMend(t *testing.T) {
	for cause, hint := range map[error]string{
		syscall.ENOENT: "make the folder /certs", syscall.EACCES: "write in /certs", syscall.EPERM: "write in /certs", syscall.ENOSPC: "make room",
		syscall.EROFS: "mount the file system of /certs writable", syscall.EEXIST: "move the folder /certs/x.pem away", syscall.EISDIR: "move the folder /certs/x.pem away",
	} {
		err := folderHint(fmt.Errorf("write: %w", &fs.PathError{Op: "rename", Path: "/certs/x.pem", Err: cause}), "/certs/x.pem")
		if !strings.Contains(cluster.HintOf(err), hint) {
			t.Errorf("%v: hint %q, want %q", cause, cluster.HintOf(err), hint)
		}
	}
	for cause, hint := range map[error]string{syscall.ENOENT: "show ssl crt-list /list", syscall.EACCES: "write /list", syscall.EROFS: "writable"} {
		if err := listHint(cause, "/list"); !strings.Contains(cluster.HintOf(err), hint) {
			t.Errorf("crt-list: %v: hint %q, want %q", cause, cluster.HintOf(err), hint)
		}
	}
}

func TestALineOfACrtListIsReadAsHAProxyPrintsIt(t *testing.T) {
	for line, want := range map[string]struct {
		name   string
		number int
	}{
		"/certs/a.pem:3":                      {"/certs/a.pem", 3},
		"/certs/a.pem:12 [alpn h2] a.test":    {"/certs/a.pem", 12},
		"/certs/a.pem:0 !x.test a.test":       {"/certs/a.pem", 0},
		"/certs/a b:c.pem:1":                  {"/certs/a b:c.pem", 1},
		"/certs/a:7.pem:2 [ciphers X:1] b":    {"/certs/a:7.pem", 2},
		"@store/alias:4":                      {"@store/alias", 4},
		"# /certs/list":                       {},
		"didn't find the specified filename":  {},
		"/certs/a.pem":                        {},
		"/certs/a.pem:99999999999999999999 x": {},
	} {
		name, number, ok := numbered(line)
		if !ok {
			name, number = "", 0
		}
		if name != want.name || number != want.number || ok != (want.name != "") {
			t.Errorf("%q: %q, %d, %t", line, name, number, ok)
		}
	}
}

func TestTheWordsOfACrtList(t *testing.T) {
	l := linesOf([]byte("# a list\n\n/certs/a.pem [alpn h2] a.test\n\t/certs/b.pem\n/certs/a.pem\nrel/c.pem !x\n@store/d\n#/certs/e.pem"))
	if !reflect.DeepEqual(l.absolute, []string{"/certs/a.pem", "/certs/b.pem"}) || !reflect.DeepEqual(l.relative, []string{"rel/c.pem"}) {
		t.Errorf("%+v", l)
	}
	for name, want := range map[string]bool{"/certs/a.pem": true, "/base/rel/c.pem": true, "rel/c.pem": true, "/certs/e.pem": false, "/base/xrel/c.pem": false, "c.pem": false} {
		if l.name(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

func TestManyStraysAreCounted(t *testing.T) {
	dir := t.TempDir()
	p, err := New(Config{Name: "x", BundleDir: dir, RuntimeSocket: filepath.Join(dir, "none.sock"), JournalDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range mostStrays + 5 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("x%02d.tmp", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := p.Hazards(t.Context(), nil)
	if len(found) != mostStrays+1 || !strings.Contains(found[mostStrays].String(), "5 more") || !strings.HasSuffix(found[0].Path, "x00.tmp") {
		t.Errorf("%d hazards, the last %+v", len(found), found[len(found)-1])
	}
}
