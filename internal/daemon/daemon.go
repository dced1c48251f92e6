package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
	"certsync/internal/web"
)

const (
	// endTime is the longest that Run goes on after it was told to end; callTime is what calls under way get of it.
	endTime  = 4500 * time.Millisecond
	callTime = 3 * time.Second
	// peerTime is how often a peer that could not be reached is asked whether it answers; askTime how long that may take.
	peerTime = 10 * time.Second
	askTime  = 5 * time.Second
	// againTime is how often a configuration that was refused is tried again: what it lacked may be there by now.
	againTime = 30 * time.Second
	// longTime is how long a pass may last before the log tells of it.
	longTime = 30 * time.Minute
)

// Options are what New needs.
type Options struct {
	// ConfigPath is the configuration file, which is watched also where it cannot be read.
	ConfigPath string
	// Load reads the configuration, checks it whole, and builds a Site. Its passes tell their progress to progress. An
	// error means that nothing was left open.
	Load func(progress func(cluster.Progress)) (*Site, error)
	// Hangups tells of each SIGHUP.
	Hangups <-chan os.Signal
	// Log gets a line for each event of note.
	Log     *slog.Logger
	Version string
}

// Daemon makes the passes of this node. Use New.
type Daemon struct {
	options Options
	log     *slog.Logger
	clock   clock
	watcher *watcher
	keeper  *keeper
	outbox  *outbox
	// side are all goroutines of Run.
	side sync.WaitGroup
	// requests are what commands ask for, until ended is closed; kick has the loop look at what was heard.
	requests chan *request
	ended    chan struct{}
	kick     chan struct{}
	page     *pageHost
	// done has the result of the pass under way.
	done chan outcome
	// peerTime and endTime are the constants, or what a test sets.
	peerTime, endTime time.Duration

	// The loop's own.
	scheduler *scheduler
	queue     []*request
	running   *run            // nil where none is
	triedAt   time.Duration   // when the configuration was read last, by the monotonic clock
	told      map[string]bool // the warnings of the last pass
	outcome   cluster.Outcome // the last pass's
	posture   posture
	demotion  *demotion

	mu      sync.Mutex
	current *tenancy
	heard   map[Reason]bool // since the loop looked
	reload  bool            // the configuration is to be read again
	status  distribute.DaemonStatus
	counts  web.Counts             // what was done since the start
	late    time.Duration          // when a full pass should have ended, by the monotonic clock
	away    map[string]bool        // the peers that the last report could not reach
	sink    func(cluster.Progress) // who asked for the pass under way
	watchAt *time.Time             // when a pass is to be made for the alarms' sake, where that changed; zero for never
}

var _ distribute.Actor = (*Daemon)(nil)

// New prepares a daemon; Run runs it.
func New(o Options) *Daemon {
	d := &Daemon{options: o, log: o.Log, clock: systemClock(), requests: make(chan *request), ended: make(chan struct{}),
		kick: make(chan struct{}, 1), peerTime: peerTime, endTime: endTime, done: make(chan outcome, 1), told: map[string]bool{},
		heard: map[Reason]bool{}, away: map[string]bool{}}
	d.page = newPageHost(web.NewHandler(d.view), o.Log, d.pageMoved)
	d.watcher = newWatcher(o.Log, d.fileChanged)
	d.demotion = newDemotion(o.Log, d.update)
	d.keeper = newKeeper()
	d.outbox = newOutbox(o.Log, func(ids []cluster.AlarmID) {
		d.keeper.put(func() { d.keeper.delivered = append(d.keeper.delivered, ids...) })
	})
	return d
}

