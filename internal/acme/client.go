package acme

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-acme/lego/v4/acme/api"
	"github.com/go-acme/lego/v4/challenge"
	legolog "github.com/go-acme/lego/v4/log"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// The defaults of Config and DNSConfig.
const (
	DefaultTimeout     = 30 * time.Second
	DefaultConcurrency = 32
	DefaultDNSTimeout  = 2 * time.Minute
	DefaultDNSInterval = 2 * time.Second
)

// A refused nonce is repeated at once quickNonces times, and maxNonces times in all.
const (
	quickNonces = 5
	maxNonces   = 14
)

// lego's logger is a variable of its package and prints to standard error; an adapter does not log.
func init() { legolog.Logger = stdlog.New(io.Discard, "", 0) }

// Provider is a DNS provider, as lego has it.
type Provider = challenge.Provider

// Config is what a Client needs. Directory, Provider and DNS are required.
type Config struct {
	// Directory is the URL of the CA's directory; https only.
	Directory string
	// CAFile is a PEM file with further roots to trust for the connection to the CA, beside the system's; "" for none.
	CAFile string
	// EAB binds a new account to an account that the CA's operator made (RFC 8555 section 7.3.4); zero for none.
	EAB EAB
	// UserAgent is sent with each request, e.g. "certsync/1.0.0".
	UserAgent string
	// Provider makes a DNS provider by its name; env holds its settings. Package providers has it.
	Provider func(name string, env map[string]string) (Provider, error)
	// DNS tells how the challenges of a certificate, by its name, are published.
	DNS func(certificate string) (DNSConfig, error)
	// Timeout bounds each request to the CA; zero: DefaultTimeout.
	Timeout time.Duration
	// Concurrency is how many orders may be driven at once, for the pool of connections; zero: DefaultConcurrency.
	Concurrency int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Progress takes what is being done, a line at a time, from several goroutines; nil: nobody.
	Progress func(cluster.Progress)
}

// EAB is an external account.
type EAB struct {
	KeyID string
	// HMAC is the key as the CA's operator gave it: base64url.
	HMAC cluster.Secret
}

// DNSConfig is how the TXT values of a certificate get into the DNS.
type DNSConfig struct {
	// Provider is the name of one of lego's providers, Env its settings.
	Provider string
	Env      map[string]string
	// Resolvers are asked whether a value is there and where CNAMEs lead, each as host or host:port. None: the
	// system's resolvers find the zone's own name servers, and these are asked.
	Resolvers []string
	// Check waits until a value is seen before the CA is told to look.
	Check bool
	// Timeout bounds the wait for a value to be seen, and each call of the provider; zero: DefaultDNSTimeout.
	Timeout time.Duration
	// Interval is the longest pause between two checks; zero: DefaultDNSInterval.
	Interval time.Duration
	// Sequence is waited between two values at one name where the provider holds one at a time, so that the CA's
	// resolvers forget the first.
	Sequence time.Duration
}

// Client talks to one CA. It is safe for concurrent use and keeps no state but connections, the directory for some
// minutes, and DNS providers.
type Client struct {
	cfg       Config
	transport *http.Transport
	directory directoryCache
	names     nameTurns
	clock     caClock

	mu         sync.Mutex
	presenters map[presenterKey]*presenter
}

// New checks the configuration and makes a client. It sends nothing.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.Directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("acme directory %q: not an https URL", cfg.Directory)
	}
	if cfg.Provider == nil || cfg.DNS == nil {
		return nil, errors.New("acme client: no DNS providers given")
	}
	if err := cfg.EAB.check(); err != nil {
		return nil, err
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(cluster.Progress) {}
	}
	roots, err := loadRoots(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	return &Client{
		cfg: cfg, transport: newTransport(roots, cfg.Concurrency), directory: newDirectoryCache(),
		names: nameTurns{turns: map[string]*nameTurn{}}, presenters: map[presenterKey]*presenter{},
	}, nil
}

