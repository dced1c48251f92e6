package reconcile

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// simulation is a cluster in one synctest bubble: the time is the bubble's, and so are the deadlines, tickers and pauses
// of reconcile itself. Each call of a port takes a latency of its own, drawn from the seed and from what is called, so that
// no two of them end at the same instant: whatever goroutines reconcile uses, one at a time runs, and a seed gives one
// course of events.
type simulation struct {
	seed   uint64
	plan   simPlan
	mutant string
	// traced keeps the lines of trace: formatting them costs as much as the simulation.
	traced bool

	nodes []*simNode
	ca    *simCA
	ended chan struct{}
	stop  chan struct{} // closed where a promise does not hold: there is nothing more to see
	wg    sync.WaitGroup

	mu       sync.Mutex // of everything below, and of what belongs to nodes, links and CA; never held across a wait
	start    time.Time
	counts   map[string]uint64
	trace    []string
	wrong    *violation
	released map[generationKey]bool
	clocked  bool // a clock was set
	passes   int
	calls    int
}

// violation is the first promise that did not hold.
type violation struct {
	kind, text string
	at         time.Duration
}

func (v *violation) String() string {
	if v == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s: %s (at %s)", v.kind, v.text, v.at)
}

// simNode is a host: what survives a crash, what its kernel and its HAProxy do, and its process.
type simNode struct {
	s     *simulation
	place int
	name  string
	disk  *memory
	proxy *simProxy
	links []*simLink // by the peer's place; nil at its own

	process *simProcess   // the daemon; nil while none runs
	served  []*simProcess // serve-peer's, where none does
	hostUp  bool
	role    cluster.Role
	was     cluster.Role // the role before
	changed time.Time    // when the role changed
	skew    time.Duration
	full    bool
	other   bool // runs another configuration
	hook    *simHook
	// trouble is when something was last wrong with the node that keeps a peer from relying on it.
	trouble time.Time
	// recent is when the last passes began.
	recent []time.Time
	wake   chan struct{}
	// reasons are why the daemon is to make a pass.
	reasons  map[string]time.Time
	requests []func(context.Context, *simProcess)
}

// simHook does something at a call of a port, before its effect or after it.
type simHook struct {
	left  int
	after bool
	do    func()
	done  chan struct{}
}

// simProcess is one life of the program on a node: whatever it does goes through a port, and once it is dead each of its
// goroutines ends at its next port call.
type simProcess struct {
	*Reconciler
	n    *simNode
	died chan struct{}
	dead bool
	// began is when the pass under way began, and open the orders with a URL that were on disk then.
	began  time.Time
	open   map[string]bool
	byHand bool
	// master tells that the node was MASTER then.
	master bool
}

// simPlan is what does not change in a schedule.
type simPlan struct {
	nodes     int
	twin      bool
	lifetime  time.Duration
	directory string
	ari       bool
	period    time.Duration
}

func (p simPlan) String() string {
	return fmt.Sprintf("%d nodes, twin %v, certificates of %s from %s, renewal information %v", p.nodes, p.twin, p.lifetime, p.directory, p.ari)
}

// simBegin is when each simulation begins.
var simBegin = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func newSimulation(seed uint64, plan simPlan, signer *certtest.CA) *simulation {
	time.Sleep(time.Until(simBegin))
	s := &simulation{seed: seed, plan: plan, start: time.Now(), ended: make(chan struct{}), stop: make(chan struct{}), counts: map[string]uint64{}, released: map[generationKey]bool{}}
	s.ca = newSimCA(s, signer)
	for i := range plan.nodes {
		n := &simNode{s: s, place: i, name: fmt.Sprintf("proxy%d", i+1), hostUp: true, role: cluster.Backup, was: cluster.Backup,
			wake: make(chan struct{}, 1), reasons: map[string]time.Time{}}
		n.disk = &memory{now: n.clock} // asked under s.mu, in write
		n.proxy = &simProxy{running: true, pid: 1, turn: make(chan struct{}, 1), files: map[cert.Slot]simPlaced{}, memory: map[cert.Slot]simPlaced{}}
		s.nodes = append(s.nodes, n)
	}
	s.nodes[0].role = cluster.Master
	for _, n := range s.nodes {
		n.links = make([]*simLink, len(s.nodes))
		for _, to := range s.nodes {
			if to != n {
				n.links[to.place] = &simLink{from: n, to: to}
			}
		}
	}
	return s
}

