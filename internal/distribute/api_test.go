package distribute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func TestAPI_RoundTripsEverything(t *testing.T) {
	fake, p := newPair(t)
	ctx := t.Context()
	kept, records := makeKept(t, 3), makeRecords(t)
	results, err := p.Stage(ctx, kept)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Error != "" || r.Generation != kept[i].Generation {
			t.Errorf("result %d: %+v", i, r)
		}
	}
	if err := p.Record(ctx, records); err != nil {
		t.Fatal(err)
	}
	inventory, err := p.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(inventory.Records, records) {
		t.Errorf("records\n%#v\nwant\n%#v", inventory.Records, records)
	}
	if string(inventory.Orders[0].Key) != string(records.Orders[0].Key) || len(inventory.Orders[0].Key) == 0 {
		t.Error("the order's key did not arrive")
	}
	if !reflect.DeepEqual(inventory.Generations, generationsOf(kept)) {
		t.Errorf("generations %v, want %v", inventory.Generations, generationsOf(kept))
	}
	var fetched []cluster.Kept
	err = p.Fetch(ctx, inventory.Generations, func(k cluster.Kept) error { fetched = append(fetched, k); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range fetched {
		if k.Generation != kept[i].Generation || string(k.Bundle.PEM()) != string(kept[i].Bundle.PEM()) {
			t.Errorf("fetched %v, want %v", k.Generation, kept[i].Generation)
		}
	}
	if len(fetched) != 3 {
		t.Errorf("fetched %d generations, want 3", len(fetched))
	}
	placements, err := p.Release(ctx, []cluster.Release{{Generation: kept[1].Generation, Node: "proxy1", Time: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	if len(placements) != 1 || placements[0].Disk.Fingerprint != kept[1].Generation.Fingerprint || placements[0].Outcome != cluster.Done {
		t.Errorf("placements %+v", placements)
	}
	status, err := p.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Node != "proxy2" || status.Role != cluster.Backup || len(status.Placements) != 1 {
		t.Errorf("status %+v", status)
	}
	if strings.Contains(status.Problems[0], "\x1b") {
		t.Errorf("escape sequences of a peer reach the terminal: %q", status.Problems[0])
	}
	carp, err := p.CARP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if carp.Node != "proxy2" || carp.Role != cluster.Backup || len(carp.VHIDs) != 1 || carp.VHIDs[0].Interface != "em0?[31m" || len(carp.VHIDs[0].Addresses) != 1 {
		t.Errorf("CARP %+v", carp)
	}
	if !fake.from["proxy1"] || len(fake.from) != 1 {
		t.Errorf("changes came from %v, want proxy1", fake.from)
	}
}

// Whoever adds a field to the nouns must add it to the decoders here; this finds it forgotten.
func TestDecoders_KnowEveryField(t *testing.T) {
	known := func(decode func(body io.Reader) (any, error), v any) {
		t.Helper()
		want := reflect.New(reflect.TypeOf(v)).Elem()
		want.Set(reflect.ValueOf(v))
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(strings.NewReader(string(body)))
		if err != nil {
			t.Fatalf("%T: %v", v, err)
		}
		checkFilled(t, reflect.ValueOf(v), fmt.Sprintf("%T", v))
		if !reflect.DeepEqual(got, v) {
			t.Errorf("%T: decoded\n%+v\nwant\n%+v", v, got, v)
		}
	}
	at := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
	r := makeRecords(t)
	g := r.Releases[0].Generation
	known(func(b io.Reader) (any, error) { return decodeInventory(b) },
		cluster.Inventory{API: 1, Version: "v", Node: "n", Role: cluster.Master, Time: at, Digest: "d", Generations: []cert.Generation{g}, Records: r,
			Alarms: &cluster.AlarmBook{Judged: at, Master: "n", MasterSeen: at, Entries: []cluster.AlarmEntry{{By: "n", Told: at}}}})
	known(func(b io.Reader) (any, error) { return decodeRecords(b) }, r)
	s := cluster.Sighting{Fingerprint: g.Fingerprint, SHA1: "AB", NotBefore: at, NotAfter: at, Note: "n"}
	placement := cluster.Placement{Slot: g.Slot, Proxy: "p", Running: true, Pid: 3, File: "f", Disk: s, Memory: s, Served: s, Proof: cluster.Proven,
		Outcome: cluster.Done, Error: "e", Hint: "h"}
	known(func(b io.Reader) (any, error) { return decodeStatus(b) },
		cluster.NodeStatus{Node: "n", Role: cluster.Backup, Time: at, Version: "v", Digest: "d", Reachable: true, Error: "e", Hint: "h",
			Held: []cert.Generation{g}, Placements: []cluster.Placement{placement}, Unconfigured: []cert.Slot{g.Slot}, Problems: []string{"p"}})
	number, yes := 240, true
	known(func(b io.Reader) (any, error) { return decodeCARP(b) },
		cluster.CARP{Node: "n", Time: at, Role: cluster.Master, Error: "e", Hint: "h", Source: "netlink", Demotion: &number, Preempt: &yes,
			VHIDs: []cluster.VHID{{Interface: "em0", ID: 1, Role: cluster.Master, AdvBase: 1, AdvSkew: &number, Version: "carp",
				Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}, Error: "e", Hint: "h"}}})
}

func TestAVHIDThatCannotBeIsRefused(t *testing.T) {
	for _, vhid := range []string{`{"vhid":0}`, `{"vhid":256}`, `{}`, `{"vhid":1,"advbase":-1}`, `{"vhid":1,"advbase":256}`, `{"vhid":1,"advskew":-1}`,
		`{"vhid":1,"advskew":256}`, `{"vhid":1,"role":"BOSS"}`, `{"vhid":1,"addresses":["192.0.2.10"]}`, `{"vhid":1,"addresses":[""]}`,
		`{"vhid":1,"addresses":["fe80::1%em0/64"]}`, `{"vhid":1,"addresses":["192.0.2.10/33"]}`,
		`{"vhid":1,"addresses":[` + strings.Repeat(`"192.0.2.10/32",`, maxAddresses) + `"192.0.2.10/32"]}`} {
		if c, err := decodeCARP(strings.NewReader(`{"node":"n","vhids":[` + vhid + `]}`)); err == nil {
			t.Errorf("%.60s: accepted as %+v", vhid, c)
		}
	}
	if _, err := decodeCARP(strings.NewReader(`{"node":"n","role":"BOSS"}`)); err == nil {
		t.Error("a role that is none was accepted")
	}
}

// checkFilled fails where the test itself left a field empty, so that the comparison above could not find it.
func checkFilled(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	if v.Kind() != reflect.Struct || v.Type() == reflect.TypeFor[time.Time]() {
		if v.IsZero() {
			t.Errorf("%s is empty in this test", path)
		}
		return
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("json") == "-" {
			continue // it is not sent
		}
		checkFilled(t, v.Field(i), path+"."+v.Type().Field(i).Name)
	}
}

func TestErrors_KeepTheirIdentityAndHintAcrossTheWire(t *testing.T) {
	for _, sentinel := range []error{cluster.ErrNotMaster, cluster.ErrStale, cluster.ErrJump, cluster.ErrRevoked, cluster.ErrBusy, cluster.ErrNewerFormat,
		cluster.ErrRejected, cluster.ErrNotRunning, cluster.ErrUnproven, cluster.ErrOrderTaken, cluster.ErrUsage} {
		t.Run(sentinel.Error(), func(t *testing.T) {
			fake, p := newPair(t)
			fake.err = cluster.WithHint(fmt.Errorf("lock /var/db/certsync: %w", sentinel), "wait\x07 a while")
			_, err := p.Inventory(t.Context())
			if !errors.Is(err, sentinel) {
				t.Fatalf("%v is not %v", err, sentinel)
			}
			if errors.Is(err, cluster.ErrUnreachable) {
				t.Errorf("%v says that the peer was not reached", err)
			}
			if got := cluster.HintOf(err); got != "wait? a while" {
				t.Errorf("hint %q", got)
			}
			if want := "inventory of proxy2: lock /var/db/certsync: " + sentinel.Error(); err.Error() != want {
				t.Errorf("%q, want %q", err, want)
			}
			remote, ok := errors.AsType[*RemoteError](err)
			if !ok || remote.Status < 400 {
				t.Errorf("remote error %+v", remote)
			}
		})
	}
}

func TestErrors_OfAnUnknownKindAreStillErrors(t *testing.T) {
	p := pipePeer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerAPI, "1")
		w.Header().Set("Content-Type", typeJSON)
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"error":"no\u001b[2J\nway","kind":"unreachable","later":1}`)
	}))
	_, err := p.Inventory(t.Context())
	if err == nil || errors.Is(err, cluster.ErrUnreachable) || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Fatalf("error %q", err)
	}
}

func TestStaleReadAndBusyAreConflicts(t *testing.T) {
	for _, err := range []error{cluster.ErrStale, cluster.ErrRevoked, cluster.ErrBusy} {
		if _, status := toWire(err); status != http.StatusConflict {
			t.Errorf("%v answers %d, want 409", err, status)
		}
	}
}

// Everything that a peer must not do, and every way of asking for what it may do that is not the right one.
var forbidden = []struct {
	method, path string
	status       int
}{
	{"POST", "/v1/issue", 404}, {"POST", "/v1/revoke", 404}, {"POST", "/v1/rollback", 404}, {"POST", "/v1/configure", 404},
	{"PUT", "/v1/config", 404}, {"POST", "/v1/renew", 404}, {"POST", "/v1/sync", 404}, {"POST", "/v1/prune", 404}, {"POST", "/v1/drill", 404},
	{"POST", "/v1/carp", 405}, {"PUT", "/v1/carp", 405}, {"POST", "/v1/carp/state", 404}, {"GET", "/v1/config", 404}, {"GET", "/v1/keys", 404}, {"GET", "/metrics", 404}, {"GET", "/debug/pprof/", 404},
	{"GET", "/", 404}, {"GET", "/v1", 404}, {"GET", "/v1/", 404}, {"GET", "/v2/inventory", 404}, {"GET", "/v0/inventory", 404},
	{"GET", "/v1/inventory/", 404}, {"GET", "//v1/inventory", 404}, {"GET", "/v1/../v1/inventory", 404}, {"GET", "/v1/INVENTORY", 404},
	{"GET", "/v1/generations/..%2finventory", 404}, {"GET", "/v1/generations/c0.example.org.pem", 404}, {"DELETE", "/v1/generations/c0.example.org", 404},
	{"POST", "/v1/inventory", 405}, {"HEAD", "/v1/inventory", 405}, {"PUT", "/v1/inventory", 405}, {"DELETE", "/v1/inventory", 405},
	{"OPTIONS", "/v1/inventory", 405}, {"TRACE", "/v1/inventory", 405}, {"PATCH", "/v1/records", 405}, {"POST", "/v1/records", 405},
	{"GET", "/v1/records", 405}, {"DELETE", "/v1/records", 405}, {"GET", "/v1/generations", 405}, {"POST", "/v1/generations", 405},
	{"DELETE", "/v1/generations", 405}, {"GET", "/v1/generations/fetch", 405}, {"PUT", "/v1/generations/fetch", 405}, {"GET", "/v1/release", 405},
	{"PUT", "/v1/release", 405}, {"POST", "/v1/status", 405}, {"ISSUE", "/v1/status", 405},
}

// tryForbidden tries the table over a transport and checks that the node did nothing.
func tryForbidden(t *testing.T, transport http.RoundTripper, fake *fakeLocal) {
	t.Helper()
	for _, f := range forbidden {
		request, err := http.NewRequestWithContext(t.Context(), f.method, "http://peer"+f.path, strings.NewReader(`{"names":["example.org"]}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(headerAPI, "1")
		resp, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatalf("%s %s: %v", f.method, f.path, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != f.status {
			t.Errorf("%s %s: status %d, want %d (%s, %v)", f.method, f.path, resp.StatusCode, f.status, body, err)
		}
		var w wireError
		if f.method != "HEAD" && (json.Unmarshal(body, &w) != nil || w.Error == "") {
			t.Errorf("%s %s: %q is no JSON error", f.method, f.path, body)
		}
	}
	if _, calls := fake.snapshot(); len(calls) > 0 {
		t.Errorf("the node did %v", calls)
	}
}

func TestHandler_RefusesEverythingElse(t *testing.T) {
	fake, p := newPair(t)
	tryForbidden(t, p.transport, fake)
}

func TestHandler_AnswersConfiguredPeersOnly(t *testing.T) {
	fake := newFake("proxy2")
	handler := NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})
	for _, header := range []http.Header{
		{}, {headerNode: {""}}, {headerNode: {"proxy2"}}, {headerNode: {"proxy1 "}}, {headerNode: {"PROXY1"}}, {headerNode: {"proxy1", "proxy2"}},
		{headerNode: {"proxy3"}},
	} {
		r := httptest.NewRequest(http.MethodGet, pathInventory, nil)
		r.Header = header
		r.Header.Set(headerAPI, "1")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%v: status %d, want 403", header, w.Code)
		}
	}
	if _, calls := fake.snapshot(); len(calls) > 0 {
		t.Errorf("the node did %v", calls)
	}
}

