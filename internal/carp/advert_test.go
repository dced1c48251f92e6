package carp

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// ucarpAdvert is a line of testdata/ucarp-adverts.txt.
type ucarpAdvert struct {
	vhid, advskew int
	address       netip.Prefix
	password      cluster.Secret
	frame         []byte
}

func ucarpAdverts(t testing.TB) []ucarpAdvert {
	t.Helper()
	text, err := os.ReadFile("testdata/ucarp-adverts.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []ucarpAdvert
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var u ucarpAdvert
		var address, password, frame string
		if _, err := fmt.Sscan(line, &u.vhid, &u.advskew, &address, &password, &frame); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		u.address, u.password = netip.PrefixFrom(netip.MustParseAddr(address), 32), cluster.Secret(password)
		if u.frame, err = hex.DecodeString(frame); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, u)
	}
	if len(list) < 4 {
		t.Fatalf("%d adverts", len(list))
	}
	return list
}

func somePrefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestARealAdvertIsReadAndMatchesItsPasswordAndAddressOnly(t *testing.T) {
	for i, u := range ucarpAdverts(t) {
		a, err := decodeAdvert(u.frame)
		if err != nil {
			t.Fatalf("advert %d: %v", i, err)
		}
		from := netip.MustParseAddr("192.0.2.11")
		if a.VHID != u.vhid || a.AdvSkew != u.advskew || a.AdvBase != 1 || a.From != from || a.VLAN != 0 || a.Counter == 0 {
			t.Errorf("advert %d: %+v", i, a)
		}
		right := []netip.Prefix{u.address}
		if !a.Matches(u.password, right) {
			t.Errorf("advert %d does not match its own password and address", i)
		}
		// The prefix length is not a part of the hash, and an address given twice counts once.
		wide := netip.PrefixFrom(u.address.Addr(), 24)
		if !a.Matches(u.password, []netip.Prefix{wide, u.address}) {
			t.Errorf("advert %d: the prefix length or a repeated address counts", i)
		}
		for name, wrong := range map[string]Group{
			"another password":  {cluster.Secret("secreT"), right},
			"no password":       {nil, right},
			"another address":   {u.password, somePrefixes("192.0.2.55/32")},
			"one address more":  {u.password, append(somePrefixes("192.0.2.200/32"), right...)},
			"an IPv6 one more":  {u.password, append(somePrefixes("2001:db8::10/128"), right...)},
			"no address at all": {u.password, nil},
		} {
			if a.Matches(wrong.Password, wrong.Addresses) {
				t.Errorf("advert %d matches %s", i, name)
			}
		}
		a.Counter++
		if a.Matches(u.password, right) {
			t.Errorf("advert %d matches with another counter", i)
		}
		a.Counter--
		a.VHID++
		if a.Matches(u.password, right) {
			t.Errorf("advert %d matches with another vhid", i)
		}
	}
}

// TestTheHashIsWhatTheKernelWrites computes it as carp_hmac_prepare and carp_hmac_generate do, with the padding by hand
// and the selection of the next higher address, not with crypto/hmac and a sort.
func TestTheHashIsWhatTheKernelWrites(t *testing.T) {
	addresses := somePrefixes("192.0.2.200/32", "2001:db8::10/128", "192.0.2.9/24", "10.255.0.1/32", "fe80::1/64", "2001:db8::9/64")
	a := Advert{VHID: 255, Counter: 0x0102030405060708}
	key := [20]byte{}
	copy(key[:], "0123456789abcdefghi")
	a.MAC = kernelHMAC(key, 255, a.Counter, addresses)
	for range 10 {
		addresses = append(addresses[1:], addresses[0])
		if !a.Matches(cluster.Secret("0123456789abcdefghi"), addresses) {
			t.Errorf("%v does not match", addresses)
		}
	}
	if a.Matches(cluster.Secret("0123456789abcdefghi"), addresses[1:]) {
		t.Error("one address less matches")
	}
}

func kernelHMAC(key [20]byte, vhid byte, counter uint64, addresses []netip.Prefix) [20]byte {
	var pad [64]byte
	copy(pad[:], key[:])
	for i := range pad {
		pad[i] ^= 0x36
	}
	inner := append(slices.Clone(pad[:]), 2, 1, vhid)
	for _, size := range []int{4, 16} {
		cur := make([]byte, size)
		for {
			last := cur
			cur = bytes.Repeat([]byte{0xff}, size)
			found := false
			for _, p := range addresses {
				in := p.Addr().AsSlice()
				if len(in) == size && bytes.Compare(in, last) > 0 && bytes.Compare(in, cur) < 0 {
					cur, found = in, true
				}
			}
			if !found {
				break
			}
			inner = append(inner, cur...)
		}
	}
	inner = binary.BigEndian.AppendUint64(inner, counter)
	md := sha1.Sum(inner)
	for i := range pad {
		pad[i] ^= 0x36 ^ 0x5c
	}
	return sha1.Sum(append(slices.Clone(pad[:]), md[:]...))
}

