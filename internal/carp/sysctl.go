package carp

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"

	"certsync/internal/cluster"
)

// sysctlIntLen is the size of a C int, signed and in the host's order.
const sysctlIntLen = 4

// sysctlInt reads an int, which may be negative, as net.inet.carp.demotion and kern.securelevel can be.
func (c *calls) sysctlInt(name string) (int, error) {
	old := make([]byte, sysctlIntLen)
	n, err := c.sysctl(name, old, nil)
	if err != nil {
		return 0, sysctlError("read sysctl "+name, name, err)
	}
	if n != sysctlIntLen {
		return 0, fmt.Errorf("read sysctl %s: %d bytes, an int has %d", name, n, sysctlIntLen)
	}
	return int(int32(order.Uint32(old))), nil
}

// setSysctlInt writes an int.
func (c *calls) setSysctlInt(name string, value int) error {
	if value < math.MinInt32 || value > math.MaxInt32 {
		return fmt.Errorf("set sysctl %s to %d: not an int of 32 bits", name, value)
	}
	_, err := c.sysctl(name, nil, order.AppendUint32(nil, uint32(int32(value))))
	switch operation := fmt.Sprintf("set sysctl %s to %d", name, value); {
	case err == nil:
		return nil
	case errors.Is(err, eperm):
		return c.forbidden(operation, err)
	default:
		return sysctlError(operation, name, err)
	}
}

// sysctlError is the meaning of an errno of sysctl(3).
func sysctlError(operation, name string, err error) error {
	if !errors.Is(err, enoent) {
		return fmt.Errorf("%s: %w", operation, err)
	}
	err = fmt.Errorf("%s: the kernel has no such name: %w", operation, fs.ErrNotExist)
	if strings.HasPrefix(name, "net.inet.carp.") {
		return cluster.WithHint(err, "load carp first, as root and outside of any jail: `kldload carp`")
	}
	return err
}
