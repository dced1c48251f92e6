package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostReadings ask this host's kernel. In a jail there is no devd, and one that can be reached is the host's, which
// does not say whose its events are.
func hostReadings(cfg Config) readings {
	kernel, err := SystemKernel()
	if err != nil {
		return failedReadings(err)
	}
	first := cfg.VHIDs[0]
	sources := []source{
		{name: "the routing socket", open: openRoute, says: func(b []byte) notice { return routeSays(b, first) }},
		{name: "netlink", open: openNetlinkRoute, says: func(b []byte) notice { return freebsdSays(b, first) }},
	}
	if !jailed(kernel) {
		sources = append(sources, devdSource(cfg.Devd, first))
	}
	return readings{role: kernelRole(kernel), view: kernelView(kernel), sources: sources}
}

// openRoute is a socket of route(4).
func openRoute(context.Context) (io.ReadCloser, error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "route"), nil
}

// openNetlinkRoute is a socket of NETLINK_ROUTE that hears of addresses and interfaces. FreeBSD 13 has no netlink.
func openNetlinkRoute(context.Context) (io.ReadCloser, error) {
	fd, err := unix.Socket(freebsdNetlink, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, netlinkRoute)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("netlink: %w", errors.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	address := freebsdNetlinkAddress(rtnlGroups)
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address[0])), uintptr(len(address)))
	if errno != 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", errno)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func jailed(k *Kernel) bool {
	jail, err := k.Jail()
	return err == nil && jail.Jailed
}
