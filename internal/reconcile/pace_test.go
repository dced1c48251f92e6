package reconcile

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestTheNumberOfOrdersIsHalvedAndComesBackOneByOne(t *testing.T) {
	var p pace
	if p.limit(32) != 32 || p.limit(0) != 1 {
		t.Fatalf("at first: %d, %d", p.limit(32), p.limit(0))
	}
	crowd := p.begun()
	for range 32 { // all that were under way are told the same
		p.lower(crowd, 32)
	}
	if got := p.limit(32); got != 16 {
		t.Errorf("after a crowd: %d", got)
	}
	for _, want := range []int{8, 4, 2, 1, 1, 1} {
		if n, _ := p.lower(p.begun(), 32); n != want || p.limit(32) != want {
			t.Errorf("lowered to %d, %d; want %d", n, p.limit(32), want)
		}
	}
	for want := 2; want <= 32; want++ {
		if p.raise(); p.limit(32) != want {
			t.Fatalf("raised to %d, want %d", p.limit(32), want)
		}
	}
	if p.raise(); p.limit(32) != 32 || p.limit(8) != 8 {
		t.Errorf("raised above the configured number: %d, %d", p.limit(32), p.limit(8))
	}
}

func TestTheNumberIsNeverUnderOneNorOverTheConfiguredOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		most := rapid.IntRange(1, 100).Draw(t, "most")
		began := 0
		for _, what := range rapid.SliceOf(rapid.SampledFrom([]string{"raise", "lower", "late", "begin"})).Draw(t, "what") {
			before := p.limit(most)
			switch what {
			case "begin":
				began = p.begun()
			case "raise":
				if p.raise(); p.limit(most) != min(most, before+1) {
					t.Fatalf("raised from %d to %d", before, p.limit(most))
				}
			case "lower":
				if n, _ := p.lower(p.begun(), most); n != max(1, before/2) {
					t.Fatalf("lowered from %d to %d", before, n)
				}
			case "late":
				p.lower(began, most)
			}
			if now := p.limit(most); now < 1 || now > most {
				t.Fatalf("%s: %d of %d", what, now, most)
			}
		}
	})
}

// The CA says 429 to all of a pass, without a Retry-After; the next passes ask less, and come back to the old number.
func TestA429LowersTheNumberOfOrders(t *testing.T) {
	var cs []Certificate
	for i := range 40 {
		name := fmt.Sprintf("c%d.example.org", i)
		cs = append(cs, certificate(name, []string{name}, cert.EC256))
	}
	w := newWorld(t, 1, withCertificates(cs...), func(_ *world, s *Settings) { s.Concurrency = 16 })
	h := w.hosts[0]
	tooMany := &cluster.IssueError{Cause: "new order: rateLimited: too many requests", Throttled: true}
	// The first sixteen wait for one another, so that they are one crowd.
	var crowd sync.WaitGroup
	crowd.Add(16)
	first := 0
	w.ca.set(func() {
		w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
			if step != "newOrder" {
				return nil
			}
			w.ca.mu.Lock()
			first++
			inCrowd := first <= 16
			w.ca.mu.Unlock()
			if inCrowd {
				crowd.Done()
				crowd.Wait()
			}
			return tooMany
		}
	})
	report := h.tick()
	if got := h.pace.limit(16); got >= 8 {
		t.Errorf("after 40 times 429: %d orders at a time", got)
	}
	if w.ca.most != 16 {
		t.Errorf("%d orders at a time in the first pass", w.ca.most)
	}
	if text := strings.Join(report.Warnings, "\n"); !strings.Contains(text, "asked too often: 8 of at most 16 orders") {
		t.Errorf("warnings: %s", text)
	}
	w.advance(day)
	w.ca.set(func() {
		w.ca.most = 0
		w.ca.fault = func(context.Context, string, cluster.Order) error {
			w.ca.mu.Lock()
			running := w.ca.running
			w.ca.mu.Unlock()
			if limit := h.pace.limit(16); running > limit {
				t.Errorf("%d orders at a time, %d are allowed", running, limit)
			}
			return nil
		}
	})
	h.tick()
	w.orders(40, 40)
	if got := h.pace.limit(16); got != 16 {
		t.Errorf("after 40 that ended well: %d orders at a time", got)
	}
}

func TestAnOrderThatFailsForAnotherReasonLowersNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.set(func() { w.ca.fault = failAt("newOrder", &cluster.IssueError{Cause: "out of order"}) })
	w.hosts[0].tick()
	if got := w.hosts[0].pace.limit(8); got != 8 {
		t.Errorf("%d orders at a time", got)
	}
}
