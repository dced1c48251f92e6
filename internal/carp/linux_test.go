package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// linkOf is an interface that is up and has these addresses.
func linkOf(addresses ...string) linkReader {
	l := link{up: true}
	for _, a := range addresses {
		l.addresses = append(l.addresses, netip.MustParseAddr(a))
	}
	return func(context.Context, string) (link, error) { return l, nil }
}

var two = Spec{Interface: "eth0", VHID: 1, Addresses: prefixes("192.0.2.10/32", "2001:db8::10/128")}

func TestMasterIsWhoHasAllVirtualAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		read  linkReader
		role  cluster.Role
		there []netip.Prefix
	}{
		"all":               {linkOf("192.0.2.1", "192.0.2.10", "2001:db8::10", "fe80::1"), cluster.Master, prefixes("192.0.2.10/32", "2001:db8::10/128")},
		"all, twice":        {linkOf("192.0.2.10", "2001:db8::10", "192.0.2.10"), cluster.Master, prefixes("192.0.2.10/32", "2001:db8::10/128")},
		"none":              {linkOf("192.0.2.1", "192.0.2.100", "2001:db8::1"), cluster.Backup, nil},
		"no address at all": {linkOf(), cluster.Backup, nil},
	} {
		role, there, err := presence(t.Context(), c.read, two)
		if err != nil || role != c.role || !slices.Equal(there, c.there) {
			t.Errorf("%s: %v with %v, %v; want %v with %v", name, role, there, err, c.role, c.there)
		}
	}
}

func TestSomeOfTheAddressesAreNoRoleButAnErrorThatNamesThem(t *testing.T) {
	role, there, err := presence(t.Context(), linkOf("192.0.2.10", "192.0.2.1"), two)
	if role != cluster.Unknown || !slices.Equal(there, prefixes("192.0.2.10/32")) || err == nil {
		t.Fatalf("%v with %v, %v; want Unknown", role, there, err)
	}
	if text := err.Error(); text != "vhid 1 on eth0: it has 192.0.2.10 and not 2001:db8::10" || !strings.Contains(cluster.HintOf(err), "ip addr show dev eth0") {
		t.Errorf("%q (%q)", text, cluster.HintOf(err))
	}
}

func TestAnInterfaceThatIsDownIsInINIT(t *testing.T) {
	for _, addresses := range [][]string{{"192.0.2.10", "2001:db8::10"}, {"192.0.2.10"}, nil} {
		read := linkOf(addresses...)
		down := func(ctx context.Context, name string) (link, error) {
			l, err := read(ctx, name)
			l.up = false
			return l, err
		}
		if role, _, err := presence(t.Context(), down, two); role != cluster.Init || err != nil {
			t.Errorf("with %v: %v, %v; want INIT", addresses, role, err)
		}
	}
}

func TestWhatCannotBeReadOnLinuxIsUnknownWithAMend(t *testing.T) {
	for name, c := range map[string]struct {
		spec  Spec
		read  linkReader
		cause error
	}{
		"no interface": {two, func(context.Context, string) (link, error) { return link{}, ErrNoInterface }, ErrNoInterface},
		"a refusal":    {two, func(context.Context, string) (link, error) { return link{}, errDumpChanged }, errDumpChanged},
		"no addresses": {Spec{Interface: "eth0", VHID: 1}, linkOf("192.0.2.10"), cluster.ErrUsage},
	} {
		role, err := addressRole(c.read)(t.Context(), c.spec)
		if role != cluster.Unknown || !errors.Is(err, c.cause) || cluster.HintOf(err) == "" {
			t.Errorf("%s: %v, %v (%q)", name, role, err, cluster.HintOf(err))
		}
	}
}

