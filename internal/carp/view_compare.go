package carp

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// FindingKind says what a Finding is about.
type FindingKind string

// The kinds of findings.
const (
	BothMaster      FindingKind = "both_master"      // several hosts answer for the addresses
	NobodyMaster    FindingKind = "nobody_master"    // no host answers for them
	FamiliesApart   FindingKind = "families_apart"   // IPv4 and IPv6 are on different hosts
	VHIDsDiffer     FindingKind = "vhids_differ"     // a host lacks a vhid
	AddressesDiffer FindingKind = "addresses_differ" // neither believes the other's advertisements: both are MASTER
	VersionsDiffer  FindingKind = "versions_differ"  // likewise
	AdvBasesDiffer  FindingKind = "advbases_differ"  // the shorter one wins, whatever the advskew
	Unreadable      FindingKind = "unreadable"       // a vhid, or a part of it, could not be read
	AdvSkewsEqual   FindingKind = "advskews_equal"   // who wins is chance
	PreemptOff      FindingKind = "preempt_off"      // who was MASTER does not take over by itself
	Demoted         FindingKind = "demoted"          // the host steps back
)

// Finding is one thing that is wrong with CARP over all nodes.
type Finding struct {
	Kind FindingKind `json:"kind"`
	// Warning tells that it works as it is.
	Warning bool `json:"warning,omitempty"`
	// VHID is the one that it is about; 0 where it is about the hosts.
	VHID int `json:"vhid,omitempty"`
	// Nodes are those that it is about, sorted.
	Nodes []string `json:"nodes"`
	Error string   `json:"error"`
	Hint  string   `json:"hint,omitempty"`
}

// Compare says what is wrong, of this node's view and of those of its peers: errors first, then warnings, by vhid. A
// peer that could not be asked is to be given as the zero CARP: nobody can be said to be MASTER nowhere then. vhids are
// compared by number, since nodes may call their interfaces otherwise; what one node does not know is no difference.
func Compare(self string, mine cluster.CARP, peers map[string]cluster.CARP) []Finding {
	c := comparison{views: maps.Clone(peers)}
	if c.views == nil {
		c.views = make(map[string]cluster.CARP)
	}
	c.views[self] = mine
	c.nodes = slices.Sorted(maps.Keys(c.views))
	for _, p := range c.places() {
		c.vhid(p)
	}
	c.families()
	for _, node := range c.nodes {
		c.host(node)
	}
	slices.SortStableFunc(c.found, func(a, b Finding) int {
		return cmp.Or(boolCompare(a.Warning, b.Warning), cmp.Compare(a.VHID, b.VHID), cmp.Compare(a.Kind, b.Kind),
			slices.Compare(a.Nodes, b.Nodes), cmp.Compare(a.Error, b.Error))
	})
	return c.found
}

// comparison is the state of one Compare.
type comparison struct {
	nodes []string
	views map[string]cluster.CARP
	found []Finding
}

// place is a vhid's: its number, and which one of that number it is in the order of the configuration, since each
// interface is a segment with numbers of its own.
type place struct{ id, nth int }

// String is for a sentence.
func (p place) String() string {
	if p.nth == 0 {
		return fmt.Sprintf("vhid %d", p.id)
	}
	return fmt.Sprintf("vhid %d (the one on interface %d of those that have it)", p.id, p.nth+1)
}

// seenVHID is a vhid as one node sees it.
type seenVHID struct {
	node string
	cluster.VHID
}

func (c *comparison) add(f Finding) { c.found = append(c.found, f) }

// tells whether a node's view says anything of vhids: a static role does not, nor one that was not asked.
func tells(view cluster.CARP) bool { return len(view.VHIDs) > 0 }

// places are those of all vhids, sorted.
func (c *comparison) places() []place {
	set := make(map[place]bool)
	for _, view := range c.views {
		for p := range placed(view) {
			set[p] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b place) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.nth, b.nth)) })
}

// placed gives each vhid of a view its place.
func placed(view cluster.CARP) map[place]cluster.VHID {
	all := make(map[place]cluster.VHID)
	for _, v := range view.VHIDs {
		p := place{id: v.ID}
		for _, taken := all[p]; taken; _, taken = all[p] {
			p.nth++
		}
		all[p] = v
	}
	return all
}

