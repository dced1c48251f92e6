package haproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"certsync/internal/haproxy/haconf"
)

// reach tells how the binds of a HAProxy can be connected to from this node, without ever asking another one. FreeBSD
// sends a connection to a virtual address of CARP out where this node is not MASTER, and the MASTER answers it.
type reach struct {
	p   *Proxy
	own map[netip.Addr]bool
	// ownErr is why own is not known.
	ownErr error
	// claims are the addresses that one bind line or another names, with their ports.
	claims map[netip.Addr][]ports
}

type ports struct{ first, last int }

// spot is a handshake to make: where, and for which names.
type spot struct {
	endpoint
	// filters are the names that the bind has the certificate for; all tells that it has it for the certificate's own.
	filters []string
	all     bool
}

// miss is a bind that cannot be connected to.
type miss struct {
	bind *haconf.Bind
	why  string
	// virtual tells that only virtual addresses stand in the way.
	virtual bool
}

func (m miss) String() string {
	return fmt.Sprintf("%s of %s (%s:%d): %s", addressesOf(m.bind), m.bind.Section, filepath.Base(m.bind.File), m.bind.Line, m.why)
}

// interfaceAddresses are the addresses of this node's own interfaces.
func interfaceAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}

func (p *Proxy) newReach(l *layout) *reach {
	r := &reach{p: p, own: map[netip.Addr]bool{}, claims: map[netip.Addr][]ports{}}
	addresses := p.config.Addresses
	if addresses == nil {
		addresses = interfaceAddresses
	}
	own, err := addresses()
	r.ownErr = err
	for _, ip := range own {
		r.own[ip.WithZone("").Unmap()] = true
	}
	for _, b := range l.config.Binds {
		for _, a := range b.Addresses {
			if a.Kind == haconf.TCP && a.IP.IsValid() && !b.Disabled {
				ip := a.IP.WithZone("").Unmap()
				r.claims[ip] = append(r.claims[ip], ports{a.Port, a.LastPort})
			}
		}
	}
	return r
}

// virtual tells whether ip is one of CARP's.
func (p *Proxy) virtual(ip netip.Addr) bool {
	ip = ip.WithZone("").Unmap()
	return slices.ContainsFunc(p.config.Virtual, func(v netip.Addr) bool { return v.WithZone("").Unmap() == ip })
}

// isMaster tells whether a virtual address answers for this node.
func (p *Proxy) isMaster() bool { return p.config.Master != nil && p.config.Master() }

func (r *reach) claimed(ip netip.Addr, port int) bool {
	return slices.ContainsFunc(r.claims[ip], func(c ports) bool { return c.first <= port && port <= c.last })
}

// bind finds one address to reach b at. One is enough: the addresses of a bind line share its certificates.
func (r *reach) bind(b *haconf.Bind) (endpoint, *miss) {
	m := &miss{bind: b, why: "it has no address"}
	switch {
	case b.NetScaler:
		m.why = "it expects NetScaler's protocol (accept-netscaler-cip)"
		return endpoint{}, m
	case b.Interface != "" && b.Interface != "lo": // whatever this node sends to itself comes from lo
		m.why = "it takes connections of interface " + b.Interface + " only"
		return endpoint{}, m
	case b.Namespace != "":
		m.why = "it is in the network namespace " + b.Namespace
		return endpoint{}, m
	}
	var best endpoint
	found, virtual := false, len(b.Addresses) > 0
	for _, a := range b.Addresses {
		e, why, isVirtual := r.address(a, b.V4V6)
		if why != "" {
			m.why, virtual = why, virtual && isVirtual
			continue
		}
		// A virtual address is the last choice: it may move while it is asked.
		if e.proxy, e.maybe, e.guarded = b.AcceptProxy, b.Maybe, b.Guarded; !found || best.virtual && !e.virtual {
			best, found = e, true
		}
	}
	if found {
		return best, nil
	}
	m.virtual = virtual
	return endpoint{}, m
}

