package cert_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
)

// generations draws from few values, so that ties of every kind are common.
func generations() *rapid.Generator[cert.Generation] {
	return rapid.Custom(func(t *rapid.T) cert.Generation {
		var f cert.Fingerprint
		f[0] = byte(rapid.IntRange(1, 3).Draw(t, "first byte"))
		f[31] = byte(rapid.IntRange(0, 2).Draw(t, "last byte"))
		from := time.Unix(rapid.Int64Range(0, 2).Draw(t, "notBefore"), 0)
		if rapid.Bool().Draw(t, "UTC") {
			from = from.UTC() // the zone of a time means nothing
		}
		return cert.Generation{Slot: cert.Slot{Name: "a", Algorithm: cert.ECDSA}, Sequence: rapid.Uint64Range(0, 3).Draw(t, "sequence"),
			NotBefore: from, NotAfter: from.Add(time.Hour), Fingerprint: f}
	})
}

func sign(n int) int { return min(1, max(-1, n)) }

func TestTheOrderOfGenerationsIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := generations().Draw(t, "a"), generations().Draw(t, "b"), generations().Draw(t, "c")
		if a.Compare(a) != 0 {
			t.Errorf("%v is not equal to itself", a)
		}
		if sign(a.Compare(b)) != -sign(b.Compare(a)) {
			t.Errorf("not antisymmetric: %v, %v", a, b)
		}
		same := a.Sequence == b.Sequence && a.NotBefore.Equal(b.NotBefore) && a.Fingerprint == b.Fingerprint
		if (a.Compare(b) == 0) != same {
			t.Errorf("%v and %v: equal in the order %t, the same %t", a, b, !same, same)
		}
		if a.Compare(b) <= 0 && b.Compare(c) <= 0 && a.Compare(c) > 0 {
			t.Errorf("not transitive: %v, %v, %v", a, b, c)
		}
		if a.Newer(b) != (a.Compare(b) > 0) {
			t.Errorf("Newer and Compare differ: %v, %v", a, b)
		}
	})
}

func TestEveryOrderOfArrivalEndsWithTheSameNewest(t *testing.T) {
	newest := func(list []cert.Generation) (held cert.Generation) {
		for _, g := range list {
			if g.Newer(held) {
				held = g
			}
		}
		return held
	}
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(generations(), 1, 8).Draw(t, "generations")
		want := slices.MaxFunc(list, cert.Generation.Compare)
		shuffled := rapid.Permutation(list).Draw(t, "arrival")
		// A peer tells the same ones again, in part.
		shuffled = append(shuffled, shuffled[:rapid.IntRange(0, len(shuffled)).Draw(t, "again")]...)
		if got := newest(shuffled); got.Compare(want) != 0 {
			t.Errorf("newest of %v is %v, want %v", shuffled, got, want)
		}
	})
}

func TestTheSequenceGoesBeforeTheDateAndTheDateBeforeTheFingerprint(t *testing.T) {
	at := func(sequence uint64, hour int, first byte) cert.Generation {
		return cert.Generation{Sequence: sequence, NotBefore: time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC), Fingerprint: cert.Fingerprint{first}}
	}
	ascending := []cert.Generation{at(1, 1, 1), at(1, 1, 2), at(1, 2, 1), at(2, 0, 1), at(2, 0, 9), at(2, 1, 1)}
	if !slices.IsSortedFunc(ascending, cert.Generation.Compare) {
		t.Error("not in order")
	}
	for i := 1; i < len(ascending); i++ {
		if !ascending[i].Newer(ascending[i-1]) || ascending[i-1].Newer(ascending[i]) {
			t.Errorf("%v is not newer than %v", ascending[i], ascending[i-1])
		}
	}
	if none := (cert.Generation{}); !ascending[0].Newer(none) || none.Newer(ascending[0]) || none.Newer(none) || !none.IsZero() {
		t.Error("none is not the oldest")
	}
}

func TestRunwayIsThePartOfTheLifetimeThatIsLeft(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	g := cert.Generation{NotBefore: from, NotAfter: from.Add(10 * time.Hour)}
	for hours, want := range map[int]float64{-1: 1, 0: 1, 5: 0.5, 9: 0.1, 10: 0, 11: 0} {
		now := from.Add(time.Duration(hours) * time.Hour)
		if got := g.Runway(now); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("after %d h: %v, want %v", hours, got, want)
		}
		if got := g.Left(now); got != time.Duration(10-hours)*time.Hour {
			t.Errorf("after %d h: %s left", hours, got)
		}
	}
	g.NotAfter = from
	if g.Runway(from) != 0 || g.Lifetime() != 0 {
		t.Error("a lifetime of nothing has a runway")
	}
}

func TestFingerprintsAreTheSameAfterTextAndJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f, text, viaJSON cert.Fingerprint
		copy(f[:], rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, "fingerprint"))
		data, err := f.MarshalText()
		if err != nil || text.UnmarshalText(data) != nil || text != f || f.String() != string(data) {
			t.Errorf("%v became %q and %v, %v", f, data, text, err)
		}
		if len(data) != 64 && !f.IsZero() || strings.ToLower(string(data)) != string(data) {
			t.Errorf("%q is not 64 lower-case digits", data)
		}
		if !f.IsZero() && f.Short() != string(data[:8]) {
			t.Errorf("%q is short for %q", f.Short(), data)
		}
		data, err = json.Marshal(f)
		if err != nil || json.Unmarshal(data, &viaJSON) != nil || viaJSON != f {
			t.Errorf("%v became %s and %v, %v", f, data, viaJSON, err)
		}
	})
}

func TestFingerprintsOfAnotherFormAreRefused(t *testing.T) {
	good := strings.Repeat("ab", 32)
	for _, text := range []string{"a", good[:62], good + "00", good[:63] + "g", strings.Repeat("ab:", 21) + "a", " " + good[1:], strings.Repeat("x", 1<<20)} {
		f := cert.Fingerprint{1}
		if err := f.UnmarshalText([]byte(text)); err == nil || len(err.Error()) > 500 {
			t.Errorf("%.80q: %.600v", text, err)
		}
	}
	f := cert.Fingerprint{1}
	if err := f.UnmarshalText(nil); err != nil || !f.IsZero() {
		t.Errorf("no text: %v, %v", f, err)
	}
	if (cert.Fingerprint{}).Short() != "-" {
		t.Error("none has no dash")
	}
}

func TestAGenerationIsTheSameAfterJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := generations().Draw(t, "generation")
		data, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		var back cert.Generation
		if err := json.Unmarshal(data, &back); err != nil || back.Compare(g) != 0 || back.Slot != g.Slot || !back.NotAfter.Equal(g.NotAfter) {
			t.Errorf("%s became %+v, %v", data, back, err)
		}
	})
}
