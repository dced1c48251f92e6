package carp

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// meantStates are the vhids that a recorded datagram tells of, put together from its `#` lines alone.
func meantStates(t testing.TB, d datagram) []State {
	t.Helper()
	var states []State
	for _, m := range d.meant {
		if m.kind <= genlCtrl {
			continue
		}
		s := State{Source: "netlink"}
		for _, a := range m.attrs {
			meanAttr(t, &s, a)
		}
		states = append(states, s)
	}
	return states
}

func meanAttr(t testing.TB, s *State, a meantAttr) {
	t.Helper()
	switch a.kind {
	case 1:
		s.VHID = int(a.value[0])
	case 2:
		s.Role = [...]cluster.Role{cluster.Init, cluster.Backup, cluster.Master}[a.value[0]]
	case 3:
		s.AdvBase = int(a.value[0])
	case 4:
		s.AdvSkew = int(a.value[0])
	case 5:
		if key := bytes.TrimRight(a.value, "\x00"); len(key) > 0 {
			s.Password = key
		}
	case 7:
		s.Peer = netip.AddrFrom4([4]byte(a.value))
	case 8:
		s.Peer6 = netip.AddrFrom16([16]byte(a.value))
	case 10:
		s.Version = map[byte]string{2: "carp", 3: "vrrp3"}[a.value[0]]
	case 11, 12: // VRRP's priority and interval
	default:
		t.Fatalf("the recording has attribute %d", a.kind)
	}
}

func sameState(a, b State) bool {
	samePassword := bytes.Equal(a.Password, b.Password)
	a.Password, b.Password = nil, nil
	return samePassword && a.Source == b.Source && a.VHID == b.VHID && a.Role == b.Role && a.AdvBase == b.AdvBase &&
		a.AdvSkew == b.AdvSkew && a.Version == b.Version && a.Peer == b.Peer && a.Peer6 == b.Peer6
}

func TestEveryRecordedAnswerToGetIsReadAsItsMeaningSays(t *testing.T) {
	read := map[cluster.Role]int{}
	for _, op := range netlinkOps(t) {
		if !strings.HasPrefix(op.Op(), "get:") {
			continue
		}
		for _, d := range datagrams(t, op) {
			if d.cut {
				continue
			}
			want := meantStates(t, d)
			got, err := carpStates(bodiesOf(t, d))
			if err != nil || len(got) != len(want) {
				t.Fatalf("%v: %d states, %v; want %d", op, len(got), err, len(want))
			}
			for i := range got {
				if !sameState(got[i], want[i]) {
					t.Errorf("%v: %+v, want %+v", op, got[i], want[i])
				}
				read[got[i].Role]++
			}
		}
	}
	if read[cluster.Master] < 10 || read[cluster.Backup] < 10 || read[cluster.Init] < 4 {
		t.Errorf("too few states were read: %v", read)
	}
}

// bodiesOf are those of the messages that are neither ERROR nor DONE.
func bodiesOf(t testing.TB, d datagram) [][]byte {
	t.Helper()
	messages, err := splitNetlink(d.bytes)
	if err != nil {
		t.Fatal(err)
	}
	var bodies [][]byte
	for _, m := range messages {
		if m.kind > genlCtrl {
			bodies = append(bodies, m.body)
		}
	}
	return bodies
}