func TestTheViewOnLinuxShowsEachVHID(t *testing.T) {
	read := func(ctx context.Context, name string) (link, error) {
		if name == "eth9" {
			return link{}, ErrNoInterface
		}
		return linkOf("192.0.2.11", "192.0.2.10")(ctx, name)
	}
	specs := []Spec{
		{Interface: "eth0", VHID: 1, Addresses: prefixes("192.0.2.11/24", "192.0.2.10/32")},
		{Interface: "eth9", VHID: 2, Addresses: prefixes("2001:db8::10/128")},
		{Interface: "eth0", VHID: 3, Addresses: prefixes("2001:db8::10/128")},
	}
	got := addressView(read)(t.Context(), specs)
	if hint := &got.VHIDs[1].Hint; *hint == "" {
		t.Error("no mend for an interface that is not there")
	} else {
		*hint = ""
	}
	want := cluster.CARP{Source: "addresses", VHIDs: []cluster.VHID{
		{Interface: "eth0", ID: 1, Role: cluster.Master, Addresses: prefixes("192.0.2.10/32", "192.0.2.11/24")},
		{Interface: "eth9", ID: 2, Error: "vhid 2 on eth9: no such interface"},
		{Interface: "eth0", ID: 3, Role: cluster.Backup},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// v4 and v6 are the attributes of an address as Linux gives them.
func v4(address string, flags uint32) []byte {
	ip := netip.MustParseAddr(address).AsSlice()
	b := appendAttr(nil, ifaAddress, ip)
	b = appendAttr(b, ifaLocal, ip)
	b = appendAttr(b, ifaLabel, []byte("eth0:1\x00"))
	return appendAttrUint32(b, ifaFlags, flags)
}

func v6(address string, flags uint32) []byte {
	b := appendAttr(nil, ifaAddress, netip.MustParseAddr(address).AsSlice())
	return appendAttrUint32(b, ifaFlags, flags)
}

func done(seq uint32, code int32) []byte {
	return netlinkRequest(nlmsgDone, 2, seq, order.AppendUint32(nil, uint32(code)))
}

const permanent = 0x80 // IFA_F_PERMANENT

func TestADumpGivesTheUsableAddressesOfTheInterface(t *testing.T) {
	datagram := slices.Concat(
		addressMessage(rtnlNewAddr, 2, 7, 1, 8, permanent, v4("127.0.0.1", permanent)),
		addressMessage(rtnlNewAddr, 2, 7, 2, 24, permanent, v4("192.0.2.10", permanent)),
		addressMessage(rtnlNewAddr, 2, 6, 2, 24, permanent, v4("192.0.2.66", permanent)), // of an earlier question
		addressMessage(rtnlNewAddr, 2, 7, 2, 32, 0, appendAttr(appendAttr(nil, ifaAddress, []byte{192, 0, 2, 99}), ifaLocal, []byte{192, 0, 2, 11})),
		addressMessage(rtnlNewAddr, 2, 7, 2, 128, 0, v6("2001:db8::1", permanent|ifafTentative)),
		addressMessage(rtnlNewAddr, 2, 7, 2, 128, 0, v6("2001:db8::2", permanent|ifafDADFailed)),
		addressMessage(rtnlNewAddr, 2, 7, 2, 128, 0, v6("2001:db8::3", ifafTentative|ifafOptimistic)),
		addressMessage(rtnlNewAddr, 2, 7, 2, 128, 0, v6("2001:db8::4", 0x20|permanent)), // deprecated: keepalived's are
		addressMessage(rtnlNewAddr, 2, 7, 2, 128, ifafTentative, appendAttr(nil, ifaAddress, netip.MustParseAddr("2001:db8::5").AsSlice())),
		addressMessage(rtnlNewLink, 2, 7, 2, 0, 0, nil),
	)
	var want []netip.Addr
	for _, a := range []string{"192.0.2.10", "192.0.2.11", "2001:db8::3", "2001:db8::4"} {
		want = append(want, netip.MustParseAddr(a))
	}
	got, ended, err := decodeDump(datagram, 7, 2)
	if err != nil || ended || !slices.Equal(got, want) {
		t.Errorf("%v, ended %v, %v; want %v", got, ended, err, want)
	}
	got, err = readDump(&scripted{results: []result{{packet: string(datagram)}, {packet: string(done(6, 0))}, {packet: string(done(7, 0))}}}, 7, 2)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("over three datagrams: %v, %v; want %v", got, err, want)
	}
}

func TestTheQuestionForAllAddresses(t *testing.T) {
	// struct nlmsghdr: 24 bytes, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, number 7, port 0; struct ifaddrmsg of AF_UNSPEC.
	if got := fmt.Sprintf("%x", addressDump(7)); got != "180000001600010307000000000000000000000000000000" {
		t.Error(got)
	}
}

func TestADumpThatFailsGivesNothing(t *testing.T) {
	address := addressMessage(rtnlNewAddr, 2, 7, 2, 24, permanent, v4("192.0.2.10", permanent))
	for name, c := range map[string]struct {
		datagram []byte
		cause    error // nil for any
	}{
		"it changed meanwhile":    {addressMessage(rtnlNewAddr, 2|nlmDumpIntr, 7, 2, 24, 0, v4("192.0.2.10", 0)), errDumpChanged},
		"it changed at its end":   {slices.Concat(address, netlinkRequest(nlmsgDone, 2|nlmDumpIntr, 7, make([]byte, 4))), errDumpChanged},
		"an error":                {netlinkRequest(nlmsgError, 0, 7, order.AppendUint32(nil, 0xffffffff)), nil},
		"an error at its end":     {slices.Concat(address, done(7, -105)), nil},
		"a cut error":             {netlinkRequest(nlmsgError, 0, 7, []byte{1, 0}), errCut},
		"a cut end":               {netlinkRequest(nlmsgDone, 0, 7, nil), errCut},
		"a cut message":           {address[:len(address)-1], errCut},
		"an address that is none": {addressMessage(rtnlNewAddr, 2, 7, 2, 24, 0, appendAttr(nil, ifaLocal, []byte{192, 0, 2})), nil},
	} {
		found, err := readDump(&scripted{results: []result{{packet: string(c.datagram)}, {err: io.EOF}}}, 7, 2)
		if found != nil || err == nil || c.cause != nil && !errors.Is(err, c.cause) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, %v; want %v", name, found, err, c.cause)
		}
	}
}

func TestADumpThatChangedIsAskedForAgainAndNotForEver(t *testing.T) {
	asked := 0
	found, err := retryDump(t.Context(), func(seq uint32) ([]netip.Addr, error) {
		if asked++; int(seq) != asked {
			t.Errorf("question %d has number %d", asked, seq)
		}
		if asked < 3 {
			return nil, errDumpChanged
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.10")}, nil
	})
	if err != nil || len(found) != 1 || asked != 3 {
		t.Errorf("%v, %v after %d questions", found, err, asked)
	}
	asked = 0
	if _, err := retryDump(t.Context(), func(uint32) ([]netip.Addr, error) { asked++; return nil, errDumpChanged }); !errors.Is(err, errDumpChanged) || asked != dumpTries {
		t.Errorf("%v after %d questions, want it to give up after %d", err, asked, dumpTries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := retryDump(ctx, func(uint32) ([]netip.Addr, error) { return nil, errors.New("i/o timeout") }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's cause", err)
	}
}

func TestAddressEventsOnLinux(t *testing.T) {
	ours, other := v4("192.0.2.10", permanent), v4("192.0.2.1", permanent)
	for name, c := range map[string]struct {
		datagram []byte
		want     notice
	}{
		"ours goes":           {addressMessage(rtnlDelAddr, 0, 0, 2, 24, 0, ours), moved},
		"ours comes":          {addressMessage(rtnlNewAddr, 0, 0, 2, 24, 0, ours), wake},
		"another goes":        {addressMessage(rtnlDelAddr, 0, 0, 2, 24, 0, other), wake},
		"ours goes and comes": {slices.Concat(addressMessage(rtnlDelAddr, 0, 0, 2, 24, 0, ours), addressMessage(rtnlNewAddr, 0, 0, 2, 24, 0, ours)), moved},
		"a link":              {netlinkRequest(rtnlNewLink, 0, 0, make([]byte, 16)), wake},
		"a link goes":         {netlinkRequest(rtnlDelLink, 0, 0, make([]byte, 16)), wake},
		"a route":             {netlinkRequest(24, 0, 0, make([]byte, 12)), ignored},
		"a cut message":       {addressMessage(rtnlDelAddr, 0, 0, 2, 24, 0, ours)[:20], wake},
		"a cut address":       {netlinkRequest(rtnlDelAddr, 0, 0, []byte{2, 24}), wake},
	} {
		if got := linuxSays(c.datagram, Spec{Interface: "eth0", VHID: 1, Addresses: prefixes("192.0.2.10/32")}); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func FuzzDecodeDump(f *testing.F) {
	f.Add(slices.Concat(addressMessage(rtnlNewAddr, 2, 7, 2, 24, permanent, v4("192.0.2.10", permanent)), done(7, 0)))
	f.Add(addressMessage(rtnlNewAddr, 2, 7, 2, 128, 0, v6("2001:db8::1", ifafTentative)))
	f.Add(netlinkRequest(nlmsgError, 0, 7, order.AppendUint32(nil, 0xffffffff)))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		found, ended, err := decodeDump(datagram, 7, 2)
		if err != nil && !ended && found != nil {
			t.Errorf("%v with %v", found, err)
		}
		for _, a := range found {
			if !a.IsValid() {
				t.Error("an address that is none")
			}
		}
	})
}
