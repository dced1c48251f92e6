package haproxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

const exposed = "stats socket DIR/admin.sock level admin mode 600 expose-fd listeners"

// eachWay runs a test with each way of a reload: the master socket, on the fake and on every HAProxy, and the command of
// a service's script, on every HAProxy.
func eachWay(t *testing.T, test func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config))) {
	each(t, func(t *testing.T, b backend) {
		for name, start := range map[string]func(*site) func(*haproxy.Config){"master": (*site).startMaster, "command": (*site).startDaemon} {
			if name == "command" && b.version == "" {
				continue // the fake is no process of its own
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, b, start)
			})
		}
	})
}

// startMaster starts HAProxy with a master socket; what it gives configures certsync to reload by it.
func (s *site) startMaster() func(*haproxy.Config) {
	s.t.Helper()
	socket := s.path("master.sock")
	var err error
	if s.b.version == "" {
		var fake *haproxytest.Fake
		if fake, err = haproxytest.StartFake(s.config, s.dir); err == nil {
			s.server, err = fake, fake.ServeMaster(socket)
		}
	} else {
		s.server, err = s.b.binary.StartMaster(context.Background(), s.config, s.dir, s.path("admin.sock"), socket)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.stop)
	return func(c *haproxy.Config) { s.reloadable(c); c.MasterSocket = socket }
}

// startDaemon starts HAProxy in the background; what it gives configures certsync to reload by a script.
func (s *site) startDaemon() func(*haproxy.Config) {
	s.t.Helper()
	server, reload, err := s.b.binary.StartDaemon(context.Background(), s.config, s.dir, s.path("admin.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
	s.t.Cleanup(s.stop)
	return func(c *haproxy.Config) { s.reloadable(c); c.Reload = reload }
}

// reloadable sets what every way needs. The check of the fake is a script that refuses what is no PEM, in HAProxy's words.
func (s *site) reloadable(c *haproxy.Config) {
	c.Files, c.ReloadTimeout, c.ReloadInterval, c.ReloadSettle = []string{s.config}, 20*time.Second, time.Nanosecond, 1500*time.Millisecond
	c.Check = []string{s.b.binary.Path, "-c", "-f", s.config}
	if s.b.version == "" {
		c.Check = []string{"sh", "-c", `for f in "$0"/bundles/*; do grep -q BEGIN "$f" || { echo "[ALERT]    (7) : config : parsing [x:9] : unable to load certificate from file '$f'."; exit 1; }; done`, s.dir}
	}
}

// edit replaces a text in HAProxy's configuration; DIR in it is the site's folder.
func (s *site) edit(from, to string) {
	s.t.Helper()
	replace := strings.NewReplacer("DIR", s.dir)
	before := string(s.take("haproxy.cfg"))
	after := strings.Replace(before, replace.Replace(from), replace.Replace(to), 1)
	if after == before {
		s.t.Fatalf("%q is not in the configuration", from)
	}
	s.put("haproxy.cfg", []byte(after))
	later := time.Now().Add(3 * time.Second)
	if err := os.Chtimes(s.config, later, later); err != nil {
		s.t.Fatal(err)
	}
}

// activateOnly is site.activate where HAProxy could not start with what is on disk.
func activateOnly(t *testing.T, p *haproxy.Proxy, tgt cluster.Target) cluster.Placement {
	t.Helper()
	out, err := p.Activate(t.Context(), []cluster.Target{tgt})
	if err != nil || len(out) != 1 {
		t.Fatalf("%d placements, %v", len(out), err)
	}
	return out[0]
}

// alive tells whether a process runs; one that has ended and that nobody has waited for does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err != nil || !strings.HasPrefix(state, "Z")
}

func (s *site) pid() string {
	s.t.Helper()
	_, rest, _ := strings.Cut(s.command("show info\n"), "Pid: ")
	pid, _, _ := strings.Cut(rest, "\n")
	if pid == "" {
		s.t.Fatal("HAProxy does not tell its Pid")
	}
	return pid
}

// log reads what the journal has of the reloads.
func (s *site) log() (l struct {
	Time       time.Time `json:"time"`
	Way        string    `json:"way"`
	Pid        int       `json:"pid"`
	NewPid     int       `json:"new_pid"`
	Reasons    []string  `json:"reasons"`
	Result     string    `json:"result"`
	OldWorkers int       `json:"old_workers"`
}) {
	s.t.Helper()
	files, _ := filepath.Glob(s.path("journal/reload-*.json"))
	if len(files) == 0 {
		return l
	}
	data, err := os.ReadFile(files[0])
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// named is a generation of NAME.test.
func named(t *testing.T, name string) *cert.Bundle {
	t.Helper()
	return issue(t, certtest.Options{Domains: []string{name + ".test"}})
}

// newFile is a site whose configuration is edited to name bundles/example.pem, which is not there yet, after the start.
func newFile(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) (s *site, configure func(*haproxy.Config)) {
	t.Helper()
	s = newSite(t, b, "crt DIR/elsewhere/first.pem", exposed)
	s.put("elsewhere/first.pem", named(t, "first").PEM())
	configure = start(s)
	s.edit("ssl crt DIR/elsewhere/first.pem", "ssl crt DIR/elsewhere/first.pem crt DIR/bundles/example.pem")
	return s, configure
}

func TestContractAReloadBringsANewFileInService(t *testing.T) {
	eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
		s, configure := newFile(t, b, start)
		p := s.proxy(configure)
		before := s.pid()
		tgt := target(generation(t), "example")
		got := s.activate(p, tgt)
		want(t, got, cluster.Done, cluster.Proven)
		s.wantServed(got, tgt.Bundle)
		if s.pid() == before || !strings.Contains(got.Reloaded, "is new") || !strings.Contains(got.Reloaded, s.config) || fmt.Sprint(got.Pid) == before {
			t.Errorf("Pid %s, before %s; reloaded %q", s.pid(), before, got.Reloaded)
		}
		log := s.log()
		if fmt.Sprint(log.Pid) != before || fmt.Sprint(log.NewPid) != s.pid() || log.Result != "reloaded" || len(log.Reasons) != 1 || log.Time.IsZero() || log.Way == "" {
			t.Errorf("the log: %+v", log)
		}

		after := s.pid()
		again := s.activate(p, tgt)
		want(t, again, cluster.Unchanged, cluster.Proven)
		next := target(generation(t), "example", tgt.Bundle)
		got = s.activate(p, next)
		want(t, got, cluster.Done, cluster.Proven)
		if s.pid() != after || again.Reloaded != "" || got.Reloaded != "" {
			t.Errorf("HAProxy was reloaded for what the run time can do: Pid %s, before %s", s.pid(), after)
		}
	})
}

