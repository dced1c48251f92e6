package cluster_test

import (
	"errors"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestReasonsAreReadByTheirNames(t *testing.T) {
	for name, want := range map[string]cluster.Reason{"": cluster.Unspecified, "keycompromise": cluster.KeyCompromise, "Superseded": cluster.Superseded} {
		if got, err := cluster.ParseReason(name); err != nil || got != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	// Those of a CA, of an attribute authority, and of a CRL's own are not a subscriber's.
	for _, name := range []string{"cACompromise", "aACompromise", "certificateHold", "removeFromCRL", "privilegeWithdrawn", "1"} {
		if _, err := cluster.ParseReason(name); !errors.Is(err, cluster.ErrUsage) || cluster.HintOf(err) == "" {
			t.Errorf("%q: %v", name, err)
		}
	}
	codes := map[uint]bool{}
	for _, r := range cluster.Reasons() {
		code, ok := r.Code()
		if !ok || codes[code] {
			t.Errorf("%s has the code %d", r, code)
		}
		codes[code] = true
	}
	if _, ok := cluster.Reason("x").Code(); ok {
		t.Error("an unknown reason has a code")
	}
}

func TestARevocationThatTheCADidIsNeverUndone(t *testing.T) {
	g := cert.Generation{Fingerprint: cert.Fingerprint{1}, NotAfter: now.Add(time.Hour)}
	done := cluster.Revocation{Generation: g, Revision: 2, End: cluster.RevocationDone}
	given := cluster.Revocation{Generation: g, Revision: 1, End: cluster.RevocationGivenUp}
	again := cluster.Revocation{Generation: g, Revision: 3}
	for _, test := range []struct {
		a, b cluster.Revocation
		want cluster.RevocationEnd
	}{{done, again, cluster.RevocationDone}, {given, again, cluster.RevocationOpen}, {given, done, cluster.RevocationDone}} {
		got := cluster.MergeRevocations([]cluster.Revocation{test.a}, []cluster.Revocation{test.b})
		if len(got) != 1 || got[0].End != test.want {
			t.Errorf("%q and %q are %v, want the end %q", test.a.End, test.b.End, got, test.want)
		}
	}
	if again.Open(g.NotAfter) || !again.Open(now) || done.Open(now) {
		t.Error("an expired or ended one is open, or an open one is not")
	}
}

func TestTheReleaseOfARevokedGenerationHidesNoOther(t *testing.T) {
	revoked := cluster.Release{Generation: cert.Generation{Sequence: 2, Fingerprint: cert.Fingerprint{1}}}
	sound := cluster.Release{Generation: cert.Generation{Sequence: 1, Fingerprint: cert.Fingerprint{2}}}
	got := cluster.SoundReleases([]cluster.Release{revoked, sound}, []cluster.Tombstone{{Fingerprint: cert.Fingerprint{1}}})
	if len(got) != 1 || got[0] != sound {
		t.Errorf("left are %v", got)
	}
}
