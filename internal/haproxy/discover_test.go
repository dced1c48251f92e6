package haproxy_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// calls notes which addresses are connected to, runtime sockets left out.
type calls struct {
	mu   sync.Mutex
	seen []string
}

func (c *calls) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasSuffix(address, "admin.sock") {
		c.mu.Lock()
		if !slices.Contains(c.seen, address) {
			c.seen = append(c.seen, address)
		}
		c.mu.Unlock()
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// take gives the addresses since the last take, sorted.
func (c *calls) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.seen
	c.seen = nil
	slices.Sort(out)
	return out
}

// node is a host with a HAProxy configuration and nothing that runs but what a test starts itself.
type node struct {
	t       *testing.T
	dir     string
	bundles string
	bundle  *cert.Bundle
	calls   calls
	// change alters the haproxy.Config.
	change []func(*haproxy.Config)
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), bundle: generation(t)}
	n.bundles = filepath.Join(n.dir, "bundles")
	if err := os.Mkdir(n.bundles, 0o700); err != nil {
		t.Fatal(err)
	}
	n.put("bundles/example.pem", string(n.bundle.PEM()))
	return n
}

// put writes a file, DIR replaced, as it might have been for an hour.
func (n *node) put(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", n.dir)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, before, before); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) proxy() *haproxy.Proxy {
	n.t.Helper()
	c := haproxy.Config{Name: "x", BundleDir: n.bundles, JournalDir: filepath.Join(n.dir, "journal"), RuntimeSocket: filepath.Join(n.dir, "admin.sock"),
		Files: []string{filepath.Join(n.dir, "haproxy.cfg")}, ProbeTimeout: 2 * time.Second, Dial: n.calls.dial}
	for _, f := range n.change {
		f(&c)
	}
	p, err := haproxy.New(c)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// prove inspects the node's bundle.
func (n *node) prove(p *haproxy.Proxy) cluster.Placement {
	n.t.Helper()
	out, err := p.Inspect(context.Background(), []cluster.Target{target(n.bundle, "example")})
	if err != nil {
		n.t.Fatal(err)
	}
	return out[0]
}

// configure writes the configuration and gives what is proven with it, and where was asked.
func (n *node) configure(text string) (cluster.Placement, []string) {
	n.t.Helper()
	n.put("haproxy.cfg", text)
	n.calls.take()
	got := n.prove(n.proxy())
	return got, n.calls.take()
}

// tlsOn serves the bundle on a listener; begin, where not nil, sees each connection first. It counts connections.
func (n *node) tlsOn(network, address string, begin func(net.Conn) error, change ...func(*tls.Config)) (at string, count func() int) {
	n.t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		n.t.Skipf("no listener on %s: %v", address, err)
	}
	n.t.Cleanup(func() { _ = l.Close() })
	pair, err := tls.X509KeyPair(n.bundle.CertificatesPEM(), n.bundle.KeyPEM())
	if err != nil {
		n.t.Fatal(err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}}
	for _, f := range change {
		f(c)
	}
	var mu sync.Mutex
	connections := 0
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			connections++
			mu.Unlock()
			go func() {
				defer func() { _ = conn.Close() }()
				if begin != nil && begin(conn) != nil {
					return
				}
				_ = tls.Server(conn, c).Handshake()
			}()
		}
	}()
	return l.Addr().String(), func() int {
		mu.Lock()
		defer mu.Unlock()
		return connections
	}
}

func wantProof(t *testing.T, what string, got cluster.Placement, want cluster.Proof, note string) {
	t.Helper()
	if got.Proof != want || !strings.Contains(got.Served.Note, note) || note == "" && got.Served.Note != "" {
		t.Errorf("%s: %s, want %s with a note of %q\n%s", what, got.Proof, want, note, describe(got))
	}
}

