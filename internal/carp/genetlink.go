package carp

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"certsync/internal/cluster"
)

// Generic netlink, and its family "carp" (sys/netinet/ip_carp_nl.h; FreeBSD 14 and later).
const (
	genlCtrl           = 16 // the type that resolves families (GENL_ID_CTRL)
	genlVersion        = 2  // of the controller
	genlGetFamily      = 3  // CTRL_CMD_GETFAMILY
	genlAttrFamilyID   = 1  // CTRL_ATTR_FAMILY_ID, u16
	genlAttrFamilyName = 2  // CTRL_ATTR_FAMILY_NAME
	genlHeaderLen      = 4  // struct genlmsghdr: command, version, two reserved bytes

	carpFamily = "carp" // CARP_NL_FAMILY_NAME
	carpGet    = 1      // CARP_NL_CMD_GET
	carpSet    = 2      // CARP_NL_CMD_SET

	carpAttrVHID     = 1  // u32
	carpAttrState    = 2  // u32
	carpAttrAdvBase  = 3  // s32, seconds
	carpAttrAdvSkew  = 4  // s32, 1/256 seconds
	carpAttrKey      = 5  // 20 bytes, told to root only
	carpAttrAddr     = 7  // 4 bytes
	carpAttrAddr6    = 8  // 16 bytes
	carpAttrIfName   = 9  // string; it beats attribute 6, the index
	carpAttrVersion  = 10 // u8, from 15 on: 2 CARP, 3 VRRPv3. Of VRRP the kernel tells 1, 2, 10, 11 and 12 only
	carpKeyLen       = 20 // CARP_KEY_LEN
	netlinkBufferLen = 64 << 10
)

// maxStates is more vhids than an interface can have: a kernel that says more is not believed.
const maxStates = 255

// netlinkConn is a NETLINK_GENERIC socket. One Write is one request, one Read one datagram.
type netlinkConn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// carpConn is a socket whose family "carp" is resolved. It is for one caller at a time, and short-lived: the family's
// number changes when carp is loaded again.
type carpConn struct {
	conn   netlinkConn
	seq    uint32
	family uint16
	buffer []byte
}

// errNoFamily: the kernel has netlink, and in it no family "carp": carp is not loaded, or is from before 14.
var errNoFamily = errors.New("netlink has no family carp")

// newCARPConn resolves the family, and bounds all that follows on the socket by the deadline.
func newCARPConn(conn netlinkConn, deadline time.Time) (*carpConn, error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("bound a netlink socket: %w", err)
	}
	c := &carpConn{conn: conn, buffer: make([]byte, netlinkBufferLen)}
	return c, c.resolve()
}

// Close closes the socket, and forgets the answers: root's hold the password.
func (c *carpConn) Close() error {
	clear(c.buffer)
	return c.conn.Close()
}

func (c *carpConn) resolve() error {
	answer, err := c.call(genlCtrl, nlmRequest|nlmAck, genlGetFamily, genlVersion, appendAttrString(nil, genlAttrFamilyName, carpFamily))
	if said, ok := errors.AsType[refusal](err); ok {
		if err = said.errno; said.errno == enoent {
			return errNoFamily
		}
	}
	if err != nil {
		return fmt.Errorf("resolve family carp: %w", err)
	}
	if c.family, err = familyID(answer); err != nil {
		return fmt.Errorf("resolve family carp: %w", err)
	}
	return nil
}

// get asks for one vhid of an interface, and gives every state that came. Errors: refusal, among others.
func (c *carpConn) get(iface string, vhid int) ([]State, error) {
	attrs := appendAttrString(nil, carpAttrIfName, iface)
	attrs = appendAttrUint32(attrs, carpAttrVHID, uint32(vhid))
	answer, err := c.call(c.family, nlmRequest|nlmAck|nlmDump, carpGet, 0, attrs)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, body := range answer {
			clear(body) // root's hold the password
		}
	}()
	return carpStates(answer)
}

