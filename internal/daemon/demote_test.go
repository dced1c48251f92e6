package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// standing is how a node of the tests stands, in a letter: r(eady), u(nready), s(ilent); then its role: M, B, I(nit) or
// ? for unknown.
func standing(node, how string) cluster.Readiness {
	r := cluster.Readiness{Node: node, Known: how[0] != 's'}
	if how[0] == 'u' {
		r.Gaps = []cluster.Gap{{Slot: cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}, Why: "HAProxy does not run"}}
	}
	r.Role = map[byte]cluster.Role{'M': cluster.Master, 'B': cluster.Backup, 'I': cluster.Init, '?': cluster.Unknown}[how[1]]
	return r
}

func standings(how string) []cluster.Readiness {
	var out []cluster.Readiness
	for i, h := range strings.Fields(how) {
		out = append(out, standing([]string{"proxy1", "proxy2", "proxy3"}[i], h))
	}
	return out
}

// Each report is "own others... => demoted", the nodes as standing has them.
func TestWhenANodeStepsBack(t *testing.T) {
	for name, reports := range map[string][]string{
		"ready":                                 {"rM rB => no", "rM rB => no"},
		"not ready, and another is":             {"uM rB => no", "uM rB => yes", "uB rM => yes", "rB rM => no"},
		"once is not enough":                    {"uM rB => no", "rM rB => no", "uM rB => no", "rM rB => no"},
		"nobody is ready":                       {"uM uB => no", "uM uB => no", "uM uB => no"},
		"alone":                                 {"uM => no", "uM => no", "uM => no"},
		"the other cannot be asked":             {"uM sB => no", "uM sB => no", "uM s? => no"},
		"the other was ready before":            {"uM rB => no", "uM sB => no", "uM rB => no", "uM rB => yes"},
		"the other has no interface":            {"uM rI => no", "uM rI => no", "uM r? => no"},
		"the other is no longer ready":          {"uM rB => no", "uM rB => yes", "uB uM => no", "uM uB => no"},
		"the other falls silent and is MASTER":  {"uM rB => no", "uM rB => yes", "uB s? => yes", "uB s? => yes", "rB s? => no"},
		"the other is gone":                     {"uM rB => no", "uM rB => yes", "uM s? => no", "uM s? => no"},
		"the other falls silent after a while":  {"uB rM => no", "uB rM => yes", "uB rM => yes", "uB s? => yes", "uB rM => yes"},
		"a BACKUP":                              {"uB rM => no", "uB rM => yes", "rB rM => no"},
		"three nodes, the third is ready":       {"uM uB rB => no", "uM uB rB => yes", "uB uB rM => yes", "uB uB uM => no"},
		"three nodes, one of two silent":        {"uM sB rB => no", "uM sB rB => yes", "uB s? uM => yes", "uM s? uB => no"},
		"what is not known of itself":           {"uM rB => no", "sM rB => no", "uM rB => yes", "sM rB => yes"},
		"a ready node is never demoted for one": {"rM uB => no", "rB uM => no"},
	} {
		p := posture{on: true}
		for i, report := range reports {
			how, want, _ := strings.Cut(report, " => ")
			p.judge("proxy1", standings(how))
			if got := p.why != ""; got != (want == "yes") {
				t.Errorf("%s: report %d (%s): demoted %t: %q", name, i+1, report, got, p.why)
			}
		}
	}
	p := posture{on: true, unready: 1}
	p.judge("proxy1", standings("uM rB"))
	if want := "HAProxy does not run; proxy2 is ready"; !strings.Contains(p.why, want) {
		t.Errorf("why: %q, want %q", p.why, want)
	}
}

