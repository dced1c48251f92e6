package carp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"certsync/internal/cluster"
)

// kernelRole reads one vhid's role from a FreeBSD kernel.
func kernelRole(k *Kernel) func(context.Context, Spec) (cluster.Role, error) {
	return func(_ context.Context, s Spec) (cluster.Role, error) {
		state, err := kernelState(k, s)
		return state.Role, err
	}
}

// kernelState reads one vhid, and refuses an answer about another one.
func kernelState(k *Kernel, s Spec) (State, error) {
	state, err := k.VHID(s.Interface, s.VHID)
	if err == nil && state.VHID != s.VHID {
		err = fmt.Errorf("read vhid %d of %s: the kernel answered about vhid %d", s.VHID, s.Interface, state.VHID)
	}
	if err != nil {
		return State{}, seeInterface(s, err)
	}
	return state, nil
}

// seeInterface says what to run, where the error does not.
func seeInterface(s Spec, err error) error {
	if cluster.HintOf(err) != "" {
		return err
	}
	return cluster.WithHint(err, "run `ifconfig %s` to see what the interface has", s.Interface)
}

// kernelView reads all vhids from a FreeBSD kernel, their addresses, and what CARP has as sysctls.
func kernelView(k *Kernel) func(context.Context, []Spec) cluster.CARP {
	return func(ctx context.Context, specs []Spec) cluster.CARP {
		view := cluster.CARP{Demotion: sysctl(k, "net.inet.carp.demotion")}
		if preempt := sysctl(k, "net.inet.carp.preempt"); preempt != nil {
			view.Preempt = new(*preempt != 0)
		}
		interfaces, listed := k.Interfaces()
		for _, s := range specs {
			state, err := kernelState(k, s)
			view.VHIDs = append(view.VHIDs, kernelVHID(s, state, err, interfaces, listed))
			if err == nil {
				view.Source = state.Source
			}
		}
		return view
	}
}

// kernelVHID is one entry of the view; listed is why there are no interfaces.
func kernelVHID(s Spec, state State, err error, interfaces []Interface, listed error) cluster.VHID {
	v := cluster.VHID{Interface: s.Interface, ID: s.VHID}
	if err != nil {
		v.Error, v.Hint = texts(err)
		return v
	}
	if listed != nil {
		v.Error, v.Hint = texts(seeInterface(s, fmt.Errorf("list the addresses of %s: %w", s.Interface, listed)))
	}
	v.Role, v.Version, v.Addresses = state.Role, state.Version, addressesUnder(interfaces, s)
	if state.AdvBase != 0 { // VRRP has none, nor an advskew
		v.AdvBase, v.AdvSkew = state.AdvBase, new(state.AdvSkew)
	}
	return v
}

// sysctl is nil where it cannot be read.
func sysctl(k *Kernel, name string) *int {
	value, err := k.Sysctl(name)
	if err != nil {
		return nil
	}
	return &value
}

// addressesUnder lists the addresses that the interface has under the vhid, sorted.
func addressesUnder(interfaces []Interface, s Spec) []netip.Prefix {
	var under []netip.Prefix
	for _, i := range interfaces {
		if i.Name != s.Interface {
			continue
		}
		for _, a := range i.Addresses {
			if a.VHID == s.VHID {
				under = append(under, a.Prefix)
			}
		}
	}
	sortPrefixes(under)
	return under
}

// sortPrefixes sorts by address.
func sortPrefixes(prefixes []netip.Prefix) {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

// texts are an error and its mend, as an entry of the view has them.
func texts(err error) (text, hint string) {
	if err == nil {
		return "", ""
	}
	return err.Error(), cluster.HintOf(err)
}

// failedReadings tell nothing but why.
func failedReadings(err error) readings {
	return readings{
		role: func(context.Context, Spec) (cluster.Role, error) { return cluster.Unknown, err },
		view: func(context.Context, []Spec) (view cluster.CARP) {
			view.Error, view.Hint = texts(err)
			return view
		},
	}
}
