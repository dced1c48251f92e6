package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/store"
)

// errKilled is what everything answers that a killed process tries to do: nothing of it happens.
var errKilled = errors.New("the process was killed")

var errDiskFull = errors.New("write: no space left on device")

const day = 24 * time.Hour

// tb is what a test and a property test have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// world is a cluster in one process: hosts with a store and a HAProxy each, links between them, and a CA.
type world struct {
	tb
	ca    *fakeCA
	hosts []*host

	mu     sync.Mutex
	now    time.Time
	events []string
	kept   map[cert.Fingerprint]cert.Generation // the latest generation that each bundle was kept as
	free   generationSet                        // what a MASTER released
	lax    bool                                 // promise 4 is not looked at: a peer that is reached does not count
	large  bool                                 // too many certificates to look at the promises for each
}

// host is one node.
type host struct {
	*Reconciler
	w    *world
	name string
	// skew is by how much its clock is ahead of the world's, and heard that the CA told it its time.
	skew  time.Duration
	heard bool
	disk  *disk
	proxy *fakeProxy
	links map[string]*link

	mu      sync.Mutex
	role    cluster.Role
	roleErr error
	flipAt  int // the reading of the role from which on the node is BACKUP; 0 for never
	// nameless: the source of the role does not know who is MASTER elsewhere.
	nameless bool
	readings int
	effects  int
	killAt   int // the effect at which the process dies; 0 for never
	dead     bool
}

type option func(*world, *Settings)

func withCertificates(cs ...Certificate) option {
	return func(_ *world, s *Settings) { s.Certificates = cs }
}

func certificate(name string, domains []string, types ...cert.KeyType) Certificate {
	return Certificate{Name: name, Domains: cert.NormalDomains(domains), KeyTypes: types}
}

var wildcard = certificate("example.org", []string{"example.org", "*.example.org"}, cert.EC256)

var slot = cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}

// newWorld has n nodes, the first of them MASTER, and one certificate.
func newWorld(t *testing.T, n int, opts ...option) *world {
	return makeWorld(t, n, func() Store { return &memory{} }, opts...)
}

func makeWorld(t tb, n int, open func() Store, opts ...option) *world {
	t.Helper()
	w := &world{tb: t, now: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC), kept: map[cert.Fingerprint]cert.Generation{},
		free: generationSet{}}
	w.ca = newCA(t, w)
	for i := range n {
		h := &host{w: w, name: fmt.Sprintf("proxy%d", i+1), role: cluster.Backup, links: map[string]*link{}}
		if i == 0 {
			h.role = cluster.Master
		}
		h.disk = &disk{host: h, Store: open()}
		if m, ok := h.disk.Store.(*memory); ok {
			m.now = h.clock
		}
		h.proxy = newProxy(h)
		s := Settings{Node: h.name, Place: i, Digest: "same", Certificates: []Certificate{wildcard}, Concurrency: 8, Roots: w.ca.signer.Roots()}
		for _, o := range opts {
			o(w, &s)
		}
		node := &Node{Settings: s, Roles: h, Store: h.disk, Proxies: []Proxy{h.proxy}, Now: h.clock}
		h.Reconciler = &Reconciler{Node: node, Issuer: &issuer{w.ca, h}, acknowledgeWithin: 200 * time.Millisecond}
		w.hosts = append(w.hosts, h)
	}
	for _, from := range w.hosts {
		for _, to := range w.hosts {
			if from != to {
				l := &link{from: from, to: to}
				from.links[to.name] = l
				from.Peers = append(from.Peers, l)
			}
		}
	}
	return w
}

func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// clock is the host's own.
func (h *host) clock() time.Time {
	now := h.w.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Add(h.skew)
}

// setClock puts the host's clock so far ahead of the world's.
func (h *host) setClock(ahead time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.skew, h.heard = ahead, false
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) event(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf(format, args...))
}

func (w *world) eventsOf(prefix string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.events), func(e string) bool { return !strings.HasPrefix(e, prefix) })
}