// advertFrame makes the frame of an advert, tagged with the VLANs given, as FreeBSD sends it.
func advertFrame(a Advert, password string, addresses []netip.Prefix, tags ...uint16) []byte {
	h := make([]byte, 16, carpHeaderLen)
	h[0], h[1], h[2], h[3], h[5] = carpVersionType, byte(a.VHID), byte(a.AdvSkew), carpAuthLen, byte(a.AdvBase)
	binary.BigEndian.PutUint64(h[8:], a.Counter)
	mac := hmac.New(sha1.New, []byte(password))
	mac.Write([]byte{2, 1, byte(a.VHID)})
	for _, p := range hashed(addresses) {
		mac.Write(p.AsSlice())
	}
	mac.Write(h[8:16])
	h = mac.Sum(h)
	binary.BigEndian.PutUint16(h[6:], checksum(h))
	return etherFrame(ipHeader(a.From, 255, protocolCARP, h), tags...)
}

// ipHeader puts an IP header before the payload, to the group of the family.
func ipHeader(from netip.Addr, hops, protocol byte, payload []byte) []byte {
	if from.Is4() {
		h := make([]byte, ipv4HeaderLen)
		h[0], h[6], h[8], h[9] = 0x45, 0x40, hops, protocol
		binary.BigEndian.PutUint16(h[2:], uint16(ipv4HeaderLen+len(payload)))
		copy(h[12:], from.AsSlice())
		copy(h[16:], []byte{224, 0, 0, 18})
		return append(h, payload...)
	}
	h := make([]byte, ipv6HeaderLen)
	h[0], h[6], h[7] = 0x60, protocol, hops
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], netip.MustParseAddr("ff02::12").AsSlice())
	return append(h, payload...)
}

func etherFrame(packet []byte, tags ...uint16) []byte {
	f := []byte{1, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, 1}
	for i, tag := range tags {
		ethertype := uint16(etherVLAN)
		if i == 0 && len(tags) > 1 {
			ethertype = etherQinQ
		}
		f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, ethertype), tag)
	}
	ethertype := uint16(etherIPv4)
	if packet[0]>>4 == 6 {
		ethertype = etherIPv6
	}
	return append(binary.BigEndian.AppendUint16(f, ethertype), packet...)
}

var (
	sender4 = netip.MustParseAddr("192.0.2.11")
	sender6 = netip.MustParseAddr("fe80::5054:ff:fe12:3456")
)

func TestAnAdvertOfEitherFamilyIsReadWithAndWithoutATag(t *testing.T) {
	addresses := somePrefixes("192.0.2.10/32")
	for _, from := range []netip.Addr{sender4, sender6} {
		for _, c := range []struct {
			tags []uint16
			vlan int
		}{{nil, 0}, {[]uint16{10}, 10}, {[]uint16{0xe00a}, 10}, {[]uint16{0x4000}, 0}, {[]uint16{20, 10}, 20}, {[]uint16{0, 10}, 10}} {
			want := Advert{From: from, VLAN: c.vlan, VHID: 200, AdvBase: 3, AdvSkew: 240, Counter: 1<<63 + 5}
			frame := append(advertFrame(want, "secret", addresses, c.tags...), 0, 0, 0) // three bytes of padding
			a, err := decodeAdvert(frame)
			want.MAC = a.MAC
			if err != nil || a != want || !a.Matches(cluster.Secret("secret"), addresses) {
				t.Errorf("%s tags %x: %+v, %v; want %+v", from, c.tags, a, err, want)
			}
		}
	}
}

func TestAnAdvertBehindIPv4OptionsIsRead(t *testing.T) {
	frame := advertFrame(Advert{From: sender4, VHID: 1, AdvBase: 1}, "secret", nil)
	options := []byte{0x94, 4, 0, 0} // router alert (RFC 2113)
	frame = slices.Insert(frame, etherHeaderLen+ipv4HeaderLen, options...)
	frame[etherHeaderLen] = 0x46
	frame[etherHeaderLen+3] += 4
	if a, err := decodeAdvert(frame); err != nil || a.VHID != 1 || a.From != sender4 {
		t.Errorf("%+v, %v", a, err)
	}
}

// vrrp2 is a VRRP version 2 advertisement (RFC 3768) of n addresses: its first byte is that of CARP.
func vrrp2(n int) []byte {
	b := []byte{0x21, 1, 100, byte(n), 0, 1, 0, 0}
	for i := range n {
		b = append(b, 192, 0, 2, byte(i))
	}
	b = append(b, make([]byte, 8)...) // authentication data
	binary.BigEndian.PutUint16(b[6:], checksum(b))
	return b
}