func TestAsNode_OverwritesWhatThePeerClaims(t *testing.T) {
	fake := newFake("proxy2")
	p := pipePeer(t, AsNode("proxy3", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1", "proxy3"}})))
	if err := p.Record(t.Context(), cluster.Records{}); err != nil {
		t.Fatal(err)
	}
	if !fake.from["proxy3"] || fake.from["proxy1"] {
		t.Errorf("the record came from %v, want proxy3", fake.from)
	}
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		client, server int
		ok, newer      bool
	}{
		{1, 1, true, false}, {4, 4, true, false}, {4, 5, true, false}, {5, 4, true, false},
		{4, 6, false, true}, {6, 4, false, false}, {9, 3, false, false}, {3, 9, false, true},
	} {
		t.Run(fmt.Sprintf("client_%d_server_%d", tc.client, tc.server), func(t *testing.T) {
			fake := newFake("proxy2")
			p := pipePeer(t, AsNode("proxy1", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}, API: tc.server})),
				func(c *PeerConfig) { c.API = tc.client })
			_, err := p.Inventory(t.Context())
			if (err == nil) != tc.ok {
				t.Fatalf("error %v, want success %v", err, tc.ok)
			}
			if tc.ok {
				return
			}
			if errors.Is(err, cluster.ErrNewerFormat) != tc.newer || cluster.HintOf(err) == "" {
				t.Errorf("error %v (hint %q), want one of a newer format: %v", err, cluster.HintOf(err), tc.newer)
			}
			if _, calls := fake.snapshot(); len(calls) > 0 {
				t.Errorf("the node did %v", calls)
			}
		})
	}
	if _, err := checkAPI("", "proxy2", 1); err == nil {
		t.Error("a caller without a version is taken")
	}
}