// master makes host i the MASTER, and the others BACKUP.
func (w *world) master(i int) {
	for j, h := range w.hosts {
		h.mu.Lock()
		h.role, h.flipAt = cluster.Backup, 0
		if i == j {
			h.role = cluster.Master
		}
		h.mu.Unlock()
	}
}

// cut takes host i off the network, or joins it again.
func (w *world) cut(i int, off bool) {
	for _, h := range w.hosts {
		for _, l := range h.links {
			if l.from == w.hosts[i] || l.to == w.hosts[i] {
				l.set(func() { l.cut = off })
			}
		}
	}
}

// pass is one run of the program on a host. What it printed must not hold a key.
func (h *host) pass(ctx context.Context, wanted Wanted) (cluster.Report, error) {
	h.w.Helper()
	h.mu.Lock()
	h.dead, h.readings, h.effects = false, 0, 0
	h.mu.Unlock()
	h.Node = &Node{Settings: h.Settings, Roles: h.Roles, Store: h.Store, Proxies: h.Proxies, Now: h.Now} // a new process
	report, err := h.Pass(ctx, wanted)
	h.mu.Lock()
	h.dead, h.killAt, h.flipAt = false, 0, 0
	h.mu.Unlock()
	h.w.noSecrets(report)
	return report, err
}

func (h *host) issue(names ...string) cluster.Report {
	h.w.Helper()
	report, err := h.pass(context.Background(), Wanted{Names: names, MasterOnly: true})
	if err != nil {
		h.w.Fatalf("pass on %s: %v", h.name, err)
	}
	return report
}

// noSecrets looks for private keys in what a pass told.
func (w *world) noSecrets(report cluster.Report) {
	w.Helper()
	data, err := json.Marshal(report)
	if err != nil {
		w.Fatalf("report: %v", err)
	}
	for _, secret := range w.ca.secrets() {
		body := bytes.Split(secret, []byte("\n"))[1]
		encoded := base64.StdEncoding.EncodeToString(secret)
		if bytes.Contains(data, body) || bytes.Contains(data, []byte(encoded[40:80])) {
			w.Fatalf("a private key is in the report: %s", data)
		}
	}
	if bytes.Contains(data, []byte("PRIVATE KEY")) {
		w.Fatalf("a private key is in the report: %s", data)
	}
}

// Role implements Roles.
func (h *host) Role(context.Context) (cluster.Seen, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readings++
	if h.flipAt > 0 && h.readings >= h.flipAt {
		h.role = cluster.Backup
	}
	if h.nameless {
		return cluster.Seen{Role: h.role}, h.roleErr
	}
	return cluster.Seen{Role: h.role, Master: "proxy9"}, h.roleErr
}

func (h *host) View(context.Context) cluster.CARP {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.roleErr != nil {
		return cluster.CARP{Error: h.roleErr.Error()}
	}
	return cluster.CARP{Role: h.role, Source: "static"}
}

// effect is called before anything that a process does outside itself; a dead one does nothing more.
func (h *host) effect() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.effects++
	if h.killAt > 0 && h.effects >= h.killAt {
		h.dead = true
	}
	if h.dead {
		return errKilled
	}
	return nil
}

// newest is the newest generation on a host's disk.
func (h *host) newest(s cert.Slot) cert.Generation {
	held, err := h.disk.Store.Generations(context.Background())
	if err != nil {
		h.w.Fatalf("%s: %v", h.name, err)
	}
	records := h.records()
	return cluster.Newest(held, records.Tombstones, s)
}

func (h *host) records() cluster.Records {
	r, err := h.disk.Store.Records(context.Background())
	if err != nil {
		h.w.Fatalf("%s: %v", h.name, err)
	}
	return r
}

// disk is a store that can be full, and that dies with its process.
type disk struct {
	Store
	host *host

	// bundles counts those that were asked for.
	bundles atomic.Int64

	mu     sync.Mutex
	full   bool
	merges func(cluster.Records) error
}

func (d *disk) Bundle(ctx context.Context, g cert.Generation) (*cert.Bundle, error) {
	d.bundles.Add(1)
	return d.Store.Bundle(ctx, g)
}

