package carp

import (
	"sync"
	"time"

	"certsync/internal/cluster"
)

// settling tells how long MASTER has been held without a break. It is pure but for its lock: each reading comes with
// its times.
type settling struct {
	// need is how long MASTER is to be held before it counts.
	need time.Duration
	// gap is how far apart two readings may be for what lies between them to count as watched. Past it nobody looked:
	// the process was stopped, or the machine asleep, and CARP may have moved there and back.
	gap time.Duration

	mu    sync.Mutex
	held  bool
	since time.Time // the end of the first reading that saw MASTER
	last  time.Time // the end of the latest one
}

// note takes a reading that began and ended at these times, and says how much longer MASTER is to be held before it
// counts: 0 or less when it counts, and always for another role, which counts at once. A reading that failed is
// noted as Unknown.
func (s *settling) note(role cluster.Role, began, ended time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if role != cluster.Master {
		s.held = false
		return 0
	}
	if !s.held || apart(s.last, began) > s.gap {
		s.held, s.since = true, ended
	}
	s.last = ended
	// What is known to have been held ends where the reading began.
	return s.need - began.Sub(s.since)
}

// broken notes that CARP moved, as an event told, whatever the next reading shows: MASTER is to be held anew.
func (s *settling) broken() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
}

// apart is the time from a to b by the clock that shows more of it: the monotonic one stands still while some
// machines sleep, and the wall clock can be set.
func apart(a, b time.Time) time.Duration {
	return max(b.Sub(a), b.Round(0).Sub(a.Round(0)))
}
