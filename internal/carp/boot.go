package carp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Boot tells one run of the kernel from another.
type Boot struct {
	// ID is kern.boot_id, 128 random bits in hex; "" where the kernel has none.
	ID string `json:"boot_id,omitempty"`
	// Time is kern.boottime. Who sets the clock moves it; the time since then is right even so, as long as it is taken by
	// the same clock.
	Time time.Time `json:"boottime"`
}

const (
	bootIDLen = 16
	// timevalLen is the size of a struct timeval where time_t has 64 bits.
	timevalLen = 16
	// bootSlack is how far apart kern.boottime may be read in one run of the kernel.
	bootSlack = 2 * time.Second
)

// same tells that both are of one run of the kernel. Without boot_id, a clock that was set makes them differ.
func (b Boot) same(other Boot) bool {
	if b.ID != "" && other.ID != "" {
		return b.ID == other.ID
	}
	return b.Time.Sub(other.Time).Abs() <= bootSlack
}

// boot reads what tells this run of the kernel from others; anybody may, in a jail too.
func (c *calls) boot() (Boot, error) {
	var b Boot
	id := make([]byte, bootIDLen)
	switch n, err := c.sysctl("kern.boot_id", id, nil); {
	case err == nil && n == bootIDLen:
		b.ID = hex.EncodeToString(id)
	case err == nil:
		return b, fmt.Errorf("read sysctl kern.boot_id: %d bytes, it has %d", n, bootIDLen)
	case !errors.Is(err, fs.ErrNotExist):
		return b, sysctlError("read sysctl kern.boot_id", "kern.boot_id", err)
	}
	value := make([]byte, timevalLen)
	n, err := c.sysctl("kern.boottime", value, nil)
	if err != nil {
		return b, sysctlError("read sysctl kern.boottime", "kern.boottime", err)
	}
	b.Time, err = parseTimeval(value[:min(max(n, 0), timevalLen)])
	return b, err
}

// parseTimeval reads a struct timeval of two 64-bit numbers in the host's order: seconds and microseconds since 1970.
func parseTimeval(b []byte) (time.Time, error) {
	if len(b) != timevalLen {
		return time.Time{}, fmt.Errorf("read sysctl kern.boottime: %d bytes, a timeval has %d", len(b), timevalLen)
	}
	sec, usec := int64(order.Uint64(b)), int64(order.Uint64(b[8:]))
	const latest = 1 << 40 // no clock is ever set so far ahead; beyond, time.Unix would wrap
	if sec < 0 || sec > latest || usec < 0 || usec >= 1e6 {
		return time.Time{}, fmt.Errorf("read sysctl kern.boottime: %d s and %d µs are no time", sec, usec)
	}
	return time.Unix(sec, usec*1000).UTC(), nil
}