func (d *disk) setFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (d *disk) isFull() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full
}

func (d *disk) change() error {
	if err := d.host.effect(); err != nil {
		return err
	}
	if d.isFull() {
		return errDiskFull
	}
	return nil
}

func (d *disk) Keep(ctx context.Context, k cluster.Kept) error {
	if err := cmpFirst(ctx.Err(), d.change()); err != nil {
		return err
	}
	w := d.host.w
	if w.large {
		return d.Store.Keep(ctx, k)
	}
	before := d.host.newest(k.Generation.Slot)
	if err := d.Store.Keep(ctx, k); err != nil {
		return err
	}
	if after := d.host.newest(k.Generation.Slot); before.Newer(after) {
		w.Errorf("%s went back from generation %d to %d", d.host.name, before.Sequence, after.Sequence)
	}
	w.event("keep %s %s", d.host.name, k.Generation.Slot)
	w.mu.Lock()
	defer w.mu.Unlock()
	if k.Generation.Newer(w.kept[k.Generation.Fingerprint]) {
		w.kept[k.Generation.Fingerprint] = k.Generation
	}
	return nil
}

func (d *disk) Merge(ctx context.Context, r cluster.Records) error {
	if err := cmpFirst(ctx.Err(), d.change()); err != nil {
		return err
	}
	d.mu.Lock()
	hook := d.merges
	d.mu.Unlock()
	if hook != nil {
		if err := hook(r); err != nil {
			return err
		}
	}
	for _, release := range r.Releases {
		d.host.w.everywhereFirst(d.host, release)
	}
	return d.Store.Merge(ctx, r)
}

func cmpFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// memory is a store in memory, by the rules of package cluster.
type memory struct {
	now func() time.Time

	mu      sync.Mutex
	held    []cluster.Kept
	records cluster.Records
	torn    map[cert.Fingerprint]bool // set aside by the read that finds it
	stuck   map[cert.Fingerprint]bool // cannot be read, and stays
	reads   int
	aside   int
}

func (m *memory) Generations(context.Context) ([]cert.Generation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []cert.Generation
	for _, k := range m.held {
		out = append(out, k.Generation)
	}
	return out, nil
}

func (m *memory) Bundle(_ context.Context, g cert.Generation) (*cert.Bundle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	i := slices.IndexFunc(m.held, func(k cluster.Kept) bool { return same(k.Generation, g) })
	switch {
	case i < 0:
		return nil, fs.ErrNotExist
	case m.torn[g.Fingerprint]:
		m.held = slices.Delete(m.held, i, i+1)
		delete(m.torn, g.Fingerprint)
		m.aside++
		return nil, errors.New("torn file, set aside")
	case m.stuck[g.Fingerprint]:
		return nil, errors.New("input/output error")
	}
	return m.held[i].Bundle, nil
}

// Summary does not count as a read: the store knows it without one.
func (m *memory) Summary(ctx context.Context, g cert.Generation) (cert.Summary, error) {
	b, err := m.Bundle(ctx, g)
	m.mu.Lock()
	m.reads--
	m.mu.Unlock()
	if err != nil {
		return cert.Summary{}, err
	}
	return b.Summary(), nil
}

func (m *memory) Keep(_ context.Context, k cluster.Kept) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cluster.Revoked(m.records.Tombstones, k.Generation.Fingerprint) {
		return cluster.ErrRevoked
	}
	var held []cert.Generation
	for _, h := range m.held {
		held = append(held, h.Generation)
	}
	if contains(held, k.Generation) {
		return nil
	}
	if err := cluster.CheckJump(cluster.Newest(held, nil, k.Generation.Slot), k.Generation, m.now()); err != nil {
		return err
	}
	m.held = append(m.held, k)
	return nil
}

func (m *memory) Records(context.Context) (cluster.Records, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records, nil
}

