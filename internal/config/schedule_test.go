package config

import (
	"strings"
	"testing"
	"time"
)

func TestScheduleIsReadAsCronDoes(t *testing.T) {
	from := time.Date(2026, 11, 24, 15, 30, 10, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"CRON_TZ=UTC 17 */6 * * *":          time.Date(2026, 11, 24, 18, 17, 0, 0, time.UTC),
		"CRON_TZ=Europe/Berlin 0 3 * * *":   time.Date(2026, 11, 25, 2, 0, 0, 0, time.UTC),
		"TZ=America/New_York 30 10 * * MON": time.Date(2026, 11, 30, 15, 30, 0, 0, time.UTC),
		"@every 90m":                        time.Date(2026, 11, 24, 17, 0, 10, 0, time.UTC),
		"  CRON_TZ=UTC @daily ":             time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC),
	} {
		schedule, err := ParseSchedule(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := schedule.Next(from); !got.Equal(want) {
			t.Errorf("%q: after %s comes %s, want %s", text, from, got.UTC(), want)
		}
	}
}

func TestScheduleThatIsNoneIsRefused(t *testing.T) {
	for _, text := range []string{"", " ", "17 */6 * *", "17 */6 * * * *", "61 * * * *", "*/0 * * * *", "@reboot", "@every", "@every 6", "@every 10ms",
		"@every -1h", "@every 0s", "TZ=UTC", "CRON_TZ=UTC", "CRON_TZ=Mars/Olympus 0 3 * * *", "0 0 30 2 *", "CRON_TZ=", "TZ= "} {
		if _, err := ParseSchedule(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestWrongScheduleIsToldWithItsLine(t *testing.T) {
	_, err := Parse("certsync.yaml", []byte("nodes: [{name: a, address: 192.0.2.1}]\ndns: {provider: rfc2136}\n"+
		"certificates: [{name: a, domains: [a.example.org]}]\ncarp: {role: \"static:a\"}\nrenew: {schedule: every day}\n"))
	if err == nil || !strings.Contains(err.Error(), "certsync.yaml:5: renew.schedule: ") {
		t.Errorf("error: %v", err)
	}
}