// What these recordings say is also written out here, so that a mistake in the reading of their `#` lines shows.
func TestSomeRecordedAnswersReadByHand(t *testing.T) {
	multicast, multicast6 := netip.MustParseAddr("224.0.0.18"), netip.MustParseAddr("ff02::12")
	for _, c := range []struct {
		name, op string
		want     State
	}{
		{"netlink-get-master-root", "get:ifname=vtnet0,vhid=1",
			State{Source: "netlink", VHID: 1, Role: cluster.Master, AdvBase: 1, AdvSkew: 0, Password: cluster.Secret("secret"), Version: "carp", Peer: multicast, Peer6: multicast6}},
		{"netlink-get-master-root", "get:ifname=vtnet0,vhid=2",
			State{Source: "netlink", VHID: 2, Role: cluster.Master, AdvBase: 1, AdvSkew: 100, Password: cluster.Secret("0123456789abcdefghi"), Version: "carp", Peer: multicast, Peer6: multicast6}},
		{"netlink-get-vrrp-root", "get:ifname=vtnet1,vhid=4", State{Source: "netlink", VHID: 4, Role: cluster.Master, Version: "vrrp3"}},
		{"netlink-get-peer", "get:ifname=vtnet1",
			State{Source: "netlink", VHID: 3, Role: cluster.Backup, AdvBase: 2, AdvSkew: 240, Password: cluster.Secret("secret"), Version: "carp", Peer: netip.MustParseAddr("198.51.100.2"), Peer6: multicast6}},
	} {
		op := oneOp(t, oneVector(t, "15.1", c.name), c.op)
		states, err := carpStates(bodiesOf(t, datagrams(t, op)[0]))
		if err != nil || len(states) != 1 || !sameState(states[0], c.want) {
			t.Errorf("%s %s: %+v, %v; want %+v", c.name, c.op, states, err, c.want)
		}
	}
}

func oneOp(t testing.TB, v vector, name string) vector {
	t.Helper()
	for _, op := range v.Ops() {
		if op.Op() == name {
			return op
		}
	}
	t.Fatalf("%v has no op %q", v, name)
	return vector{}
}

func TestTheFamilysNumberIsThatOfTheRecording(t *testing.T) {
	resolved := 0
	for _, op := range netlinkOps(t) {
		if op.Op() != "resolve:" {
			continue
		}
		d := datagrams(t, op)[0]
		if d.meant[0].kind != genlCtrl {
			continue
		}
		messages, err := splitNetlink(d.bytes)
		if err != nil {
			t.Fatal(err)
		}
		id, err := familyID([][]byte{messages[0].body})
		want := "family id " + strconv.Itoa(int(id))
		if err != nil || !strings.Contains(strings.Join(op.Values("#"), "\n"), want) {
			t.Errorf("%v: family %d, %v; the recording says otherwise", op, id, err)
		}
		resolved++
	}
	if resolved < 10 {
		t.Errorf("only %d resolved", resolved)
	}
}

