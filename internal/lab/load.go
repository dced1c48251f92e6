package lab

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
)

// LoadOptions says what clients do. Zero fields take the defaults given.
type LoadOptions struct {
	// Addresses are the TLS servers, host:port; the new connections go to each in turn.
	Addresses []string
	// ServerName is asked for by SNI, and must be covered by the leaf.
	ServerName string
	// Rate is the number of new connections a second over all addresses; 0 makes none.
	Rate float64
	// InFlight is how many new connections may be open at once (256). Over it, none is begun until one ends: the
	// clients are then slower than Rate, which Made shows.
	InFlight int
	// KeepAlive is the number of connections to each address that stay open and send a request every Pause.
	KeepAlive int
	// Pause is the time between two requests of a kept connection (100 ms).
	Pause time.Duration
	// Timeout is the time that a connection, its handshake and its request may take together, and a request of a kept
	// connection by itself (10 s).
	Timeout time.Duration
}

// Leaf is a certificate that an address showed.
type Leaf struct {
	Fingerprint cert.Fingerprint
	// Count is the number of handshakes that showed it.
	Count int
	// First is when the first of these handshakes ended; LastBegun is when the last of them to begin began, before its
	// connection was made. A handshake begun after First that shows an earlier leaf is a step back.
	First, LastBegun time.Time
}

// LoadStats is what the clients met.
type LoadStats struct {
	// Made counts the new connections that ended well: connection, handshake, request and answer. Failed counts the
	// others; Errors has the first few different reasons of these and of Broken.
	Made, Failed int
	// Requests counts the answers on kept connections; Broken the kept connections that ended before we ended them.
	Requests, Broken int
	Errors           []string
	// Seen has the leaves of each address in the order in which they first appeared.
	Seen map[string][]Leaf
	// Elapsed is the time since the start.
	Elapsed time.Duration
}

// Backwards names each address that showed a leaf in a handshake begun after another leaf had replaced it: a client
// that was taken back to an earlier generation.
func (s LoadStats) Backwards() []string {
	var out []string
	for address, leaves := range s.Seen {
		for i := 1; i < len(leaves); i++ {
			if old := leaves[i-1]; old.LastBegun.After(leaves[i].First) {
				out = append(out, fmt.Sprintf("%s showed %s %s after %s", address, old.Fingerprint.Short(),
					old.LastBegun.Sub(leaves[i].First), leaves[i].Fingerprint.Short()))
			}
		}
	}
	slices.Sort(out)
	return out
}

// Err is nil where no client noticed anything: none failed, none was cut, none was taken back.
func (s LoadStats) Err() error {
	var errs []error
	if s.Failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d handshakes failed", s.Failed, s.Made+s.Failed))
	}
	if s.Broken > 0 {
		errs = append(errs, fmt.Errorf("%d kept connections broke", s.Broken))
	}
	for _, b := range s.Backwards() {
		errs = append(errs, errors.New(b))
	}
	for _, e := range s.Errors {
		errs = append(errs, errors.New(e))
	}
	return errors.Join(errs...)
}

// Load is a crowd of clients: new TLS connections at a steady rate, each with a full handshake, and connections that
// stay open. The chain is not verified to a root (the lab's first certificate has another CA than the later ones); the
// leaf must be in date and cover the name.
type Load struct {
	o      LoadOptions
	cancel context.CancelFunc
	wg     sync.WaitGroup
	start  time.Time

	mu    sync.Mutex
	stats LoadStats
	ended bool
}

// errorsKept bounds LoadStats.Errors.
const errorsKept = 8

// StartLoad begins; the clients go on until Stop or the end of ctx.
func StartLoad(ctx context.Context, o LoadOptions) *Load {
	o.InFlight = cmp.Or(o.InFlight, 256)
	o.Pause = cmp.Or(o.Pause, 100*time.Millisecond)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{o: o, cancel: cancel, start: time.Now(), stats: LoadStats{Seen: map[string][]Leaf{}}}
	if o.Rate > 0 && len(o.Addresses) > 0 {
		l.wg.Go(func() { l.pace(ctx) })
	}
	for _, address := range o.Addresses {
		for range o.KeepAlive {
			l.wg.Go(func() { l.keepOpen(ctx, address) })
		}
	}
	return l
}

// Stats is what was met so far.
func (l *Load) Stats() LoadStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Errors = slices.Clone(s.Errors)
	s.Seen = map[string][]Leaf{}
	for address, leaves := range l.stats.Seen {
		s.Seen[address] = slices.Clone(leaves)
	}
	if !l.ended {
		s.Elapsed = time.Since(l.start)
	}
	return s
}

// Stop lets what is under way end, and gives the summary. Further calls give the same.
func (l *Load) Stop() LoadStats {
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	if !l.ended {
		l.ended, l.stats.Elapsed = true, time.Since(l.start)
	}
	l.mu.Unlock()
	return l.Stats()
}

