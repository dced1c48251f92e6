package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// Demoter has CARP put this node behind the others. What it did survives the process, and a boot ends it.
type Demoter interface {
	// Begin settles what an earlier process left, and tells whether it left this node demoted, and whether this is the
	// first start since the machine was booted a short while ago.
	Begin(ctx context.Context) (demoted, booted bool, err error)
	// Raise demotes this node, and GiveBack ends that; each does nothing where that is so already.
	Raise(ctx context.Context) error
	GiveBack(ctx context.Context) error
}

const (
	// holdTime is how long a node that was booted, or that an earlier process left demoted, stays behind the others without
	// having been judged.
	holdTime = 60 * time.Second
	// unreadyReports is how many reports in a row must say that this node is not ready and another is.
	unreadyReports = 2
	// demoteAgain is when a demotion that could not be changed is tried again.
	demoteAgain = 30 * time.Second
)

// posture decides whether this node is to stand behind the others. It is not safe for concurrent use, and takes the time
// as an argument.
type posture struct {
	// on is carp.demote_unready.
	on bool
	// why says why this node is to be demoted; "" where it is not to be.
	why string
	// until ends what nothing but a start asks for, by the monotonic clock; 0 where a report has judged.
	until time.Duration
	// unready counts the reports in a row that said that this node is not ready, and another is.
	unready int
}

// begin takes over at a start.
func (p *posture) begin(demoted, booted bool, now instant) {
	switch {
	case !p.on:
		return
	case booted:
		p.why = "the machine was booted, and the others have not been asked yet"
	case demoted:
		p.why = "it was so when certsync began, and the others have not been asked yet"
	default:
		return
	}
	p.until = now.up + holdTime
}

// follow takes over carp.demote_unready of another configuration.
func (p *posture) follow(on bool) {
	if !on {
		*p = posture{}
	}
	p.on = on
}

// look ends what has lasted for holdTime.
func (p *posture) look(now instant) {
	if p.until != 0 && now.up >= p.until {
		p.why, p.until = "", 0
	}
}

// wait is how long nothing is to be done here, most at most.
func (p *posture) wait(now instant, most time.Duration) time.Duration {
	if p.until == 0 {
		return most
	}
	return max(0, min(most, p.until-now.up))
}

// open tells that another look is wanted soon.
func (p *posture) open() bool { return p.why != "" || p.unready > 0 }

// judge takes what a report says of the nodes. This node is demoted while it is not ready and another is known to be,
// which could take over; where that was so, also while nobody can be asked and another one is MASTER: giving the demotion
// back would take the virtual address from it. A node that is MASTER all the same is alone, and gains nothing.
func (p *posture) judge(node string, all []cluster.Readiness) {
	i := slices.IndexFunc(all, func(r cluster.Readiness) bool { return r.Node == node })
	if !p.on || i < 0 {
		return
	}
	own, others := all[i], slices.Delete(slices.Clone(all), i, i+1)
	if !own.Known {
		return
	}
	p.until = 0
	able := slices.IndexFunc(others, func(r cluster.Readiness) bool {
		return r.Ready() && (r.Role == cluster.Backup || r.Role == cluster.Master)
	})
	silent := slices.ContainsFunc(others, func(r cluster.Readiness) bool { return !r.Known })
	switch {
	case own.Ready():
		p.why, p.unready = "", 0
	case able >= 0:
		p.unready++
		if p.unready >= unreadyReports || p.why != "" {
			p.why = lacks(own, others[able].Node)
		}
	case p.why != "" && silent && own.Role == cluster.Backup:
	default:
		p.why, p.unready = "", 0
	}
}

// lacks is one line for a person: what is missing here, and who has it.
func lacks(own cluster.Readiness, able string) string {
	more := ""
	if n := len(own.Gaps) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	return fmt.Sprintf("%s: %s%s; %s is ready", own.Gaps[0].Slot, own.Gaps[0].Why, more, able)
}

// demotion has a Demoter do what is wanted, in a goroutine of its own: the commands that it runs take their time.
type demotion struct {
	log    *slog.Logger
	update func(func(*distribute.DaemonStatus))
	// again is demoteAgain, or what a test sets.
	again time.Duration
	kick  chan struct{}

	mu      sync.Mutex
	demoter Demoter
	why     string // for what it is wanted; "" where it is not

	// The goroutine's own.
	by    Demoter // whom the last change was made by; nil before one was
	is    bool    // what it then was
	error string  // why the last change could not be made
}

func newDemotion(log *slog.Logger, update func(func(*distribute.DaemonStatus))) *demotion {
	return &demotion{log: log, update: update, again: demoteAgain, kick: make(chan struct{}, 1)}
}

