package carp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// told is a message of a recorded timeline, decoded.
type told struct {
	at      time.Duration
	channel string // devd, route or nlroute
	says    notice
}

// transition is a change of a vhid's state that the recording's own poll saw, each 5 ms.
type transition struct {
	at       time.Duration
	vhid     int
	from, to cluster.Role
}

// recording is a timeline.
type recording struct {
	told        []told
	transitions []transition
}

// timeline decodes a recording of testdata, as it looks to a node whose deciding vhid is first.
func timeline(t *testing.T, v vector, first Spec) recording {
	t.Helper()
	var r recording
	states := map[int]cluster.Role{}
	for _, line := range v.Lines {
		millis, rest, ok := strings.Cut(line.Value, " ")
		ms, err := strconv.ParseFloat(millis, 64)
		if !ok || err != nil {
			continue
		}
		at := time.Duration(ms * float64(time.Millisecond))
		switch line.Key {
		case "devd", "devctl": // devd passes on what the kernel says on /dev/devctl
			_, quoted, _ := strings.Cut(rest, " ")
			packet, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatalf("%v: %s: %v", v, quoted, err)
			}
			r.told = append(r.told, told{at, "devd", devdSays([]byte(packet), first)})
		case "route":
			r.told = append(r.told, told{at, "route", routeSays(vectorBytes(t, rest), first)})
		case "nlroute":
			r.told = append(r.told, told{at, "nlroute", freebsdSays(vectorBytes(t, rest), first)})
		case "poll":
			r.poll(t, at, rest, states)
		}
	}
	return r
}

// poll takes a line such as "vhid=1 MASTER advbase=1 advskew=0".
func (r *recording) poll(t *testing.T, at time.Duration, line string, states map[int]cluster.Role) {
	t.Helper()
	var vhid int
	var word string
	if _, err := fmt.Sscanf(line, "vhid=%d %s", &vhid, &word); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	var role cluster.Role // Unknown where the vhid was not there
	if word != "errno" {
		if err := role.UnmarshalText([]byte(word)); err != nil {
			t.Fatal(err)
		}
	}
	if from, seen := states[vhid]; seen && from != role {
		r.transitions = append(r.transitions, transition{at, vhid, from, role})
	}
	states[vhid] = role
}

// wokenBy lists the channels with a message that has the state read again once the transition is there: one after it,
// or one so little before it that the second reading after an event sees it. The recordings were made under emulation
// and busy, so a message may come a while after.
func (r recording) wokenBy(tr transition, after time.Duration) (channels []string) {
	for _, m := range r.told {
		if m.says != ignored && m.at > tr.at-echo && m.at < tr.at+after && !slices.Contains(channels, m.channel) {
			channels = append(channels, m.channel)
		}
	}
	return channels
}

// pollOnly is what the routing socket does not tell, and in a jail only the poll sees: an IPv6 vhid (2, in all
// recordings) that leaves MASTER, and a vhid that leaves it because it was given another address.
func pollOnly(v vector, tr transition) bool {
	added := map[string]time.Duration{"13.2/timeline-second-address-and-readd": 8501 * time.Millisecond, "15.1/timeline-second-address": 14011 * time.Millisecond}
	return tr.from == cluster.Master && (tr.vhid == 2 || tr.vhid == 1 && tr.at.Truncate(time.Millisecond) == added[v.String()])
}

func TestEachRecordedMoveToOrFromMasterWakes(t *testing.T) {
	moves, polled := 0, 0
	for _, v := range vectors(t, "*timeline*.txt") {
		r := timeline(t, v, Spec{Interface: "vtnet0", VHID: 1, Addresses: prefixes("192.0.2.100/32")})
		for _, tr := range r.transitions {
			if tr.from != cluster.Master && tr.to != cluster.Master {
				continue
			}
			moves++
			switch told := slices.Contains(r.wokenBy(tr, 150*time.Millisecond), "route"); {
			case pollOnly(v, tr) && !told:
				polled++
			case !pollOnly(v, tr) && !told:
				t.Errorf("%v: at %v vhid %d %v to %v: the routing socket did not wake", v, tr.at, tr.vhid, tr.from, tr.to)
			}
		}
	}
	if moves < 40 || polled < 5 {
		t.Errorf("%d moves were recorded, and %d of them needed the poll: want 40 and 5 or more", moves, polled)
	}
}

