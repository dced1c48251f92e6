package carp

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"certsync/internal/cluster"
)

// A CARP header (struct carp_header of netinet/ip_carp.h) has 36 bytes: version and type, vhid, advskew, authlen,
// reserved, advbase, checksum (2), counter (8), HMAC (20).
const (
	protocolCARP  = 112 // IANA gave it to VRRP; CARP has none of its own
	carpHeaderLen = 36
	// carpVersionType is version 2, type 1 (advertisement): the same as of VRRP version 2 (RFC 3768).
	carpVersionType = 2<<4 | 1
	// carpAuthLen is the length of counter and HMAC in words of 4 bytes, and always 7. VRRP has the number of its
	// addresses there, and is longer than a CARP header where it has 7.
	carpAuthLen = 7
	// hopLimit is what adverts to the groups are sent with: they cannot have come through a router.
	hopLimit = 255
)

const (
	etherHeaderLen = 14
	vlanTagLen     = 4
	etherIPv4      = 0x0800
	etherIPv6      = 0x86dd
	etherVLAN      = 0x8100 // IEEE 802.1Q
	etherQinQ      = 0x88a8 // IEEE 802.1ad
	ipv4HeaderLen  = 20
	ipv6HeaderLen  = 40
)

// errNotCARP is a frame that is no CARP advertisement: of another protocol, of VRRP, cut, or damaged.
var errNotCARP = errors.New("no CARP advertisement")

// decodeAdvert reads an Ethernet frame. It takes what the kernel would (carp_input and carp6_input of
// netinet/ip_carp.c): version 2, a right checksum, and hop limit 255 where it was sent to a group.
func decodeAdvert(frame []byte) (Advert, error) {
	ethertype, vlan, packet, ok := etherPayload(frame)
	if !ok {
		return Advert{}, errNotCARP
	}
	var p ipPacket
	switch ethertype {
	case etherIPv4:
		p, ok = ipv4Packet(packet)
	case etherIPv6:
		p, ok = ipv6Packet(packet)
	default:
		ok = false
	}
	if !ok || p.protocol != protocolCARP || p.to.IsMulticast() && p.hops != hopLimit {
		return Advert{}, errNotCARP
	}
	a, ok := carpHeader(p.payload)
	if !ok {
		return Advert{}, errNotCARP
	}
	a.From, a.VLAN = p.from, vlan
	return a, nil
}

// etherPayload takes off the Ethernet header and the VLAN tags, at most two; vlan is the outermost that is not 0 (a tag
// 0 gives a priority only).
func etherPayload(frame []byte) (ethertype uint16, vlan int, payload []byte, ok bool) {
	if len(frame) < etherHeaderLen {
		return 0, 0, nil, false
	}
	ethertype, payload = binary.BigEndian.Uint16(frame[12:]), frame[etherHeaderLen:]
	for range 2 {
		if ethertype != etherVLAN && ethertype != etherQinQ {
			break
		}
		if len(payload) < vlanTagLen {
			return 0, 0, nil, false
		}
		if vlan == 0 {
			vlan = int(binary.BigEndian.Uint16(payload) & 0x0fff)
		}
		ethertype, payload = binary.BigEndian.Uint16(payload[2:]), payload[vlanTagLen:]
	}
	return ethertype, vlan, payload, true
}

// ipPacket is what an advert needs of its IP header.
type ipPacket struct {
	from, to netip.Addr
	protocol byte
	hops     byte
	payload  []byte
}

// ipv4Packet reads an IPv4 header with its options (RFC 791); a fragment is no packet, and what follows the packet in
// the frame is padding.
func ipv4Packet(b []byte) (ipPacket, bool) {
	if len(b) < ipv4HeaderLen || b[0]>>4 != 4 {
		return ipPacket{}, false
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	const moreOrOffset = 0x3fff
	if header < ipv4HeaderLen || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&moreOrOffset != 0 {
		return ipPacket{}, false
	}
	return ipPacket{
		from:     netip.AddrFrom4([4]byte(b[12:16])),
		to:       netip.AddrFrom4([4]byte(b[16:20])),
		protocol: b[9], hops: b[8],
		payload: b[header:total],
	}, true
}

// ipv6Packet reads an IPv6 header (RFC 8200); CARP is sent without extension headers.
func ipv6Packet(b []byte) (ipPacket, bool) {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 {
		return ipPacket{}, false
	}
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return ipPacket{}, false
	}
	return ipPacket{
		from:     netip.AddrFrom16([16]byte(b[8:24])),
		to:       netip.AddrFrom16([16]byte(b[24:40])),
		protocol: b[6], hops: b[7],
		payload: b[ipv6HeaderLen:total],
	}, true
}

// carpHeader reads the CARP header. VRRP, of the same protocol number, fails the version, the authlen or the length.
func carpHeader(b []byte) (Advert, bool) {
	if len(b) != carpHeaderLen || b[0] != carpVersionType || b[3] != carpAuthLen || b[1] == 0 || checksum(b) != 0 {
		return Advert{}, false
	}
	return Advert{
		VHID:    int(b[1]),
		AdvSkew: int(b[2]),
		AdvBase: int(b[5]),
		Counter: binary.BigEndian.Uint64(b[8:]),
		MAC:     [20]byte(b[16:36]),
	}, true
}

// checksum is the internet checksum (RFC 1071), of the CARP header alone for both families; 0 over a header that has
// the right one in it.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Matches tells whether the sender has the same password and the same addresses under the vhid: HMAC-SHA1 over version,
// type, vhid, the IPv4 addresses in ascending order, the IPv6 addresses in ascending order, and the counter
// (carp_hmac_prepare and carp_hmac_generate of FreeBSD's netinet/ip_carp.c; the key is padded with zeros, as of any
// HMAC, RFC 2104). Prefix lengths are not in it. Which of the two differs cannot be told.
// ucarp, which has IPv4 only, makes the same one, and so does OpenBSD for IPv4; of IPv6 it leaves link-local addresses
// out, where FreeBSD puts them in without their scope.
func (a Advert) Matches(password cluster.Secret, addresses []netip.Prefix) bool {
	mac := hmac.New(sha1.New, password)
	mac.Write([]byte{carpVersionType >> 4, carpVersionType & 0x0f, byte(a.VHID)})
	for _, address := range hashed(addresses) {
		mac.Write(address.AsSlice())
	}
	mac.Write(binary.BigEndian.AppendUint64(nil, a.Counter))
	return hmac.Equal(mac.Sum(nil), a.MAC[:])
}

// hashed is the addresses in the order of the hash, each once. Addr.Compare has IPv4 before IPv6.
func hashed(addresses []netip.Prefix) []netip.Addr {
	list := make([]netip.Addr, 0, len(addresses))
	for _, p := range addresses {
		list = append(list, p.Addr().WithZone(""))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}