func TestContractOneReloadServesAllThatWait(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/runtime.pem", exposed)
		old := named(t, "runtime")
		s.put("bundles/runtime.pem", old.PEM())
		configure := s.startMaster()
		s.edit("ssl crt DIR/bundles/runtime.pem", "ssl crt DIR/bundles/")
		targets := []cluster.Target{target(named(t, "one"), "one"), target(named(t, "runtime"), "runtime", old), target(named(t, "two"), "two"), target(named(t, "three"), "three")}
		out, err := s.proxy(configure).Activate(t.Context(), targets)
		if err != nil {
			t.Fatal(err)
		}
		for i, got := range out {
			want(t, got, cluster.Done, cluster.Proven)
			if got.Slot != targets[i].Slot || got.Served.Fingerprint != targets[i].Bundle.Fingerprint() || (got.Reloaded == "") != (i == 1) {
				t.Errorf("%s: reloaded %q, served %s", got.Slot, got.Reloaded, got.Served.Fingerprint.Short())
			}
		}
		if proc := haproxytest.MasterCommand(s.path("master.sock"), "show proc\n"); !strings.Contains(proc, "master          1 [failed: 0]") {
			t.Errorf("want one reload:\n%s", proc)
		}
	})
}

// An update at run time puts the updated certificate behind another one of the same name; a reload restores the order.
func TestContractAReloadRestoresTheOrderOfDuplicates(t *testing.T) {
	eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
		if b.version == "" {
			return // the fake keeps the order
		}
		s := newSite(t, b, "crt DIR/bundles/", exposed)
		old := generation(t)
		s.put("bundles/example.pem", old.PEM())
		s.put("bundles/zzz.pem", generation(t).PEM())
		p := s.proxy(start(s))
		got := s.activate(p, target(generation(t), "example", old))
		want(t, got, cluster.Done, cluster.Proven)
		if !strings.Contains(got.Reloaded, "hides") {
			t.Errorf("reloaded %q", got.Reloaded)
		}
	})
}

func TestContractADuplicateThatHidesForGoodIsReloadedForOnce(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/", exposed)
		hides := generation(t)
		s.put("bundles/aaa.pem", hides.PEM())
		p := s.proxy(s.startMaster())
		before := s.pid()
		tgt := target(generation(t), "example", old)
		got := s.activate(p, tgt)
		want(t, got, cluster.RolledBack, cluster.Disproven)
		if s.pid() == before || got.Reloaded == "" || !strings.Contains(got.Hint, "same name") {
			t.Errorf("Pid %s, before %s: %s", s.pid(), before, describe(got))
		}
		after := s.pid()
		for range 2 {
			got = s.activate(p, tgt)
			want(t, got, cluster.RolledBack, cluster.Disproven)
			if s.pid() != after || !strings.Contains(got.Error, "not tried again") || got.Reloaded != "" {
				t.Fatalf("Pid %s, before %s: %s", s.pid(), after, describe(got))
			}
		}
		if got.Disk.Fingerprint != old.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() {
			t.Errorf("after the roll-back: %s", describe(got))
		}
	})
}

