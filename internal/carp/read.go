package carp

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"certsync/internal/cluster"
)

const (
	// readTimeout bounds the reading of one vhid. The kernel answers in under a millisecond; longer means that
	// something is wrong, and that is no role.
	readTimeout = 2 * time.Second
	// release14 is the first kern.osreldate of a carp that speaks netlink. 13.2 and later can have netlink(4) as a
	// module, without the family carp.
	release14 = 1400000
	// ribTries is how often the dump of the interfaces is fetched anew because it grew in between.
	ribTries = 8
	// ribRoom is for what appears in between: some ten addresses.
	ribRoom = 4096
)

// reader reads the kernel's state. Its fields are the calls, swapped in tests; an error of a call is an errno where
// the kernel said one.
type reader struct {
	// openNetlink makes a NETLINK_GENERIC socket with deadlines.
	openNetlink func() (netlinkConn, error)
	// getVHID is SIOCGVH on a socket of the family, with request as the carpreq, which holds the answer afterwards;
	// errNoSocket where there are no such sockets.
	getVHID func(family int, iface [ifNameLen]byte, request []byte) error
	// rib fetches the dump NET_RT_IFLISTL into b and gives its length; with nil, how much room it needs.
	rib func(b []byte) (int, error)
	// release is kern.osreldate.
	release func() (int, error)
	now     func() time.Time
}

// readVHID reads one vhid: by netlink, or by the ioctl where the kernel has no netlink for carp. Only an answer for
// that vhid, with a state that carp(4) has, is a role.
func (r *reader) readVHID(iface string, vhid int) (State, error) {
	state, err := r.askVHID(iface, vhid)
	if err == nil && state.VHID != vhid {
		err = fmt.Errorf("the kernel answered for vhid %d", state.VHID)
	}
	if err != nil {
		return State{}, explain(err, iface, vhid)
	}
	return state, nil
}

func (r *reader) askVHID(iface string, vhid int) (State, error) {
	if err := checkVHID(vhid); err != nil {
		return State{}, err
	}
	name, err := interfaceName(iface)
	if err != nil {
		return State{}, err
	}
	state, err := r.byNetlink(iface, vhid)
	if r.tooOldForNetlink(err) {
		return r.byIoctl(name, vhid)
	}
	return state, err
}

// tooOldForNetlink tells whether an error of netlink means that the ioctl is to be asked.
func (r *reader) tooOldForNetlink(err error) bool {
	if errors.Is(err, errNoNetlink) {
		return true
	}
	if !errors.Is(err, errNoFamily) {
		return false
	}
	release, err := r.release()
	return err == nil && release < release14
}

// errNoNetlink: the kernel has no netlink sockets.
var errNoNetlink = errors.New("no netlink")

// dialCARP opens a socket, bounds it by readTimeout, and resolves the family. Errors: errNoNetlink, errNoFamily.
func (r *reader) dialCARP() (*carpConn, error) {
	conn, err := r.openNetlink()
	if errors.Is(err, eafnosupport) || errors.Is(err, eprotonosupport) {
		return nil, errNoNetlink
	}
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	c, err := newCARPConn(conn, r.now().Add(readTimeout))
	if err != nil {
		_ = conn.Close() // the cause is err
		return nil, err
	}
	return c, nil
}

func (r *reader) byNetlink(iface string, vhid int) (State, error) {
	c, err := r.dialCARP()
	if err != nil {
		return State{}, err
	}
	defer c.Close()
	states, err := c.get(iface, vhid)
	if said, ok := errors.AsType[refusal](err); ok && said.errno == eopnotsupp {
		// carp was loaded again since the family was resolved, or the interface cannot have it.
		if err = c.resolve(); err == nil {
			states, err = c.get(iface, vhid)
		}
	}
	if err != nil {
		return State{}, err
	}
	if len(states) != 1 {
		return State{}, fmt.Errorf("the kernel gave %d answers for one vhid", len(states))
	}
	return states[0], nil
}

// byIoctl asks for one vhid, which vhidRequest holds.
func (r *reader) byIoctl(iface [ifNameLen]byte, vhid int) (State, error) {
	request, err := vhidRequest(vhid)
	if err != nil {
		return State{}, err
	}
	defer clear(request) // root's answer holds the password
	err = onSocket(func(family int) error { return r.getVHID(family, iface, request) })
	if number, ok := errors.AsType[errno](err); ok {
		return State{}, refusal{number}
	}
	if err != nil {
		return State{}, err
	}
	return vhidReply(request)
}

// readInterfaces lists the interfaces with their addresses.
func (r *reader) readInterfaces() ([]Interface, error) {
	dump, err := r.fetchRIB()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	all, err := interfaces(dump)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	return all, nil
}

// fetchRIB fetches the dump, and again when an interface or an address appeared between asking for its length and
// fetching it.
func (r *reader) fetchRIB() ([]byte, error) {
	for range ribTries {
		size, err := r.rib(nil)
		if err != nil {
			return nil, err
		}
		b := make([]byte, max(0, size)+ribRoom)
		n, err := r.rib(b)
		if errors.Is(err, enomem) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < 0 || n > len(b) {
			return nil, fmt.Errorf("%d bytes came in a buffer of %d", n, len(b))
		}
		return b[:n], nil
	}
	return nil, fmt.Errorf("%w, %d times", enomem, ribTries)
}

// missingVHID is an interface without the vhid; errors.Is finds fs.ErrNotExist.
type missingVHID struct {
	iface string
	vhid  int
}

func (e missingVHID) Error() string {
	return fmt.Sprintf("interface %s has no vhid %d", e.iface, e.vhid)
}

func (missingVHID) Unwrap() error { return fs.ErrNotExist }

// explain turns what the kernel said of a vhid into words, with what to run.
func explain(err error, iface string, vhid int) error {
	said, _ := errors.AsType[refusal](err)
	switch {
	case errors.Is(err, errNoFamily), said.errno == eprotonosupport:
		return noModule(fmt.Sprintf("read vhid %d of %s", vhid, iface))
	case said.errno == enoent:
		return cluster.WithHint(missingVHID{iface, vhid}, "run `certsync bootstrap`: it shows what is missing, and with --apply sets it up")
	case said.errno == enxio:
		return cluster.WithHint(fmt.Errorf("read vhid %d of %s: %w", vhid, iface, ErrNoInterface),
			"see the names with `ifconfig -l`; where this node calls %s otherwise, say so under its entry in nodes: `interfaces: {%s: NAME}`", iface, iface)
	case said.errno == eopnotsupp:
		return cluster.WithHint(fmt.Errorf("read vhid %d of %s: %w", vhid, iface, ErrNoCARP),
			"put the vhid on the Ethernet interface, or the VLAN, that the clients reach")
	}
	return fmt.Errorf("read vhid %d of %s: %w", vhid, iface, err)
}
