//go:build failpoint

package haproxy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// TestMain is also the process that is killed: with CERTSYNC_TEST_CRASH set it activates that site's next.pem, and
// nothing else.
func TestMain(m *testing.M) {
	dir := os.Getenv("CERTSYNC_TEST_CRASH")
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := crash(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func crash(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "next.pem"))
	if err != nil {
		return err
	}
	b, err := cert.Parse(data)
	if err != nil {
		return err
	}
	p, err := haproxy.New(haproxy.Config{Name: "x", BundleDir: filepath.Join(dir, "bundles"), RuntimeSocket: filepath.Join(dir, "admin.sock"),
		JournalDir: filepath.Join(dir, "journal"), Verify: []string{filepath.Join(dir, "tls.sock")}, CrtList: os.Getenv("CERTSYNC_TEST_CRTLIST"),
		MasterSocket: os.Getenv("CERTSYNC_TEST_MASTER"), Check: []string{"true"}})
	if err != nil {
		return err
	}
	if os.Getenv("CERTSYNC_TEST_PRUNE") != "" {
		return crashPrune(p, b)
	}
	if os.Getenv("CERTSYNC_TEST_ONDISK") != "" {
		return crashOnDisk(p, b)
	}
	t := target(b, "example")
	t.Path = filepath.Join(dir, "bundles", "example.pem")
	t.Both = os.Getenv("CERTSYNC_TEST_BOTH") != ""
	out, err := p.Activate(context.Background(), []cluster.Target{t})
	if err != nil {
		return err
	}
	return errors.New("it was not killed: " + string(out[0].Outcome) + " " + out[0].Error)
}

var crashes = map[string][]string{
	"replaced": {"haproxy.original.temp", "haproxy.original.synced", "haproxy.previous.temp", "haproxy.previous.synced", "haproxy.own.temp", "haproxy.own.synced",
		"haproxy.temp", "haproxy.synced", "haproxy.written", "haproxy.begun", "haproxy.set", "haproxy.staged", "haproxy.committed"},
	"new in a folder": {"haproxy.temp", "haproxy.synced", "haproxy.written", "haproxy.new", "haproxy.begun", "haproxy.set", "haproxy.staged", "haproxy.committed", "haproxy.added"},
	"new in a crt-list": {"haproxy.temp", "haproxy.written", "haproxy.crtlist.temp", "haproxy.crtlist.synced", "haproxy.listed_on_disk", "haproxy.new", "haproxy.begun", "haproxy.set", "haproxy.staged",
		"haproxy.committed", "haproxy.added"},
	oneToBoth: {"haproxy.written", "haproxy.added", "haproxy.retired"},
}

// oneToBoth is a certificate that gets a second key type, so that its old file stands in the way of the new name.
const oneToBoth = "one key type to both"

// inMemory are the steps that leave something in HAProxy.
var inMemory = []string{"haproxy.new", "haproxy.set", "haproxy.committed", "haproxy.added", "haproxy.retired"}

func TestContractAKillAtAnyStepLeavesOldOrNew(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for scenario, steps := range crashes {
			for _, step := range steps {
				// What happens on disk is the same on all; the real ones see all steps in the full run.
				if b.version != "" && os.Getenv("CERTSYNC_TEST_FULL") == "" && !slices.Contains(inMemory, step) {
					continue
				}
				t.Run(scenario+" "+step, func(t *testing.T) {
					killedAt(t, b, scenario, step)
				})
			}
		}
	})
}

func killedAt(t *testing.T, b backend, scenario, step string) {
	list := scenario == "new in a crt-list"
	s := newSite(t, b, map[bool]string{false: "crt DIR/bundles/", true: "crt-list DIR/list"}[list])
	s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
	s.put("list", []byte(s.path("bundles/first.pem")+"\n"))
	old, next := generation(t), generation(t)
	if scenario == "replaced" || scenario == oneToBoth {
		s.put("bundles/example.pem", old.PEM())
	}
	if scenario == oneToBoth {
		// The bind's default, in the place of the old file: HAProxy lets that one go then.
		s.put("bundles/default.pem", issue(t, certtest.Options{Domains: []string{"default.test"}}).PEM())
	}
	s.put("next.pem", next.PEM())
	s.start()
	crtList := ""
	if list {
		crtList = s.path("list")
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), "CERTSYNC_TEST_CRASH="+s.dir, "CERTSYNC_TEST_CRTLIST="+crtList, "CERTSYNC_FAILPOINT="+step)
	if scenario == oneToBoth {
		child.Env = append(child.Env, "CERTSYNC_TEST_BOTH=1")
	}
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	s.mustCheck()
	if scenario == "replaced" {
		data := string(s.take("bundles/example.pem"))
		if data != string(old.PEM()) && data != string(next.PEM()) {
			t.Error("the file is neither the old bundle nor the new one")
		}
		if f := s.served("tls.sock", "example.test", cert.ECDSA); f != old.Fingerprint() && f != next.Fingerprint() {
			t.Errorf("clients get %s", f.Short())
		}
	}

	tgt := target(next, "example")
	tgt.Path, tgt.Both = s.path("bundles/example.pem"), scenario == oneToBoth
	got := s.activate(s.proxy(func(c *haproxy.Config) { c.CrtList = crtList }), tgt)
	if got.Outcome != cluster.Done && got.Outcome != cluster.Unchanged {
		t.Fatalf("the second run: outcome %q: %s", got.Outcome, describe(got))
	}
	s.wantServed(got, next)
	s.mustCheck()
	if strings.Contains(s.command("show ssl cert\n"), "# transaction") {
		t.Error("a transaction is open")
	}
	for _, pattern := range []string{".certsync-*", "bundles/.certsync-*", "journal/.certsync-*", "journal/*/.certsync-*"} {
		if left, _ := filepath.Glob(s.path(pattern)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if n := strings.Count(string(s.take("list")), "example.pem"); list && n != 1 {
		t.Errorf("the crt-list names it %d times", n)
	}
}