// elapsed is the simulated time since the begin.
func (s *simulation) elapsed() time.Duration { return time.Since(s.start) }

// tell adds a line to the trace. s.mu is held.
func (s *simulation) tell(format string, args ...any) {
	if s.traced {
		s.trace = append(s.trace, fmt.Sprintf("%14s  ", s.elapsed().Round(time.Microsecond))+fmt.Sprintf(format, args...))
	}
}

// violate notes the first promise that does not hold. s.mu is held.
func (s *simulation) violate(kind, format string, args ...any) {
	if s.wrong == nil {
		s.wrong = &violation{kind, fmt.Sprintf(format, args...), s.elapsed()}
		s.tell("VIOLATION %s", s.wrong)
		close(s.stop)
	}
}

// pause lets time pass, and tells whether every promise held.
func (s *simulation) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stop:
		return false
	}
}

// draw is a number that depends on the seed, on key, and on how often key was drawn for. s.mu is held.
func (s *simulation) draw(key string) uint64 {
	n := s.counts[key]
	s.counts[key]++
	return mix(s.seed, key, n)
}

// mix is FNV-1a with a finish that spreads it (SplitMix64's): the same in every process.
func mix(seed uint64, key string, n uint64) uint64 {
	h := uint64(14695981039346656037) ^ seed*0x9e3779b97f4a7c15
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	h = (h ^ n) * 1099511628211
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// now is the node's clock.
func (n *simNode) now() time.Time {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	return n.clock()
}

// clock is now; s.mu is held.
func (n *simNode) clock() time.Time { return time.Now().Add(n.skew).UTC() }

// astray tells that the node's clock is so far off that its peers refuse what it says, or it what they say.
func (n *simNode) astray() bool { return n.skew.Abs() > min(12*time.Hour, n.s.plan.lifetime/4) }

// troubled notes that something is wrong with the node now. s.mu is held.
func (n *simNode) troubled() { n.trouble = time.Now() }

// soundSince tells that nothing was wrong with the node since an instant. s.mu is held.
func (n *simNode) soundSince(t time.Time) bool {
	return n.process != nil && n.hostUp && !n.full && !n.astray() && !n.other && n.trouble.Before(t)
}

// reaches tells that nothing was wrong with the way to a peer, nor with the peer, since an instant. s.mu is held.
func (n *simNode) reaches(to *simNode, since time.Time) bool {
	l := n.links[to.place]
	return !l.cut && l.lose == 0 && l.slow == 0 && l.trouble.Before(since) && to.soundSince(since) && !n.astray()
}

// newest is the newest generation on disk that is not revoked as far as the node knows.
func (n *simNode) newest(slot cert.Slot) cert.Generation {
	held, _ := n.disk.Generations(context.Background())
	records, _ := n.disk.Records(context.Background())
	return cluster.Newest(held, records.Tombstones, slot)
}

func (n *simNode) records() cluster.Records {
	r, _ := n.disk.Records(context.Background())
	return r
}

func (n *simNode) settings() Settings {
	s := Settings{Node: n.name, Place: n.place, Digest: "same", Concurrency: 1, Roots: n.s.ca.roots, Certificates: []Certificate{wildcard}}
	if n.other {
		wider := wildcard
		wider.Domains = cert.NormalDomains(append([]string{"new.example.net"}, wildcard.Domains...))
		s.Digest, s.Certificates = "other", []Certificate{wider}
	}
	if n.s.plan.twin {
		twin := s.Certificates[0]
		twin.Name = "twin"
		s.Certificates = append(s.Certificates, twin)
	}
	return s
}

func (s *simulation) slots() []cert.Slot {
	out := []cert.Slot{slot}
	if s.plan.twin {
		out = append(out, cert.Slot{Name: "twin", Algorithm: cert.ECDSA})
	}
	return out
}

// newProcess is a process of a node that is up. s.mu is held.
func (n *simNode) newProcess() *simProcess {
	p := &simProcess{n: n, died: make(chan struct{})}
	node := &Node{Settings: n.settings(), Roles: simRoles{p}, Store: simStore{p}, Proxies: []Proxy{simProxyPort{p}}, Now: n.now}
	p.Reconciler = &Reconciler{Node: node, Issuer: simIssuer{p}}
	for _, l := range n.links {
		if l != nil {
			p.Peers = append(p.Peers, simPeer{p, l})
		}
	}
	return p
}

// kill ends the node's process at once: kill -9, or, with the host, a power failure. s.mu is held.
func (n *simNode) kill(host bool) {
	if host {
		n.hostUp = false
		n.endServed()
	}
	if n.process == nil {
		return
	}
	n.s.tell("%s dies", n.name)
	n.process.die()
	n.process = nil
	n.troubled()
	n.s.ca.forget(n)
}

func (n *simNode) endServed() {
	for _, p := range n.served {
		p.die()
	}
	n.served = nil
}

func (p *simProcess) die() {
	if !p.dead {
		p.dead = true
		close(p.died)
	}
}

// boot starts the host and the daemon on it. s.mu is held.
func (n *simNode) boot() {
	n.hostUp = true
	if n.process != nil {
		return
	}
	n.s.tell("%s starts", n.name)
	n.troubled()
	clear(n.reasons)
	n.requests = nil
	p := n.newProcess()
	n.process = p
	n.s.wg.Go(func() { p.daemon() })
	n.s.peersBack(n)
}

// alive ends the calling goroutine where its process is dead.
func (p *simProcess) alive() {
	p.n.s.mu.Lock()
	dead := p.dead
	p.n.s.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
}

// sleep lets time pass for a port call.
func (p *simProcess) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-p.died:
	}
	p.alive()
	return ctx.Err()
}

