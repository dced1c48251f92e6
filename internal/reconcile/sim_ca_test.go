package reconcile

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

const (
	simLetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"
	simPrivateCA   = "https://ca.test/directory"
	// simRequest is when a client gives a request up that nobody answers.
	simRequest = 30 * time.Second
	// simWindow is the window of the limit of exact names. The ledger counts from an attempt's begin, the CA from the
	// certificate; it does not see that difference: Let's Encrypt gives one more each 34 hours, and not 5 after 7 days.
	simWindow = 7*day - time.Hour
)

// simCA is a CA and the DNS: it hands a pending order out again for the same account, names and profile, finalises an
// order for one key only, and counts certificates as Let's Encrypt does. Its clock is right.
type simCA struct {
	s        *simulation
	signer   *certtest.CA
	roots    *x509.CertPool
	mode     simMode
	until    time.Duration // what a 429 says, or how slow it is
	urgentAt time.Time     // certificates from before are to be renewed now

	accounts map[string]string
	orders   map[string]*simOrder
	replaced map[string]bool
	made     int
	txt      map[string]int
	// counted are when certificates were given that count against the limit of exact names, all by whom.
	counted []simIssue
	// failures are when a node was refused for a slot; forbidden until when the CA forbade it to ask again.
	failures  map[simAsker][]time.Time
	forbidden map[simAsker]time.Time
}

type simIssue struct {
	names string
	node  *simNode
	at    time.Time
}

type simAsker struct {
	node *simNode
	slot cert.Slot
}

type simOrder struct {
	url, account, names, profile, replaces string
	key                                    crypto.PublicKey
	chain                                  []*x509.Certificate
	valid, dead                            bool
	expires                                time.Time
}

// simMode is what is wrong with the CA or the DNS.
type simMode string

const (
	caFine     simMode = ""
	caRefuses  simMode = "refuses"  // no connection
	caSilent   simMode = "silent"   // no answer
	caErrors   simMode = "errors"   // 500 at finalisation
	caInvalid  simMode = "invalid"  // every challenge fails, and the order with it
	caLimits   simMode = "limits"   // 429 for new orders, with a Retry-After
	caSlow     simMode = "slow"     // each request takes long
	caNoDNS    simMode = "no dns"   // the provider's API fails
	caNoWindow simMode = "no words" // renewal information fails
)

var simModes = []simMode{caRefuses, caSilent, caErrors, caInvalid, caLimits, caSlow, caNoDNS, caNoWindow}

func newSimCA(s *simulation, signer *certtest.CA) *simCA {
	return &simCA{s: s, signer: signer, roots: signer.Roots(), accounts: map[string]string{}, orders: map[string]*simOrder{}, replaced: map[string]bool{},
		txt: map[string]int{}, failures: map[simAsker][]time.Time{}, forbidden: map[simAsker]time.Time{}}
}

// forget drops what a node was told that it had no time to write down. s.mu is held.
func (c *simCA) forget(n *simNode) {
	for asker := range c.forbidden {
		if asker.node == n {
			delete(c.forbidden, asker)
		}
	}
}

// simIssuer is the CA as a process reaches it.
type simIssuer struct{ p *simProcess }

func (i simIssuer) Directory() string { return i.p.n.s.plan.directory }

