package acme

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/challenge/dns01"

	"certsync/internal/cluster"
)

// presenterKey: a provider is made for each name that holds values, because lego's were written for one caller at a
// time; two names then go side by side.
type presenterKey struct{ certificate, fqdn string }

// presenter is a DNS provider with what its calls lack: one at a time, a deadline, a context.
type presenter struct {
	name     string
	env      map[string]string
	provider challenge.Provider
	// busy is the lock of its calls; who waits for it can stop waiting.
	busy chan struct{}
	// sequential: the provider says that a name holds one of its values at a time.
	sequential bool
}

// presenterFor gives the provider of a certificate for one name. It is kept, because the CleanUp of many providers
// needs what their Present remembered.
func (c *Client) presenterFor(ctx context.Context, certificate, fqdn string, cfg DNSConfig) (*presenter, error) {
	key := presenterKey{certificate, fqdn}
	if p := c.kept(key, cfg); p != nil {
		return p, nil
	}
	// Some constructors log in at the provider.
	limited, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	provider, err := leaveBehind(limited, func() (p challenge.Provider, err error) {
		defer recovered(&err)
		return c.cfg.Provider(cfg.Provider, cfg.Env)
	})
	op := "DNS provider " + cfg.Provider
	switch {
	case err != nil && limited.Err() != nil:
		return nil, gaveUp(ctx, op, cfg)
	case err != nil:
		text, hint := redact(op+": "+err.Error(), cfg.Env), cluster.HintOf(err)
		if hint == "" {
			hint = "set what the provider needs in dns.env_file: https://go-acme.github.io/lego/dns/" + cfg.Provider + "/"
		}
		return nil, issueError(text, nil, hint)
	}
	_, sequential := provider.(interface{ Sequential() time.Duration })
	p := &presenter{name: cfg.Provider, env: maps.Clone(cfg.Env), provider: provider, busy: make(chan struct{}, 1), sequential: sequential}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.presenters[key] = p
	return p, nil
}

// kept is the provider made before for key, if it was made of the same settings.
func (c *Client) kept(key presenterKey, cfg DNSConfig) *presenter {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.presenters[key]; p != nil && p.name == cfg.Provider && maps.Equal(p.env, cfg.Env) {
		return p
	}
	return nil
}

// recovered turns a panic of a provider's code into an error: one provider must not end every certificate's process.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// drop forgets a provider that hangs in a call, so that the next one to ask gets a fresh one.
func (c *Client) drop(p *presenter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.presenters, func(_ presenterKey, other *presenter) bool { return other == p })
}

// hungError tells that a provider's call did not come back: what it will still do is not known.
type hungError struct{ error }

func (e hungError) Unwrap() error { return e.error }

// do runs one call of the provider within the deadline. A call that does not come back is left behind.
func (c *Client) do(ctx context.Context, p *presenter, cfg DNSConfig, op string, run func(challenge.Provider) error) error {
	op = fmt.Sprintf("DNS provider %s: %s", p.name, op)
	limited, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	select {
	case p.busy <- struct{}{}:
	case <-limited.Done():
		return gaveUp(ctx, op+": waiting for its previous call", cfg)
	}
	leave, err := legoResolvers.enter(limited, resolversOf(cfg))
	if err != nil {
		<-p.busy
		return gaveUp(ctx, op+": waiting for calls with other resolvers", cfg)
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			leave()
			<-p.busy
		}()
		done <- func() (err error) {
			defer recovered(&err)
			return run(p.provider)
		}()
	}()
	select {
	case err := <-done:
		if err != nil {
			return providerError(redact(op+": "+err.Error(), p.env))
		}
		return nil
	case <-limited.Done():
		c.drop(p)
		return hungError{gaveUp(ctx, op, cfg)}
	}
}

// throttling is how the providers of lego tell that they are asked too often: each in words of its own.
var throttling = regexp.MustCompile(`(?i)\b(status|code|http)[^0-9a-z]{0,12}429\b|\b429 too many|too many requests|rate.?limit|throttl`)

// providerError is what a provider said.
func providerError(text string) error {
	if !throttling.MatchString(text) {
		return issueError(text, nil, "check the credentials in dns.env_file and what they may change")
	}
	err := issueError(text, nil, "the DNS provider limits how often it is asked: lower renew.concurrency, or ask it for more")
	err.Throttled = true
	return err
}

// gaveUp is why a call of a provider was not waited for any longer: its deadline, or ctx.
func gaveUp(ctx context.Context, op string, cfg DNSConfig) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, contextError(ctx))
	}
	return issueError(fmt.Sprintf("%s: no answer within %s", op, cfg.Timeout), nil, "check whether the DNS provider's API can be reached")
}

// resolversOf are the name servers that look-ups go to, as host:port: the configured ones, else the system's.
func resolversOf(cfg DNSConfig) []string {
	if len(cfg.Resolvers) == 0 {
		return systemResolvers()
	}
	return dns01.ParseNameservers(cfg.Resolvers)
}

// resolverGate guards lego's resolvers, a variable of its package that providers read during their calls: calls with
// the same resolvers run together, calls with others wait until those are over.
type resolverGate struct {
	mu      sync.Mutex
	current string
	inside  int
	changed chan struct{} // closed and replaced when the last call leaves
}

var legoResolvers = resolverGate{changed: make(chan struct{})}

// enter waits until lego may look names up at servers, and gives the function that ends the call.
func (g *resolverGate) enter(ctx context.Context, servers []string) (leave func(), err error) {
	key := strings.Join(servers, " ")
	for {
		g.mu.Lock()
		if g.inside == 0 && g.current != key {
			// The option ignores the challenge that it is meant for and sets the variable.
			if err := dns01.AddRecursiveNameservers(slices.Clone(servers))(nil); err != nil {
				g.mu.Unlock()
				return nil, err
			}
			g.current = key
		}
		if g.current == key {
			g.inside++
			g.mu.Unlock()
			return g.leave, nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *resolverGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 {
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

// withDefaults fills in the zero fields.
func (d DNSConfig) withDefaults() DNSConfig {
	if d.Timeout <= 0 {
		d.Timeout = DefaultDNSTimeout
	}
	if d.Interval <= 0 {
		d.Interval = DefaultDNSInterval
	}
	return d
}
