package cluster_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Small domains, so that the drawn values collide in some fields and differ in others: that is where a merge that is
// not one shows it.

var now = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

// times are instants of which some are the same in different zones.
func times(t *rapid.T, label string) time.Time {
	base := rapid.SampledFrom([]time.Time{{}, now.Add(-40 * 24 * time.Hour), now.Add(-time.Hour), now, now.Add(time.Minute), now.Add(9 * 24 * time.Hour)}).Draw(t, label)
	if !base.IsZero() && rapid.Bool().Draw(t, label+" in a zone") {
		return base.In(time.FixedZone("somewhere", 3600))
	}
	return base
}

func text(t *rapid.T, label string) string {
	return rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, label)
}

func slot(t *rapid.T) cert.Slot {
	return cert.Slot{Name: text(t, "name"), Algorithm: rapid.SampledFrom([]cert.Algorithm{cert.ECDSA, cert.RSA}).Draw(t, "algorithm")}
}

func fingerprint(t *rapid.T) cert.Fingerprint {
	return cert.Fingerprint{rapid.ByteRange(0, 2).Draw(t, "fingerprint")}
}

func domains(t *rapid.T) []string {
	return rapid.SampledFrom([][]string{{"a"}, {"a", "b"}, {"b"}}).Draw(t, "domains")
}

func end(t *rapid.T) cluster.End {
	return rapid.SampledFrom([]cluster.End{cluster.Open, cluster.Issued, cluster.Failed, cluster.Canceled, "unheard of"}).Draw(t, "end")
}

func genRecord(t *rapid.T) cluster.Record {
	return cluster.Record{Domain: text(t, "domain"), Token: text(t, "token"), Value: text(t, "value"), FQDN: text(t, "fqdn"),
		Removed: rapid.Bool().Draw(t, "removed"), Round: rapid.IntRange(0, 2).Draw(t, "round")}
}

func genOrder(t *rapid.T) cluster.Order {
	return cluster.Order{ID: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "id"), Slot: slot(t), Domains: domains(t),
		KeyType: rapid.SampledFrom([]cert.KeyType{cert.EC256, cert.RSA2048}).Draw(t, "key type"), Profile: text(t, "profile"),
		Directory: text(t, "directory"), Account: text(t, "account"), Key: cluster.Secret(text(t, "key")), Replaces: text(t, "replaces"),
		URL: text(t, "url"), Step: rapid.SampledFrom(cluster.Steps()).Draw(t, "step"), Records: rapid.SliceOfN(rapid.Custom(genRecord), 0, 3).Draw(t, "records"),
		Node: text(t, "node"), Created: times(t, "created"), Expires: times(t, "expires"), End: end(t), Problem: text(t, "problem")}
}

func genAttempt(t *rapid.T) cluster.Attempt {
	return cluster.Attempt{ID: text(t, "id"), Node: text(t, "node"), Slot: slot(t), Directory: text(t, "directory"), Domains: domains(t),
		Profile: text(t, "profile"), Order: text(t, "order"), Resumed: rapid.Bool().Draw(t, "resumed"), Time: times(t, "time"), End: end(t),
		Problem: text(t, "problem"), NextTry: times(t, "next try"), RetryAfter: rapid.Bool().Draw(t, "retry after"),
		Renews: rapid.SampledFrom([]cluster.Renews{cluster.RenewsNothing, cluster.RenewsInWindow}).Draw(t, "renews")}
}

func genRenewal(t *rapid.T) cluster.RenewalInfo {
	return cluster.RenewalInfo{Generation: genRelease(t).Generation, CertID: text(t, "cert ID"), Directory: text(t, "directory"),
		Start: times(t, "start"), End: times(t, "end"), Explanation: text(t, "explanation"), Node: text(t, "node"), Time: times(t, "time"),
		Revision: rapid.Uint64Range(0, 2).Draw(t, "revision"), Again: times(t, "again"), Problem: text(t, "problem")}
}

func genRevocation(t *rapid.T) cluster.Revocation {
	return cluster.Revocation{Generation: genRelease(t).Generation, Reason: cluster.Reason(text(t, "reason")), Directory: text(t, "directory"),
		AtOnce: rapid.Bool().Draw(t, "at once"), Node: text(t, "node"), Time: times(t, "time"), Revision: rapid.Uint64Range(0, 2).Draw(t, "revision"),
		End: rapid.SampledFrom([]cluster.RevocationEnd{cluster.RevocationOpen, cluster.RevocationGivenUp, cluster.RevocationRefused,
			cluster.RevocationDone, "unheard of"}).Draw(t, "end"),
		Tries: rapid.IntRange(0, 2).Draw(t, "tries"), Problem: text(t, "problem"), NextTry: times(t, "next try")}
}

