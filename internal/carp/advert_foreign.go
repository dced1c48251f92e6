package carp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// ErrForeign: a host that is none of ours uses the vhid in the segment. It must be unique there: the vhid is the last
// byte of the MAC address 00:00:5e:00:01:xx that the MASTER answers with.
var ErrForeign = errors.New("vhid is used by another host")

// Group is a set of hosts that share virtual addresses: who has the same password and addresses is one of them.
type Group struct {
	Password  cluster.Secret
	Addresses []netip.Prefix
}

// Foreign judges the adverts that were seen on an interface before the vhid is taken there: it is an error that wraps
// ErrForeign where a host other than ours sent one of this vhid. Ours is a sender that has an address of own (those of
// the nodes and of this host), and one that is in a group: the group that is wanted, and the one that the interface has
// now, so that a pair whose addresses or password change one node at a time does not refuse itself. (By address alone
// the peer cannot be told: it sends IPv6 adverts from a link-local address, which no configuration has.)
// Adverts of other vhids and of tagged frames, which are other segments, say nothing.
func Foreign(adverts []Advert, vhid int, own []netip.Addr, groups ...Group) error {
	var senders []string
	for _, a := range adverts {
		if a.VHID != vhid || a.VLAN != 0 || slices.Contains(own, a.From) || inAny(groups, a) {
			continue
		}
		if from := a.From.String(); !slices.Contains(senders, from) {
			senders = append(senders, from)
		}
	}
	if len(senders) == 0 {
		return nil
	}
	err := fmt.Errorf("vhid %d: %s advertises it with other addresses or another password: %w", vhid, strings.Join(senders, ", "), ErrForeign)
	return cluster.WithHint(err, "take a vhid that is free in this segment; or, where the sender is one of these nodes, make its addresses and password the same")
}

func inAny(groups []Group, a Advert) bool {
	return slices.ContainsFunc(groups, func(g Group) bool { return a.Matches(g.Password, g.Addresses) })
}
