package carp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// scriptedConn is a netlink socket whose kernel is a function: it takes a request and gives the datagrams that come.
type scriptedConn struct {
	t        testing.TB
	kernel   func(request []byte) [][]byte
	end      error // of a Read with nothing to come; nil is a deadline that passed
	pending  [][]byte
	sent     [][]byte
	deadline time.Time
	closed   int
}

func (c *scriptedConn) SetDeadline(deadline time.Time) error {
	c.deadline = deadline
	return nil
}

func (c *scriptedConn) Write(b []byte) (int, error) {
	c.sent = append(c.sent, slices.Clone(b))
	if c.kernel != nil {
		c.pending = append(c.pending, c.kernel(b)...)
	}
	return len(b), nil
}

// Read gives one datagram, and cuts it silently where b is too short, as the kernel does.
func (c *scriptedConn) Read(b []byte) (int, error) {
	if len(c.pending) == 0 {
		if c.end != nil {
			return 0, c.end
		}
		return 0, os.ErrDeadlineExceeded
	}
	d := c.pending[0]
	c.pending = c.pending[1:]
	return copy(b, d), nil
}

func (c *scriptedConn) Close() error {
	c.closed++
	return nil
}

// fakeReading is what a reader's calls reach, and what it saw of them.
type fakeReading struct {
	t          testing.TB
	conn       *scriptedConn
	netlinkErr error // of socket(2)
	osreldate  int
	control    func(iface string, request []byte) error // SIOCGVH; nil: it must not be asked
	noSocket   map[int]bool                             // families that have none
	controls   []int                                    // the families asked
}

func (k *fakeReading) reader() *reader {
	return &reader{
		now:     func() time.Time { return time.Unix(1000, 0) },
		release: func() (int, error) { return k.osreldate, nil },
		openNetlink: func() (netlinkConn, error) {
			if k.netlinkErr != nil {
				return nil, k.netlinkErr
			}
			return k.conn, nil
		},
		getVHID: func(family int, iface [ifNameLen]byte, request []byte) error {
			if count, vhid := order.Uint32(request), order.Uint32(request[4:]); count != 1 || vhid < 1 || vhid > 255 {
				k.t.Fatalf("SIOCGVH of vhid %d with count %d: this panics a kernel", int32(vhid), int32(count))
			}
			if k.control == nil {
				k.t.Fatal("the ioctl is asked")
			}
			k.controls = append(k.controls, family)
			if k.noSocket[family] {
				return errNoSocket
			}
			return k.control(strings.TrimRight(string(iface[:]), "\x00"), request)
		},
	}
}

// reseq gives the datagram with the sequence number of a request in each of its messages.
func reseq(d, request []byte) []byte {
	d = slices.Clone(d)
	for rest := d; len(rest) >= nlHeaderLen; {
		copy(rest[8:12], request[8:12])
		rest = rest[min(uint64(len(rest)), max(nlHeaderLen, align4(uint64(order.Uint32(rest))))):]
	}
	return d
}

// replay is a kernel that answers as it did in a recording: a request is recognised by its bytes but the sequence
// number. What was not recorded is not answered.
func replay(t testing.TB, ops []vector) func(request []byte) [][]byte {
	return func(request []byte) [][]byte {
		for _, op := range ops {
			if recorded := vectorBytes(t, op.Value(t, "send")); !bytes.Equal(reseq(recorded, request), request) {
				continue
			}
			var all [][]byte
			for _, d := range datagrams(t, op) {
				all = append(all, reseq(d.bytes, request))
			}
			return all
		}
		return nil
	}
}

// wantError is words of the hint, and the sentinel, for what the kernel said of a vhid.
func wantError(number errno) (hint string, sentinel error) {
	switch number {
	case enoent:
		return "certsync bootstrap", fs.ErrNotExist
	case enxio:
		return "ifconfig -l", ErrNoInterface
	case eopnotsupp:
		return "Ethernet", ErrNoCARP
	case eprotonosupport:
		return "kldload carp", ErrNoModule
	}
	return "", nil
}

