package reconcile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// fakeCA is a CA with state, as Let's Encrypt's: a pending order is handed out again for the same account, names and
// profile; a finalised one has one key for good.
type fakeCA struct {
	w         *world
	signer    *certtest.CA
	directory string

	mu            sync.Mutex
	accounts      map[string]string
	orders        map[string]*caOrder
	txt           map[string]bool
	keys          [][]byte
	newOrders     int
	issued        int
	registrations int
	running, most int
	perNames      map[string]int
	fault         func(ctx context.Context, step string, o cluster.Order) error
	cleanErr      error
	// renewals answers for renewal information; nil: the CA gives none. asked are the identifiers that it was asked for.
	renewals func(ctx context.Context, id string) (cluster.Suggestion, error)
	asked    []string
	replaced []string // what the new orders said that they replace
	revoked  []revoked
	lifetime time.Duration // zero: 90 days
	behind   time.Duration // its clock, to the world's
	tells    bool          // its answers tell its time
}

// revoked is a certificate that the CA has revoked.
type revoked struct {
	fingerprint cert.Fingerprint
	reason      cluster.Reason
	account     string // who signed: the account, "" for the certificate's key
}

type caOrder struct {
	url, account, names, profile string
	key                          crypto.PublicKey
	chain                        []*x509.Certificate
}

func newCA(t tb, w *world) *fakeCA {
	return &fakeCA{w: w, signer: certtest.NewCA(t), directory: "https://ca.test/directory", accounts: map[string]string{},
		orders: map[string]*caOrder{}, txt: map[string]bool{}, perNames: map[string]int{}}
}

func (c *fakeCA) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

func (c *fakeCA) secrets() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys
}

func (c *fakeCA) counts() (newOrders, issued, registrations int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newOrders, c.issued, c.registrations
}

func (c *fakeCA) left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.txt)
}

// issuer is the CA as one host reaches it.
type issuer struct {
	ca   *fakeCA
	host *host
}

func (i *issuer) Directory() string { return i.ca.directory }

// reach is a request to the CA, or to the DNS: a dead process makes none.
func (i *issuer) reach(ctx context.Context, step string, o cluster.Order) error {
	if err := i.host.effect(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	}
	i.host.mu.Lock()
	role := i.host.role
	i.host.mu.Unlock()
	if role != cluster.Master {
		i.ca.w.Errorf("%s sends %q to the CA and is %s", i.host.name, step, role)
	}
	i.ca.mu.Lock()
	fault := i.ca.fault
	i.ca.mu.Unlock()
	if fault != nil {
		return fault(ctx, step, o)
	}
	return nil
}

func (i *issuer) Register(ctx context.Context, a cluster.Account) (cluster.Account, error) {
	if err := i.reach(ctx, "register", cluster.Order{}); err != nil {
		return a, err
	}
	found := false
	for _, held := range i.host.records().Accounts {
		found = found || held.Thumbprint == a.Thumbprint && bytes.Equal(held.Key, a.Key)
	}
	if !found {
		i.ca.w.Errorf("account %s is registered before its key is on disk", a.Thumbprint)
	}
	i.ca.mu.Lock()
	defer i.ca.mu.Unlock()
	i.ca.keys = append(i.ca.keys, a.Key)
	if i.ca.accounts[a.Thumbprint] == "" {
		i.ca.registrations++
		i.ca.accounts[a.Thumbprint] = "https://ca.test/account/" + a.Thumbprint
	}
	a.URL = i.ca.accounts[a.Thumbprint]
	return a, nil
}

func (i *issuer) Obtain(ctx context.Context, a cluster.Account, o cluster.Order, checkpoint cluster.Checkpoint) (*cert.Bundle, error) {
	c := i.ca
	key, err := cert.ParseKey(o.Key)
	if err != nil {
		return nil, err
	}
	defer i.enter(o)()
	if a.URL == "" || a.Thumbprint != o.Account {
		c.w.Errorf("order %s of account %s is driven with account %s (%s)", o.ID, o.Account, a.Thumbprint, a.URL)
	}
	reach := func(step string, next cluster.Step) error {
		o.Step = max(o.Step, next)
		if err := checkpoint(ctx, o); err != nil {
			return err
		}
		return i.reach(ctx, step, o)
	}
	if o.URL == "" {
		if err := reach("newOrder", cluster.StepPlanned); err != nil {
			return nil, err
		}
		o.URL, o.Expires = c.newOrder(o), c.w.Now().Add(7*day)
		if err := reach("authorizations", cluster.StepOrdered); err != nil {
			return nil, err
		}
	}
	if o.Step < cluster.StepFinalizing {
		if err := i.present(&o, reach); err != nil {
			return nil, err
		}
	}
	defer func() { i.removeTXT(&o) }()
	if err := reach("finalize", cluster.StepFinalizing); err != nil {
		return nil, err
	}
	if err := c.finalize(o, key.Public()); err != nil {
		return nil, err
	}
	if err := reach("download", cluster.StepDownloading); err != nil {
		return nil, err
	}
	c.mu.Lock()
	chain := c.orders[o.URL].chain
	c.mu.Unlock()
	return cert.New(key, chain...)
}

// Ahead implements Clock.
func (i *issuer) Ahead() (time.Duration, bool) {
	theirs := i.ca.w.Now().Add(-i.ca.behind)
	ours := i.host.clock()
	i.host.mu.Lock()
	defer i.host.mu.Unlock()
	return theirs.Sub(ours), i.host.heard
}

