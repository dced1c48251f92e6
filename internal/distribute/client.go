package distribute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// PeerConfig says how to reach a peer.
type PeerConfig struct {
	// Name is the peer's in the configuration; Node is this node's, which the peer knows our key by.
	Name, Node string
	// Address is a host name or address, Port sshd's (0: 22), User the service user there ("": certsync).
	Address string
	Port    int
	User    string
	// Signer is this node's key; where it is nil, KeyFile is read at each connection.
	Signer  ssh.Signer
	KeyFile string
	// KnownHosts is the file that pins the host's keys. A missing one pins nothing, so that every host is refused.
	KnownHosts string
	// HostKeyAlias, where set, is looked up in KnownHosts instead of Address and Port, as in ssh_config(5).
	HostKeyAlias string
	Timeouts     Timeouts
	// API is the version spoken; 0 is cluster.API.
	API int
	// Dial, where set, gives the streams that HTTP is spoken on, instead of SSH sessions: another way to a handler,
	// such as its unix socket.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Peer asks another node over the peer API. It keeps one SSH connection, made at the first call and again after it
// broke. Errors wrap cluster.ErrUnreachable where the peer could not be asked, or did not finish its answer; what a
// peer answered with is a *RemoteError that unwraps to the sentinel that it was there. Its methods may be called from
// many goroutines.
type Peer struct {
	cfg       PeerConfig
	timeouts  Timeouts
	api       int
	ssh       *sshDialer // nil with PeerConfig.Dial
	transport *http.Transport
}

// NewPeer makes a client; nothing is dialled or read yet.
func NewPeer(cfg PeerConfig) *Peer {
	p := &Peer{cfg: cfg, timeouts: cfg.Timeouts.withDefaults(), api: cfg.API}
	if p.api == 0 {
		p.api = cluster.API
	}
	dial := cfg.Dial
	if dial == nil {
		p.ssh = newSSHDialer(cfg, p.timeouts)
		dial = p.ssh.session
	}
	p.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		// sshd's MaxSessions is 10 by default.
		MaxConnsPerHost:     6,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
		WriteBufferSize:     32 << 10,
		ReadBufferSize:      32 << 10,
	}
	return p
}

// Name is the peer's name in the configuration.
func (p *Peer) Name() string { return p.cfg.Name }

// Close ends the connection. Calls under way fail.
func (p *Peer) Close() error {
	p.transport.CloseIdleConnections()
	if p.ssh != nil {
		return p.ssh.close()
	}
	return nil
}

// Inventory asks what the peer holds.
func (p *Peer) Inventory(ctx context.Context) (cluster.Inventory, error) {
	var inventory cluster.Inventory
	err := p.do(ctx, call{what: "inventory of", method: http.MethodGet, path: pathInventory, limit: p.timeouts.Request},
		func(body io.Reader) (err error) {
			if inventory, err = decodeInventory(body); err == nil {
				err = p.isNamed(inventory.Node)
			}
			return err
		})
	if err != nil {
		return cluster.Inventory{}, err
	}
	return inventory, nil
}

// Status asks where the peer's certificates stand.
func (p *Peer) Status(ctx context.Context) (cluster.NodeStatus, error) {
	var status cluster.NodeStatus
	err := p.do(ctx, call{what: "status of", method: http.MethodGet, path: pathStatus, limit: p.timeouts.Request},
		func(body io.Reader) (err error) {
			if status, err = decodeStatus(body); err == nil {
				err = p.isNamed(status.Node)
			}
			return err
		})
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	return status, nil
}

// CARP asks what the peer sees of its virtual addresses.
func (p *Peer) CARP(ctx context.Context) (cluster.CARP, error) {
	var carp cluster.CARP
	err := p.do(ctx, call{what: "CARP of", method: http.MethodGet, path: pathCARP, limit: p.timeouts.Request},
		func(body io.Reader) (err error) {
			if carp, err = decodeCARP(body); err == nil {
				err = p.isNamed(carp.Node)
			}
			return err
		})
	if err != nil {
		return cluster.CARP{}, err
	}
	return carp, nil
}

// isNamed refuses a node that is not the one asked: two addresses were mixed up in the configuration.
func (p *Peer) isNamed(node string) error {
	if node == p.cfg.Name {
		return nil
	}
	err := fmt.Errorf("the host at %s says that it is node %s", p.cfg.Address, node)
	return cluster.WithHint(err, "compare the addresses under nodes in the configuration with the hosts', and node on %s", p.cfg.Address)
}

// Fetch hands each of the generations asked for to each, as it arrives and checked for form; those that the peer does
// not hold are left out. An error of each ends the transfer and is in the error returned.
func (p *Peer) Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error {
	if len(generations) == 0 {
		return nil
	}
	wanted := map[cert.Generation]bool{}
	for _, g := range generations {
		wanted[normal(g)] = true
	}
	c := call{what: fmt.Sprintf("fetch %s from", count(len(generations))), method: http.MethodPost, path: pathFetch,
		limit: p.timeouts.Transfer, stall: p.timeouts.Stall, replyType: typeTar, replay: true}
	if err := c.json(fetchBody{generations}); err != nil {
		return err
	}
	return p.do(ctx, c, func(body io.Reader) error {
		return readTar(body, func(k cluster.Kept) error {
			if !wanted[normal(k.Generation)] {
				return malformed("generation %s of %s was not asked for", k.Generation.Fingerprint.Short(), k.Generation.Slot)
			}
			return each(k)
		})
	})
}

