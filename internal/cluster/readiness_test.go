package cluster_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// stand is a node with one HAProxy that serves the newest generation, and what a case changes of it.
type stand struct {
	report cluster.Report
	node   *cluster.NodeStatus
	place  *cluster.Placement
	// old is the generation before; oldSeen and newSeen are what is seen of the two.
	old              cert.Generation
	oldSeen, newSeen cluster.Sighting
}

func newStand() *stand {
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	generation := func(n byte, notAfter time.Time) (cert.Generation, cluster.Sighting) {
		g := cert.Generation{Slot: slot, Sequence: uint64(n), NotBefore: notAfter.Add(-90 * 24 * time.Hour), NotAfter: notAfter, Fingerprint: cert.Fingerprint{n}}
		return g, cluster.Sighting{Fingerprint: g.Fingerprint, NotBefore: g.NotBefore, NotAfter: notAfter}
	}
	s := &stand{}
	s.old, s.oldSeen = generation(1, now.Add(20*24*time.Hour))
	newest, seen := generation(2, now.Add(80*24*time.Hour))
	s.newSeen = seen
	s.report = cluster.Report{Node: "proxy1", End: now,
		Certificates: []cluster.CertificateReport{{Slot: slot, Domains: []string{"example.org", "*.example.org"}, Newest: newest}},
		Nodes: []cluster.NodeStatus{{Node: "proxy1", Role: cluster.Backup, Reachable: true, Placements: []cluster.Placement{{Slot: slot,
			Proxy: "/etc/haproxy.conf", Running: true, Disk: seen, Memory: seen, Served: seen, Proof: cluster.Proven}}}}}
	s.node = &s.report.Nodes[0]
	s.place = &s.node.Placements[0]
	return s
}

func TestReadiness(t *testing.T) {
	none := cluster.Sighting{}
	for _, c := range []struct {
		name   string
		change func(*stand)
		// why is what the only gap says, "" where the node is ready; fails that clients would get nothing valid.
		why   string
		fails bool
	}{
		{"all is in service", func(*stand) {}, "", false},
		{"unproven is ready", func(s *stand) { s.place.Served, s.place.Proof = none, cluster.NoProof }, "", false},
		{"a slot that is not configured does not count", func(s *stand) {
			s.node.Placements = append(s.node.Placements, cluster.Placement{Slot: cert.Slot{Name: "gone"}, Proxy: "x"})
		}, "", false},
		{"nothing was issued", func(s *stand) { s.report.Certificates[0].Newest = cert.Generation{} }, "no certificate was issued yet", true},
		{"the newest has expired", func(s *stand) { s.report.End = now.Add(81 * 24 * time.Hour) }, "has expired", true},
		{"no HAProxy has it", func(s *stand) { s.place.Slot.Name = "another.test" }, "configured for no HAProxy", true},
		{"HAProxy is down", func(s *stand) {
			s.place.Running, s.place.Memory, s.place.Served, s.place.Proof = false, none, none, cluster.NoProof
		}, "HAProxy does not run", true},
		{"no file, the memory is right", func(s *stand) { s.place.Disk = cluster.Sighting{Note: "no file"} }, "its file is not generation 02000000 (no file)", false},
		{"an old file and an old memory", func(s *stand) {
			s.place.Disk, s.place.Memory, s.place.Served, s.place.Proof = s.oldSeen, s.oldSeen, s.oldSeen, cluster.Disproven
		}, "its file is not generation 02000000 (it is 01000000)", false},
		{"an old memory", func(s *stand) { s.place.Memory, s.place.Proof = s.oldSeen, cluster.NoProof }, "memory does not hold generation 02000000 (it is 01000000)", false},
		{"an old memory that has expired", func(s *stand) {
			s.place.Memory, s.place.Served, s.place.Proof = s.oldSeen, none, cluster.NoProof
			s.report.End = now.Add(21 * 24 * time.Hour)
		}, "memory does not hold", true},
		{"an unknown one in memory", func(s *stand) {
			s.place.Memory, s.place.Served, s.place.Proof = cluster.Sighting{SHA1: "aabb", NotAfter: now.Add(time.Hour)}, none, cluster.NoProof
		}, "it is an unknown one, SHA-1 aabb", false},
		{"nothing in memory", func(s *stand) {
			s.place.Memory, s.place.Served, s.place.Proof = cluster.Sighting{Note: "not in HAProxy's memory"}, none, cluster.NoProof
		}, "not in HAProxy's memory", true},
		{"a memory that cannot be read, and a handshake that is right", func(s *stand) {
			s.place.Memory = cluster.Sighting{Note: "permission denied"}
		}, "permission denied", false},
		{"in memory, and of no bind", func(s *stand) {
			s.place.Memory.Note, s.place.Served, s.place.Proof = "example.org.pem is Unused in HAProxy's memory", none, cluster.NoProof
		}, "Unused", true},
		{"a handshake shows another", func(s *stand) { s.place.Served, s.place.Proof = s.oldSeen, cluster.Disproven }, "a handshake does not show generation 02000000 (it is 01000000)", false},
		{"a handshake fails", func(s *stand) {
			s.place.Served, s.place.Proof = cluster.Sighting{Note: "connection refused"}, cluster.Disproven
		}, "(connection refused)", true},
		{"a node that could do nothing for it", func(s *stand) {
			*s.place = cluster.Placement{Slot: s.place.Slot, Proof: cluster.NoProof, Outcome: cluster.Failure, Error: "stage: disk full"}
		}, "it could not be put in service: stage: disk full", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStand()
			c.change(s)
			all := s.report.Readiness()
			if len(all) != 1 || all[0].Node != "proxy1" || all[0].Role != cluster.Backup || !all[0].Known {
				t.Fatalf("readiness: %+v", all)
			}
			got := all[0]
			if got.Ready() != (c.why == "") {
				t.Errorf("ready: %v, gaps %+v", got.Ready(), got.Gaps)
			}
			if c.why == "" {
				return
			}
			if len(got.Gaps) != 1 || !strings.Contains(got.Gaps[0].Why, c.why) || got.Gaps[0].Fails != c.fails {
				t.Fatalf("gaps: %+v, want %q, fails: %v", got.Gaps, c.why, c.fails)
			}
			if gap := got.Gaps[0]; gap.Slot != s.report.Certificates[0].Slot || !slices.Equal(gap.Domains, s.report.Certificates[0].Domains) {
				t.Errorf("the gap is of %s, %q", gap.Slot, gap.Domains)
			}
		})
	}
}

