package distribute

import (
	"context"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Local is this node, as its peers may see and change it. What it is handed was checked for form only (see the package
// comment): it checks names, domains, trust, order and tombstones itself. Its errors go to the peer as they read, with
// their hint; the sentinels of package cluster keep their identity on the way.
type Local interface {
	// Inventory is what the node holds.
	Inventory(ctx context.Context) (cluster.Inventory, error)
	// Fetch hands each of the generations asked for to each. Those that are not held are left out.
	Fetch(ctx context.Context, generations []cert.Generation, each func(cluster.Kept) error) error
	// Stage makes generations offered by the peer from durable, and says for each whether it did. It is called for
	// each batch as it arrives, so that a transfer that is cut has stored whole generations only.
	Stage(ctx context.Context, from string, kept []cluster.Kept) ([]cluster.StageResult, error)
	// Record merges records of the peer from.
	Record(ctx context.Context, from string, records cluster.Records) error
	// Release activates what is held and released, and tells where it then stands.
	Release(ctx context.Context, from string, releases []cluster.Release) ([]cluster.Placement, error)
	// Status tells where the node's certificates stand.
	Status(ctx context.Context) (cluster.NodeStatus, error)
	// CARP tells what the node sees of its virtual addresses.
	CARP(ctx context.Context) (cluster.CARP, error)
}

// Timeouts bounds every wait of the API; zero fields take the default named.
type Timeouts struct {
	// Dial is for the TCP connection (5 s), Handshake for SSH's key exchange and authentication (10 s), Session for a
	// session and its command (10 s).
	Dial, Handshake, Session time.Duration
	// Request is for a whole call of the small kinds (30 s); Release for one that activates (5 min).
	Request, Release time.Duration
	// Transfer is for a whole transfer of generations (15 min); Stall is the longest that one may make no progress
	// (60 s).
	Transfer, Stall time.Duration
	// KeepAlive is the interval of SSH's keepalives (15 s); a connection that was silent for three is dropped.
	KeepAlive time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Dial, 5 * time.Second}, {&t.Handshake, 10 * time.Second}, {&t.Session, 10 * time.Second},
		{&t.Request, 30 * time.Second}, {&t.Release, 5 * time.Minute},
		{&t.Transfer, 15 * time.Minute}, {&t.Stall, time.Minute}, {&t.KeepAlive, 15 * time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}
