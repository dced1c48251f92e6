package acme

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"
	"github.com/miekg/dns"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

const (
	// firstPoll is the pause before the second look at an order or authorization; it doubles up to lastPoll. The CA's
	// Retry-After goes before, up to maxPoll.
	firstPoll = 5 * time.Millisecond
	lastPoll  = 5 * time.Second
	maxPoll   = 5 * time.Minute
	// pollLimit is how long the CA may take for one authorization or order before the work is put off; the order stays.
	pollLimit = 15 * time.Minute
	// maxReadFailures is how many times in a row a look at an order may fail for the network's or the server's sake.
	maxReadFailures = 3
	// sideBySide bounds the authorizations of one order that are worked on at once.
	sideBySide = 8
)

// work is one order being driven.
type work struct {
	client     *Client
	session    *session
	cfg        DNSConfig
	thumbprint string
	key        crypto.Signer
	checkpoint cluster.Checkpoint

	mu        sync.Mutex
	order     cluster.Order
	refused   error                 // the checkpoint's error: nothing may be begun after it
	published map[string]*published // the values of this work; those of earlier drivers are in the order's records only
	early     int                   // finalisations that came before the order was ready
}

// published is how far the publication of a value got.
type published struct {
	begun bool
	// hung: the call did not come back. To remove the value now could come before it is published; the order's record
	// keeps it for later.
	hung bool
}

// removable tells that a value may be in the DNS, and that nothing is about to put it there.
func (p *published) removable() bool { return p == nil || p.begun && !p.hung }

// Obtain drives an order from its step to the certificate: it plans and sends newOrder where order.URL is not known,
// else it looks the order up and goes on from where the CA says that it is. checkpoint is asked before each step that
// changes something; its error ends the work before the step is begun. The TXT values are removed one by one at the
// end, however it ends, and checkpoint is told; only where another node took the order over (ErrNotMaster or
// ErrOrderTaken from checkpoint, or as ctx's cause) they are left to it.
//
// An error is a *cluster.IssueError where the CA or the DNS provider is its reason. The bundle has been checked
// against the order's key, names and key type.
func (c *Client) Obtain(ctx context.Context, account cluster.Account, order cluster.Order, checkpoint cluster.Checkpoint) (*cert.Bundle, error) {
	w, err := c.takeUp(ctx, account, order, checkpoint)
	if err != nil {
		return nil, err
	}
	bundle, err := w.run(ctx)
	left := w.cleanUp(ctx, err)
	if err != nil {
		return nil, mention(err, left)
	}
	return bundle, nil
}

// takeUp checks what belongs together and opens the session. It changes nothing.
func (c *Client) takeUp(ctx context.Context, account cluster.Account, order cluster.Order, checkpoint cluster.Checkpoint) (*work, error) {
	if order.Directory != c.cfg.Directory || account.Directory != c.cfg.Directory {
		return nil, fmt.Errorf("order %s: order and account belong to %s and %s, not to %s", order.ID, order.Directory, account.Directory, c.cfg.Directory)
	}
	if account.URL == "" {
		return nil, fmt.Errorf("order %s: the account is not registered", order.ID)
	}
	accountSigner, thumbprint, err := accountKey(account)
	if err != nil {
		return nil, fmt.Errorf("order %s: %w", order.ID, err)
	}
	if order.Account != "" && order.Account != thumbprint {
		return nil, fmt.Errorf("order %s: it belongs to the account with the thumbprint %s, not to %s", order.ID, order.Account, thumbprint)
	}
	key, err := cert.ParseKey(order.Key)
	if err != nil {
		return nil, fmt.Errorf("order %s: key: %w", order.ID, err)
	}
	if have := cert.KeyTypeOf(key.Public()); have != order.KeyType {
		return nil, fmt.Errorf("order %s: key: %w: it is %s, want %s", order.ID, cert.ErrKeyType, have, order.KeyType)
	}
	order.Domains = cert.NormalDomains(order.Domains)
	if len(order.Domains) == 0 {
		return nil, fmt.Errorf("order %s: no domains", order.ID)
	}
	cfg, err := c.cfg.DNS(order.Slot.Name)
	if err != nil {
		return nil, fmt.Errorf("order %s: dns: %w", order.ID, err)
	}
	s, err := c.open(ctx, account.URL, accountSigner)
	if err != nil {
		return nil, err
	}
	order.Records = slices.Clone(order.Records)
	return &work{client: c, session: s, cfg: cfg.withDefaults(), thumbprint: thumbprint, key: key, checkpoint: checkpoint,
		order: order, published: map[string]*published{}}, nil
}