func TestContractNothingIsReloadedWhereHAProxyWouldNotStart(t *testing.T) {
	eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
		s := newSite(t, b, "crt DIR/bundles/runtime.pem", exposed)
		old := named(t, "runtime")
		s.put("bundles/runtime.pem", old.PEM())
		configure := start(s)
		s.edit("ssl crt DIR/bundles/runtime.pem", "ssl crt DIR/bundles/")
		s.put("bundles/stray.tmp", []byte("junk"))
		before := s.pid()
		p := s.proxy(configure)
		tgt := target(named(t, "new"), "new")
		out, err := p.Activate(t.Context(), []cluster.Target{tgt, target(named(t, "runtime"), "runtime", old)})
		if err != nil {
			t.Fatal(err)
		}
		want(t, out[1], cluster.Done, cluster.Proven)
		got := out[0]
		if got.Outcome != cluster.Failure || !strings.Contains(got.Error, "unable to load certificate from file") || !strings.Contains(got.Error, "stray.tmp") || got.Hint == "" || got.Reloaded != "" {
			t.Errorf("outcome %q: %s", got.Outcome, describe(got))
		}
		if s.pid() != before {
			t.Error("HAProxy was reloaded")
		}
		if _, err := os.Stat(s.path("bundles/new.pem")); err == nil {
			t.Error("the new file stayed")
		}
		// Remembered: not checked again at every pass, and the file does not stay either.
		got = activateOnly(t, p, tgt)
		if got.Outcome != cluster.Failure || !strings.Contains(got.Error, "not tried again before") || !strings.Contains(got.Error, "stray.tmp") {
			t.Errorf("outcome %q: %s", got.Outcome, describe(got))
		}
		if _, err := os.Stat(s.path("bundles/new.pem")); err == nil {
			t.Error("the new file stayed")
		}
		// Mended: that is another state, and waits for nothing.
		if err := os.Remove(s.path("bundles/stray.tmp")); err != nil {
			t.Fatal(err)
		}
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	})
}

func TestABundleThatHAProxyNamesInItsRefusalIsRejected(t *testing.T) {
	s, configure := newFile(t, fakeBackend, (*site).startMaster)
	old, tgt := generation(t), target(generation(t), "example")
	tgt.Known = []*cert.Bundle{old}
	s.put("bundles/example.pem", old.PEM())
	p := s.proxy(configure, func(c *haproxy.Config) {
		c.Check = []string{"sh", "-c", `cmp -s "$0" "$1" || exit 0; echo "[ALERT]    (7) : config : unable to load certificate from file '$0': ca md too weak."; exit 1`, s.path("bundles/example.pem"), s.path("weak.pem")}
	})
	s.put("weak.pem", tgt.Bundle.PEM())
	got := s.activate(p, tgt)
	if got.Outcome != cluster.RolledBack || !strings.Contains(got.Error, "ca md too weak") || got.Disk.Fingerprint != old.Fingerprint() {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	// Written by a certsync that was killed before the check: it goes back too.
	s.put("bundles/example.pem", tgt.Bundle.PEM())
	for _, f := range glob(s.path("journal/reload-*.json")) {
		_ = os.Remove(f)
	}
	got = s.activate(p, tgt)
	if got.Outcome != cluster.RolledBack || got.Disk.Fingerprint != old.Fingerprint() {
		t.Errorf("after a kill: outcome %q: %s", got.Outcome, describe(got))
	}
}

func glob(pattern string) []string { files, _ := filepath.Glob(pattern); return files }

func TestAReloadWithoutACheckIsNotMade(t *testing.T) {
	for name, c := range map[string]struct {
		check   []string
		timeout time.Duration
		text    string
	}{
		"no program":       {[]string{"no-such-haproxy", "-c"}, 0, "cannot be run"},
		"no permission":    {[]string{"/etc/passwd"}, 0, "cannot be run"},
		"refused by doas":  {[]string{"sh", "-c", "echo doas: Operation not permitted >&2; exit 1"}, 0, "Operation not permitted"},
		"nothing printed":  {[]string{"false"}, 0, "printed nothing"},
		"no end":           {[]string{"sh", "-c", "sleep 1000 & sleep 1000"}, 200 * time.Millisecond, "no result after 200ms"},
		"no configuration": {nil, 0, "command is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, configure := newFile(t, fakeBackend, (*site).startMaster)
			p := s.proxy(configure, func(cfg *haproxy.Config) { cfg.Check, cfg.Files, cfg.CheckTimeout = c.check, nil, c.timeout })
			before := s.pid()
			tgt := target(generation(t), "example")
			got := s.activate(p, tgt)
			if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, c.text) || got.Hint == "" || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || s.pid() != before {
				t.Errorf("outcome %q: %s", got.Outcome, describe(got))
			}
		})
	}
}

