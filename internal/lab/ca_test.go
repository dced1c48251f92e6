package lab_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/acme"
	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// asker asks a CA for certificates by the code that certsync has for it, publishing values straight into the DNS.
type asker struct {
	t       *testing.T
	ca      *lab.CA
	client  *acme.Client
	account cluster.Account
}

// direct is a DNS provider that writes into the lab's name server.
type direct struct {
	mu  sync.Mutex
	dns *lab.DNS
	lie bool // publish nothing
}

func (p *direct) Present(domain, _, keyAuth string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := "_acme-challenge." + domain
	if !p.lie {
		p.dns.SetTXT(name, append(p.dns.Records(name), value(keyAuth))...)
	}
	return nil
}

func (p *direct) CleanUp(domain, _, keyAuth string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := "_acme-challenge." + domain
	p.dns.SetTXT(name, slices.DeleteFunc(p.dns.Records(name), func(v string) bool { return v == value(keyAuth) })...)
	return nil
}

func newAsker(t *testing.T, ca *lab.CA, provider *direct) *asker {
	t.Helper()
	client, err := acme.New(acme.Config{
		Directory: ca.Directory(), CAFile: ca.CAFile(), UserAgent: "lab-test",
		Provider: func(string, map[string]string) (acme.Provider, error) { return provider, nil },
		DNS: func(string) (acme.DNSConfig, error) {
			return acme.DNSConfig{Provider: "direct", Resolvers: []string{provider.dns.Address()}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	account, err := cluster.NewAccount(ca.Directory(), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if account, err = client.Register(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	return &asker{t: t, ca: ca, client: client, account: account}
}

// obtain asks for a certificate and gives the order as it was recorded last; stop, where set, ends it there.
func (a *asker) obtain(profile string, stop cluster.Step, domains ...string) (*cert.Bundle, cluster.Order, error) {
	a.t.Helper()
	key, err := cert.EC256.Generate()
	if err != nil {
		a.t.Fatal(err)
	}
	encoded, err := cert.EncodeKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	o := cluster.Order{ID: "o", Slot: cert.Slot{Name: domains[0], Algorithm: cert.ECDSA}, Domains: domains, KeyType: cert.EC256,
		Profile: profile, Directory: a.ca.Directory(), Account: a.account.Thumbprint, Key: encoded, Step: cluster.StepPlanned}
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	b, err := a.client.Obtain(ctx, a.account, o, func(_ context.Context, now cluster.Order) error {
		if o = now; stop != 0 && now.Step >= stop {
			return errStopped
		}
		return nil
	})
	return b, o, err
}

var errStopped = errors.New("stopped")

func newCA(t *testing.T, opts lab.CAOptions) (*lab.CA, *direct) {
	t.Helper()
	names := newDNS(t, lab.DNSOptions{})
	opts.DNS, opts.Dir = names.Address(), t.TempDir()
	ca, err := lab.NewCA(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ca.Close() })
	return ca, &direct{dns: names}
}

func TestCAHandsAnOpenOrderOutAgain(t *testing.T) {
	ca, provider := newCA(t, lab.CAOptions{Profiles: map[string]lab.CAProfile{"a": {}, "b": {}}})
	one, two := newAsker(t, ca, provider), newAsker(t, ca, provider)
	url := func(a *asker, profile string, domains ...string) string {
		t.Helper()
		_, o, err := a.obtain(profile, cluster.StepOrdered, domains...)
		if !errors.Is(err, errStopped) || o.URL == "" {
			t.Fatalf("order %q: %v", o.URL, err)
		}
		return o.URL
	}
	first := url(one, "a", "example.org", "*.example.org")
	if again := url(one, "a", "*.example.org", "EXAMPLE.org"); again != first {
		t.Error("the same names give another order")
	}
	for what, other := range map[string]string{
		"other names":     url(one, "a", "example.org"),
		"another profile": url(one, "b", "example.org", "*.example.org"),
		"another account": url(two, "a", "example.org", "*.example.org"),
	} {
		if other == first {
			t.Errorf("%s: the same order", what)
		}
	}
	if n := ca.Counts(); n.Orders != 4 || n.NewOrders != 5 {
		t.Errorf("%d orders for %d requests, want 4 for 5", n.Orders, n.NewOrders)
	}
	if _, _, err := one.obtain("a", 0, "example.org", "*.example.org"); err != nil {
		t.Fatal(err)
	}
	if url(one, "a", "example.org", "*.example.org") == first {
		t.Error("a finalised order was handed out again")
	}
	before := url(two, "a", "example.org", "*.example.org")
	ca.ExpireOrders()
	if url(two, "a", "example.org", "*.example.org") == before {
		t.Error("an expired order was handed out again")
	}
}

func TestCAWithNewOrderAlways(t *testing.T) {
	ca, provider := newCA(t, lab.CAOptions{NewOrderAlways: true})
	a := newAsker(t, ca, provider)
	for range 2 {
		_, _, _ = a.obtain("", cluster.StepOrdered, "example.org")
	}
	if n := ca.Counts().Orders; n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

func TestCAIssuesByItsProfileAndChain(t *testing.T) {
	ca, provider := newCA(t, lab.CAOptions{ChainLength: 2, AlternateRoots: 1, Lifetime: 47 * 24 * time.Hour})
	b, _, err := newAsker(t, ca, provider).obtain("", 0, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Chain()) != 2 || b.Leaf().NotAfter.Sub(b.Leaf().NotBefore).Round(time.Hour) != 47*24*time.Hour {
		t.Errorf("chain of %d, lifetime %s", len(b.Chain()), b.Leaf().NotAfter.Sub(b.Leaf().NotBefore))
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	if err := b.Verify(cert.Want{Roots: roots, Now: time.Now()}); err != nil {
		t.Error(err)
	}
	if leaves := ca.Leaves(); len(leaves) != 1 || !leaves[0].Equal(b.Leaf()) {
		t.Errorf("%d leaves on record", len(leaves))
	}
	file, err := os.ReadFile(ca.CAFile())
	if err != nil || string(file) != string(ca.CAPEM()) || strings.Count(string(file), "BEGIN CERTIFICATE") != 3 {
		t.Errorf("ca_file: %v, %d bytes", err, len(file))
	}
}

// Pebble by itself may hang here: failed validations change orders while clients look at them. What prevents it hangs
// on two lines of Pebble's log.
func TestCADoesNotHangUnderFailingOrders(t *testing.T) {
	var log lockedBuilder
	ca, provider := newCA(t, lab.CAOptions{Log: &log})
	provider.lie = true
	var done sync.WaitGroup
	for i := range 4 {
		a := newAsker(t, ca, provider)
		done.Go(func() {
			for n := range 10 {
				name := fmt.Sprintf("n%d-%d.example.org", i, n)
				_, _, err := a.obtain("", 0, name, "*."+name, "www."+name)
				if issue, ok := errors.AsType[*cluster.IssueError](err); !ok || !issue.Dead {
					t.Errorf("%s: %v, want a dead order", name, err)
				}
			}
		})
	}
	done.Wait()
	for _, line := range []string{" set INVALID by completed challenge ", " set INVALID by invalid authz "} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("Pebble does not log %q any more: see validatorTurn", line)
		}
	}
}

func TestSeveralCAsAtOnceLeaveTheEnvironmentAlone(t *testing.T) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "before")
	var done sync.WaitGroup
	for range 3 {
		done.Go(func() {
			ca, provider := newCA(t, lab.CAOptions{NonceReject: 20})
			if _, _, err := newAsker(t, ca, provider).obtain("", 0, "example.org"); err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	if got := os.Getenv("PEBBLE_VA_NOSLEEP"); got != "before" {
		t.Errorf("PEBBLE_VA_NOSLEEP is %q afterwards", got)
	}
	if _, ok := os.LookupEnv("PEBBLE_WFE_NONCEREJECT"); ok {
		t.Error("PEBBLE_WFE_NONCEREJECT is set afterwards")
	}
}

func TestCACloseEndsWhatHangs(t *testing.T) {
	ca, provider := newCA(t, lab.CAOptions{})
	a := newAsker(t, ca, provider)
	reached := make(chan struct{})
	ca.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
		close(reached)
		<-r.Context().Done()
		return true
	})
	failed := make(chan error, 1)
	go func() {
		_, _, err := a.obtain("", 0, "example.org")
		failed <- err
	}()
	<-reached
	if err := ca.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a certificate from a closed CA")
		}
	case <-time.After(time.Minute):
		t.Fatal("the request hangs on")
	}
}

func TestCARenewalInfo(t *testing.T) {
	ca, provider := newCA(t, lab.CAOptions{})
	b, _, err := newAsker(t, ca, provider).obtain("", 0, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CAPEM())
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	get := func(url string) (body []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", url, response.Status, err)
		}
		return body
	}
	var directory struct{ RenewalInfo string }
	if err := json.Unmarshal(get(ca.Directory()), &directory); err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	url := directory.RenewalInfo + "/" + encode(b.Leaf().AuthorityKeyId) + "." + encode(b.Leaf().SerialNumber.Bytes())
	if body := string(get(url)); !strings.Contains(body, "suggestedWindow") {
		t.Errorf("renewal info %q", body)
	}
	if err := ca.SetRenewalInfo(b.Leaf(), `{"now":true}`); err != nil {
		t.Fatal(err)
	}
	if body := string(get(url)); body != `{"now":true}` {
		t.Errorf("renewal info %q", body)
	}
}

// value is the TXT value of a key authorization (RFC 8555 section 8.4).
func value(keyAuth string) string {
	sum := sha256.Sum256([]byte(keyAuth))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// lockedBuilder is a strings.Builder for several writers.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
