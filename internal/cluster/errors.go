package cluster

import (
	"errors"
	"fmt"
	"time"
)

// The sentinel errors; adapters wrap them, commands turn them into exit codes.
var (
	// ErrNotMaster: only the MASTER may do this (exit 3).
	ErrNotMaster = errors.New("not MASTER")
	// ErrStale: the state offered is earlier than the state held.
	ErrStale = errors.New("older than what is held")
	// ErrJump: a sequence further ahead than a peer may claim.
	ErrJump = errors.New("sequence too far ahead")
	// ErrRevoked: the fingerprint has a tombstone.
	ErrRevoked = errors.New("revoked")
	// ErrBusy: another certsync process of this node holds the lock.
	ErrBusy = errors.New("busy")
	// ErrNewerFormat: the state was written by a newer certsync; it is left untouched.
	ErrNewerFormat = errors.New("written by a newer certsync")
	// ErrUnreachable: the peer could not be asked; that says nothing about its state.
	ErrUnreachable = errors.New("unreachable")
	// ErrRejected: HAProxy refused the bundle, or served something else after it took it.
	ErrRejected = errors.New("rejected by HAProxy")
	// ErrNotRunning: no HAProxy answers on the runtime socket.
	ErrNotRunning = errors.New("HAProxy is not running")
	// ErrUnproven: no handshake with this very node's HAProxy could be tried.
	ErrUnproven = errors.New("unproven")
	// ErrOrderTaken: the CA handed out an order that another open record drives with another key.
	ErrOrderTaken = errors.New("order is driven by another record")
	// ErrUsage: the arguments or the configuration are wrong (exit 2).
	ErrUsage = errors.New("usage")
)

// PutOffError says that a rate limit or a back-off forbids an attempt before Until (exit 5).
type PutOffError struct {
	Until time.Time
	Cause string
}

// Error names the instant in UTC.
func (e *PutOffError) Error() string {
	return fmt.Sprintf("put off until %s: %s", e.Until.UTC().Format(time.RFC3339), e.Cause)
}

// Hinted wraps an error with its mend: a phrase in the imperative, for the line `certsync: hint: ...`.
type Hinted struct {
	Err  error
	Hint string
}

// WithHint adds the mend to err; nil stays nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Hinted{Err: err, Hint: fmt.Sprintf(format, args...)}
}

func (e *Hinted) Error() string { return e.Err.Error() }

// Unwrap gives the error that the hint belongs to.
func (e *Hinted) Unwrap() error { return e.Err }

// HintOf is the outermost mend in err's tree, or "".
func HintOf(err error) string {
	if h, ok := errors.AsType[*Hinted](err); ok {
		return h.Hint
	}
	return ""
}

// Usage marks err as a mistake in the arguments or the configuration: errors.Is finds ErrUsage, and its text stays.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

type usageError struct{ error }

func (e usageError) Unwrap() []error { return []error{ErrUsage, e.error} }