// clockAt is a clock that a test sets.
type clockAt struct{ atomic.Int64 }

func newClock() *clockAt {
	c := &clockAt{}
	c.Store(time.Now().UnixNano())
	return c
}

func (c *clockAt) now() time.Time          { return time.Unix(0, c.Load()) }
func (c *clockAt) forward(d time.Duration) { c.Add(int64(d)) }

func TestReloadsAreNotMoreFrequentThanTheirInterval(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/elsewhere/other.pem")
	configure := s.startMaster()
	clock := newClock()
	proxy := func() *haproxy.Proxy { // a new one each time: the interval is on disk
		return s.proxy(configure, func(c *haproxy.Config) { c.ReloadInterval, c.Now = 0, clock.now })
	}
	s.edit("DIR/elsewhere/other.pem", "DIR/bundles/")
	first, second := target(named(t, "first"), "first"), target(named(t, "second"), "second")
	want(t, s.activate(proxy(), first), cluster.Done, cluster.Proven)
	// The operator names the files from now on, and reloads: that one is not ours, and does not count.
	s.edit("DIR/bundles/", "DIR/bundles/first.pem crt DIR/bundles/second.pem")
	s.put("bundles/second.pem", second.Bundle.PEM())
	if reply := haproxytest.MasterCommand(s.path("master.sock"), "reload\n"); !strings.HasPrefix(reply, "Success=1") {
		t.Fatal(reply)
	}
	third := target(named(t, "third"), "third")
	s.edit("DIR/bundles/second.pem", "DIR/bundles/second.pem crt DIR/bundles/third.pem")
	before := s.pid()
	got := s.activate(proxy(), third)
	until := clock.now().Add(time.Minute).UTC().Format("2006-01-02T15:04")
	if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "put off until "+until) || got.Disk.Fingerprint != third.Bundle.Fingerprint() || s.pid() != before {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	// The clock goes back by a day: that must not put it off by a day.
	clock.forward(-24 * time.Hour)
	third.Bundle = issue(t, certtest.Options{Domains: []string{"third.test"}, NotBefore: clock.now().Add(-time.Hour), NotAfter: clock.now().Add(100 * time.Hour)})
	if got = s.activate(proxy(), third); got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "put off until") {
		t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
	}
	clock.forward(61 * time.Second)
	want(t, s.activate(proxy(), third), cluster.Done, cluster.Proven)
}

func TestAReloadThatDoesNothingIsTriedAgainLaterAndLater(t *testing.T) {
	s, configure := newFile(t, fakeBackend, (*site).startMaster)
	clock := newClock()
	counted := s.path("count")
	p := s.proxy(configure, func(c *haproxy.Config) {
		c.MasterSocket, c.ReloadTimeout, c.Now = "", 200*time.Millisecond, clock.now
		c.Reload = []string{"sh", "-c", `echo x >> "$0"`, counted}
	})
	tries := func() int { data, _ := os.ReadFile(counted); return strings.Count(string(data), "x") }
	tgt := target(generation(t), "example")
	for i, step := range []time.Duration{time.Minute, 10 * time.Minute, 100 * time.Minute, 24 * time.Hour, 24 * time.Hour} {
		got := s.activate(p, tgt)
		if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "was not reloaded") || !strings.Contains(got.Error, "its Pid is still") || tries() != i+1 {
			t.Fatalf("%d: %d tries, outcome %q: %s", i, tries(), got.Outcome, describe(got))
		}
		clock.forward(step - time.Second)
		got = s.activate(p, tgt)
		if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "not tried again before") || tries() != i+1 {
			t.Fatalf("%d: too early: %d tries, outcome %q: %s", i, tries(), got.Outcome, describe(got))
		}
		clock.forward(time.Second)
	}
	// Another bundle is another beginning; so is another HAProxy.
	tries0 := tries()
	clock.forward(time.Second)
	s.activate(p, target(generation(t), "example", tgt.Bundle))
	if tries() != tries0+1 {
		t.Errorf("%d tries for another bundle, want 1", tries()-tries0)
	}
	s.server.(*haproxytest.Fake).Pid(4711)
	clock.forward(time.Second)
	s.activate(p, tgt)
	if tries() != tries0+2 {
		t.Errorf("%d tries for another HAProxy, want 1", tries()-tries0-1)
	}
}

