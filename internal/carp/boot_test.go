package carp

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"
)

func TestABootIsToldByItsIDAndWithoutOneByItsTime(t *testing.T) {
	at := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	for name, x := range map[string]struct {
		a, b Boot
		same bool
	}{
		"the same":                         {Boot{"a", at}, Boot{"a", at}, true},
		"the clock was set":                {Boot{"a", at}, Boot{"a", at.Add(2 * time.Hour)}, true},
		"another ID at the same time":      {Boot{"a", at}, Boot{"b", at}, false},
		"no ID":                            {Boot{"", at}, Boot{"", at.Add(time.Second)}, true},
		"no ID, another time":              {Boot{"", at}, Boot{"", at.Add(time.Minute)}, false},
		"an ID since the kernel's upgrade": {Boot{"", at}, Boot{"a", at.Add(time.Hour)}, false},
		"never":                            {Boot{}, Boot{"", at}, false},
	} {
		if x.a.same(x.b) != x.same || x.b.same(x.a) != x.same {
			t.Errorf("%s: want %t", name, x.same)
		}
	}
}

func TestTheBootIsReadFromTheKernel(t *testing.T) {
	b := newBox(t)
	b.boot, b.booted = []byte("0123456789abcdef"), time.Date(2026, 11, 24, 9, 0, 0, 5000, time.UTC)
	got, err := b.kernel().Boot()
	if err != nil || got.ID != "30313233343536373839616263646566" || !got.Time.Equal(b.booted) {
		t.Errorf("%+v, %v", got, err)
	}
	b.boot = nil
	if got, err = b.kernel().Boot(); err != nil || got.ID != "" || !got.Time.Equal(b.booted) {
		t.Errorf("without boot_id: %+v, %v", got, err)
	}
	b.boot = []byte("short")
	if got, err = b.kernel().Boot(); err == nil {
		t.Errorf("a short boot_id: %+v", got)
	}
	c := b.calls()
	c.sysctl = func(string, []byte, []byte) (int, error) { return 0, eperm }
	if _, err := c.boot(); !errors.Is(err, eperm) {
		t.Error(err)
	}
}

func TestWhatIsNoTimevalIsRefused(t *testing.T) {
	value := func(sec, usec int64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(sec)), uint64(usec))
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "32 bits": make([]byte, 8), "negative": value(-1, 0), "a million µs": value(1, 1e6), "negative µs": value(1, -1),
		"beyond time": value(math.MaxInt64, 0),
	} {
		if got, err := parseTimeval(b); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}
