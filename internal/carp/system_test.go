package carp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// box is a FreeBSD kernel as its recordings show it, behind the raw calls: it reads the bytes that it is given.
type box struct {
	t testing.TB
	// netlink tells whether there are netlink sockets (14 and later); inet whether there is IPv4.
	netlink, inet bool
	loaded, root  bool
	noFile        errno // what kldload says instead of loading
	jail          Jail
	boot          []byte // kern.boot_id; nil where the kernel has none
	booted        time.Time
	level         int
	sysctls       map[string]int32
	ifaces        map[string]bool // true for those that can have CARP
	vhids         map[string]map[int]State
	addresses     map[string][]Address
	// fault changes what the kernel did before it is read back.
	fault func()
	// gone takes the vhid away between the look and the change.
	gone bool
	log  []string
}

func newBox(t testing.TB) *box {
	return &box{
		t: t, netlink: true, inet: true, loaded: true, root: true, level: -1, booted: time.Unix(1, 0),
		sysctls:   map[string]int32{"kern.osreldate": 1501502, "net.inet.carp.preempt": 0, "net.inet.carp.demotion": 0, "net.inet.carp.log": 1},
		ifaces:    map[string]bool{"em0": true, "lo0": false},
		vhids:     map[string]map[int]State{},
		addresses: map[string][]Address{"em0": {{netip.MustParsePrefix("192.0.2.11/24"), 0}}, "lo0": nil},
	}
}

func (b *box) kernel() *Kernel { return b.calls().kernel() }

func (b *box) calls() *calls {
	return &calls{
		modfind: func(name string) error {
			if name != "carp" || !b.loaded {
				return enoent
			}
			return nil
		},
		kldload: b.kldload,
		sysctl:  b.sysctl,
		control: b.control,
		setVHID: b.setVHID,
		dialCARP: func() (*carpConn, error) {
			if !b.netlink {
				return nil, errNoNetlink
			}
			return newCARPConn(&boxNetlink{box: b}, time.Now().Add(time.Minute))
		},
		tooOldForNetlink: func(err error) bool { return errors.Is(err, errNoNetlink) },
		readVHID:         b.readVHID,
		readInterfaces:   b.readInterfaces,
	}
}

func (b *box) does(format string, args ...any) { b.log = append(b.log, fmt.Sprintf(format, args...)) }

func (b *box) kldload(name string) error {
	b.does("kldload %s", name)
	switch {
	case b.jail.Jailed || b.level > 0 || !b.root:
		return eperm
	case b.noFile != 0:
		return b.noFile
	case b.loaded:
		return eexist
	}
	b.loaded = true
	return nil
}

// bootSysctl answers what is not an int.
func (b *box) bootSysctl(name string, old []byte) (done bool, n int, err error) {
	switch {
	case name == "kern.boot_id" && b.boot == nil:
		return true, 0, enoent
	case name == "kern.boot_id":
		return true, copy(old, b.boot), nil
	case name == "kern.boottime":
		value := binary.LittleEndian.AppendUint64(nil, uint64(b.booted.Unix()))
		value = binary.LittleEndian.AppendUint64(value, uint64(b.booted.Nanosecond()/1000))
		return true, copy(old, value), nil
	}
	return false, 0, nil
}

func (b *box) sysctl(name string, old, value []byte) (int, error) {
	truth := map[bool]int32{true: 1}
	special := map[string]int32{"kern.securelevel": int32(b.level), "security.jail.jailed": truth[b.jail.Jailed], "security.jail.vnet": truth[b.jail.VNET]}
	if done, n, err := b.bootSysctl(name, old); done {
		return n, err
	}
	v, ok := b.sysctls[name]
	if s, is := special[name]; is {
		v, ok = s, true
	}
	if !ok || strings.HasPrefix(name, "net.inet.carp.") && !b.loaded {
		return 0, enoent
	}
	if value != nil {
		if !b.root || b.jail.Jailed && !b.jail.VNET {
			return 0, eperm
		}
		if len(value) != 4 {
			return 0, einval
		}
		b.does("sysctl %s=%d", name, int32(binary.LittleEndian.Uint32(value)))
		change := int32(binary.LittleEndian.Uint32(value))
		if name == "net.inet.carp.demotion" {
			change += v
		}
		b.sysctls[name] = change
	}
	if old == nil {
		return 4, nil
	}
	binary.LittleEndian.PutUint32(old, uint32(v))
	return 4, nil
}