func TestTheBindsThatServeABundleAreAsked(t *testing.T) {
	n := newNode(t)
	at, _ := n.tlsOn("tcp", "127.0.0.1:0", nil)
	_, port, _ := net.SplitHostPort(at)
	socket := filepath.Join(n.dir, "x.sock")
	n.tlsOn("unix", socket, nil)
	n.put("list", "DIR/elsewhere/other.pem\nDIR/bundles/example.pem\n")
	n.put("other", "DIR/elsewhere/other.pem\n")
	if err := os.Symlink(n.bundles, filepath.Join(n.dir, "link")); err != nil {
		t.Fatal(err)
	}
	const crt = " ssl crt DIR/bundles/example.pem"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"crt FILE", "frontend f\n  bind " + at + crt + "\n", []string{at}},
		{"crt DIR", "frontend f\n  bind " + at + " ssl crt DIR/bundles/\n", []string{at}},
		{"crt DIR through a link", "frontend f\n  bind " + at + " ssl crt DIR/link\n", []string{at}},
		{"crt-list", "frontend f\n  bind " + at + " ssl crt-list DIR/list\n", []string{at}},
		{"crt-base", "global\n  crt-base DIR\nfrontend f\n  bind " + at + " ssl crt bundles/example.pem\n", []string{at}},
		{"crt-store", "crt-store s\n  crt-base DIR\n  load crt bundles/example.pem alias e\nfrontend f\n  bind " + at + " ssl crt @s/e\n", []string{at}},
		{"default-path", "global\n  default-path config\nfrontend f\n  bind " + at + " ssl crt bundles/example.pem\n", []string{at}},
		{"listen", "listen f\n  bind " + at + crt + "\n", []string{at}},
		{"a unix socket", "frontend f\n  bind unix@DIR/x.sock" + crt + "\n", []string{socket}},
		{"a unix socket with a prefix, chroot or not", "global\n  chroot /nonexistent\n  unix-bind prefix DIR\nfrontend f\n  bind /x.sock" + crt + "\n", []string{socket}},
		{"several binds", "frontend f\n  bind " + at + crt + "\n  bind unix@DIR/x.sock" + crt + "\n", []string{at, socket}},
		{"one of several addresses", "frontend f\n  bind 198.51.100.7:443,ipv4@" + at + ",unix@DIR/x.sock" + crt + "\n", []string{at}},
		{"a range of ports", "frontend f\n  bind 127.0.0.1:" + port + "-65535" + crt + "\n", []string{at}},
		{"all addresses", "frontend f\n  bind *:" + port + crt + "\n", []string{at}},
		{"all addresses, IPv6 and IPv4", "frontend f\n  bind :::" + port + " v4v6" + crt + "\n  bind [::1]:" + port + "\n", []string{at}},
		{"only where it is served", "frontend f\n  bind " + at + crt + "\n  bind 127.0.0.1:1 ssl crt DIR/elsewhere/other.pem\n  bind 127.0.0.1:2 ssl crt-list DIR/other\n  bind 127.0.0.1:3\npeers p\n  bind 127.0.0.1:4" + crt + "\nfrontend off\n  disabled\n  bind 127.0.0.1:5" + crt + "\n", []string{at}},
		{"what is left out by a condition", "frontend f\n  bind " + at + crt + "\n.if streq(a,b)\n  bind 127.0.0.1:1" + crt + "\n.endif\n", []string{at}},
	} {
		got, asked := n.configure(c.text)
		wantProof(t, c.name, got, cluster.Proven, "")
		if !slices.Equal(asked, sorted(c.want)) {
			t.Errorf("%s: asked at %v, want %v", c.name, asked, c.want)
		}
	}
	// What may be there or not is no doubt where nothing listens, and no proof against where something does.
	got, _ := n.configure("frontend f\n  bind " + at + crt + "\n.if feature(X)\n  bind 127.0.0.1:1" + crt + "\n.endif\n")
	wantProof(t, "a conditional bind that is not there", got, cluster.Proven, "")
	stranger := serve(t, func(*tls.Config) {}, generation(t))
	got, _ = n.configure("frontend f\n  bind " + at + crt + "\n.if feature(X)\n  bind " + stranger + crt + "\n.endif\n")
	wantProof(t, "a conditional bind with another certificate", got, cluster.NoProof, "conditional")
	got, _ = n.configure("frontend f\n.if feature(X)\n  bind 127.0.0.1:1" + crt + "\n.endif\n")
	wantProof(t, "only a conditional bind, that is not there", got, cluster.NoProof, "no bind that may serve it answers")
	// One that must be there and is not leaves the whole unproven; one with another certificate is drift.
	got, _ = n.configure("frontend f\n  bind " + at + crt + "\n  bind 127.0.0.1:1" + crt + "\n")
	wantProof(t, "a bind that does not answer", got, cluster.NoProof, "127.0.0.1:1")
	got, _ = n.configure("frontend f\n  bind " + at + crt + "\n  bind " + stranger + crt + "\n")
	wantProof(t, "a bind with another certificate", got, cluster.Disproven, stranger)
}