func (m *memory) Merge(_ context.Context, r cluster.Records) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	tombstones := cluster.MergeTombstones(m.records.Tombstones, r.Tombstones)
	m.records = cluster.Records{
		Accounts:    cluster.MergeAccounts(m.records.Accounts, r.Accounts),
		Orders:      slices.DeleteFunc(cluster.MergeOrders(m.records.Orders, r.Orders), func(o cluster.Order) bool { return o.Forgotten(m.now()) }),
		Ledger:      cluster.MergeLedger(m.records.Ledger, r.Ledger, m.now()),
		Tombstones:  tombstones,
		Releases:    cluster.MergeReleases(cluster.SoundReleases(m.records.Releases, tombstones), cluster.SoundReleases(r.Releases, tombstones)),
		Renewals:    cluster.MergeRenewals(m.records.Renewals, r.Renewals),
		Revocations: cluster.MergeRevocations(m.records.Revocations, r.Revocations),
	}
	return nil
}

func (m *memory) Forget(_ context.Context, slot cert.Slot) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = slices.DeleteFunc(m.held, func(k cluster.Kept) bool { return k.Generation.Slot == slot })
	m.records.Releases = slices.DeleteFunc(m.records.Releases, func(r cluster.Release) bool { return r.Generation.Slot == slot })
	return nil
}

func (m *memory) Problems(context.Context) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Repeat([]string{"a torn file was set aside"}, m.aside)
}

// fakeProxy is a HAProxy: bundle files, what was loaded, and what a handshake shows.
type fakeProxy struct {
	host *host

	mu                       sync.Mutex
	files, memory            map[cert.Slot]*cert.Bundle
	down, full, noVerify     bool
	rejects, shows           bool // refuses what is new; shows another one than it has
	hang                     bool
	remembers                bool // loads nothing for what is in service, as HAProxy's adapter does
	err                      error
	activations, inspections int
}

func newProxy(h *host) *fakeProxy {
	return &fakeProxy{host: h, files: map[cert.Slot]*cert.Bundle{}, memory: map[cert.Slot]*cert.Bundle{}}
}