// Of what happens on the host itself, devd tells all, but that a vhid appears. It lags when it is busy.
func TestDevdTellsEachRecordedMove(t *testing.T) {
	moves := 0
	for _, v := range vectors(t, "*timeline*.txt") {
		r := timeline(t, v, Spec{Interface: "vtnet0", VHID: 1})
		if !slices.ContainsFunc(r.told, func(m told) bool { return m.channel == "devd" }) {
			continue // an unprivileged process on 13.2, which had no devd
		}
		for _, tr := range r.transitions {
			if tr.from == cluster.Unknown || tr.to == cluster.Unknown {
				continue
			}
			moves++
			if !slices.Contains(r.wokenBy(tr, time.Second), "devd") {
				t.Errorf("%v: at %v vhid %d %v to %v: devd told nothing", v, tr.at, tr.vhid, tr.from, tr.to)
			}
		}
	}
	if moves < 50 {
		t.Errorf("only %d moves were recorded", moves)
	}
}

func TestAnIPv6VHIDThatLeavesMasterNeedsThePollInAJail(t *testing.T) {
	r := timeline(t, oneVector(t, "15.1", "jail-timeline-inside"), Spec{Interface: "epair0b", VHID: 2, Addresses: prefixes("2001:db8:1::100/128")})
	alone := 0
	for _, tr := range r.transitions {
		if tr.vhid == 2 && tr.from == cluster.Master && !slices.ContainsFunc(r.wokenBy(tr, 150*time.Millisecond), func(c string) bool { return c != "devd" }) {
			alone++
		}
	}
	if alone == 0 {
		t.Error("each was told: then the poll is not what this package says it is for")
	}
}

// What is told of the deciding vhid breaks its settling: each time an IPv4 vhid becomes or leaves MASTER, in a jail too.
func TestEachRecordedMoveOfTheDecidingVHIDIsToldAsOne(t *testing.T) {
	for _, c := range []struct {
		release, name string
		first         Spec
		channel       string
		least         int
	}{
		{"13.2", "timeline-main", Spec{Interface: "vtnet0", VHID: 1, Addresses: prefixes("192.0.2.100/32")}, "route", 3},
		{"15.1", "timeline-set", Spec{Interface: "vtnet0", VHID: 1, Addresses: prefixes("192.0.2.100/24")}, "route", 6},
		{"15.1", "timeline-set", Spec{Interface: "vtnet0", VHID: 1}, "nlroute", 6},
		{"15.1", "timeline-set", Spec{Interface: "vtnet0", VHID: 1}, "devd", 6},
		{"15.1", "timeline-set", Spec{Interface: "vtnet0", VHID: 2}, "devd", 3},
		{"15.1", "jail-timeline-inside", Spec{Interface: "epair0b", VHID: 1, Addresses: prefixes("10.0.0.100/32")}, "route", 6},
		{"15.1", "jail-timeline-inside", Spec{Interface: "epair0b", VHID: 1}, "nlroute", 6},
	} {
		r := timeline(t, oneVector(t, c.release, c.name), c.first)
		count := 0
		for _, tr := range r.transitions {
			if tr.vhid != c.first.VHID || tr.from != cluster.Master && tr.to != cluster.Master {
				continue
			}
			count++
			if !slices.ContainsFunc(r.told, func(m told) bool {
				return m.channel == c.channel && m.says == moved && m.at > tr.at-echo && m.at < tr.at+150*time.Millisecond
			}) {
				t.Errorf("%s/%s: at %v %v to %v: %s did not tell of a move", c.release, c.name, tr.at, tr.from, tr.to, c.channel)
			}
		}
		if count < c.least {
			t.Errorf("%s/%s: %d moves of vhid %d, want %d or more", c.release, c.name, count, c.first.VHID, c.least)
		}
	}
}

