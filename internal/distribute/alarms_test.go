package distribute

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func TestAnInventoryTellsOfAlarmsAndOneOfBeforeDoesNot(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	book := cluster.AlarmBook{Judged: now, Master: "proxy1", MasterSeen: now, Entries: []cluster.AlarmEntry{
		{Alarm: cluster.Alarm{Kind: cluster.AlarmNotReady, Severity: cluster.Urgent, Node: "proxy2", Since: now, Text: "x"}, By: "proxy1", Told: now},
		{Alarm: cluster.Alarm{Kind: cluster.AlarmFailed, Severity: cluster.Warning, Slot: cert.Slot{Name: "example.org", Algorithm: cert.RSA}, Since: now}, Told: now,
			Ended: now, EndTold: now},
	}}
	data, err := json.Marshal(cluster.Inventory{API: 1, Node: "proxy1", Alarms: &book})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := decodeInventory(strings.NewReader(string(data)))
	if err != nil || inv.Alarms == nil || !reflect.DeepEqual(*inv.Alarms, book) {
		t.Errorf("decoded %+v, %v", inv.Alarms, err)
	}
	if inv, err := decodeInventory(strings.NewReader(`{"api":1,"node":"proxy1"}`)); err != nil || inv.Alarms != nil {
		t.Errorf("without alarms: %+v, %v", inv.Alarms, err)
	}
	if inv, err := decodeInventory(strings.NewReader(`{"api":1,"node":"proxy1","alarms":{"entries":[{"kind":"of tomorrow","text":"x","more":1}],"new":{}}}`)); err != nil || len(inv.Alarms.Entries) != 1 {
		t.Errorf("of a newer peer: %+v, %v", inv.Alarms, err)
	}
}

func TestAlarmsOfAPeerThatLiesAreFitForATerminal(t *testing.T) {
	inv, err := decodeInventory(strings.NewReader(`{"node":"proxy1","alarms":{"entries":[{"kind":"a\u001b[31m","node":"b\n","text":"` +
		strings.Repeat("long", 10000) + `\u0007","hint":"\u001b","subject":"\u0000","by":"\r"}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	e := inv.Alarms.Entries[0]
	for _, text := range []string{string(e.Kind), e.Node, e.Text, e.Hint, e.Subject, e.By} {
		if strings.ContainsAny(text, "\x1b\n\r\a\x00") || len(text) > maxText+10 {
			t.Errorf("%.80q of %d bytes", text, len(text))
		}
	}
	for name, text := range map[string]string{
		"a slot that is a path": `{"entries":[{"slot":{"name":"../etc","algorithm":"rsa"}}]}`, "entries that are none": `{"entries":[1]}`, "a list": `[]`,
	} {
		if _, err := decodeInventory(strings.NewReader(`{"node":"proxy1","alarms":` + text + `}`)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
