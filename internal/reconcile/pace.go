package reconcile

import (
	"errors"
	"sync"

	"certsync/internal/cluster"
)

// pace is how many orders are driven at once: the configured number, half as many for each time that the CA or the DNS
// provider said that it is asked too often, and one more for each order that ended well. What they say to orders that
// were begun before the number was lowered lowers it no further: it was the same crowd. It holds over passes, is safe for
// concurrent use, and its zero value is the configured number.
type pace struct {
	mu      sync.Mutex
	free    *sync.Cond // over mu, when running or below became less
	running int
	// below is by how much the number is lower than the configured one.
	below int
	// cuts counts how often it was lowered.
	cuts int
}

// limit is the number where most is configured: at least 1.
func (p *pace) limit(most int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limitLocked(most)
}

func (p *pace) limitLocked(most int) int { return max(1, max(1, most)-p.below) }

// enter waits for a place; leave gives it back.
func (p *pace) enter(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == nil {
		p.free = sync.NewCond(&p.mu)
	}
	for p.running >= p.limitLocked(most) {
		p.free.Wait()
	}
	p.running++
}

func (p *pace) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.free.Broadcast()
}

// begun is what lower wants to know of when an order was begun.
func (p *pace) begun() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

// lower halves the number, for an order that was begun then, and gives what it is now; false where that changed nothing.
func (p *pace) lower(begun, most int) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.limitLocked(most)
	if begun != p.cuts || now == 1 {
		return now, false
	}
	p.cuts++
	p.below = max(1, most) - now/2
	return now / 2, true
}

// raise allows one more.
func (p *pace) raise() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.below > 0 {
		p.below--
	}
	if p.free != nil {
		p.free.Broadcast()
	}
}

// heed takes what an order, or a question to the CA, that was begun then came to. ended tells that it ended well.
func (p *pass) heed(begun int, ended bool, err error) {
	issue, ok := errors.AsType[*cluster.IssueError](err)
	switch {
	case err == nil && ended:
		p.pace.raise()
	case ok && issue.Throttled:
		if n, lowered := p.pace.lower(begun, p.Settings.Concurrency); lowered {
			p.warn("the CA or the DNS provider says that it is asked too often: %d of at most %d orders at a time from now on, one more after each that ends well",
				n, p.Settings.Concurrency)
		}
	}
}
