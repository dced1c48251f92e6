package cluster

import (
	"net/netip"
	"time"
)

// CARP is what one node sees of its virtual addresses (carp(4)).
type CARP struct {
	Node string    `json:"node,omitempty"`
	Time time.Time `json:"time,omitzero"`
	// Role is what the source says at this moment; a node counts as MASTER only once that has settled.
	Role Role `json:"role"`
	// Error and Hint tell why the node could not be asked, or why it cannot tell.
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	// Source tells where it was read: "netlink" or "ioctl" (FreeBSD), "addresses" (Linux), "static" (the configuration).
	Source string `json:"source,omitempty"`
	// VHIDs are in the order of the configuration: the first decides the node's role.
	VHIDs []VHID `json:"vhids,omitempty"`
	// Demotion is net.inet.carp.demotion, and Preempt net.inet.carp.preempt, of the host or the VNET jail; nil where
	// there is no such thing.
	Demotion *int  `json:"demotion,omitempty"`
	Preempt  *bool `json:"preempt,omitempty"`
}

// VHID is one virtual host as one node sees it.
type VHID struct {
	Interface string `json:"interface"`
	// ID is the number, 1 to 255.
	ID   int  `json:"vhid"`
	Role Role `json:"role"`
	// AdvBase is in seconds, 1 to 255; 0 where it is not known. AdvSkew is in 1/256 seconds, 0 to 254; nil where it is
	// not known.
	AdvBase int  `json:"advbase,omitempty"`
	AdvSkew *int `json:"advskew,omitempty"`
	// Version is the protocol: "carp" or "vrrp3"; "" where it is not known.
	Version string `json:"version,omitempty"`
	// Addresses are those that the interface has under this vhid, sorted.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Error and Hint tell what could not be read. Role is Unknown where it was the role.
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}