func TestANodeThatCannotBeAskedIsNotReadyAndNothingIsSaidOfIt(t *testing.T) {
	s := newStand()
	s.report.Nodes = append(s.report.Nodes, cluster.NodeStatus{Node: "proxy2", Placements: []cluster.Placement{{Slot: s.place.Slot, Proxy: "x"}}})
	got := s.report.Readiness()
	if len(got) != 2 || !got[0].Ready() || got[1].Node != "proxy2" || got[1].Known || got[1].Ready() || got[1].Gaps != nil {
		t.Errorf("readiness: %+v", got)
	}
}

func TestEveryHAProxyOfANodeCounts(t *testing.T) {
	s := newStand()
	second := *s.place
	second.Proxy, second.Running = "/etc/second.conf", false
	s.node.Placements = append(s.node.Placements, second)
	got := s.report.Readiness()[0]
	if got.Ready() || len(got.Gaps) != 1 || got.Gaps[0].Proxy != "/etc/second.conf" || !got.Gaps[0].Fails {
		t.Errorf("readiness: %+v", got)
	}
}

func TestWhatHasExpiredSinceTheReportIsAGap(t *testing.T) {
	s := newStand()
	s.place.Memory, s.place.Served, s.place.Proof = s.oldSeen, s.oldSeen, cluster.Disproven
	then, later := s.report.Readiness()[0], s.report.ReadinessAt(s.old.NotAfter.Add(time.Second))[0]
	if len(then.Gaps) != 1 || then.Gaps[0].Fails || len(later.Gaps) != 1 || !later.Gaps[0].Fails {
		t.Errorf("then %+v, later %+v", then.Gaps, later.Gaps)
	}
}

func TestOutcomesAreFromTheBestToTheWorst(t *testing.T) {
	all := cluster.Outcomes()
	if len(all) != 11 || all[0] != cluster.Unchanged || all[10] != cluster.Failure {
		t.Fatalf("outcomes: %q", all)
	}
	for i := range all[1:] {
		if cluster.Worse(all[i], all[i+1]) != all[i+1] {
			t.Errorf("%s is not better than %s", all[i], all[i+1])
		}
	}
}

func TestAVerdictCountsEachCertificateOnce(t *testing.T) {
	a, b := cert.Slot{Name: "a"}, cert.Slot{Name: "b"}
	for _, c := range []struct {
		r    cluster.Readiness
		want string
	}{
		{cluster.Readiness{}, "not known: it was not asked, or did not answer"},
		{cluster.Readiness{Known: true}, "ready: it would serve all 3 certificates"},
		{cluster.Readiness{Known: true, Gaps: []cluster.Gap{{Slot: a}, {Slot: a, Proxy: "x"}}}, "not ready: it would serve an earlier one of 1 certificate"},
		{cluster.Readiness{Known: true, Gaps: []cluster.Gap{{Slot: a}, {Slot: a, Fails: true}, {Slot: b, Fails: true}}}, "not ready: 2 certificates would fail"},
		{cluster.Readiness{Known: true, Gaps: []cluster.Gap{{Slot: a, Fails: true}, {Slot: b}}}, "not ready: 1 certificate would fail, and 1 more would be an earlier one"},
	} {
		if got := c.r.Verdict(3); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
