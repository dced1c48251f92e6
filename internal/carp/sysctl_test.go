package carp

import (
	"errors"
	"io/fs"
	"math"
	"regexp"
	"testing"

	"certsync/internal/cluster"
)

var (
	sysctlText  = regexp.MustCompile(`(?m)^([a-z_.]+): (-?\d+)$`)
	sysctlWrite = regexp.MustCompile(`^([a-z_.]+)=(-?\d+)$`)
)

// TestTheRecordedSysctlsAreReadAsTheyWereShown puts the numbers that sysctl(8) showed into a kernel's four bytes.
func TestTheRecordedSysctlsAreReadAsTheyWereShown(t *testing.T) {
	read := 0
	for _, v := range vectors(t, "*sysctl*.txt") {
		b := newBox(t)
		shown := map[string]int{}
		for _, m := range sysctlText.FindAllStringSubmatch(v.Output, -1) {
			shown[m[1]] = atoi(t, m[2])
		}
		for _, line := range v.Lines {
			if m := sysctlText.FindStringSubmatch(line.Key + ": " + line.Value); m != nil {
				shown[m[1]] = atoi(t, m[2])
			}
		}
		for name, value := range shown {
			b.sysctls[name] = int32(value)
			if name == "kern.securelevel" {
				b.level = value
			}
			if name == "security.jail.jailed" {
				b.jail.Jailed = value != 0
			}
			if name == "security.jail.vnet" {
				b.jail.VNET = value != 0
			}
		}
		k := b.kernel()
		for name, value := range shown {
			if got, err := k.Sysctl(name); err != nil || got != value {
				t.Errorf("%v: %s: %d, %v; want %d", v, name, got, err, value)
			}
			read++
		}
	}
	if read < 30 {
		t.Errorf("only %d numbers", read)
	}
}

func TestAWriteToTheDemotionIsAddedAndCanBeTakenBack(t *testing.T) {
	k := newBox(t).kernel()
	for _, step := range []struct{ write, now int }{{240, 240}, {240, 480}, {-240, 240}, {-480, -240}} {
		if err := k.SetSysctl("net.inet.carp.demotion", step.write); err != nil {
			t.Fatal(err)
		}
		if now, err := k.Sysctl("net.inet.carp.demotion"); err != nil || now != step.now {
			t.Errorf("after %d: %d, %v; want %d", step.write, now, err, step.now)
		}
	}
	if err := k.SetSysctl("net.inet.carp.preempt", 1); err != nil {
		t.Error(err)
	}
}

func TestASysctlThatIsNotThereOrForbiddenSaysWhatToDo(t *testing.T) {
	b := newBox(t)
	b.loaded = false
	k := b.kernel()
	if _, err := k.Sysctl("net.inet.carp.preempt"); !failsWith(err, fs.ErrNotExist, "read sysctl net.inet.carp.preempt", "kldload carp") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	if err := k.SetSysctl("net.inet.carp.preempt", 1); !failsWith(err, fs.ErrNotExist, "sysctl net.inet.carp.preempt", "kldload carp") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	if _, err := k.Sysctl("kern.nonsense"); !failsWith(err, fs.ErrNotExist, "kern.nonsense", "") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	b.loaded, b.root = true, false
	if err := k.SetSysctl("net.inet.carp.preempt", 1); !failsWith(err, fs.ErrPermission, "set sysctl net.inet.carp.preempt to 1", "as root") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	b.root, b.jail = true, Jail{Jailed: true}
	if err := k.SetSysctl("net.inet.carp.preempt", 1); !failsWith(err, fs.ErrPermission, "not permitted", "jail's host") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	if b.sysctls["net.inet.carp.preempt"] != 0 {
		t.Error("it was written")
	}
}

func TestAValueThatIsNoIntIsNeitherReadNorWritten(t *testing.T) {
	b := newBox(t)
	c := b.calls()
	for _, value := range []int{math.MaxInt32 + 1, math.MinInt32 - 1} {
		if err := c.setSysctlInt("net.inet.carp.log", value); err == nil {
			t.Errorf("%d was written", value)
		}
	}
	if len(b.log) != 0 {
		t.Error(b.log)
	}
	for _, n := range []int{0, 1, 3, 8} {
		c.sysctl = func(string, []byte, []byte) (int, error) { return n, nil }
		if value, err := c.sysctlInt("net.inet.carp.log"); err == nil || value != 0 {
			t.Errorf("%d bytes: %d, %v", n, value, err)
		}
	}
	c.sysctl = func(string, []byte, []byte) (int, error) { return 0, einval }
	if err := c.setSysctlInt("net.inet.carp.dscp", 64); !errors.Is(err, einval) {
		t.Error(err)
	}
	// A kernel that forbids everything, the questions about the cause included.
	c.sysctl = func(string, []byte, []byte) (int, error) { return 0, eperm }
	if _, err := c.sysctlInt("net.inet.carp.log"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	if err := c.setSysctlInt("net.inet.carp.log", 2); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

func TestTheLinesOfWritesInTheRecordingsAreWhatTheBoxDoes(t *testing.T) {
	for _, name := range []string{"jail-sysctl-set-demotion", "jail-sysctl-set-demotion-back", "jail-sysctl-set-preempt"} {
		v := oneVector(t, "15.1", name)
		b := newBox(t)
		b.jail = Jail{Jailed: true, VNET: true}
		if name == "jail-sysctl-set-demotion-back" {
			b.sysctls["net.inet.carp.demotion"] = 240
		}
		k, read := b.kernel(), -1
		var written string
		for _, line := range v.Lines {
			if m := sysctlWrite.FindStringSubmatch(trimWrite(line.Key)); m != nil && line.Value == "ok" {
				written = m[1]
				if err := k.SetSysctl(m[1], atoi(t, m[2])); err != nil {
					t.Errorf("%v: %v", v, err)
				}
			}
			if line.Key == "read back" {
				read = atoi(t, line.Value[:len(line.Value)-len(" <nil>")])
			}
		}
		if got, err := k.Sysctl(written); err != nil || got != read {
			t.Errorf("%v: %s is %d, %v; want %d", v, written, got, err, read)
		}
	}
}

func trimWrite(key string) string {
	if len(key) > len("write ") && key[:len("write ")] == "write " {
		return key[len("write "):]
	}
	return key
}