// Stage offers generations, and tells for each whether it is durable on the peer. Where it returns an error, any of
// them may be.
func (p *Peer) Stage(ctx context.Context, kept []cluster.Kept) ([]cluster.StageResult, error) {
	if len(kept) == 0 {
		return nil, nil
	}
	for _, k := range kept {
		if err := checkKept(k); err != nil {
			return nil, fmt.Errorf("stage on %s: %w", p.cfg.Name, err)
		}
	}
	c := call{what: fmt.Sprintf("stage %s on", count(len(kept))), method: http.MethodPut, path: pathGenerations,
		limit: p.timeouts.Transfer, stall: p.timeouts.Stall, bodyType: typeTar, body: func() io.Reader { return tarOf(kept) }}
	var results []cluster.StageResult
	err := p.do(ctx, c, func(body io.Reader) (err error) {
		got, err := decodeList(body, "results", func(r cluster.StageResult) error { return checkGeneration(r.Generation) })
		if err == nil {
			results, err = matchResults(kept, got)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// tarOf streams kept. Whoever reads it to its end or closes it ends the goroutine.
func tarOf(kept []cluster.Kept) io.Reader {
	r, w := io.Pipe()
	go func() {
		stream := newTarWriter(w)
		for _, k := range kept {
			if err := stream.write(k); err != nil {
				_ = w.CloseWithError(err)
				return
			}
		}
		_ = w.CloseWithError(stream.end(nil))
	}()
	return r
}

// matchResults puts a peer's results in the order of what was offered. What it says nothing of is not staged.
func matchResults(kept []cluster.Kept, got []cluster.StageResult) ([]cluster.StageResult, error) {
	said := map[cert.Generation]cluster.StageResult{}
	for _, r := range got {
		said[normal(r.Generation)] = r
	}
	if len(got) > len(said) || len(said) > len(kept) {
		return nil, malformed("%d results for %d generations", len(got), len(kept))
	}
	results := make([]cluster.StageResult, 0, len(kept))
	for _, k := range kept {
		r, ok := said[normal(k.Generation)]
		if !ok {
			r.Error = "the peer's answer says nothing of it"
		}
		r.Generation, r.Error, r.Hint = k.Generation, cleanText(r.Error, maxText), cleanText(r.Hint, maxText)
		results = append(results, r)
	}
	return results, nil
}

// Record gives the peer records to be merged. Once it returns without error they are durable there.
func (p *Peer) Record(ctx context.Context, records cluster.Records) error {
	c := call{what: "record on", method: http.MethodPut, path: pathRecords, limit: p.timeouts.Request}
	if err := c.json(records); err != nil {
		return err
	}
	return p.do(ctx, c, func(body io.Reader) error {
		d := newDecoder(body)
		return firstThen(d.object(func(string) error { return errUnknown }), d.end)
	})
}

// Release lets the peer activate generations that it holds, and tells where they then stand.
func (p *Peer) Release(ctx context.Context, releases []cluster.Release) ([]cluster.Placement, error) {
	c := call{what: "release on", method: http.MethodPost, path: pathRelease, limit: p.timeouts.Release}
	if err := c.json(releaseBody{releases}); err != nil {
		return nil, err
	}
	var placements []cluster.Placement
	err := p.do(ctx, c, func(body io.Reader) (err error) {
		placements, err = decodePlacements(body)
		return err
	})
	if err != nil {
		return nil, err
	}
	return placements, nil
}

// call is one request.
type call struct {
	// what begins the error: "inventory of".
	what, method, path string
	// limit bounds the whole; stall, where set, the longest time without progress.
	limit, stall        time.Duration
	body                func() io.Reader
	bodyType, replyType string
	// replay tells that the call only reads, so that net/http may repeat it on another session.
	replay bool
}

// json sets the body.
func (c *call) json(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("request of %s: %w", c.path, err)
	}
	c.body, c.bodyType = func() io.Reader { return bytes.NewReader(body) }, typeJSON
	return nil
}

func (p *Peer) do(ctx context.Context, c call, read func(io.Reader) error) error {
	err := p.once(ctx, c, read)
	if errors.Is(err, errGone) {
		// The session outlived the daemon behind it, which never saw the call. The next one finds who answers now.
		p.transport.CloseIdleConnections()
		err = p.once(ctx, c, read)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.what, p.cfg.Name, err)
	}
	return nil
}

func (p *Peer) once(ctx context.Context, c call, read func(io.Reader) error) error {
	ctx, cancelLimit := context.WithTimeoutCause(ctx, c.limit, &waitedError{"no answer", c.limit})
	defer cancelLimit()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := newWatchdog(c.stall, cancel)
	defer watch.stop()

	var used net.Conn
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { used = info.Conn }}
	request, err := p.request(httptrace.WithClientTrace(ctx, trace), c, watch)
	if err != nil {
		return err
	}
	watch.arm()
	resp, err := p.transport.RoundTrip(request)
	watch.disarm()
	if err != nil {
		return p.unreachable(ctx, err, used)
	}
	defer resp.Body.Close()
	err = p.reply(resp, c, watch, read)
	if isStreamError(err) {
		return p.unreachable(ctx, err, used)
	}
	return err
}

func (p *Peer) request(ctx context.Context, c call, watch *watchdog) (*http.Request, error) {
	var body io.Reader
	if c.body != nil {
		body = c.body()
		if c.stall > 0 {
			body = &watched{body, watch}
		}
	}
	request, err := http.NewRequestWithContext(ctx, c.method, "http://peer"+c.path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set(headerAPI, fmt.Sprint(p.api))
	// serve-peer says who calls; this serves PeerConfig.Dial.
	request.Header.Set(headerNode, p.cfg.Node)
	if c.bodyType != "" {
		request.Header.Set("Content-Type", c.bodyType)
	}
	if c.replay {
		request.Header["Idempotency-Key"] = nil // not sent; see net/http.Transport
	}
	return request, nil
}

// reply checks an answer and reads it.
func (p *Peer) reply(resp *http.Response, c call, watch *watchdog, read func(io.Reader) error) error {
	if resp.Header.Get(headerAPI) == "" {
		return fmt.Errorf("%w answer: HTTP status %d without %s: not certsync's", ErrForm, resp.StatusCode, headerAPI)
	}
	theirs, err := checkAPI(resp.Header.Get(headerAPI), p.cfg.Name, p.api)
	if err != nil {
		return err
	}
	body := &bounded{r: resp.Body, left: maxJSON}
	if c.stall > 0 {
		body.progress = watch.during
	}
	want := typeJSON
	if c.replyType != "" {
		want, body.left = c.replyType, maxTransfer
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		resp.Body = io.NopCloser(body)
		return readError(resp)
	case resp.Header.Get("Content-Type") != want:
		return malformed("answer: content type %.40q, want %s", resp.Header.Get("Content-Type"), want)
	}
	err = read(body)
	if theirs > p.api && errors.Is(err, ErrForm) {
		err = fmt.Errorf("%w: %w", err, cluster.ErrNewerFormat)
	}
	return err
}

// unreachable says why a call did not get its answer. conn is the stream that it went over, or nil.
func (p *Peer) unreachable(ctx context.Context, err error, conn net.Conn) error {
	if s, ok := conn.(*session); ok {
		p.ssh.doubt(s.link)
		if ctx.Err() == nil {
			err = s.explain(err)
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: %w", cluster.ErrUnreachable, err)
}

// normal is g with its times in UTC, so that equal generations are equal to ==.
func normal(g cert.Generation) cert.Generation {
	g.NotBefore, g.NotAfter = g.NotBefore.UTC(), g.NotAfter.UTC()
	return g
}

func count(n int) string {
	if n == 1 {
		return "1 generation"
	}
	return fmt.Sprintf("%d generations", n)
}

// watchdog cancels a transfer that makes no progress. Time that our own side takes does not count.
type watchdog struct {
	stall time.Duration
	timer *time.Timer
	armed atomic.Bool
}

func newWatchdog(stall time.Duration, cancel context.CancelCauseFunc) *watchdog {
	w := &watchdog{stall: stall}
	if stall > 0 {
		w.timer = time.AfterFunc(stall, func() {
			if w.armed.Load() {
				cancel(&stalledError{stall})
			}
		})
	}
	return w
}

func (w *watchdog) arm() {
	if w.timer != nil {
		w.armed.Store(true)
		w.timer.Reset(w.stall)
	}
}

func (w *watchdog) disarm() {
	w.armed.Store(false)
	w.stop()
}

func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// during watches one read.
func (w *watchdog) during() (done func()) {
	w.arm()
	return w.disarm
}

// watched is a body that is sent: each piece that the connection takes is progress.
type watched struct {
	io.Reader
	watch *watchdog
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	if w.watch.armed.Load() {
		w.watch.arm()
	}
	return w.Reader.Read(p)
}

// Close ends the goroutine behind the body.
func (w *watched) Close() error {
	if c, ok := w.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// stalledError is a transfer without progress.
type stalledError struct{ stall time.Duration }

func (e *stalledError) Error() string { return fmt.Sprintf("the transfer stood still for %s", e.stall) }

// Unwrap gives what a context and a connection call a deadline that passed.
func (e *stalledError) Unwrap() []error {
	return []error{context.DeadlineExceeded, os.ErrDeadlineExceeded}
}

// Timeout implements net.Error's.
func (e *stalledError) Timeout() bool { return true }
