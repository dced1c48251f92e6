package haproxy_test

import (
	"context"
	"crypto/tls"
	"net"
	"os/user"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

func ownGroup(t *testing.T) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return g.Name
}

// serve is a TLS server on loopback that shows what configure says.
func serve(t *testing.T, configure func(c *tls.Config), bundles ...*cert.Bundle) string {
	t.Helper()
	c := &tls.Config{}
	for _, b := range bundles {
		pair, err := tls.X509KeyPair(b.CertificatesPEM(), b.KeyPEM())
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = append(c.Certificates, pair)
	}
	configure(c)
	l, err := tls.Listen("tcp", "127.0.0.1:0", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_ = conn.(*tls.Conn).Handshake()
			}()
		}
	}()
	return l.Addr().String()
}

// prove inspects b with one address to handshake with; no HAProxy is needed for that.
func prove(t *testing.T, b *cert.Bundle, address string, names ...string) cluster.Placement {
	t.Helper()
	dir := t.TempDir()
	p, err := haproxy.New(haproxy.Config{Name: "x", BundleDir: dir, JournalDir: dir + "-journal", RuntimeSocket: dir + "/none.sock", Verify: []string{address}, ProbeTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Inspect(context.Background(), []cluster.Target{{Slot: cert.Slot{Name: "example", Algorithm: b.Algorithm()}, Bundle: b, Domains: names}})
	if err != nil {
		t.Fatal(err)
	}
	return out[0]
}

func TestAHandshakeAsksForTheFamily(t *testing.T) {
	ec, rsa := generation(t), issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})
	any := func(*tls.Config) {}
	only13 := func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }
	for _, c := range []struct {
		name      string
		b         *cert.Bundle
		configure func(*tls.Config)
		served    []*cert.Bundle
		want      cluster.Proof
	}{
		{"ecdsa of both", ec, any, []*cert.Bundle{ec, rsa}, cluster.Proven},
		{"rsa of both", rsa, any, []*cert.Bundle{ec, rsa}, cluster.Proven},
		{"rsa where only ecdsa is served", rsa, any, []*cert.Bundle{ec}, cluster.Disproven},
		{"ecdsa where only rsa is served", ec, any, []*cert.Bundle{rsa}, cluster.Disproven},
		{"another one", generation(t), any, []*cert.Bundle{ec}, cluster.Disproven},
		{"TLS 1.3 only", ec, only13, []*cert.Bundle{ec}, cluster.Proven},
		{"TLS 1.3 only, the other family comes", rsa, only13, []*cert.Bundle{ec, rsa}, cluster.NoProof},
	} {
		got := prove(t, c.b, serve(t, c.configure, c.served...), domains...)
		if got.Proof != c.want {
			t.Errorf("%s: %s, want %s: %s", c.name, got.Proof, c.want, got.Served.Note)
		}
		if (got.Proof == cluster.Proven) != (got.Served.Note == "") {
			t.Errorf("%s: note %q", c.name, got.Served.Note)
		}
	}
}

func TestEveryNameMustShowTheLeaf(t *testing.T) {
	b, stranger := generation(t), generation(t)
	// The wildcard's names are hidden by another certificate.
	address := serve(t, func(c *tls.Config) {
		ours, theirs := c.Certificates[0], c.Certificates[1]
		c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == "example.test" {
				return &ours, nil
			}
			return &theirs, nil
		}
	}, b, stranger)
	if got := prove(t, b, address, "example.test"); got.Proof != cluster.Proven {
		t.Errorf("the apex: %s: %s", got.Proof, got.Served.Note)
	}
	got := prove(t, b, address, domains...)
	if got.Proof != cluster.Disproven || got.Served.Fingerprint != stranger.Fingerprint() || !strings.Contains(got.Served.Note, "example.test") {
		t.Errorf("the wildcard: %s: %+v", got.Proof, got.Served)
	}
	// Names that the leaf does not have are for a later generation.
	if got := prove(t, b, address, "example.test", "added.test"); got.Proof != cluster.Proven {
		t.Errorf("with a name that was added since: %s: %s", got.Proof, got.Served.Note)
	}
	if got := prove(t, b, address, "added.test"); got.Proof != cluster.NoProof || got.Served.Note == "" {
		t.Errorf("with no name of the leaf: %s: %s", got.Proof, got.Served.Note)
	}
}

func TestWhatCannotBeAskedIsUnprovenAndWhatFailsIsDisproven(t *testing.T) {
	b := generation(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	if got := prove(t, b, closed, domains...); got.Proof != cluster.NoProof || !strings.Contains(got.Served.Note, "refused") {
		t.Errorf("refused: %s: %s", got.Proof, got.Served.Note)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	if got := prove(t, b, silent.Addr().String(), domains...); got.Proof != cluster.Disproven || got.Served.Note == "" {
		t.Errorf("silent: %s: %s", got.Proof, got.Served.Note)
	}
	noTLS, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = noTLS.Close() }()
	go func() {
		for {
			conn, err := noTLS.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	if got := prove(t, b, noTLS.Addr().String(), domains...); got.Proof != cluster.Disproven {
		t.Errorf("no TLS: %s: %s", got.Proof, got.Served.Note)
	}
}