// pace begins connections so that their number follows the clock; what a busy machine delayed is caught up with.
func (l *Load) pace(ctx context.Context) {
	slots := make(chan struct{}, l.o.InFlight)
	tick := time.NewTicker(max(time.Millisecond, time.Duration(float64(time.Second)/l.o.Rate)))
	defer tick.Stop()
	for begun := 0; ; {
		due := int(time.Since(l.start).Seconds() * l.o.Rate)
		for ; begun < due; begun++ {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			address := l.o.Addresses[begun%len(l.o.Addresses)]
			l.wg.Go(func() {
				defer func() { <-slots }()
				l.connectOnce(address)
			})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// connectOnce is one new client. It does not obey the load's context, only its own deadline, so that Stop never counts
// a connection that it cut itself.
func (l *Load) connectOnce(address string) {
	ctx, cancel := context.WithTimeout(context.Background(), l.o.Timeout)
	defer cancel()
	begun := time.Now()
	conn, leaf, err := dialTLS(ctx, address, l.o.ServerName)
	if err == nil {
		defer closeHard(conn)
		deadline, _ := ctx.Deadline()
		_ = conn.SetDeadline(deadline)
		l.saw(address, leaf, begun, time.Now())
		_, err = request(conn, bufio.NewReader(conn), l.o.ServerName, true)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.stats.Failed++
		l.keepErrorLocked(address, err)
		return
	}
	l.stats.Made++
}

// keepOpen is one client that stays; it comes back when its connection was cut.
func (l *Load) keepOpen(ctx context.Context, address string) {
	for ctx.Err() == nil {
		opened, err := l.talk(ctx, address)
		if err == nil {
			return
		}
		l.mu.Lock()
		if opened {
			l.stats.Broken++
		} else {
			l.stats.Failed++
		}
		l.keepErrorLocked(address, fmt.Errorf("kept connection: %w", err))
		l.mu.Unlock()
		sleep(ctx, l.o.Pause)
	}
}

// talk sends requests over one connection until ctx ends (nil) or the connection breaks. It tells whether there was one.
func (l *Load) talk(ctx context.Context, address string) (opened bool, err error) {
	dialCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.o.Timeout)
	defer cancel()
	conn, _, err := dialTLS(dialCtx, address, l.o.ServerName)
	if err != nil {
		return false, err
	}
	defer closeHard(conn)
	r := bufio.NewReader(conn)
	for ctx.Err() == nil {
		_ = conn.SetDeadline(time.Now().Add(l.o.Timeout))
		again, err := request(conn, r, l.o.ServerName, false)
		if err != nil {
			return true, err
		}
		l.mu.Lock()
		l.stats.Requests++
		l.mu.Unlock()
		if !again {
			return true, errors.New("the server closes it")
		}
		sleep(ctx, l.o.Pause)
	}
	return true, nil
}

// saw notes a handshake that began and ended at these times.
func (l *Load) saw(address string, fingerprint cert.Fingerprint, begun, ended time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	leaves := l.stats.Seen[address]
	i := slices.IndexFunc(leaves, func(o Leaf) bool { return o.Fingerprint == fingerprint })
	if i < 0 {
		l.stats.Seen[address] = append(leaves, Leaf{Fingerprint: fingerprint, Count: 1, First: ended, LastBegun: begun})
		return
	}
	leaves[i].Count++
	if begun.After(leaves[i].LastBegun) {
		leaves[i].LastBegun = begun
	}
}

func (l *Load) keepErrorLocked(address string, err error) {
	text := address + ": " + err.Error()
	if len(l.stats.Errors) < errorsKept && !slices.Contains(l.stats.Errors, text) {
		l.stats.Errors = append(l.stats.Errors, text)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// dialTLS makes a connection with a full handshake (there is no session cache, so nothing is resumed) and gives the
// leaf that it showed, which must be in date and cover serverName.
func dialTLS(ctx context.Context, address, serverName string) (*tls.Conn, cert.Fingerprint, error) {
	d := net.Dialer{}
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, cert.Fingerprint{}, err
	}
	conn := tls.Client(raw, &tls.Config{ServerName: serverName, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		return checkLeaf(s, serverName)
	}})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, cert.Fingerprint{}, fmt.Errorf("handshake: %w", err)
	}
	return conn, sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw), nil
}

func checkLeaf(s tls.ConnectionState, serverName string) error {
	if s.DidResume {
		return errors.New("the session was resumed")
	}
	leaf := s.PeerCertificates[0]
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return fmt.Errorf("leaf %s is valid from %s to %s only", cert.Describe(leaf), leaf.NotBefore, leaf.NotAfter)
	}
	return leaf.VerifyHostname(serverName)
}

// request sends one GET and reads the answer. It tells whether the connection may be used again.
func request(conn net.Conn, r *bufio.Reader, host string, last bool) (again bool, err error) {
	connection := "keep-alive"
	if last {
		connection = "close"
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", host, connection); err != nil {
		return false, fmt.Errorf("request: %w", err)
	}
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return false, fmt.Errorf("answer: %w", err)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	if err != nil {
		return false, fmt.Errorf("answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return false, fmt.Errorf("answer: %s", answer.Status)
	}
	return !answer.Close, nil
}

// closeHard closes a connection whose answer was read, with a reset: at hundreds a second the ports would otherwise be
// used up by TIME_WAIT.
func closeHard(conn *tls.Conn) {
	if tcp, ok := conn.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.NetConn().Close()
}