// checkRefused holds that an error is the one that the sentinel names and no other, with its hint and its place.
func checkRefused(t testing.TB, what fmt.Stringer, state State, err error, sentinel error, hint string) {
	t.Helper()
	if !sameState(state, State{}) || !errors.Is(err, sentinel) || !strings.Contains(cluster.HintOf(err), hint) {
		t.Errorf("%v: %+v, %v (hint %q); want %v and a hint with %q", what, state, err, cluster.HintOf(err), sentinel, hint)
	}
	for _, other := range []error{fs.ErrNotExist, ErrNoInterface, ErrNoCARP, ErrNoModule} {
		if other != sentinel && errors.Is(err, other) {
			t.Errorf("%v: %v is %v as well as %v", what, err, sentinel, other)
		}
	}
}

func TestEveryRecordedVHIDIsReadByIoctl(t *testing.T) {
	states, refused, forbidden := 0, map[error]int{}, 0
	for _, g := range gvhs(t) {
		if g.count != 1 {
			continue
		}
		k := &fakeReading{t: t, netlinkErr: eafnosupport}
		if g.family == familyInet6 {
			k.noSocket = map[int]bool{familyInet: true}
		}
		k.control = func(iface string, request []byte) error {
			if iface != g.iface || !bytes.Equal(request, g.request) {
				t.Errorf("%v: asked %q %x", g, iface, request)
			}
			copy(request, g.reply)
			if number := g.Errno(t); number != 0 {
				return number
			}
			return nil
		}
		state, err := k.reader().readVHID(g.iface, g.vhid)
		switch hint, sentinel := wantError(g.Errno(t)); {
		case g.vhid < 1 || g.vhid > 255:
			if err == nil || !sameState(state, State{}) || k.controls != nil {
				t.Errorf("%v: %+v, %v; sockets %v", g, state, err, k.controls)
			}
			forbidden++
		case sentinel != nil:
			checkRefused(t, g, state, err, sentinel, hint)
			refused[sentinel]++
		default:
			if err != nil || !sameState(state, g.slots[0].meant()) || k.controls[len(k.controls)-1] != g.family {
				t.Errorf("%v: %+v, %v on families %v; want %+v", g, state, err, k.controls, g.slots[0].meant())
			}
			states++
		}
	}
	if states < 20 || len(refused) != 4 || forbidden < 3 {
		t.Errorf("%d states, %v refused, %d forbidden", states, refused, forbidden)
	}
}

func TestEveryRecordedVHIDIsReadByNetlink(t *testing.T) {
	states, refused := 0, map[error]int{}
	for _, op := range netlinkOps(t) {
		var iface string
		var vhid int
		if !plainGet(strings.TrimPrefix(op.Op(), "get:"), &iface, &vhid) || vhid < 1 || vhid > 255 {
			continue
		}
		answers := datagrams(t, op)
		k := kernelOf(t, oneOp(t, oneVector(t, "15.1", "netlink-resolve-root"), "resolve:"), op)
		state, err := k.reader().readVHID(iface, vhid)
		last := answers[len(answers)-1].meant
		if hint, sentinel := wantError(errno(last[len(last)-1].errno)); sentinel != nil {
			checkRefused(t, op, state, err, sentinel, hint)
			refused[sentinel]++
		} else if want := meantStates(t, answers[0]); err != nil || !sameState(state, want[0]) {
			t.Errorf("%v: %+v, %v; want %+v", op, state, err, want[0])
		} else {
			states++
		}
		if k.conn.closed != 1 || !k.conn.deadline.Equal(time.Unix(1000, 0).Add(readTimeout)) {
			t.Errorf("%v: closed %d times, deadline %v", op, k.conn.closed, k.conn.deadline)
		}
	}
	if states < 5 || refused[fs.ErrNotExist] < 4 {
		t.Errorf("only %d states were read; refused %v", states, refused)
	}
}