// call is the begin of a port call that has an effect or takes time: a hook may be waiting for it. It gives the call's
// latency.
func (p *simProcess) call(key string, least, most time.Duration) time.Duration {
	p.hooked(false)
	s := p.n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return least + time.Duration(s.draw(p.n.name+" "+key)%uint64(most-least))
}

// hooked counts a call for the hook that waits for it.
func (p *simProcess) hooked(after bool) {
	p.alive()
	s := p.n.s
	s.mu.Lock()
	h := p.n.hook
	if h == nil || h.after != after {
		s.mu.Unlock()
		return
	}
	h.left--
	if h.left > 0 {
		s.mu.Unlock()
		return
	}
	p.n.hook = nil
	s.mu.Unlock()
	h.do()
	close(h.done)
	p.alive()
}

// simRoles reads the kernel. It takes no time.
type simRoles struct{ p *simProcess }

func (r simRoles) Role(ctx context.Context) (cluster.Seen, error) {
	r.p.alive()
	n := r.p.n
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	role := n.role
	if n.s.mutant == mutantLateRole && time.Since(n.changed) < time.Minute {
		role = n.was
	}
	return cluster.Seen{Role: role}, ctx.Err()
}

func (r simRoles) View(context.Context) cluster.CARP {
	seen, _ := r.Role(context.Background())
	return cluster.CARP{Role: seen.Role, Source: "simulated"}
}

// setRole is what CARP does. s.mu is held.
func (n *simNode) setRole(role cluster.Role) {
	if n.role == role {
		return
	}
	n.s.tell("%s is %s", n.name, role)
	n.was, n.role, n.changed = n.role, role, time.Now()
	n.rouse("role", 0)
}

// wasMasterWithin tells that the kernel said MASTER at some instant of the last d. s.mu is held.
func (n *simNode) wasMasterWithin(d time.Duration) bool {
	return n.role == cluster.Master || n.was == cluster.Master && time.Since(n.changed) <= d
}

// simStore is the disk as a process has it.
type simStore struct{ p *simProcess }

func (d simStore) Generations(ctx context.Context) ([]cert.Generation, error) {
	d.p.alive()
	return d.p.n.disk.Generations(ctx)
}

func (d simStore) Bundle(ctx context.Context, g cert.Generation) (*cert.Bundle, error) {
	d.p.alive()
	return d.p.n.disk.Bundle(ctx, g)
}

