package carp

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

var ribAddrLine = regexp.MustCompile(`^RTM_NEWADDR .* index=(\d+) .* vhid\(u8@data_off\+5\)=(\d+) +NETMASK=(\S+) IFA=(\S+)`)

// meantInterfaces are the interfaces of a recorded dump by its `#` lines, which have no names: their addresses.
func meantInterfaces(t testing.TB, v vector) [][]Address {
	t.Helper()
	var all [][]Address
	for _, line := range v.Values("#") {
		if strings.HasPrefix(line, "RTM_IFINFO ") {
			all = append(all, nil)
		}
		if m := ribAddrLine.FindStringSubmatch(line); m != nil {
			mask, ip := netip.MustParseAddr(m[3]), netip.MustParseAddr(m[4])
			ones := 0
			for _, b := range mask.AsSlice() {
				ones += strings.Count(fmt.Sprintf("%b", b), "1")
			}
			all[len(all)-1] = append(all[len(all)-1], Address{netip.PrefixFrom(ip, ones), number(t, m[2])})
		}
	}
	return all
}

func ribVectors(t testing.TB) []vector {
	t.Helper()
	var all []vector
	for _, pattern := range []string{"rib-iflistl-*.txt", "rib-readd-*.txt", "jail*rib*.txt"} {
		all = append(all, vectors(t, pattern)...)
	}
	return all
}

func TestEveryRecordedDumpIsReadAsItsMeaningSays(t *testing.T) {
	read, withVHID := 0, 0
	for _, v := range ribVectors(t) {
		all, err := interfaces(v.Bytes(t, "dump"))
		want := meantInterfaces(t, v)
		if err != nil || len(all) != len(want) {
			t.Fatalf("%v: %d interfaces, %v; want %d", v, len(all), err, len(want))
		}
		for i, iface := range all {
			if fmt.Sprint(iface.Addresses) != fmt.Sprint(want[i]) || iface.Name == "" {
				t.Errorf("%v: %s has %v, want %v", v, iface.Name, iface.Addresses, want[i])
			}
			for _, a := range iface.Addresses {
				read++
				if a.VHID != 0 {
					withVHID++
				}
			}
		}
	}
	if read < 80 || withVHID < 20 {
		t.Errorf("only %d addresses, %d of vhids", read, withVHID)
	}
}

