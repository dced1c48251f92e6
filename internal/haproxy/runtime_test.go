package haproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// hostile is a runtime client whose other side is answer, called once for each connection.
func hostile(t *testing.T, answer func(conn net.Conn, command string)) *runtime {
	t.Helper()
	dial := func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer func() { _ = theirs.Close() }()
			buf := make([]byte, 64<<10)
			n, _ := theirs.Read(buf)
			answer(theirs, string(buf[:n]))
		}()
		return ours, nil
	}
	return &runtime{network: "unix", address: "/x", dial: dial, timeout: 300 * time.Millisecond, wait: 500 * time.Millisecond}
}

func say(t *testing.T, reply string) *runtime {
	return hostile(t, func(conn net.Conn, _ string) { _, _ = io.WriteString(conn, reply) })
}

const info = "Name: HAProxy\nVersion: 2.6.12\nPid: 42\n\n"

func TestRepliesMayArriveByteByByte(t *testing.T) {
	r := hostile(t, func(conn net.Conn, _ string) {
		for i := range info {
			_, _ = io.WriteString(conn, info[i:i+1])
		}
	})
	if p, err := r.showInfo(t.Context()); err != nil || p.Pid != 42 || p.Version != "2.6.12" {
		t.Errorf("showInfo: %+v, %v", p, err)
	}
}

func TestASilentSocketEndsAtTheDeadline(t *testing.T) {
	for name, start := range map[string]string{"at once": "", "in the middle": "Name: HAProxy\nPid"} {
		var connections atomic.Int32
		release := make(chan struct{})
		r := hostile(t, func(conn net.Conn, _ string) {
			connections.Add(1)
			_, _ = io.WriteString(conn, start)
			<-release
		})
		_, err := r.showInfo(t.Context())
		if !errors.Is(err, errUnclear) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		if n := connections.Load(); n != 1 {
			t.Errorf("%s: a HAProxy that does not answer was asked %d times", name, n)
		}
		close(release)
	}
}

func TestTheTimeThatWasWaitedIsTold(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	r := hostile(t, func(net.Conn, string) { <-release })
	r.timeout = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := r.showInfo(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer for ") || strings.Contains(err.Error(), "1h") {
		t.Errorf("showInfo: %v", err)
	}
}

func TestACancelledContextEndsAReadThatWaits(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	r := hostile(t, func(net.Conn, string) { cancel(); <-release })
	r.timeout, r.wait = time.Hour, time.Hour
	if _, err := r.showInfo(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("showInfo: %v", err)
	}
}

func TestACutReadIsAskedAgain(t *testing.T) {
	var connections atomic.Int32
	r := hostile(t, func(conn net.Conn, _ string) {
		if connections.Add(1) < 3 {
			_, _ = io.WriteString(conn, "# filename\n/a.pem\n")
			return
		}
		_, _ = io.WriteString(conn, "# filename\n/a.pem\n/b.pem\n\n")
	})
	if l, err := r.showCerts(t.Context()); err != nil || len(l.names) != 2 {
		t.Errorf("showCerts: %+v, %v", l, err)
	}
	cut := say(t, "# filename\n/a.pem\n")
	if l, err := cut.showCerts(t.Context()); !errors.Is(err, errUnclear) {
		t.Errorf("half a list: %+v, %v", l, err)
	}
	if _, err := say(t, "Name: HAProxy\nVersion: 2.6\nPid: 4").showInfo(t.Context()); !errors.Is(err, errUnclear) {
		t.Errorf("half an answer: %v", err)
	}
}

func TestAWriteIsNeverRepeated(t *testing.T) {
	var connections atomic.Int32
	r := hostile(t, func(net.Conn, string) { connections.Add(1) })
	for _, write := range []func() error{
		func() error { return r.set(t.Context(), "/a.pem", "", "x\n", true) },
		func() error { return r.commit(t.Context(), "/a.pem") },
		func() error { return r.newCert(t.Context(), "/a.pem") },
		func() error { return r.addToList(t.Context(), "/l", "/a.pem") },
	} {
		connections.Store(0)
		if err := write(); !errors.Is(err, errUnclear) {
			t.Errorf("an empty answer: %v", err)
		}
		if n := connections.Load(); n != 1 {
			t.Errorf("sent %d times", n)
		}
	}
}

