package reconcile

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
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
	mutantAckOnly      = "a peer says that it has a generation on disk, and has not"
	mutantDeafProxy    = "HAProxy takes what it is given for loaded, and goes on with what it has"
)

// simMutants are the mutants, each with the promises that it breaks.
var simMutants = map[string][]string{
	mutantLateRole:     {"one issuer"},
	mutantNoOrders:     {"orders on disk", "orders taken up"},
	mutantNoLedger:     {"no burst", "retry after", "budget"},
	mutantNoTombstones: {"convergence", "revoked"},
	mutantAckOnly:      {"everywhere before anywhere"},
	mutantDeafProxy:    {"convergence", "the canary"},
}

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
		for _, simpler := range []func(*simStep){
			func(s *simStep) { s.atCall, s.after = 0, false },
			func(s *simStep) { s.wait = min(s.wait, time.Second) },
		} {
			with := slices.Clone(steps)
			if simpler(&with[i]); with[i] != steps[i] && fails(with) {
				steps = with
			}
		}
	}
	return steps
}

// simFailure is a schedule that breaks a promise, shrunk, with its trace.
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

var simSeeds = flag.Int("simulations", 0, "how many schedules TestSimulation runs; 0: 1000, fewer with the race detector")

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
	defer debug.SetGCPercent(debug.SetGCPercent(400))
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

// simCount is how many schedules are run: the race detector makes each some ten times as dear.
func simCount() int {
	n := 1000
	if raceDetector {
		n = 40
	}
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" {
		n *= 20
	}
	return n
}

// The simulation finds what is wrong, where something is: each mutant in the schedules of the first seeds, and with few
// steps left of them.
func TestSimulationFindsAWorldThatBreaksPromises(t *testing.T) {
	if raceDetector {
		t.Skip("without the race detector only: it is the simulation that is tried here")
	}
	for mutant, breaks := range simMutants {
		t.Run(strings.ReplaceAll(mutant, " ", "_"), func(t *testing.T) {
			found := false
			for seed := range uint64(600) {
				plan, steps := drawSchedule(seed)
				r := simulate(t, seed, plan, steps, mutant, false)
				if r.wrong == nil || !slices.Contains(breaks, r.wrong.kind) {
					continue
				}
				found = true
				least, _ := simFailure(t, seed, plan, steps, mutant, r.wrong)
				t.Logf("seed %d: %s; least schedule of %d steps: %v", seed, r.wrong, len(steps), least)
				break
			}
			if !found {
				t.Fatal("not found in any schedule")
			}
		})
	}
}

// A seed that could not be replayed would be worth little: twice the same, to the last line and nanosecond. Where there are
// two certificates, which of two goroutines goes first that wait for the same lock is Go's to choose.
func TestSimulationOfOneSeedIsTheSameTwice(t *testing.T) {
	seeds := uint64(80)
	if raceDetector {
		seeds = 5
	}
	for seed := range seeds {
		plan, steps := drawSchedule(seed)
		if plan.twin {
			continue
		}
		once := simulate(t, seed, plan, steps, "", true)
		again := simulate(t, seed, plan, steps, "", true)
		for i := range max(len(once.trace), len(again.trace)) {
			if i >= len(once.trace) || i >= len(again.trace) || once.trace[i] != again.trace[i] {
				t.Fatalf("seed %d goes apart at line %d:\n%s\nand\n%s", seed, i, lineOf(once.trace, i), lineOf(again.trace, i))
			}
		}
	}
}

func lineOf(lines []string, i int) string {
	if i >= len(lines) {
		return "(the end)"
	}
	return lines[i]
}

// What is left of a schedule still fails, and nothing more can be left out of it.
func TestShrinkingKeepsWhatAFailureNeeds(t *testing.T) {
	var steps []simStep
	for i := range 12 {
		steps = append(steps, simStep{kind: strconv.Itoa(i), wait: time.Hour, atCall: i})
	}
	runs := 0
	needs := func(left []simStep) bool {
		runs++
		has := func(kind string) int {
			return slices.IndexFunc(left, func(s simStep) bool { return s.kind == kind })
		}
		return has("3") >= 0 && has("9") > has("3") && left[has("9")].atCall == 9
	}
	least := shrunk(steps, needs)
	if got := fmt.Sprintf("%s %s %d", least[0].kind, least[1].kind, len(least)); got != "3 9 2" {
		t.Errorf("left are %v", least)
	}
	if least[0].atCall != 0 || least[0].wait != time.Second || least[1].atCall != 9 || least[1].wait != time.Second {
		t.Errorf("what is left could be simpler: %v", least)
	}
	if runs > 100 {
		t.Errorf("it took %d runs", runs)
	}
}
