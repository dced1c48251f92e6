package carp

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// fakeKernel has vhid 1 MASTER and vhid 2 BACKUP on em0.
func fakeKernel() *Kernel {
	states := map[string]State{
		"em0/1": {Source: "netlink", VHID: 1, Role: cluster.Master, AdvBase: 1, AdvSkew: 0, Password: cluster.Secret("secret"), Version: "carp",
			Peer: netip.MustParseAddr("224.0.0.18"), Peer6: netip.MustParseAddr("ff02::12")},
		"em0/2": {Source: "netlink", VHID: 2, Role: cluster.Backup, AdvBase: 1, AdvSkew: 100, Version: "carp"},
		"em1/3": {Source: "netlink", VHID: 3, Role: cluster.Init, Version: "vrrp3"},
	}
	return &Kernel{
		VHID: func(iface string, vhid int) (State, error) {
			if s, ok := states[fmt.Sprintf("%s/%d", iface, vhid)]; ok {
				return s, nil
			}
			return State{}, cluster.WithHint(fmt.Errorf("interface %s has no vhid %d: %w", iface, vhid, fs.ErrNotExist), "run `certsync bootstrap`")
		},
		Interfaces: func() ([]Interface, error) {
			return []Interface{{Name: "em0", Up: true, Addresses: []Address{
				{Prefix: netip.MustParsePrefix("192.0.2.1/24")},
				{Prefix: netip.MustParsePrefix("192.0.2.11/32"), VHID: 1},
				{Prefix: netip.MustParsePrefix("192.0.2.10/32"), VHID: 1},
				{Prefix: netip.MustParsePrefix("2001:db8::10/128"), VHID: 2},
			}}, {Name: "em1", Addresses: []Address{{Prefix: netip.MustParsePrefix("198.51.100.1/32"), VHID: 1}}}}, nil
		},
		Sysctl: func(name string) (int, error) {
			switch name {
			case "net.inet.carp.demotion":
				return 240, nil
			case "net.inet.carp.preempt":
				return 0, nil
			}
			return 0, fs.ErrNotExist
		},
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestTheViewHasEveryVHIDWithItsAddresses(t *testing.T) {
	specs := append(append([]Spec{}, testSpecs...), Spec{Interface: "em1", VHID: 3}, Spec{Interface: "em0", VHID: 9})
	got := kernelView(fakeKernel())(t.Context(), specs)
	want := cluster.CARP{Source: "netlink", Demotion: new(240), Preempt: new(false), VHIDs: []cluster.VHID{
		{Interface: "em0", ID: 1, Role: cluster.Master, AdvBase: 1, AdvSkew: new(0), Version: "carp", Addresses: prefixes("192.0.2.10/32", "192.0.2.11/32")},
		{Interface: "em0", ID: 2, Role: cluster.Backup, AdvBase: 1, AdvSkew: new(100), Version: "carp", Addresses: prefixes("2001:db8::10/128")},
		{Interface: "em1", ID: 3, Role: cluster.Init, Version: "vrrp3"},
		{Interface: "em0", ID: 9, Error: "interface em0 has no vhid 9: file does not exist", Hint: "run `certsync bootstrap`"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTheViewSaysWhatCouldNotBeReadAndShowsTheRest(t *testing.T) {
	k := fakeKernel()
	k.Interfaces = func() ([]Interface, error) { return nil, errors.New("no buffer space available") }
	k.Sysctl = func(string) (int, error) { return 0, fs.ErrNotExist }
	view := kernelView(k)(t.Context(), testSpecs)
	if view.Demotion != nil || view.Preempt != nil {
		t.Errorf("demotion %v, preempt %v; want neither", view.Demotion, view.Preempt)
	}
	for _, v := range view.VHIDs {
		if v.Role == cluster.Unknown || v.Addresses != nil || !strings.Contains(v.Error, "list the addresses of em0: no buffer space") || v.Hint == "" {
			t.Errorf("%+v; want its role, and why there are no addresses", v)
		}
	}
}

func TestTheViewTellsByWhatItWasRead(t *testing.T) {
	k := fakeKernel()
	k.VHID = func(_ string, vhid int) (State, error) {
		return State{Source: "ioctl", VHID: vhid, Role: cluster.Backup, AdvBase: 1}, nil
	}
	if view := kernelView(k)(t.Context(), testSpecs); view.Source != "ioctl" {
		t.Errorf("source %q, want ioctl", view.Source)
	}
	k.VHID = func(string, int) (State, error) { return State{}, ErrNoModule }
	view := kernelView(k)(t.Context(), testSpecs)
	if len(view.VHIDs) != 2 || view.VHIDs[1].Error != ErrNoModule.Error() || view.VHIDs[1].Hint == "" || view.Source != "" {
		t.Errorf("%+v; want two entries that tell that carp is not loaded, and what to run", view)
	}
}

func TestAKernelThatAnswersAboutAnotherVHIDIsNotBelieved(t *testing.T) {
	k := fakeKernel()
	k.VHID = func(string, int) (State, error) { return State{VHID: 7, Role: cluster.Master}, nil }
	if role, err := kernelRole(k)(t.Context(), testSpecs[0]); err == nil || role != cluster.Unknown || cluster.HintOf(err) == "" {
		t.Errorf("%v, %v; want Unknown, an error and its mend", role, err)
	}
}

func TestAnAutoOfAGivenKernelAsksIt(t *testing.T) {
	a, err := NewAuto(Config{Node: "proxy1", VHIDs: testSpecs, Kernel: fakeKernel()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if seen, err := a.Role(t.Context()); err != nil || seen != isMaster {
		t.Errorf("%v, %v; want MASTER of proxy1", seen, err)
	}
	if view := a.View(t.Context()); view.Source != "netlink" || len(view.VHIDs) != 2 || view.Role != cluster.Master {
		t.Errorf("%+v; want both vhids by netlink", view)
	}
}

func TestWhereThereIsNoCARPTheRoleIsUnknown(t *testing.T) {
	cause := cluster.WithHint(fmt.Errorf("CARP on plan9: %w", errors.ErrUnsupported), "set carp.role")
	a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs}, failedReadings(cause))
	defer a.Close()
	if seen, err := a.Role(t.Context()); seen != (cluster.Seen{}) || !errors.Is(err, errors.ErrUnsupported) || cluster.HintOf(err) == "" {
		t.Errorf("%v, %v; want Unknown, errors.ErrUnsupported and a mend", seen, err)
	}
	want := cluster.CARP{Error: "CARP on plan9: unsupported operation", Hint: "set carp.role"}
	if view := a.View(t.Context()); !reflect.DeepEqual(view, want) {
		t.Errorf("%+v; want the error and its mend", view)
	}
}

func TestAStaticRoleHasAViewWithoutVHIDs(t *testing.T) {
	s := NewStatic("proxy1", func() (string, error) { return "static:proxy1", nil })
	if view := s.View(t.Context()); !reflect.DeepEqual(view, cluster.CARP{Source: "static", Role: cluster.Master}) {
		t.Errorf("%+v", view)
	}
}

// What FreeBSD has, but for its kernel: a socket of devd, on which each event is a packet.
func TestWatchFollowsDevdLongBeforeThePoll(t *testing.T) {
	d := newDevd(t)
	k := fakeKernel()
	var mu sync.Mutex
	role := cluster.Backup
	k.VHID = func(_ string, vhid int) (State, error) {
		mu.Lock()
		defer mu.Unlock()
		return State{VHID: vhid, Role: role, AdvBase: 1}, nil
	}
	a, err := NewAuto(Config{Node: "proxy1", VHIDs: testSpecs, Kernel: k, Devd: d.path, Poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	var w watched
	done := make(chan struct{})
	go func() {
		a.Watch(t.Context(), w.add)
		close(done)
	}()
	client := d.next(t)
	var want []cluster.Role
	for range 3 {
		for _, next := range []cluster.Role{cluster.Backup, cluster.Master, cluster.Init} {
			mu.Lock()
			role = next
			mu.Unlock()
			send(t, client, "!system=CARP subsystem=1@em0 type="+next.String()+"\n")
			want = append(want, next)
			eventually(t, "Watch shows "+next.String(), func() bool { return slices.Equal(w.roles(), want) })
			if seen, err := a.Role(t.Context()); err != nil || seen.Role != next {
				t.Errorf("%v, %v; want %v", seen, err, next)
			}
		}
	}
	// devd restarts, and a move meanwhile is seen once it is connected again.
	mu.Lock()
	role = cluster.Master
	mu.Unlock()
	client.Close()
	d.next(t)
	eventually(t, "Watch shows MASTER", func() bool { return slices.Equal(w.roles(), append(want, cluster.Master)) })
	a.Close()
	<-done
}
