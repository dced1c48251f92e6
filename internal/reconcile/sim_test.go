package reconcile

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"certsync/internal/cert/certtest"
)

// The mutants: parts of the simulated world that break a promise which reconcile relies on. That the simulation finds
// them shows that it can find something.
const (
	mutantLateRole     = "the kernel tells the role a minute late"
	mutantNoOrders     = "the disk loses orders"
	mutantNoLedger     = "the disk loses the ledger"
	mutantNoTombstones = "a peer drops tombstones"
	mutantLostWrite    = "a crash loses the last write that was said to be on disk"
	mutantAckOnly      = "a peer says that it has a generation on disk, and has not"
	mutantDeafProxy    = "HAProxy takes what it is given for loaded, and goes on with what it has"
)

var simMutants = []string{mutantLateRole, mutantNoOrders, mutantNoLedger, mutantNoTombstones, mutantLostWrite, mutantAckOnly, mutantDeafProxy}

// simCAOnce is the CA of all simulations: its keys are the same in each process, for the sake of the fingerprints.
var simCAOnce sync.Once
var simSigner *certtest.CA

// simResult is what came of a simulation.
type simResult struct {
	wrong  *violation
	trace  []string
	passes int
	calls  int
	lasted time.Duration
}

// simulate runs one schedule.
func simulate(t *testing.T, seed uint64, plan simPlan, steps []simStep, mutant string, traced bool) (r simResult) {
	t.Helper()
	simCAOnce.Do(func() {
		cryptotest.SetGlobalRandom(t, 1)
		simSigner = certtest.NewCA(t)
	})
	cryptotest.SetGlobalRandom(t, seed)
	synctest.Test(t, func(*testing.T) {
		s := newSimulation(seed, plan, simSigner)
		s.mutant, s.traced = mutant, traced
		s.run(steps)
		r = simResult{s.wrong, s.trace, s.passes, s.calls, s.elapsed()}
	})
	return r
}

// drawSchedule is the schedule of a seed.
func drawSchedule(seed uint64) (simPlan, []simStep) {
	r := rand.New(rand.NewPCG(seed, 5))
	plan := newSimPlan(r)
	return plan, newSimSteps(r, plan)
}

// shrunk is a schedule without what it needs not to fail in the same way: parts of it are left out, ever smaller ones, for
// as long as that goes (Zeller's ddmin), and then what makes the steps that are left complicated.
func shrunk(steps []simStep, fails func([]simStep) bool) []simStep {
	for size := (len(steps) + 1) / 2; size > 0; {
		smaller := false
		for at := 0; at < len(steps); {
			without := slices.Delete(slices.Clone(steps), at, min(at+size, len(steps)))
			if fails(without) {
				steps, smaller = without, true
			} else {
				at += size
			}
		}
		if !smaller || size > len(steps) {
			size /= 2
		}
	}
	for i := range steps {
		for _, simpler := range steps[i].simpler() {
			with := slices.Clone(steps)
			with[i] = simpler
			if fails(with) {
				steps = with
			}
		}
	}
	return steps
}

// simpler are steps to try instead of one.
func (s simStep) simpler() (out []simStep) {
	if s.atCall > 0 {
		at := s
		at.atCall, at.after = 0, false
		out = append(out, at)
	}
	if s.wait > time.Second {
		at := s
		at.wait = time.Second
		out = append(out, at)
	}
	return out
}

// failure is a schedule that breaks a promise, shrunk, with its trace.
func simFailure(t *testing.T, seed uint64, plan simPlan, steps []simStep, mutant string, wrong *violation) (least []simStep, text string) {
	least = shrunk(steps, func(steps []simStep) bool {
		r := simulate(t, seed, plan, steps, mutant, false)
		return r.wrong != nil && r.wrong.kind == wrong.kind
	})
	r := simulate(t, seed, plan, least, mutant, true)
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d (%s): %s\nits least schedule, of %d steps: %s\n", seed, plan, wrong, len(steps), r.wrong)
	for _, s := range least {
		fmt.Fprintf(&b, "    %s\n", s)
	}
	fmt.Fprintf(&b, "trace:\n%s\n", strings.Join(r.trace, "\n"))
	return least, b.String()
}

var simSeeds = flag.Int("simulations", 0, "how many schedules TestSimulation runs; 0: 2000, fewer with the race detector")

// Whatever happens to a cluster, its promises hold at each step; and once all is well, it comes in line by itself.
// CERTSYNC_SIM_SEED=N replays one schedule with its trace.
func TestSimulationKeepsThePromisesInAnySchedule(t *testing.T) {
	if text := os.Getenv("CERTSYNC_SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CERTSYNC_SIM_SEED: %v", err)
		}
		replay(t, seed)
		return
	}
	n := *simSeeds
	if n == 0 {
		n = simCount()
	}
	begin, passes, calls, lasted := time.Now(), 0, 0, time.Duration(0)
	for seed := range uint64(n) {
		plan, steps := drawSchedule(seed)
		r := simulate(t, seed, plan, steps, "", false)
		passes, calls, lasted = passes+r.passes, calls+r.calls, lasted+r.lasted
		if r.wrong != nil {
			_, text := simFailure(t, seed, plan, steps, "", r.wrong)
			t.Fatal(text)
		}
	}
	t.Logf("%d schedules, %d passes, %d calls, %d days simulated in %s", n, passes, calls, lasted/day, time.Since(begin).Round(time.Millisecond))
}

func replay(t *testing.T, seed uint64) {
	plan, steps := drawSchedule(seed)
	r := simulate(t, seed, plan, steps, "", true)
	for _, s := range steps {
		t.Log(s)
	}
	t.Logf("seed %d (%s): %s\n%s", seed, plan, r.wrong, strings.Join(r.trace, "\n"))
	if r.wrong != nil {
		_, text := simFailure(t, seed, plan, steps, "", r.wrong)
		t.Fatal(text)
	}
}

func simCount() int { return 2000 }
