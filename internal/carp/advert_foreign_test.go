package carp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

func TestAVHIDThatAnotherHostUsesIsForeign(t *testing.T) {
	var (
		node1, node2 = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")
		own          = []netip.Addr{node1, node2}
		wanted       = Group{cluster.Secret("secret"), somePrefixes("192.0.2.10/32")}
		before       = Group{cluster.Secret("older"), somePrefixes("192.0.2.10/32", "192.0.2.20/32")}
		wanted6      = Group{cluster.Secret("secret"), somePrefixes("2001:db8::10/128")}
	)
	advert := func(vhid int, from netip.Addr, g Group, tags ...uint16) Advert {
		a, err := decodeAdvert(advertFrame(Advert{From: from, VHID: vhid, AdvBase: 1, Counter: 9}, string(g.Password), g.Addresses, tags...))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	other, stranger := Group{cluster.Secret("theirs"), somePrefixes("192.0.2.77/32")}, netip.MustParseAddr("192.0.2.70")
	for _, c := range []struct {
		name    string
		adverts []Advert
		groups  []Group
		foreign []string
	}{
		{"a silent segment", nil, []Group{wanted}, nil},
		{"our nodes with what is wanted", []Advert{advert(1, node1, wanted), advert(1, node2, wanted)}, []Group{wanted}, nil},
		{"our node with what it has now", []Advert{advert(1, node2, before)}, []Group{wanted}, nil},
		{"the peer by its link-local address", []Advert{advert(1, sender6, wanted6)}, []Group{wanted6}, nil},
		{"the peer by its link-local address, not changed yet", []Advert{advert(1, sender6, before)}, []Group{wanted, before}, nil},
		{"the same, and what there was before is not known", []Advert{advert(1, sender6, before)}, []Group{wanted}, []string{sender6.String()}},
		{"another host with other addresses", []Advert{advert(1, node1, wanted), advert(1, stranger, other), advert(1, stranger, other)}, []Group{wanted, before}, []string{"192.0.2.70"}},
		{"another host with our addresses and another password", []Advert{advert(1, stranger, Group{other.Password, wanted.Addresses})}, []Group{wanted}, []string{"192.0.2.70"}},
		{"another host with our password and other addresses", []Advert{advert(1, stranger, Group{wanted.Password, other.Addresses})}, []Group{wanted}, []string{"192.0.2.70"}},
		{"two other hosts", []Advert{advert(1, stranger, other), advert(1, sender6, other)}, []Group{wanted}, []string{"192.0.2.70", sender6.String()}},
		{"another vhid", []Advert{advert(2, stranger, other)}, []Group{wanted}, nil},
		{"another VLAN", []Advert{advert(1, stranger, other, 10)}, []Group{wanted}, nil},
		{"a priority tag is the same segment", []Advert{advert(1, stranger, other, 0x8000)}, []Group{wanted}, []string{"192.0.2.70"}},
		{"without a group nobody unknown is ours", []Advert{advert(1, stranger, wanted)}, nil, []string{"192.0.2.70"}},
	} {
		err := Foreign(c.adverts, 1, own, c.groups...)
		if errors.Is(err, ErrForeign) != (c.foreign != nil) || (err == nil) != (c.foreign == nil) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err == nil {
			continue
		}
		text := err.Error()
		for _, from := range c.foreign {
			if strings.Count(text, from) != 1 {
				t.Errorf("%s: %q does not name %s once", c.name, text, from)
			}
		}
		if strings.Contains(text+cluster.HintOf(err), "theirs") || cluster.HintOf(err) == "" || !strings.Contains(text, "vhid 1") {
			t.Errorf("%s: %q, hint %q", c.name, text, cluster.HintOf(err))
		}
	}
}
