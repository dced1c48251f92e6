package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"certsync/internal/cluster"
)

// Flags of an address on Linux (linux/if_addr.h) with which it is not usable: it is still looked for a duplicate, or
// one was found. IFA_F_OPTIMISTIC is usable while it is tentative (RFC 4429).
const (
	ifafOptimistic = 0x04
	ifafDADFailed  = 0x08
	ifafTentative  = 0x40
)

// link is an interface of Linux with its addresses.
type link struct {
	// up tells that it is up and has its carrier (IFF_UP and IFF_RUNNING).
	up        bool
	addresses []netip.Addr
}

// linkReader reads an interface. ErrNoInterface where there is none of that name.
type linkReader func(ctx context.Context, name string) (link, error)

// addressRole is the role by who has the virtual addresses: MASTER has all of them, BACKUP none. An interface that is
// down is INIT, as CARP's own state is: whatever addresses it keeps, nobody reaches them.
func addressRole(read linkReader) func(context.Context, Spec) (cluster.Role, error) {
	return func(ctx context.Context, s Spec) (cluster.Role, error) {
		role, _, err := presence(ctx, read, s)
		return role, err
	}
}

// presence tells the role of one vhid, and which of its addresses the interface has.
func presence(ctx context.Context, read linkReader, s Spec) (cluster.Role, []netip.Prefix, error) {
	if len(s.Addresses) == 0 {
		err := cluster.Usage(fmt.Errorf("vhid %d on %s: it has no addresses, and on Linux who has them is MASTER", s.VHID, s.Interface))
		return cluster.Unknown, nil, cluster.WithHint(err, "give the vhid its addresses in carp.vhids")
	}
	l, err := read(ctx, s.Interface)
	if err != nil {
		return cluster.Unknown, nil, linkError(s, err)
	}
	var there, missing []netip.Prefix
	for _, p := range s.Addresses {
		if slices.Contains(l.addresses, p.Addr()) {
			there = append(there, p)
		} else {
			missing = append(missing, p)
		}
	}
	sortPrefixes(there)
	switch {
	case !l.up:
		return cluster.Init, there, nil
	case len(missing) == 0:
		return cluster.Master, there, nil
	case len(there) == 0:
		return cluster.Backup, nil, nil
	}
	err = fmt.Errorf("vhid %d on %s: it has %s and not %s", s.VHID, s.Interface, addressList(there), addressList(missing))
	return cluster.Unknown, there, cluster.WithHint(err, "run `ip addr show dev %s`, and have keepalived or ucarp add and remove all addresses of the vhid together", s.Interface)
}

func linkError(s Spec, err error) error {
	err = fmt.Errorf("vhid %d on %s: %w", s.VHID, s.Interface, err)
	if errors.Is(err, ErrNoInterface) {
		return cluster.WithHint(err, "run `ip link` for the names that there are; set the interface in carp.vhids, or what this node calls it in its interfaces")
	}
	return cluster.WithHint(err, "run `ip addr show dev %s`", s.Interface)
}

// addressView is the view by who has the virtual addresses. Neither the parameters of the vhids nor what CARP has as
// sysctls are known then.
func addressView(read linkReader) func(context.Context, []Spec) cluster.CARP {
	return func(ctx context.Context, specs []Spec) cluster.CARP {
		view := cluster.CARP{Source: "addresses"}
		for _, s := range specs {
			v := cluster.VHID{Interface: s.Interface, ID: s.VHID}
			role, there, err := presence(ctx, read, s)
			v.Role, v.Addresses = role, there
			v.Error, v.Hint = texts(err)
			view.VHIDs = append(view.VHIDs, v)
		}
		return view
	}
}

// linuxSays is what a datagram of rtnetlink's groups says. Only an address that goes is told as a move: one that is
// told again (its lifetime was renewed) did not go.
func linuxSays(datagram []byte, first Spec) notice {
	return rtnlSays(datagram, func(kind uint16, a ifaddr) bool {
		return kind == rtnlDelAddr && hasAddress(first, a.prefix.Addr())
	})
}

// addressDump asks for all addresses of both families (rtnetlink(7), RTM_GETADDR).
func addressDump(seq uint32) []byte {
	return netlinkRequest(rtnlGetAddr, nlmRequest|nlmDump, seq, make([]byte, ifaddrLen))
}

// nlmDumpIntr is NLM_F_DUMP_INTR: the dump changed while it was made.
const nlmDumpIntr = 0x10

// errDumpChanged: the addresses changed while they were listed; the list may lack some.
var errDumpChanged = errors.New("the addresses changed while they were listed")

// decodeDump takes one datagram of the answer to addressDump: the usable addresses of the interface, and whether it was
// the last.
func decodeDump(datagram []byte, seq, index uint32) (found []netip.Addr, done bool, err error) {
	messages, err := splitNetlink(datagram)
	if err != nil {
		return nil, false, err
	}
	for _, m := range messages {
		if m.seq != seq {
			continue // of an earlier question
		}
		if m.flags&nlmDumpIntr != 0 {
			return nil, false, errDumpChanged
		}
		switch m.kind {
		case nlmsgDone, nlmsgError:
			return found, true, dumpError(m)
		case rtnlNewAddr:
			a, err := decodeIfaddr(m.body)
			if err != nil {
				return nil, false, err
			}
			if a.index == index && usable(a.flags) {
				found = append(found, a.prefix.Addr())
			}
		}
	}
	return found, false, nil
}

// usable tells whether a process could serve on an address with these flags.
func usable(flags uint32) bool {
	if flags&ifafDADFailed != 0 {
		return false
	}
	return flags&ifafTentative == 0 || flags&ifafOptimistic != 0
}

// dumpError is what the message that ends a dump says: a number, 0 for success, negative on Linux.
func dumpError(m netlinkMessage) error {
	if len(m.body) < 4 {
		return fmt.Errorf("list the addresses: an end of %d bytes: %w", len(m.body), errCut)
	}
	if code := int32(order.Uint32(m.body)); code != 0 {
		return fmt.Errorf("list the addresses: error %d of errno(3)", -int64(code))
	}
	return nil
}

// dumpTries is how often a list that changed while it was made is asked for.
const dumpTries = 5

// retryDump asks again, with another number, where the addresses changed while they were listed.
func retryDump(ctx context.Context, dump func(seq uint32) ([]netip.Addr, error)) (found []netip.Addr, err error) {
	for seq := range uint32(dumpTries) {
		if found, err = dump(seq + 1); !errors.Is(err, errDumpChanged) {
			break
		}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return found, err
}

// readDump reads the answer to addressDump, whatever is left of earlier ones included.
func readDump(r io.Reader, seq, index uint32) ([]netip.Addr, error) {
	var all []netip.Addr
	buf := make([]byte, messageSize)
	for {
		n, err := r.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("list the addresses: %w", err)
		}
		found, done, err := decodeDump(buf[:n], seq, index)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
		if done {
			return all, nil
		}
	}
}