func TestABindThatCannotBeAskedIsSaidAndTheBindToAddIsNamed(t *testing.T) {
	n := newNode(t)
	const crt = " ssl crt DIR/bundles/example.pem"
	for address, why := range map[string]string{
		"abns@x": "abns", "fd@7": "fd", "sockpair@7": "sockpair", "quic4@:443": "quic", "unix@x.sock": "relative", "www.example.org:443": "name",
		"198.51.100.7:443": "no address of this node", ":443 interface em0": "interface", ":443 namespace blue": "namespace", ":443 accept-netscaler-cip 1": "NetScaler",
	} {
		got, asked := n.configure("frontend web\n  bind " + address + crt + "\nfrontend x\n  bind *:8443\n")
		wantProof(t, address, got, cluster.NoProof, why)
		if !strings.Contains(got.Served.Note, "frontend web (haproxy.cfg:2)") || len(asked) > 0 {
			t.Errorf("%s: note %q, asked at %v", address, got.Served.Note, asked)
		}
		if want := "add `bind 127.0.0.1:8444 ssl crt " + n.bundles + "/example.pem` to frontend web"; !strings.Contains(got.Hint, want) {
			t.Errorf("%s: hint %q, want %q", address, got.Hint, want)
		}
	}
	got, _ := n.configure("frontend web\n  bind :443 ssl crt DIR/other.pem\n")
	wantProof(t, "nothing serves it", got, cluster.NoProof, "no ssl bind of "+n.dir+"/haproxy.cfg serves "+n.bundles+"/example.pem")
	if !strings.Contains(got.Hint, "crt "+n.bundles+"/example.pem") {
		t.Errorf("hint %q", got.Hint)
	}
	got, _ = n.configure("frontend web\n  bind :443 ssl crt-list DIR/none\n")
	wantProof(t, "a list that is not there", got, cluster.NoProof, "DIR/none: no such file"[3:])
	n.change = append(n.change, func(c *haproxy.Config) { c.Files = []string{n.dir + "/absent.cfg"} })
	got = n.prove(n.proxy())
	wantProof(t, "no configuration", got, cluster.NoProof, "absent.cfg")
	if !strings.Contains(got.Hint, "read HAProxy's configuration") {
		t.Errorf("hint %q", got.Hint)
	}
	n.change = append(n.change, func(c *haproxy.Config) { c.Files = nil })
	got = n.prove(n.proxy())
	wantProof(t, "neither files nor verify", got, cluster.NoProof, "set haproxy.verify")
}

// virtualAddress stands for one of CARP's: on a BACKUP, what answers there is the MASTER.
var virtualAddress = netip.MustParseAddr("127.0.0.77")

func TestAVirtualAddressIsNeverAskedUnlessThisNodeIsMaster(t *testing.T) {
	n := newNode(t)
	// "The MASTER": it serves the very bundle, so that to ask it would prove what is not so.
	at, connections := n.tlsOn("tcp", virtualAddress.String()+":0", nil)
	_, port, _ := net.SplitHostPort(at)
	own, _ := n.tlsOn("tcp", "127.0.0.1:0", nil)
	var mu sync.Mutex
	master := false
	be := func(m bool) { mu.Lock(); master = m; mu.Unlock() }
	n.change = append(n.change, func(c *haproxy.Config) {
		c.Virtual = []netip.Addr{virtualAddress, netip.MustParseAddr("2001:db8::10")}
		c.Master = func() bool { mu.Lock(); defer mu.Unlock(); return master }
	})
	const crt = " ssl crt DIR/bundles/"
	for name, text := range map[string]string{
		"alone":                "frontend web\n  bind " + at + crt + "\n",
		"with IPv6":            "frontend web\n  bind " + at + ",[2001:db8::10]:443" + crt + "\n",
		"as IPv4 in IPv6":      "frontend web\n  bind [::ffff:127.0.0.77]:" + port + crt + "\n",
		"in a variable":        "global\n  setenv VIP 127.0.0.77\nfrontend web\n  bind ${VIP}:" + port + crt + "\n",
		"in two frontends":     "frontend web\n  bind " + at + crt + "\nfrontend two\n  bind " + at + crt + " accept-proxy\n",
		"within a port range":  "frontend web\n  bind 127.0.0.77:" + port + "-65535" + crt + "\n",
		"in a condition block": ".if feature(X)\nfrontend web\n  bind " + at + crt + "\n.endif\n",
	} {
		got, asked := n.configure(text)
		wantProof(t, name, got, cluster.NoProof, "virtual address")
		if !got.Served.IsZero() || len(asked) > 0 || connections() > 0 {
			t.Errorf("%s: asked at %v, %d connections\n%s", name, asked, connections(), describe(got))
		}
		if !strings.Contains(got.Hint, "add `bind 127.0.0.1:8443 ssl crt "+n.bundles+"/` to frontend web") {
			t.Errorf("%s: hint %q", name, got.Hint)
		}
	}
	// With a bind of the node's own beside it, that one is the proof.
	got, asked := n.configure("frontend web\n  bind " + at + crt + "\n  bind " + own + crt + "\n")
	wantProof(t, "with an own bind", got, cluster.Proven, "")
	if !slices.Equal(asked, []string{own}) || connections() > 0 {
		t.Errorf("asked at %v", asked)
	}
	// A bind to all addresses is never asked at the virtual one.
	got, asked = n.configure("frontend web\n  bind :" + port + crt + "\nfrontend x\n  bind 127.0.0.1:" + port + "\n")
	if slices.Contains(asked, at) || connections() > 0 {
		t.Errorf("a bind to all addresses: asked at %v\n%s", asked, describe(got))
	}
	// haproxy.verify does not get round the rule.
	n.change = append(n.change, func(c *haproxy.Config) { c.Verify = []string{at} })
	got = n.prove(n.proxy())
	wantProof(t, "verify", got, cluster.NoProof, "virtual address")
	if connections() > 0 {
		t.Errorf("verify: %d connections", connections())
	}
	be(true)
	wantProof(t, "verify, as MASTER", n.prove(n.proxy()), cluster.Proven, "")
	n.change = n.change[:1]
	before := connections()
	n.change = append(n.change, func(c *haproxy.Config) {
		c.Addresses = func() ([]netip.Addr, error) { return []netip.Addr{virtualAddress}, nil }
	})
	got, _ = n.configure("frontend web\n  bind " + at + crt + "\n")
	wantProof(t, "as MASTER", got, cluster.Proven, "")
	if connections() == before || strings.Contains(got.Hint, "bind") {
		t.Errorf("as MASTER: %d connections, hint %q", connections()-before, got.Hint)
	}
	// An address of the node's own is preferred even then.
	n.calls.take()
	got, asked = n.configure("frontend web\n  bind " + at + "," + own + crt + "\n")
	wantProof(t, "as MASTER, with an own address", got, cluster.Proven, "")
	if !slices.Equal(asked, []string{own}) {
		t.Errorf("as MASTER, with an own address: asked at %v", asked)
	}
	// Demoted after the address was chosen: the connection is not made.
	before = connections()
	n.change = append(n.change, func(c *haproxy.Config) {
		asked := 0
		c.Master = func() bool { asked++; return asked == 1 }
	})
	got, _ = n.configure("frontend web\n  bind " + at + crt + "\n")
	wantProof(t, "demoted meanwhile", got, cluster.NoProof, "not MASTER any more")
	if connections() != before {
		t.Error("demoted meanwhile: a connection was made")
	}
	// Nobody says who is MASTER: never.
	n.change = append(n.change, func(c *haproxy.Config) { c.Master = nil })
	got, _ = n.configure("frontend web\n  bind " + at + crt + "\n")
	wantProof(t, "no role", got, cluster.NoProof, "virtual address")
}

