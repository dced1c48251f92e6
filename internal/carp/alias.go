package carp

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"certsync/internal/cluster"
)

// The requests for addresses, from FreeBSD's sys/sockio.h and netinet6/in6_var.h; the same on amd64 and arm64.
// golang.org/x/sys/unix has SIOCAIFADDR as 0x8040691a: that is the one of before 10.0, without a vhid.
const (
	siocAIFAddr  uint32 = 0x8044692b // SIOCAIFADDR: _IOW('i', 43, struct in_aliasreq), 68 bytes
	siocAIFAddr6 uint32 = 0x8088691b // SIOCAIFADDR_IN6: _IOW('i', 27, struct in6_aliasreq), 136 bytes
	siocDIFAddr  uint32 = 0x80206919 // SIOCDIFADDR: _IOW('i', 25, struct ifreq), 32 bytes
	siocDIFAddr6 uint32 = 0x81206919 // SIOCDIFADDR_IN6: _IOW('i', 25, struct in6_ifreq), 288 bytes: its union has a struct icmp6_ifstat of 34 uint64
)

// ioctlLen is the size that a request's number says (sys/ioccom.h): 13 bits from bit 16 on.
func ioctlLen(request uint32) int { return int(request >> 16 & 0x1fff) }

const (
	sockaddrLen  = 16 // struct sockaddr_in: length, family, port (2), address (4), 8 bytes of zero
	sockaddrLen6 = 28 // struct sockaddr_in6: length, family, port (2), flow (4), address (16), scope (4)
	foreverLen   = 8  // ND6_INFINITE_LIFETIME, valid and preferred: 32 bits each
)

// appendSockaddr adds a sockaddr_in or a sockaddr_in6. The scope of a link-local address stays 0: the kernel sets that
// of the interface.
func appendSockaddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		b = append(b, sockaddrLen, familyInet, 0, 0)
		return append(append(b, a.AsSlice()...), make([]byte, 8)...)
	}
	b = append(b, sockaddrLen6, familyInet6, 0, 0, 0, 0, 0, 0)
	return append(append(b, a.AsSlice()...), make([]byte, 4)...)
}

// maskOf is the mask of a prefix, as an address of its family.
func maskOf(p netip.Prefix) netip.Addr {
	mask := p.Addr().AsSlice()
	for i := range mask {
		ones := min(max(p.Bits()-8*i, 0), 8)
		mask[i] = byte(0xff << (8 - ones))
	}
	a, _ := netip.AddrFromSlice(mask)
	return a
}