func genTombstone(t *rapid.T) cluster.Tombstone {
	return cluster.Tombstone{Fingerprint: fingerprint(t), Name: text(t, "name"), Time: times(t, "time"), Reason: text(t, "reason")}
}

func genRelease(t *rapid.T) cluster.Release {
	return cluster.Release{Generation: cert.Generation{Slot: slot(t), Sequence: rapid.Uint64Range(0, 2).Draw(t, "sequence"),
		NotBefore: times(t, "not before"), NotAfter: times(t, "not after"), Fingerprint: fingerprint(t)}, Node: text(t, "node"), Time: times(t, "time")}
}

func genAccount(t *rapid.T) cluster.Account {
	return cluster.Account{Directory: text(t, "directory"), URL: text(t, "url"), Email: text(t, "email"), Created: times(t, "created"),
		Thumbprint: text(t, "thumbprint"), Key: cluster.Secret(text(t, "key"))}
}

// same is equality in what is stored and sent.
func same(t *rapid.T, what string, a, b any) {
	t.Helper()
	ja, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	jb, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(ja) != string(jb) {
		t.Fatalf("not %s:\n%s\n%s", what, ja, jb)
	}
}

// checkMerge holds merge against the laws of a join, and against every order of arrival with duplicates.
func checkMerge[T any](t *testing.T, gen func(*rapid.T) T, merge func(a, b []T) []T) {
	t.Helper()
	lists := rapid.SliceOfN(rapid.Custom(gen), 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := lists.Draw(t, "a"), lists.Draw(t, "b"), lists.Draw(t, "c")
		ab := merge(a, b)
		same(t, "commutative", ab, merge(b, a))
		same(t, "associative", merge(ab, c), merge(a, merge(b, c)))
		same(t, "idempotent", ab, merge(ab, ab))
		same(t, "absorbing", ab, merge(ab, a))
		same(t, "neutral to nothing", merge(a, nil), merge(nil, a))
		all := slices.Concat(a, b, c)
		arrivals := rapid.Permutation(slices.Concat(all, all)).Draw(t, "arrivals")
		var have []T
		for _, v := range arrivals {
			have = merge(have, []T{v})
		}
		same(t, "the same from every order of arrival", merge(merge(merge(nil, a), b), c), merge(have, nil))
	})
}

func TestMergesAreJoins(t *testing.T) {
	t.Run("orders", func(t *testing.T) { checkMerge(t, genOrder, cluster.MergeOrders) })
	t.Run("ledger", func(t *testing.T) {
		checkMerge(t, genAttempt, func(a, b []cluster.Attempt) []cluster.Attempt { return cluster.MergeLedger(a, b, now) })
	})
	t.Run("tombstones", func(t *testing.T) { checkMerge(t, genTombstone, cluster.MergeTombstones) })
	t.Run("releases", func(t *testing.T) { checkMerge(t, genRelease, cluster.MergeReleases) })
	t.Run("renewals", func(t *testing.T) { checkMerge(t, genRenewal, cluster.MergeRenewals) })
	t.Run("revocations", func(t *testing.T) { checkMerge(t, genRevocation, cluster.MergeRevocations) })
	t.Run("accounts", func(t *testing.T) { checkMerge(t, genAccount, cluster.MergeAccounts) })
}

func TestMergesLeaveTheirArgumentsAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(rapid.Custom(genOrder), 1, 4).Draw(t, "a"), rapid.SliceOfN(rapid.Custom(genOrder), 1, 4).Draw(t, "b")
		before, err := json.Marshal([][]cluster.Order{a, b})
		if err != nil {
			t.Fatal(err)
		}
		cluster.MergeOrders(a, b)
		same(t, "left alone", json.RawMessage(before), [][]cluster.Order{a, b})
	})
}

