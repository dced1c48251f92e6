//go:build !freebsd && !linux

package carp

import (
	"errors"
	"fmt"
	"runtime"

	"certsync/internal/cluster"
)

// hostReadings are errors.ErrUnsupported.
func hostReadings(Config) readings {
	err := fmt.Errorf("CARP on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	return failedReadings(cluster.WithHint(err, "set carp.role to %sNODE, the name of the node that is MASTER", staticPrefix))
}