func (d simStore) Summary(ctx context.Context, g cert.Generation) (cert.Summary, error) {
	d.p.alive()
	return d.p.n.disk.Summary(ctx, g)
}

func (d simStore) Records(ctx context.Context) (cluster.Records, error) {
	d.p.alive()
	return d.p.n.disk.Records(ctx)
}

func (d simStore) Problems(ctx context.Context) []string { return d.p.n.disk.Problems(ctx) }

func (d simStore) Keep(ctx context.Context, k cluster.Kept) error {
	return d.write(ctx, "keep "+k.Generation.Fingerprint.Short(), func() error {
		n, slot := d.p.n, k.Generation.Slot
		before := n.newest(slot)
		if err := n.disk.Keep(ctx, k); err != nil {
			return err
		}
		if after := n.newest(slot); before.Newer(after) {
			n.s.violate("never older", "the disk of %s went back from generation %s to %s", n.name, nameOf(before), nameOf(after))
		}
		n.s.tell("%s keeps %s of %s", n.name, nameOf(k.Generation), slot.Name)
		return nil
	})
}

func (d simStore) Merge(ctx context.Context, r cluster.Records) error {
	return d.write(ctx, fmt.Sprintf("merge %d %d %d %d %d %d", len(r.Accounts), len(r.Orders), len(r.Ledger), len(r.Tombstones), len(r.Releases), len(r.Renewals)), func() error {
		n := d.p.n
		for _, release := range r.Releases {
			n.s.releases(d.p, release)
		}
		switch n.s.mutant {
		case mutantNoOrders:
			r.Orders = nil
		case mutantNoLedger:
			r.Ledger = nil
		case mutantNoTombstones:
			if isServed(ctx) || len(r.Accounts) > 0 { // all but what this node's own operator says
				r.Tombstones = nil
			}
		}
		return n.disk.Merge(ctx, r)
	})
}

func (d simStore) Forget(ctx context.Context, slot cert.Slot) error {
	return d.write(ctx, "forget", func() error { return d.p.n.disk.Forget(ctx, slot) })
}

// write is a durable change: atomic, as the real store's are.
func (d simStore) write(ctx context.Context, key string, change func() error) error {
	if err := d.p.sleep(ctx, d.p.call(key, 100*time.Microsecond, 5*time.Millisecond)); err != nil {
		return err
	}
	s := d.p.n.s
	s.mu.Lock()
	err := errDiskFull
	if !d.p.n.full {
		err = change()
	}
	s.mu.Unlock()
	d.p.hooked(true)
	return err
}

func nameOf(g cert.Generation) string {
	return fmt.Sprintf("%d (%s)", g.Sequence, g.Fingerprint.Short())
}

// simPlaced is what HAProxy has at one place.
type simPlaced struct {
	bundle     *cert.Bundle
	generation cert.Generation
}

// simProxy is a HAProxy.
type simProxy struct {
	running, rejects bool
	pid              int
	trouble          time.Time
	files, memory    map[cert.Slot]simPlaced
	// turn is held by whoever changes it: the real one's lock is the kernel's, and goes with its holder.
	turn chan struct{}
}

// start loads what is on disk. s.mu is held.
func (p *simProxy) start() {
	p.running, p.trouble = true, time.Now()
	p.pid++
	clear(p.memory)
	for slot, placed := range p.files {
		p.memory[slot] = placed
	}
}

func (p *simProxy) stop() {
	p.running, p.trouble = false, time.Now()
	clear(p.memory)
}

func (p *simProxy) look(t cluster.Target) cluster.Placement {
	pl := cluster.Placement{Slot: t.Slot, Proxy: "haproxy.cfg", Running: p.running, Disk: sightingOf(p.files[t.Slot].bundle), Proof: cluster.NoProof}
	if !p.running {
		return pl
	}
	pl.Pid, pl.Memory = p.pid, sightingOf(p.memory[t.Slot].bundle)
	if t.Wanted().IsZero() {
		return pl
	}
	pl.Served, pl.Proof = pl.Memory, cluster.Disproven
	if pl.Served.Fingerprint == t.Wanted().Fingerprint {
		pl.Proof = cluster.Proven
	}
	return pl
}

// simProxyPort is a HAProxy as a process reaches it.
type simProxyPort struct{ p *simProcess }

