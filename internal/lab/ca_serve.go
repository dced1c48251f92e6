package lab

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/acme"
	"github.com/letsencrypt/pebble/v2/core"
)

const (
	statusPending = acme.StatusPending
	statusReady   = acme.StatusReady
)

// Endpoint is what a request to the CA is about.
type Endpoint string

// The endpoints of the CA, by their names in RFC 8555's directory where they stand there.
const (
	EndpointDirectory     Endpoint = "directory"
	EndpointNewNonce      Endpoint = "newNonce"
	EndpointNewAccount    Endpoint = "newAccount"
	EndpointNewOrder      Endpoint = "newOrder"
	EndpointAccount       Endpoint = "account"
	EndpointOrder         Endpoint = "order"
	EndpointFinalize      Endpoint = "finalize"
	EndpointAuthorization Endpoint = "authorization"
	EndpointChallenge     Endpoint = "challenge"
	EndpointCertificate   Endpoint = "certificate"
	EndpointRevokeCert    Endpoint = "revokeCert"
	EndpointRenewalInfo   Endpoint = "renewalInfo"
	EndpointOther         Endpoint = "other"
)

// pebblePaths are Pebble's own; they differ from Let's Encrypt's on purpose.
var pebblePaths = []struct {
	prefix   string
	endpoint Endpoint
}{
	{"/dir", EndpointDirectory}, {"/nonce-plz", EndpointNewNonce}, {"/sign-me-up", EndpointNewAccount}, {"/order-plz", EndpointNewOrder},
	{"/my-account/", EndpointAccount}, {"/my-order/", EndpointOrder}, {"/finalize-order/", EndpointFinalize}, {"/authZ/", EndpointAuthorization},
	{"/chalZ/", EndpointChallenge}, {"/certZ/", EndpointCertificate}, {"/revoke-cert", EndpointRevokeCert},
	{"/draft-ietf-acme-ari-03/renewalInfo", EndpointRenewalInfo},
}

// EndpointOf names what r asks.
func EndpointOf(r *http.Request) Endpoint {
	for _, p := range pebblePaths {
		if strings.HasPrefix(r.URL.Path, p.prefix) {
			return p.endpoint
		}
	}
	return EndpointOther
}

// Problem answers with a problem document (RFC 8555 section 6.7); kind is the error's name without the URN's prefix.
func Problem(w http.ResponseWriter, status int, kind, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status})
}

// serve lets the hook have the request, and else Pebble, one at a time.
func (c *CA) serve(w http.ResponseWriter, r *http.Request) {
	endpoint := EndpointOf(r)
	c.mu.Lock()
	c.counts.Requests[endpoint]++
	hook := c.hook
	c.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if hook != nil && hook(w, r) {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	ctx, cancel := context.WithTimeout(r.Context(), caTurn)
	defer cancel()
	select {
	case <-c.turn:
	case <-ctx.Done():
		Problem(w, http.StatusServiceUnavailable, "serverInternal", "the lab's CA is busy")
		return
	}
	c.process(ctx, endpoint, r, body).send(w)
}

// process lets Pebble answer; it has the turn and gives it back, also when Pebble panics.
func (c *CA) process(ctx context.Context, endpoint Endpoint, r *http.Request, body []byte) *caReply {
	defer func() { c.turn <- struct{}{} }()
	reply := newCAReply()
	c.handler.ServeHTTP(reply, r)
	c.settle(ctx, endpoint, r, readJWS(body), reply)
	if c.opts.TokensOnly && endpoint == EndpointAuthorization {
		reply.tokensOnly()
	}
	return reply
}

// settle brings the books, and Pebble's background work, in order after a request; it has the turn.
func (c *CA) settle(ctx context.Context, endpoint Endpoint, r *http.Request, jws caJWS, reply *caReply) {
	switch {
	case endpoint == EndpointNewAccount && reply.status == http.StatusCreated:
		c.count(func(n *Counts) { n.NewAccounts++ })
	case endpoint == EndpointNewOrder && reply.status == http.StatusCreated:
		c.handOut(r, jws, reply)
	case endpoint == EndpointChallenge && reply.status == http.StatusOK && len(jws.Payload) > 0:
		c.count(func(n *Counts) { n.Challenges++ })
	case endpoint == EndpointFinalize && reply.status == http.StatusOK:
		c.awaitIssue(ctx, path.Base(r.URL.Path))
	}
}

func (c *CA) count(change func(*Counts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.counts)
}

// handOut answers newOrder as Let's Encrypt does: where the account has an order for the same names and profile that
// is pending or ready and has not expired, it gets that one.
func (c *CA) handOut(r *http.Request, jws caJWS, reply *caReply) {
	fresh := c.store.GetOrderByID(path.Base(reply.header.Get("Location")))
	if fresh == nil {
		return
	}
	key := orderKey(jws)
	c.mu.Lock()
	defer c.mu.Unlock()
	if earlier := c.store.GetOrderByID(c.open[key]); earlier != nil && !c.opts.NewOrderAlways && isOpen(earlier) {
		reply.order(r, earlier)
		fresh = earlier
	} else if c.opts.AuthzReuse == 0 && hasValid(fresh) {
		// Pebble's least chance of reuse is one in a hundred. Let the client ask again: this must be never.
		reply.badNonce()
		return
	}
	c.open[key] = fresh.ID
	c.counts.NewOrders++
	if !c.orders[fresh.ID] {
		c.orders[fresh.ID] = true
		c.counts.Orders++
	}
}

// orderKey tells the newOrder requests of one account that ask for the same.
func orderKey(j caJWS) string {
	var request struct {
		Identifiers []acme.Identifier
		Profile     string
	}
	_ = json.Unmarshal(j.Payload, &request)
	names := make([]string, 0, len(request.Identifiers))
	for _, id := range request.Identifiers {
		names = append(names, strings.ToLower(id.Value))
	}
	slices.Sort(names)
	return j.KeyID + "\n" + request.Profile + "\n" + strings.Join(slices.Compact(names), "\n")
}

func isOpen(o *core.Order) bool {
	o.RLock()
	defer o.RUnlock()
	return (o.Status == statusPending || o.Status == statusReady) && o.ExpiresDate.After(time.Now())
}

func hasValid(o *core.Order) bool {
	o.RLock()
	defer o.RUnlock()
	for _, a := range o.AuthorizationObjects {
		a.RLock()
		status := a.Status
		a.RUnlock()
		if status == acme.StatusValid {
			return true
		}
	}
	return false
}

// awaitIssue waits until Pebble's background work for an order that was just finalised is over.
func (c *CA) awaitIssue(ctx context.Context, id string) {
	serial, ok := c.issued.await(ctx, id)
	c.count(func(n *Counts) { n.Finalized++ })
	if !ok || serial == "" {
		return
	}
	for {
		if _, err := c.store.GetOrderByIssuedSerial(serial); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Microsecond):
		}
	}
	if order := c.store.GetOrderByID(id); order != nil && order.Replaces != "" {
		c.front.await(ctx, id)
	}
	certificate := c.store.GetCertificateByID(serial)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Certificates++
	c.leaves = append(c.leaves, certificate.Cert)
}

