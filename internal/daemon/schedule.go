package daemon

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/robfig/cron/v3"
)

// Reason says why a pass is made.
type Reason string

// The reasons, in the order in which they are told.
const (
	// Started: the daemon has just begun.
	Started Reason = "start"
	// Scheduled: renew.schedule.
	Scheduled Reason = "schedule"
	// Due: the instant that the last report named.
	Due Reason = "due"
	// Retry: the last pass could not be made, or left what is due undone.
	Retry Reason = "retry"
	// Settle: something was not in service yet after the last pass.
	Settle Reason = "settle"
	// Watch: something may have become an alarm, or be none any more.
	Watch Reason = "watch"
	// Clock: the clock was set, or the machine slept.
	Clock Reason = "clock"
	// RoleChange: CARP gave this node another role.
	RoleChange Reason = "role"
	// Configuration: another configuration took over.
	Configuration Reason = "configuration"
	// Bundles: a file in a bundle folder changed.
	Bundles Reason = "bundles"
	// Proxy: HAProxy's socket came, went or was made anew.
	Proxy Reason = "haproxy"
	// PeerBack: a peer that could not be reached answers.
	PeerBack Reason = "peer"
	// Hangup: SIGHUP.
	Hangup Reason = "hangup"
	// Event: `certsync event`.
	Event Reason = "event"
	// Asked: a local command.
	Asked Reason = "command"
)

var reasons = [...]Reason{Started, Scheduled, Due, Retry, Settle, Watch, Clock, RoleChange, Configuration, Bundles, Proxy, PeerBack, Hangup, Event, Asked}

// gaps are how long after the begin of a pass for a reason the same reason leads to another one: the daemon's own
// writes are among the changes of a bundle folder, and a peer may answer one call and not the next.
var gaps = map[Reason]time.Duration{Bundles: 5 * time.Second, PeerBack: 30 * time.Second}

const (
	// heartbeat is the longest that the clocks are not looked at: a clock that was set wakes no timer.
	heartbeat = 10 * time.Second
	// tolerance is how far the wall clock may go apart from the monotonic one between two looks before it counts as set,
	// or the machine as having slept: ntpd and chrony slew by less.
	tolerance = 5 * time.Second
	// retryFirst and retryMost bound the pause before a pass that could not be made, or that left something undone, is made
	// again.
	retryFirst = 5 * time.Second
	retryMost  = 10 * time.Minute
	// dueGap is the least pause before a pass for what the last one found due.
	dueGap = time.Second
	// jitterMost is how much later than renew.schedule a node makes its pass at most; where the times lie closer
	// together, a tenth of their distance.
	jitterMost = 5 * time.Minute
)

// instant is one reading of both clocks. up is the monotonic one: on some systems it stands still while the machine
// sleeps, and nobody can set it.
type instant struct {
	wall time.Time
	up   time.Duration
}

// clock reads both clocks.
type clock func() instant

// systemClock counts up from now.
func systemClock() clock {
	begin := time.Now()
	return func() instant {
		now := time.Now()
		return instant{wall: now.Round(0), up: now.Sub(begin)}
	}
}

// scheduler decides when a pass is made. It is not safe for concurrent use, and takes the time as an argument.
type scheduler struct {
	node     string
	schedule cron.Schedule
	jitter   time.Duration

	// seen is the latest look at the clocks.
	seen instant
	// full is when the next pass by the schedule is to be made; due what the last report names, and alarms when one may come
	// up, zero for nothing.
	full, due, alarms time.Time
	// retry is when a pass is made again, 0 for never, and retries how many in a row led to it.
	retry   time.Duration
	retries int
	// settle and settles are the same for what was not in service yet.
	settle  time.Duration
	settles int
	// wakes are the reasons heard since the last pass began, with when each counts.
	wakes map[Reason]time.Duration
	// began is when the last pass for a reason did.
	began map[Reason]time.Duration
}

func newScheduler(node string, schedule cron.Schedule, now instant) *scheduler {
	s := &scheduler{seen: now, wakes: map[Reason]time.Duration{}, began: map[Reason]time.Duration{}}
	s.follow(node, schedule, now)
	return s
}

// follow takes over a schedule.
func (s *scheduler) follow(node string, schedule cron.Schedule, now instant) {
	s.node, s.schedule = node, schedule
	first := schedule.Next(now.wall)
	s.jitter = jitter(node, schedule.Next(first).Sub(first))
	s.full = s.next(now.wall)
	if _, every := schedule.(cron.ConstantDelaySchedule); every {
		s.full = s.full.Add(s.jitter) // it counts from now, and goes on from there
	}
}