// Run makes passes until ctx ends, and then returns nil within 5 s: a pass that has not ended by then is left as it is,
// and its orders are taken up by the next. An error tells that the daemon could not begin, or lost its sockets.
func (d *Daemon) Run(ctx context.Context) error {
	d.watcher.remember(d.watched(&Site{})...) // a change that comes while it is loaded is one
	site, err := d.load()
	if err != nil {
		return err
	}
	release, listeners, err := d.begin(ctx, site)
	if err != nil {
		site.Close()
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.start(ctx, site)
	for _, l := range listeners {
		d.side.Go(func() {
			if err := distribute.ServeUntil(ctx, l.Listener, l.handler, callTime); err != nil {
				cancel(fmt.Errorf("%w: %w", errSocket, err))
			}
		})
	}
	d.side.Go(func() { d.loop(ctx) })
	d.log.Info("certsync runs", "node", site.Node, "version", d.options.Version, "pid", os.Getpid())
	<-ctx.Done()
	if d.windDown() {
		d.retire(d.current)
		release()
	}
	d.log.Info("certsync has ended", "node", site.Node)
	if lost := context.Cause(ctx); errors.Is(lost, errSocket) {
		return lost
	}
	return nil
}

// begin takes what only one daemon of a machine can have: the actor lock, then the sockets.
func (d *Daemon) begin(ctx context.Context, site *Site) (release func(), listeners []listener, err error) {
	release, err = site.Lock(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("certsync run: %w", err)
	}
	for _, l := range []listener{
		{name: config.LocalSocket, listen: distribute.ListenLocal, handler: distribute.NewLocalHandler(d)},
		{name: config.PeerSocket, listen: distribute.Listen, handler: http.HandlerFunc(d.servePeer)},
	} {
		if l.Listener, err = l.listen(filepath.Join(site.RunDir, l.name)); err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			release()
			return nil, nil, runDirHint(err, site.RunDir)
		}
		listeners = append(listeners, l)
	}
	return release, listeners, nil
}

type listener struct {
	net.Listener
	name    string
	listen  func(path string) (net.Listener, error)
	handler http.Handler
}

// errSocket is the loss of a socket, which ends the daemon: who starts it again gets a new one.
var errSocket = errors.New("socket lost")

func runDirHint(err error, dir string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return cluster.WithHint(err, "make run_dir, owned by the service user: install -d -o certsync -g certsync -m 0755 %s", dir)
	}
	return err
}

// start begins everything that wakes the daemon.
func (d *Daemon) start(ctx context.Context, site *Site) {
	now := d.clock()
	d.scheduler = newScheduler(site.Node, site.Schedule, now)
	d.scheduler.wake(Started, now)
	d.update(func(s *distribute.DaemonStatus) {
		*s = distribute.DaemonStatus{Node: site.Node, Version: d.options.Version, Pid: os.Getpid(), Started: now.wall.UTC(), Next: now.wall.UTC()}
	})
	d.beginDemotion(ctx, site, now)
	d.late = now.up + longTime
	d.side.Go(func() { d.page.run(ctx) })
	d.side.Go(func() { d.watcher.run(ctx) })
	d.watcher.follow(ctx, d.watched(site))
	d.enter(ctx, site)
	d.side.Go(func() { d.keepAlarms(ctx) })
	d.side.Go(func() { d.askPeers(ctx) })
	d.side.Go(func() { d.hearHangups(ctx) })
}

// windDown waits until everything has ended, for endTime at most, and tells whether it has.
func (d *Daemon) windDown() bool {
	over := make(chan struct{})
	go func() {
		d.side.Wait()
		close(over)
	}()
	select {
	case <-over:
		return true
	case <-time.After(d.endTime):
		d.log.Warn("ended before the pass did", "within", d.endTime, "left", "in the orders' records, and taken up by the next pass")
		return false
	}
}

// load builds a Site; a panic in what it calls is an error.
func (d *Daemon) load() (site *Site, err error) {
	defer func() {
		if v := recover(); v != nil {
			site, err = nil, d.panicked("configuration", v)
		}
	}()
	return d.options.Load(d.progress)
}