// run is the order's life as the CA tells it (RFC 8555 section 7.1.6), whatever step it was taken up at.
func (w *work) run(ctx context.Context) (*cert.Bundle, error) {
	remote, err := w.find(ctx)
	for err == nil {
		switch remote.Status {
		case acme.StatusPending:
			remote, err = w.authorize(ctx, remote)
		case acme.StatusReady:
			remote, err = w.finalize(ctx, remote)
		case acme.StatusProcessing:
			remote, err = w.await(ctx, remote, acme.StatusProcessing)
		case acme.StatusValid:
			return w.download(ctx, remote)
		default:
			err = w.ended(remote)
		}
	}
	return nil, err
}

// save records a step that is about to be begun. Steps only advance.
func (w *work) save(ctx context.Context, step cluster.Step, change func(*cluster.Order)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refused != nil {
		return w.refused
	}
	if ctx.Err() != nil {
		return fmt.Errorf("order %s: %s: %w", w.order.ID, step, contextError(ctx))
	}
	if change != nil {
		change(&w.order)
	}
	w.order.Step = max(w.order.Step, step)
	if err := w.checkpoint(ctx, w.snapshot()); err != nil {
		w.refused = fmt.Errorf("order %s: before it is %s: %w", w.order.ID, step, err)
	}
	return w.refused
}

// snapshot is the order as it is now, sharing nothing that changes; w.mu is held.
func (w *work) snapshot() cluster.Order {
	o := w.order
	o.Domains, o.Records = slices.Clone(o.Domains), slices.Clone(o.Records)
	return o
}

// find looks the order up at the CA, or makes it.
func (w *work) find(ctx context.Context) (acme.Order, error) {
	if w.order.URL == "" {
		return w.create(ctx)
	}
	w.client.say(w.order.Slot, "taking up order %s (%s)", w.order.URL, w.order.Step)
	remote, err := w.get(ctx)
	if err != nil {
		if issue, ok := errors.AsType[*cluster.IssueError](err); ok && permanent(err) {
			issue.Dead = true
		}
		return acme.Order{}, err
	}
	open := remote.Status == acme.StatusPending || remote.Status == acme.StatusReady
	if expires, err := time.Parse(time.RFC3339, remote.Expires); err == nil && open && w.client.cfg.Now().After(expires) {
		return acme.Order{}, dead(issueError(fmt.Sprintf("order %s: it expired at %s", w.order.URL, remote.Expires), nil, ""))
	}
	return remote, nil
}

// get reads the order.
func (w *work) get(ctx context.Context) (acme.Order, error) {
	remote, err := call(ctx, w.session, "order "+w.order.URL, w.order.URL, func() (acme.ExtendedOrder, error) {
		return w.session.core.Orders.Get(w.order.URL)
	})
	return remote.Order, err
}