func (b *box) readVHID(iface string, vhid int) (State, error) {
	state, ok := b.vhids[iface][vhid]
	if !ok {
		return State{}, explain(refusal{enoent}, iface, vhid)
	}
	if b.gone {
		delete(b.vhids[iface], vhid)
	}
	return state, nil
}

func (b *box) readInterfaces() ([]Interface, error) {
	var all []Interface
	for name := range b.ifaces {
		all = append(all, Interface{Name: name, Up: true, Addresses: slices.Clone(b.addresses[name])})
	}
	return all, nil
}

// change is carp_ioctl_set: the numbers are looked at after the vhid was made.
func (b *box) change(iface string, s Settings, peers bool) error {
	switch can, there := b.ifaces[iface]; {
	case !b.loaded:
		return eprotonosupport
	case !there:
		return enxio
	case !can:
		return eopnotsupp
	case !b.root || b.jail.Jailed && !b.jail.VNET:
		return eperm
	case s.VHID < 1 || s.VHID > 255:
		return einval
	}
	if b.vhids[iface] == nil {
		b.vhids[iface] = map[int]State{}
	}
	state, ok := b.vhids[iface][s.VHID]
	if !ok {
		state = State{VHID: s.VHID, Role: cluster.Init, Version: "carp", Peer: carpGroup, Peer6: carpGroup6}
		b.vhids[iface][s.VHID] = state
	}
	if s.AdvBase > 255 || s.AdvSkew >= 255 || state.Version == "vrrp3" {
		return einval
	}
	state.AdvBase, state.AdvSkew = s.AdvBase, s.AdvSkew
	if len(s.Password) > 0 {
		state.Password = s.Password
	}
	if !peers {
		state.Peer, state.Peer6, state.Version = netip.Addr{}, netip.Addr{}, ""
	}
	b.vhids[iface][s.VHID] = state
	b.does("set %s vhid %d", iface, s.VHID)
	if b.fault != nil {
		b.fault()
	}
	return nil
}

func (b *box) setVHID(family int, iface [ifNameLen]byte, r []byte) error {
	if family == familyInet && !b.inet {
		return errNoSocket
	}
	u := func(at int) int { return int(int32(binary.LittleEndian.Uint32(r[at:]))) }
	if len(r) != 40 || u(8) != 0 {
		b.t.Errorf("SIOCSVH with %x: it changes the state", r)
	}
	key, _, _ := strings.Cut(string(r[20:]), "\x00")
	return b.change(boxName(iface[:]), Settings{VHID: u(4), AdvSkew: u(12), AdvBase: u(16), Password: cluster.Secret(key)}, false)
}

// control is SIOCAIFADDR, SIOCAIFADDR_IN6, SIOCDIFADDR and SIOCDIFADDR_IN6 of netinet/in.c and netinet6/in6.c.
func (b *box) control(family int, request uint32, arg []byte) error {
	if family == familyInet && !b.inet {
		return errNoSocket
	}
	if len(arg) != int(request>>16&0x1fff) {
		b.t.Errorf("request %x with %d bytes", request, len(arg))
	}
	iface, a := boxName(arg[:16]), boxSockaddr(arg[16:])
	switch {
	case !b.root || b.jail.Jailed && !b.jail.VNET:
		return eperm
	case func() bool { _, there := b.ifaces[iface]; return !there }():
		return enxio
	}
	was := slices.IndexFunc(b.addresses[iface], func(x Address) bool { return x.Prefix.Addr() == a })
	switch request {
	case 0x80206919, 0x81206919:
		if was < 0 {
			return eaddrnotavail
		}
		b.take(iface, was)
		return nil
	case 0x8044692b:
		if was >= 0 {
			b.take(iface, was)
		}
		return b.give(iface, netip.PrefixFrom(a, onesOf(arg[48+4:48+8])), int(binary.LittleEndian.Uint32(arg[64:])))
	case 0x8088691b:
		p := netip.PrefixFrom(a, onesOf(arg[72+8:72+24]))
		if was >= 0 && b.addresses[iface][was].Prefix.Bits() != p.Bits() {
			return einval
		}
		if was >= 0 {
			b.take(iface, was)
		}
		err := b.give(iface, p, int(binary.LittleEndian.Uint32(arg[128:])))
		if err != nil {
			b.addresses[iface] = append(b.addresses[iface], Address{p, 0}) // left behind
		}
		return err
	}
	b.t.Errorf("request %x", request)
	return enotty
}

