package daemon

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/config"
)

// bench is a scheduler with clocks that the test moves.
type bench struct {
	*scheduler
	now instant
}

func newBench(t interface{ Fatal(...any) }, schedule string) *bench {
	parsed, err := config.ParseSchedule(schedule)
	if err != nil {
		t.Fatal(err)
	}
	now := instant{wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), up: time.Hour}
	b := &bench{newScheduler("proxy1", parsed, now), now}
	b.jitter = 0
	b.full = b.next(now.wall)
	return b
}

// pass lets both clocks run.
func (b *bench) pass(d time.Duration) {
	b.now.wall, b.now.up = b.now.wall.Add(d), b.now.up+d
}

// jump moves the wall clock alone.
func (b *bench) jump(d time.Duration) { b.now.wall = b.now.wall.Add(d) }

func (b *bench) wants(t *testing.T, want ...Reason) {
	t.Helper()
	if got := b.take(b.now); !slices.Equal(got, want) {
		t.Fatalf("at %s (up %s): reasons %q, want %q", b.now.wall.Format(time.RFC3339), b.now.up, got, want)
	}
}

func TestFullPassesFollowTheScheduleOnce(t *testing.T) {
	b := newBench(t, "CRON_TZ=UTC 17 */6 * * *")
	b.wants(t)
	b.pass(16*time.Minute + 59*time.Second)
	b.wants(t)
	b.pass(time.Second)
	b.wants(t, Scheduled)
	b.wants(t)
	b.pass(6 * time.Hour)
	b.wants(t, Scheduled)
}

func TestWhatAStoppedProcessMissedRunsOnce(t *testing.T) {
	b := newBench(t, "CRON_TZ=UTC 17 */6 * * *")
	b.pass(50 * time.Hour) // both clocks ran, nobody looked: no jump
	b.wants(t, Scheduled)
	b.wants(t)
	b.pass(time.Hour)
	b.wants(t)
}

func TestSleepRunsWhatWasMissedOnce(t *testing.T) {
	b := newBench(t, "CRON_TZ=UTC 17 */6 * * *")
	b.ended(b.now, b.now.wall.Add(20*time.Hour), false)
	b.jump(72 * time.Hour) // the monotonic clock stood still
	b.wants(t, Due, Clock)
	b.wants(t)
	if want := time.Date(2026, 11, 27, 12, 17, 0, 0, time.UTC); !b.full.Equal(want) {
		t.Errorf("the next full pass is at %s, want %s", b.full, want)
	}
}

func TestAClockThatIsSetBackDoesNotSilenceTheSchedule(t *testing.T) {
	b := newBench(t, "CRON_TZ=UTC 17 */6 * * *")
	b.jump(73 * 365 * 24 * time.Hour) // 2099
	b.wants(t, Clock)
	b.ended(b.now, b.now.wall.Add(time.Hour), false) // due in 2099
	b.jump(-73 * 365 * 24 * time.Hour)
	b.wants(t, Clock)
	if left := b.full.Sub(b.now.wall); left > 6*time.Hour {
		t.Errorf("the next full pass is %s away", left)
	}
	b.ended(b.now, time.Time{}, false)
	b.pass(17 * time.Minute)
	b.wants(t, Scheduled)
}

func TestASlewIsNoJump(t *testing.T) {
	b := newBench(t, "@every 24h")
	for range 3000 {
		b.pass(heartbeat)
		b.jump(heartbeat / 12) // chrony's fastest
		if got := b.take(b.now); len(got) > 0 && !slices.Equal(got, []Reason{Scheduled}) {
			t.Fatalf("reasons %q", got)
		}
	}
}

func TestWakeUpsAreCoalesced(t *testing.T) {
	b := newBench(t, "@every 24h")
	for range 100 {
		b.wake(Event, b.now)
		b.wake(RoleChange, b.now)
	}
	b.wants(t, RoleChange, Event)
	b.wants(t)
}

func TestAWakeUpDuringAPassLeadsToOneMore(t *testing.T) {
	b := newBench(t, "@every 24h")
	b.wake(Hangup, b.now)
	b.wants(t, Hangup) // the pass has begun
	b.pass(time.Minute)
	b.wake(Hangup, b.now)
	b.wake(Hangup, b.now)
	b.pass(time.Minute)
	b.ended(b.now, time.Time{}, false)
	b.wants(t, Hangup)
	b.ended(b.now, time.Time{}, false)
	b.pass(time.Hour)
	b.wants(t)
}

func TestAFolderThatChangesAllTheTimeIsLookedAtNowAndThen(t *testing.T) {
	b := newBench(t, "@every 24h")
	passes := 0
	for range 600 { // a minute
		b.wake(Bundles, b.now)
		if len(b.take(b.now)) > 0 {
			passes++
		}
		b.pass(100 * time.Millisecond)
	}
	if passes != 12 {
		t.Errorf("%d passes in a minute, want 12", passes)
	}
	b.wake(Bundles, b.now)
	b.wake(RoleChange, b.now) // is not held up, and serves both
	b.wants(t, RoleChange, Bundles)
}

