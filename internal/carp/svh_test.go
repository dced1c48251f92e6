package carp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// setOps are the recorded SETs: what was sent, and what the kernel said.
func setOps(t testing.TB) []vector {
	t.Helper()
	var ops []vector
	for _, v := range vectors(t, "*netlink-set*.txt") {
		for _, op := range v.Ops() {
			if strings.HasPrefix(op.Op(), "set:") {
				ops = append(ops, op)
			}
		}
	}
	if len(ops) < 15 {
		t.Fatalf("only %d", len(ops))
	}
	return ops
}

// setArguments are the arguments of a recorded SET.
func setArguments(t testing.TB, op vector) map[string]string {
	t.Helper()
	args := map[string]string{}
	for arg := range strings.SplitSeq(strings.TrimPrefix(op.Op(), "set:"), ",") {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			t.Fatalf("%v: %q", op, arg)
		}
		args[name] = value
	}
	return args
}

// TestASetHasTheBytesThatTheRecordedKernelsTook compares attribute by attribute, header, value and padding: the
// recordings leave some out, which is what SetVHID never does.
func TestASetHasTheBytesThatTheRecordedKernelsTook(t *testing.T) {
	compared := 0
	for _, op := range setOps(t) {
		sent := op.Bytes(t, "send")
		args := setArguments(t, op)
		s := goodSettings()
		s.Password = cluster.Secret(args["key"])
		for name, field := range map[string]*int{"vhid": &s.VHID, "advbase": &s.AdvBase, "advskew": &s.AdvSkew} {
			if value, ok := args[name]; ok {
				*field = atoi(t, value)
			}
		}
		if s.check() != nil || args["state"] != "" || args["version"] != "" || args["key0"] != "" || args["flags"] != "" {
			continue // what SetVHID does not send
		}
		kept := map[string]uint16{"ifname": carpAttrIfName, "vhid": carpAttrVHID, "advbase": carpAttrAdvBase, "advskew": carpAttrAdvSkew, "key": carpAttrKey}
		attrs, err := splitAttrs(s.attributes(args["ifname"]))
		if err != nil {
			t.Fatal(err)
		}
		body := []byte{carpSet, 0, 0, 0}
		for _, a := range attrs {
			for name := range args {
				if kept[name] == a.kind {
					body = appendAttr(body, a.kind, a.value)
				}
			}
		}
		got := netlinkRequest(order.Uint16(sent[4:]), nlmRequest|nlmAck, order.Uint32(sent[8:]), body)
		if !bytes.Equal(got, sent) {
			t.Errorf("%v:\n%x, recorded\n%x", op, got, sent)
		}
		compared++
	}
	if compared < 5 {
		t.Errorf("only %d", compared)
	}
}

func TestASetNamesEveryParameterAndTheGroupsOrThePeer(t *testing.T) {
	peer4, peer6 := netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::12")
	for _, c := range []struct {
		peer   netip.Addr
		v4, v6 netip.Addr
	}{
		{netip.Addr{}, netip.MustParseAddr("224.0.0.18"), netip.MustParseAddr("ff02::12")},
		{peer4, peer4, netip.MustParseAddr("ff02::12")},
		{peer6, netip.MustParseAddr("224.0.0.18"), peer6},
	} {
		s := goodSettings()
		s.Peer, s.AdvSkew = c.peer, 0
		attrs, err := splitAttrs(s.attributes("em0"))
		if err != nil {
			t.Fatal(err)
		}
		want := []netlinkAttr{
			{9, []byte("em0\x00")}, {1, []byte{1, 0, 0, 0}}, {3, []byte{1, 0, 0, 0}}, {4, []byte{0, 0, 0, 0}},
			{5, []byte("secret\x00")}, {7, c.v4.AsSlice()}, {8, c.v6.AsSlice()},
		}
		if fmt.Sprint(attrs) != fmt.Sprint(want) {
			t.Errorf("peer %v: %v, want %v", c.peer, attrs, want)
		}
	}
	s := goodSettings()
	s.Password = nil
	attrs, _ := splitAttrs(s.attributes("em0"))
	if slices.ContainsFunc(attrs, func(a netlinkAttr) bool { return a.kind == carpAttrKey }) {
		t.Error("an empty password is sent")
	}
}

// TestTheRecordedAnswersToSetAreUnderstood hands each recorded answer to the very call that SetVHID makes.
func TestTheRecordedAnswersToSetAreUnderstood(t *testing.T) {
	recorded := regexp.MustCompile(`NLMSG_ERROR .*error=(\d+)`)
	for _, op := range setOps(t) {
		var want errno
		for _, line := range op.Values("#") {
			if m := recorded.FindStringSubmatch(line); m != nil {
				n, _ := strconv.Atoi(m[1])
				want = errno(n)
			}
		}
		if len(op.Values("recv")) == 0 {
			continue // sent without NLM_F_ACK
		}
		conn := &replayedConn{answers: [][]byte{op.Bytes(t, "recv")}}
		err := (&carpConn{conn: conn, family: 17, buffer: make([]byte, 4096)}).set(setArguments(t, op)["ifname"], goodSettings())
		if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
			t.Errorf("%v: %v, want errno %d", op, err, want)
		}
	}
}