// broadcastOf is the last address of an IPv4 network; a network of two has none, and takes 255.255.255.255 (RFC 3021).
func broadcastOf(p netip.Prefix) netip.Addr {
	if p.Bits() == 31 {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	b, mask := p.Addr().As4(), maskOf(p).As4()
	for i := range b {
		b[i] |= ^mask[i]
	}
	return netip.AddrFrom4(b)
}

// aliasRequest is the struct in_aliasreq or in6_aliasreq that adds an address under a vhid; 0 is a plain address.
func aliasRequest(iface [ifNameLen]byte, address netip.Prefix, vhid int) (request uint32, arg []byte) {
	b := appendSockaddr(iface[:], address.Addr())
	if address.Addr().Is4() {
		b = appendSockaddr(b, broadcastOf(address))
		b = appendSockaddr(b, maskOf(address))
		return siocAIFAddr, order.AppendUint32(b, uint32(vhid))
	}
	b = append(b, make([]byte, sockaddrLen6)...) // no destination: not a point-to-point link
	b = appendSockaddr(b, maskOf(address))
	b = append(b, make([]byte, 4+8+8)...) // flags; the times at which it expires, which the kernel computes
	for range foreverLen {
		b = append(b, 0xff)
	}
	b = order.AppendUint32(b, uint32(vhid))
	return siocAIFAddr6, append(b, make([]byte, 4)...) // to a multiple of 8
}

// removeRequest is the struct ifreq or in6_ifreq that takes an address away. The kernel takes any address of the
// interface where the length of an IPv4 one is not 16: appendSockaddr sets it.
func removeRequest(iface [ifNameLen]byte, address netip.Addr) (request uint32, arg []byte) {
	request = siocDIFAddr6
	if address.Is4() {
		request = siocDIFAddr
	}
	arg = make([]byte, ioctlLen(request))
	copy(arg, appendSockaddr(iface[:], address))
	return request, arg
}

// addAddress gives an interface an address. One that is there as it should be is left alone: adding it again would be a
// failover. The vhid must be there before: where it is missing, the kernel has taken an IPv4 address that was there away
// already, and leaves an IPv6 one behind as a plain one, which answers beside the MASTER (in_aifaddr_ioctl of
// netinet/in.c, in6_addifaddr of netinet6/in6.c).
func (c *calls) addAddress(iface string, address netip.Prefix, vhid int) error {
	operation := fmt.Sprintf("add %s to %s", address, iface)
	name, err := checkAlias(iface, address, vhid)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	before, there, err := c.addressOf(iface, address.Addr())
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	if there && before == (Address{address, vhid}) {
		return nil
	}
	if vhid != 0 {
		if _, err := c.readVHID(iface, vhid); err != nil {
			return fmt.Errorf("%s: %w", operation, err)
		}
	}
	request, arg := aliasRequest(name, address, vhid)
	if err := c.control(familyOf(address.Addr()), request, arg); err != nil {
		return errors.Join(c.aliasError(operation, iface, vhid, err), c.putBack(iface, address.Addr(), before, there))
	}
	return c.confirm(operation, iface, address, vhid)
}

// checkAlias takes vhid 0, a plain address, too.
func checkAlias(iface string, address netip.Prefix, vhid int) (name [ifNameLen]byte, err error) {
	if vhid != 0 {
		err = checkVHID(vhid)
	}
	if err == nil {
		err = checkAddress(address)
	}
	if err != nil {
		return name, err
	}
	return interfaceName(iface)
}

// addressOf finds an address among those of an interface, whatever its prefix length and vhid.
func (c *calls) addressOf(iface string, a netip.Addr) (found Address, there bool, err error) {
	all, err := c.readInterfaces()
	if err != nil {
		return Address{}, false, err
	}
	i := slices.IndexFunc(all, func(i Interface) bool { return i.Name == iface })
	if i < 0 {
		return Address{}, false, cluster.WithHint(fmt.Errorf("%s: %w", iface, ErrNoInterface), "see the names with `ifconfig -l`")
	}
	for _, address := range all[i].Addresses {
		if address.Prefix.Addr().WithZone("") == a {
			return address, true, nil
		}
	}
	return Address{}, false, nil
}

// confirm reads back what was added.
func (c *calls) confirm(operation, iface string, address netip.Prefix, vhid int) error {
	now, there, err := c.addressOf(iface, address.Addr())
	switch {
	case err != nil:
		return fmt.Errorf("%s: read it back: %w", operation, err)
	case !there:
		return fmt.Errorf("%s: the kernel took it, and does not list it", operation)
	case now.VHID != vhid || now.Prefix.Bits() != address.Bits():
		return fmt.Errorf("%s under vhid %d: the kernel took it, and lists %s under vhid %d", operation, vhid, now.Prefix, now.VHID)
	}
	return nil
}

// putBack undoes what an add that failed did nevertheless.
func (c *calls) putBack(iface string, a netip.Addr, before Address, wasThere bool) error {
	now, there, err := c.addressOf(iface, a)
	if err != nil || there == wasThere && now == before {
		return nil
	}
	if !wasThere {
		return wrapf(c.removeAddress(iface, now.Prefix), "take back what was done")
	}
	name, err := interfaceName(iface)
	if err != nil {
		return err
	}
	request, arg := aliasRequest(name, before.Prefix, before.VHID)
	return wrapf(c.control(familyOf(a), request, arg), "give back %s under vhid %d, which the kernel took from %s", before.Prefix, before.VHID, iface)
}

// aliasError is the meaning of an errno of SIOCAIFADDR and SIOCAIFADDR_IN6.
func (c *calls) aliasError(operation, iface string, vhid int, err error) error {
	switch {
	case errors.Is(err, errNoSocket):
		return cluster.WithHint(fmt.Errorf("%s: %w", operation, err), "take addresses of the family that this kernel, or this jail, has")
	case errors.Is(err, enoent), errors.Is(err, enoprotoopt):
		// ENOPROTOOPT: the interface has no vhid at all.
		return cluster.WithHint(fmt.Errorf("%s: %w", operation, missingVHID{iface, vhid}), "run `certsync bootstrap`: it makes the vhid before its addresses")
	case errors.Is(err, einval):
		return cluster.WithHint(fmt.Errorf("%s: the kernel refuses it: %w", operation, err),
			"see whether `ifconfig %s` has the address with another prefix length: for IPv6 it must be removed first", iface)
	case errors.Is(err, eexist):
		return cluster.WithHint(fmt.Errorf("%s: another interface has this network: %w", operation, err), "give the virtual address a prefix length of 32")
	}
	return c.changeError(operation, iface, err)
}

// removeAddress takes an address away, whatever its prefix length. It is fs.ErrNotExist where the interface does not
// have it.
func (c *calls) removeAddress(iface string, address netip.Prefix) error {
	operation := fmt.Sprintf("remove %s from %s", address.Addr(), iface)
	name, err := checkAlias(iface, address, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	request, arg := removeRequest(name, address.Addr())
	err = c.control(familyOf(address.Addr()), request, arg)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, eaddrnotavail):
		return fmt.Errorf("%s: it has no such address: %w", operation, fs.ErrNotExist)
	}
	return c.changeError(operation, iface, err)
}
