package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

// unicastRelease is the first kern.osreldate whose carp has unicast peers (14.0).
const unicastRelease = 1400000

// maxSkew is the largest advskew (carp(4)).
const maxSkew = 254

// problem is what makes a vhid impossible: why, and the mend.
type problem struct{ why, mend string }

func problemf(mend, format string, args ...any) *problem {
	return &problem{why: fmt.Sprintf(format, args...), mend: mend}
}

// problemOf is an error with its hint.
func problemOf(err error) *problem { return &problem{why: err.Error(), mend: cluster.HintOf(err)} }

// vhids are the steps of each virtual host: on its interface now, and in rc.conf for the next boot.
func (p *planner) vhids(ctx context.Context) error {
	if err := p.readRC(); err != nil {
		return err
	}
	for _, v := range p.set.VHIDs {
		have, err := p.liveVHID(v)
		if err != nil {
			return err
		}
		if bad := p.judge(ctx, v, have); bad != nil {
			p.add(Step{Name: v.name(), State: Blocked, Found: have.String(), Want: v.String(), Why: bad.why, Mend: bad.mend, Interface: v.Interface})
			continue
		}
		p.vhidNow(v, have)
		if err := p.vhidAtBoot(v); err != nil {
			return err
		}
	}
	return p.ipv6AtBoot()
}

func (v VHID) name() string { return fmt.Sprintf("%s vhid %d", v.Interface, v.ID) }

// String tells the vhid without its password.
func (v VHID) String() string {
	return fmt.Sprintf("advbase %d advskew %d, %s", v.AdvBase, v.AdvSkew, list(v.Addresses))
}

