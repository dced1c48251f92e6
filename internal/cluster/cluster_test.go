package cluster_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestANextTryIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := genAttempt(t)
		a.NextTry = now.Add(time.Duration(rapid.Int64Range(-1<<60, 1<<60).Draw(t, "next try")))
		limit := cluster.MaxBackoff
		if a.RetryAfter {
			limit = cluster.MaxRetryAfter
		}
		latest := a.Time.Add(limit)
		allowed := a.Allowed()
		if allowed.After(latest) {
			t.Fatalf("%v is allowed after %v only", a.Time, allowed)
		}
		if !a.NextTry.After(latest) && !allowed.Equal(a.NextTry) {
			t.Fatalf("the next try %v was moved to %v", a.NextTry, allowed)
		}
	})
}

func TestNextTry(t *testing.T) {
	slot := cert.Slot{Name: "a", Algorithm: cert.ECDSA}
	entry := func(id string, at, next time.Duration, end cluster.End) cluster.Attempt {
		a := cluster.Attempt{ID: id, Node: "n", Slot: slot, Directory: "d", Time: now.Add(at), End: end}
		if next != 0 {
			a.NextTry = now.Add(next)
		}
		return a
	}
	other := entry("other slot", 0, 9*time.Hour, cluster.Failed)
	other.Slot.Algorithm = cert.RSA
	elsewhere := entry("other directory", 0, 9*time.Hour, cluster.Failed)
	elsewhere.Directory = "e"
	retry := entry("retry", -time.Hour, 7*24*time.Hour, cluster.Failed)
	retry.RetryAfter = true
	for _, c := range []struct {
		what   string
		ledger []cluster.Attempt
		want   string
		at     time.Duration
	}{
		{"nothing", nil, "", 0},
		{"another slot's or directory's", []cluster.Attempt{other, elsewhere}, "", 0},
		{"one that forbids nothing", []cluster.Attempt{entry("1", 0, 0, cluster.Failed)}, "", 0},
		{"the latest counts", []cluster.Attempt{entry("1", -2, time.Hour, cluster.Failed), entry("2", -1, 3*time.Hour, cluster.Failed), entry("3", 0, time.Hour, cluster.Failed)}, "2", 3 * time.Hour},
		{"an open one counts", []cluster.Attempt{entry("1", 0, time.Hour, cluster.Open)}, "1", time.Hour},
		{"a success ends what was before it", []cluster.Attempt{entry("1", -2, time.Hour, cluster.Failed), entry("2", -1, 0, cluster.Issued)}, "", 0},
		{"and not what came after", []cluster.Attempt{entry("1", -2, 0, cluster.Issued), entry("2", -1, time.Hour, cluster.Failed)}, "2", time.Hour},
		{"too far ahead is 48 hours", []cluster.Attempt{entry("1", 0, 1000*time.Hour, cluster.Failed)}, "1", 48 * time.Hour},
		{"a Retry-After may be longer", []cluster.Attempt{retry}, "retry", 7 * 24 * time.Hour},
		{"the last second of the skew counts", []cluster.Attempt{entry("1", cluster.MaxSkew, 30*time.Hour, cluster.Failed)}, "1", 30 * time.Hour},
		{"the future does not", []cluster.Attempt{entry("1", cluster.MaxSkew+1, 30*time.Hour, cluster.Failed)}, "", 0},
		{"nor does a success in it", []cluster.Attempt{entry("1", 0, time.Hour, cluster.Failed), entry("2", cluster.MaxSkew+1, 0, cluster.Issued)}, "1", time.Hour},
	} {
		got, ok := cluster.NextTry(c.ledger, slot, "d", now)
		if ok != (c.want != "") || got.ID != c.want {
			t.Errorf("%s: %q, %t; want %q", c.what, got.ID, ok, c.want)
		}
		if ok && !got.Allowed().Equal(now.Add(c.at)) {
			t.Errorf("%s: %v, want %v", c.what, got.Allowed(), now.Add(c.at))
		}
	}
}

func TestNextTryIsTheSameFromEveryOrderOfArrival(t *testing.T) {
	slot := cert.Slot{Name: "a", Algorithm: cert.ECDSA}
	rapid.Check(t, func(t *rapid.T) {
		ledger := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) cluster.Attempt {
			a := genAttempt(t)
			a.Slot, a.Directory = slot, "a"
			return a
		}), 0, 5).Draw(t, "ledger")
		a, okA := cluster.NextTry(ledger, slot, "a", now)
		b, okB := cluster.NextTry(rapid.Permutation(ledger).Draw(t, "again"), slot, "a", now)
		if okA != okB {
			t.Fatalf("%t or %t", okA, okB)
		}
		if okA && (a.Node != b.Node || a.ID != b.ID || !a.Allowed().Equal(b.Allowed())) {
			t.Fatalf("%+v or %+v", a, b)
		}
	})
}