func TestTheTimerIsSetToWhatIsDueNext(t *testing.T) {
	b := newBench(t, "@every 24h")
	b.ended(b.now, b.now.wall.Add(3*time.Second), false)
	if got := b.wait(b.now); got != 3*time.Second {
		t.Errorf("waits %s", got)
	}
	b.pass(3 * time.Second)
	b.wants(t, Due)
	b.wants(t)
	b.ended(b.now, b.now.wall.Add(time.Hour), false)
	if got := b.wait(b.now); got != heartbeat {
		t.Errorf("waits %s and would miss a clock that is set", got)
	}
}

func TestWhatStaysDueIsTriedEverLater(t *testing.T) {
	b := newBench(t, "@every 2400h")
	var pauses []time.Duration
	b.wake(Started, b.now)
	b.wants(t, Started)
	for range 12 {
		b.ended(b.now, b.now.wall.Add(-time.Minute), false)
		begun := b.now.up
		for len(b.take(b.now)) == 0 {
			b.pass(max(b.wait(b.now), time.Millisecond))
		}
		pauses = append(pauses, b.now.up-begun)
	}
	if pauses[0] != retryFirst || pauses[1] != 2*retryFirst || pauses[11] != retryMost || !slices.IsSorted(pauses) {
		t.Errorf("pauses %v", pauses)
	}
	b.ended(b.now, b.now.wall.Add(time.Minute), false) // all is well again
	b.pass(time.Minute)
	b.wants(t, Due)
	b.ended(b.now, time.Time{}, true)
	b.pass(retryFirst)
	b.wants(t, Retry)
}

func TestWhatIsNotInServiceIsLookedAtAgainEverLater(t *testing.T) {
	b := newBench(t, "@every 2400h")
	due := b.now.wall.Add(time.Hour)
	b.ended(b.now, due, false)
	b.placed(b.now, false)
	b.pass(retryFirst)
	b.wants(t, Settle)
	b.placed(b.now, false)
	b.pass(retryFirst)
	b.wants(t)
	b.pass(retryFirst)
	b.wants(t, Settle)
	b.placed(b.now, true)
	b.pass(50 * time.Minute)
	b.wants(t)
	if !b.due.Equal(due) {
		t.Error("a look at what is in service forgot what is due")
	}
	b.placed(b.now, false)
	b.pass(retryFirst)
	b.wants(t, Settle)
}

func TestEachNodeHasAJitterOfItsOwnThatStays(t *testing.T) {
	seen := map[time.Duration]bool{}
	for i := range 20 {
		node := fmt.Sprintf("proxy%d", i)
		j := jitter(node, 6*time.Hour)
		if j != jitter(node, 6*time.Hour) || j < 0 || j >= jitterMost {
			t.Errorf("%s: %s", node, j)
		}
		seen[j] = true
		if short := jitter(node, time.Minute); short >= 6*time.Second {
			t.Errorf("%s: %s of a minute", node, short)
		}
	}
	if len(seen) < 18 {
		t.Errorf("%d different ones among 20 nodes", len(seen))
	}
	if jitter("proxy1", 0) != 0 {
		t.Error("jitter without a distance")
	}
}

// Whatever comes in whatever order: no reason that was heard is lost, a pass by the schedule comes in each of its
// intervals, nothing is taken twice, and the wait always ends.
func TestNoWakeUpIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(t, "CRON_TZ=UTC */10 * * * *")
		heard := map[Reason]time.Duration{}
		lastFull := b.now
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				r := rapid.SampledFrom(reasons[:]).Draw(t, "reason")
				b.wake(r, b.now)
				if _, ok := heard[r]; !ok {
					heard[r] = b.now.up
				}
			case 1:
				b.pass(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "time")))
			case 2:
				b.jump(time.Duration(rapid.Int64Range(-int64(100*time.Hour), int64(100*time.Hour)).Draw(t, "jump")))
				lastFull = b.now
			case 3:
				b.ended(b.now, b.now.wall.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "next"))), rapid.Bool().Draw(t, "failed"))
			case 4:
				got := b.take(b.now)
				for r, at := range heard {
					if !slices.Contains(got, r) && (len(got) > 0 || b.now.up-at >= gaps[r]) {
						t.Fatalf("%s was heard at %s and not taken at %s: %q", r, at, b.now.up, got)
					}
				}
				if len(got) > 0 {
					clear(heard)
				}
				if slices.Contains(got, Scheduled) || slices.Contains(got, Clock) {
					lastFull = b.now
				}
				if again := b.take(b.now); len(again) > 0 {
					t.Fatalf("taken twice: %q", again)
				}
				if b.now.up-lastFull.up > 10*time.Minute+tolerance {
					t.Fatalf("no full pass for %s", b.now.up-lastFull.up)
				}
				if w := b.wait(b.now); w < 0 || w > heartbeat {
					t.Fatalf("waits %s", w)
				}
			}
		}
	})
}
