package reconcile

import (
	"errors"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// canaryWorld is a pair that is in service, with a renewal to come.
func canaryWorld(t *testing.T, n int) *world {
	w := newWorld(t, n)
	w.hosts[0].issue()
	w.events = nil
	return w
}

func TestABackupThatServesTheWrongThingHoldsTheMaster(t *testing.T) {
	for name, breakIt := range map[string]func(*fakeProxy){
		"HAProxy refuses it":        func(p *fakeProxy) { p.rejects = true },
		"a handshake shows another": func(p *fakeProxy) { p.shows = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := canaryWorld(t, 3)
			old := w.hosts[0].proxy.serves(slot)
			w.hosts[1].proxy.set(func() { breakIt(w.hosts[1].proxy) })
			report := w.hosts[0].issue("example.org")
			for _, i := range []int{0, 2} {
				if w.hosts[i].proxy.serves(slot) != old {
					t.Errorf("%s serves the new one, which proxy2 does not", w.hosts[i].name)
				}
			}
			own := statusOf(t, report, "proxy1").Placements
			if len(own) != 1 || own[0].Outcome != cluster.Waiting {
				t.Errorf("own placements %+v", own)
			}
			row := rowOf(t, report, slot)
			if !row.Ordered || !strings.Contains(row.Error, "proxy2") || !strings.Contains(row.Hint, "proxy2") {
				t.Errorf("row %+v", row)
			}
			w.hosts[1].proxy.set(func() { w.hosts[1].proxy.rejects, w.hosts[1].proxy.shows = false, false })
			if r := w.hosts[0].issue(); r.Outcome != cluster.Done {
				t.Errorf("outcome %s after the mend", r.Outcome)
			}
			w.inService(slot, 2)
			w.orders(2, 2)
		})
	}
}

func TestTheMasterDoesNotWaitWithNothingValid(t *testing.T) {
	for name, state := range map[string]func(w *world){
		"it serves nothing":                     func(w *world) { delete(w.hosts[0].proxy.memory, slot) },
		"it serves what expired":                func(w *world) { w.advance(91 * day) },
		"under a tenth of the lifetime is left": func(w *world) { w.advance(82 * day) },
		"unproven, and about to expire":         func(w *world) { w.hosts[0].proxy.noVerify = true; w.advance(82 * day) },
		"HAProxy is down, its disk empty": func(w *world) {
			w.hosts[0].proxy.down = true
			delete(w.hosts[0].proxy.files, slot)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := canaryWorld(t, 2)
			w.hosts[1].proxy.rejects = true
			state(w)
			w.hosts[0].issue("example.org")
			if b := w.hosts[0].proxy.files[slot]; b == nil || b.Fingerprint() != w.hosts[0].newest(slot).Fingerprint {
				t.Error("the MASTER waits")
			}
		})
	}
}

func TestTheMasterWaitsWhileWhatItHasIsGood(t *testing.T) {
	for name, state := range map[string]func(w *world){
		"over a tenth of the lifetime is left": func(w *world) { w.advance(80 * day) },
		"unproven":                             func(w *world) { w.hosts[0].proxy.noVerify = true },
		"HAProxy is down, its disk good":       func(w *world) { w.hosts[0].proxy.down = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := canaryWorld(t, 2)
			old := w.hosts[0].newest(slot)
			w.hosts[1].proxy.rejects = true
			state(w)
			w.hosts[0].issue("example.org")
			if b := w.hosts[0].proxy.files[slot]; b == nil || b.Fingerprint() != old.Fingerprint {
				t.Error("the MASTER does not wait")
			}
		})
	}
}

func TestABackupThatProvesNothingHoldsNothingUp(t *testing.T) {
	for name, state := range map[string]func(w *world){
		"unproven":                func(w *world) { w.hosts[1].proxy.noVerify = true },
		"no running HAProxy":      func(w *world) { w.hosts[1].proxy.down = true },
		"unreachable":             func(w *world) { w.cut(1, true) },
		"its bundle folder full":  func(w *world) { w.hosts[1].proxy.full = true },
		"its HAProxy not to read": func(w *world) { w.hosts[1].proxy.err = errors.New("read haproxy.cfg: permission denied") },
	} {
		t.Run(name, func(t *testing.T) {
			w := canaryWorld(t, 2)
			state(w)
			report := w.hosts[0].issue("example.org")
			if w.hosts[0].proxy.serves(slot) != w.hosts[0].newest(slot).Fingerprint {
				t.Error("the MASTER waits")
			}
			if report.Outcome == cluster.Done || report.Outcome == cluster.Unchanged {
				t.Errorf("outcome %s: the peer's state is not told", report.Outcome)
			}
		})
	}
}

func TestAMasterThatServesTheNewestAlreadyDoesNotWait(t *testing.T) {
	w := canaryWorld(t, 2)
	w.hosts[1].proxy.shows = true // goes wrong long after the activation
	report := w.hosts[0].issue()
	own := statusOf(t, report, "proxy1").Placements
	if len(own) != 1 || own[0].Outcome != cluster.Unchanged {
		t.Errorf("own placements %+v", own)
	}
	if row := rowOf(t, report, slot); row.Outcome != cluster.Failure || !strings.Contains(row.Error, "proxy2") {
		t.Errorf("row %+v", row)
	}
}

func TestAHAProxyThatDoesNotAnswerIsToldBesideTheOneThatDoes(t *testing.T) {
	w := canaryWorld(t, 1)
	second := newProxy(w.hosts[0])
	second.err = errors.New("no such socket")
	w.hosts[0].Proxies = append(w.hosts[0].Proxies, second)
	report := w.hosts[0].issue("example.org")
	own := statusOf(t, report, "proxy1").Placements
	if len(own) != 2 || own[1].Proxy != "haproxy[1]" || !strings.Contains(own[1].Error, "no such socket") {
		t.Errorf("own placements %+v", own)
	}
}

func TestBackupsServeBeforeTheMasterAtEachRenewal(t *testing.T) {
	w := canaryWorld(t, 2)
	for range 3 {
		w.advance(70 * day)
		w.hosts[0].issue()
	}
	w.inService(slot, 4)
	events := w.eventsOf("activate")
	for i := 0; i+1 < len(events); i += 2 {
		if !strings.Contains(events[i], "proxy2") || !strings.Contains(events[i+1], "proxy1") {
			t.Errorf("activations %q", events)
		}
	}
	if len(events) != 6 {
		t.Errorf("%d activations, want 6", len(events))
	}
}

// Found by the simulation: with three nodes, a BACKUP behind the one that refuses was passed over, and the MASTER, once it
// could wait no longer, served the new one before that BACKUP did.
func TestABackupThatWasPassedOverServesBeforeTheMasterThatWaitsNoLonger(t *testing.T) {
	w := canaryWorld(t, 3)
	w.hosts[1].proxy.set(func() { w.hosts[1].proxy.rejects = true })
	w.advance(82 * day)
	w.hosts[0].issue("example.org")
	newest := w.hosts[0].newest(slot).Fingerprint
	for _, i := range []int{0, 2} {
		if w.hosts[i].proxy.serves(slot) != newest {
			t.Errorf("%s does not serve the new one", w.hosts[i].name)
		}
	}
	events := w.eventsOf("activate")
	if got := strings.Join(events, ", "); got != "activate proxy2 example.org (ecdsa), activate proxy3 example.org (ecdsa), activate proxy1 example.org (ecdsa)" {
		t.Errorf("activations: %s", got)
	}
}
