package acme_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/providers/dns/rfc2136"

	"certsync/internal/acme"
	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// patience is how long a test waits for what must happen; nothing that works takes so long.
const patience = 30 * time.Second

// world is a CA, a name server and a client with a registered account.
type world struct {
	t       testing.TB
	dns     *lab.DNS
	ca      *lab.CA
	cfg     acme.Config
	dnsCfg  acme.DNSConfig
	account cluster.Account

	mu       sync.Mutex
	progress []string
	provider func(challenge.Provider) challenge.Provider
}

type option func(*world, *lab.DNSOptions, *lab.CAOptions)

func newWorld(t testing.TB, options ...option) *world {
	t.Helper()
	w := &world{t: t}
	dnsOpts := lab.DNSOptions{Zones: []string{"example.org", "example.net"}}
	caOpts := lab.CAOptions{Dir: t.TempDir()}
	w.dnsCfg = acme.DNSConfig{Provider: "rfc2136", Check: true, Timeout: 10 * time.Second, Interval: 50 * time.Millisecond}
	for _, o := range options {
		o(w, &dnsOpts, &caOpts)
	}
	var err error
	if w.dns, err = lab.NewDNS(dnsOpts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.dns.Close() })
	caOpts.DNS = w.dns.Address()
	if w.ca, err = lab.NewCA(caOpts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.ca.Close() })
	w.dnsCfg.Env = w.dns.Env()
	w.dnsCfg.Resolvers = []string{w.dns.Address()}
	w.cfg.Directory, w.cfg.CAFile, w.cfg.UserAgent = w.ca.Directory(), w.ca.CAFile(), "certsync-test/1"
	w.cfg.Provider = w.newProvider
	w.cfg.DNS = func(string) (acme.DNSConfig, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.dnsCfg, nil
	}
	w.cfg.Progress = func(p cluster.Progress) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.progress = append(w.progress, p.Message)
	}
	w.account, err = cluster.NewAccount(w.ca.Directory(), "ops@example.org", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// newProvider makes lego's real rfc2136 provider, wrapped where the test wants it.
func (w *world) newProvider(name string, env map[string]string) (challenge.Provider, error) {
	if name != "rfc2136" {
		return nil, fmt.Errorf("no provider %q", name)
	}
	config := rfc2136.NewDefaultConfig()
	config.Nameserver, config.TSIGKey = env["RFC2136_NAMESERVER"], env["RFC2136_TSIG_KEY"]
	config.TSIGSecret, config.TSIGAlgorithm = env["RFC2136_TSIG_SECRET"], env["RFC2136_TSIG_ALGORITHM"]
	real, err := rfc2136.NewDNSProviderConfig(config)
	if err != nil || w.provider == nil {
		return real, err
	}
	return w.provider(real), nil
}

// client makes a client, as a process that starts does.
func (w *world) client() *acme.Client {
	w.t.Helper()
	c, err := acme.New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// registered is a client whose account is known to the CA.
func (w *world) registered() *acme.Client {
	w.t.Helper()
	c := w.client()
	account, err := c.Register(w.ctx(), w.account)
	if err != nil {
		w.t.Fatal(err)
	}
	w.account = account
	return c
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) said(part string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.progress, func(m string) bool { return strings.Contains(m, part) })
}

var orderIDs = struct {
	sync.Mutex
	n int
}{}

// order plans an order, with a fresh key.
func (w *world) order(keyType cert.KeyType, domains ...string) cluster.Order {
	w.t.Helper()
	key, err := keyType.Generate()
	if err != nil {
		w.t.Fatal(err)
	}
	encoded, err := cert.EncodeKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	orderIDs.Lock()
	defer orderIDs.Unlock()
	orderIDs.n++
	now := time.Now().UTC()
	return cluster.Order{
		ID: fmt.Sprintf("order%d", orderIDs.n), Slot: cert.Slot{Name: domains[0], Algorithm: keyType.Algorithm()}, Domains: domains,
		KeyType: keyType, Directory: w.ca.Directory(), Account: w.account.Thumbprint, Key: encoded, Step: cluster.StepPlanned,
		Node: "proxy1", Created: now, Expires: now.Add(7 * 24 * time.Hour),
	}
}

// journal is what a store would hold: every order that a checkpoint was asked with.
type journal struct {
	mu     sync.Mutex
	orders []cluster.Order
	// refuse, where set, decides on each checkpoint; n counts from 1.
	refuse func(n int, o cluster.Order) error
}

func (j *journal) checkpoint(_ context.Context, o cluster.Order) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.refuse != nil {
		if err := j.refuse(len(j.orders)+1, o); err != nil {
			return err
		}
	}
	j.orders = append(j.orders, o)
	return nil
}

// last is the order as it was recorded last, or fallback.
func (j *journal) last(fallback cluster.Order) cluster.Order {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.orders) == 0 {
		return fallback
	}
	return j.orders[len(j.orders)-1]
}

func (j *journal) steps() []cluster.Step {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []cluster.Step
	for _, o := range j.orders {
		out = append(out, o.Step)
	}
	return out
}

// checkBundle wants a bundle of the order's key and names that the CA's root stands for.
func (w *world) checkBundle(b *cert.Bundle, o cluster.Order) {
	w.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.RootPEM())
	key, err := cert.ParseKey(o.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := b.Verify(cert.Want{Domains: o.Domains, KeyType: o.KeyType, Now: time.Now(), Roots: roots}); err != nil {
		w.t.Errorf("bundle: %v", err)
	}
	if !key.Public().(interface{ Equal(x crypto.PublicKey) bool }).Equal(b.Leaf().PublicKey) {
		w.t.Error("the bundle is not for the order's key")
	}
	if cn := b.Leaf().Subject.CommonName; cn != "" {
		w.t.Errorf("the leaf has a CN, %q", cn)
	}
}

// checkClean wants no TXT value left at the CA's challenge names.
func (w *world) checkClean() {
	w.t.Helper()
	if left := w.dns.AllRecords(); len(left) > 0 {
		w.t.Errorf("TXT values left: %v", left)
	}
}

// checkQuiet wants no key, and no piece of one, in what was said.
func (w *world) checkQuiet(o cluster.Order, errs ...error) {
	w.t.Helper()
	w.mu.Lock()
	text := strings.Join(w.progress, "\n")
	w.mu.Unlock()
	for _, err := range errs {
		if err != nil {
			text += fmt.Sprintf("\n%v\n%+v\n%#v", err, err, err)
		}
	}
	for _, secret := range []string{string(o.Key), string(w.account.Key), w.dnsCfg.Env["RFC2136_TSIG_SECRET"]} {
		for _, line := range strings.Split(secret, "\n") {
			if len(line) >= 20 && !strings.HasPrefix(line, "-----") && strings.Contains(text, line) {
				w.t.Errorf("a key is in what was said: %s", text)
			}
		}
	}
}

func issueError(t *testing.T, err error) *cluster.IssueError {
	t.Helper()
	issue, ok := errors.AsType[*cluster.IssueError](err)
	if !ok {
		t.Fatalf("error %v (%T), want an IssueError", err, err)
	}
	if strings.ContainsAny(issue.Cause, "\r\n") || issue.Cause == "" {
		t.Errorf("cause %q, want one line", issue.Cause)
	}
	return issue
}