// Whatever the reports: a node that is demoted was not ready when it was judged last; where everybody could be asked,
// another one was; and turned off, nothing is demoted.
func TestNeverWhereNobodyIsReady(t *testing.T) {
	letters := rapid.SampledFrom([]string{"rM", "rB", "uM", "uB", "sB", "sM", "r?", "u?", "rI", "uI", "s?"})
	rapid.Check(t, func(t *rapid.T) {
		p := posture{on: true}
		up := time.Duration(0)
		p.begin(rapid.Bool().Draw(t, "demoted"), rapid.Bool().Draw(t, "booted"), instant{})
		for range rapid.IntRange(1, 20).Draw(t, "reports") {
			up += rapid.SampledFrom([]time.Duration{time.Second, 20 * time.Second, time.Minute}).Draw(t, "pause")
			p.look(instant{up: up})
			how := rapid.SliceOfN(letters, 1, 3).Draw(t, "nodes")
			all := standings(strings.Join(how, " "))
			p.judge("proxy1", all)
			able := slices.ContainsFunc(all[1:], func(r cluster.Readiness) bool {
				return r.Ready() && (r.Role == cluster.Master || r.Role == cluster.Backup)
			})
			silent := slices.ContainsFunc(all[1:], func(r cluster.Readiness) bool { return !r.Known })
			switch {
			case p.why == "" || !all[0].Known:
			case all[0].Ready():
				t.Fatalf("%q: demoted and ready", how)
			case !able && !silent:
				t.Fatalf("%q: demoted, and nobody is ready", how)
			case !able && all[0].Role == cluster.Master:
				t.Fatalf("%q: demoted for the sake of nobody", how)
			}
		}
		if p.follow(false); p.why != "" || p.open() {
			t.Fatal("demoted after it was turned off")
		}
		p.judge("proxy1", standings("uM rB"))
		p.judge("proxy1", standings("uM rB"))
		if p.begin(true, true, instant{}); p.why != "" {
			t.Fatal("demoted while it is turned off")
		}
	})
}

func TestABootedNodeIsDemotedUntilItWasJudgedOrAMinutePassed(t *testing.T) {
	at := func(s int) instant { return instant{up: time.Hour + time.Duration(s)*time.Second} }
	begun := func(demoted, booted bool) *posture {
		p := &posture{on: true}
		p.begin(demoted, booted, at(0))
		return p
	}
	if p := begun(false, false); p.why != "" || p.until != 0 {
		t.Errorf("a plain restart: %+v", p)
	}
	for _, p := range []*posture{begun(false, true), begun(true, false)} {
		if p.why == "" || p.wait(at(0), time.Hour) != time.Minute || p.wait(at(55), 10*time.Second) != 5*time.Second {
			t.Errorf("at the start: %+v", p)
		}
		if p.look(at(59)); p.why == "" {
			t.Error("not for a minute")
		}
		if p.look(at(60)); p.why != "" || p.wait(at(60), time.Second) != time.Second {
			t.Errorf("after a minute: %+v", p)
		}
	}
	for how, want := range map[string]bool{
		"rB rM": false, // it has adopted what the other has
		"uB rM": true,  // HAProxy is started after certsync: the other keeps the address until it runs
		"uB uM": false, "uB s?": true, "uM s?": false, "rB s?": false,
	} {
		p := begun(false, true)
		p.judge("proxy1", standings(how))
		p.look(at(3600))
		if got := p.why != ""; got != want {
			t.Errorf("judged %s: demoted %t", how, got)
		}
	}
}

// fakeDemoter is CARP with a demotion that can be refused.
type fakeDemoter struct {
	mu              sync.Mutex
	demoted, booted bool
	left            bool // by an earlier process
	refuses         error
	calls           []string
}

func (f *fakeDemoter) Begin(context.Context) (demoted, booted bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "begin")
	f.demoted = f.left
	return f.left, f.booted, nil
}

func (f *fakeDemoter) Raise(context.Context) error    { return f.set("raise", true) }
func (f *fakeDemoter) GiveBack(context.Context) error { return f.set("give back", false) }

func (f *fakeDemoter) set(call string, demoted bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if f.refuses == nil {
		f.demoted = demoted
	}
	return f.refuses
}

func (f *fakeDemoter) is() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.demoted
}

// lab of one daemon whose node and peer are as ready as the test says.
type pairState struct {
	mu        sync.Mutex
	own, peer string
	on        bool
}

func (s *pairState) set(own, peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.peer = own, peer
}

// nodes are the statuses that lead to the standings.
func (s *pairState) nodes() []cluster.NodeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []cluster.NodeStatus{status("proxy1", s.own), status("proxy2", s.peer)}
}

var (
	oneSlot = cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	newest  = cert.Generation{Slot: oneSlot, Sequence: 1, Fingerprint: cert.Fingerprint{1}, NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
)

func status(node, how string) cluster.NodeStatus {
	r := standing(node, how)
	seen := cluster.Sighting{Fingerprint: newest.Fingerprint, NotAfter: newest.NotAfter}
	return cluster.NodeStatus{Node: node, Role: r.Role, Reachable: r.Known, Placements: []cluster.Placement{
		{Slot: oneSlot, Proxy: "haproxy", Running: len(r.Gaps) == 0, Disk: seen, Memory: seen, Served: seen, Proof: cluster.Proven}}}
}

// newPair is a plant with a demoter; what passes report of the peer, as on a BACKUP, is that nothing is known of its
// HAProxies.
func newPair(t *testing.T, f *fakeDemoter, s *pairState) *plant {
	return newPlant(t, func(p *plant) {
		p.d.demotion.again = 20 * time.Millisecond
		p.change = func(site *Site) {
			s.mu.Lock()
			defer s.mu.Unlock()
			site.Demoter, site.DemoteUnready = f, s.on
			site.Status = func(context.Context) []cluster.NodeStatus { return s.nodes() }
		}
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			nodes := s.nodes()
			nodes[1].Placements = nil
			return cluster.Report{Node: "proxy1", Start: time.Now(), End: time.Now(), Outcome: cluster.Unchanged, Nodes: nodes,
				Certificates: []cluster.CertificateReport{{Slot: oneSlot, Newest: newest, Outcome: cluster.Unchanged}}}, nil
		}
	})
}