func TestASequenceMayJumpByAThousandAndOneAMinute(t *testing.T) {
	held := cert.Generation{Slot: cert.Slot{Name: "a", Algorithm: cert.ECDSA}, Sequence: 10, NotBefore: now, Fingerprint: cert.Fingerprint{1}}
	for _, c := range []struct {
		what     string
		held     cert.Generation
		sequence uint64
		at       time.Duration
		ok       bool
	}{
		{"any where none is held", cert.Generation{}, math.MaxUint64, 0, true},
		{"the same", held, 10, 0, true},
		{"an earlier one", held, 0, 0, true},
		{"1,000 more", held, 1010, 0, true},
		{"1,001 more", held, 1011, 0, false},
		{"the highest", held, math.MaxUint64, 0, false},
		{"1,001 more within the minute", held, 1011, time.Minute - 1, false},
		{"1,001 more after a minute", held, 1011, time.Minute, true},
		{"1,002 more after a minute", held, 1012, time.Minute, false},
		{"1,001 more before notBefore", held, 1011, -time.Hour, false},
		{"1,000 more before notBefore", held, 1010, -time.Hour, true},
		{"after sixty days", held, 10 + 1000 + 60*24*60, 60 * 24 * time.Hour, true},
		{"one too many after sixty days", held, 10 + 1001 + 60*24*60, 60 * 24 * time.Hour, false},
	} {
		offered := held
		offered.Sequence, offered.Fingerprint = c.sequence, cert.Fingerprint{2}
		err := cluster.CheckJump(c.held, offered, now.Add(c.at))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, cluster.ErrJump) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestTheNewestIsNeverARevokedOne(t *testing.T) {
	slot := cert.Slot{Name: "a", Algorithm: cert.ECDSA}
	g := func(sequence uint64, fp byte) cert.Generation {
		return cert.Generation{Slot: slot, Sequence: sequence, Fingerprint: cert.Fingerprint{fp}}
	}
	other := g(9, 9)
	other.Name = "b"
	all := []cert.Generation{g(1, 1), g(3, 3), g(2, 2), other}
	dead := func(fps ...byte) (out []cluster.Tombstone) {
		for _, fp := range fps {
			out = append(out, cluster.Tombstone{Fingerprint: cert.Fingerprint{fp}})
		}
		return out
	}
	for _, c := range []struct {
		dead []byte
		want cert.Generation
	}{{nil, g(3, 3)}, {[]byte{3}, g(2, 2)}, {[]byte{2}, g(3, 3)}, {[]byte{1, 2, 3}, cert.Generation{}}} {
		if got := cluster.Newest(all, dead(c.dead...), slot); got != c.want {
			t.Errorf("revoked %v: %v, want %v", c.dead, got, c.want)
		}
	}
}

const secretText = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n"

// leaks tells whether any form of the secret is in what was printed.
func leaks(printed string) bool {
	bytesText := strings.Trim(fmt.Sprint([]byte(secretText)[:8]), "[]")
	for _, form := range []string{"MIGHAgEA", "PRIVATE", "BEGIN", base64.StdEncoding.EncodeToString([]byte(secretText))[:12],
		fmt.Sprintf("%x", secretText)[:16], fmt.Sprintf("%X", secretText)[:16], bytesText, "0x2d, 0x2d", "2d 2d 2d", "2D 2D 2D"} {
		if strings.Contains(printed, form) {
			return true
		}
	}
	return false
}

// holders are the secret, and all that may hold it.
func holders() map[string]any {
	s := cluster.Secret(secretText)
	a := cluster.Account{Directory: "d", Thumbprint: "t", Key: s}
	o := cluster.Order{ID: "o", Key: s}
	r := cluster.Records{Accounts: []cluster.Account{a}, Orders: []cluster.Order{o}}
	type wrapped struct{ Key cluster.Secret }
	return map[string]any{
		"secret": s, "pointer": &s, "slice": []cluster.Secret{s}, "map": map[string]cluster.Secret{"k": s}, "struct": wrapped{s},
		"pointer to a struct": &wrapped{s}, "map of structs": map[string]wrapped{"k": {s}}, "any": []any{s, &s}, "array": [1]cluster.Secret{s},
		"account": a, "pointer to an account": &a, "accounts": []cluster.Account{a}, "order": o, "pointer to an order": &o, "orders": []*cluster.Order{&o}, "pointers to accounts": []*cluster.Account{&a},
		"pointers to records": []*cluster.Records{&r}, "pointers to inventories": map[string]*cluster.Inventory{"k": {Records: r}},
		"records": r, "pointer to records": &r, "inventory": cluster.Inventory{Records: r}, "pointer to an inventory": &cluster.Inventory{Records: r},
	}
}

func TestASecretIsNeverPrintedByAnyVerb(t *testing.T) {
	if !leaks(string(secretText)) || !leaks(fmt.Sprint([]byte(secretText))) || !leaks(fmt.Sprintf("%x % x %#v", secretText, secretText, []byte(secretText))) {
		t.Fatal("the test does not see a secret")
	}
	for name, v := range holders() {
		// %p is left out: fmt asks no struct about it, and vet refuses it.
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%t", "%T", "%e", "%z", "%10s", "%.3s"} {
			if got := fmt.Sprintf(verb, v); leaks(got) {
				t.Errorf("%s of %s prints %.80q", verb, name, got)
			}
		}
		if got := fmt.Sprint(v) + fmt.Sprintln(v) + fmt.Errorf("x: %v", v).Error(); leaks(got) {
			t.Errorf("Print of %s prints %.80q", name, got)
		}
	}
	if got := cluster.Secret(secretText).String(); got != "[redacted]" {
		t.Errorf("String: %q", got)
	}
}

