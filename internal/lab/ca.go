package lab

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// caTurn bounds how long a request waits for its turn, and how long a finalisation may take.
const caTurn = 20 * time.Second

// CAOptions are what a CA starts with. Only DNS is needed.
type CAOptions struct {
	// DNS is the host:port that validations ask, over TCP.
	DNS string
	// Dir is where the file of CAFile is written; without it there is none.
	Dir string
	// Lifetime is that of the certificates of the only profile, "default"; zero: 90 days.
	Lifetime time.Duration
	// Profiles replace the only profile. Where there are several and an order names none, Pebble takes one at random.
	Profiles map[string]CAProfile
	// ChainLength is the number of intermediates; zero: 1.
	ChainLength int
	// AlternateRoots is the number of further chains, offered as Link rel="alternate".
	AlternateRoots int
	// EAB are the external accounts, key ID to base64url HMAC key; where there are any, a new account needs one.
	EAB map[string]string
	// NonceReject is the percentage of good nonces that are refused with badNonce.
	NonceReject int
	// Sleep lets each validation wait a random time of up to so many whole seconds.
	Sleep int
	// AuthzReuse is how often, in percent, a valid authorization is used again in a new order. Zero is never.
	AuthzReuse int
	// RetryAfterAuthz and RetryAfterOrder are sent in whole seconds (as a number or a date, at random) with what is
	// not done yet; zero: no header.
	RetryAfterAuthz, RetryAfterOrder int
	// TokensOnly leaves out the challenges that have no token (Pebble's dns-persist-01), which clients from before it
	// such as uacme 1.7 cannot read.
	TokensOnly bool
	// NewOrderAlways turns off that a pending order is handed out again.
	NewOrderAlways bool
	// Blocked are domains that the CA refuses (rejectedIdentifier).
	Blocked []string
	// Log takes Pebble's log; nil discards it.
	Log io.Writer
}

// CAProfile is a certificate profile.
type CAProfile struct {
	Description string
	// Lifetime is that of the certificates; zero: 90 days.
	Lifetime time.Duration
	// CommonName lets the CA put the first name into the subject.
	CommonName bool
}

// CA is an embedded Pebble on loopback with HTTPS, made to behave like Let's Encrypt where certsync cares: the same
// account asking for the same names with the same profile gets its pending or ready order again.
//
// Pebble as it is deadlocks under load: its handlers take read locks twice, which hangs when a background goroutine
// asks for the write lock between. So one request is served at a time, a finalisation is answered when its background
// work is over, and the validator's change of a failed order takes a turn of its own.
type CA struct {
	opts    CAOptions
	url     string
	server  *http.Server
	done    chan struct{}
	handler http.Handler
	store   *db.MemoryStore
	issuer  *ca.CAImpl
	tlsPEM  []byte
	file    string
	// turn holds one token: whoever took it may touch Pebble's state.
	turn   chan struct{}
	issued *logWatch // serials that Pebble's CA logs, by order ID
	front  *logWatch // replacements that its front end logs, by order ID

	mu     sync.Mutex
	hook   Hook
	counts Counts
	open   map[string]string // newOrder's key to the ID of the order last handed out
	orders map[string]bool
	leaves []*x509.Certificate
}

// Hook may answer a request in the CA's place: it returns true when it did. It may wait; the request's context ends
// when the client gives up or the CA closes. EndpointOf names what is asked.
type Hook func(http.ResponseWriter, *http.Request) bool

// Counts are what the CA did since its start. Refused requests (badNonce, problems) count in Requests only.
type Counts struct {
	// Requests by endpoint, whatever came of them.
	Requests map[Endpoint]int
	// NewAccounts are accounts made, NewOrders orders asked for, Orders distinct orders handed out.
	NewAccounts, NewOrders, Orders int
	// Challenges are challenges answered, Finalized orders finalised, Certificates certificates issued.
	Challenges, Finalized, Certificates int
}

// pebbleEnv serialises the making of CAs: Pebble reads its settings from the environment, once, in its constructors.
var pebbleEnv sync.Mutex

