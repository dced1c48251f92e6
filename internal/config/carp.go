package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// CARP is where the role comes from, and the virtual addresses.
type CARP struct {
	// Role is "auto", which reads CARP, or "static:NODE".
	Role string `yaml:"role"`
	// Settle is how long a node must have been MASTER before it counts as such.
	Settle time.Duration `yaml:"settle"`
	// Preempt tells bootstrap to let the node with the lower advskew take over again when it comes back.
	Preempt bool `yaml:"preempt"`
	// DemoteUnready has CARP put a node that is not ready behind the others, while another is ready, and a node that has
	// just been booted until it has asked the others.
	DemoteUnready bool `yaml:"demote_unready"`
	// VHIDs are the virtual hosts; the first decides the role. See VHIDsOf.
	VHIDs []VHID `yaml:"vhids"`
}

// VHID is a virtual host of carp(4): one number on one interface, with addresses of one family.
type VHID struct {
	// Interface is the name that most nodes know it by; see Node.Interfaces.
	Interface string `yaml:"interface"`
	// ID is from 1 to 255, unique in the network segment.
	ID int `yaml:"vhid"`
	// AdvBase is the time between advertisements, in seconds, 1 to 255.
	AdvBase int `yaml:"advbase"`
	// Addresses are the virtual ones, with their prefix lengths.
	Addresses []netip.Prefix `yaml:"addresses"`
	// PasswordFile holds what keys the advertisements' HMAC; only bootstrap reads it.
	PasswordFile string `yaml:"password_file"`
	// Peer is "" for multicast, or "nodes": unicast to the other node's address.
	Peer string `yaml:"peer"`
}

const (
	roleAuto   = "auto"
	rolePrefix = "static:"
	peerNodes  = "nodes"
)

// maxInterface is IFNAMSIZ without its final NUL, in bytes (net/if.h).
const maxInterface = 15

func defaultVHID() VHID { return VHID{AdvBase: 1} }

// Static is the node that `role: static:NODE` makes MASTER.
func (c CARP) Static() (node string, ok bool) { return strings.CutPrefix(c.Role, rolePrefix) }

// VHIDsOf are the virtual hosts with the interfaces as node calls them, in the order of the file.
func (c *Config) VHIDsOf(node Node) []VHID {
	out := slices.Clone(c.CARP.VHIDs)
	for i := range out {
		if own, ok := node.Interfaces[out[i].Interface]; ok {
			out[i].Interface = own
		}
	}
	return out
}

// PeerOf is where the advertisements of v go from node: not valid for multicast.
func (c *Config) PeerOf(node Node, v VHID) netip.Addr {
	if v.Peer != peerNodes {
		return netip.Addr{}
	}
	for _, n := range c.Peers(node.Name) {
		if address, err := netip.ParseAddr(n.Address); err == nil {
			return address
		}
	}
	return netip.Addr{}
}

func (d *decoder) carp(c *Config) {
	node, static := c.CARP.Static()
	switch {
	case c.CARP.Role == roleAuto:
		if len(c.CARP.VHIDs) == 0 && !d.isBad("carp.vhids") {
			d.failf("carp.vhids", "none: role auto reads the role from them; without CARP, set role to static:NODE, where NODE is to be MASTER")
		}
	case !static:
		d.failf("carp.role", "%.80q: not auto or static:NODE", c.CARP.Role)
	case d.isNoNode(c, node):
		d.failf("carp.role", "%.80q: not one of the nodes (%s)", node, c.nodeNames())
	}
	switch {
	case c.CARP.DemoteUnready && static:
		d.failf("carp.demote_unready", "true with role %.80q: there is no CARP to demote a node in", c.CARP.Role)
	case c.CARP.DemoteUnready && !c.CARP.Preempt:
		d.failf("carp.demote_unready", "true with preempt off: the others leave a demoted MASTER where it is; turn preempt on")
	}
	d.between("carp.settle", c.CARP.Settle, 0, 5*time.Minute)
	d.vhids(c)
	d.interfaces(c)
}

