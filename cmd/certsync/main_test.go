package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"certsync/internal/haproxy/haproxytest"
	"certsync/internal/lab"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"certsync": main})
}

// TestScripts runs the stories of testdata/script: what a person does, and what is on each stream then.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"ca":       startCA,
			"webhook":  startWebhook,
			"mode":     setMode,
			"envsubst": substitute,
			"sshkey":   makeKey,
			"ask":      ask,
			"haproxy":  startHAProxy,
			"begin":    startBackground,
			"signal":   sendSignal,
			"ends":     awaitEnd,
			"await":    await,
			"freeport": freePort,
			"get":      getPage,
		},
		Setup: func(env *testscript.Env) error {
			env.Values[backgroundKey{}] = background{}
			return nil
		},
	})
}

// exits runs a command and holds its exit code: exits CODE COMMAND [ARG...].
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%s exited %d, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}

// startCA starts a CA and its DNS server for the story and writes dns.env and ca.pem; $DIRECTORY and $RESOLVER then
// name them: ca.
func startCA(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: ca")
	}
	dns, err := lab.NewDNS(lab.DNSOptions{})
	ts.Check(err)
	ts.Defer(func() { _ = dns.Close() })
	ca, err := lab.NewCA(lab.CAOptions{DNS: dns.Address()})
	ts.Check(err)
	ts.Defer(func() { _ = ca.Close() })
	work := ts.Getenv("WORK")
	ts.Check(os.WriteFile(filepath.Join(work, "dns.env"), []byte(dns.EnvFile()), 0o600))
	ts.Check(os.WriteFile(filepath.Join(work, "ca.pem"), ca.CAPEM(), 0o600))
	ts.Setenv("DIRECTORY", ca.Directory())
	ts.Setenv("RESOLVER", dns.Address())
}

// startHAProxy starts the fake HAProxy of the contract tests for the story, with the folder certs as its `crt DIR`; $ADMIN
// and $TLS are then its runtime socket and its bind: haproxy.
func startHAProxy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: haproxy")
	}
	// The paths of unix sockets are at most 103 bytes long on FreeBSD, which $WORK may exceed.
	dir, err := os.MkdirTemp("", "hap")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	admin, tls, work := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "tls.sock"), ts.Getenv("WORK")
	text := fmt.Sprintf("stats socket %s level admin\nbind %s ssl crt %s\n", admin, tls, filepath.Join(work, "certs"))
	ts.Check(os.WriteFile(filepath.Join(work, "haproxy.conf"), []byte(text), 0o600))
	fake, err := haproxytest.StartFake(filepath.Join(work, "haproxy.conf"), work)
	ts.Check(err)
	ts.Defer(fake.Stop)
	ts.Setenv("ADMIN", admin)
	ts.Setenv("TLS", tls)
}

// setMode is chmod, which testscript's own takes in octal too, but not for folders that the story makes: mode OCTAL FILE.
func setMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	m, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	ts.Check(os.Chmod(ts.MkAbs(args[1]), os.FileMode(m)))
}

// substitute replaces the environment variables that a file names: envsubst FILE.
func substitute(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: envsubst FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// makeKey makes an SSH key pair: sshkey FILE.
func makeKey(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sshkey FILE")
	}
	key, err := lab.NewKeyPair()
	ts.Check(err)
	ts.Check(key.Write(ts.MkAbs(args[0])))
}

// ask runs `certsync serve-peer` as sshd does, with an input that stays open, sends the request in a file to it, and
// writes the reply to the file reply: ask REQUEST ARG...
func ask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: ask REQUEST ARG...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "certsync", append([]string{"serve-peer"}, args[1:]...)...)
	cmd.Dir = ts.Getenv("WORK")
	in, err := cmd.StdinPipe()
	ts.Check(err)
	defer in.Close()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	ts.Check(cmd.Start())
	_, err = io.WriteString(in, strings.ReplaceAll(ts.ReadFile(args[0]), "\n", "\r\n"))
	ts.Check(err)
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("serve-peer: %v\n%s", err, errOut.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("reply"), out.Bytes(), 0o600))
}

func TestEveryExitCodeIsDocumented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for code := exitDone; code <= exitPutOff; code++ {
		if !strings.Contains(string(readme), fmt.Sprintf("**%d**", code)) {
			t.Errorf("README.md does not tell exit code %d", code)
		}
	}
}