// NewCA starts a CA on a free port of 127.0.0.1.
func NewCA(opts CAOptions) (*CA, error) {
	if opts.DNS == "" {
		return nil, errors.New("lab CA: no DNS server to validate with")
	}
	c := &CA{
		opts: opts, done: make(chan struct{}), turn: make(chan struct{}, 1), issued: newLogWatch(), front: newLogWatch(),
		counts: Counts{Requests: map[Endpoint]int{}}, open: map[string]string{}, orders: map[string]bool{},
	}
	c.turn <- struct{}{}
	if err := c.startPebble(); err != nil {
		return nil, fmt.Errorf("lab CA: %w", err)
	}
	if err := c.listen(); err != nil {
		return nil, fmt.Errorf("lab CA: %w", err)
	}
	return c, nil
}

// startPebble makes Pebble's parts, each with the log that its turn-taking needs.
func (c *CA) startPebble() error {
	sink := c.opts.Log
	if sink == nil {
		sink = io.Discard
	}
	sink = &lockedWriter{w: sink}
	logTo := func(watch func(line string)) *log.Logger {
		return log.New(&watchedWriter{w: sink, watch: watch}, "", 0)
	}
	pebbleEnv.Lock()
	defer pebbleEnv.Unlock()
	defer setPebbleEnv(c.opts)()
	c.store = db.NewMemoryStore()
	c.issuer = ca.New(logTo(c.issued.issued), c.store, "", "ecdsa", c.opts.AlternateRoots, cmp.Or(c.opts.ChainLength, 1), pebbleProfiles(c.opts))
	validator := va.New(logTo(c.validatorTurn()), 80, 443, false, c.opts.DNS, c.store)
	front := wfe.New(logTo(c.front.replaced), c.store, validator, c.issuer, []string{"ca.lab.invalid"}, false,
		len(c.opts.EAB) > 0, c.opts.RetryAfterAuthz, c.opts.RetryAfterOrder)
	c.handler = front.Handler()
	for id, key := range c.opts.EAB {
		if err := c.store.AddExternalAccountKeyByID(id, key); err != nil {
			return err
		}
	}
	for _, domain := range c.opts.Blocked {
		if err := c.store.AddBlockedDomain(domain); err != nil {
			return err
		}
	}
	return nil
}

func pebbleProfiles(opts CAOptions) map[string]ca.Profile {
	profiles := opts.Profiles
	if len(profiles) == 0 {
		profiles = map[string]CAProfile{"default": {Description: "the only profile", Lifetime: opts.Lifetime}}
	}
	out := map[string]ca.Profile{}
	for name, p := range profiles {
		out[name] = ca.Profile{Description: p.Description, PromoteCommonName: p.CommonName,
			ValidityPeriod: uint64(cmp.Or(p.Lifetime, 90*24*time.Hour) / time.Second)}
	}
	return out
}

// setPebbleEnv sets what Pebble's constructors read, and gives the function that restores it.
func setPebbleEnv(opts CAOptions) (restore func()) {
	env := map[string]string{
		"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_VA_SLEEPTIME": "", "PEBBLE_VA_ALWAYS_VALID": "",
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(opts.NonceReject), "PEBBLE_AUTHZREUSE": strconv.Itoa(opts.AuthzReuse),
	}
	if opts.Sleep > 0 {
		env["PEBBLE_VA_NOSLEEP"], env["PEBBLE_VA_SLEEPTIME"] = "", strconv.Itoa(opts.Sleep)
	}
	before := map[string]*string{}
	for name, value := range env {
		if old, ok := os.LookupEnv(name); ok {
			before[name] = &old
		} else {
			before[name] = nil
		}
		_ = os.Setenv(name, value)
	}
	return func() {
		for name, old := range before {
			if old == nil {
				_ = os.Unsetenv(name)
			} else {
				_ = os.Setenv(name, *old)
			}
		}
	}
}

