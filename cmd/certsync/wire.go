package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"certsync/internal/acme"
	"certsync/internal/acme/providers"
	"certsync/internal/carp"
	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/daemon"
	"certsync/internal/distribute"
	"certsync/internal/fileid"
	"certsync/internal/haproxy"
	"certsync/internal/notify"
	"certsync/internal/reconcile"
	"certsync/internal/store"
)

// The adapters satisfy the interfaces of the flow; the node's own part is what the peer API serves.
var (
	_ reconcile.Store   = (*store.Store)(nil)
	_ reconcile.Issuer  = (*acme.Client)(nil)
	_ reconcile.Revoker = (*acme.Client)(nil)
	_ reconcile.Proxy   = (*haproxy.Proxy)(nil)
	_ reconcile.Pruner  = (*haproxy.Proxy)(nil)
	_ reconcile.Starter = (*haproxy.Proxy)(nil)
	_ reconcile.Peer    = (*distribute.Peer)(nil)
	_ roles             = (*carp.Static)(nil)
	_ roles             = (*carp.Auto)(nil)
	_ distribute.Local  = (*reconcile.Node)(nil)
	_ daemon.Demoter    = (*carp.Demotion)(nil)
	_ daemon.Target     = (*notify.Target)(nil)
)

// wiring is the program put together from the configuration. This file alone builds adapters.
type wiring struct {
	config   *config.Config
	store    *store.Store
	node     *reconcile.Node
	peers    []*distribute.Peer
	roles    roles
	progress func(cluster.Progress)
	closers  []func()
}

// roles is the source of the role, as the commands use it.
type roles interface {
	reconcile.Roles
	// Watch hands each the first view and every changed one, until the context ends.
	Watch(ctx context.Context, each func(cluster.CARP))
}

// wire loads the configuration, drops root's rights, and builds what every command needs.
func (a *app) wire(progress func(cluster.Progress)) (*wiring, error) {
	cfg, self, err := a.load()
	if err != nil {
		return nil, err
	}
	if err := dropPrivileges(cfg.StateDir); err != nil {
		return nil, err
	}
	w := &wiring{config: cfg, progress: progress}
	if w.store, err = store.Open(cfg.StateDir, store.Options{}); err != nil {
		return nil, fmt.Errorf("state in %s: %w", cfg.StateDir, err)
	}
	settings, err := settingsOf(cfg, self)
	if err != nil {
		return nil, err
	}
	w.node = &reconcile.Node{Settings: settings, Store: w.store, Now: time.Now, Alarms: w.store.Alarms}
	if err := w.wireRoles(self, a.configPath); err != nil {
		return nil, err
	}
	if err := w.wireProxies(); err != nil {
		return nil, err
	}
	w.wirePeers(self)
	return w, nil
}

// wireCARP builds what `carp status` needs, which is no state.
func (a *app) wireCARP() (*wiring, error) {
	cfg, self, err := a.load()
	if err != nil {
		return nil, err
	}
	if err := dropPrivileges(cfg.StateDir); err != nil {
		return nil, err
	}
	w := &wiring{config: cfg, node: &reconcile.Node{Settings: reconcile.Settings{Node: self.Name}, Now: time.Now}}
	if err := w.wireRoles(self, a.configPath); err != nil {
		return nil, err
	}
	w.wirePeers(self)
	return w, nil
}

func (w *wiring) close() {
	for _, c := range w.closers {
		c()
	}
}

func settingsOf(cfg *config.Config, self config.Node) (reconcile.Settings, error) {
	s := reconcile.Settings{Node: self.Name, Place: slices.IndexFunc(cfg.Nodes, func(n config.Node) bool { return n.Name == self.Name }), Version: versionText(), Digest: cfg.Digest(), Email: cfg.ACME.Email, Concurrency: cfg.Renew.Concurrency}
	for _, c := range cfg.Certificates {
		s.Certificates = append(s.Certificates, reconcile.Certificate{Name: c.Name, Domains: cert.NormalDomains(c.Domains),
			KeyTypes: c.KeyTypes, Profile: cfg.ACME.Profile, Path: c.Bundle})
	}
	var err error
	s.Roots, err = roots(cfg.ACME.CAFile)
	return s, err
}