func TestALockedHAProxyIsAskedAgainUntilTheDeadline(t *testing.T) {
	const locked = "Can't set the certificate!\nOperations on certificates are currently locked!\nCan't update /a.pem!\n\n"
	var connections atomic.Int32
	r := hostile(t, func(conn net.Conn, _ string) {
		if connections.Add(1) < 3 {
			_, _ = io.WriteString(conn, locked)
			return
		}
		_, _ = io.WriteString(conn, "Transaction created for certificate /a.pem!\n\n")
	})
	if err := r.set(t.Context(), "/a.pem", "", "x\n", true); err != nil {
		t.Error(err)
	}
	if err := say(t, locked).set(t.Context(), "/a.pem", "", "x\n", true); !errors.Is(err, errLocked) {
		t.Errorf("for ever locked: %v", err)
	}
}

// TestALockedHAProxyIsNoHAProxyWithoutCertificates: 2.6 to 3.2 say on the second line why they give no list.
func TestALockedHAProxyIsNoHAProxyWithoutCertificates(t *testing.T) {
	const locked = "Can't show!\nOperations on certificates are currently locked!\n\n"
	var connections atomic.Int32
	r := hostile(t, func(conn net.Conn, _ string) {
		if connections.Add(1) < 6 {
			_, _ = io.WriteString(conn, locked)
			return
		}
		_, _ = io.WriteString(conn, "# filename\n/a.pem\n\n")
	})
	if l, err := r.showCerts(t.Context()); err != nil || !slices.Equal(l.names, []string{"/a.pem"}) {
		t.Errorf("%v: %v", l.names, err)
	}
	if l, err := say(t, locked).showCerts(t.Context()); !errors.Is(err, errLocked) {
		t.Errorf("for ever locked: %v: %v", l, err)
	}
	if l, err := say(t, locked).showLists(t.Context()); !errors.Is(err, errLocked) {
		t.Errorf("for ever locked: %v: %v", l, err)
	}
	for _, answer := range []string{"\n", "Can't show!\n\n", "# transaction\n*/a.pem\n\n", "a notice of a later version\n\n"} {
		if l, err := say(t, answer).showCerts(t.Context()); !errors.Is(err, errUnclear) {
			t.Errorf("%q is no list: %v: %v", answer, l, err)
		}
	}
	if l, err := say(t, "# filename\n\n").showCerts(t.Context()); err != nil || len(l.names) != 0 {
		t.Errorf("an empty list: %v: %v", l, err)
	}
}

func TestOnlyTheKnownTextOfExactlyThatNameIsSuccess(t *testing.T) {
	ctx := t.Context()
	set := func(r *runtime) error { return r.set(ctx, "/a.pem", "", "x\n", true) }
	commit := func(r *runtime) error { return r.commit(ctx, "/a.pem") }
	add := func(r *runtime) error { return r.addToList(ctx, "/l", "/a.pem") }
	del := func(r *runtime) error { return r.delCert(ctx, "/a.pem") }
	for _, c := range []struct {
		do    func(*runtime) error
		reply string
		ok    bool
	}{
		{set, "Transaction created for certificate /a.pem!\n\n", true},
		{set, "a notice of a later version\nTransaction created for certificate /a.pem!\n\n", true},
		{set, "Transaction updated for certificate /a.pem!\n\n", false},
		{set, "Transaction created for certificate /a.pem.old!\n\n", false},
		{set, "Transaction created for certificate /b/a.pem!\n\n", false},
		{set, "Transaction created for certificate /a.pem", false},
		{set, "\n\n", false},
		{set, "Success!\n\n", false},
		{commit, "Committing /a.pem...\nSuccess!\n\n", true},
		{commit, "Committing /a.pem\nSuccess!\n\n", true},
		{commit, "Committing /b.pem\nSuccess!\n\n", false},
		{commit, "Committing /a.pem.rsa\nSuccess!\n\n", false},
		{commit, "Committing /a.pem....\n", false},
		{commit, "Success!\n\n", false},
		{commit, "Committing /a.pem.\nSuccess!\nCan't commit /a.pem!\n\n", false},
		{add, "Inserting certificate '/a.pem' in crt-list '/l'...\nSuccess!\n\n", true},
		{add, "Inserting certificate '/a.pem' in crt-list '/m'.\nSuccess!\n\n", false},
		{del, "Certificate '/a.pem' deleted!\n\n", true},
		{del, "Certificate '/b.pem' deleted!\n\n", false},
	} {
		if err := c.do(say(t, c.reply)); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.reply, err)
		}
	}
	if _, err := say(t, "Filename: /b.pem\nStatus: Used\nSHA1 FingerPrint: 00\n\n").showCert(ctx, "/a.pem", false); !errors.Is(err, errUnclear) {
		t.Errorf("of another certificate: %v", err)
	}
	if _, err := say(t, "HTTP/1.1 400 Bad request\n\n").showInfo(ctx); err == nil {
		t.Error("a web server was taken for HAProxy")
	}
}

