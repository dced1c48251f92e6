package reconcile

import (
	"context"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Roles tells the role of this node, read anew at each call.
type Roles interface {
	// Role is what may be acted on: MASTER only once it has settled, which the call may wait for.
	Role(ctx context.Context) (cluster.Seen, error)
	// View is what is seen at this moment, for showing: it waits for nothing.
	View(ctx context.Context) cluster.CARP
}

// Store is the node's durable state. What a method has returned without error from is on disk (fsynced). Reads see the
// writes of other processes.
type Store interface {
	// Generations lists all that are held, of all slots.
	Generations(ctx context.Context) ([]cert.Generation, error)
	// Bundle reads one that is held, checked against its fingerprint.
	Bundle(ctx context.Context, g cert.Generation) (*cert.Bundle, error)
	// Summary is what is asked of a bundle again and again. A file that has not changed since is not read again; one that
	// cannot be read, or is bad, is as for Bundle.
	Summary(ctx context.Context, g cert.Generation) (cert.Summary, error)
	// Keep stores a generation; one that is held already is no error.
	Keep(ctx context.Context, kept cluster.Kept) error
	// Records reads everything else.
	Records(ctx context.Context) (cluster.Records, error)
	// Merge joins records into those held, by the rules of package cluster.
	Merge(ctx context.Context, records cluster.Records) error
	// Forget drops all generations of a slot, with their releases; that there are none is no error.
	Forget(ctx context.Context, slot cert.Slot) error
	// Problems lists what was set aside and not trusted, in words for a person.
	Problems(ctx context.Context) []string
}

// Issuer is the CA.
type Issuer interface {
	// Directory is the URL of the CA's directory.
	Directory() string
	// Register makes the account of account.Key at the CA, or finds it there, and fills in its URL.
	Register(ctx context.Context, account cluster.Account) (cluster.Account, error)
	// Obtain drives an order from its step to the certificate. It stores nothing: checkpoint does.
	Obtain(ctx context.Context, account cluster.Account, order cluster.Order, checkpoint cluster.Checkpoint) (*cert.Bundle, error)
	// RenewalInfo tells when the CA wants the certificate with an identifier (cert.Bundle.RenewalID) to be renewed;
	// errors.ErrUnsupported where it gives no such information. An IssueError is Dead where it has none for this one.
	RenewalInfo(ctx context.Context, certID string) (cluster.Suggestion, error)
	// CleanUp removes the TXT values that an order left, one by one, and marks them removed in what it returns.
	CleanUp(ctx context.Context, account cluster.Account, order cluster.Order) (cluster.Order, error)
}

// Proxy is one HAProxy of this node.
type Proxy interface {
	// Inspect tells where each target stands: disk, memory, handshake. It changes nothing.
	Inspect(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error)
	// Activate brings each target in service: bundle file, memory, handshake; undone where it fails. One target's
	// failure is told in its placement and stops no other.
	Activate(ctx context.Context, targets []cluster.Target) ([]cluster.Placement, error)
}

// Peer is another node, asked over the peer API.
type Peer interface {
	Name() string
	Inventory(ctx context.Context) (cluster.Inventory, error)
	// Fetch hands each of the generations asked for to each, as it arrives, already checked for form.
	Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error
	// Stage offers generations; the peer makes them durable, and says for each whether it did.
	Stage(ctx context.Context, kept []cluster.Kept) ([]cluster.StageResult, error)
	// Record gives records to be merged.
	Record(ctx context.Context, records cluster.Records) error
	// Release lets the peer activate generations that it holds; it answers with where they then stand.
	Release(ctx context.Context, releases []cluster.Release) ([]cluster.Placement, error)
	Status(ctx context.Context) (cluster.NodeStatus, error)
}