// replayedConn gives recorded answers, with the number of the request that it was sent.
type replayedConn struct {
	answers [][]byte
	seq     uint32
}

func (r *replayedConn) Close() error                { return nil }
func (r *replayedConn) SetDeadline(time.Time) error { return nil }

func (r *replayedConn) Write(b []byte) (int, error) {
	r.seq = order.Uint32(b[8:])
	return len(b), nil
}

func (r *replayedConn) Read(b []byte) (int, error) {
	if len(r.answers) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	answer := slices.Clone(r.answers[0])
	r.answers = r.answers[1:]
	order.PutUint32(answer[8:], r.seq)
	return copy(b, answer), nil
}

// TestACarpreqHasTheLayoutOfTheRecordedOnes: the kernel writes the same struct that it reads.
func TestACarpreqHasTheLayoutOfTheRecordedOnes(t *testing.T) {
	compared := 0
	for _, g := range gvhs(t) {
		if g.count != 1 || len(g.slots) != 1 || g.slots[0].key == "" {
			continue
		}
		state, err := vhidReply(g.reply)
		if err != nil {
			continue
		}
		s := Settings{VHID: state.VHID, AdvBase: state.AdvBase, AdvSkew: state.AdvSkew, Password: state.Password}
		want := slices.Clone(g.reply)
		clear(want[carpReqState : carpReqState+4]) // SetVHID never says a state
		if got := s.carpReq(); !bytes.Equal(got, want) {
			t.Errorf("%v:\n%x, recorded\n%x", g.vector, got, want)
		}
		compared++
	}
	if compared < 5 {
		t.Errorf("only %d", compared)
	}
	long := Settings{VHID: 1, Password: cluster.Secret(strings.Repeat("x", 40))}
	if b := long.carpReq(); len(b) != carpReqLen || b[carpReqLen-1] != 0 {
		t.Errorf("a key without its NUL: %x", b)
	}
}

func TestAVHIDIsMadeAndChangedAndReadBack(t *testing.T) {
	for name, change := range map[string]func(*box){
		"netlink":          func(*box) {},
		"ioctl":            func(b *box) { b.netlink = false },
		"ioctl, IPv6 only": func(b *box) { b.netlink, b.inet = false, false },
		"in a VNET jail":   func(b *box) { b.jail = Jail{Jailed: true, VNET: true} },
		"at securelevel 1": func(b *box) { b.level = 1 },
	} {
		b := newBox(t)
		change(b)
		k := b.kernel()
		s := goodSettings()
		for range 2 {
			if err := k.SetVHID("em0", s); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			state := b.vhids["em0"][1]
			if state.AdvBase != s.AdvBase || state.AdvSkew != s.AdvSkew || string(state.Password) != string(s.Password) || state.Role != cluster.Init {
				t.Errorf("%s: %+v, want %+v", name, state, s)
			}
			s.AdvBase, s.AdvSkew, s.Password = 255, 254, cluster.Secret("0123456789abcdefghi")
		}
		// Without a password the key stays.
		s.Password, s.AdvSkew = nil, 0
		if err := k.SetVHID("em0", s); err != nil || string(b.vhids["em0"][1].Password) != "0123456789abcdefghi" {
			t.Errorf("%s: %v, %q", name, err, []byte(b.vhids["em0"][1].Password))
		}
	}
}

func TestAPeerIsSetAndUnsetByNetlinkOnly(t *testing.T) {
	b := newBox(t)
	k := b.kernel()
	s := goodSettings()
	s.Peer = netip.MustParseAddr("198.51.100.2")
	if err := k.SetVHID("em0", s); err != nil || b.vhids["em0"][1].Peer != s.Peer || b.vhids["em0"][1].Peer6 != carpGroup6 {
		t.Errorf("%v, %+v", err, b.vhids["em0"][1])
	}
	s.Peer = netip.Addr{}
	if err := k.SetVHID("em0", s); err != nil || b.vhids["em0"][1].Peer != carpGroup {
		t.Errorf("%v, %+v", err, b.vhids["em0"][1])
	}
	b = newBox(t)
	b.netlink = false
	s.Peer = netip.MustParseAddr("198.51.100.2")
	if err := b.kernel().SetVHID("em0", s); !failsWith(err, errNoPeer, "FreeBSD 14", "peer") || len(b.log) != 0 {
		t.Errorf("%v, hint %q, %v", err, cluster.HintOf(err), b.log)
	}
}