// seen is how each node that has the vhid sees it, by node.
func (c *comparison) seen(p place) []seenVHID {
	var all []seenVHID
	for _, node := range c.nodes {
		if v, ok := placed(c.views[node])[p]; ok {
			all = append(all, seenVHID{node, v})
		}
	}
	return all
}

// vhid compares one vhid over the nodes.
func (c *comparison) vhid(p place) {
	seen := c.seen(p)
	c.unreadable(p, seen)
	c.lacking(p, seen)
	c.masters(p, seen)
	c.addresses(p, seen)
	c.differ(p, seen, VersionsDiffer, "the version differs", "set the same protocol on all hosts", func(v cluster.VHID) string { return v.Version })
	c.differ(p, seen, AdvBasesDiffer, "advbase differs", "set the same advbase on all hosts; advskew is what orders them", func(v cluster.VHID) string {
		if v.AdvBase == 0 {
			return ""
		}
		return fmt.Sprint(v.AdvBase)
	})
	c.skews(p, seen)
}

func (c *comparison) unreadable(p place, seen []seenVHID) {
	for _, v := range seen {
		if v.Error != "" {
			c.add(Finding{Kind: Unreadable, VHID: p.id, Nodes: []string{v.node}, Error: v.node + ": " + v.Error, Hint: v.Hint})
		}
	}
}

// lacking says which nodes tell of vhids and not of this one.
func (c *comparison) lacking(p place, seen []seenVHID) {
	var lack []string
	for _, node := range c.nodes {
		has := slices.ContainsFunc(seen, func(v seenVHID) bool { return v.node == node })
		if tells(c.views[node]) && !has {
			lack = append(lack, node)
		}
	}
	if len(lack) > 0 {
		c.add(Finding{Kind: VHIDsDiffer, VHID: p.id, Nodes: lack,
			Error: fmt.Sprintf("%v is on %s and not on %s", p, and(names(seen)), and(lack)),
			Hint:  "give all nodes the same carp.vhids, then run `certsync bootstrap` on each"})
	}
}

// masters says where the vhid is MASTER on several nodes, or on none.
func (c *comparison) masters(p place, seen []seenVHID) {
	masters := mastersOf(seen)
	if len(masters) > 1 {
		c.add(Finding{Kind: BothMaster, VHID: p.id, Nodes: masters, Error: fmt.Sprintf("%v: %s are MASTER at once", p, and(masters)),
			Hint: "see that each hears the other's advertisements (`tcpdump -ni INTERFACE proto 112`): the switch, pf, the password and the addresses of the vhid"})
	}
	if len(masters) > 0 || len(seen) < len(c.nodes) || slices.ContainsFunc(seen, func(v seenVHID) bool { return v.Role == cluster.Unknown }) {
		return // someone may be whom nobody could ask
	}
	states := make([]string, len(seen))
	for i, v := range seen {
		states[i] = fmt.Sprintf("%s is %s", v.node, v.Role)
	}
	c.add(Finding{Kind: NobodyMaster, VHID: p.id, Nodes: names(seen), Error: fmt.Sprintf("%v: nobody is MASTER: %s", p, and(states)),
		Hint: "see that the interface is up and has its link where it is INIT; a BACKUP takes over within seconds"})
}

func mastersOf(seen []seenVHID) []string {
	var masters []string
	for _, v := range seen {
		if v.Role == cluster.Master {
			masters = append(masters, v.node)
		}
	}
	return masters
}

// addresses compares the sets that the HMAC of the advertisements covers. Where the source is who has the address, it
// is not on the BACKUP: that is no difference.
func (c *comparison) addresses(p place, seen []seenVHID) {
	c.differ(p, slices.DeleteFunc(slices.Clone(seen), func(v seenVHID) bool { return c.views[v.node].Source == "addresses" }),
		AddressesDiffer, "the addresses differ", "give the vhid the same addresses on all hosts: advertisements cover them, so with others each host is MASTER",
		func(v cluster.VHID) string { return addressList(v.Addresses) })
}

