package carp

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// The dump NET_RT_IFLISTL (net/route.h, sys/net/if.h): messages whose headers tell their own length and where their
// if_data begins; the byte at 5 of an address's if_data is its vhid. Behind the header come the addresses that the
// bitmap at 4 names, each a struct sockaddr padded to 8 bytes.
const (
	rtmVersion = 5  // RTM_VERSION
	rtmNewAddr = 12 // RTM_NEWADDR
	rtmIfInfo  = 14 // RTM_IFINFO

	ribAddrs     = 4  // int32, of RTA_*
	ribFlags     = 8  // int32, IFF_* of an interface
	ribIndex     = 12 // u16
	ribHeaderLen = 16 // u16: where the addresses begin
	ribDataOff   = 18 // u16: where if_data begins
	ribFixedLen  = 20

	ifDataVHID = 5 // ifi_vhid
	ifDataLen  = 8 // as much of struct if_data as must be there

	iffUp = 1 // IFF_UP

	rtaNetmask = 2 // RTAX_NETMASK, RTAX_IFP and RTAX_IFA: the bits of the bitmap, and the order of the addresses
	rtaIfp     = 4
	rtaIfa     = 5

	familyInet  = 2  // AF_INET
	familyLink  = 18 // AF_LINK
	familyInet6 = 28 // AF_INET6 (Linux has another)

	sockaddrAlign = 8 // sizeof(long)
	inetAddr      = 4 // struct sockaddr_in: the address at 4
	inet6Addr     = 8 // struct sockaddr_in6: at 8
	linkNameLen   = 5 // struct sockaddr_dl: the length of the name, and the name
	linkName      = 8
)

// ribMessage is one message of the dump.
type ribMessage struct {
	kind  byte
	flags uint32
	index uint16
	vhid  byte
	addrs map[int][]byte // by RTAX_*; a sockaddr with its length byte, or empty
}

// interfaces decodes a whole dump. Addresses that are neither IPv4 nor IPv6 are passed over; so is what other
// messages there are. A dump that is cut, or that contradicts itself, is an error and gives nothing.
func interfaces(dump []byte) ([]Interface, error) {
	var all []Interface
	places := make(map[uint16]int) // by the interface's index
	for rest := dump; len(rest) > 0; {
		message, after, err := nextRIB(rest)
		if err != nil {
			return nil, err
		}
		rest = after
		switch message.kind {
		case rtmIfInfo:
			name, err := message.name()
			if err != nil {
				return nil, err
			}
			places[message.index] = len(all)
			all = append(all, Interface{Name: name, Up: message.flags&iffUp != 0})
		case rtmNewAddr:
			place, ok := places[message.index]
			if !ok {
				return nil, fmt.Errorf("address of interface number %d, which is not listed", message.index)
			}
			if err := message.addTo(&all[place]); err != nil {
				return nil, fmt.Errorf("address of %s: %w", all[place].Name, err)
			}
		}
	}
	return all, nil
}

// nextRIB takes one message off the front.
func nextRIB(b []byte) (message ribMessage, rest []byte, err error) {
	if len(b) < 4 {
		return ribMessage{}, nil, fmt.Errorf("routing message of %d bytes: %w", len(b), errCut)
	}
	length := int(order.Uint16(b))
	if length < 4 {
		return ribMessage{}, nil, fmt.Errorf("routing message that claims %d bytes", length)
	}
	if length > len(b) {
		return ribMessage{}, nil, fmt.Errorf("routing message of %d bytes, %d came: %w", length, len(b), errCut)
	}
	if b[2] != rtmVersion {
		return ribMessage{}, nil, fmt.Errorf("routing message of version %d, not %d", b[2], rtmVersion)
	}
	message = ribMessage{kind: b[3]}
	if message.kind == rtmIfInfo || message.kind == rtmNewAddr {
		err = message.decode(b[:length])
	}
	return message, b[length:], err
}

func (m *ribMessage) decode(b []byte) error {
	if len(b) < ribFixedLen {
		return fmt.Errorf("routing message of %d bytes: %w", len(b), errCut)
	}
	header, data := int(order.Uint16(b[ribHeaderLen:])), int(order.Uint16(b[ribDataOff:]))
	if data < ribFixedLen || data+ifDataLen > header || header > len(b) {
		return fmt.Errorf("routing message of %d bytes with a header of %d and data at %d", len(b), header, data)
	}
	m.flags = order.Uint32(b[ribFlags:])
	m.index = order.Uint16(b[ribIndex:])
	m.vhid = b[data+ifDataVHID]
	var err error
	m.addrs, err = sockaddrs(order.Uint32(b[ribAddrs:]), b[header:])
	return err
}

// sockaddrs takes apart what the bitmap names, in its order. One of length 0 takes 8 bytes.
func sockaddrs(bitmap uint32, b []byte) (map[int][]byte, error) {
	addrs := make(map[int][]byte)
	for ; bitmap != 0; bitmap &= bitmap - 1 {
		if len(b) == 0 {
			return nil, fmt.Errorf("routing message: %w", errCut)
		}
		length := int(b[0])
		if length > len(b) {
			return nil, fmt.Errorf("socket address of %d bytes, %d came: %w", length, len(b), errCut)
		}
		addrs[bits.TrailingZeros32(bitmap)] = b[:length]
		step := max(sockaddrAlign, (length+sockaddrAlign-1)/sockaddrAlign*sockaddrAlign)
		b = b[min(step, len(b)):]
	}
	return addrs, nil
}

// name is the interface's, from its link-layer address.
func (m *ribMessage) name() (string, error) {
	link := m.addrs[rtaIfp]
	if len(link) < linkName || link[1] != familyLink || link[linkNameLen] == 0 || linkName+int(link[linkNameLen]) > len(link) {
		return "", fmt.Errorf("interface number %d has no name", m.index)
	}
	return string(link[linkName : linkName+int(link[linkNameLen])]), nil
}

func (m *ribMessage) addTo(i *Interface) error {
	addr, mask := m.addrs[rtaIfa], m.addrs[rtaNetmask]
	if len(addr) < 2 {
		return errors.New("has no address")
	}
	at, size := inetAddr, 4
	switch addr[1] {
	case familyInet:
	case familyInet6:
		at, size = inet6Addr, 16
	default:
		return nil
	}
	if len(addr) < at+size {
		return fmt.Errorf("socket address of %d bytes in family %d: %w", len(addr), addr[1], errCut)
	}
	ip, _ := netip.AddrFromSlice(addr[at : at+size])
	ones, err := maskOnes(mask, at, size)
	if err != nil {
		return fmt.Errorf("%v: %w", ip, err)
	}
	i.Addresses = append(i.Addresses, Address{Prefix: netip.PrefixFrom(unscoped(ip), ones), VHID: int(m.vhid)})
	return nil
}

// maskOnes is the length of the prefix. The kernel cuts the zeros off a mask's end, and may leave out its family.
func maskOnes(mask []byte, at, size int) (int, error) {
	bytesOf := make([]byte, size)
	if len(mask) > at {
		copy(bytesOf, mask[at:])
	}
	ones := 0
	for ones < 8*size && bytesOf[ones/8]&(0x80>>(ones%8)) != 0 {
		ones++
	}
	whole := make([]byte, size)
	for bit := range ones {
		whole[bit/8] |= 0x80 >> (bit % 8)
	}
	if !bytes.Equal(whole, bytesOf) {
		return 0, fmt.Errorf("netmask %x has a hole", bytesOf)
	}
	return ones, nil
}
