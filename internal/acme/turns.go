package acme

import (
	"context"
	"sync"
	"time"
)

// nameTurns lets one order at a time publish at a name. Orders of different certificates share names (example.org and
// *.example.org do), and where a provider holds one value at a name, as rfc2136 does, one would take the other's away.
type nameTurns struct {
	mu    sync.Mutex
	turns map[string]*nameTurn
}

// nameTurn is the right to publish at a name; its fields belong to who has it.
type nameTurn struct {
	token chan struct{}
	// notBefore is when the next value may be published: the CA's resolvers are to have forgotten the last one.
	notBefore time.Time
}

// take waits for the turn of a name.
func (n *nameTurns) take(ctx context.Context, name string) (*nameTurn, error) {
	n.mu.Lock()
	turn := n.turns[name]
	if turn == nil {
		turn = &nameTurn{token: make(chan struct{}, 1)}
		n.turns[name] = turn
	}
	n.mu.Unlock()
	select {
	case turn.token <- struct{}{}:
		return turn, nil
	case <-ctx.Done():
		return nil, contextError(ctx)
	}
}

func (t *nameTurn) free() { <-t.token }
