package reconcile

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// failureSteps are the pauses after the first failures in a row; after that a failed attempt is repeated daily (Let's
// Encrypt's advice to those who write clients).
var failureSteps = []time.Duration{time.Minute, 10 * time.Minute, 100 * time.Minute}

const (
	dailyStep = 24 * time.Hour
	// hopeless bounds the pauses of what has expired: it is repeated as often as no CA minds.
	hopeless = 15 * time.Minute
	// forgivenCuts is how many attempts in a row may be cut off (a kill, a power failure) and be taken up at once: what
	// ends each process that tries would otherwise be tried without end.
	forgivenCuts = 2
)

// backoff is the pause after the n-th failure in a row (from 1) at now, with newest in service: a step with up to a tenth
// of jitter, drawn from seed, and a tenth of the life left at most, but not less than floor.
func backoff(n int, newest cert.Generation, now time.Time, floor time.Duration, seed string) time.Duration {
	pause := dailyStep
	if n <= len(failureSteps) {
		pause = failureSteps[max(n, 1)-1]
	}
	pause += drawn(seed, pause/10)
	if newest.IsZero() {
		return pause
	}
	return min(pause, max(floor, longestPause(newest, now)))
}

// longestPause is a tenth of the life left, and at least a hundredth of the lifetime, a minute at most: else the pauses
// before an expiry would become nothing.
func longestPause(g cert.Generation, now time.Time) time.Duration {
	left, life := g.Left(now), g.Lifetime()
	if left <= 0 {
		return min(hopeless, max(life/10, time.Second))
	}
	return max(left/10, min(time.Minute, life/100), time.Second)
}

// drawn is a duration from 0 up to span that looks random and is the same for the same seed, evenly spread.
func drawn(seed string, span time.Duration) time.Duration {
	if span <= 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(seed))
	high, _ := bits.Mul64(binary.BigEndian.Uint64(sum[:8]), uint64(span))
	return time.Duration(high)
}

// chronicle is what the records say of the past of every slot at one directory.
type chronicle struct {
	slots     map[cert.Slot]history
	directory string
}

// history is the past of one slot.
type history struct {
	slot      cert.Slot
	directory string
	// issued is the last attempt that led to a certificate, at whatever directory.
	issued cluster.Attempt
	// earlier is when the one before that was begun.
	earlier time.Time
	// attempts are those at the directory, in the order of time.
	attempts []cluster.Attempt
	// renewal is what is known of when the CA wants the certificate to be renewed.
	renewal cluster.RenewalInfo
}

// chronicleOf parts the ledger, which is sorted by time, and the renewals by slots. What is dated further ahead than clocks
// differ is left out.
func chronicleOf(records cluster.Records, directory string, now time.Time) chronicle {
	c := chronicle{slots: map[cert.Slot]history{}, directory: directory}
	latest := now.Add(cluster.MaxSkew)
	for _, a := range records.Ledger {
		if a.Time.After(latest) {
			continue
		}
		h := c.slots[a.Slot]
		if a.End == cluster.Issued {
			h.issued, h.earlier = a, h.issued.Time
		}
		if a.Directory == directory {
			h.attempts = append(h.attempts, a)
		}
		c.slots[a.Slot] = h
	}
	for _, r := range records.Renewals {
		c.hear(r)
	}
	return c
}

// hear notes what is known of a renewal.
func (c chronicle) hear(r cluster.RenewalInfo) {
	h := c.slots[r.Generation.Slot]
	h.renewal = r
	c.slots[r.Generation.Slot] = h
}

func (c chronicle) of(slot cert.Slot) history {
	h := c.slots[slot]
	h.slot, h.directory = slot, c.directory
	return h
}

// sinceIssued are the attempts after the last that led to a certificate.
func (h history) sinceIssued() []cluster.Attempt {
	var success time.Time
	for _, a := range h.attempts {
		if a.End == cluster.Issued {
			success = a.Time
		}
	}
	i := slices.IndexFunc(h.attempts, func(a cluster.Attempt) bool { return a.Time.After(success) })
	if i < 0 {
		return nil
	}
	return h.attempts[i:]
}

// failures counts the attempts that failed since the last success, but the one given.
func (h history) failures(but string) int {
	n := 0
	for _, a := range h.sinceIssued() {
		if a.End == cluster.Failed && a.ID != but {
			n++
		}
	}
	return n
}

// dueAtOnce counts the certificates in a row, up to the last, that were due again as soon as they were obtained.
func (h history) dueAtOnce() int {
	n := 0
	for i := len(h.attempts) - 1; i >= 0; i-- {
		switch a := h.attempts[i]; {
		case a.End != cluster.Issued:
		case a.NextTry.IsZero():
			return n
		default:
			n++
		}
	}
	return n
}

// cutOff is an entry that forbids an attempt where one after the other was cut off, as by a process that dies of them.
// Zero where nothing does.
func (h history) cutOff(newest cert.Generation, now time.Time) cluster.Attempt {
	var last cluster.Attempt
	n := 0
	for _, a := range h.sinceIssued() {
		if a.End == cluster.Open {
			last = a
			n++
		}
	}
	if n <= forgivenCuts {
		return cluster.Attempt{}
	}
	last.NextTry = last.Time.Add(backoff(n-forgivenCuts, newest, now, 0, last.ID))
	last.Problem = fmt.Sprintf("the last %d attempts ended without a word", n)
	return last
}

// putOff is the ledger's entry that forbids an attempt at now; zero where none does. What a person asks for waits only
// for what the CA said: whoever mended the cause knows better than a pause of our own.
func (h history) putOff(newest cert.Generation, now time.Time, byHand bool) cluster.Attempt {
	if byHand {
		theirs := slices.DeleteFunc(slices.Clone(h.attempts), func(a cluster.Attempt) bool { return !a.RetryAfter && a.End != cluster.Issued })
		last, _ := cluster.NextTry(theirs, h.slot, h.directory, now)
		if !last.RetryAfter {
			return cluster.Attempt{}
		}
		return last
	}
	last, _ := cluster.NextTry(h.attempts, h.slot, h.directory, now)
	if cut := h.cutOff(newest, now); cut.Allowed().After(last.Allowed()) {
		return cut
	}
	return last
}

// nextTry is when an attempt that failed at now may be repeated: after the back-off, and not before the CA allows it. It
// tells whether the CA's word is the later.
func nextTry(cause *cluster.IssueError, pause time.Duration, now time.Time) (at time.Time, retryAfter bool) {
	at = now.Add(pause)
	if cause != nil && !cause.NextTry.Before(at) {
		return cause.NextTry.UTC(), cause.RetryAfter
	}
	return at.UTC(), false
}