// differ says where the nodes have different values; "" is one that is not known.
func (c *comparison) differ(p place, seen []seenVHID, kind FindingKind, what, hint string, value func(cluster.VHID) string) {
	var nodes, words []string
	values := make(map[string]bool)
	for _, v := range seen {
		if s := value(v.VHID); s != "" {
			values[s] = true
			nodes, words = append(nodes, v.node), append(words, fmt.Sprintf("%s has %s", v.node, s))
		}
	}
	if len(values) > 1 {
		c.add(Finding{Kind: kind, VHID: p.id, Nodes: nodes, Error: fmt.Sprintf("%v: %s: %s", p, what, and(words)), Hint: hint})
	}
}

// skews says which nodes have the same advskew.
func (c *comparison) skews(p place, seen []seenVHID) {
	by := make(map[int][]string)
	for _, v := range seen {
		if v.AdvSkew != nil {
			by[*v.AdvSkew] = append(by[*v.AdvSkew], v.node)
		}
	}
	for skew, nodes := range by {
		if len(nodes) > 1 {
			c.add(Finding{Kind: AdvSkewsEqual, Warning: true, VHID: p.id, Nodes: nodes,
				Error: fmt.Sprintf("%v: %s have advskew %d alike: who becomes MASTER is chance", p, and(nodes), skew),
				Hint:  "give each node an advskew of its own in nodes, then run `certsync bootstrap` on each"})
		}
	}
}

// families says where the MASTERs of the IPv4 vhids are other nodes than those of the IPv6 vhids.
func (c *comparison) families() {
	four, six := make(map[string]bool), make(map[string]bool)
	for _, p := range c.places() {
		seen := c.seen(p)
		masters := mastersOf(seen)
		if len(masters) != 1 {
			continue // that is said already
		}
		for _, family := range families(seen) {
			if family {
				four[masters[0]] = true
			} else {
				six[masters[0]] = true
			}
		}
	}
	if len(four) == 0 || len(six) == 0 || maps.Equal(four, six) {
		return
	}
	on4, on6 := slices.Sorted(maps.Keys(four)), slices.Sorted(maps.Keys(six))
	nodes := slices.Concat(on4, on6)
	slices.Sort(nodes)
	c.add(Finding{Kind: FamiliesApart, Nodes: slices.Compact(nodes),
		Error: fmt.Sprintf("IPv4 is on %s and IPv6 on %s", and(on4), and(on6)),
		Hint:  "give the vhids of both families the same advskew on a host, and set net.inet.carp.preempt=1, so that they move together"})
}

// families are those of a vhid's addresses, true for IPv4, as all nodes together know them.
func families(seen []seenVHID) []bool {
	var all []bool
	for _, v := range seen {
		for _, a := range v.Addresses {
			all = append(all, a.Addr().Is4())
		}
	}
	slices.SortFunc(all, boolCompare)
	return slices.Compact(all)
}

// host says what is wrong with a node as a whole.
func (c *comparison) host(node string) {
	view := c.views[node]
	if view.Preempt != nil && !*view.Preempt {
		c.add(Finding{Kind: PreemptOff, Warning: true, Nodes: []string{node},
			Error: node + ": preempt is off: when it was MASTER and comes back, it does not take over by itself",
			Hint:  "run `certsync bootstrap`, or `sysctl net.inet.carp.preempt=1`"})
	}
	if view.Demotion != nil && *view.Demotion != 0 {
		effect := "it steps back behind the others"
		if *view.Demotion < 0 {
			effect = "it goes before the others"
		}
		c.add(Finding{Kind: Demoted, Warning: true, Nodes: []string{node},
			Error: fmt.Sprintf("%s: its demotion is %d, not 0: %s", node, *view.Demotion, effect),
			Hint:  fmt.Sprintf("find out why (an interface that is down counts 240, and so does carp.demote_unready while the node is not ready); what was written is taken back by `sysctl net.inet.carp.demotion=%d`", -*view.Demotion)})
	}
}

func names(seen []seenVHID) []string {
	nodes := make([]string, len(seen))
	for i, v := range seen {
		nodes[i] = v.node
	}
	return nodes
}

// and joins words as a sentence does.
func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// boolCompare has false before true.
func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// addressList writes the addresses for a sentence, sorted, without their prefixes: those count for nothing between
// hosts.
func addressList(prefixes []netip.Prefix) string {
	addresses := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		addresses[i] = p.Addr()
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}
