package reconcile

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Whatever happens to a cluster, once it is whole again one pass on the MASTER has every node hold and serve the newest
// generation. On the way no disk and no HAProxy goes back, no node activates before every node that can be reached has
// it on disk, nobody but the MASTER talks to the CA, and the CA is asked for no more than was forced or expired: the
// fakes look at that at each step.
func TestAnyScheduleEndsWithEveryNodeServingTheNewest(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(2, 3).Draw(rt, "nodes")
		var opts []option
		slots := []cert.Slot{slot}
		if rapid.Bool().Draw(rt, "twin") {
			twin := wildcard
			twin.Name = "twin"
			opts = append(opts, withCertificates(wildcard, twin))
			slots = append(slots, twin.Slots()...)
		}
		w := makeWorld(rt, n, func() Store { return &memory{} }, opts...)
		s := schedule{rt: rt, w: w, names: []string{"example.org"}}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			s.step()
		}
		s.heal()
		report := w.hosts[s.master].issue()
		if report.Outcome != cluster.Done && report.Outcome != cluster.Unchanged {
			// An order of two nodes that were apart may have to be given up first.
			report = w.hosts[s.master].issue()
		}
		if report.Outcome != cluster.Done && report.Outcome != cluster.Unchanged {
			rt.Fatalf("outcome %s: %+v, warnings %q", report.Outcome, report.Certificates, report.Warnings)
		}
		for _, sl := range slots {
			w.inService(sl, w.hosts[0].newest(sl).Sequence)
		}
		newOrders, issued, registrations := w.ca.counts()
		if most := s.passes + 2; newOrders > most*len(slots) || issued > newOrders {
			rt.Errorf("%d orders and %d certificates in %d passes", newOrders, issued, s.passes)
		}
		if !s.everCut && (newOrders > (1+s.forced+s.jumps)*len(slots) || registrations > 1) {
			rt.Errorf("%d orders and %d accounts, with %d asked for, %d jumps of the clock and no node ever away", newOrders, registrations, s.forced, s.jumps)
		}
		before := newOrders
		w.hosts[s.master].issue()
		if after, _, _ := w.ca.counts(); after != before {
			rt.Errorf("a pass with nothing to do made %d orders", after-before)
		}
	})
}

// The same, without a person: whoever follows the reports' instants, and looks four times a day as well, ends there too,
// in a few passes that lie apart.
func TestAnyScheduleHealsByItself(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := makeWorld(rt, rapid.IntRange(2, 3).Draw(rt, "nodes"), func() Store { return &memory{} })
		if rapid.Bool().Draw(rt, "suggestions") {
			w.ca.renewals = func(context.Context, string) (cluster.Suggestion, error) {
				now := w.Now().Truncate(30 * day)
				return cluster.Suggestion{Start: now.Add(20 * day), End: now.Add(25 * day), RetryAfter: 6 * time.Hour}, nil
			}
		}
		s := schedule{rt: rt, w: w, names: []string{"example.org"}}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			s.step()
		}
		s.heal()
		h := w.hosts[s.master]
		before, _, _ := w.ca.counts()
		healed := w.Now()
		report := h.tick()
		for pass := 0; report.Outcome != cluster.Done && report.Outcome != cluster.Unchanged || pass < 3; pass++ {
			if pass > 30 {
				rt.Fatalf("outcome %s after %s: %+v, warnings %q", report.Outcome, w.Now().Sub(healed), report.Certificates, report.Warnings)
			}
			wait := 6 * time.Hour
			if !report.Next.IsZero() {
				wait = min(wait, report.Next.Sub(w.Now()))
			}
			if wait < time.Minute {
				rt.Fatalf("the next pass is %s away", wait)
			}
			w.advance(wait)
			report = h.tick()
		}
		w.inService(slot, w.hosts[0].newest(slot).Sequence)
		if after, _, _ := w.ca.counts(); after-before > 3 {
			rt.Errorf("%d orders to heal", after-before)
		}
	})
}

// schedule draws what happens.
type schedule struct {
	rt      *rapid.T
	w       *world
	names   []string
	master  int
	passes  int
	forced  int
	jumps   int
	everCut bool
}

func (s *schedule) step() {
	i := rapid.IntRange(0, len(s.w.hosts)-1).Draw(s.rt, "host")
	h := s.w.hosts[i]
	switch rapid.SampledFrom([]string{"pass", "pass", "issue", "kill", "kill", "demote", "flip", "cut", "heal", "full", "proxy", "refuse", "outage", "time"}).Draw(s.rt, "what") {
	case "pass":
		s.pass(h, Wanted{})
	case "issue":
		s.forced++
		s.pass(h, Wanted{Names: s.names})
	case "kill":
		h.killAt = rapid.IntRange(1, 70).Draw(s.rt, "effect")
		s.pass(h, Wanted{})
	case "demote":
		h.flipAt = rapid.IntRange(2, 16).Draw(s.rt, "reading")
		s.pass(h, Wanted{})
		s.w.master(s.master)
	case "flip":
		s.master = i
		s.w.master(i)
	case "cut":
		s.everCut = true
		s.w.cut(i, true)
	case "heal":
		s.w.cut(i, false)
	case "full":
		h.disk.setFull(rapid.Bool().Draw(s.rt, "full"))
	case "proxy":
		if down := rapid.Bool().Draw(s.rt, "down"); down {
			h.proxy.set(func() { h.proxy.down = true; clear(h.proxy.memory) })
		} else {
			h.proxy.start()
		}
	case "refuse":
		h.proxy.set(func() { h.proxy.rejects = rapid.Bool().Draw(s.rt, "rejects") })
	case "outage":
		steps := []string{"", "register", "newOrder", "authorizations", "present", "challenge", "finalize", "download"}
		at := rapid.SampledFrom(steps).Draw(s.rt, "at")
		s.w.ca.set(func() { s.w.ca.fault = failAt(at, errOutage) })
	case "time":
		s.jumps++
		s.w.advance(time.Duration(rapid.SampledFrom([]int{1, 30, 24 * 60, 8 * 24 * 60, 40 * 24 * 60}).Draw(s.rt, "minutes")) * time.Minute)
	}
}

// pass is one run, which may end in any way.
func (s *schedule) pass(h *host, wanted Wanted) {
	s.passes++
	_, _ = h.pass(context.Background(), wanted)
}

func (s *schedule) heal() {
	s.w.ca.set(func() { s.w.ca.fault = nil })
	for i, h := range s.w.hosts {
		s.w.cut(i, false)
		h.disk.setFull(false)
		h.proxy.set(func() { h.proxy.rejects = false })
		h.proxy.start()
	}
}