// hostileMaster answers each connection to a master socket by fn.
func hostileMaster(t *testing.T, socket string, fn func(conn net.Conn, command string)) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				command, _ := bufio.NewReader(conn).ReadString('\n')
				fn(conn, command)
			})
		}
	})
}

func TestAHostileMasterBringsNothingDown(t *testing.T) {
	const proc = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n1               master          %d [failed: %d]   0d00h00m01s     x\n# workers\n%d               worker          0               0d00h00m01s     x\n# programs\n\n"
	hang := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	honest := func(conn net.Conn) { _, _ = fmt.Fprintf(conn, proc, 0, 0, os.Getpid()) }
	for name, c := range map[string]struct {
		answer func(conn net.Conn, command string, asked bool)
		text   string
	}{
		"silence":         {func(conn net.Conn, _ string, _ bool) { hang(conn) }, "show proc"},
		"closing at once": {func(net.Conn, string, bool) {}, "show proc"},
		"no such table":   {func(conn net.Conn, _ string, _ bool) { _, _ = io.WriteString(conn, "hello\n\n") }, "show proc"},
		"half a table": {func(conn net.Conn, _ string, _ bool) {
			_, _ = io.WriteString(conn, "#<PID>  <type>\n1   ma")
			hang(conn)
		}, "show proc"},
		"a table of 100 MB":  {func(conn net.Conn, _ string, _ bool) { flood(conn) }, "show proc"},
		"permission denied":  {func(conn net.Conn, command string, _ bool) { answerOr(conn, command, honest, "Permission denied\n\n") }, "Permission denied"},
		"success and no Pid": {func(conn net.Conn, command string, _ bool) { answerOr(conn, command, honest, "Success=1\n--\n\n") }, "still"},
		"success, then hangs": {func(conn net.Conn, command string, _ bool) {
			answerOr(conn, command, honest, "Success=1\n")
			hang(conn)
		}, "still"},
		"half an answer": {func(conn net.Conn, command string, _ bool) { answerOr(conn, command, honest, "Succ") }, "still"},
		"no answer":      {func(conn net.Conn, command string, _ bool) { answerOr(conn, command, honest, ""); hang(conn) }, "still"},
		"a log of 100 MB": {func(conn net.Conn, command string, _ bool) {
			answerOr(conn, command, honest, "Success=1\n--\n")
			if command == "reload\n" {
				flood(conn)
			}
		}, "still"},
		"a refusal": {func(conn net.Conn, command string, _ bool) {
			answerOr(conn, command, honest, "Success=0\n--\n[ALERT]    (1) : config : no luck\n\n")
		}, "no luck"},
		"a refusal, silently": {func(conn net.Conn, command string, asked bool) { refuseSilently(conn, command, asked, proc) }, "counts it as failed"},
		"a lying table": {func(conn net.Conn, command string, asked bool) {
			answerOr(conn, command, func(conn net.Conn) { lie(conn, asked, proc) }, "")
		}, "still"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, fakeBackend, "crt DIR/elsewhere/other.pem")
			s.start()
			var asked atomic.Bool
			hostileMaster(t, s.path("hostile.sock"), func(conn net.Conn, command string) {
				before := asked.Load()
				if command == "reload\n" {
					asked.Store(true)
				}
				c.answer(conn, command, before)
			})
			p := s.proxy(s.reloadable, func(cfg *haproxy.Config) {
				cfg.MasterSocket, cfg.ReloadTimeout = s.path("hostile.sock"), 700*time.Millisecond
			})
			tgt := target(generation(t), "example")
			got := s.activate(p, tgt)
			if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, c.text) || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || got.Reloaded != "" || len(got.Error) > 3000 {
				t.Errorf("outcome %q: %s", got.Outcome, describe(got))
			}
		})
	}
}

// answerOr answers `show proc` by table, and `reload` by text.
func answerOr(conn net.Conn, command string, table func(net.Conn), text string) {
	if command == "reload\n" {
		_, _ = io.WriteString(conn, text)
		return
	}
	table(conn)
}

func flood(conn net.Conn) {
	line := []byte(strings.Repeat("x", 1023) + "\n")
	for range 100 << 10 {
		if _, err := conn.Write(line); err != nil {
			return
		}
	}
}

func refuseSilently(conn net.Conn, command string, asked bool, proc string) {
	if command != "reload\n" {
		n := map[bool]int{true: 1}[asked]
		_, _ = fmt.Fprintf(conn, proc, n, n, os.Getpid())
	}
}

// lie tells of another worker, which the runtime socket does not.
func lie(conn net.Conn, asked bool, proc string) {
	n := map[bool]int{true: 1}[asked]
	_, _ = fmt.Fprintf(conn, proc, n, 0, os.Getpid()+n)
}

