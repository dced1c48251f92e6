package bootstraptest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

// maxKey is CARP_KEY_LEN of netinet/ip_carp.h less its NUL: what is longer is cut without a word.
const maxKey = 19

// Kernel is a FreeBSD kernel. Its fields may be set before it is used; after that the calls of Carp change it, and a
// test that reads them does so from the same goroutine. Its clock stands still but for Advance.
type Kernel struct {
	// Release is kern.osreldate; 0 stands for 1501502 (15.1).
	Release int
	// Jail is where the asker sits; SecureLevel is kern.securelevel.
	Jail        carp.Jail
	SecureLevel int
	// Root tells that the asker is root.
	Root bool
	// Loaded tells that carp is there, by module or built in. NoFile: there is no carp.ko to load.
	Loaded, NoFile bool
	// Heard are the advertisements on the segment of each interface.
	Heard map[string][]carp.Advert
	// Deaf makes Adverts wait, as on a segment without any other host, until its context ends. Else it returns as soon as it has told
	// what was heard.
	Deaf bool

	// Failovers counts how often a MASTER lost its role because an address of its vhid was touched, or its vhid went.
	Failovers int
	// Calls are the changes that were asked for, in order, without passwords.
	Calls []string
	// Fail makes the next change whose text in Calls begins with the key fail with the error.
	Fail map[string]error

	mu         sync.Mutex
	now        time.Duration
	sysctls    map[string]int
	interfaces map[string]*iface
}

type iface struct {
	noCARP    bool
	addresses []carp.Address
	vhids     map[int]*vhid
}

type vhid struct {
	carp.Settings
	role cluster.Role
	// master is when a BACKUP that hears nothing becomes MASTER.
	master time.Duration
}

// New is a kernel of a host: root asks, and carp is not loaded. Each interface is up; the addresses are plain.
func New(interfaces map[string][]string) *Kernel {
	k := &Kernel{Root: true, SecureLevel: -1, Heard: map[string][]carp.Advert{}, Fail: map[string]error{}, interfaces: map[string]*iface{}}
	for name, addresses := range interfaces {
		i := &iface{noCARP: strings.HasPrefix(name, "lo"), vhids: map[int]*vhid{}}
		for _, a := range addresses {
			i.addresses = append(i.addresses, carp.Address{Prefix: netip.MustParsePrefix(a)})
		}
		k.interfaces[name] = i
	}
	return k
}

// Load brings carp in, as at boot by loader.conf.
func (k *Kernel) Load() *Kernel {
	k.load()
	return k
}

// Set gives an interface a vhid with addresses, as rc.conf does at boot, and waits until it is MASTER.
func (k *Kernel) Set(name string, s carp.Settings, addresses ...string) *Kernel {
	i := k.interfaces[name]
	i.vhids[s.VHID] = &vhid{Settings: cut(s), role: cluster.Master}
	for _, a := range addresses {
		i.addresses = append(i.addresses, carp.Address{Prefix: netip.MustParsePrefix(a), VHID: s.VHID})
	}
	if len(addresses) == 0 {
		i.vhids[s.VHID].role = cluster.Init
	}
	return k
}

// Advance lets the time pass: a BACKUP that hears nothing becomes MASTER.
func (k *Kernel) Advance(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now += d
	for _, i := range k.interfaces {
		for _, v := range i.vhids {
			if v.role == cluster.Backup && k.now >= v.master {
				v.role = cluster.Master
			}
		}
	}
}

// String is the state as text, sorted, without passwords: two kernels in the same state give the same.
func (k *Kernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "carp %t\n", k.Loaded)
	for _, name := range slices.Sorted(maps.Keys(k.sysctls)) {
		fmt.Fprintf(&b, "%s=%d\n", name, k.sysctls[name])
	}
	for _, name := range slices.Sorted(maps.Keys(k.interfaces)) {
		i := k.interfaces[name]
		var lines []string
		for _, a := range i.addresses {
			lines = append(lines, fmt.Sprintf("%s %s vhid %d\n", name, a.Prefix, a.VHID))
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
		for _, n := range slices.Sorted(maps.Keys(i.vhids)) {
			v := i.vhids[n]
			fmt.Fprintf(&b, "%s carp vhid %d advbase %d advskew %d pass of %d\n", name, n, v.AdvBase, v.AdvSkew, len(v.Password))
		}
	}
	return b.String()
}

// Password is the key of a vhid, for a test to compare.
func (k *Kernel) Password(name string, id int) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.interfaces[name].vhids[id]; v != nil {
		return string(v.Password)
	}
	return ""
}

// Role is that of a vhid.
func (k *Kernel) Role(name string, id int) cluster.Role {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.interfaces[name].vhids[id]; v != nil {
		return v.role
	}
	return cluster.Unknown
}