// Most recordings ask for all vhids of an interface. Asked for one, the kernel sends that message and DONE.
func TestEachVHIDOfARecordedListIsReadByNetlink(t *testing.T) {
	read := map[cluster.Role]int{}
	for _, op := range netlinkOps(t) {
		for _, d := range datagrams(t, op) {
			if d.cut || !strings.HasPrefix(op.Op(), "get:") {
				continue
			}
			for i, body := range bodiesOf(t, d) {
				want := meantStates(t, d)[i]
				k := kernelThat(t, func(r []byte) [][]byte {
					return [][]byte{append(netlinkRequest(17, 0x307, order.Uint32(r[8:]), body), genlDone(r, 0)...)}
				})
				state, err := k.reader().readVHID("vtnet0", want.VHID)
				if err != nil || !sameState(state, want) {
					t.Errorf("%v: %+v, %v; want %+v", op, state, err, want)
				}
				read[state.Role]++
				if state, err := k.reader().readVHID("vtnet0", want.VHID%255+1); err == nil {
					t.Errorf("%v: asked for another vhid: %+v", op, state)
				}
			}
		}
	}
	if read[cluster.Master] < 10 || read[cluster.Backup] < 10 || read[cluster.Init] < 4 {
		t.Errorf("too few states were read: %v", read)
	}
}

func kernelOf(t testing.TB, ops ...vector) *fakeReading {
	return &fakeReading{t: t, osreldate: 1501502, conn: &scriptedConn{t: t, kernel: replay(t, ops)}}
}

// errorOps are recordings of answers that tell of a whole interface: their errors are the same with a vhid.
func TestRecordedErrorsOfAnInterfaceSayWhatToDo(t *testing.T) {
	v := oneVector(t, "15.1", "netlink-get-errors")
	resolve := oneOp(t, v, "resolve:")
	for op, iface := range map[string]string{"get:ifname=nope0": "nope0", "get:ifname=lo0": "lo0", "get:ifname=vtnet1": "vtnet1"} {
		recorded := datagrams(t, oneOp(t, v, op))
		k := kernelOf(t, resolve)
		byResolve := k.conn.kernel
		k.conn.kernel = func(request []byte) [][]byte {
			if answer := byResolve(request); answer != nil {
				return answer
			}
			return [][]byte{reseq(recorded[0].bytes, request)}
		}
		state, err := k.reader().readVHID(iface, 1)
		hint, sentinel := wantError(errno(recorded[0].meant[0].errno))
		checkRefused(t, vector{Name: op}, state, err, sentinel, hint)
		if !strings.Contains(err.Error(), iface) {
			t.Errorf("%s: %v does not name it", op, err)
		}
	}
}

func TestAKernelWithoutCARPSaysHowToLoadIt(t *testing.T) {
	for _, name := range []string{"netlink-notloaded-root", "netlink-notloaded-unpriv", "jail-netlink-notloaded", "netlink-stale-family-3-unloaded"} {
		k := kernelOf(t, oneOp(t, oneVector(t, "15.1", name), "resolve:"))
		state, err := k.reader().readVHID("vtnet0", 1)
		checkRefused(t, vector{Name: name}, state, err, ErrNoModule, "carp_load=YES")
		if len(k.conn.sent) != 1 || k.conn.closed != 1 {
			t.Errorf("%s: %d requests, closed %d times", name, len(k.conn.sent), k.conn.closed)
		}
	}
}

