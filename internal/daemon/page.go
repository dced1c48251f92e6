package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
	"certsync/internal/web"
)

const (
	// pageRetry is how often a status page that is not where it should be is tried again.
	pageRetry = time.Minute
	// pageGrace is what answers under way get when the page moves or ends.
	pageGrace = 2 * time.Second
	// pageConnections is how many there may be at a time: whoever opens more waits, and does not use up our descriptors.
	pageConnections = 64
	// pageHeader bounds a request's header, in bytes.
	pageHeader = 16 << 10
)

// pageHost has the status page where the configuration wants it. A page that cannot move stays where it is, and is tried
// again: nobody loses sight of a daemon because of a port, and the daemon goes on without a page.
type pageHost struct {
	handler http.Handler
	log     *slog.Logger
	// tell is told of each change: where the page is, "" for nowhere, and why it is not where it should be.
	tell  func(address string, err error)
	retry time.Duration
	told  string // the last failure in the log; run's own

	kick chan struct{}
	mu   sync.Mutex
	want string
}

func newPageHost(handler http.Handler, log *slog.Logger, tell func(string, error)) *pageHost {
	return &pageHost{handler: handler, log: log, tell: tell, retry: pageRetry, kick: make(chan struct{}, 1)}
}

// move has the page on address from now on, a host and a port; "" for none.
func (h *pageHost) move(address string) {
	h.mu.Lock()
	h.want = address
	h.mu.Unlock()
	select {
	case h.kick <- struct{}{}:
	default: // it will look anyway
	}
}

func (h *pageHost) wanted() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.want
}

// errPageLost is the end of a page that nobody ended.
var errPageLost = errors.New("status page: its socket was lost")

// run keeps the page until ctx ends.
func (h *pageHost) run(ctx context.Context) {
	var now *openPage
	for ctx.Err() == nil {
		var err error
		now, err = h.settle(now, h.wanted())
		h.report(now, err)
		if h.wait(ctx, now, err != nil) {
			now = nil
			h.report(now, errPageLost)
			h.wait(ctx, now, true)
		}
	}
	now.close()
}

// wait returns when something may have to be done, and tells whether that is the loss of the page.
func (h *pageHost) wait(ctx context.Context, now *openPage, failed bool) (lost bool) {
	var again <-chan time.Time
	if failed {
		timer := time.NewTimer(h.retry)
		defer timer.Stop()
		again = timer.C
	}
	select {
	case <-ctx.Done():
	case <-h.kick:
	case <-again:
	case <-now.lost():
		return true
	}
	return false
}

// report tells where the page is; the log has each failure once.
func (h *pageHost) report(now *openPage, err error) {
	if text := textOf(err); text != h.told {
		if h.told = text; err != nil {
			h.log.Warn("the status page is not where it should be; it is tried again", "error", err, "hint", cluster.HintOf(err))
		}
	}
	h.tell(now.where(), err)
}

// settle gives the page that there is after it was tried to have one on wanted.
func (h *pageHost) settle(now *openPage, wanted string) (*openPage, error) {
	if now.is(wanted) {
		return now, nil
	}
	if wanted == "" {
		now.close()
		return nil, nil
	}
	next, err := h.open(wanted)
	if err != nil {
		return now, err
	}
	now.close()
	h.log.Info("status page", "address", next.where())
	return next, nil
}

// openPage is a page that answers; nil is one that is nowhere.
type openPage struct {
	wanted string
	at     net.Addr
	server *http.Server
	ended  chan struct{}
}

func (h *pageHost) open(wanted string) (*openPage, error) {
	l, err := net.Listen("tcp", wanted)
	if err != nil {
		return nil, listenHint(fmt.Errorf("status page: %w", err), wanted)
	}
	if !onLoopback(l.Addr()) {
		_ = l.Close()
		return nil, cluster.WithHint(fmt.Errorf("status page: %s became %s, which other hosts can reach", wanted, l.Addr()),
			"give the jail a loopback address of its own (VNET), or set listen to \"\"")
	}
	p := &openPage{wanted: wanted, at: l.Addr(), ended: make(chan struct{}), server: &http.Server{Handler: h.handler, ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: pageHeader,
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelWarn)}}
	go func() {
		defer close(p.ended)
		_ = p.server.Serve(netutil.LimitListener(l, pageConnections)) // its end is all that counts
	}()
	return p, nil
}

// onLoopback tells whether only this host reaches the address: to a jail without a network stack of its own, FreeBSD
// gives its first address where it asks for 127.0.0.1 (jail(8)).
func onLoopback(at net.Addr) bool {
	tcp, ok := at.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func listenHint(err error, address string) error {
	_, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && runtime.GOOS == "linux":
		return cluster.WithHint(err, "see who has the port: ss -ltnp 'sport = :%s'; or set listen to another one", port)
	case errors.Is(err, syscall.EADDRINUSE):
		return cluster.WithHint(err, "see who has the port: sockstat -l -p %s; or set listen to another one", port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return cluster.WithHint(err, "give the loopback interface this address, or set listen to 127.0.0.1:%s", port)
	case errors.Is(err, syscall.EACCES):
		return cluster.WithHint(err, "set listen to a port above 1023")
	}
	return err
}

func (p *openPage) is(wanted string) bool { return p != nil && p.wanted == wanted }

func (p *openPage) where() string {
	if p == nil {
		return ""
	}
	return p.at.String()
}

// lost is closed when the page has stopped answering; for none it never is.
func (p *openPage) lost() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.ended
}

func (p *openPage) close() {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pageGrace)
	defer cancel()
	if p.server.Shutdown(ctx) != nil {
		_ = p.server.Close()
	}
	<-p.ended
}

// pageMoved writes into the status where the page is.
func (d *Daemon) pageMoved(address string, err error) {
	d.update(func(s *distribute.DaemonStatus) {
		s.Page, s.PageError, s.PageHint = "", textOf(err), cluster.HintOf(err)
		if address != "" {
			s.Page = "http://" + address + "/"
		}
	})
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// view is what the page shows at this moment.
func (d *Daemon) view() web.View {
	now := d.clock()
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	return web.View{Now: now.wall.UTC(), Node: s.Node, Role: s.Role, Version: s.Version, Pid: s.Pid, Started: s.Started, Passing: s.Passing,
		Last: s.Last, Error: s.Error, Hint: s.Hint, Next: s.Next, Overdue: max(0, now.up-d.late),
		Configuration: s.Configuration, ConfigurationHint: s.ConfigurationHint, Alarms: s.Alarms, Counts: d.counts}
}

// noteFull remembers until when the next full pass should have ended: by the schedule, with the time that one may take.
// It is the monotonic clock's, so that a clock that is set makes nothing late. d.mu is held.
func (d *Daemon) noteFull(now instant) {
	d.late = now.up + max(0, d.scheduler.full.Sub(now.wall)) + longTime
}

// isFull tells that a pass looked at everything, and may have ordered what is due.
func isFull(job distribute.Job, o outcome) bool {
	switch job.Kind {
	case "", distribute.Renew, distribute.Issue:
		return o.err == nil && !o.report.Interrupted
	}
	return false
}
