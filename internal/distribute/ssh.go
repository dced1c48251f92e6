package distribute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"certsync/internal/cluster"
)

// serveCommand is what a session asks for. sshd runs the forced command of our key instead.
const serveCommand = "certsync serve-peer"

// sshDialer keeps one SSH connection to a peer and opens sessions on it.
type sshDialer struct {
	cfg           PeerConfig
	timeouts      Timeouts
	address, name string
	// ctx ends with close.
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	current *link
	dialing *dialing
}

// dialing is a connection being made; all callers wait for the one.
type dialing struct {
	done chan struct{}
	link *link
	err  error
}

func newSSHDialer(cfg PeerConfig, t Timeouts) *sshDialer {
	if cfg.User == "" {
		cfg.User = "certsync"
	}
	d := &sshDialer{cfg: cfg, timeouts: t}
	d.address, d.name = hostNames(cfg)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

func (d *sshDialer) close() error {
	d.cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return nil
	}
	d.current.close()
	d.current = nil
	return nil
}

// session opens one. Where the kept connection turns out to be broken, it is made anew, once.
func (d *sshDialer) session(ctx context.Context) (net.Conn, error) {
	for {
		l, kept, err := d.link(ctx)
		if err != nil {
			return nil, err
		}
		s, err := l.session(ctx, d.timeouts)
		if err == nil {
			return s, nil
		}
		if !kept || !l.isDead() || ctx.Err() != nil {
			return nil, err
		}
	}
}

// link is the kept connection, or a new one.
func (d *sshDialer) link(ctx context.Context) (l *link, kept bool, err error) {
	d.mu.Lock()
	l = d.current
	d.mu.Unlock()
	if l != nil && l.isAlive(min(d.timeouts.KeepAlive, d.timeouts.Dial)) {
		return l, true, nil
	}
	making := d.dial(l)
	select {
	case <-making.done:
		return making.link, false, making.err
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

// dial begins to replace the connection broken, unless somebody else has begun or done it.
func (d *sshDialer) dial(broken *link) *dialing {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dialing != nil {
		return d.dialing
	}
	m := &dialing{done: make(chan struct{})}
	if d.current != nil && d.current != broken {
		m.link = d.current
		close(m.done)
		return m
	}
	d.dialing, d.current = m, nil
	go func() {
		m.link, m.err = d.connect(d.ctx)
		d.mu.Lock()
		d.dialing = nil
		if d.ctx.Err() != nil {
			if m.link != nil {
				m.link.close()
			}
			m.link, m.err = nil, net.ErrClosed
		}
		d.current = m.link
		d.mu.Unlock()
		close(m.done)
	}()
	return m
}

// doubt marks a connection over which a call failed: it is tried before it is used again.
func (d *sshDialer) doubt(l *link) { l.doubtful.Store(true) }

// connect makes a connection: TCP, key exchange with a pinned host key, authentication.
func (d *sshDialer) connect(ctx context.Context) (*link, error) {
	signer, err := d.signer()
	if err != nil {
		return nil, err
	}
	pinned, err := readHostKeys(d.cfg.KnownHosts, d.name, d.address)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: d.timeouts.Dial, KeepAlive: -1}
	tcp, err := dialer.DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, d.dialError(err)
	}
	client, err := d.handshake(ctx, tcp, signer, pinned)
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	return client, nil
}

func (d *sshDialer) handshake(ctx context.Context, tcp net.Conn, signer ssh.Signer, pinned *hostKeys) (*link, error) {
	conn := newHeard(tcp)
	_ = conn.SetDeadline(time.Now().Add(d.timeouts.Handshake))
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var hostError error
	verified := false
	c, channels, requests, err := ssh.NewClientConn(conn, d.address, &ssh.ClientConfig{
		User:              d.cfg.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		ClientVersion:     "SSH-2.0-certsync",
		HostKeyAlgorithms: pinned.algorithms(),
		HostKeyCallback: func(name string, addr net.Addr, key ssh.PublicKey) error {
			hostError = pinned.verify(name, addr, key)
			verified = hostError == nil
			return hostError
		},
	})
	switch {
	case hostError != nil:
		return nil, hostError
	case err != nil && verified:
		return nil, d.authError(err, signer.PublicKey())
	case err != nil:
		return nil, d.exchangeError(err, pinned)
	}
	_ = conn.SetDeadline(time.Time{})
	l := newLink(ssh.NewClient(c, channels, requests), conn, d.cfg.Name)
	go l.keepAlive(d.timeouts.KeepAlive)
	return l, nil
}

// dialError adds the mend to a connection that could not be made.
func (d *sshDialer) dialError(err error) error {
	cause := err
	if op, ok := errors.AsType[*net.OpError](err); ok {
		cause = op.Err
	}
	wrapped := fmt.Errorf("dial %s: %w", d.address, cause)
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return cluster.WithHint(fmt.Errorf("dial %s: %w", d.address, dns), "use an address instead of a name under nodes")
	}
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return cluster.WithHint(wrapped, "start sshd on %s, or set its port under nodes", d.cfg.Name)
	case ok && timeout.Timeout():
		return cluster.WithHint(fmt.Errorf("dial %s: %w", d.address, &waitedError{"no answer", d.timeouts.Dial}),
			"see that %s is up and that no firewall drops TCP to %s", d.cfg.Name, d.address)
	}
	return wrapped
}