// What these recordings say is also written out here: the `#` lines have neither names nor flags.
func TestSomeRecordedDumpsReadByHand(t *testing.T) {
	for _, c := range []struct{ release, name, want string }{
		{"13.2", "rib-iflistl-all", "vtnet0 up 192.0.2.1/24 2001:db8::1/64 fe80::5054:ff:fe12:3456/64 192.0.2.100/32@1 2001:db8::100/128@2; lo0 up ::1/128 fe80::1/64"},
		{"15.1", "jail-rib-iflistl", "lo0 up ::1/128 fe80::1/64 127.0.0.1/8; epair0b up 10.0.0.2/24 2001:db8:1::2/64 fe80::5a9c:fcff:fe10:2478/64 10.0.0.100/32@1 2001:db8:1::100/128@2"},
		{"15.1", "rib-iflistl-inet6", "vtnet0 up 2001:db8::1/64 fe80::5054:ff:fe12:3456/64 2001:db8::100/128@2; vtnet1 down; lo0 up ::1/128 fe80::1/64"},
	} {
		all, err := interfaces(oneVector(t, c.release, c.name).Bytes(t, "dump"))
		if got := ribText(all); err != nil || got != c.want {
			t.Errorf("%s: %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
}

func ribText(all []Interface) string {
	var parts []string
	for _, i := range all {
		text := i.Name + map[bool]string{true: " up", false: " down"}[i.Up]
		for _, a := range i.Addresses {
			text += " " + a.Prefix.String()
			if a.VHID != 0 {
				text += fmt.Sprintf("@%d", a.VHID)
			}
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// NET_RT_IFLIST has other headers, and no vhids: it must not pass for the long list.
func TestTheShortListIsRefused(t *testing.T) {
	for _, v := range vectors(t, "rib-iflist-*.txt") {
		if all, err := interfaces(v.Bytes(t, "dump")); err == nil || all != nil {
			t.Errorf("%v: %v", v, ribText(all))
		}
	}
}

// A cut at the end of a message leaves the messages before it, and anywhere else it is an error.
func TestACutDumpIsAnError(t *testing.T) {
	for _, v := range ribVectors(t)[:6] {
		dump := v.Bytes(t, "dump")
		whole, _ := interfaces(dump)
		ends := map[int]bool{0: true}
		for at := 0; at < len(dump); {
			at += int(order.Uint16(dump[at:]))
			ends[at] = true
		}
		for n := range dump {
			all, err := interfaces(dump[:n])
			if ends[n] != (err == nil) || err != nil && !errors.Is(err, errCut) {
				t.Fatalf("%v: %d bytes of %d: %v, %v", v, n, len(dump), ribText(all), err)
			}
			if !strings.HasPrefix(ribText(whole), ribText(all)) {
				t.Fatalf("%v: %d bytes of %d: %v", v, n, len(dump), ribText(all))
			}
		}
	}
}

// ribOf builds one message of the dump: its addresses by RTAX_* in ascending order.
func ribOf(kind byte, index uint16, vhid byte, addrs map[int][]byte) []byte {
	b := make([]byte, 176)
	b[2], b[3] = rtmVersion, kind
	order.PutUint16(b[ribIndex:], index)
	order.PutUint16(b[ribHeaderLen:], 176)
	order.PutUint16(b[ribDataOff:], 24)
	b[24+ifDataVHID] = vhid
	var bitmap uint32
	for i := range 8 {
		if a, ok := addrs[i]; ok {
			bitmap |= 1 << i
			b = append(b, a...)
			b = append(b, make([]byte, (8-len(a)%8)%8)...)
		}
	}
	order.PutUint32(b[ribAddrs:], bitmap)
	order.PutUint16(b, uint16(len(b)))
	return b
}

func ribLink(name string) []byte {
	b := append([]byte{0, familyLink, 1, 0, 6, byte(len(name)), 6, 0}, name...)
	b = append(b, 2, 0, 0, 0, 0, 1) // the MAC address
	b[0] = byte(len(b))
	return b
}

func ribInet(family byte, addr string, length int) []byte {
	b := make([]byte, 64)
	b[0], b[1] = byte(length), family
	at := map[byte]int{familyInet: inetAddr}[family]
	if at == 0 {
		at = inet6Addr
	}
	copy(b[at:], netip.MustParseAddr(addr).AsSlice())
	return b[:length]
}

func TestAddressesAndMasksInTheirOddForms(t *testing.T) {
	em0 := ribOf(rtmIfInfo, 1, 0, map[int][]byte{rtaIfp: ribLink("em0")})
	for name, c := range map[string]struct {
		addr, mask []byte
		want       string
	}{
		"zone in bytes 2 and 3":      {ribInet(familyInet6, "fe80:1::5", 28), ribInet(familyInet6, "ffff:ffff:ffff:ffff::", 28), "em0 down fe80::5/64@9"},
		"mask cut after its ones":    {ribInet(familyInet, "192.0.2.1", 16), ribInet(familyInet, "255.255.0.0", 6), "em0 down 192.0.2.1/16@9"},
		"mask without a family":      {ribInet(familyInet, "192.0.2.1", 16), ribInet(0, "::", 5)[:5], "em0 down 192.0.2.1/0@9"},
		"mask of length 0":           {ribInet(familyInet, "192.0.2.1", 16), make([]byte, 8), "em0 down 192.0.2.1/0@9"},
		"IPv6 mask cut":              {ribInet(familyInet6, "2001:db8::1", 28), ribInet(familyInet6, "ffff:ffff:ffff:ffff::", 16), "em0 down 2001:db8::1/64@9"},
		"mask 127":                   {ribInet(familyInet6, "2001:db8::1", 28), ribInet(familyInet6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", 28), "em0 down 2001:db8::1/127@9"},
		"neither IPv4 nor IPv6":      {ribLink("em0"), nil, "em0 down"},
		"the mask's high byte holed": {ribInet(familyInet, "192.0.2.1", 16), ribInet(familyInet, "255.0.255.0", 16), ""},
		"address cut":                {ribInet(familyInet, "192.0.2.1", 7), ribInet(familyInet, "255.255.0.0", 16), ""},
		"IPv6 address cut":           {ribInet(familyInet6, "2001:db8::1", 23), ribInet(familyInet6, "ffff::", 28), ""},
		"address of length 0":        {make([]byte, 8), ribInet(familyInet, "255.255.0.0", 16), ""},
		"no address":                 {nil, ribInet(familyInet, "255.255.0.0", 16), ""},
	} {
		addrs := map[int][]byte{}
		if c.addr != nil {
			addrs[rtaIfa] = c.addr
		}
		if c.mask != nil {
			addrs[rtaNetmask] = c.mask
		}
		all, err := interfaces(append(append([]byte(nil), em0...), ribOf(rtmNewAddr, 1, 9, addrs)...))
		if got := ribText(all); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestADumpThatContradictsItselfIsAnError(t *testing.T) {
	em0 := ribOf(rtmIfInfo, 1, 0, map[int][]byte{rtaIfp: ribLink("em0")})
	with := func(change func(b []byte)) []byte {
		b := append([]byte(nil), em0...)
		change(b)
		return b
	}
	if all, err := interfaces(em0); err != nil || ribText(all) != "em0 down" {
		t.Fatal(ribText(all), err)
	}
	for name, b := range map[string][]byte{
		"a length of 0":                                with(func(b []byte) { order.PutUint16(b, 0) }),
		"a length of 3":                                with(func(b []byte) { order.PutUint16(b, 3) }),
		"a length of its type":                         with(func(b []byte) { order.PutUint16(b, 4) }),
		"a length past the end":                        with(func(b []byte) { order.PutUint16(b, uint16(len(b)+1)) }),
		"another version":                              with(func(b []byte) { b[2] = 6 }),
		"a header past the end":                        with(func(b []byte) { order.PutUint16(b[ribHeaderLen:], 0xffff) }),
		"a header of 0":                                with(func(b []byte) { order.PutUint16(b[ribHeaderLen:], 0) }),
		"data past the header":                         with(func(b []byte) { order.PutUint16(b[ribDataOff:], 169) }),
		"data at 0":                                    with(func(b []byte) { order.PutUint16(b[ribDataOff:], 0) }),
		"more addresses than come":                     with(func(b []byte) { order.PutUint32(b[ribAddrs:], 0xffffffff) }),
		"no addresses":                                 with(func(b []byte) { order.PutUint32(b[ribAddrs:], 0) }),
		"a name past the address":                      with(func(b []byte) { b[176+linkNameLen] = 0xff }),
		"a name of length 0":                           with(func(b []byte) { b[176+linkNameLen] = 0 }),
		"a link of length 0":                           with(func(b []byte) { b[176] = 0 }),
		"a link past the end":                          with(func(b []byte) { b[176] = 0xff }),
		"a name in another family":                     with(func(b []byte) { b[177] = familyInet }),
		"an address of an interface that is not there": ribOf(rtmNewAddr, 7, 1, map[int][]byte{rtaIfa: ribInet(familyInet, "192.0.2.1", 16)}),
	} {
		if all, err := interfaces(b); err == nil || all != nil {
			t.Errorf("%s: %v", name, ribText(all))
		}
	}
	if all, err := interfaces(nil); err != nil || all != nil {
		t.Errorf("nothing: %v, %v", all, err)
	}
	later := append([]byte{8, 0, rtmVersion, 99, 0, 0, 0, 0}, em0...)
	if all, err := interfaces(later); err != nil || ribText(all) != "em0 down" {
		t.Errorf("a type of a later kernel: %v, %v", ribText(all), err)
	}
}

func FuzzInterfaces(f *testing.F) {
	for _, v := range ribVectors(f) {
		f.Add(v.Bytes(f, "dump"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := interfaces(b)
		if err != nil && all != nil {
			t.Fatal("interfaces with an error")
		}
		n := 0
		for _, i := range all {
			for _, a := range i.Addresses {
				if n++; !a.Prefix.IsValid() || a.Prefix.Addr().Zone() != "" || a.VHID < 0 || a.VHID > 255 {
					t.Fatalf("%+v", a)
				}
			}
		}
		if (n+len(all))*ribFixedLen > len(b) {
			t.Fatalf("%d interfaces and %d addresses in %d bytes", len(all), n, len(b))
		}
	})
}