// want says what is to be: demoted for a reason, or, for "", not.
func (d *demotion) want(demoter Demoter, why string) {
	d.mu.Lock()
	changed := d.demoter != demoter || d.why != why
	d.demoter, d.why = demoter, why
	d.mu.Unlock()
	if !changed {
		return
	}
	select {
	case d.kick <- struct{}{}:
	default: // it will look anyway
	}
}

// run makes what is wanted so until ctx ends. It leaves a demotion as it is: at a shutdown the virtual address must not
// come back, and the next start takes it over.
func (d *demotion) run(ctx context.Context) {
	for ctx.Err() == nil {
		var retry <-chan time.Time
		if !d.step(ctx) {
			retry = time.After(d.again)
		}
		select {
		case <-ctx.Done():
		case <-d.kick:
		case <-retry:
		}
	}
	if d.is {
		d.log.Warn("this node stays demoted: certsync gives it back when it runs again, a boot ends it")
	}
}

// step makes one change, where one is wanted, and tells whether all is as it should be.
func (d *demotion) step(ctx context.Context) bool {
	d.mu.Lock()
	demoter, why := d.demoter, d.why
	d.mu.Unlock()
	if demoter == nil || d.by == demoter && d.is == (why != "") && d.error == "" {
		d.tell(why, "")
		return true
	}
	change := demoter.GiveBack
	if why != "" {
		change = demoter.Raise
	}
	if err := change(ctx); err != nil {
		if d.error != err.Error() && ctx.Err() == nil {
			d.log.Warn("demotion", "error", err, "hint", cluster.HintOf(err), "wanted", why)
		}
		d.error = err.Error()
		d.tell(why, d.error)
		return false
	}
	if was := d.by != nil && d.is; was != (why != "") {
		d.log.Info("demotion", "demoted", why != "", "why", why)
	}
	d.by, d.is, d.error = demoter, why != "", ""
	d.tell(why, "")
	return true
}

func (d *demotion) tell(why, problem string) {
	d.update(func(s *distribute.DaemonStatus) { s.Demoted, s.DemotionError = why, problem })
}

// beginDemotion takes over what an earlier process left, and demotes a node that was just booted, before anything else is
// done: CARP gives such a node the virtual address within seconds.
func (d *Daemon) beginDemotion(ctx context.Context, site *Site, now instant) {
	d.posture.follow(site.DemoteUnready)
	if site.DemoteUnready && site.Demoter != nil {
		demoted, booted, err := site.Demoter.Begin(ctx)
		if err != nil {
			d.log.Warn("demotion", "error", err, "hint", cluster.HintOf(err))
		}
		d.posture.begin(demoted, booted, now)
	}
	d.demotion.want(site.Demoter, d.posture.why)
	d.side.Go(func() { d.demotion.run(ctx) })
}

// followDemotion takes over what another configuration wants.
func (d *Daemon) followDemotion(site *Site) {
	d.posture.follow(site.DemoteUnready)
	d.demotion.want(site.Demoter, d.posture.why)
}

// lookAtPosture ends a demotion whose time is over.
func (d *Daemon) lookAtPosture(now instant) {
	if d.posture.look(now); d.posture.on {
		d.demotion.want(d.currentDemoter(), d.posture.why)
	}
}

// judgePosture takes what a pass found; one that was cut off says nothing.
func (d *Daemon) judgePosture(o outcome) {
	if len(o.readiness) == 0 {
		return
	}
	d.posture.judge(o.report.Node, o.readiness)
	d.demotion.want(d.currentDemoter(), d.posture.why)
}

func (d *Daemon) currentDemoter() Demoter {
	t := d.use()
	defer d.leave(t)
	return t.Demoter
}

// readiness is what a pass that ended says of each node, none where it was cut off, or where nobody wants to know. Where
// this node is not ready every node is asked again: a pass looks at its peers' HAProxies on the MASTER only.
func (t *tenancy) readiness(ctx context.Context, o outcome, now time.Time) []cluster.Readiness {
	if !t.DemoteUnready || o.err != nil || o.report.Interrupted || len(o.report.Nodes) == 0 || ctx.Err() != nil {
		return nil
	}
	all := o.report.Readiness()
	if !slices.ContainsFunc(all, func(r cluster.Readiness) bool { return r.Node == o.report.Node && len(r.Gaps) > 0 }) {
		return all
	}
	fresh := o.report
	fresh.Nodes, fresh.End = t.Status(ctx), now
	if ctx.Err() != nil {
		return nil
	}
	return fresh.Readiness()
}