func TestABundleThatLandedInAnotherTransactionIsTakenOutOfIt(t *testing.T) {
	var aborted atomic.Bool
	r := hostile(t, func(conn net.Conn, command string) {
		if command == "abort ssl cert /b.pem\n" {
			aborted.Store(true)
			_, _ = io.WriteString(conn, "Transaction aborted for certificate '/b.pem'!\n\n")
			return
		}
		_, _ = io.WriteString(conn, "Transaction updated for certificate /b.pem!\n\n")
	})
	if err := r.set(t.Context(), "/a.pem", "", "x\n", true); !errors.Is(err, errForeign) || !aborted.Load() {
		t.Errorf("set: %v, aborted: %t", err, aborted.Load())
	}
}

func TestAReplyIsBounded(t *testing.T) {
	flood := func(line string) *runtime {
		return hostile(t, func(conn net.Conn, _ string) {
			for {
				if _, err := io.WriteString(conn, line); err != nil {
					return
				}
			}
		})
	}
	r := flood("Pid: 1\n")
	r.timeout = 10 * time.Second
	if _, err := r.showInfo(t.Context()); !errors.Is(err, errUnclear) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a reply without end: %v", err)
	}
	r = flood(strings.Repeat("x", 4096))
	r.timeout = 10 * time.Second
	if _, err := r.showCerts(t.Context()); !errors.Is(err, errUnclear) {
		t.Errorf("a line without end: %v", err)
	}
}

func TestAListMayBeLong(t *testing.T) {
	var b strings.Builder
	b.WriteString("# filename\n")
	for range 50_000 {
		b.WriteString("/usr/local/etc/haproxy/certs/a-name-that-is-neither-short-nor-long.example.org.pem\n")
	}
	r := say(t, b.String()+"\n")
	r.timeout = 30 * time.Second
	if l, err := r.showCerts(t.Context()); err != nil || len(l.names) != 50_000 {
		t.Errorf("%d names, %v", len(l.names), err)
	}
}

func TestErrorsNeverQuoteThePayload(t *testing.T) {
	b := certtest.NewCA(t).Issue(t, certtest.Options{})
	key := string(b.KeyPEM())
	lines := strings.Split(strings.TrimSpace(key), "\n")
	for _, line := range lines[1 : len(lines)-1] {
		for _, quote := range []string{line, line[:12], line[len(line)-12:], "Unknown command: '" + line + "'"} {
			err := say(t, quote+"\n\n").set(t.Context(), "/a.pem", "", string(b.PEM()), true)
			if err == nil || strings.Contains(err.Error(), line[:12]) || strings.Contains(err.Error(), line[len(line)-12:]) {
				t.Errorf("the key is in the error: %v", err)
			}
		}
	}
	if err := say(t, "unable to load certificate from file '/a.pem'\n\n").set(t.Context(), "/a.pem", "", string(b.PEM()), true); err == nil || !strings.Contains(err.Error(), "unable to load certificate") {
		t.Errorf("an honest refusal is withheld: %v", err)
	}
	if err := say(t, "\x1b[2Jhello\x00\n\n").commit(t.Context(), "/a.pem"); err == nil || strings.ContainsAny(err.Error(), "\x1b\x00") {
		t.Errorf("control characters in %q", err)
	}
}

