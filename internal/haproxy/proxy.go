package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// DialFunc connects like net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is one HAProxy of this node.
type Config struct {
	// Name names the HAProxy in placements: the path of its configuration.
	Name string
	// BundleDir is the folder of the bundle files that have no path of their own.
	BundleDir string
	// BundleGroup may read the bundle files (0640); "" means that nobody but the owner may (0600).
	BundleGroup string
	// CrtList is a crt-list file that new bundles are added to; "" means that only `crt DIR` can take new ones.
	CrtList string
	// RuntimeSocket is the stats socket with `level admin`: a path (also unix@PATH), or host:port (also ipv4@, ipv6@).
	RuntimeSocket string
	// Verify are the addresses to handshake with: host:port, [v6]:port, or the path of a unix socket (also unix@PATH); none
	// means those that Files have.
	Verify []string
	// JournalDir holds the lock, the journal and the bundles put aside. It is outside BundleDir, and is made.
	JournalDir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// CommandTimeout is the longest that one command of the runtime API may take; 30 s by default, because a commit
	// takes 1.5 to 3 ms for each bind that uses the certificate.
	CommandTimeout time.Duration
	// Wait is how long another certsync, a foreign transaction, or a busy HAProxy is waited for; 15 s by default.
	Wait time.Duration
	// ProbeTimeout is the longest that one handshake may take; 5 s by default.
	ProbeTimeout time.Duration
	// InspectTimeout is the longest that Inspect asks the runtime socket, for all targets together; 8 s by default, since
	// who asks for the status waits.
	InspectTimeout time.Duration
	// UndoTimeout is the time that an undo gets, also where the context of the activation has ended; 30 s by default.
	UndoTimeout time.Duration
	// Dial connects to the runtime socket and to the addresses of Verify; nil means a net.Dialer.
	Dial DialFunc

	// Sample is how many of the targets that are known to be in service are looked at again in each call, in HAProxy's
	// memory and in a handshake; 0 means a twentieth, and at least 50.
	Sample int
	// Files are the arguments of HAProxy's -f, in order: files or folders; none means that nothing is discovered in them.
	Files []string
	// MasterSocket is the socket of `haproxy -W -S PATH`; "" means that there is none.
	MasterSocket string
	// Reload is the argument list of the command that reloads HAProxy; empty means that there is none.
	Reload []string
	// Check is the argument list of `haproxy -c`; empty means [haproxy, -c, -f, FILE...] with Files.
	Check []string
	// CheckTimeout is the longest that the check may take; 2 min by default, since one of 10,000 certificates takes 25 s.
	CheckTimeout time.Duration
	// ReloadTimeout is how long HAProxy's Pid may take to change; 2 min by default, since a start takes what a check does.
	ReloadTimeout time.Duration
	// ReloadInterval is the shortest time between two reloads; 1 min by default, since each keeps a whole old worker for
	// as long as its connections last.
	ReloadInterval time.Duration
	// ReloadSettle is how long a handshake may show something else after HAProxy's Pid has changed, since the old process
	// accepts what had been in its queue; 5 s by default.
	ReloadSettle time.Duration
	// For the discovery of what to handshake with, where Verify is empty.
	// Virtual are the addresses of CARP: none is connected to unless Master says that this node is MASTER. nil means never.
	Virtual []netip.Addr
	Master  func() bool
	// Addresses are those of this node's interfaces; nil means to ask the kernel.
	Addresses func() ([]netip.Addr, error)
}

// Proxy is one HAProxy of this node: reconcile.Proxy. It is safe for concurrent use, also by several processes that
// share JournalDir: they take turns.
type Proxy struct {
	config  Config
	runtime *runtime
	journal *journal
	verify  []endpoint
	// master is nil where no master socket is configured.
	master *master
	// discovery is what was last read of HAProxy's configuration.
	discovery discovery
	// turn holds one token while an activation is under way.
	turn chan struct{}
	// memo is what was found in service.
	memo memo
	// folder and list are what was seen last of the bundle folder and of the crt-list.
	folder folder
	list   crtList
}

// endpoint is an address to handshake with.
type endpoint struct {
	network, address string
	// proxy tells that a connection begins with a PROXY header.
	proxy bool
	// virtual tells that it answers for this node only while this node is MASTER.
	virtual bool
	// maybe tells that HAProxy may well not have it: it stands in a conditional block.
	maybe bool
	// guarded tells that rules may refuse this node's connection before the handshake.
	guarded bool
}

