package cluster

import (
	"context"
	"fmt"
	"time"

	"certsync/internal/cert"
)

// Checkpoint is called with an order before each step that changes anything at the CA or in the DNS, the order's Step
// and Records already saying what is about to be done. An error (not MASTER any more, the disk is full, ErrOrderTaken)
// ends the work before it is done.
type Checkpoint func(ctx context.Context, order Order) error

// IssueError is why the CA or the DNS provider did not give a certificate.
type IssueError struct {
	// Cause is one line in the CA's or provider's words, without secrets.
	Cause string
	// Dead tells that the order cannot be taken up again: the next try needs a new one.
	Dead bool
	// NextTry is the earliest instant at which the CA allows another try; zero where it did not say.
	NextTry time.Time
	// RetryAfter tells that NextTry comes from a Retry-After header.
	RetryAfter bool
	// Throttled tells that they said that they are asked too often (HTTP 429, rateLimited): fewer at a time may be right.
	Throttled bool
	// Hint is the mend, or "".
	Hint string
	Err  error
}

func (e *IssueError) Error() string { return e.Cause }

// Unwrap gives the underlying error, which may be nil.
func (e *IssueError) Unwrap() error { return e.Err }

// Kept is a generation with its bundle.
type Kept struct {
	Generation cert.Generation
	Bundle     *cert.Bundle
}

// StageResult is what a node did with one generation that it was offered; Error is "" where it is durable there.
type StageResult struct {
	Generation cert.Generation `json:"generation"`
	Error      string          `json:"error,omitempty"`
	Hint       string          `json:"hint,omitempty"`
}

// Target is one slot as a node's HAProxy should have it.
type Target struct {
	Slot cert.Slot
	// Generation is to be in service; zero where Bundle says it, or where none was issued yet (Inspect then tells what is
	// there).
	Generation cert.Generation
	// Load reads Bundle and Known where they are needed, which they are not of a target that is known to be in service;
	// nil where they are given.
	Load func(ctx context.Context) (bundle *cert.Bundle, known []*cert.Bundle, err error)
	// Bundle is that of Generation; nil where Load gives it.
	Bundle *cert.Bundle
	// Known are other bundles of the slot, so that a sighting of an earlier one gets its name.
	Known []*cert.Bundle
	// Domains are the names to handshake with; a wildcard is tried under a name that it covers.
	Domains []string
	// Path is the certificate's own `bundle` path, or "" for NAME.pem in the bundle folder.
	Path string
	// Both tells that the certificate has both families, so that files end in .ecdsa and .rsa.
	Both bool
}

// Wanted is what is to be in service; zero where nothing is. Of a target that has only a bundle the sequence is zero.
func (t Target) Wanted() cert.Generation {
	if t.Generation.IsZero() && t.Bundle != nil {
		return t.Bundle.Generation(t.Slot.Name, 0)
	}
	return t.Generation
}

// Loaded is the target with its bundles. Where they cannot be read it has none.
func (t Target) Loaded(ctx context.Context) (Target, error) {
	if t.Bundle != nil || t.Load == nil {
		return t, nil
	}
	var err error
	t.Bundle, t.Known, err = t.Load(ctx)
	return t, err
}

// String names the target without its bundle.
func (t Target) String() string { return fmt.Sprintf("target %s", t.Slot) }