func TestAHostileCommandBringsNothingDown(t *testing.T) {
	for name, c := range map[string]struct{ script, text string }{
		"hangs with a child":   {`sleep 1000 & echo $! > "$0/child"; sleep 1000`, "still"},
		"prints 100 MB":        {`dd if=/dev/zero bs=65536 count=1600 2>/dev/null; echo; echo the end`, "still"},
		"fails and says why":   {`echo "haproxy does not run" >&2; exit 3`, "haproxy does not run"},
		"fails after 100 MB":   {`dd if=/dev/zero bs=65536 count=1600 2>/dev/null; echo; echo the end; exit 1`, "the end"},
		"succeeds, does not":   {`exit 0`, "still"},
		"kills itself":         {`kill -9 $$`, "killed"},
		"daemon with our pipe": {`sleep 3 & exit 0`, "still"},
		"tells its world":      {`env > "$0/env"; pwd > "$0/pwd"; cat > "$0/stdin"; exit 0`, "still"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, fakeBackend, "crt DIR/elsewhere/other.pem")
			s.start()
			p := s.proxy(s.reloadable, func(cfg *haproxy.Config) {
				cfg.Reload, cfg.ReloadTimeout = []string{"/bin/sh", "-c", c.script, s.dir}, 1500*time.Millisecond
			})
			got := s.activate(p, target(generation(t), "example"))
			if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, c.text) || got.Hint == "" || len(got.Error) > 3000 {
				t.Errorf("outcome %q: %s", got.Outcome, describe(got))
			}
			if pid, err := os.ReadFile(s.path("child")); err == nil {
				wantDead(t, strings.TrimSpace(string(pid)))
			}
			if env, err := os.ReadFile(s.path("env")); err == nil {
				wantCleanEnvironment(t, string(env))
			}
		})
	}
}

// wantCleanEnvironment fails where a command sees more than it is given, but for what sh adds: certsync's own environment
// has the DNS provider's credentials.
func wantCleanEnvironment(t *testing.T, env string) {
	t.Helper()
	for line := range strings.Lines(env) {
		if name, _, _ := strings.Cut(line, "="); !slices.Contains([]string{"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}, name) {
			t.Errorf("the command sees %s", name)
		}
	}
	if !strings.Contains(env, "PATH=/sbin:") || !strings.Contains(env, "LANG=C\n") {
		t.Errorf("the command's environment: %s", env)
	}
}

// wantDead waits until no process has this ID.
func wantDead(t *testing.T, pid string) {
	t.Helper()
	var number int
	if _, err := fmt.Sscan(pid, &number); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if !alive(number) {
			return
		}
	}
	t.Errorf("process %d, a child of the command, lives on", number)
}

// A port that the new configuration adds and that somebody else has: `haproxy -c` passes, the start fails.
func TestContractAReloadThatFailsAtBindIsReportedAndHarmsNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
		if b.version == "" {
			return // the fake binds nothing anew
		}
		s, configure := newFile(t, b, start)
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = taken.Close() }()
		s.edit("  http-request", "  bind "+taken.Addr().String()+"\n  http-request")
		before := s.pid()
		tgt := target(generation(t), "example")
		got := s.activate(s.proxy(configure), tgt)
		if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "was not reloaded") || got.Hint == "" || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() {
			t.Errorf("outcome %q: %s", got.Outcome, describe(got))
		}
		// 2.6's master does not say why.
		if silent := b.version == "2.6" && s.log().Way == "the master socket"; !silent && !strings.Contains(got.Error, "cannot bind socket") {
			t.Errorf("the error does not quote HAProxy: %s", got.Error)
		}
		if s.pid() != before || s.log().Result == "reloaded" || s.log().Result == "" {
			t.Errorf("Pid %s, before %s; the log: %+v", s.pid(), before, s.log())
		}
		s.served("tls.sock", "first.test", cert.ECDSA)
	})
}

func TestContractNoHandshakeAndNoConnectionIsLostInAReload(t *testing.T) {
	eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
		if b.version == "" {
			return // the fake serves no HTTP
		}
		s := newSite(t, b, "crt DIR/elsewhere/first.pem", exposed)
		s.put("elsewhere/first.pem", named(t, "first").PEM())
		port := "127.0.0.1:" + freePort(t)
		s.edit("timeout client 5s", "timeout client 60s")
		s.edit("bind DIR/tls.sock ssl crt DIR/elsewhere/first.pem", "bind DIR/tls.sock ssl crt DIR/elsewhere/first.pem\n  bind "+port+" ssl crt DIR/elsewhere/first.pem")
		configure := start(s)
		s.edit("ssl crt DIR/elsewhere/first.pem\n", "ssl crt DIR/elsewhere/first.pem crt DIR/bundles/example.pem\n")
		// A request that is half sent.
		keep, err := tls.Dial("tcp", port, &tls.Config{ServerName: "first.test", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = keep.Close() }()
		if _, err := io.WriteString(keep, "GET / HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
		lost, count := clients(t, port, func() {
			want(t, s.activate(s.proxy(configure), target(generation(t), "example")), cluster.Done, cluster.Proven)
		})
		if len(lost) > 0 || count < 10 {
			t.Errorf("%d of %d handshakes were lost: %v", len(lost), count, lost)
		}
		if err := request(keep, "Host: first.test\r\n\r\n"); err != nil {
			t.Errorf("the open connection: %v", err)
		}
		if log := s.log(); log.Way == "the master socket" && log.OldWorkers == 0 {
			t.Errorf("a connection is open, and the log has no old worker: %+v", log)
		}
	})
}