// On 13.2 there are no netlink sockets.
func TestTheIoctlIsAskedWhereThereIsNoNetlink(t *testing.T) {
	recorded := oneVector(t, "13.2", "netlink-resolve-notloaded")
	if number, _, _ := strings.Cut(recorded.Value(t, "socket(38,SOCK_RAW,16)-errno"), " "); number != fmt.Sprint(int(eafnosupport)) {
		t.Fatalf("13.2 said %s", number)
	}
	for _, cause := range []error{eafnosupport, eprotonosupport} {
		g := readGVH(t, oneVector(t, "13.2", "ioctl-gvh-master-unpriv"))
		k := &fakeReading{t: t, netlinkErr: cause, control: func(_ string, request []byte) error {
			copy(request, g.reply)
			return nil
		}}
		if state, err := k.reader().readVHID("vtnet0", 1); err != nil || state.Role != cluster.Master || state.Source != "ioctl" {
			t.Errorf("%v: %+v, %v", cause, state, err)
		}
	}
	other := errors.New("too many open files")
	k := &fakeReading{t: t, netlinkErr: other}
	if state, err := k.reader().readVHID("vtnet0", 1); !errors.Is(err, other) || state.Role != cluster.Unknown {
		t.Errorf("%+v, %v", state, err)
	}
}

// 13.2 and later can have netlink(4) as a module, and then no family carp though carp is loaded.
func TestTheIoctlIsAskedOnAKernelBefore14ThatHasNetlink(t *testing.T) {
	g := readGVH(t, oneVector(t, "13.2", "ioctl-gvh-master-unpriv"))
	k := kernelOf(t, oneOp(t, oneVector(t, "15.1", "netlink-notloaded-root"), "resolve:"))
	k.osreldate = 1302001
	k.control = func(_ string, request []byte) error {
		copy(request, g.reply)
		return nil
	}
	if state, err := k.reader().readVHID("vtnet0", 1); err != nil || state.Role != cluster.Master || state.Source != "ioctl" {
		t.Errorf("%+v, %v", state, err)
	}
	k.control = func(string, []byte) error { return eprotonosupport }
	state, err := k.reader().readVHID("vtnet0", 1)
	checkRefused(t, vector{Name: "not loaded"}, state, err, ErrNoModule, "kldload carp")

	k.control = nil
	r := k.reader()
	r.release = func() (int, error) { return 0, errors.New("no such name") }
	state, err = r.readVHID("vtnet0", 1)
	checkRefused(t, vector{Name: "no release"}, state, err, ErrNoModule, "kldload carp")
}

// A network stack without sockets for the ioctl says nothing of carp.
func TestASocketThatCannotBeMadeIsNotAMissingModule(t *testing.T) {
	k := &fakeReading{t: t, netlinkErr: eafnosupport, control: func(string, []byte) error { return nil },
		noSocket: map[int]bool{familyInet: true, familyInet6: true}}
	state, err := k.reader().readVHID("em0", 1)
	if !errors.Is(err, errNoSocket) || errors.Is(err, ErrNoModule) || state.Role != cluster.Unknown || len(k.controls) != 2 {
		t.Errorf("%+v, %v on %v", state, err, k.controls)
	}
}

// genlFamily is an answer of the resolver with a family's number; genlError is an ERROR with an errno.
func genlFamily(request []byte, family uint16) []byte {
	return genlNamed(request, carpFamily, family)
}

func genlNamed(request []byte, name string, family uint16) []byte {
	body := appendAttrString([]byte{1, 2, 0, 0}, genlAttrFamilyName, name)
	body = appendAttr(body, genlAttrFamilyID, order.AppendUint16(nil, family))
	answer := netlinkRequest(genlCtrl, 5, order.Uint32(request[8:]), body)
	return append(answer, genlError(request, 0)...)
}

func genlError(request []byte, number int32) []byte {
	body := append(order.AppendUint32(nil, uint32(number)), request[:nlHeaderLen]...)
	return netlinkRequest(nlmsgError, 0, order.Uint32(request[8:]), body)
}

func genlDone(request []byte, number int32) []byte {
	return netlinkRequest(nlmsgDone, 0, order.Uint32(request[8:]), order.AppendUint32(nil, uint32(number)))
}