func (x simProxyPort) Inspect(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	if err := x.p.sleep(ctx, x.p.call(fmt.Sprintf("inspect %d", len(targets)), time.Millisecond, 10*time.Millisecond)); err != nil {
		return nil, err
	}
	n := x.p.n
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	var out []cluster.Placement
	for _, t := range targets {
		out = append(out, n.proxy.look(t))
	}
	return out, nil
}

func (x simProxyPort) Activate(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	select {
	case x.p.n.proxy.turn <- struct{}{}:
		defer func() { <-x.p.n.proxy.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-x.p.died:
	}
	x.p.alive()
	var out []cluster.Placement
	for _, t := range targets {
		pl, err := x.activate(ctx, t)
		if err != nil {
			return out, err
		}
		out = append(out, pl)
	}
	return out, nil
}

// activate brings one target in service: the file, then the memory, then a handshake.
func (x simProxyPort) activate(ctx context.Context, t cluster.Target) (cluster.Placement, error) {
	n := x.p.n
	proxy, s := n.proxy, n.s
	t, err := t.Loaded(ctx)
	if err != nil || t.Bundle == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		pl := proxy.look(t)
		pl.Outcome, pl.Error = cluster.Failure, fmt.Sprintf("its bundle: %v", err)
		return pl, nil
	}
	if err := x.p.sleep(ctx, x.p.call("file "+t.Slot.Name+t.Generation.Fingerprint.Short(), time.Millisecond, 10*time.Millisecond)); err != nil {
		return cluster.Placement{}, err
	}
	s.mu.Lock()
	had, loaded, full := proxy.files[t.Slot], proxy.memory[t.Slot], n.full
	inFile, inMemory := had.generation.Fingerprint == t.Generation.Fingerprint, loaded.generation.Fingerprint == t.Generation.Fingerprint
	s.activates(x.p, t, isServed(ctx))
	if !inFile && !full {
		s.replace(n, "file", proxy.files, t)
	}
	if inFile && inMemory && proxy.running {
		proxy.files[t.Slot], proxy.memory[t.Slot] = simPlaced{t.Bundle, t.Generation}, simPlaced{t.Bundle, t.Generation}
	}
	s.mu.Unlock()
	x.p.hooked(true)
	if err := x.p.sleep(context.WithoutCancel(ctx), x.p.call("memory "+t.Slot.Name+t.Generation.Fingerprint.Short(), time.Millisecond, 10*time.Millisecond)); err != nil {
		return cluster.Placement{}, err
	}
	s.mu.Lock()
	outcome, cause := cluster.Done, ""
	switch {
	case full && !inFile:
		outcome, cause = cluster.Failure, "write bundle: no space left on device"
	case !proxy.running:
		outcome, cause = cluster.DiskOnly, "HAProxy is not running"
	case inFile && proxy.memory[t.Slot].generation.Fingerprint == t.Generation.Fingerprint:
		outcome = cluster.Unchanged
	case proxy.rejects:
		outcome, cause = cluster.RolledBack, "inconsistencies between private key and certificate"
		if !inFile {
			proxy.files[t.Slot] = had
		}
	case s.mutant == mutantDeafProxy && !loaded.generation.IsZero():
		outcome = cluster.Unproven
	default:
		s.replace(n, "memory", proxy.memory, t)
	}
	pl := proxy.look(t)
	if s.mutant == mutantDeafProxy {
		pl.Proof, pl.Served = cluster.NoProof, cluster.Sighting{}
		pl.Memory = pl.Disk
	}
	pl.Outcome, pl.Error = outcome, cause
	s.mu.Unlock()
	x.p.hooked(true)
	return pl, nil
}

// simLink is the way from one node to another.
type simLink struct {
	from, to *simNode
	cut      bool
	silent   bool // a cut that swallows packets, instead of refusing them
	lose     int  // so many replies to come get lost
	slow     time.Duration
	trouble  time.Time
}

// simPeer is a peer as a process asks it.
type simPeer struct {
	p *simProcess
	*simLink
}

type servedKey struct{}

func isServed(ctx context.Context) bool { return ctx.Value(servedKey{}) != nil }

var errLost = errors.New("read: connection reset by peer")