// next is the first instant after now that the schedule names, with this node's jitter.
func (s *scheduler) next(now time.Time) time.Time {
	return s.schedule.Next(now.Add(-s.jitter)).Add(s.jitter)
}

// jitter is a node's own share of the time between two passes by the schedule.
func jitter(node string, distance time.Duration) time.Duration {
	most := min(distance/10, jitterMost)
	if most <= 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(node))
	return time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(most)).Truncate(time.Millisecond)
}

// wake remembers a reason for a pass.
func (s *scheduler) wake(reason Reason, now instant) {
	if _, known := s.wakes[reason]; known {
		return
	}
	at := now.up
	if last, ok := s.began[reason]; ok {
		at = max(at, last+gaps[reason])
	}
	s.wakes[reason] = at
}

// look notes what the clocks tell: that a time has come, or that one of them was set. What was missed counts once.
func (s *scheduler) look(now instant) {
	apart := now.wall.Sub(s.seen.wall) - (now.up - s.seen.up)
	s.seen = now
	if apart.Abs() > tolerance {
		s.wake(Clock, now)
		s.full = s.next(now.wall)
	}
	if !now.wall.Before(s.full) {
		s.wake(Scheduled, now)
		s.full = s.next(now.wall)
	}
	if !s.due.IsZero() && !now.wall.Before(s.due) {
		s.wake(Due, now)
		s.due = time.Time{}
	}
	if !s.alarms.IsZero() && !now.wall.Before(s.alarms) {
		s.wake(Watch, now)
		s.alarms = time.Time{}
	}
	if s.retry != 0 && now.up >= s.retry {
		s.wake(Retry, now)
		s.retry = 0
	}
	if s.settle != 0 && now.up >= s.settle {
		s.wake(Settle, now)
		s.settle = 0
	}
}

// take gives the reasons for a pass that is to begin now, none where none is. All that were heard until now are served
// by it.
func (s *scheduler) take(now instant) []Reason {
	s.look(now)
	ready := false
	for _, at := range s.wakes {
		ready = ready || at <= now.up
	}
	if !ready {
		return nil
	}
	var taken []Reason
	for _, r := range reasons {
		if _, ok := s.wakes[r]; ok {
			taken = append(taken, r)
			s.began[r] = now.up
		}
	}
	clear(s.wakes)
	return taken
}

// ended notes the end of a pass. next is the instant at which its report says that something is due, zero for none; one
// that is past was left undone, and is tried again ever later. failed tells that no pass could be made at all.
func (s *scheduler) ended(now instant, next time.Time, failed bool) {
	s.due, s.retry = time.Time{}, 0
	switch {
	case failed, !next.IsZero() && !next.After(now.wall):
		s.retry = now.up + pauseAfter(s.retries)
		s.retries++
		return
	case !next.IsZero():
		s.due = latest(next, now.wall.Add(dueGap))
	}
	s.retries = 0
}

// placed notes whether everything was in service after a pass, as far as its node could be asked. What was not is looked
// at again, ever later: HAProxy may have been starting, or a node may hold the others back.
func (s *scheduler) placed(now instant, all bool) {
	s.settle = 0
	if all {
		s.settles = 0
		return
	}
	s.settle = now.up + pauseAfter(s.settles)
	s.settles++
}

// watch notes when something may become an alarm; zero for never.
func (s *scheduler) watch(now instant, at time.Time) {
	s.alarms = at
	if !at.IsZero() {
		s.alarms = latest(at, now.wall.Add(dueGap))
	}
}

// pauseAfter is the pause after a number of tries in a row.
func pauseAfter(tries int) time.Duration { return min(retryFirst<<min(tries, 10), retryMost) }

// wait is how long nothing is to be done, unless somebody wakes: never longer than the heartbeat.
func (s *scheduler) wait(now instant) time.Duration {
	wait := min(heartbeat, s.full.Sub(now.wall))
	if !s.due.IsZero() {
		wait = min(wait, s.due.Sub(now.wall))
	}
	if !s.alarms.IsZero() {
		wait = min(wait, s.alarms.Sub(now.wall))
	}
	for _, at := range []time.Duration{s.retry, s.settle} {
		if at != 0 {
			wait = min(wait, at-now.up)
		}
	}
	for _, at := range s.wakes {
		wait = min(wait, at-now.up)
	}
	return max(0, wait)
}

// upcoming is the instant of the next pass that is known of.
func (s *scheduler) upcoming(now instant) time.Time {
	next := s.full
	if !s.due.IsZero() {
		next = earliest(next, s.due)
	}
	if !s.alarms.IsZero() {
		next = earliest(next, s.alarms)
	}
	for _, at := range []time.Duration{s.retry, s.settle} {
		if at != 0 {
			next = earliest(next, now.wall.Add(at-now.up))
		}
	}
	return next
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
