package carp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

func TestAnAliasHasTheBytesThatTheRecordedKernelsTook(t *testing.T) {
	for _, v := range vectors(t, "ioctl-aifaddr*.txt") {
		var iface, prefix, vhid string
		for _, line := range v.Values("#") {
			if words := strings.Fields(line); len(words) > 6 && words[0] == "by:" {
				iface, prefix, vhid = words[4], words[5], words[6]
			}
		}
		name, err := interfaceName(iface)
		if err != nil {
			t.Fatal(err)
		}
		request, arg := aliasRequest(name, netip.MustParsePrefix(prefix), atoi(t, vhid))
		if want := v.Bytes(t, "aliasreq"); !bytes.Equal(arg, want) || len(arg) != ioctlLen(request) {
			t.Errorf("%v:\n%x, recorded\n%x", v, arg, want)
		}
		if strings.Contains(prefix, ":") != (request == 0x8088691b) || strings.Contains(prefix, ".") != (request == 0x8044692b) {
			t.Errorf("%v: request %x", v, request)
		}
		// The errno is explained, and success is none.
		if e := v.Errno(t); e != 0 {
			if err := newBox(t).calls().aliasError("add", iface, atoi(t, vhid), e); !failsWith(err, fs.ErrNotExist, "has no vhid "+vhid, "certsync bootstrap") {
				t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
			}
		}
	}
}

// iow is _IOW of sys/ioccom.h.
func iow(group byte, number, size uint32) uint32 {
	return 0x80000000 | size<<16 | uint32(group)<<8 | number
}

func TestTheRequestsAreThoseOfTheHeaders(t *testing.T) {
	const in6Ifreq = 16 + 34*8 // ifr_name, and struct icmp6_ifstat, the longest of the union
	for _, c := range []struct{ got, want uint32 }{
		{siocAIFAddr, iow('i', 43, 16+3*16+4)},
		{siocAIFAddr6, iow('i', 27, 16+3*28+4+24+8)},
		{siocDIFAddr, iow('i', 25, 32)},
		{siocDIFAddr6, iow('i', 25, in6Ifreq)},
	} {
		if c.got != c.want {
			t.Errorf("%#x, want %#x", c.got, c.want)
		}
	}
	name, _ := interfaceName("fifteen_letters")
	for _, a := range []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")} {
		request, arg := removeRequest(name, a)
		if len(arg) != ioctlLen(request) || string(arg[:16]) != "fifteen_letters\x00" || boxSockaddr(arg[16:]) != a {
			t.Errorf("%v: %x", a, arg)
		}
		if end := 16 + int(arg[16]); !bytes.Equal(arg[end:], make([]byte, len(arg)-end)) {
			t.Errorf("%v: %x behind the address", a, arg[end:])
		}
	}
}

func TestMasksAndBroadcasts(t *testing.T) {
	for _, c := range []struct{ prefix, mask, broadcast string }{
		{"192.0.2.10/32", "255.255.255.255", "192.0.2.10"},
		{"192.0.2.10/31", "255.255.255.254", "255.255.255.255"},
		{"192.0.2.10/30", "255.255.255.252", "192.0.2.11"},
		{"192.0.2.10/24", "255.255.255.0", "192.0.2.255"},
		{"10.1.2.3/9", "255.128.0.0", "10.127.255.255"},
		{"10.1.2.3/1", "128.0.0.0", "127.255.255.255"},
		{"2001:db8::10/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2001:db8::10/65", "ffff:ffff:ffff:ffff:8000::", ""},
		{"2001:db8::10/1", "8000::", ""},
	} {
		p := netip.MustParsePrefix(c.prefix)
		if mask := maskOf(p); mask != netip.MustParseAddr(c.mask) {
			t.Errorf("%s: mask %s, want %s", c.prefix, mask, c.mask)
		}
		if c.broadcast != "" && broadcastOf(p) != netip.MustParseAddr(c.broadcast) {
			t.Errorf("%s: broadcast %s, want %s", c.prefix, broadcastOf(p), c.broadcast)
		}
	}
}

var bothFamilies = []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32"), netip.MustParsePrefix("2001:db8::10/128"), netip.MustParsePrefix("198.51.100.7/25"), netip.MustParsePrefix("2001:db8::11/64")}