func list[T fmt.Stringer](all []T) string {
	words := make([]string, len(all))
	for i, a := range all {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}

func (v VHID) parameters(password cluster.Secret) parameters {
	return parameters{AdvBase: v.AdvBase, AdvSkew: v.AdvSkew, Password: password, Peer: v.Peer}
}

// present is what the kernel has of a vhid.
type present struct {
	// unknown tells why the kernel could not be asked; nil where it was.
	unknown error
	// state is nil where the vhid is not there.
	state     *carp.State
	addresses []netip.Prefix
}

func (h present) String() string {
	switch {
	case h.unknown != nil:
		return h.unknown.Error()
	case h.state == nil:
		return "not there"
	case len(h.addresses) == 0:
		return fmt.Sprintf("%s, advbase %d advskew %d, without an address", h.state.Role, h.state.AdvBase, h.state.AdvSkew)
	}
	return fmt.Sprintf("%s, advbase %d advskew %d, %s", h.state.Role, h.state.AdvBase, h.state.AdvSkew, list(h.addresses))
}

var errNoKernel = errors.New("a tree, and no running kernel")

// liveVHID reads a vhid. What only says that it is not there, or cannot be, is no error.
func (p *planner) liveVHID(v VHID) (present, error) {
	if !p.live() {
		return present{unknown: errNoKernel}, nil
	}
	s, err := p.host.Kernel.VHID(v.Interface, v.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return present{}, nil
	case errors.Is(err, carp.ErrNoModule), errors.Is(err, carp.ErrNoInterface), errors.Is(err, carp.ErrNoCARP):
		return present{unknown: err}, nil
	case err != nil:
		return present{}, fmt.Errorf("read vhid %d of %s: %w", v.ID, v.Interface, err)
	}
	have := present{state: &s}
	for _, a := range p.addressesOf(v.Interface) {
		if a.VHID == v.ID {
			have.addresses = append(have.addresses, a.Prefix)
		}
	}
	return have, nil
}

// judge refuses what would do harm, or cannot be right.
func (p *planner) judge(ctx context.Context, v VHID, have present) *problem {
	for _, check := range []func(VHID) *problem{checkNumbers, p.checkInterface, p.checkPeer, p.checkPassword, p.checkMasks, p.checkElsewhere} {
		if bad := check(v); bad != nil {
			return bad
		}
	}
	switch {
	case errors.Is(have.unknown, carp.ErrNoCARP), errors.Is(have.unknown, carp.ErrNoInterface):
		return problemf("name another interface under carp.vhids, or this node's own name of it under nodes[].interfaces", "%s", have.unknown)
	case p.needsNothing(v, have), !p.live(), p.sharesStack():
		return nil
	}
	return p.checkSegment(ctx, v, have)
}

func checkNumbers(v VHID) *problem {
	switch {
	case v.ID < 1 || v.ID > 255:
		return problemf("write another vhid under carp.vhids", "vhid %d: not 1 to 255", v.ID)
	case v.AdvSkew < 0 || v.AdvSkew > maxSkew:
		return problemf("write another advskew under nodes", "advskew %d: not 0 to %d", v.AdvSkew, maxSkew)
	case v.AdvBase < 1 || v.AdvBase > 255:
		return problemf("write another advbase under carp.vhids", "advbase %d: not 1 to 255 seconds", v.AdvBase)
	case len(v.Addresses) == 0:
		return problemf("name the addresses under carp.vhids", "no addresses")
	}
	for _, a := range v.Addresses {
		if family(a.Addr()) != v.family() {
			return problemf("give each family a vhid of its own", "%s and %s under one vhid: the advertisements of each family would flip the state that they share", v.Addresses[0], a)
		}
	}
	return nil
}

// checkInterface wants the interface to be there. lo0 and the like cannot have CARP.
func (p *planner) checkInterface(v VHID) *problem {
	const mend = "name another interface under carp.vhids, or this node's own name of it under nodes[].interfaces"
	if digits, ok := strings.CutPrefix(v.Interface, "lo"); ok && strings.Trim(digits, "0123456789") == "" {
		return problemf(mend, "%s: a loopback interface cannot have CARP", v.Interface)
	}
	if !p.live() || p.sharesStack() {
		return nil
	}
	var names []string
	for _, i := range p.interfaces {
		if i.Name == v.Interface {
			return nil
		}
		names = append(names, i.Name)
	}
	return problemf(mend, "this host has no interface %s (it has %s)", v.Interface, strings.Join(names, ", "))
}

func (p *planner) checkPeer(v VHID) *problem {
	if !v.Peer.IsValid() || !p.live() {
		return nil
	}
	release, err := p.host.Kernel.Release()
	switch {
	case err != nil:
		return problemOf(fmt.Errorf("read kern.osreldate: %w", err))
	case release < unicastRelease:
		return problemf("leave peer empty (multicast), or upgrade", "unicast CARP begins with FreeBSD 14, and kern.osreldate is %d", release)
	}
	return nil
}

// password is what a password_file holds.
type password struct {
	secret cluster.Secret
	// hidden tells that this user may not read it.
	hidden bool
	bad    *problem
}

// checkPassword refuses one that FreeBSD would cut, misread or evaluate.
func (p *planner) checkPassword(v VHID) *problem { return p.password(v.PasswordFile).bad }

func (p *planner) password(path string) password {
	got, ok := p.passwords[path]
	if !ok {
		got = p.readPassword(path)
		p.passwords[path] = got
	}
	return got
}

func (p *planner) readPassword(path string) password {
	if path == "" {
		return password{bad: problemf("name a file with 1 to 19 letters and digits, mode 0600", "no password_file")}
	}
	secret, err := p.host.Password(path)
	switch {
	case errors.Is(err, fs.ErrPermission) && p.host.Getuid() != 0:
		return password{hidden: true}
	case err != nil:
		return password{bad: problemOf(err)}
	}
	if err := carp.CheckPassword(secret); err != nil {
		return password{bad: &problem{why: path + ": " + err.Error(), mend: cluster.HintOf(err)}}
	}
	return password{secret: secret}
}

// addressesOf are those of an interface now; none without a kernel.
func (p *planner) addressesOf(iface string) []carp.Address {
	for _, i := range p.interfaces {
		if i.Name == iface {
			return i.Addresses
		}
	}
	return nil
}

// networks are the plain addresses of an interface with their masks: those that it has, or, in a tree, those that
// rc.conf gives it.
func (p *planner) networks(iface string) []netip.Prefix {
	var out []netip.Prefix
	if p.live() {
		for _, a := range p.addressesOf(iface) {
			if a.VHID == 0 {
				out = append(out, a.Prefix)
			}
		}
		return out
	}
	for _, key := range p.rc.Keys("ifconfig_" + rcName(iface)) {
		a := parseAlias(p.rc.Get(key).Value)
		if a.vhid == 0 && a.address.IsValid() {
			out = append(out, a.address)
		}
	}
	return out
}

// checkMasks wants a host mask, or the mask of the interface's network that the address lies in.
func (p *planner) checkMasks(v VHID) *problem {
	networks := p.networks(v.Interface)
	for _, a := range v.Addresses {
		if a.IsSingleIP() {
			continue
		}
		if !p.live() && len(networks) == 0 {
			continue // by DHCP, perhaps: a tree cannot tell
		}
		if bad := checkMask(v.Interface, a, networks); bad != nil {
			return bad
		}
	}
	return nil
}

func checkMask(iface string, a netip.Prefix, networks []netip.Prefix) *problem {
	host := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	for _, n := range networks {
		switch {
		case !n.Contains(a.Addr()) && !a.Contains(n.Addr()):
		case n.Bits() == a.Bits():
			return nil
		default:
			return problemf(fmt.Sprintf("write %s", host), "the mask of %s conflicts with the network of %s on %s", a, n, iface)
		}
	}
	return problemf(fmt.Sprintf("write %s, or give %s an address of that network first", host, iface), "%s lies in no network of %s, and has a mask other than /%d", a, iface, a.Addr().BitLen())
}

// checkElsewhere refuses an address that another interface has.
func (p *planner) checkElsewhere(v VHID) *problem {
	for _, i := range p.interfaces {
		if i.Name == v.Interface {
			continue
		}
		for _, a := range i.Addresses {
			if slices.ContainsFunc(v.Addresses, func(want netip.Prefix) bool { return want.Addr() == a.Prefix.Addr() }) {
				return problemf("take it away there first, or correct carp.vhids", "%s has %s already", i.Name, a.Prefix)
			}
		}
	}
	return nil
}

// needsNothing tells that the vhid's addresses are right, so that its place in the segment is its own already.
func (p *planner) needsNothing(v VHID, have present) bool {
	return have.state != nil && sameSet(have.addresses, v.Addresses)
}

func sameSet(a, b []netip.Prefix) bool {
	sorted := func(in []netip.Prefix) []netip.Prefix {
		return slices.SortedFunc(slices.Values(in), netip.Prefix.Compare)
	}
	return slices.Equal(sorted(a), sorted(b))
}

// checkSegment listens for as long as a MASTER may be silent, and refuses a vhid that another host uses.
func (p *planner) checkSegment(ctx context.Context, v VHID, have present) *problem {
	adverts, err := p.listen(ctx, v.Interface)
	if err != nil {
		p.add(Step{Name: v.name() + " in the segment", State: Note, Interface: v.Interface,
			Found: fmt.Sprintf("nobody listened whether another host uses it: %v", err), Mend: "make sure that no other host of the segment uses this vhid"})
		return nil
	}
	groups := []carp.Group{{Password: p.password(v.PasswordFile).secret, Addresses: v.Addresses}}
	if have.state != nil {
		groups = append(groups, carp.Group{Password: have.state.Password, Addresses: have.addresses})
	}
	own := slices.Concat(p.set.Own, p.set.Others)
	for _, a := range p.addressesOf(v.Interface) {
		own = append(own, a.Prefix.Addr())
	}
	if err := carp.Foreign(adverts, v.ID, own, groups...); err != nil {
		return problemOf(err)
	}
	return nil
}

// heard is what was on an interface's segment, or why nobody could listen.
type heard struct {
	adverts []carp.Advert
	err     error
}

// listen hears an interface, once for all of its vhids, for 3 * advbase and one second: after that a BACKUP would take
// over (carp(4)).
func (p *planner) listen(ctx context.Context, iface string) ([]carp.Advert, error) {
	if h, ok := p.heard[iface]; ok {
		return h.adverts, h.err
	}
	base := 1
	for _, v := range p.set.VHIDs {
		if v.Interface == iface {
			base = max(base, v.AdvBase)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(3*base+1)*time.Second)
	defer cancel()
	var h heard
	if p.host.Getuid() != 0 {
		return nil, errors.New("only root can") // bpf(4)
	}
	h.err = p.host.Kernel.Adverts(ctx, iface, func(a carp.Advert) bool {
		h.adverts = append(h.adverts, a)
		return len(h.adverts) < maxHeard
	})
	if ctx.Err() != nil && errors.Is(h.err, ctx.Err()) {
		h.err = nil
	}
	p.heard[iface] = h
	return h.adverts, h.err
}

// maxHeard bounds what a flooded segment can make us keep.
const maxHeard = 10000

// vhidNow is the step of the running interface. It compares first: an address that is there is never added again.
func (p *planner) vhidNow(v VHID, have present) {
	s := Step{Name: v.name() + " now", State: Change, Found: have.String(), Want: v.String(), Interface: v.Interface, Commands: p.ifconfig(v, have)}
	switch {
	case !p.live():
		return // a tree has no interfaces
	case p.sharesStack():
		s.State, s.OnHost, s.Why = Unsupported, true, "the network is the jail's host's"
		if len(p.vhidActions(v, have)) == 0 {
			s.State, s.OnHost, s.Why, s.Commands = OK, false, "", nil
		}
	case errors.Is(have.unknown, carp.ErrNoModule) && !p.loading:
		s.State, s.Why = Unsupported, "carp is not loaded, and cannot be loaded from here: run `certsync bootstrap --apply` again when it is"
		s.Commands = nil
	default:
		s.actions = p.vhidActions(v, have)
		if len(s.actions) == 0 {
			s.State, s.Commands = OK, nil
			if p.password(v.PasswordFile).hidden || len(have.state.Password) == 0 && p.host.Getuid() != 0 {
				s.Found += " (the password was not compared: only root can)"
			}
			break
		}
		s.Warnings = p.costs(v, have, s.actions)
	}
	p.add(s)
}

// vhidActions are what is missing: the parameters by themselves, which cost nothing, then the addresses.
func (p *planner) vhidActions(v VHID, have present) []action {
	want := v.parameters(p.password(v.PasswordFile).secret)
	set := func() *vhidChange {
		return &vhidChange{Interface: v.Interface, ID: v.ID, After: want, Address: v.Addresses[0]}
	}
	var out []action
	if have.state == nil || !p.sameParameters(parametersOf(*have.state), want) {
		out = append(out, set())
	}
	change := func(a netip.Prefix, remove bool) {
		out = append(out, &addressChange{Interface: v.Interface, Address: a, VHID: v.ID, Remove: remove})
	}
	var masks []netip.Prefix
	for _, a := range v.Addresses {
		switch {
		case slices.Contains(have.addresses, a):
		case holds(have.addresses, a.Addr()):
			masks = append(masks, a)
		default:
			change(a, false)
		}
	}
	for _, a := range have.addresses {
		if !slices.Contains(v.Addresses, a) {
			change(a, true)
		}
	}
	// IPv6 refuses another mask for an address that is there: it goes first, perhaps with its vhid, and comes again.
	for _, a := range masks {
		out = append(out, set())
		change(a, false)
	}
	return out
}

func holds(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Addr() == a })
}