func (i *issuer) AskTime(ctx context.Context) error {
	i.ca.mu.Lock()
	tells := i.ca.tells
	i.ca.mu.Unlock()
	if !tells {
		return errors.New("the CA's answer does not tell its time")
	}
	if err := i.reach(ctx, "time", cluster.Order{}); err != nil {
		return err
	}
	i.host.mu.Lock()
	defer i.host.mu.Unlock()
	i.host.heard = true
	return nil
}

func (i *issuer) RenewalInfo(ctx context.Context, id string) (cluster.Suggestion, error) {
	i.ca.mu.Lock()
	answer := i.ca.renewals
	i.ca.mu.Unlock()
	if answer == nil {
		return cluster.Suggestion{}, fmt.Errorf("renewal information: %w", errors.ErrUnsupported)
	}
	if err := i.reach(ctx, "renewalInfo", cluster.Order{}); err != nil {
		return cluster.Suggestion{}, err
	}
	i.ca.set(func() { i.ca.asked = append(i.ca.asked, id) })
	return answer(ctx, id)
}

// Revoke implements Revoker. What is revoked a tombstone marks before, and nobody who can be asked serves it.
func (i *issuer) Revoke(ctx context.Context, a cluster.Account, b *cert.Bundle, reason cluster.Reason) error {
	if err := i.reach(ctx, "revoke", cluster.Order{}); err != nil {
		return err
	}
	if !cluster.Revoked(i.host.records().Tombstones, b.Fingerprint()) {
		i.ca.w.Errorf("%s revokes %s before it has a tombstone", i.host.name, b.Fingerprint().Short())
	}
	i.ca.mu.Lock()
	defer i.ca.mu.Unlock()
	i.ca.revoked = append(i.ca.revoked, revoked{b.Fingerprint(), reason, a.Thumbprint})
	return nil
}

// enter notes that an order is driven: never two of one set of names at a time.
func (i *issuer) enter(o cluster.Order) func() {
	c := i.ca
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = append(c.keys, o.Key)
	c.perNames[o.Identifiers()]++
	c.running++
	c.most = max(c.most, c.running)
	if n := c.perNames[o.Identifiers()]; n > 1 {
		c.w.Errorf("%d orders of [%s] are driven at a time", n, o.Identifiers())
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running--
		c.perNames[o.Identifiers()]--
	}
}

func (i *issuer) present(o *cluster.Order, reach func(string, cluster.Step) error) error {
	value := "txt-of-" + o.URL
	o.Records = []cluster.Record{{Domain: "example.org", Token: "t", Value: value}}
	if err := reach("present", cluster.StepPresenting); err != nil {
		return err
	}
	i.ca.set(func() { i.ca.txt[value] = true })
	return reach("challenge", cluster.StepPresenting)
}

// removeTXT is the adapter's own cleaning, which a killed process does not come to.
func (i *issuer) removeTXT(o *cluster.Order) {
	if i.host.effect() != nil {
		return
	}
	for _, r := range o.Records {
		i.ca.set(func() { delete(i.ca.txt, r.Value) })
	}
}

func (c *fakeCA) newOrder(o cluster.Order) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, have := range c.orders {
		if have.account == o.Account && have.names == o.Identifiers() && have.profile == o.Profile && have.key == nil {
			return have.url
		}
	}
	c.newOrders++
	c.replaced = append(c.replaced, o.Replaces)
	url := fmt.Sprintf("https://ca.test/order/%d", c.newOrders)
	c.orders[url] = &caOrder{url: url, account: o.Account, names: o.Identifiers(), profile: o.Profile}
	return url
}

func (c *fakeCA) finalize(o cluster.Order, key crypto.PublicKey) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	order := c.orders[o.URL]
	if order == nil {
		return &cluster.IssueError{Cause: "no such order", Dead: true}
	}
	if order.key != nil {
		if eq, ok := order.key.(interface{ Equal(crypto.PublicKey) bool }); ok && eq.Equal(key) {
			return nil
		}
		return &cluster.IssueError{Cause: "the order was finalised with another key", Dead: true}
	}
	chain, err := c.signer.Sign(key, certtestOptions(c.w, o))
	if err != nil {
		return err
	}
	order.key, order.chain = key, chain
	c.issued++
	return nil
}

func (i *issuer) CleanUp(ctx context.Context, a cluster.Account, o cluster.Order) (cluster.Order, error) {
	if err := i.reach(ctx, "cleanup", o); err != nil {
		return o, err
	}
	if !o.Lapsed(i.ca.w.Now()) {
		i.ca.w.Errorf("TXT values of the open order %s are removed", o.ID)
	}
	if i.ca.cleanErr != nil {
		return o, i.ca.cleanErr
	}
	records := make([]cluster.Record, 0, len(o.Records))
	for _, r := range o.Records {
		i.ca.set(func() { delete(i.ca.txt, r.Value) })
		r.Removed = true
		records = append(records, r)
	}
	o.Records = records
	return o, nil
}

// failAt makes one step of every order fail.
func failAt(step string, err error) func(context.Context, string, cluster.Order) error {
	return func(_ context.Context, at string, _ cluster.Order) error {
		if at == step {
			return err
		}
		return nil
	}
}

// hangAt makes one step of the orders of one name hang until the context ends.
func hangAt(step, name string) func(context.Context, string, cluster.Order) error {
	return func(ctx context.Context, at string, o cluster.Order) error {
		if at != step || o.Slot.Name != name {
			return nil
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
}

var errOutage = errors.New("the CA is out of order")

func retryAfter(w *world, d time.Duration) error {
	return &cluster.IssueError{Cause: "too many requests", NextTry: w.Now().Add(d), RetryAfter: true}
}
