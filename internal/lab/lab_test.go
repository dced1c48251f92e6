package lab

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert/certtest"
	"certsync/internal/config"
)

// testLab is a lab without certsync itself: the nodes are there, and what they would run is not.
func testLab(t *testing.T, o Options) *Lab {
	t.Helper()
	o.Binary = "/bin/echo"
	l, err := New(t.Context(), o)
	if errors.Is(err, ErrNoHAProxy) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v (under CI=true this is a failure; scripts/deps.sh installs it)", err)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestEveryNodeBeginsWithTheOldCertificateInService(t *testing.T) {
	l := testLab(t, Options{})
	if len(l.Nodes) != 2 || l.Master() != l.Nodes[0] {
		t.Fatalf("%d nodes, MASTER %v", len(l.Nodes), l.Master())
	}
	old := l.Old["example.org"]
	if left := time.Until(old.Leaf().NotAfter); left > 4*24*time.Hour || left < 2*24*time.Hour {
		t.Errorf("the old certificate has %s left, want 3 days", left)
	}
	for _, n := range l.Nodes {
		for _, name := range []string{"example.org", "www.example.org"} {
			if f, err := n.Handshake(t.Context(), name); err != nil || f != old.Fingerprint() {
				t.Errorf("%s for %s: %s, %v; want %s", n.Name, name, f.Short(), err, old.Fingerprint().Short())
			}
		}
		if err := n.CheckHAProxyConfig(t.Context()); err != nil {
			t.Error(err)
		}
		if b, err := n.Bundle("example.org"); err != nil || b.Fingerprint() != old.Fingerprint() {
			t.Errorf("bundle on %s: %v, %v", n.Name, b, err)
		}
	}
}

func TestTheNodesConfigurationIsSound(t *testing.T) {
	l := testLab(t, Options{Certificates: []CertificateOptions{
		{Name: "example.org", Domains: []string{"example.org", "*.example.org"}},
		{Name: "new.example.org", Domains: []string{"new.example.org"}, New: true},
	}})
	for i, n := range l.Nodes {
		c, err := config.Load(n.Config)
		if err != nil {
			t.Fatal(err)
		}
		if c.Node != n.Name || len(c.Nodes) != 2 || c.StateDir != n.StateDir || c.CARP.Role != "static:proxy1" {
			t.Errorf("%s has %+v", n.Name, c)
		}
		if c.Certificates[0].Bundle != n.BundleFile("example.org") || c.Certificates[1].Bundle != "" {
			t.Errorf("%s names %q and %q", n.Name, c.Certificates[0].Bundle, c.Certificates[1].Bundle)
		}
		if info, err := os.Stat(c.DNS.EnvFile); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("dns.env: %v, %v; it holds the TSIG secret", info.Mode(), err)
		}
		if socket := c.RunDir + "/certsync.sock"; len(socket) > 100 {
			t.Errorf("%s: a unix socket's path has at most 103 bytes", socket)
		}
		other := l.Nodes[1-i]
		if _, err := os.Stat(other.StateDir); err != nil || other.StateDir == n.StateDir {
			t.Errorf("the nodes share %s", n.StateDir)
		}
	}
}

func TestSetMasterIsSeenByEveryNode(t *testing.T) {
	l := testLab(t, Options{Nodes: make([]NodeOptions, 3)})
	if err := l.SetMaster(t.Context(), l.Nodes[2]); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		c, err := config.Load(n.Config)
		if err != nil {
			t.Fatal(err)
		}
		if master, _ := c.CARP.Static(); master != "proxy3" {
			t.Errorf("%s takes %s for the MASTER", n.Name, master)
		}
	}
}

func TestWhatHidesTheBundleFolderIsServed(t *testing.T) {
	l := testLab(t, Options{Nodes: []NodeOptions{{HideBundle: true}}})
	n := l.Nodes[0]
	if err := os.Remove(n.BundleFile("example.org")); err != nil {
		t.Fatal(err)
	}
	n.StopHAProxy()
	// An empty folder is fine with HAProxy, and what hides it serves on.
	if err := n.StartHAProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := n.Handshake(t.Context(), "example.org"); err != nil || f != l.Old["example.org"].Fingerprint() {
		t.Errorf("%s, %v", f.Short(), err)
	}
}

func TestBundlesCanBeLoadedByACrtList(t *testing.T) {
	l := testLab(t, Options{CrtList: true})
	for _, n := range l.Nodes {
		if f, err := n.Handshake(t.Context(), "www.example.org"); err != nil || f != l.Old["example.org"].Fingerprint() {
			t.Errorf("%s: %s, %v", n.Name, f.Short(), err)
		}
		c, err := config.Load(n.Config)
		if err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadFile(c.HAProxy[0].CrtList)
		if err != nil || string(list) != n.BundleFile("example.org")+"\n" {
			t.Errorf("%s has the list %q, %v", n.Name, list, err)
		}
	}
}