func TestOnlyThisNodesOwnAddressesAreAsked(t *testing.T) {
	n := newNode(t)
	n.change = append(n.change, func(c *haproxy.Config) {
		c.Addresses = func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("fe80::1%em0"), netip.MustParseAddr("2001:db8::12")}, nil
		}
		c.Virtual = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			n.calls.mu.Lock()
			n.calls.seen = append(n.calls.seen, address)
			n.calls.mu.Unlock()
			return nil, errors.New("nobody there")
		}
	})
	const crt = " ssl crt DIR/bundles/\n"
	for text, want := range map[string]string{
		"frontend f\n  bind 192.0.2.11:443" + crt:                                                "192.0.2.11:443",
		"frontend f\n  bind 192.0.2.12:443" + crt:                                                "",
		"frontend f\n  bind 192.0.2.10:443" + crt:                                                "",
		"frontend f\n  bind :443" + crt:                                                          "127.0.0.1:443",
		"frontend f\n  bind :::443" + crt:                                                        "[::1]:443",
		"frontend f\n  bind :443" + crt + "frontend g\n  bind 127.0.0.1:443\n":                   "192.0.2.11:443",
		"frontend f\n  bind :::443" + crt + "frontend g\n  bind ::1:400-450\n":                   "[2001:db8::12]:443",
		"frontend f\n  bind :::443 v4v6" + crt + "frontend g\n  bind ::1:443,2001:db8::12:443\n": "127.0.0.1:443",
		"frontend f\n  bind :443" + crt + "frontend g\n  bind 127.0.0.1:443,192.0.2.11:443\n":    "",
		"frontend f\n  bind :443 interface lo" + crt:                                             "127.0.0.1:443",
	} {
		n.calls.take()
		got, asked := n.configure(text)
		asked = slices.DeleteFunc(asked, func(a string) bool { return strings.HasSuffix(a, "admin.sock") })
		if strings.Join(slices.Compact(asked), " ") != want || got.Proof != cluster.NoProof {
			t.Errorf("%q: asked at %v, want %q: %s", text, asked, want, got.Served.Note)
		}
	}
	n.change = append(n.change, func(c *haproxy.Config) {
		c.Addresses = func() ([]netip.Addr, error) { return nil, errors.New("no route socket") }
	})
	got, _ := n.configure("frontend f\n  bind 192.0.2.11:443" + crt)
	wantProof(t, "own addresses not known", got, cluster.NoProof, "no route socket")
}

func TestAcceptProxyIsGreetedWithAHeader(t *testing.T) {
	n := newNode(t)
	greeted := func(conn net.Conn) error {
		header := make([]byte, 16)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		if string(header) != "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00" {
			return fmt.Errorf("%q is no PROXY header", header)
		}
		return nil
	}
	at, _ := n.tlsOn("tcp", "127.0.0.1:0", greeted)
	const crt = " ssl crt DIR/bundles/"
	got, _ := n.configure("frontend f\n  bind " + at + " accept-proxy" + crt + "\n")
	wantProof(t, "accept-proxy", got, cluster.Proven, "")
	got, _ = n.configure("frontend f\n  tcp-request connection expect-proxy layer4\n  bind " + at + crt + "\n")
	wantProof(t, "expect-proxy", got, cluster.Proven, "")
	got, _ = n.configure("frontend f\n  bind " + at + crt + "\n")
	wantProof(t, "without", got, cluster.Disproven, at)
}

