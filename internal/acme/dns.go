package acme

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-acme/lego/v4/challenge/dns01"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"certsync/internal/cluster"
)

const (
	// queryTimeout bounds one question to one server.
	queryTimeout = 5 * time.Second
	// maxAliases is how many CNAMEs are followed.
	maxAliases = 16
	// firstCheck is the pause before the second look for a value; it doubles up to DNSConfig.Interval.
	firstCheck = 20 * time.Millisecond
	// overwrittenAfter is how many looks in a row must show the last value and not an earlier one before the provider
	// is taken to have overwritten it: one alone may be a server that is behind.
	overwrittenAfter = 3
	resolvConf       = "/etc/resolv.conf"
)

// errOverwritten: the provider replaced the first of two values at a name by the second.
var errOverwritten = errors.New("the provider keeps one TXT value at a name")

// systemResolvers reads resolv.conf at each call, since DHCP rewrites it; without one, the local host is asked, as
// resolv.conf(5) has it.
func systemResolvers() []string {
	config, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil || len(config.Servers) == 0 {
		return []string{"127.0.0.1:53", "[::1]:53"}
	}
	var out []string
	for _, s := range config.Servers {
		out = append(out, net.JoinHostPort(s, config.Port))
	}
	return out
}

// ask sends one question to one server: by UDP, and by TCP where the answer is cut or UDP gets none. It comes back
// when ctx ends, which dns.Client does not see while it reads.
func ask(ctx context.Context, server, name string, qtype uint16) (*dns.Msg, error) {
	type outcome struct {
		reply *dns.Msg
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		question := new(dns.Msg).SetQuestion(name, qtype)
		question.SetEdns0(1232, false)
		udp := dns.Client{Timeout: queryTimeout / 2}
		reply, _, err := udp.ExchangeContext(ctx, question, server)
		if err != nil || reply.Truncated {
			tcp := dns.Client{Net: "tcp", Timeout: queryTimeout / 2}
			reply, _, err = tcp.ExchangeContext(ctx, question, server)
		}
		done <- outcome{reply, err}
	}()
	select {
	case <-ctx.Done():
		return nil, contextError(ctx)
	case o := <-done:
		if o.err != nil {
			return nil, fmt.Errorf("%s: %w", server, o.err)
		}
		if rcode := o.reply.Rcode; rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
			return nil, fmt.Errorf("%s: %s", server, dns.RcodeToString[rcode])
		}
		return o.reply, nil
	}
}

