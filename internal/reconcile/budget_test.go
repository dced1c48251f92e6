package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

func TestTheRegisteredDomainIsThatOfThePublicSuffixList(t *testing.T) {
	for domains, want := range map[string]string{
		"example.org *.example.org":     "example.org",
		"a.b.example.co.uk":             "example.co.uk",
		"www.example.org example.net":   "example.net example.org",
		"*.user.github.io":              "user.github.io",
		"co.uk":                         "co.uk",
		"localhost":                     "localhost",
		"WWW.Example.ORG":               "example.org",
		"www.xn--85x722f.xn--55qx5d.cn": "xn--85x722f.xn--55qx5d.cn",
	} {
		if got := strings.Join(registeredDomains(strings.Fields(domains)), " "); got != want {
			t.Errorf("%s: %s, want %s", domains, got, want)
		}
	}
}

func spent(domains string, age time.Duration, renews cluster.Renews, end cluster.End, order string) cluster.Attempt {
	return cluster.Attempt{ID: "a" + order, Node: "n", Slot: slot, Directory: letsEncrypt, Domains: strings.Fields(domains), Order: order,
		Renews: renews, Time: noon.Add(-age), End: end}
}

func TestABudget(t *testing.T) {
	const names = "example.org *.example.org"
	entries := func(n int, domains string, renews cluster.Renews, end cluster.End, change ...func(*cluster.Attempt)) []cluster.Attempt {
		var out []cluster.Attempt
		for i := range n {
			a := spent(strings.ReplaceAll(domains, "#", fmt.Sprint(i)), time.Duration(n-i)*time.Hour, renews, end, fmt.Sprintf("%s%d", end, i))
			for _, c := range change {
				c(&a)
			}
			out = append(out, a)
		}
		return out
	}
	oldest := func(n int) time.Time { return noon.Add(-time.Duration(n)*time.Hour + 7*day) }
	open := []cluster.Order{{ID: "failed0", Expires: noon.Add(day)}, {ID: "0", Expires: noon.Add(day)}}
	for what, c := range map[string]struct {
		ledger []cluster.Attempt
		orders []cluster.Order
		names  string
		renews cluster.Renews
		until  time.Time // zero: allowed
	}{
		"nothing was ordered":            {nil, nil, names, cluster.RenewsNothing, time.Time{}},
		"four of the same names":         {entries(4, names, cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNames, time.Time{}},
		"five of the same names":         {entries(5, names, cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNames, oldest(5)},
		"seven of the same names":        {entries(7, names, cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNames, oldest(5)},
		"five in another spelling":       {entries(5, "*.EXAMPLE.org example.org", cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNames, oldest(5)},
		"five of one name more":          {entries(5, names+" www.example.org", cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNames, time.Time{}},
		"five failed":                    {entries(5, names, cluster.RenewsNames, cluster.Failed), nil, names, cluster.RenewsNames, time.Time{}},
		"five failed, one may yet come":  {append(entries(5, names, cluster.RenewsNames, cluster.Failed), entries(4, names, cluster.RenewsNames, cluster.Issued)...), open, names, cluster.RenewsNames, oldest(5)},
		"five in the window":             {entries(5, names, cluster.RenewsInWindow, cluster.Issued), nil, names, cluster.RenewsNames, time.Time{}},
		"in the window, five before":     {entries(5, names, cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsInWindow, time.Time{}},
		"five at another CA":             {entries(5, names, cluster.RenewsNames, cluster.Issued, func(a *cluster.Attempt) { a.Directory = "D" }), nil, names, cluster.RenewsNames, time.Time{}},
		"five a week ago":                {entries(5, names, cluster.RenewsNames, cluster.Issued, func(a *cluster.Attempt) { a.Time = noon.Add(-7 * day) }), nil, names, cluster.RenewsNames, time.Time{}},
		"five attempts of one order":     {entries(5, names, cluster.RenewsNames, cluster.Issued, func(a *cluster.Attempt) { a.Order = "same" }), nil, names, cluster.RenewsNames, time.Time{}},
		"five of the future":             {entries(5, names, cluster.RenewsNames, cluster.Issued, func(a *cluster.Attempt) { a.Time = noon.Add(9 * day) }), nil, names, cluster.RenewsNames, time.Time{}},
		"fifty under the domain":         {entries(50, "h#.example.org", cluster.RenewsNothing, cluster.Issued), nil, names, cluster.RenewsNothing, oldest(50)},
		"forty-nine under the domain":    {entries(49, "h#.example.org", cluster.RenewsNothing, cluster.Issued), nil, names, cluster.RenewsNothing, time.Time{}},
		"fifty, and it renews":           {entries(50, "h#.example.org", cluster.RenewsNothing, cluster.Issued), nil, names, cluster.RenewsNames, time.Time{}},
		"fifty renewals":                 {entries(50, "h#.example.org", cluster.RenewsNames, cluster.Issued), nil, names, cluster.RenewsNothing, time.Time{}},
		"fifty under another":            {entries(50, "h#.example.net", cluster.RenewsNothing, cluster.Issued), nil, names, cluster.RenewsNothing, time.Time{}},
		"fifty under one of its domains": {entries(50, "h#.example.net", cluster.RenewsNothing, cluster.Issued), nil, names + " example.net", cluster.RenewsNothing, oldest(50)},
	} {
		b := newBudget(letsEncrypt, cluster.Records{Ledger: c.ledger, Orders: c.orders}, noon)
		err := b.take(strings.Fields(c.names), c.renews, noon)
		putOff, refused := errors.AsType[*cluster.PutOffError](err)
		switch {
		case c.until.IsZero() && err != nil:
			t.Errorf("%s: %v", what, err)
		case !c.until.IsZero() && (!refused || !putOff.Until.Equal(c.until)):
			t.Errorf("%s: %v, want until %s", what, err, c.until)
		}
	}
	if err := newBudget("https://ca.test/directory", cluster.Records{Ledger: entries(9, names, "", cluster.Issued)}, noon).take(strings.Fields(names), "", noon); err != nil {
		t.Errorf("a CA whose limits are not known: %v", err)
	}
}

func TestABudgetIsSharedByThoseWhoOrderAtOnce(t *testing.T) {
	b := newBudget(letsEncrypt, cluster.Records{}, noon)
	var wg sync.WaitGroup
	var mu sync.Mutex
	given := 0
	for i := range 80 {
		wg.Go(func() {
			if b.take([]string{fmt.Sprintf("h%d.example.org", i)}, cluster.RenewsNothing, noon) == nil {
				mu.Lock()
				given++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if given != 50 {
		t.Errorf("%d were allowed, want 50", given)
	}
}

// fleet is a world whose CA has Let's Encrypt's limits, with n certificates under one domain.
func fleet(t *testing.T, n int) *world {
	var cs []Certificate
	for i := range n {
		name := fmt.Sprintf("h%02d.example.org", i)
		cs = append(cs, certificate(name, []string{name}, cert.EC256))
	}
	w := newWorld(t, 1, withCertificates(cs...))
	w.ca.directory = letsEncrypt
	return w
}

func TestTheFiftyFirstUnderOneDomainWaits(t *testing.T) {
	w := fleet(t, 53)
	begin := w.Now()
	report := w.hosts[0].issue()
	w.orders(50, 50)
	waiting := 0
	for _, row := range report.Certificates {
		if row.Outcome == cluster.PutOff {
			waiting++
			if !row.NextTry.Equal(begin.Add(7*day)) || !strings.Contains(row.Error, "50 certificates under example.org") {
				t.Errorf("%s waits until %s: %s", row.Slot, row.NextTry, row.Error)
			}
		}
	}
	if waiting != 3 || report.Outcome != cluster.PutOff {
		t.Errorf("%d wait, outcome %s", waiting, report.Outcome)
	}
	if !slices.ContainsFunc(report.Warnings, func(s string) bool { return strings.Contains(s, "50 of the 50") && strings.Contains(s, "example.org") }) {
		t.Errorf("warnings %q", report.Warnings)
	}
	w.advance(day)
	w.hosts[0].issue() // a person's pass neither
	w.orders(50, 50)
	w.advance(6 * day)
	w.hosts[0].tick()
	w.orders(53, 53)
}

func TestASpentBudgetIsTheNextInstant(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.directory = letsEncrypt
	h := w.hosts[0]
	begin := w.Now()
	var warned []int
	for i := range 7 {
		report := h.issue("example.org") // five can be had
		if slices.ContainsFunc(report.Warnings, func(s string) bool { return strings.Contains(s, "of the 5 certificates") }) {
			warned = append(warned, i+1)
		}
		if i < 5 {
			w.advance(time.Hour)
			continue
		}
		row := rowOf(t, report, slot)
		if row.Outcome != cluster.PutOff || !row.NextTry.Equal(begin.Add(7*day)) || !row.Next.Equal(row.NextTry) {
			t.Errorf("the sixth: %s until %s, next %s", row.Outcome, row.NextTry, row.Next)
		}
	}
	w.orders(5, 5)
	if !slices.Equal(warned, []int{4, 5, 6, 7}) {
		t.Errorf("warned at %v, want from the fourth on", warned)
	}
}

// The two key types of a name have the same names.
func TestBothKeyTypesCountForTheirNames(t *testing.T) {
	both := certificate("example.org", wildcard.Domains, cert.EC256, cert.RSA2048)
	w := newWorld(t, 1, withCertificates(both))
	w.ca.directory = letsEncrypt
	for range 3 {
		w.hosts[0].issue("example.org")
		w.advance(time.Minute)
	}
	w.orders(5, 5)
}

func TestRenewalsInTheWindowCostNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.directory = letsEncrypt
	w.ca.lifetime = 160 * time.Hour
	w.suggests(-time.Hour, 2*time.Hour, 30*time.Minute)
	h := w.hosts[0]
	report := h.tick()
	for range 200 {
		if h.newest(slot).Sequence > 8 {
			break
		}
		w.advance(max(time.Second, report.Next.Sub(w.Now())))
		report = h.tick()
	}
	if n := h.newest(slot).Sequence; n < 9 || len(report.Warnings) > 0 {
		t.Errorf("generation %d, warnings %q", n, report.Warnings)
	}
}

func TestAnOrderUnderWayIsTakenUpWhateverTheBudget(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.directory = letsEncrypt
	h := w.hosts[0]
	for range 4 {
		h.issue("example.org")
	}
	w.ca.set(func() { w.ca.fault = failAt("present", errOutage) })
	h.issue("example.org")
	w.ca.set(func() { w.ca.fault = nil })
	if report := h.issue(); report.Outcome != cluster.Done || !rowOf(t, report, slot).Resumed {
		t.Errorf("outcome %s", report.Outcome)
	}
	w.orders(5, 5)
}
