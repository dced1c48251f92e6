package carp

import (
	"context"
	"fmt"
	"strings"

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