// call sends one request and gives the bodies of its answer; where the kernel says no, the error is a refusal. A
// request that is no dump ends with its acknowledgement, a dump with DONE.
func (c *carpConn) call(kind, flags uint16, command, version byte, attrs []byte) ([][]byte, error) {
	c.seq++
	request := netlinkRequest(kind, flags, c.seq, append([]byte{command, version, 0, 0}, attrs...))
	defer clear(request) // a SET's holds the password
	if n, err := c.conn.Write(request); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	} else if n != len(request) {
		return nil, fmt.Errorf("send: %w", io.ErrShortWrite)
	}
	answer := netlinkAnswer{kind: kind, seq: c.seq, dump: flags&nlmDump == nlmDump}
	for !answer.done {
		n, err := c.conn.Read(c.buffer)
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		if err := answer.take(c.buffer[:n]); err != nil {
			return nil, err
		}
	}
	return answer.bodies, nil
}

// netlinkAnswer collects the answer to one request, datagram by datagram.
type netlinkAnswer struct {
	kind   uint16
	seq    uint32
	dump   bool
	bodies [][]byte
	done   bool
}

// take adds one datagram. What belongs to another request, or to nobody's, is passed over. The kernel's errno ends the
// answer, and so does a datagram that is cut.
func (a *netlinkAnswer) take(datagram []byte) error {
	if len(datagram) == 0 {
		return fmt.Errorf("receive: %w", io.ErrUnexpectedEOF)
	}
	messages, err := splitNetlink(datagram)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.seq != a.seq || a.done {
			continue
		}
		if err := a.add(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *netlinkAnswer) add(m netlinkMessage) error {
	switch m.kind {
	case nlmsgError, nlmsgDone:
		number, err := messageErrno(m)
		if err != nil {
			return err
		}
		if number != 0 {
			return refusal{number}
		}
		a.done = m.kind == nlmsgDone || !a.dump
	case a.kind:
		if len(a.bodies) == maxStates {
			return fmt.Errorf("more than %d answers", maxStates)
		}
		a.bodies = append(a.bodies, append([]byte(nil), m.body...))
	}
	return nil
}

// refusal is the kernel's own answer to a request for a vhid, unlike an errno of the socket that it came through.
type refusal struct{ errno }

// Unwrap gives the number.
func (r refusal) Unwrap() error { return r.errno }

// messageErrno is what ERROR and DONE say. ERROR goes on with the request that it answers.
func messageErrno(m netlinkMessage) (errno, error) {
	if len(m.body) < 4 {
		return 0, fmt.Errorf("netlink message of type %d without its errno: %w", m.kind, errCut)
	}
	return errno(int32(order.Uint32(m.body))), nil
}

// familyID finds the number of the family carp in the controller's answer.
func familyID(bodies [][]byte) (uint16, error) {
	for _, body := range bodies {
		attrs, err := genericAttrs(body)
		if err != nil {
			return 0, err
		}
		named, id := true, uint16(0)
		for _, a := range attrs {
			switch {
			case a.kind == genlAttrFamilyName:
				named = string(a.value) == carpFamily+"\x00"
			case a.kind == genlAttrFamilyID && len(a.value) == 2:
				id = order.Uint16(a.value)
			}
		}
		// The numbers up to 16 are netlink's own.
		if named && id > genlCtrl {
			return id, nil
		}
	}
	return 0, errors.New("the answer has no family number")
}

// genericAttrs are the attributes behind the command's header.
func genericAttrs(body []byte) ([]netlinkAttr, error) {
	if len(body) < genlHeaderLen {
		return nil, fmt.Errorf("generic netlink message of %d bytes: %w", len(body), errCut)
	}
	return splitAttrs(body[genlHeaderLen:])
}

// carpStates decodes the answer to GET.
func carpStates(bodies [][]byte) ([]State, error) {
	states := make([]State, 0, len(bodies))
	for _, body := range bodies {
		attrs, err := genericAttrs(body)
		if err != nil {
			return nil, err
		}
		state, err := carpState(attrs)
		if err != nil {
			return nil, err
		}
		states = append(states, state)
	}
	return states, nil
}

// carpState decodes one vhid. Attributes that it does not know are passed over; a known one with a wrong length, or
// twice, is an error.
func carpState(attrs []netlinkAttr) (State, error) {
	state := State{Source: "netlink"}
	seen := make(map[uint16]bool)
	for _, a := range attrs {
		if want, known := carpAttrLens[a.kind]; !known {
			continue
		} else if seen[a.kind] || len(a.value) != want {
			return State{}, fmt.Errorf("carp attribute %d twice, or of %d bytes instead of %d", a.kind, len(a.value), want)
		}
		seen[a.kind] = true
		if err := state.set(a); err != nil {
			return State{}, err
		}
	}
	if !seen[carpAttrVHID] || !seen[carpAttrState] {
		return State{}, errors.New("carp answer without a vhid or a state")
	}
	return state, nil
}

var carpAttrLens = map[uint16]int{
	carpAttrVHID: 4, carpAttrState: 4, carpAttrAdvBase: 4, carpAttrAdvSkew: 4, carpAttrKey: carpKeyLen,
	carpAttrAddr: 4, carpAttrAddr6: 16, carpAttrVersion: 1,
}

func (s *State) set(a netlinkAttr) (err error) {
	switch a.kind {
	case carpAttrVHID:
		s.VHID, err = within("vhid", order.Uint32(a.value), 1, 255)
	case carpAttrState:
		s.Role, err = roleOf(order.Uint32(a.value))
	case carpAttrAdvBase:
		s.AdvBase, err = within("advbase", order.Uint32(a.value), 0, 255)
	case carpAttrAdvSkew:
		s.AdvSkew, err = within("advskew", order.Uint32(a.value), 0, 255)
	case carpAttrKey:
		s.Password = carpKey(a.value)
	case carpAttrAddr, carpAttrAddr6:
		s.setPeer(a.value)
	case carpAttrVersion:
		s.Version, err = versionOf(a.value[0])
	}
	return err
}

func (s *State) setPeer(value []byte) {
	addr, _ := netip.AddrFromSlice(value)
	if addr.Is4() {
		s.Peer = addr
		return
	}
	s.Peer6 = unscoped(addr)
}

// roleOf is the kernel's number of a state; one that it does not know is no role.
func roleOf(state uint32) (cluster.Role, error) {
	roles := [...]cluster.Role{cluster.Init, cluster.Backup, cluster.Master}
	if state >= uint32(len(roles)) {
		return cluster.Unknown, fmt.Errorf("carp state %d is none of INIT, BACKUP and MASTER", state)
	}
	return roles[state], nil
}

func versionOf(version byte) (string, error) {
	switch version {
	case 2:
		return "carp", nil
	case 3:
		return "vrrp3", nil
	}
	return "", fmt.Errorf("carp version %d is neither 2 (CARP) nor 3 (VRRPv3)", version)
}

func within(what string, value uint32, least, most uint32) (int, error) {
	if value < least || value > most {
		return 0, fmt.Errorf("%s %d is not from %d to %d", what, int32(value), least, most)
	}
	return int(value), nil
}

// carpKey is the password in the kernel's 20 bytes, which end in zeros; nil where there is none or it was not told.
func carpKey(key []byte) cluster.Secret {
	n := 0
	for n < len(key) && key[n] != 0 {
		n++
	}
	if n == 0 {
		return nil
	}
	return append(cluster.Secret(nil), key[:n]...)
}

// unscoped takes away the zone that the kernel embeds in bytes 2 and 3 of a link-local address (the KAME form).
func unscoped(addr netip.Addr) netip.Addr {
	if !addr.IsLinkLocalUnicast() && !addr.IsLinkLocalMulticast() && !addr.IsInterfaceLocalMulticast() || addr.Is4() {
		return addr
	}
	b := addr.As16()
	b[2], b[3] = 0, 0
	return netip.AddrFrom16(b)
}