// clients make handshakes and requests one after the other while do runs, and a few more after it.
func clients(t *testing.T, port string, do func()) (lost []error, count int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for more := 5; more > 0; {
				select {
				case <-end:
					more--
				default:
				}
				err := visit(port)
				mu.Lock()
				count++
				if err != nil {
					lost = append(lost, err)
				}
				mu.Unlock()
			}
		})
	}
	do()
	close(end)
	wg.Wait()
	return lost, count
}

func visit(port string) error {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{ServerName: "first.test", InsecureSkipVerify: true}}
	conn, err := dialer.Dial("tcp", port)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return request(conn, "GET / HTTP/1.1\r\nHost: first.test\r\n\r\n")
}

// request sends the end of a request and reads the answer.
func request(conn net.Conn, text string) error {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "HTTP/1.1 200") {
		err = fmt.Errorf("answer %q", line)
	}
	return err
}

func TestContractWithoutAnAdminSocketEveryChangeIsAReload(t *testing.T) {
	for name, c := range map[string]struct {
		socket string
		use    func(c *haproxy.Config)
	}{
		"level operator":    {"stats socket DIR/admin.sock level operator mode 600 expose-fd listeners", func(*haproxy.Config) {}},
		"no runtime socket": {exposed, func(c *haproxy.Config) { c.RuntimeSocket += ".none" }},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, b backend, start func(s *site) func(*haproxy.Config)) {
				s, old := withOld(t, b, "crt DIR/bundles/", c.socket)
				p := s.proxy(start(s), c.use)
				for range 2 {
					before := s.pid()
					tgt := target(generation(t), "example", old)
					got := s.activate(p, tgt)
					want(t, got, cluster.Done, cluster.Proven)
					if s.pid() == before || !strings.Contains(got.Reloaded, "no runtime socket") || s.served("tls.sock", "example.test", cert.ECDSA) != tgt.Bundle.Fingerprint() {
						t.Fatalf("Pid %s, before %s: %s", s.pid(), before, describe(got))
					}
					after := s.pid()
					want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
					if s.pid() != after {
						t.Fatal("HAProxy was reloaded for nothing")
					}
					old = tgt.Bundle
				}
			})
		})
	}
}

func TestContractAnEmptyAnswerIsMendedByAReload(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, at := range []string{"set ssl cert ", "commit ssl cert "} {
			s, old := withOld(t, b, "crt DIR/bundles/", exposed)
			configure := s.startMaster()
			w := &wire{before: func(command string) bool { return !strings.HasPrefix(command, at) }}
			tgt := target(generation(t), "example", old)
			got := s.activate(s.proxy(configure, w.use), tgt)
			want(t, got, cluster.Done, cluster.Proven)
			s.wantServed(got, tgt.Bundle)
			if !strings.Contains(got.Reloaded, "empty or late") {
				t.Errorf("%s: reloaded %q", at, got.Reloaded)
			}
			if list := s.command("show ssl cert\n"); strings.Contains(list, "# transaction") {
				t.Errorf("%s: a transaction is open: %s", at, list)
			}
			s.stop()
		}
	})
}