// create sends newOrder. Let's Encrypt answers with the order that is open already for the same names.
func (w *work) create(ctx context.Context) (acme.Order, error) {
	if err := w.session.dir.checkProfile(w.order.Profile); err != nil {
		return acme.Order{}, err
	}
	// A provider that cannot be made (an unknown name, credentials that are missing) would cost an order for nothing.
	first := dns.CanonicalName("_acme-challenge." + strings.TrimPrefix(w.order.Domains[0], "*."))
	if _, err := w.client.presenterFor(ctx, w.order.Slot.Name, first, w.cfg); err != nil {
		return acme.Order{}, err
	}
	if err := w.save(ctx, cluster.StepPlanned, w.withoutReplaces()); err != nil {
		return acme.Order{}, err
	}
	w.client.say(w.order.Slot, "ordering %s for %s", w.order.KeyType, strings.Join(w.order.Domains, " "))
	remote, err := w.newOrder(ctx)
	if err != nil && w.order.Replaces != "" && refusedReplacement(err) {
		w.client.say(w.order.Slot, "the CA refuses the order as a replacement (%v); ordering without", err)
		if err := w.save(ctx, cluster.StepPlanned, func(o *cluster.Order) { o.Replaces = "" }); err != nil {
			return acme.Order{}, err
		}
		remote, err = w.newOrder(ctx)
	}
	if err != nil {
		if issue, ok := errors.AsType[*cluster.IssueError](err); ok && permanent(err) {
			issue.Dead = true
		}
		return acme.Order{}, err
	}
	failpoint.Hit("acme.ordered")
	if remote.Location == "" {
		return acme.Order{}, issueError("new order: the CA gave no order URL", nil, "")
	}
	// lego repeats an order without "replaces" by itself where the CA says alreadyReplaced.
	replaced := w.session.http.replaced.Load()
	return remote.Order, w.save(ctx, cluster.StepOrdered, func(o *cluster.Order) {
		o.URL = remote.Location
		if expires, err := time.Parse(time.RFC3339, remote.Expires); err == nil {
			o.Expires = expires.UTC()
		}
		if replaced {
			o.Replaces = ""
		}
	})
}

// withoutReplaces takes "replaces" out of an order to a CA that has no renewal information: the field is that extension's
// (RFC 9773 section 5), and a CA may refuse what it does not know. It gives nil where there is nothing to take out.
func (w *work) withoutReplaces() func(*cluster.Order) {
	if w.order.Replaces == "" || w.session.dir.RenewalInfo != "" {
		return nil
	}
	return func(o *cluster.Order) { o.Replaces = "" }
}

func (w *work) newOrder(ctx context.Context) (acme.ExtendedOrder, error) {
	options := &api.OrderOptions{Profile: w.order.Profile, ReplacesCertID: w.order.Replaces}
	return call(ctx, w.session, "new order", w.session.dir.NewOrderURL, func() (acme.ExtendedOrder, error) {
		return w.session.core.Orders.NewWithOptions(w.order.Domains, options)
	})
}

// refusedReplacement tells that the CA may mind "replaces" and not the order: it knows the predecessor as replaced, of
// another account, or not at all. A wrong "replaces" must not keep a certificate from being renewed.
func refusedReplacement(err error) bool {
	p, ok := errors.AsType[*acme.ProblemDetails](err)
	return ok && (!passing[p.Type] || p.Type == problemPrefix+"serverInternal") && p.HTTPStatus != http.StatusTooManyRequests
}

// finalize sends the certificate request.
func (w *work) finalize(ctx context.Context, remote acme.Order) (acme.Order, error) {
	if err := w.save(ctx, cluster.StepFinalizing, nil); err != nil {
		return acme.Order{}, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: w.order.Domains}, w.key)
	if err != nil {
		return acme.Order{}, fmt.Errorf("order %s: certificate request: %w", w.order.ID, err)
	}
	w.client.say(w.order.Slot, "every name is proven; sending the certificate request")
	op := "finalise order " + w.order.URL
	done, err := call(ctx, w.session, op, remote.Finalize, func() (acme.ExtendedOrder, error) {
		return w.session.core.Orders.UpdateForCSR(remote.Finalize, request)
	})
	if err == nil {
		failpoint.Hit("acme.finalized")
		done.Finalize = remote.Finalize
		return done.Order, nil
	}
	if w.early++; problemType(err) == orderNotReady && w.early <= maxReadFailures {
		return w.await(ctx, remote, acme.StatusPending)
	}
	if issue, ok := errors.AsType[*cluster.IssueError](err); ok {
		// lego says "invalid order" where the answer was an order with that status.
		issue.Dead = permanent(err) || strings.Contains(issue.Cause, "invalid order")
	}
	return acme.Order{}, err
}