func (d *decoder) vhids(c *Config) {
	numbers, addresses := map[string]int{}, map[string]int{}
	for i := range c.CARP.VHIDs {
		v, at := &c.CARP.VHIDs[i], fmt.Sprintf("carp.vhids[%d]", i)
		d.check(at+".interface", checkInterface(v.Interface))
		if v.ID < 1 || v.ID > 255 {
			d.failf(at+".vhid", "%d: not between 1 and 255", v.ID)
		}
		d.unique(at+".vhid", numbers, fmt.Sprintf("%d on %s", v.ID, v.Interface), i, "carp.vhids")
		if v.AdvBase < 1 || v.AdvBase > 255 {
			d.failf(at+".advbase", "%d: not between 1 and 255", v.AdvBase)
		}
		d.path(at+".password_file", &v.PasswordFile)
		d.virtual(at+".addresses", v.Addresses, addresses, i)
		d.check(at+".peer", c.checkPeer(*v))
	}
}

// virtual checks the addresses of one vhid. Each family has a vhid of its own: the advertisements of each family would
// flip the state that they share, and the HMAC covers all addresses.
func (d *decoder) virtual(path string, addresses []netip.Prefix, seen map[string]int, vhid int) {
	if len(addresses) == 0 && !d.isBad(path) {
		d.failf(path, "none: name at least one")
	}
	for i, p := range addresses {
		at, a := fmt.Sprintf("%s[%d]", path, i), p.Addr()
		switch {
		case !p.IsValid():
		case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.Is4In6():
			d.failf(at, "%s: not an address that hosts can share", p)
		case a.Is4() != addresses[0].Addr().Is4():
			d.failf(at, "%s: another family than %s: give each family a vhid of its own", p, addresses[0])
		default:
			d.unique(at, seen, a.String(), vhid, "carp.vhids")
		}
	}
}

func checkInterface(name string) error {
	switch {
	case name == "":
		return errors.New("missing: the interface that carries the address, such as em0")
	case len(name) > maxInterface || !onlyRunes(name, letters+digits+"._-") || name[0] == '-' || name[0] == '.':
		return fmt.Errorf("%.40q: not the name of an interface", name)
	}
	return nil
}

// checkPeer wants unicast to be possible: two nodes, each with an address of the vhid's family.
func (c *Config) checkPeer(v VHID) error {
	switch {
	case v.Peer == "":
		return nil
	case v.Peer != peerNodes:
		return fmt.Errorf(`%.60q: not "nodes" (unicast to the other node), or "" (multicast)`, v.Peer)
	case len(c.Nodes) != 2:
		return fmt.Errorf("unicast is between two nodes, and there are %d", len(c.Nodes))
	}
	for _, n := range c.Nodes {
		address, err := netip.ParseAddr(n.Address)
		if err != nil || len(v.Addresses) > 0 && address.Is4() != v.Addresses[0].Addr().Is4() {
			return fmt.Errorf("unicast goes to an address of the vhid's family, and %s has %s", n.Name, n.Address)
		}
	}
	return nil
}

// interfaces checks what nodes call the interfaces of the vhids.
func (d *decoder) interfaces(c *Config) {
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		if n.AdvSkew < 0 || n.AdvSkew > 254 {
			d.failf(at+".advskew", "%d: not between 0 and 254", n.AdvSkew)
		}
		for _, name := range slices.Sorted(maps.Keys(n.Interfaces)) {
			path := join(at+".interfaces", name)
			d.check(path, checkInterface(n.Interfaces[name]))
			if !slices.ContainsFunc(c.CARP.VHIDs, func(v VHID) bool { return v.Interface == name }) {
				d.failf(path, "no entry of carp.vhids has the interface %.40q", name)
			}
		}
		if len(n.Interfaces) == 0 {
			continue // told above
		}
		taken := map[string]int{}
		for k, v := range c.VHIDsOf(n) {
			d.unique(at+".interfaces", taken, fmt.Sprintf("vhid %d on %s", v.ID, v.Interface), k, "carp.vhids")
		}
	}
}

// Virtual are the addresses of all vhids.
func (c *Config) Virtual() []netip.Addr {
	var out []netip.Addr
	for _, v := range c.CARP.VHIDs {
		for _, p := range v.Addresses {
			out = append(out, p.Addr())
		}
	}
	return out
}
