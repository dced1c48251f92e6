package haproxy_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

// backend is what a site runs: the fake, or a real HAProxy.
type backend struct {
	start func(config, dir, socket string) (haproxytest.Server, error)
	check func(config, dir string) error
	// version is "" for the fake.
	version string
	// binary is the real one.
	binary haproxytest.Binary
}

var fakeBackend = backend{
	start: func(config, dir, _ string) (haproxytest.Server, error) { return haproxytest.StartFake(config, dir) },
	check: haproxytest.CheckFake,
}

func realBackend(b haproxytest.Binary) backend {
	return backend{
		start: func(config, dir, socket string) (haproxytest.Server, error) {
			return b.Start(context.Background(), config, dir, socket)
		},
		check:   b.Check,
		version: b.Version,
		binary:  b,
	}
}

// each runs a test on the fake and on every HAProxy.
func each(t *testing.T, test func(t *testing.T, b backend)) {
	eachOf(t, haproxytest.Versions(), test)
}

// eachOf is each for some HAProxies.
func eachOf(t *testing.T, versions []string, test func(t *testing.T, b backend)) {
	inTurn(t, versions, func(t *testing.T, b backend) {
		t.Parallel() // they wait more than they compute
		test(t, b)
	})
}

// inTurn is eachOf, one after the other: for what is measured of the whole process.
func inTurn(t *testing.T, versions []string, test func(t *testing.T, b backend)) {
	t.Run("Fake", func(t *testing.T) { test(t, fakeBackend) })
	for _, version := range versions {
		t.Run("HAProxy_"+version, func(t *testing.T) {
			b, ok := haproxytest.Find(version)
			if !ok {
				const hint = "HAProxy %s is not installed: run scripts/deps.sh"
				if os.Getenv("CI") == "true" {
					t.Fatalf(hint, version)
				}
				t.Skipf(hint, version)
			}
			test(t, realBackend(b))
		})
	}
}

var authority = sync.OnceValue(func() *certtest.CA {
	ca, err := certtest.New()
	if err != nil {
		panic(err)
	}
	return ca
})

// rsaKeys holds two keys of each size, handed out in turn: to make one takes a second or more under the race detector.
var rsaKeys = struct {
	sync.Mutex
	keys map[cert.KeyType][]crypto.Signer
	next map[cert.KeyType]int
}{keys: map[cert.KeyType][]crypto.Signer{}, next: map[cert.KeyType]int{}}

func rsaKey(t testing.TB, k cert.KeyType) crypto.Signer {
	t.Helper()
	rsaKeys.Lock()
	defer rsaKeys.Unlock()
	i := rsaKeys.next[k]
	rsaKeys.next[k] = (i + 1) % 2
	if i == len(rsaKeys.keys[k]) {
		key, err := k.Generate()
		if err != nil {
			t.Fatal(err)
		}
		rsaKeys.keys[k] = append(rsaKeys.keys[k], key)
	}
	return rsaKeys.keys[k][i]
}

func issue(t testing.TB, o certtest.Options) *cert.Bundle {
	t.Helper()
	o.Chain = true
	if o.KeyType.Algorithm() == cert.RSA {
		o.Key = rsaKey(t, o.KeyType)
	}
	return authority().Issue(t, o)
}

// site is a host with one HAProxy: bundles/ is the bundle folder, tls.sock and other.sock are its binds.
type site struct {
	t       testing.TB
	b       backend
	dir     string
	bundles string
	config  string
	server  haproxytest.Server
	// other is what the bind that is not ours serves.
	other *cert.Bundle
}