func TestARuleThatRefusesThisNodeDisprovesNothing(t *testing.T) {
	n := newNode(t)
	refused, _ := n.tlsOn("tcp", "127.0.0.1:0", func(net.Conn) error { return errors.New("refused") })
	at, _ := n.tlsOn("tcp", "127.0.0.1:0", nil)
	stranger := serve(t, func(*tls.Config) {}, generation(t))
	const rule, crt = "  tcp-request connection reject if { src_conn_rate gt 20 }\n", " ssl crt DIR/bundles/\n"
	got, _ := n.configure("frontend f\n" + rule + "  bind " + refused + crt)
	wantProof(t, "refused by a rule", got, cluster.NoProof, "rules")
	got, _ = n.configure("frontend f\n  bind " + refused + crt)
	wantProof(t, "refused without a rule", got, cluster.Disproven, refused)
	got, _ = n.configure("frontend f\n" + rule + "  bind " + at + crt)
	wantProof(t, "not refused", got, cluster.Proven, "")
	got, _ = n.configure("frontend f\n" + rule + "  bind " + stranger + crt)
	wantProof(t, "not refused, another certificate", got, cluster.Disproven, stranger)
}

func TestABindThatWantsAClientCertificateShowsItsOwn(t *testing.T) {
	n := newNode(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		at, _ := n.tlsOn("tcp", "127.0.0.1:0", nil, func(c *tls.Config) {
			c.ClientAuth, c.MinVersion, c.MaxVersion = tls.RequireAndVerifyClientCert, version, version
		})
		got, _ := n.configure("frontend f\n  bind " + at + " verify required ca-file DIR/ca ssl crt DIR/bundles/\n")
		wantProof(t, tls.VersionName(version), got, cluster.Proven, "")
		stranger := serve(t, func(c *tls.Config) {
			c.ClientAuth, c.MinVersion, c.MaxVersion = tls.RequireAndVerifyClientCert, version, version
		}, generation(t))
		got, _ = n.configure("frontend f\n  bind " + stranger + " verify required ca-file DIR/ca ssl crt DIR/bundles/\n")
		wantProof(t, tls.VersionName(version)+", another certificate", got, cluster.Disproven, "not")
	}
}

func TestALineWithFiltersIsAskedForItsNames(t *testing.T) {
	n := newNode(t)
	var mu sync.Mutex
	var names []string
	at, _ := n.tlsOn("tcp", "127.0.0.1:0", nil, func(c *tls.Config) {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(names, hello.ServerName) {
				names = append(names, hello.ServerName)
			}
			return nil, nil
		}
	})
	for filters, want := range map[string]string{
		"":                                  "certsync-probe.example.test example.test",
		" Shop.Example.test":                "shop.example.test",
		" [alpn h2] *.example.test !a.test": "certsync-probe.example.test",
		" a.example.test !a.example.test":   "",
		" !example.test *":                  "certsync-probe.example.test",
		" !example.test":                    "",
	} {
		names = nil
		n.put("list", "DIR/bundles/example.pem"+filters+"\n")
		got, _ := n.configure("frontend f\n  bind " + at + " ssl crt-list DIR/list\n")
		slices.Sort(names)
		if strings.Join(names, " ") != want || (got.Proof == cluster.Proven) != (want != "") {
			t.Errorf("%q: asked for %q, want %q: %s", filters, names, want, got.Served.Note)
		}
	}
}