// await polls the order while it has the given status.
func (w *work) await(ctx context.Context, remote acme.Order, status string) (acme.Order, error) {
	wait := w.session.http.result(remote.Finalize).retryAfter
	err := w.session.poll(ctx, w.order.URL, wait, func() (bool, error) {
		got, err := w.get(ctx)
		if err != nil {
			return false, err
		}
		remote = got
		return got.Status != status, nil
	})
	return remote, err
}

// poll calls look until it says that it is done: after the CA's Retry-After for url, where it sent one, else after
// pauses that double. wait is a Retry-After that holds before the first look.
func (s *session) poll(ctx context.Context, url, wait string, look func() (done bool, err error)) error {
	now := s.client.cfg.Now
	limit := time.Now().Add(pollLimit)
	failures := 0
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		if err := sleep(ctx, pollPause(wait, 0, now())); err != nil {
			return fmt.Errorf("poll %s: %w", url, err)
		}
		done, err := look()
		if err == nil && done {
			return nil
		}
		if err != nil {
			if failures++; failures > maxReadFailures || !transient(err) {
				return err
			}
		} else {
			failures = 0
		}
		if time.Now().After(limit) {
			return issueError(fmt.Sprintf("poll %s: not done after %s", url, pollLimit), nil, "")
		}
		wait = ""
		if err := sleep(ctx, pollPause(s.http.result(url).retryAfter, pause, now())); err != nil {
			return fmt.Errorf("poll %s: %w", url, err)
		}
	}
}

// pollPause is the CA's Retry-After, bounded, or fallback.
func pollPause(retryAfter string, fallback time.Duration, now time.Time) time.Duration {
	if at := parseRetryAfter(retryAfter, now); !at.IsZero() {
		return min(at.Sub(now), maxPoll)
	}
	return fallback
}

// download fetches the certificate and checks it: it is for the order's key and names, or it is not kept.
func (w *work) download(ctx context.Context, remote acme.Order) (*cert.Bundle, error) {
	if err := w.save(ctx, cluster.StepDownloading, nil); err != nil {
		return nil, err
	}
	op := "download certificate of order " + w.order.URL
	text, err := call(ctx, w.session, op, remote.Certificate, func() ([]byte, error) {
		text, _, err := w.session.core.Certificates.Get(remote.Certificate, true)
		return text, err
	})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("acme.downloaded")
	chain, err := parseChain(text)
	if err != nil {
		return nil, issueError(op+": "+err.Error(), err, "")
	}
	bundle, err := cert.New(w.key, chain...)
	if errors.Is(err, cert.ErrKeyMismatch) {
		return nil, dead(issueError(fmt.Sprintf("order %s was finalised with another key", w.order.URL), err, ""))
	}
	if err == nil {
		err = bundle.Verify(cert.Want{Domains: w.order.Domains, KeyType: w.order.KeyType})
	}
	if err != nil {
		return nil, dead(issueError(fmt.Sprintf("%s: the CA issued what was not asked for: %v", op, err), err, ""))
	}
	return bundle, nil
}

// parseChain reads application/pem-certificate-chain (RFC 8555 section 9.1).
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: a block of type %.40q", cert.ErrJunk, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain, text = append(chain, c), rest
	}
	if len(chain) == 0 || len(bytes.TrimSpace(text)) > 0 {
		return nil, fmt.Errorf("%w: what was sent is not a chain of certificates", cert.ErrJunk)
	}
	return chain, nil
}

// ended is the error of an order that cannot go on.
func (w *work) ended(remote acme.Order) error {
	cause := fmt.Sprintf("order %s: the CA says that it is %.40q", w.order.URL, remote.Status)
	if remote.Error == nil {
		return dead(issueError(cause, nil, ""))
	}
	return dead(issueError(cause+": "+describeProblem(remote.Error), remote.Error, problemHint(remote.Error)))
}

func dead(err *cluster.IssueError) *cluster.IssueError {
	err.Dead = true
	return err
}
