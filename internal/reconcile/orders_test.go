package reconcile

import (
	"context"
	"errors"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestOrdersAtOneInstant(t *testing.T) {
	now := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	order := func(id string, step cluster.Step, age time.Duration) cluster.Order {
		return cluster.Order{ID: id, Slot: slot, Domains: wildcard.Domains, KeyType: cert.EC256, Directory: "D", Account: "A",
			URL: "u", Step: step, Created: now.Add(-age), Expires: now.Add(day)}
	}
	at := func(os ...cluster.Order) orders {
		return orders{Settings{Certificates: []Certificate{wildcard}}, "D",
			cluster.Records{Orders: os, Accounts: []cluster.Account{{Directory: "D", Thumbprint: "A"}}}, now}
	}
	early, late := order("early", cluster.StepOrdered, 2*time.Hour), order("late", cluster.StepOrdered, time.Hour)
	far := order("far", cluster.StepFinalizing, time.Minute)

	if err := at(early, late).taken(late); !errors.Is(err, cluster.ErrOrderTaken) {
		t.Errorf("the later record of one URL: %v", err)
	}
	if err := at(early, late).taken(early); err != nil {
		t.Errorf("the earlier record of one URL: %v", err)
	}
	if err := at(early, far).taken(early); !errors.Is(err, cluster.ErrOrderTaken) {
		t.Errorf("a CSR may have been sent with another key: %v", err)
	}
	if o, ok := at(early, late, far).toTakeUp(slot); !ok || o.ID != "far" {
		t.Errorf("taken up: %s", o.ID)
	}
	issued := late
	issued.End = cluster.Issued
	if o, ok := at(early, issued).toTakeUp(slot); ok {
		t.Errorf("%s is taken up although a later one was issued", o.ID)
	}
	if o, ok := at(issued, far).toTakeUp(slot); !ok || o.ID != "far" {
		t.Error("an order that is later than the issued one is not taken up")
	}
	elsewhere := early
	elsewhere.Account = "unknown"
	if _, ok := at(elsewhere).toTakeUp(slot); ok {
		t.Error("an order is taken up without its account's key")
	}

	ended := early
	ended.End, ended.Records = cluster.Failed, []cluster.Record{{Domain: "example.org", Token: "t", Value: "v"}}
	if clean := at(ended).toClean(); len(clean) != 1 {
		t.Errorf("to clean: %d, want 1", len(clean))
	}
	late.Records = ended.Records
	if clean := at(ended, late).toClean(); len(clean) != 0 {
		t.Error("a TXT value that an open order needs would be removed")
	}
}

func TestWhatWasObtainedIsKeptAlsoByAPassThatIsToldToEnd(t *testing.T) {
	w := newWorld(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.ca.fault = func(_ context.Context, step string, _ cluster.Order) error {
		if step == "download" {
			cancel()
		}
		return nil
	}
	if _, err := w.hosts[0].pass(ctx, Wanted{}); err != nil {
		t.Fatal(err)
	}
	if w.hosts[0].newest(slot).Sequence != 1 {
		t.Error("the generation was thrown away")
	}
}