// Touched are the calls that changed an interface.
func (k *Kernel) Touched() []string {
	return slices.DeleteFunc(slices.Clone(k.Calls), func(s string) bool { return strings.HasPrefix(s, "sysctl ") || strings.HasPrefix(s, "kld") })
}

// Carp is the kernel as bootstrap asks it.
func (k *Kernel) Carp() *carp.Kernel {
	return &carp.Kernel{
		Release:      func() (int, error) { return cmp.Or(k.Release, 1501502), nil },
		Jail:         func() (carp.Jail, error) { return k.Jail, nil },
		SecureLevel:  func() (int, error) { return k.SecureLevel, nil },
		ModuleLoaded: func() (bool, error) { return k.Loaded, nil },
		LoadModule:   k.loadModule,
		Sysctl:       k.sysctl,
		SetSysctl:    k.setSysctl,
		Interfaces:   k.list,
		VHID:         k.vhid,
		SetVHID:      k.setVHID,
		AddAddress:   k.addAddress,
		RemoveAddress: func(name string, p netip.Prefix) error {
			return k.removeAddress(name, p)
		},
		Adverts: k.adverts,
	}
}

func (k *Kernel) call(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	k.Calls = append(k.Calls, text)
	for prefix, err := range k.Fail {
		if strings.HasPrefix(text, prefix) {
			delete(k.Fail, prefix)
			return err
		}
	}
	return nil
}

func (k *Kernel) load() {
	k.Loaded = true
	k.sysctls = map[string]int{"net.inet.carp.allow": 1, "net.inet.carp.preempt": 0, "net.inet.carp.log": 1, "net.inet.carp.demotion": 0}
}

// loadModule is modfind, then kldload: EPERM in every jail, at securelevel 1 and for others than root.
func (k *Kernel) loadModule() error {
	if k.Loaded {
		return nil
	}
	if err := k.call("kldload carp"); err != nil {
		return err
	}
	switch {
	case !k.Root || k.Jail.Jailed || k.SecureLevel > 0:
		return fmt.Errorf("load carp: %w", syscall.EPERM)
	case k.NoFile:
		return fmt.Errorf("load carp: %w", syscall.ENOENT)
	}
	k.load()
	return nil
}

// Unload is kldunload carp: EBUSY while a vhid exists, also one without an address.
func (k *Kernel) Unload() error {
	if err := k.call("kldunload carp"); err != nil {
		return err
	}
	if !k.Root || k.Jail.Jailed || k.SecureLevel > 0 {
		return syscall.EPERM
	}
	for _, i := range k.interfaces {
		if len(i.vhids) > 0 {
			return syscall.EBUSY
		}
	}
	k.Loaded, k.sysctls = false, nil
	return nil
}

func (k *Kernel) sysctl(name string) (int, error) {
	v, ok := k.sysctls[name]
	if !ok {
		return 0, fmt.Errorf("sysctl %s: %w", name, fs.ErrNotExist)
	}
	return v, nil
}

func (k *Kernel) setSysctl(name string, value int) error {
	if err := k.call("sysctl %s=%d", name, value); err != nil {
		return err
	}
	if _, err := k.sysctl(name); err != nil {
		return err
	}
	if !k.mayChange() {
		return fmt.Errorf("sysctl %s: %w", name, syscall.EPERM)
	}
	if name == "net.inet.carp.demotion" {
		value += k.sysctls[name]
	}
	k.sysctls[name] = value
	return nil
}

// mayChange: a jail without a network stack of its own may read, and not change.
func (k *Kernel) mayChange() bool { return k.Root && (!k.Jail.Jailed || k.Jail.VNET) }

func (k *Kernel) list() ([]carp.Interface, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []carp.Interface
	for _, name := range slices.Sorted(maps.Keys(k.interfaces)) {
		out = append(out, carp.Interface{Name: name, Up: true, Addresses: slices.Clone(k.interfaces[name].addresses)})
	}
	return out, nil
}

// interfaceFor is what every call about a vhid asks first.
func (k *Kernel) interfaceFor(name string) (*iface, error) {
	i := k.interfaces[name]
	switch {
	case !k.Loaded:
		return nil, carp.ErrNoModule
	case i == nil:
		return nil, fmt.Errorf("%s: %w", name, carp.ErrNoInterface)
	case i.noCARP:
		return nil, fmt.Errorf("%s: %w", name, carp.ErrNoCARP)
	}
	return i, nil
}

func (k *Kernel) vhid(name string, id int) (carp.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i, err := k.interfaceFor(name)
	if err != nil {
		return carp.State{}, err
	}
	v := i.vhids[id]
	if v == nil {
		return carp.State{}, fmt.Errorf("interface %s has no vhid %d: %w", name, id, fs.ErrNotExist)
	}
	s := carp.State{VHID: id, Role: v.role, AdvBase: v.AdvBase, AdvSkew: v.AdvSkew}
	if k.mayChange() {
		s.Password = bytes.Clone(v.Password)
	}
	if cmp.Or(k.Release, 1501502) >= 1400000 {
		s.Peer, s.Peer6 = netip.MustParseAddr("224.0.0.18"), netip.MustParseAddr("ff02::12")
		switch {
		case v.Peer.Is4():
			s.Peer = v.Peer
		case v.Peer.IsValid():
			s.Peer6 = v.Peer
		}
	}
	return s, nil
}

