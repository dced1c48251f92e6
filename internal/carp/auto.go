package carp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"certsync/internal/cluster"
)

// Spec is one virtual host of the configuration, with this node's own name of the interface.
type Spec struct {
	Interface string
	// VHID is the number, 1 to 255.
	VHID      int
	Addresses []netip.Prefix
}

// Config is what NewAuto needs.
type Config struct {
	// Node is this node's name: it is Seen.Master where this node is MASTER.
	Node string
	// VHIDs are those of the configuration, in its order: the first decides the role.
	VHIDs []Spec
	// Settle is how long MASTER is to be held before it counts; leaving it counts at once.
	Settle time.Duration
	// Poll is how often the state is read whether or not anything was told; 0 is a second.
	Poll time.Duration
	// Kernel, where it is set, is asked instead of this host's (its VHID, Interfaces and Sysctl), and nothing is listened
	// to but Devd, where that is set.
	Kernel *Kernel
	// Devd is devd's seqpacket socket on FreeBSD (devd(8)); "" is /var/run/devd.seqpacket.pipe.
	Devd string
}

// ErrClosed is the cause where Role was waiting, or is called, when the Auto was closed.
var ErrClosed = errors.New("no longer watched")

// Auto tells the role that CARP gives this node: on FreeBSD by asking the kernel, on Linux by who has the virtual
// address, elsewhere not at all (errors.ErrUnsupported).
//
// It watches from the first call of Role or Watch until Close: what devd or a routing socket tells, and a poll beside
// them always, lead to the state being read again. Nothing that is told is believed without that; but what was told
// of the deciding vhid breaks the time for which MASTER was held, so that a drop and a return too quick to be read are
// not missed.
type Auto struct {
	node   string
	specs  []Spec
	poll   time.Duration
	read   readings
	settle settling

	// turn is held while the deciding vhid is read, so that readings are noted in the order in which they were made.
	turn chan struct{}

	begin   sync.Once
	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup
	// ready is closed when every source of events was tried once: the first reading comes after it.
	ready chan struct{}
	wakes chan struct{}

	mu       sync.Mutex
	closed   bool
	news     chan struct{}
	troubles []error
}

// readings are how this host is asked, and what tells of changes.
type readings struct {
	// role reads the deciding vhid.
	role func(context.Context, Spec) (cluster.Role, error)
	// view reads all.
	view func(context.Context, []Spec) cluster.CARP
	// sources tell of changes that may concern this vhid.
	sources []source
}

// NewAuto prepares to tell the role. It asks nothing yet. An error is one of the configuration (cluster.ErrUsage).
func NewAuto(cfg Config) (*Auto, error) {
	if err := cfg.check(); err != nil {
		err = fmt.Errorf("read the role from CARP: %w", err)
		return nil, cluster.WithHint(cluster.Usage(err), "set carp.vhids in the configuration, or carp.role to %sNODE", staticPrefix)
	}
	if cfg.Kernel == nil {
		return newAuto(cfg, hostReadings(cfg)), nil
	}
	read := readings{role: kernelRole(cfg.Kernel), view: kernelView(cfg.Kernel)}
	if cfg.Devd != "" {
		read.sources = []source{devdSource(cfg.Devd, cfg.VHIDs[0])}
	}
	return newAuto(cfg, read), nil
}

// check refuses what cannot be asked. vhid 0 above all: it means all vhids to the kernel, and panics some.
func (cfg Config) check() error {
	if len(cfg.VHIDs) == 0 {
		return errors.New("carp.vhids is empty: nothing decides")
	}
	for _, s := range cfg.VHIDs {
		if s.VHID < 1 || s.VHID > 255 {
			return fmt.Errorf("vhid %d is not 1 to 255", s.VHID)
		}
		if s.Interface == "" {
			return fmt.Errorf("vhid %d has no interface", s.VHID)
		}
	}
	return nil
}

func newAuto(cfg Config, read readings) *Auto {
	poll := cfg.Poll
	if poll <= 0 {
		poll = time.Second
	}
	a := &Auto{
		node:     cfg.Node,
		specs:    cfg.VHIDs,
		poll:     poll,
		read:     read,
		settle:   settling{need: cfg.Settle, gap: max(3*poll, cfg.Settle)},
		turn:     make(chan struct{}, 1),
		ready:    make(chan struct{}),
		wakes:    make(chan struct{}, 1),
		news:     make(chan struct{}),
		troubles: make([]error, len(read.sources)),
	}
	a.life, a.end = context.WithCancel(context.Background())
	return a
}

// Role reads the deciding vhid anew. Where it is MASTER and has not been seen held for the settle time, Role waits
// until it has, and returns MASTER; or it returns at once what it dropped to. It is Unknown, and an error that says
// what to run, where it cannot be read; never MASTER then.
func (a *Auto) Role(ctx context.Context) (cluster.Seen, error) {
	if err := a.watching(ctx); err != nil {
		return cluster.Seen{}, fmt.Errorf("read the role: %w", err)
	}
	for {
		news := a.nextNews()
		role, left, err := a.look(ctx)
		if err != nil {
			return cluster.Seen{}, fmt.Errorf("read the role: %w", err)
		}
		if role != cluster.Master {
			return cluster.Seen{Role: role}, nil
		}
		if left <= 0 {
			return cluster.Seen{Role: role, Master: a.node}, nil
		}
		if err := a.await(ctx, news, left); err != nil {
			return cluster.Seen{}, fmt.Errorf("read the role: wait until MASTER has been held for %s: %w", a.settle.need, err)
		}
	}
}

// look reads the deciding vhid and notes what it saw; left is how much longer MASTER is to be held.
func (a *Auto) look(ctx context.Context) (role cluster.Role, left time.Duration, err error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return cluster.Unknown, 0, context.Cause(ctx)
	}
	if err := context.Cause(ctx); err != nil {
		return cluster.Unknown, 0, err
	}
	began := time.Now()
	role, err = a.read.role(ctx, a.specs[0])
	if err == nil && (role <= cluster.Unknown || role > cluster.Master) {
		err = fmt.Errorf("vhid %d on %s: its state is none of INIT, BACKUP and MASTER", a.specs[0].VHID, a.specs[0].Interface)
	}
	if err != nil {
		role = cluster.Unknown
	}
	return role, a.settle.note(role, began, time.Now()), err
}

// await returns when there is news, or the time has passed.
func (a *Auto) await(ctx context.Context, news <-chan struct{}, left time.Duration) error {
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-news:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.life.Done():
		return ErrClosed
	}
	return nil
}

// View reads all vhids, as they are now, settled or not. What fails for one is told in its entry and stops no other.
// Its role, and the error where that cannot be told, are those of the deciding vhid.
func (a *Auto) View(ctx context.Context) cluster.CARP {
	view := a.read.view(ctx, a.specs)
	if len(view.VHIDs) > 0 {
		deciding := view.VHIDs[0]
		view.Role = deciding.Role
		if deciding.Role == cluster.Unknown {
			view.Error, view.Hint = deciding.Error, deciding.Hint
		}
	}
	return view
}

// Troubles tells which sources of events do not work at present, and why: the poll alone stands in for them. It is
// empty before the first call of Role or Watch.
func (a *Auto) Troubles() []error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []error
	for _, err := range a.troubles {
		if err != nil {
			found = append(found, err)
		}
	}
	return found
}

// Wake has the state read again now, as an event does: for `certsync event`.
func (a *Auto) Wake() { a.tell(wake) }

// Close ends the watching, and waits for its goroutines. Role is an error from then on.
func (a *Auto) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.end()
	a.running.Wait()
}