func TestARefusedSetSaysWhatToDo(t *testing.T) {
	for _, netlink := range []bool{true, false} {
		for _, c := range []struct {
			name, iface string
			change      func(*box)
			sentinel    error
			words, hint string
		}{
			{"carp is not loaded", "em0", func(b *box) { b.loaded = false }, ErrNoModule, "set vhid 1 of em0", "kldload carp"},
			{"no such interface", "em9", func(*box) {}, ErrNoInterface, "em9", "ifconfig -l"},
			{"an interface that cannot", "lo0", func(*box) {}, ErrNoCARP, "lo0", "Ethernet"},
			{"unprivileged", "em0", func(b *box) { b.root = false }, fs.ErrPermission, "not permitted", "as root"},
			{"a jail without VNET", "em0", func(b *box) { b.jail = Jail{Jailed: true} }, fs.ErrPermission, "not permitted", "jail's host"},
			{"a vhid of VRRP", "em0", func(b *box) {
				b.vhids["em0"] = map[int]State{1: {VHID: 1, Version: "vrrp3"}}
			}, einval, "VRRP", "ifconfig em0"},
		} {
			b := newBox(t)
			b.netlink = netlink
			c.change(b)
			err := b.kernel().SetVHID(c.iface, goodSettings())
			if !failsWith(err, c.sentinel, c.words, c.hint) || strings.Contains(err.Error()+cluster.HintOf(err), "secret") || len(b.log) != 0 {
				t.Errorf("%s (netlink %v): %v, hint %q, %v", c.name, netlink, err, cluster.HintOf(err), b.log)
			}
		}
	}
	c := newBox(t).calls()
	if err := c.setError("set vhid 1 of em0", "em0", goodSettings(), eaddrnotavail); !failsWith(err, eaddrnotavail, "multicast", "Ethernet") {
		t.Error(err)
	}
	if err := c.setError("set vhid 1 of em0", "em0", goodSettings(), enobufs); !failsWith(err, enobufs, "set vhid 1 of em0", "") {
		t.Error(err)
	}
}

func TestAKernelThatDidSomethingElseIsNotBelieved(t *testing.T) {
	for words, lie := range map[string]func(*State){
		"advbase is 9, not 1":         func(s *State) { s.AdvBase = 9 },
		"advskew is 0, not 100":       func(s *State) { s.AdvSkew = 0 },
		"the password is another one": func(s *State) { s.Password = s.Password[:5] },
		"password is another":         func(s *State) { s.Password = nil },
		"the version is vrrp3":        func(s *State) { s.Version = "vrrp3" },
		"the peer is 198.51.100.9":    func(s *State) { s.Peer = netip.MustParseAddr("198.51.100.9") },
		"the IPv6 peer is fe80::9":    func(s *State) { s.Peer6 = netip.MustParseAddr("fe80::9") },
		"the answer is of vhid 2":     func(s *State) { s.VHID = 2 },
	} {
		b := newBox(t)
		b.fault = func() {
			state := b.vhids["em0"][1]
			lie(&state)
			b.vhids["em0"][1] = state
		}
		err := b.kernel().SetVHID("em0", goodSettings())
		if err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "secr") {
			t.Errorf("%v, want %q", err, words)
		}
	}
	b := newBox(t)
	b.fault = func() { delete(b.vhids["em0"], 1) }
	if err := b.kernel().SetVHID("em0", goodSettings()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestASetWhoseOutcomeIsUnknownIsNotRepeated: the kernel took the request, and its answer is lost.
func TestASetWhoseOutcomeIsUnknownIsNotRepeated(t *testing.T) {
	b := newBox(t)
	c := b.calls()
	sent := 0
	c.dialCARP = func() (*carpConn, error) {
		return &carpConn{conn: &deafConn{sent: &sent}, family: 17, buffer: make([]byte, 4096)}, nil
	}
	if err := c.set("em0", goodSettings()); !failsWith(err, os.ErrDeadlineExceeded, "not known", "ifconfig em0") || sent != 1 {
		t.Errorf("%v after %d requests", err, sent)
	}
}

type deafConn struct {
	replayedConn
	sent *int
}

func (d *deafConn) Write(b []byte) (int, error) {
	*d.sent++
	return len(b), nil
}

// TestTheRecordedAnswersToSIOCSVHAreUnderstood plays what the ioctl of each recording said.
func TestTheRecordedAnswersToSIOCSVHAreUnderstood(t *testing.T) {
	for _, v := range vectors(t, "*ioctl-svh*.txt") {
		said, _, _ := strings.Cut(v.Value(t, "SIOCSVH 0xc02069f5 errno"), " ")
		number := errno(atoi(t, said))
		b := newBox(t)
		b.netlink = false
		c := b.calls()
		set := c.setVHID
		c.setVHID = func(family int, iface [ifNameLen]byte, request []byte) error {
			if number != 0 {
				return number
			}
			return set(family, iface, request)
		}
		err := c.set("em0", goodSettings())
		switch {
		case number == 0 && err != nil:
			t.Errorf("%v: %v", v, err)
		case number == eperm && !failsWith(err, fs.ErrPermission, "not permitted", "as root"):
			t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
		case number == einval && !failsWith(err, einval, "VRRP", "ifconfig em0"):
			t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
		case number != 0 && err == nil:
			t.Errorf("%v: no error", v)
		}
	}
}