// A newer release of the same API may send more; an older one ignores it.
func TestDecoders_IgnoreUnknownFields(t *testing.T) {
	body := `{"future":{"a":[1,{"b":null}]},"tombstones":[{"fingerprint":"` + strings.Repeat("ab", 32) + `","name":"n","time":"2026-11-24T07:00:00Z","later":[]}],"x":"y"}`
	r, err := decodeRecords(strings.NewReader(body))
	if err != nil || len(r.Tombstones) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// What only a newer release knows (a step, an algorithm) is refused as such, not as damage.
func TestNewerPeersRecordsAreRefusedAsNewerFormat(t *testing.T) {
	p := pipePeer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerAPI, "2")
		w.Header().Set("Content-Type", typeJSON)
		_, _ = io.WriteString(w, `{"node":"proxy2","role":"STANDBY"}`)
	}))
	if _, err := p.Inventory(t.Context()); !errors.Is(err, cluster.ErrNewerFormat) {
		t.Errorf("client: %v, want %v", err, cluster.ErrNewerFormat)
	}
	fake := newFake("proxy2")
	p = pipePeer(t, AsNode("proxy1", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}})), func(c *PeerConfig) { c.API = 2 })
	records := makeRecords(t)
	records.Orders[0].Step = 99
	if err := p.Record(t.Context(), records); !errors.Is(err, cluster.ErrNewerFormat) {
		t.Errorf("server: %v, want %v", err, cluster.ErrNewerFormat)
	}
}