// exchangeError is for what fails before the host proved itself.
func (d *sshDialer) exchangeError(err error, pinned *hostKeys) error {
	if n, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok && n.What == "host key" {
		return pinned.noneOffered(n.RequestedAlgorithms)
	}
	return fmt.Errorf("SSH with %s: %w", d.address, d.handshakeCause(err))
}

// authError is for what fails after it.
func (d *sshDialer) authError(err error, key ssh.PublicKey) error {
	if !strings.Contains(err.Error(), "unable to authenticate") {
		return fmt.Errorf("SSH with %s: log in as %s: %w", d.address, d.cfg.User, d.handshakeCause(err))
	}
	refused := fmt.Errorf("SSH with %s: sshd refused the key %s of user %s", d.address, describeKey(key), d.cfg.User)
	return cluster.WithHint(refused, "add this line to the authorized_keys of %s on %s: %s", d.cfg.User, d.cfg.Name,
		AuthorizedKey("", d.cfg.Node, key))
}

func (d *sshDialer) handshakeCause(err error) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return &waitedError{"no answer", d.timeouts.Handshake}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return cluster.WithHint(errors.New("the host closed the connection"), "see sshd's log on %s (MaxStartups, AllowUsers)", d.cfg.Name)
	}
	return err
}

// AuthorizedKey is the line of authorized_keys (sshd(8)) that lets node's key do nothing but serve-peer; certsync is
// the path of the program there, "" where the port installs it.
func AuthorizedKey(certsync, node string, key ssh.PublicKey) string {
	if certsync == "" {
		certsync = "/usr/local/sbin/certsync"
	}
	return fmt.Sprintf(`restrict,command="%s serve-peer --node %s" %s`, certsync, node,
		strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
}

// signer is this node's key.
func (d *sshDialer) signer() (ssh.Signer, error) {
	if d.cfg.Signer != nil {
		return d.cfg.Signer, nil
	}
	return ReadKey(d.cfg.KeyFile)
}

// maxKey is the size of a private key's file, in bytes.
const maxKey = 64 << 10

// ReadKey reads an unencrypted private key of ssh-keygen(1). A file that others may read or write is refused, as ssh
// does; that of the group may be read (0640 root:certsync).
func ReadKey(file string) (ssh.Signer, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, cluster.WithHint(fmt.Errorf("read the SSH key: %w", err), "make one: ssh-keygen -t ed25519 -N '' -f %s", file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the SSH key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the SSH key: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("read the SSH key: %s is not a regular file", file)
	case mode.Perm()&0o027 != 0:
		err := fmt.Errorf("read the SSH key: %s has mode %04o: others may use it", file, mode.Perm())
		return nil, cluster.WithHint(err, "chmod 600 %s; where others may have read it, make a new key", file)
	case info.Size() > maxKey:
		return nil, fmt.Errorf("read the SSH key: %s has %d bytes: not a private key", file, info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return nil, fmt.Errorf("read the SSH key: %w", err)
	}
	return parseSigner(file, data)
}

func parseSigner(file string, data []byte) (ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey(data)
	if _, encrypted := errors.AsType[*ssh.PassphraseMissingError](err); encrypted {
		err := fmt.Errorf("read the SSH key: %s is encrypted, and nobody is there to type its passphrase", file)
		return nil, cluster.WithHint(err, "take the passphrase away: ssh-keygen -p -N '' -f %s", file)
	}
	if err != nil {
		// The cause could quote the input.
		return nil, fmt.Errorf("read the SSH key: %s is not a private key that can be read", file)
	}
	return signer, nil
}

// link is one SSH connection.
type link struct {
	client   *ssh.Client
	conn     *heard
	peer     string
	dead     chan struct{}
	doubtful atomic.Bool
}

func newLink(client *ssh.Client, conn *heard, peer string) *link {
	l := &link{client: client, conn: conn, peer: peer, dead: make(chan struct{})}
	go func() {
		_ = client.Wait()
		close(l.dead)
	}()
	return l
}

func (l *link) close()       { _ = l.client.Close() }
func (l *link) isDead() bool { return isClosed(l.dead) }

// isAlive tries a connection that is in doubt, for limit at most, and drops it where nothing comes back.
func (l *link) isAlive(limit time.Duration) bool {
	if l.isDead() {
		return false
	}
	if l.doubtful.Load() {
		if !l.ask(limit) {
			l.close()
			return false
		}
		l.doubtful.Store(false)
	}
	return true
}

// ask sends one keepalive, as ssh's ServerAliveInterval does, and tells whether anything at all came back.
func (l *link) ask(limit time.Duration) bool {
	before := l.conn.reads.Load()
	answered := make(chan error, 1)
	go func() {
		_, _, err := l.client.SendRequest("keepalive@openssh.com", true, nil)
		answered <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-answered:
		return err == nil
	case <-timer.C:
		// A long transfer may stand in the answer's way: then there is traffic.
		return l.conn.reads.Load() != before
	}
}

// keepAlive asks at each interval, and drops a connection that was silent for three.
func (l *link) keepAlive(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-l.dead:
			return
		case <-tick.C:
		}
		if !l.ask(3 * interval) {
			l.close()
			return
		}
	}
}

// heard is a TCP connection that counts what was received, and acknowledges at once.
type heard struct {
	net.Conn
	raw   syscall.RawConn
	reads atomic.Int64
}

func newHeard(c net.Conn) *heard {
	h := &heard{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		h.raw, _ = s.SyscallConn()
	}
	return h
}

// Read implements io.Reader.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.reads.Add(1)
		if h.raw != nil {
			quickAck(h.raw)
		}
	}
	return n, err
}