// ask makes one call of the peer API. The peer's process does the work on a goroutine of its own, and goes on where the
// caller gave up or died, or is told to end with it.
func ask[T any](ctx context.Context, x simPeer, method string, do func(context.Context, *Node) (T, error)) (T, error) {
	var none T
	s := x.p.n.s
	half := x.p.call("ask "+x.to.name+" "+method, 500*time.Microsecond, 20*time.Millisecond)
	s.mu.Lock()
	half += x.slow
	s.mu.Unlock()
	if err := x.travel(ctx, half); err != nil {
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	s.mu.Lock()
	server := x.to.process
	if server == nil {
		server = x.to.newProcess() // serve-peer answers by itself
		x.to.served = append(x.to.served, server)
	}
	abandon := s.draw("abandon "+method)%2 == 0
	s.mu.Unlock()
	serving, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), servedKey{}, true))
	s.wg.Go(func() {
		defer close(answers)
		defer cancel()
		value, err := do(serving, server.Node)
		answers <- answer{value, err}
	})
	select {
	case a, ok := <-answers:
		x.p.alive()
		if !ok {
			return none, fmt.Errorf("%s: %w", method, errLost)
		}
		if err := x.back(ctx, half); err != nil {
			return none, fmt.Errorf("%s: %w", method, err)
		}
		return a.value, a.err
	case <-ctx.Done():
	case <-x.p.died:
	}
	if abandon {
		cancel()
	}
	x.p.alive()
	return none, ctx.Err()
}

// travel is a request on its way.
func (x simPeer) travel(ctx context.Context, d time.Duration) error {
	if err := x.p.sleep(ctx, d); err != nil {
		return err
	}
	s := x.p.n.s
	s.mu.Lock()
	gone, silent := x.cut || !x.to.hostUp, x.cut && x.silent
	s.mu.Unlock()
	switch {
	case silent:
		return x.forever(ctx)
	case gone:
		return fmt.Errorf("dial %s: %w", x.to.name, cluster.ErrUnreachable)
	}
	return nil
}

// back is an answer on its way: what was done is done, whether it arrives or not.
func (x simPeer) back(ctx context.Context, d time.Duration) error {
	s := x.p.n.s
	s.mu.Lock()
	lost := x.cut || !x.to.hostUp
	if x.lose > 0 && !lost {
		x.lose--
		x.trouble = time.Now()
		lost = true
		s.tell("an answer of %s to %s is lost", x.to.name, x.from.name)
	}
	silent := lost && s.draw("silent")%4 == 0
	s.mu.Unlock()
	switch {
	case silent:
		return x.forever(ctx)
	case lost:
		return errLost
	}
	return x.p.sleep(ctx, d)
}

// forever waits for an answer that does not come, two hours at most: then the kernel gives the connection up.
func (x simPeer) forever(ctx context.Context) error {
	if err := x.p.sleep(ctx, 2*time.Hour); err != nil {
		return err
	}
	return errLost
}

func (x simPeer) Name() string { return x.to.name }

func (x simPeer) Inventory(ctx context.Context) (cluster.Inventory, error) {
	return ask(ctx, x, "inventory", func(ctx context.Context, n *Node) (cluster.Inventory, error) { return n.Inventory(ctx) })
}

func (x simPeer) Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error {
	kept, err := ask(ctx, x, "fetch", func(ctx context.Context, n *Node) ([]cluster.Kept, error) {
		var kept []cluster.Kept
		err := n.Fetch(ctx, generations, func(k cluster.Kept) error {
			kept = append(kept, k)
			return nil
		})
		return kept, err
	})
	for _, k := range kept {
		if err := each(k); err != nil {
			return err
		}
	}
	return err
}

func (x simPeer) Stage(ctx context.Context, kept []cluster.Kept) ([]cluster.StageResult, error) {
	return ask(ctx, x, fmt.Sprintf("stage %s", kept[0].Generation.Slot.Name), func(ctx context.Context, n *Node) ([]cluster.StageResult, error) {
		if x.p.n.s.mutant == mutantAckOnly {
			var out []cluster.StageResult
			for _, k := range kept {
				out = append(out, cluster.StageResult{Generation: k.Generation})
			}
			return out, nil
		}
		return n.Stage(ctx, x.from.name, kept)
	})
}