func TestASecretIsNeverLoggedAsText(t *testing.T) {
	for name, v := range holders() {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		log.Info("m", "v", v)
		log.With("w", v).WithGroup("g").Info("m", slog.Group("h", slog.Any("v", v)))
		log.Info(fmt.Sprint("m ", v))
		if leaks(out.String()) {
			t.Errorf("the text log of %s shows %.200q", name, out.String())
		}
	}
}

// TestTheNounsAreNeverLoggedWithTheirSecretAsJSON is for what a log is given: the JSON handler writes other values as
// encoding/json does, which is how secrets are stored and sent.
func TestTheNounsAreNeverLoggedWithTheirSecretAsJSON(t *testing.T) {
	all := holders()
	for _, name := range []string{"secret", "pointer", "account", "pointer to an account", "order", "pointer to an order", "records",
		"pointer to records", "inventory", "pointer to an inventory"} {
		var out bytes.Buffer
		log := slog.New(slog.NewJSONHandler(&out, nil))
		log.Info("m", "v", all[name])
		log.With("w", all[name]).WithGroup("g").Info("m", slog.Group("h", slog.Any("v", all[name])))
		if leaks(out.String()) {
			t.Errorf("the JSON log of %s shows %.200q", name, out.String())
		}
		if !json.Valid(bytes.Split(out.Bytes(), []byte("\n"))[0]) {
			t.Errorf("the JSON log of %s is %q", name, out.String())
		}
	}
}

func TestASecretSurvivesItsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := cluster.Secret(rapid.SliceOf(rapid.Byte()).Draw(t, "secret"))
		data, err := json.Marshal(map[string]any{"k": s})
		if err != nil {
			t.Fatal(err)
		}
		var back struct{ K cluster.Secret }
		if err := json.Unmarshal(data, &back); err != nil || !bytes.Equal(back.K, s) {
			t.Fatalf("%d bytes came back as %d (%v)", len(s), len(back.K), err)
		}
	})
	var s cluster.Secret
	for _, bad := range []string{`"` + secretText[:20] + `"`, `12`, `{}`, `"MIGHAgEA*"`} {
		if err := json.Unmarshal([]byte(bad), &s); err == nil || leaks(err.Error()) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestRolesAndStepsSurviveTheirText(t *testing.T) {
	for _, r := range []cluster.Role{cluster.Unknown, cluster.Init, cluster.Backup, cluster.Master} {
		var back cluster.Role = 99
		if text, err := r.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != r || string(text) != r.String() {
			t.Errorf("role %d comes back as %d", r, back)
		}
	}
	if cluster.Role(0) != cluster.Unknown || cluster.Role(99).String() != "UNKNOWN" || cluster.Role(-1).String() != "UNKNOWN" {
		t.Error("a role that is not known must read UNKNOWN")
	}
	seen := map[string]bool{}
	for i, s := range cluster.Steps() {
		var back cluster.Step
		if text, err := s.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != s || string(text) != s.String() {
			t.Errorf("step %d comes back as %d", s, back)
		}
		if i > 0 && s <= cluster.Steps()[i-1] {
			t.Errorf("step %s does not follow %s", s, cluster.Steps()[i-1])
		}
		seen[s.String()] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d steps have a name of their own, want 5", len(seen))
	}
	for _, bad := range []string{"", "master", "MASTER ", "step(0)", "PLANNED", "planned\x00"} {
		role, step := cluster.Master, cluster.StepFinalizing
		if err := role.UnmarshalText([]byte(bad)); err == nil || role != cluster.Master {
			t.Errorf("role %q: %v, %v", bad, role, err)
		}
		if err := step.UnmarshalText([]byte(bad)); err == nil || step != cluster.StepFinalizing {
			t.Errorf("step %q: %v, %v", bad, step, err)
		}
	}
}

func TestTheWorseOfTwoOutcomes(t *testing.T) {
	ordered := []cluster.Outcome{"", cluster.Unchanged, cluster.Done, cluster.Unproven, cluster.DiskOnly, cluster.Waiting, cluster.Skipped,
		cluster.PutOff, cluster.NotMaster, cluster.Interrupted, cluster.RolledBack, cluster.Failure, "from a newer peer"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := cluster.Worse(a, b), ordered[max(i, j)]; got != want {
				t.Errorf("Worse(%q, %q) is %q, want %q", a, b, got, want)
			}
		}
	}
	if a, b := cluster.Worse("x", "y"), cluster.Worse("y", "x"); a != b {
		t.Errorf("of two unknown ones it is %q or %q", a, b)
	}
}

