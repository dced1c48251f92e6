package carp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"golang.org/x/net/bpf"

	"certsync/internal/cluster"
)

// calls are the system calls behind a Kernel, bytes in and bytes out, swapped in tests. An error is an errno where the
// kernel said one.
type calls struct {
	// modfind and kldload are modfind(2) and kldload(2).
	modfind, kldload func(name string) error
	// sysctl is sysctlbyname(3): it fills old, and gives how much of it; it sets value where value is not nil.
	sysctl func(name string, old, value []byte) (int, error)
	// control does an ioctl with a request of fixed size on a datagram socket of the family.
	control func(family int, request uint32, arg []byte) error
	// setVHID is SIOCSVH, on a datagram socket of the family, with a carpreq.
	setVHID func(family int, iface [ifNameLen]byte, request []byte) error
	openBPF func(iface string, filter []bpf.RawInstruction) (capture, error)
	// dialCARP, tooOldForNetlink, readVHID and readInterfaces are the reader's.
	dialCARP         func() (*carpConn, error)
	tooOldForNetlink func(error) bool
	readVHID         func(iface string, vhid int) (State, error)
	readInterfaces   func() ([]Interface, error)
}

// kernel is the Kernel of these calls.
func (c *calls) kernel() *Kernel {
	return &Kernel{
		Release:       func() (int, error) { return c.sysctlInt("kern.osreldate") },
		Boot:          c.boot,
		Jail:          c.jail,
		SecureLevel:   func() (int, error) { return c.sysctlInt("kern.securelevel") },
		ModuleLoaded:  c.moduleLoaded,
		LoadModule:    c.loadModule,
		Sysctl:        c.sysctlInt,
		SetSysctl:     c.setSysctlInt,
		Interfaces:    c.readInterfaces,
		VHID:          c.readVHID,
		SetVHID:       c.set,
		AddAddress:    c.addAddress,
		RemoveAddress: c.removeAddress,
		Adverts: func(ctx context.Context, iface string, each func(Advert) bool) error {
			return adverts(ctx, iface, c.openBPF, each)
		},
	}
}

// jail asks where this process runs. Outside of a jail security.jail.vnet is 0, too.
func (c *calls) jail() (Jail, error) {
	jailed, err := c.sysctlInt("security.jail.jailed")
	if err != nil {
		return Jail{}, err
	}
	vnet, err := c.sysctlInt("security.jail.vnet")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Jail{}, err
	}
	return Jail{Jailed: jailed != 0, VNET: jailed != 0 && vnet != 0}, nil
}

// forbidden says what EPERM on a change of the network means here: in a jail without VNET nobody may, elsewhere root.
func (c *calls) forbidden(operation string, err error) error {
	err = fmt.Errorf("%s: %w", operation, err)
	if jail, jailErr := c.jail(); jailErr == nil && jail.Jailed && !jail.VNET {
		return cluster.WithHint(err, "do it on the jail's host: this jail has no network stack of its own (VNET)")
	}
	return cluster.WithHint(err, "run it as root")
}

// changeError says what an errno of a change to an interface means. What is not known keeps its own words.
func (c *calls) changeError(operation, iface string, err error) error {
	switch {
	case errors.Is(err, errNoFamily), errors.Is(err, eprotonosupport):
		return noModule(operation)
	case errors.Is(err, eperm), errors.Is(err, eacces):
		return c.forbidden(operation, err)
	case errors.Is(err, enxio):
		return cluster.WithHint(fmt.Errorf("%s: %s: %w", operation, iface, ErrNoInterface), "see the names with `ifconfig -l`")
	case errors.Is(err, eopnotsupp):
		return cluster.WithHint(fmt.Errorf("%s: %s: %w", operation, iface, ErrNoCARP),
			"put the vhid on an Ethernet interface, a VLAN or a bridge")
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// onSocket does a call on an IPv4 socket, and on an IPv6 one where the kernel has no IPv4.
func onSocket(call func(family int) error) error {
	err := call(familyInet)
	if errors.Is(err, errNoSocket) {
		return call(familyInet6)
	}
	return err
}

// errNoSocket: the kernel has no sockets of the family. It hides the errno: EPROTONOSUPPORT of a call is carp's.
var errNoSocket = errors.New("the kernel has no sockets of this family")

// familyOf is AF_INET or AF_INET6.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return familyInet
	}
	return familyInet6
}