// request is one that gets through to the CA, or to the DNS; do answers it, under s.mu. The promise of one issuer is
// looked at where the request leaves: a demotion has a second to cancel what is under way.
func (i simIssuer) request(ctx context.Context, step string, o cluster.Order, do func(*simCA) error) error {
	p, n, s := i.p, i.p.n, i.p.n.s
	latency := p.call("ca "+step, 5*time.Millisecond, 100*time.Millisecond)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	}
	s.mu.Lock()
	c := s.ca
	if !n.wasMasterWithin(time.Second) {
		s.violate("one issuer", "%s sends %s to the CA and is %s for %s", n.name, step, n.role, time.Since(n.changed))
	}
	s.tell("%s asks the CA: %s %s", n.name, step, o.Slot.Name)
	mode, long := c.mode, c.until
	s.mu.Unlock()
	switch mode {
	case caSilent:
		latency = simRequest
	case caSlow:
		latency += min(long, 3*time.Minute) // no call of the adapter is without a deadline
	}
	if err := p.sleep(ctx, latency); err != nil {
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	}
	s.mu.Lock()
	err := c.fault(mode, step, o)
	if err == nil {
		err = do(c)
	}
	if err != nil && step != "renewalInfo" {
		asker := simAsker{n, o.Slot}
		c.failures[asker] = append(c.failures[asker], time.Now())
		if issue, ok := errors.AsType[*cluster.IssueError](err); ok && issue.RetryAfter && !n.full {
			c.forbidden[asker] = time.Now().Add(issue.NextTry.Sub(n.clock()))
		}
		s.tell("%s: the CA answers %s: %v", n.name, step, err)
	}
	s.mu.Unlock()
	p.hooked(true)
	return err
}

// fault is what is wrong with a step, nil where nothing is.
func (c *simCA) fault(mode simMode, step string, o cluster.Order) error {
	dns := step == "present" || step == "cleanup"
	switch {
	case mode == caRefuses && !dns:
		return errors.New("dial: connection refused")
	case mode == caSilent && !dns:
		return errors.New("no answer within 30s")
	case mode == caErrors && step == "finalize":
		return &cluster.IssueError{Cause: "500 internal server error"}
	case mode == caNoDNS && dns:
		return errors.New("the provider's API: 503 service unavailable")
	case mode == caNoWindow && step == "renewalInfo":
		return errors.New("503 service unavailable")
	case mode == caInvalid && step == "challenge":
		if order := c.orders[o.URL]; order != nil {
			order.dead = true
		}
		return &cluster.IssueError{Cause: "403 no TXT record found", Dead: true}
	}
	return nil
}

// tooMany is a 429.
func (c *simCA) tooMany(n *simNode, cause string, after time.Duration) error {
	return &cluster.IssueError{Cause: "429 " + cause, NextTry: n.clock().Add(after), RetryAfter: true}
}

func (i simIssuer) Register(ctx context.Context, a cluster.Account) (cluster.Account, error) {
	err := i.request(ctx, "register", cluster.Order{}, func(c *simCA) error {
		if c.accounts[a.Thumbprint] == "" {
			c.accounts[a.Thumbprint] = "https://ca.test/account/" + a.Thumbprint
		}
		a.URL = c.accounts[a.Thumbprint]
		return nil
	})
	return a, err
}

func (i simIssuer) Obtain(ctx context.Context, a cluster.Account, o cluster.Order, checkpoint cluster.Checkpoint) (*cert.Bundle, error) {
	key, err := cert.ParseKey(o.Key)
	if err != nil {
		return nil, err
	}
	i.attempts(o)
	step := func(name string, reached cluster.Step, do func(*simCA) error) error {
		o.Step = max(o.Step, reached)
		if err := checkpoint(ctx, o); err != nil {
			return err
		}
		return i.request(ctx, name, o, do)
	}
	if o.URL == "" {
		if err := step("newOrder", cluster.StepPlanned, func(c *simCA) error { return c.newOrder(i.p, &o) }); err != nil {
			return nil, err
		}
	}
	if o.Step < cluster.StepFinalizing {
		if err := step("authorizations", cluster.StepOrdered, func(c *simCA) error { return c.known(o) }); err != nil {
			return nil, err
		}
		value := "txt of " + o.URL
		o.Records = []cluster.Record{{Domain: "example.org", Token: o.URL, Value: value, Round: len(o.Records)}}
		if err := step("present", cluster.StepPresenting, func(c *simCA) error { c.txt[value]++; return nil }); err != nil {
			return nil, err
		}
		if err := step("challenge", cluster.StepPresenting, func(c *simCA) error { return c.validate(o) }); err != nil {
			return nil, err
		}
	}
	if err := step("finalize", cluster.StepFinalizing, func(c *simCA) error { return c.finalize(i.p, o, key.Public()) }); err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	if err := step("download", cluster.StepDownloading, func(c *simCA) error {
		chain = c.orders[o.URL].chain
		return c.known(o)
	}); err != nil {
		return nil, err
	}
	return cert.New(key, chain...)
}

