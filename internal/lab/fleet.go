package lab

import (
	"bufio"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/reconcile"
	"certsync/internal/store"
)

// FleetOptions says what a fleet is.
type FleetOptions struct {
	// Size is the number of certificates.
	Size int
	// HAProxy is the program; "" means the earliest branch found.
	HAProxy string
	// MasterWorker runs HAProxy as `-W -S`, so that it is reloaded through its master socket.
	MasterWorker bool
	// Adapt changes what certsync's part that drives HAProxy is made with; nil means as it is.
	Adapt func(*haproxy.Config)
}

// Fleet is one node with many certificates and no peer: the real store, reconciler and HAProxy, the first two in this
// process, as the daemon has them. New generations come from a CA in memory and are put into the store as if they had
// been obtained. It is for one goroutine at a time.
type Fleet struct {
	o FleetOptions
	// Dir has all that is on disk; Certs is the bundle folder, Config haproxy.cfg, Socket the runtime socket.
	Dir, Certs, Config, Socket, MasterSocket string
	// Address is the TLS bind's, host:port.
	Address string
	// Names are the certificates', which have their name as their only domain.
	Names []string
	// Newest and Bundles are the newest generation of each.
	Newest  map[string]cert.Generation
	Bundles map[string]*cert.Bundle

	// Node and Reconciler are certsync's.
	Node       *reconcile.Node
	Reconciler *reconcile.Reconciler

	ca      *certtest.CA
	key     crypto.Signer
	store   *store.Store
	haproxy *process
	earlier []*process
}

// fleetStart bounds HAProxy's start: 10,000 certificates take it 20 s on a machine that does nothing else.
const fleetStart = 3 * time.Minute

// noIssuer is a CA that cannot be had: nothing of a fleet is due.
type noIssuer struct{}

var errNoCA = errors.New("this lab has no CA")

func (noIssuer) Directory() string { return "https://ca.test/directory" }

func (noIssuer) Register(context.Context, cluster.Account) (cluster.Account, error) {
	return cluster.Account{}, errNoCA
}

func (noIssuer) Obtain(context.Context, cluster.Account, cluster.Order, cluster.Checkpoint) (*cert.Bundle, error) {
	return nil, errNoCA
}

func (noIssuer) CleanUp(_ context.Context, _ cluster.Account, o cluster.Order) (cluster.Order, error) {
	return o, nil
}

func (noIssuer) RenewalInfo(context.Context, string) (cluster.Suggestion, error) {
	return cluster.Suggestion{}, errors.ErrUnsupported
}

// NewFleet makes a fleet whose certificates are in the store, on disk, and in a HAProxy that runs.
func NewFleet(ctx context.Context, o FleetOptions) (f *Fleet, err error) {
	if o.HAProxy == "" {
		h, err := FindHAProxy(ctx, "")
		if err != nil {
			return nil, err
		}
		o.HAProxy = h.Path
	}
	dir, err := os.MkdirTemp("", "fleet") // a unix socket's path must be short
	if err != nil {
		return nil, err
	}
	f = &Fleet{o: o, Dir: dir, Certs: filepath.Join(dir, "certs"), Config: filepath.Join(dir, "haproxy.cfg"), Socket: filepath.Join(dir, "admin.sock"),
		Newest: map[string]cert.Generation{}, Bundles: map[string]*cert.Bundle{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("fleet: %w", err), f.Close())
			f = nil
		}
	}()
	port, err := FreePort()
	if err != nil {
		return f, err
	}
	f.Address = loopback(port)
	if o.MasterWorker {
		f.MasterSocket = filepath.Join(dir, "master.sock")
	}
	if err := f.fill(ctx); err != nil {
		return f, err
	}
	return f, f.Start(ctx)
}

