package reconcile

import (
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func TestDue(t *testing.T) {
	ca := certtest.NewCA(t)
	start := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	bundle := ca.Issue(t, certtest.Options{NotBefore: start, NotAfter: start.Add(90 * day)})
	short := ca.Issue(t, certtest.Options{NotBefore: start, NotAfter: start.Add(160 * time.Hour)})
	fresh := func(change func(*Facts)) Facts {
		f := Facts{Now: start.Add(day), Domains: []string{"example.org", "*.example.org"}, KeyType: cert.EC256, Directory: "D",
			Newest: bundle.Generation("example.org", 3), Bundle: bundle.Summary(),
			Issued: cluster.Attempt{ID: "i", Directory: "D", End: cluster.Issued}}
		change(&f)
		return f
	}
	later := bundle.Generation("example.org", 4)
	for name, c := range map[string]struct {
		facts        Facts
		reason, held string
		until        time.Time
	}{
		"fresh":    {fresh(func(f *Facts) {}), "", "", time.Time{}},
		"none yet": {Facts{Now: start, Domains: []string{"a"}, KeyType: cert.EC256}, "none was issued yet", "", time.Time{}},
		"none yet, and another configuration there": {Facts{Now: start, OtherConfig: []string{"proxy2"}}, "",
			"none was issued yet, but proxy2 runs another configuration", time.Time{}},
		"the only one is lost, and another configuration there": {Facts{Now: start, Released: later, OtherConfig: []string{"proxy2"}}, "lost", "", time.Time{}},
		"none yet, another configuration there, and forced":     {Facts{Now: start, Forced: true, OtherConfig: []string{"proxy2"}}, "asked for", "", time.Time{}},
		"none yet, another configuration there, and an order under way": {Facts{Now: start, OtherConfig: []string{"proxy2"},
			Order: &cluster.Order{Step: cluster.StepPresenting}}, "at step presenting", "", time.Time{}},
		"forced":                 {fresh(func(f *Facts) { f.Forced = true }), "asked for", "", time.Time{}},
		"an open order":          {fresh(func(f *Facts) { f.Order = &cluster.Order{Step: cluster.StepPresenting} }), "at step presenting", "", time.Time{}},
		"just over a third left": {fresh(func(f *Facts) { f.Now = start.Add(60*day - time.Second) }), "", "", time.Time{}},
		"a third left":           {fresh(func(f *Facts) { f.Now = start.Add(60 * day) }), "30 days of 90 days left", "", time.Time{}},
		"expired":                {fresh(func(f *Facts) { f.Now = start.Add(99 * day) }), "-9 days of 90 days left", "", time.Time{}},
		"short: just over half left": {fresh(func(f *Facts) {
			f.Newest, f.Bundle, f.Now = short.Generation("e", 1), short.Summary(), start.Add(80*time.Hour-1)
		}), "", "", time.Time{}},
		"short: half left": {fresh(func(f *Facts) {
			f.Newest, f.Bundle, f.Now = short.Generation("e", 1), short.Summary(), start.Add(80*time.Hour)
		}), "3 days of 6 days left", "", time.Time{}},
		"the clock went back":    {fresh(func(f *Facts) { f.Now = start.Add(-9 * day) }), "", "", time.Time{}},
		"a name more":            {fresh(func(f *Facts) { f.Domains = append(f.Domains, "new.example") }), "new.example", "", time.Time{}},
		"names in another order": {fresh(func(f *Facts) { f.Domains = []string{"*.EXAMPLE.org", "example.org"} }), "", "", time.Time{}},
		"another key type":       {fresh(func(f *Facts) { f.KeyType = cert.EC384 }), "its key type is ec256", "", time.Time{}},
		"another directory":      {fresh(func(f *Facts) { f.Directory = "E" }), "issued by D", "", time.Time{}},
		"another profile":        {fresh(func(f *Facts) { f.Profile = "shortlived" }), `profile is ""`, "", time.Time{}},
		"nothing is remembered":  {fresh(func(f *Facts) { f.Directory, f.Issued = "E", cluster.Attempt{} }), "", "", time.Time{}},
		"another configuration there": {fresh(func(f *Facts) { f.KeyType, f.OtherConfig = cert.EC384, []string{"proxy2"} }), "",
			"proxy2 runs another configuration", time.Time{}},
		"another configuration there, and a third left": {fresh(func(f *Facts) {
			f.KeyType, f.OtherConfig, f.Now = cert.EC384, []string{"proxy2"}, start.Add(60*day)
		}), "left", "", time.Time{}},
		"put off": {fresh(func(f *Facts) {
			f.Forced, f.PutOff = true, cluster.Attempt{Time: f.Now, NextTry: f.Now.Add(time.Hour), RetryAfter: true}
		}), "asked for", "", start.Add(day + time.Hour)},
		"put off no longer": {fresh(func(f *Facts) {
			f.Forced, f.PutOff = true, cluster.Attempt{Time: f.Now.Add(-time.Hour), NextTry: f.Now}
		}), "asked for", "", time.Time{}},
		"put off for years counts as 8 days": {fresh(func(f *Facts) {
			f.Forced, f.PutOff = true, cluster.Attempt{Time: f.Now, NextTry: f.Now.Add(9999 * time.Hour), RetryAfter: true}
		}), "asked for", "", start.Add(9 * day)},
		"put off, and not due":     {fresh(func(f *Facts) { f.PutOff = cluster.Attempt{Time: f.Now, NextTry: f.Now.Add(time.Hour)} }), "", "", time.Time{}},
		"unreadable for now":       {fresh(func(f *Facts) { f.Bundle, f.KeyType = cert.Summary{}, cert.EC384 }), "", "", time.Time{}},
		"unreadable, a third left": {fresh(func(f *Facts) { f.Bundle, f.Now = cert.Summary{}, start.Add(60*day) }), "left", "", time.Time{}},
		"lost":                     {fresh(func(f *Facts) { f.Released = later }), "lost", "", time.Time{}},
		"released is held":         {fresh(func(f *Facts) { f.Released = f.Newest }), "", "", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			v := Due(c.facts)
			if (c.reason == "") != (v.Reason == "") || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("reason %q, want %q", v.Reason, c.reason)
			}
			if (c.held == "") != (v.Held == "") || !strings.Contains(v.Held, c.held) {
				t.Errorf("held %q, want %q", v.Held, c.held)
			}
			if !v.Until.Equal(c.until) {
				t.Errorf("until %s, want %s", v.Until, c.until)
			}
		})
	}
}
