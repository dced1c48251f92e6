package carp

import (
	"fmt"
	"net/netip"
	"slices"
)

// Netlink's messages about addresses and interfaces (rtnetlink(7); RFC 3549, section 3.1): the same on Linux and on
// FreeBSD 14 and later, but for the socket that they come from.
const (
	rtnlNewLink = 16 // RTM_NEWLINK
	rtnlDelLink = 17 // RTM_DELLINK
	rtnlNewAddr = 20 // RTM_NEWADDR
	rtnlDelAddr = 21 // RTM_DELADDR
	rtnlGetAddr = 22 // RTM_GETADDR

	// rtnlGroups are RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
	rtnlGroups = 0x1 | 0x10 | 0x100

	ifaddrLen  = 8 // struct ifaddrmsg: family, prefix length, flags, scope, u32 index
	ifaAddress = 1 // IFA_ADDRESS
	ifaLocal   = 2 // IFA_LOCAL
	ifaLabel   = 3 // IFA_LABEL
	ifaFlags   = 8 // IFA_FLAGS, u32
	// ifaFreeBSD is IFA_FREEBSD of FreeBSD, and ifafVHID in it IFAF_VHID, u32.
	ifaFreeBSD = 11
	ifafVHID   = 1

	// freebsdNetlink is AF_NETLINK of FreeBSD, 16 on Linux; netlinkRoute is NETLINK_ROUTE of both.
	freebsdNetlink = 38
	netlinkRoute   = 0
)

// ifaddr is what an RTM_NEWADDR or RTM_DELADDR says of an address.
type ifaddr struct {
	index  uint32 // the interface's
	prefix netip.Prefix
	// flags are those of the attribute, which has all of them, or else of the header. FreeBSD numbers them otherwise
	// than Linux.
	flags uint32
	label string
	// vhid is FreeBSD's; 0 where the address is under none.
	vhid uint32
}

// decodeIfaddr decodes the body of an RTM_NEWADDR or RTM_DELADDR.
func decodeIfaddr(body []byte) (ifaddr, error) {
	if len(body) < ifaddrLen {
		return ifaddr{}, fmt.Errorf("message of %d bytes about an address: %w", len(body), errCut)
	}
	attrs, err := splitAttrs(body[ifaddrLen:])
	if err != nil {
		return ifaddr{}, err
	}
	found := ifaddr{flags: uint32(body[2]), index: order.Uint32(body[4:])}
	var address, local []byte
	for _, a := range attrs {
		switch a.kind {
		case ifaAddress:
			address = a.value
		case ifaLocal:
			local = a.value
		case ifaLabel:
			found.label = untilNUL(a.value)
		case ifaFlags:
			if len(a.value) == 4 {
				found.flags = order.Uint32(a.value)
			}
		case ifaFreeBSD:
			found.vhid = nestedVHID(a.value)
		}
	}
	if local == nil { // of a point-to-point interface, IFA_ADDRESS is the other end
		local = address
	}
	found.prefix, err = prefixOf(local, body[1])
	return found, err
}

func prefixOf(address []byte, bits byte) (netip.Prefix, error) {
	ip, ok := netip.AddrFromSlice(address)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address of %d bytes", len(address))
	}
	p := netip.PrefixFrom(ip, int(bits))
	if !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("address %v with a prefix of %d bits", ip, bits)
	}
	return p, nil
}

// nestedVHID is 0 where there is none.
func nestedVHID(b []byte) uint32 {
	attrs, _ := splitAttrs(b) // what cannot be read names no vhid
	for _, a := range attrs {
		if a.kind == ifafVHID && len(a.value) == 4 {
			return order.Uint32(a.value)
		}
	}
	return 0
}

func untilNUL(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// rtnlSays is what a datagram of the groups says; moves tells whether a message about an address tells of a move of
// the deciding vhid. A datagram that cannot be read could have been anything.
func rtnlSays(datagram []byte, moves func(kind uint16, a ifaddr) bool) notice {
	messages, err := splitNetlink(datagram)
	if err != nil {
		return wake
	}
	said := ignored
	for _, m := range messages {
		switch m.kind {
		case rtnlNewAddr, rtnlDelAddr:
			said = max(said, wake)
			if a, err := decodeIfaddr(m.body); err == nil && moves(m.kind, a) {
				said = moved
			}
		case rtnlNewLink, rtnlDelLink, nlmsgError:
			said = max(said, wake)
		}
	}
	return said
}

// freebsdSays is what FreeBSD's NETLINK_ROUTE says: what the routing socket does of IPv4 vhids, with the vhid; nothing
// of IPv6 vhids. Seen on 15.1.
func freebsdSays(datagram []byte, first Spec) notice {
	return rtnlSays(datagram, func(_ uint16, a ifaddr) bool {
		return a.vhid == uint32(first.VHID) && (a.label == "" || a.label == first.Interface)
	})
}

// freebsdNetlinkAddress is struct sockaddr_nl of FreeBSD, to bind to: unlike Linux's it begins with its length. The
// port, 4 to 7, is left to the kernel.
func freebsdNetlinkAddress(groups uint32) [12]byte {
	b := [12]byte{12, freebsdNetlink}
	order.PutUint32(b[8:], groups)
	return b
}