func TestNothingOfAnOrderGoesBack(t *testing.T) {
	rank := map[cluster.End]int{cluster.Open: 0, cluster.Issued: 2}
	rankOf := func(e cluster.End) int {
		if r, ok := rank[e]; ok {
			return r
		}
		return 1
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := genOrder(t), genOrder(t)
		b.ID = a.ID
		m := cluster.MergeOrder(a, b)
		if m.Step != max(a.Step, b.Step) {
			t.Fatalf("step %v of %v and %v", m.Step, a.Step, b.Step)
		}
		if rankOf(m.End) != max(rankOf(a.End), rankOf(b.End)) {
			t.Fatalf("end %q of %q and %q", m.End, a.End, b.End)
		}
		if m.Expires.Before(a.Expires) || m.Expires.Before(b.Expires) {
			t.Fatalf("expiry %v of %v and %v", m.Expires, a.Expires, b.Expires)
		}
		for _, o := range []cluster.Order{a, b} {
			if o.Step == m.Step && a.Step != b.Step && (o.URL != m.URL || o.Node != m.Node || string(o.Key) != string(m.Key)) {
				t.Fatalf("the record that is further is torn apart: %+v", m)
			}
			for _, r := range o.Records {
				i := slices.IndexFunc(m.Records, func(x cluster.Record) bool { return x.Domain == r.Domain && x.Token == r.Token && x.Value == r.Value })
				if i < 0 {
					t.Fatalf("the TXT value %+v is lost", r)
				}
				if m.Records[i].Round < r.Round || m.Records[i].Round == r.Round && r.Removed && !m.Records[i].Removed {
					t.Fatalf("%+v went back to %+v", r, m.Records[i])
				}
			}
		}
	})
}

func TestThePreferredAccountIsTheSameFromEveryOrderOfArrival(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(genAccount), 1, 5).Draw(t, "accounts")
		a, okA := cluster.PreferredAccount(all, "a")
		b, okB := cluster.PreferredAccount(rapid.Permutation(append(slices.Clone(all), all...)).Draw(t, "again"), "a")
		if okA != okB || a.Compare(b) != 0 {
			t.Fatalf("%v or %v", a, b)
		}
		for _, other := range all {
			if other.Directory == "a" && (!okA || other.Created.Before(a.Created)) {
				t.Fatalf("%v is preferred to the earlier %v", a, other)
			}
		}
		if okA && a.Directory != "a" {
			t.Fatalf("%v is of another directory", a)
		}
	})
}

func TestALedgerKeepsABackOffForAnEntryThatCameTwice(t *testing.T) {
	a := cluster.Attempt{ID: "1", Node: "n", Time: now, End: cluster.Failed, NextTry: now.Add(time.Hour)}
	longer := a
	longer.NextTry = now.Add(2 * time.Hour)
	open := a
	open.End, open.NextTry = cluster.Open, now.Add(40*time.Hour)
	got := cluster.MergeLedger([]cluster.Attempt{longer}, []cluster.Attempt{a, open}, now)
	if len(got) != 1 || !got[0].NextTry.Equal(longer.NextTry) || got[0].End != cluster.Failed {
		t.Errorf("merged: %+v", got)
	}
}

func TestTheLedgerForgetsAfterThirtyDays(t *testing.T) {
	at := cluster.Attempt{ID: "1", Node: "n", Time: now.Add(-cluster.KeepAttempts)}
	before := cluster.Attempt{ID: "2", Node: "n", Time: now.Add(-cluster.KeepAttempts - 1)}
	if got := cluster.MergeLedger([]cluster.Attempt{at, before}, nil, now); len(got) != 1 || got[0].ID != "1" {
		t.Errorf("merged: %+v", got)
	}
}

func TestOrdersAreForgottenADayAfterTheirExpiry(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		expires time.Time
		last    time.Time // at which it is remembered
	}{
		{now.Add(7 * day), now.Add(8 * day)},
		{now, now.Add(day)},
		{now.Add(90 * day), now.Add(91 * day)},
		{now.Add(90*day + 1), now.Add(91 * day)},
		{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), now.Add(91 * day)},
	} {
		o := cluster.Order{Created: now, Expires: c.expires}
		if o.Forgotten(c.last) || !o.Forgotten(c.last.Add(1)) {
			t.Errorf("expires %v: forgotten at %v: %t, an instant later: %t", c.expires, c.last, o.Forgotten(c.last), o.Forgotten(c.last.Add(1)))
		}
		o.End = cluster.Failed
		if o.Forgotten(c.last) {
			t.Errorf("expires %v: an ended order is forgotten before an open one", c.expires)
		}
	}
}

func TestAnAccountIsNeededUntilTheOrderEndedAndItsValuesAreRemoved(t *testing.T) {
	o := cluster.Order{Records: []cluster.Record{{Removed: true}}}
	for _, step := range []struct {
		end     cluster.End
		removed bool
		want    bool
	}{{cluster.Open, true, true}, {cluster.Open, false, true}, {cluster.Failed, false, true}, {cluster.Issued, false, true}, {cluster.Failed, true, false}, {cluster.Issued, true, false}} {
		o.End, o.Records[0].Removed = step.end, step.removed
		if o.NeedsAccount() != step.want {
			t.Errorf("end %q, removed %t: %t", step.end, step.removed, o.NeedsAccount())
		}
	}
}
