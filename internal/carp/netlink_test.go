package carp

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// meantMessage is a netlink message as the recording's `#` lines tell it.
type meantMessage struct {
	len, kind, flags, seq int
	errno                 int // of ERROR and DONE
	attrs                 []meantAttr
}

type meantAttr struct {
	kind  int
	value []byte
}

// datagram is a recorded one with its meaning.
type datagram struct {
	bytes []byte
	meant []meantMessage
	cut   bool // the buffer of the recording was too short for it
}

var (
	messageLine = regexp.MustCompile(`^\s*len=(\d+) type=(\w+) (?:NLMSG_\w+ )?flags=(\w+) seq=(\w+) pid=\d+(?: error=(-?\d+))?`)
	attrLine    = regexp.MustCompile(`^\s*attr (\d+) len=(\d+) ([0-9a-f]*) `)
)

// datagrams are those that were received in one op of a recording.
func datagrams(t testing.TB, op vector) []datagram {
	t.Helper()
	var all []datagram
	for _, line := range op.Lines {
		switch {
		case line.Key == "recv":
			all = append(all, datagram{bytes: vectorBytes(t, line.Value)})
		case line.Key == "#" && len(all) > 0:
			all[len(all)-1].mean(t, line.Value)
		}
	}
	return all
}

func (d *datagram) mean(t testing.TB, line string) {
	t.Helper()
	if strings.Contains(line, "BAD len") {
		d.cut = true
	}
	if m := messageLine.FindStringSubmatch(line); m != nil {
		d.meant = append(d.meant, meantMessage{len: number(t, m[1]), kind: number(t, m[2]), flags: number(t, m[3]), seq: number(t, m[4]), errno: number(t, m[5])})
	}
	if m := attrLine.FindStringSubmatch(line); m != nil {
		last := &d.meant[len(d.meant)-1]
		value := vectorBytes(t, m[3])
		if want := number(t, m[2]) - nlAttrLen; len(value) != want {
			t.Fatalf("the recording's attribute %s has %d bytes, not %d", m[1], len(value), want)
		}
		last.attrs = append(last.attrs, meantAttr{number(t, m[1]), value})
	}
}

// netlinkOps are the ops of every recording of generic netlink.
func netlinkOps(t testing.TB) []vector {
	t.Helper()
	var ops []vector
	for _, pattern := range []string{"netlink-get-*.txt", "netlink-resolve-*.txt", "netlink-stale-*.txt", "netlink-notloaded-*.txt", "jail*netlink-*.txt", "host-netlink-*.txt"} {
		for _, v := range vectors(t, pattern) {
			ops = append(ops, v.Ops()...)
		}
	}
	if len(ops) < 50 {
		t.Fatalf("only %d ops", len(ops))
	}
	return ops
}

func TestEveryRecordedDatagramIsTakenApartAsItsMeaningSays(t *testing.T) {
	read := 0
	for _, op := range netlinkOps(t) {
		for _, d := range datagrams(t, op) {
			messages, err := splitNetlink(d.bytes)
			if d.cut {
				if !errors.Is(err, errCut) || messages != nil {
					t.Errorf("%v: a cut datagram gave %d messages, %v", op, len(messages), err)
				}
				continue
			}
			if err != nil || len(messages) != len(d.meant) {
				t.Fatalf("%v: %d messages, %v; want %d", op, len(messages), err, len(d.meant))
			}
			for i, m := range messages {
				if err := sameMessage(m, d.meant[i]); err != nil {
					t.Errorf("%v: message %d: %v", op, i, err)
				}
				read++
			}
		}
	}
	if read < 200 {
		t.Errorf("only %d messages were compared", read)
	}
}

