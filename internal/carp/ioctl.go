package carp

import (
	"errors"
	"fmt"
)

// The ioctl interface (sys/netinet/ip_carp.h, FreeBSD 10 to 15; 16 has netlink only): SIOCGVH with a struct ifreq of
// 32 bytes, whose ifr_data, at 16, points to a struct carpreq of 40 bytes; the same on amd64 and arm64.
const (
	ifNameLen = 16 // IFNAMSIZ, with the final NUL

	carpReqLen     = 40 // struct carpreq: int32 in the host's order, then the key
	carpReqCount   = 0
	carpReqVHID    = 4
	carpReqState   = 8
	carpReqAdvSkew = 12
	carpReqAdvBase = 16
	carpReqKey     = 20
)

// vhidRequest is a carpreq that asks for one vhid. It is made here only, and never for vhid 0, "all": with room for
// fewer vhids than the interface has, that call panics a 13.2 kernel, even unprivileged, and 15.1 answers with bytes
// of its stack.
func vhidRequest(vhid int) ([]byte, error) {
	if err := checkVHID(vhid); err != nil {
		return nil, err
	}
	b := make([]byte, carpReqLen)
	order.PutUint32(b[carpReqCount:], 1)
	order.PutUint32(b[carpReqVHID:], uint32(vhid))
	return b, nil
}

// vhidReply decodes the carpreq that came back. The ioctl does not tell the protocol's version, nor the peers.
func vhidReply(b []byte) (State, error) {
	if len(b) != carpReqLen {
		return State{}, fmt.Errorf("carpreq of %d bytes, not %d", len(b), carpReqLen)
	}
	if count := int32(order.Uint32(b[carpReqCount:])); count != 1 {
		return State{}, fmt.Errorf("carpreq with the count %d, not 1", count)
	}
	vhid, errVHID := within("vhid", order.Uint32(b[carpReqVHID:]), 1, 255)
	role, errRole := roleOf(order.Uint32(b[carpReqState:]))
	base, errBase := within("advbase", order.Uint32(b[carpReqAdvBase:]), 0, 255)
	skew, errSkew := within("advskew", order.Uint32(b[carpReqAdvSkew:]), 0, 255)
	if err := errors.Join(errVHID, errRole, errBase, errSkew); err != nil {
		return State{}, err
	}
	return State{Source: "ioctl", VHID: vhid, Role: role, AdvBase: base, AdvSkew: skew, Password: carpKey(b[carpReqKey:])}, nil
}

// interfaceName is a name as the kernel takes it, up to 15 characters and a NUL.
func interfaceName(name string) (b [ifNameLen]byte, err error) {
	if err := checkInterface(name); err != nil {
		return b, err
	}
	copy(b[:], name)
	return b, nil
}
