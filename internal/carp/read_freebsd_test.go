package carp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"certsync/internal/cluster"
)

// The list of the net package, from NET_RT_IFLIST, is the judge.
func TestTheRunningKernelsInterfacesAreListed(t *testing.T) {
	all, err := readInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, i := range all {
		got = append(got, fmt.Sprint(i.Name, " up ", i.Up))
		for _, a := range i.Addresses {
			got = append(got, i.Name+" "+a.Prefix.String())
		}
	}
	theirs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range theirs {
		want = append(want, fmt.Sprint(i.Name, " up ", i.Flags&net.FlagUp != 0))
		addrs, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				want = append(want, i.Name+" "+p.String())
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(got) == 0 || !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTheRunningKernelGivesNoRoleForWhatIsNotThere(t *testing.T) {
	for iface, sentinel := range map[string]error{"nope0": ErrNoInterface, "lo0": ErrNoCARP} {
		state, err := readVHID(iface, 1)
		if state.Role != cluster.Unknown || !errors.Is(err, sentinel) && !errors.Is(err, ErrNoModule) || cluster.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", iface, state, err)
		}
	}
	if state, err := readVHID("lo0", 0); !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("vhid 0: %+v, %v", state, err)
	}
}

func TestTheRunningKernelsVHIDsAreReadTheSameByBothWays(t *testing.T) {
	all, err := readInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, i := range all {
		for _, a := range i.Addresses {
			if a.VHID == 0 {
				continue
			}
			state, err := readVHID(i.Name, a.VHID)
			if err != nil || state.VHID != a.VHID || state.Role == cluster.Unknown {
				t.Errorf("vhid %d of %s: %+v, %v", a.VHID, i.Name, state, err)
			}
			name, _ := interfaceName(i.Name)
			byIoctl, err := kernelReader.byIoctl(name, a.VHID)
			if err == nil && (byIoctl.Role != state.Role || byIoctl.AdvSkew != state.AdvSkew || byIoctl.AdvBase != state.AdvBase) {
				t.Errorf("vhid %d of %s: %+v, and by ioctl %+v", a.VHID, i.Name, state, byIoctl)
			}
			read++
		}
	}
	if read == 0 && os.Getenv("CI") == "true" {
		t.Fatal("this host has no vhid")
	}
	if read == 0 {
		t.Skip("this host has no vhid")
	}
}
