package acme

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// dateSlack is half of what the header Date leaves open: it has whole seconds (RFC 9110 section 5.6.7).
	dateSlack = 500 * time.Millisecond
	// setSlack is how far this host's wall clock may go apart from its monotonic one before it counts as set; ntpd slews by
	// less.
	setSlack = 5 * time.Second
)

// caClock is what the CA's answers told of its time. It is safe for concurrent use.
type caClock struct {
	mu    sync.Mutex
	ahead time.Duration
	// at is when the last answer came; zero before one did.
	at moment
}

// moment is one reading of this host's clocks, not of the injected one.
type moment struct {
	wall time.Time
	// up is the monotonic clock, which nobody can set.
	up time.Duration
}

var began = time.Now()

func thisMoment() moment {
	now := time.Now()
	return moment{wall: now.Round(0), up: now.Sub(began)}
}

// hear takes an answer that came at now, by the clock that it is compared with. One from a cache (RFC 9111 section 5.1) tells of an earlier time.
func (c *caClock) hear(h http.Header, now time.Time, at moment) {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || h.Get("Age") != "" && h.Get("Age") != "0" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.at = date.Add(dateSlack).Sub(now), at
}

// told is by how much the CA was ahead, and whether that was told since this host's clock was set last, as far as can be
// seen at now.
func (c *caClock) told(now moment) (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.wall.IsZero() {
		return 0, false
	}
	set := now.wall.Sub(c.at.wall) - (now.up - c.at.up)
	return c.ahead, set.Abs() <= setSlack
}

// Ahead is by how much the CA's clock is ahead of this host's, as its last answer told; known is false where none did, or
// this host's clock was set since.
func (c *Client) Ahead() (ahead time.Duration, known bool) { return c.clock.told(thisMoment()) }

// AskTime has the CA answer something, so that Ahead is known. The error tells that it could not be asked.
func (c *Client) AskTime(ctx context.Context) error {
	if _, err := c.fetchDirectory(ctx); err != nil {
		return err
	}
	if _, known := c.Ahead(); known {
		return nil
	}
	if _, _, err := c.get(ctx, "acme directory", c.cfg.Directory, c.cfg.Now()); err != nil {
		return err
	}
	if _, known := c.Ahead(); !known {
		return fmt.Errorf("acme directory %s: the CA's answer does not tell its time", c.cfg.Directory)
	}
	return nil
}
