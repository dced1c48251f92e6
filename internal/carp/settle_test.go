package carp

import (
	"testing"
	"time"

	"certsync/internal/cluster"
)

func TestMasterCountsOnlyAfterItWasHeldWithoutABreak(t *testing.T) {
	const need = 3 * time.Second
	type step struct {
		at    time.Duration // when the reading began; it takes 10 ms
		role  cluster.Role
		event bool          // an event told of a move just before
		left  time.Duration // what is to be waited for
	}
	const (
		init, backup, master, unknown = cluster.Init, cluster.Backup, cluster.Master, cluster.Unknown
		ms                            = time.Millisecond
	)
	for name, steps := range map[string][]step{
		"held": {{0, master, false, need + 10*ms}, {1000 * ms, master, false, 2010 * ms}, {2000 * ms, master, false, 1010 * ms},
			{3000 * ms, master, false, 10 * ms}, {3010 * ms, master, false, 0}, {4000 * ms, master, false, -990 * ms}},
		"another role counts at once": {{0, backup, false, 0}, {10 * ms, init, false, 0}, {20 * ms, unknown, false, 0}},
		"a drop starts it anew": {{0, master, false, need + 10*ms}, {2000 * ms, master, false, 1010 * ms}, {2100 * ms, backup, false, 0},
			{2200 * ms, master, false, need + 10*ms}, {4000 * ms, master, false, 1210 * ms}},
		"INIT breaks it":               {{0, master, false, need + 10*ms}, {1000 * ms, init, false, 0}, {1100 * ms, master, false, need + 10*ms}},
		"a failed reading breaks it":   {{0, master, false, need + 10*ms}, {1000 * ms, unknown, false, 0}, {1100 * ms, master, false, need + 10*ms}},
		"an event of a move breaks it": {{0, master, false, need + 10*ms}, {2000 * ms, master, false, 1010 * ms}, {2100 * ms, master, true, need + 10*ms}, {3000 * ms, master, false, 2110 * ms}},
		"what nobody watched breaks it": {{0, master, false, need + 10*ms}, {2000 * ms, master, false, 1010 * ms},
			{5011 * ms, master, false, need + 10*ms}, {8000 * ms, master, false, 21 * ms}, {8021 * ms, master, false, 0}},
		"settled and then not watched": {{0, master, false, need + 10*ms}, {3000 * ms, master, false, 10 * ms}, {3600000 * ms, master, false, need + 10*ms}},
	} {
		t.Run(name, func(t *testing.T) {
			s := settling{need: need, gap: need}
			start := time.Now()
			for i, step := range steps {
				if step.event {
					s.broken()
				}
				began := start.Add(step.at)
				if left := s.note(step.role, began, began.Add(10*ms)); left != step.left {
					t.Errorf("step %d: %v to wait, want %v", i, left, step.left)
				}
			}
		})
	}
}

// A virtual machine that was halted, or a laptop that slept, may have a monotonic clock that stood still.
func TestAWallClockThatJumpedAheadIsTimeThatNobodyWatched(t *testing.T) {
	s := settling{need: time.Second, gap: 3 * time.Second}
	start := time.Now().Round(0) // the wall clock only
	s.note(cluster.Master, start, start)
	if left := s.note(cluster.Master, start.Add(2*time.Second), start.Add(2*time.Second)); left > 0 {
		t.Fatalf("%v to wait after it was held for 2 s", left)
	}
	awake := start.Add(time.Hour)
	if left := s.note(cluster.Master, awake, awake); left != time.Second {
		t.Errorf("%v to wait after an hour that nobody watched, want 1s", left)
	}
}

func TestWithoutASettleTimeMasterCountsAtOnce(t *testing.T) {
	s := settling{gap: time.Second}
	now := time.Now()
	if left := s.note(cluster.Master, now, now); left > 0 {
		t.Errorf("%v to wait", left)
	}
}
