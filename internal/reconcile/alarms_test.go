package reconcile

import (
	"context"
	"errors"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

func TestAPassHearsOfItsPeersAlarms(t *testing.T) {
	w := newWorld(t, 3)
	told := cluster.AlarmEntry{Alarm: cluster.Alarm{Kind: cluster.AlarmState, Node: "proxy2", Since: w.Now(), Text: "torn"}, By: "proxy2", Told: w.Now()}
	pending := told
	pending.Subject, pending.Told = "pending", pending.Ended
	w.hosts[1].Alarms = func(context.Context) (cluster.AlarmBook, error) {
		return cluster.AlarmBook{Judged: w.Now(), Entries: []cluster.AlarmEntry{told, pending}, Heard: map[string][]cluster.AlarmEntry{"proxy1": {told}}}, nil
	}
	w.hosts[2].Alarms = func(context.Context) (cluster.AlarmBook, error) {
		return cluster.AlarmBook{}, errors.New("disk on fire")
	}
	report, err := w.hosts[0].pass(t.Context(), Wanted{})
	if err != nil {
		t.Fatal(err)
	}
	book := statusOf(t, report, "proxy2").Alarms
	if book == nil || !book.Judged.Equal(w.Now()) || len(book.Entries) != 1 || book.Entries[0].Subject != "" || book.Heard != nil {
		t.Errorf("heard %+v: want what was told, and nothing else", book)
	}
	if s := statusOf(t, report, "proxy3"); s.Alarms != nil || !s.Reachable {
		t.Errorf("a node whose book cannot be read: %+v", s)
	}
}

func TestTheReportHasTheBudgetsThatAreNearlySpent(t *testing.T) {
	w := newWorld(t, 2)
	w.ca.directory = letsEncrypt
	var ledger []cluster.Attempt
	for _, id := range []string{"1", "2", "3", "4"} {
		ledger = append(ledger, cluster.Attempt{ID: id, Node: "proxy1", Slot: slot, Directory: letsEncrypt, Domains: wildcard.Domains, Order: id,
			Renews: cluster.RenewsNames, Time: w.Now().Add(-day), End: cluster.Issued})
	}
	if err := w.hosts[0].disk.Merge(t.Context(), cluster.Records{Ledger: ledger}); err != nil {
		t.Fatal(err)
	}
	report, err := w.hosts[0].pass(t.Context(), Wanted{NoOrders: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Budgets) != 1 || !strings.HasPrefix(report.Budgets[0], "the names of example.org: 4 of the 5 ") {
		t.Errorf("budgets: %q", report.Budgets)
	}
}