func TestAConfigurationIsReadAgainOnlyWhereItChanged(t *testing.T) {
	n := newNode(t)
	a, _ := n.tlsOn("unix", filepath.Join(n.dir, "a.sock"), nil)
	b, _ := n.tlsOn("unix", filepath.Join(n.dir, "b.sock"), nil)
	text := func(socket string) string {
		return "frontend f\n  bind DIR/" + socket + ".sock ssl crt-list DIR/list\n"
	}
	n.put("haproxy.cfg", text("a"))
	n.put("list", "DIR/bundles/example.pem\n")
	p := n.proxy()
	asked := func() []string { n.calls.take(); n.prove(p); return n.calls.take() }
	if got := asked(); !slices.Equal(got, []string{a}) {
		t.Fatalf("asked at %v", got)
	}
	settle(t, n.dir+"/haproxy.cfg", n.dir+"/list")
	opened := opens(t, n.dir)
	asked() // which reads it again, since it had just been written
	_ = opened()
	if got := asked(); !slices.Equal(got, []string{a}) || opened() > 0 {
		t.Errorf("it was read although nothing changed, or asked at %v", got)
	}
	// Another content of the same size, and the time of the last one.
	info, _ := os.Stat(n.dir + "/haproxy.cfg")
	n.put("haproxy.cfg", text("b"))
	_ = os.Chtimes(n.dir+"/haproxy.cfg", info.ModTime(), info.ModTime())
	if got := asked(); !slices.Equal(got, []string{b}) {
		t.Errorf("the configuration changed: asked at %v", got)
	}
	n.put("list", "DIR/bundles/other.pem\n")
	if got := asked(); len(got) != 0 {
		t.Errorf("the crt-list changed: asked at %v", got)
	}
	if err := os.Remove(n.dir + "/list"); err != nil {
		t.Fatal(err)
	}
	if got := asked(); len(got) != 0 {
		t.Errorf("the crt-list is gone: asked at %v", got)
	}
	n.put("list", "DIR/bundles/example.pem\n")
	if got := asked(); !slices.Equal(got, []string{b}) {
		t.Errorf("the crt-list is back: asked at %v", got)
	}
	// What was written a moment ago is not trusted to show its next change: the file system's clock may be coarse.
	now := time.Now()
	for _, socket := range []string{"a", "b", "a", "b"} {
		if err := os.WriteFile(n.dir+"/haproxy.cfg", []byte(strings.ReplaceAll(text(socket), "DIR", n.dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Chtimes(n.dir+"/haproxy.cfg", now, now)
		if got := asked(); !slices.Equal(got, []string{filepath.Join(n.dir, socket+".sock")}) {
			t.Errorf("changed at once: asked at %v, want %s", got, socket)
		}
	}
}

func TestWhatIsDiscoveredCanBeSeen(t *testing.T) {
	n := newNode(t)
	n.change = append(n.change, func(c *haproxy.Config) { c.Virtual = []netip.Addr{virtualAddress} })
	n.put("haproxy.cfg", "frontend web\n  bind 127.0.0.77:443,127.0.0.77:444 ssl crt DIR/bundles/ accept-proxy\n  bind :80\nlisten l\n  bind quic4@:443 ssl crt x\n")
	p := n.proxy()
	d, err := p.Discovered(context.Background())
	if err != nil || len(d.Binds) != 2 || len(d.Problems) > 0 || !slices.Equal(d.Files, []string{n.dir + "/haproxy.cfg"}) {
		t.Fatalf("%+v, %v", d, err)
	}
	if b := d.Binds[0]; b.Section != "frontend web" || b.Line != 2 || b.Address != "127.0.0.77:443,127.0.0.77:444" || b.Probe != "" || !b.Virtual || b.Why == "" {
		t.Errorf("%+v", b)
	}
	if b := d.Binds[1]; b.Virtual || !strings.Contains(b.Why, "quic") {
		t.Errorf("%+v", b)
	}
	if want := "add `bind 127.0.0.1:8443 ssl crt " + n.bundles + "/` to frontend web"; !strings.Contains(d.Mend, want) {
		t.Errorf("mend %q, want %q", d.Mend, want)
	}
	n.put("haproxy.cfg", "frontend web\n  bind :443 ssl crt \"$CERTS\"\n")
	d, err = p.Discovered(context.Background())
	if err != nil || len(d.Binds) != 1 || d.Binds[0].Probe != "127.0.0.1:443" || len(d.Problems) == 0 || !strings.Contains(d.Problems[0].Text, "CERTS") || d.Mend != "" {
		t.Errorf("%+v, %v", d, err)
	}
	n.change = append(n.change, func(c *haproxy.Config) { c.Files = nil })
	if d, err := n.proxy().Discovered(context.Background()); err == nil {
		t.Errorf("without a configuration: %+v", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if d, err := p.Discovered(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %+v, %v", d, err)
	}
}

// discovering is a proxy that finds its binds in the site's configuration.
func (s *site) discovering(c *calls, change ...func(*haproxy.Config)) *haproxy.Proxy {
	s.t.Helper()
	return s.proxy(append([]func(*haproxy.Config){func(h *haproxy.Config) { h.Verify, h.Files, h.Dial = nil, []string{s.config}, c.dial }}, change...)...)
}

// rewrite puts the site's configuration, with these sections instead of its own.
func (s *site) rewrite(sections string) {
	s.t.Helper()
	s.put("haproxy.cfg", []byte(strings.ReplaceAll(`global
  stats socket DIR/admin.sock level admin mode 600
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 1s
`+sections, "DIR", s.dir)))
}

func TestEveryWayOfBindingIsProvenWithoutAnAddressInTheConfiguration(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		one, six, all := freePort(t), freePort(t), freePort(t)
		before, after := generation(t), generation(t)
		s.put("bundles/example.pem", before.PEM())
		s.rewrite("frontend web\n  bind DIR/tls.sock ssl crt DIR/bundles/\n  bind 127.0.0.1:" + one + " ssl crt DIR/bundles/example.pem\n  bind [::1]:" + six +
			" ssl crt DIR/bundles/\n  bind :" + all + " ssl crt DIR/bundles/\n  bind DIR/other.sock ssl crt DIR/elsewhere/other.pem\n")
		s.start()
		c := &calls{}
		p := s.discovering(c)
		want(t, s.activate(p, target(after, "example", before)), cluster.Done, cluster.Proven)
		if got, want := c.take(), []string{s.path("tls.sock"), "127.0.0.1:" + all, "127.0.0.1:" + one, "[::1]:" + six}; !slices.Equal(got, sorted(want)) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		want(t, s.activate(p, target(after, "example", before)), cluster.Unchanged, cluster.Proven)
		s.wantServed(s.inspect(p, target(after, "example")), after)
	})
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestBothFamiliesAreFoundBehindOneName(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/example.pem")
		ec, rsa := generation(t), issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})
		s.put("bundles/example.pem.ecdsa", ec.PEM())
		s.put("bundles/example.pem.rsa", rsa.PEM())
		s.start()
		p := s.discovering(&calls{})
		for _, bundle := range []*cert.Bundle{ec, rsa} {
			t2 := target(bundle, "example")
			t2.Both = true
			want(t, s.activate(p, t2), cluster.Unchanged, cluster.Proven)
		}
		if b.version == "" {
			return // the fake ends a handshake that it has no certificate for in another way
		}
		// A family that is not served is said in clear words.
		if err := os.Remove(s.path("bundles/example.pem.rsa")); err != nil {
			t.Fatal(err)
		}
		s.restart()
		t2 := target(rsa, "example")
		t2.Both = true
		s.put("bundles/example.pem.rsa", rsa.PEM())
		got := s.inspect(p, t2)
		if got.Proof != cluster.Disproven || !strings.Contains(got.Served.Note, "no rsa certificate is served") {
			t.Errorf("%s: %s", got.Proof, got.Served.Note)
		}
	})
}