func TestWhatHAProxyWouldRunAsCommandsIsNotSent(t *testing.T) {
	for _, payload := range []string{"", "a\n\nb\n", "a\r\n", "\na\n", "a"} {
		if c, err := setCommand("/a.pem", "", payload); err == nil {
			t.Errorf("payload %q became %q", payload, c)
		}
	}
	for _, name := range []string{"", "a\nshow info", "a\rb"} {
		if c, err := setCommand(name, "", "x\n"); err == nil {
			t.Errorf("name %q became %q", name, c)
		}
	}
	if got, _ := escape(`a b;c\d`); got != `a\ b\;c\\d` {
		t.Errorf("escape: %s", got)
	}
}

func TestTheSocketsOwnErrorsNameTheMend(t *testing.T) {
	for _, c := range []struct {
		err  error
		is   error
		hint string
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENOENT)}, cluster.ErrNotRunning, "service haproxy start"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, cluster.ErrNotRunning, "service haproxy start"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}, errLevel, "group"},
	} {
		r := &runtime{network: "unix", address: "/run/x.sock", timeout: time.Second, dial: func(context.Context, string, string) (net.Conn, error) { return nil, c.err }}
		if _, err := r.showInfo(t.Context()); !errors.Is(err, c.is) || !strings.Contains(cluster.HintOf(err), c.hint) {
			t.Errorf("%v: %v, hint %q", c.err, err, cluster.HintOf(err))
		}
	}
}

func TestNamesOfHAProxysOwnACMEAreRead(t *testing.T) {
	const status = "# certificate\tsection\tstate\texpiration date (UTC)\n@acme/example.pem\tLE\tRunning\t-\n/etc/a b.pem\tLE\tScheduled\t-\n\n"
	if got, err := say(t, status).managed(t.Context()); err != nil || len(got) != 2 || got[0] != "@acme/example.pem" || got[1] != "/etc/a b.pem" {
		t.Errorf("managed: %q, %v", got, err)
	}
	if got, err := say(t, "Unknown command: 'acme'\n\n").managed(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("without acme: %q, %v", got, err)
	}
}

func TestTheEndOfANameIsMatchedByWholeElements(t *testing.T) {
	for _, c := range []struct {
		path, name string
		want       bool
	}{
		{"/a/b/c.pem", "c.pem", true}, {"/a/b/c.pem", "./b/c.pem", true}, {"/a/b/c.pem", "../b/c.pem", true}, {"/a/b/c.pem", "/b/c.pem", true},
		{"/a/b/c.pem", ".pem", false}, {"/a/bb/c.pem", "b/c.pem", false}, {"/a/b/c.pem", "x/c.pem", false},
	} {
		if got := endsIn(c.path, c.name); got != c.want {
			t.Errorf("endsIn(%q, %q) = %t", c.path, c.name, got)
		}
	}
}

func TestALinkToNothingIsFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("real/x.pem", filepath.Join(dir, "x.pem")); err != nil {
		t.Fatal(err)
	}
	if got, err := destination(filepath.Join(dir, "x.pem")); err != nil || got != filepath.Join(dir, "real/x.pem") {
		t.Errorf("destination: %s, %v", got, err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if got, err := destination(filepath.Join(dir, "loop")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a loop: %s, %v", got, err)
	}
}

func FuzzParseLoaded(f *testing.F) {
	f.Add("Filename: /a.pem\nStatus: Used\nnotAfter: Dec  4 08:36:11 2026 GMT\nSHA1 FingerPrint: AB\n")
	f.Fuzz(func(t *testing.T, reply string) {
		l := parseLoaded(strings.Split(reply, "\n"))
		if l.SHA1 != strings.ToUpper(l.SHA1) {
			t.Errorf("SHA-1 %q", l.SHA1)
		}
		if text := tell(strings.Split(reply, "\n"), ""); strings.ContainsAny(text, "\n\x00\x1b") || len(text) > 510 {
			t.Errorf("tell: %q", text)
		}
	})
}
