//go:build !freebsd

package carp

import (
	"errors"
	"fmt"
	"runtime"

	"certsync/internal/cluster"
)

// SystemKernel is errors.ErrUnsupported: only FreeBSD has CARP in its kernel.
func SystemKernel() (*Kernel, error) {
	err := fmt.Errorf("CARP of the kernel on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	return nil, cluster.WithHint(err, "run this on FreeBSD 13 or later")
}