func (p *fakeProxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func sightingOf(b *cert.Bundle) cluster.Sighting {
	if b == nil {
		return cluster.Sighting{}
	}
	// Without a notBefore, as from HAProxy's memory.
	return cluster.Sighting{Fingerprint: b.Fingerprint(), SHA1: b.SHA1(), NotAfter: b.Leaf().NotAfter}
}

func (p *fakeProxy) look(t cluster.Target) cluster.Placement {
	pl := cluster.Placement{Slot: t.Slot, Proxy: "haproxy.cfg", Running: !p.down, Disk: sightingOf(p.files[t.Slot]), Proof: cluster.NoProof}
	if p.down {
		return pl
	}
	pl.Pid, pl.Memory = 7, sightingOf(p.memory[t.Slot])
	if p.noVerify || t.Bundle == nil {
		return pl
	}
	pl.Served, pl.Proof = pl.Memory, cluster.Disproven
	if p.shows {
		pl.Served = cluster.Sighting{SHA1: "ANOTHER", NotAfter: p.host.w.Now().Add(90 * day)}
	} else if pl.Served.Fingerprint == t.Bundle.Fingerprint() {
		pl.Proof = cluster.Proven
	}
	return pl
}

func (p *fakeProxy) Inspect(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inspections++
	var out []cluster.Placement
	for _, t := range targets {
		out = append(out, p.look(p.loaded(ctx, t)))
	}
	return out, p.err
}

func (p *fakeProxy) Activate(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	p.mu.Lock()
	hang, err := p.hang, p.err
	p.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := cmpFirst(p.host.effect(), err); err != nil {
		return nil, err
	}
	var out []cluster.Placement
	for _, t := range targets {
		if t = p.loaded(ctx, t); t.Bundle == nil {
			p.host.w.Errorf("%s is asked to activate %s without a bundle", p.host.name, t.Slot)
			continue
		}
		p.host.w.event("activate %s %s", p.host.name, t.Slot)
		p.host.w.released(p.host, t)
		out = append(out, p.activate(t))
	}
	return out, nil
}

// loaded reads the bundles of each target, as HAProxy's adapter does where it knows nothing of it.
func (p *fakeProxy) loaded(ctx context.Context, t cluster.Target) cluster.Target {
	has := func(b *cert.Bundle) bool { return b != nil && b.Fingerprint() == t.Generation.Fingerprint }
	if p.remembers && has(p.files[t.Slot]) && has(p.memory[t.Slot]) {
		t.Bundle = p.files[t.Slot]
		return t
	}
	t, err := t.Loaded(ctx)
	if err != nil {
		p.host.w.Errorf("%s: load %s: %v", p.host.name, t.Slot, err)
	}
	return t
}

func (p *fakeProxy) activate(t cluster.Target) cluster.Placement {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.activations++
	fp := t.Bundle.Fingerprint()
	had := p.files[t.Slot] != nil && p.files[t.Slot].Fingerprint() == fp
	loaded := p.memory[t.Slot] != nil && p.memory[t.Slot].Fingerprint() == fp
	outcome, cause := cluster.Done, ""
	switch {
	case had && loaded && !p.down:
		outcome = cluster.Unchanged
	case p.full && !had:
		outcome, cause = cluster.Failure, "write bundle: no space left on device"
	case p.down:
		p.replace(p.files, t)
		outcome, cause = cluster.DiskOnly, "HAProxy is not running"
	case p.rejects:
		outcome, cause = cluster.RolledBack, "inconsistencies between private key and certificate"
	default:
		p.replace(p.files, t)
		p.replace(p.memory, t)
	}
	pl := p.look(t)
	if pl.Proof == cluster.NoProof && (outcome == cluster.Done || outcome == cluster.Unchanged) {
		outcome = cluster.Unproven
	}
	if pl.Proof == cluster.Disproven && cause == "" {
		outcome, cause = cluster.Failure, "a handshake shows another certificate"
	}
	pl.Outcome, pl.Error = outcome, cause
	return pl
}

// replace puts a bundle in place of another: never an older one in place of a newer (promise 2).
func (p *fakeProxy) replace(where map[cert.Slot]*cert.Bundle, t cluster.Target) {
	if old := where[t.Slot]; old != nil {
		w := p.host.w
		w.mu.Lock()
		was, is := w.kept[old.Fingerprint()], w.kept[t.Bundle.Fingerprint()]
		w.mu.Unlock()
		if was.Newer(is) && !cluster.Revoked(p.host.records().Tombstones, old.Fingerprint()) {
			w.Errorf("%s went back from generation %d (%s) to %d (%s) in HAProxy", p.host.name, was.Sequence, was.Fingerprint.Short(), is.Sequence, is.Fingerprint.Short())
		}
	}
	where[t.Slot] = t.Bundle
}

func (p *fakeProxy) serves(s cert.Slot) cert.Fingerprint {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down || p.memory[s] == nil {
		return cert.Fingerprint{}
	}
	return p.memory[s].Fingerprint()
}

// start loads what is on disk, as HAProxy does at a start.
func (p *fakeProxy) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
	for s, b := range p.files {
		p.memory[s] = b
	}
}

// everywhereFirst checks promise 4: what is released is on the disk of every node that the MASTER can reach, before any
// node serves it.
func (w *world) everywhereFirst(h *host, r cluster.Release) {
	if r.Node != h.name {
		return
	}
	w.mu.Lock()
	again := w.free.has(r.Generation)
	w.free[keyOf(r.Generation)] = true
	w.mu.Unlock()
	if again {
		return // it may come back with the records of a peer
	}
	for _, other := range w.hosts {
		if w.lax || w.large || other != h && (h.links[other.name].broken() || other.disk.isFull()) {
			continue
		}
		held, err := other.disk.Store.Generations(context.Background())
		if err != nil || !contains(held, r.Generation) {
			w.Errorf("%s releases %s before %s has it on disk", h.name, r.Generation.Slot, other.name)
		}
	}
}

func (w *world) released(h *host, t cluster.Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.free.has(t.Generation) {
		w.Errorf("%s activates %s, which nobody released", h.name, t.Slot)
	}
}