func TestRequestsAreThoseThatRealKernelsAnswered(t *testing.T) {
	compared := 0
	for _, op := range netlinkOps(t) {
		command, rest, _ := strings.Cut(op.Op(), ":")
		want := vectorBytes(t, op.Value(t, "send"))
		seq := order.Uint32(want[8:])
		var send func(c *carpConn)
		var iface string
		var vhid int
		switch {
		case command == "resolve" && rest == "":
			send = func(c *carpConn) { _ = c.resolve() }
		case command == "get" && plainGet(rest, &iface, &vhid):
			send = func(c *carpConn) { _, _ = c.get(iface, vhid) }
		default:
			continue
		}
		conn := &scriptedConn{t: t}
		send(&carpConn{conn: conn, seq: seq - 1, family: order.Uint16(want[4:]), buffer: make([]byte, 100)})
		if len(conn.sent) != 1 || !bytes.Equal(conn.sent[0], want) {
			t.Errorf("%v: sent %x, want %x", op, conn.sent, want)
		}
		compared++
	}
	if compared < 30 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// plainGet tells whether an op asks for one vhid of an interface by its name, as certsync does.
func plainGet(args string, iface *string, vhid *int) bool {
	name, id, _ := strings.Cut(args, ",vhid=")
	var ok bool
	*iface, ok = strings.CutPrefix(name, "ifname=")
	if !ok || strings.Contains(name, ",") {
		return false
	}
	n, err := strconv.Atoi(id)
	*vhid = n
	return err == nil
}

// attrsOf builds a carp answer's body.
func attrsOf(attrs ...meantAttr) []byte {
	body := []byte{carpGet, 0, 0, 0}
	for _, a := range attrs {
		body = appendAttr(body, uint16(a.kind), a.value)
	}
	return body
}

func u32(kind int, value uint32) meantAttr {
	return meantAttr{kind, order.AppendUint32(nil, value)}
}

func TestAnAnswerThatCannotBeIsNoRole(t *testing.T) {
	vhid, master := u32(carpAttrVHID, 1), u32(carpAttrState, 2)
	key := meantAttr{carpAttrKey, append([]byte("hunter2"), make([]byte, 13)...)}
	for name, body := range map[string][]byte{
		"empty":                      nil,
		"header only":                attrsOf(),
		"header cut":                 {carpGet, 0, 0},
		"no state":                   attrsOf(vhid, key),
		"no vhid":                    attrsOf(master, key),
		"state 3":                    attrsOf(vhid, key, u32(carpAttrState, 3)),
		"state -1":                   attrsOf(vhid, u32(carpAttrState, 0xffffffff)),
		"state 2 in the high bytes":  attrsOf(vhid, u32(carpAttrState, 0x00020000)),
		"state of one byte":          attrsOf(vhid, meantAttr{carpAttrState, []byte{2}}),
		"state of eight bytes":       attrsOf(vhid, meantAttr{carpAttrState, []byte{2, 0, 0, 0, 0, 0, 0, 0}}),
		"state twice":                attrsOf(vhid, u32(carpAttrState, 1), master),
		"vhid twice":                 attrsOf(vhid, u32(carpAttrVHID, 2), master),
		"vhid 0":                     attrsOf(u32(carpAttrVHID, 0), master),
		"vhid 256":                   attrsOf(u32(carpAttrVHID, 256), master),
		"advbase 256":                attrsOf(vhid, master, u32(carpAttrAdvBase, 256)),
		"advskew -1":                 attrsOf(vhid, master, u32(carpAttrAdvSkew, 0xffffffff)),
		"key of 21 bytes":            attrsOf(vhid, master, meantAttr{carpAttrKey, append([]byte("hunter2"), make([]byte, 14)...)}),
		"address of 16 for IPv4":     attrsOf(vhid, master, meantAttr{carpAttrAddr, make([]byte, 16)}),
		"version 1":                  attrsOf(vhid, master, meantAttr{carpAttrVersion, []byte{1}}),
		"attribute that ends behind": attrsOf(vhid, master)[:15],
	} {
		states, err := carpStates([][]byte{body})
		if err == nil || states != nil {
			t.Errorf("%s: %+v", name, states)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the password is in the error: %v", name, err)
		}
	}
	states, err := carpStates([][]byte{attrsOf(u32(77, 5), vhid, master, u32(77, 5), meantAttr{99, nil})})
	if err != nil || len(states) != 1 || states[0].Role != cluster.Master {
		t.Errorf("attributes of a later kernel: %+v, %v", states, err)
	}
}

func TestAStateDoesNotShareMemoryWithTheBufferThatItCameIn(t *testing.T) {
	body := attrsOf(u32(carpAttrVHID, 1), u32(carpAttrState, 2), meantAttr{carpAttrKey, append([]byte("hunter2"), make([]byte, 13)...)})
	states, err := carpStates([][]byte{body})
	clear(body)
	if err != nil || string(states[0].Password) != "hunter2" {
		t.Errorf("%q, %v", []byte(states[0].Password), err)
	}
}

func TestTheZoneInALinkLocalAddressIsTakenAway(t *testing.T) {
	for in, want := range map[string]string{
		"fe80:7::1": "fe80::1", "ff02:7::12": "ff02::12", "ff01:7::1": "ff01::1", "febf:7::1": "febf::1",
		"2001:7::1": "2001:7::1", "ff05:7::1": "ff05:7::1", "fec0:7::1": "fec0:7::1", "224.0.0.18": "224.0.0.18", "169.254.1.2": "169.254.1.2",
	} {
		if got := unscoped(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %v, want %s", in, got, want)
		}
	}
}