func TestHAProxyCanBeTakenAwayAndComeBack(t *testing.T) {
	l := testLab(t, Options{Nodes: make([]NodeOptions, 1)})
	n := l.Nodes[0]
	for name, end := range map[string]func(){"stopped": n.StopHAProxy, "killed": n.KillHAProxy} {
		before, err := n.HAProxyPid(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end()
		if _, err := n.HAProxyPid(t.Context()); err == nil {
			t.Errorf("%s, and it answers on its runtime socket", name)
		}
		if _, err := n.Handshake(t.Context(), "example.org"); err == nil {
			t.Errorf("%s, and it serves", name)
		}
		if err := n.StartHAProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after, err := n.HAProxyPid(t.Context()); err != nil || after == before {
			t.Errorf("%s and started: pid %d, before %d, %v", name, after, before, err)
		}
	}
	if err := n.StartHAProxy(t.Context()); err == nil {
		t.Error("started a second HAProxy beside the first")
	}
}

func TestHAProxyThatCannotStartSaysWhy(t *testing.T) {
	l := testLab(t, Options{Nodes: make([]NodeOptions, 1)})
	n := l.Nodes[0]
	n.StopHAProxy()
	if err := os.WriteFile(n.BundleFile("torn.example.org"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.CheckHAProxyConfig(t.Context()); err == nil || !strings.Contains(err.Error(), "torn.example.org") {
		t.Errorf("want the torn file's name in: %v", err)
	}
	if err := n.StartHAProxy(t.Context()); err == nil || !strings.Contains(err.Error(), "torn.example.org") {
		t.Errorf("want the torn file's name in: %v", err)
	}
}

func TestSSHCanBeTakenAwayHangAndComeBack(t *testing.T) {
	l := testLab(t, Options{})
	n := l.Nodes[1]
	address := loopback(n.sshPort)
	greeting := func() (string, error) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 8)
		_, err = io.ReadFull(conn, buf)
		return string(buf), err
	}
	if g, err := greeting(); err != nil || g != "SSH-2.0-" {
		t.Errorf("at the start: %q, %v", g, err)
	}
	n.StopSSH()
	if _, err := greeting(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("stopped: %v", err)
	}
	if err := n.HangSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := greeting(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("hanging: %v", err)
	}
	if err := n.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g, err := greeting(); err != nil || g != "SSH-2.0-" {
		t.Errorf("started again: %q, %v", g, err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := testLab(t, Options{})
	var pids []int
	for _, n := range l.Nodes {
		pid, err := n.HAProxyPid(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("HAProxy %d is there: %v", pid, err)
		}
	}
	if _, err := os.Stat(l.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v", l.Root, err)
	}
	for _, n := range l.Nodes {
		for _, address := range []string{n.TLSAddress, loopback(n.sshPort)} {
			if conn, err := net.Dial("tcp", address); err == nil {
				_ = conn.Close()
				t.Errorf("%s is served", address)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestNewCleansUpWhereItFails(t *testing.T) {
	parent, err := os.MkdirTemp("/tmp", "lab-") // short enough for the lab to use it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(parent) }()
	t.Setenv("TMPDIR", parent)
	if _, err := New(t.Context(), Options{Binary: "/bin/echo", HAProxy: "/bin/false"}); err == nil {
		t.Fatal("a lab whose HAProxy is /bin/false")
	}
	left, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("%s is left", e.Name())
	}
}

func TestBranchesAreOrderedByNumber(t *testing.T) {
	if compareBranch("2.6", "3.0") >= 0 || compareBranch("3.2", "3.10") >= 0 || compareBranch("3.0", "3.0") != 0 {
		t.Error("want 2.6 < 3.0 < 3.2 < 3.10")
	}
}

func TestReportIsTheLastJSONLine(t *testing.T) {
	r, err := ParseReport([]byte(`{"type":"progress","step":"adopt"}` + "\n" + `{"type":"report","report":{"node":"proxy1","outcome":"done"}}` + "\n"))
	if err != nil || r.Node != "proxy1" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, torn := range []string{"", "x", `{"type":"progress"}`} {
		if _, err := ParseReport([]byte(torn)); err == nil {
			t.Errorf("%q was taken for a report", torn)
		}
	}
	nodes, err := ParseStatus([]byte(`{"nodes":[{"node":"proxy2","role":"BACKUP"}]}`))
	if err != nil || len(nodes) != 1 || nodes[0].Node != "proxy2" {
		t.Errorf("%+v, %v", nodes, err)
	}
}

func TestReloadServesWhatIsOnDisk(t *testing.T) {
	l := testLab(t, Options{})
	n, other := l.Nodes[0], l.Nodes[1]
	pid, err := n.HAProxyPid(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := certtest.NewCA(t).Issue(t, certtest.Options{})
	if err := os.WriteFile(n.BundleFile("example.org"), b.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	load := StartLoad(t.Context(), LoadOptions{Addresses: []string{n.TLSAddress}, ServerName: "example.org", Rate: 50})
	if err := n.ReloadHAProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := n.Handshake(t.Context(), "example.org"); err != nil || f != b.Fingerprint() {
		t.Errorf("after the reload: %s, %v; want %s", f.Short(), err, b.Fingerprint().Short())
	}
	if s := load.Stop(); s.Failed > 0 {
		t.Errorf("the reload was noticed: %v", s.Err())
	}
	if f, err := other.Handshake(t.Context(), "example.org"); err != nil || f != l.Old["example.org"].Fingerprint() {
		t.Errorf("the other node: %s, %v", f.Short(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the HAProxy from before the reload is there: %v", err)
	}
}