// roots are the system's and those of acme.ca_file; nil, which means the system's, where there is no such file.
func roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, cluster.Usage(fmt.Errorf("acme.ca_file: %w", err))
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, cluster.WithHint(cluster.Usage(fmt.Errorf("acme.ca_file: %s: no certificate in it", file)),
			"it holds the root of a private CA, in PEM")
	}
	return pool, nil
}

// roleReader reads carp.role from the configuration file, again whenever the file changed (docs/decisions/0007).
func roleReader(path string) func() (string, error) {
	var mu sync.Mutex
	var last fileid.ID
	var read time.Time
	var role string
	return func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		at, now := time.Now(), fileid.Stat(path)
		if now == last && now.Settled(read) {
			return role, nil
		}
		cfg, err := config.Load(path)
		if err != nil {
			return "", err
		}
		last, read, role = now, at, cfg.CARP.Role
		return role, nil
	}
}

// wireRoles reads the role from CARP, or from the configuration where that states it.
func (w *wiring) wireRoles(self config.Node, configPath string) error {
	if _, static := w.config.CARP.Static(); static {
		w.roles = carp.NewStatic(self.Name, roleReader(configPath))
		w.node.Roles = w.roles
		return nil
	}
	auto, err := carp.NewAuto(carp.Config{Node: self.Name, VHIDs: specsOf(w.config, self), Settle: w.config.CARP.Settle})
	if err != nil {
		return err
	}
	w.roles, w.node.Roles = auto, auto
	w.closers = append(w.closers, auto.Close)
	return nil
}

// demoter changes CARP's demotion of this node; nil where the system has none.
func (w *wiring) demoter() (daemon.Demoter, error) {
	kernel, err := carp.SystemKernel()
	switch {
	case errors.Is(err, errors.ErrUnsupported) && !w.config.CARP.DemoteUnready:
		return nil, nil
	case err != nil:
		return nil, checkDemotion(w.config)
	}
	return carp.NewDemotion(carp.DemotionConfig{Kernel: kernel, File: filepath.Join(w.config.StateDir, "demotion.json")}), nil
}

// checkDemotion refuses what the system cannot do.
func checkDemotion(cfg *config.Config) error {
	if !cfg.CARP.DemoteUnready {
		return nil
	}
	_, err := carp.SystemKernel()
	if errors.Is(err, errors.ErrUnsupported) {
		err = cluster.WithHint(cluster.Usage(fmt.Errorf("carp.demote_unready: only FreeBSD has a demotion: %w", err)),
			"set carp.demote_unready to false")
	}
	return err
}

// specsOf are the vhids as this node is to look for them.
func specsOf(cfg *config.Config, self config.Node) []carp.Spec {
	var specs []carp.Spec
	for _, v := range cfg.VHIDsOf(self) {
		specs = append(specs, carp.Spec{Interface: v.Interface, VHID: v.ID, Addresses: v.Addresses})
	}
	return specs
}

// viewTimeout bounds a look at the role before a virtual address is connected to.
const viewTimeout = time.Second

// isMaster tells whether a virtual address answers for this node at this moment.
func (w *wiring) isMaster() bool {
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	return w.roles.View(ctx).Role == cluster.Master
}

func (w *wiring) wireProxies() error {
	for _, h := range w.config.HAProxy {
		p, err := haproxy.New(haproxy.Config{Name: h.Config, BundleDir: h.BundleDir, BundleGroup: h.BundleGroup, CrtList: h.CrtList,
			RuntimeSocket: h.RuntimeSocket, Verify: h.Verify, JournalDir: filepath.Join(w.config.StateDir, "haproxy", journalName(h.Config)),
			Files: h.Files(), MasterSocket: h.MasterSocket, Reload: h.Reload, Check: h.Check, Virtual: w.config.Virtual(), Master: w.isMaster})
		if err != nil {
			return fmt.Errorf("haproxy %s: %w", h.Config, err)
		}
		w.node.Proxies = append(w.node.Proxies, p)
	}
	return nil
}