func (b *box) take(iface string, i int) {
	b.does("remove %s", b.addresses[iface][i].Prefix.Addr())
	b.addresses[iface] = slices.Delete(b.addresses[iface], i, i+1)
}

func (b *box) give(iface string, p netip.Prefix, vhid int) error {
	if vhid != 0 {
		if !b.loaded {
			return eprotonosupport
		}
		if len(b.vhids[iface]) == 0 {
			return enoprotoopt
		}
		if _, ok := b.vhids[iface][vhid]; !ok {
			return enoent
		}
	}
	b.does("add %s vhid %d", p, vhid)
	b.addresses[iface] = append(b.addresses[iface], Address{p, vhid})
	if b.fault != nil {
		b.fault()
	}
	return nil
}

func boxSockaddr(b []byte) netip.Addr {
	switch {
	case b[0] == 16 && b[1] == 2:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case b[0] == 28 && b[1] == 28:
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.Addr{}
}

func onesOf(mask []byte) (n int) {
	for _, c := range mask {
		for ; c&0x80 != 0; c <<= 1 {
			n++
		}
	}
	return n
}

// boxNetlink is a socket to the box: one answer waits at most.
type boxNetlink struct {
	box    *box
	answer []byte
}

func (n *boxNetlink) Close() error                { return nil }
func (n *boxNetlink) SetDeadline(time.Time) error { return nil }

func (n *boxNetlink) Read(b []byte) (int, error) {
	if n.answer == nil {
		return 0, os.ErrDeadlineExceeded
	}
	defer func() { n.answer = nil }()
	return copy(b, n.answer), nil
}

func (n *boxNetlink) Write(request []byte) (int, error) {
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(request[at:]) }
	kind, seq := u16(4), request[8:12]
	ack := func(e errno) {
		m := binary.LittleEndian.AppendUint32(nil, uint32(16+4+len(request)))
		m = append(m, 2, 0, 0, 0)
		m = append(append(m, seq...), 0, 0, 0, 0)
		m = binary.LittleEndian.AppendUint32(m, uint32(e))
		n.answer = append(n.answer, append(m, request...)...)
	}
	switch {
	case kind == 16 && !n.box.loaded:
		ack(enoent)
	case kind == 16:
		m := []byte{28, 0, 0, 0, 16, 0, 5, 0}
		m = append(append(m, seq...), 0, 0, 0, 0, 1, 2, 0, 0, 6, 0, 1, 0, 17, 0, 0, 0)
		n.answer = m
		ack(0)
	case kind == 17 && u16(6) == 5 && request[16] == 2:
		ack(n.set(request[20:]))
	default:
		n.box.t.Errorf("request %x", request)
	}
	return len(request), nil
}