func cut(s carp.Settings) carp.Settings {
	s.Password = bytes.Clone(s.Password[:min(len(s.Password), maxKey)])
	return s
}

// setVHID makes a vhid that is not there, without an address and in INIT. It changes no role.
func (k *Kernel) setVHID(name string, s carp.Settings) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("%s vhid %d advbase %d advskew %d", name, s.VHID, s.AdvBase, s.AdvSkew); err != nil {
		return err
	}
	i, err := k.interfaceFor(name)
	switch {
	case err != nil:
		return err
	case !k.mayChange():
		return fmt.Errorf("%s vhid %d: %w", name, s.VHID, syscall.EPERM)
	case s.VHID < 1 || s.VHID > 255 || s.AdvBase < 0 || s.AdvBase > 255 || s.AdvSkew < 0 || s.AdvSkew > 254:
		return fmt.Errorf("%s vhid %d: %w", name, s.VHID, syscall.EINVAL)
	}
	v := i.vhids[s.VHID]
	if v == nil {
		v = &vhid{role: cluster.Init}
		i.vhids[s.VHID] = v
	}
	v.Settings = cut(s)
	return nil
}

// addAddress adds an address, moves one that is there, or adds it again, which is no less a failover.
func (k *Kernel) addAddress(name string, p netip.Prefix, id int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("%s add %s vhid %d", name, p, id); err != nil {
		return err
	}
	i, err := k.interfaceFor(name)
	switch {
	case err != nil:
		return err
	case !k.mayChange():
		return fmt.Errorf("%s add %s: %w", name, p, syscall.EPERM)
	case id != 0 && i.vhids[id] == nil:
		return fmt.Errorf("%s add %s vhid %d: %w", name, p, id, syscall.ENOENT)
	}
	if at := i.find(p.Addr()); at >= 0 {
		old := i.addresses[at].VHID
		i.addresses = slices.Delete(i.addresses, at, at+1)
		// A vhid whose address moved away stays, in INIT.
		k.drive(i, old)
	}
	i.addresses = append(i.addresses, carp.Address{Prefix: p, VHID: id})
	k.drive(i, id)
	return nil
}

// removeAddress takes an address away, and the vhid with its last one.
func (k *Kernel) removeAddress(name string, p netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("%s remove %s", name, p); err != nil {
		return err
	}
	i := k.interfaces[name]
	switch {
	case i == nil:
		return fmt.Errorf("%s: %w", name, carp.ErrNoInterface)
	case !k.mayChange():
		return fmt.Errorf("%s remove %s: %w", name, p, syscall.EPERM)
	}
	at := i.find(p.Addr())
	if at < 0 {
		return fmt.Errorf("%s remove %s: %w", name, p, syscall.EADDRNOTAVAIL)
	}
	id := i.addresses[at].VHID
	i.addresses = slices.Delete(i.addresses, at, at+1)
	k.drive(i, id)
	if id != 0 && !i.has(id) {
		delete(i.vhids, id)
	}
	return nil
}

func (i *iface) find(a netip.Addr) int {
	return slices.IndexFunc(i.addresses, func(have carp.Address) bool { return have.Prefix.Addr() == a })
}

func (i *iface) has(id int) bool {
	return slices.ContainsFunc(i.addresses, func(a carp.Address) bool { return a.VHID == id })
}

// drive is what any change of its addresses does to a vhid: INIT, BACKUP, and MASTER when nothing was heard for
// 3*advbase + advskew/256 seconds.
func (k *Kernel) drive(i *iface, id int) {
	v := i.vhids[id]
	if v == nil {
		return
	}
	if v.role == cluster.Master {
		k.Failovers++
	}
	if v.role = cluster.Init; !i.has(id) {
		return
	}
	v.role = cluster.Backup
	v.master = k.now + 3*time.Duration(v.AdvBase)*time.Second + time.Duration(v.AdvSkew)*time.Second/256
}

func (k *Kernel) adverts(ctx context.Context, name string, each func(carp.Advert) bool) error {
	if !k.Root {
		return fmt.Errorf("listen on %s: %w", name, syscall.EPERM)
	}
	for _, a := range k.Heard[name] {
		if !each(a) {
			return nil
		}
	}
	if k.Deaf {
		<-ctx.Done()
	}
	return nil
}

// NoCARP makes an interface one that cannot have CARP, as lo0.
func (k *Kernel) NoCARP(name string) { k.interfaces[name].noCARP = true }
