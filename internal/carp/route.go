package carp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// What FreeBSD's routing socket (route(4), net/route.h) tells besides the messages that its dump consists of. Each has
// a header, and behind it the socket addresses that the bitmap at 4 names.
const (
	rtmAdd     = 0x1 // RTM_ADD
	rtmDelete  = 0x2 // RTM_DELETE
	rtmDelAddr = 0xd // RTM_DELADDR

	// rtfHost in the flags at 8 of RTM_ADD and RTM_DELETE: the route is to one host, as that to a virtual address is.
	rtfHost = 0x4
	// ifaHeaderLen is struct ifa_msghdr, of RTM_NEWADDR and RTM_DELADDR.
	ifaHeaderLen = 20
)

// routeSays is what a message of FreeBSD's routing socket says. An IPv4 vhid that becomes MASTER gives RTM_NEWADDR,
// one that leaves it RTM_DELADDR; an IPv6 vhid that becomes MASTER gives RTM_ADD. Nothing comes of an IPv6 vhid that
// leaves MASTER, nor of one that leaves it because it was given another address: the poll sees that. Seen on 13.2 and
// 15.1, in VNET jails too. A message that cannot be read could have been anything.
func routeSays(message []byte, first Spec) notice {
	if len(message) < ribFlags+4 || message[2] != rtmVersion {
		return wake
	}
	switch message[3] {
	case rtmIfInfo:
		return wake
	case rtmAdd, rtmDelete:
		if order.Uint32(message[ribFlags:])&rtfHost == 0 {
			return ignored
		}
		return wake
	case rtmNewAddr, rtmDelAddr:
		if address, err := routeAddress(message); err == nil && hasAddress(first, address) {
			return moved
		}
		return wake
	}
	return ignored
}

// hasAddress tells whether the address is one of the vhid's, whatever its prefix.
func hasAddress(s Spec, address netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(p netip.Prefix) bool { return p.Addr() == address })
}

// routeAddress is the interface's address in an RTM_NEWADDR or RTM_DELADDR.
func routeAddress(message []byte) (netip.Addr, error) {
	if len(message) < ifaHeaderLen {
		return netip.Addr{}, fmt.Errorf("routing message of %d bytes: %w", len(message), errCut)
	}
	addrs, err := sockaddrs(order.Uint32(message[ribAddrs:]), message[ifaHeaderLen:])
	if err != nil {
		return netip.Addr{}, err
	}
	addr := addrs[rtaIfa]
	at, size := inetAddr, 4
	switch {
	case len(addr) < 2:
		return netip.Addr{}, errors.New("routing message without an address")
	case addr[1] == familyInet:
	case addr[1] == familyInet6:
		at, size = inet6Addr, 16
	default:
		return netip.Addr{}, fmt.Errorf("socket address of family %d", addr[1])
	}
	if len(addr) < at+size {
		return netip.Addr{}, fmt.Errorf("socket address of %d bytes in family %d: %w", len(addr), addr[1], errCut)
	}
	ip, _ := netip.AddrFromSlice(addr[at : at+size])
	return unscoped(ip), nil
}
