package carp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cluster"
)

// errKilled is where a process ended.
var errKilled = errors.New("the process was killed here")

// machine is a host with a demotion, and one process after the other on it.
type machine struct {
	*box
	file string
	now  time.Time
	// uptime moves with now, and is not moved by who sets the clock.
	uptime time.Duration
	boots  int
	// beforeWrite and afterWrite kill the process, or fail, around the write.
	beforeWrite, afterWrite error
	writes                  []int
	// memory spares the disk: whether a record is durable is not looked at.
	memory bool
}

func newMachine(t testing.TB) *machine {
	return newMachineIn(t, filepath.Join(t.TempDir(), "demotion.json"))
}

func newMachineIn(t testing.TB, file string) *machine {
	m := &machine{box: newBox(t), file: file, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	m.reboot()
	m.passes(time.Hour)
	return m
}

// reboot begins another run of the kernel.
func (m *machine) reboot() {
	m.boots++
	if m.boot != nil || m.boots == 1 {
		m.boot = fmt.Appendf(nil, "boot %011d", m.boots)
	}
	m.uptime = 20 * time.Second
	m.now = m.now.Add(time.Minute)
	m.booted = m.now.Add(-m.uptime)
	m.sysctls[demotionName] = 0
}

func (m *machine) passes(d time.Duration) { m.now, m.uptime = m.now.Add(d), m.uptime+d }

// sets sets the clock; the kernel moves its boottime with it.
func (m *machine) sets(d time.Duration) { m.now, m.booted = m.now.Add(d), m.booted.Add(d) }

func (m *machine) is() int { return int(m.sysctls[demotionName]) }

// adds is somebody else: the kernel for an interface, or an operator.
func (m *machine) adds(n int) { m.sysctls[demotionName] += int32(n) }

// process is a new one.
func (m *machine) process() *Demotion {
	m.beforeWrite, m.afterWrite = nil, nil
	k := m.kernel()
	d := NewDemotion(DemotionConfig{Kernel: k, File: m.file, Now: func() time.Time { return m.now },
		Write: func(_ context.Context, change int) error {
			if m.beforeWrite != nil {
				return m.beforeWrite
			}
			m.writes = append(m.writes, change)
			return errors.Join(k.SetSysctl(demotionName, change), m.afterWrite)
		}})
	if m.memory {
		d.save = func(file string, data []byte) error { return os.WriteFile(file, data, 0o600) }
	}
	return d
}

func (m *machine) wants(what string, demotion int) {
	m.t.Helper()
	if m.is() != demotion {
		m.t.Fatalf("%s: the demotion is %d, want %d", what, m.is(), demotion)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestADemotionIsRaisedOnceAndGivenBackOnce(t *testing.T) {
	m, ctx := newMachine(t), t.Context()
	d := m.process()
	ok(t, d.GiveBack(ctx))
	m.wants("nothing was raised", 0)
	for range 3 {
		ok(t, d.Raise(ctx))
		m.wants("raised", 240)
	}
	d = m.process() // a restart
	if raised, booted, err := d.Begin(ctx); err != nil || !raised || booted {
		t.Fatalf("after a restart: raised %t, booted %t, %v", raised, booted, err)
	}
	ok(t, d.Raise(ctx))
	m.wants("raised before the restart", 240)
	for range 3 {
		ok(t, d.GiveBack(ctx))
		m.wants("given back", 0)
	}
	if len(m.writes) != 2 {
		t.Errorf("written: %v", m.writes)
	}
	if info, err := os.Stat(m.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v", info, err)
	}
}

func TestTheRecordIsDurableBeforeTheWrite(t *testing.T) {
	m := newMachine(t)
	k := m.kernel()
	var seen []string
	d := NewDemotion(DemotionConfig{Kernel: k, File: m.file, Now: func() time.Time { return m.now },
		Write: func(_ context.Context, change int) error {
			r, err := readDemotion(m.file)
			seen = append(seen, fmt.Sprintf("%s %d %d %v", r.Step, r.Before, r.Amount, err))
			return k.SetSysctl(demotionName, change)
		}})
	m.adds(240) // an interface is down
	ok(t, d.Raise(t.Context()))
	ok(t, d.GiveBack(t.Context()))
	if got := strings.Join(seen, ", "); got != "raising 240 240 <nil>, lowering 480 240 <nil>" {
		t.Errorf("in the record at each write: %s", got)
	}
	m.file = filepath.Join(t.TempDir(), "no", "demotion.json")
	if err := m.process().Raise(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	m.wants("what cannot be recorded is not written", 240)
}

// A process that is killed anywhere around a write leaves enough for the next one: nothing is added twice, and in the end
// all is given back.
func TestKilledAtAnyPointTheNextProcessPutsItRight(t *testing.T) {
	for name, kill := range map[string]func(m *machine, d *Demotion){
		"before the raise": func(m *machine, d *Demotion) { m.beforeWrite = errKilled; _ = d.Raise(t.Context()) },
		"after the raise":  func(m *machine, d *Demotion) { m.afterWrite = errKilled; _ = d.Raise(t.Context()) },
		"before the give back": func(m *machine, d *Demotion) {
			ok(t, d.Raise(t.Context()))
			m.beforeWrite = errKilled
			_ = d.GiveBack(t.Context())
		},
		"after the give back": func(m *machine, d *Demotion) {
			ok(t, d.Raise(t.Context()))
			m.afterWrite = errKilled
			_ = d.GiveBack(t.Context())
		},
	} {
		for _, other := range []int{0, 240} { // what an interface that is down adds all the while
			for _, next := range []string{"raise", "give back"} {
				m := newMachine(t)
				m.adds(other)
				d := m.process()
				kill(m, killable(d))
				d = m.process()
				_, _, err := d.Begin(t.Context())
				ok(t, err)
				if next == "raise" {
					ok(t, d.Raise(t.Context()))
					m.wants(name+", then raised", other+240)
				}
				ok(t, d.GiveBack(t.Context()))
				m.wants(fmt.Sprintf("%s, then %s", name, next), other)
			}
		}
	}
}

// killable makes a process whose write, where it was to be killed, is the last that it does: what a killed one would leave
// is what errGoesOn leaves, since nothing is settled after it.
func killable(d *Demotion) *Demotion {
	write := d.write
	d.write = func(ctx context.Context, change int) error {
		if err := write(ctx, change); err != nil {
			return fmt.Errorf("%w: %w", err, errGoesOn)
		}
		return nil
	}
	return d
}

func TestABootEndsADemotion(t *testing.T) {
	for _, withID := range []bool{true, false} {
		m, ctx := newMachine(t), t.Context()
		if !withID {
			m.boot = nil
		}
		d := m.process()
		_, booted, err := d.Begin(ctx)
		ok(t, err)
		if booted {
			t.Errorf("boot_id %t: an hour after the boot is not at the boot", withID)
		}
		ok(t, d.Raise(ctx))
		m.reboot()
		m.adds(240) // an interface is down: none of ours
		d = m.process()
		raised, booted, err := d.Begin(ctx)
		if ok(t, err); raised || !booted {
			t.Errorf("boot_id %t: after a boot: raised %t, booted %t", withID, raised, booted)
		}
		ok(t, d.GiveBack(ctx))
		m.wants("nothing of ours is in it", 240)
		if _, booted, err = m.process().Begin(ctx); err != nil || booted {
			t.Errorf("boot_id %t: a second start in the same boot: booted %t, %v", withID, booted, err)
		}
	}
}

func TestAFirstStartIsABootOnlySoonAfterIt(t *testing.T) {
	for after, want := range map[time.Duration]bool{0: true, 4 * time.Minute: true, 5 * time.Minute: false, 30 * 24 * time.Hour: false} {
		m := newMachine(t)
		m.reboot()
		m.passes(after)
		if _, booted, err := m.process().Begin(t.Context()); err != nil || booted != want {
			t.Errorf("%s after the boot: %t, %v", after, booted, err)
		}
	}
}

// ntpd sets a clock that was wrong at the boot, after the demotion was raised.
func TestAClockThatIsSetLeavesNoDemotionBehind(t *testing.T) {
	for _, by := range []time.Duration{-2 * time.Hour, 2 * time.Hour, 73 * 365 * 24 * time.Hour} {
		m := newMachine(t)
		d := m.process()
		ok(t, d.Raise(t.Context()))
		m.sets(by)
		d2 := m.process() // a restart: boot_id tells that it is the same boot
		if raised, booted, err := d2.Begin(t.Context()); !raised || booted || err != nil {
			t.Errorf("set by %s: raised %t, booted %t, %v", by, raised, booted, err)
		}
		ok(t, d2.GiveBack(t.Context()))
		m.wants("given back", 0)

		m = newMachine(t)
		m.boot = nil // an old kernel: the process knows that it is the same
		d = m.process()
		ok(t, d.Raise(t.Context()))
		m.sets(by)
		ok(t, d.GiveBack(t.Context()))
		m.wants("given back by the same process", 0)
	}
}

func TestWhatSomebodyElseTookBackIsNotTakenAgain(t *testing.T) {
	m := newMachine(t)
	d := m.process()
	ok(t, d.Raise(t.Context()))
	m.adds(-240) // an operator
	ok(t, d.GiveBack(t.Context()))
	m.wants("taken back by hand", 0)
	ok(t, d.Raise(t.Context()))
	m.wants("wanted again", 240)
	m.sysctls[demotionName] = 0 // the VNET jail was made anew, in the same boot
	if raised, _, err := m.process().Begin(t.Context()); raised || err != nil {
		t.Errorf("a new VNET: raised %t, %v", raised, err)
	}
}

func TestANodeThatSomebodyPutsFirstIsNotTouched(t *testing.T) {
	m := newMachine(t)
	m.adds(-240)
	err := m.process().Raise(t.Context())
	if err == nil || !strings.Contains(err.Error(), "-240") || !strings.Contains(cluster.HintOf(err), "sysctl net.inet.carp.demotion=240") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	m.wants("not touched", -240)
}

func TestAWriteThatFailsIsToldAndTriedAgain(t *testing.T) {
	m := newMachine(t)
	d := m.process()
	m.beforeWrite = errors.New("doas: Operation not permitted")
	for range 2 {
		if err := d.Raise(t.Context()); err == nil || !strings.Contains(err.Error(), "raise the demotion: doas") {
			t.Errorf("raise: %v", err)
		}
	}
	m.beforeWrite, m.afterWrite = nil, errors.New("the connection to doas was lost")
	ok(t, d.Raise(t.Context())) // it was added all the same, and that is seen
	m.wants("raised", 240)
	m.afterWrite, m.beforeWrite = nil, errors.New("doas: Operation not permitted")
	if err := d.GiveBack(t.Context()); err == nil {
		t.Error("given back?")
	}
	m.beforeWrite = nil
	ok(t, d.GiveBack(t.Context()))
	m.wants("given back", 0)
}

func TestARecordThatMakesNoSenseIsNotGuessedAt(t *testing.T) {
	for name, content := range map[string]string{
		"nothing": "", "not JSON": "raised", "no format": `{"step":"raised","amount":240}`, "another step": `{"format":1,"step":"up","amount":240}`,
		"a step without an amount": `{"format":1,"step":"raised"}`, "another amount": `{"format":1,"step":"lowering","amount":1}`,
		"too long": `{"format":1,"step":""}` + strings.Repeat(" ", maxDemotionRecord),
	} {
		m := newMachine(t)
		m.adds(240)
		ok(t, os.WriteFile(m.file, []byte(content), 0o600))
		d := m.process()
		_, _, begun := d.Begin(t.Context())
		for _, err := range []error{begun, d.Raise(t.Context()), d.GiveBack(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), m.file) || !strings.Contains(cluster.HintOf(err), "remove the file") {
				t.Errorf("%s: %v, hint %q", name, err, cluster.HintOf(err))
			}
		}
		if m.wants(name, 240); len(m.writes) != 0 {
			t.Errorf("%s: written: %v", name, m.writes)
		}
	}
	m := newMachine(t)
	ok(t, os.WriteFile(m.file, []byte(`{"format":2,"step":{"new":"kind"}}`), 0o600))
	if err := m.process().Raise(t.Context()); err == nil {
		t.Error("a newer format is taken")
	}
}

// Whatever processes, kills, boots and interfaces do: what others have in the demotion stays theirs, and once all is
// given back nothing of ours is left.
func TestNothingOfOursIsLeftAndNothingOfOthersTaken(t *testing.T) {
	outer, dir, n := t, t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		m, others := newMachineIn(outer, filepath.Join(dir, fmt.Sprint(n))), 0
		m.memory = true
		d := killable(m.process())
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"raise", "give back", "restart", "boot", "interface"}).Draw(t, "step") {
			case "raise":
				_ = d.Raise(context.Background())
			case "give back":
				_ = d.GiveBack(context.Background())
			case "restart":
				d = killable(m.process())
				if _, _, err := d.Begin(context.Background()); err != nil {
					t.Fatal(err)
				}
			case "boot":
				m.reboot()
				others = 0
				d = killable(m.process())
			case "interface": // between the changes, never within one: that cannot be told apart
				if others = 240 - others; others == 0 {
					m.adds(-240)
				} else {
					m.adds(240)
				}
			}
			if m.is() < others || m.is() > others+240 {
				t.Fatalf("the demotion is %d, others have %d in it", m.is(), others)
			}
			// A process that is killed at its next write, before or after.
			switch rapid.SampledFrom([]string{"", "", "before", "after"}).Draw(t, "killed") {
			case "before":
				d = killable(m.process())
				m.beforeWrite = errKilled
				_ = d.Raise(context.Background())
				d = killable(m.process())
				_, _, _ = d.Begin(context.Background())
			case "after":
				d = killable(m.process())
				m.afterWrite = errKilled
				_ = d.GiveBack(context.Background())
				d = killable(m.process())
				_, _, _ = d.Begin(context.Background())
			}
		}
		d = m.process()
		if err := d.GiveBack(context.Background()); err != nil {
			t.Fatal(err)
		}
		if m.is() != others {
			t.Fatalf("given back: the demotion is %d, others have %d in it", m.is(), others)
		}
	})
}