func (e EAB) check() error {
	if e.KeyID == "" && len(e.HMAC) == 0 {
		return nil
	}
	if e.KeyID == "" || len(e.HMAC) == 0 {
		return cluster.WithHint(errors.New("external account binding: key ID and HMAC key belong together"),
			"set both acme.eab.key_id and acme.eab.hmac_key_file")
	}
	if _, err := base64.RawURLEncoding.DecodeString(e.hmac()); err != nil {
		return cluster.WithHint(errors.New("external account binding: the HMAC key is not base64url"),
			"put the HMAC key into acme.eab.hmac_key_file as the CA shows it")
	}
	return nil
}

// hmac is the key without the padding and white space that people paste with it.
func (e EAB) hmac() string { return strings.TrimRight(strings.TrimSpace(string(e.HMAC)), "=") }

// loadRoots gives the system's roots and those of file; nil, for the system's alone, where there is no file.
func loadRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("acme ca_file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("acme ca_file %s: no certificate in it", file)
	}
	return roots, nil
}

// newTransport makes the connections that all orders share. With net/http's two idle connections a host, 50 orders
// would spend their time on TLS handshakes.
func newTransport(roots *x509.CertPool, concurrency int) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		MaxIdleConnsPerHost:    2 * concurrency,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// Directory is the URL of the CA's directory.
func (c *Client) Directory() string { return c.cfg.Directory }

// Close drops the idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// hear takes what every answer tells.
func (c *Client) hear(r *http.Response) { c.clock.hear(r.Header, c.cfg.Now(), thisMoment()) }

func (c *Client) say(slot cert.Slot, format string, args ...any) {
	c.cfg.Progress(cluster.Progress{Slot: slot, Step: "obtain", Message: oneLine(fmt.Sprintf(format, args...))})
}

// session is one account's talk with the CA for the life of one context: lego's core takes no context, so each
// session has a core, whose requests are bound to the context underneath.
type session struct {
	client *Client
	ctx    context.Context
	core   *api.Core
	http   *boundTransport
	dir    directoryInfo
}

// open starts a session. An empty kid signs with the key itself, as newAccount wants it.
func (c *Client) open(ctx context.Context, kid string, key crypto.Signer) (*session, error) {
	dir, err := c.fetchDirectory(ctx)
	if err != nil {
		return nil, err
	}
	bound := &boundTransport{ctx: ctx, base: c.transport, timeout: c.cfg.Timeout, directory: c.cfg.Directory, body: dir.body, hear: c.hear,
		results: map[string]result{}}
	core, err := api.New(&http.Client{Transport: bound, CheckRedirect: noRedirect}, c.cfg.UserAgent, c.cfg.Directory, kid, key)
	if err != nil {
		return nil, fmt.Errorf("acme directory %s: %w", c.cfg.Directory, err)
	}
	return &session{client: c, ctx: ctx, core: core, http: bound, dir: dir}, nil
}

// noRedirect: a redirected POST would carry a signature for another URL, and no ACME server redirects.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// call runs one request of lego's API, again while the CA refuses the nonce, and leaves it behind when ctx ends. op is
// a phrase for the error; url is what is asked.
func call[T any](ctx context.Context, s *session, op, url string, request func() (T, error)) (T, error) {
	for try, pause := 1, time.Duration(0); ; try++ {
		s.http.forget(url)
		value, err := leaveBehind(ctx, request)
		switch {
		case err == nil:
			return value, nil
		case problemType(err) != refusedNonce || try >= maxNonces:
			return value, s.failed(ctx, op, url, err)
		}
		// The refusal brought a fresh nonce, so the first repeats cost nothing; a CA that refuses on is given time.
		if try >= quickNonces {
			pause = min(max(2*pause, 10*time.Millisecond), time.Second)
		}
		if sleep(ctx, pause) != nil {
			return value, s.failed(ctx, op, url, err)
		}
	}
}

// leaveBehind runs request and stops waiting for it when ctx ends; lego's functions take no context.
func leaveBehind[T any](ctx context.Context, request func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	var zero T
	if ctx.Err() != nil {
		return zero, contextError(ctx)
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := request()
		done <- outcome{value, err}
	}()
	select {
	case <-ctx.Done():
		return zero, contextError(ctx)
	case o := <-done:
		return o.value, o.err
	}
}

// contextError is why ctx ended: its error and, where it has one, its cause.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}