// lookup asks the resolvers in turn until one answers (NXDOMAIN is an answer).
func lookup(ctx context.Context, resolvers []string, name string, qtype uint16) (*dns.Msg, error) {
	var errs []error
	for _, server := range resolvers {
		reply, err := ask(ctx, server, name, qtype)
		if err == nil {
			return reply, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(resolvers) == 0 {
		errs = append(errs, errors.New("no address to ask"))
	}
	return nil, fmt.Errorf("look up %s of %s: %w", dns.TypeToString[qtype], name, errors.Join(errs...))
}

// challengeName is where the TXT values of a domain belong: _acme-challenge.DOMAIN, or where its CNAMEs lead
// (RFC 8555 section 8.4 lets the CA follow them; lego's providers do).
func challengeName(ctx context.Context, resolvers []string, domain string) (string, error) {
	name := dns.CanonicalName("_acme-challenge." + domain)
	if off, _ := strconv.ParseBool(os.Getenv("LEGO_DISABLE_CNAME_SUPPORT")); off {
		return name, nil // then the providers do not follow either
	}
	seen := []string{name}
	for range maxAliases {
		reply, err := lookup(ctx, resolvers, name, dns.TypeCNAME)
		if err != nil {
			return name, err
		}
		target := aliasOf(reply, name)
		if target == "" {
			return name, nil
		}
		if slices.Contains(seen, target) {
			return name, fmt.Errorf("CNAME loop at %s", target)
		}
		name, seen = target, append(seen, target)
	}
	return name, fmt.Errorf("more than %d CNAMEs from %s", maxAliases, seen[0])
}

func aliasOf(reply *dns.Msg, name string) string {
	for _, rr := range reply.Answer {
		if alias, ok := rr.(*dns.CNAME); ok && dns.CanonicalName(alias.Hdr.Name) == name {
			return dns.CanonicalName(alias.Target)
		}
	}
	return ""
}

// nameServer is a server that must show the values: any of its addresses will do.
type nameServer struct {
	name      string
	addresses []string
}

// serversFor are the servers to be checked for name: each of the configured resolvers, or the zone's own.
func serversFor(ctx context.Context, cfg DNSConfig, name string) ([]nameServer, error) {
	if len(cfg.Resolvers) > 0 {
		var out []nameServer
		for _, r := range dns01.ParseNameservers(cfg.Resolvers) {
			out = append(out, nameServer{name: r, addresses: []string{r}})
		}
		return out, nil
	}
	return zoneServers(ctx, systemResolvers(), name)
}

// zoneServers finds the name servers of the zone that name is in.
func zoneServers(ctx context.Context, resolvers []string, name string) ([]nameServer, error) {
	for zone := range dns01.DomainsSeq(name) {
		reply, err := lookup(ctx, resolvers, zone, dns.TypeNS)
		if err != nil {
			return nil, err
		}
		var out []nameServer
		for _, rr := range reply.Answer {
			if ns, ok := rr.(*dns.NS); ok && dns.CanonicalName(ns.Hdr.Name) == zone {
				addresses, err := hostAddresses(ctx, resolvers, dns.CanonicalName(ns.Ns))
				if err != nil {
					return nil, err
				}
				out = append(out, nameServer{name: strings.TrimSuffix(ns.Ns, "."), addresses: addresses})
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, fmt.Errorf("find the name servers of %s: none at any label", name)
}

func hostAddresses(ctx context.Context, resolvers []string, host string) ([]string, error) {
	var out []string
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		reply, err := lookup(ctx, resolvers, host, qtype)
		if err != nil {
			return nil, err
		}
		for _, rr := range reply.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, net.JoinHostPort(rr.A.String(), "53"))
			case *dns.AAAA:
				out = append(out, net.JoinHostPort(rr.AAAA.String(), "53"))
			}
		}
	}
	return out, nil
}

// sighting is what one server showed.
type sighting struct {
	server string
	values []string
	err    error
}

// look asks every server for the TXT values at name.
func look(ctx context.Context, servers []nameServer, name string) []sighting {
	out := make([]sighting, len(servers))
	var group errgroup.Group
	for i, server := range servers {
		group.Go(func() error {
			reply, err := lookup(ctx, server.addresses, name, dns.TypeTXT)
			out[i] = sighting{server: server.name, err: err}
			if err != nil {
				return nil
			}
			for _, rr := range reply.Answer {
				if txt, ok := rr.(*dns.TXT); ok {
					out[i].values = append(out[i].values, strings.Join(txt.Txt, ""))
				}
			}
			return nil
		})
	}
	_ = group.Wait()
	return out
}

// view sums up one look at the servers for some values.
type view struct {
	complete    bool // all that answered show all values, and one did answer
	overwritten bool // all that answered show the last value, and an earlier one is missing everywhere
	detail      string
}

func summarise(sightings []sighting, values []string) view {
	answered, last, missing := 0, 0, map[string]int{}
	var details []string
	for _, s := range sightings {
		if s.err != nil {
			details = append(details, s.err.Error())
			continue
		}
		answered++
		found := 0
		for _, v := range values {
			if slices.Contains(s.values, v) {
				found++
			} else {
				missing[v]++
			}
		}
		if slices.Contains(s.values, values[len(values)-1]) {
			last++
		}
		details = append(details, fmt.Sprintf("%s shows %d of %d", s.server, found, len(values)))
	}
	v := view{complete: answered > 0 && len(missing) == 0, detail: strings.Join(details, ", ")}
	for _, n := range missing {
		v.overwritten = v.overwritten || answered > 0 && last == answered && n == answered
	}
	return v
}

// awaitValues waits until every server that answers shows values, in the order in which they were presented, at name.
// It tells errOverwritten when only the last of them stays.
func (c *Client) awaitValues(ctx context.Context, cfg DNSConfig, name string, values []string) error {
	limited, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	servers, err := serversFor(limited, cfg, name)
	if err != nil {
		return propagationFailure(ctx, cfg, name, err.Error())
	}
	overwritten := 0
	detail := "no server answered"
	for pause := min(firstCheck, cfg.Interval); ; pause = min(2*pause, cfg.Interval) {
		seen := summarise(look(limited, servers, name), values)
		if seen.complete {
			return nil
		}
		if limited.Err() == nil {
			detail = seen.detail
		}
		if overwritten++; !seen.overwritten {
			overwritten = 0
		}
		if overwritten >= overwrittenAfter {
			return errOverwritten
		}
		if sleep(limited, pause) != nil {
			return propagationFailure(ctx, cfg, name, detail)
		}
	}
}

func propagationFailure(ctx context.Context, cfg DNSConfig, name, detail string) error {
	op := "wait for the TXT values at " + strings.TrimSuffix(name, ".")
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, contextError(ctx))
	}
	hint := "set dns.resolvers to servers that this host can reach, or dns.propagation.check to false where it can reach none"
	return issueError(fmt.Sprintf("%s: not seen within %s (DNS provider %s): %s", op, cfg.Timeout, cfg.Provider, detail), nil, hint)
}

// visible tells whether value is at name already, as after a crash between its publication and the challenge.
func visible(ctx context.Context, cfg DNSConfig, name, value string) bool {
	servers, err := serversFor(ctx, cfg, name)
	return err == nil && summarise(look(ctx, servers, name), []string{value}).complete
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return contextError(ctx)
	case <-timer.C:
		return nil
	}
}

// isOwn tells that a record's value follows from the account's key.
func isOwn(r cluster.Record, thumbprint string) bool {
	return r.Value == txtValue(keyAuthorization(r.Token, thumbprint))
}
