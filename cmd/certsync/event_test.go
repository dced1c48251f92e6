package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// closer is a writer that can be closed, as the program's streams are.
type closer struct{ *bytes.Buffer }

func (closer) Close() error { return nil }

// eventConfig writes a configuration whose sockets are in a folder of their own, and gives both.
func eventConfig(t *testing.T) (file, socket string) {
	t.Helper()
	dir := t.TempDir()
	runDir, err := os.MkdirTemp("", "cs") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runDir) })
	file = filepath.Join(dir, "certsync.yaml")
	text := fmt.Sprintf(`nodes: [{name: proxy1, address: 127.0.0.1}]
dns: {provider: rfc2136}
certificates: [{name: a, domains: [a.example.org]}]
carp: {vhids: [{interface: em0, vhid: 1, addresses: [192.0.2.10/32]}]}
run_dir: %s
`, runDir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, filepath.Join(runDir, "certsync.sock")
}

func runEvent(file string) (code int, stderr string) {
	var out, errOut bytes.Buffer
	code = run([]string{"event", "-c", file}, io.NopCloser(strings.NewReader("")), closer{&out}, &errOut)
	return code, out.String() + errOut.String()
}

func TestEventWakesTheDaemon(t *testing.T) {
	file, socket := eventConfig(t)
	if code, text := runEvent(file); code != exitDone || !strings.Contains(text, "nothing to wake") {
		t.Errorf("without a daemon: exit %d, %q", code, text)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 10)
	var status atomic.Int64
	status.Store(http.StatusNoContent)
	hang := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.URL.Path
		code := int(status.Load())
		if code == 0 {
			<-hang
			return
		}
		w.WriteHeader(code)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if code, text := runEvent(file); code != exitDone || text != "" {
		t.Errorf("exit %d, %q", code, text)
	}
	if got := <-asked; got != "POST /v1/event" {
		t.Errorf("asked for %s", got)
	}
	status.Store(http.StatusInternalServerError)
	if code, text := runEvent(file); code != exitFailed || !strings.Contains(text, "HTTP status 500") {
		t.Errorf("a daemon that fails: exit %d, %q", code, text)
	}
	status.Store(0)
	if code, text := runEvent(file); code != exitFailed || !strings.Contains(text, "certsync: error: wake the daemon") {
		t.Errorf("a daemon that hangs: exit %d, %q", code, text)
	}
	close(hang)
	server.Close()
	<-served
	// What a daemon that was killed leaves: a socket without a listener.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if code, text := runEvent(file); code != exitDone || !strings.Contains(text, "nothing to wake") {
		t.Errorf("with a stale socket: exit %d, %q", code, text)
	}
}