// fill makes the folders, the certificates and certsync's part.
func (f *Fleet) fill(ctx context.Context) (err error) {
	for _, d := range []string{f.Certs, filepath.Join(f.Dir, "state")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := f.Bind("crt " + f.Certs + "/"); err != nil {
		return err
	}
	if f.ca, err = certtest.New(); err != nil {
		return err
	}
	if f.key, err = cert.EC256.Generate(); err != nil {
		return err
	}
	if f.store, err = store.Open(filepath.Join(f.Dir, "state"), store.Options{}); err != nil {
		return err
	}
	settings := reconcile.Settings{Node: "fleet", Version: "lab", Digest: "lab", Concurrency: 8, Roots: f.ca.Roots()}
	for i := range f.o.Size {
		name := fmt.Sprintf("c%05d.test", i)
		f.Names = append(f.Names, name)
		settings.Certificates = append(settings.Certificates, reconcile.Certificate{Name: name, Domains: []string{name}, KeyTypes: []cert.KeyType{cert.EC256}})
		if err := f.Renew(ctx, name); err != nil {
			return err
		}
		if err := f.Write(name); err != nil {
			return err
		}
	}
	proxy, err := f.proxy()
	if err != nil {
		return err
	}
	f.Node = &reconcile.Node{Settings: settings, Store: f.store, Now: time.Now, Proxies: []reconcile.Proxy{proxy},
		Roles: carp.NewStatic("fleet", func() (string, error) { return "static:fleet", nil })}
	f.Reconciler = &reconcile.Reconciler{Node: f.Node, Issuer: noIssuer{}}
	return nil
}

func (f *Fleet) proxy() (*haproxy.Proxy, error) {
	c := haproxy.Config{Name: f.Config, BundleDir: f.Certs, RuntimeSocket: f.Socket, Verify: []string{f.Address}, JournalDir: filepath.Join(f.Dir, "journal")}
	if f.o.Adapt != nil {
		f.o.Adapt(&c)
	}
	return haproxy.New(c)
}

// Bind writes haproxy.cfg with one TLS bind that loads what crt says. HAProxy takes it at its next start or reload.
func (f *Fleet) Bind(crt string) error {
	return writeFile(f.Config, []byte(`global
  stats socket `+f.Socket+` mode 600 level admin expose-fd listeners
  nbthread 2
  maxconn 4000
defaults
  mode http
  timeout client 10m
  timeout server 10m
  timeout connect 5s
  timeout http-keep-alive 10m
frontend tls
  bind `+f.Address+` ssl `+crt+`
  http-request return status 200 content-type text/plain string fleet
`))
}

// BundleFile is the path of a certificate's bundle.
func (f *Fleet) BundleFile(name string) string { return filepath.Join(f.Certs, name+".pem") }

// Renew puts a new generation of certificates into the store.
func (f *Fleet) Renew(ctx context.Context, names ...string) error {
	for _, name := range names {
		b, err := f.ca.Make(certtest.Options{Domains: []string{name}, Key: f.key, Chain: true})
		if err != nil {
			return err
		}
		g := b.Generation(name, f.Newest[name].Sequence+1)
		if err := f.store.Keep(ctx, cluster.Kept{Generation: g, Bundle: b}); err != nil {
			return err
		}
		f.Newest[name], f.Bundles[name] = g, b
	}
	return nil
}

// Write puts the newest bundle of a certificate on disk, as a deploy hook would.
func (f *Fleet) Write(name string) error {
	return writeFile(f.BundleFile(name), f.Bundles[name].PEM())
}

// Pass is one pass of the reconciler.
func (f *Fleet) Pass(ctx context.Context) (cluster.Report, error) {
	return f.Reconciler.Pass(ctx, reconcile.Wanted{})
}

// Start starts HAProxy and waits until it answers.
func (f *Fleet) Start(ctx context.Context) error {
	args := []string{"-db", "-f", f.Config}
	if f.o.MasterWorker {
		args = []string{"-W", "-S", f.MasterSocket, "-f", f.Config}
	}
	return f.run(ctx, args, 0)
}

// Reload starts a new HAProxy that takes the listeners over, as FreeBSD's rc script does with an expose-fd socket, and
// waits until it answers.
func (f *Fleet) Reload(ctx context.Context) error {
	pid, err := f.Pid(ctx)
	if err != nil {
		return err
	}
	return f.run(ctx, []string{"-db", "-f", f.Config, "-x", f.Socket, "-sf", strconv.Itoa(pid)}, pid)
}

func (f *Fleet) run(ctx context.Context, args []string, before int) error {
	p, err := startProcess(f.o.HAProxy, args, baseEnv(), nil)
	if err != nil {
		return err
	}
	if f.haproxy != nil {
		f.earlier = append(f.earlier, f.haproxy)
	}
	f.haproxy = p
	if err := p.awaitPid(ctx, f.Pid, before, fleetStart); err != nil {
		return fmt.Errorf("start HAProxy: %w", err)
	}
	return nil
}

// Stop ends HAProxy, and those before it that still had connections.
func (f *Fleet) Stop() {
	for _, p := range append(slices.Clone(f.earlier), f.haproxy) {
		if p != nil {
			p.stop()
		}
	}
	f.earlier, f.haproxy = nil, nil
	if err := os.Remove(f.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
}

// Close ends HAProxy and removes what is on disk.
func (f *Fleet) Close() error {
	f.Stop()
	return os.RemoveAll(f.Dir)
}

// Pid is that of the HAProxy that answers on the runtime socket.
func (f *Fleet) Pid(ctx context.Context) (int, error) {
	return f.Info(ctx, "Pid")
}

// Info is a number of `show info`.
func (f *Fleet) Info(ctx context.Context, key string) (int, error) {
	reply, err := f.Command(ctx, "show info")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(reply) {
		if value, ok := strings.CutPrefix(line, key+": "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("show info: no %s in the answer", key)
}

// Command sends a command to the runtime socket, as an operator would.
func (f *Fleet) Command(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f.Socket)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	reply, err := io.ReadAll(io.LimitReader(conn, 64<<20))
	return string(reply), err
}

// Resident is the memory that a process has in use, in KiB (Linux only: proc(5), VmRSS).
func Resident(pid int) (int, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kib int
		if _, err := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kib); err == nil {
			return kib, nil
		}
	}
	return 0, fmt.Errorf("process %d: no VmRSS", pid)
}

// Memory is what the HAProxies of the fleet have in use, in KiB: the one that serves, and those before it that live on
// for their connections.
func (f *Fleet) Memory() (kib int, err error) {
	for _, p := range append(slices.Clone(f.earlier), f.haproxy) {
		if p == nil || !p.alive() {
			continue
		}
		n, err := Resident(p.pid())
		if err != nil && p.alive() {
			return 0, err
		}
		kib += n
	}
	return kib, nil
}