// address gives the endpoint of one address, or why there is none.
func (r *reach) address(a haconf.Address, v4v6 bool) (e endpoint, why string, virtual bool) {
	switch {
	case a.Kind == haconf.Unix && !filepath.IsAbs(a.Path):
		return endpoint{}, "the folder that its relative path begins at is not known", false
	case a.Kind == haconf.Unix:
		return endpoint{network: "unix", address: a.Path}, "", false
	case a.Kind != haconf.TCP:
		return endpoint{}, fmt.Sprintf("an address of the kind %s cannot be connected to from here", a.Kind), false
	case a.Host != "":
		return endpoint{}, "its address is a name: write the IP address", false
	}
	ip := a.IP.Unmap()
	at := func(ip netip.Addr) endpoint {
		return endpoint{network: "tcp", address: net.JoinHostPort(ip.String(), strconv.Itoa(a.Port))}
	}
	switch {
	case ip.IsUnspecified():
		if local, ok := r.local(ip, a.Port, v4v6); ok {
			return at(local), "", false
		}
		return endpoint{}, "other binds have this port on every address of this node", false
	case r.p.virtual(ip) && !r.p.isMaster():
		return endpoint{}, "a virtual address proves nothing here: the MASTER answers", true
	case r.ownErr != nil:
		return endpoint{}, "this node's own addresses are not known: " + r.ownErr.Error(), false
	case !r.own[ip.WithZone("")] && !ip.IsLoopback():
		return endpoint{}, "it is no address of this node", false
	}
	e = at(ip)
	e.virtual = r.p.virtual(ip)
	return e, "", e.virtual
}

// loopback4 and loopback6 are the addresses that never leave the node.
var loopback4, loopback6 = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()

