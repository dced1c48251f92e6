package reconcile

import (
	"context"
	"errors"
	"strings"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestAPanicOfOneCertificateIsItsFailureAlone(t *testing.T) {
	other := certificate("example.net", []string{"example.net"}, cert.EC256)
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.ca.set(func() {
		w.ca.fault = func(_ context.Context, at string, o cluster.Order) error {
			if at == "finalize" && o.Slot.Name == other.Name {
				_ = strings.Split(at, ".")[len(o.Domains)] // as a library may have it
			}
			return nil
		}
	})
	report := w.hosts[0].issue()
	w.inService(slot, 1)
	row := rowOf(t, report, other.Slots()[0])
	if row.Outcome != cluster.Failure || !strings.Contains(row.Error, "mistake in certsync: panic at rescue_test.go:") ||
		!strings.Contains(row.Error, "index out of range") || row.Hint == "" {
		t.Errorf("row of the certificate that panics: %+v", row)
	}
	failed := 0
	for _, a := range w.hosts[0].records().Ledger {
		if a.Slot == other.Slots()[0] && a.End == cluster.Failed {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d failed attempts in the ledger, want 1: what is not recorded has no back-off", failed)
	}
	w.ca.set(func() { w.ca.fault = nil })
	w.advance(day)
	w.hosts[0].issue()
	w.inService(other.Slots()[0], 1)
	w.orders(2, 2) // the order was taken up
}

// panicky is a HAProxy whose adapter has a mistake.
type panicky struct{ Proxy }

func (panicky) Activate(context.Context, []cluster.Target) ([]cluster.Placement, error) {
	panic(errors.New("index out of range"))
}

func TestAPanicOfOneHAProxyIsItsFailureAlone(t *testing.T) {
	w := newWorld(t, 2)
	h := w.hosts[0]
	h.Proxies = append(h.Proxies, panicky{h.proxy})
	report := h.issue()
	w.inService(slot, 1)
	row := rowOf(t, report, slot)
	if row.Outcome != cluster.Failure || !strings.Contains(row.Error, "index out of range") {
		t.Errorf("row: %+v", row)
	}
}

func TestAPanicWithAPeerIsNotThePasss(t *testing.T) {
	w := newWorld(t, 3)
	w.lax = true
	bad := w.hosts[0].links["proxy2"]
	bad.set(func() {
		bad.stage = func([]cluster.Kept) ([]cluster.StageResult, error) { panic(struct{ key string }{"SECRET"}) }
	})
	report := w.hosts[0].issue()
	if w.hosts[0].proxy.serves(slot).IsZero() || w.hosts[2].proxy.serves(slot).IsZero() {
		t.Error("a panic with one peer kept the others from being brought in line")
	}
	told := strings.Join(report.Warnings, "\n")
	if !strings.Contains(told, "proxy2: mistake in certsync: panic at rescue_test.go:") || strings.Contains(told, "SECRET") {
		t.Errorf("warnings: %s", told)
	}
}

func TestARoleThatPanicsIsNotMaster(t *testing.T) {
	w := newWorld(t, 1)
	r := &Reconciler{Node: &Node{Settings: w.hosts[0].Settings, Roles: rolesThatPanic{}, Store: w.hosts[0].Store, Now: w.Now}}
	if err := r.fence(context.Background()); !errors.Is(err, cluster.ErrNotMaster) || !errors.Is(err, errMistake) {
		t.Errorf("fence: %v", err)
	}
}

type rolesThatPanic struct{}

func (rolesThatPanic) Role(context.Context) (cluster.Seen, error) { panic("no such vhid") }
func (rolesThatPanic) View(context.Context) cluster.CARP          { return cluster.CARP{} }

func TestAPassWithoutOrdersOnlyAdoptsAndActivates(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[0].issue()
	w.advance(80 * day) // due
	w.hosts[1].proxy.set(func() { clear(w.hosts[1].proxy.memory) })
	report, err := w.hosts[0].pass(context.Background(), Wanted{NoOrders: true})
	if err != nil {
		t.Fatal(err)
	}
	w.orders(1, 1)
	w.inService(slot, 1)
	if row := rowOf(t, report, slot); row.Due != "" || row.Ordered {
		t.Errorf("row: %+v", row)
	}
}
