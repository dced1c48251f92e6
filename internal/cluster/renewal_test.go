package cluster_test

import (
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestAWindow(t *testing.T) {
	for _, c := range []struct {
		what              string
		start, end        time.Duration
		suggested, within bool
	}{
		{"now in it", -time.Hour, time.Hour, true, true},
		{"it begins now", 0, time.Hour, true, true},
		{"it ends now", -time.Hour, 0, true, false},
		{"to come", 1, time.Hour, true, false},
		{"no length", 0, 0, false, false},
		{"backwards", time.Hour, -time.Hour, false, false},
	} {
		r := cluster.RenewalInfo{Start: now.Add(c.start), End: now.Add(c.end)}
		if r.Suggested() != c.suggested || r.Within(now) != c.within {
			t.Errorf("%s: suggested %t, within %t", c.what, r.Suggested(), r.Within(now))
		}
	}
	if (cluster.RenewalInfo{}).Suggested() {
		t.Error("nothing is a window")
	}
}

func TestTheQuestionIsNotSilencedForMoreThanADay(t *testing.T) {
	r := cluster.RenewalInfo{Time: now, Again: now.Add(5 * time.Hour)}
	if at := r.AskAgain(); !at.Equal(r.Again) {
		t.Errorf("asked again at %s, want %s", at, r.Again)
	}
	r.Again = now.Add(1000 * time.Hour)
	if at := r.AskAgain(); !at.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("asked again at %s", at)
	}
}

func TestRenewalInformationIsForgottenADayAfterTheExpiry(t *testing.T) {
	r := cluster.RenewalInfo{Generation: cert.Generation{NotAfter: now}}
	if last := now.Add(cluster.MaxSkew); r.Forgotten(last) || !r.Forgotten(last.Add(1)) {
		t.Error("forgotten too early, or too late")
	}
}

func TestTheLastAskingOfTheNewestGenerationStays(t *testing.T) {
	g := cert.Generation{Slot: cert.Slot{Name: "a", Algorithm: cert.ECDSA}, Sequence: 1, NotBefore: now, NotAfter: now.Add(time.Hour), Fingerprint: cert.Fingerprint{1}}
	next := g
	next.Sequence, next.Fingerprint = 2, cert.Fingerprint{2}
	other := g
	other.Algorithm = cert.RSA
	// A node whose clock is ahead asked first: that it was later by its clock does not count.
	ahead := cluster.RenewalInfo{Generation: g, Node: "proxy1", Time: now.Add(2 * time.Hour), Revision: 1}
	second := cluster.RenewalInfo{Generation: g, Node: "proxy2", Time: now, Revision: 2}
	got := cluster.MergeRenewals([]cluster.RenewalInfo{ahead}, []cluster.RenewalInfo{second, {Generation: other, Node: "proxy1"}})
	if len(got) != 2 || got[0].Node != "proxy2" || got[1].Generation.Algorithm != cert.RSA {
		t.Errorf("merged: %+v", got)
	}
	got = cluster.MergeRenewals(got, []cluster.RenewalInfo{{Generation: next, Node: "proxy3"}})
	if len(got) != 2 || got[0].Node != "proxy3" {
		t.Errorf("the newer generation's is not kept: %+v", got)
	}
}

// A success may put the next try off: the certificate was due again at once.
func TestASuccessMayPutTheNextTryOff(t *testing.T) {
	s := cert.Slot{Name: "a", Algorithm: cert.ECDSA}
	failed := cluster.Attempt{ID: "1", Slot: s, Directory: "d", Time: now, End: cluster.Failed, NextTry: now.Add(9 * time.Hour)}
	issued := cluster.Attempt{ID: "2", Slot: s, Directory: "d", Time: now, End: cluster.Issued}
	if a, ok := cluster.NextTry([]cluster.Attempt{failed, issued}, s, "d", now); ok {
		t.Errorf("%s puts off what succeeded since", a.ID)
	}
	issued.NextTry = now.Add(time.Hour)
	if a, ok := cluster.NextTry([]cluster.Attempt{failed, issued}, s, "d", now); !ok || a.ID != "2" {
		t.Errorf("put off by %q, want by the success", a.ID)
	}
}