// attempts looks at what an attempt must respect: the CA's Retry-After, and a back-off.
func (i simIssuer) attempts(o cluster.Order) {
	n, s := i.p.n, i.p.n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	asker := simAsker{n, o.Slot}
	if until := s.ca.forbidden[asker]; time.Now().Before(until) && n.soundClock() {
		s.violate("retry after", "%s tries %s again %s before the CA allowed it", n.name, o.Slot.Name, time.Until(until))
	}
	recent := 0
	for _, t := range s.ca.failures[asker] {
		if time.Since(t) < time.Hour {
			recent++
		}
	}
	if most := s.plan.mostFailures(); recent > most && !i.p.byHand {
		s.violate("no burst", "%s tries %s again after %d failures in an hour", n.name, o.Slot.Name, recent)
	}
}

// mostFailures is how many failures of a slot on a node lie in an hour at most: after 0, 1, 11 minutes, and then, where
// the certificate expires or has, every 15; what lives an hour has a back-off of its own measure.
func (p simPlan) mostFailures() int {
	if p.lifetime < 24*time.Hour {
		return 70
	}
	return 6
}

// soundClock tells that the node's clock was never set in the schedule. s.mu is held.
func (n *simNode) soundClock() bool { return !n.s.clocked }

// known is the error of an order that is over. s.mu is held.
func (c *simCA) known(o cluster.Order) error {
	order := c.orders[o.URL]
	if order == nil || order.dead || time.Now().After(order.expires) {
		return &cluster.IssueError{Cause: "404 no such order", Dead: true}
	}
	return nil
}

// newOrder answers a new order. s.mu is held.
func (c *simCA) newOrder(p *simProcess, o *cluster.Order) error {
	n := p.n
	if c.mode == caLimits {
		return c.tooMany(n, "too many new orders", c.until)
	}
	c.s.ordersAgain(p, *o)
	if c.replaced[o.Replaces] {
		o.Replaces = "" // 409 alreadyReplaced: the adapter sends it again without
	}
	url := ""
	for _, have := range c.orders { // there is one at most
		if have.account == o.Account && have.names == o.Identifiers() && have.profile == o.Profile && have.key == nil && !have.dead && time.Now().Before(have.expires) {
			url = have.url
		}
	}
	if url == "" {
		if err := c.exactNames(n, *o); err != nil {
			return err
		}
		c.made++
		url = fmt.Sprintf("https://ca.test/order/%d", c.made)
		c.orders[url] = &simOrder{url: url, account: o.Account, names: o.Identifiers(), profile: o.Profile, replaces: o.Replaces, expires: time.Now().Add(7 * day)}
	}
	o.URL, o.Expires = url, c.orders[url].expires.Add(n.skew)
	return nil
}

// exactNames is Let's Encrypt's limit of 5 certificates of exactly the same names in 7 days. s.mu is held.
func (c *simCA) exactNames(n *simNode, o cluster.Order) error {
	if c.s.plan.directory != simLetsEncrypt || o.Replaces != "" && c.s.plan.ari {
		return nil
	}
	var recent []simIssue
	own := 0
	for _, issue := range c.counted {
		if issue.names == o.Identifiers() && time.Since(issue.at) < simWindow {
			recent = append(recent, issue)
			if issue.node == n {
				own++
			}
		}
	}
	if own >= 5 && n.soundClock() {
		c.s.violate("budget", "%s orders %s, and got %d certificates of these names in 7 days already", n.name, o.Slot.Name, own)
	}
	if len(recent) >= 5 {
		return c.tooMany(n, "too many certificates of these names", time.Until(recent[len(recent)-5].at.Add(simWindow)))
	}
	return nil
}