// TestTheExampleOfRFC7638 is that of section 3.1.
func TestTheExampleOfRFC7638(t *testing.T) {
	const n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs" +
		"tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbI" +
		"SD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	if got, err := cluster.Thumbprint(rsaKey(t, n)); err != nil || got != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := cluster.Thumbprint("no key"); err == nil {
		t.Errorf("of no key: %s", got)
	}
}

func TestAnAccountIsCheckedAgainstItsThumbprint(t *testing.T) {
	a, err := cluster.NewAccount("d", "e", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Check(); err != nil {
		t.Errorf("a new account: %v", err)
	}
	other, err := cluster.NewAccount("d", "e", now)
	if err != nil {
		t.Fatal(err)
	}
	swapped, empty, junk := a, a, a
	swapped.Key, empty.Key, junk.Key = other.Key, nil, cluster.Secret(secretText)
	for what, a := range map[string]cluster.Account{"another's key": swapped, "no key": empty, "junk": junk} {
		if err := a.Check(); err == nil || leaks(err.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnOrderIsCheckedAgainstItsKeyType(t *testing.T) {
	for _, k := range []cert.KeyType{cert.EC256, cert.EC384, cert.RSA2048} {
		key, err := k.Generate()
		if err != nil {
			t.Fatal(err)
		}
		pem, err := cert.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		good := cluster.Order{ID: "o", Slot: cert.Slot{Name: "a", Algorithm: k.Algorithm()}, KeyType: k, Key: pem, Step: cluster.StepPlanned}
		if err := good.Check(); err != nil {
			t.Errorf("%s: %v", k, err)
		}
		for what, change := range map[string]func(*cluster.Order){
			"another key type": func(o *cluster.Order) { o.KeyType = cert.RSA4096 },
			"another family":   func(o *cluster.Order) { o.Slot.Algorithm = "dsa" },
			"no step":          func(o *cluster.Order) { o.Step = 0 },
			"a step too many":  func(o *cluster.Order) { o.Step = cluster.StepDownloading + 1 },
			"junk":             func(o *cluster.Order) { o.Key = cluster.Secret(secretText) },
		} {
			bad := good
			change(&bad)
			if err := bad.Check(); err == nil || leaks(err.Error()) {
				t.Errorf("%s, %s: %v", k, what, err)
			}
		}
	}
}

func TestAHintIsFoundUnderWhatWrapsIt(t *testing.T) {
	inner := errors.New("cause")
	err := fmt.Errorf("outer: %w", cluster.WithHint(inner, "do %s", "this"))
	if cluster.HintOf(err) != "do this" || !errors.Is(err, inner) || err.Error() != "outer: cause" {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	if cluster.WithHint(nil, "x") != nil || cluster.HintOf(nil) != "" || cluster.HintOf(inner) != "" {
		t.Error("a hint where there is no error, or none was given")
	}
	if got := cluster.HintOf(cluster.WithHint(err, "do that first")); got != "do that first" {
		t.Errorf("the outermost hint is %q", got)
	}
}
