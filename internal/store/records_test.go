package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func asJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRecordsComeBackAsTheyWereMerged(t *testing.T) {
	s := fresh(t)
	if r := records(t, s); !reflect.DeepEqual(r, cluster.Records{}) {
		t.Errorf("a new store holds %v", r)
	}
	want := allRecords(t)
	want.Orders[0].Records = []cluster.Record{{Domain: "example.org", Token: "t", Value: "v"}}
	merge(t, s, want)
	for _, s := range []*Store{s, open(t, s.dir)} {
		if have := records(t, s); asJSON(t, have) != asJSON(t, want) {
			t.Errorf("have %s\nwant %s", asJSON(t, have), asJSON(t, want))
		}
	}
	noProblems(t, s)
}

func TestTheSameRecordsTwiceWriteNothing(t *testing.T) {
	s := fresh(t)
	r := allRecords(t)
	merge(t, s, r)
	before := files(t, s.dir)
	merge(t, s, r)
	merge(t, s, records(t, s))
	merge(t, s, cluster.Records{})
	// A peer's JSON may give the same instant in another zone.
	zone := time.FixedZone("somewhere", -7200)
	r.Orders[0].Created, r.Orders[0].Expires = r.Orders[0].Created.In(zone), r.Orders[0].Expires.In(zone)
	r.Ledger[0].Time = r.Ledger[0].Time.In(zone)
	r.Accounts[0].Created = r.Accounts[0].Created.In(zone)
	r.Tombstones[0].Time = r.Tombstones[0].Time.In(zone)
	r.Releases[0].Time = r.Releases[0].Time.In(zone)
	r.Renewals[0].Time, r.Renewals[0].Again = r.Renewals[0].Time.In(zone), r.Renewals[0].Again.In(zone)
	r.Revocations[0].Time = r.Revocations[0].Time.In(zone)
	merge(t, open(t, s.dir), r)
	after := files(t, s.dir)
	for _, m := range []map[string]string{before, after} {
		delete(m, "store.lock")
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

func TestOnlyWhatChangedIsWritten(t *testing.T) {
	s := fresh(t)
	r := allRecords(t)
	second := newOrder(t, "order2", "other.org")
	second.Account = r.Accounts[0].Thumbprint
	r.Orders = append(r.Orders, second)
	merge(t, s, r)
	before := files(t, s.dir)
	second.Step = cluster.StepOrdered
	second.URL = "https://ca.test/order/2"
	merge(t, s, cluster.Records{Orders: []cluster.Order{second}})
	after := files(t, s.dir)
	for name := range after {
		changed := before[name] != after[name]
		may := name == "orders/order2.json" || name == "store.lock" || name == "orders" || name == "tmp"
		if changed && !may {
			t.Errorf("%s changed: %s, then %s", name, before[name], after[name])
		}
	}
	if before["orders/order2.json"] == after["orders/order2.json"] {
		t.Error("the changed order was not written")
	}
}

func TestStepsOfAnOrderOnlyAdvance(t *testing.T) {
	s := fresh(t)
	o := newOrder(t, "order1", "example.org")
	for _, step := range []cluster.Step{cluster.StepPlanned, cluster.StepFinalizing, cluster.StepPresenting, cluster.StepOrdered} {
		o.Step = step
		merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	}
	if have := records(t, s).Orders; len(have) != 1 || have[0].Step != cluster.StepFinalizing {
		t.Errorf("orders: %v", asJSON(t, have))
	}
	o.End = cluster.Failed
	merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	o.End = cluster.Open
	merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	if have := records(t, s).Orders; len(have) != 1 || have[0].End != cluster.Failed {
		t.Errorf("an ended order came to life: %v", asJSON(t, have))
	}
}

// later is a store on the same folder whose clock is d ahead.
func later(t *testing.T, s *Store, d time.Duration) *Store {
	t.Helper()
	l, err := Open(s.dir, Options{Now: func() time.Time { return testNow.Add(d) }})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOrdersAreDroppedADayAfterTheirExpiryAndNotBefore(t *testing.T) {
	const day = 24 * time.Hour
	for _, end := range []cluster.End{cluster.Open, cluster.Issued, cluster.Failed} {
		s := fresh(t)
		o := newOrder(t, "order1", "example.org")
		o.Expires, o.End = testNow.Add(2*day), end
		merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
		merge(t, later(t, s, 3*day), cluster.Records{})
		if n := len(records(t, s).Orders); n != 1 {
			t.Errorf("end %q: %d orders on the last day, want 1", end, n)
		}
		merge(t, later(t, s, 3*day+time.Second), cluster.Records{})
		if n := len(records(t, s).Orders); n != 0 {
			t.Errorf("end %q: %d orders after the last day, want 0", end, n)
		}
		if _, err := os.Lstat(s.path("orders/order1.json")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("end %q: the file lies there still (%v)", end, err)
		}
		// The copy of a peer that is behind does not come back.
		o.End = cluster.Open
		merge(t, later(t, s, 3*day+time.Second), cluster.Records{Orders: []cluster.Order{o}})
		if n := len(records(t, s).Orders); n != 0 {
			t.Errorf("end %q: it came to life again", end)
		}
	}
}

func TestAnExpiryFarAheadDoesNotKeepAnOrderForEver(t *testing.T) {
	s := fresh(t)
	o := newOrder(t, "order1", "example.org")
	o.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	merge(t, later(t, s, 92*24*time.Hour), cluster.Records{})
	if n := len(records(t, s).Orders); n != 0 {
		t.Errorf("%d orders after 92 days, want 0", n)
	}
}

func TestTheLedgerIsPrunedAfterThirtyDays(t *testing.T) {
	s := fresh(t)
	merge(t, s, cluster.Records{Ledger: []cluster.Attempt{newAttempt("a1", "example.org")}})
	merge(t, later(t, s, cluster.KeepAttempts), cluster.Records{})
	if n := len(records(t, s).Ledger); n != 1 {
		t.Errorf("%d attempts after 30 days, want 1", n)
	}
	merge(t, later(t, s, cluster.KeepAttempts+time.Second), cluster.Records{})
	if n := len(records(t, s).Ledger); n != 0 {
		t.Errorf("%d attempts after more than 30 days, want 0", n)
	}
	noProblems(t, s)
}

func TestAnAccountIsKeptWhilePreferredOrNeeded(t *testing.T) {
	const directory = "https://ca.test/directory"
	s := fresh(t)
	late := newAccount(t, directory, testNow)
	elsewhere := newAccount(t, "https://other.test/directory", testNow.Add(time.Hour))
	o := newOrder(t, "order1", "example.org")
	o.Account, o.Directory = late.Thumbprint, directory
	o.Records = []cluster.Record{{Domain: "example.org", Token: "t", Value: "v"}}
	merge(t, s, cluster.Records{Accounts: []cluster.Account{late, elsewhere}, Orders: []cluster.Order{o}})
	// The peer's account is the earlier one: the cluster's from now on.
	early := newAccount(t, directory, testNow.Add(-time.Hour))
	merge(t, s, cluster.Records{Accounts: []cluster.Account{early}})
	has := func(want ...cluster.Account) {
		t.Helper()
		var have, wanted []string
		for _, a := range records(t, s).Accounts {
			have = append(have, a.Thumbprint)
		}
		for _, a := range want {
			wanted = append(wanted, a.Thumbprint)
		}
		slices.Sort(have)
		slices.Sort(wanted)
		if !slices.Equal(have, wanted) {
			t.Fatalf("accounts %v, want %v", have, wanted)
		}
	}
	has(early, late, elsewhere)
	// It ended, but its TXT value is there still, and removing it takes the account's key.
	o.End = cluster.Failed
	merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	has(early, late, elsewhere)
	o.Records[0].Removed = true
	merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
	has(early, elsewhere)
	// A peer that still has it does not bring it back.
	before := files(t, s.path("accounts"))
	merge(t, s, cluster.Records{Accounts: []cluster.Account{late}})
	has(early, elsewhere)
	if after := files(t, s.path("accounts")); !reflect.DeepEqual(before, after) {
		t.Error("the accounts were written although nothing changed")
	}
}

func TestOneKeyMayHaveAccountsAtTwoDirectories(t *testing.T) {
	s := fresh(t)
	a := newAccount(t, "https://ca.test/directory", testNow)
	b := a
	b.Directory = "https://staging.ca.test/directory"
	merge(t, s, cluster.Records{Accounts: []cluster.Account{a, b}})
	if n := len(records(t, s).Accounts); n != 2 {
		t.Errorf("%d accounts, want 2", n)
	}
	noProblems(t, s)
}

func TestAnAccountsURLIsFilledInAndNeverLost(t *testing.T) {
	s := fresh(t)
	a := newAccount(t, "https://ca.test/directory", testNow)
	merge(t, s, cluster.Records{Accounts: []cluster.Account{a}})
	registered := a
	registered.URL = "https://ca.test/account/1"
	merge(t, s, cluster.Records{Accounts: []cluster.Account{registered}})
	merge(t, s, cluster.Records{Accounts: []cluster.Account{a}})
	if have := records(t, s).Accounts; len(have) != 1 || have[0].URL != registered.URL {
		t.Errorf("accounts: %v", have)
	}
}

// hostile are names that a peer could choose to get out of a folder, or in the way of something.
var hostile = []string{"", ".", "..", "../x", "../../etc/cron.d/x", "/etc/passwd", "a/b", ".hidden", "a\x00b", "a\nb", "a b", "ä", "%2e%2e", "a\\b",
	strings.Repeat("a", 256), strings.Repeat("../", 40) + "tmp/x", "x.json/../../format", "~root"}

func TestHostileNamesNeverBecomePaths(t *testing.T) {
	for _, name := range hostile {
		top := t.TempDir()
		s := open(t, filepath.Join(top, "a", "b", "c", "state"))
		good := allRecords(t)
		r := allRecords(t)
		r.Orders[0].ID = name
		r.Accounts[0].Thumbprint = name
		byName := newOrder(t, "order2", "example.org")
		byName.Slot.Name = name
		r.Orders = append(r.Orders, byName, good.Orders[0])
		r.Accounts = append(r.Accounts, good.Accounts[0])
		r.Ledger[0].Slot.Name = name
		r.Ledger = append(r.Ledger, newAttempt("a2", "example.org"))
		r.Releases[0].Generation.Name = name
		before := files(t, top)
		err := s.Merge(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), "4 more entries are refused") {
			t.Errorf("%q: error %v, want five entries refused", name, err)
		}
		if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%q: error %q", name, err)
		}
		for path := range files(t, top) {
			if before[path] == "" && !strings.HasPrefix(path, "a/b/c/state/") {
				t.Errorf("%q made %s", name, path)
			}
		}
		have := records(t, s)
		if len(have.Orders) != 1 || len(have.Accounts) != 1 || len(have.Ledger) != 1 || len(have.Tombstones) != 1 || len(have.Releases) != 0 {
			t.Errorf("%q: the good ones are not all there, or bad ones are: %s", name, asJSON(t, have))
		}
		noProblems(t, s)
	}
}

func TestHostileRecordsAreRefusedAndTheOthersMerged(t *testing.T) {
	future := testNow.Add(cluster.MaxSkew + time.Second)
	change := map[string]func(*cluster.Records){
		"an account without a key":          func(r *cluster.Records) { r.Accounts[0].Key = nil },
		"an account of another key":         func(r *cluster.Records) { r.Accounts[0].Key = newAccount(t, "x", testNow).Key },
		"an account without a directory":    func(r *cluster.Records) { r.Accounts[0].Directory = "" },
		"an account of a megabyte":          func(r *cluster.Records) { r.Accounts[0].Email = strings.Repeat("x", 1<<20) },
		"an order without a key":            func(r *cluster.Records) { r.Orders[0].Key = nil },
		"an order of another key type":      func(r *cluster.Records) { r.Orders[0].KeyType = cert.RSA2048 },
		"an order of no key type":           func(r *cluster.Records) { r.Orders[0].KeyType = "" },
		"an order of another algorithm":     func(r *cluster.Records) { r.Orders[0].Slot.Algorithm = cert.RSA },
		"an order of an unknown step":       func(r *cluster.Records) { r.Orders[0].Step = 0 },
		"an order of the future":            func(r *cluster.Records) { r.Orders[0].Created = future },
		"an attempt of the future":          func(r *cluster.Records) { r.Ledger[0].Time = future },
		"an attempt without ID":             func(r *cluster.Records) { r.Ledger[0].ID = "" },
		"an attempt without node":           func(r *cluster.Records) { r.Ledger[0].Node = "" },
		"an attempt with a long tale":       func(r *cluster.Records) { r.Ledger[0].Problem = strings.Repeat("x", 1<<20) },
		"a tombstone of nothing":            func(r *cluster.Records) { r.Tombstones[0].Fingerprint = cert.Fingerprint{} },
		"a tombstone with a long tale":      func(r *cluster.Records) { r.Tombstones[0].Reason = strings.Repeat("x", 1<<20) },
		"a release of nothing":              func(r *cluster.Records) { r.Releases[0].Generation.Fingerprint = cert.Fingerprint{} },
		"a release that jumps":              func(r *cluster.Records) { r.Releases[0].Generation.Sequence = 1 << 60 },
		"a release by a very long name":     func(r *cluster.Records) { r.Releases[0].Node = strings.Repeat("x", 1<<20) },
		"a release of an unknown algorithm": func(r *cluster.Records) { r.Releases[0].Generation.Algorithm = "" },
		"a renewal of nothing":              func(r *cluster.Records) { r.Renewals[0].Generation.Fingerprint = cert.Fingerprint{} },
		"a renewal with a long tale":        func(r *cluster.Records) { r.Renewals[0].Problem = strings.Repeat("x", 1<<20) },
		"a renewal of the future":           func(r *cluster.Records) { r.Renewals[0].Time = future },
		"a renewal of a hidden name":        func(r *cluster.Records) { r.Renewals[0].Generation.Name = ".x" },
		"a revocation of nothing":           func(r *cluster.Records) { r.Revocations[0].Generation.Fingerprint = cert.Fingerprint{} },
		"a revocation with a long tale":     func(r *cluster.Records) { r.Revocations[0].Problem = strings.Repeat("x", 1<<20) },
		"a revocation of the future":        func(r *cluster.Records) { r.Revocations[0].Time = future },
		"a revocation of a hidden name":     func(r *cluster.Records) { r.Revocations[0].Generation.Name = ".x" },
		"a revocation for no reason":        func(r *cluster.Records) { r.Revocations[0].Reason = "" },
	}
	count := func(r cluster.Records) int {
		return len(r.Accounts) + len(r.Orders) + len(r.Ledger) + len(r.Tombstones) + len(r.Releases) + len(r.Renewals) + len(r.Revocations)
	}
	for what, f := range change {
		s := fresh(t)
		keep(t, s, issue(t, "example.org", 1, testNow))
		r := allRecords(t)
		f(&r)
		if err := s.Merge(t.Context(), r); err == nil || strings.Contains(err.Error(), "PRIVATE") || len(err.Error()) > 1000 {
			t.Errorf("%s: error %v", what, err)
		}
		if n := count(records(t, s)); n != 6 {
			t.Errorf("%s: %d records are held, want the other 6", what, n)
		}
	}
}

func TestARecordUpToADayAheadIsTaken(t *testing.T) {
	s := fresh(t)
	r := allRecords(t)
	r.Ledger[0].Time = testNow.Add(cluster.MaxSkew)
	r.Orders[0].Created = testNow.Add(cluster.MaxSkew)
	merge(t, s, r)
}

func TestTornRecordsAreSetAsideAndTheOthersStayUsable(t *testing.T) {
	for _, file := range []string{"ledger.json", "tombstones.json", "releases.json", "orders/order1.json", "accounts/"} {
		for what, content := range map[string]string{
			"empty": "", "zeros": "\x00\x00\x00\x00", "cut": `{"format":1,"data":[{"id":"a1","no`, "another type": `[1,2,3]`, "no format": `{"data":[]}`,
			"format 0": `{"format":0,"data":[]}`, "wrong data": `{"format":1,"data":"MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"}`,
			"key in it": `{"format":1,"data":[{"time":"MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"}]}`, "two": `{"format":1,"data":[]}{"format":1,"data":[]}`,
		} {
			s := fresh(t)
			r := allRecords(t)
			other := newOrder(t, "order2", "other.org")
			other.Account = r.Accounts[0].Thumbprint
			r.Orders = append(r.Orders, other)
			merge(t, s, r)
			path := file
			if file == "accounts/" {
				path += accountFile(r.Accounts[0])
			}
			if err := os.WriteFile(s.path(path), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			have := records(t, s)
			lost := 6 - len(have.Accounts) - len(have.Orders) - len(have.Ledger) - len(have.Tombstones) - len(have.Releases)
			if lost != 1 {
				t.Errorf("%s %s: %d records are gone, want the one", what, path, lost)
			}
			p := s.Problems(t.Context())
			if len(p) != 1 || !strings.Contains(p[0], s.path(path)) || !strings.Contains(p[0], "torn") || strings.Contains(p[0], "MIIE") {
				t.Errorf("%s %s: problems %q", what, path, p)
			}
			if _, err := os.Lstat(s.path(path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s %s lies there still (%v)", what, path, err)
			}
			aside, err := filepath.Glob(s.path("aside/*"))
			if err != nil || len(aside) != 1 {
				t.Fatalf("aside: %q, %v", aside, err)
			}
			if kept, err := os.ReadFile(aside[0]); err != nil || string(kept) != content {
				t.Errorf("%s %s: aside holds %q (%v)", what, path, kept, err)
			}
			merge(t, s, r) // from a peer, say
			if have := records(t, s); asJSON(t, have) != asJSON(t, r) {
				t.Errorf("%s %s: after a merge: %s", what, path, asJSON(t, have))
			}
		}
	}
}

func TestAMergeOverATornFileSetsItAside(t *testing.T) {
	s := fresh(t)
	if err := os.WriteFile(s.path("ledger.json"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	merge(t, s, allRecords(t))
	if n := len(records(t, s).Ledger); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
	if p := s.Problems(t.Context()); len(p) != 1 {
		t.Errorf("problems: %q", p)
	}
}

func TestRecordsOfANewerFormatAreRefusedUntouched(t *testing.T) {
	for _, file := range []string{"ledger.json", "tombstones.json", "releases.json", "orders/order1.json", "accounts/x.json"} {
		for _, content := range []string{`{"format":2,"data":"anything"}`, `{"format":1,"data":null,"more":1}`} {
			s := fresh(t)
			k := issue(t, "example.org", 1, testNow)
			keep(t, s, k)
			if err := os.WriteFile(s.path(file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			before := files(t, s.dir)
			if _, err := s.Records(t.Context()); !errors.Is(err, cluster.ErrNewerFormat) || !strings.Contains(err.Error(), s.path(file)) {
				t.Errorf("Records with %s in %s: %v", content, file, err)
			}
			if err := s.Merge(t.Context(), allRecords(t)); !errors.Is(err, cluster.ErrNewerFormat) {
				t.Errorf("Merge with %s in %s: %v", content, file, err)
			}
			if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], "newer certsync") {
				t.Errorf("problems with %s in %s: %q", content, file, p)
			}
			after := files(t, s.dir)
			delete(before, "store.lock")
			delete(after, "store.lock")
			if !reflect.DeepEqual(before, after) {
				t.Errorf("%s in %s: the state was changed", content, file)
			}
			wantGenerations(t, s, k) // the bundles are readable still
		}
	}
}

func TestAnUnknownFieldInsideARecordIsANewerFormat(t *testing.T) {
	s := fresh(t)
	merge(t, s, allRecords(t))
	path := s.path("ledger.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(data), `"id":`, `"colour":"red","id":`, 1)
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Merge(t.Context(), allRecords(t)); !errors.Is(err, cluster.ErrNewerFormat) {
		t.Errorf("Merge: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != changed {
		t.Errorf("the file was changed (%v)", err)
	}
}

func TestForeignThingsAmongTheRecordsAreSetAside(t *testing.T) {
	s := fresh(t)
	r := allRecords(t)
	merge(t, s, r)
	o, err := os.ReadFile(s.path("orders/order1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"order9.json": string(o), "README": "hello", ".x.json": string(o), "a b.json": string(o)} {
		if err := os.WriteFile(filepath.Join(s.path("orders"), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.path("orders/sub.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(s.path("orders/fifo.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(s.path("orders/order1.json"), s.path("orders/link.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("accounts/x.json"), []byte(`{"format":1,"data":{"thumbprint":"y"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if have := records(t, s); asJSON(t, have) != asJSON(t, r) {
		t.Errorf("have %s", asJSON(t, have))
	}
	if left, err := os.ReadDir(s.path("orders")); err != nil || len(left) != 1 {
		t.Errorf("orders holds %v (%v), want one file", left, err)
	}
	wantAside(t, s, 8, foreign)
}

// TestMergesInAnyOrderAndDuplicationEndAlike: two nodes that heard the same things, however often and in whatever
// order, hold the same.
func TestMergesInAnyOrderAndDuplicationEndAlike(t *testing.T) {
	base := newOrder(t, "order1", "example.org")
	var pool []cluster.Records
	for i, step := range cluster.Steps() {
		o := base
		o.Step, o.Node = step, fmt.Sprintf("proxy%d", i%2+1)
		if step >= cluster.StepOrdered {
			o.URL = "https://ca.test/order/1"
		}
		if step >= cluster.StepPresenting {
			o.Records = []cluster.Record{{Domain: "example.org", Token: fmt.Sprint(i), Value: "v"}}
		}
		a := newAttempt(fmt.Sprint("a", i%2), "example.org")
		a.NextTry = testNow.Add(time.Duration(i) * time.Hour)
		k := issue(t, "example.org", uint64(i+1), testNow)
		pool = append(pool, cluster.Records{Orders: []cluster.Order{o}, Ledger: []cluster.Attempt{a},
			Tombstones: []cluster.Tombstone{{Fingerprint: k.Generation.Fingerprint, Time: testNow.Add(time.Duration(i) * time.Second)}},
			Releases:   []cluster.Release{{Generation: k.Generation, Node: o.Node, Time: testNow}},
			Accounts:   []cluster.Account{newAccount(t, base.Directory, testNow.Add(time.Duration(i)*time.Second))}})
	}
	want := fresh(t)
	for _, r := range pool {
		merge(t, want, r)
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := fresh(t)
		arrivals := rapid.Permutation(pool).Draw(rt, "arrivals")
		arrivals = append(arrivals, rapid.SliceOfN(rapid.SampledFrom(pool), 0, 4).Draw(rt, "again")...)
		for _, r := range arrivals {
			merge(t, s, r)
		}
		if have, want := asJSON(t, records(t, s)), asJSON(t, records(t, want)); have != want {
			rt.Fatalf("have %s\nwant %s", have, want)
		}
	})
}

// TestAMergeThatReadsOnlyWhatItTouchesEndsAsOneThatReadsAll compares a store that goes through all orders at each merge
// with one that does not.
func TestAMergeThatReadsOnlyWhatItTouchesEndsAsOneThatReadsAll(t *testing.T) {
	var orders []cluster.Order
	for i := range 3 {
		orders = append(orders, newOrder(t, fmt.Sprint("order", i), "example.org"))
	}
	account := newAccount(t, orders[0].Directory, testNow)
	rapid.Check(t, func(rt *rapid.T) {
		narrow, full := fresh(t), fresh(t)
		for range rapid.IntRange(1, 8).Draw(rt, "merges") {
			var r cluster.Records
			for range rapid.IntRange(0, 2).Draw(rt, "orders") {
				o := rapid.SampledFrom(orders).Draw(rt, "order")
				o.Step = rapid.SampledFrom(cluster.Steps()).Draw(rt, "step")
				o.End = rapid.SampledFrom([]cluster.End{cluster.Open, cluster.Open, cluster.Failed}).Draw(rt, "end")
				o.Account = rapid.SampledFrom([]string{"other", account.Thumbprint}).Draw(rt, "account")
				r.Orders = append(r.Orders, o)
			}
			if rapid.Bool().Draw(rt, "with the account") {
				r.Accounts = []cluster.Account{account}
			}
			full.swept = time.Time{}
			for _, s := range []*Store{narrow, full} {
				if err := s.Merge(t.Context(), r); err != nil {
					rt.Fatal(err)
				}
			}
			if have, want := asJSON(t, records(t, narrow)), asJSON(t, records(t, full)); have != want {
				rt.Fatalf("have %s\nwant %s", have, want)
			}
		}
	})
}

func TestACheckpointSetsABadFileOfItsOrderAside(t *testing.T) {
	for what, content := range map[string]string{"torn": "{", "another's": ""} {
		s := fresh(t)
		o, other := newOrder(t, "order1", "example.org"), newOrder(t, "order2", "example.org")
		merge(t, s, cluster.Records{Orders: []cluster.Order{o, other}})
		if content == "" {
			data, err := os.ReadFile(s.path("orders/order2.json"))
			if err != nil {
				t.Fatal(err)
			}
			content = string(data)
		}
		if err := os.WriteFile(s.path("orders/order1.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		o.Step = cluster.StepOrdered
		if !s.narrow(cluster.Records{Orders: []cluster.Order{o}}, testNow) {
			t.Fatal("the merge goes through all orders: the test is about one that does not")
		}
		merge(t, s, cluster.Records{Orders: []cluster.Order{o}})
		if have := records(t, s).Orders; len(have) != 2 || have[0].ID != "order1" || have[0].Step != cluster.StepOrdered {
			t.Errorf("%s: %s", what, asJSON(t, have))
		}
		if p := s.Problems(t.Context()); len(p) != 1 {
			t.Errorf("%s: problems %q", what, p)
		}
	}
}

func FuzzARecordFileIsReadOrSetAsideAndNeverFatal(f *testing.F) {
	for _, seed := range []string{"", "{", `{"format":1,"data":[]}`, `{"format":1,"data":{"id":"order1"}}`, `{"format":2}`, `{"format":1,"x":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		s := fresh(t)
		for _, rel := range []string{"ledger.json", "orders/order1.json"} {
			if err := os.WriteFile(s.path(rel), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.Records(t.Context())
		if err != nil && !errors.Is(err, cluster.ErrNewerFormat) {
			t.Errorf("%q: %v", content, err)
		}
		if err := s.Merge(t.Context(), cluster.Records{}); err != nil && !errors.Is(err, cluster.ErrNewerFormat) {
			t.Errorf("%q: %v", content, err)
		}
	})
}

func FuzzANameIsOneGenerationOrNone(f *testing.F) {
	f.Add("00000000000000000042-20261124T090000Z-20270222T090000Z-" + strings.Repeat("ab", 32) + ".pem")
	f.Add("x")
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	f.Fuzz(func(t *testing.T, name string) {
		g, ok := parseBundleFile(slot, name)
		if ok && (bundleFile(g) != name || g.IsZero() || g.Slot != slot) {
			t.Errorf("%q is read as %v", name, g)
		}
	})
}

func TestEveryGenerationHasAFileNameThatIsReadBack(t *testing.T) {
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	gen := rapid.Custom(func(rt *rapid.T) cert.Generation {
		g := cert.Generation{Slot: slot, Sequence: rapid.Uint64().Draw(rt, "sequence"),
			NotBefore: time.Unix(rapid.Int64Range(-1e9, 1e11).Draw(rt, "not before"), 0).UTC(),
			NotAfter:  time.Unix(rapid.Int64Range(-1e9, 1e11).Draw(rt, "not after"), 0).UTC()}
		copy(g.Fingerprint[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "fingerprint"))
		g.Fingerprint[0] |= 1
		return g
	})
	rapid.Check(t, func(rt *rapid.T) {
		a := gen.Draw(rt, "a")
		if back, ok := parseBundleFile(slot, bundleFile(a)); !ok || back != a {
			rt.Fatalf("%v comes back as %v, %v", a, back, ok)
		}
	})
}

func TestRenewalInformationGoesWithItsGeneration(t *testing.T) {
	now := testNow
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	first, second := issue(t, "example.org", 1, testNow).Generation, issue(t, "example.org", 2, testNow).Generation
	info := func(g cert.Generation, revision uint64) cluster.RenewalInfo {
		return cluster.RenewalInfo{Generation: g, CertID: "a.b", Directory: "https://ca.test/d", Node: "proxy1", Time: testNow, Revision: revision, Again: testNow}
	}
	holds := func(what string, want ...cert.Generation) {
		t.Helper()
		var have []cert.Generation
		for _, r := range records(t, s).Renewals {
			have = append(have, r.Generation)
		}
		if asJSON(t, have) != asJSON(t, want) {
			t.Errorf("%s: the store has those of %s, want %s", what, asJSON(t, have), asJSON(t, want))
		}
	}
	merge(t, s, cluster.Records{Renewals: []cluster.RenewalInfo{info(first, 9)}})
	holds("asked", first)
	merge(t, s, cluster.Records{Renewals: []cluster.RenewalInfo{info(second, 1)}})
	holds("renewed", second)
	merge(t, s, cluster.Records{Renewals: []cluster.RenewalInfo{info(first, 10)}})
	holds("a peer that is behind", second)
	merge(t, s, cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: second.Fingerprint, Name: "example.org", Time: testNow}}})
	holds("revoked")
	merge(t, s, cluster.Records{Renewals: []cluster.RenewalInfo{info(second, 2), info(first, 11)}})
	holds("the earlier one is the newest again", first)
	now = first.NotAfter.Add(cluster.MaxSkew + time.Second)
	merge(t, s, cluster.Records{})
	holds("expired")
	noProblems(t, s)
}
