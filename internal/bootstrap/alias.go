package bootstrap

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"certsync/internal/cluster"
)

// alias is a line of rc.conf that gives an interface an address under a vhid: what ifconfig(8) is handed.
type alias struct {
	vhid             int
	advBase, advSkew int
	password         cluster.Secret
	peer             netip.Addr
	// address has the prefix length that ifconfig would take, or -1 bits where that is not told by the line.
	address netip.Prefix
	// bare is the address alone, also where address is not valid.
	bare netip.Addr
	// odd tells that the line has words that are not understood: what it does cannot be told.
	odd bool
}

func (v VHID) alias(address netip.Prefix, password cluster.Secret) alias {
	return alias{vhid: v.ID, advBase: v.AdvBase, advSkew: v.AdvSkew, password: password, peer: v.Peer, address: address, bare: address.Addr()}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "inet"
	}
	return "inet6"
}

// text is the line with pass in place of the password. It begins with the family, as rc.conf(5) wants of an alias.
func (a alias) text(pass string) string {
	peer := ""
	if a.peer.IsValid() {
		peer = " peer " + a.peer.String()
		if a.peer.Is6() {
			peer = " peer6 " + a.peer.String()
		}
	}
	return fmt.Sprintf("%s vhid %d%s advbase %d advskew %d pass %s alias %s", family(a.bare), a.vhid, peer, a.advBase, a.advSkew, pass, a.address)
}

// same tells that two lines do the same.
func (a alias) same(b alias) bool {
	return !a.odd && !b.odd && a.vhid == b.vhid && a.advBase == b.advBase && a.advSkew == b.advSkew &&
		string(a.password) == string(b.password) && a.peer == b.peer && a.address == b.address
}

// parseAlias reads what a value of rc.conf hands to ifconfig, as far as it is about a vhid. The defaults are those of
// ifconfig and carp(4): advbase 1, advskew 0.
func parseAlias(value string) alias {
	a := alias{advBase: 1}
	words := strings.Fields(value)
	for i := 0; i < len(words); i++ {
		word, argument := words[i], ""
		if i+1 < len(words) {
			argument = words[i+1]
		}
		used, ok := a.option(word, argument)
		if !ok && !a.setAddress(word) {
			a.odd = true
		}
		if used {
			i++
		}
	}
	return a
}

// option takes one word of ifconfig's with its argument; used tells that the argument belongs to it.
func (a *alias) option(word, argument string) (used, ok bool) {
	var err error
	switch word {
	case "inet", "inet6", "alias", "add", "up":
		return false, true
	case "vhid":
		a.vhid, err = strconv.Atoi(argument)
	case "advbase":
		a.advBase, err = strconv.Atoi(argument)
	case "advskew":
		a.advSkew, err = strconv.Atoi(argument)
	case "pass":
		a.password = cluster.Secret(argument)
	case "peer", "peer6":
		a.peer, err = netip.ParseAddr(argument)
	case "netmask":
		a.setBits(maskBits(argument))
	case "prefixlen":
		var n int
		if n, err = strconv.Atoi(argument); err == nil {
			a.setBits(n)
		}
	case "broadcast":
	default:
		return false, false
	}
	a.odd = a.odd || err != nil || argument == ""
	return true, true
}

func (a *alias) setAddress(word string) bool {
	if p, err := netip.ParsePrefix(word); err == nil {
		a.address, a.bare = p, p.Addr()
		return true
	}
	address, err := netip.ParseAddr(word)
	if err != nil {
		return false
	}
	a.bare, a.address = address, netip.PrefixFrom(address, a.address.Bits())
	return true
}

// setBits joins a mask to the address, which may come before it or after it.
func (a *alias) setBits(n int) {
	if n >= 0 && a.bare.IsValid() {
		a.address = netip.PrefixFrom(a.bare, n)
		return
	}
	a.odd = true
}

// maskBits is the prefix length of a mask, 255.255.255.0 or 0xffffff00; -1 where it is none.
func maskBits(text string) int {
	var mask uint32
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != 4 {
			return -1
		}
		mask = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	} else {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() {
			return -1
		}
		b := a.As4()
		mask = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	n := bits.LeadingZeros32(^mask)
	if n < 32 && mask<<n != 0 {
		return -1
	}
	return n
}

// rcName is how rc.conf(5) spells an interface in the name of a variable.
func rcName(iface string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(".-/+", r) {
			return '_'
		}
		return r
	}, iface)
}