func (n *boxNetlink) set(b []byte) errno {
	var s Settings
	var iface string
	var peer, peer6 netip.Addr
	seen := map[uint16]bool{}
	for len(b) > 0 {
		length, kind := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
		v := b[4:length]
		seen[kind] = true
		switch kind {
		case 9:
			iface = strings.TrimSuffix(string(v), "\x00")
		case 1:
			s.VHID = int(binary.LittleEndian.Uint32(v))
		case 2:
			n.box.t.Error("SET changes the state")
		case 3:
			s.AdvBase = int(binary.LittleEndian.Uint32(v))
		case 4:
			s.AdvSkew = int(binary.LittleEndian.Uint32(v))
		case 5:
			if len(v) > 20 {
				return einval
			}
			s.Password = cluster.Secret(strings.TrimRight(string(v), "\x00"))
		case 7:
			peer = netip.AddrFrom4([4]byte(v))
		case 8:
			peer6 = netip.AddrFrom16([16]byte(v))
		}
		b = b[min((int(length)+3)&^3, len(b)):]
	}
	if !seen[4] {
		n.box.t.Error("SET without advskew: the kernel takes 0")
	}
	err := n.box.change(iface, s, true)
	if e, is := errors.AsType[errno](err); is {
		return e
	}
	if state, ok := n.box.vhids[iface][s.VHID]; ok && peer.IsValid() && peer6.IsValid() && n.box.fault == nil {
		state.Peer, state.Peer6 = peer, peer6
		n.box.vhids[iface][s.VHID] = state
	}
	return 0
}

// failsWith tells whether an error is as it must be: the sentinel (nil for any), the words, and a hint with its words.
func failsWith(err error, sentinel error, words, hint string) bool {
	return err != nil && (sentinel == nil || errors.Is(err, sentinel)) && strings.Contains(err.Error(), words) &&
		strings.Contains(cluster.HintOf(err), hint) && (hint != "" || cluster.HintOf(err) == "")
}

func TestWhereAProcessRunsIsWhatTheSysctlsSay(t *testing.T) {
	for _, want := range []Jail{{}, {Jailed: true}, {Jailed: true, VNET: true}} {
		b := newBox(t)
		b.jail = want
		if jail, err := b.kernel().Jail(); err != nil || jail != want {
			t.Errorf("%+v, %v; want %+v", jail, err, want)
		}
	}
	// A kernel without VIMAGE, and a host on which the second question is not 0.
	b := newBox(t)
	b.jail = Jail{VNET: true}
	if jail, err := b.kernel().Jail(); err != nil || jail != (Jail{}) {
		t.Errorf("%+v, %v outside of a jail", jail, err)
	}
	c := b.calls()
	c.sysctl = func(name string, old, _ []byte) (int, error) {
		if name == "security.jail.vnet" {
			return 0, enoent
		}
		old[0] = 1
		return 4, nil
	}
	if jail, err := c.jail(); err != nil || jail != (Jail{Jailed: true}) {
		t.Errorf("%+v, %v without VIMAGE", jail, err)
	}
	c.sysctl = func(string, []byte, []byte) (int, error) { return 0, eperm }
	if jail, err := c.jail(); err == nil || jail != (Jail{}) {
		t.Errorf("%+v, %v where the question is forbidden", jail, err)
	}
}

func TestTheKernelHasEveryFunction(t *testing.T) {
	k := newBox(t).kernel()
	if k.Release == nil || k.Jail == nil || k.SecureLevel == nil || k.ModuleLoaded == nil || k.LoadModule == nil || k.Sysctl == nil || k.SetSysctl == nil ||
		k.Interfaces == nil || k.VHID == nil || k.SetVHID == nil || k.AddAddress == nil || k.RemoveAddress == nil || k.Adverts == nil {
		t.Errorf("%+v", k)
	}
	if release, err := k.Release(); err != nil || release != 1501502 {
		t.Errorf("release %d, %v", release, err)
	}
	if level, err := k.SecureLevel(); err != nil || level != -1 {
		t.Errorf("securelevel %d, %v", level, err)
	}
}

func TestElsewhereTheKernelIsUnsupported(t *testing.T) {
	k, err := SystemKernel()
	if runtime.GOOS == "freebsd" {
		if err != nil || k == nil {
			t.Error(err)
		}
		return
	}
	if k != nil || !errors.Is(err, errors.ErrUnsupported) || cluster.HintOf(err) == "" {
		t.Errorf("%v, %v", k, err)
	}
}

func boxName(b []byte) string {
	name, _, _ := strings.Cut(string(b), "\x00")
	return name
}

func atoi(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
