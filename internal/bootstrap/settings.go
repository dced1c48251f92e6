package bootstrap

import (
	"net/netip"
	"path/filepath"

	"certsync/internal/config"
)

// Settings are what the configuration says of one node.
type Settings struct {
	Node string
	// VHIDs are in the order of the configuration, with the node's own names of interfaces.
	VHIDs []VHID
	// Preempt is net.inet.carp.preempt.
	Preempt bool
	// DemoteUnready lets the service write net.inet.carp.demotion.
	DemoteUnready bool
	// Others are the addresses of the other nodes, whose advertisements are ours.
	Others []netip.Addr
	// Own are the addresses of this node.
	Own []netip.Addr
	// User is the service's, and its group has the same name.
	User string
	// ConfigDir is the folder of the configuration file.
	ConfigDir, StateDir, RunDir string
	// HAProxy has one entry for each.
	HAProxy []HAProxy
}

// VHID is one virtual host to be.
type VHID struct {
	Interface        string
	ID               int
	AdvBase, AdvSkew int
	Addresses        []netip.Prefix
	PasswordFile     string
	// Peer is where advertisements go; not valid for multicast.
	Peer netip.Addr
}

// HAProxy is what bootstrap needs to know of one.
type HAProxy struct {
	Config, BundleDir, BundleGroup string
}

// SettingsOf reads the settings of node from a configuration whose file is at path.
func SettingsOf(c *config.Config, node config.Node, path string) Settings {
	s := Settings{
		Node: node.Name, Preempt: c.CARP.Preempt, DemoteUnready: c.CARP.DemoteUnready, User: c.SSH.User,
		ConfigDir: filepath.Dir(path), StateDir: c.StateDir, RunDir: c.RunDir,
	}
	for _, v := range c.VHIDsOf(node) {
		s.VHIDs = append(s.VHIDs, VHID{
			Interface: v.Interface, ID: v.ID, AdvBase: v.AdvBase, AdvSkew: node.AdvSkew,
			Addresses: v.Addresses, PasswordFile: v.PasswordFile, Peer: c.PeerOf(node, v),
		})
	}
	s.Own = addresses(node)
	s.Others = addresses(c.Peers(node.Name)...)
	for _, x := range c.HAProxy {
		s.HAProxy = append(s.HAProxy, HAProxy{Config: x.Config, BundleDir: x.BundleDir, BundleGroup: x.BundleGroup})
	}
	return s
}

// addresses are those of nodes that have one, and no host name.
func addresses(nodes ...config.Node) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// family is inet or inet6, as ifconfig(8) calls it.
func (v VHID) family() string { return family(v.Addresses[0].Addr()) }