// local is an address of this node at which a bind to all addresses answers: loopback, else one of the node's own. Where
// another bind names the very address with the same port, that one would answer.
func (r *reach) local(any netip.Addr, port int, v4v6 bool) (netip.Addr, bool) {
	four, six := any.Is4() || v4v6, any.Is6()
	candidates := []netip.Addr{loopback6, loopback4}
	var own []netip.Addr
	for ip := range r.own {
		if !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			own = append(own, ip)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	for _, ip := range append(candidates, own...) {
		if (ip.Is4() && four || ip.Is6() && six) && !r.p.virtual(ip) && !r.claimed(ip, port) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// mend is the bind line to add for b's certificates to be seen on every node.
func (r *reach) mend(b *haconf.Bind) string {
	port := 8443
	for port < 65535 && (r.claimed(loopback4, port) || r.claimed(netip.IPv4Unspecified(), port) || r.claimed(netip.IPv6Unspecified(), port)) {
		port++
	}
	return fmt.Sprintf("add `bind %s:%d %s` to %s, and reload HAProxy", loopback4, port, strings.Join(b.Arguments, " "), b.Section)
}

// spots are the handshakes that prove v's bundle, or why there are none, with the mend.
func (s *survey) spots(ctx context.Context, v *view) (spots []spot, why, mend string) {
	switch {
	case len(s.p.verify) > 0:
		return s.verifySpots()
	case len(s.p.config.Files) == 0:
		return nil, "set haproxy.verify to the address of an ssl bind", ""
	}
	s.finding.Lock()
	defer s.finding.Unlock()
	s.discover(ctx)
	x := s.names
	if x == nil {
		x = indexNames(nil)
	}
	loads := s.layout.find(x, v)
	if len(loads) == 0 {
		loads = s.layout.addedToList(x, v, s.p.config.CrtList)
	}
	binds, found := gather(loads)
	if len(binds) == 0 {
		why, mend = s.unserved(v)
		return nil, why, mend
	}
	var misses []miss
	for _, b := range binds {
		e, m := s.reach.bind(b)
		if m != nil {
			misses = append(misses, *m)
			continue
		}
		at := found[b]
		at.endpoint = e
		spots = append(spots, *at)
	}
	if len(spots) == 0 {
		why, mend = s.unreachable(v, misses)
	}
	return spots, why, mend
}

// discover reads the configuration, once for all targets.
func (s *survey) discover(ctx context.Context) {
	if s.layout == nil {
		s.layout = s.p.layout(ctx, s.process)
		s.reach = s.p.newReach(s.layout)
	}
}

// stored is the file of a crt-store's certificate as the configuration has it, "" where that does not say.
func (s *survey) stored(ctx context.Context, name string) string {
	if len(s.p.config.Files) == 0 {
		return ""
	}
	s.discover(ctx)
	return s.layout.stored[name]
}

// verifySpots are the addresses of haproxy.verify. The rule of virtual addresses is theirs too.
func (s *survey) verifySpots() (spots []spot, why, mend string) {
	for _, e := range s.p.verify {
		host, _, _ := net.SplitHostPort(e.address)
		ip, err := netip.ParseAddr(host)
		e.virtual = err == nil && e.network != "unix" && s.p.virtual(ip)
		if e.virtual && !s.p.isMaster() {
			why = fmt.Sprintf("haproxy.verify names %s, a virtual address, which proves nothing here: the MASTER answers", e)
			continue
		}
		spots = append(spots, spot{endpoint: e, all: true})
	}
	return spots, why, "have haproxy.verify name loopback or an address of each node's own, or leave it empty: the binds are then found in HAProxy's configuration"
}

// gather puts the loads of the same bind together, in the order of the configuration.
func gather(loads []*load) (binds []*haconf.Bind, found map[*haconf.Bind]*spot) {
	found = map[*haconf.Bind]*spot{}
	for _, f := range loads {
		for _, b := range f.binds {
			if found[b] == nil {
				found[b] = &spot{}
				binds = append(binds, b)
			}
			if f.entry == nil || len(f.entry.Filters) == 0 || slices.Contains(f.entry.Filters, "*") {
				found[b].all = true
			}
			if f.entry != nil {
				found[b].filters = append(found[b].filters, f.entry.Filters...)
			}
		}
	}
	return binds, found
}

// addedToList is for a bundle that was added to the configured crt-list since it was read.
func (l *layout) addedToList(x *nameIndex, v *view, list string) []*load {
	if list == "" {
		return nil
	}
	path, ok := x.real(list)
	if !ok || len(l.lists[path]) == 0 {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil || !listed(content, v.path) {
		return nil
	}
	return []*load{{binds: l.lists[path], path: v.path}}
}

// unserved is for a bundle that no ssl bind loads, as far as the configuration could be read.
func (s *survey) unserved(v *view) (why, mend string) {
	why = fmt.Sprintf("no ssl bind of %s serves %s", strings.Join(s.p.config.Files, ", "), v.path)
	problems := s.layout.config.Problems
	if len(problems) == 0 {
		return why, fmt.Sprintf("name it on a bind line (`crt %s`, or its folder), and reload HAProxy", v.path)
	}
	return fmt.Sprintf("%s, as far as that can be read (%s)", why, problems[0]),
		"let certsync's user read HAProxy's configuration and its crt-lists, or set haproxy.verify to the address of an ssl bind"
}

// unreachable is for a bundle that only binds load that this node cannot ask.
func (s *survey) unreachable(v *view, misses []miss) (why, mend string) {
	texts := make([]string, 0, len(misses))
	for _, m := range misses {
		texts = append(texts, m.String())
	}
	why = "no ssl bind that serves " + v.path + " can be asked from here: "
	if !slices.ContainsFunc(misses, func(m miss) bool { return !m.virtual }) {
		why = "every ssl bind that serves " + v.path + " is on a virtual address: "
	}
	const most = 3
	if len(texts) > most {
		texts = append(texts[:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return why + strings.Join(texts, "; "), s.reach.mend(misses[0].bind)
}