// genlState is an answer to GET.
func genlState(request []byte, vhid, state uint32) []byte {
	kind := order.Uint16(request[4:])
	return netlinkRequest(kind, 0x307, order.Uint32(request[8:]), attrsOf(u32(carpAttrVHID, vhid), u32(carpAttrState, state)))
}

// kernelThat answers the resolver with 17, and GET as the function says.
func kernelThat(t testing.TB, get func(request []byte) [][]byte) *fakeReading {
	return &fakeReading{t: t, osreldate: 1501502, conn: &scriptedConn{t: t, kernel: func(request []byte) [][]byte {
		if order.Uint16(request[4:]) == genlCtrl {
			return [][]byte{genlFamily(request, 17)}
		}
		return get(request)
	}}}
}

func TestAFamilyThatWentStaleIsResolvedAgain(t *testing.T) {
	stale := datagrams(t, oneOp(t, oneVector(t, "15.1", "netlink-stale-family-3-unloaded"), "get:type=0x11,ifname=vtnet0"))[0]
	for name, c := range map[string]struct {
		resolver func(request []byte, nth int) []byte
		want     error
	}{
		"carp was loaded again with another number": {func(r []byte, nth int) []byte { return genlFamily(r, uint16(16+nth)) }, nil},
		"carp was unloaded": {func(r []byte, nth int) []byte {
			if nth == 1 {
				return genlFamily(r, 17)
			}
			return genlError(r, int32(enoent))
		}, ErrNoModule},
		"the interface cannot have CARP": {func(r []byte, _ int) []byte { return genlFamily(r, 17) }, ErrNoCARP},
	} {
		resolved := 0
		k := &fakeReading{t: t, osreldate: 1501502}
		k.conn = &scriptedConn{t: t, kernel: func(request []byte) [][]byte {
			switch order.Uint16(request[4:]) {
			case genlCtrl:
				resolved++
				return [][]byte{c.resolver(request, resolved)}
			case 18:
				return [][]byte{genlState(request, 1, 2), genlDone(request, 0)}
			}
			return [][]byte{reseq(stale.bytes, request)}
		}}
		state, err := k.reader().readVHID("vtnet0", 1)
		if resolved != 2 || !errors.Is(err, c.want) || (err == nil) != (state.Role == cluster.Master) || k.conn.closed != 1 {
			t.Errorf("%s: %+v, %v after %d resolves", name, state, err, resolved)
		}
	}
}

func TestAnAnswerMayComeInAnyNumberOfDatagrams(t *testing.T) {
	for name, get := range map[string]func(r []byte) [][]byte{
		"one": func(r []byte) [][]byte { return [][]byte{append(genlState(r, 1, 2), genlDone(r, 0)...)} },
		"two": func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2), genlDone(r, 0)} },
		"acked": func(r []byte) [][]byte {
			return [][]byte{genlError(r, 0), genlState(r, 1, 2), genlDone(r, 0), genlError(r, 0)}
		},
		"others between": func(r []byte) [][]byte {
			other := slices.Clone(r)
			order.PutUint32(other[8:], 77)
			foreign := slices.Clone(r)
			order.PutUint16(foreign[4:], 19)
			return [][]byte{genlState(other, 1, 1), genlError(other, 2), genlDone(other, 2), genlState(foreign, 1, 0), genlState(r, 1, 2), genlDone(other, 0), genlDone(r, 0)}
		},
		"all behind DONE is not read": func(r []byte) [][]byte {
			return [][]byte{slices.Concat(genlState(r, 1, 2), genlDone(r, 0), genlState(r, 1, 0), genlError(r, 2))}
		},
	} {
		state, err := kernelThat(t, get).reader().readVHID("em0", 1)
		if err != nil || state.Role != cluster.Master {
			t.Errorf("%s: %+v, %v", name, state, err)
		}
	}
}