// watched is all that is watched for a Site: the configuration file always.
func (d *Daemon) watched(site *Site) []Watched {
	all := []Watched{{Reason: Configuration, Path: d.options.ConfigPath}}
	for _, w := range site.Watched {
		if w != all[0] {
			all = append(all, w)
		}
	}
	return all
}

// wake remembers a reason for a pass, from any goroutine.
func (d *Daemon) wake(reason Reason) {
	d.mu.Lock()
	d.heard[reason] = true
	d.mu.Unlock()
	d.nudge()
}

// wantReload has the configuration read again.
func (d *Daemon) wantReload() {
	d.mu.Lock()
	d.reload = true
	d.mu.Unlock()
	d.nudge()
}

func (d *Daemon) nudge() {
	select {
	case d.kick <- struct{}{}:
	default: // the loop will look anyway
	}
}

func (d *Daemon) fileChanged(w Watched) {
	if w.Reason == Configuration {
		d.log.Info("changed", "file", w.Path)
		d.wantReload()
		return
	}
	d.wake(w.Reason) // which the line of the pass tells
}

func (d *Daemon) hearHangups(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.options.Hangups:
			d.log.Info("SIGHUP")
			d.wantReload()
			d.wake(Hangup)
		}
	}
}

// watchRole tells of each change of the role under one Site, and leaves the Site when it is retired.
func (d *Daemon) watchRole(t *tenancy) {
	defer d.leave(t)
	var last string
	t.WatchRole(t.ctx, func(seen cluster.CARP) {
		d.mu.Lock()
		before := d.status.Role
		d.status.Role = seen.Role
		d.mu.Unlock()
		if seen.Error != "" && seen.Error != last {
			d.log.Warn("the role cannot be told", "error", seen.Error, "hint", seen.Hint)
		}
		last = seen.Error
		if seen.Role != before {
			d.log.Info("role", "role", seen.Role.String(), "before", before.String())
			d.wake(RoleChange)
		}
	})
}

// askPeers asks those that the last report says are away whether they answer again.
func (d *Daemon) askPeers(ctx context.Context) {
	tick := time.NewTicker(d.peerTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t := d.use()
		var asked sync.WaitGroup
		for _, peer := range t.Peers {
			if d.isAway(peer) {
				asked.Go(func() { d.askPeer(ctx, t, peer) })
			}
		}
		asked.Wait()
		d.leave(t)
	}
}

func (d *Daemon) askPeer(ctx context.Context, t *tenancy, peer string) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if t.Answers(ctx, peer) != nil {
		return
	}
	d.mu.Lock()
	delete(d.away, peer)
	d.mu.Unlock()
	d.log.Info("a peer answers again", "node", peer)
	d.wake(PeerBack)
}

func (d *Daemon) isAway(peer string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.away[peer]
}

func (d *Daemon) servePeer(w http.ResponseWriter, r *http.Request) {
	t := d.use()
	defer d.leave(t)
	t.PeerAPI.ServeHTTP(w, r)
}

// progress hands on what a pass is doing to who asked for it.
func (d *Daemon) progress(p cluster.Progress) {
	d.mu.Lock()
	sink := d.sink
	d.mu.Unlock()
	d.log.Debug(p.Message, "step", p.Step, "certificate", p.Slot.String(), "node", p.Node)
	if sink != nil {
		sink(p)
	}
}

// Wake implements distribute.Actor.
func (d *Daemon) Wake(context.Context) {
	t := d.use()
	defer d.leave(t)
	t.WakeRole()
	d.wake(Event)
}

// Status implements distribute.Actor.
func (d *Daemon) Status(ctx context.Context) distribute.LocalStatus {
	t := d.use()
	defer d.leave(t)
	nodes := t.Status(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	return distribute.LocalStatus{Daemon: d.status, Nodes: nodes}
}

func (d *Daemon) update(change func(*distribute.DaemonStatus)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.status)
}