// A vhid of another number, interface or address is none of ours.
func TestMovesOfOthersAreNotTakenForOurs(t *testing.T) {
	v := oneVector(t, "15.1", "timeline-set")
	for _, first := range []Spec{
		{Interface: "vtnet0", VHID: 3, Addresses: prefixes("192.0.2.10/32")},
		{Interface: "vtnet1", VHID: 1, Addresses: prefixes("192.0.2.10/32")},
		{Interface: "vtnet0.1", VHID: 1},
	} {
		for _, m := range timeline(t, v, first).told {
			if m.says == moved {
				t.Errorf("%+v: at %v %s tells of a move", first, m.at, m.channel)
			}
		}
	}
}

func TestARoutingMessageThatIsCutWakesAndIsNoMove(t *testing.T) {
	first := Spec{Interface: "vtnet0", VHID: 1, Addresses: prefixes("192.0.2.100/32")}
	for _, line := range oneVector(t, "13.2", "timeline-main").Lines {
		if line.Key != "route" {
			continue
		}
		_, text, _ := strings.Cut(line.Value, " ")
		message := vectorBytes(t, text)
		whole := routeSays(message, first)
		for n := range len(message) {
			switch said := routeSays(message[:n], first); {
			case n < 12 && said != wake:
				t.Fatalf("the first %d bytes of %x: %d, want a wake-up", n, message, said)
			case n >= 12 && said > whole:
				t.Fatalf("the first %d bytes of %x say %d, all say %d", n, message, said, whole)
			}
		}
	}
}

func TestRoutesToNetworksDoNotWake(t *testing.T) {
	for _, c := range []struct {
		message string
		want    notice
	}{
		{"c80005010100000041001000", ignored}, // RTM_ADD of a network
		{"c80005020100000040001000", ignored}, // RTM_DELETE of one
		{"f00005010000000045040000", wake},    // RTM_ADD to a host
		{"b80005020200000044001000", wake},    // RTM_DELETE
		{"a800050e0000000063890000", wake},    // RTM_IFINFO
		{"9000050f3200000000000000", ignored}, // RTM_NEWMADDR
		{"900005113200000000000000", ignored}, // RTM_IFANNOUNCE
		{"c80004010100000041001000", wake},    // of a version that is not known
	} {
		if got := routeSays(vectorBytes(t, c.message), testSpecs[0]); got != c.want {
			t.Errorf("%s: %d, want %d", c.message, got, c.want)
		}
	}
}

func TestTheAddressOfARoutingMessage(t *testing.T) {
	// RTM_DELADDR of 13.2, of 192.0.2.100, and RTM_NEWADDR of 2001:db8::100.
	four := vectorBytes(t, "7c00050db400000001000000010000000000000010020000ffffffff0000000000000000381201000606060076746e65743052540012345600000000000000000000000000000000000000000000000000000000000000000000000010020000c0000264000000000000000010020000c00002640000000000000000")
	six := vectorBytes(t, "8c00050c340000000400000001000000000000001c1c000000000000ffffffffffffffffffffffffffffffff0000000000000000381201000606060076746e6574305254001234560000000000000000000000000000000000000000000000000000000000000000000000001c1c00000000000020010db80000000000000000000001000000000000000000")
	edit := func(b []byte, at int, value byte) []byte {
		b = slices.Clone(b)
		b[at] = value
		return b
	}
	for name, c := range map[string]struct {
		message []byte
		want    string // "" for an error
	}{
		"IPv4":                     {four, "192.0.2.100"},
		"IPv6":                     {six, "2001:db8::100"},
		"no address in the bitmap": {edit(four, 4, 0x94), ""},
		"another family":           {edit(four, 20+16+56+1, 18), ""},
		"a length of 0":            {edit(four, 20+16+56, 0), ""},
		"a length too short":       {edit(four, 20+16+56, 7), ""},
		"a length beyond the end":  {edit(four, 20+16+56, 200), ""},
		"cut":                      {four[:80], ""},
		"header only":              {four[:20], ""},
		"less than a header":       {four[:19], ""},
	} {
		address, err := routeAddress(c.message)
		if c.want == "" && err == nil {
			t.Errorf("%s: %v, want an error", name, address)
		}
		if c.want != "" && (err != nil || address != netip.MustParseAddr(c.want)) {
			t.Errorf("%s: %v, %v; want %s", name, address, err, c.want)
		}
	}
}