func (x simPeer) Record(ctx context.Context, r cluster.Records) error {
	key := fmt.Sprintf("record %d %d %d %d", len(r.Orders), len(r.Ledger), len(r.Releases), len(r.Renewals))
	_, err := ask(ctx, x, key, func(ctx context.Context, n *Node) (struct{}, error) { return struct{}{}, n.Record(ctx, x.from.name, r) })
	return err
}

func (x simPeer) Release(ctx context.Context, releases []cluster.Release) ([]cluster.Placement, error) {
	return ask(ctx, x, "release "+releases[0].Generation.Slot.Name, func(ctx context.Context, n *Node) ([]cluster.Placement, error) {
		return n.Release(ctx, x.from.name, releases)
	})
}

func (x simPeer) Status(ctx context.Context) (cluster.NodeStatus, error) {
	return ask(ctx, x, "status", func(ctx context.Context, n *Node) (cluster.NodeStatus, error) { return n.Status(ctx) })
}

// rouse gives the daemon a reason for a pass; no two nodes begin theirs at one instant. s.mu is held.
func (n *simNode) rouse(reason string, after time.Duration) {
	at := time.Now().Add(after + time.Duration(1+n.place)*time.Millisecond)
	if old, ok := n.reasons[reason]; !ok || at.Before(old) {
		n.reasons[reason] = at
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// peersBack lets those that could not reach a node ask it again: the daemon does every 10 seconds. s.mu is held.
func (s *simulation) peersBack(n *simNode) {
	for _, other := range s.nodes {
		if other != n && other.process != nil {
			other.rouse("peer", 10*time.Second)
		}
	}
}

// daemon makes passes as internal/daemon does: at the start, by the schedule, at the instant that the last report named,
// at a change of the role, when a peer is back, and again, ever later, where something was not in service.
func (p *simProcess) daemon() {
	s, n := p.n.s, p.n
	s.mu.Lock()
	full := time.Now().Add(s.plan.period + time.Duration(n.place)*time.Minute + 17*time.Second)
	n.rouse("start", 100*time.Millisecond*time.Duration(n.place+1))
	s.mu.Unlock()
	tries := simTries{}
	for {
		reasons, requests := p.await(&full)
		switch {
		case reasons == nil && requests == nil:
			return
		case requests != nil:
			p.run(func(ctx context.Context) { requests[0](ctx, p) })
			continue
		}
		wanted := Wanted{NoOrders: slices.Equal(reasons, []string{"settle"})}
		report, err, ok := p.make(wanted, fmt.Sprint(reasons))
		if !ok {
			return
		}
		p.plan(report, err, wanted, &tries)
	}
}

// simTries counts how often in a row a pass led to another one.
type simTries struct{ retry, settle int }

// plan is when the next pass is made, by the report of the last.
func (p *simProcess) plan(report cluster.Report, err error, wanted Wanted, tries *simTries) {
	s, n := p.n.s, p.n
	s.mu.Lock()
	defer s.mu.Unlock()
	again := func(reason string, count *int) {
		// The daemon waits 10 minutes at most: thousands of passes in a month that find the same.
		n.rouse(reason, min(5*time.Second<<min(*count, 20), s.plan.period/2))
		*count++
	}
	if !wanted.NoOrders {
		delete(n.reasons, "due")
		switch now := n.clock(); {
		case err != nil || !report.Next.IsZero() && !report.Next.After(now):
			again("retry", &tries.retry)
		case !report.Next.IsZero():
			n.rouse("due", max(report.Next.Sub(now), time.Second))
			fallthrough
		default:
			tries.retry = 0
		}
	}
	if placed(report) {
		tries.settle = 0
	} else {
		again("settle", &tries.settle)
	}
	for i, status := range report.Nodes {
		if i > 0 && !status.Reachable {
			if l := n.links[n.peerCalled(status.Node).place]; !l.cut && l.slow < 10*time.Second && l.to.hostUp {
				n.rouse("peer", 30*time.Second)
			}
		}
	}
}

func (n *simNode) peerCalled(name string) *simNode {
	i := slices.IndexFunc(n.s.nodes, func(m *simNode) bool { return m.name == name })
	return n.s.nodes[i]
}

// placed tells that everything is in service, as far as could be asked (as internal/daemon has it).
func placed(r cluster.Report) bool {
	for _, n := range r.Nodes {
		for _, pl := range n.Placements {
			switch pl.Outcome {
			case cluster.DiskOnly, cluster.Waiting, cluster.RolledBack, cluster.Failure:
				return false
			}
		}
	}
	return true
}

// await waits for a reason for a pass, or for an operator; nothing of both where the process died.
func (p *simProcess) await(full *time.Time) (reasons []string, requests []func(context.Context, *simProcess)) {
	s, n := p.n.s, p.n
	for {
		s.mu.Lock()
		if p.dead {
			s.mu.Unlock()
			return nil, nil
		}
		if len(n.requests) > 0 {
			requests = n.requests[:1]
			n.requests = n.requests[1:]
			s.mu.Unlock()
			return nil, requests
		}
		now, next := time.Now(), *full
		for reason, at := range n.reasons {
			if !at.After(now) {
				reasons = append(reasons, reason)
			} else if at.Before(next) {
				next = at
			}
		}
		if !full.After(now) {
			reasons = append(reasons, "schedule")
			*full = now.Add(s.plan.period)
		}
		for _, r := range reasons {
			delete(n.reasons, r)
		}
		s.mu.Unlock()
		if len(reasons) > 0 {
			slices.Sort(reasons)
			return reasons, nil
		}
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-timer.C:
		case <-n.wake:
		case <-p.died:
		}
		timer.Stop()
	}
}

// make makes a pass; not ok where the process died in it.
func (p *simProcess) make(wanted Wanted, why string) (report cluster.Report, err error, ok bool) {
	ok = p.run(func(ctx context.Context) { report, err = p.pass(ctx, wanted, why) })
	return report, err, ok
}

// run does something on a goroutine that may die with the process, and tells whether it came to its end.
func (p *simProcess) run(do func(context.Context)) bool {
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := false
	p.n.s.wg.Go(func() {
		defer close(done)
		do(ctx)
		ended = true
	})
	<-done
	p.n.s.mu.Lock()
	defer p.n.s.mu.Unlock()
	return ended && !p.dead
}

// pass makes one pass.
func (p *simProcess) pass(ctx context.Context, wanted Wanted, why string) (cluster.Report, error) {
	s, n := p.n.s, p.n
	s.mu.Lock()
	s.passes++
	n.paced()
	p.began, p.open, p.byHand = time.Now(), map[string]bool{}, wanted.MasterOnly || len(wanted.Names) > 0
	p.master = n.role == cluster.Master
	for _, m := range s.nodes {
		if m == n || n.reaches(m, p.began) {
			for _, o := range m.records().Orders {
				p.open[o.ID] = p.open[o.ID] || o.URL != ""
			}
		}
	}
	s.tell("%s (%s) begins a pass: %s", n.name, n.role, why)
	s.mu.Unlock()
	report, err := p.Pass(ctx, wanted)
	p.alive()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traced {
		slices.Sort(report.Warnings)
		s.tell("%s ends its pass: %s next %s warnings %q error %v", n.name, report.Outcome, until(report.Next, n.clock()), report.Warnings, err)
		for _, c := range report.Certificates {
			s.tell("%s     %s: newest %s %s due %q: %s %q", n.name, c.Slot.Name, nameOf(c.Newest), until(c.Newest.NotAfter, n.clock()), c.Due, c.Outcome, c.Error)
		}
	}
	p.began, p.byHand = time.Time{}, false
	return report, err
}

// paced looks at how often passes are made: a node that makes one after the other would not do anything else. s.mu is held.
func (n *simNode) paced() {
	const most = 400 // in an hour: one that lives an hour is looked at each 36 seconds at most, and every change wakes
	n.recent = append(n.recent, time.Now())
	if len(n.recent) > most {
		if since := time.Since(n.recent[0]); since < time.Hour {
			n.s.violate("pace", "%s made %d passes in %s", n.name, most, since)
		}
		n.recent = n.recent[1:]
	}
}

func until(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return "in " + t.Sub(now).Round(time.Second).String()
}
