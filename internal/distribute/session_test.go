package distribute

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// rwc is a stream without deadlines: net.Pipe's are hidden.
type rwc struct{ c net.Conn }

func (r rwc) Read(p []byte) (int, error)  { return r.c.Read(p) }
func (r rwc) Write(p []byte) (int, error) { return r.c.Write(p) }
func (r rwc) Close() error                { return r.c.Close() }

func TestConn_ReadDeadlineLeavesTheStreamWhole(t *testing.T) {
	near, far := net.Pipe()
	c := newConn(rwc{near}, 0)
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 8)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("error %v, want a timeout", err)
	}
	// A deadline that is moved while a read waits counts for it.
	_ = c.SetReadDeadline(time.Now().Add(time.Hour))
	ended := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 8)); ended <- err }()
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("error %v, want a timeout", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	go func() { _, _ = far.Write([]byte("hello, world")); _ = far.Close() }()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello, world" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestConn_WriteThatMeetsItsDeadlineBreaksTheStream(t *testing.T) {
	for name, tc := range map[string]struct {
		bound func(c *conn)
		want  string
	}{
		"deadline": {func(c *conn) { _ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) }, "i/o timeout"},
		"stall":    {func(c *conn) { c.stall = 20 * time.Millisecond }, "the transfer stood still for 20ms"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe() // nobody reads
			c := newConn(rwc{near}, 0)
			defer c.Close()
			tc.bound(c)
			if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || err.Error() != tc.want {
				t.Fatalf("error %v, want a timeout: %s", err, tc.want)
			}
			_ = c.SetDeadline(time.Time{})
			if _, err := c.Write([]byte("y")); err == nil {
				t.Error("written after a write of unknown length")
			}
			if _, err := far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the other side: %v, want EOF", err)
			}
		})
	}
}

func TestConn_CloseEndsWhatWaits(t *testing.T) {
	near, _ := net.Pipe()
	c := newConn(rwc{near}, 0)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read from a closed stream")
		}
	})
	waiting.Go(func() {
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("written to a closed stream")
		}
	})
	_ = c.Close()
	waiting.Wait()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want %v", err, net.ErrClosed)
	}
}

func TestServeConn_EndsWithItsPeerAndWithItsContext(t *testing.T) {
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- ServeConn(context.Background(), rwc{far}, http.NotFoundHandler()) }()
	_, _ = fmt.Fprint(near, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(near), nil)
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	_ = near.Close()
	if err := <-ended; err != nil {
		t.Errorf("closed by the peer: %v", err)
	}

	near, far = net.Pipe()
	defer near.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- ServeConn(ctx, rwc{far}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		}))
	}()
	_, _ = fmt.Fprint(near, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestServeConn_GarbageIsRefused(t *testing.T) {
	for _, garbage := range []string{"\x00\x01\x02\r\n\r\n", "hello\n\n", strings.Repeat("A", 200<<10), "GET / HTTP/9.9\r\n\r\n",
		"PUT /v1/records HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "PUT /v1/records HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzz",
		"GET /v1/status HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n"} {
		near, far := net.Pipe()
		fake := newFake("proxy2")
		ended := make(chan error, 1)
		go func() {
			ended <- ServeConn(context.Background(), rwc{far}, AsNode("proxy1", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})))
		}()
		go func() { _, _ = io.WriteString(near, garbage) }()
		resp, err := http.ReadResponse(bufio.NewReader(near), nil)
		if err == nil && resp.StatusCode < 400 {
			t.Errorf("%.20q: status %d", garbage, resp.StatusCode)
		}
		_ = near.Close()
		if err := <-ended; err != nil {
			t.Errorf("%.20q: %v", garbage, err)
		}
		if _, calls := fake.snapshot(); len(calls) > 0 {
			t.Errorf("%.20q: the node did %v", garbage, calls)
		}
	}
}

// joinPeer is a client whose sessions are joined to a socket in the name of proxy1.
func joinPeer(t *testing.T, path string, change ...func(*PeerConfig)) *Peer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var joined sync.WaitGroup
	cfg := PeerConfig{Name: "proxy2", Node: "proxy9", Dial: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		joined.Go(func() {
			if err := Join(ctx, rwc{far}, path, "proxy1"); err != nil {
				_ = far.Close()
			}
		})
		return near, nil
	}}
	for _, c := range change {
		c(&cfg)
	}
	p := NewPeer(cfg)
	t.Cleanup(func() { _ = p.Close(); cancel(); joined.Wait() })
	return p
}

func TestJoin_StreamsBothWaysInTheNameOfTheKey(t *testing.T) {
	fake, path := newFake("proxy2"), socketPath(t)
	startDaemon(t, path, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1", "proxy9"}}))
	p := joinPeer(t, path)
	kept := makeKept(t, 3)
	if _, err := p.Stage(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("fetched %d, %v", n, err)
	}
	if !fake.from["proxy1"] || fake.from["proxy9"] {
		t.Errorf("changes came from %v, want proxy1", fake.from)
	}
	fake.mu.Lock()
	fake.err = cluster.WithHint(cluster.ErrBusy, "wait")
	fake.mu.Unlock()
	if err := p.Record(t.Context(), cluster.Records{}); !errors.Is(err, cluster.ErrBusy) || cluster.HintOf(err) != "wait" {
		t.Errorf("error %v, want %v", err, cluster.ErrBusy)
	}
}

func TestJoin_RefusesEverythingElse(t *testing.T) {
	fake, path := newFake("proxy2"), socketPath(t)
	startDaemon(t, path, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}}))
	tryForbidden(t, joinPeer(t, path).transport, fake)
}

