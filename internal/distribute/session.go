package distribute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// ErrNoDaemon tells that nobody answers on peer.sock; nothing was read from the session then.
var ErrNoDaemon = errors.New("no daemon answers")

const (
	// headerTime is for a request's header, idleTime for the wait for the next request of a connection.
	headerTime = 30 * time.Second
	idleTime   = 5 * time.Minute
	// graceTime is what calls under way get when a server ends.
	graceTime = 5 * time.Second
	// drainTime is for what is left of a request's body when it was answered.
	drainTime = 2 * time.Second
	// socketTime is for the connection to a socket of this host.
	socketTime = 2 * time.Second
)

// newServer is the HTTP server of a session and of a socket. It logs nothing: what goes wrong with one peer's
// connection is that peer's to report.
func newServer(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           boundDrain(handler),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}

// boundDrain sets a deadline once a call is answered: net/http reads what is left of its body then, before the answer
// goes out, and a peer that announced a body and does not send it would hold the connection for ever.
func boundDrain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime)) }()
		next.ServeHTTP(w, r)
	})
}

// ServeConn answers HTTP on one stream, standard input and output of serve-peer, until the peer closes it (nil) or ctx
// ends (its error). It closes rwc.
func ServeConn(ctx context.Context, rwc io.ReadWriteCloser, handler http.Handler) error {
	c := newConn(rwc, Timeouts{}.withDefaults().Stall)
	defer c.Close()
	listener := &single{conn: c, done: make(chan struct{})}
	server := newServer(ctx, handler)
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			_ = listener.Close()
		}
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve the session: %w", err)
	}
	return ctx.Err()
}

// single is a listener for one connection: its second Accept waits until that one is done.
type single struct {
	conn net.Conn
	once sync.Once
	done chan struct{}
}

// Accept implements net.Listener.
func (s *single) Accept() (net.Conn, error) {
	if c := s.conn; c != nil {
		s.conn = nil
		return c, nil
	}
	<-s.done
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (s *single) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Addr implements net.Listener.
func (s *single) Addr() net.Addr { return sessionAddr{} }

// Join answers a session by handing its requests to the daemon that listens on socketPath, in the name of node, until
// the peer closes it (nil) or ctx ends. Where nobody listens it returns ErrNoDaemon and has not touched rwc; the caller
// answers by itself then, with ServeConn.
func Join(ctx context.Context, rwc io.ReadWriteCloser, socketPath, node string) error {
	probe, err := dialSocket(ctx, socketPath)
	if err != nil {
		return err
	}
	_ = probe.Close()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, socketPath) },
		// A kept connection may be that of a daemon which has ended, and would fail a call that another could answer.
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
	return ServeConn(ctx, rwc, &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite:       func(p *httputil.ProxyRequest) { rewrite(p.Out, node) },
		ErrorHandler:  proxyError,
	})
}

// rewrite addresses a request to the daemon. It runs after the hop-by-hop headers were dropped, so that a peer cannot
// have Certsync-Node dropped by naming it in Connection.
func rewrite(r *http.Request, node string) {
	r.URL.Scheme, r.URL.Host, r.Host = "http", "peer", "peer"
	r.Header.Del("Upgrade")
	r.Header.Del("Connection")
	setNode(r.Header, node)
}

// proxyError answers for a daemon that went away, and ends the session: the peer's next one finds out anew whether a
// daemon runs.
func proxyError(w http.ResponseWriter, _ *http.Request, err error) {
	w.Header().Set("Connection", "close")
	w.Header().Set(headerAPI, fmt.Sprint(cluster.API))
	if errors.Is(err, ErrNoDaemon) {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	writeError(w, err, http.StatusServiceUnavailable)
}

func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: socketTime}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return c, nil
}

// Serve answers HTTP on a listener until ctx ends; calls under way then get 5 s. It closes the listener.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	return ServeUntil(ctx, listener, handler, graceTime)
}

// ServeUntil is Serve with another time, most, for the calls under way when ctx ends.
func ServeUntil(ctx context.Context, listener net.Listener, handler http.Handler, most time.Duration) error {
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := newServer(calls, handler)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, done := context.WithTimeout(calls, most)
		defer done()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(listener)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", listener.Addr(), err)
}

// maxSocketPath is the longest path of a unix socket: sun_path of FreeBSD has 104 bytes with its NUL, Linux's 108.
const maxSocketPath = 103

// Listen makes the unix socket path, mode 0600, so that only the service user can connect. A socket file that a dead
// process left is replaced; where somebody answers on it the error is cluster.ErrBusy; a file of another kind is never
// removed. Closing the listener removes the file, where it is still its own.
func Listen(path string) (net.Listener, error) { return listen(path, 0o600) }

// ListenLocal is Listen for the local commands: mode 0660, so that the socket's group may command too.
func ListenLocal(path string) (net.Listener, error) { return listen(path, 0o660) }

func listen(path string, mode fs.FileMode) (net.Listener, error) {
	if err := checkSocketFree(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Bound in a folder that nobody else may enter, and moved: there is no instant at which the socket has another
	// mode, or at which a stale one is away and the new one not yet there.
	private, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	if longest := max(len(path), len(made)); longest > maxSocketPath {
		err := fmt.Errorf("listen on %s: the path has %d bytes, a socket's may have %d", path, longest, maxSocketPath)
		return nil, cluster.WithHint(err, "set run_dir to a shorter path")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	info, err := publishSocket(made, path, mode)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &socket{UnixListener: l, path: path, info: info}, nil
}

func checkSocketFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file that is not a socket is there")
	}
	c, err := net.DialTimeout("unix", path, socketTime)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%w: another process answers there", cluster.ErrBusy)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A full backlog, no permission: somebody may well be there.
	return fmt.Errorf("%w: %w", cluster.ErrBusy, err)
}

func publishSocket(made, path string, mode fs.FileMode) (fs.FileInfo, error) {
	if err := os.Chmod(made, mode); err != nil {
		return nil, err
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(made, path)
}

// socket is a listener that removes its file when it is closed.
type socket struct {
	*net.UnixListener
	path string
	info fs.FileInfo
}

// Close implements net.Listener.
func (s *socket) Close() error {
	if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.info) {
		_ = os.Remove(s.path)
	}
	return s.UnixListener.Close()
}

// Addr implements net.Listener, with the path under which the socket is found.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }
