package reconcile

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// in2099 is a clock whose battery is empty.
const in2099 = 73 * 365 * day

// toldOfClock wants the report to say that a clock is wrong, and what to do.
func toldOfClock(t *testing.T, when string, r cluster.Report) {
	t.Helper()
	var told []string
	for _, row := range r.Certificates {
		told = append(told, row.Error+" "+row.Hint)
	}
	for _, line := range append(told, r.Warnings...) {
		if strings.Contains(line, "clock") && strings.Contains(line, "ntpd") {
			return
		}
	}
	t.Errorf("%s: nothing is said of the clock: %+v", when, r)
}

// notTold wants nothing said of a clock.
func notTold(t *testing.T, when string, r cluster.Report) {
	t.Helper()
	if text := fmt.Sprint(r.Warnings); strings.Contains(text, "clock") {
		t.Errorf("%s: %s", when, text)
	}
}

// clockPair has a certificate in service on two nodes, and a CA that tells its time.
func clockPair(t *testing.T) *world {
	w := newWorld(t, 2)
	w.ca.tells = true
	w.hosts[0].tick()
	w.inService(slot, 1)
	return w
}

func TestAMasterWhoseClockIsWrongBurnsNothingAndSaysSo(t *testing.T) {
	for _, c := range []struct {
		skew time.Duration
		// renews tells that a certificate that is due by the CA's clock is renewed with this one.
		renews bool
	}{{2 * time.Hour, true}, {-2 * time.Hour, true}, {in2099, false}, {-in2099, false}} {
		t.Run(c.skew.String(), func(t *testing.T) {
			w := clockPair(t)
			h := w.hosts[0]
			h.setClock(c.skew)
			for range 3 {
				h.tick()
				w.advance(time.Minute)
			}
			w.orders(1, 1)
			w.inService(slot, 1)
			// An hour before it is due, by the CA's clock.
			w.advance(h.newest(slot).NotAfter.Add(-30 * day).Add(-time.Hour).Sub(w.Now()))
			report := h.tick()
			w.orders(1, 1)
			toldOfClock(t, "not due", report)
			// Due for three hours.
			w.advance(4 * time.Hour)
			report = h.tick()
			toldOfClock(t, "due", report)
			if c.renews {
				w.orders(2, 2)
				w.inService(slot, 2)
			} else if row := rowOf(t, report, slot); c.skew > 0 && (row.Outcome != cluster.Failure || row.Error == "") {
				t.Errorf("due: %+v", row)
			}
			// The clock is set right.
			h.setClock(0)
			w.advance(time.Minute)
			h.tick()
			w.orders(2, 2)
			w.inService(slot, 2)
			w.advance(time.Hour)
			report = h.tick()
			notTold(t, "set right", report)
			w.orders(2, 2)
			for _, host := range w.hosts {
				for _, a := range host.records().Ledger {
					if a.Time.Sub(w.Now()).Abs() > 90*day {
						t.Errorf("%s remembers an attempt of %s", host.name, a.Time)
					}
				}
				if got := len(host.records().Ledger); got < 1 {
					t.Errorf("%s has lost its ledger", host.name)
				}
			}
		})
	}
}

func TestABackupWhoseClockIsWrongIsToldOfAndDelaysNothing(t *testing.T) {
	for _, skew := range []time.Duration{2 * time.Hour, -2 * time.Hour, in2099} {
		t.Run(skew.String(), func(t *testing.T) {
			w := clockPair(t)
			w.lax = skew > cluster.MaxSkew // it refuses what has expired by its clock, and is passed over
			w.hosts[1].setClock(skew)
			w.advance(w.hosts[0].newest(slot).NotAfter.Add(-29 * day).Sub(w.Now()))
			report := w.hosts[0].tick()
			toldOfClock(t, "MASTER", report)
			toldOfClock(t, "BACKUP", w.hosts[1].tick())
			w.orders(2, 2)
			if got := w.hosts[0].newest(slot); got.Sequence != 2 {
				t.Errorf("the MASTER holds %d", got.Sequence)
			}
			w.hosts[1].setClock(0)
			w.hosts[0].tick()
			w.inService(slot, 2)
			w.orders(2, 2)
		})
	}
}

// With a lifetime that is shorter than the clock is wrong, each certificate would have expired when it came.
func TestShortLivesAreRenewedByTheCAsClock(t *testing.T) {
	w := newWorld(t, 1)
	w.ca.tells, w.ca.lifetime = true, time.Hour
	h := w.hosts[0]
	h.setClock(2 * time.Hour)
	report := h.tick()
	for end := w.Now().Add(6 * time.Hour); w.Now().Before(end); report = h.tick() {
		if report.Next.IsZero() {
			t.Fatal("it is given up")
		}
		w.advance(max(time.Second, report.Next.Sub(h.clock())))
	}
	if n, _, _ := w.ca.counts(); n > 13 || n < 4 {
		t.Errorf("%d orders in 6 hours of certificates that live one", n)
	}
	toldOfClock(t, "at the end", report)
}

func TestWhereTheCADoesNotTellAPeersClockSpeaksAgainstAnOrder(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].setClock(in2099)
	report := w.hosts[0].tick()
	w.orders(0, 0)
	toldOfClock(t, "apart", report)
	if len(w.hosts[0].records().Ledger)+len(w.hosts[0].records().Orders) > 0 {
		t.Error("an attempt is recorded")
	}
	w.cut(1, true) // nobody knows better
	w.hosts[0].tick()
	w.orders(1, 1)
}

// clockless is a CA that cannot be asked.
type clockless struct {
	*issuer
	err error
}

func (c clockless) Ahead() (time.Duration, bool)  { return 0, false }
func (c clockless) AskTime(context.Context) error { return c.err }

func TestWhatKeepsTheCAFromTellingItsTime(t *testing.T) {
	expired := x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time 2099 is after 2027"}
	for name, c := range map[string]struct {
		err    error
		orders int
	}{
		"its certificate is not valid now": {&cluster.IssueError{Cause: "acme directory: x509", Err: fmt.Errorf("tls: %w", expired)}, 0},
		"an outage":                        {errors.New("connection refused"), 1}, // the order will find out by itself
		"another name":                     {fmt.Errorf("tls: %w", x509.HostnameError{}), 1},
		"no Date":                          {errors.New("the CA's answer does not tell its time"), 1},
	} {
		w := newWorld(t, 1)
		h := w.hosts[0]
		h.Issuer = clockless{&issuer{w.ca, h}, c.err}
		report := h.tick()
		if n, _, _ := w.ca.counts(); n != c.orders {
			t.Errorf("%s: %d orders", name, n)
		}
		if c.orders == 0 {
			toldOfClock(t, name, report)
			if got := len(h.records().Ledger); got != 0 {
				t.Errorf("%s: %d attempts are recorded", name, got)
			}
		}
	}
}

// A node takes a generation over whose notBefore is ahead; the MASTER releases it when it is valid for clients.
func TestWhatIsNotValidYetIsStagedAndNotReleased(t *testing.T) {
	for name, c := range map[string]struct {
		tells   bool
		skew    time.Duration // the MASTER's
		ahead   time.Duration // notBefore, to the true time
		release time.Duration // when it is released
	}{
		"by the CA's clock":                  {true, 0, 3 * time.Hour, 3 * time.Hour},
		"by the CA's, own two hours ahead":   {true, 2 * time.Hour, 3 * time.Hour, 3 * time.Hour},
		"by the CA's, own two hours behind":  {true, -2 * time.Hour, 30 * time.Minute, 30 * time.Minute},
		"by its own, where the CA is silent": {false, 0, 3 * time.Hour, 3 * time.Hour},
		"valid":                              {true, -2 * time.Hour, -time.Minute, 0},
		"the CA's machines differ":           {true, 0, 30 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			h := w.hosts[0]
			w.ca.behind = -c.ahead // the clock that it dates by
			h.tick()
			// What it gave was never released, and its clock is right from here on.
			g := h.newest(slot)
			w.ca.behind, w.ca.tells = 0, c.tells
			b, err := h.disk.Store.Bundle(context.Background(), g)
			if err != nil {
				t.Fatal(err)
			}
			w = newWorldAt(t, w, 2)
			h = w.hosts[0]
			if err := w.hosts[1].disk.Store.Keep(context.Background(), cluster.Kept{Generation: g, Bundle: b}); err != nil {
				t.Fatal(err)
			}
			h.setClock(c.skew)
			var waited time.Duration
			for ; waited < c.release-time.Minute; waited += 10 * time.Minute {
				report := h.tick()
				row := rowOf(t, report, slot)
				if row.Outcome != cluster.Waiting || !strings.Contains(row.Error, "not put in service before") {
					t.Fatalf("after %s: %+v", waited, row)
				}
				for _, host := range w.hosts {
					if !same(host.newest(slot), g) {
						t.Fatalf("%s does not hold it", host.name)
					}
					if pl := statusOf(t, report, host.name).Placements; len(pl) > 0 && pl[0].Memory.Fingerprint == g.Fingerprint {
						t.Fatalf("%s serves it after %s", host.name, waited)
					}
				}
				w.advance(10 * time.Minute)
			}
			h.tick()
			w.inService(slot, 1)
			w.orders(0, 0)
		})
	}
}

// newWorldAt is a new world at the same time with the same CA's roots, so that what the CA of the other gave is trusted.
func newWorldAt(t *testing.T, old *world, n int) *world {
	w := newWorld(t, n, func(_ *world, s *Settings) { s.Roots = old.ca.signer.Roots() })
	w.now = old.Now()
	w.ca.tells = old.ca.tells
	return w
}