// Headers that a proxy treats specially must not change who calls.
func TestJoin_NoHeaderChangesWhoCalls(t *testing.T) {
	for _, header := range []http.Header{
		{"Connection": {headerNode}}, {"Connection": {"Certsync-Node, Certsync-Api"}}, {headerNode: {"proxy9", "proxy1"}},
		{"certsync-node": {"proxy9"}}, {"CERTSYNC-NODE": {"proxy9"}}, {"X-Forwarded-For": {"proxy9"}}, {"Connection": {"Upgrade"}, "Upgrade": {"websocket"}},
		{"Te": {"trailers"}, "Trailer": {headerNode}},
	} {
		fake, path := newFake("proxy2"), socketPath(t)
		stop := startDaemon(t, path, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1", "proxy9"}}))
		p := joinPeer(t, path)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://peer"+pathRecords, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header = header
		request.Header[headerAPI] = []string{"1"}
		resp, err := p.transport.RoundTrip(request)
		if err != nil {
			t.Fatalf("%v: %v", header, err)
		}
		_ = resp.Body.Close()
		if fake.from["proxy9"] || resp.StatusCode == http.StatusOK && !fake.from["proxy1"] {
			t.Errorf("%v: status %d, from %v", header, resp.StatusCode, fake.from)
		}
		_ = p.Close()
		stop()
	}
}

func TestJoin_WithoutADaemonTouchesNothing(t *testing.T) {
	for name, path := range map[string]string{"no file": socketPath(t), "stale": staleSocket(t)} {
		near, far := net.Pipe()
		if err := Join(t.Context(), rwc{far}, path, "proxy1"); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: error %v, want %v", name, err, ErrNoDaemon)
		}
		go func() { _, _ = near.Write([]byte("still here")) }()
		got := make([]byte, 10)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "still here" {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
		_, _ = near.Close(), far.Close()
	}
}

func staleSocket(t *testing.T) string {
	t.Helper()
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	return path
}

// A session outlives the daemon that it was joined to: the call goes through by a new session.
func TestJoin_ADaemonThatRestartsCostsNoCall(t *testing.T) {
	fake, path := newFake("proxy2"), socketPath(t)
	handler := NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})
	stop := startDaemon(t, path, handler)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	p := NewPeer(PeerConfig{Name: "proxy2", Node: "proxy1", Dial: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		sessions.Go(func() { // what serve-peer does
			if err := Join(ctx, rwc{far}, path, "proxy1"); errors.Is(err, ErrNoDaemon) {
				_ = ServeConn(ctx, rwc{far}, AsNode("proxy1", handler))
			}
		})
		return near, nil
	}})
	defer p.Close()
	kept := makeKept(t, 1)
	for range 3 {
		if _, err := p.Stage(t.Context(), kept); err != nil {
			t.Fatal(err)
		}
		stop()
		if _, err := p.Stage(t.Context(), kept); err != nil {
			t.Fatalf("after the daemon ended: %v", err)
		}
		stop = startDaemon(t, path, handler)
	}
}

func TestListen_ModeAndTakeOver(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v, want a socket of 0600", info.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if _, err := Listen(path); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("a second listener: %v, want %v", err, cluster.ErrBusy)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first does not answer any more: %v", err)
	} else {
		_ = c.Close()
	}
	_ = l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left behind: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	stale := staleSocket(t)
	l, err = Listen(stale)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	// Another process replaced the file: closing must not take it away.
	if err := os.Remove(stale); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if data, err := os.ReadFile(stale); err != nil || !bytes.Equal(data, []byte("x")) {
		t.Errorf("the file of another is gone: %v", err)
	}
	if _, err := Listen(stale); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if _, err := Listen(filepath.Join(t.TempDir(), "missing", "peer.sock")); err == nil {
		t.Error("a folder that is not there was made")
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := Listen(long); err == nil || cluster.HintOf(err) == "" {
		t.Errorf("a path that is too long: %v", err)
	}
}

func TestServe_LetsCallsUnderWayEnd(t *testing.T) {
	fake, path := newFake("proxy2"), socketPath(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	fake.wait = func(ctx context.Context) error { close(begun); <-finish; return ctx.Err() }
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})) }()
	p := NewPeer(PeerConfig{Name: "proxy2", Node: "proxy1", Dial: func(ctx context.Context) (net.Conn, error) { return dialSocket(ctx, path) }})
	defer p.Close()
	answer := make(chan error, 1)
	go func() { answer <- p.Record(context.Background(), cluster.Records{}) }()
	<-begun
	cancel()
	close(finish)
	if err := <-answer; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
