package carp

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Netlink as FreeBSD speaks it (netlink(4), RFC 3549): the layout is Linux's, in the order of the host's bytes, which
// is little-endian on both architectures that certsync is built for. The error numbers are positive, unlike Linux's.
const (
	nlmsgError = 2 // NLMSG_ERROR; with the number 0 it is an acknowledgement
	nlmsgDone  = 3 // NLMSG_DONE

	nlmRequest = 0x1   // NLM_F_REQUEST
	nlmAck     = 0x4   // NLM_F_ACK
	nlmDump    = 0x300 // NLM_F_DUMP: NLM_F_ROOT | NLM_F_MATCH

	nlHeaderLen   = 16     // struct nlmsghdr
	nlAttrLen     = 4      // struct nlattr
	nlAttrTypeMax = 0x3fff // above it are NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

var order = binary.LittleEndian

// errCut is an answer that ends in the middle: a buffer was too short for it, and the kernel does not tell.
var errCut = errors.New("the answer is cut")

// netlinkMessage is one of a datagram's.
type netlinkMessage struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// netlinkAttr is one of a message's attributes.
type netlinkAttr struct {
	kind  uint16
	value []byte
}

// splitNetlink gives the messages of one datagram. With errCut, or a length that cannot be, it gives none: what a cut
// datagram says in its first half is not known to hold.
func splitNetlink(datagram []byte) ([]netlinkMessage, error) {
	var messages []netlinkMessage
	for rest := datagram; len(rest) > 0; {
		if len(rest) < nlHeaderLen {
			return nil, fmt.Errorf("netlink message of %d bytes: %w", len(rest), errCut)
		}
		length := uint64(order.Uint32(rest))
		if length < nlHeaderLen {
			return nil, fmt.Errorf("netlink message that claims %d bytes, less than its header", length)
		}
		if length > uint64(len(rest)) {
			return nil, fmt.Errorf("netlink message of %d bytes, %d came: %w", length, len(rest), errCut)
		}
		messages = append(messages, netlinkMessage{
			kind: order.Uint16(rest[4:]), flags: order.Uint16(rest[6:]), seq: order.Uint32(rest[8:]), body: rest[nlHeaderLen:length],
		})
		rest = rest[min(align4(length), uint64(len(rest))):]
	}
	return messages, nil
}

// splitAttrs gives the attributes of a message or of a nested attribute.
func splitAttrs(b []byte) ([]netlinkAttr, error) {
	var attrs []netlinkAttr
	for len(b) > 0 {
		if len(b) < nlAttrLen {
			return nil, fmt.Errorf("netlink attribute of %d bytes: %w", len(b), errCut)
		}
		length, kind := uint64(order.Uint16(b)), order.Uint16(b[2:])&nlAttrTypeMax
		if length < nlAttrLen {
			return nil, fmt.Errorf("netlink attribute %d that claims %d bytes, less than its header", kind, length)
		}
		if length > uint64(len(b)) {
			return nil, fmt.Errorf("netlink attribute %d of %d bytes, %d came: %w", kind, length, len(b), errCut)
		}
		attrs = append(attrs, netlinkAttr{kind, b[nlAttrLen:length]})
		b = b[min(align4(length), uint64(len(b))):]
	}
	return attrs, nil
}

// netlinkRequest is one message, header and body.
func netlinkRequest(kind, flags uint16, seq uint32, body []byte) []byte {
	b := make([]byte, nlHeaderLen, nlHeaderLen+len(body))
	order.PutUint32(b, uint32(nlHeaderLen+len(body)))
	order.PutUint16(b[4:], kind)
	order.PutUint16(b[6:], flags)
	order.PutUint32(b[8:], seq)
	return append(b, body...) // the port, 12 to 15, stays 0: the kernel
}

// appendAttr adds one attribute, and the zeros that align the next.
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	length := nlAttrLen + len(value)
	b = order.AppendUint16(b, uint16(length))
	b = order.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, int(align4(uint64(length)))-length)...)
}

// appendAttrString adds a string, which ends in a NUL: without one the kernel says EINVAL.
func appendAttrString(b []byte, kind uint16, value string) []byte {
	return appendAttr(b, kind, append([]byte(value), 0))
}

// appendAttrUint32 adds a number of 32 bits.
func appendAttrUint32(b []byte, kind uint16, value uint32) []byte {
	return appendAttr(b, kind, order.AppendUint32(nil, value))
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }
