package carp

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// healthy are two nodes as they should be, IPv4 and IPv6 MASTER on the first.
func healthy() (mine, peer cluster.CARP) {
	node := func(role cluster.Role, skew int, iface string) cluster.CARP {
		return cluster.CARP{Source: "netlink", Role: role, Demotion: new(0), Preempt: new(true), VHIDs: []cluster.VHID{
			{Interface: iface, ID: 1, Role: role, AdvBase: 1, AdvSkew: new(skew), Version: "carp", Addresses: prefixes("192.0.2.10/32", "192.0.2.11/32")},
			{Interface: iface, ID: 2, Role: role, AdvBase: 1, AdvSkew: new(skew), Version: "carp", Addresses: prefixes("2001:db8::10/128")},
		}}
	}
	return node(cluster.Master, 0, "em0"), node(cluster.Backup, 100, "igb0")
}

func TestCompare(t *testing.T) {
	onLinux := func(c *cluster.CARP) {
		c.Source, c.Demotion, c.Preempt = "addresses", nil, nil
		for i := range c.VHIDs {
			v := &c.VHIDs[i]
			v.AdvBase, v.AdvSkew, v.Version = 0, nil, ""
			if v.Role != cluster.Master {
				v.Addresses = nil
			}
		}
	}
	for name, c := range map[string]struct {
		change func(mine, peer *cluster.CARP)
		want   []string
	}{
		"all is well":               {func(_, _ *cluster.CARP) {}, nil},
		"all is well on Linux":      {func(a, b *cluster.CARP) { onLinux(a); onLinux(b) }, nil},
		"all is well, one on Linux": {func(a, b *cluster.CARP) { onLinux(b) }, nil},
		"a peer that was not asked": {func(a, b *cluster.CARP) {
			a.VHIDs[0].Role, a.VHIDs[1].Role = cluster.Backup, cluster.Backup
			*b = cluster.CARP{}
		}, nil},
		"a static peer":             {func(a, b *cluster.CARP) { *b = cluster.CARP{Source: "static", Role: cluster.Master} }, nil},
		"a peer of netmask /24":     {func(a, b *cluster.CARP) { b.VHIDs[0].Addresses = prefixes("192.0.2.11/24", "192.0.2.10/24") }, nil},
		"a peer that knows no skew": {func(a, b *cluster.CARP) { b.VHIDs[0].AdvSkew = nil }, nil},
		"both MASTER":               {func(a, b *cluster.CARP) { b.VHIDs[0].Role, b.VHIDs[1].Role = cluster.Master, cluster.Master }, []string{"error both_master 1 p1,p2: vhid 1: p1 and p2 are MASTER at once", "error both_master 2 p1,p2: vhid 2: p1 and p2 are MASTER at once"}},
		"both BACKUP":               {func(a, b *cluster.CARP) { a.VHIDs[1].Role = cluster.Backup }, []string{"error nobody_master 2 p1,p2: vhid 2: nobody is MASTER: p1 is BACKUP and p2 is BACKUP"}},
		"INIT and BACKUP":           {func(a, b *cluster.CARP) { a.VHIDs[0].Role = cluster.Init }, []string{"error nobody_master 1 p1,p2: vhid 1: nobody is MASTER: p1 is INIT and p2 is BACKUP"}},
		"both INIT, one on Linux":   {func(a, b *cluster.CARP) { a.VHIDs[0].Role, b.VHIDs[0].Role = cluster.Init, cluster.Init; onLinux(b) }, []string{"error nobody_master 1 p1,p2: vhid 1: nobody is MASTER: p1 is INIT and p2 is INIT"}},
		"the families apart":        {func(a, b *cluster.CARP) { a.VHIDs[1].Role, b.VHIDs[1].Role = cluster.Backup, cluster.Master }, []string{"error families_apart 0 p1,p2: IPv4 is on p1 and IPv6 on p2"}},
		"apart, on Linux": {func(a, b *cluster.CARP) {
			a.VHIDs[1].Role, b.VHIDs[1].Role = cluster.Backup, cluster.Master
			onLinux(a)
			onLinux(b)
			b.VHIDs[1].Addresses = prefixes("2001:db8::10/128")
		}, []string{"error families_apart 0 p1,p2: IPv4 is on p1 and IPv6 on p2"}},
		"a vhid less here":           {func(a, b *cluster.CARP) { a.VHIDs = a.VHIDs[:1] }, []string{"error vhids_differ 2 p1: vhid 2 is on p2 and not on p1"}},
		"a vhid less there":          {func(a, b *cluster.CARP) { b.VHIDs = b.VHIDs[1:] }, []string{"error vhids_differ 1 p2: vhid 1 is on p1 and not on p2"}},
		"other numbers":              {func(a, b *cluster.CARP) { b.VHIDs[0].ID = 3 }, []string{"error vhids_differ 1 p2: vhid 1 is on p1 and not on p2", "error vhids_differ 3 p1: vhid 3 is on p2 and not on p1"}},
		"an address less":            {func(a, b *cluster.CARP) { b.VHIDs[0].Addresses = prefixes("192.0.2.10/32") }, []string{"error addresses_differ 1 p1,p2: vhid 1: the addresses differ: p1 has 192.0.2.10, 192.0.2.11 and p2 has 192.0.2.10"}},
		"another order of addresses": {func(a, b *cluster.CARP) { slices.Reverse(b.VHIDs[0].Addresses) }, nil},
		"another advbase":            {func(a, b *cluster.CARP) { b.VHIDs[0].AdvBase = 3 }, []string{"error advbases_differ 1 p1,p2: vhid 1: advbase differs: p1 has 1 and p2 has 3"}},
		"another version":            {func(a, b *cluster.CARP) { b.VHIDs[1].Version = "vrrp3" }, []string{"error versions_differ 2 p1,p2: vhid 2: the version differs: p1 has carp and p2 has vrrp3"}},
		"the same advskew":           {func(a, b *cluster.CARP) { b.VHIDs[0].AdvSkew = new(0) }, []string{"warning advskews_equal 1 p1,p2: vhid 1: p1 and p2 have advskew 0 alike: who becomes MASTER is chance"}},
		"preempt off":                {func(a, b *cluster.CARP) { b.Preempt = new(false) }, []string{"warning preempt_off 0 p2: p2: preempt is off: when it was MASTER and comes back, it does not take over by itself"}},
		"demoted":                    {func(a, b *cluster.CARP) { a.Demotion = new(240) }, []string{"warning demoted 0 p1: p1: its demotion is 240, not 0: it steps back behind the others"}},
		"promoted":                   {func(a, b *cluster.CARP) { a.Demotion = new(-240) }, []string{"warning demoted 0 p1: p1: its demotion is -240, not 0: it goes before the others"}},
		"a vhid that cannot be read": {func(a, b *cluster.CARP) {
			a.VHIDs[0] = cluster.VHID{Interface: "em0", ID: 1, Error: "read vhid 1 of em0: carp is not loaded", Hint: "run `kldload carp`"}
		}, []string{"error unreadable 1 p1: p1: read vhid 1 of em0: carp is not loaded"}},
		"errors before warnings": {func(a, b *cluster.CARP) {
			a.Preempt, a.Demotion = new(false), new(1)
			b.VHIDs[1].AdvSkew, b.VHIDs[1].Role, b.VHIDs[0].AdvBase = new(0), cluster.Master, 2
		}, []string{
			"error advbases_differ 1 p1,p2: vhid 1: advbase differs: p1 has 1 and p2 has 2", "error both_master 2 p1,p2: vhid 2: p1 and p2 are MASTER at once",
			"warning demoted 0 p1: p1: its demotion is 1, not 0: it steps back behind the others",
			"warning preempt_off 0 p1: p1: preempt is off: when it was MASTER and comes back, it does not take over by itself",
			"warning advskews_equal 2 p1,p2: vhid 2: p1 and p2 have advskew 0 alike: who becomes MASTER is chance",
		}},
	} {
		mine, peer := healthy()
		c.change(&mine, &peer)
		var first []byte
		for range 20 { // the order does not depend on that of a map
			found := Compare("p1", mine, map[string]cluster.CARP{"p2": peer})
			text, err := json.Marshal(found)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = text
				if got := lines(t, found); !slices.Equal(got, c.want) {
					t.Errorf("%s:\ngot  %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
				}
			}
			if string(text) != string(first) {
				t.Fatalf("%s: %s and %s", name, first, text)
			}
		}
		// The other node says the same.
		if again, _ := json.Marshal(Compare("p2", peer, map[string]cluster.CARP{"p1": mine})); string(again) != string(first) {
			t.Errorf("%s: seen from the other node: %s, not %s", name, again, first)
		}
	}
}

// lines writes findings down; each has its mend.
func lines(t *testing.T, found []Finding) []string {
	t.Helper()
	var all []string
	for _, f := range found {
		kind := "error "
		if f.Warning {
			kind = "warning "
		}
		id := string(rune('0' + f.VHID))
		all = append(all, kind+string(f.Kind)+" "+id+" "+strings.Join(f.Nodes, ",")+": "+f.Error)
		if f.Hint == "" {
			t.Errorf("%s has no mend", f.Kind)
		}
	}
	return all
}

func TestCompareOfThreeNodes(t *testing.T) {
	mine, second := healthy()
	_, third := healthy()
	third.VHIDs[0].AdvSkew, third.VHIDs[1].AdvSkew = new(200), new(100)
	third.VHIDs[0].Role = cluster.Master
	got := lines(t, Compare("p1", mine, map[string]cluster.CARP{"p2": second, "p3": third}))
	want := []string{"error both_master 1 p1,p3: vhid 1: p1 and p3 are MASTER at once",
		"warning advskews_equal 2 p2,p3: vhid 2: p2 and p3 have advskew 100 alike: who becomes MASTER is chance"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// One of three that was not asked may be the MASTER.
	mine.VHIDs[0].Role, mine.VHIDs[1].Role = cluster.Backup, cluster.Backup
	if got := Compare("p1", mine, map[string]cluster.CARP{"p2": second, "p3": {}}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// Each interface is a segment with numbers of its own.
func TestCompareOfANumberOnTwoInterfaces(t *testing.T) {
	mine, peer := healthy()
	for c, role := range map[*cluster.CARP]cluster.Role{&mine: cluster.Backup, &peer: cluster.Master} {
		v := c.VHIDs[0]
		v.Interface, v.Role, v.Addresses = "em1", role, prefixes("198.51.100.10/32")
		c.VHIDs = append(c.VHIDs, v)
	}
	if got := Compare("p1", mine, map[string]cluster.CARP{"p2": peer}); len(got) != 1 || got[0].Kind != FamiliesApart {
		t.Errorf("%+v; want nothing but that IPv4 is on both", got)
	}
	peer.VHIDs[2].AdvBase = 2
	got := Compare("p1", mine, map[string]cluster.CARP{"p2": peer})
	if i := slices.IndexFunc(got, func(f Finding) bool { return f.Kind == AdvBasesDiffer }); i < 0 || !strings.Contains(got[i].Error, "the one on interface 2") {
		t.Errorf("%+v; want the advbase of the second", got)
	}
}

func TestCompareLeavesWhatItWasGiven(t *testing.T) {
	mine, peer := healthy()
	slices.Reverse(peer.VHIDs[0].Addresses)
	peers := map[string]cluster.CARP{"p2": peer}
	Compare("p1", mine, peers)
	if len(peers) != 1 || peer.VHIDs[0].Addresses[0] != prefixes("192.0.2.11/32")[0] {
		t.Errorf("%+v", peers)
	}
	if got := Compare("p1", mine, nil); len(got) != 0 {
		t.Errorf("alone and MASTER: %+v", got)
	}
}