// listen opens the HTTPS listener with a certificate of its own, which is not one that the CA issued.
func (c *CA) listen() error {
	certificate, err := caServerCertificate()
	if err != nil {
		return err
	}
	c.tlsPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	if c.opts.Dir != "" {
		c.file = filepath.Join(c.opts.Dir, "lab-ca.pem")
		if err := os.WriteFile(c.file, c.CAPEM(), 0o644); err != nil { //nolint:gosec // certificates are public
			return err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.url = "https://" + listener.Addr().String() + wfe.DirectoryPath
	ctx, cancel := context.WithCancel(context.Background())
	c.server = &http.Server{
		Handler:           http.HandlerFunc(c.serve),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: caTurn,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(c.done)
		defer cancel()
		_ = c.server.ServeTLS(listener, "", "")
	}()
	return nil
}

func caServerCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"certsync lab"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Close stops the CA and ends the requests that hang in it. One goroutine of Pebble's validator, which has no end,
// stays and sleeps.
func (c *CA) Close() error {
	err := c.server.Close()
	<-c.done
	return err
}

// Directory is the URL for acme.directory.
func (c *CA) Directory() string { return c.url }

// CAFile is the path of the PEM file for acme.ca_file, or "" where the options gave no Dir.
func (c *CA) CAFile() string { return c.file }

// CAPEM is the content for acme.ca_file: the certificate of the HTTPS listener and the roots of what the CA issues.
func (c *CA) CAPEM() []byte { return append(slices.Clone(c.tlsPEM), c.RootPEM()...) }

// RootPEM holds the roots of what the CA issues, for probes.
func (c *CA) RootPEM() []byte {
	var out []byte
	for i := range c.issuer.GetNumberOfRootCerts() {
		out = append(out, c.issuer.GetRootCert(i).PEM()...)
	}
	return out
}

// SetHook installs a hook for the requests from now on; nil removes it.
func (c *CA) SetHook(h Hook) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = h
}

// Counts is what the CA did so far.
func (c *CA) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	out.Requests = map[Endpoint]int{}
	for k, v := range c.counts.Requests {
		out.Requests[k] = v
	}
	return out
}

// Leaves are the certificates issued so far, in order.
func (c *CA) Leaves() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.leaves)
}

// SetRenewalInfo replaces what the CA's renewalInfo endpoint (RFC 9773) answers for leaf by body, which is not checked.
func (c *CA) SetRenewalInfo(leaf *x509.Certificate, body string) error {
	defer c.takeTurn()()
	return c.store.SetARIResponse(leaf.SerialNumber, body)
}

// Revoked tells whether the CA has revoked leaf, and for which reason (RFC 5280 section 5.3.1), where one was given.
func (c *CA) Revoked(leaf *x509.Certificate) (reason uint, given, revoked bool) {
	defer c.takeTurn()()
	entry := c.store.GetRevokedCertificateBySerial(leaf.SerialNumber)
	if entry == nil {
		return 0, false, false
	}
	if entry.Reason == nil {
		return 0, false, true
	}
	return *entry.Reason, true, true
}

// ExpireOrders lets every order that is not finalised expire now: the CA says that it is invalid from then on.
func (c *CA) ExpireOrders() {
	defer c.takeTurn()()
	c.mu.Lock()
	defer c.mu.Unlock()
	past := time.Now().Add(-time.Minute)
	for id := range c.orders {
		order := c.store.GetOrderByID(id)
		if order == nil || order.Status != statusPending && order.Status != statusReady {
			continue
		}
		order.Lock()
		order.ExpiresDate, order.Expires = past, past.UTC().Format(time.RFC3339)
		authorizations := order.AuthorizationObjects
		order.Unlock()
		for _, a := range authorizations {
			a.Lock()
			a.ExpiresDate = past
			a.Unlock()
		}
	}
}

// takeTurn waits for Pebble's state to be free and gives the function that frees it.
func (c *CA) takeTurn() (free func()) {
	<-c.turn
	return func() { c.turn <- struct{}{} }
}

// validatorTurn watches the validator's log: between the lines that it writes before and after it marks an order
// invalid, the turn is its own. Several validations that fail at once share it.
func (c *CA) validatorTurn() func(line string) {
	holders := 0
	var free func()
	return func(line string) {
		switch {
		case strings.HasPrefix(line, "authz ") && strings.Contains(line, " set INVALID by completed challenge "):
			if holders == 0 {
				free = c.takeTurn()
			}
			holders++
		case strings.HasPrefix(line, "order ") && strings.Contains(line, " set INVALID by invalid authz "):
			if holders--; holders == 0 {
				free()
			}
		}
	}
}