func TestAKernelThatLiesGivesNoRole(t *testing.T) {
	for name, get := range map[string]func(r []byte) [][]byte{
		"nothing":         func([]byte) [][]byte { return nil },
		"empty datagram":  func([]byte) [][]byte { return [][]byte{{}} },
		"no DONE":         func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2)} },
		"DONE only":       func(r []byte) [][]byte { return [][]byte{genlDone(r, 0)} },
		"ACK only":        func(r []byte) [][]byte { return [][]byte{genlError(r, 0)} },
		"another vhid":    func(r []byte) [][]byte { return [][]byte{genlState(r, 2, 2), genlDone(r, 0)} },
		"all vhids":       func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2), genlState(r, 2, 1), genlDone(r, 0)} },
		"the vhid twice":  func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2), genlState(r, 1, 1), genlDone(r, 0)} },
		"state 3":         func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 3), genlDone(r, 0)} },
		"DONE with errno": func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2), genlDone(r, 1)} },
		"Linux's errno":   func(r []byte) [][]byte { return [][]byte{genlState(r, 1, 2), genlDone(r, -2)} },
		"DONE cut": func(r []byte) [][]byte {
			return [][]byte{genlState(r, 1, 2), netlinkRequest(nlmsgDone, 0, order.Uint32(r[8:]), []byte{0, 0, 0})}
		},
		"a length of 0": func(r []byte) [][]byte {
			return [][]byte{append(genlState(r, 1, 2), make([]byte, 16)...)}
		},
		"a flood": func(r []byte) [][]byte {
			var all [][]byte
			for range 1000 {
				all = append(all, genlState(r, 1, 2))
			}
			return all
		},
	} {
		k := kernelThat(t, get)
		state, err := k.reader().readVHID("em0", 1)
		if err == nil || !sameState(state, State{}) || k.conn.closed != 1 {
			t.Errorf("%s: %+v, %v, closed %d times", name, state, err, k.conn.closed)
		} else if !strings.HasPrefix(err.Error(), "read vhid 1 of em0: ") {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v says that there is no such vhid", name, err)
		}
	}
}

func TestAResolverThatLiesGivesNoRole(t *testing.T) {
	for name, answer := range map[string]func(r []byte) []byte{
		"no number":     func(r []byte) []byte { return genlError(r, 0) },
		"netlink's own": func(r []byte) []byte { return genlFamily(r, 3) },
		"another name":  func(r []byte) []byte { return genlNamed(r, "carp2", 17) },
		"number 0":      func(r []byte) []byte { return genlFamily(r, 0) },
		"not allowed":   func(r []byte) []byte { return genlError(r, int32(eperm)) },
		// These are not the kernel's word on the vhid.
		"ENXIO":      func(r []byte) []byte { return genlError(r, int32(enxio)) },
		"EOPNOTSUPP": func(r []byte) []byte { return genlError(r, int32(eopnotsupp)) },
		"cut":        func(r []byte) []byte { return genlFamily(r, 17)[:30] },
	} {
		k := &fakeReading{t: t, osreldate: 1501502, conn: &scriptedConn{t: t}}
		k.conn.kernel = func(request []byte) [][]byte { return [][]byte{answer(request)} }
		state, err := k.reader().readVHID("em0", 1)
		if err == nil || !sameState(state, State{}) || k.conn.closed != 1 || len(k.conn.sent) != 1 || cluster.HintOf(err) != "" {
			t.Errorf("%s: %+v, %v (hint %q)", name, state, err, cluster.HintOf(err))
		}
	}
}

func TestASocketsOwnErrorsAreNotTheKernelsWordOnAVHID(t *testing.T) {
	for _, cause := range []error{enobufs, enxio, enoent, eopnotsupp, eprotonosupport, io.EOF} {
		k := kernelThat(t, func([]byte) [][]byte { return nil })
		k.conn.end = cause
		state, err := k.reader().readVHID("em0", 1)
		if !errors.Is(err, cause) || !sameState(state, State{}) || cluster.HintOf(err) != "" {
			t.Errorf("%v: %+v, %v (hint %q)", cause, state, err, cluster.HintOf(err))
		}
	}
}