func TestHandler_RefusesMalformedBodies(t *testing.T) {
	good := makeRecords(t)
	change := func(f func(r *cluster.Records)) string {
		r := makeRecords(t)
		f(&r)
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	order := good.Orders[0]
	deep := strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000)
	for name, body := range map[string]string{
		"empty": "", "cut": `{"orders":[`, "list": `[]`, "number": `1`, "string": `"x"`, "two": `{}{}`, "deep": deep,
		"wrong type": `{"orders":{}}`, "inner type": `{"orders":["x"]}`, "bad time": `{"tombstones":[{"time":"yesterday"}]}`,
		"traversal":      change(func(r *cluster.Records) { r.Orders[0].ID = "../../etc/passwd" }),
		"slot traversal": change(func(r *cluster.Records) { r.Orders[0].Slot.Name = "../x" }),
		"hidden name":    change(func(r *cluster.Records) { r.Tombstones[0].Name = ".ssh" }),
		"no key":         change(func(r *cluster.Records) { r.Orders[0].Key, r.Orders[0].End = nil, cluster.Open }),
		"junk key":       change(func(r *cluster.Records) { r.Accounts[0].Key = cluster.Secret("SECRET-JUNK") }),
		"file URL":       change(func(r *cluster.Records) { r.Orders[0].URL = "file:///etc/passwd" }),
		"escape":         change(func(r *cluster.Records) { r.Ledger[0].Problem = "\x1b[2J" }),
		"newline":        change(func(r *cluster.Records) { r.Orders[0].Records[0].Value = "a\nb" }),
		"algorithm":      change(func(r *cluster.Records) { r.Orders[0].KeyType = cert.RSA2048 }),
		"no fingerprint": change(func(r *cluster.Records) { r.Tombstones[0].Fingerprint = cert.Fingerprint{} }),
		"end":            change(func(r *cluster.Records) { r.Ledger[0].End = "perhaps" }),
		"node":           change(func(r *cluster.Records) { r.Ledger[0].Node = "" }),
		"dates":          change(func(r *cluster.Records) { r.Releases[0].Generation.NotAfter = time.Time{} }),
		"renewal dates":  change(func(r *cluster.Records) { r.Renewals[0].Generation.NotAfter = time.Time{} }),
		"renewal node":   change(func(r *cluster.Records) { r.Renewals[0].Node = "" }),
		"explanation":    change(func(r *cluster.Records) { r.Renewals[0].Explanation = "javascript:alert(1)" }),
		"revoked none":   change(func(r *cluster.Records) { r.Revocations[0].Generation.Fingerprint = cert.Fingerprint{} }),
		"revoked why":    change(func(r *cluster.Records) { r.Revocations[0].Reason = "\x1b[2J" }),
		"revoked tries":  change(func(r *cluster.Records) { r.Revocations[0].Tries = -1 }),
		"thumbprint":     change(func(r *cluster.Records) { r.Accounts[0].Thumbprint = "a/b" }),
		"no domains":     change(func(r *cluster.Records) { r.Orders[0].Domains = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			fake, p := newPair(t)
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://peer"+pathRecords, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set(headerAPI, "1")
			resp, err := p.transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("status %d, want 400: %s", resp.StatusCode, got)
			}
			if strings.Contains(string(got), "SECRET-JUNK") || strings.Contains(string(got), string(order.Key)[:40]) {
				t.Errorf("the answer quotes a key: %s", got)
			}
			if _, calls := fake.snapshot(); len(calls) > 0 {
				t.Errorf("the node did %v", calls)
			}
		})
	}
}