// sameParameters leaves the password out where this user cannot read it, or could not change it.
func (p *planner) sameParameters(have, want parameters) bool {
	if p.host.Getuid() != 0 || p.sharesStack() {
		have.Password, want.Password = nil, nil
	}
	return have.equal(want)
}

// costs says what --yes confirms.
func (p *planner) costs(v VHID, have present, actions []action) []string {
	var out []string
	moves := slices.ContainsFunc(actions, func(a action) bool { _, ok := a.(*addressChange); return ok })
	if moves && len(have.addresses) > 0 {
		out = append(out, fmt.Sprintf("causes a failover of vhid %d: any change of a vhid's addresses sends it through INIT and BACKUP, for about %d seconds", v.ID, 3*v.AdvBase))
	}
	for _, a := range p.addressesOf(v.Interface) {
		if moves && a.VHID != v.ID && holds(v.Addresses, a.Prefix.Addr()) {
			out = append(out, p.movesFrom(a))
		}
	}
	if v.Interface == p.sshInterface() {
		out = append(out, v.Interface+" carries this SSH session")
	}
	return out
}

func (p *planner) movesFrom(a carp.Address) string {
	if a.VHID == 0 {
		return fmt.Sprintf("%s is a plain address of this host now, and becomes a virtual one", a.Prefix)
	}
	return fmt.Sprintf("takes %s from vhid %d, which fails over", a.Prefix, a.VHID)
}

// ifconfig are the commands that do the same. The password is read from its file by the command.
func (p *planner) ifconfig(v VHID, have present) []string {
	var first, last []string
	for _, a := range have.addresses {
		gone := command("ifconfig", v.Interface, v.family(), a.Addr().String(), "-alias")
		switch {
		case slices.Contains(v.Addresses, a):
		case holds(v.Addresses, a.Addr()):
			first = append(first, gone) // it comes again with another mask
		default:
			last = append(last, gone)
		}
	}
	pass := `"$(cat ` + quote(v.PasswordFile) + `)"`
	missing := slices.DeleteFunc(slices.Clone(v.Addresses), func(a netip.Prefix) bool { return slices.Contains(have.addresses, a) })
	if len(missing) == 0 {
		first = append(first, script("ifconfig %s vhid %d advbase %d advskew %d pass %s", v.Interface, v.ID, v.AdvBase, v.AdvSkew, pass))
	}
	for _, a := range missing {
		first = append(first, script("ifconfig %s %s", v.Interface, v.alias(a, nil).text(pass)))
	}
	return append(first, last...)
}