// validate answers a challenge. s.mu is held.
func (c *simCA) validate(o cluster.Order) error {
	if err := c.known(o); err != nil {
		return err
	}
	if c.txt[o.Records[0].Value] == 0 {
		return &cluster.IssueError{Cause: "403 no TXT record found", Dead: true}
	}
	c.orders[o.URL].valid = true
	return nil
}

// finalize answers a CSR. s.mu is held.
func (c *simCA) finalize(p *simProcess, o cluster.Order, key crypto.PublicKey) error {
	if err := c.known(o); err != nil {
		return err
	}
	order := c.orders[o.URL]
	if order.key != nil {
		if same, ok := order.key.(interface{ Equal(crypto.PublicKey) bool }); ok && same.Equal(key) {
			return nil
		}
		return &cluster.IssueError{Cause: "403 the order was finalised with another key", Dead: true}
	}
	if !order.valid {
		return &cluster.IssueError{Cause: "403 the order is not ready", Dead: true}
	}
	c.s.finalizes(p, o)
	now := time.Now()
	chain, err := c.signer.Sign(key, certtest.Options{Domains: o.Domains, NotBefore: now, NotAfter: now.Add(c.s.plan.lifetime), Chain: true})
	if err != nil {
		return err
	}
	order.key, order.chain = key, chain
	if order.replaces != "" {
		c.replaced[order.replaces] = true
	}
	if order.replaces == "" || !c.s.plan.ari {
		c.counted = append(c.counted, simIssue{o.Identifiers(), p.n, now})
	}
	return nil
}

func (i simIssuer) RenewalInfo(ctx context.Context, id string) (cluster.Suggestion, error) {
	s := i.p.n.s
	if !s.plan.ari {
		i.p.alive()
		return cluster.Suggestion{}, fmt.Errorf("renewal information: %w", errors.ErrUnsupported)
	}
	var out cluster.Suggestion
	err := i.request(ctx, "renewalInfo", cluster.Order{}, func(c *simCA) error {
		for _, order := range c.orders {
			if order.chain == nil {
				continue
			}
			if leaf := order.chain[0]; strings.HasSuffix(id, simCertID(leaf)) {
				out = c.window(leaf)
				return nil
			}
		}
		return &cluster.IssueError{Cause: "404 no such certificate", Dead: true}
	})
	return out, err
}

// window is what the CA suggests for a certificate: when two thirds of its life are over, or now. s.mu is held.
func (c *simCA) window(leaf *x509.Certificate) cluster.Suggestion {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	start := leaf.NotBefore.Add(life * 2 / 3)
	out := cluster.Suggestion{Start: start, End: start.Add(life / 50), RetryAfter: min(day, life/8)}
	if leaf.NotBefore.Before(c.urgentAt) {
		out.Start, out.End = c.urgentAt.Add(-2*time.Hour), c.urgentAt.Add(-time.Hour)
	}
	return out
}

// simCertID is the part of a certificate's identifier that tells it from others of the same CA (RFC 9773 section 4.1).
func simCertID(leaf *x509.Certificate) string {
	return "." + base64.RawURLEncoding.EncodeToString(leaf.SerialNumber.Bytes())
}

func (i simIssuer) CleanUp(ctx context.Context, _ cluster.Account, o cluster.Order) (cluster.Order, error) {
	err := i.request(ctx, "cleanup", o, func(c *simCA) error {
		records := make([]cluster.Record, 0, len(o.Records))
		for _, r := range o.Records {
			delete(c.txt, r.Value)
			r.Removed = true
			records = append(records, r)
		}
		o.Records = records
		return nil
	})
	return o, err
}
