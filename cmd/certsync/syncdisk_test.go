package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/store"
)

// serviceUID is a user other than root and than this process's: nobody, in FreeBSD and in Debian.
const serviceUID = 65534

// TestSyncDiskRunByRootActsAsTheServiceUser: rc(8) and systemd run it as root, in a state_dir that is not root's.
func TestSyncDiskRunByRootActsAsTheServiceUser(t *testing.T) {
	if os.Geteuid() != 0 {
		const why = "only root can become another user"
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	dir, bundle := serviceHost(t)
	code, stderr := runAs(t, "certsync", "sync", "--disk", "-c", filepath.Join(dir, "certsync.yaml"))
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	file := filepath.Join(dir, "certs", "example.org.pem")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != serviceUID || info.Mode().Perm() != 0o600 {
		t.Errorf("%s belongs to uid %d, mode %v; want %d, 0600", file, owner.Uid, info.Mode(), serviceUID)
	}
	if data, err := os.ReadFile(file); err != nil || !bytes.Equal(data, bundle.PEM()) {
		t.Errorf("it is not the bundle (%v)", err)
	}
	err = filepath.WalkDir(filepath.Join(dir, "state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != serviceUID {
			err = fmt.Errorf("%s belongs to root: the service could not open it", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	// A folder that the service cannot write is told, with the mend, though root could write it.
	if err := errors.Join(os.Remove(file), os.Chown(filepath.Dir(file), 0, 0)); err != nil {
		t.Fatal(err)
	}
	code, stderr = runAs(t, "certsync", "sync", "--disk", "-c", filepath.Join(dir, "certsync.yaml"))
	if code != exitFailed || !strings.Contains(stderr, "certsync: hint: let certsync's user write in "+filepath.Dir(file)) {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// serviceHost is a host whose state_dir and bundle folder belong to the service, with a certificate in its store.
func serviceHost(t *testing.T) (dir string, bundle *cert.Bundle) {
	t.Helper()
	dir, err := os.MkdirTemp("", "svc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	state, certs := filepath.Join(dir, "state"), filepath.Join(dir, "certs")
	text := fmt.Sprintf(`node: proxy1
nodes: [{name: proxy1, address: 127.0.0.1}]
dns: {provider: rfc2136}
certificates: [{name: example.org, domains: [example.org, "*.example.org"]}]
haproxy: [{config: %[1]s/haproxy.conf, bundle_dir: %[1]s/certs, runtime_socket: %[1]s/haproxy.sock}]
carp: {role: "static:proxy1"}
state_dir: %[1]s/state
run_dir: %[1]s/run
`, dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(certs, 0o755), os.WriteFile(filepath.Join(dir, "certsync.yaml"), []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(state, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := certtest.New()
	if err != nil {
		t.Fatal(err)
	}
	bundle = ca.Issue(t, certtest.Options{})
	if err := s.Keep(context.Background(), cluster.Kept{Generation: bundle.Generation("example.org", 1), Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{state, certs} {
		err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, serviceUID, serviceUID))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, bundle
}

// runAs runs this test's binary as the program, which TestMain makes of it.
func runAs(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args[1:]...)
	cmd.Args[0] = args[0]
	var out bytes.Buffer
	cmd.Stderr = &out
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode(), out.String()
	case err != nil:
		t.Fatal(err)
	}
	return exitDone, out.String()
}