func TestHandler_BoundsWhatItReads(t *testing.T) {
	t.Parallel()
	send := func(method, path string, body io.Reader) int {
		t.Helper()
		_, p := newPair(t)
		request, err := http.NewRequestWithContext(t.Context(), method, "http://peer"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(headerAPI, "1")
		resp, err := p.transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	many := strings.NewReader(`{"ledger":[` + strings.Repeat(`{},`, 10) + `{}]}`)
	if got := send(http.MethodPut, pathRecords, many); got != http.StatusBadRequest {
		t.Errorf("empty entries: status %d, want 400", got)
	}
	// The budget goes over all lists, inner ones too: three orders of two domains and one TXT record each.
	three, err := json.Marshal([]cluster.Order{makeRecords(t).Orders[0], makeRecords(t).Orders[0], makeRecords(t).Orders[0]})
	if err != nil {
		t.Fatal(err)
	}
	for budget, want := range map[int]error{12: nil, 11: errTooLarge} {
		d := newDecoder(strings.NewReader(`{"orders":` + string(three) + `}`))
		d.entries = budget
		var r cluster.Records
		if err := d.object(func(key string) error { return d.recordsField(&r, key) }); !errors.Is(err, want) {
			t.Errorf("a budget of %d: %v, want %v", budget, err, want)
		}
	}
	var out []string
	d := newDecoder(strings.NewReader(`["` + strings.Repeat("x", maxEntry) + `"]`))
	if err := list(d, &out, func(string) (int, error) { return 0, nil }); !errors.Is(err, errTooLarge) {
		t.Errorf("an entry over %d bytes: %v, want %v", maxEntry, err, errTooLarge)
	}
	endless := io.MultiReader(strings.NewReader(`{"x":"`), endlessReader{})
	if got := send(http.MethodPut, pathRecords, endless); got != http.StatusRequestEntityTooLarge {
		t.Errorf("a body without end: status %d, want 413", got)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestStage_HandsOverBatches(t *testing.T) {
	fake, p := newPair(t)
	kept := makeKept(t, stageBatch+5)
	fake.stageError = func(k cluster.Kept) error {
		if k.Generation.Sequence == 3 {
			return cluster.WithHint(errors.New("write c2: no space left on device"), "make room")
		}
		return nil
	}
	results, err := p.Stage(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != len(kept) {
		t.Fatalf("%d results, want %d", len(results), len(kept))
	}
	for i, r := range results {
		if (r.Error != "") != (i == 2) || (r.Hint != "") != (i == 2) {
			t.Errorf("result %d: %+v", i, r)
		}
	}
	if !reflect.DeepEqual(fake.batches, []int{stageBatch, 5}) {
		t.Errorf("batches %v", fake.batches)
	}
}

func TestStage_WhatThePeerSaysNothingOfIsNotStaged(t *testing.T) {
	kept := makeKept(t, 2)
	for name, tc := range map[string]struct {
		results []cluster.StageResult
		wantErr bool
	}{
		"none":  {nil, false},
		"one":   {[]cluster.StageResult{{Generation: kept[0].Generation}}, false},
		"twice": {[]cluster.StageResult{{Generation: kept[0].Generation}, {Generation: kept[0].Generation}}, true},
		"more": {[]cluster.StageResult{{Generation: kept[0].Generation}, {Generation: kept[1].Generation}, {Generation: makeKept(t, 1)[0].Generation}},
			true},
	} {
		results, err := matchResults(kept, tc.results)
		if (err != nil) != tc.wantErr {
			t.Errorf("%s: error %v", name, err)
		}
		if err == nil && results[1].Error == "" {
			t.Errorf("%s: a generation without a word counts as staged", name)
		}
	}
}

func TestStage_RefusesABundleThatIsNotItsGeneration(t *testing.T) {
	fake, p := newPair(t)
	kept := makeKept(t, 2)
	kept[0].Bundle = kept[1].Bundle
	if _, err := p.Stage(t.Context(), kept); !errors.Is(err, ErrForm) {
		t.Errorf("error %v, want %v", err, ErrForm)
	}
	if _, calls := fake.snapshot(); len(calls) > 0 {
		t.Errorf("the node did %v", calls)
	}
}

func TestFetch_LeavesOutWhatIsNotHeldAndStopsAtAnError(t *testing.T) {
	fake, p := newPair(t)
	kept := makeKept(t, 4)
	fake.kept = kept[:3]
	n := 0
	if err := p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("%d generations, %v, want 3", n, err)
	}
	stop := errors.New("disk is full")
	n = 0
	fake, p = newPair(t)
	fake.kept = kept[:3]
	err := p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return stop })
	if !errors.Is(err, stop) || errors.Is(err, cluster.ErrUnreachable) || n != 1 {
		t.Errorf("%d generations, %v, want 1 and %v", n, err, stop)
	}
	// The sender fails in the middle: what it sent counts, and the error arrives as it was.
	fake, p = newPair(t)
	fake.kept = kept[:3]
	fake.fetchError = func(i int, _ cert.Generation) error {
		if i == 2 {
			return fmt.Errorf("read bundle: %w", cluster.ErrNewerFormat)
		}
		return nil
	}
	n = 0
	err = p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return nil })
	if !errors.Is(err, cluster.ErrNewerFormat) || n != 2 {
		t.Errorf("%d generations, %v, want 2 and %v", n, err, cluster.ErrNewerFormat)
	}
}

