package carp

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"certsync/internal/cluster"
)

// staticPrefix starts the value of carp.role that names the MASTER.
const staticPrefix = "static:"

// Static is the role that the configuration states.
type Static struct {
	self string
	read func() (string, error)
}

// NewStatic is the role of the node called self. read gives the value of carp.role as it is in the configuration now:
// it is called for every reading, so that a change counts at the next fence of a process that runs.
func NewStatic(self string, read func() (string, error)) *Static {
	return &Static{self: self, read: read}
}

// Role is MASTER on the node that carp.role names, and BACKUP on every other. It is Unknown, and an error, where the
// value cannot be read or is not "static:NODE".
func (s *Static) Role(ctx context.Context) (cluster.Seen, error) {
	if err := context.Cause(ctx); err != nil {
		return cluster.Seen{}, fmt.Errorf("read the role: %w", err)
	}
	value, err := s.read()
	if err != nil {
		return cluster.Seen{}, fmt.Errorf("read the role: %w", err)
	}
	master, ok := strings.CutPrefix(value, staticPrefix)
	if !ok || master == "" {
		err := fmt.Errorf("read the role: carp.role %.60q is not %sNODE", value, staticPrefix)
		return cluster.Seen{}, cluster.WithHint(err, "set carp.role to %sNODE, the name of the node that is MASTER", staticPrefix)
	}
	seen := cluster.Seen{Role: cluster.Backup, Master: master}
	if master == s.self {
		seen.Role = cluster.Master
	}
	return seen, nil
}

// View is the role that the configuration states; it tells of no vhid.
func (s *Static) View(ctx context.Context) cluster.CARP {
	seen, err := s.Role(ctx)
	view := cluster.CARP{Source: "static", Role: seen.Role}
	if err != nil {
		view.Error, view.Hint = texts(err)
	}
	return view
}

// staticPoll is how often Watch reads the configuration.
const staticPoll = time.Second

// Watch hands each the view, and again whenever the configuration states another role, until the context ends.
func (s *Static) Watch(ctx context.Context, each func(cluster.CARP)) {
	shown := cluster.CARP{}
	for first := true; first || sleep(ctx, staticPoll); first = false {
		view := s.View(ctx)
		if ctx.Err() != nil {
			return
		}
		if first || !reflect.DeepEqual(view, shown) {
			each(view)
			shown = view
		}
	}
}
