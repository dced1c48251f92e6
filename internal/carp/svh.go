package carp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"certsync/internal/cluster"
)

// set gives a vhid its parameters, and makes it where it is not there: by netlink, or by SIOCSVH where the kernel has
// no netlink for carp. An empty password leaves the key as it is. It changes no state: that of the request is INIT,
// which the kernel passes over. What the kernel then has is read back and compared.
func (c *calls) set(iface string, s Settings) error {
	name, err := interfaceName(iface)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return fmt.Errorf("set vhid %d: %w", s.VHID, err)
	}
	operation := fmt.Sprintf("set vhid %d of %s", s.VHID, iface)
	err = c.setByNetlink(iface, s)
	if c.tooOldForNetlink(err) {
		err = c.setByIoctl(name, s)
	}
	if err != nil {
		return c.setError(operation, iface, s, err)
	}
	state, err := c.readVHID(iface, s.VHID)
	if err != nil {
		return fmt.Errorf("%s: read it back: %w", operation, err)
	}
	return wrapf(s.differs(state), "%s: the kernel took it, and now", operation)
}

func (c *calls) setByNetlink(iface string, s Settings) error {
	conn, err := c.dialCARP()
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.set(iface, s)
}

// set is one SET. It is not repeated: after an error of the socket the outcome is unknown, and a look tells.
func (c *carpConn) set(iface string, s Settings) error {
	attrs := s.attributes(iface)
	defer clear(attrs)
	_, err := c.call(c.family, nlmRequest|nlmAck, carpSet, 0, attrs)
	return err
}

// The groups that adverts go to when there is no peer (carp(4)).
var (
	carpGroup  = netip.AddrFrom4([4]byte{224, 0, 0, 18})
	carpGroup6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x12}) // ff02::12
)

// attributes are those of CARP_NL_CMD_SET. All that are not secret are always there: the kernel takes a missing ADVSKEW
// for 0 (seen on 15.1), and a missing peer for the one it has. The key ends in a NUL, as ifconfig sends it.
func (s Settings) attributes(iface string) []byte {
	b := appendAttrString(nil, carpAttrIfName, iface)
	b = appendAttrUint32(b, carpAttrVHID, uint32(s.VHID))
	b = appendAttrUint32(b, carpAttrAdvBase, uint32(s.AdvBase))
	b = appendAttrUint32(b, carpAttrAdvSkew, uint32(s.AdvSkew))
	if len(s.Password) > 0 {
		key := append(bytes.Clone(s.Password), 0)
		b = appendAttr(b, carpAttrKey, key)
		clear(key)
	}
	peer, peer6 := s.peers()
	b = appendAttr(b, carpAttrAddr, peer.AsSlice())
	return appendAttr(b, carpAttrAddr6, peer6.AsSlice())
}

// peers are where the adverts of either family go.
func (s Settings) peers() (peer, peer6 netip.Addr) {
	switch {
	case !s.Peer.IsValid():
		return carpGroup, carpGroup6
	case s.Peer.Is4():
		return s.Peer, carpGroup6
	}
	return carpGroup, s.Peer
}

// errNoPeer: the ioctl of FreeBSD 13 has no field for it.
var errNoPeer = errors.New("unicast to a peer needs FreeBSD 14 or later")

func (c *calls) setByIoctl(iface [ifNameLen]byte, s Settings) error {
	if s.Peer.IsValid() {
		return errNoPeer
	}
	request := s.carpReq()
	defer clear(request)
	return onSocket(func(family int) error { return c.setVHID(family, iface, request) })
}

// carpReq is the struct carpreq for SIOCSVH. The state 0, INIT, leaves the state alone, and an empty key the key.
func (s Settings) carpReq() []byte {
	b := make([]byte, carpReqLen)
	order.PutUint32(b[carpReqCount:], 1)
	order.PutUint32(b[carpReqVHID:], uint32(s.VHID))
	order.PutUint32(b[carpReqAdvSkew:], uint32(s.AdvSkew))
	order.PutUint32(b[carpReqAdvBase:], uint32(s.AdvBase))
	copy(b[carpReqKey:carpReqKey+maxPassword], s.Password)
	return b
}

func (c *calls) setError(operation, iface string, s Settings, err error) error {
	switch {
	case errors.Is(err, errNoPeer):
		return cluster.WithHint(fmt.Errorf("%s: %w", operation, err), "leave `peer` of the vhid empty, for multicast, or upgrade this host")
	case errors.Is(err, einval):
		// The numbers are right: they were checked.
		return cluster.WithHint(fmt.Errorf("%s: the kernel refuses it, as it does where vhid %d is of VRRP: %w", operation, s.VHID, err),
			"look at `ifconfig %s`; where it says vrrp, remove that vhid or take another", iface)
	case errors.Is(err, eaddrnotavail):
		return cluster.WithHint(fmt.Errorf("%s: %s has no multicast, which CARP needs: %w", operation, iface, err),
			"put the vhid on an Ethernet interface, a VLAN or a bridge")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return cluster.WithHint(fmt.Errorf("%s: the kernel did not answer; whether it was set is not known: %w", operation, err), "look at `ifconfig %s`", iface)
	}
	return c.changeError(operation, iface, err)
}

// differs compares what the kernel has with what it was given; nil where all of it is so. What a kernel does not tell,
// as an ioctl the peers, is not compared.
func (s Settings) differs(state State) error {
	peer, peer6 := s.peers()
	switch {
	case state.VHID != s.VHID:
		return fmt.Errorf("the answer is of vhid %d", state.VHID)
	case state.Version != "" && state.Version != "carp":
		return fmt.Errorf("the version is %s, not carp", state.Version)
	case state.AdvBase != s.AdvBase:
		return fmt.Errorf("advbase is %d, not %d", state.AdvBase, s.AdvBase)
	case state.AdvSkew != s.AdvSkew:
		return fmt.Errorf("advskew is %d, not %d", state.AdvSkew, s.AdvSkew)
	case len(s.Password) > 0 && !bytes.Equal(state.Password, s.Password):
		return errors.New("the password is another one")
	case state.Peer.IsValid() && state.Peer != peer:
		return fmt.Errorf("the peer is %s, not %s", state.Peer, peer)
	case state.Peer6.IsValid() && state.Peer6 != peer6:
		return fmt.Errorf("the IPv6 peer is %s, not %s", state.Peer6, peer6)
	}
	return nil
}
