package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// limits are those of a CA.
type limits struct {
	// ca names it for a person.
	ca string
	// perNames is how many certificates of exactly the same names it gives in window, perDomain how many of names under
	// one registered domain. A renewal of exactly the same names does not count for the domain, and one in the window
	// that the CA suggested does not count at all.
	perNames, perDomain int
	window              time.Duration
	// pause is the shortest between two failures that it does not mind.
	pause time.Duration
}

// known are the CAs whose limits are known, by their directories: https://letsencrypt.org/docs/rate-limits/ (2026). Let's
// Encrypt refills its limits bit by bit; so many in any 7 days are never more than that. It lets 5 authorizations of a
// name fail in an hour.
var known = map[string]limits{
	"https://acme-v02.api.letsencrypt.org/directory": {ca: "Let's Encrypt", perNames: 5, perDomain: 50, window: 7 * 24 * time.Hour, pause: 15 * time.Minute},
}

// budget is what the CA's limits leave. A CA whose limits are not known has no budget, and everything is allowed. It is
// safe for concurrent use.
type budget struct {
	limits

	mu sync.Mutex
	// names and domains are when the certificates were ordered that count, each sorted.
	names, domains map[string][]time.Time
}

// newBudget counts what the ledger says was given at directory, and what open orders may yet give.
func newBudget(directory string, records cluster.Records, now time.Time) *budget {
	b := &budget{limits: known[directory], names: map[string][]time.Time{}, domains: map[string][]time.Time{}}
	if b.window == 0 {
		return b
	}
	open := map[string]bool{}
	for _, o := range records.Orders {
		if !o.Lapsed(now) {
			open[o.ID] = true
		}
	}
	orders := map[string]cluster.Attempt{} // by ID: the attempt that led to the certificate, or the last
	for _, a := range records.Ledger {
		if a.Directory != directory || a.Time.After(now.Add(cluster.MaxSkew)) || now.Sub(a.Time) >= b.window {
			continue
		}
		if old, ok := orders[a.Order]; !ok || old.End != cluster.Issued {
			orders[a.Order] = a
		}
	}
	for id, a := range orders {
		if a.End == cluster.Issued || open[id] {
			b.count(a.Domains, a.Renews, a.Time)
		}
	}
	for _, times := range []map[string][]time.Time{b.names, b.domains} {
		for _, t := range times {
			slices.SortFunc(t, time.Time.Compare)
		}
	}
	return b
}

// count notes a certificate. Its time is not before those noted, or the lists are sorted after.
func (b *budget) count(domains []string, renews cluster.Renews, at time.Time) {
	if renews == cluster.RenewsInWindow {
		return
	}
	k := identifiersOf(domains)
	b.names[k] = append(b.names[k], at)
	if renews == cluster.RenewsNothing {
		for _, d := range registeredDomains(domains) {
			b.domains[d] = append(b.domains[d], at)
		}
	}
}

// take counts one more certificate, or gives the *cluster.PutOffError of a limit that is spent.
func (b *budget) take(domains []string, renews cluster.Renews, now time.Time) error {
	if b.window == 0 || renews == cluster.RenewsInWindow {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var worst *cluster.PutOffError
	refuse := func(used []time.Time, limit int, what string) {
		if len(used) < limit {
			return
		}
		if until := used[len(used)-limit].Add(b.window); until.After(now) && (worst == nil || until.After(worst.Until)) {
			worst = &cluster.PutOffError{Until: until.UTC(), Cause: fmt.Sprintf("%s gives %d certificates %s in %s, and gave so many",
				b.ca, limit, what, shortDuration(b.window))}
		}
	}
	refuse(b.names[identifiersOf(domains)], b.perNames, "of exactly these names")
	if renews == cluster.RenewsNothing {
		for _, d := range registeredDomains(domains) {
			refuse(b.domains[d], b.perDomain, "under "+d)
		}
	}
	if worst != nil {
		return worst
	}
	b.count(domains, renews, now)
	return nil
}

// warnings tell of limits that are nearly spent: one certificate of the same names left, or a fifth of those under a
// domain.
func (b *budget) warnings(certificates []Certificate) []string {
	if b.window == 0 {
		return nil
	}
	names, domains := map[string]string{}, map[string]bool{}
	for _, c := range certificates {
		k := identifiersOf(c.Domains)
		names[k] = cmp.Or(names[k], c.Name)
		for _, d := range registeredDomains(c.Domains) {
			domains[d] = true
		}
	}
	var out []string
	tell := func(what string, used []time.Time, limit, from int) {
		if len(used) < from {
			return
		}
		free := used[max(0, len(used)-limit)].Add(b.window).UTC()
		out = append(out, fmt.Sprintf("%s: %d of the %d certificates that %s gives in %s are used; there is one more from %s on",
			what, len(used), limit, b.ca, shortDuration(b.window), free.Format(time.RFC3339)))
	}
	for _, k := range slices.Sorted(maps.Keys(names)) {
		tell("the names of "+names[k], b.names[k], b.perNames, b.perNames-1)
	}
	for _, d := range slices.Sorted(maps.Keys(domains)) {
		tell("names under "+d, b.domains[d], b.perDomain, b.perDomain*4/5)
	}
	return out
}

func identifiersOf(domains []string) string { return cluster.Order{Domains: domains}.Identifiers() }

// registeredDomains are those of the names, each once, by the public suffix list. A name that is a public suffix itself
// counts as its own.
func registeredDomains(domains []string) []string {
	var out []string
	for _, d := range cert.NormalDomains(domains) {
		name := strings.TrimPrefix(d, "*.")
		registered, err := publicsuffix.EffectiveTLDPlusOne(name)
		if err != nil {
			registered = name
		}
		out = append(out, registered)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
