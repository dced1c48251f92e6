package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// shortestEvery is the shortest interval that the cron library keeps: it makes shorter ones a second without a word.
const shortestEvery = time.Second

// ParseSchedule reads the value of renew.schedule: five fields as in crontab(5), or @yearly, @monthly, @weekly, @daily,
// @hourly, or @every and a duration; in the time zone of the host, or of a CRON_TZ=ZONE in front. A schedule whose time
// never comes (30 February) is an error.
func ParseSchedule(text string) (cron.Schedule, error) {
	zone, rest, spaced := strings.Cut(strings.TrimSpace(text), " ")
	switch {
	case text == "":
		return nil, errors.New("missing: want five fields as in crontab(5), or @every and a duration")
	case isZone(zone) && !spaced:
		return nil, errors.New("a time zone and nothing after it") // which the library panics at
	case !isZone(zone):
		rest = text
	}
	if every, ok := strings.CutPrefix(strings.TrimSpace(rest), "@every "); ok {
		if d, err := time.ParseDuration(strings.TrimSpace(every)); err == nil && d < shortestEvery {
			return nil, fmt.Errorf("shorter than %s", shortestEvery)
		}
	}
	schedule, err := cron.ParseStandard(strings.TrimSpace(text))
	if err != nil {
		return nil, err
	}
	if schedule.Next(time.Now()).IsZero() {
		return nil, errors.New("its time never comes")
	}
	return schedule, nil
}

func isZone(word string) bool {
	return strings.HasPrefix(word, "CRON_TZ=") || strings.HasPrefix(word, "TZ=")
}