// pipeConn is one end of a net.Pipe, which has real deadlines.
func TestAKernelThatHangsIsGivenUpAtTheDeadline(t *testing.T) {
	for name, kernel := range map[string]func(other net.Conn){
		"deaf": func(net.Conn) {},
		"mute": func(other net.Conn) { _, _ = io.Copy(io.Discard, other) },
		"talks of other things": func(other net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, other) }()
			for {
				if _, err := other.Write(genlDone(make([]byte, nlHeaderLen), 0)); err != nil {
					return
				}
			}
		},
	} {
		ours, theirs := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			kernel(theirs)
		}()
		r := (&fakeReading{t: t}).reader()
		r.now = func() time.Time { return time.Now().Add(50*time.Millisecond - readTimeout) }
		r.openNetlink = func() (netlinkConn, error) { return ours, nil }
		state, err := r.readVHID("em0", 1)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !sameState(state, State{}) {
			t.Errorf("%s: %+v, %v", name, state, err)
		}
		if _, err := ours.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: the socket is left open: %v", name, err)
		}
		_ = theirs.Close() // ends the goroutine
		<-over
	}
}

// A socket that takes no deadline could hang for ever: it is not used.
func TestASocketWithoutDeadlinesIsNotUsed(t *testing.T) {
	conn := &scriptedConn{t: t, kernel: func([]byte) [][]byte { t.Error("asked"); return nil }}
	r := (&fakeReading{t: t}).reader()
	r.openNetlink = func() (netlinkConn, error) { return noDeadline{conn}, nil }
	if _, err := r.readVHID("em0", 1); !errors.Is(err, os.ErrNoDeadline) || conn.closed != 1 {
		t.Errorf("%v, closed %d times", err, conn.closed)
	}
}

type noDeadline struct{ *scriptedConn }

func (noDeadline) SetDeadline(time.Time) error { return os.ErrNoDeadline }

func TestNamesAndVHIDsThatCannotBeReachNoKernel(t *testing.T) {
	r := &reader{} // a call would be of a nil function
	for _, iface := range []string{"", "0123456789abcdef", "em0\x00", "em 0", "../em0", "em0\n"} {
		if state, err := r.readVHID(iface, 1); !errors.Is(err, cluster.ErrUsage) || !sameState(state, State{}) {
			t.Errorf("interface %q: %+v, %v", iface, state, err)
		}
	}
	for _, vhid := range []int{0, -1, 256} {
		if state, err := r.readVHID("em0", vhid); !errors.Is(err, cluster.ErrUsage) || !sameState(state, State{}) {
			t.Errorf("vhid %d: %+v, %v", vhid, state, err)
		}
	}
}

// Whatever byte an answer is cut at, it never tells a role that the whole did not: it tells none.
func TestACutAnswerTellsNoRole(t *testing.T) {
	cut := 0
	for _, op := range netlinkOps(t) {
		var iface string
		var vhid int
		if !plainGet(strings.TrimPrefix(op.Op(), "get:"), &iface, &vhid) || vhid < 1 || vhid > 255 {
			continue
		}
		recorded := datagrams(t, op)[0]
		for n := range recorded.bytes {
			k := kernelThat(t, func(r []byte) [][]byte { return [][]byte{reseq(recorded.bytes, r)[:n]} })
			if state, err := k.reader().readVHID(iface, vhid); err == nil || !sameState(state, State{}) {
				t.Fatalf("%v: %d bytes of %d: %+v, %v", op, n, len(recorded.bytes), state, err)
			}
			// The rest comes as a datagram of its own: a kernel that lies.
			k = kernelThat(t, func(r []byte) [][]byte {
				whole := reseq(recorded.bytes, r)
				return [][]byte{whole[:n], whole[n:]}
			})
			state, err := k.reader().readVHID(iface, vhid)
			if want := meantStates(t, recorded); err == nil && (len(want) != 1 || !sameState(state, want[0])) {
				t.Fatalf("%v: cut in two at %d: %+v, want %+v", op, n, state, want)
			}
			cut++
		}
	}
	for _, g := range gvhs(t) {
		for n := range min(carpReqLen, len(g.reply)) {
			if state, err := vhidReply(g.reply[:n]); err == nil {
				t.Fatalf("%v: %d bytes: %+v", g, n, state)
			}
		}
	}
	if cut < 500 {
		t.Errorf("only %d cuts", cut)
	}
}