func sameMessage(m netlinkMessage, want meantMessage) error {
	if int(m.kind) != want.kind || int(m.flags) != want.flags || int(m.seq) != want.seq || len(m.body)+nlHeaderLen != want.len {
		return fmt.Errorf("type %d flags %#x seq %#x len %d, want %+v", m.kind, m.flags, m.seq, len(m.body)+nlHeaderLen, want)
	}
	if m.kind == nlmsgError || m.kind == nlmsgDone {
		if got, err := messageErrno(m); err != nil || int(got) != want.errno {
			return fmt.Errorf("errno %d, %v, want %d", int(got), err, want.errno)
		}
		return nil
	}
	attrs, err := genericAttrs(m.body)
	if err != nil || len(attrs) != len(want.attrs) {
		return fmt.Errorf("%d attributes, %v, want %d", len(attrs), err, len(want.attrs))
	}
	for i, a := range attrs {
		if int(a.kind) != want.attrs[i].kind || string(a.value) != string(want.attrs[i].value) {
			return fmt.Errorf("attribute %d %x, want %d %x", a.kind, a.value, want.attrs[i].kind, want.attrs[i].value)
		}
	}
	return nil
}

func TestWhatIsPutTogetherIsTakenApartAgain(t *testing.T) {
	for length := range 40 {
		value := make([]byte, length)
		attrs := appendAttr(appendAttr(nil, 0x4123, value), 7, []byte("x"))
		if len(attrs)%4 != 0 {
			t.Errorf("attributes of %d bytes are not aligned", len(attrs))
		}
		request := netlinkRequest(17, 0x305, 99, attrs)
		messages, err := splitNetlink(append(request, request...))
		if err != nil || len(messages) != 2 || messages[1].kind != 17 || messages[1].flags != 0x305 || messages[1].seq != 99 {
			t.Fatalf("%+v, %v", messages, err)
		}
		got, err := splitAttrs(messages[1].body)
		if err != nil || len(got) != 2 || got[0].kind != 0x0123 || len(got[0].value) != length || string(got[1].value) != "x" {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

// The last message and the last attribute may leave out the bytes that would align the next.
func TestAnUnalignedEndIsNotACut(t *testing.T) {
	b := netlinkRequest(17, 0, 1, []byte{5, 0, 9, 0, 'x'})
	messages, err := splitNetlink(b)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%+v, %v", messages, err)
	}
	if attrs, err := splitAttrs(messages[0].body); err != nil || len(attrs) != 1 || string(attrs[0].value) != "x" {
		t.Errorf("%+v, %v", attrs, err)
	}
}

func TestLengthsThatCannotBeAreErrors(t *testing.T) {
	message := func(length uint32) []byte {
		b := netlinkRequest(17, 0, 1, make([]byte, 8))
		order.PutUint32(b, length)
		return b
	}
	for _, length := range []uint32{0, 1, 15, 25, 0x7fffffff, 0x80000000, 0xfffffffd, 0xffffffff} {
		if messages, err := splitNetlink(message(length)); err == nil || messages != nil {
			t.Errorf("a message that claims %d bytes of 24: %v, %v", length, messages, err)
		}
	}
	for _, length := range []uint16{0, 1, 3, 9, 0x7fff, 0xffff} {
		b := appendAttr(nil, 1, make([]byte, 4))
		order.PutUint16(b, length)
		if attrs, err := splitAttrs(b); err == nil || attrs != nil {
			t.Errorf("an attribute that claims %d bytes of 8: %v, %v", length, attrs, err)
		}
	}
}

func FuzzNetlink(f *testing.F) {
	for _, op := range netlinkOps(f) {
		for _, d := range datagrams(f, op) {
			f.Add(d.bytes)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		messages, err := splitNetlink(b)
		if err != nil && messages != nil {
			t.Fatal("messages with an error")
		}
		total := 0
		for _, m := range messages {
			total += nlHeaderLen + len(m.body)
			attrs, err := splitAttrs(m.body)
			if err != nil && attrs != nil {
				t.Fatal("attributes with an error")
			}
			inside := 0
			for _, a := range attrs {
				inside += nlAttrLen + len(a.value)
			}
			if inside > len(m.body) {
				t.Fatalf("attributes of %d bytes in a body of %d", inside, len(m.body))
			}
		}
		if total > len(b) {
			t.Fatalf("messages of %d bytes in a datagram of %d", total, len(b))
		}
	})
}