// real runs a test on each HAProxy, for what the fake does not know.
func real(t *testing.T, test func(t *testing.T, b backend, binary haproxytest.Binary)) {
	for _, version := range haproxytest.Versions() {
		t.Run("HAProxy_"+version, func(t *testing.T) {
			binary, ok := haproxytest.Find(version)
			if !ok {
				const hint = "HAProxy %s is not installed: run scripts/deps.sh"
				if os.Getenv("CI") == "true" {
					t.Fatalf(hint, version)
				}
				t.Skipf(hint, version)
			}
			test(t, realBackend(binary), binary)
		})
	}
}

func TestRealHAProxyTakesTheHeaderAndWantsTheClientsCertificate(t *testing.T) {
	real(t, func(t *testing.T, b backend, _ haproxytest.Binary) {
		s := newSite(t, b, "crt DIR/bundles/")
		bundle := generation(t)
		s.put("bundles/example.pem", bundle.PEM())
		var ca []byte
		for _, c := range bundle.Chain() {
			ca = append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		s.put("ca.pem", ca)
		lists := "frontend web\n  bind DIR/tls.sock accept-proxy ssl crt DIR/bundles/\n"
		for i, options := range []string{"verify required", "verify required ssl-min-ver TLSv1.3", "verify required ssl-max-ver TLSv1.2", "strict-sni", "no-tlsv12", "accept-proxy verify optional"} {
			lists += fmt.Sprintf("  bind DIR/%d.sock ssl crt DIR/bundles/ ca-file DIR/ca.pem %s\n", i, options)
		}
		s.rewrite(lists + "frontend guarded\n  tcp-request connection reject if { src 198.51.100.7 }\n  bind DIR/guarded.sock ssl crt DIR/bundles/\nfrontend expect\n  tcp-request connection expect-proxy layer4\n  bind DIR/expect.sock ssl crt DIR/bundles/\n")
		s.start()
		c := &calls{}
		want(t, s.activate(s.discovering(c), target(bundle, "example")), cluster.Unchanged, cluster.Proven)
		if got := c.take(); len(got) != 9 {
			t.Errorf("asked at %v", got)
		}
		port := freePort(t)
		s.rewrite("frontend web\n  bind DIR/tls.sock ssl crt DIR/bundles/\nfrontend guarded\n  tcp-request connection reject if { src 127.0.0.0/8 }\n  bind :" + port + " ssl crt DIR/bundles/\n")
		s.restart()
		wantProof(t, "refused by a rule", s.inspect(s.discovering(c), target(bundle, "example")), cluster.NoProof, "127.0.0.1:"+port)
	})
}

func TestRealHAProxysEnvironmentIsItsOwn(t *testing.T) {
	real(t, func(t *testing.T, b backend, binary haproxytest.Binary) {
		s := newSite(t, b, "crt DIR/bundles/")
		bundle := generation(t)
		s.put("bundles/example.pem", bundle.PEM())
		s.put("second.cfg", []byte("frontend two\n  bind \"${CERTSYNC_TEST_PLACE}/two.sock\" ssl crt-list "+s.path("list")+"\n"))
		s.put("list", []byte(s.path("bundles/example.pem")+" *.example.test\n"))
		s.rewrite("frontend web\n  bind unix@$CERTSYNC_TEST_PLACE/tls.sock ssl crt \"${CERTSYNC_TEST_PLACE}/bundles\"\n.if version_before(2.0)\n  bind DIR/never.sock ssl crt DIR/bundles\n.endif\n")
		// HAProxy runs with a variable and a second -f that are not ours.
		s.put("run", fmt.Appendf(nil, "#!/bin/sh\nCERTSYNC_TEST_PLACE=%s exec %s \"$@\" -f %s\n", s.dir, binary.Path, s.path("second.cfg")))
		if err := os.Chmod(s.path("run"), 0o700); err != nil {
			t.Fatal(err)
		}
		server, err := haproxytest.Binary{Version: binary.Version, Path: s.path("run")}.Start(context.Background(), s.config, s.dir, s.path("admin.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Stop()
		c := &calls{}
		p := s.discovering(c, func(h *haproxy.Config) { h.Files = []string{s.config, s.path("second.cfg")} })
		got := s.inspect(p, target(bundle, "example"))
		wantProof(t, "with HAProxy's environment", got, cluster.Proven, "")
		if got := c.take(); !slices.Equal(got, []string{s.path("tls.sock"), s.path("two.sock")}) {
			t.Errorf("asked at %v", got)
		}
		d, err := p.Discovered(context.Background())
		if err != nil || len(d.Problems) > 0 || len(d.Binds) != 2 {
			t.Errorf("%+v, %v", d, err)
		}
		if text := fmt.Sprintf("%+v %+v", got, d.Problems); strings.Contains(text, "PATH=") {
			t.Errorf("the environment is told: %s", text)
		}
	})
}

func TestRealHAProxysOwnNamesAreFoundInItsConfiguration(t *testing.T) {
	real(t, func(t *testing.T, b backend, binary haproxytest.Binary) {
		s := newSite(t, b, "crt DIR/bundles/")
		bundle := generation(t)
		s.put("bundles/example.pem", bundle.PEM())
		for sections, wanted := range map[string][]string{
			"frontend web\n  bind DIR/tls.sock ssl crt bundles/example.pem\n":                                                                                                {"tls.sock"},
			"frontend web\n  bind DIR/tls.sock ssl crt bundles\n":                                                                                                            {"tls.sock"},
			"global\n  crt-base bundles\nfrontend web\n  bind DIR/tls.sock ssl crt example.pem\n":                                                                            {"tls.sock"},
			"crt-store s\n  load crt DIR/bundles/example.pem alias e\nfrontend web\n  bind DIR/tls.sock ssl crt @s/e\n  bind DIR/two.sock ssl crt DIR/bundles/example.pem\n": {"tls.sock", "two.sock"},
		} {
			if strings.Contains(sections, "crt-store") && b.version == "2.6" {
				continue // from 3.0 on
			}
			s.rewrite(sections)
			s.restart()
			c := &calls{}
			got := s.inspect(s.discovering(c), target(bundle, "example"))
			wantProof(t, sections, got, cluster.Proven, "")
			for i := range wanted {
				wanted[i] = s.path(wanted[i])
			}
			if got := c.take(); !slices.Equal(got, wanted) {
				t.Errorf("%s: asked at %v, want %v", sections, got, wanted)
			}
		}
	})
}

func TestTheFileOfAnAliasIsFoundWhereHAProxyDoesNotTellIt(t *testing.T) {
	real(t, func(t *testing.T, b backend, _ haproxytest.Binary) {
		if b.version == "2.6" {
			return // crt-store came with 3.0
		}
		s := newSite(t, b, "crt DIR/bundles/")
		before, after := generation(t), generation(t)
		s.put("bundles/example.pem", before.PEM())
		s.rewrite("crt-store s\n  crt-base DIR/bundles\n  load crt example.pem alias e\nfrontend web\n  bind DIR/tls.sock ssl crt @s/e\n")
		s.start()
		p := s.discovering(&calls{})
		want(t, s.activate(p, target(after, "example", before)), cluster.Done, cluster.Proven)
		s.wantServed(s.inspect(p, target(after, "example")), after)
	})
}

func TestABundleThatIsNewInTheCrtListIsProvenAtOnce(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt-list DIR/list")
		s.put("list", []byte(s.path("elsewhere/other.pem")+"\n"))
		s.start()
		p := s.discovering(&calls{}, func(h *haproxy.Config) { h.CrtList = s.path("list") })
		one, two := generation(t), issue(t, certtest.Options{Domains: []string{"two.test"}})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := p.Activate(ctx, []cluster.Target{target(s.other, "none"), target(one, "one"), target(two, "two")})
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range out[1:] {
			want(t, got, cluster.Done, cluster.Proven)
		}
	})
}