func (e endpoint) String() string {
	if e.network == "unix" {
		return "unix@" + e.address
	}
	return e.address
}

// New checks the configuration's form; it touches nothing.
func New(c Config) (*Proxy, error) {
	var errs []error
	require := func(what, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("haproxy %s: %s is missing", c.Name, what))
		}
	}
	require("bundle_dir", c.BundleDir)
	require("runtime_socket", c.RuntimeSocket)
	require("the journal's folder", c.JournalDir)
	if c.BundleDir != "" && c.JournalDir != "" && within(c.JournalDir, c.BundleDir) {
		errs = append(errs, fmt.Errorf("haproxy %s: the journal's folder %s lies in bundle_dir, where HAProxy would load what is kept there", c.Name, c.JournalDir))
	}
	socket, err := parseEndpoint(c.RuntimeSocket)
	if err != nil && c.RuntimeSocket != "" {
		errs = append(errs, fmt.Errorf("haproxy %s: runtime_socket: %w", c.Name, err))
	}
	masterSocket, err := parseEndpoint(c.MasterSocket)
	if err != nil && c.MasterSocket != "" {
		errs = append(errs, fmt.Errorf("haproxy %s: master_socket: %w", c.Name, err))
	}
	var verify []endpoint
	for _, v := range c.Verify {
		e, err := parseEndpoint(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("haproxy %s: verify: %w", c.Name, err))
		}
		verify = append(verify, e)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c = withDefaults(c)
	var m *master
	if c.MasterSocket != "" {
		m = &master{runtime{network: masterSocket.network, address: masterSocket.address, dial: c.Dial, timeout: c.ReloadTimeout}}
	}
	return &Proxy{
		config:  c,
		master:  m,
		runtime: &runtime{network: socket.network, address: socket.address, dial: c.Dial, timeout: c.CommandTimeout, wait: c.Wait},
		journal: newJournal(c.JournalDir, socket.String()),
		verify:  verify,
		turn:    make(chan struct{}, 1),
		memo:    memo{proofs: map[cert.Slot]proof{}},
	}, nil
}

