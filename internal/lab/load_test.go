package lab

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

// swappingServer is an HTTPS server whose certificate can be changed while it runs.
type swappingServer struct {
	*httptest.Server
	current atomic.Pointer[tls.Certificate]
}

func newSwappingServer(t *testing.T, b *cert.Bundle, handler http.Handler) *swappingServer {
	t.Helper()
	s := &swappingServer{Server: httptest.NewUnstartedServer(handler)}
	s.serve(b)
	s.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.current.Load(), nil }}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *swappingServer) serve(b *cert.Bundle) {
	s.current.Store(&tls.Certificate{Certificate: [][]byte{b.Leaf().Raw}, PrivateKey: b.Key()})
}

func (s *swappingServer) address() string { return s.Listener.Addr().String() }

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }

// await polls a condition; a test that needs it fails after ten seconds without.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s in vain: %s", what)
		}
	}
}

func TestLoadSeesEachLeafInTheOrderOfTheirAppearance(t *testing.T) {
	ca := certtest.NewCA(t)
	first, second := ca.Issue(t, certtest.Options{}), ca.Issue(t, certtest.Options{})
	s := newSwappingServer(t, first, http.HandlerFunc(ok))
	l := StartLoad(t.Context(), LoadOptions{Addresses: []string{s.address()}, ServerName: "example.org", Rate: 200, KeepAlive: 2, Pause: time.Millisecond})
	await(t, "handshakes with the first", func() bool { return l.Stats().Made > 5 && l.Stats().Requests > 5 })
	s.serve(second)
	await(t, "handshakes with the second", func() bool { return len(l.Stats().Seen[s.address()]) == 2 })
	stats := l.Stop()
	if err := stats.Err(); err != nil {
		t.Fatalf("an undisturbed load: %v", err)
	}
	seen := stats.Seen[s.address()]
	if seen[0].Fingerprint != first.Fingerprint() || seen[1].Fingerprint != second.Fingerprint() {
		t.Errorf("seen %s, %s; want %s, %s", seen[0].Fingerprint.Short(), seen[1].Fingerprint.Short(), first.Fingerprint().Short(), second.Fingerprint().Short())
	}
	if n := seen[0].Count + seen[1].Count; n != stats.Made {
		t.Errorf("%d leaves seen in %d handshakes", n, stats.Made)
	}
}

func TestLoadTellsAStepBackToAnEarlierLeaf(t *testing.T) {
	ca := certtest.NewCA(t)
	first, second := ca.Issue(t, certtest.Options{}), ca.Issue(t, certtest.Options{})
	s := newSwappingServer(t, first, http.HandlerFunc(ok))
	l := StartLoad(t.Context(), LoadOptions{Addresses: []string{s.address()}, ServerName: "www.example.org", Rate: 200})
	seen := func() []Leaf { return l.Stats().Seen[s.address()] }
	await(t, "the first", func() bool { return len(seen()) == 1 })
	s.serve(second)
	await(t, "the second", func() bool { return len(seen()) == 2 })
	s.serve(first)
	await(t, "the step back", func() bool { return len(l.Stats().Backwards()) == 1 })
	if err := l.Stop().Err(); err == nil || !strings.Contains(err.Error(), first.Fingerprint().Short()) {
		t.Errorf("the summary hides the step back to %s: %v", first.Fingerprint().Short(), err)
	}
}

func TestLoadCountsWhatAClientWouldCallAFailure(t *testing.T) {
	ca := certtest.NewCA(t)
	for name, c := range map[string]struct {
		bundle  *cert.Bundle
		handler http.HandlerFunc
		want    string
	}{
		"expired":     {ca.Issue(t, certtest.Options{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)}), ok, "is valid from"},
		"wrong_name":  {ca.Issue(t, certtest.Options{Domains: []string{"example.net"}}), ok, "example.net"},
		"no_answer":   {ca.Issue(t, certtest.Options{}), func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "answer"},
		"wrong_state": {ca.Issue(t, certtest.Options{}), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSwappingServer(t, c.bundle, c.handler)
			l := StartLoad(t.Context(), LoadOptions{Addresses: []string{s.address()}, ServerName: "example.org", Rate: 100})
			await(t, "a failure", func() bool { return l.Stats().Failed > 0 })
			stats := l.Stop()
			if stats.Made != 0 {
				t.Errorf("%d counted as made", stats.Made)
			}
			if err := stats.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q in: %v", c.want, err)
			}
		})
	}
}

func TestLoadCountsABrokenKeptConnectionAndComesBack(t *testing.T) {
	ca := certtest.NewCA(t)
	s := newSwappingServer(t, ca.Issue(t, certtest.Options{}), http.HandlerFunc(ok))
	l := StartLoad(t.Context(), LoadOptions{Addresses: []string{s.address()}, ServerName: "example.org", KeepAlive: 3, Pause: time.Millisecond})
	await(t, "requests", func() bool { return l.Stats().Requests > 10 })
	s.CloseClientConnections()
	await(t, "three broken", func() bool { return l.Stats().Broken == 3 })
	before := l.Stats().Requests
	await(t, "requests again", func() bool { return l.Stats().Requests > before+10 })
	if err := l.Stop().Err(); err == nil {
		t.Error("the summary hides the broken connections")
	}
}

func TestLoadIsBoundedWhereTheServerNeverAnswers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	var open, most atomic.Int32
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
			go func() {
				buf := make([]byte, 4096)
				for {
					if _, err := conn.Read(buf); err != nil {
						open.Add(-1)
						_ = conn.Close()
						return
					}
				}
			}()
		}
	}()
	l := StartLoad(t.Context(), LoadOptions{Addresses: []string{silent.Addr().String()}, ServerName: "example.org", Rate: 1000,
		InFlight: 4, Timeout: 50 * time.Millisecond})
	await(t, "timeouts", func() bool { return l.Stats().Failed > 8 })
	stats := l.Stop()
	// One may be counted as open for an instant after its client gave it up.
	if n := most.Load(); n > 8 {
		t.Errorf("%d connections open at once, want 4", n)
	}
	if stats.Made != 0 {
		t.Errorf("%d made with a server that never answers", stats.Made)
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	ca := certtest.NewCA(t)
	s := newSwappingServer(t, ca.Issue(t, certtest.Options{}), http.HandlerFunc(ok))
	ctx, cancel := context.WithCancel(t.Context())
	l := StartLoad(ctx, LoadOptions{Addresses: []string{s.address()}, ServerName: "example.org", Rate: 100, KeepAlive: 1, Pause: time.Hour})
	await(t, "handshakes", func() bool { return l.Stats().Made > 2 })
	cancel()
	stats := l.Stop()
	if err := stats.Err(); err != nil {
		t.Errorf("ending it was counted against the server: %v", err)
	}
	if again := l.Stop(); again.Made != stats.Made || again.Elapsed != stats.Elapsed {
		t.Errorf("a second Stop says %+v, the first said %+v", again, stats)
	}
}