func TestFetch_TakesNothingThatWasNotAskedFor(t *testing.T) {
	kept := makeKept(t, 2)
	p := pipePeer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerAPI, "1")
		w.Header().Set("Content-Type", typeTar)
		s := newTarWriter(w)
		_ = s.write(kept[1])
		_ = s.end(nil)
	}))
	err := p.Fetch(t.Context(), generationsOf(kept[:1]), func(cluster.Kept) error { t.Error("taken"); return nil })
	if !errors.Is(err, ErrForm) {
		t.Errorf("error %v, want %v", err, ErrForm)
	}
}

func TestClient_RefusesAnotherNodesAnswer(t *testing.T) {
	p := pipePeer(t, AsNode("proxy1", NewHandler(newFake("proxy9"), HandlerOptions{Peers: []string{"proxy1"}})))
	if _, err := p.Inventory(t.Context()); err == nil || !strings.Contains(err.Error(), "proxy9") || cluster.HintOf(err) == "" {
		t.Errorf("inventory: %v", err)
	}
	if _, err := p.Status(t.Context()); err == nil {
		t.Error("status: taken")
	}
}

func TestClient_RefusesAnswersThatAreNotCertsyncs(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"no version":    func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"node":"proxy2"}`) },
		"html":          func(w http.ResponseWriter) { w.Header().Set(headerAPI, "1"); _, _ = io.WriteString(w, "<html>") },
		"html error":    func(w http.ResponseWriter) { w.Header().Set(headerAPI, "1"); w.WriteHeader(500) },
		"redirect":      func(w http.ResponseWriter) { w.Header().Set("Location", "http://evil/"); w.WriteHeader(302) },
		"cut json":      func(w http.ResponseWriter) { jsonAnswer(w, `{"node":"proxy2"`) },
		"bad node":      func(w http.ResponseWriter) { jsonAnswer(w, `{"node":"../x"}`) },
		"no node":       func(w http.ResponseWriter) { jsonAnswer(w, `{}`) },
		"trailing junk": func(w http.ResponseWriter) { jsonAnswer(w, `{"node":"proxy2"} x`) },
		"null":          func(w http.ResponseWriter) { jsonAnswer(w, `null`) },
	} {
		t.Run(name, func(t *testing.T) {
			p := pipePeer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
			_, err := p.Inventory(t.Context())
			if !errors.Is(err, ErrForm) || errors.Is(err, cluster.ErrUnreachable) {
				t.Errorf("error %v, want %v", err, ErrForm)
			}
		})
	}
}

func jsonAnswer(w http.ResponseWriter, body string) {
	w.Header().Set(headerAPI, "1")
	w.Header().Set("Content-Type", typeJSON)
	_, _ = io.WriteString(w, body)
}

func TestDeadlines_ANodeThatHangsDoesNotHoldUpItsPeer(t *testing.T) {
	fake := newFake("proxy2")
	fake.wait = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	handler := AsNode("proxy1", NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}}))
	p := pipePeer(t, handler, func(c *PeerConfig) { c.Timeouts = Timeouts{Request: 100 * time.Millisecond} })
	_, err := p.Inventory(t.Context())
	if !errors.Is(err, cluster.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want unreachable by a deadline", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := p.Release(ctx, nil); !errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrUnreachable) {
		t.Errorf("error %v, want only canceled", err)
	}
	// The server's own deadline: it answers, in time, that it had none.
	slow := NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}, Timeouts: Timeouts{Request: 100 * time.Millisecond}})
	p = pipePeer(t, AsNode("proxy1", slow))
	_, err = p.Inventory(t.Context())
	if errors.Is(err, cluster.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the peer's answer that it took too long", err)
	}
}

func TestSecrets_AreInNoError(t *testing.T) {
	b := testCA().Issue(t, certtest.Options{})
	body := strings.Split(string(b.KeyPEM()), "\n")[1]
	for _, err := range []error{
		checkSecret("x", cluster.Secret(body)),
		checkKept(cluster.Kept{Generation: b.Generation("a/b", 1), Bundle: b}),
		readTar(strings.NewReader(string(b.PEM())+strings.Repeat("x", 2000)), nil),
	} {
		if err == nil || strings.Contains(err.Error(), body[:20]) {
			t.Errorf("error %v", err)
		}
	}
}
