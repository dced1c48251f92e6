package carp

import (
	"context"
	"net/netip"

	"certsync/internal/cluster"
)

// Kernel is what the running kernel is asked for, and what is done to it. Each is a function field, so that a test
// swaps it; SystemKernel gives those of this host.
type Kernel struct {
	// Release is kern.osreldate, such as 1302001 for 13.2 (porter's handbook, FreeBSD versions).
	Release func() (int, error)
	// Boot tells this run of the kernel from others.
	Boot func() (Boot, error)
	// Jail tells whether this process runs in a jail, and whether in one with a network stack of its own (VNET).
	Jail func() (Jail, error)
	// SecureLevel is kern.securelevel (security(7)); above 0 no module can be loaded.
	SecureLevel func() (int, error)
	// ModuleLoaded asks modfind(2) for carp: it also finds a kernel with carp built in.
	ModuleLoaded func() (bool, error)
	// LoadModule is kldload(2) of carp. Loaded already is no error.
	LoadModule func() error
	// Sysctl and SetSysctl read and write an int sysctl. fs.ErrNotExist where the kernel has no such name, as
	// net.inet.carp.* while carp is not loaded. A write to net.inet.carp.demotion is added to what is there.
	Sysctl    func(name string) (int, error)
	SetSysctl func(name string, value int) error
	// Interfaces lists the interfaces with their addresses and the vhid of each.
	Interfaces func() ([]Interface, error)
	// VHID reads one vhid: fs.ErrNotExist where the interface has no such vhid, ErrNoModule where carp is not loaded,
	// ErrNoInterface where the interface is not there.
	VHID func(iface string, vhid int) (State, error)
	// SetVHID sets a vhid's parameters, and makes the vhid where it is not there; an address follows. It changes no
	// role, and reads back what the kernel then has. An empty password leaves the key as it is.
	SetVHID func(iface string, s Settings) error
	// AddAddress gives the interface an address under a vhid, which must be there; vhid 0 is a plain address
	// (SIOCAIFADDR, SIOCAIFADDR_IN6). An address that is there as it should be is left alone. Any other change of a
	// vhid's addresses drives the vhid through INIT: a failover.
	AddAddress func(iface string, address netip.Prefix, vhid int) error
	// RemoveAddress takes an address away, whatever its prefix length; the last one of a vhid removes the vhid.
	// fs.ErrNotExist where the interface does not have it.
	RemoveAddress func(iface string, address netip.Prefix) error
	// Adverts hands each CARP advertisement seen on the interface, this host's own ones too, to each, until the context
	// ends, which is no error, or each returns false. It needs root.
	Adverts func(ctx context.Context, iface string, each func(Advert) bool) error
}

// Jail is where this process runs.
type Jail struct {
	Jailed bool
	// VNET tells that the jail has a network stack of its own.
	VNET bool
}

// Interface is a network interface.
type Interface struct {
	Name      string
	Up        bool
	Addresses []Address
}

// Address is one of an interface's.
type Address struct {
	Prefix netip.Prefix
	// VHID is 0 for a plain address.
	VHID int
}

// State is what the kernel says of one vhid.
type State struct {
	// Source is the interface to the kernel that told it: "netlink" or "ioctl".
	Source  string
	VHID    int
	Role    cluster.Role
	AdvBase int // seconds
	AdvSkew int // 1/256 seconds
	// Password is the key; the kernel tells it to root only, "" else.
	Password cluster.Secret
	// Version is "carp" or "vrrp3"; "" where the interface to the kernel does not tell.
	Version string
	// Peer and Peer6 are where advertisements go: 224.0.0.18 and ff02::12 unless unicast is set up (FreeBSD 14 and
	// later); not valid where the kernel does not tell.
	Peer, Peer6 netip.Addr
}

// Settings are the parameters of a vhid.
type Settings struct {
	VHID             int
	AdvBase, AdvSkew int
	// Password has at most 19 characters of [A-Za-z0-9_]: FreeBSD cuts a longer one without a word. Empty is the key that
	// the vhid has.
	Password cluster.Secret
	// Peer, where valid, is the other host, told by unicast (FreeBSD 14 and later).
	Peer netip.Addr
}

// Advert is one CARP advertisement, as a host of the segment sent it.
type Advert struct {
	// From is the sender's address: a host takes its first plain address of the family, for IPv6 mostly a link-local
	// one (without a zone here).
	From netip.Addr
	// VLAN is the tag of the frame, 0 for none; a tagged frame is of another segment than the interface itself.
	VLAN             int
	VHID             int
	AdvBase, AdvSkew int
	// AdvSkew has the sender's demotion in it. Counter and MAC are what Advert.Matches checks: HMAC-SHA1 over the vhid,
	// its addresses and the counter, keyed with the password.
	Counter uint64
	MAC     [20]byte
}