func withDefaults(c Config) Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.CommandTimeout, 30 * time.Second}, {&c.Wait, 15 * time.Second}, {&c.ProbeTimeout, 5 * time.Second}, {&c.UndoTimeout, 30 * time.Second},
		{&c.InspectTimeout, 8 * time.Second},
		{&c.CheckTimeout, 2 * time.Minute}, {&c.ReloadTimeout, 2 * time.Minute}, {&c.ReloadInterval, time.Minute}, {&c.ReloadSettle, 5 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// within tells whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// parseEndpoint reads an address as HAProxy's configuration writes it, as far as one can connect to it.
func parseEndpoint(s string) (endpoint, error) {
	if path, ok := strings.CutPrefix(s, "unix@"); ok {
		s = path
		if !filepath.IsAbs(s) {
			return endpoint{}, fmt.Errorf("%q: the path of a unix socket must be absolute", s)
		}
	}
	if filepath.IsAbs(s) {
		return endpoint{network: "unix", address: s}, nil
	}
	network := "tcp"
	for prefix, n := range map[string]string{"ipv4@": "tcp4", "ipv6@": "tcp6"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			s, network = rest, n
		}
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || host == "*" || port == "" {
		return endpoint{}, fmt.Errorf("%q is neither host:port, [v6]:port nor the path of a unix socket", s)
	}
	return endpoint{network: network, address: s}, nil
}

// Inspect tells where each target stands: disk, memory, handshake. It changes nothing and takes no lock. A HAProxy that
// cannot be asked is no error of Inspect's: the placements say so. Of thousands of targets that are known to be in
// service a sample is looked at; Served.Seen says when the handshake was made.
func (p *Proxy) Inspect(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	asking, cancel := context.WithTimeout(ctx, p.config.InspectTimeout)
	defer cancel()
	s := p.survey(asking)
	s.brief = true
	known := s.recall(asking, targets)
	a := &activation{survey: s, files: p.filesOf(targets)}
	out := make([]cluster.Placement, len(targets))
	var views []*inspected
	for i, t := range targets {
		if known[i] != nil {
			out[i] = *known[i]
			out[i].Outcome = ""
			continue
		}
		v := &inspected{index: i, view: s.look(asking, t)}
		a.tellLeft(&v.view)
		v.slim()
		views = append(views, v)
	}
	sideways(views, func(v *inspected) {
		s.handshake(ctx, &v.view)
		s.tellWhy(&v.view)
		out[v.index] = v.placement
	})
	return out, ctx.Err()
}

// inspected is a target that is not known to be in service.
type inspected struct {
	index int
	view
}

// tellWhy adds why a target could not be looked at as it should.
func (s *survey) tellWhy(v *view) {
	if err := s.deaf(v, v.memoryErr); v.memoryErr != nil && errors.Is(err, cluster.ErrNotRunning) && !v.placement.Served.IsZero() {
		v.placement.Error, v.placement.Hint = err.Error(), cluster.HintOf(err)
	}
	if v.loadErr != nil && v.placement.Error == "" {
		v.placement.Error, v.placement.Hint = v.loadErr.Error(), cluster.HintOf(v.loadErr)
	}
}

// tellLeft tells of an earlier file of the certificate that HAProxy loads, or will at its next start.
func (a *activation) tellLeft(v *view) {
	if v.Bundle == nil || v.placement.Disk.Note != "" {
		return
	}
	if i := slices.IndexFunc(a.rivals(v), func(r rival) bool { return r.disk.Fingerprint() != v.Bundle.Fingerprint() }); i >= 0 {
		v.placement.Disk.Note = fmt.Sprintf("%s, an earlier file of this certificate, is there still", a.rivals(v)[i].path)
	}
}

// filesOf are the bundle files of targets.
func (p *Proxy) filesOf(targets []cluster.Target) map[string]bool {
	files := make(map[string]bool, len(targets))
	for _, t := range targets {
		files[p.file(t)] = true
	}
	return files
}

// Activate brings each target in service: bundle file, memory, handshake; undone where it fails. It changes nothing for
// a target that is in service already. The error is for what concerns all targets: another certsync holds the lock
// (cluster.ErrBusy), or the journal cannot be used.
func (p *Proxy) Activate(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error) {
	release, err := p.takeTurn(ctx)
	if err != nil {
		return nil, fmt.Errorf("activate on HAProxy %s: %w", p.config.Name, err)
	}
	defer release()
	p.journal.sweep()
	a := &activation{survey: p.firstSurvey(ctx), swept: map[string]bool{}, files: p.filesOf(targets)}
	if a.err == nil {
		err := a.recover(ctx)
		switch {
		case ctx.Err() == nil && outOfReach(err):
			a.err = err
		case err != nil:
			return nil, fmt.Errorf("activate on HAProxy %s: %w", p.config.Name, err)
		}
	}
	a.sweep(filepath.Clean(p.config.BundleDir))
	out := a.all(ctx, targets)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reload(ctx, out)
	p.replacePlaceholder(out)
	return out, nil
}

// replacePlaceholder takes the placeholder out of the bundle folder once a bundle is in it: HAProxy needs it no longer to
// start, and would show it to clients that ask for no name it has. What runs keeps it in memory until it starts again.
// That it cannot be removed harms nothing and is no failure of a certificate.
func (p *Proxy) replacePlaceholder(placed []cluster.Placement) {
	onDisk := func(pl cluster.Placement) bool {
		return filepath.Dir(pl.File) == filepath.Clean(p.config.BundleDir) && !pl.Disk.Fingerprint.IsZero()
	}
	if !slices.ContainsFunc(placed, onDisk) {
		return
	}
	name := filepath.Join(p.config.BundleDir, cert.PlaceholderName)
	content, err := os.ReadFile(name)
	if err != nil || !cert.IsPlaceholder(content) {
		return
	}
	if os.Remove(name) == nil {
		_ = syncDir(p.config.BundleDir)
	}
}

// firstSurvey takes at most half of the time that ctx leaves: a HAProxy that hangs must not cost the bundle its way to
// the disk.
func (p *Proxy) firstSurvey(ctx context.Context) *survey {
	if deadline, ok := ctx.Deadline(); ok {
		half, cancel := context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
		ctx = half
	}
	return p.survey(ctx)
}