// newSite writes a configuration whose first bind loads `crt` lines as given; DIR in them is the site's folder.
func newSite(t testing.TB, b backend, crt string, global ...string) *site {
	t.Helper()
	// The paths of unix sockets are at most 103 bytes long on FreeBSD, which t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "hap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{t: t, b: b, dir: dir, bundles: filepath.Join(dir, "bundles"), config: filepath.Join(dir, "haproxy.cfg")}
	for _, d := range []string{s.bundles, filepath.Join(dir, "elsewhere")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.other = issue(t, certtest.Options{Domains: []string{"other.test"}})
	s.put("elsewhere/other.pem", s.other.PEM())
	if len(global) == 0 {
		global = []string{"stats socket DIR/admin.sock level admin mode 600"}
	}
	text := "global\n  " + strings.Join(global, "\n  ") + `
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 1s
frontend web
  bind DIR/tls.sock ssl ` + crt + `
  bind DIR/other.sock ssl crt DIR/elsewhere/other.pem
  http-request return status 200
`
	s.put("haproxy.cfg", []byte(strings.ReplaceAll(text, "DIR", dir)))
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) put(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) start() {
	s.t.Helper()
	server, err := s.b.start(s.config, s.dir, s.path("admin.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
	s.t.Cleanup(func() { s.stop() })
}

func (s *site) stop() {
	if s.server != nil {
		s.server.Stop()
		s.server = nil
	}
	_ = os.Remove(s.path("admin.sock"))
}

func (s *site) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func (s *site) command(command string) string {
	s.t.Helper()
	reply, err := haproxytest.Command(s.path("admin.sock"), command)
	if err != nil {
		s.t.Fatalf("%.60q: %v", command, err)
	}
	return reply
}

// proxy is the code under test, with timeouts for a test.
func (s *site) proxy(change ...func(*haproxy.Config)) *haproxy.Proxy {
	s.t.Helper()
	c := haproxy.Config{
		Name: s.config, BundleDir: s.bundles, RuntimeSocket: s.path("admin.sock"), JournalDir: s.path("journal"),
		Verify: []string{s.path("tls.sock")}, CommandTimeout: 10 * time.Second, Wait: 300 * time.Millisecond,
	}
	for _, f := range change {
		f(&c)
	}
	p, err := haproxy.New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *site) activate(p *haproxy.Proxy, target cluster.Target) cluster.Placement {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := p.Activate(ctx, []cluster.Target{target})
	if err != nil {
		s.t.Fatalf("Activate: %v", err)
	}
	if len(out) != 1 {
		s.t.Fatalf("Activate gave %d placements, want 1", len(out))
	}
	if out[0].Outcome != cluster.Unchanged {
		s.mustCheck()
	}
	return out[0]
}

// mustCheck is promise 3: HAProxy could start with what is on disk.
func (s *site) mustCheck() {
	s.t.Helper()
	if err := s.b.check(s.config, s.dir); err != nil {
		s.t.Errorf("HAProxy could not start again: %v", err)
	}
}

func (s *site) inspect(p *haproxy.Proxy, target cluster.Target) cluster.Placement {
	s.t.Helper()
	out, err := p.Inspect(context.Background(), []cluster.Target{target})
	if err != nil {
		s.t.Fatalf("Inspect: %v", err)
	}
	return out[0]
}

// served is the leaf that a client of family gets, seen independently of the code under test.
func (s *site) served(socket, name string, family cert.Algorithm) cert.Fingerprint {
	s.t.Helper()
	suites := map[cert.Algorithm]uint16{cert.ECDSA: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, cert.RSA: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	conn, err := tls.Dial("unix", s.path(socket), &tls.Config{ServerName: name, InsecureSkipVerify: true,
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suites[family]}})
	if err != nil {
		s.t.Fatalf("handshake for %s: %v", name, err)
	}
	defer func() { _ = conn.Close() }()
	peers := conn.ConnectionState().PeerCertificates
	if len(peers) < 2 {
		s.t.Errorf("handshake for %s: %d certificates, want the chain too", name, len(peers))
	}
	return sha256.Sum256(peers[0].Raw)
}

// target is the one of a certificate for www.NAME.test and *.NAME.test.
func target(b *cert.Bundle, name string, known ...*cert.Bundle) cluster.Target {
	return cluster.Target{Slot: cert.Slot{Name: name, Algorithm: b.Algorithm()}, Bundle: b, Known: known, Domains: b.Domains()}
}

// want fails where the placement is not a bundle in service.
func want(t testing.TB, p cluster.Placement, o cluster.Outcome, proof cluster.Proof) {
	t.Helper()
	if p.Outcome != o || p.Proof != proof {
		t.Fatalf("outcome %q, %s; want %q, %s\n%s", p.Outcome, p.Proof, o, proof, describe(p))
	}
	if (o == cluster.Done || o == cluster.Unchanged || o == cluster.Unproven) == (p.Error != "") {
		t.Errorf("outcome %q with error %q", o, p.Error)
	}
}

func describe(p cluster.Placement) string {
	return fmt.Sprintf("error: %s\nhint: %s\ndisk: %+v\nmemory: %+v\nserved: %+v", p.Error, p.Hint, p.Disk, p.Memory, p.Served)
}

// wantServed fails where disk, memory and clients do not have b.
func (s *site) wantServed(p cluster.Placement, b *cert.Bundle) {
	s.t.Helper()
	for what, seen := range map[string]cert.Fingerprint{"disk": p.Disk.Fingerprint, "memory": p.Memory.Fingerprint, "served": p.Served.Fingerprint,
		"a client": s.served("tls.sock", b.Domains()[len(b.Domains())-1], b.Algorithm())} {
		if seen != b.Fingerprint() {
			s.t.Errorf("%s has %s, want %s", what, seen.Short(), b.Fingerprint().Short())
		}
	}
	if data, err := os.ReadFile(p.File); err != nil || !bytes.Equal(data, b.PEM()) {
		s.t.Errorf("%s is not the bundle (%v)", p.File, err)
	}
}

// wire lets a test see each command before HAProxy does, and break connections. A false return refuses the connection's
// command: the connection ends unanswered.
type wire struct {
	mu     sync.Mutex
	before func(command string) bool
	seen   []string
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil || !strings.HasSuffix(address, "admin.sock") {
		return conn, err
	}
	return &tapped{Conn: conn, w: w}, nil
}

func (w *wire) use(c *haproxy.Config) { c.Dial = w.dial }

// changing lists the commands seen that change something.
func (w *wire) changing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, c := range w.seen {
		if !strings.HasPrefix(c, "show ") && !strings.HasPrefix(c, "acme ") && !strings.Contains(c, "no-such-certificate") {
			out = append(out, c)
		}
	}
	return out
}

type tapped struct {
	net.Conn
	w *wire
}

func (c *tapped) Write(p []byte) (int, error) {
	line, _, _ := strings.Cut(string(p), "\n")
	c.w.mu.Lock()
	c.w.seen = append(c.w.seen, strings.TrimSuffix(line, " <<"))
	before := c.w.before
	c.w.mu.Unlock()
	if before != nil && !before(strings.TrimSuffix(line, " <<")) {
		_ = c.Close()
		return 0, errors.New("cut by the test")
	}
	return c.Conn.Write(p)
}

// freePort is a port on loopback that nothing listens on, below the range that outgoing connections are given theirs from
// (32768 and up on Linux, 49152 on FreeBSD): else a client could hold it while a server that had it starts again.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(12_000 + rand.IntN(7_000))
		if _, given := portsGiven.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// portsGiven are those that freePort has given.
var portsGiven sync.Map