func TestTheInterfacesAreFetchedAnewWhenTheyGrew(t *testing.T) {
	dump := oneVector(t, "13.2", "rib-iflistl-all").Bytes(t, "dump")
	for grown := range ribTries + 2 {
		asked := 0
		r := &reader{rib: func(b []byte) (int, error) {
			if b == nil {
				return len(dump), nil
			}
			if asked++; asked <= grown {
				return 0, enomem
			}
			return copy(b, dump), nil
		}}
		all, err := r.readInterfaces()
		if grown < ribTries {
			if err != nil || len(all) != 2 {
				t.Errorf("grown %d times: %v, %v", grown, all, err)
			}
		} else if !errors.Is(err, enomem) || asked != ribTries {
			t.Errorf("grown %d times: %v, %v after %d", grown, all, err, asked)
		}
	}
}

func TestInterfacesThatCannotBeListedAreAnError(t *testing.T) {
	dump := oneVector(t, "13.2", "rib-iflistl-all").Bytes(t, "dump")
	for name, rib := range map[string]func([]byte) (int, error){
		"no length":  func([]byte) (int, error) { return 0, eperm },
		"no dump":    func(b []byte) (int, error) { return len(dump), map[bool]error{true: eperm}[b != nil] },
		"a cut dump": func(b []byte) (int, error) { copy(b, dump); return len(dump) - 8, nil },
		"too much":   func(b []byte) (int, error) { return 1 + 2*len(b), nil },
		"minus one":  func([]byte) (int, error) { return -1, nil },
	} {
		all, err := (&reader{rib: rib}).readInterfaces()
		if err == nil || all != nil || !strings.HasPrefix(err.Error(), "list the interfaces: ") {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}

func TestFreeBSDsNumbersAreTheErrorsOfGo(t *testing.T) {
	for number, want := range map[errno]error{eperm: fs.ErrPermission, eacces: fs.ErrPermission, enoent: fs.ErrNotExist, eexist: fs.ErrExist, enxio: nil} {
		for _, target := range []error{fs.ErrPermission, fs.ErrNotExist, fs.ErrExist} {
			if errors.Is(fmt.Errorf("read: %w", number), target) != (target == want) {
				t.Errorf("%v and %v", number, target)
			}
		}
	}
	if got := errno(99).Error(); got != "errno 99" {
		t.Error(got)
	}
}

func FuzzReadVHID(f *testing.F) {
	for _, op := range netlinkOps(f) {
		for _, d := range datagrams(f, op) {
			f.Add(d.bytes, 0)
			f.Add(d.bytes, len(d.bytes)/2)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		at = min(max(at, 0), len(b))
		k := kernelThat(t, func(r []byte) [][]byte { return [][]byte{reseq(b[:at], r), reseq(b[at:], r)} })
		state, err := k.reader().readVHID("em0", 1)
		if err != nil {
			if !sameState(state, State{}) {
				t.Fatalf("%+v, %v", state, err)
			}
			return
		}
		attr := appendAttr(nil, carpAttrState, order.AppendUint32(nil, uint32(state.Role)-1))
		if state.VHID != 1 || state.Role < cluster.Init || state.Role > cluster.Master || !bytes.Contains(b, attr[4:]) {
			t.Fatalf("%x is read as %+v", b, state)
		}
	})
}