// readyBox is a box with vhid 1 on em0.
func readyBox(t testing.TB) (*box, *Kernel) {
	b := newBox(t)
	k := b.kernel()
	if err := k.SetVHID("em0", goodSettings()); err != nil {
		t.Fatal(err)
	}
	b.log = nil
	return b, k
}

func TestAnAddressIsAddedOnceAndRemovedOnce(t *testing.T) {
	for _, p := range bothFamilies {
		for _, vhid := range []int{1, 0} {
			b, k := readyBox(t)
			for range 3 {
				if err := k.AddAddress("em0", p, vhid); err != nil {
					t.Fatalf("%v: %v", p, err)
				}
			}
			// Each further add would have been a failover.
			if want := []string{fmt.Sprintf("add %s vhid %d", p, vhid)}; !slices.Equal(b.log, want) {
				t.Errorf("%v: %v, want %v", p, b.log, want)
			}
			if err := k.RemoveAddress("em0", p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
			if len(b.addresses["em0"]) != 1 {
				t.Errorf("%v: %v", p, b.addresses["em0"])
			}
			if err := k.RemoveAddress("em0", p); !failsWith(err, fs.ErrNotExist, "no such address", "") {
				t.Errorf("%v: %v", p, err)
			}
		}
	}
}

func TestAnAddressMovesToAnotherVHIDAndToNone(t *testing.T) {
	for _, p := range bothFamilies {
		b, k := readyBox(t)
		s := goodSettings()
		s.VHID = 2
		if err := k.SetVHID("em0", s); err != nil {
			t.Fatal(err)
		}
		for _, vhid := range []int{1, 2, 0, 1} {
			if err := k.AddAddress("em0", p, vhid); err != nil {
				t.Errorf("%v to vhid %d: %v", p, vhid, err)
			}
			if last := b.addresses["em0"][len(b.addresses["em0"])-1]; last != (Address{p, vhid}) {
				t.Errorf("%v to vhid %d: %v", p, vhid, last)
			}
		}
	}
}

// TestAnAddressStaysWhereItsVHIDIsMissing: asked for nevertheless, the kernel takes an IPv4 address away, and leaves an
// IPv6 one as a plain one that answers beside the MASTER.
func TestAnAddressStaysWhereItsVHIDIsMissing(t *testing.T) {
	for _, p := range bothFamilies {
		b := newBox(t)
		k := b.kernel()
		if err := k.AddAddress("em0", p, 0); err != nil {
			t.Fatal(err)
		}
		b.log = nil
		if err := k.AddAddress("em0", p, 7); !failsWith(err, fs.ErrNotExist, "no vhid 7", "certsync bootstrap") || len(b.log) != 0 {
			t.Errorf("%v: %v, %v", p, err, b.log)
		}
		if !slices.Contains(b.addresses["em0"], Address{p, 0}) {
			t.Errorf("%v is gone: %v", p, b.addresses["em0"])
		}
	}
}

// TestAnAddThatFailsLeavesTheAddressesAsTheyWere: the vhid goes between the look and the call.
func TestAnAddThatFailsLeavesTheAddressesAsTheyWere(t *testing.T) {
	for _, p := range bothFamilies {
		for _, was := range []bool{false, true} {
			b, k := readyBox(t)
			if was {
				b.addresses["em0"] = append(b.addresses["em0"], Address{p, 0})
			}
			before := slices.Clone(b.addresses["em0"])
			b.gone = true
			if err := k.AddAddress("em0", p, 1); !failsWith(err, fs.ErrNotExist, "no vhid 1", "certsync bootstrap") {
				t.Errorf("%v: %v", p, err)
			}
			if !slices.Equal(b.addresses["em0"], before) {
				t.Errorf("%v: %v, want %v", p, b.addresses["em0"], before)
			}
		}
	}
	// Where it cannot be given back, the error says so.
	b, k := readyBox(t)
	b.addresses["em0"] = append(b.addresses["em0"], Address{bothFamilies[0], 9})
	b.gone = true
	if err := k.AddAddress("em0", bothFamilies[0], 1); err == nil || !strings.Contains(err.Error(), "give back 192.0.2.10/32 under vhid 9") {
		t.Error(err)
	}
}

func TestARefusedAddressSaysWhatToDo(t *testing.T) {
	for _, p := range bothFamilies {
		for _, c := range []struct {
			name, iface string
			change      func(*box)
			sentinel    error
			words, hint string
		}{
			{"unprivileged", "em0", func(b *box) { b.root = false }, fs.ErrPermission, "not permitted", "as root"},
			{"a jail without VNET", "em0", func(b *box) { b.jail = Jail{Jailed: true} }, fs.ErrPermission, "not permitted", "jail's host"},
			{"no such interface", "em9", func(*box) {}, ErrNoInterface, "em9", "ifconfig -l"},
			{"carp was unloaded", "em0", func(b *box) { b.loaded = false }, ErrNoModule, "add " + p.String(), "kldload carp"},
			{"the last vhid went", "em0", func(b *box) { b.gone = true }, fs.ErrNotExist, "no vhid 1", "certsync bootstrap"},
		} {
			b, k := readyBox(t)
			c.change(b)
			if err := k.AddAddress(c.iface, p, 1); !failsWith(err, c.sentinel, c.words, c.hint) {
				t.Errorf("%s: %v, hint %q", c.name, err, cluster.HintOf(err))
			}
		}
		b, k := readyBox(t)
		b.addresses["em0"] = append(b.addresses["em0"], Address{p, 0})
		b.root = false
		if err := k.RemoveAddress("em0", p); !failsWith(err, fs.ErrPermission, "remove "+p.Addr().String()+" from em0", "as root") {
			t.Errorf("%v: %v", p, err)
		}
		b.root = true
		if err := k.RemoveAddress("em9", p); !failsWith(err, ErrNoInterface, "em9", "ifconfig -l") {
			t.Errorf("%v: %v", p, err)
		}
	}
	b, k := readyBox(t)
	b.inet = false
	if err := k.AddAddress("em0", bothFamilies[0], 1); !failsWith(err, errNoSocket, "no sockets of this family", "family") {
		t.Error(err)
	}
	c := b.calls()
	if err := c.aliasError("add", "em0", 0, eexist); !failsWith(err, eexist, "another interface", "32") {
		t.Error(err)
	}
	if err := c.aliasError("add", "em0", 1, enobufs); !failsWith(err, enobufs, "add: ", "") {
		t.Error(err)
	}
}

func TestAnIPv6PrefixLengthThatDiffersIsRefusedInWords(t *testing.T) {
	b, k := readyBox(t)
	if err := k.AddAddress("em0", netip.MustParsePrefix("2001:db8::10/64"), 1); err != nil {
		t.Fatal(err)
	}
	if err := k.AddAddress("em0", netip.MustParsePrefix("2001:db8::10/128"), 1); !failsWith(err, einval, "refuses", "removed first") {
		t.Errorf("%v, hint %q", err, cluster.HintOf(err))
	}
	if len(b.addresses["em0"]) != 2 {
		t.Error(b.addresses["em0"])
	}
}

func TestAnAddressThatIsNotListedAsItWasAddedIsAnError(t *testing.T) {
	p := bothFamilies[0]
	for words, fault := range map[string]func(*box){
		"does not list it":                   func(b *box) { b.addresses["em0"] = b.addresses["em0"][:1] },
		"lists 192.0.2.10/32 under vhid 0":   func(b *box) { b.addresses["em0"][1].VHID = 0 },
		"lists 192.0.2.10/24 under vhid 1":   func(b *box) { b.addresses["em0"][1].Prefix = netip.PrefixFrom(p.Addr(), 24) },
		"read it back: em0: no such interfa": func(b *box) { delete(b.ifaces, "em0") },
	} {
		b, k := readyBox(t)
		b.fault = func() { fault(b) }
		if err := k.AddAddress("em0", p, 1); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	cause := errors.New("no memory")
	c := newBox(t).calls()
	c.readInterfaces = func() ([]Interface, error) { return nil, cause }
	if err := c.addAddress("em0", p, 0); !errors.Is(err, cause) {
		t.Error(err)
	}
}