func (p *plant) demotedFor() (why, problem string) {
	s, err := p.client().Status(context.Background())
	must(p.t, err)
	return s.Daemon.Demoted, s.Daemon.DemotionError
}

func TestADaemonStepsBackAndComesForwardAgain(t *testing.T) {
	f, s := &fakeDemoter{}, &pairState{own: "uM", peer: "rB", on: true}
	p := newPair(t, f, s)
	p.d.Wake(context.Background()) // the second report; without it the look for what is not in service comes 5 s later
	p.eventually("demoted", f.is)
	p.logs("demotion")
	if why, problem := p.demotedFor(); !strings.Contains(why, "HAProxy does not run") || problem != "" {
		t.Errorf("status: %q, %q", why, problem)
	}
	s.set("rB", "rM")
	p.d.Wake(context.Background())
	p.eventually("given back", func() bool { return !f.is() })
	p.eventually("told", func() bool { why, _ := p.demotedFor(); return why == "" })
}

func TestAnUnreadyNodeIsLookedAtAgainSoon(t *testing.T) {
	f, s := &fakeDemoter{}, &pairState{own: "uM", peer: "rB", on: true}
	p := newPair(t, f, s)
	p.idle()
	st, err := p.client().Status(context.Background())
	must(t, err)
	if wait := time.Until(st.Daemon.Next); wait > 30*time.Second {
		t.Errorf("the next pass is made in %s", wait)
	}
	if f.is() {
		t.Error("demoted after one report")
	}
}

func TestADemotionThatIsRefusedIsToldAndTriedAgain(t *testing.T) {
	f, s := &fakeDemoter{refuses: errors.New("doas: Operation not permitted")}, &pairState{own: "uM", peer: "rB", on: true}
	p := newPair(t, f, s)
	p.d.Wake(context.Background())
	p.eventually("told", func() bool { _, problem := p.demotedFor(); return strings.Contains(problem, "not permitted") })
	f.mu.Lock()
	f.refuses = nil
	f.mu.Unlock()
	p.eventually("demoted", f.is)
	p.eventually("no longer told", func() bool { _, problem := p.demotedFor(); return problem == "" })
	if n := strings.Count(p.log.String(), "not permitted"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestABootedNodeStepsBackBeforeItsFirstPass(t *testing.T) {
	f, s := &fakeDemoter{booted: true}, &pairState{own: "rB", peer: "rM", on: true}
	p := newPlant(t, func(q *plant) {
		q.hold(true) // the first pass does not end
		q.change = func(site *Site) {
			site.Demoter, site.DemoteUnready = f, true
			site.Status = func(context.Context) []cluster.NodeStatus { return s.nodes() }
		}
		q.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			return cluster.Report{Node: "proxy1", End: time.Now(), Nodes: s.nodes()}, nil
		}
	})
	p.eventually("demoted", f.is)
	p.hold(false)
	p.eventually("given back when the pass has ended", func() bool { return !f.is() })
}

func TestAnotherConfigurationThatTurnsItOffGivesItBack(t *testing.T) {
	f, s := &fakeDemoter{left: true}, &pairState{own: "uB", peer: "rM", on: true}
	p := newPair(t, f, s)
	p.eventually("kept", func() bool { why, _ := p.demotedFor(); return why != "" && f.is() })
	s.mu.Lock()
	s.on = false
	s.mu.Unlock()
	p.hangups <- nil
	p.eventually("given back", func() bool { return !f.is() })
}

func TestAtTheEndADemotionStays(t *testing.T) {
	f, s := &fakeDemoter{left: true}, &pairState{own: "uB", peer: "rM", on: true}
	p := newPair(t, f, s)
	p.idle()
	p.eventually("taken over", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return slices.Contains(f.calls, "raise") })
	p.stop()
	err := <-p.ended
	p.ended <- err
	if !f.is() || err != nil {
		t.Errorf("demoted %t, %v", f.is(), err)
	}
	p.logs("stays demoted")
}