// A transaction ends with its process: what is open in the next one under the same name is somebody else's, even where it
// holds the same leaf.
func TestContractAnOpenTransactionIsNotOursAfterAReload(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/", exposed)
		configure := s.startMaster()
		dead := false
		w := &wire{before: func(command string) bool {
			dead = dead || strings.HasPrefix(command, "commit ")
			return !dead
		}}
		tgt := target(generation(t), "example", old)
		s.activate(s.proxy(w.use), tgt) // killed, as it were
		if len(glob(s.path("journal/transaction-*.json"))) != 1 || !strings.Contains(s.command("show ssl cert\n"), "# transaction") {
			t.Fatal("no transaction was left")
		}
		before := s.pid()
		haproxytest.MasterCommand(s.path("master.sock"), "reload\n")
		for deadline := time.Now().Add(20 * time.Second); s.quietPid() == before || s.quietPid() == ""; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("HAProxy was not reloaded")
			}
		}
		name := s.path("bundles/example.pem")
		if reply := s.command("set ssl cert " + name + " <<\n" + string(tgt.Bundle.PEM()) + "\n"); !strings.Contains(reply, "Transaction created") {
			t.Fatalf("the transaction outlived its process: %s", reply)
		}
		if got := s.activate(s.proxy(), tgt); got.Outcome != cluster.Failure || !strings.Contains(got.Error, "not certsync's") {
			t.Errorf("outcome %q: %s", got.Outcome, describe(got))
		}
		if reply := s.command("abort ssl cert " + name + "\n"); !strings.Contains(reply, "Transaction aborted") {
			t.Errorf("the foreign transaction was ended by certsync: %s", reply)
		}
		want(t, s.activate(s.proxy(configure), tgt), cluster.Done, cluster.Proven)
		if len(glob(s.path("journal/transaction-*.json"))) != 0 {
			t.Error("the journal has a transaction still")
		}
	})
}

// quietPid is "" while the runtime socket does not answer.
func (s *site) quietPid() string {
	reply, _ := haproxytest.Command(s.path("admin.sock"), "show info\n")
	_, rest, _ := strings.Cut(reply, "Pid: ")
	pid, _, _ := strings.Cut(rest, "\n")
	return pid
}

// What a reload brought into HAProxy and clients do not get goes back, by another reload where the run time cannot.
func TestContractWhatAReloadBroughtAndClientsDoNotGetGoesBack(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/", "stats socket DIR/admin.sock level operator mode 600 expose-fd listeners")
		p := s.proxy(s.startMaster(), func(c *haproxy.Config) { c.ReloadInterval = time.Hour })
		// A name that the bind does not have: the handshake for it shows the bind's default, which is not ours.
		s.put("bundles/aaa.pem", named(t, "aaa").PEM())
		s.put("bundles/bbb.pem", generation(t).PEM())
		got := s.activate(p, target(generation(t), "example", old))
		if got.Outcome != cluster.RolledBack || got.Disk.Fingerprint != old.Fingerprint() || got.Reloaded == "" {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		if proc := haproxytest.MasterCommand(s.path("master.sock"), "show proc\n"); !strings.Contains(proc, "master          2 [failed: 0]") {
			t.Errorf("want two reloads:\n%s", proc)
		}
		if strings.Contains(got.Error, "still") {
			t.Errorf("%s", got.Error)
		}
	})
}

func TestWhereTheMasterDoesNotAnswerTheCommandReloads(t *testing.T) {
	s, configure := newFile(t, fakeBackend, (*site).startMaster)
	p := s.proxy(configure, func(c *haproxy.Config) {
		c.MasterSocket, c.ReloadTimeout = s.path("nothing.sock"), 200*time.Millisecond
		c.Reload = []string{"sh", "-c", `echo x >> "$0"`, s.path("count")}
	})
	got := s.activate(p, target(generation(t), "example"))
	if got.Outcome != cluster.DiskOnly || string(s.take("count")) != "x\n" {
		t.Errorf("outcome %q, command run %q: %s", got.Outcome, s.take("count"), describe(got))
	}
}

func TestWithoutAWayToReloadTheHintNamesThem(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/elsewhere/other.pem")
	s.start()
	got := s.activate(s.proxy(), target(generation(t), "example"))
	if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Hint, "haproxy.master_socket or haproxy.reload") {
		t.Errorf("outcome %q: %s", got.Outcome, describe(got))
	}
}

func TestADamagedReloadLogCountsAsAReloadAndANewerOneIsLeftAlone(t *testing.T) {
	s, configure := newFile(t, fakeBackend, (*site).startMaster)
	clock := newClock()
	p := s.proxy(configure, func(c *haproxy.Config) { c.Now, c.ReloadInterval = clock.now, 0 })
	tgt := target(generation(t), "example")
	want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	files := glob(s.path("journal/reload-*.json"))
	if len(files) != 1 {
		t.Fatal(files)
	}
	clock.forward(time.Hour)
	s.edit("DIR/bundles/example.pem", "DIR/bundles/example.pem crt DIR/bundles/next.pem")
	next := target(named(t, "next"), "next")
	for text, say := range map[string]string{"{": "put off until", `{"version": 99}`: "version 99"} {
		if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := s.pid()
		if got := s.activate(p, next); got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, say) || s.pid() != before {
			t.Errorf("%s: outcome %q: %s", text, got.Outcome, describe(got))
		}
	}
	if data, _ := os.ReadFile(files[0]); slices.Contains([]string{"{"}, string(data)) {
		t.Error("the damaged log was kept")
	}
}