// link is a peer as another node reaches it.
type link struct {
	from, to *host

	mu    sync.Mutex
	cut   bool
	hang  map[string]bool // by method
	calls []string
	lie   func(*cluster.Inventory)
	fetch func(generations []cert.Generation, each func(cluster.Kept) error) error
	stage func([]cluster.Kept) ([]cluster.StageResult, error)
	// status, where set, is the error that the peer answers when it is asked for its status.
	status func() error
}

func (l *link) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *link) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut || len(l.hang) > 0 || l.stage != nil
}

func (l *link) call(ctx context.Context, method string) error {
	l.mu.Lock()
	l.calls = append(l.calls, method)
	cut, hang := l.cut, l.hang[method]
	l.mu.Unlock()
	if err := l.from.effect(); err != nil {
		return err
	}
	if cut {
		return fmt.Errorf("dial %s: %w", l.to.name, cluster.ErrUnreachable)
	}
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return ctx.Err()
}

func (l *link) count(method string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, c := range l.calls {
		if c == method {
			n++
		}
	}
	return n
}

func (l *link) Name() string { return l.to.name }

func (l *link) Inventory(ctx context.Context) (cluster.Inventory, error) {
	if err := l.call(ctx, "inventory"); err != nil {
		return cluster.Inventory{}, err
	}
	inv, err := l.to.Node.Inventory(ctx)
	l.mu.Lock()
	lie := l.lie
	l.mu.Unlock()
	if lie != nil {
		lie(&inv)
	}
	return inv, err
}

func (l *link) Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error {
	if err := l.call(ctx, "fetch"); err != nil {
		return err
	}
	if l.fetch != nil {
		return l.fetch(generations, each)
	}
	return l.to.Node.Fetch(ctx, generations, each)
}

func (l *link) Stage(ctx context.Context, kept []cluster.Kept) ([]cluster.StageResult, error) {
	if err := l.call(ctx, "stage"); err != nil {
		return nil, err
	}
	if l.stage != nil {
		return l.stage(kept)
	}
	return l.to.Node.Stage(ctx, l.from.name, kept)
}

func (l *link) Record(ctx context.Context, records cluster.Records) error {
	if err := l.call(ctx, "record"); err != nil {
		return err
	}
	return l.to.Node.Record(ctx, l.from.name, records)
}

func (l *link) Release(ctx context.Context, releases []cluster.Release) ([]cluster.Placement, error) {
	if err := l.call(ctx, "release"); err != nil {
		return nil, err
	}
	return l.to.Node.Release(ctx, l.from.name, releases)
}

func (l *link) Status(ctx context.Context) (cluster.NodeStatus, error) {
	if err := l.call(ctx, "status"); err != nil {
		return cluster.NodeStatus{}, err
	}
	if l.status != nil {
		return cluster.NodeStatus{}, l.status()
	}
	return l.to.Node.Status(ctx)
}

// onBoth runs a test on stores in memory and on the real one.
func onBoth(t *testing.T, test func(t *testing.T, world func(n int, opts ...option) *world)) {
	t.Run("memory", func(t *testing.T) {
		test(t, func(n int, opts ...option) *world { return newWorld(t, n, opts...) })
	})
	t.Run("store", func(t *testing.T) {
		test(t, func(n int, opts ...option) *world {
			var w *world
			open := func() Store {
				s, err := store.Open(t.TempDir(), store.Options{Now: func() time.Time { return w.clock() }})
				if err != nil {
					t.Fatalf("open a store: %v", err)
				}
				return s
			}
			holder := &w
			w = makeWorld(t, n, open, append(opts, func(made *world, _ *Settings) { *holder = made })...)
			return w
		})
	})
}

// clock is Now, also of a world that is being made.
func (w *world) clock() time.Time {
	if w == nil {
		return time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	}
	return w.Now()
}

// certtestOptions are those of the fake CA's certificates.
func certtestOptions(w *world, o cluster.Order) certtest.Options {
	now := w.Now().Add(-w.ca.behind)
	return certtest.Options{Domains: o.Domains, NotBefore: now, NotAfter: now.Add(cmp.Or(w.ca.lifetime, 90*day)), Chain: true}
}