func TestTheAddressOfASocketOfNetlinkOnFreeBSD(t *testing.T) {
	// struct sockaddr_nl: length, family 38, padding, port 0, groups RTMGRP_LINK | IPV4_IFADDR | IPV6_IFADDR.
	if got := freebsdNetlinkAddress(rtnlGroups); fmt.Sprintf("%x", got) != "0c2600000000000011010000" {
		t.Errorf("%x", got)
	}
}

func TestAnAddressOfNetlinkOnFreeBSDHasItsVHID(t *testing.T) {
	datagram := vectorBytes(t, "50000000140000000000000000000000022000000100000008000100c000026408000200c000026408000400c00002640b00030076746e657430000008000800000000000c000b000800010001000000")
	messages, err := splitNetlink(datagram)
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	got, err := decodeIfaddr(messages[0].body)
	want := ifaddr{index: 1, prefix: netip.MustParsePrefix("192.0.2.100/32"), label: "vtnet0", vhid: 1}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// addressMessage builds an RTM_NEWADDR or RTM_DELADDR.
func addressMessage(kind, flags uint16, seq uint32, index uint32, bits, header byte, attrs []byte) []byte {
	body := []byte{2, bits, header, 0}
	body = order.AppendUint32(body, index)
	return netlinkRequest(kind, flags, seq, append(body, attrs...))
}

func TestAddressesThatContradictThemselvesAreErrors(t *testing.T) {
	good := appendAttr(nil, ifaLocal, []byte{192, 0, 2, 10})
	for name, body := range map[string][]byte{
		"nothing":                {},
		"a cut header":           {2, 32, 0, 0, 1, 0, 0},
		"no address":             {2, 32, 0, 0, 1, 0, 0, 0},
		"an address of 5 bytes":  append([]byte{2, 32, 0, 0, 1, 0, 0, 0}, appendAttr(nil, ifaLocal, make([]byte, 5))...),
		"a prefix of 33 bits":    append([]byte{2, 33, 0, 0, 1, 0, 0, 0}, good...),
		"an attribute that lies": append([]byte{2, 32, 0, 0, 1, 0, 0, 0}, 200, 0, 2, 0, 192, 0, 2, 10),
		"an attribute of 0":      append([]byte{2, 32, 0, 0, 1, 0, 0, 0}, 0, 0, 2, 0),
	} {
		if a, err := decodeIfaddr(body); err == nil {
			t.Errorf("%s: %+v, want an error", name, a)
		}
	}
}

func FuzzRouteSays(f *testing.F) {
	for _, v := range vectors(f, "timeline-*.txt") {
		for _, value := range v.Values("route") {
			_, text, _ := strings.Cut(value, " ")
			f.Add(vectorBytes(f, text))
		}
	}
	first := Spec{Interface: "vtnet0", VHID: 1, Addresses: prefixes("192.0.2.100/32", "2001:db8::100/128")}
	f.Fuzz(func(t *testing.T, message []byte) {
		said := routeSays(message, first)
		if said == moved && len(message) < ifaHeaderLen+16 {
			t.Errorf("%d bytes name an address", len(message))
		}
		if address, err := routeAddress(message); err == nil && !address.IsValid() {
			t.Error("an address that is none")
		}
	})
}

func FuzzNetlinkSays(f *testing.F) {
	for _, v := range vectors(f, "*timeline-*.txt") {
		for _, value := range v.Values("nlroute") {
			_, text, _ := strings.Cut(value, " ")
			f.Add(vectorBytes(f, text))
		}
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		_, err := splitNetlink(datagram)
		for _, said := range []notice{freebsdSays(datagram, testSpecs[0]), linuxSays(datagram, testSpecs[0])} {
			if err != nil && said != wake {
				t.Errorf("what cannot be read says %d", said)
			}
		}
		if a, err := decodeIfaddr(datagram); err == nil && !a.prefix.IsValid() {
			t.Error("a prefix that is none")
		}
	})
}