// caJWS is what the books need of a request's body; Pebble has verified it.
type caJWS struct {
	KeyID   string
	Payload []byte
}

func readJWS(body []byte) caJWS {
	var outer struct{ Protected, Payload string }
	var protected struct {
		KeyID string `json:"kid"`
	}
	_ = json.Unmarshal(body, &outer)
	head, _ := base64.RawURLEncoding.DecodeString(outer.Protected)
	_ = json.Unmarshal(head, &protected)
	payload, _ := base64.RawURLEncoding.DecodeString(outer.Payload)
	return caJWS{KeyID: protected.KeyID, Payload: payload}
}

// caReply keeps an answer back until the turn is over, so that it can be changed and a slow client holds nothing up.
type caReply struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newCAReply() *caReply { return &caReply{header: http.Header{}, status: http.StatusOK} }

func (r *caReply) Header() http.Header         { return r.header }
func (r *caReply) WriteHeader(status int)      { r.status = status }
func (r *caReply) Write(p []byte) (int, error) { return r.body.Write(p) }

func (r *caReply) send(w http.ResponseWriter) {
	for name, values := range r.header {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes())
}

// order makes the reply that of newOrder with an order that was there before.
func (r *caReply) order(request *http.Request, o *core.Order) {
	o.RLock()
	shown := o.Order
	id := o.ID
	o.RUnlock()
	base := "https://" + request.Host
	shown.Finalize = base + "/finalize-order/" + id
	r.header.Set("Location", base+"/my-order/"+id)
	r.body.Reset()
	_ = json.NewEncoder(&r.body).Encode(shown)
}

// tokensOnly drops an authorization's challenges that have no token.
func (r *caReply) tokensOnly() {
	var authorization map[string]json.RawMessage
	var challenges []map[string]json.RawMessage
	if json.Unmarshal(r.body.Bytes(), &authorization) != nil || json.Unmarshal(authorization["challenges"], &challenges) != nil {
		return // a problem document
	}
	challenges = slices.DeleteFunc(challenges, func(c map[string]json.RawMessage) bool { return c["token"] == nil })
	authorization["challenges"], _ = json.Marshal(challenges)
	r.body.Reset()
	_ = json.NewEncoder(&r.body).Encode(authorization)
}

func (r *caReply) badNonce() {
	r.header.Del("Location")
	r.body.Reset()
	Problem(r, http.StatusBadRequest, "badNonce", "this nonce is refused by chance")
}

// logWatch keeps what a log line told of each order ID, for who waits for it.
type logWatch struct {
	mu   sync.Mutex
	seen map[string]string
	more chan struct{} // closed and replaced when something was seen
}

func newLogWatch() *logWatch { return &logWatch{seen: map[string]string{}, more: make(chan struct{})} }

func (l *logWatch) put(id, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[id] = value
	close(l.more)
	l.more = make(chan struct{})
}

func (l *logWatch) await(ctx context.Context, id string) (string, bool) {
	for {
		l.mu.Lock()
		value, ok := l.seen[id]
		more := l.more
		l.mu.Unlock()
		if ok {
			return value, true
		}
		select {
		case <-ctx.Done():
			return "", false
		case <-more:
		}
	}
}

// issued reads the line that Pebble's CA writes before it stores a certificate.
func (l *logWatch) issued(line string) {
	var serial, id string
	if n, _ := fmt.Sscanf(line, "Issued certificate serial %s for order %s", &serial, &id); n == 2 {
		l.put(id, serial)
	}
}

// replaced reads the last line that Pebble's front end writes for an order with "replaces".
func (l *logWatch) replaced(line string) {
	if id, ok := strings.CutSuffix(line, " has been marked as replaced in the DB"); ok {
		l.put(strings.TrimPrefix(id, "Order "), "")
	}
}

// lockedWriter serialises the writes of several loggers.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// watchedWriter shows each line to watch, which may wait, before it passes it on. A log.Logger writes whole lines, one
// at a time.
type watchedWriter struct {
	w     io.Writer
	watch func(line string)
}

func (l *watchedWriter) Write(p []byte) (int, error) {
	l.watch(strings.TrimSuffix(string(p), "\n"))
	return l.w.Write(p)
}
