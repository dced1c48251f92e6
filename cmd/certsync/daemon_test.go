package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"certsync/internal/config"
	"certsync/internal/distribute"
)

// storyTime is how long a story waits for what must come.
const storyTime = 30 * time.Second

// background are the processes that a story started, by name.
type background map[string]*exec.Cmd

// startBackground starts a program whose output goes to the file NAME.log: begin NAME COMMAND [ARG...].
func startBackground(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: begin NAME COMMAND [ARG...]")
	}
	log, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), log, log
	ts.Check(cmd.Start())
	ts.Value(backgroundKey{}).(background)[args[0]] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill() // no error that matters: it may have ended
		_ = cmd.Wait()
	})
}

type backgroundKey struct{}

func process(ts *testscript.TestScript, name string) *exec.Cmd {
	cmd, ok := ts.Value(backgroundKey{}).(background)[name]
	if !ok {
		ts.Fatalf("%s was not begun", name)
	}
	return cmd
}

// sendSignal sends one: signal HUP|INT|TERM|KILL|STOP|CONT NAME.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if neg || len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal HUP|INT|TERM|KILL|STOP|CONT NAME")
	}
	ts.Check(process(ts, args[1]).Process.Signal(signals[args[0]]))
}

// awaitEnd waits until a program has ended, and holds its exit code: ends CODE NAME.
func awaitEnd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ends CODE NAME")
	}
	cmd, ended := process(ts, args[1]), make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else {
			ts.Check(err)
		}
		if strconv.Itoa(code) != args[0] {
			ts.Fatalf("%s exited %d, want %s\n%s", args[1], code, args[0], ts.ReadFile(args[1]+".log"))
		}
	case <-time.After(storyTime):
		_ = cmd.Process.Kill()
		<-ended
		ts.Fatalf("%s does not end\n%s", args[1], ts.ReadFile(args[1]+".log"))
	}
}

// await waits until a file is there and, where an expression is given, matches it: await FILE [REGEXP].
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await FILE [REGEXP]")
	}
	want := regexp.MustCompile("")
	if len(args) == 2 {
		want = regexp.MustCompile("(?m)" + args[1])
	}
	for deadline := time.Now().Add(storyTime); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if _, lost := os.Lstat(ts.MkAbs(args[0])); lost == nil && (len(args) == 1 || err == nil && want.Match(text)) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come to match %q:\n%s", args[0], args[1:], text)
		}
	}
}

func TestEveryFileThatAConfigurationNamesIsWatched(t *testing.T) {
	c, err := config.Parse("/etc/certsync.yaml", []byte(`nodes: [{name: a, address: 192.0.2.1}]
acme: {ca_file: /etc/ca.pem, eab: {key_id: x, hmac_key_file: /etc/hmac}}
dns: {provider: rfc2136, env_file: /etc/dns.env}
certificates:
  - {name: one, domains: [one.example.org]}
  - {name: two, domains: [two.example.org], dns: {env_file: /etc/two.env}, bundle: /srv/two.pem}
  - {name: three, domains: [three.example.org], key_types: [ec256, rsa2048], bundle: /srv/three.pem}
haproxy: [{bundle_dir: /certs, crt_list: /etc/crt-list, runtime_socket: /run/h.sock}]
carp: {role: "static:a"}
`))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, w := range (&wiring{config: c}).watched("/etc/certsync.yaml") {
		have = append(have, fmt.Sprintf("%s %s %v", w.Reason, w.Path, w.Folder))
	}
	want := []string{
		"configuration /etc/ca.pem false", "configuration /etc/certsync.yaml false", "configuration /etc/dns.env false",
		"configuration /etc/hmac false", "configuration /etc/two.env false", "configuration " + c.SSH.KeyFile + " false",
		"configuration " + c.SSH.KnownHosts + " false", "bundles /certs true", "haproxy /run/h.sock false", "bundles /etc/crt-list false",
		"bundles /srv/two.pem false", "bundles /srv/three.pem.ecdsa false", "bundles /srv/three.pem.rsa false",
	}
	if !slices.Equal(have, want) {
		t.Errorf("watched:\n%q, want\n%q", have, want)
	}
}

func TestAJobIsThePassThatItsNameSays(t *testing.T) {
	for kind, want := range map[distribute.JobKind][2]bool{"": {}, distribute.Renew: {}, distribute.Issue: {true, false}, distribute.Sync: {false, true}} {
		got := wantedOf(distribute.Job{Kind: kind, Names: []string{"one"}})
		if got.MasterOnly != want[0] || got.NoOrders != want[1] || !slices.Equal(got.Names, []string{"one"}) {
			t.Errorf("%q: %+v", kind, got)
		}
	}
}
