package carp

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dumpMost bounds reading one interface. The kernel answers at once.
const dumpMost = 2 * time.Second

// hostReadings tell the role by who has the virtual addresses, and hear of them by rtnetlink.
func hostReadings(cfg Config) readings {
	first := cfg.VHIDs[0]
	return readings{
		role: addressRole(readLink),
		view: addressView(readLink),
		sources: []source{{
			name: "rtnetlink",
			open: func(context.Context) (io.ReadCloser, error) { return netlinkSocket(rtnlGroups) },
			says: func(b []byte) notice { return linuxSays(b, first) },
		}},
	}
}

// netlinkSocket is a socket of NETLINK_ROUTE that hears the groups.
func netlinkSocket(groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// readLink reads an interface and its addresses.
func readLink(ctx context.Context, name string) (link, error) {
	if err := context.Cause(ctx); err != nil {
		return link{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, dumpMost)
	defer cancel()
	socket, err := netlinkSocket(0)
	if err != nil {
		return link{}, err
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })()
	index, up, err := linkState(name)
	if err != nil {
		return link{}, err
	}
	addresses, err := retryDump(ctx, func(seq uint32) ([]netip.Addr, error) { return dumpAddresses(socket, seq, index) })
	return link{up: up, addresses: addresses}, err
}

// dumpAddresses asks for the addresses of the interface of this index.
func dumpAddresses(socket io.ReadWriter, seq, index uint32) ([]netip.Addr, error) {
	if _, err := socket.Write(addressDump(seq)); err != nil {
		return nil, fmt.Errorf("ask for the addresses: %w", err)
	}
	return readDump(socket, seq, index)
}

// linkState reads the index and the flags of an interface (netdevice(7)).
func linkState(name string) (index uint32, up bool, err error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, false, fmt.Errorf("%w: %.40q is no name of one", ErrNoInterface, name)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	for _, call := range []uint{unix.SIOCGIFINDEX, unix.SIOCGIFFLAGS} {
		err := unix.IoctlIfreq(fd, call, request)
		if err == unix.ENODEV {
			return 0, false, ErrNoInterface
		}
		if err != nil {
			return 0, false, fmt.Errorf("read the interface's flags: %w", err)
		}
		if call == unix.SIOCGIFINDEX {
			index = request.Uint32()
		}
	}
	const reachable = unix.IFF_UP | unix.IFF_RUNNING
	return index, request.Uint16()&reachable == reachable, nil
}
