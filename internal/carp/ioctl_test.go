package carp

import (
	"bytes"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// gvh is a recorded SIOCGVH.
type gvh struct {
	vector
	iface          string
	vhid, count    int
	family         int
	request, reply []byte // the carpreqs, without the guard bytes
	slots          []slot
}

// slot is one carpreq of a reply as its `#` line tells it.
type slot struct {
	count, vhid, state, advskew, advbase int
	key                                  string
}

var slotLine = regexp.MustCompile(`^slot \d+: count=(-?\d+) vhid=(-?\d+) state=(-?\d+) advskew=(-?\d+) advbase=(-?\d+) key=(".*")$`)

func readGVH(t testing.TB, v vector) gvh {
	t.Helper()
	g := gvh{vector: v, family: familyInet}
	for _, line := range v.Values("#") {
		if words := strings.Fields(line); len(words) > 6 && words[0] == "by:" {
			g.iface, g.vhid, g.count = words[4], number(t, words[5]), number(t, words[6])
		}
		if strings.Contains(line, "on a AF_INET6 ") {
			g.family = familyInet6
		}
		if m := slotLine.FindStringSubmatch(line); m != nil {
			key, err := strconv.Unquote(m[6])
			if err != nil {
				t.Fatal(err)
			}
			g.slots = append(g.slots, slot{number(t, m[1]), number(t, m[2]), number(t, m[3]), number(t, m[4]), number(t, m[5]), key})
		}
	}
	if g.iface == "" {
		t.Fatalf("%v does not say what was asked", v)
	}
	g.request, g.reply = withoutGuard(t, v.Bytes(t, "carpreq-request")), withoutGuard(t, v.Bytes(t, "carpreq-reply"))
	return g
}

// withoutGuard takes off the 80 bytes a5 that the recorder put behind a buffer.
func withoutGuard(t testing.TB, b []byte) []byte {
	t.Helper()
	body, ok := bytes.CutSuffix(b, bytes.Repeat([]byte{0xa5}, 80))
	if !ok {
		t.Fatalf("the guard bytes are gone from %x", b)
	}
	return body
}

func gvhs(t testing.TB) []gvh {
	t.Helper()
	var all []gvh
	for _, v := range vectors(t, "*ioctl-gvh*.txt") {
		all = append(all, readGVH(t, v))
	}
	if len(all) < 50 {
		t.Fatalf("only %d recordings", len(all))
	}
	return all
}

func (s slot) meant() State {
	roles := [...]cluster.Role{cluster.Init, cluster.Backup, cluster.Master}
	state := State{Source: "ioctl", VHID: s.vhid, Role: roles[s.state], AdvBase: s.advbase, AdvSkew: s.advskew}
	if s.key != "" {
		state.Password = cluster.Secret(s.key)
	}
	return state
}

func TestEveryRecordedCarpreqIsReadAsItsMeaningSays(t *testing.T) {
	read := map[cluster.Role]int{}
	for _, g := range gvhs(t) {
		for i, s := range g.slots {
			b := g.reply[i*carpReqLen:][:min(carpReqLen, len(g.reply)-i*carpReqLen)]
			state, err := vhidReply(b)
			if !s.plausible() || len(b) != carpReqLen {
				if err == nil {
					t.Errorf("%v: slot %d is read as %+v", g, i, state)
				}
				continue
			}
			if err != nil || !sameState(state, s.meant()) {
				t.Errorf("%v: slot %d: %+v, %v; want %+v", g, i, state, err, s.meant())
			}
			if g.Errno(t) == 0 {
				read[state.Role]++
			}
		}
	}
	if read[cluster.Master] < 10 || read[cluster.Backup] < 4 || read[cluster.Init] < 4 {
		t.Errorf("too few states were read: %v", read)
	}
}

// plausible tells whether a slot is one vhid's answer, and not a whole list's, the kernel's stack or the guard bytes.
func (s slot) plausible() bool {
	return s.count == 1 && s.vhid >= 1 && s.vhid <= 255 && s.state >= 0 && s.state <= 2 &&
		s.advskew >= 0 && s.advskew <= 255 && s.advbase >= 0 && s.advbase <= 255
}

func TestCarpreqsAreThoseThatRealKernelsAnswered(t *testing.T) {
	compared := 0
	for _, g := range gvhs(t) {
		if g.count != 1 || g.vhid < 1 || g.vhid > 255 {
			continue
		}
		request, err := vhidRequest(g.vhid)
		if err != nil || !bytes.Equal(request, g.request) {
			t.Errorf("%v: carpreq %x, %v; want %x", g, request, err, g.request)
		}
		name, err := interfaceName(g.iface)
		if err != nil || !bytes.Equal(name[:], g.Bytes(t, "ifreq-request")[:ifNameLen]) {
			t.Errorf("%v: name %x, %v", g, name, err)
		}
		compared++
	}
	if compared < 30 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// vhid 0, "all", panics a 13.2 kernel when there are more vhids than the count says.
func TestNoVHIDOutsideOfItsRangeIsEverAskedFor(t *testing.T) {
	for _, vhid := range []int{0, -1, 256, 257, 512, 1 << 16, 1 << 32, -1 << 63, 1<<32 + 1} {
		request, err := vhidRequest(vhid)
		if !errors.Is(err, cluster.ErrUsage) || request != nil {
			t.Errorf("vhid %d: %x, %v", vhid, request, err)
		}
	}
	for vhid := 1; vhid <= 255; vhid++ {
		request, err := vhidRequest(vhid)
		if err != nil || int(order.Uint32(request[carpReqVHID:])) != vhid || order.Uint32(request) != 1 || len(request) != carpReqLen {
			t.Errorf("vhid %d: %x, %v", vhid, request, err)
		}
	}
}

func TestACarpreqThatCannotBeIsNoRole(t *testing.T) {
	good := func() []byte {
		b := make([]byte, carpReqLen)
		order.PutUint32(b[carpReqCount:], 1)
		order.PutUint32(b[carpReqVHID:], 1)
		order.PutUint32(b[carpReqState:], 2)
		copy(b[carpReqKey:], "hunter2")
		return b
	}
	if state, err := vhidReply(good()); err != nil || state.Role != cluster.Master {
		t.Fatalf("%+v, %v", state, err)
	}
	for name, c := range map[string]struct {
		at    int
		value uint32
	}{
		"state 3": {carpReqState, 3}, "state -1": {carpReqState, 0xffffffff}, "vhid 0": {carpReqVHID, 0}, "vhid 256": {carpReqVHID, 256},
		"count 0": {carpReqCount, 0}, "count 2": {carpReqCount, 2}, "advskew 256": {carpReqAdvSkew, 256}, "advbase -1": {carpReqAdvBase, 0xffffffff},
	} {
		b := good()
		order.PutUint32(b[c.at:], c.value)
		if state, err := vhidReply(b); err == nil || state.Role != cluster.Unknown || state.Password != nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %+v, %v", name, state, err)
		}
	}
	for length := range carpReqLen {
		if state, err := vhidReply(good()[:length]); err == nil {
			t.Errorf("%d bytes: %+v", length, state)
		}
	}
}

func TestAKeyThatFillsItsPlaceIsReadWhole(t *testing.T) {
	for text, want := range map[string]string{"\x00hidden": "", "abc\x00def": "abc", "01234567890123456789": "01234567890123456789"} {
		key := make([]byte, carpKeyLen)
		copy(key, text)
		if got := carpKey(key); string(got) != want {
			t.Errorf("%q: %q, want %q", text, []byte(got), want)
		}
	}
}

func FuzzVHIDReply(f *testing.F) {
	for _, g := range gvhs(f) {
		f.Add(g.reply[:min(carpReqLen, len(g.reply))])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		state, err := vhidReply(b)
		if err != nil {
			if state.Role != cluster.Unknown {
				t.Fatalf("a role with an error: %+v", state)
			}
			return
		}
		// The reply is what an honest kernel would have written for this state.
		again := make([]byte, carpReqLen)
		for at, value := range map[int]int{carpReqCount: 1, carpReqVHID: state.VHID, carpReqState: int(state.Role) - 1, carpReqAdvSkew: state.AdvSkew, carpReqAdvBase: state.AdvBase} {
			order.PutUint32(again[at:], uint32(value))
		}
		if !bytes.Equal(again[:carpReqKey], b[:carpReqKey]) || !bytes.HasPrefix(b[carpReqKey:], state.Password) {
			t.Fatalf("%x is read as %+v", b, state)
		}
	})
}
