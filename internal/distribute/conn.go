package distribute

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// conn makes a net.Conn, with deadlines, of a stream that has none: an SSH channel, standard input and output. A read
// that meets its deadline leaves the stream whole. A write that does breaks it, because nobody can say how much of it
// went out; every later call then fails.
type conn struct {
	rwc io.ReadWriteCloser
	// stall is the longest that a single write may take; 0: as long as its deadline says.
	stall time.Duration

	reads    chan []byte // from pump; closed after readErr is set
	readErr  error
	readMu   sync.Mutex
	rest     []byte
	writeMu  sync.Mutex
	writeBuf []byte

	readDeadline, writeDeadline *deadline

	closeOnce sync.Once
	closed    chan struct{}
	closeErr  error
}

var _ net.Conn = (*conn)(nil)

func newConn(rwc io.ReadWriteCloser, stall time.Duration) *conn {
	c := &conn{rwc: rwc, stall: stall, reads: make(chan []byte), closed: make(chan struct{}),
		readDeadline: newDeadline(), writeDeadline: newDeadline()}
	go c.pump()
	return c
}

// pump reads ahead by one buffer. Two buffers take turns: one is handed over only when the other is used up.
func (c *conn) pump() {
	defer close(c.reads)
	buffers := [2][]byte{make([]byte, 32<<10), make([]byte, 32<<10)}
	for i := 0; ; i = 1 - i {
		n, err := c.rwc.Read(buffers[i])
		if n > 0 {
			select {
			case c.reads <- buffers[i][:n]:
			case <-c.closed:
				c.readErr = net.ErrClosed
				return
			}
		}
		if err != nil {
			c.readErr = err
			return
		}
	}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	expired := c.readDeadline.wait()
	switch {
	case isClosed(c.closed):
		return 0, net.ErrClosed
	case isClosed(expired):
		return 0, os.ErrDeadlineExceeded
	case len(p) == 0:
		return 0, nil
	}
	if len(c.rest) == 0 {
		select {
		case b, ok := <-c.reads:
			if !ok {
				return 0, c.readErr
			}
			c.rest = b
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	expired := c.writeDeadline.wait()
	switch {
	case isClosed(c.closed):
		return 0, net.ErrClosed
	case isClosed(expired):
		return 0, os.ErrDeadlineExceeded
	}
	var stalled <-chan time.Time
	if c.stall > 0 {
		timer := time.NewTimer(c.stall)
		defer timer.Stop()
		stalled = timer.C
	}
	// The copy outlives this call where it is given up; p is the caller's again then.
	c.writeBuf = append(c.writeBuf[:0], p...)
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func(buf []byte) {
		n, err := c.rwc.Write(buf)
		done <- result{n, err}
	}(c.writeBuf)
	select {
	case r := <-done:
		return r.n, r.err
	case <-c.closed:
		return 0, net.ErrClosed
	case <-expired:
		_ = c.Close()
		return 0, os.ErrDeadlineExceeded
	case <-stalled:
		_ = c.Close()
		return 0, &stalledError{c.stall}
	}
}

// Close closes the stream; pending reads and writes end.
func (c *conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.readDeadline.set(time.Time{})
		c.writeDeadline.set(time.Time{})
		c.closeErr = c.rwc.Close()
	})
	return c.closeErr
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return sessionAddr{} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return sessionAddr{} }

type sessionAddr struct{}

func (sessionAddr) Network() string { return "ssh" }
func (sessionAddr) String() string  { return "session" }

// deadline is a moment that can be moved while somebody waits for it, as in net.Pipe.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func newDeadline() *deadline { return &deadline{passed: make(chan struct{})} }

// set moves the deadline to t; the zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // the timer's function is about to close it
	}
	d.timer = nil
	if isClosed(d.passed) {
		if t.IsZero() || time.Until(t) > 0 {
			d.passed = make(chan struct{})
		} else {
			return
		}
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		close(d.passed)
		return
	}
	passed := d.passed
	d.timer = time.AfterFunc(left, func() { close(passed) })
}

// wait is closed once the deadline passed.
func (d *deadline) wait() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// stdio joins the two ends of a session's command.
type stdio struct {
	io.ReadCloser
	out io.WriteCloser
}

// Stdio makes one stream of standard input and standard output, for ServeConn and Join.
func Stdio(in io.ReadCloser, out io.WriteCloser) io.ReadWriteCloser {
	return stdio{ReadCloser: in, out: out}
}

// Write implements io.Writer.
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// Close closes both ends.
func (s stdio) Close() error {
	return firstError(s.out.Close(), s.ReadCloser.Close())
}