// journalName is the path of a HAProxy's configuration as a folder's name: readable, and told apart by a hash, since
// /etc/a_b and /etc/a/b read the same.
func journalName(path string) string {
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf("%s-%x", strings.ReplaceAll(strings.Trim(path, "/"), "/", "_"), sum[:4])
}

func (w *wiring) wirePeers(self config.Node) {
	for _, n := range w.config.Peers(self.Name) {
		p := distribute.NewPeer(distribute.PeerConfig{Name: n.Name, Node: self.Name, Address: n.Address, Port: n.Port, User: w.config.SSH.User,
			KeyFile: w.config.SSH.KeyFile, KnownHosts: w.config.SSH.KnownHosts})
		w.peers = append(w.peers, p)
		w.closers = append(w.closers, func() { _ = p.Close() })
	}
}

// handler is the peer API over this node.
func (w *wiring) handler() http.Handler {
	var names []string
	for _, p := range w.peers {
		names = append(names, p.Name())
	}
	return distribute.NewHandler(w.node, distribute.HandlerOptions{Peers: names})
}

// reconciler is the flow with the configured CA, or with its staging directory.
func (w *wiring) reconciler(staging bool) (*reconcile.Reconciler, error) {
	directory := config.DirectoryURL(w.config.ACME.Directory)
	if staging {
		if w.config.ACME.Staging == "" {
			return nil, cluster.WithHint(cluster.Usage(fmt.Errorf("acme.staging: no staging directory is known of %s", directory)),
				"set acme.staging to the URL of the CA's staging directory")
		}
		directory = config.DirectoryURL(w.config.ACME.Staging)
	}
	issuer, err := w.issuer(directory)
	if err != nil {
		return nil, err
	}
	r := &reconcile.Reconciler{Node: w.node, Issuer: issuer, Progress: w.progress}
	for _, p := range w.peers {
		r.Peers = append(r.Peers, p)
	}
	return r, nil
}

func (w *wiring) issuer(directory string) (*acme.Client, error) {
	cfg := acme.Config{Directory: directory, CAFile: w.config.ACME.CAFile, UserAgent: "certsync/" + versionText(),
		Provider: providers.New, DNS: w.dns, Concurrency: w.config.Renew.Concurrency, Progress: w.progress}
	if eab := w.config.ACME.EAB; eab.KeyID != "" {
		key, err := config.ReadSecret(eab.HMACKeyFile)
		if err != nil {
			return nil, fmt.Errorf("acme.eab.hmac_key_file: %w", err)
		}
		cfg.EAB = acme.EAB{KeyID: eab.KeyID, HMAC: key}
	}
	client, err := acme.New(cfg)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, client.Close)
	return client, nil
}

// dns reads a certificate's provider and its credentials, anew for each order: an edited file counts at once.
func (w *wiring) dns(certificate string) (acme.DNSConfig, error) {
	for _, c := range w.config.Certificates {
		if c.Name != certificate {
			continue
		}
		var env map[string]string
		if c.DNS.EnvFile != "" {
			var err error
			if env, err = config.ReadEnvFile(c.DNS.EnvFile); err != nil {
				return acme.DNSConfig{}, err
			}
		}
		p := c.DNS.Propagation
		return acme.DNSConfig{Provider: c.DNS.Provider, Env: env, Resolvers: c.DNS.Resolvers, Check: p.Check, Timeout: p.Timeout,
			Interval: p.Interval, Sequence: p.Sequence}, nil
	}
	return acme.DNSConfig{}, fmt.Errorf("certificate %q: not in the configuration", certificate)
}

// targets are those who are to be notified: all that is wrong with their URLs comes at once.
func targets(cfg *config.Config) ([]*notify.Target, error) {
	urls, err := cfg.NotifyURLs()
	if err != nil {
		return nil, err
	}
	var all []*notify.Target
	var errs []error
	for i, u := range urls {
		t, err := notify.New(u)
		if err != nil {
			errs = append(errs, cluster.WithHint(fmt.Errorf("notify, URL %d: %w", i+1, err), "%s", cluster.HintOf(err)))
			continue
		}
		all = append(all, t)
	}
	return all, errors.Join(errs...)
}
