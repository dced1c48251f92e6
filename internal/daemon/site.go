package daemon

import (
	"context"
	"net/http"

	"github.com/robfig/cron/v3"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// Site is what one configuration leads to: the program put together, as the daemon uses it. Its functions are safe for
// concurrent use and obey their contexts.
type Site struct {
	// Node is this node's name. It, StateDir and RunDir cannot change while the daemon runs.
	Node, StateDir, RunDir string
	// Listen is where the status page is to be, a host and a port; "" for nowhere.
	Listen string
	// Schedule is when full passes are made.
	Schedule cron.Schedule
	// Peers are the names of the other nodes.
	Peers []string
	// Watched are the files whose change leads to a pass or, with the reason Configuration, to another Site.
	Watched []Watched
	// Lock takes the actor lock of StateDir.
	Lock func(ctx context.Context) (release func(), err error)
	// Pass makes a pass. Only one is under way at a time, over all Sites.
	Pass func(ctx context.Context, job distribute.Job) (cluster.Report, error)
	// Status asks every node where it stands, this one first.
	Status func(ctx context.Context) []cluster.NodeStatus
	// WatchRole hands each the first view of the role and every changed one, until ctx ends. WakeRole has it read again.
	WatchRole func(ctx context.Context, each func(cluster.CARP))
	WakeRole  func()
	// Answers is nil where the peer can be asked.
	Answers func(ctx context.Context, peer string) error
	// Demoter changes CARP's demotion of this node; nil where there is none to change. DemoteUnready tells that it is to be
	// demoted where it is not ready and another is.
	Demoter       Demoter
	DemoteUnready bool
	// Alarms reads, and KeepAlarms replaces, what is remembered of alarms; both nil where none are looked for.
	Alarms     func(ctx context.Context) (cluster.AlarmBook, error)
	KeepAlarms func(ctx context.Context, book cluster.AlarmBook) error
	// Notify are those who are told of alarms.
	Notify []Target
	// PeerAPI answers the peers.
	PeerAPI http.Handler
	// Close ends what the Site holds. It is called once, when nothing of it is in use any more.
	Close func()
}

// tenancy is a Site and who uses it.
type tenancy struct {
	*Site
	// ctx is for what the daemon runs for the Site by itself, and end stops that.
	ctx context.Context
	end context.CancelFunc
	// users counts; retired tells that another Site took over. The Daemon's mu guards both.
	users   int
	retired bool
}

// enter makes site the current one, and retires the one before.
func (d *Daemon) enter(ctx context.Context, site *Site) {
	t := &tenancy{Site: site}
	t.ctx, t.end = context.WithCancel(ctx)
	d.page.move(site.Listen)
	d.mu.Lock()
	before := d.current
	d.current = t
	d.mu.Unlock()
	d.retire(before)
	d.outbox.follow(ctx, site.Notify)
	held := d.use()
	d.side.Go(func() { d.watchRole(held) })
}

// retire lets a Site end when its last user has left.
func (d *Daemon) retire(t *tenancy) {
	if t == nil {
		return
	}
	t.end()
	d.mu.Lock()
	t.retired = true
	over := t.users == 0
	d.mu.Unlock()
	if over {
		t.Close()
	}
}

// use gives the current Site, which stays open until leave.
func (d *Daemon) use() *tenancy {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current.users++
	return d.current
}

func (d *Daemon) leave(t *tenancy) {
	d.mu.Lock()
	t.users--
	over := t.retired && t.users == 0
	d.mu.Unlock()
	if over {
		t.Close()
	}
}
