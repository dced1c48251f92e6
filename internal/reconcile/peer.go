package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// patience is how many times as long as a peer's last silence took it is left alone before it is asked again in the
// same pass: one whose port is closed says so in a millisecond and may be asked at each step, one that swallows
// packets is not waited for at each.
const patience = 10

// peerView is what a pass knows of a peer. It is safe for concurrent use.
type peerView struct {
	Peer
	now func() time.Time // this node's clock

	mu        sync.Mutex
	inventory cluster.Inventory
	err       error         // the peer cannot be asked; what is known of it may be out of date
	askedAt   time.Time     // when it was asked last; with its monotonic reading, not the injected clock's
	took      time.Duration // how long it took to answer, or to fail
	ahead     time.Duration // by how much its clock was ahead of this node's when it answered
	deaf      bool          // it let a record's acknowledgement time out
	held      generationSet // those of inventory, nil until it is asked for
	tried     generationSet
}

func (v *peerView) reachable() bool { return v.unreachable() == nil }

// unreachable is why the peer cannot be asked, nil where it can.
func (v *peerView) unreachable() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// inv is the peer's inventory, with what it was given since.
func (v *peerView) inv() cluster.Inventory {
	v.mu.Lock()
	defer v.mu.Unlock()
	inv := v.inventory
	inv.Generations = slices.Clone(inv.Generations)
	return inv
}

// ask takes the peer's inventory. The peer is who it was said to be, or nothing that it says counts.
func (v *peerView) ask(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	start := time.Now()
	inventory, err := v.Inventory(limited)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		err = errInterrupted
	}
	if err == nil && inventory.Node != v.Name() {
		err = cluster.WithHint(fmt.Errorf("the node at %s's address says that it is %q", v.Name(), inventory.Node),
			"compare `node` and `nodes` in the configuration of both hosts")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.askedAt, v.took, v.err = start, time.Since(start), err
	if err == nil {
		v.inventory, v.held, v.ahead = inventory, nil, inventory.Time.Sub(v.now())
	}
}

// askAgain asks a peer that could not be reached, and tells whether it can now. One that took long to say nothing is
// left alone for patience times as long.
func (v *peerView) askAgain(ctx context.Context) bool {
	v.mu.Lock()
	again := v.err != nil && time.Since(v.askedAt) >= patience*v.took
	if again {
		v.askedAt = time.Now() // for those who come meanwhile
	}
	v.mu.Unlock()
	if again {
		v.ask(ctx)
	}
	return again && v.reachable()
}

// lose notes that a call to the peer that began at start ended in its deadline: nothing more is waited for. Any other
// failure came quickly, and is told where it happened.
func (v *peerView) lose(start time.Time, err error) {
	if !errors.Is(err, context.DeadlineExceeded) {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err, v.askedAt, v.took = err, start, time.Since(start)
}

// holds tells whether the peer has a generation, as far as is known.
func (v *peerView) holds(g cert.Generation) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held == nil {
		v.held = setOf(v.inventory.Generations)
	}
	return v.held.has(g)
}

// digest is that of the peer's configuration, as far as is known.
func (v *peerView) digest() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.inventory.Digest
}

// released is what the peer was told to activate, as of its inventory.
func (v *peerView) released() map[cert.Slot]cert.Generation {
	v.mu.Lock()
	defer v.mu.Unlock()
	return releasedBySlot(v.inventory.Records)
}

// given notes that the peer made a generation durable.
func (v *peerView) given(g cert.Generation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.inventory.Generations = append(v.inventory.Generations, g)
	if v.held != nil {
		v.held[keyOf(g)] = true
	}
}

// try notes that a generation is asked for: each is once, since one that was refused would be again.
func (v *peerView) try(g cert.Generation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tried == nil {
		v.tried = generationSet{}
	}
	v.tried[keyOf(g)] = true
}

func (v *peerView) wasTried(g cert.Generation) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tried.has(g)
}

// hears tells whether the peer's acknowledgement of a record is worth the wait.
func (v *peerView) hears() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err == nil && !v.deaf
}

func (v *peerView) setDeaf() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deaf = true
}

// contains tells whether g is among generations.
func contains(generations []cert.Generation, g cert.Generation) bool {
	return slices.ContainsFunc(generations, func(h cert.Generation) bool { return same(g, h) })
}

// same tells that two are one generation of one slot, whatever the form of their times.
func same(a, b cert.Generation) bool { return a.Slot == b.Slot && a.Compare(b) == 0 }
