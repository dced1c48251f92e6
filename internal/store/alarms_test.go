package store

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

func someAlarms() cluster.AlarmBook {
	e := cluster.AlarmEntry{Alarm: cluster.Alarm{Kind: cluster.AlarmFailed, Severity: cluster.Urgent, Slot: cert.Slot{Name: "example.org", Algorithm: cert.ECDSA},
		Since: testNow, Text: "ca: down", Hint: "wait"}, By: "proxy1", Told: testNow, Rises: []time.Time{testNow}, Unsent: true}
	return cluster.AlarmBook{Judged: testNow, Master: "proxy1", MasterSeen: testNow, Entries: []cluster.AlarmEntry{e},
		Heard: map[string][]cluster.AlarmEntry{"proxy2": {e}}}
}

func TestAlarmsAreKept(t *testing.T) {
	s := fresh(t)
	if book, err := s.Alarms(t.Context()); err != nil || !reflect.DeepEqual(book, cluster.AlarmBook{}) {
		t.Errorf("nothing was kept: %+v, %v", book, err)
	}
	want := someAlarms()
	for range 2 {
		if err := s.KeepAlarms(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, s.dir)
	if got, err := again.Alarms(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("kept %+v, %v", got, err)
	}
	if info, err := os.Stat(s.path(alarmsName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info, err)
	}
	if p := again.Problems(t.Context()); len(p) != 0 {
		t.Errorf("problems: %q", p)
	}
}

func TestTornAlarmsAreSetAsideAndTold(t *testing.T) {
	for _, content := range []string{"", `{"format":1,"da`, "\x00\x00\x00", `{"format":1,"data":[]}`} {
		s := fresh(t)
		if err := os.WriteFile(s.path(alarmsName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if book, err := s.Alarms(t.Context()); err != nil || len(book.Entries) != 0 {
			t.Errorf("%q: %+v, %v", content, book, err)
		}
		if p := s.Problems(t.Context()); len(p) != 1 || !strings.Contains(p[0], alarmsName+" was torn") {
			t.Errorf("%q: problems %q", content, p)
		}
		if err := s.KeepAlarms(t.Context(), someAlarms()); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestAlarmsOfANewerFormatAreLeftAlone(t *testing.T) {
	s := fresh(t)
	const newer = `{"format":2,"data":"anything"}`
	if err := os.WriteFile(s.path(alarmsName), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Alarms(t.Context()); !errors.Is(err, cluster.ErrNewerFormat) {
		t.Errorf("read: %v", err)
	}
	if data, err := os.ReadFile(s.path(alarmsName)); err != nil || string(data) != newer {
		t.Errorf("the file is %q (%v)", data, err)
	}
}

func TestAlarmsKilledAnywhereAreThoseOfBeforeOrAfter(t *testing.T) {
	for point, want := range map[string]string{"store.temp": "proxy1", "store.written": "proxy1", "store.rename": "proxy1", "store.renamed": "proxy2", "store.alarms": "proxy2"} {
		s := fresh(t)
		if err := s.KeepAlarms(t.Context(), cluster.AlarmBook{Master: "proxy1"}); err != nil {
			t.Fatal(err)
		}
		if !killed(t, child(t, point, s.dir, "alarms", "proxy2")) {
			t.Errorf("%s: the child passed the failpoint alive", point)
		}
		if book, err := s.Alarms(t.Context()); err != nil || book.Master != want {
			t.Errorf("%s: %s (%v), want %s", point, book.Master, err, want)
		}
		cleanAfterKill(t, s)
	}
}

func TestAFullDiskKeepsTheAlarmsOfBefore(t *testing.T) {
	s := fresh(t)
	before := someAlarms()
	if err := s.KeepAlarms(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	s.disk.write = func(f *os.File, data []byte) (int, error) {
		n, _ := f.Write(data[:len(data)/2])
		return n, unix.ENOSPC
	}
	if err := s.KeepAlarms(t.Context(), cluster.AlarmBook{Judged: testNow}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if got, err := s.Alarms(t.Context()); err != nil || !reflect.DeepEqual(got, before) {
		t.Errorf("kept %+v, %v", got, err)
	}
}