func TestVRRPAndWhatIsCutOrDamagedIsNoAdvert(t *testing.T) {
	good := advertFrame(Advert{From: sender4, VHID: 1, AdvBase: 1}, "secret", nil)
	good6 := advertFrame(Advert{From: sender6, VHID: 1, AdvBase: 1}, "secret", nil)
	change := func(frame []byte, at int, to byte) []byte {
		b := slices.Clone(frame)
		b[at] = to
		return b
	}
	carp := func(change func(h []byte)) []byte {
		h := slices.Clone(good[etherHeaderLen+ipv4HeaderLen:])
		change(h)
		h[6], h[7] = 0, 0
		binary.BigEndian.PutUint16(h[6:], checksum(h))
		return etherFrame(ipHeader(sender4, 255, protocolCARP, h))
	}
	if _, err := decodeAdvert(carp(func([]byte) {})); err != nil {
		t.Fatalf("the unchanged one: %v", err)
	}
	cases := map[string][]byte{
		"VRRP 2, 5 addresses (36 bytes)":     etherFrame(ipHeader(sender4, 255, protocolCARP, vrrp2(5))),
		"VRRP 2, 7 addresses (authlen 7)":    etherFrame(ipHeader(sender4, 255, protocolCARP, vrrp2(7))),
		"VRRP 3, 7 addresses (36 bytes)":     carp(func(h []byte) { h[0] = 0x31 }),
		"version 1":                          carp(func(h []byte) { h[0] = 0x11 }),
		"type 2":                             carp(func(h []byte) { h[0] = 0x22 }),
		"vhid 0, an echo of one's own":       carp(func(h []byte) { h[1] = 0 }),
		"authlen 6":                          carp(func(h []byte) { h[3] = 6 }),
		"a wrong checksum":                   change(good, len(good)-1, good[len(good)-1]^1),
		"another protocol":                   change(good, etherHeaderLen+9, 17),
		"another protocol, IPv6":             change(good6, etherHeaderLen+6, 17),
		"came through a router":              change(good, etherHeaderLen+8, 254),
		"came through a router, IPv6":        change(good6, etherHeaderLen+7, 64),
		"the first fragment":                 change(good, etherHeaderLen+6, 0x20),
		"a later fragment":                   change(good, etherHeaderLen+7, 1),
		"a header length below 5":            change(good, etherHeaderLen, 0x44),
		"a header longer than the packet":    change(good, etherHeaderLen, 0x4f),
		"a total below the header":           change(good, etherHeaderLen+3, 19),
		"a total above the frame":            change(good, etherHeaderLen+3, 200),
		"a payload length above the frame":   change(good6, etherHeaderLen+5, 37),
		"IP version 5":                       change(good, etherHeaderLen, 0x55),
		"IP version 5 where it should be 6":  change(good6, etherHeaderLen, 0x50),
		"ARP":                                change(good, 13, 6),
		"IPv6 under IPv4's ethertype":        change(change(good6, 12, 8), 13, 0),
		"three tags":                         etherFrame(good[etherHeaderLen:], 1, 2, 3),
		"nothing":                            nil,
		"a tag and nothing behind it":        {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0},
		"a longer CARP header of later days": etherFrame(ipHeader(sender4, 255, protocolCARP, append(slices.Clone(good[etherHeaderLen+ipv4HeaderLen:]), 0, 0, 0, 0))),
	}
	for name, frame := range cases {
		if a, err := decodeAdvert(frame); !errors.Is(err, errNotCARP) || a != (Advert{}) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	for _, frame := range [][]byte{good, good6} {
		for n := range len(frame) {
			if a, err := decodeAdvert(frame[:n]); err == nil {
				t.Errorf("cut at %d: %+v", n, a)
			}
		}
	}
}

func TestAUnicastAdvertMayComeThroughARouter(t *testing.T) {
	frame := advertFrame(Advert{From: sender4, VHID: 1, AdvBase: 1}, "secret", nil)
	copy(frame[etherHeaderLen+16:], []byte{192, 0, 2, 12})
	frame[etherHeaderLen+8] = 63
	if _, err := decodeAdvert(frame); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeAdvert(f *testing.F) {
	for _, u := range ucarpAdverts(f) {
		f.Add(u.frame)
	}
	f.Add(advertFrame(Advert{From: sender6, VHID: 1, AdvBase: 1}, "secret", nil, 20, 10))
	f.Add(etherFrame(ipHeader(sender4, 255, protocolCARP, vrrp2(5))))
	f.Fuzz(func(t *testing.T, frame []byte) {
		a, err := decodeAdvert(frame)
		if err != nil {
			if a != (Advert{}) {
				t.Fatalf("%+v with an error", a)
			}
			return
		}
		if a.VHID < 1 || a.VHID > 255 || a.AdvBase < 0 || a.AdvBase > 255 || a.AdvSkew < 0 || a.AdvSkew > 255 || !a.From.IsValid() || a.VLAN < 0 || a.VLAN > 4095 {
			t.Fatalf("%+v", a)
		}
		if !bytes.Contains(frame, a.MAC[:]) {
			t.Fatal("a MAC that is not in the frame")
		}
	})
}
